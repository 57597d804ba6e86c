"""Every format that is read, written by another: voxels by their index, spacing, origin, direction, damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import re
import shlex
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from helpers.scripts import ROOT
from helpers.volume_files import (
    FORMATS,
    ORIGIN,
    SPACING,
    dicom_slice,
    nrrd_header,
    plain_nrrd_header,
    refusal,
    tiff,
    vti_of_pieces,
    write_dicom,
    write_nrrd,
    write_raw,
    write_tiff,
)
from helpers.volumes import TURNED, slanted
from helpers.vtk import vtk_image, vtk_read, vtk_write
from vtkmodules.vtkIOHDF import vtkHDFWriter
from vtkmodules.vtkIOLegacy import vtkStructuredPointsWriter
from vtkmodules.vtkIOXML import vtkXMLImageDataWriter

from formats import vtk_process
from formats.common import RawLayout, VolumeError
from formats.reading import read_volume, source_files
from formats.stored import StoredArray
from formats.writing import write_volume
from utils import IDENTITY, SIGNS, Geometry, is_missing

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)
MIRRORED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_these_tests_place_voxels_as_vtk_does(tmp_path):
    """By VTK's own indices, voxel by voxel: what helpers.vtk writes and reads."""
    array = np.random.default_rng(0).random((*SHAPE, 2))
    image = vtk_image(array, extent=(2, 5, -1, 1, 10, 11))
    vtk_write(tmp_path / "a.vti", array)
    found = vtk_read(tmp_path / "a.vti")
    for x, y, z, c in np.ndindex(array.shape):
        assert image.GetScalarComponentAsDouble(x + 2, y - 1, z + 10, c) == array[x, y, z, c]
        assert found.reader.GetOutput().GetScalarComponentAsDouble(x, y, z, c) == found.array[x, y, z, c]
    np.testing.assert_array_equal(found.array, array)


def in_ras(geometry: Geometry) -> Geometry:
    """The place of a volume in the coordinates of NIfTI. test_space.py holds these against another reader."""
    assert geometry.space == "LPS"
    return geometry.with_signs(SIGNS["RAS"])


# --- every format -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("write", "keeps"), FORMATS)
def test_voxels_and_geometry(write, keeps, tmp_path, capfd):
    array = slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32)
    path = write(tmp_path, array)
    capfd.readouterr()
    volume = read_volume(str(path))
    for index in itertools.product(*map(range, SHAPE)):
        assert volume.array[index] == 20 + 3 * index[0] - 2 * index[1] + index[2], index
    assert volume.array.dtype == array.dtype and volume.array.shape == SHAPE
    place = in_ras(volume.geometry) if ".nii" in path.name else volume.geometry
    assert volume.geometry.spacing == (SPACING if "s" in keeps else (1.0, 1.0, 1.0))
    assert place.origin == (ORIGIN if "o" in keeps else (0.0, 0.0, 0.0))
    assert place.direction == IDENTITY
    assert volume.geometry.units == ("kg" if "u" in keeps else "")
    assert ("rho" in volume.geometry.name) == ("n" in keeps)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("direction", [TURNED, MIRRORED])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if "d" in f.values[1]])
def test_direction(write, keeps, direction, tmp_path):
    if write is write_dicom and direction == MIRRORED:
        pytest.skip("DICOM has no left-handed volumes")
    array = slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32)
    volume = read_volume(str(write(tmp_path, array, direction)))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.geometry.direction, direction, atol=1e-7)
    np.testing.assert_allclose(volume.geometry.spacing, SPACING, rtol=1e-7)
    np.testing.assert_allclose(volume.geometry.origin, ORIGIN, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "float64"])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id != "dicom" and "tif" not in f.id])
def test_types(write, keeps, dtype, tmp_path):
    array = (slanted(SHAPE) - 25 * (dtype != "uint8")).astype(dtype)
    found = read_volume(str(write(tmp_path, array))).array
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id != "dicom"])
def test_truncated(write, keeps, share, tmp_path, capfd):
    array = np.random.default_rng(0).standard_normal((12, 10, 8)).astype(np.float32)
    path = write(tmp_path, array)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * share)])
    capfd.readouterr()
    assert str(data.stem) in refusal(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("write", "keeps"), FORMATS)
def test_a_damaged_header(write, keeps, tmp_path):
    """Refused, or read as finite numbers: never another exception. VTK's readers crash on some of these."""
    path = write(tmp_path, slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32))
    files = [path] if path.is_file() else list(path.glob("*.dcm"))
    rng = np.random.default_rng(len(str(path.name)))
    for _ in range(6):
        file = files[int(rng.integers(len(files)))]
        content = bytearray(sound := file.read_bytes())
        for _ in range(3):
            at = int(rng.integers(min(len(content), 400)))
            content[at : at + 4] = [b"9999", b"\xff\xff\xff\x7f", b"\0\0\0\0", rng.bytes(3)][int(rng.integers(4))]
        file.write_bytes(content)
        with contextlib.suppress(VolumeError):
            assert np.isfinite(read_volume(str(path)).array).all()
        file.write_bytes(sound)


def file_of_voxels(path: Path) -> Path:
    """The file itself, that beside a header, or the second slice of a folder."""
    beside = {".mhd": "a.raw", ".nhdr": "voxels.gz"}
    return path / "0.dcm" if path.is_dir() else path.with_name(beside.get(path.suffix, path.name))


CHECKSUMMED = ("a.vti-", "a.VTI-SetDataModeToAppended-EncodeAppendedDataOff", "a.nii.gz-", "a.nhdr", "a.mha-")
CHECKSUMMED += ("a.vti-SetByteOrderToBigEndian-SetCompressorTypeToLZMA",)


@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id not in CHECKSUMMED])
def test_a_changed_voxel_is_no_other(write, keeps, tmp_path):
    array = np.arange(1000, 1024, dtype=np.uint16 if write is write_dicom else np.float32).reshape(SHAPE)
    changed = array.copy()
    changed[2, 1, 1] = 2019
    path = write(tmp_path, array)
    file = file_of_voxels(path)
    content = file.read_bytes()
    old, new = (
        (a[2, 1, 1].tobytes(), a[2, 1, 1].byteswap().tobytes(), str(int(a[2, 1, 1])).encode()) for a in (array, changed)
    )
    form = next(i for i in range(3) if content.count(old[i]) == 1)
    file.write_bytes(content.replace(old[form], new[form]))
    np.testing.assert_array_equal(read_volume(str(path)).array, changed)


@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id in CHECKSUMMED])
def test_damaged_voxels_are_noticed(write, keeps, tmp_path):
    """By the checksum of what is compressed. Not everything in such a file matters."""
    array = np.arange(1000, 1024, dtype=np.float32).reshape(SHAPE)
    path = write(tmp_path, array)
    file, n_refused = file_of_voxels(path), 0
    content = file.read_bytes()
    for at in range(len(content) // 2, len(content), 1 + len(content) // 30):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            np.testing.assert_array_equal(read_volume(str(path)).array, array)
        except VolumeError:
            n_refused += 1
    assert n_refused > 5


@pytest.mark.parametrize(
    ("kind", "pieces", "is_whole"),
    [
        ("PointData", ["0 1 0 1 0 1"], False),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 9 5 9"], True),
        ("PointData", ["0 9 0 9 0 5", "0 9 0 9 5 9"], True),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 9 6 9"], False),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 4 4 9", "0 5 4 9 4 9"], False),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 4 4 9", "0 5 4 9 4 9", "5 9 4 9 4 9"], True),
        ("CellData", ["0 10 0 10 0 4", "0 10 0 10 5 10"], False),  # all points, and not all cells
        ("CellData", ["0 10 0 10 0 5", "0 10 0 10 5 10"], True),
        ("CellData", ["0 10 0 10 0 10"], True),
    ],
)
def test_pieces_that_are_not_the_whole(kind, pieces, is_whole, tmp_path):
    """VTK leaves the voxels between them as its memory happens to be."""
    array = slanted((10, 10, 10))
    (tmp_path / "a.vti").write_text(vti_of_pieces(array, pieces, kind))
    if is_whole:
        np.testing.assert_array_equal(read_volume(str(tmp_path / "a.vti")).array, array)
    else:
        assert "pieces do not make up the whole extent" in refusal(tmp_path / "a.vti")


def test_pieces_that_are_none(tmp_path):
    """One in a comment fills no voxel, and those beyond the whole take no memory."""
    comment = '<!-- <Piece Extent="0 2 0 2 0 2"> -->'
    (tmp_path / "a.vti").write_text(vti_of_pieces(slanted((3, 3, 3)), ["0 2 0 2 0 1"], more=comment))
    assert "pieces do not make up the whole extent" in refusal(tmp_path / "a.vti")
    beyond = (f'<Piece Extent="{9 + k} {10**6 - k} {9 + k} {10**6 - k} {9 + k} {10**6 - k}"/>' for k in range(5000))
    (tmp_path / "b.vti").write_text(vti_of_pieces(slanted((3, 3, 3)), ["0 2 0 2 0 2"], more="".join(beyond)))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.vti")).array, slanted((3, 3, 3)))


