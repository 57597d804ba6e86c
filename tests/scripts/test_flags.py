"""The three scripts: what every flag does."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import distance, watched_samples
from helpers.scripts import WELL, compress, decompress, error_of, listing, results, round_trip, train
from helpers.volumes import psnr_of, slanted
from helpers.vtk import vtk_read, vtk_write

import net_compress
import net_decompress
import train as train_script
from training import loop, options, shapes
from utils import UserError

pytestmark = pytest.mark.usefixtures("quick_vtk")
ORIGINAL_KEYS = [
    *("grad_lambda", "n_layers", "layers", "w0", "compression_ratio", "batchSize", "oversample", "lr"),
    *("n_passes", "pass_decay", "lr_decay", "is_residual", "is_cuda", "time"),
]


def steps_of(*arguments, **keywords) -> list[torch.Tensor]:
    """The flat voxel indices of every training step of one `train`."""
    with watched_samples() as steps:
        train(*arguments, **keywords)
    return steps


def choices_of(flag: str) -> tuple[str, ...]:
    """The words that a flag of train.py takes."""
    return options.build_parser()._option_string_actions[flag].choices


# --- train.py: every flag acts ----------------------------------------------------------------------


def test_configuration_is_the_originals_and_more(volume_file, tmp_path):
    trained = train(volume_file, tmp_path, "--seed", 5, "--lr", 1e-3, "--compression_ratio", 2)
    settings = trained.settings
    assert list(settings)[: len(ORIGINAL_KEYS)] == ORIGINAL_KEYS
    expected = {"layers": [16, 16], "n_layers": 2, "is_residual": True, "is_cuda": False, "batchSize": 64, "lr": 1e-3}
    expected |= {"oversample": 1, "n_passes": 2.0, "compression_ratio": 2.0, "shape": [9, 7, 5], "dtype": "float32"}
    expected |= {"seed": 5, "value_range": [[8.0, 48.0]], "spacing": [1.0] * 3, "origin": [0.0] * 3, "omega_0": 30.0}
    expected |= {"torch_version": torch.__version__, "format_version": 1}
    assert {key: settings[key] for key in expected} == expected
    assert settings["seconds"] > 0 and 0 < settings["psnr"] < 100
    expected = {"volume": str(volume_file), "d_in": 3, "d_out": 1, "n_passes": 2.0}  # as they are settled
    assert {key: settings["options"][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--n_layers", 1), ["0.linear", "1"]),
        (("--n_layers", 3), ["0.linear", "1.linear_1", "1.linear_2", "2.linear_1", "2.linear_2", "3"]),
        (("--n_layers", 3, "--not-residual"), ["0.linear", "1.linear", "2.linear", "3"]),
        (("--not-residual", "--is-residual"), ["0.linear", "1.linear_1", "1.linear_2", "2"]),
    ],
)
def test_architecture_flags(volume_file, tmp_path, flags, names):
    trained = train(volume_file, tmp_path, *flags)
    expected = [f"net_layers.{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert list(trained.state) == expected
    assert len(trained.settings["layers"]) == trained.settings["n_layers"] == int(names[-1])
    compress(trained, tmp_path / "blob")
    assert decompress(tmp_path / "blob", tmp_path / "out.npy").shape == (9, 7, 5)


def test_compression_ratio(tmp_path):
    """The largest network below voxels / ratio. Components do not count."""
    for ratio, d_out in ((1, 1), (1.5, 1), (2, 1), (1, 3)):
        np.save(tmp_path / "v.npy", np.stack([slanted((20, 15, 10))] * d_out, axis=-1).squeeze())
        flags = ("--d_out", d_out, "--d_in", 3, "--compression_ratio", ratio, "--n_passes", 0.1)
        state = train(tmp_path / "v.npy", tmp_path, *flags).state
        n = state["net_layers.0.linear.bias"].numel()
        sizes = [4 * width + 2 * (width**2 + width) + d_out * (width + 1) for width in (n, n + 1)]
        assert sum(t.numel() for t in state.values()) == sizes[0] < 3000 / ratio <= sizes[1]


def test_a_ratio_out_of_reach_is_said_with_a_way_out(tmp_path, capsys):
    """A network of the layers that the message proposes has the ratio; that of a volume of few voxels is too large."""
    np.save(tmp_path / "v.npy", slanted((40, 36, 32)))
    briefly = ("--n_passes", 0.05, "--compression_ratio", 50)
    train(tmp_path / "v.npy", tmp_path, *briefly, "--n_layers", 8)
    said = re.search(r"out of reach: .* a ratio of 11\.8: --n_layers (\d) gives", capsys.readouterr().err)
    state = train(tmp_path / "v.npy", tmp_path, *briefly, "--n_layers", said[1]).state
    assert sum(t.numel() for t in state.values()) <= 40 * 36 * 32 / 50
    assert "out of reach" not in capsys.readouterr().err
    np.save(tmp_path / "v.npy", slanted((8, 7, 5)))
    train(tmp_path / "v.npy", tmp_path, *briefly)
    assert "more parameters than the volume has values, 280" in capsys.readouterr().err


def test_w0_is_the_frequency_of_the_first_layer(volume_file, tmp_path):
    """It scales the first layer's weights, and no others: the stored network evaluates with omega 30."""
    one, two = (train(volume_file, tmp_path, "--lr", 1e-12, "--w0", w0) for w0 in (6.0, 12.0))
    for name, tensor in one.state.items():
        factor = 2.0 if name == "net_layers.0.linear.weight" else 1.0
        np.testing.assert_allclose(two.state[name], factor * tensor, rtol=1e-5, atol=1e-8)
    bound = 6.0 / 30.0 / 3
    assert 0.8 * bound < one.state["net_layers.0.linear.weight"].abs().max() <= 1.001 * bound
    assert (one.settings["w0"], two.settings["w0"]) == (6.0, 12.0)
    assert one.settings["omega_0"] == two.settings["omega_0"] == 30.0


