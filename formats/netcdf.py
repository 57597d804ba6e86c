"""NetCDF: the classic format by SciPy (pip install scipy); NetCDF-4 is HDF5."""

from __future__ import annotations

import warnings

from formats.common import VolumeError, as_volume_error, import_package
from formats.hdf5 import check_is_plain, read_hdf5
from formats.variables import Variable


def read_netcdf(path: str, name: str | None) -> tuple[dict[str, Variable], str | None]:
    """The arrays in a NetCDF file of any kind but CDF-5, and the name of the one that is meant. Raises VolumeError."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:3] != b"CDF":
        return read_hdf5(path, name)
    if start[3:] == b"\5":
        raise VolumeError(f"{path}: expected NetCDF of another kind than CDF-5: nccopy -k netCDF-4 writes one")
    scipy_io = import_package("scipy.io", "scipy", path)
    warnings.filterwarnings("ignore", "Cannot close a netcdf_file", RuntimeWarning)  # it stays mapped, as it should
    with as_volume_error(path, "scipy cannot read it"):
        found = scipy_io.netcdf_file(path, "r", mmap=True, maskandscale=False).variables
        variables = {
            key: Variable(item.dimensions, item.data.dtype, item._attributes, item.data)
            for key, item in found.items()
            if item.data.dtype.kind in "iuf"
        }
        check_is_plain(path, "NetCDF", variables, name)
        return variables, name
