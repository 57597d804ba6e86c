"""Volumes -> files, format by format. A volume may be larger than memory: it is written slab by slab.

`array[box]` is asked for SLAB_BYTES at a time, or for one plane of voxels where that is more, and every voxel once.
Memory holds three such slabs at most (the last one, also in the order of the file, and the next), beside what it takes
to evaluate one.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

import cli
from volume import LazyArray, Volume, VolumeError, suffix_of

SUFFIXES = (".vti", ".npy", ".raw", ".nrrd", ".mhd", ".mha", ".nii", ".nii.gz")
SLAB_BYTES = 1 << 26
BLOCK_BYTES = 1 << 16  # of a .vti file, compressed one by one
ZLIB_LEVEL = 5  # VTK's own
ZLIB_MOST = 1032  # bytes that become one, whatever they are

TYPES = {  # in .vti, NRRD, MetaImage (whose 64-bit integers end VTK's reader), NIfTI
    "int8": ("Int8", "int8", "MET_CHAR", 256),
    "int16": ("Int16", "int16", "MET_SHORT", 4),
    "int32": ("Int32", "int32", "MET_INT", 8),
    "int64": ("Int64", "int64", None, 1024),
    "uint8": ("UInt8", "uint8", "MET_UCHAR", 2),
    "uint16": ("UInt16", "uint16", "MET_USHORT", 512),
    "uint32": ("UInt32", "uint32", "MET_UINT", 768),
    "uint64": ("UInt64", "uint64", None, 1280),
    "float32": ("Float32", "float", "MET_FLOAT", 16),
    "float64": ("Float64", "double", "MET_DOUBLE", 64),
}
NIFTI_AXIS = 32767  # voxels
NIFTI_VECTOR = 1007  # intent: components, along the fifth axis


def output_path(path: str) -> str:
    """`path` with .vti appended when it has no suffix. Raises VolumeError for one that cannot be written."""
    suffix = suffix_of(path)
    if not suffix:
        return path + ".vti"
    if suffix not in SUFFIXES:
        raise VolumeError(f"{path}: cannot write {suffix} files, only {', '.join(SUFFIXES)}")
    return path


def output_files(path: str, shape: tuple[int, ...], dtype: np.dtype, n_components: int = 1) -> list[str]:
    """The files that `write_volume` makes for `path`, the one to open first, of values on a grid of that shape.

    A headerless file says in its name what it holds: a.raw becomes a_80x64x56_float32.raw. The voxels of a.mhd are in
    a.raw. Raises VolumeError for what the format cannot hold.
    """
    suffix, (stem, dot) = suffix_of(path), os.path.splitext(path)
    if len(shape) > 3 and suffix != ".npy":
        raise VolumeError(f"{path}: holds up to three axes, found shape {shape}: use .npy")
    if suffix == ".raw":
        if n_components > 1:
            raise VolumeError(f"{path}: the name of a .raw file has no place for {n_components} components: use .nrrd")
        sizes = "x".join(map(str, (*shape, 1, 1)[:3]))
        given = re.search(r"_\d+x\d+x\d+_[^_]+$", os.path.basename(stem))
        if given and given[0] != f"_{sizes}_{dtype}":
            raise VolumeError(f"{path}: expected a name that ends in _{sizes}_{dtype}{dot}, or that says nothing of it")
        return [path if given else f"{stem}_{sizes}_{dtype}{dot}"]
    if suffix in (".mhd", ".mha") and dtype in (np.int64, np.uint64):
        raise VolumeError(f"{path}: MetaImage cannot hold {dtype} so that VTK reads it: use .nrrd")
    if suffix == ".mhd":
        data = os.path.basename(stem) + ".raw"
        if "%" in data or data.startswith("LIST"):  # patterns and lists of files
            raise VolumeError(f"{path}: the header cannot name its data {data}: use .mha")
        return [path, f"{stem}.raw"]
    if suffix in (".nii", ".nii.gz") and max(*shape, n_components) > NIFTI_AXIS:
        raise VolumeError(f"{path}: NIfTI holds up to {NIFTI_AXIS} voxels an axis, found shape {shape}: use .nrrd")
    return [path]


def least_bytes(path: str, n_bytes: int) -> int:
    """The bytes that the disk needs at least for a file of so many bytes of values."""
    return n_bytes // ZLIB_MOST if suffix_of(path) in (".vti", ".nii.gz") else n_bytes


def write_volume(
    path: str,
    volume: Volume,
    extra: Mapping[str, np.ndarray | LazyArray] | None = None,
    stack: contextlib.ExitStack | None = None,
) -> None:
    """Write `volume` to `path`, in the format that its suffix names: all of its files (see `output_files`) or none.

    extra: further arrays on the same grid by name, which only .vti holds. stack: at whose end the files take their
    names, for several volumes of which all are to be there or none. .npy and .raw keep the values alone, float16
    becomes float32 but in these two. Raises VolumeError for what the format cannot hold, before a value is asked for,
    and UserError when the system refuses to write.
    """
    if stack is None:
        with contextlib.ExitStack() as stack:
            write_volume(path, volume, extra, stack)
        return
    suffix, array = suffix_of(path), volume.array
    if extra and suffix != ".vti":
        raise VolumeError(f"{path}: holds one array, found {1 + len(extra)}: use .vti")
    frame = _frame_of(volume, suffix)
    files = output_files(path, array.shape[: frame.d_in], array.dtype, frame.n_components)
    header = b""
    if suffix == ".nrrd":
        header = _nrrd_header(frame)
    elif suffix in (".mhd", ".mha"):
        header = _meta_header(frame, os.path.basename(files[1]) if suffix == ".mhd" else "LOCAL")
    elif suffix in (".nii", ".nii.gz"):
        header = _nifti_header(path, frame)
    temporary = [stack.enter_context(cli.atomic_write(name)) for name in files]  # the last is in place first
    with contextlib.ExitStack() as opened:
        file, *others = (opened.enter_context(open(name, "wb")) for name in temporary)
        if suffix == ".npy":
            _write_npy(file, frame, array)
        elif suffix == ".vti":
            _write_vti(file, frame, {volume.name or "sf": array, **(extra or {})})  # one without a name is not read
        else:
            if suffix == ".nii.gz":
                file = opened.enter_context(gzip.GzipFile("", "wb", ZLIB_LEVEL, file, mtime=0))
            file.write(header)
            data = others[0] if others else file
            for part in (_planar if suffix in (".nii", ".nii.gz") else _x_fastest)(array, frame):
                data.write(part)


# --- slabs ------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """What headers say of a volume, always of three axes; the array has `d_in`. dtype: as stored, little-endian."""

    d_in: int
    grid: tuple[int, ...]
    n_components: int
    dtype: np.dtype
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray
    name: str
    units: str
    time: float | None

    def of(self, array: np.ndarray | LazyArray) -> _Frame:
        """The same with the components and type of another array on the grid."""
        return self._replace(n_components=math.prod(array.shape[self.d_in :]), dtype=_with_float16(array.dtype))


def _frame_of(volume: Volume, suffix: str) -> _Frame:
    d_in, shape, dtype = len(volume.spacing), volume.array.shape, np.dtype(volume.array.dtype)
    return _Frame(
        d_in,
        (*shape[:d_in], 1, 1)[:3],
        math.prod(shape[d_in:]),
        dtype.newbyteorder("<") if suffix in (".npy", ".raw") else _with_float16(dtype),
        tuple(map(float, (*volume.spacing, 1, 1)[:3])),
        tuple(map(float, (*volume.origin, 0, 0)[:3])),
        np.reshape(volume.direction, (3, 3)),
        _printable(volume.name),
        _printable(volume.units),
        volume.time,
    )


def _with_float16(dtype: np.dtype) -> np.dtype:
    """The type that holds the values of `dtype` in formats that have no float16."""
    return np.dtype("<f4") if dtype == np.float16 else np.dtype(dtype).newbyteorder("<")


def _printable(text: str) -> str:
    """On one line, so that a name in a file from elsewhere cannot add to a header."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _slabs(array: np.ndarray | LazyArray, d_in: int, axis: int) -> Iterator[np.ndarray]:
    """The array in slabs along one of its axes."""
    n = array.shape[axis]
    per_plane = math.prod(array.shape) * array.dtype.itemsize // n
    step = max(1, SLAB_BYTES // per_plane)
    for start in range(0, n, step):
        box = [slice(0, length) for length in array.shape[:d_in]]
        box[axis] = slice(start, min(start + step, n))
        yield array[tuple(box)]


def _x_fastest(array: np.ndarray | LazyArray, frame: _Frame) -> Iterator[np.ndarray]:
    """The values in the order of most files: x fastest, a voxel's components together."""
    d_in = frame.d_in
    for slab in _slabs(array, d_in, d_in - 1):
        order = (*reversed(range(d_in)), *range(d_in, slab.ndim))
        yield np.ascontiguousarray(slab.transpose(order), frame.dtype)


def _planar(array: np.ndarray | LazyArray, frame: _Frame) -> Iterator[np.ndarray]:
    """The values x fastest, the components slowest; an array larger than a slab is asked for once per component."""
    if frame.n_components == 1:
        yield from _x_fastest(array, frame)
        return
    if math.prod(array.shape) * array.dtype.itemsize <= SLAB_BYTES:
        (array,) = _slabs(array, frame.d_in, 0)
    for component in range(frame.n_components):
        for part in _x_fastest(array, frame):
            yield np.ascontiguousarray(part[..., component])


# --- formats ----------------------------------------------------------------------------------------


def _write_npy(file: BinaryIO, frame: _Frame, array: np.ndarray | LazyArray) -> None:
    """NumPy's own format, in C order."""
    header = {"descr": frame.dtype.str, "fortran_order": False, "shape": tuple(array.shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for slab in _slabs(array, frame.d_in, 0):
        file.write(np.ascontiguousarray(slab, frame.dtype))


def _write_vti(file: BinaryIO, frame: _Frame, arrays: Mapping[str, np.ndarray | LazyArray]) -> None:
    """VTK image data in XML: one piece, its arrays appended as blocks that zlib has compressed. Source: VTK's
    documentation of its XML file formats.
    """
    offsets = [0] * len(arrays)
    file.write(_vti_header(frame, arrays, offsets))
    start = file.tell()
    for i, array in enumerate(arrays.values()):
        offsets[i] = file.tell() - start
        own = frame.of(array)
        n_bytes = math.prod(array.shape) * own.dtype.itemsize
        n_blocks = -(-n_bytes // BLOCK_BYTES)
        table = np.array([n_blocks, BLOCK_BYTES, n_bytes % BLOCK_BYTES, *[0] * n_blocks], "<u8")
        at = file.tell()
        file.write(table)
        for k, block in enumerate(_blocks(_x_fastest(array, own))):
            table[3 + k] = file.write(zlib.compress(block, ZLIB_LEVEL))
        end = file.tell()
        file.seek(at)
        file.write(table)
        file.seek(end)
    file.write(b"\n</AppendedData>\n</VTKFile>\n")
    file.seek(0)
    file.write(_vti_header(frame, arrays, offsets))


def _vti_header(frame: _Frame, arrays: Mapping[str, np.ndarray | LazyArray], offsets: list[int]) -> bytes:
    """All before the appended data; of one length whatever the offsets."""

    def quoted(name: str) -> str:
        return escape(_printable(name), {'"': "&quot;"})

    extent = "0 {} 0 {} 0 {}".format(*(n - 1 for n in frame.grid))
    names = list(map(quoted, arrays))
    time = f'<DataArray type="Float64" Name="TimeValue" NumberOfTuples="1" format="ascii">{frame.time!r}</DataArray>'
    lines = [
        '<?xml version="1.0"?>',
        '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" header_type="UInt64" '
        'compressor="vtkZLibDataCompressor">',
        f'<ImageData WholeExtent="{extent}" Origin="{_figures(frame.origin)}" Spacing="{_figures(frame.spacing)}" '
        f'Direction="{_figures(frame.direction)}">',
        *[f"<FieldData>\n{time}\n</FieldData>"] * (frame.time is not None),
        f'<Piece Extent="{extent}">',
        f'<PointData Scalars="{names[0]}">',
    ]
    for i, (name, array, offset) in enumerate(zip(names, arrays.values(), offsets, strict=True)):
        own = frame.of(array)
        kind, place = TYPES[own.dtype.name][0], f'format="appended" offset="{offset}"'.ljust(45)
        lines.append(f'<DataArray type="{kind}" Name="{name}" NumberOfComponents="{own.n_components}" {place}>')
        if frame.units and i == 0:
            lines.append(f'<InformationKey name="UNITS_LABEL" location="vtkDataArray">{escape(frame.units)}')
            lines.append("</InformationKey>")
        lines.append("</DataArray>")
    lines += ["</PointData>", "</Piece>", "</ImageData>", '<AppendedData encoding="raw">', "_"]
    return "\n".join(lines).encode()


def _blocks(parts: Iterator[np.ndarray]) -> Iterator[bytes]:
    """The bytes of all parts, cut anew into blocks."""
    rest = b""
    for part in parts:
        data = memoryview(part).cast("B")
        while len(rest) + len(data) >= BLOCK_BYTES:
            taken = BLOCK_BYTES - len(rest)
            yield b"".join((rest, data[:taken]))
            rest, data = b"", data[taken:]
        rest = b"".join((rest, data))
    if rest:
        yield rest


def _figures(values: np.ndarray | tuple[float, ...], separator: str = " ") -> str:
    """Decimals that give the same float64 again."""
    return separator.join(repr(float(v)) for v in np.ravel(values))


def _steps(frame: _Frame) -> np.ndarray:
    """The way from a voxel to the next along each axis: (3, 3), a column per axis."""
    return frame.direction * frame.spacing


def _nrrd_header(frame: _Frame) -> bytes:
    """Attached to its data, which are raw. Source: teem.sourceforge.net/nrrd/format.html."""
    is_vector = frame.n_components > 1
    vectors = " ".join(f"({_figures(step, ',')})" for step in _steps(frame).T)
    sizes = " ".join(map(str, (*[frame.n_components] * is_vector, *frame.grid)))
    lines = [
        "NRRD0005",
        f"content: {frame.name}",
        f"type: {TYPES[frame.dtype.name][1]}",
        f"dimension: {3 + is_vector}",
        f"sizes: {sizes}",
        "space dimension: 3",
        f"space directions: {'none ' * is_vector}{vectors}",
        f"kinds: {'vector ' * is_vector}domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: ({_figures(frame.origin, ',')})",
        *[f'sample units: "{frame.units}"'] * bool(frame.units),
    ]
    return "\n".join([*lines, "", ""]).encode()


def _meta_header(frame: _Frame, data: str) -> bytes:
    """Of MetaImage. TransformMatrix holds the axes' directions one after the other, as ITK reads it."""
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        f"TransformMatrix = {_figures(frame.direction.T)}",
        f"Offset = {_figures(frame.origin)}",
        f"ElementSpacing = {_figures(frame.spacing)}",
        "DimSize = {} {} {}".format(*frame.grid),
        f"ElementNumberOfChannels = {frame.n_components}",
        f"ElementType = {TYPES[frame.dtype.name][2]}",
        f"ElementDataFile = {data}",
    ]
    return "\n".join([*lines, ""]).encode()


def _nifti_header(path: str, frame: _Frame) -> bytes:
    """NIfTI-1 in one file, no scaling; its space is that of the sform, in float32, no qform. Source: nifti1.h."""
    c = frame.n_components
    dim = (5, *frame.grid, 1, c, 1, 1) if c > 1 else (3, *frame.grid, 1, 1, 1, 1)
    with np.errstate(over="ignore"):
        floats = np.float32([*frame.spacing, *np.column_stack([_steps(frame), frame.origin]).ravel()])
    if not (np.isfinite(floats).all() and (floats[:3] > 0).all()):
        raise VolumeError(f"{path}: spacing and origin are float32 in NIfTI, found {frame.spacing}, {frame.origin}")
    dtype, no_time = frame.dtype, (0.0,) * 4
    return struct.pack(
        "<i36x8h12x4h8f3f132x2h24x12f16s4s4x",
        *(348, *dim),
        *(NIFTI_VECTOR if c > 1 else 0, TYPES[dtype.name][3], 8 * dtype.itemsize, 0),
        *(1.0, *floats[:3], *no_time),
        *(352.0, 1.0, 0.0),  # where the voxels begin; slope and intercept
        *(0, 2),  # no qform, an aligned sform
        *floats[3:],
        *(b"", b"n+1"),
    )
