"""NumPy's .npz: several .npy arrays in a ZIP archive. Stored ones are memory-mapped; compressed ones are held."""

from __future__ import annotations

import math
import zipfile
from types import SimpleNamespace

import numpy as np

from cli import console
from formats.cf import may_be_steps, steps_of_no_convention
from formats.common import MAX_EXPANSION, VolumeError, as_volume_error
from formats.raw import npy_header, volume_of_array
from formats.variables import Variable, chosen, first_of
from utils import Volume

COMPRESSIONS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # a kilobyte of bzip2 can become a gigabyte in one piece
LOCAL_HEADER_BYTES = 30  # before the name of an entry; two lengths are at its end


def read_npz(path: str, name: str | None, d_in: int | None, d_out: int | None) -> Volume:
    """The volume of an array in a .npz file, whose axes are those of a .npy file. Raises VolumeError."""
    with as_volume_error(path, "not a readable .npz archive"), zipfile.ZipFile(path) as archive:
        variables, entries = {}, {}
        for entry in archive.infolist():
            if entry.compress_type not in COMPRESSIONS:
                what = f"expected it stored or deflated, as NumPy writes it, found method {entry.compress_type}"
                raise VolumeError(f"{path}: {entry.filename}: {what}")
            key = entry.filename.removesuffix(".npy")
            with archive.open(entry) as file:
                shape, _, dtype, _ = npy_header(file)
            if dtype.kind in "iufbc":
                variables[key] = Variable(("",) * len(shape), dtype, {}, SimpleNamespace(shape=shape))
                entries[key] = entry
        key = chosen(path, variables, name)
        array = _array(path, archive, entries[key])
        steps = [other for other, variable in variables.items() if may_be_steps(other, variable)]
        variables |= {other: variables[other]._replace(source=_array(path, archive, entries[other])) for other in steps}
    _warn_of_positions(path, key, variables)
    return volume_of_array(path, array, d_in, d_out, key)


def _warn_of_positions(path: str, key: str, variables: dict[str, Variable]) -> None:
    """Say so when other arrays may be positions, of the length of an axis, or steps, by their names."""
    lengths = [(n,) for n in variables[key].shape if n > 1]
    steps = steps_of_no_convention(key, variables, variables[key].shape)
    numbers = {name: other for name, other in variables.items() if other.dtype.kind in "iuf" and name != key}
    if found := [name for name, other in numbers.items() if other.shape in lengths or name in steps]:
        way_out = "xarray's DataArray(array, {'x': x, 'y': y, 'z': z}).to_netcdf('a.nc') keeps them"
        console.warn(path, f"{key}: {first_of(found)} may be positions or steps: spacing 1 is taken: {way_out}")


def _array(path: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """The array of an entry."""
    with archive.open(entry) as file:
        shape, is_fortran, dtype, n_header = npy_header(file)
    n_bytes = dtype.itemsize * math.prod(shape)
    if entry.file_size != n_header + n_bytes:
        found = entry.file_size - n_header
        raise VolumeError(f"{path}: {entry.filename}: expected {n_bytes} bytes of values, found {found}")
    if n_bytes > MAX_EXPANSION * entry.compress_size:
        raise VolumeError(f"{path}: {entry.filename}: {entry.compress_size} bytes are too few for {n_bytes} of values")
    if entry.compress_type == zipfile.ZIP_STORED and n_bytes and not entry.flag_bits & 1:
        with open(path, "rb") as file:
            file.seek(entry.header_offset)
            header = file.read(LOCAL_HEADER_BYTES)
        lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))  # of its name and what follows
        start = entry.header_offset + LOCAL_HEADER_BYTES + lengths + n_header
        return np.memmap(path, dtype, "r", start, shape, order="F" if is_fortran else "C")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
