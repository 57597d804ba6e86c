"""NRRD: a reader, and the header to write. Source: teem.sourceforge.net/nrrd/format.html.

The field `space` says where x, y, z of the world point. Spaces that are not anatomical say nothing of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex

import numpy as np

from cli import console
from formats.common import LENGTHS_IN_MM, VolumeError, of_three_axes, unit_of_length, volume_from_axes
from formats.slabs import Frame, figures
from formats.voxels import AT_END, file_beside, mapped, unpacked
from utils import SIGNS, Volume

READ_TYPES = {
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
SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), "LPS"),
    **dict.fromkeys(("right-anterior-superior", "ras"), "RAS"),
    **dict.fromkeys(("left-anterior-superior", "las"), "LAS"),
}
VECTORS = re.compile("vector|gradient|normal|matrix")  # in the kinds of axes whose components point in space
SPACED = (
    *("axis mins", "axis maxs", "byte skip", "data file", "line skip", "measurement frame", "sample units"),
    *("space dimension", "space directions", "space origin", "space units"),
)
SPELLINGS = {field.replace(" ", ""): field for field in SPACED} | {"centerings": "centers"}  # other names of fields
ENUMERATIONS = ("type", "encoding", "endian", "space", "kinds", "centers")  # case means nothing in them
ENCODINGS = {
    "raw": "raw",
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
}
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
NRRD_TYPES = {"float32": "float", "float64": "double"}  # the other types have the same names as in NumPy


def read_nrrd(path: str) -> Volume:
    """The volume of a NRRD file with raw (memory-mapped), gzip, bzip2 or text data. Raises VolumeError.

    vtkNrrdReader is not used. It loses direction and units, confuses the spacing of oriented volumes, flips volumes of
    left-handed spaces, and supports neither skipped bytes nor bzip2.
    """
    header, offset = _read_header(path)
    try:
        sizes = tuple(int(n) for n in header["sizes"].split())
        dtype = np.dtype(READ_TYPES[header["type"]])
        places = _places(header, len(sizes))
        steps, origin = _steps_and_origin(header, *places)
        if header["dimension"] != str(len(sizes)) or min(sizes) < 1:
            raise ValueError(f"dimension {header['dimension']}, sizes {header['sizes']}")
        grid = [axis for axis, step in enumerate(steps) if step is not None]
        kinds = header.get("kinds", "").split()
        times = [axis for axis, kind in enumerate(kinds[: len(sizes)]) if kind == "time" and axis not in grid]
        time = [[numbers[axis] for numbers in places] for axis in times]
    except (KeyError, ValueError) as error:
        raise VolumeError(f"{path}: not a readable NRRD header: {error}") from None
    is_spatial = {len(steps[axis]) for axis in grid} | {len(origin)} == {3}
    components = [axis for axis in range(len(sizes)) if axis not in (*grid, *times)]
    if not 1 <= len(grid) <= 3 or len(times) > 1 or len(components) > 1 or not is_spatial:
        way_out = ": a field like kinds: domain domain domain time (or vector) says it" if not kinds else ""
        if kinds and len(grid) > 3:  # as ITK writes four axes
            way_out = f": SimpleITK.WriteImage(SimpleITK.ReadImage({path!r}), 'series.nii') writes a time series"
        what = "expected up to three axes in space, one of time and one of components, as its kinds or space directions"
        found = f"sizes {header['sizes']}, kinds {' '.join(kinds) or 'not given'}"
        raise VolumeError(f"{path}: {what} say, found {found}{way_out}")
    array = _data(path, header, offset, dtype, sizes).transpose(*times, *grid, *components)
    lengths = [sizes[axis] for axis in (*times, *grid)] + [1] * (3 - len(grid))
    array = array.reshape(*lengths, sizes[components[0]] if components else 1)
    space = SPACES.get(header.get("space", ""), "") if "space directions" in header else ""
    for axis in components:
        _warn_of_vectors(path, header, space, kinds[axis] if axis < len(kinds) else "", sizes[axis])
    said = _axis_units(header, grid, times)
    in_mm = np.array([LENGTHS_IN_MM.get(said.get(f"units_{axis}"), 1.0) if space else 1.0 for axis in "xyz"])
    said = {key: text for key, text in said.items() if not space or key == "units_t"}
    matrix, origin = in_mm[:, None] * np.stack([steps[axis] for axis in grid], axis=1), in_mm * origin
    if len(grid) < 3:  # the missing axes are at right angles to the others
        matrix = np.hstack([matrix, np.linalg.svd(matrix)[0][:, len(grid) :]])
    names = {"name": header.get("content", ""), "units": header.get("sample units", "").strip('"')}
    volume = volume_from_axes(path, array, matrix, origin, space, **names, axis_attributes=said)
    if not times:
        return volume
    if len(array) == 1:
        return dataclasses.replace(volume, array=array[0])
    return dataclasses.replace(volume, geometry=volume.geometry.with_time(*time[0]))


def _warn_of_vectors(path: str, header: dict[str, str], space: str, kind: str, n_components: int) -> None:
    """Say so when the components of vectors are in other directions than the positions: only these are turned."""
    frame = header.get("measurement frame", "")
    is_turned = [float(n) for n in NUMBER.findall(frame)] not in ([], np.eye(3).ravel().tolist())
    directions = "its measurement frame" if is_turned else space
    may_be_vectors = VECTORS.search(kind) or (kind in ("", "???", "none") and n_components == 3)
    if may_be_vectors and directions not in ("", "LPS"):
        world = "LPS" if space else "its world"
        way_out = "turn them" if is_turned or n_components != 3 else f"turn them, as by NumPy's array * {SIGNS[space]}"
        what = f"the components of its vectors stay in {directions}, positions and gradients are in {world}"
        console.warn(path, f"{what}: {way_out}, if directions matter")


def _axis_units(header: dict[str, str], grid: list[int], times: list[int]) -> dict[str, str]:
    """The units of the axes, as `Geometry.axis_attributes` has them: `units` of the file's axes, or `space units`."""
    of_axes, of_space = (re.findall(r'"([^"]*)"', header.get(field, "")) for field in ("units", "space units"))
    found = {f"units_{role}": text for role, text in zip("xyz", of_space, strict=False)}
    if "space directions" not in header:
        found = {f"units_{role}": of_axes[axis] for role, axis in zip("xyz", grid, strict=False) if axis < len(of_axes)}
    found["units_t"] = "".join(of_axes[axis] for axis in times if axis < len(of_axes))
    return {key: unit_of_length(text) for key, text in found.items() if text}


