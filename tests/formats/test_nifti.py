"""NIfTI files: place, scaled values, time steps, components, and what is wrong with them."""

from __future__ import annotations

import gzip
import struct

import nibabel
import numpy as np
import pytest
from helpers.volume_files import ORIGIN, SPACING, in_ras, nifti, nifti_file, refusal
from helpers.volumes import MIRRORED, TURNED, slanted

from formats.common import VolumeError
from formats.reading import read_volume
from formats.stored import StoredArray

SHAPE = (4, 3, 2)


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


def test_nifti_sheared_sform(tmp_path, capsys):
    """Not to be had in a grid of right angles: the qform is, where there is one, and a warning says it."""
    rows = [[1, 0.2, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7]]
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), s=rows))
    assert "right angles" in refusal(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), s=rows, q=(*TURN_ABOUT_Z, *ORIGIN)))
    np.testing.assert_allclose(in_ras(read_volume(str(tmp_path / "a.nii")).geometry).direction, ABOUT_Z, atol=1e-6)
    assert "the position is that of its qform, as its sform has no axes" in capsys.readouterr().err


def test_nifti_sform_of_zeros(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), s=np.zeros((3, 4))))
    assert "expected axes in its sform, found zeros: image = nibabel.load(" in refusal(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), s=np.zeros((3, 4)), q=(*TURN_ABOUT_Z, *ORIGIN)))
    assert read_volume(str(tmp_path / "a.nii")).geometry.spacing == pytest.approx(SPACING)


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


def test_scaled_values_of_a_nifti_stay_in_it(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE).astype(np.int16), slope=0.5))
    assert isinstance(read_volume(str(tmp_path / "a.nii")).array, StoredArray)


def test_nifti_of_components_along_the_fourth_axis_has_a_way_out(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    array = np.random.default_rng(0).random((6, 5, 4, 3), np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError) as caught:
        read_volume(str(tmp_path / "a.nii.gz"), None, 3)
    code = str(caught.value).partition("as by ")[2]
    nibabel.save(eval(code, {"nibabel": nibabel, "image": nibabel.load(tmp_path / "a.nii.gz")}), tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.nii.gz"), None, 3).array, array)
