"""The three scripts: what every flag does."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import os
import re
import shlex
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.cut_fields import cut_blob
from helpers.networks import field_net, make_blob, make_header, watched_samples, zero_network
from helpers.original import original_blob
from helpers.scripts import WELL, compress, decompress, error_of, listing, results, round_trip, stored, train
from helpers.volumes import psnr_of, slanted
from helpers.vtk import vtk_read, vtk_write

import net_compress
import net_decompress
import train as train_script
from cli.files import size_text
from field import options as decompress_options
from field.blob import encode_blob
from field.header_chunks import Written
from training import fitting, long_runs, options, shapes
from training.sampler import VoxelSampler
from utils import Geometry, UserError, VolumeHeader

pytestmark = pytest.mark.usefixtures("quick_vtk")
ORIGINAL_KEYS = [
    *("grad_lambda", "n_layers", "layers", "w0", "compression_ratio", "batchSize", "oversample", "lr"),
    *("n_passes", "pass_decay", "lr_decay", "is_residual", "is_cuda", "time"),
]


def distance(a: dict, b: dict) -> float:
    """The largest difference of two state dicts."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


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


def test_train_reports(volume_file, tmp_path, capsys):
    trained = train(volume_file, tmp_path)
    out = capsys.readouterr().out
    found = results(out)
    n_parameters = sum(t.numel() for t in trained.state.values())
    assert found["parameters"] == str(n_parameters)
    assert float(found["compression_ratio"]) == pytest.approx(315 / n_parameters, abs=0.005)
    assert float(found["psnr"]) == pytest.approx(trained.settings["psnr"], abs=5e-4)
    assert "seconds" in found and found["network"] == str(trained.network)
    assert re.search(r"^next: python net_compress\.py --net .* --volume ", out, re.MULTILINE)


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


def test_names_that_need_not_be_typed(tmp_path, capsys):
    """Each script finds what the one before wrote; a blob may be given without --compressed, but no other file."""
    stored("waves", tmp_path)
    net_compress.main(["--cluster_bits", "6"])
    assert "next: python net_decompress.py\n" in capsys.readouterr().out
    net_compress.main(["b.nvc", "--cluster_bits", "6"])
    assert (tmp_path / "compressed_out").read_bytes() == (tmp_path / "b.nvc").read_bytes()
    for blob in ([], ["b.nvc"], ["--compressed", "b.nvc"]):
        net_decompress.main([*blob, "--recon", "r.mhd"])
        found = results(capsys.readouterr().out)
        assert (found["recon"], found["voxels"]) == ("r.mhd", "r.raw")
    net_compress.main(["b.nvc", "--cluster_bits", "5"])  # replaces a blob
    assert "is no blob" in error_of(net_compress.main, "r.raw")
    assert "give one blob" in error_of(net_decompress.main, "b.nvc", "--compressed", "b.nvc")


def test_info_tells_what_a_blob_holds(tmp_path, capsys):
    """Without the files of a decoding; of a blob of the original scripts, what that holds."""

    def info(data: bytes) -> dict[str, str]:
        (tmp_path / "b").write_bytes(data)
        net_decompress.main([str(tmp_path / "b"), "--info"])
        assert listing(tmp_path) == {"b": data}
        return results(capsys.readouterr().out)

    geometry = Geometry((2.0, float(np.float32(0.8)), 1.5, 1.0), (3.0, -1.0, 0.0, 7.0), name="T", units="K")
    header = VolumeHeader((5, 6, 4, 3), np.array([-3], np.int16), np.array([900], np.int16), geometry)
    data = encode_blob(header, [zero_network(d_in=4)], Written((1, 0), 40.6))
    assert info(data) == {
        **{"shape": "6,4,3", "type": "int16", "name": "T", "units": "K", "spacing": "0.8,1.5,1", "origin": "-1,0,7"},
        **{"times": "5", "first_time": "3", "last_time": "11", "range": "-3,900", "layers": "1", "width": "2"},
        **{"parameters": "13", "bytes": str(len(data)), "bits_per_weight": f"{8 * len(data) / 13:.3f}"},
        **{"file_ratio": f"{4 * 360 / len(data):.2f}", "source_ratio": f"{2 * 360 / len(data):.2f}"},
        **{"psnr": "40.60", "version": "1.0"},
    }
    since = dataclasses.replace(geometry, spacing=(0.1, 1.0, 1.0, 1.0), origin=(1700000001.0, 0.0, 0.0, 0.0))
    found = info(encode_blob(dataclasses.replace(header, geometry=since), [zero_network(d_in=4)]))
    assert (found["first_time"], found["last_time"]) == ("1700000001", "1700000001.4")
    assert info(original_blob(np.random.default_rng(0), 8, 6, 3, True)[0])["version"] == "the original scripts"
    shifted = make_header((5, 4, 3), 1e6, 1e6 + 1e-3, "float64")
    assert info(encode_blob(shifted, [zero_network(d_in=3)]))["range"] == "1e+06,1000000.001"
    found = info(cut_blob((9, 7, 5), (2, 1, 3), constant=(0, 4)))
    assert (found["bricks"], found["constant_bricks"], found["width"]) == ("2,1,3", "2", "3")
    assert found["parameters"] == str(4 * (3 * 4 + 2 * 3 * 4 + 4))


