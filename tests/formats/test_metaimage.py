"""MetaImage files, as ITK reads and writes them."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
from helpers.volume_files import ORIGIN, SPACING, refusal, write_meta
from helpers.volumes import TURNED, slanted

from formats.reading import read_volume

SHAPE = (4, 3, 2)


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


@pytest.mark.parametrize(("unit", "in_mm"), [("um", 1e-3), ("mm", 1), ("cm", 10), ("?", 1)])
def test_lengths_of_a_meta_image_become_mm(unit, in_mm, tmp_path):
    write_meta(tmp_path / "a.mha", slanted(SHAPE), DistanceUnits=unit, Offset=" ".join(map(str, ORIGIN)))
    geometry = read_volume(str(tmp_path / "a.mha")).geometry
    assert geometry.spacing == pytest.approx(np.multiply(SPACING, in_mm))
    assert geometry.origin == pytest.approx(np.multiply(ORIGIN, in_mm))
    assert geometry.units_of("x") == "mm"


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
    found = refusal(tmp_path / "a.mhd")
    assert found.endswith("makes one of several") if data not in ("", ".") else found.endswith(said)
    assert said in found


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


def test_meta_image_of_four_axes_has_a_way_out(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    monkeypatch.chdir(tmp_path)
    array = np.random.default_rng(0).random((6, 5, 4, 3), np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), "a.mha")
    message = refusal("a.mha")
    assert "found NDims = 4" in message
    eval(message.partition("NDims = 4: ")[2].partition(" writes")[0], {"SimpleITK": sitk})
    np.testing.assert_array_equal(read_volume("series.nii").array, array.transpose(0, 3, 2, 1))
