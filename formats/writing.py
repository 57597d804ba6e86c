"""Writes volumes to files of every format."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
from collections.abc import Mapping

import numpy as np

from cli import console
from cli.files import FileSet
from formats import hdf5, metaimage, nifti, nrrd, raw, tiff, vtk_images, zarr
from formats.arrays import LazyArray
from formats.common import VolumeError, import_package, of_three_axes, suffix_of, unit_of_length
from formats.slabs import frame_of, planar, x_fastest
from utils import Volume

# Formats of other packages: how each is written, and the package.
WRITERS = {
    ".nc": (hdf5.write_hdf5, "h5py"),
    ".h5": (hdf5.write_hdf5, "h5py"),
    ".zarr": (zarr.write_zarr, "zarr"),
    ".tif": (tiff.write_tiff, "tifffile"),
}
SUFFIXES = (".vti", ".npy", ".raw", ".nrrd", ".mhd", ".mha", ".nii", ".nii.gz", *WRITERS)
WITH_TIME = (".npy", ".nii", ".nii.gz", ".nc", ".h5", ".zarr")  # formats that hold a time series in one file
GZIP_LEVEL = 5
DEFLATE_MOST = 1032  # most bytes that Deflate can compress into one byte


def output_path(path: str) -> str:
    """`path` with .vti appended when it has no suffix. Raises VolumeError for a suffix that cannot be written."""
    suffix = suffix_of(path)
    if not suffix:
        return path + ".vti"
    if suffix not in SUFFIXES:
        raise VolumeError(f"{path}: cannot write {suffix} files, only {', '.join(SUFFIXES)}")
    if suffix in WRITERS:
        import_package(WRITERS[suffix][1], WRITERS[suffix][1], path)
    return path


def output_files(path: str, shape: tuple[int, ...], dtype: np.dtype, n_components: int = 1) -> list[str]:
    """The files that `write_volume` makes for `path`; the first is the file to open. shape: of the grid.

    The name of a headerless file says what the file holds: a.raw becomes a_80x64x56_float32.raw. The voxels of a.mhd
    are in a.raw. Raises VolumeError for what the format cannot hold.
    """
    suffix, (stem, dot) = suffix_of(path), os.path.splitext(path)
    if len(shape) > 3 and suffix not in WITH_TIME:
        raise VolumeError(f"{path}: holds up to three axes, found shape {shape}: use {' or '.join(WITH_TIME)}")
    if suffix == ".raw":
        if n_components > 1:
            raise VolumeError(f"{path}: the name of a .raw file has no place for {n_components} components: use .nrrd")
        sizes = "x".join(map(str, of_three_axes(shape, 1)))
        given = re.search(r"_\d+x\d+x\d+_[^_]+$", os.path.basename(stem))
        if given and given[0] != f"_{sizes}_{dtype}":
            raise VolumeError(f"{path}: expected a name that ends in _{sizes}_{dtype}{dot}, or that says nothing of it")
        return [path if given else f"{stem}_{sizes}_{dtype}{dot}"]
    if suffix in (".mhd", ".mha") and dtype in (np.int64, np.uint64):
        raise VolumeError(f"{path}: MetaImage cannot hold {dtype} so that VTK reads it: use .nrrd")
    if suffix == ".tif" and dtype in (np.int64, np.uint64):
        raise VolumeError(f"{path}: OME-TIFF cannot hold {dtype}: use .nc")
    if suffix == ".mhd":
        data = os.path.basename(stem) + ".raw"
        if "%" in data or data.startswith("LIST"):  # such a name means a pattern or a list of files
            raise VolumeError(f"{path}: the header cannot name its data {data}: use .mha")
        return [path, f"{stem}.raw"]
    if suffix in (".nii", ".nii.gz") and max(*shape, n_components) > nifti.MAX_AXIS:
        raise VolumeError(f"{path}: NIfTI holds up to {nifti.MAX_AXIS} voxels an axis, found shape {shape}: use .nrrd")
    return [path]


def least_bytes(path: str, n_bytes: int) -> int:
    """The least number of bytes on disk of a file that holds `n_bytes` bytes of values."""
    return n_bytes // DEFLATE_MOST if suffix_of(path) in (".vti", ".nii.gz", ".zarr") else n_bytes


def write_volume(
    path: str,
    volume: Volume,
    extra: Mapping[str, np.ndarray | LazyArray] | None = None,
    together: FileSet | None = None,
) -> None:
    """Write `volume` to `path` in the format of its suffix: all of its files (see `output_files`) or none.

    extra: further arrays on the same grid, by name; only .vti holds them. together: the files get their names when it
    ends, so that several volumes are written all or none. .npy and .raw hold the values alone. float16 becomes float32
    in all other formats. Raises VolumeError for what the format cannot hold, before a value is asked for, and UserError
    when the system refuses to write.
    """
    if together is None:
        with FileSet() as together:
            write_volume(path, volume, extra, together)
        return
    suffix, array, d_in = suffix_of(path), volume.array, volume.geometry.d_in
    if extra and suffix != ".vti":
        raise VolumeError(f"{path}: holds one array, found {1 + len(extra)}: use .vti")
    files = output_files(path, array.shape[:d_in], array.dtype, math.prod(array.shape[d_in:]))
    if suffix in WRITERS:
        WRITERS[suffix][0](together.add(files[0]), volume)
        return
    frame = frame_of(volume, has_float16=suffix in (".npy", ".raw"))
    is_nifti, is_meta = suffix in (".nii", ".nii.gz"), suffix in (".mhd", ".mha")
    header = b""
    if suffix == ".nrrd":
        header = nrrd.nrrd_header(frame)
    elif is_meta:
        header = metaimage.meta_header(frame, os.path.basename(files[1]) if suffix == ".mhd" else "LOCAL")
    elif is_nifti:
        header = nifti.nifti_header(path, frame)
        if not frame.geometry.space:
            what = "its axes are taken to point to left, posterior, superior, as their source does not say it"
            console.warn(path, what)
    units = dict.fromkeys(unit_of_length(frame.geometry.units_of(axis)) for axis in "xyz"[: frame.d_in])
    is_held = {*units} <= {"", "mm"} or (is_nifti and len(units) == 1 and {*units} <= {*nifti.UNIT_CODES})
    if (is_meta or is_nifti) and not is_held:
        told = ", ".join(unit or "no unit" for unit in units)
        console.warn(path, f"its lengths are in {told}, which others take for mm: .nc and .zarr keep the unit")
    temporary = [together.add(name) for name in files]  # the header first: the index of the set
    with contextlib.ExitStack() as opened:
        file, *others = (opened.enter_context(open(name, "wb")) for name in temporary)
        if suffix == ".npy":
            raw.write_npy(file, frame, array)
        elif suffix == ".vti":
            arrays = {frame.geometry.name: array, **(extra or {})}
            vtk_images.write_vti(file, frame, arrays)
        else:
            if suffix == ".nii.gz":
                file = opened.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0))
            file.write(header)
            data = others[0] if others else file
            for part in (planar if is_nifti else x_fastest)(array, frame):
                data.write(part)