@pytest.mark.parametrize("script", [train_script, net_compress, net_decompress])
def test_help_ends_with_examples_that_are_right(script, capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as ended:
            script.main([flag])
        assert not ended.value.code
    said = capsys.readouterr().out
    assert re.search(r"^\S+ \d+\.\d+$", said, re.MULTILINE)
    examples = [shlex.split(line) for line in said.splitlines()[-2:]]
    parse = options.parse if script is train_script else script.parse
    for python, name, *argv in examples:
        assert (python, name.removesuffix(".py")) == ("python", script.__name__)
        parse(argv)


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


def test_target_psnr(volume_file, tmp_path):
    """Training ends long before its last pass."""
    with watched_samples() as steps:
        trained = train(volume_file, tmp_path, *WELL, "--n_passes", 4000, "--target_psnr", 30)
    assert trained.settings["psnr"] >= 30 and sum(map(len, steps)) < 2000 * 315


def test_max_seconds(volume_file, tmp_path, monkeypatch):
    """By a clock that goes on by 0.01 seconds at every look."""
    argv = ("--volume", str(volume_file), "--n_layers", "2", "--max_seconds", "0.495")
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 0.01).__next__)
    with monkeypatch.context() as patch, watched_samples() as steps:
        patch.setattr(fitting, "time", clock)
        train_script.main([*argv])
    seconds = json.loads((tmp_path / "thenet.json").read_text())["seconds"]
    assert len(steps) == 50 and seconds == pytest.approx(0.5)


def interrupt_at(monkeypatch, step):
    """Press Ctrl-C when the training comes to that step."""
    original, count = VoxelSampler.samples, iter(range(1, 10**9))

    def samples(self, flat):
        if next(count) == step:
            raise KeyboardInterrupt
        return original(self, flat)

    monkeypatch.setattr(VoxelSampler, "samples", samples)


def test_checkpoint_and_resume(volume_file, tmp_path, monkeypatch):
    """An interrupted run that is resumed ends with the bytes of one that was not."""
    (tmp_path / "whole").mkdir()
    whole = train(volume_file, tmp_path / "whole", "--n_passes", 4)
    checkpoint = ("--checkpoint", tmp_path / "state")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(long_runs, "CHECKPOINT_SECONDS", 0.0)
        interrupt_at(patch, 7)
        train(volume_file, tmp_path, "--n_passes", 4, *checkpoint)
    assert not (tmp_path / "thenet.pth").exists()
    for other in (("--n_passes", 5), ("--n_passes", 4, "--seed", 3), ("--n_passes", 4, "--lr", 1e-5)):
        with pytest.raises(UserError, match="state: is of another run"):
            train(volume_file, tmp_path, *checkpoint, "--resume", *other)
    monkeypatch.setattr(shapes, "waves_of", lambda *_: pytest.fail("looks for a start that the checkpoint has"))
    with watched_samples() as steps:
        resumed = train(volume_file, tmp_path, "--n_passes", 4, *checkpoint, "--resume")
    assert len(steps) == 4 * 5 - 6
    assert distance(resumed.state, whole.state) == 0


