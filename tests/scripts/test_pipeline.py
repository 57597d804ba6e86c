"""The whole chain: volume, network, blob, volume; checked with VTK's own reader and with the original's formulas."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from helpers.networks import decode_blob
from helpers.original import original_coordinates, original_forward
from helpers.scripts import DATA, WELL, compress, decompress, error_of, listing, results, round_trip, train
from helpers.volumes import TURNED, slanted
from helpers.vtk import vtk_read, vtk_write

import train as train_script
from field.original_blob import decode_original

pytestmark = pytest.mark.usefixtures("quick_vtk")


# --- axes, units, geometry --------------------------------------------------------------------------


def test_the_chain_through_vtk(tmp_path, capfd):
    """From a .vti to a .vti: dimensions, spacing, origin, name, and a corner that no swapped or flipped axis keeps."""
    array = slanted((9, 7, 5))
    array[8, 0, 0] = 60.0  # marked: the one value above 48
    vtk_write(tmp_path / "in.vti", array, (0.5, 2.0, 3.0), (-1.0, 10.0, 0.25), "density", direction=TURNED)
    trained = train(tmp_path / "in.vti", tmp_path, *WELL, "--n_layers", 2, "--n_passes", 120)
    compress(trained, tmp_path / "blob", "--cluster_bits", 12)
    trained.network.unlink()
    trained.config.unlink()
    (tmp_path / "in.vti").unlink()  # neither later stage needs it
    decompress(tmp_path / "blob", tmp_path / "recon.vti")
    assert capfd.readouterr().err.count("recon.vti: warning: VTK's contour filter leaves out the directions") == 1
    found = vtk_read(tmp_path / "recon.vti")
    assert found.dimensions == (9, 7, 5) and found.type == "float"
    assert found.spacing == (0.5, 2.0, 3.0) and found.origin == (-1.0, 10.0, 0.25) and found.name == "density"
    assert found.direction == TURNED
    assert np.unravel_index(np.argmax(found.array), found.array.shape) == (8, 0, 0)
    assert found.array[8, 0, 0] == pytest.approx(60.0, abs=4.0)
    assert np.sqrt(np.mean((found.array - array) ** 2)) < 0.02 * np.ptp(array)
    np.testing.assert_array_equal(decompress(tmp_path / "blob", tmp_path / "recon.npy"), found.array)


# --- what must work ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int64", "uint64"])
def test_the_whole_range_of_an_integer_type(tmp_path, dtype):
    """It comes back in that type. Nothing wraps around at the ends."""
    info = np.iinfo(dtype)
    array = np.full((5, 4, 3), info.min, dtype)
    array[3:] = info.max
    found = round_trip(array, tmp_path, *WELL)
    assert found.dtype == np.dtype(dtype) and found.shape == array.shape
    span = float(info.max) - float(info.min)
    error = found.astype(np.float64) - array.astype(np.float64)
    assert np.sqrt(np.mean(error**2)) < 0.02 * span and np.abs(error).max() < 0.1 * span


@pytest.mark.parametrize("dtype", ["float16", "float64", ">i2", "longdouble", "bool"])
def test_floats_booleans_and_byte_orders(tmp_path, dtype):
    array = (slanted((6, 5, 4)) > 22).astype(dtype) if dtype == "bool" else slanted((6, 5, 4)).astype(dtype)
    expected = {"bool": np.dtype("uint8"), "longdouble": np.dtype("float64")}.get(dtype, np.dtype(dtype))
    found = round_trip(array, tmp_path, *WELL)
    assert found.dtype == expected.newbyteorder("=")
    rmse = np.sqrt(np.mean((found.astype(np.float64) - array.astype(np.float64)) ** 2))
    assert rmse < (0.1 if dtype == "bool" else 0.02 * np.ptp(array))


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64(-1e300),
        np.float64(0),
        np.int64(2**60 + 1),
        np.uint64(2**64 - 1),
        np.bool_(True),
    ],
)
def test_a_constant_volume_comes_back_exactly(tmp_path, value):
    found = round_trip(np.full((4, 3, 2), value), tmp_path, bits=2)
    assert found.dtype == (np.uint8 if value.dtype == bool else value.dtype)
    assert (found == value).all()
    assert (tmp_path / "blob").stat().st_size < 200  # its range says it all


def test_a_constant_volume_is_reported_without_error(tmp_path, capsys):
    round_trip(np.full((4, 3, 2), 2**60 + 1), tmp_path)
    assert json.loads((tmp_path / "thenet.json").read_text())["psnr"] == "inf"
    capsys.readouterr()
    decompress(tmp_path / "blob", tmp_path / "out.npy", "--volume", tmp_path / "in.npy")
    found = results(capsys.readouterr().out)
    assert found["psnr"] == "inf" and float(found["rmse"]) == 0 and float(found["max_error"]) == 0


@pytest.mark.parametrize(
    ("shape", "grad_lambda"),
    [((1, 6, 5), 0.001), ((6, 5, 1), 0), ((1, 1, 7), 0), ((1, 1, 7), 0.001), ((13, 2, 2), 0.001)],
)  # fmt: skip
def test_odd_shapes(tmp_path, shape, grad_lambda):
    array = slanted(shape)
    found = round_trip(array, tmp_path, *WELL, "--grad_lambda", grad_lambda)
    assert found.shape == shape and np.isfinite(found).all()
    assert np.sqrt(np.mean((found - array) ** 2)) < 0.02 * np.ptp(array)
    decompress(tmp_path / "blob", tmp_path / "recon.vti")
    assert vtk_read(tmp_path / "recon.vti").dimensions == shape


def test_a_single_voxel(tmp_path):
    assert round_trip(np.full((1, 1, 1), 3.5), tmp_path).tolist() == [[[3.5]]]


def test_read_only_current_folder_and_paths_with_spaces(tmp_path, monkeypatch):
    here, there = tmp_path / "read only", tmp_path / "out puts, é"
    here.mkdir()
    there.mkdir()
    here.chmod(0o555)
    monkeypatch.chdir(here)
    try:
        round_trip(slanted((4, 3, 2)), there)
        decompress(there / "blob", there / "re con.vti")
        assert not os.listdir(here)
    finally:
        here.chmod(0o755)
    assert set(listing(there)) == {"in.npy", "thenet.pth", "thenet.json", "blob", "out.npy", "re con.vti"}


def test_a_spacing_that_the_blob_refuses_is_refused_before_training(tmp_path):
    vtk_write(tmp_path / "flat.vti", slanted((4, 3, 2)), spacing=(1.0, 1.0, 0.0))
    message = error_of(train_script.main, "--volume", tmp_path / "flat.vti")
    assert message == f"{tmp_path / 'flat.vti'}: expected a positive spacing, found (1.0, 1.0, 0.0)"
    assert set(listing(tmp_path)) == {"flat.vti"}


# --- the original, both ways ------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--n_layers", 4), ("--n_layers", 3, "--not-residual"), ("--w0", 20)])
def test_our_network_is_the_originals(tmp_path, volume_file, flags):
    """The original's forward pass, written anew, makes the field of our thenet.pth that our decoder makes."""
    trained = train(volume_file, tmp_path, *WELL, *flags, "--enable-vol-debug")
    s = trained.settings
    y = original_forward(trained.state, s["n_layers"], s["is_residual"], original_coordinates((9, 7, 5)))
    field = 8 + (y.reshape(9, 7, 5).clip(-1, 1) + 1) / 2 * 40
    assert np.abs(field - slanted((9, 7, 5))).max() < 0.1 * 40
    np.testing.assert_allclose(vtk_read(tmp_path / "vol.vti").array, field, rtol=0, atol=2e-5 * 40)

    compress(trained, tmp_path / "blob", "--quantizer", "kmeans")
    tensors = decode_blob((tmp_path / "blob").read_bytes())[1][0][1]
    y = original_forward(tensors, s["n_layers"], s["is_residual"], original_coordinates((9, 7, 5)))
    field = 8 + (y.reshape(9, 7, 5).clip(-1, 1) + 1) / 2 * 40
    np.testing.assert_allclose(decompress(tmp_path / "blob", tmp_path / "r.npy"), field, rtol=0, atol=2e-5 * 40)


