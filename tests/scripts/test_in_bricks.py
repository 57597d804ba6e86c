"""The three scripts with --bricks: what is written and printed, whatever the volume."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex

import numpy as np
import pytest
from helpers.scripts import compress, decompress, error_of, results, train
from helpers.volumes import psnr_of, slanted

import net_compress
import net_decompress
import train as train_script
from field.neural_field import NeuralField
from training import long_runs, workers
from training.bricked_fit import BrickedFit
from utils import UserError

SMALL = ("--bricks", "2,2,1", "--compression_ratio", 2, "--n_passes", 20, "--num_workers", 1)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A network of four bricks, and a blob of it that was rounded with the volume; not to be changed."""
    folder = tmp_path_factory.mktemp("cut")
    np.save(folder / "volume.npy", slanted((13, 9, 7)))
    trained = train(folder / "volume.npy", folder, *SMALL)
    compress(trained, folder / "blob", "--volume", folder / "volume.npy", "--n_passes", 2, "--num_workers", 1)
    trained.folder, trained.volume, trained.blob = folder, folder / "volume.npy", folder / "blob"
    return trained


def test_what_train_writes(cut):
    entry = cut.settings["bricks"]
    assert entry["counts"] == [2, 2, 1] and len(entry["widths"]) == 4
    weights = {name: tensor for name, tensor in cut.state.items() if name.startswith("bricks.")}
    assert {name.split(".")[1] for name in weights} == {"0", "1", "2", "3"}
    assert cut.settings["n_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert cut.settings["n_parameters"] == pytest.approx(13 * 9 * 7 / 2, rel=0.5)


def test_the_way_through_the_scripts(cut, tmp_path, capsys):
    volume = np.load(cut.volume)
    whole = decompress(cut.blob, tmp_path / "whole.npy", "--volume", cut.volume)
    assert whole.dtype == volume.dtype and float(results(capsys.readouterr().out)["psnr"]) == pytest.approx(
        psnr_of(volume, whole), abs=1e-3
    )
    part = decompress(cut.blob, tmp_path / "part.npy", "--roi", "3:11,2:8,1:6")
    np.testing.assert_allclose(part, whole[3:11, 2:8, 1:6], rtol=0, atol=1e-5 * np.ptp(volume))
    decompress(cut.blob, tmp_path / "whole.vti", "--gradient")


def test_rounding_alone_loses_little(cut, tmp_path, capsys):
    compress(cut, tmp_path / "blob", "--num_workers", 1)
    decoded = NeuralField.open(str(tmp_path / "blob"))[...]
    volume = np.load(cut.volume)
    assert psnr_of(volume, decoded) > cut.settings["psnr"] - 1


def test_any_volume_is_cut(tmp_path):
    """Constant bricks, missing voxels, several components, integers."""
    array = np.stack([slanted((13, 9, 7)), -slanted((13, 9, 7))], axis=-1)
    array = np.rint(array).astype(np.int16)
    array[:7] = 3
    array[9, 3] = -99
    trained = train(array, tmp_path, *SMALL, "--fill", -99, "--d_out", 2)
    assert trained.settings["bricks"]["widths"][:2] == [0, 0]
    compress(trained, tmp_path / "blob", "--num_workers", 1)
    decoded = decompress(tmp_path / "blob", tmp_path / "out.npy")
    assert decoded.dtype == np.int16 and (decoded[:6] == 3).all() and (decoded[9, 3] == -99).all()
    assert ((decoded == -99) == (array == -99)).all()


def test_a_time_series_is_cut_in_space(tmp_path):
    array = np.stack([slanted((7, 6, 5)) * t for t in (1, 2, 3)])
    trained = train(array, tmp_path, *SMALL, "--d_in", 4)
    assert trained.settings["bricks"]["counts"] == [1, 2, 2, 1]
    compress(trained, tmp_path / "blob", "--num_workers", 1)
    assert decompress(tmp_path / "blob", tmp_path / "out.npy").shape == array.shape


def test_of_a_symmetric_volume_one_side_is_held(tmp_path, capsys):
    """The same values, to the last bit, on the other side."""
    half = slanted((9, 9, 7))
    array = np.concatenate([half, half[-2::-1]])
    np.save(tmp_path / "v.npy", array)
    more = train(tmp_path / "v.npy", tmp_path, *SMALL[2:], "--bricks", "12,1,1", "--n_passes", 1)
    assert more.settings["bricks"]["counts"] == [8, 1, 1]
    assert "symmetric along x: bricks hold one side, 8,1,1 at most" in capsys.readouterr().err
    trained = train(tmp_path / "v.npy", tmp_path, *SMALL[2:], "--bricks", "2,1,1")
    assert "symmetric along x: bricks hold one side" in capsys.readouterr().err
    assert trained.settings["bricks"]["mirrors"] == [16, 0, 0] and trained.settings["bricks"]["counts"] == [2, 1, 1]
    compress(trained, tmp_path / "blob", "--volume", tmp_path / "v.npy", "--n_passes", 2, "--num_workers", 1)
    capsys.readouterr()
    decoded = decompress(tmp_path / "blob", tmp_path / "out.npy", "--volume", tmp_path / "v.npy")
    assert float(results(capsys.readouterr().out)["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)
    np.testing.assert_array_equal(decoded, decoded[::-1])
    assert psnr_of(array, decoded) > trained.settings["psnr"] - 4  # brief training while rounding does some harm
    part = decompress(tmp_path / "blob", tmp_path / "part.npy", "--roi", "5:14,2:8,1:6")
    np.testing.assert_allclose(part, decoded[5:14, 2:8, 1:6], rtol=0, atol=1e-5 * np.ptp(array))
    capsys.readouterr()
    net_decompress.main([str(tmp_path / "blob"), "--info"])
    assert results(capsys.readouterr().out)["mirrors"] == "16,0,0"


def test_a_constant_volume_in_bricks(tmp_path):
    trained = train(np.full((5, 5, 5), 2.5, np.float32), tmp_path, "--bricks", "2,1,1")
    blob = compress(trained, tmp_path / "blob")
    assert len(blob) < 120 and (decompress(tmp_path / "blob", tmp_path / "out.npy") == 2.5).all()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("counts", [4, 1, 1], "belongs to other weights"),
        ("counts", [2.0, 2, 1], "expected whole numbers"),
        ("counts", [True, 4, 1], "expected whole numbers"),
        ("counts", None, "does not describe the bricks"),
        ("low", [[-1e300]] * 4, "does not describe the bricks"),
        ("high", [[0.25]] * 4, "the bricks|belongs to other weights"),
        ("widths", [10**9] * 4, "does not describe the bricks"),
        ("widths", "left out", "expected the keys"),
        ("mirrors", [0, 0, 6], "cut.mirrors: expected shape"),
        ("mirrors", [0, 0, 6.0], "expected whole numbers"),
        ("mirrors", [0, 99, 0], "does not describe the bricks"),
        ("mirrors", 3, "does not describe the bricks"),
    ],
)
def test_another_cut_is_refused(key, value, said, cut, tmp_path):
    bricks = cut.settings["bricks"] | {key: value}
    bricks = {name: entry for name, entry in bricks.items() if entry != "left out"}
    (tmp_path / "c.json").write_text(json.dumps(cut.settings | {"bricks": bricks}))
    argv = "--net", cut.network, "--config", tmp_path / "c.json", "--compressed", tmp_path / "blob"
    assert re.search(said, error_of(net_compress.main, *argv))


def test_a_ratio_out_of_reach_is_told(volume_file, tmp_path, capsys):
    train(volume_file, tmp_path, "--bricks", "2,2,1", "--n_passes", 0.1, "--num_workers", 1)
    assert "--compression_ratio 50 is out of reach: the smallest networks of 4 bricks have" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", [1, 1e-9])
@pytest.mark.parametrize("bricks", ["2,1,1", "auto"])
def test_bricks_have_no_more_parameters_than_help(bricks, ratio, cut, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.cutting.ONE_NETWORK_WORK", (0.0, 0.0))
    monkeypatch.setattr("training.cutting.PARAMETERS", 100)
    flags = "--bricks", bricks, "--compression_ratio", ratio, "--n_passes", 0.1, "--num_workers", 1
    trained = train(cut.volume, tmp_path, *flags)
    assert trained.settings["n_parameters"] == pytest.approx(13 * 9 * 7 / 4, rel=0.3)
    assert f"--compression_ratio {ratio:g} is out of reach: bricks of this volume have" in capsys.readouterr().err


@pytest.mark.parametrize("counts", ["2,2", "13,1,1", "1,1,1,1", "2,0,1", "x"])
def test_impossible_counts_are_refused(counts, volume_file):
    assert "--bricks" in error_of(train_script.main, "--volume", volume_file, "--bricks", counts)


def test_what_no_file_can_hold_is_refused_before_the_training(volume_file, monkeypatch):
    monkeypatch.setattr("training.brick_trainer.fit_brick", lambda *_: pytest.fail("a brick is trained"))
    argv = "--volume", volume_file, "--num_workers", 1
    monkeypatch.setattr("field.bricks.MAX_BRICKS", 3)
    assert "at most 3 bricks" in error_of(train_script.main, *argv, "--bricks", "2,2,1")
    for flags in (), ("--n_layers", 2), ("--max_seconds", 1):
        monkeypatch.setattr("training.brick_networks.MAX_PARAMETERS", 150)
        said = error_of(train_script.main, *argv, "--bricks", "3,1,1", *flags)
        assert "at most 150: a larger --compression_ratio or fewer --bricks" in said


def test_the_next_command_reads_what_is_unusual(cut, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("field.blob.USUAL_PARAMETERS", cut.settings["n_parameters"] - 1)
    compress(cut, tmp_path / "blob")
    command = re.search(r"^next: python net_decompress.py (.*)$", capsys.readouterr().out, re.M)[1]
    net_decompress.main([*shlex.split(command), "--info"])


def test_none_is_one_network(volume_file, tmp_path):
    assert "bricks" not in train(volume_file, tmp_path, "--bricks", "none").settings


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_workers_change_nothing(cut, tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: context)
    again = train(cut.volume, tmp_path, *SMALL, "--num_workers", 2)
    assert again.settings["weights_crc32"] == cut.settings["weights_crc32"]
    flags = "--volume", cut.volume, "--n_passes", 2, "--num_workers"
    assert compress(again, tmp_path / "blob", *flags, 2) == cut.blob.read_bytes()


def test_an_interrupted_run_leaves_what_is_done_and_goes_on(cut, tmp_path, monkeypatch):
    """A brick that is not done is its mean."""
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr("training.long_runs.LONG_SECONDS", 0.0)
    run, flags = BrickedFit.run, (*SMALL, "--checkpoint", tmp_path / "state")

    def interrupted(fit, on_done):
        def stop(fit):
            on_done(fit)
            if len(fit.done) == 2:
                raise KeyboardInterrupt

        run(fit, stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"interrupted\.pth"):
        patch.setattr(BrickedFit, "run", interrupted)
        train(cut.volume, tmp_path, *flags)
    names = "--net", tmp_path / "thenet.interrupted.pth", "--config", tmp_path / "thenet.interrupted.json"
    net_compress.main([str(a) for a in (*names, "--compressed", tmp_path / "half")])
    half, volume = NeuralField.open(str(tmp_path / "half"))[...], np.load(cut.volume)
    assert sum(len(np.unique(half[box])) == 1 for box in ((slice(k, k + 1), slice(m, m + 1)) for k in (2, 10)
               for m in (2, 7))) == 2  # fmt: skip
    assert psnr_of(volume, half) < cut.settings["psnr"]
    for other in ("--bricks", "none"), ("--target_psnr", 30):
        with pytest.raises(UserError, match=f"is of another run: {other[0][2:]} was"):
            train(cut.volume, tmp_path, *flags, *other, "--resume")
    resumed = train(cut.volume, tmp_path, *flags, "--resume")
    assert resumed.settings["weights_crc32"] == cut.settings["weights_crc32"]


def test_a_target_ends_each_brick(cut, tmp_path):
    """When it was judged to have reached it."""
    flags = (*SMALL, "--n_passes", 100)
    early = train(cut.volume, tmp_path, *flags, "--target_psnr", 20)
    assert 20 <= early.settings["psnr"] < train(cut.volume, tmp_path, *flags).settings["psnr"]
