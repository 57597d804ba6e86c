"""A time series through the scripts: one network over space and time, and the steps it is written as."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers import volumes
from helpers.networks import field_net, make_blob, make_header
from helpers.scripts import WELL, compress, decompress, error_of, listing, results, train
from helpers.volumes import TURNED, psnr_of, slanted
from helpers.vtk import vtk_read, vtk_write
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOXML import vtkXMLImageDataReader

import net_decompress
import train as train_script
from field.neural_field import NeuralField
from formats.reading import read_volume

pytestmark = pytest.mark.usefixtures("quick_vtk")
SHAPE = (4, 5, 3, 2)
SPACING, ORIGIN = (0.25, 0.5, 2.0, 1.25), (7.0, 10.0, -4.0, 0.25)


@pytest.fixture(scope="module")
def content():
    """A blob of a time series, of random weights."""
    header = make_header(SHAPE, 0.0, 100.0, spacing=SPACING, origin=ORIGIN, name="density", direction=TURNED, units="K")
    return make_blob(header, field_net(d_in=4))


@pytest.fixture
def blob(content, tmp_path):
    """The same in a file."""
    path = tmp_path / "blob"
    path.write_bytes(content)
    return path


@pytest.fixture
def whole(blob, tmp_path):
    """All that the blob holds."""
    array = decompress(blob, tmp_path / "whole.npy")
    assert array.shape == SHAPE
    return array


def steps_in(path) -> dict[str, float]:
    """The files that a .pvd collection names, and their times."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "VTKFile" and root.get("type") == "Collection"
    return {entry.get("file"): float(entry.get("timestep")) for entry in root.iter("DataSet")}


def script(*arguments) -> None:
    net_decompress.main([str(a) for a in arguments])


def test_a_file_a_step_and_their_collection(blob, whole, tmp_path, capsys):
    script("--compressed", blob, "--recon", tmp_path / "out")
    assert results(capsys.readouterr().out)["recon"] == str(tmp_path / "out.pvd")
    names = [f"out_000{t}.vti" for t in range(4)]
    assert set(listing(tmp_path)) == {"blob", "whole.npy", "out.pvd", *names}
    assert steps_in(tmp_path / "out.pvd") == dict(zip(names, [7.0, 7.25, 7.5, 7.75], strict=True))
    series = read_volume(str(tmp_path / "out.pvd"))
    np.testing.assert_array_equal(np.stack(series.array.arrays), whole)
    assert series.geometry.spacing[0] == 0.25 and series.geometry.origin[0] == 7.0
    for t, name in enumerate(names):
        image = vtk_read(tmp_path / name)
        np.testing.assert_array_equal(image.array, whole[t])
        assert image.name == "density" and image.spacing == SPACING[1:] and image.origin == ORIGIN[1:]
    assert read_volume(str(tmp_path / "out_0003.vti")).time == 7.75
    # What was written is a series again.
    series = read_volume(str(tmp_path / "out_*.vti"))
    np.testing.assert_array_equal(np.stack(series.array.arrays), whole)
    assert series.geometry.spacing == SPACING and series.geometry.origin == ORIGIN and series.geometry.units == "K"
    np.testing.assert_allclose(series.geometry.direction, TURNED, atol=1e-12)


def test_range_of_steps(blob, whole, tmp_path):
    np.testing.assert_array_equal(decompress(blob, tmp_path / "o.npy", "--time", "1:3"), whole[1:3])
    script("--compressed", blob, "--recon", tmp_path / "o.vti", "--time", "2:", "--roi", "1:4,:,1:2")
    assert steps_in(tmp_path / "o.pvd") == {"o_0002.vti": 7.5, "o_0003.vti": 7.75}
    image = vtk_read(tmp_path / "o_0003.vti")
    np.testing.assert_array_equal(image.array, whole[3, 1:4, :, 1:2])
    assert not (tmp_path / "o_0001.vti").exists()


def test_one_time_is_one_volume(blob, whole, tmp_path, capsys):
    np.testing.assert_array_equal(decompress(blob, tmp_path / "o.npy", "--time", "3"), whole[3])
    np.testing.assert_array_equal(decompress(blob, tmp_path / "o.npy", "--time", "0"), whole[0])
    np.testing.assert_array_equal(decompress(blob, tmp_path / "o.vti", "--time", "3"), whole[3])
    assert results(capsys.readouterr().out)["recon"] == str(tmp_path / "o.vti")
    assert read_volume(str(tmp_path / "o.vti")).time == 7.75 and not (tmp_path / "o.pvd").exists()