@pytest.mark.parametrize("size", ["given", "none"])
@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_compressed_meta_images(pack, size, tmp_path):
    """Read as they are; refused with any bit of the stream flipped, or cut short anywhere."""
    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.float32)
    stream = pack(array.tobytes(order="F"))
    fields = {"CompressedData": "True"} | ({"CompressedDataSize": str(len(stream))} if size == "given" else {})
    write_meta(tmp_path / "a.mhd", array, **fields, ElementDataFile="a.zraw")
    (tmp_path / "a.zraw").write_bytes(stream)
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.mhd")).array, array)
    begin = 10 if pack is gzip.compress else 2  # gzip's header holds a time, and more of which nothing depends
    for at in range(begin, len(stream), 1 + len(stream) // 12):
        for damaged in (stream[:at] + bytes([stream[at] ^ 4]) + stream[at + 1 :], stream[:at]):
            (tmp_path / "a.zraw").write_bytes(damaged)
            assert "a.zraw: " in refusal(tmp_path / "a.mhd")


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_a_limit_of_memory_that_is_lower_than_the_machines(tmp_path):
    """As clusters set it."""
    vtk_write(tmp_path / "a.vti", slanted(SHAPE))
    program = (
        f"import resource, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "from formats.reading import read_volume; print(read_volume('a.vti').array.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "(4, 3, 2)\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_a_file_that_vtk_does_not_end_with(tmp_path):
    head = "# vtk DataFile Version 5.1\n\nASCII\nDATASET STRUCTURED_POINTS\nDIMENSIONS 2 2 2\n"
    (tmp_path / "a.vtk").write_text(head + "FIELD field 1\nname 1 99999999999 string\nhello\n")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from formats import vtk_process; vtk_process.SECONDS = 1; vtk_process.main('a.vtk', '[null, null]')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert -done.returncode in (signal.SIGXCPU, signal.SIGKILL)


@pytest.mark.parametrize("said", [b"", b'{"shape": [4, 3, 2, 1], "dtype": "<f4"}\n', None])
def test_a_process_that_dies(said, tmp_path, monkeypatch):
    """Before it has said anything, or before all the voxels are there."""
    said = b'{"shape": [4, 3, 2, 1], "dtype": "<f4"}\n' + bytes(4 * 24 - 1) if said is None else said
    child = contextlib.nullcontext(SimpleNamespace(stdout=io.BytesIO(said), kill=lambda: None))
    monkeypatch.setattr(vtk_process.subprocess, "Popen", lambda *_, **__: child)
    (tmp_path / "a.vti").write_bytes(b"damaged")
    assert "damaged, or larger than the memory" in refusal(tmp_path / "a.vti")


def test_a_process_of_its_own(tmp_path, monkeypatch, capfd):
    """As it is started outside these tests: what it sends, and nothing that VTK prints."""
    monkeypatch.setattr(vtk_process, "subprocess", subprocess)
    vtk_write(tmp_path / "a.vti", {"rho": slanted(SHAPE), "T": -slanted(SHAPE)}, active="T")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.vti"), array="rho").array, slanted(SHAPE))
    content = (tmp_path / "a.vti").read_bytes()
    (tmp_path / "b.vti").write_bytes(content[: len(content) // 2])
    capfd.readouterr()
    assert "b.vti: VTK cannot read it: " in refusal(tmp_path / "b.vti")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "suffix", [".vti", ".vtk", ".vtkhdf", ".hdf", ".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz"]
)
@pytest.mark.parametrize("content", [b"", b"hello\n" * 20, b"<VTKFile type='PolyData'></VTKFile>"])
def test_foreign(suffix, content, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert f"a{suffix}: " in refusal(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("name", [b"4096", b"99999999"])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id.startswith(("a.vtk-", "a.m", "a.nrrd"))])
def test_sizes_that_are_not_there(write, keeps, name, tmp_path):
    """Refused before anything is allocated for them."""
    path = write(tmp_path, slanted(SHAPE))
    content = path.read_bytes()
    assert content.count(b"4 3 2") == 1
    path.write_bytes(content.replace(b"4 3 2", name + b" 999 999"))
    assert "expected" in refusal(path) or "VTK" in refusal(path)


# --- several arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rho", "T", None])
@pytest.mark.parametrize(
    ("writer_class", "suffix"),
    [(vtkXMLImageDataWriter, ".vti"), (vtkStructuredPointsWriter, ".vtk"), (vtkHDFWriter, ".vtkhdf")],
)
def test_array_picks_one_of_several(writer_class, suffix, name, tmp_path):
    arrays = {"rho": slanted(SHAPE), "T": -slanted(SHAPE), "v": np.stack([slanted(SHAPE)] * 3, -1)}
    writer = writer_class()
    writer.SetFileName(str(tmp_path / f"a{suffix}"))
    writer.SetInputData(vtk_image(arrays, active="T"))
    writer.Write()
    volume = read_volume(str(tmp_path / f"a{suffix}"), array=name)
    assert volume.geometry.name == (name or "T")
    np.testing.assert_array_equal(volume.array, arrays[name or "T"])
    np.testing.assert_array_equal(read_volume(str(tmp_path / f"a{suffix}"), 3, 3, "v").array, arrays["v"])
    said = refusal(tmp_path / f"a{suffix}", array="p")
    assert "holds no array 'p'" in said and all(repr(key) in said for key in arrays)


@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if not f.id.startswith(("a.v", "a.V", "a.hdf"))])
def test_options_that_a_format_does_not_need(write, keeps, tmp_path):
    path = write(tmp_path, slanted(SHAPE).astype(np.uint16))
    assert "--array" in refusal(path, array="rho")
    if write is not write_raw:
        assert "--shape, --dtype and --endian" in refusal(path, layout=RawLayout(SHAPE, "uint16"))


# --- headerless -------------------------------------------------------------------------------------


def test_flags_go_before_the_name(tmp_path):
    array = slanted((2, 3, 4))
    path = tmp_path / "a_4x3x2_float32.raw"
    path.write_bytes(array.astype(">f4").tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(path), layout=RawLayout((2, 3, 4), "float32", "big")).array, array)


@pytest.mark.parametrize(
    "name", ["a.raw", "a_4x3_uint8.raw", "a_4x3x2_complex64.raw", "a_4x3x2_uint8.dat", "4x3x2_uint8"]
)
def test_raw_of_no_known_layout(name, tmp_path):
    (tmp_path / name).write_bytes(bytes(24))
    assert "--shape and --dtype or a name like" in refusal(tmp_path / name)
    assert read_volume(str(tmp_path / name), layout=RawLayout((4, 3, 2), "uint8")).array.shape == (4, 3, 2)


# --- MetaImage and NRRD -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("keys", [("TransformMatrix", "Offset"), ("Rotation", "Origin"), ("Orientation", "Position")])
def test_rows_of_a_meta_image_are_its_axes(keys, tmp_path):
    """As ITK writes and reads it, and Slicer; not as VTK does."""
    rows = " ".join(map(str, np.reshape(TURNED, (3, 3)).T.ravel()))
    write_meta(tmp_path / "a.mha", slanted(SHAPE), **{keys[0]: rows, keys[1]: " ".join(map(str, ORIGIN))})
    volume = read_volume(str(tmp_path / "a.mha"))
    np.testing.assert_allclose(volume.geometry.direction, TURNED, atol=1e-12)
    assert volume.geometry.spacing == pytest.approx(SPACING, rel=1e-12) and volume.geometry.origin == ORIGIN
    np.testing.assert_array_equal(volume.array, slanted(SHAPE))


@pytest.mark.parametrize("shape", [(5, 4), (6,)])
@pytest.mark.parametrize("matrix", [None, "turned"])
def test_meta_image_of_two_axes_and_of_one(shape, matrix, tmp_path):
    d_in = len(shape)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    axes = np.eye(3)
    fields = {"NDims": str(d_in), "ElementSpacing": " ".join(["2"] * d_in), "Offset": "5 6 7"[: 2 * d_in - 1]}
    if matrix:
        axes[:d_in, :d_in] = [[0.0, -1.0], [1.0, 0.0]] if d_in == 2 else [[-1.0]]
        fields["TransformMatrix"] = " ".join(map(str, axes[:d_in, :d_in].T.ravel()))
    write_meta(tmp_path / "a.mha", array, **fields)
    volume = read_volume(str(tmp_path / "a.mha"), d_in)
    np.testing.assert_array_equal(volume.array, array)
    assert (volume.geometry.spacing, volume.geometry.origin) == ((2.0,) * d_in, (5.0, 6.0)[:d_in])
    np.testing.assert_array_equal(np.reshape(volume.geometry.direction, (3, 3)), axes)


def test_a_meta_image_of_negative_spacing_has_turned_axes(tmp_path):
    """As ITK reads it."""
    write_meta(tmp_path / "a.mha", slanted(SHAPE), ElementSpacing="0.5 -2 -3", TransformMatrix="0 1 0 -1 0 0 0 0 1")
    geometry = read_volume(str(tmp_path / "a.mha")).geometry
    assert geometry.spacing == (0.5, 2.0, 3.0)
    assert geometry.direction == (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def test_meta_image_of_one_slice_as_vtk_writes_it(tmp_path):
    """VTK stores the first four of nine numbers, of which the second axis cannot be told."""
    array = np.zeros((5, 4), np.float32)
    write_meta(tmp_path / "a.mha", array, NDims="2", ElementSpacing="1 1", TransformMatrix="1 0 0 0")
    assert "found TransformMatrix = 1 0 0 0: VTK writes" in refusal(tmp_path / "a.mha")


def test_meta_image_of_components_and_of_big_endian(tmp_path):
    array = np.stack([slanted(SHAPE), -slanted(SHAPE)], axis=-1)
    write_meta(tmp_path / "a.mha", array, ElementNumberOfChannels="2")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.mha"), 3, 2).array, array)
    write_meta(tmp_path / "b.mha", slanted(SHAPE).astype(">f4"), BinaryDataByteOrderMSB="True")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.mha")).array, slanted(SHAPE))


@pytest.mark.parametrize("data", ["LIST", "LIST 2D", "slice%d.raw 1 2 1", "", "."])
def test_meta_image_of_other_than_one_data_file(data, tmp_path):
    write_meta(tmp_path / "a.mhd", slanted(SHAPE), ElementDataFile=data)
    said = f"expected its voxels in one file, found ElementDataFile = {data or 'none'}"
    assert refusal(tmp_path / "a.mhd").endswith(said)


HEADER = "NDims = 3\nDimSize = 3 2 1\nElementType = MET_UCHAR\n"
PACKED = zlib.compress(bytes(range(6))).decode("latin-1")


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ("BinaryData = False", "1 2 3\n4 5 255\n"),
        ("", bytes([1, 2, 3, 4, 5, 255]).decode("latin-1")),
        ("BinaryData = T\nCompressedData = 1", zlib.compress(bytes([1, 2, 3, 4, 5, 255])).decode("latin-1")),
    ],
)
def test_meta_image_of_text_and_short_flags(fields, content, tmp_path):
    (tmp_path / "v.mha").write_bytes(f"{HEADER}{fields}\nElementDataFile = LOCAL\n{content}".encode("latin-1"))
    assert read_volume(str(tmp_path / "v.mha")).array[..., 0].T.tolist() == [[1, 2, 3], [4, 5, 255]]