def test_without_w0_the_first_layer_starts_as_waves_along_the_axes(tmp_path):
    """The whole way: a symmetric volume starts symmetric."""
    x, y, z = np.indices((12, 9, 10))
    state = train((np.cos((x - 5.5) / 2) * y + z**1.5).astype(np.float32), tmp_path, "--lr", 1e-12).state
    weight, bias = (state[f"net_layers.0.linear.{name}"] for name in ("weight", "bias"))
    assert ((weight.abs() > 1e-6).sum(1) == 1).all()
    phases = [torch.sin(30 * bias[axis::3]) for axis in range(3)]
    np.testing.assert_allclose(phases[0], torch.ones(len(phases[0])), rtol=0, atol=1e-5)  # cosines only
    for phase in phases[1:]:
        np.testing.assert_allclose(phase, torch.arange(len(phase)) % 2.0, rtol=0, atol=1e-5)


def test_lr(volume_file, tmp_path):
    """One step of Adam moves every weight by lr."""
    start, small, large = (
        train(volume_file, tmp_path, "--optimizer", "adam", "--schedule", "step", *once, "--lr", lr).state
        for once in [("--n_passes", 1, "--batchSize", 500)]
        for lr in (1e-12, 1e-4, 1e-3)
    )
    assert distance(start, small) == pytest.approx(1e-4, rel=0.02)
    assert distance(start, large) == pytest.approx(1e-3, rel=0.02)


@pytest.fixture
def recipes(monkeypatch):
    """The recipe of every fit of the test."""
    found, new_fit = [], shapes.new_fit
    monkeypatch.setattr(shapes, "new_fit", lambda *arguments: found.append(arguments[2]) or new_fit(*arguments))
    return found


def test_optimizer_and_schedule(volume_file, tmp_path, recipes):
    for optimizer in choices_of("--optimizer"):
        for schedule in choices_of("--schedule"):
            train(volume_file, tmp_path, "--optimizer", optimizer, "--schedule", schedule)
            assert (recipes[-1].optimizer, recipes[-1].schedule) == (optimizer, schedule)
    assert len(recipes) == 4