def test_a_time_between_two_steps(blob, tmp_path):
    found = decompress(blob, tmp_path / "o.vti", "--time", "1.75")
    field = NeuralField.open(blob)
    index = np.indices(SHAPE[1:]).reshape(3, -1).T * SPACING[1:] @ np.reshape(TURNED, (3, 3)).T + ORIGIN[1:]
    points = np.column_stack([np.full(len(index), 7.0 + 1.75 * 0.25), index])
    np.testing.assert_allclose(found.ravel(), field.at(points), rtol=0, atol=1e-3)
    assert read_volume(str(tmp_path / "o.vti")).time == 7.4375


def test_resolution_is_of_space(blob, whole, tmp_path):
    found = decompress(blob, tmp_path / "o.npy", "--resolution", "9,3,1", "--time", "1:4")
    assert found.shape == (3, 9, 3, 1)
    middle = decompress(blob, tmp_path / "o.npy", "--resolution", "5,3,2", "--time", "2")
    np.testing.assert_allclose(middle, whole[2], rtol=0, atol=1e-4)


def test_gradient_is_by_space(blob, tmp_path):
    script("--compressed", blob, "--recon", tmp_path / "g.vti", "--gradient", "--time", "1:3", "--roi", "1:,:,:")
    field = NeuralField.open(blob)
    expected = field.gradient_on_grid(field.grid(np.s_[1:, :, :], time=slice(1, 3)))
    for t in (1, 2):
        reader = vtkXMLImageDataReader()
        reader.SetFileName(str(tmp_path / f"g_000{t}.vti"))
        reader.Update()
        found = vtk_to_numpy(reader.GetOutput().GetPointData().GetArray("density_gradient"))
        np.testing.assert_allclose(
            found.reshape(2, 3, 4, 3).transpose(2, 1, 0, 3), expected[t - 1, ..., 1:], rtol=0, atol=1e-3
        )


def test_points_have_a_time(blob, tmp_path):
    points = np.array([[7.0, 10.0, -4.0, 0.25], [7.6, 10.5, -4.2, 0.3]])
    (tmp_path / "p.csv").write_text("t,x,y,z\n" + "\n".join(",".join(map(str, row)) for row in points.tolist()))
    script(
        *("--compressed", blob, "--points", tmp_path / "p.csv", "--recon", tmp_path / "o.csv"),
        *("--gradient", "--outside", "nan"),
    )
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert lines[0] == "t,x,y,z,density,ddensity/dt,ddensity/dx,ddensity/dy,ddensity/dz"
    table = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    field = NeuralField.open(blob)
    np.testing.assert_array_equal(table[:, :4], points)
    np.testing.assert_array_equal(table[:, 4].astype(np.float32), field.at(points))
    np.testing.assert_array_equal(table[:, 5:].astype(np.float32), field.gradient_at(points))


# --- against the original ---------------------------------------------------------------------------


def test_psnr_of_every_step_and_over_all(blob, whole, tmp_path, capsys):
    original = np.clip(whole + np.array([1, 2, 3, 0], np.float32)[:, None, None, None], 0, 100)
    original[0, 0, 0, 0], original[0, 1, 0, 0] = 0.0, 100.0
    np.save(tmp_path / "v.npy", original)
    errors = ((whole.astype(float) - original) ** 2).mean(axis=(1, 2, 3))
    capsys.readouterr()
    argv = ("--compressed", blob, "--volume", tmp_path / "v.npy")
    for recon in ("o.npy", "o.vti"):
        script(*argv, "--recon", tmp_path / recon)
        found = results(capsys.readouterr().out)
        assert float(found["psnr"]) == pytest.approx(-10 * np.log10(errors.mean() / 100**2), abs=1e-3)
        assert float(found["rmse"]) == pytest.approx(np.sqrt(errors.mean()), rel=1e-5)
        for t in range(3):
            assert float(found[f"psnr_t{t}"]) == pytest.approx(-10 * np.log10(errors[t] / 100**2), abs=1e-3)
        assert found["psnr_t3"] == "inf"
    script(*argv, "--recon", tmp_path / "o.vti", "--time", "2", "--roi", "1:,:,:")
    found = results(capsys.readouterr().out)
    error = ((whole[2, 1:].astype(float) - original[2, 1:]) ** 2).mean()
    assert float(found["psnr"]) == float(found["psnr_t2"]) == pytest.approx(-10 * np.log10(error / 100**2), abs=1e-3)
    assert "psnr_t1" not in found
    for flags in (("--time", "1.5"), ("--resolution", "2,2,2")):
        script(*argv, "--recon", tmp_path / "o.npy", *flags)
        assert not [key for key in results(capsys.readouterr().out) if "psnr" in key]


# --- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", ["4", "3.01", "2:2", "3:2", "0:5", "7:"])
def test_time_that_the_series_does_not_have(blob, tmp_path, time):
    message = error_of(net_decompress.main, "--compressed", blob, "--recon", tmp_path / "o.npy", "--time", time)
    assert "--time" in message and "(4, 5, 3, 2)" in message and "found" in message
    assert set(listing(tmp_path)) == {"blob"}


