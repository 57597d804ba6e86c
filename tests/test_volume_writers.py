"""Volumes to files: what other readers than ours find in them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import slanted, vtk_read

from volume import Volume, VolumeError, suffix_of
from volume_io import read_volume
from volume_writers import output_path, write_volume

DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
TURNED = (0.0, 0.6, -0.8, -1.0, 0.0, 0.0, 0.0, 0.8, 0.6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vti_round_trip_through_vtks_own_reader(tmp_path, dtype):
    array = slanted((4, 3, 2)).astype(dtype)
    path = tmp_path / "out.vti"
    write_volume(str(path), Volume(array, (0.5, 2.0, 3.0), (-1.0, 10.0, 0.25), "rho θ"), ".vti")
    found = vtk_read(path)
    assert found.dimensions == (4, 3, 2)
    assert found.spacing == (0.5, 2.0, 3.0) and found.origin == (-1.0, 10.0, 0.25) and found.name == "rho θ"
    np.testing.assert_array_equal(found.array, array)
    again = read_volume(str(path))
    assert again.array.dtype == np.dtype("float32" if dtype == "float16" else dtype)
    np.testing.assert_array_equal(again.array, array)
    assert again.spacing == (0.5, 2.0, 3.0) and again.origin == (-1.0, 10.0, 0.25) and again.name == "rho θ"


def test_vti_with_components(tmp_path):
    array = np.stack([slanted((4, 3, 2)), -slanted((4, 3, 2)), np.ones((4, 3, 2), np.float32)], axis=-1)
    write_volume(str(tmp_path / "v.vti"), Volume(array, (1.0,) * 3, (0.0,) * 3), ".vti")
    np.testing.assert_array_equal(vtk_read(tmp_path / "v.vti").array, array)
    np.testing.assert_array_equal(read_volume(str(tmp_path / "v.vti"), 3, 3).array, array)


@pytest.mark.parametrize("shape", [(4, 3), (5,)])
def test_vti_of_fewer_axes(tmp_path, shape):
    array = slanted(shape)
    path = tmp_path / "image.vti"
    write_volume(str(path), Volume(array, (0.5, 2.0)[: len(shape)], (1.0, -3.0)[: len(shape)]), ".vti")
    found = vtk_read(path)
    assert found.dimensions == shape + (1,) * (3 - len(shape))
    assert found.spacing[: len(shape)] == (0.5, 2.0)[: len(shape)]
    np.testing.assert_array_equal(found.array.reshape(shape), array)


def test_vti_of_fewer_axes_is_read_again(tmp_path):
    array = slanted((4, 3))
    write_volume(str(tmp_path / "image.vti"), Volume(array, (0.5, 2.0), (1.0, -3.0)), ".vti")
    volume = read_volume(str(tmp_path / "image.vti"), 2)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.spacing == (0.5, 2.0) and volume.origin == (1.0, -3.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_round_trip(tmp_path, dtype):
    array = slanted((4, 3, 2)).astype(dtype)
    write_volume(str(tmp_path / "a.tmp"), Volume(array, (1.0,) * 3, (0.0,) * 3), ".npy")
    found = np.load(tmp_path / "a.tmp")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_write_refused_by_the_system(tmp_path):
    for suffix in (".npy", ".vti"):
        with pytest.raises(OSError):
            write_volume(str(tmp_path / "no" / "a"), Volume(slanted((2, 2, 2)), (1.0,) * 3, (0.0,) * 3), suffix)


def test_output_names():
    assert output_path("a b/recon") == "a b/recon.vti"
    assert output_path("v1.2/recon") == "v1.2/recon.vti"
    assert output_path("recon.VTI") == "recon.VTI"
    assert output_path("recon.npy") == "recon.npy"
    assert suffix_of("a.b/C.NPY") == ".npy"
    with pytest.raises(VolumeError, match=re.escape("recon.raw: cannot write .raw files")):
        output_path("recon.raw")


@pytest.mark.parametrize("name", ["a & b", "p < q", 'say "x"', "plain"])
def test_any_name_survives_a_vti_file(tmp_path, name):
    """VTK itself writes names into its XML unescaped."""
    volume = Volume(np.zeros((2, 3, 4), np.float32), (1.0,) * 3, (0.0,) * 3, name)
    write_volume(str(tmp_path / "v.vti"), volume, ".vti")
    assert read_volume(str(tmp_path / "v.vti")).name == name


def test_direction_and_units_survive_a_vti_file(tmp_path):
    volume = Volume(slanted((4, 3, 2)), (0.5, 2.0, 3.0), (1.0, 2.0, 3.0), "v", TURNED, "m/s & <K>")
    write_volume(str(tmp_path / "v.vti"), volume, ".vti")
    found = vtk_read(tmp_path / "v.vti")
    assert found.direction == TURNED and found.origin == (1.0, 2.0, 3.0)
    again = read_volume(str(tmp_path / "v.vti"))
    assert (again.direction, again.units, again.name) == (TURNED, "m/s & <K>", "v")