@pytest.mark.parametrize(
    ("fields", "content", "said"),
    [
        ("BinaryData = False", "1 2 3 4 5", "expected 6 voxels, found 5"),
        ("BinaryData = False", "1 2 3 4 5 x", "voxels cannot be read"),
        ("BinaryData = False", "1 2 3 4 5 256", "voxels cannot be read"),
        ("BinaryData = T2ue\nCompressedData = True", PACKED, "BinaryData: expected True or False, found T2ue"),
        ("BinaryData = False\nCompressedData = True", PACKED, "compressed voxels in binary form"),
        ("BinaryData = True\nCompressedData = True\nHeaderSize = -1", PACKED, "without HeaderSize"),
    ],
)
def test_meta_image_that_is_damaged(fields, content, said, tmp_path):
    (tmp_path / "v.mha").write_bytes(f"{HEADER}{fields}\nElementDataFile = LOCAL\n{content}".encode("latin-1"))
    assert said in refusal(tmp_path / "v.mha")


def test_meta_image_without_its_data_file(tmp_path):
    write_meta(tmp_path / "a.mhd", slanted(SHAPE), ElementDataFile="nowhere.raw")
    expected = f"{tmp_path / 'a.mhd'}: its data file {tmp_path / 'nowhere.raw'} does not exist"
    assert refusal(tmp_path / "a.mhd") == expected


@pytest.mark.parametrize("skip", ["7", "-1"])
def test_nrrd_in_another_file_after_other_bytes(skip, tmp_path):
    (tmp_path / "a.nhdr").write_bytes(nrrd_header(slanted(SHAPE), **{"data file": "b.raw", "byte skip": skip}))
    (tmp_path / "b.raw").write_bytes(b"7 bytes" + slanted(SHAPE).tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nhdr")).array, slanted(SHAPE))


def test_nrrd_of_a_stream_that_hardly_ends(tmp_path):
    """Seconds for each kilobyte of the file, if all of it were unpacked."""
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 3 2 1\nencoding: bzip2\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bz2.compress(bytes(1 << 22)))
    assert "bytes follow the voxels" in refusal(tmp_path / "a.nrrd")


def test_bytes_have_no_order(tmp_path):
    array = slanted(SHAPE).astype(np.uint8)
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(array, endian="") + b"\n" + array.tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nrrd")).array, array)


def test_nrrd_of_text_by_spacings(tmp_path):
    text = " ".join(map(str, slanted(SHAPE).ravel(order="F"))).encode()
    header = b"NRRD0001\ntype: double\ndimension: 3\nsizes: 4 3 2\nspacings: 0.5 2 nan\nencoding: text\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + text)
    volume = read_volume(str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(volume.array, slanted(SHAPE))
    assert volume.geometry.spacing == (0.5, 2.0, 1.0) and volume.geometry.direction == IDENTITY


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        ("axis mins: 10 nan -2", (10.0, 0.0, -2.0)),
        ("axismins: 10 5 -2\ncenters: node none ???", (10.0, 5.0, -2.0)),
        ("axis mins: 10 5 nan\ncenters: cell node cell", (10.25, 5.0, 0.0)),
        ("axis mins: 10 5 -2\nspace origin: (1,2,3)", (1.0, 2.0, 3.0)),
        ("axis mins: 10 5 -2\nspace: right-anterior-superior", (10.0, 5.0, -2.0)),
    ],
)
def test_nrrd_without_directions_begins_where_its_axes_do(fields, origin, tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, "spacings: 0.5 2 3", fields) + bytes(4 * 24))
    geometry = read_volume(str(tmp_path / "a.nrrd")).geometry
    assert geometry.origin == origin and geometry.spacing == (0.5, 2.0, 3.0)
    assert geometry.direction == IDENTITY and geometry.space == ""


def test_the_case_of_words_in_a_nrrd_header_means_nothing(tmp_path):
    """Teem takes `endian: Big` for big, and `Cell` for cell."""
    fields = (
        "type: uint16\ndimension: 4\nsizes: 2 4 3 2\nencoding: raw\nendian: big\nkinds: vector domain domain domain"
    )
    fields += "\ncenters: none cell cell cell\naxis mins: nan 0 0 0\n\n"
    array, found = np.arange(48, dtype=">u2"), []
    for written in (str.lower, str.title, str.upper):
        header = "NRRD0004\n" + re.sub("(?<=: ).*", lambda value, written=written: written(value[0]), fields)
        (tmp_path / "a.nrrd").write_bytes(header.encode() + array.tobytes())
        found.append(read_volume(str(tmp_path / "a.nrrd"), 3, 2))
        np.testing.assert_array_equal(found[-1].array.ravel(order="K"), array)
    assert found[0].geometry == found[1].geometry == found[2].geometry and found[0].geometry.origin == (0.5,) * 3


def test_a_key_of_a_nrrd_header_is_no_field(tmp_path):
    """`key:=value` is what somebody has noted, in words of his own."""
    keys = "type:=uchar\nsizes:=1\nspace directions:=(9,0,0) (0,9,0) (0,0,9)\nspace:=RAS\nsample units:=none\n"
    for name, header in (("a", nrrd_header(slanted(SHAPE))), ("b", nrrd_header(slanted(SHAPE)) + keys.encode())):
        (tmp_path / f"{name}.nrrd").write_bytes(header + b"\n" + slanted(SHAPE).tobytes(order="F"))
    plain, noted = (read_volume(str(tmp_path / f"{name}.nrrd")) for name in "ab")
    np.testing.assert_array_equal(plain.array, noted.array)
    assert plain.geometry == noted.geometry


@pytest.mark.parametrize("line", ["note: " + " " * (1 << 19) + "x", "space directions: " + "(" * (1 << 19)], ids=len)
def test_a_nrrd_header_of_long_lines(line, tmp_path):
    """Time is linear in their length. It was quadratic: half a megabyte took hours."""
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(slanted(SHAPE)) + line.encode() + b"\n\n")
    assert re.search("not a readable NRRD header|expected 96 bytes of voxels", refusal(tmp_path / "a.nrrd"))


@pytest.mark.parametrize(
    ("centers", "spacing", "origin"),
    [("node node node", (0.5, 1.0, 2.0), 10.0), ("cell node node", (0.375, 1.0, 2.0), 10.1875)],
)
def test_nrrd_of_axes_that_say_where_they_end(centers, spacing, origin, tmp_path):
    """A spacing that is given counts more."""
    ends = "axis mins: 10 5 -2", "axis maxs: 11.5 7 5", f"centers: {centers}"
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, *ends, "spacings: nan nan 2") + bytes(4 * 24))
    geometry = read_volume(str(tmp_path / "a.nrrd")).geometry
    assert geometry.spacing == spacing and geometry.origin == (origin, 5.0, -2.0)
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, *ends) + bytes(4 * 24))
    assert read_volume(str(tmp_path / "a.nrrd")).geometry.spacing == (*spacing[:2], 7.0)