@pytest.mark.parametrize("time", ["-1", "x", "1:2:3", "", "nan", "inf", "1.5:3", "-1:3"])
def test_time_that_is_none(blob, time):
    message = error_of(net_decompress.main, "--compressed", blob, f"--time={time}")
    assert "--time" in message and "expected a time" in message


def test_time_of_a_single_volume(tmp_path):
    (tmp_path / "blob").write_bytes(make_blob(make_header(), field_net()))
    message = error_of(net_decompress.main, "--compressed", tmp_path / "blob", "--time", "0")
    assert "expected a time series" in message


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".tif", ".raw"])
def test_other_formats_hold_one_time(blob, whole, tmp_path, suffix, capsys):
    argv = ("--compressed", blob, "--recon", tmp_path / f"o{suffix}")
    before = listing(tmp_path)
    for flags in ((), ("--time", "1:2")):
        message = error_of(net_decompress.main, *argv, *flags)
        assert (
            suffix in message
            and "a time series is written as .vti or .npy or .nii or .nii.gz or .nc or .h5 or .zarr" in message
        )
    assert listing(tmp_path) == before
    capsys.readouterr()
    script(*argv, "--time", "1")
    recon = results(capsys.readouterr().out)["recon"]
    if suffix == ".raw":
        assert np.array_equal(np.fromfile(recon, "<f4").reshape(SHAPE[1:], order="F"), whole[1])
    else:
        assert recon == str(tmp_path / f"o{suffix}")


@pytest.mark.parametrize("flag", [("--roi", "0:1,:,:,:"), ("--roi", ":,:"), ("--resolution", "2,2")])
def test_region_is_of_space(blob, flag):
    message = error_of(net_decompress.main, "--compressed", blob, *flag)
    assert flag[0] in message and "expected 3 axes" in message


@pytest.mark.parametrize("taken", ["o_0002.vti", "o.pvd"])
def test_a_name_that_is_taken_is_found_beforehand(blob, tmp_path, taken):
    (tmp_path / taken).mkdir()
    before = listing(tmp_path)
    assert taken in error_of(net_decompress.main, "--compressed", blob, "--recon", tmp_path / "o.vti")
    assert listing(tmp_path) == before


def test_the_original_is_not_overwritten(blob, tmp_path):
    script("--compressed", blob, "--recon", tmp_path / "o.vti")
    before = listing(tmp_path)
    argv = ("--compressed", blob, "--recon", tmp_path / "o.vti", "--volume", tmp_path / "o_*.vti")
    assert "would overwrite" in error_of(net_decompress.main, *argv)
    outputs = ("--network", tmp_path / "o_0001.vti", "--config", tmp_path / "c.json")
    assert "would overwrite" in error_of(train_script.main, "--volume", tmp_path / "o_*.vti", *outputs)
    assert listing(tmp_path) == before


def test_debug_volumes_are_not_of_a_series(tmp_path):
    np.save(tmp_path / "v.npy", slanted(SHAPE))
    message = error_of(train_script.main, "--volume", tmp_path / "v.npy", "--d_in", 4, "--enable-vol-debug")
    assert "--enable-vol-debug" in message and "time series" in message


def test_a_pattern_without_quotes():
    message = error_of(train_script.main, "--volume", "step_1.vti", "step_2.vti", "step_3.vti")
    assert "step_2.vti step_3.vti" in message and "in quotes" in message
    assert "quotes" not in error_of(train_script.main, "--volume", "step_1.vti", "--nosuch")


def test_a_single_file_is_no_series(tmp_path):
    for n_components in (1, 4):
        vtk_write(tmp_path / "v.vti", np.stack([slanted((4, 3, 2))] * n_components, axis=-1))
        message = error_of(train_script.main, "--volume", tmp_path / "v.vti", "--d_in", 4)
        assert "v.vti: expected a time series" in message


def test_an_array_of_four_axes_is_told_to_be_a_series(tmp_path, capsys):
    """Unless --d_in says so: its last axis could be one of components."""
    np.save(tmp_path / "v.npy", slanted((8, 4, 3, 5)))
    for flags in ((), ("--d_in", 4)):
        train(tmp_path / "v.npy", tmp_path, "--n_passes", 1, *flags)
        assert ("v.npy: a time series: 8 steps of 4 x 3 x 5 voxels" in capsys.readouterr().err) == (not flags)
    train(np.zeros((2, 3, 4, 5, 6)), tmp_path, "--n_passes", 1)
    assert "a time series: 2 steps of 3 x 4 x 5 voxels, of 6 components\n" in capsys.readouterr().err


# --- the chain --------------------------------------------------------------------------------------


