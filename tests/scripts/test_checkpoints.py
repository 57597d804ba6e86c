"""What is left of a run that ends early, and how it goes on: checkpoints, interrupted networks."""

from __future__ import annotations

import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import distance, watched_samples
from helpers.scripts import compress, decompress, error_of, listing, results, train
from helpers.volumes import slanted

import train as train_script
from training import long_runs, shapes
from training.sampler import VoxelSampler
from utils import UserError


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


def test_an_earlier_checkpoint_is_not_replaced_without_a_word(volume_file, tmp_path, capsys):
    """One that this run has not written is no result of it."""
    (tmp_path / "state").write_bytes(b"of an earlier run")
    train(volume_file, tmp_path, "--checkpoint", tmp_path / "state")
    out, error = capsys.readouterr()
    assert "state: will be replaced: --resume continues its run instead" in error and "checkpoint=" not in out


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


def test_a_checkpoint_names_what_differs(volume_file, monkeypatch):
    """The volume before what follows from it, such as the learning rate, the number of passes and the depth."""
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    same = ("--volume", volume_file, "--d_in", 3, "--n_passes", 2, "--n_layers", 2, "--checkpoint", "state")
    train_script.main([str(a) for a in same])
    for flags, name in (
        (("--optimizer", "adam"), "optimizer was muon, is adam"),
        (("--batchSize", 64), "batchSize was 512, is 64"),
        (("--batchSize", 512, "--oversample", 3), "oversample was 1, is 3"),
        (("--compression_ratio", 49), "compression_ratio was 50.0, is 49.0"),
        (("--seed", 4), "seed was 0, is 4"),
        (("--clip", "21,40"), "clip was None, is 21,40"),
        (("--fill", "nan"), "fill was None, is nan"),
    ):
        assert f"is of another run: {name}" in error_of(train_script.main, *same, *flags, "--resume")
    for array, said in (
        (slanted((24, 20, 28)), "shape was 9,7,5, is 24,20,28"),
        (slanted((9, 7, 5))[..., None] * np.ones(2, "f4"), "d_out was 1, is 2"),
        (slanted((9, 7, 5))[::-1] + 1, "the volume has other values"),
    ):
        np.save("b.npy", array)
        other = ("--volume", "b.npy", "--d_in", 3, "--checkpoint", "state", "--seed", 1, "--resume")
        assert f"state: is of another run: {said}: without" in error_of(train_script.main, *other)