def test_pass_decay_and_lr_decay(volume_file, tmp_path, recipes):
    """Either alone asks for the schedule of steps."""
    for flags, expected in (
        (("--pass_decay", 3, "--lr_decay", 0.5), ("step", 3.0, 0.5)),
        (("--lr_decay", 0.5), ("step", 20.0, 0.5)),
        (("--pass_decay", 3), ("step", 3.0, 0.2)),
    ):
        settings = train(volume_file, tmp_path, *flags).settings
        recipe = recipes[-1]
        assert (recipe.schedule, recipe.pass_decay, recipe.lr_decay) == expected
        assert (settings["pass_decay"], settings["lr_decay"]) == expected[1:]


def test_grad_lambda(volume_file, tmp_path):
    """It changes the first step of Adam, which moves every weight by the rate, in the sign of some weights."""
    choices = (), ("--grad_lambda", 0), ("--grad_lambda", 10)
    flags = ("--optimizer", "adam", "--schedule", "step", "--lr", 1e-3, "--n_passes", 1, "--batchSize", 500)
    without, also, with_term = (train(volume_file, tmp_path, *flags, *more).state for more in choices)
    assert distance(without, also) == 0 and distance(without, with_term) == pytest.approx(2e-3, rel=0.05)


@pytest.mark.parametrize(("batch", "oversample"), [(10, 3), (30, 1), (1000, 4)])
def test_batch_size_times_oversample_samples_a_step(volume_file, tmp_path, batch, oversample):
    steps = steps_of(volume_file, tmp_path, "--batchSize", batch, "--oversample", oversample, "--n_passes", 2)
    size = batch * oversample
    assert len(steps) == 2 * -(-315 // size)
    assert min(315, size) - 2 <= max(map(len, steps)) <= size


def test_defaults_of_a_fit_are_settled(volume_file, tmp_path):
    """1,500 steps, each of which is a pass, at 0.4 / (16 x 2); a low target ends them early."""
    train_script.main(["--volume", str(volume_file), "--n_layers", "1", "--target_psnr", "1"])
    settings = json.loads((tmp_path / "thenet.json").read_text())
    assert (settings["n_passes"], settings["lr"], settings["oversample"]) == (1500, pytest.approx(0.0125), 2)


def test_max_seconds(volume_file, tmp_path, monkeypatch):
    """By a clock that goes on by 0.01 seconds at every look."""
    argv = ("--volume", str(volume_file), "--n_layers", "2", "--max_seconds", "0.495")
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 0.01).__next__)
    with monkeypatch.context() as patch, watched_samples() as steps:
        patch.setattr(loop, "time", clock)
        train_script.main([*argv])
    seconds = json.loads((tmp_path / "thenet.json").read_text())["seconds"]
    assert len(steps) == 50 and seconds == pytest.approx(0.5)


def test_seed(volume_file, tmp_path):
    (tmp_path / "b").mkdir()
    runs = [train(volume_file, folder, "--n_layers", 1, "--seed", 7) for folder in (tmp_path, tmp_path / "b")]
    assert runs[0].data == runs[1].data
    blobs = [compress(run, run.network.parent / "blob") for run in runs]
    assert blobs[0] == blobs[1]
    varying = ("time", "seconds", "options")
    left, right = ({k: v for k, v in run.settings.items() if k not in varying} for run in runs)
    assert left == right
    start, elsewhere = (train(volume_file, tmp_path, "--seed", seed, "--lr", 1e-12).state for seed in (7, 8))
    assert distance(start, elsewhere) > 1e-2  # where the weights start, not the order of the samples alone
    other = train(volume_file, tmp_path, "--n_layers", 1, "--seed", 8)
    assert distance(other.state, runs[0].state) > 1e-3
    assert compress(other, tmp_path / "blob") != blobs[0]