def test_the_chosen_depth_is_told_and_kept_when_resumed(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "v.npy", slanted((12, 12, 12)))
    monkeypatch.setattr(shapes, "LEAST_STEPS", 20)
    monkeypatch.setattr(shapes, "score", lambda trial: -abs(trial.start.config.n_layers - 5))

    def run(name, *flags):
        files = ("--network", tmp_path / f"{name}.pth", "--config", tmp_path / f"{name}.json")
        briefly = ("--n_passes", 10, "--batchSize", 864, "--compression_ratio", 0.4)
        train_script.main([str(a) for a in ("--volume", tmp_path / "v.npy", *files, *briefly, *flags)])
        return torch.load(tmp_path / f"{name}.pth", weights_only=True)

    with watched_samples() as steps:
        whole = run("whole")
    assert len(steps) == 4 + 20
    assert results(capsys.readouterr().out)["n_layers"] == "5"
    settings = json.loads((tmp_path / "whole.json").read_text())
    assert settings["n_layers"] == len(settings["layers"]) == 5 and settings["n_parameters"] <= 1728 / 0.4
    checkpoint = ("--checkpoint", tmp_path / "state")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(long_runs, "CHECKPOINT_SECONDS", 0.0)
        interrupt_at(patch, 15)
        run("part", *checkpoint)
    with watched_samples() as steps:
        resumed = run("part", *checkpoint, "--resume")
    assert len(steps) == 10
    assert distance(resumed, whole) == 0


def test_resume_needs_a_checkpoint(volume_file, tmp_path):
    argv = ("--volume", volume_file, "--n_layers", 1, "--resume")
    assert "--checkpoint" in error_of(train_script.main, *argv)
    (tmp_path / "bad").write_bytes(b"hello")
    torch.save({"identity": 1}, tmp_path / "foreign")
    for name in ("missing", "bad", "foreign"):
        message = error_of(train_script.main, *argv, "--checkpoint", tmp_path / name)
        assert message.startswith(f"{tmp_path / name}: ")
    assert set(listing(tmp_path)) == {"volume.npy", "bad", "foreign"}


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


def test_three_components(tmp_path):
    """Each comes back in its place and its own range."""
    base = slanted((6, 5, 4))
    array = np.stack([base, 1000 - 5 * base, np.full_like(base, 7)], axis=-1)
    trained = train(array, tmp_path, "--d_out", 3, *WELL, "--enable-vol-debug")
    assert trained.state["net_layers.1.weight"].shape == (3, 16)
    assert trained.settings["shape"] == [6, 5, 4] and len(trained.settings["value_range"]) == 3
    compress(trained, tmp_path / "blob", "--cluster_bits", 12)
    found = decompress(tmp_path / "blob", tmp_path / "out.npy")
    assert found.shape == array.shape and (found[..., 2] == 7).all()
    for c in range(2):
        assert np.abs(found[..., c] - array[..., c]).max() < 0.05 * np.ptp(array[..., c])
    np.testing.assert_array_equal(vtk_read(tmp_path / "gt.vti").array, array)
    np.testing.assert_array_equal(decompress(tmp_path / "blob", tmp_path / "out.vti"), found)


def test_a_network_no_better_than_a_constant_is_warned_of(tmp_path, capsys):
    values = np.random.default_rng(0).random((12, 10, 8), np.float32)
    train(values, tmp_path, "--n_passes", 0.5)
    constant = -20 * np.log10(values.std() / np.ptp(values))
    warning = r"train\.py: warning: the network has (\S+) dB, where a constant volume would have (\S+) dB"
    said = re.search(warning, capsys.readouterr().err)
    assert float(said[1]) < constant + 1 and float(said[2]) == pytest.approx(constant, abs=0.06)
    train(slanted((9, 7, 5)), tmp_path, *WELL)
    assert "a constant volume" not in capsys.readouterr().err


@pytest.mark.parametrize("mark", [255, 16, None])
def test_a_likely_fill_value_is_named_beside_bad_quality(tmp_path, capsys, mark):
    """Not where it is the least of values that lie close to each other."""
    values = np.random.default_rng(0).integers(16, 50, (12, 10, 8)).astype(np.uint8)
    if mark is not None:
        values[:3] = mark
    train(values, tmp_path, "--n_passes", 0.1)
    assert ("--fill 255" in (said := capsys.readouterr().err)) == (mark == 255) and "a constant volume" in said
    assert "--fill 16" not in said