def test_nrrd_of_components_that_begins_elsewhere(tmp_path):
    def write(mins: str) -> Path:
        header = plain_nrrd_header((2, *SHAPE), "kinds: vector domain domain domain", f"axis mins: {mins}")
        (tmp_path / "a.nrrd").write_bytes(header + bytes(4 * 48))
        return tmp_path / "a.nrrd"

    assert read_volume(str(write("nan 10 5 -2"))).geometry.origin == (10.0, 5.0, -2.0)
    for wrong in ("10 5 -2", "nan 10 5 x", "nan 10 5 -2\ncenters: cell"):
        assert "not a readable NRRD header" in refusal(write(wrong))


@pytest.mark.parametrize("axis", [0, 3])
def test_nrrd_of_components(axis, tmp_path):
    array = np.stack([slanted(SHAPE), -slanted(SHAPE)], axis=-1)
    stored = np.moveaxis(array, -1, axis)
    steps, kinds = ["(0,-0.5,0)", "(2,0,0)", "(0,0,3)"], ["domain"] * 3
    steps.insert(axis, "none")
    kinds.insert(axis, "vector")
    fields = {"dimension": "4", "sizes": " ".join(map(str, stored.shape)), "space directions": " ".join(steps)}
    header = nrrd_header(slanted(SHAPE), **fields, kinds=" ".join(kinds))
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + stored.tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"), 3, 2)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry.spacing == SPACING
    assert volume.geometry.direction == (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize("is_oriented", [True, False])
def test_nrrd_of_time_steps(is_oriented, axis, tmp_path):
    """An axis of kind time is time, never one of components; its step is among the spacings."""
    series = np.random.default_rng(0).random((5, *SHAPE)).astype(np.float32)
    stored = np.moveaxis(series, 0, axis)
    steps, kinds, spacings = ["(0,-0.5,0)", "(2,0,0)", "(0,0,3)"], ["domain"] * 3, ["0.5", "2", "3"]
    spacings = ["nan"] * 3 if is_oriented else spacings
    for items, item in ((steps, "none"), (kinds, "time"), (spacings, "2.5")):
        items.insert(axis, item)
    fields = {"dimension": "4", "sizes": " ".join(map(str, stored.shape)), "spacings": " ".join(spacings)}
    fields |= {"space directions": " ".join(steps), "kinds": " ".join(kinds)}
    fields["axis mins"] = " ".join("7" if kind == "time" else "nan" for kind in kinds)
    header = nrrd_header(slanted(SHAPE), **fields)
    if not is_oriented:
        header = re.sub(rb"space.*\n", b"", header)
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + stored.tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"))
    assert isinstance(volume.array, np.memmap)
    np.testing.assert_array_equal(volume.array, series)
    assert volume.geometry.spacing == (2.5, *SPACING)
    assert volume.geometry.origin == (7.0, *(ORIGIN if is_oriented else (0, 0, 0)))
    assert "expected 3 axes, found a time series of 5 steps" in refusal(tmp_path / "a.nrrd", 3)
    header = header.replace(b"axis mins: ", b"axis mins: 0 ")
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + stored.tobytes(order="F"))
    assert "5 axis mins of 4 axes" in refusal(tmp_path / "a.nrrd")


def test_nrrd_of_four_axes_of_which_nothing_is_said(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((*SHAPE, 2)) + bytes(4 * 48))
    assert refusal(tmp_path / "a.nrrd").endswith("a field like kinds: domain domain domain time (or vector) says it")
    kinds = "kinds: domain domain time vector"
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((*SHAPE, 2), kinds) + bytes(4 * 48))
    assert read_volume(str(tmp_path / "a.nrrd"), 4, 2).array.shape == (2, 4, 3, 1, 2)


def test_nrrd_of_a_list_is_no_time_series(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((*SHAPE, 2), "kinds: domain domain domain list") + bytes(192))
    said = refusal(tmp_path / "a.nrrd", 4)
    assert "found a single volume of 2 components: a list axis is taken for components" in said
    assert refusal(write_nrrd(tmp_path, slanted(SHAPE)), 4).endswith("found a single volume")


def test_a_nrrd_image(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((4, 3), "spacings: 0.5 2") + slanted((4, 3)).tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"), 2)
    np.testing.assert_array_equal(volume.array, slanted((4, 3)))
    assert volume.geometry.spacing == (0.5, 2.0)


@pytest.mark.parametrize("directions", ["(2,0) (0,3)", "(0,2) (-3,0)"])
def test_a_nrrd_image_in_a_plane(directions, tmp_path):
    """As ITK writes it."""
    fields = "space dimension: 2", f"space directions: {directions}", "kinds: domain domain", "space origin: (4,5)"
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((4, 3), *fields) + slanted((4, 3)).tobytes(order="F"))
    image, volume = (read_volume(str(tmp_path / "a.nrrd"), d_in) for d_in in (2, 3))
    np.testing.assert_array_equal(image.array, slanted((4, 3)))
    assert image.geometry.spacing == (2.0, 3.0) and volume.geometry.origin == (4.0, 5.0, 0.0)
    turn = (1, 0, 0, 0, 1, 0, 0, 0, 1) if directions.startswith("(2") else (0, -1, 0, 1, 0, 0, 0, 0, 1)
    assert volume.geometry.direction == turn


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "block"},
        {"type": "float", "encoding": "hex"},
        {"dimension": "2147483647"},
        {"sizes": "4 3"},
        {"sizes": "4 3 -2"},
        {"sizes": "4 3 200000"},
        {"sizes": "4 3 200000", "encoding": "gzip"},
        {"sizes": "999999999 999999999 999999999"},
        {"space directions": "(1,0,0) (0,1,0)"},
        {"space directions": "(1,0,0) (0.5,1,0) (0,0,1)"},
        {"space directions": "(1,0,0) (0,0,0) (0,0,1)"},
        {"space directions": "(1,0) (0,1) (0,0)"},
        {"space origin": "(0,nan,0)"},
        {"space origin": "(0,0)"},
        {"line skip": "3"},
        {"byte skip": "-2"},
        {"byte skip": "99999999"},
        {"data file": "LIST"},
        {"data file": "missing.raw"},
        {"encoding": "gzip"},
        {"encoding": "text"},
        {"encoding": "bzip2"},
        {"endian": ""},
        {"endian": "middle"},
    ],
    ids=str,
)
def test_impossible_nrrd(fields, tmp_path):
    array = slanted(SHAPE)
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(array, **fields) + b"\n" + array.tobytes(order="F"))
    refusal(tmp_path / "a.nrrd")


# --- NIfTI ------------------------------------------------------------------------------------------


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


TURN_ABOUT_Z = (0.0, 0.0, np.sqrt(0.5))  # by 90 degrees, as a quaternion
ABOUT_Z = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("side", [1, -1])
def test_nifti_qform(side, endian, tmp_path):
    """With a pixdim[0] of -1 VTK turns the slices over; here voxels keep their places, and the axis points back."""
    data = nifti(slanted(SHAPE), endian, q=(*TURN_ABOUT_Z, *ORIGIN), pixdim=(side, *SPACING, 1, 1, 1, 1), name=b"rho")
    (tmp_path / "a.nii").write_bytes(data)
    volume = read_volume(str(tmp_path / "a.nii"))
    np.testing.assert_array_equal(volume.array, slanted(SHAPE))
    np.testing.assert_allclose(in_ras(volume.geometry).direction, (*ABOUT_Z[:8], side), atol=1e-6)
    assert (
        volume.geometry.spacing == pytest.approx(SPACING)
        and in_ras(volume.geometry).origin == ORIGIN
        and volume.geometry.name == "rho"
    )


@pytest.mark.parametrize("direction", [TURNED, MIRRORED])
def test_nifti_sform_goes_before_qform(direction, tmp_path):
    rows = np.hstack([np.reshape(direction, (3, 3)) * SPACING, np.reshape(ORIGIN, (3, 1))])
    for more in ({}, {"q": (*TURN_ABOUT_Z, 7.0, 8.0, 9.0)}):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(slanted(SHAPE), s=rows, **more)))
        volume = read_volume(str(tmp_path / "a.nii.gz"))
        np.testing.assert_array_equal(volume.array, slanted(SHAPE))
        np.testing.assert_allclose(in_ras(volume.geometry).direction, direction, atol=1e-6)
        assert volume.geometry.spacing == pytest.approx(SPACING) and in_ras(volume.geometry).origin == ORIGIN


def test_nifti_sheared_sform(tmp_path):
    """Not to be had in a grid of right angles: the qform is, where there is one."""
    rows = [[1, 0.2, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7]]
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), s=rows))
    assert "right angles" in refusal(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), s=rows, q=(*TURN_ABOUT_Z, *ORIGIN)))
    np.testing.assert_allclose(in_ras(read_volume(str(tmp_path / "a.nii")).geometry).direction, ABOUT_Z, atol=1e-6)


@pytest.mark.parametrize(("dtype", "expected"), [("int16", "float32"), ("float32", "float32"), ("int32", "float64")])
@pytest.mark.parametrize("endian", "<>")
def test_nifti_slope(dtype, expected, endian, tmp_path):
    """VTK leaves values unscaled. The order of the bytes says nothing of the type."""
    array = slanted(SHAPE).astype(dtype)
    (tmp_path / "a.nii").write_bytes(nifti(array, endian, slope=0.5, shift=-3))
    found = read_volume(str(tmp_path / "a.nii")).array
    assert found.dtype == expected
    np.testing.assert_array_equal(found, slanted(SHAPE) * 0.5 - 3)
    (tmp_path / "a.nii").write_bytes(nifti(array, endian, slope=1, shift=0))
    assert read_volume(str(tmp_path / "a.nii")).array.dtype == dtype
    (tmp_path / "a.nii").write_bytes(nifti(array, slope=2, shift=np.nan))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nii")).array, slanted(SHAPE) * 2)