def test_the_weights_file_tells_nothing_of_the_run(volume_file, tmp_path):
    """No process id or temporary name inside: another process with the same seed writes the same bytes."""
    trained = train(volume_file, tmp_path)
    with zipfile.ZipFile(trained.network) as archive:
        names = " ".join(archive.namelist())
    assert str(os.getpid()) not in names and "tmp" not in names


def test_two_axes(tmp_path):
    image = slanted((12, 8))
    trained = train(image, tmp_path, "--d_in", 2, *WELL)
    assert trained.state["net_layers.0.linear.weight"].shape == (16, 2)
    assert trained.settings["shape"] == [12, 8] and len(trained.settings["spacing"]) == 2
    compress(trained, tmp_path / "blob", "--cluster_bits", 12)
    found = decompress(tmp_path / "blob", tmp_path / "image.vti")
    assert found.shape == (12, 8, 1)
    assert np.abs(found[..., 0] - image).max() < 0.05 * np.ptp(image)


def test_three_components(tmp_path, capsys):
    """Each comes back in its place and its own range. Those of a .vti need no flag."""
    base = slanted((6, 5, 4))
    array = np.stack([base, 1000 - 5 * base, np.full_like(base, 7)], axis=-1)
    vtk_write(tmp_path / "v.vti", array, name="velocity")
    trained = train(tmp_path / "v.vti", tmp_path, *WELL, "--enable-vol-debug")
    assert trained.state["net_layers.1.weight"].shape == (3, 16)
    assert trained.settings["shape"] == [6, 5, 4] and len(trained.settings["value_range"]) == 3
    printed = results(capsys.readouterr().out)
    assert list(printed)[:4] == ["psnr", "psnr_0", "psnr_1", "psnr_2"] and printed["psnr_2"] == "inf"
    compress(trained, tmp_path / "blob", "--volume", tmp_path / "v.vti", "--n_passes", 1)
    assert "psnr_1" in results(capsys.readouterr().out)
    found = decompress(tmp_path / "blob", tmp_path / "out.npy", "--volume", tmp_path / "v.vti")
    printed = results(capsys.readouterr().out)
    assert found.shape == array.shape and (found[..., 2] == 7).all()
    psnrs = [psnr_of(array[..., c], found[..., c]) for c in range(2)]
    assert min(psnrs) > 30 and [float(printed[f"psnr_{c}"]) for c in range(2)] == pytest.approx(psnrs, abs=1e-3)
    assert float(printed["psnr"]) == pytest.approx(-10 * np.log10(sum(10 ** (-p / 10) for p in psnrs) / 3), abs=1e-3)
    np.testing.assert_array_equal(vtk_read(tmp_path / "gt.vti").array, array)
    np.testing.assert_array_equal(decompress(tmp_path / "blob", tmp_path / "out.vti"), found)


@pytest.mark.parametrize("option", [("--lr", 1e7), ("--w0", 1e7), ("--grad_lambda", 1e7), ("--lr_decay", 1.5)])
def test_numbers_that_no_fit_bears_are_refused(volume_file, tmp_path, option):
    with pytest.raises(UserError, match=f"{option[0]}: expected a number .* at most .*, found '{option[1]}'"):
        train(volume_file, tmp_path, *option)


def test_num_workers(volume_file, tmp_path, monkeypatch):
    """So many threads work; what comes out is the same."""
    monkeypatch.setattr("training.gradient.LEAST_PART", (100, 1))
    alone = train(volume_file, tmp_path, "--num_workers", 1)
    pools = []
    executor = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", lambda n, **k: pools.append(n) or executor(n, **k))
    together = train(volume_file, tmp_path, "--num_workers", 2)
    assert max(pools) == 2
    assert distance(alone.state, together.state) == 0