def test_a_single_voxel_is_no_fill_value(tmp_path, capsys):
    train(np.array([0, 50, 57, 61, 100]).reshape(5, 1, 1), tmp_path, "--n_passes", 0.1)
    assert "--fill" not in (said := capsys.readouterr().err) and "a constant volume" in said


def test_a_decoded_volume_has_the_psnr_of_its_blob(tmp_path, capsys):
    """Under a key of its own, as this run measured nothing; not a part of the volume."""
    data = encode_blob(make_header((5, 4, 3)), [zero_network(d_in=3)], Written((1, 0), 40.6))
    (tmp_path / "b").write_bytes(data)
    for option, expected in ((), "40.60"), (("--roi", ":,1:,:"), None):
        net_decompress.main([str(tmp_path / "b"), "--recon", str(tmp_path / "r.vti"), *option])
        found = results(capsys.readouterr().out)
        assert found.get("psnr_when_written") == expected and "psnr" not in found


def test_a_rounding_that_costs_much_is_told(chain, tmp_path, capsys):
    for bits, is_told in ((2, True), (12, False)):
        compress(chain, tmp_path / "b", "--cluster_bits", bits)
        assert ("rounding has cost about" in capsys.readouterr().err) == is_told


def test_decompress_doubts_a_volume_of_the_same_range(chain, tmp_path, capsys):
    compress(chain, tmp_path / "b", "--n_passes", 0, "--volume", chain.volume)
    decompress(tmp_path / "b", tmp_path / "r.npy", "--volume", chain.volume)
    assert "is it the volume" not in capsys.readouterr().err
    np.save(tmp_path / "other.npy", np.load(chain.volume)[::-1])
    decompress(tmp_path / "b", tmp_path / "r.npy", "--volume", tmp_path / "other.npy")
    assert "is it the volume that it was made of?" in capsys.readouterr().err


def test_a_rounding_that_spoils_exact_integers_is_told(tmp_path, capsys):
    exact = stored("labels_exact", tmp_path)
    for bits, is_told in (((), False), (("--cluster_bits", 2), True)):
        compress(exact, tmp_path / "b", *bits)
        assert ("rounding has cost about" in capsys.readouterr().err) == is_told


def test_an_earlier_checkpoint_is_not_replaced_without_a_word(volume_file, tmp_path, capsys):
    """One that this run has not written is no result of it."""
    (tmp_path / "state").write_bytes(b"of an earlier run")
    train(volume_file, tmp_path, "--checkpoint", tmp_path / "state")
    out, error = capsys.readouterr()
    assert "state: will be replaced: --resume continues its run instead" in error and "checkpoint=" not in out


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
    trained = train(tmp_path / "v.vti", tmp_path, *WELL)
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


def test_vol_debug_off(volume_file, tmp_path):
    train(volume_file, tmp_path, "--enable-vol-debug", "--disable-vol-debug")
    assert set(listing(tmp_path)) == {"volume.npy", "thenet.pth", "thenet.json"}


@pytest.mark.parametrize("module", [options, net_compress, decompress_options])
def test_help_states_the_defaults(module):
    parser = module.build_parser()
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        if action.default is not None and not isinstance(action.default, bool) and action.default != "==SUPPRESS==":
            assert re.search(rf"{action.option_strings[0]} .*?\(default: {re.escape(str(action.default))}\)", text)
            assert "(default" not in action.help, action.dest  # it would be there twice
    assert "(default: None)" not in text
    titles = [group.title for group in parser._action_groups if group._group_actions]
    assert "input and output" in titles


# --- net_compress.py and net_decompress.py: every flag acts -----------------------------------------


def test_compress_reports(chain, tmp_path, capsys):
    size = len(compress(chain, tmp_path / "my blob"))
    out = capsys.readouterr().out
    found = results(out)
    n_parameters = sum(t.numel() for t in chain.state.values())
    assert found["bytes"] == str(size)
    assert float(found["bits_per_weight"]) == pytest.approx(8 * size / n_parameters, abs=6e-4)
    assert float(found["file_ratio"]) == pytest.approx(4 * 315 / size, abs=6e-3)
    assert "next: python net_decompress.py --compressed " in out


