"""Volume files -> volumes: NumPy, headerless, NRRD; and those that VTK reads, in a process of their own.

A file of a spatial format becomes an array (x, y, z, components), with three figures of spacing and origin. Most such
formats store x fastest: the array is a transposed view.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import math
import os
import re
import subprocess
import sys
import tokenize
import zlib

import numpy as np

from volume import DTYPES, RawLayout, Volume, VolumeError, oriented

OF_ARRAYS = (".vti", ".vtk", ".vtkhdf", ".hdf")  # files of several arrays
BY_VTK = (*OF_ARRAYS, ".mhd", ".mha", ".nii", ".nii.gz", ".tif", ".tiff")
MAX_EXPANSION = 10_000  # bytes that one of a compressed file becomes: LZMA, the best of them, reaches 7000
LIKE_COMPONENTS = (2, 3, 4)  # lengths of an axis that may as well be of components as of space
RAW_NAME = re.compile(rf"_(\d+)x(\d+)x(\d+)_({'|'.join(DTYPES)})\.raw$")


# --- arrays -----------------------------------------------------------------------------------------


def read_npy(path: str, d_in: int | None, d_out: int | None) -> Volume:
    """A NumPy array as a memory map, its axes as they are: of four, the first is time unless it is told otherwise.

    Raises VolumeError, too, where nothing is told of four axes the last of which may be one of components.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(file)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are never unpickled")
        # A memory map checks the announced shape against the file's length before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False) if 0 not in shape else np.empty(shape, dtype)
    except (ValueError, OSError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise VolumeError(f"{path}: not a readable NumPy array: {error}") from None
    if d_in is d_out is None and array.ndim == 4 and array.shape[3] in LIKE_COMPONENTS:
        raise VolumeError(
            f"{path}: expected --d_in 4 (a time series) or --d_out {array.shape[3]} (components): four axes of shape "
            f"{array.shape} may be either"
        )
    d_in = d_in or (4 if array.ndim - ((d_out or 1) > 1) > 3 else 3)
    return Volume(array, spacing=(1.0,) * d_in, origin=(0.0,) * d_in)


def layout_of_name(path: str) -> RawLayout | None:
    """What the name of a headerless file says by the convention of the Open SciVis data sets; None when it does not."""
    found = RAW_NAME.search(path)
    return RawLayout(tuple(int(n) for n in found.groups()[:3]), found[4]) if found else None


def read_raw(path: str, layout: RawLayout) -> Volume:
    """A headerless file as a memory map, whose bytes must be exactly those of `layout`."""
    shape = layout.shape + (1,) * (3 - len(layout.shape))
    dtype = np.dtype(layout.dtype).newbyteorder("<" if layout.endian == "little" else ">")
    expected, found = math.prod(shape) * dtype.itemsize, os.path.getsize(path)
    if found != expected:
        sizes = " x ".join(map(str, layout.shape))
        raise VolumeError(f"{path}: expected {expected} bytes for {sizes} of {layout.dtype}, found {found}")
    array = np.memmap(path, dtype, "r", shape=shape, order="F") if expected else np.empty(shape, dtype)
    return Volume(array[..., None], (1.0,) * 3, (0.0,) * 3)


# --- VTK --------------------------------------------------------------------------------------------


def read_by_vtk(path: str, name: str | None = None) -> Volume:
    """What `vtk_readers` reads, in a process of its own: VTK crashes on damaged files, and prints what it likes."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vtk_readers.py")
    command = [sys.executable, script, path, *([] if name is None else [name])]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as child:
        try:
            found = json.loads(child.stdout.readline() or "{}")
            shape, dtype, place = (found.pop(key, None) for key in ("shape", "dtype", "map"))
            is_whole = place is not None
            if shape and not is_whole:
                *times, n_x, n_y, n_z, n_components = shape
                array = np.empty((*times, n_z, n_y, n_x, n_components), dtype)
                is_whole = child.stdout.readinto(array.reshape(-1).view("u1")) == array.nbytes
                array = array.swapaxes(-2, -4)
        finally:
            child.kill()
    if "error" in found:
        raise VolumeError(found["error"])
    if not is_whole:
        raise VolumeError(f"{path}: damaged, or larger than the memory: VTK's reader dies of it")
    if place:
        array = _mapped(*place, shape, dtype)
    geometry = {key: tuple(found.pop(key)) for key in ("spacing", "origin", "direction")}
    return Volume(array, **geometry, **found)


def _mapped(path: str, offset: int, strides: list[int], shape: list[int], dtype: str) -> np.ndarray:
    """The values that a file holds, `strides` bytes apart along the axes, as a memory map."""
    order = sorted(range(len(shape)), key=strides.__getitem__)  # fastest first
    array = np.memmap(path, dtype, "r", offset, tuple(shape[axis] for axis in order), order="F")
    return array.transpose(np.argsort(order))


# --- NRRD -------------------------------------------------------------------------------------------

NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}


def read_nrrd(path: str) -> Volume:
    """NRRD, of raw (memory-mapped), gzip, bzip2 or text data.

    Not with vtkNrrdReader, which loses direction and units, mixes up the spacing of oriented volumes, turns over those
    of left-handed spaces, and knows neither skipped bytes nor bzip2.
    """
    header, offset = _nrrd_header(path)
    try:
        sizes = tuple(int(n) for n in header["sizes"].split())
        dtype = np.dtype(NRRD_TYPES[header["type"]])
        steps = _nrrd_steps(header, len(sizes))
        origin = _nrrd_origin(header, steps)
        if header["dimension"] != str(len(sizes)) or min(sizes) < 1:
            raise ValueError(f"dimension {header['dimension']}, sizes {header['sizes']}")
    except (KeyError, ValueError) as error:
        raise VolumeError(f"{path}: not a readable NRRD header: {error}") from None
    grid = [axis for axis, step in enumerate(steps) if step is not None]
    is_spatial = {len(steps[axis]) for axis in grid} | {len(origin)} == {3}
    kinds = header.get("kinds", "").split()
    times = [axis for axis, kind in enumerate(kinds[: len(sizes)]) if kind == "time" and axis not in grid]
    components = [axis for axis in range(len(sizes)) if axis not in (*grid, *times)]
    if not 1 <= len(grid) <= 3 or len(times) > 1 or len(components) > 1 or not is_spatial:
        raise VolumeError(
            f"{path}: expected up to three axes in space, one of time and one of components, as its kinds or space "
            f"directions say, found sizes {header['sizes']}, kinds {' '.join(kinds) or 'not given'}"
        )
    array = _nrrd_data(path, header, offset, dtype, sizes).transpose(*times, *grid, *components)
    lengths = [sizes[axis] for axis in (*times, *grid)] + [1] * (3 - len(grid))
    array = array.reshape(*lengths, sizes[components[0]] if components else 1)
    matrix = np.stack([steps[axis] for axis in grid], axis=1)
    if len(grid) < 3:  # some axes at right angles to those that there are
        matrix = np.hstack([matrix, np.linalg.svd(matrix)[0][:, len(grid) :]])
    units = header.get("sample units", "").strip('"')
    volume = oriented(path, array, matrix, origin, name=header.get("content") or "sf", units=units)
    if not times:
        return volume
    if len(array) == 1:
        return dataclasses.replace(volume, array=array[0])
    return dataclasses.replace(
        volume, spacing=(_nrrd_spacings(header, len(sizes))[times[0]], *volume.spacing), origin=(0.0, *volume.origin)
    )


def _nrrd_steps(header: dict[str, str], n_axes: int) -> list[np.ndarray | None]:
    """From voxel to voxel along each axis in space; None for those of components and of time."""
    if "space directions" in header:
        vectors = re.findall(r"none|\([^)]*\)", header["space directions"])
        steps = [None if text == "none" else np.array(text.strip("()").split(","), float) for text in vectors]
    else:
        kinds = header.get("kinds", "").split() or ["domain"] * n_axes
        is_grid = [kind in ("domain", "space", "???", "none") for kind in kinds]
        places = iter(np.eye(3, dtype=float)[: sum(is_grid)])
        lengths = _nrrd_spacings(header, n_axes)
        steps = [
            length * next(places, np.zeros(0)) if is_axis else None
            for length, is_axis in zip(lengths, is_grid, strict=True)
        ]
    if len(steps) != n_axes:
        raise ValueError(f"{len(steps)} directions of {n_axes} axes")
    return steps


def _nrrd_origin(header: dict[str, str], steps: list[np.ndarray | None]) -> np.ndarray:
    """Where the first voxel lies. Without directions the axes say where they begin: at its middle, or at its edge."""
    if "space origin" in header or "space directions" in header:
        return np.array(header.get("space origin", "(0,0,0)").strip("()").split(","), float)
    starts = _nrrd_figures(header, "axis mins" if "axis mins" in header else "axismins", len(steps))
    centers = header.get("centers", header.get("centerings", "")).split() or ["???"] * len(steps)
    grid = [
        (start, step.sum() / 2 if center == "cell" else 0.0)
        for start, center, step in zip(starts, centers, steps, strict=True)
        if step is not None
    ]
    origin = [start + half if math.isfinite(start) else 0.0 for start, half in grid[:3]]
    return np.array(origin + [0.0] * (3 - len(origin)))


def _nrrd_spacings(header: dict[str, str], n_axes: int) -> list[float]:
    """The length of a step along each axis, 1 where there is none."""
    return [length if math.isfinite(length) else 1.0 for length in _nrrd_figures(header, "spacings", n_axes)]


def _nrrd_figures(header: dict[str, str], field: str, n_axes: int) -> list[float]:
    """The figure of each axis, NaN where there is none."""
    found = [float(text) for text in header.get(field, "").split()] or [math.nan] * n_axes
    if len(found) != n_axes:
        raise ValueError(f"{len(found)} {field} of {n_axes} axes")
    return found


def _nrrd_header(path: str) -> tuple[dict[str, str], int]:
    """The fields of a NRRD header, and where its data begin."""
    with open(path, "rb") as file:
        start = file.read(1 << 20)
    found = re.match(rb"NRRD000\d\r?\n(.*?)(?:\r?\n\r?\n|\r?\n?\Z)", start, re.S)
    if not found:
        raise VolumeError(f"{path}: not a NRRD file")
    fields = re.findall(r"^([^#:\n]+): ?([^\r\n]*?)\s*$", found[1].decode("utf-8", "replace"), re.M)
    return {key.strip().lower(): value for key, value in fields}, found.end()


def _nrrd_data(path: str, header: dict[str, str], offset: int, dtype: np.dtype, sizes: tuple[int, ...]) -> np.ndarray:
    source = header.get("data file", header.get("datafile"))
    if source is not None:
        if source.split()[0] == "LIST" or "%" in source:
            raise VolumeError(f"{path}: expected its voxels in one file, found data file: {source}")
        source, offset = os.path.join(os.path.dirname(path), source), 0
        if not os.path.isfile(source):
            raise VolumeError(f"{path}: its data file {source} does not exist")
    source = source or path
    dtype = dtype.newbyteorder(">" if header.get("endian") == "big" else "<")
    count, encoding = math.prod(sizes), header.get("encoding", "raw").lower()
    skip = header.get("byte skip", header.get("byteskip", "0"))
    lines = header.get("line skip", header.get("lineskip", "0"))
    if lines != "0" or not re.fullmatch(r"-1|\d{1,15}" if encoding == "raw" else "0", skip):
        raise VolumeError(f"{path}: {encoding}: cannot skip {lines} lines and {skip} bytes")
    expected = count * dtype.itemsize
    available = os.path.getsize(source) - offset
    if encoding == "raw":
        offset = os.path.getsize(source) - expected if skip == "-1" else offset + int(skip)
        if offset < 0 or expected > os.path.getsize(source) - offset:
            raise VolumeError(f"{source}: expected {expected} bytes of voxels, found {available}")
        return np.memmap(source, dtype, "r", offset, sizes, order="F")
    if expected > MAX_EXPANSION * available:
        raise VolumeError(f"{source}: {available} bytes are too few for {expected} of voxels")
    with open(source, "rb") as file:
        file.seek(offset)
        try:
            if encoding in ("ascii", "text", "txt"):
                values = np.array(file.read().split(), dtype.newbyteorder("="))
            elif encoding in ("gzip", "gz", "bzip2", "bz2"):
                unpacked = (gzip if encoding.startswith("g") else bz2).open(file)
                values = np.frombuffer(unpacked.read(expected + dtype.itemsize), dtype)  # to the end: the checksum
            else:
                raise VolumeError(f"{path}: expected encoding raw, gzip, bzip2 or text, found {encoding}")
        except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
            raise VolumeError(f"{source}: its voxels cannot be read: {error}") from None
    if len(values) != count:
        raise VolumeError(f"{source}: expected {count} voxels, found {len(values)}")
    return values.reshape(sizes, order="F")