def test_vol_debug(tmp_path):
    """gt.vti and vol.vti lie beside the network, in the volume's own units and geometry; only when asked for."""
    array = slanted((9, 7, 5))
    vtk_write(tmp_path / "v.vti", array, (0.5, 2.0, 3.0), (-1.0, 10.0, 0.25), name="sf")
    trained = train(tmp_path / "v.vti", tmp_path, *WELL, "--enable-vol-debug", "--disable-vol-debug")
    assert not (tmp_path / "gt.vti").exists() and not (tmp_path / "vol.vti").exists()
    again = train(tmp_path / "v.vti", tmp_path, *WELL, "--enable-vol-debug")
    assert again.data == trained.data
    assert trained.settings["spacing"] == [0.5, 2.0, 3.0] and trained.settings["origin"] == [-1.0, 10.0, 0.25]
    for name in ("gt.vti", "vol.vti"):
        found = vtk_read(tmp_path / name)
        assert found.dimensions == (9, 7, 5) and found.name == "sf" and found.type == "float"
        assert found.spacing == (0.5, 2.0, 3.0) and found.origin == (-1.0, 10.0, 0.25)
    np.testing.assert_array_equal(vtk_read(tmp_path / "gt.vti").array, array)
    psnr = psnr_of(array, vtk_read(tmp_path / "vol.vti").array)
    assert psnr == pytest.approx(trained.settings["psnr"], abs=1e-3) and psnr > 35


# --- net_compress.py and net_decompress.py: every flag acts -----------------------------------------