def nifti_file(folder: Path, suffix: str, data: bytes) -> str:
    """The path of a NIfTI file of that suffix."""
    path = folder / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return str(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("side", [1, -1])
def test_nifti_of_time_steps_and_of_components(suffix, side, tmp_path):
    array = np.stack([slanted(SHAPE), -slanted(SHAPE)], axis=-1)
    components = read_volume(nifti_file(tmp_path, suffix, nifti(array, dim=(5, *SHAPE, 1, 2, 1, 1))), 3, 2)
    np.testing.assert_array_equal(components.array, array)
    series = np.random.default_rng(0).integers(0, 99, (*SHAPE, 5, 2)).astype(np.int16)
    fields = {"pixdim": (side, *SPACING, 2.5, 1, 1, 1), "q": (*TURN_ABOUT_Z, *ORIGIN)}
    path = nifti_file(tmp_path, suffix, nifti(series[..., 0], dim=(4, *SHAPE, 5, 1, 1, 1), **fields))
    for d_in in (None, 4):
        volume = read_volume(path, d_in)
        np.testing.assert_array_equal(volume.array, np.moveaxis(series[..., 0], 3, 0))
        assert volume.geometry.spacing == (2.5, *map(pytest.approx, SPACING)) and in_ras(volume.geometry).origin == (
            0.0,
            *ORIGIN,
        )
        np.testing.assert_allclose(in_ras(volume.geometry).direction, (*ABOUT_Z[:8], side), atol=1e-6)
    assert "expected 3 axes, found a time series of 5 steps" in refusal(path, 3)
    volume = read_volume(nifti_file(tmp_path, suffix, nifti(series, dim=(5, *SHAPE, 5, 2, 1, 1), slope=0.5, shift=1)))
    np.testing.assert_array_equal(volume.array, np.moveaxis(series, 3, 0) * np.float32(0.5) + 1)
    assert volume.array.dtype == np.float32 and volume.geometry.spacing[0] == 1.0
    path = nifti_file(tmp_path, suffix, nifti(series, dim=(6, *SHAPE, 1, 5, 2, 1)))
    assert "expected axes of space, time and components" in refusal(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_of_colours_and_of_complex_values(suffix, tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (3, *SHAPE)).astype(np.uint8)
    data = bytearray(nifti(array, dim=(3, *SHAPE, 1, 1, 1, 1), pixdim=(-1, *SPACING, 1, 1, 1, 1)))
    struct.pack_into("<hh", data, 70, 128, 24)
    struct.pack_into("<f", data, 112, 2.0)  # a slope, which does not apply to colours
    found = read_volume(nifti_file(tmp_path, suffix, bytes(data)), 3, 3).array
    np.testing.assert_array_equal(found, np.moveaxis(array, 0, -1))
    for code, bits in ((32, 64), (1792, 128)):
        data = bytearray(nifti(np.zeros((*SHAPE, bits // 32), np.float32), dim=(3, *SHAPE, 1, 1, 1, 1)))
        struct.pack_into("<hh", data, 70, code, bits)
        assert "expected real values, found complex ones" in refusal(nifti_file(tmp_path, suffix, bytes(data)))


def test_what_is_not_compressed_is_mapped(tmp_path):
    """Nothing of a large file is in memory before it is looked at; nor where its values are turned over by VTK."""
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), pixdim=(-1, *SPACING, 1, 1, 1, 1), q=(0, 0, 0, *ORIGIN)))
    write_meta(tmp_path / "a.mha", slanted(SHAPE))
    write_meta(tmp_path / "a.mhd", slanted(SHAPE), ElementDataFile="a.raw")
    (tmp_path / "a.raw").write_bytes(slanted(SHAPE).tobytes("F"))
    for name in ("a.nii", "a.mha", "a.mhd", write_nrrd(tmp_path, slanted(SHAPE)), write_raw(tmp_path, slanted(SHAPE))):
        found = read_volume(str(tmp_path / name)).array
        assert isinstance(found, np.memmap) and not found.flags.writeable
        np.testing.assert_array_equal(found, slanted(SHAPE))
    (tmp_path / "a.nii").write_bytes(nifti(slanted((4, 1, 1)), ">"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nii")).array, slanted((4, 1, 1)))


@pytest.mark.parametrize(
    "fields", [{"HeaderSize": "-1"}, {"HeaderSize": "6"}, {"BinaryDataByteOrderMSB": "true"}], ids=str
)
def test_meta_image_whose_header_is_skipped_or_big_endian(fields, tmp_path):
    array = slanted(SHAPE).astype(">f4" if "BinaryDataByteOrderMSB" in fields else "<f4")
    write_meta(tmp_path / "a.mhd", array, **fields, ElementDataFile="a.raw")
    (tmp_path / "a.raw").write_bytes(b"before" * ("HeaderSize" in fields) + array.tobytes("F"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.mhd")).array, slanted(SHAPE))


@pytest.mark.parametrize(("kind", "dtype"), [("MET_LONG_LONG", np.int64), ("MET_ULONG_LONG", np.uint64)])
def test_meta_image_of_64_bit_integers(kind, dtype, tmp_path):
    """Which VTK's reader does not survive. A MET_LONG has 32 bits in ITK, and 64 in VTK."""
    array = slanted(SHAPE).astype(dtype) + np.iinfo(dtype).max // 2
    write_meta(tmp_path / "a.mha", array, ElementType=kind)
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.mha")).array, array)
    write_meta(tmp_path / "a.mha", array, ElementType="MET_LONG")
    assert "expected ElementType MET_CHAR, " in refusal(tmp_path / "a.mha")


def test_meta_image_whose_voxels_have_a_size_and_no_spacing(tmp_path):
    """As MetaIO reads it."""
    write_meta(tmp_path / "a.mha", slanted(SHAPE))
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"ElementSpacing", b"ElementSize"))
    assert read_volume(str(tmp_path / "a.mha")).geometry.spacing == SPACING


def test_meta_image_of_more_numbers_than_axes(tmp_path):
    """As ITK reads it: three numbers for an image of two axes."""
    write_meta(tmp_path / "a.mha", slanted((4, 3)), NDims="2", ElementSpacing="1 2 3", Offset="5 6 7")
    volume = read_volume(str(tmp_path / "a.mha"), 2)
    np.testing.assert_array_equal(volume.array, slanted((4, 3)))
    assert (volume.geometry.spacing, volume.geometry.origin) == ((1.0, 2.0), (5.0, 6.0))


@pytest.mark.parametrize("rest", [{}, {"Origin": "7 8 9"}])
def test_of_several_origins_of_a_meta_image_that_of_itk_counts(rest, tmp_path):
    write_meta(tmp_path / "a.mha", slanted(SHAPE), Position="1 2 3", Offset="4 5 6", **rest)
    assert read_volume(str(tmp_path / "a.mha")).geometry.origin == ((7.0, 8.0, 9.0) if rest else (4.0, 5.0, 6.0))


def test_a_meta_image_names_the_field_that_is_wrong(tmp_path):
    write_meta(tmp_path / "a.mha", slanted(SHAPE), Offset="4 5")
    assert "expected Offset = 3 numbers, found 4 5" in refusal(tmp_path / "a.mha")


@pytest.mark.parametrize(
    "fields",
    [
        {"ElementSpacing": "1 2"},
        {"DimSize": "4 3"},
        {"DimSize": "4 3 -2"},
        {"NDims": "x"},
        {"NDims": "0", "DimSize": ""},
    ],
)
def test_meta_image_of_a_wrong_header(fields, tmp_path):
    write_meta(tmp_path / "a.mha", slanted(SHAPE), **fields)
    assert "not a readable MetaImage header" in refusal(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_2(suffix, tmp_path):
    """With a byte order other than the machine's, and values that are scaled."""
    affine = np.diag([*SPACING, 1.0]) + np.eye(4, k=3) * 7
    image = nibabel.Nifti2Image(slanted(SHAPE).astype(">i2"), affine, nibabel.Nifti2Header(endianness=">"))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / f"a{suffix}")
    expected = nibabel.load(tmp_path / f"a{suffix}")
    volume = read_volume(str(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(np.asarray(volume.array), expected.get_fdata())
    assert volume.geometry.spacing == pytest.approx(SPACING)
    np.testing.assert_allclose(in_ras(volume.geometry).origin, expected.affine[:3, 3])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_follows_the_voxels_of_a_nifti_is_left_out(suffix, tmp_path, capfd):
    path = nifti_file(tmp_path, suffix, nifti(slanted(SHAPE)) + b"more")
    np.testing.assert_array_equal(read_volume(path).array, slanted(SHAPE))
    assert ("4 bytes follow the voxels that its header tells of" in capfd.readouterr().err) == (suffix == ".nii.gz")


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)])
@pytest.mark.parametrize("more", [b"", bytes(24)], ids=["none", "24"])
def test_more_packed_voxels_than_a_header_tells_of(more, encoding, pack, tmp_path, capfd):
    content = slanted(SHAPE).tobytes(order="F") + more
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(slanted(SHAPE), encoding=encoding) + b"\n" + pack(content))
    write_meta(tmp_path / "a.mha", slanted(SHAPE), CompressedData="True")
    header = (tmp_path / "a.mha").read_bytes().partition(b"LOCAL\n")[0]
    (tmp_path / "a.mha").write_bytes(header + b"LOCAL\n" + zlib.compress(content))
    for name in ("a.nrrd", "a.mha"):
        np.testing.assert_array_equal(read_volume(str(tmp_path / name)).array, slanted(SHAPE))
        assert ("24 bytes follow the voxels" in capfd.readouterr().err) == bool(more)


def test_nifti_that_is_none(tmp_path):
    series = nifti(slanted(SHAPE), dim=(4, *SHAPE[:2], 1, SHAPE[2], 1, 1, 1))
    for at, form, value, said in (
        (70, "h", 1536, "type 1536"),
        (108, "f", 0, "after the header"),
        (42, "h", 0, "sizes"),
        (136, "f", np.nan, "expected a finite origin"),
        (344, "4s", b"", "not a NIfTI file with header and voxels in one"),
    ):
        data = bytearray(series)
        struct.pack_into(f"<{form}", data, at, value)
        (tmp_path / "a.nii").write_bytes(data)
        assert said in refusal(tmp_path / "a.nii")


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_nifti_is_packed_as_its_bytes_say(is_packed, tmp_path):
    """Not as its name says: a browser may unpack a file and leave it the name."""
    data = nifti(slanted(SHAPE))
    name = "a.nii" if is_packed else "a.nii.gz"
    (tmp_path / name).write_bytes(gzip.compress(data) if is_packed else data)
    np.testing.assert_array_equal(read_volume(str(tmp_path / name)).array, slanted(SHAPE))


def test_one_nifti_file_that_calls_itself_a_pair(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE)).replace(b"n+1", b"ni1"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nii")).array, slanted(SHAPE))


def test_a_packed_nifti_whose_voxels_are_far_behind_its_header(tmp_path):
    """What lies between would be in memory."""
    data = bytearray(nifti(slanted(SHAPE)))
    struct.pack_into("<f", data, 108, 1e12)
    assert "truncated: expected" in refusal(nifti_file(tmp_path, ".nii.gz", bytes(data)))


def test_the_name_in_a_nifti_ends_at_its_first_zero(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), name=b"rho\0left\0over"))
    assert read_volume(str(tmp_path / "a.nii")).geometry.name == "rho"


def test_numbers_that_overflow_are_refused_in_one_line(tmp_path):
    """Without a warning of NumPy's before it."""
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), slope=3e38))
    write_meta(tmp_path / "a.mha", slanted(SHAPE), ElementSpacing="1e300 1 1")
    with warnings.catch_warnings(action="error"):
        assert "expected finite values" in refusal(tmp_path / "a.nii")
        assert "expected axes of finite length" in refusal(tmp_path / "a.mha")