def _steps_and_origin(
    header: dict[str, str], spacings: list[float], starts: list[float]
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """The vector from voxel to voxel along each axis, None for one of components or of time; and the first voxel.

    spacings, starts: of `_places`.
    """
    if "space directions" in header:
        vectors = re.findall(r"none|\([^()]*\)", header["space directions"])
        steps = [None if text == "none" else _vector(header, text) for text in vectors]
        steps = [None if step is None or np.isnan(step).all() else step for step in steps]  # as Teem may write none
        origin = [0.0]
    else:
        kinds = header.get("kinds", "").split() or ["domain"] * len(spacings)
        is_grid = [kind in ("domain", "space", "???", "none") for kind in kinds]
        axes = itertools.chain(np.eye(3), itertools.repeat(np.zeros(0)))
        steps = [spacing * next(axes) if is_axis else None for spacing, is_axis in zip(spacings, is_grid, strict=True)]
        origin = itertools.compress(starts, is_grid)
    if len(steps) != len(spacings):
        raise ValueError(f"{len(steps)} directions of {len(spacings)} axes")
    if "space origin" in header:
        return steps, _vector(header, header["space origin"])
    return steps, np.array(of_three_axes(origin, 0.0))


def _vector(header: dict[str, str], text: str) -> np.ndarray:
    """A vector of a header. Those of a plane, as ITK writes them for images, are vectors in space."""
    numbers = [float(number) for number in text.strip("()").split(",")]
    return np.array(numbers + [0.0] * (header.get("space dimension") == "2"))


@np.errstate(over="ignore", invalid="ignore")
def _places(header: dict[str, str], n_axes: int) -> tuple[list[float], list[float]]:
    """The spacing of each axis, and the middle of its first voxel; 1 and 0 where the header does not say them.

    Without spacings, they follow from axis mins and maxs: the edges of the outer voxels of a cell axis, the middles of
    those of any other.
    """
    fields = ("spacings", "axis mins", "axis maxs", "sizes")
    given, starts, ends, sizes = (_figures(header, field, n_axes) for field in fields)
    centers = header.get("centers", "").split() or ["???"] * n_axes
    if len(centers) != n_axes:
        raise ValueError(f"{len(centers)} centers of {n_axes} axes")
    is_cell = np.array([center == "cell" for center in centers])
    spans = (ends - starts) / np.maximum(sizes - ~is_cell, 1)
    spacings = np.where(np.isfinite(given), given, np.where(np.isfinite(spans) & (spans != 0), spans, 1.0))
    middles = starts + spacings / 2 * is_cell
    return spacings.tolist(), np.where(np.isfinite(middles), middles, 0.0).tolist()


def _figures(header: dict[str, str], field: str, n_axes: int) -> np.ndarray:
    """The number that a field of the header gives for each axis; NaN where it gives none."""
    found = [float(number) for number in header.get(field, "").split()] or [math.nan] * n_axes
    if len(found) != n_axes:
        raise ValueError(f"{len(found)} {field} of {n_axes} axes")
    return np.array(found)


def _read_header(path: str) -> tuple[dict[str, str], int]:
    """The fields of a NRRD header, and the offset in bytes at which the data begin. Raises VolumeError."""
    with open(path, "rb") as file:
        start = file.read(1 << 20)
    found = re.match(rb"NRRD000\d\r?\n(.*?)(?:\r?\n\r?\n|\r?\n?\Z)", start, re.S)
    if not found:
        raise VolumeError(f"{path}: not a NRRD file")
    header = {}
    for key, value in re.findall(r"^([^#:\n]+):(?!=) ?([^\r\n]*)", found[1].decode("utf-8", "replace"), re.M):
        field = SPELLINGS.get(key.strip().lower(), key.strip().lower())
        header[field] = value.rstrip().lower() if field in ENUMERATIONS else value.rstrip()
    return header, found.end()


def data_file(path: str) -> str:
    """The file that holds the voxels: the one that a header names, or the header's own. Raises VolumeError."""
    header, _ = _read_header(path)
    return file_beside(path, header["data file"], "data file:") if "data file" in header else path


def _data(path: str, header: dict[str, str], offset: int, dtype: np.dtype, sizes: tuple[int, ...]) -> np.ndarray:
    source = data_file(path)
    offset = offset if source == path else 0
    encoding = ENCODINGS.get(header.get("encoding", "raw"))
    way_out = f"unu save -f nrrd -e gzip -i {shlex.quote(path)} -o b.nrrd, of Teem, writes it anew"
    if encoding is None:
        what = f"expected encoding raw, gzip, bzip2 or text, found {header['encoding']}"
        raise VolumeError(f"{path}: {what}: {way_out}")
    endian = header.get("endian", "")
    if endian not in ("little", "big") and dtype.itemsize > 1 and encoding != "text":
        raise VolumeError(f"{path}: expected the field endian: little or endian: big, found {endian or 'none'}")
    dtype = dtype.newbyteorder(">" if endian == "big" else "<")
    skip, lines = header.get("byte skip", "0"), header.get("line skip", "0")
    if lines != "0" or not re.fullmatch(r"-1|\d{1,15}" if encoding == "raw" else "0", skip):
        raise VolumeError(f"{path}: {encoding}: cannot skip {lines} lines and {skip} bytes: {way_out}")
    if encoding == "raw":
        return mapped(source, dtype, sizes, AT_END if skip == "-1" else offset + int(skip))
    return unpacked(source, dtype, sizes, encoding, offset)


def nrrd_header(frame: Frame) -> bytes:
    """A NRRD header that stands before raw data in the same file."""
    is_vector = frame.n_components > 1
    units = [frame.geometry.units_of(axis).replace('"', "") for axis in "xyz"]
    units = " ".join(f'"{unit}"' for unit in units) if any(units) and not frame.geometry.space else ""
    steps = np.reshape(frame.geometry.direction, (3, 3)) * frame.geometry.spacing
    vectors = " ".join(f"({figures(step, ',')})" for step in steps.T)
    sizes = " ".join(map(str, (*[frame.n_components] * is_vector, *frame.grid)))
    lines = [
        "NRRD0005",
        f"content: {frame.geometry.name}",
        f"type: {NRRD_TYPES.get(frame.dtype.name, frame.dtype.name)}",
        f"dimension: {3 + is_vector}",
        f"sizes: {sizes}",
        "space: left-posterior-superior" if frame.geometry.space else "space dimension: 3",
        f"space directions: {'none ' * is_vector}{vectors}",
        f"kinds: {'vector ' * is_vector}domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: ({figures(frame.geometry.origin, ',')})",
        *[f"space units: {units}"] * bool(units),
        *[f'sample units: "{frame.geometry.units}"'] * bool(frame.geometry.units),
    ]
    return "\n".join([*lines, "", ""]).encode()