@pytest.mark.parametrize("name", ["folder/", ".", "folder/.."])
def test_recon_without_a_name_is_refused(chain, tmp_path, name):
    """With a suffix it would be a hidden file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "p.csv").write_text("1,2,3\n")
    before = listing(tmp_path)
    for flags in ((), ("--points", "p.csv")):
        said = error_of(net_decompress.main, "--compressed", chain.blob, "--recon", name, *flags)
        assert said == f"--recon: expected the name of a file to write, found {name!r}"
    assert listing(tmp_path) == before


def test_recon_is_refused_before_it_is_evaluated(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(net_decompress.NeuralField, "on_grid", None)
    (tmp_path / "out.raw").write_bytes(chain.blob.read_bytes())
    main, flags = net_decompress.main, ("--compressed", tmp_path / "out.raw", "--recon")
    assert "ends in _9x7x5_float32.raw" in error_of(main, *flags, tmp_path / "out_9x7x5_uint8.raw")
    assert "would overwrite" in error_of(main, *flags, tmp_path / "out.mhd")
    assert "cannot write .stl files" in error_of(main, *flags, tmp_path / "out.stl")
    assert set(listing(tmp_path)) == {"out.raw"}


def test_float(tmp_path, capsys):
    """Integers come back rounded in their own type, and are measured so; with --float they are what was rounded."""
    array = (slanted((9, 7, 5)) * 4).astype(np.uint8)
    rounded = round_trip(array, tmp_path, *WELL)
    assert rounded.dtype == np.uint8 and np.abs(rounded.astype(int) - array).max() < 0.03 * np.ptp(array) + 0.5
    unrounded = decompress(tmp_path / "blob", tmp_path / "f.npy", "--float")
    assert unrounded.dtype == np.float32 and np.abs(unrounded - np.rint(unrounded)).max() > 0.2
    np.testing.assert_array_equal(np.rint(unrounded), rounded)
    assert rounded.min() >= array.min() and rounded.max() <= array.max()
    capsys.readouterr()
    decompress(tmp_path / "blob", tmp_path / "out.npy", "--volume", tmp_path / "in.npy")
    found = results(capsys.readouterr().out)
    assert float(found["max_error"]) == np.abs(rounded.astype(int) - array).max()
    assert float(found["source_ratio"]) == pytest.approx(315 / (tmp_path / "blob").stat().st_size, abs=6e-3)


def test_options_that_make_no_sense_together(chain, tmp_path):
    files = ("--net", chain.network, "--config", chain.config, "--compressed", tmp_path / "b")
    assert "--volume" in error_of(net_compress.main, *files, "--n_passes", 3)
    assert "uniform" in error_of(net_compress.main, *files, "--quantizer", "kmeans", "--n_passes", 3)
    assert "not both" in error_of(train_script.main, "--volume", "v", "--n_passes", 3, "--max_seconds", 3)
    for flags in (("--recon", "r.vti"), ("--volume", "v.npy"), ("--time", 0), ("--gradient",)):
        said = error_of(net_decompress.main, chain.blob, "--info", *flags)
        assert said.startswith(f"--info and {flags[0]}: give one of them")
    assert "--schedule" in error_of(train_script.main, "--volume", "v", "--schedule", "power", "--lr_decay", 0.5)


def test_array_shape_dtype_and_endian(tmp_path):
    """All three scripts read the same volume by them."""
    array = slanted((9, 7, 5))
    np.save(tmp_path / "v.npy", array)
    array.astype(">f4").ravel(order="F").tofile(tmp_path / "v.raw")
    vtk_write(tmp_path / "v.vti", {"p": -array, "q": array})
    small = ("--n_layers", 1)
    expected = train(tmp_path / "v.npy", tmp_path, *small)
    blob = compress(expected, tmp_path / "blob", "--volume", tmp_path / "v.npy", "--n_passes", 1)
    decoded = decompress(tmp_path / "blob", tmp_path / "out.npy")
    raw = ("--shape", "9,7,5", "--dtype", "float32", "--endian", "big")
    for name, flags, field in (("v.raw", raw, "sf"), ("v.vti", ("--array", "q"), "q")):
        trained = train(tmp_path / name, tmp_path, *small, *flags)
        assert distance(trained.state, expected.state) == 0
        assert trained.settings["value_range"] == expected.settings["value_range"]
        assert trained.settings["name"] == field
        again = compress(trained, tmp_path / "again", "--volume", tmp_path / name, *flags, "--n_passes", 1)
        assert (again == blob) == (field == "sf")
        np.testing.assert_array_equal(
            decompress(tmp_path / "again", tmp_path / "out.npy", "--volume", tmp_path / name, *flags), decoded
        )


def test_options_of_a_volume_that_is_not_there(chain, tmp_path):
    files = ("--net", chain.network, "--config", chain.config, "--compressed", tmp_path / "b")
    for option in (("--array", "T"), ("--shape", "4,3,2"), ("--dtype", "uint8"), ("--endian", "big")):
        assert f"{option[0]} needs the --volume" in error_of(net_compress.main, *files, *option)
        said = error_of(net_decompress.main, "--compressed", chain.blob, "--recon", tmp_path / "r.npy", *option)
        assert f"{option[0]} needs the --volume" in said
    volume = ("--volume", chain.volume)
    blob = ("--compressed", chain.blob)
    for main, rest in ((train_script.main, ()), (net_compress.main, files), (net_decompress.main, blob)):
        assert "--endian describe headerless files" in error_of(main, *rest, *volume, "--endian", "big")
        for shape in ("4,3,2,1,1", "0,3,2", "-1,3,2", "a", "", "4,,2", "4 3 2", "²,1,1", "9" * 5000):
            assert "--shape" in error_of(main, *rest, *volume, "--shape", shape, "--dtype", "uint8")
        assert "--dtype" in error_of(main, *rest, *volume, "--shape", "4,3,2", "--dtype", "complex64")
        assert "--array" in error_of(main, *rest, *volume, "--array", "T")


def test_another_volume_is_refused(tmp_path):
    """Of the same shape and maximum, but not of the same minimum."""
    volume = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    trained = train(volume, tmp_path)
    volume[0, 0, 0] = -5
    np.save(tmp_path / "other.npy", volume)
    files = ("--net", trained.network, "--config", trained.config, "--compressed", tmp_path / "b")
    said = error_of(net_compress.main, *files, "--volume", tmp_path / "other.npy")
    assert "other.npy" in said and "-5" in said and not (tmp_path / "b").exists()