def test_scaled_values_of_a_nifti_stay_in_it(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE).astype(np.int16), slope=0.5))
    assert isinstance(read_volume(str(tmp_path / "a.nii")).array, StoredArray)


def test_meta_image_of_four_axes_has_a_way_out(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    monkeypatch.chdir(tmp_path)
    array = np.random.default_rng(0).random((6, 5, 4, 3), np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), "a.mha")
    message = refusal("a.mha")
    assert "found NDims = 4" in message
    eval(message.partition("NDims = 4: ")[2].partition(" writes")[0], {"SimpleITK": sitk})
    np.testing.assert_array_equal(read_volume("series.nii").array, array.transpose(0, 3, 2, 1))


def test_nifti_of_components_along_the_fourth_axis_has_a_way_out(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    array = np.random.default_rng(0).random((6, 5, 4, 3), np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError) as caught:
        read_volume(str(tmp_path / "a.nii.gz"), None, 3)
    code = str(caught.value).partition("as by ")[2]
    nibabel.save(eval(code, {"nibabel": nibabel, "image": nibabel.load(tmp_path / "a.nii.gz")}), tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.nii.gz"), None, 3).array, array)


@pytest.mark.parametrize("name", ["a.hdr", "a.img", "a.img.gz", "a.mgz"])
def test_scans_of_other_formats_have_a_way_out(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x5c\1" + bytes(346))
    assert f"nibabel.save(nibabel.load('{tmp_path / name}'), 'scan.nii.gz') makes one that is" in refusal(
        tmp_path / name
    )


# --- DICOM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [np.uint16, np.int16])
@pytest.mark.parametrize(
    ("slope", "shift", "dtype"),
    [
        (1, -1024, np.int16), (-1, 5, np.int16), (2, -1024, np.int32), (3, -1024, np.int32), (0.5, -3, np.float32),
        (3e6, 0, np.int64), (1, 3_000_000_000, np.int64), (1, 1e20, np.float32), (1e18, 0, np.float32),
    ],
)  # fmt: skip
def test_dicom_rescaled(slope, shift, dtype, stored, tmp_path):
    """Exact where an integer holds all, else floats; never wrapped around, as VTK would do."""
    array = np.array([0, 1, 32767, 20000, 100, 7, 8, 30001, 1, 2, 3, 4], stored).reshape(2, 3, 2)
    found = read_volume(str(write_dicom(tmp_path, array, shift=shift, slope=f"{slope:g}"))).array
    np.testing.assert_array_equal(found, (array.astype(float) * slope + shift).astype(dtype))
    assert found.dtype == dtype


@pytest.mark.parametrize(
    "more", [{"syntax": "1.2.840.10008.1.2.4.90"}, {"syntax": "1.2.840.10008.1.2.2"}, {"frames": "12"}]
)
def test_dicom_that_pydicom_cannot_read(more, tmp_path):
    assert "pydicom cannot read it" in refusal(write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16), **more))


def test_dicom_of_several_slices_in_a_file(tmp_path):
    """An enhanced one: place, spacing and rescaling are in groups, of each slice or of all of them."""
    pydicom = pytest.importorskip("pydicom")
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)

    def group(**sequences: dict) -> object:
        made = pydicom.Dataset()
        for name, elements in sequences.items():
            item = pydicom.Dataset()
            for key, value in elements.items():
                setattr(item, key, value)
            setattr(made, f"{name}Sequence", [item])
        return made

    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = file.SeriesInstanceUID = "1.2.3"
    file.NumberOfFrames, file.Rows, file.Columns = array.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelData = 1, "MONOCHROME2", array.tobytes()
    measures = {"PixelSpacing": [0.5, 0.8], "SliceThickness": 9.0}
    file.SharedFunctionalGroupsSequence = [
        group(
            PixelMeasures=measures,
            PlaneOrientation={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelValueTransformation={"RescaleSlope": 2, "RescaleIntercept": -7},
        )
    ]
    places = [[-6, -16, z] for z in (25.0, 20.0, 15.0, 10.0)]  # from the last slice to the first
    file.PerFrameFunctionalGroupsSequence = [group(PlanePosition={"ImagePositionPatient": place}) for place in places]
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = read_volume(str(tmp_path))
    np.testing.assert_array_equal(found.array, 2 * array[::-1].transpose(2, 1, 0) - 7)
    assert found.geometry.spacing == (0.8, 0.5, 5.0) and found.geometry.origin == (-6.0, -16.0, 10.0)
    assert f"--volume {shlex.quote(str(tmp_path))}" in refusal(tmp_path / "a.dcm")


def test_dicom_of_slices_that_do_not_belong_together(tmp_path):
    array = slanted((4, 3, 3)).astype(np.uint16)
    folder = write_dicom(tmp_path, array, order=(0, 1, 2))
    sound = (folder / "1.dcm").read_bytes()
    (folder / "1.dcm").write_bytes(dicom_slice(array[:, :, 1], (-1.0, 10.0, 3.5)))
    assert "equal distances" in refusal(folder)
    (folder / "1.dcm").write_bytes(dicom_slice(array[:, :2, 1], (-1.0, 10.0, 3.25)))
    assert "another series" in refusal(folder)
    (folder / "1.dcm").write_bytes(sound)
    (folder / "copy.dcm").write_bytes(sound)
    assert "equal distances" in refusal(folder)
    (folder / "copy.dcm").unlink()
    assert read_volume(str(folder)).array.shape == (4, 3, 3)


def test_dicom_of_frames_at_one_position(tmp_path):
    """As of a film, in one file or in several: none is missing."""
    film = tmp_path / "film"
    film.mkdir()
    frames = np.concatenate([slanted((4, 3)).astype(np.uint16)] * 5, axis=1)
    data = dicom_slice(frames, (1.0, 2.0, 3.0), frames="5")
    rows = (0x28).to_bytes(2, "little") + (0x10).to_bytes(2, "little") + b"US\2\0"
    (film / "a.dcm").write_bytes(data.replace(rows + b"\x0f", rows + b"\3"))
    files = write_dicom(tmp_path, slanted((4, 3, 1)).astype(np.uint16))
    (files / "copy.dcm").write_bytes((files / "1.dcm").read_bytes())
    for folder, n in ((film, 5), (files, 2)):
        message = refusal(folder)
        assert f"expected slices at different positions, found all {n} at [" in message and "pixel_array" in message


def edit(path: Path, **elements) -> None:
    """Set these elements of a slice; None leaves one out."""
    file = pydicom.dcmread(path)
    for name, value in elements.items():
        delattr(file, name) if value is None and name in file else setattr(file, name, value)
    pydicom.filewriter.correct_ambiguous_vr(file, is_little_endian=True)
    file.save_as(path)


def edited(folder: Path, **elements) -> Path:
    """A scan in whose slices these elements have these values; those without one are left out."""
    scan = write_dicom(folder, slanted(SHAPE).astype(np.uint16))
    for path in scan.glob("*.dcm"):
        edit(path, **elements)
    return scan


def test_dicom_without_spacing_or_factors(tmp_path):
    geometry = read_volume(str(edited(tmp_path, PixelSpacing=None, RescaleSlope=""))).geometry
    assert geometry.spacing == (1.0, 1.0, SPACING[2]) and geometry.origin == ORIGIN


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"PixelSpacing": [0, 1]}, "expected a positive spacing, found 0.0, 1.0"),
        ({"ImagePositionPatient": None}, "expected a position and two directions in space, found [[], "),
        ({"ImageOrientationPatient": None}, "expected a position and two directions in space"),
        ({"RescaleSlope": "1e300"}, "finite"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "found ModalityLUTSequence: save pydicom.pixels.apply_modality"),
        ({"DoseGridScaling": "0.01"}, "found DoseGridScaling: save file.pixel_array * file.DoseGridScaling as .npy"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "found a palette: save pydicom.pixels.apply_color_lut"),
    ],
    ids=str,
)
def test_dicom_without_a_place_or_whose_numbers_are_no_values(elements, said, tmp_path, recwarn):
    assert said in refusal(edited(tmp_path, **elements)) and not recwarn.list


