"""Volume files -> checked volumes, whatever the format.

`Volume.array[x, y, z]`: axis 0 is x, as in the original scripts.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

import volume_readers
from volume import RawLayout, Volume, VolumeError, suffix_of


def read_volume(
    path: str, d_in: int = 3, d_out: int = 1, array: str | None = None, layout: RawLayout | None = None
) -> Volume:
    """Read a volume of `d_in` axes, with a last axis of `d_out` components when that is above 1.

    array: the name of the one to read of several. layout: of a headerless file. The array keeps its values and type,
    in the machine's byte order; booleans become uint8. A file that can be mapped into memory is: nothing of it is
    copied. Raises VolumeError for anything that is not a finite numeric volume of that form.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from None
    suffix = suffix_of(path)
    if layout is not None and suffix != ".raw":
        raise VolumeError(f"{path}: --shape, --dtype and --endian describe a headerless file (.raw)")
    if array is not None and suffix != ".vti":
        raise VolumeError(f"{path}: --array picks one of several arrays of a file, this one holds one without a name")
    if start[:6] == b"\x93NUMPY":
        volume = volume_readers.read_npy(path, d_in)
    elif suffix == ".vti":
        volume = _with_axes(volume_readers.read_vti(path, array), d_in)
    elif layout is not None:
        volume = _with_axes(volume_readers.read_raw(path, layout), d_in)
    else:
        raise VolumeError(f"{path}: expected a NumPy array (.npy) or VTK image data (.vti), found {start!r}...")
    volume = dataclasses.replace(volume, array=_native(path, volume.array))
    _check(path, volume, d_in, d_out)
    return volume


def _with_axes(volume: Volume, d_in: int) -> Volume:
    """An array (x, y, z, components) without the axes of one voxel beyond `d_in`, and without a sole component's."""
    array, shape = volume.array, volume.array.shape
    if math.prod(shape[d_in:-1]) == 1:
        array = array.reshape(*shape[:d_in], shape[-1])
    if shape[-1] == 1:
        array = array[..., 0]
    return dataclasses.replace(volume, array=array, spacing=volume.spacing[:d_in], origin=volume.origin[:d_in])


def _native(path: str, array: np.ndarray) -> np.ndarray:
    """`array` as one of integers or floats in the machine's byte order; copied only where that takes a copy."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind not in "iuf":
        raise VolumeError(f"{path}: expected integers or floats, found dtype {array.dtype}")
    dtype = array.dtype.newbyteorder("=")
    if dtype.itemsize > 8:  # long double: no file format of ours and no network holds it
        dtype = np.dtype(np.float64)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return np.asarray(array).astype(dtype)  # a plain array: the copy is no memory map


def _check(path: str, volume: Volume, d_in: int, d_out: int) -> None:
    """Raise VolumeError unless this is a finite volume of that many axes and components."""
    array = volume.array
    expected = d_in + (d_out > 1)
    if array.ndim != expected or (d_out > 1 and array.shape[-1] != d_out):
        form = f"{d_in} axes" + (f" and {d_out} components" if d_out > 1 else "")
        raise VolumeError(f"{path}: expected {form}, found shape {array.shape}")
    if array.size == 0:
        raise VolumeError(f"{path}: is empty: shape {array.shape}")
    if not all(0 < s < math.inf for s in volume.spacing):
        raise VolumeError(f"{path}: expected a positive spacing, found {volume.spacing}")
    low, high = array.min(), array.max()  # NaN when there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        count, first = _not_finite(array)
        raise VolumeError(f"{path}: expected finite values, found {count} NaN or infinite ones, the first at {first}")
    with np.errstate(over="ignore"):
        if not np.isfinite(float(high) - float(low)):
            raise VolumeError(f"{path}: the range of its values, {low} to {high}, overflows float64")


def _not_finite(array: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """How many values are NaN or infinite, and the index of the first; a plane at a time."""
    count, first = 0, ()
    for x, plane in enumerate(array):
        bad = ~np.isfinite(plane)
        if not count and bad.any():
            first = (x, *(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape)))
        count += np.count_nonzero(bad)
    return count, first
