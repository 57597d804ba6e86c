"""VTK's own formats: image data in XML (.vti) and in HDF5 (.vtkhdf, .hdf), and legacy structured points (.vtk).

VTK reads these formats in the process of formats/vtk_process.py; no other process imports VTK to read files. A .vti
file is written without VTK, because a volume larger than memory is written slab by slab.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO
from xml.sax.saxutils import escape

import numpy as np

from formats.arrays import LazyArray
from formats.common import VolumeError
from formats.slabs import Frame, figures, printable, x_fastest
from utils import Volume

BLOCK_BYTES = 1 << 16  # bytes of a block of a .vti file; each block is compressed separately
ZLIB_LEVEL = 5  # the level that VTK uses

# --- read -------------------------------------------------------------------------------------------


def read_vti(path: str, name: str | None = None) -> Volume:
    """The volume of a .vti file, VTK image data in XML."""
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    from formats.vtk_output import output_of, volume_of

    reader = vtkXMLImageDataReader()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTK image data")
    image = output_of(path, reader)
    if not _is_covered(image.GetExtent(), _piece_extents(path)):
        raise VolumeError(f"{path}: its pieces do not make up the whole extent")
    return volume_of(path, image, name)


def _piece_extents(path: str) -> list[list[int]]:
    """The extents of the pieces of a .vti file: first and last point along x, along y, along z."""
    with open(path, "rb") as file:
        text = file.read().partition(b"<AppendedData")[0]
    found = re.findall(rb"""<Piece\s[^>]*?\bExtent\s*=\s*["']([^"']*)["']""", text)
    return [[int(number) for number in extent.split()] for extent in found]


def _is_covered(whole: tuple[int, ...], pieces: list[list[int]]) -> bool:
    """Whether each point of an extent is in one of the pieces. VTK leaves the others as its memory happens to be."""
    whole, pieces = np.reshape(whole, (3, 2)), np.reshape(pieces, (-1, 3, 2))
    cuts = [np.unique([*part[:, 0], *(part[:, 1] + 1)]) for part in np.stack([whole, *pieces], axis=1)]
    is_there = np.zeros([len(cut) - 1 for cut in cuts], bool)  # of the boxes between the cuts

    def box(extent: np.ndarray) -> tuple[slice, ...]:
        ends = (np.searchsorted(cut, (first, last + 1)) for cut, (first, last) in zip(cuts, extent, strict=True))
        return tuple(slice(*pair) for pair in ends)

    for piece in pieces:
        is_there[box(piece)] = True
    return bool(is_there[box(whole)].all())


def read_legacy(path: str, name: str | None = None) -> Volume:
    """The volume of a .vtk file, structured points in VTK's legacy format."""
    from vtkmodules.vtkIOLegacy import vtkStructuredPointsReader

    from formats.vtk_output import output_of, volume_of

    reader = vtkStructuredPointsReader()
    reader.ReadAllScalarsOn()
    reader.ReadAllVectorsOn()
    reader.ReadAllFieldsOn()
    image = output_of(path, reader, 8)  # an array of bits grows 8 times
    data = image.GetPointData()
    expected = sum(data.GetArray(i).GetNumberOfValues() for i in range(data.GetNumberOfArrays()) if data.GetArray(i))
    if (found := _numbers_of_text(path)) is not None and found < expected:
        raise VolumeError(f"{path}: truncated: expected {expected} numbers, found {found}")
    return volume_of(path, image, name)


def _numbers_of_text(path: str) -> int | None:
    """How many values a legacy text file holds; None for binary data. VTK does not notice missing values."""
    with open(path, "rb") as file:
        lines = (line.split() for line in file)
        next(lines), next(lines)
        if next(lines) != [b"ASCII"]:
            return None
        return sum(len(words) for words in lines if words and re.fullmatch(rb"(?i)[-+.\d].*|nan|inf", words[0]))


def read_vtkhdf(path: str, name: str | None = None) -> Volume:
    """The volume of a .vtkhdf file, VTK image data in HDF5 of one time step."""
    from vtkmodules.vtkIOHDF import vtkHDFReader

    from formats.vtk_output import output_of, volume_of

    reader = vtkHDFReader()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not a VTKHDF file")
    image = output_of(path, reader)
    if not image.IsA("vtkImageData"):
        raise VolumeError(f"{path}: expected image data, found {image.GetClassName()}")
    if reader.GetNumberOfSteps() > 1:
        raise VolumeError(f"{path}: expected one time step, found {reader.GetNumberOfSteps()}")
    return volume_of(path, image, name)


# --- written ----------------------------------------------------------------------------------------


def write_vti(file: BinaryIO, frame: Frame, arrays: Mapping[str, np.ndarray | LazyArray]) -> None:
    """Write a .vti file of one piece, arrays appended in zlib blocks. Source: VTK's documentation of XML formats."""
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
        for k, block in enumerate(_blocks(x_fastest(array, own))):
            table[3 + k] = file.write(zlib.compress(block, ZLIB_LEVEL))
        end = file.tell()
        file.seek(at)
        file.write(table)
        file.seek(end)
    file.write(b"\n</AppendedData>\n</VTKFile>\n")
    file.seek(0)
    file.write(_vti_header(frame, arrays, offsets))


def _vti_header(frame: Frame, arrays: Mapping[str, np.ndarray | LazyArray], offsets: list[int]) -> bytes:
    """All bytes before the appended data. Their number does not depend on the offsets."""

    def quoted(name: str) -> str:
        return escape(printable(name), {'"': "&quot;"})

    extent = "0 {} 0 {} 0 {}".format(*(n - 1 for n in frame.grid))
    names, place = list(map(quoted, arrays)), frame.geometry
    facts = []
    if frame.time is not None:
        value = f'format="ascii">{frame.time!r}'
        facts.append(f'<DataArray type="Float64" Name="TimeValue" NumberOfTuples="1" {value}</DataArray>')
    if place.space:  # as 3D Slicer writes it, in codes of letters
        codes = " ".join(str(ord(letter)) for letter in place.space)
        facts.append(f'<Array type="String" Name="SPACE" NumberOfTuples="1" format="ascii">{codes} 0</Array>')
    lines = [
        '<?xml version="1.0"?>',
        '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" header_type="UInt64" '
        'compressor="vtkZLibDataCompressor">',
        f'<ImageData WholeExtent="{extent}" Origin="{figures(place.origin)}" Spacing="{figures(place.spacing)}" '
        f'Direction="{figures(place.direction)}">',
        *(["<FieldData>", *facts, "</FieldData>"] if facts else []),
        f'<Piece Extent="{extent}">',
        f'<PointData Scalars="{names[0]}">',
    ]
    for i, (name, array, offset) in enumerate(zip(names, arrays.values(), offsets, strict=True)):
        own = frame.of(array)
        kind = own.dtype.name.title().replace("Ui", "UI")
        position = f'format="appended" offset="{offset}"'.ljust(45)
        lines.append(f'<DataArray type="{kind}" Name="{name}" NumberOfComponents="{own.n_components}" {position}>')
        if frame.geometry.units and i == 0:
            lines.append(f'<InformationKey name="UNITS_LABEL" location="vtkDataArray">{escape(frame.geometry.units)}')
            lines.append("</InformationKey>")
        lines.append("</DataArray>")
    lines += ["</PointData>", "</Piece>", "</ImageData>", '<AppendedData encoding="raw">', "_"]
    return "\n".join(lines).encode()


def _blocks(parts: Iterator[np.ndarray]) -> Iterator[bytes]:
    """Yield the bytes of all parts, divided into blocks of BLOCK_BYTES; the last block may be shorter."""
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