def test_a_lone_slice_of_negative_thickness_is_not_mirrored(tmp_path):
    scan = edited(tmp_path, SpacingBetweenSlices="-2")
    for name in ("0.dcm", "2.dcm"):
        (scan / name).unlink(missing_ok=True)
    assert read_volume(str(scan)).geometry.direction == IDENTITY


def test_the_spacing_of_a_secondary_capture(tmp_path):
    """As GDCM writes and reads it."""
    geometry = read_volume(str(edited(tmp_path, PixelSpacing=None, NominalScannedPixelSpacing=[2.5, 0.75]))).geometry
    assert geometry.spacing == (0.75, 2.5, SPACING[2])


@pytest.mark.parametrize(("slopes", "dtype"), [((1, 2), np.int16), ((1, 0.5), np.float32), ((2, 0.5), np.float64)])
def test_dicom_whose_slices_are_rescaled_in_different_ways(slopes, dtype, tmp_path):
    """As those of PET are, of which some may not be rescaled at all."""
    scan = edited(tmp_path)
    for name, slope in zip(("1.dcm", "0.dcm"), slopes, strict=True):
        edit(scan / name, RescaleSlope=str(slope), RescaleIntercept="0")
    found = read_volume(str(scan)).array
    np.testing.assert_array_equal(found, slanted(SHAPE).astype(np.uint16) * np.array(slopes))
    assert found.dtype == dtype


@pytest.mark.parametrize("start", [0, 132])
def test_dicom_without_its_first_bytes(start, tmp_path):
    """The volume would lack a slice."""
    scan = write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16))
    (scan / "._1.dcm").write_bytes(b"of macOS")
    read_volume(str(scan))
    (scan / "0.dcm").write_bytes((scan / "0.dcm").read_bytes()[start:] if start else b"")
    assert refusal(scan).startswith(f"{scan / '0.dcm'}: expected a slice, found no DICM after 128 bytes: ")


def test_dicom_of_two_series(tmp_path):
    scan = edited(tmp_path, SeriesInstanceUID="1.2.3")
    edit(scan / "1.dcm", SeriesInstanceUID="1.2.4")
    assert f"is of another series than {scan / '0.dcm'}: other SeriesInstanceUID: " in refusal(scan)


def test_dicom_of_the_least_of_32_bit_integers(tmp_path):
    """It has no absolute value: it was taken for a small number, and became 0 in 16 bits."""
    stored = np.arange(24, dtype=np.int32).reshape(SHAPE)
    stored[1, 2, 1] = np.iinfo(np.int32).min
    scan = write_dicom(tmp_path, stored.astype(np.int16), order=(0, 1, 2))
    wide = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "PixelRepresentation": 1}
    for z in range(2):
        edit(scan / f"{z}.dcm", **wide, PixelData=stored[:, :, z].T.tobytes())
    volume = read_volume(str(scan))
    assert volume.array.dtype == np.int32
    np.testing.assert_array_equal(volume.array, stored)


@pytest.mark.parametrize(("slope", "shift", "mark"), [("1", "-1024", -3024), ("0.5", "-1000", np.nan)])
def test_dicom_padding_is_missing(slope, shift, mark, tmp_path):
    """The value that is declared, and those up to the limit; rescaled as the values are."""
    stored = np.arange(24).reshape(4, 3, 2).astype(np.int16)
    stored[0, :, 0], stored[1, 2, 1] = (-2000, -1990, -1995), -2000
    scan = write_dicom(tmp_path, stored, shift=float(shift), slope=slope)
    for path in scan.glob("[0-9].dcm"):
        edit(path, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    volume = read_volume(str(scan))
    np.testing.assert_array_equal(volume.fill, mark)
    np.testing.assert_array_equal(is_missing(volume.values, volume.fill), stored < 0)
    present = stored >= 0
    np.testing.assert_array_equal(volume.array[present], stored[present] * float(slope) + float(shift))
    taken = read_volume(str(scan), fill="none")
    np.testing.assert_array_equal(taken.array, stored * float(slope) + float(shift))


def test_fill_is_of_the_type_that_dicom_values_have_without_padding(tmp_path):
    """Padding of several values makes floats of them."""
    stored = np.arange(24).reshape(4, 3, 2).astype(np.int16)
    stored[0] = -2000
    scan = write_dicom(tmp_path, stored, shift=-1024.0)
    for z in range(2):
        edit(scan / f"{z}.dcm", PixelPaddingValue=-2000, RescaleIntercept=str(z))
    assert read_volume(str(scan)).array.dtype == np.float64
    volume = read_volume(str(scan), fill=-2000)
    assert volume.array.dtype == np.int16 == volume.fill.dtype and volume.fill == -2000


def test_a_slice_that_cannot_be_opened(tmp_path, monkeypatch):
    scan = write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("formats.dicom._is_slice", refuse)
    assert refusal(scan).endswith(": cannot be read: Permission denied")
    assert source_files(str(scan)) == [str(scan)]


@pytest.mark.parametrize(("module", "packages"), [("pydicom", "pydicom"), ("tifffile", "tifffile imagecodecs")])
def test_a_reader_that_is_not_installed(module, packages, tmp_path, monkeypatch):
    """One line, with the way out."""
    array = slanted(SHAPE).astype(np.uint16)
    path = write_dicom(tmp_path, array) if module == "pydicom" else write_tiff(tmp_path, array)
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(path).endswith(f": a file of this format needs {module}: pip install {packages}")


# --- TIFF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 4])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_tiff_keeps_its_rows_in_order(dtype, orientation, endian, tmp_path):
    array = slanted(SHAPE).astype(dtype)
    (tmp_path / "a.tif").write_bytes(tiff(array, "", orientation, endian))
    found = read_volume(str(tmp_path / "a.tif")).array
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("form", [{}, {"bigtiff": True}, {"tile": (16, 16)}, {"compression": "zlib"}], ids=str)
def test_tiff_of_tifffile(form, tmp_path):
    """Read as it is; cut short anywhere, refused or the same."""
    array, path = slanted((20, 18, 3)), tmp_path / "a.tif"
    tifffile.imwrite(path, array.T.copy(), photometric="minisblack", metadata=None, **form)
    np.testing.assert_array_equal(read_volume(str(path)).array, array)
    content = path.read_bytes()
    messages = []
    for length in range(100, len(content), len(content) // 20):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(read_volume(str(path)).array, array)
        except VolumeError as error:
            messages.append(str(error))
    assert len(messages) >= 18 and any("truncated" in message for message in messages)


def test_tiff_of_one_bit(tmp_path):
    mask = (slanted((16, 9, 3)) > 25).transpose(2, 1, 0)
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.tif")).array, mask.transpose(2, 1, 0))


def test_tiff_of_which_one_page_stands_for_all(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", slanted((9, 8, 6)).T.copy(), photometric="minisblack", truncate=True)
    assert "truncated or damaged: expected pages of shape [6, 8, 9], found 1" in refusal(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", slanted((9, 8, 6)).T.copy(), photometric="minisblack")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.tif")).array, slanted((9, 8, 6)))


@pytest.mark.parametrize(
    ("form", "said", "unit"),
    [
        ("imagej", {"finterval": 7.0, "tunit": "min"}, "min"),
        ("imagej", {"tunit": "min"}, ""),
        ("ome", {"TimeIncrement": 7.0, "TimeIncrementUnit": "ms"}, "ms"),
        ("ome", {}, ""),
    ],
)
def test_the_unit_of_time_of_imagej_and_ome(form, said, unit, tmp_path):
    """It says something of a given interval only."""
    array = np.arange(360, dtype=np.uint16).reshape(3, 4, 5, 6)
    tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": "TZYX", **said}, **{form: True})
    geometry = read_volume(str(tmp_path / "a.tif")).geometry
    assert (geometry.spacing[0], geometry.units_of("t")) == ((7.0, unit) if unit else (1.0, ""))


@pytest.mark.parametrize("form", ["imagej", "ome"])
@pytest.mark.parametrize("axes", ["ZYX", "ZCYX", "TZYX", "TYX"])
def test_axes_of_imagej_and_ome(form, axes, tmp_path):
    """Times come first, channels last; none of them is taken for slices."""
    sizes = {"T": 3, "Z": 4, "C": 2, "Y": 5, "X": 6}
    array = np.arange(np.prod([sizes[axis] for axis in axes]), dtype=np.uint16).reshape([sizes[a] for a in axes])
    said = {"spacing": 1.5, "finterval": 7.0, "unit": "um"} if form == "imagej" else {"TimeIncrement": 7.0}
    said |= {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (0.25, 0.5, 1.5), strict=True) if form == "ome"}
    resolution = {"resolution": (4, 2)} if form == "imagej" else {}
    tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": axes, **said}, **{form: True}, **resolution)
    found = read_volume(str(tmp_path / "a.tif"))
    expected = array.transpose([axes.index(axis) for axis in "TXYZC" if axis in axes])
    np.testing.assert_array_equal(found.array, expected if "Z" in axes else expected[..., None])
    assert found.geometry.spacing[-3:] == pytest.approx((0.25, 0.5, 1.5))
    assert found.geometry.spacing[:-3] == ((7.0,) if "T" in axes else ())
    expected = {f"units_{axis}": "\u00b5m" for axis in "xyz"} | ({"units_t": "s"} if "T" in axes else {})
    assert found.geometry.axis_attributes == expected  # seconds are what both mean by default
    if "T" not in axes:
        write_volume(str(tmp_path / "b.tif"), found)
        assert read_volume(str(tmp_path / "b.tif")).geometry.attributes_of("z") == {"units": "\u00b5m"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"imagej": True}, "axes of space, time and channels, found CYX"),  # as tifffile writes slices without names
        ({"photometric": "miniswhite"}, "tifffile.imwrite(..., photometric='minisblack')"),
        ({"ome": True,
          "metadata": {"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeZ": 1, "PhysicalSizeZUnit": "pixel"}},
         "lengths in one unit, found pixel, µm"),
    ],
)  # fmt: skip
def test_tiff_whose_refusal_names_the_way_out(how, said, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6, 5), np.uint16), **how)
    assert said in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize(("spacing", "expected"), [(-2.0, 2.0), (0.0, 1.0)])
