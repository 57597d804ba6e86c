"""The values of a variable, made of what its file stores: scales, offsets, missing values, by the CF conventions.

Source: cfconventions.org, sections 2.5.1 and 8.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from formats.common import VolumeError, in_type
from formats.stored import StoredArray, in_axes
from formats.variables import Variable
from utils import equal_to, float_for, quoted

MARKS = ("_FillValue", "missing_value", "valid_range", "valid_min", "valid_max")
NUMBERS = ("scale_factor", "add_offset", *MARKS)
SLACK = 0.01  # most that a limit of unpacked values may be off the packed one; float32 rounds 300 / 0.01 by 0.002


def array_of(
    path: str, variable: Variable, axes: list[int | None]
) -> tuple[np.ndarray | StoredArray, np.generic | None]:
    """The array with these axes of the file, and its fill value: a view of an array that has the values as they are.

    path: of the file, with the name of the array, for errors.
    """
    dtype, decode, fill = decoding(path, variable)
    source = variable.source
    if isinstance(source, np.ndarray) and decode is None and source.dtype == dtype:
        return in_axes(source, axes), fill

    def values(stored: np.ndarray) -> np.ndarray:
        return (decode(stored) if decode else stored).astype(dtype, copy=False)

    window = tuple(map(range, variable.shape))
    chunks = variable.chunks or (1,) * len(window)
    return StoredArray(path, source, dtype, values, window, tuple(axes), chunks), fill


def unmarked(variable: Variable) -> Variable:
    """The variable as if it declared no values to be missing."""
    return variable._replace(attributes={key: said for key, said in variable.attributes.items() if key not in MARKS})


def decoding(
    path: str, variable: Variable
) -> tuple[np.dtype, Callable[[np.ndarray], np.ndarray] | None, np.generic | None]:
    """(dtype of the values, function that makes them of the stored ones, fill value); None where there is none.

    Scaled values are of the type `float_for`. Missing ones are then NaN. Raises VolumeError.
    """
    for key in NUMBERS:
        said = np.ravel(np.asarray(variable.attributes.get(key, ()))).tolist()
        if any(isinstance(part, str | bytes) and part for part in said):
            way_out = f"ncatted -a {key},NAME,o,d,VALUE, or its attrs[{key!r}] in h5py or zarr, sets it"
            text = quoted(variable.text(key) or said)
            raise VolumeError(f"{path}: expected a number as {key}, found the text {text}: {way_out}")
    kept = np.dtype(np.uint8) if variable.dtype.kind == "b" else variable.dtype.newbyteorder("=")
    kept = np.dtype(np.float64) if kept.itemsize > 8 else kept  # long double
    kind = {"true": "u", "false": "i"}.get(variable.text("_Unsigned").lower(), kept.kind)  # a format may lack one
    kept = np.dtype(f"{kind}{kept.itemsize}") if kept.kind in "iu" else kept
    declared = [number for name in ("_FillValue", "missing_value") for number in variable.numbers(name)]
    marks = [in_type(_stored(number, variable, kept), kept) for number in declared]
    marks = [mark for mark in marks if mark is not None]  # None: the type has no such value
    marks = [mark for k, mark in enumerate(marks) if not any(equal_to(mark, other) for other in marks[:k])]
    packing = [variable.numbers(name) for name in ("scale_factor", "add_offset")]
    if any(len(numbers) > 1 for numbers in packing):
        raise VolumeError(f"{path}: expected one scale_factor and one add_offset, found {packing}")
    scale, offset = (float((*numbers, default)[0]) for numbers, default in zip(packing, (1, 0), strict=True))
    is_packed = (scale, offset) != (1, 0)
    low, high = _valid_range(path, variable, kept, scale, offset)
    is_limited = (low, high) != (-math.inf, math.inf)

    dtype, fill = kept, marks[0] if marks else _unused(kept, low, high)
    if is_packed:
        dtype = float_for(kept)
        fill = dtype.type(np.nan) if marks or is_limited else None

    def values_of(stored: np.ndarray) -> np.ndarray:
        stored = stored.astype(kept, copy=False)
        is_missing = (stored < low) | (stored > high)
        for mark in marks:
            is_missing |= equal_to(stored, mark)
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            values = np.array(stored * np.float64(scale) + offset if is_packed else stored, dtype)
        values[is_missing] = np.nan if is_packed else fill
        return values

    return dtype, values_of if is_packed or is_limited or marks[1:] else None, fill


def _valid_range(path: str, variable: Variable, dtype: np.dtype, scale: float, offset: float) -> tuple[float, float]:
    """(least, greatest) stored value that is not missing, by valid_range, valid_min and valid_max; infinite if unsaid.

    Floats that limit packed integers are of the unpacked values, as the NetCDF User Guide has it.
    """
    given = variable.numbers("valid_range")
    if given and len(given) != 2:
        raise VolumeError(f"{path}: expected a valid_range of two numbers, found {quoted(given)}")
    ends = given or [(*variable.numbers(name), math.nan)[0] for name in ("valid_min", "valid_max")]
    if dtype.kind == "f":
        ends = [_stored(end, variable, dtype) for end in ends]
    elif any(isinstance(end, float) and math.isfinite(end) for end in ends):
        ends = [(end - offset) / scale for end in ends][:: 1 if scale > 0 else -1]
        inwards = (math.ceil, -SLACK), (math.floor, SLACK)
        ends = [whole(end + by) if math.isfinite(end) else end for end, (whole, by) in zip(ends, inwards, strict=True)]
    elif dtype.kind != variable.dtype.kind:
        ends = [_stored(end, variable, dtype) for end in ends]
    low, high = (end if math.isfinite(end) else unsaid for end, unsaid in zip(ends, (-math.inf, math.inf), strict=True))
    if dtype.kind == "f":
        return low, high
    limits = np.iinfo(dtype)
    return low if low > limits.min else -math.inf, high if high < limits.max else math.inf


def _unused(dtype: np.dtype, low: float, high: float) -> np.generic | None:
    """A value beyond low..high, which marks missing voxels where the file names none; None if nothing lies beyond."""
    if (low, high) == (-math.inf, math.inf):
        return None
    if dtype.kind == "f":
        return dtype.type(np.nan)
    limits = np.iinfo(dtype)
    return dtype.type(min(low - 1, limits.max) if low > limits.min else max(high + 1, limits.min))


def _stored(number: float, variable: Variable, dtype: np.dtype) -> float:
    """A number of an attribute as values of that type have it: of the same bits, or rounded as floats are."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(number))
    span = 1 << 8 * dtype.itemsize
    if dtype.kind == "u":
        return number + span if -span // 2 <= number < 0 else number
    return number - span if variable.dtype.kind == "u" and span // 2 <= number < span else number