def test_decompress_reports_what_it_wrote(chain, tmp_path, capsys):
    array = decompress(chain.blob, tmp_path / "out.npy", "--volume", chain.volume)
    found = results(capsys.readouterr().out)
    difference = array.astype(float) - slanted((9, 7, 5))
    rmse = np.sqrt(np.mean(difference**2))
    assert float(found["psnr"]) == pytest.approx(20 * np.log10(40 / rmse), abs=1e-3)
    assert float(found["rmse"]) == pytest.approx(rmse, rel=1e-5)
    assert float(found["max_error"]) == pytest.approx(np.abs(difference).max(), rel=1e-5)
    assert float(found["file_ratio"]) == pytest.approx(4 * 315 / chain.blob.stat().st_size, abs=6e-3)
    assert found["recon"] == str(tmp_path / "out.npy")
    decompress(chain.blob, tmp_path / "out.npy")
    assert "psnr" not in results(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["r.npy", "r.zarr", "r.mhd", "r.vti"])
def test_the_line_for_people_has_the_size_of_all_that_was_written(name, tmp_path, monkeypatch, capsys):
    """Of what a folder holds, of voxels beside their header, of the steps that a list names, r.pvd here."""
    shape = (3, 6, 5, 4) if name == "r.vti" else (60, 50, 40)
    blob = make_blob(make_header(shape), field_net(d_in=len(shape)))
    (tmp_path / "a.nvc").write_bytes(blob)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    net_decompress.main(["a.nvc", "--recon", name])
    size = size_text(sum(len(content) for path, content in listing(tmp_path).items() if path != "a.nvc"))
    assert f" -> {name.replace('.vti', '.pvd')}  {size}" in capsys.readouterr().out


def test_recon_without_suffix_is_vti(chain, tmp_path):
    net_decompress.main(["--compressed", str(chain.blob)])
    net_decompress.main(["--compressed", str(chain.blob), "--recon", "other"])
    found = listing(tmp_path)
    assert set(found) == {"recon.vti", "other.vti"} and found["recon.vti"] == found["other.vti"]


@pytest.mark.parametrize("name", ["", "folder/", ".", "folder/.."])
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


def test_an_interrupted_long_run_leaves_its_network(volume_file, tmp_path, monkeypatch):
    """Ctrl-C after a while: the network so far under a name of its own, the previous one untouched."""
    before = train(volume_file, tmp_path)
    monkeypatch.setattr("training.long_runs.LONG_SECONDS", 0.0)

    def interrupt(fit, *_):
        fit.step, fit.seconds = 1, 1.0
        raise KeyboardInterrupt

    monkeypatch.setattr(train_script, "run_fit", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"the network so far, .* trained, is in .*thenet\.interrupted\.pth"):
        train(volume_file, tmp_path, "--seed", 1)
    assert before.network.read_bytes() == before.data
    left = SimpleNamespace(network=tmp_path / "thenet.interrupted.pth", config=tmp_path / "thenet.interrupted.json")
    assert json.loads(left.config.read_text())["psnr"] is None  # not known
    compress(left, tmp_path / "blob")
    assert decompress(tmp_path / "blob", tmp_path / "r.npy").shape == np.load(volume_file).shape