def test_the_spacing_of_imagej_has_no_sign(spacing, expected, tmp_path):
    said = {"axes": "ZYX", "spacing": spacing}
    tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 6, 7), "u2"), imagej=True, resolution=(2, 4), metadata=said)
    geometry = read_volume(str(tmp_path / "a.tif")).geometry
    assert geometry.spacing == (0.5, 0.25, expected) and geometry.direction == IDENTITY


def test_the_units_of_imagej(tmp_path):
    """Those of lengths may differ from axis to axis. Its word for values without units is no unit."""
    said = {"axes": "ZYX", "spacing": 3.0, "unit": "micron", "yunit": "mm", "zunit": "nm"}
    for unit in ("HU", "Gray Value"):
        line = {"cf": 0, "c0": 0.0, "c1": 2.0, "vunit": unit}
        tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 6, 7), "u2"), imagej=True, metadata=said | line)
        geometry = read_volume(str(tmp_path / "a.tif")).geometry
        assert geometry.axis_attributes == {"units_x": "\u00b5m", "units_y": "mm", "units_z": "nm"}
        assert geometry.units == ("HU" if unit == "HU" else "")


@pytest.mark.parametrize(
    ("dtype", "text", "fill"),
    [
        ("int16", "-9999", -9999),
        ("float32", "-3.4028234663852886e+38", np.finfo("f4").min),
        ("float32", "nan", np.nan),
        ("uint8", "-9999", None),  # the type has no such value
        ("float32", "", None),
    ],
)
def test_gdals_nodata_value_of_a_tiff_is_missing(dtype, text, fill, tmp_path):
    stored = slanted(SHAPE).astype(dtype)
    stored[-1, -1, -1] = stored[-1, -1, -1] if fill is None else fill
    tag = (42113, "s", 0, text, True)
    tifffile.imwrite(tmp_path / "a.tif", stored.T, photometric="minisblack", metadata={"axes": "ZYX"}, extratags=[tag])
    volume = read_volume(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.array, stored)
    assert volume.fill is None if fill is None else is_missing(volume.values, volume.fill).sum() == 1


def test_the_nodata_value_of_calibrated_values_is_calibrated(tmp_path):
    stored, line = np.arange(210, dtype=np.uint16).reshape(5, 6, 7), {"cf": 0, "c0": 0.5, "c1": 2.0}
    said = {"imagej": True, "metadata": {"axes": "ZYX", **line}, "extratags": [(42113, "s", 0, "7", True)]}
    tifffile.imwrite(tmp_path / "a.tif", stored, **said)
    volume = read_volume(str(tmp_path / "a.tif"))
    assert volume.fill == 14.5 and volume.fill.dtype == volume.array.dtype == np.float32
    np.testing.assert_array_equal(is_missing(volume.values, volume.fill), stored.T == 7)


@pytest.mark.parametrize(
    ("line", "dtype"),
    [((-32768.0, 1.0), np.int16), ((-1024.0, 2.0), np.int32), ((0.5, 0.25), np.float32), ((0.0, 1.0), np.uint16)],
)
def test_values_that_imagej_has_calibrated(line, dtype, tmp_path):
    """Its signed 16-bit images are stored so, as those that it has read from DICOM."""
    stored = np.arange(120, dtype=np.uint16).reshape(4, 6, 5) * 500
    said = {"axes": "ZYX", "cf": 0, "c0": line[0], "c1": line[1], "vunit": "Gray Value"}
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata=said)
    found = read_volume(str(tmp_path / "a.tif")).array
    np.testing.assert_array_equal(found, stored.T * line[1] + line[0])
    assert found.dtype == dtype
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata=said | {"cf": 7})
    assert "found ImageJ's function 7: ImageJ's Image > Type > 32-bit" in refusal(tmp_path / "a.tif")


def test_ome_lengths_of_several_units(tmp_path):
    said = {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 1}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6, 5), np.uint16), ome=True, metadata=said)
    geometry = read_volume(str(tmp_path / "a.tif")).geometry
    assert geometry.spacing == (0.25, 0.5, 1.0) and geometry.attributes_of("y") == {"units": "\u00b5m"}


def test_no_other_file_that_ome_names_is_read(tmp_path):
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for z, name in enumerate(("a.tif", "b.tif"))
    )
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a.tif"><Image ID="Image:0">'
        '<Pixels DimensionOrder="XYZCT" ID="Pixels:0" SizeC="1" SizeT="1" SizeX="5" SizeY="6" SizeZ="2" Type="uint16">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )
    for name in ("a.tif", "b.tif"):
        described = {"description": ome, "metadata": None, "photometric": "minisblack"}
        tifffile.imwrite(tmp_path / name, np.ones((6, 5), np.uint16), **described)
    assert tifffile.TiffFile(tmp_path / "a.tif").series[0].shape == (2, 6, 5)  # without care, both would be read
    assert "expected all pages that its OME description names, in this file" in refusal(tmp_path / "a.tif")


def test_tiff_that_vtk_would_misread(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(slanted(SHAPE), "ImageJ=1.54f\nimages=2\nchannels=2\n"))
    assert "if the channels are slices" in refusal(path)
    path.write_bytes(tiff(slanted(SHAPE), "ImageJ=1.54f\nimages=200\n"))
    assert "expected 200 pages, as ImageJ wrote, found 2" in refusal(path)
    sound = tiff(slanted(SHAPE))
    for tag, value, message in (
        (259, 7, "expected one image, found 2"),
        (262, 0, "grey"),
        (257, 2, "pages of one size"),
        (277, 2, "pages of one size"),
    ):
        at = sound.index(struct.pack("<HHI", tag, 4 if tag == 257 else 3, 1))
        path.write_bytes(sound[: at + 8] + struct.pack("<H", value) + sound[at + 10 :])
        assert message in refusal(path)


def test_tiff_whose_pages_go_in_circles_or_are_not_there(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\0\0\0\0")
    assert "no pages" in refusal(tmp_path / "a.tif")
    content = bytearray(tiff(slanted(SHAPE)))
    content[-4:] = content[4:8]
    (tmp_path / "a.tif").write_bytes(content)
    assert "circular" in refusal(tmp_path / "a.tif")