def test_from_files_to_files(tmp_path, capsys):
    """Spacing, origin, times and values come back, each step in its place."""
    original = slanted((2, 6, 5, 4))
    for t in range(2):
        time = {"spacing": (0.5, 1, 2), "origin": (1, 2, 3), "time": 10 + 5 * t}
        vtk_write(tmp_path / f"step_{t + 9}.vti", original[t], **time)
    pattern = tmp_path / "step_*.vti"
    trained = train(pattern, tmp_path, *WELL)
    captured = capsys.readouterr()
    assert "a time series: 2 steps of 6 x 5 x 4 voxels" in captured.err
    assert trained.settings["d_in"] == 4 and trained.settings["shape"] == [2, 6, 5, 4]
    assert trained.settings["spacing"] == [5.0, 0.5, 1.0, 2.0] and trained.settings["origin"] == [10.0, 1.0, 2.0, 3.0]
    compress(trained, tmp_path / "blob", "--volume", pattern, "--cluster_bits", 12, "--n_passes", 1)
    capsys.readouterr()
    script("--compressed", tmp_path / "blob", "--recon", tmp_path / "o", "--volume", pattern)
    found = results(capsys.readouterr().out)
    assert list(found)[:5] == ["psnr", "rmse", "max_error", "psnr_t0", "psnr_t1"]
    assert float(found["psnr"]) > 35
    assert steps_in(tmp_path / "o.pvd") == {"o_0000.vti": 10.0, "o_0001.vti": 15.0}
    series = read_volume(str(tmp_path / "o_*.vti"))
    assert series.geometry.spacing == (5.0, 0.5, 1.0, 2.0) and series.geometry.origin == (10.0, 1.0, 2.0, 3.0)
    assert np.abs(np.stack(series.array.arrays) - original).max() < 0.05 * np.ptp(original)


def test_components_over_time(tmp_path, capsys):
    base = slanted((3, 6, 5, 4))
    original = np.stack([base, 1000 - 5 * base], axis=-1)
    np.save(tmp_path / "v.npy", original)
    trained = train(tmp_path / "v.npy", tmp_path, *WELL)
    found = results(capsys.readouterr().out)
    assert trained.settings["d_in"] == 4 and trained.settings["d_out"] == 2
    assert list(found)[:3] == ["psnr", "psnr_0", "psnr_1"]
    compress(trained, tmp_path / "blob", "--cluster_bits", 12)
    decoded = decompress(tmp_path / "blob", tmp_path / "o.npy", "--volume", tmp_path / "v.npy")
    found = results(capsys.readouterr().out)
    assert {"psnr_0", "psnr_1", "psnr_t0", "psnr_t2"} <= found.keys()
    for c in range(2):
        expected = psnr_of(original[..., c], decoded[..., c])
        assert float(found[f"psnr_{c}"]) == pytest.approx(expected, abs=1e-3) and expected > 35
    script("--compressed", tmp_path / "blob", "--recon", tmp_path / "o.vti", "--time", "1")
    np.testing.assert_allclose(vtk_read(tmp_path / "o.vti").array, decoded[1], rtol=0, atol=1e-3)


def test_one_step_is_a_volume_over_time(tmp_path):
    compress(train(slanted((1, 4, 3, 2)), tmp_path, "--d_in", 4, "--n_layers", 1), tmp_path / "blob")
    script("--compressed", tmp_path / "blob", "--recon", tmp_path / "o.vti", "--gradient")
    assert steps_in(tmp_path / "o.pvd") == {"o_0000.vti": 0.0}
    script("--compressed", tmp_path / "blob", "--recon", tmp_path / "again", "--volume", tmp_path / "o.pvd")


@pytest.mark.parametrize("suffix", [".nc", ".h5", ".zarr"])
def test_a_series_in_one_file(blob, whole, tmp_path, suffix):
    """All steps with their times, a part of them, and one of them; a large one slab by slab."""
    pytest.importorskip("zarr" if suffix == ".zarr" else "h5py")
    path = tmp_path / f"a{suffix}"
    for flags, start, n in (([], 7.0, 4), (["--time", "1:3"], 7.25, 2)):
        script("--compressed", blob, "--recon", path, *flags)
        found = read_volume(str(path))
        k = round((start - 7) / 0.25)
        np.testing.assert_array_equal(volumes.whole(found.array), whole[k : k + n])
        assert (found.geometry.spacing, found.geometry.origin) == (SPACING, (start, *ORIGIN[1:]))
        assert (found.geometry.name, found.geometry.units, found.geometry.direction) == ("density", "K", TURNED)
    script("--compressed", blob, "--recon", path, "--time", "2")
    found = read_volume(str(path))
    np.testing.assert_array_equal(volumes.whole(found.array), whole[2])
    assert found.time == 7.5 and found.geometry.spacing == SPACING[1:]
