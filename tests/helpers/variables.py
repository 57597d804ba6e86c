"""Variables on named dimensions, as xarray writes them: NetCDF of both kinds, and Zarr."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
h5py, scipy_io, zarr = map(pytest.importorskip, ("h5py", "scipy.io", "zarr"))

SHAPE = (7, 6, 5)  # x, y, z
KINDS = ("nc3", "nc4", "nc4 chunks", "zarr2", "zarr3")


def write(folder: Path, kind: str, data, encoding: dict | None = None) -> str:
    """The data set in a file of that kind."""
    encoding = {name: dict(found) for name, found in (encoding or {}).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features of Zarr 3 that are new
        if kind.startswith("zarr"):
            for name, found in data.data_vars.items():
                encoding.setdefault(name, {})["chunks"] = tuple(max(1, n // 2) for n in found.shape)
            data.to_zarr(folder / "a.zarr", zarr_format=int(kind[-1]), encoding=encoding)
            return str(folder / "a.zarr")
        if kind == "nc4 chunks":
            for name, found in data.data_vars.items():
                chunks = tuple(max(1, n // 2) for n in found.shape)
                encoding.setdefault(name, {}).update(zlib=True, chunksizes=chunks)
        data.to_netcdf(folder / "a.nc", engine="scipy" if kind == "nc3" else "h5netcdf", encoding=encoding)
    return str(folder / "a.nc")


def grid(array: np.ndarray, dims: tuple[str, ...] = ("z", "y", "x"), attributes: dict | None = None, **coordinates):
    """A data set of the variable "v", [x, y, z] whatever its dims. coordinates: (values, attributes) by dim."""
    return xarray.Dataset(
        {"v": (dims, array.T, attributes or {})},
        coords={dim: (dim, np.asarray(values), given) for dim, (values, given) in coordinates.items()},
    )


def set_attribute(path: str, name: str, value: object) -> None:
    """Set an attribute of "v" as it is."""
    if path.endswith(".zarr"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.open_array(f"{path}/v").attrs[name] = value
    elif Path(path).read_bytes()[:3] == b"CDF":
        with scipy_io.netcdf_file(path, "a", mmap=False) as file:
            setattr(file.variables["v"], name, value)
    else:
        with h5py.File(path, "a") as file:
            file["v"].attrs[name] = value