@pytest.mark.parametrize("error", [UserError("no memory"), RuntimeError("a bug")])
def test_what_is_trained_is_not_lost_for_an_error(error, volume_file, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise error

    monkeypatch.setattr("training.long_runs.LONG_SECONDS", 0.0)
    monkeypatch.setattr("training.quality.Judge.quality", fails)
    with pytest.raises(type(error)) as found:
        train(volume_file, tmp_path)
    assert "the network so far, 100% trained, is in" in str(found.value) + capsys.readouterr().err
    left = SimpleNamespace(network=tmp_path / "thenet.interrupted.pth", config=tmp_path / "thenet.interrupted.json")
    compress(left, tmp_path / "blob")
    assert not (tmp_path / "thenet.pth").exists()


def test_an_error_after_the_network_is_written_names_it(volume_file, tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("no space")

    monkeypatch.setattr(train_script, "write_volume", fails)
    with pytest.raises(UserError, match=r"no space: the network is in .*thenet\.pth"):
        train(volume_file, tmp_path, "--enable-vol-debug")


def test_options_that_make_no_sense_together(chain, tmp_path):
    files = ("--net", chain.network, "--config", chain.config, "--compressed", tmp_path / "b")
    assert "--volume" in error_of(net_compress.main, *files, "--n_passes", 3)
    assert "uniform" in error_of(net_compress.main, *files, "--quantizer", "kmeans", "--n_passes", 3)
    assert "not both" in error_of(train_script.main, "--volume", "v", "--n_passes", 3, "--max_seconds", 3)
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
        assert "both --shape and --dtype" in error_of(main, *rest, *volume, "--endian", "big")
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


def test_a_damaged_checkpoint_is_refused(volume_file, tmp_path, monkeypatch):
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "state"
    train(volume_file, tmp_path, "--checkpoint", checkpoint)
    whole = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    whole[entry.header_offset + 200] ^= 1
    checkpoint.write_bytes(whole)
    with pytest.raises(UserError, match="state: expected"):
        train(volume_file, tmp_path, "--checkpoint", checkpoint, "--resume")


def test_a_checkpoint_that_cannot_be_written_ends_no_training(volume_file, tmp_path, monkeypatch, capsys):
    def full(self, fit):
        raise UserError("state: cannot be written: No space left on device")

    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(long_runs.Checkpoint, "save", full)
    trained = train(volume_file, tmp_path, "--n_passes", 2, "--checkpoint", tmp_path / "state")
    assert trained.network.exists()
    said = "train.py: warning: state: cannot be written: No space left on device: the training goes on\n"
    assert capsys.readouterr().err.count(said) > 1


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--optimizer", "adam"), "optimizer was muon, is adam"),
        (("--batchSize", 64), "batchSize was 512, is 64"),
        (("--batchSize", 512, "--oversample", 3), "oversample was 1, is 3"),
        (("--compression_ratio", 49), "compression_ratio was 50.0, is 49.0"),
        (("--seed", 4), "seed was 0, is 4"),
        (("--clip", "21,40"), "clip was None, is 21,40"),
    ],
    ids=str,
)
def test_a_checkpoint_names_the_flag_that_differs(flags, name, volume_file, monkeypatch):
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    same = ("--volume", volume_file, "--n_passes", 4, "--n_layers", 2, "--checkpoint", "state")
    train_script.main([str(a) for a in same])
    assert f"is of another run: {name}" in error_of(train_script.main, *same, *flags, "--resume")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (slanted((24, 20, 28)), "shape was 9,7,5, is 24,20,28"),
        (slanted((9, 7, 5))[..., None] * np.ones(2, "f4"), "d_out was 1, is 2"),
        (slanted((9, 7, 5))[::-1] + 1, "the volume has other values"),
    ],
    ids=["shape", "components", "values"],
)
def test_a_checkpoint_names_the_volume_before_what_follows_from_it(array, said, monkeypatch):
    """Such as the learning rate, the number of passes and the depth."""
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    np.save("a.npy", slanted((9, 7, 5)))
    np.save("b.npy", array)
    flags = ("--compression_ratio", "9", "--d_in", "3", "--checkpoint", "state", "--seed")
    train_script.main(["--volume", "a.npy", "--n_passes", "2", *flags, "0"])
    message = error_of(train_script.main, "--volume", "b.npy", *flags, 1, "--resume")
    assert f"state: is of another run: {said}: without" in message


def test_the_next_command_can_be_pasted_where_names_begin_with_a_dash(capsys):
    np.save("-lead.npy", slanted((9, 7, 5)))
    small = ["--n_passes", "1", "--n_layers", "2"]
    train_script.main(["--volume=-lead.npy", "--network=-n.pth", "--config=-c.json", *small])
    for script, flags in ((net_compress, ["--compressed=-b", "--n_passes", "1"]), (net_decompress, ["--info"])):
        command = re.search(rf"^next: python {script.__name__}\.py (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
        script.main([*shlex.split(command), *flags])
    assert "9,7,5" in capsys.readouterr().out


def test_the_next_command_reads_the_same_volume(tmp_path, capsys):
    """Whatever it takes; and it makes the smaller file."""
    slanted((9, 7, 5)).ravel(order="F").tofile("a b.raw")
    argv = ("--volume", "a b.raw", "--shape", "9,7,5", "--dtype", "float32", "--endian", "little", "--n_passes", "1")
    train_script.main([*argv, "--n_layers", "2"])
    command = re.search(r"^next: python net_compress\.py (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    net_compress.main([*shlex.split(command), "--n_passes", "1"])
    assert "psnr=" in capsys.readouterr().out and (tmp_path / "compressed_out").exists()
