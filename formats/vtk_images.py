"""VTK's own formats: data sets in XML (.vti and others), in HDF5 (.vtkhdf, .hdf), and in legacy files (.vtk).

VTK reads these formats in the process of formats/vtk_process.py; no other process imports VTK to read files. A .vti
file is written without VTK, because a volume larger than memory is written slab by slab.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO
from xml.parsers import expat
from xml.sax.saxutils import escape

import numpy as np

from cli import console
from formats.arrays import LazyArray
from formats.common import MAX_EXPANSION, VolumeError, suffix_of
from formats.slabs import Frame, figures, on_one_line, x_fastest

XML_FORMATS = {
    ".vti": "ImageData",
    ".vtr": "RectilinearGrid",
    ".vts": "StructuredGrid",
    ".vtu": "UnstructuredGrid",
    ".vtp": "PolyData",
}
COUNTS_OF_XML = rb"""\bNumberOf(?:Points|Cells|Verts|Lines|Strips|Polys)\s*=\s*["']\s*(\d{1,18})"""
COUNTS_OF_LEGACY = rb"(?i)^(?:POINTS|CELLS|VERTICES|LINES|POLYGONS|TRIANGLE_STRIPS)\s+(\d{1,18})"
BLOCK_BYTES = 1 << 16  # bytes of a block of a .vti file; each block is compressed separately
ENOUGH = 1 << 20  # values that show the order of their bytes
ZLIB_LEVEL = 5  # the level that VTK uses

# --- read -------------------------------------------------------------------------------------------


def read_xml(path: str) -> Any:
    """The data set in a file of one of VTK's XML formats. Raises VolumeError."""
    from vtkmodules import vtkIOXML

    from formats.vtk_output import output_of

    what = XML_FORMATS[suffix_of(path)]
    reader = getattr(vtkIOXML, f"vtkXML{what}Reader")()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTK {re.sub('(?<!^)(?=[A-Z])', ' ', what).lower()} in XML")
    _check_counts(path, COUNTS_OF_XML, MAX_EXPANSION // 8)
    data = output_of(path, reader)
    if data.IsA("vtkImageData") or data.IsA("vtkRectilinearGrid") or data.IsA("vtkStructuredGrid"):
        pieces = _piece_extents(path)
        for of_cells, arrays in ((False, data.GetPointData()), (True, data.GetCellData())):
            if arrays.GetNumberOfArrays() and not _is_covered(data.GetExtent(), pieces, of_cells):
                raise VolumeError(f"{path}: its pieces do not make up the whole extent")
    return data


def _check_counts(path: str, pattern: bytes, most: int) -> None:
    """Raise VolumeError when a file announces more than `most` points and cells per byte, before VTK allocates them."""
    with open(path, "rb") as file:
        count = sum(int(digits) for digits in re.findall(pattern, file.read(), re.M))
    if count > most * (found := os.path.getsize(path)):
        raise VolumeError(f"{path}: truncated: expected {count} points and cells, found {found} bytes in all")


def _piece_extents(path: str) -> list[list[int]]:
    """The extents of the pieces of an XML file: first and last point along x, along y, along z."""
    with open(path, "rb") as file:
        text = file.read().partition(b"<AppendedData")[0]
    extents = [said["Extent"] for name, said in xml_elements(text, is_whole=False) if name == "Piece"]
    return [[int(number) for number in extent.split()] for extent in extents]


def xml_elements(text: bytes, is_whole: bool) -> list[tuple[str, dict[str, str]]]:
    """The name and the attributes of each element of an XML text, or of its beginning.

    Raises ValueError where the text declares entities, which could grow without end, and expat.ExpatError.
    """

    def refuse(*declaration: object) -> None:
        raise ValueError("declares XML entities, which VTK's formats do not have")

    found = []
    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda name, said: found.append((name, said))
    parser.Parse(text, is_whole)
    return found


def _is_covered(whole: tuple[int, ...], pieces: list[list[int]], of_cells: bool) -> bool:
    """Whether each point, or cell, of an extent is in one of the pieces. VTK leaves the others as its memory was."""
    whole, pieces = np.reshape(whole, (3, 2)), np.reshape(pieces, (-1, 3, 2))
    if of_cells:
        is_flat = whole[:, :1] == whole[:, 1:]
        whole, pieces = (ends - [0, 1] * ~is_flat for ends in (whole, pieces))
    pieces = np.stack([np.maximum(pieces[..., 0], whole[:, 0]), np.minimum(pieces[..., 1], whole[:, 1])], axis=-1)
    pieces = pieces[(pieces[..., 0] <= pieces[..., 1]).all(axis=1)]  # of the whole
    cuts = [np.unique([*part[:, 0], *(part[:, 1] + 1)]) for part in np.stack([whole, *pieces], axis=1)]
    is_there = np.zeros([len(cut) - 1 for cut in cuts], bool)  # of the boxes between the cuts

    def box(extent: np.ndarray) -> tuple[slice, ...]:
        ends = (np.searchsorted(cut, (first, last + 1)) for cut, (first, last) in zip(cuts, extent, strict=True))
        return tuple(slice(*pair) for pair in ends)

    for piece in pieces:
        is_there[box(piece)] = True
    return bool(is_there[box(whole)].all())


def read_legacy(path: str) -> Any:
    """The data set in a .vtk file, of VTK's legacy format. Raises VolumeError."""
    from vtkmodules.vtkIOLegacy import vtkDataSetReader

    from formats.vtk_output import output_of

    reader = vtkDataSetReader()
    reader.ReadAllScalarsOn()
    reader.ReadAllVectorsOn()
    reader.ReadAllFieldsOn()
    _check_counts(path, COUNTS_OF_LEGACY, 1)
    data = output_of(path, reader, 8)  # an array of bits grows 8 times
    found = _numbers_of_text(path)
    if found is None:
        _warn_of_byte_order(path, data)
    elif found < (expected := _numbers_in(data)):
        raise VolumeError(f"{path}: truncated: expected {expected} numbers, found {found}")
    return data


def arrays_of(*parts: Any) -> list:
    """The arrays of numbers on the points of a data set, on its cells, or on both."""
    arrays = [part.GetArray(i) for part in parts for i in range(part.GetNumberOfArrays())]
    return [array for array in arrays if array]


def _warn_of_byte_order(path: str, data) -> None:
    """Say so when the floats of an array have usual sizes in the other byte order alone."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    def are_usual(values: np.ndarray) -> np.ndarray:
        return (np.abs(values) > 1e-12) & (np.abs(values) < 1e12)

    for array in arrays_of(data.GetPointData(), data.GetCellData()):
        values = vtk_to_numpy(array).ravel()[:ENOUGH]
        if values.dtype.kind != "f":
            continue
        values = np.unique(values)
        swapped = values.byteswap()
        says_order = (values != 0) & ~np.isnan(swapped)
        values, swapped = values[says_order], swapped[says_order]
        is_enough = len(values) >= 10  # fewer may be so by chance
        if is_enough and are_usual(swapped).all() and are_usual(values).mean() < 0.5:
            way_out = "NumPy's array.astype('>f4') or '>f8' has it before it is written"
            console.warn(path, f"{array.GetName()} seems little-endian, but .vtk files are big-endian: {way_out}")


def _numbers_in(data) -> int:
    """How many numbers a legacy text file holds for a data set, at least."""
    count = sum(array.GetNumberOfValues() for array in arrays_of(data.GetPointData(), data.GetCellData()))
    cells = []
    if data.IsA("vtkRectilinearGrid"):
        count += sum(data.GetDimensions())
    elif data.IsA("vtkPointSet"):
        count += 3 * data.GetNumberOfPoints()
    if data.IsA("vtkUnstructuredGrid"):
        cells = [data.GetCells()]
        count += data.GetNumberOfCells()  # a type for each
    elif data.IsA("vtkPolyData"):
        cells = [data.GetVerts(), data.GetLines(), data.GetPolys(), data.GetStrips()]
    return count + sum(part.GetNumberOfCells() + part.GetNumberOfConnectivityIds() for part in cells)


def _numbers_of_text(path: str) -> int | None:
    """How many values a legacy text file holds; None for binary data. VTK does not notice missing values."""
    with open(path, "rb") as file:
        lines = (line.split() for line in file)
        next(lines), next(lines)
        if next(lines) != [b"ASCII"]:
            return None
        return sum(len(words) for words in lines if words and re.fullmatch(rb"(?i)[-+.\d].*|nan|inf", words[0]))


def read_vtkhdf(path: str) -> Any:
    """The data set in a .vtkhdf file, which is HDF5, of one time step. Raises VolumeError."""
    from vtkmodules.vtkIOHDF import vtkHDFReader

    from formats.vtk_output import output_of, read_header

    reader = vtkHDFReader()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTKHDF: other HDF5 is read under a name that ends in .h5, HDF4 after h4toh5")
    read_header(path, reader, MAX_EXPANSION)
    if reader.GetNumberOfSteps() > 1:
        what = f"expected one time step, found {reader.GetNumberOfSteps()}"
        raise VolumeError(f"{path}: {what}: save a file for each step, and give them by a pattern")
    return output_of(path, reader)


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
        return escape(on_one_line(name), {'"': "&quot;"})

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
