"""Arrays without a geometry: NumPy's .npy files and headerless files."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
from typing import BinaryIO

import numpy as np

from formats.arrays import LazyArray
from formats.common import VolumeError, as_volume_error, of_three_axes
from formats.slabs import Frame, slabs
from formats.voxels import mapped
from utils import DEFAULT_NAME, DTYPES, Geometry, Volume

MAX_HEADER = 1 << 16  # bytes of a .npy header; NumPy itself refuses one of more than 10,000
LIKE_COMPONENTS = (2, 3, 4, 6, 9)  # lengths at which a last axis may mean components, as of tensors, or space
RAW_NAME = re.compile(rf"_(\d+)x(\d+)x(\d+)_({'|'.join(DTYPES)})\.raw$")


def read_npy(path: str, d_in: int | None, d_out: int | None) -> Volume:
    """A NumPy array as a memory map, with the axes of `volume_of_array`. Raises VolumeError for an unreadable file."""
    with as_volume_error(path, "not a readable NumPy array"):
        with open(path, "rb") as file:
            shape, is_fortran, dtype, offset = npy_header(file)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are never unpickled")
    if 0 in shape:
        array = np.empty(shape, dtype)
    else:
        array = mapped(path, dtype, shape, offset) if is_fortran else mapped(path, dtype, shape[::-1], offset).T
    return volume_of_array(path, array, d_in, d_out)


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran order, dtype, bytes of the header) of a .npy file. Raises ValueError."""
    start = io.BytesIO(file.read(MAX_HEADER))  # NumPy reads as many bytes as the header says, up to 4 GiB
    version = np.lib.format.read_magic(start)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = reader(start)
    if not all(type(n) is int for n in shape):  # NumPy takes True for 1
        raise ValueError(f"expected whole numbers as its shape, found {shape}")
    return shape, is_fortran, dtype, start.tell()


def volume_of_array(
    path: str, array: np.ndarray, d_in: int | None, d_out: int | None, name: str = DEFAULT_NAME
) -> Volume:
    """The volume of an array [(t,) x, y, z(, components)]. Of four axes, the first is time unless d_in or d_out differ.

    Raises VolumeError for four axes that may end in components if d_in and d_out are None.
    """
    check_last_axis(path, array.shape, d_in, d_out)
    d_in = d_in or (4 if array.ndim - ((d_out or 1) > 1) > 3 else 3)
    return Volume(array, dataclasses.replace(Geometry.plain(d_in), name=name))


def check_last_axis(source: str, shape: tuple[int, ...], d_in: int | None, d_out: int | None) -> None:
    """Raise VolumeError for four axes of which the last may be z or components, if d_in and d_out are None."""
    if d_in is d_out is None and len(shape) == 4 and shape[3] in LIKE_COMPONENTS:
        what = f"expected --d_in 4 (a time series) or --d_out {shape[3]} (components)"
        raise VolumeError(f"{source}: {what}: four axes of shape {shape} may be either")


@dataclasses.dataclass(frozen=True)
class RawLayout:
    """The layout of the voxels in a headerless file, x fastest. The name of the file says what is None."""

    shape: tuple[int, ...] | None  # voxels along x, y, z
    dtype: str | None  # name of a NumPy dtype
    endian: str = "little"  # or "big"


def raw_layout(shape: tuple[int, ...] | None, dtype: str | None, endian: str | None) -> RawLayout | None:
    """The layout that --shape, --dtype and --endian describe, as far as they do; None when none is given."""
    return None if shape is dtype is endian is None else RawLayout(shape, dtype, endian or "little")


def layout_of_name(path: str) -> RawLayout | None:
    """The layout in a headerless file's name (Open SciVis convention: a_8x9x5_uint8.raw); None if there is none."""
    found = RAW_NAME.search(path)
    return RawLayout(tuple(int(n) for n in found.groups()[:3]), found[4]) if found else None


def read_raw(path: str, given: RawLayout | None) -> Volume:
    """The volume of a headerless file, memory-mapped. Its layout is what is given, and the rest by its name.

    Raises VolumeError for a layout with a part missing, and for a file of another size.
    """
    layout = given or RawLayout(None, None)
    if named := layout_of_name(path):
        layout = RawLayout(layout.shape or named.shape, layout.dtype or named.dtype, layout.endian)
    if layout.shape is None or layout.dtype is None:
        what = "expected both --shape and --dtype (and --endian, little unless given)"
        raise VolumeError(f"{path}: a headerless file: {what}, or a name like a_256x256x128_uint8.raw")
    shape = of_three_axes(layout.shape, 1)
    dtype = np.dtype(layout.dtype).newbyteorder("<" if layout.endian == "little" else ">")
    expected, found = math.prod(shape) * dtype.itemsize, os.path.getsize(path)
    if found != expected:
        sizes = " x ".join(map(str, layout.shape))
        what = f"expected {expected} bytes for {sizes} of {layout.dtype}, found {found}"
        n, name = found - expected, os.path.basename(path)
        why = "if it begins with a header"
        if _is_record(path, expected, layout.endian):
            n, why = 4, "without the two marks of Fortran's record"
        way_out = f": a .nhdr file with 'byte skip: {n}' and 'data file: {name}' reads it, {why}"
        raise VolumeError(f"{path}: {what}{way_out if n > 0 else ''}")
    array = np.memmap(path, dtype, "r", shape=shape, order="F") if expected else np.empty(shape, dtype)
    return Volume(array[..., None], Geometry.plain(3))


def _is_record(path: str, n_bytes: int, endian: str) -> bool:
    """Whether a file is one record of so many bytes, as Fortran writes it: their number is before and behind them."""
    if os.path.getsize(path) != n_bytes + 8:
        return False
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(-4, os.SEEK_END)
        return {int.from_bytes(mark, endian) for mark in (start, file.read())} == {n_bytes}


def write_npy(file: BinaryIO, frame: Frame, array: np.ndarray | LazyArray) -> None:
    """Write an array in NumPy's own format, in C order."""
    header = {"descr": frame.dtype.str, "fortran_order": False, "shape": tuple(array.shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for slab in slabs(array, frame.d_in):
        file.write(np.ascontiguousarray(slab, frame.dtype))
