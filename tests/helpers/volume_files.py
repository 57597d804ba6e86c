"""A sound file of every volume format: how it is written, and what it keeps of the place of the voxels."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from vtkmodules.vtkIOHDF import vtkHDFWriter
from vtkmodules.vtkIOImage import vtkMetaImageWriter, vtkNIFTIImageWriter, vtkTIFFWriter
from vtkmodules.vtkIOLegacy import vtkStructuredPointsWriter
from vtkmodules.vtkIOXML import vtkXMLImageDataWriter

from formats.common import VolumeError
from formats.reading import read_volume
from helpers.vtk import vtk_image
from utils import IDENTITY, SIGNS, Geometry

SPACING, ORIGIN = (0.5, 2.0, 3.0), (-1.0, 10.0, 0.25)


def refusal(path: object, *args, **keywords) -> str:
    """The one line with which `read_volume` refuses a file, or one that it names."""
    with pytest.raises(VolumeError) as caught:
        read_volume(str(path), *args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_vtk(writer_class, name: str, keeps: str, **settings):
    """A writer of VTK's, the file's name, and what it keeps of spacing, origin, direction, name."""

    def write(folder: Path, array: np.ndarray, direction=IDENTITY) -> Path:
        writer = writer_class()
        writer.SetFileName(str(folder / name))
        writer.SetInputData(vtk_image(array, SPACING, ORIGIN, "rho", direction=direction))
        for setting, values in settings.items():
            getattr(writer, setting)(*values)
        writer.Write()
        return folder / name

    return pytest.param(write, keeps, id=f"{name}-{'-'.join(settings)}")


def nrrd_header(array: np.ndarray, direction=IDENTITY, **fields: str) -> bytes:
    types = {"f": "float", "d": "double", "B": "uchar", "b": "signed char", "h": "short", "H": "ushort"}
    steps = np.reshape(direction, (3, 3)) * SPACING
    fields = {
        "type": types[array.dtype.char],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": " ".join(f"({x},{y},{z})" for x, y, z in steps.T.tolist()),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "({},{},{})".format(*ORIGIN),
        "content": "rho",
        "sample units": '"kg"',
        **fields,
    }
    lines = ["NRRD0005", "# a comment", *(f"{key}: {value}" for key, value in fields.items()), "key:=value"]
    return "\n".join(lines).encode() + b"\n"


def plain_nrrd_header(shape: tuple[int, ...], *fields: str) -> bytes:
    """That of little-endian float32 values of which nothing is said but these fields."""
    lines = ["NRRD0004", "type: float", f"dimension: {len(shape)}", f"sizes: {' '.join(map(str, shape))}"]
    return "\n".join([*lines, "encoding: raw", "endian: little", *fields, "\n"]).encode()


def write_nrrd(folder: Path, array: np.ndarray, direction=IDENTITY) -> Path:
    (folder / "a.nrrd").write_bytes(nrrd_header(array, direction) + b"\n" + array.tobytes(order="F"))
    return folder / "a.nrrd"


def write_nhdr(folder: Path, array: np.ndarray, direction=IDENTITY) -> Path:
    fields = {"encoding": "gzip", "endian": "big", "data file": "voxels.gz"}
    (folder / "a.nhdr").write_bytes(nrrd_header(array, direction, **fields))
    swapped = array.astype(array.dtype.newbyteorder(">"))
    (folder / "voxels.gz").write_bytes(gzip.compress(swapped.tobytes(order="F")))
    return folder / "a.nhdr"


def dicom_element(group: int, number: int, kind: str, value: bytes | str) -> bytes:
    """Explicit VR, little-endian."""
    value = value.encode() if isinstance(value, str) else value
    value += b"\0" if len(value) % 2 and kind in ("UI", "OW") else b" " if len(value) % 2 else b""
    length = struct.pack("<2xI" if kind in ("OW", "OB") else "<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def decimals(numbers) -> str:
    return "\\".join(f"{number:.9g}" for number in np.ravel(numbers))


def dicom_slice(plane: np.ndarray, position, direction=IDENTITY, shift=None, **more: bytes) -> bytes:
    """One file; plane: (x, y) of 16-bit integers."""
    syntax = dicom_element(2, 0x10, "UI", more.get("syntax", "1.2.840.10008.1.2.1"))
    axes = np.reshape(direction, (3, 3))
    number = "<H"
    elements = [
        (0x08, 0x16, "UI", "1.2.840.10008.5.1.4.1.1.2"),
        (0x18, 0x50, "DS", decimals(99.0)),  # thickness is not distance
        (0x20, 0x32, "DS", decimals(position)),
        (0x20, 0x37, "DS", decimals([axes[:, 0], axes[:, 1]])),
        (0x28, 0x02, "US", struct.pack(number, 1)),
        (0x28, 0x04, "CS", "MONOCHROME2"),
        *([(0x28, 0x08, "IS", more["frames"])] if "frames" in more else []),
        (0x28, 0x10, "US", struct.pack(number, plane.shape[1])),
        (0x28, 0x11, "US", struct.pack(number, plane.shape[0])),
        (0x28, 0x30, "DS", decimals([SPACING[1], SPACING[0]])),  # first from row to row
        (0x28, 0x100, "US", struct.pack(number, 16)),
        (0x28, 0x101, "US", struct.pack(number, 16)),
        (0x28, 0x102, "US", struct.pack(number, 15)),
        (0x28, 0x103, "US", struct.pack(number, plane.dtype.kind == "i")),
        *([] if shift is None else [(0x28, 0x1052, "DS", decimals(shift))]),
        *([] if shift is None else [(0x28, 0x1053, "DS", more.get("slope", "1"))]),
        (0x7FE0, 0x10, "OW", np.ascontiguousarray(plane.T).tobytes()),
    ]
    head = dicom_element(2, 0, "UL", struct.pack("<I", len(syntax))) + syntax
    return bytes(128) + b"DICM" + head + b"".join(dicom_element(*element) for element in elements)


def write_dicom(folder: Path, array: np.ndarray, direction=IDENTITY, order=(1, 0, 2), **more) -> Path:
    """A folder of slices whose names are in another order than their positions, and of other files."""
    (folder / "scan").mkdir()
    step = np.reshape(direction, (3, 3))[:, 2] * SPACING[2]
    for z in range(array.shape[2]):
        data = dicom_slice(array[:, :, z], ORIGIN + z * step, direction, **more)
        (folder / "scan" / f"{order[z]}.dcm").write_bytes(data)
    (folder / "scan" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "scan" / "notes.txt").write_text("no slice")
    return folder / "scan"


def tiff(array: np.ndarray, description: str = "", orientation: int = 1, endian: str = "<") -> bytes:
    """A page a slice, as ImageJ writes it where there is a description."""
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    out, text = bytearray(struct.pack(endian + "2sHI", b"II" if endian == "<" else b"MM", 42, 0)), description.encode()
    link = 4
    for plane in np.moveaxis(array, 2, 0):
        voxels = plane.T.astype(array.dtype.newbyteorder(endian)).tobytes()
        voxels += bytes(len(voxels) % 2)
        at = len(out)
        out += voxels + struct.pack(endian + "4I", 2, 1, 1, 2) + text + b"\0"
        out += bytes(len(out) % 2)
        tags = [
            *((256, 4, 1, plane.shape[0]), (257, 4, 1, plane.shape[1]), (258, 3, 1, array.dtype.itemsize * 8)),
            *((259, 3, 1, 1), (262, 3, 1, 1), (270, 2, len(text) + 1, at + len(voxels) + 16), (273, 4, 1, at)),
            *((274, 3, 1, orientation), (277, 3, 1, 1), (278, 4, 1, plane.shape[1]), (279, 4, 1, len(voxels))),
            *((282, 5, 1, at + len(voxels)), (283, 5, 1, at + len(voxels) + 8), (339, 3, 1, kind)),
        ]
        struct.pack_into(endian + "I", out, link, len(out))
        out += struct.pack(endian + "H", len(tags))
        for tag, form, count, value in tags:
            out += struct.pack(endian + ("HHIHxx" if form == 3 else "HHII"), tag, form, count, value)
        link = len(out)
        out += bytes(4)
    return bytes(out)


def write_tiff(folder: Path, array: np.ndarray, direction=IDENTITY) -> Path:
    (folder / "a.tif").write_bytes(tiff(array, f"ImageJ=1.54f\nimages={array.shape[2]}\nspacing=3.0\nunit=um\n"))
    return folder / "a.tif"


def write_raw(folder: Path, array: np.ndarray, direction=IDENTITY) -> Path:
    path = folder / f"my_field_{'x'.join(map(str, array.shape))}_{array.dtype.name}.raw"
    path.write_bytes(array.tobytes(order="F"))
    return path


def write_npy(folder: Path, array: np.ndarray, direction=IDENTITY) -> Path:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"


def in_ras(geometry: Geometry) -> Geometry:
    """The place of a volume in the coordinates of NIfTI. test_space.py holds these against another reader."""
    assert geometry.space == "LPS"
    return geometry.with_signs(SIGNS["RAS"])


def write_meta(path: Path, array: np.ndarray, **fields: str) -> None:
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "ElementSpacing": " ".join(map(str, SPACING)),
        "DimSize": " ".join(map(str, array.shape[:3])),
        "ElementType": "MET_FLOAT",
        **fields,
        "ElementDataFile": fields.get("ElementDataFile", "LOCAL"),
    }
    header = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
    path.write_bytes(header + (np.moveaxis(array, -1, 0) if array.ndim > 3 else array).tobytes(order="F"))


def nifti(array: np.ndarray, endian: str = "<", **fields) -> bytes:
    """NIfTI-1 in one file. fields: pixdim, slope, shift, q (b, c, d and offset), s (3 x 4), name, dim."""
    header = bytearray(348)
    codes = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "uint16": 512}

    def put(at: int, form: str, *values) -> None:
        struct.pack_into(endian + form, header, at, *values)

    put(0, "i", 348)
    put(40, "8h", *fields.get("dim", (3, *array.shape, 1, 1, 1, 1)))
    put(70, "hh", codes[array.dtype.name], array.dtype.itemsize * 8)
    put(76, "8f", *fields.get("pixdim", (1, *SPACING, 1, 1, 1, 1)))
    put(108, "3f", 352, fields.get("slope", 0), fields.get("shift", 0))
    if "q" in fields:
        put(252, "h", 1)
        put(256, "6f", *fields["q"])
    if "s" in fields:
        put(254, "h", 1)
        put(280, "12f", *np.ravel(fields["s"]))
    put(328, "16s", fields.get("name", b""))
    put(344, "4s", b"n+1\0")
    return bytes(header) + bytes(4) + array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")


def nifti_file(folder: Path, suffix: str, data: bytes) -> str:
    """The path of a NIfTI file of that suffix."""
    path = folder / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return str(path)


def vti_of_pieces(array: np.ndarray, extents: list[str], kind: str = "PointData", more: str = "") -> str:
    """A .vti, as text, whose pieces of these extents have the values of `array` on their points, or on their cells."""
    parts, n_more = [], kind == "CellData"
    for extent in extents:
        ends = np.reshape(list(map(int, extent.split())), (3, 2))
        part = array[tuple(slice(first, last + 1 - n_more) for first, last in ends)]
        text = " ".join(map(str, part.ravel(order="F").tolist()))
        values = f'<DataArray type="Float32" Name="a" format="ascii">{text}</DataArray>'
        parts.append(f'<Piece Extent="{extent}"><{kind} Scalars="a">{values}</{kind}></Piece>')
    whole = " ".join(f"0 {n - 1 + n_more}" for n in array.shape)
    image = f'<ImageData WholeExtent="{whole}" Origin="0 0 0" Spacing="1 1 1">{"".join(parts)}{more}</ImageData>'
    return f'<VTKFile type="ImageData" version="0.1">{image}</VTKFile>' + 3000 * " "


# What comes back: s spacing, o origin, d direction, n name, u units.
FORMATS = [
    by_vtk(vtkXMLImageDataWriter, "a.vti", "sodn"),
    by_vtk(vtkXMLImageDataWriter, "a.vti", "sodn", SetDataModeToAscii=()),
    by_vtk(vtkXMLImageDataWriter, "a.VTI", "sodn", SetDataModeToAppended=(), EncodeAppendedDataOff=()),
    by_vtk(vtkXMLImageDataWriter, "a.vti", "sodn", SetByteOrderToBigEndian=(), SetCompressorTypeToLZMA=()),
    by_vtk(vtkStructuredPointsWriter, "a.vtk", "son"),
    by_vtk(vtkStructuredPointsWriter, "a.vtk", "son", SetFileTypeToBinary=()),
    by_vtk(vtkHDFWriter, "a.vtkhdf", "sodn"),
    by_vtk(vtkHDFWriter, "a.hdf", "sodn"),
    by_vtk(vtkMetaImageWriter, "a.mha", "so"),
    by_vtk(vtkMetaImageWriter, "a.mhd", "so", SetCompression=(False,)),
    by_vtk(vtkNIFTIImageWriter, "a.nii", "so"),
    by_vtk(vtkNIFTIImageWriter, "a.nii.gz", "so"),
    pytest.param(write_nrrd, "sodnu", id="a.nrrd"),
    pytest.param(write_nhdr, "sodnu", id="a.nhdr"),
    pytest.param(write_dicom, "sod", id="dicom"),
    by_vtk(vtkTIFFWriter, "a.tif", ""),
    by_vtk(vtkTIFFWriter, "a.tiff", "", SetCompressionToNoCompression=()),
    pytest.param(write_tiff, "s", id="imagej.tif"),
    pytest.param(write_raw, "", id="raw"),
    pytest.param(write_npy, "", id="npy"),
]
