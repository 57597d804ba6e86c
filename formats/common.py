"""What the formats share: their error, file suffixes, axes in space."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np

from cli import console
from utils import SIGNS, Geometry, UserError, Volume, float_for

MAX_EXPANSION = 10_000  # most bytes that one compressed byte can become; LZMA, the best method, reaches 7000
AXES = {1: "x", 2: "xy", 3: "xyz", 4: "txyz"}  # of a grid, by their number
UNEVEN = 1e-3  # most that a coordinate, or a time, may be off equal steps, in steps
COMPLEX_WAY_OUT = (
    "NumPy's abs(array) or array.real makes floats of them; np.stack([array.real, array.imag], axis=-1), with "
    "--d_out 2, keeps both parts"
)
BY_PARAVIEW = "open it in ParaView, apply Resample To Image, and save the result as .vti"
UNITS_OF_OME_ZARR = {"nanometer": "nm", "micrometer": "\u00b5m", "millimeter": "mm", "centimeter": "cm", "meter": "m"}
LENGTHS_IN_MM = {"nm": 1e-6, "\u00b5m": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3, "km": 1e6}


class VolumeError(UserError):
    """A volume file cannot be read or written. The message names the file, what was expected and what was found."""


@contextlib.contextmanager
def as_volume_error(path: str, what: str) -> Iterator[None]:
    """Make a VolumeError of every error in the block: a damaged file can fail in any parser. what: the error, told."""
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"{path}: {what}: {' '.join(str(error).split())}") from None


def import_package(module: str, packages: str, path: str) -> ModuleType:
    """The package that knows a format. Raises VolumeError that says how to install the package if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise VolumeError(f"{path}: a file of this format needs {module}: pip install {packages}") from None


def unit_of_length(text: str) -> str:
    """A unit of length, in one of the ways to write it; another text as it is."""
    text = re.sub("^([u\u03bc]|\\\\u00B5)m$|^micron$", "\u00b5m", text)
    return UNITS_OF_OME_ZARR.get(text, text)


def suffix_of(path: str) -> str:
    """The suffix of a file in lower case, with its dot; for a packed file both suffixes, such as .nii.gz."""
    stem, suffix = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def of_three_axes(numbers: Iterable, rest: object) -> tuple:
    """The numbers of up to three axes, one for each, and `rest` for each further axis of space."""
    return (*numbers, rest, rest)[:3]


def volume_from_axes(
    path: str, array: np.ndarray, steps: np.ndarray, origin: np.ndarray, space: str = "", **said: str | dict[str, str]
) -> Volume:
    """The volume whose voxels along axis k are steps[:, k] apart. Raises VolumeError.

    space: where x, y, z of the file point, one of SIGNS; "" when the file does not say it. The volume has them in LPS.
    said: name, units and axis_attributes of the geometry, empty where unknown.
    """
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        spacing = np.linalg.norm(steps, axis=0)
    if not (np.isfinite([*steps, spacing]).all() and np.isfinite(origin).all() and (spacing > 0).all()):
        raise VolumeError(f"{path}: expected axes of finite length, found {steps.T.tolist()} from {np.ravel(origin)}")
    direction, said = steps / spacing + 0.0, {key: found for key, found in said.items() if found}
    geometry = Geometry(*(tuple(np.ravel(part).tolist()) for part in (spacing, origin, direction)), **said)
    if space:
        geometry = dataclasses.replace(geometry.with_signs(SIGNS[space]), space="LPS")
    if not geometry.is_orthonormal:
        way_out = "dcm2niix does so for a tilted gantry, nibabel.processing.resample_to_output for NIfTI"
        what = f"expected axes at right angles, found {direction.T.tolist()}"
        raise VolumeError(f"{path}: {what}: resample it first: {way_out}")
    return Volume(array, geometry)


def warn_of_vectors(path: str, array: np.ndarray, space: str) -> None:
    """Say so when values (..., components) may be vectors, and x, y, z of the file's space are not those of LPS.

    Colours, which are integers, have no directions.
    """
    if array.shape[-1] == 3 and array.dtype.kind == "f" and space not in ("", "LPS"):
        what = "the components of its vectors stay as they are, positions and gradients are in LPS"
        turned = f"turn those that are in {space}, as by NumPy's array * {SIGNS[space]}"
        console.warn(path, f"{what}: {turned}, if directions matter")


def in_type(number: float, dtype: np.dtype) -> np.generic | None:
    """A number in that dtype, rounded if the dtype is a float; None where the dtype has no such value."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            found = np.array(number).astype(dtype)[()]
        return None if np.isinf(found) else found
    ends = np.iinfo(dtype)
    return dtype.type(int(number)) if ends.min <= number <= ends.max and int(number) == number else None


def rescaled(stored: np.ndarray, slope: float, shift: float) -> np.ndarray:
    """slope * stored + shift: integers where both factors are whole, of a type that holds all that there may be.

    Others are of the type `float_for`.
    """
    if (slope, shift) == (1, 0):
        return stored
    if stored.dtype.kind in "iu" and slope.is_integer() and shift.is_integer():
        ends = np.iinfo(stored.dtype)
        most = max(abs(int(slope) * end + int(shift)) for end in (int(ends.min), int(ends.max)))
        dtype = np.int32 if most < 1 << 31 else np.int64 if most < 1 << 62 else None
        if dtype:
            return stored.astype(dtype) * dtype(slope) + dtype(shift)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return (stored * slope + shift).astype(float_for(stored.dtype))


def narrowed(array: np.ndarray) -> np.ndarray:
    """An array of int32 as int16 where that holds its values; others as they are."""
    ends = np.iinfo(np.int16)
    fits = array.dtype == np.int32 and ends.min <= array.min() and array.max() <= ends.max
    return array.astype(np.int16) if fits else array
