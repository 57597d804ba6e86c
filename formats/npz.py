"""NumPy's .npz: several .npy arrays in a ZIP archive. Stored ones are memory-mapped; compressed ones are held."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from typing import Any

import numpy as np

from cli import console
from formats.cf import may_be_along, steps_of_no_convention
from formats.common import MAX_EXPANSION, VolumeError, as_volume_error
from formats.raw import npy_header, volume_of_array
from formats.variables import Variable, chosen, first_of
from utils import Volume

COMPRESSIONS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # a kilobyte of bzip2 can become a gigabyte in one piece
LOCAL_HEADER_BYTES = 30  # before the name of an entry; two lengths are at its end


def read_npz(path: str, name: str | None, d_in: int | None, d_out: int | None) -> Volume:
    """The volume of an array in a .npz file, whose axes are those of a .npy file. Raises VolumeError."""
    with as_volume_error(path, "not a readable .npz archive"), zipfile.ZipFile(path) as archive:
        variables = {}
        for entry in archive.infolist():
            if entry.compress_type not in COMPRESSIONS:
                what = f"expected it stored or deflated, as NumPy writes it, found method {entry.compress_type}"
                raise VolumeError(f"{path}: {entry.filename}: {what}")
            with archive.open(entry) as file:
                source = _Source(archive, entry, *npy_header(file))
            if source.dtype.kind in "iufbc":
                variable = Variable(("",) * len(source.shape), source.dtype, {}, source)
                variables[entry.filename.removesuffix(".npy")] = variable
        key = chosen(path, variables, name)
        array = variables[key].source[...]
        steps = steps_of_no_convention(key, variables, array.shape)
    others = [(other, variable) for other, variable in variables.items() if other != key]
    if found := [other for other, variable in others if other in steps or may_be_along(variable, array.shape)]:
        way_out = "xarray's DataArray(array, {'x': x, 'y': y, 'z': z}).to_netcdf('a.nc') keeps them"
        console.warn(path, f"{key}: {first_of(found)} may be positions or steps: spacing 1 is taken: {way_out}")
    return volume_of_array(path, array, d_in, d_out, key)


@dataclasses.dataclass(frozen=True)
class _Source:
    """An array in an archive, read when it is indexed. n_header: bytes before its values."""

    archive: zipfile.ZipFile
    entry: zipfile.ZipInfo
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    n_header: int

    def __getitem__(self, key: Any) -> np.ndarray:
        path, entry, n_bytes = self.archive.filename, self.entry, self.dtype.itemsize * math.prod(self.shape)
        if entry.file_size != self.n_header + n_bytes:
            found = entry.file_size - self.n_header
            raise VolumeError(f"{path}: {entry.filename}: expected {n_bytes} bytes of values, found {found}")
        if n_bytes > MAX_EXPANSION * entry.compress_size:
            what = f"{entry.compress_size} bytes are too few for {n_bytes} of values"
            raise VolumeError(f"{path}: {entry.filename}: {what}")
        if entry.compress_type == zipfile.ZIP_STORED and n_bytes and not entry.flag_bits & 1:
            with open(path, "rb") as file:
                file.seek(entry.header_offset)
                header = file.read(LOCAL_HEADER_BYTES)
            lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))  # of its name and the rest
            start = entry.header_offset + LOCAL_HEADER_BYTES + lengths + self.n_header
            return np.memmap(path, self.dtype, "r", start, self.shape, order="F" if self.is_fortran else "C")[key]
        with self.archive.open(entry) as file:
            return np.lib.format.read_array(file, allow_pickle=False)[key]
