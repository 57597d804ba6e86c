"""TIFF files, also as ImageJ and OME write them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from helpers.volume_files import refusal, tiff
from helpers.volumes import slanted

from formats.common import VolumeError
from formats.reading import read_volume
from formats.writing import write_volume
from utils import IDENTITY, is_missing

SHAPE = (4, 3, 2)


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


def test_a_spacing_in_the_form_of_tifffile_is_told(tmp_path, capsys):
    """As of one who forgot imagej=True."""
    for said in ({}, {"spacing": 1.0}, {"spacing": 2.0, "unit": "um"}):
        tifffile.imwrite(
            tmp_path / "a.tif", slanted(SHAPE).T, metadata={"axes": "ZYX", **said}, photometric="minisblack"
        )
        assert read_volume(str(tmp_path / "a.tif")).geometry.spacing == (1, 1, 1)
        is_told = "spacing 1 is taken, not that of its own description" in capsys.readouterr().err
        assert is_told == (said.get("spacing") == 2.0)


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


def test_tiff_of_slices_that_are_images_of_their_own_is_not_called_damaged(tmp_path):
    """As tifffile's TiffWriter.write adds slice by slice."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(4):
            file.write(np.zeros((6, 5), np.uint16))
    assert "expected one image, found 4, " in refusal(tmp_path / "a.tif")
    assert "key=slice(None)" in refusal(tmp_path / "a.tif")


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
    expected = "expected all pages that its OME description names, in this file: Fiji opens all"
    assert expected in refusal(tmp_path / "a.tif")


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