def test_the_originals_network_and_configuration(tmp_path, monkeypatch):
    """A state dict of the original's and its own original.json: --volume supplies shape and range."""
    _, tensors = decode_original((DATA / "original_8bit.bin").read_bytes())
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, tmp_path / "original.pth")
    volume = 100 + 50 * slanted((12, 10, 9))
    np.save(tmp_path / "v.npy", volume)
    original = {"network": tmp_path / "original.pth", "config": DATA / "original.json"}
    trained = type("Original", (), original)

    monkeypatch.setattr("quantising.network.MAX_COMPENSATED", 0)  # it would take half a minute
    with pytest.raises(Exception, match=r"original\.json: .*--volume"):
        compress(trained, tmp_path / "blob")
    compress(trained, tmp_path / "blob", "--volume", tmp_path / "v.npy", "--n_passes", 0, "--cluster_bits", 12)
    found = decompress(tmp_path / "blob", tmp_path / "r.npy")
    y = original_forward(tensors, 8, True, original_coordinates((12, 10, 9))).reshape(12, 10, 9)
    low, high = volume.min(), volume.max()
    expected = low + (y.clip(-1, 1) + 1) / 2 * (high - low)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * (high - low))


def test_the_originals_blob(tmp_path, capsys):
    volume = 100 + 50 * slanted((12, 10, 9))
    np.save(tmp_path / "v.npy", volume)
    found = decompress(DATA / "original_8bit.bin", tmp_path / "r.npy", "--volume", tmp_path / "v.npy")
    _, tensors = decode_original((DATA / "original_8bit.bin").read_bytes())
    y = original_forward(tensors, 8, True, original_coordinates((12, 10, 9))).reshape(12, 10, 9)
    low, high = volume.min(), volume.max()
    expected = low + (y.clip(-1, 1) + 1) / 2 * (high - low)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * (high - low))
    said = results(capsys.readouterr().out)
    assert said["bytes"] == "27481"
    rmse = np.sqrt(np.mean((found.astype(float) - volume) ** 2))
    assert float(said["psnr"]) == pytest.approx(20 * np.log10((high - low) / rmse), abs=1e-3)
    np.save(tmp_path / "p.npy", np.array([[3, 4, 5], [11, 9, 8]]))
    flags = "--points", tmp_path / "p.npy", "--volume", tmp_path / "v.npy"  # which gives shape and range
    found = decompress(DATA / "original_8bit.bin", tmp_path / "o.npy", *flags)
    np.testing.assert_allclose(found, expected[[3, 11], [4, 9], [5, 8]], rtol=0, atol=1e-5 * (high - low))
