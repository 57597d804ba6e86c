"""The fit of a volume in bricks: what each brick is given, the sum of it, and its checkpoints."""

from __future__ import annotations

import io
import math
import re
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.bricked_fits import FIELDS, small_fit
from helpers.networks import assert_refused
from helpers.volumes import slanted

from cli.progress import NoProgress
from field.neural_field import NeuralField
from siren import net_of
from training import one_brick, processes
from training.long_runs import Checkpoint, run_bricks
from training.recipe import Recipe, psnr_of
from training.recovery import Action
from training.sampler import all_coordinates, axis_tensors
from utils import UserError

OPTIONS = {"volume": "a.npy"}


@torch.no_grad()
def test_the_errors_of_bricks_add_up():
    """Each network by itself, over its own box: the layers that bricks share count more than once."""
    fit = small_fit()
    fit.run()
    cut, networks, squares = fit.bricks().cut, fit.bricks().networks, []
    normalised = fit.trainer.header.value_range.normalise(fit.trainer.volume.values)
    for box, low, high, network in zip(fit.trainer.boxes, cut.low, cut.high, networks, strict=True):
        values = normalised[box].reshape(-1, 1)
        outputs = net_of(*network)(all_coordinates(axis_tensors(normalised[box].shape[:-1], torch.device("cpu"))))
        squares.append(np.square(low + (high - low) * (outputs.numpy().clip(-1, 1) + 1) / 2 - values))
    assert fit.psnr == pytest.approx(psnr_of(np.concatenate(squares).mean()), abs=0.01)
    assert fit.progress == 1 and sorted(fit.done) == [0, 1, 2, 3]


def test_components_of_a_brick_count_alike():
    """As in the volume: by their errors in its range, however little one of them changes within a brick."""
    array = np.stack([slanted((13, 9, 5)), np.zeros((13, 9, 5), np.float32)], axis=-1)
    array[7:, 5:, :, 1] = 0.1 * array[7:, 5:, :, 0]
    fit = small_fit(array, fields=FIELDS | {"d_out": 2})
    fit.run()
    _, low, high, _ = fit.bricks().cut
    np.testing.assert_allclose((high - low)[:, 0], (high - low)[:, 1], rtol=1e-6)
    field = NeuralField(fit.trainer.header, fit.bricks())
    assert np.isfinite(field[:]).all() and field[:].shape == array.shape


def test_a_brick_too_large_for_memory_is_fitted_too(monkeypatch):
    monkeypatch.setattr("training.streaming.MAX_VOXELS_IN_MEMORY", 100)
    fit = small_fit()
    fit.run()
    assert sorted(fit.done) == [0, 1, 2, 3] and fit.psnr > 0


def test_a_brick_is_fitted_as_by_one_process(monkeypatch):
    """Of several, too. So a GPU replays its steps."""
    counts = []

    def built(*arguments, build=one_brick.new_fit, **keywords):
        counts.append(processes.count())
        return build(*arguments, **keywords)

    monkeypatch.setattr(one_brick, "new_fit", built)
    fit = small_fit()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    task = fit.trainer._task(0, fit.networks.config(4), fit.recipe)
    assert task.start.from_mean
    one_brick.fit_brick(task, torch.device("cpu"), lambda part: None)
    assert counts == [1]


def test_no_process_is_started_without_a_brick(monkeypatch):
    monkeypatch.setattr("training.workers.Workers._start", lambda _: pytest.fail("a process is started"))
    fit = small_fit(n_processes=2)
    assert fit.trainer.pilot_errors({}, NoProgress()) == {}
    assert len(fit.trainer.pilot_errors({0: fit.networks.config(4)}, NoProgress())) == 1


@pytest.mark.parametrize("has_stacks", [False, True])
def test_the_bar_moves_within_a_brick_and_ends_at_the_whole_work(has_stacks, monkeypatch):
    monkeypatch.setattr("training.loop.CHECK_STEPS", 1)
    monkeypatch.setattr("training.workers.REPORT_SECONDS", 0.0)
    shown, fit = [], small_fit()
    fit.trainer.has_stacks = has_stacks
    configs = {k: fit.networks.config(4) for k in (0, 2)}
    recipes = dict.fromkeys(configs, Recipe(n_passes=1, batch=8, lr=1e-3))
    fit.trainer.train_bricks(configs, recipes, NoProgress(shown.append))
    assert len(shown) > 20 and shown == sorted(shown)
    assert shown[-1] == pytest.approx(sum(fit.trainer.work_of(configs, recipes).values()))


@pytest.mark.parametrize("has_stacks", [False, True])
def test_a_brick_of_a_lattice_starts_from_its_plane_waves(has_stacks):
    """Each brick has frequencies of its own coordinates. A brick that is no lattice has waves along the axes."""
    array = np.sin(np.indices((40, 36, 20))[:2] * [[[[1.0]]], [[[1.4]]]]).sum(0).astype(np.float32)
    array[:20, :18] = 0.01 * slanted((20, 18, 20)) - 0.3
    fit = small_fit(array)
    fit.trainer.has_stacks = has_stacks
    configs = dict.fromkeys(range(4), fit.networks.config(8))
    trained = fit.trainer.train_bricks(configs, dict.fromkeys(configs, Recipe(1e-3, 8, lr=1e-3)), NoProgress())
    for k, found in trained.items():
        frequencies = 30 * found.weights["net_layers.0.linear.weight"]
        units = (max(box.stop - box.start for box in fit.trainer.boxes[k]) - 1) / 2  # voxels
        expected = np.array([[0.0, 1.4, 0.0], [1.0, 0.0, 0.0]]) * units
        is_like = np.abs(np.abs(frequencies[:, None]) - expected).max(axis=2).min(axis=1) < 1.0
        assert is_like[:4].all() == (k != 0) and frequencies[0].any()
    assert not small_fit(slanted((20, 18, 20))).trainer.has_waves
    assert not small_fit(array, first_omega=30.0).trainer.has_waves


@pytest.mark.parametrize("has_stacks", [False, True])
def test_one_line_tells_how_many_bricks_recovered(has_stacks, monkeypatch, capsys):
    monkeypatch.setattr("training.loop.CHECK_STEPS", 1)

    judged = []

    def decide(recovery, *_):
        judged.append(recovery)
        recovery.n_recoveries += recovery is not judged[0]  # in all bricks but one
        return Action.GO_ON

    fit = small_fit(recipe=Recipe(n_passes=0.3, batch=8, lr=1e-3))
    fit.networks.settle(NoProgress())
    fit.trainer.has_stacks = has_stacks
    monkeypatch.setattr("training.recovery.Recovery.decide", decide)
    run_bricks(fit, Checkpoint(None, OPTIONS))
    assert capsys.readouterr().err.count("recovered in 3 of 4 bricks") == 1


def test_bricks_that_are_not_done_are_their_mean():
    fit = small_fit()
    fit.networks.settle(NoProgress())
    bricks = fit.bricks()
    assert bricks.networks == [None] * 4
    np.testing.assert_array_equal(bricks.cut.low, fit.survey.mean)
    np.testing.assert_array_equal(bricks.cut.high, fit.survey.mean)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    """The checkpoint of a fit with one brick done."""
    fit, path = small_fit(), tmp_path_factory.mktemp("saved") / "state"

    def stop(fit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit.run(stop)
    Checkpoint(str(path), OPTIONS).save(fit)
    return path.read_bytes()


def test_a_checkpoint_gives_the_same_result(saved, tmp_path):
    (tmp_path / "state").write_bytes(saved)
    fit, again = small_fit(), small_fit()
    Checkpoint(str(tmp_path / "state"), OPTIONS).load(again)
    assert len(again.done) == 1
    fit.run()
    again.run()
    for k in range(4):
        for name, weights in fit.done[k][0].items():
            np.testing.assert_array_equal(weights, again.done[k][0][name])


NONE = torch.zeros(1)
DAMAGE = {
    "seconds": [-1.0, math.nan, "x"],
    "n_layers": [3, 2.5, None],
    "widths": [[], [4, 4, 4], [4, 4, 4, 0], [4, 4, 4, -1], [4, 4, 4, 10**9], [True] * 4, None],
    "done": [{9: (NONE, 0.0)}, {0: (NONE, 0.0)}, {0: (NONE.expand(1 << 50), 0.0)}, {0: None}, [], {"x": (NONE, 0.0)}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values])
def test_damaged_checkpoints_are_refused(key, value, saved):
    content = torch.load(io.BytesIO(saved), weights_only=True)
    content["fit"][key] = value
    assert_refused(content, small_fit())


def test_no_brick_is_counted_from_the_end(saved):
    """As Python counts: the networks would fit."""
    content = torch.load(io.BytesIO(saved), weights_only=True)
    ((number, trained),) = content["fit"]["done"].items()
    content["fit"]["done"] = {number - 4: trained}
    assert_refused(content, small_fit())


@pytest.mark.parametrize("value", [math.nan, math.inf, None, torch.ones(1), 10**400], ids=lambda value: str(value)[:9])
def test_weights_and_errors_of_a_checkpoint_are_finite(value, saved):
    for change in ("weights", "error"):
        content = torch.load(io.BytesIO(saved), weights_only=True)
        ((number, (weights, error)),) = content["fit"]["done"].items()
        if change == "weights" and isinstance(value, float):
            weights[0] = value
        else:
            error = value
        content["fit"]["done"][number] = (weights, error)
        assert_refused(content, small_fit())


def test_what_processes_of_another_run_left_is_left_out(saved, tmp_path, capsys):
    """A further process of this run has brick 3, that of an earlier run another volume."""
    fit, again = small_fit(), small_fit()
    fit.run()
    fit.done = {3: fit.done[3]}
    (tmp_path / "state").write_bytes(saved)
    Checkpoint(str(tmp_path / "state.1"), OPTIONS).save(fit)
    Checkpoint(str(tmp_path / "state.2"), OPTIONS).save(small_fit(slanted((13, 9, 5)) ** 2))
    Checkpoint(str(tmp_path / "state"), OPTIONS).load(again)
    assert len(again.done) == 2 and 3 in again.done
    assert "state.2: is of another run: the volume has other values" in capsys.readouterr().err


def test_the_first_process_may_have_done_no_brick(saved, tmp_path):
    """The volume of the checkpoint that is there counts, whichever it is."""
    (tmp_path / "state.1").write_bytes(saved)
    again = small_fit()
    Checkpoint(str(tmp_path / "state"), OPTIONS).load(again)
    assert len(again.done) == 1
    for name in ("state.1", "state"):
        (tmp_path / name).write_bytes(saved)
        with pytest.raises(UserError, match="of another run: the volume has other values"):
            Checkpoint(str(tmp_path / "state"), OPTIONS).load(small_fit(slanted((13, 9, 5)) ** 2))


def test_bricks_of_other_widths_are_left_out(saved, tmp_path, capsys):
    """As those that another version of the suite fitted, by the same command."""
    other = small_fit()
    other.networks.configs = other.networks.checked(2, [5, 5, 5, 5])
    other.run()
    (tmp_path / "state").write_bytes(saved)
    Checkpoint(str(tmp_path / "state.1"), OPTIONS).save(other)
    again = small_fit()
    Checkpoint(str(tmp_path / "state"), OPTIONS).load(again)
    assert len(again.done) == 1 and again.networks.configs[0].n_neurons == 4
    assert "state.1: is of another run: its bricks have other networks: it is left out" in capsys.readouterr().err


def test_a_damaged_checkpoint_of_another_process_is_left_out(saved, tmp_path, capsys):
    (tmp_path / "state").write_bytes(saved)
    (tmp_path / "state.1").write_bytes(saved[:1000])
    (tmp_path / "state.2").mkdir()
    again, checkpoint = small_fit(), Checkpoint(str(tmp_path / "state"), OPTIONS)
    checkpoint.load(again)
    assert len(again.done) == 1 and checkpoint.is_there
    assert capsys.readouterr().err.count("it is left out") == 2
    (tmp_path / "state").unlink()
    with pytest.raises(UserError, match=r"state\.1: .*: without --resume the training starts anew"):
        Checkpoint(str(tmp_path / "state"), OPTIONS).load(small_fit())


def test_a_short_run_does_not_replace_the_checkpoint_of_an_earlier_one(saved, tmp_path):
    (tmp_path / "state").write_bytes(saved)
    fit = small_fit()
    fit.networks.settle(NoProgress())
    Checkpoint(str(tmp_path / "state"), OPTIONS).save_at_last(fit)
    assert (tmp_path / "state").read_bytes() == saved
    own = Checkpoint(str(tmp_path / "state"), OPTIONS)
    own.save(fit)
    own.save_at_last(fit)
    assert (tmp_path / "state").read_bytes() != saved


def test_each_process_saves_its_own_bricks_at_last(saved, tmp_path, monkeypatch):
    """Though the first one has been faster."""
    fit = small_fit()
    fit.networks.settle(NoProgress())
    monkeypatch.setattr(processes, "number", lambda: 1)
    second = Checkpoint(str(tmp_path / "state"), OPTIONS)
    (tmp_path / "state").write_bytes(saved)
    second.save_at_last(fit)
    assert (tmp_path / "state.1").exists() and (tmp_path / "state").read_bytes() == saved


def test_of_several_processes_each_tells_of_its_own_bricks_at_last(tmp_path, monkeypatch, capsys):
    fit = small_fit()
    fit.networks.settle(NoProgress())
    monkeypatch.setattr(processes, "count", lambda: 2)
    Checkpoint(str(tmp_path / "state"), OPTIONS).save_at_last(fit)
    said = capsys.readouterr().err
    found = re.search(r"0 of 4 bricks are in (.+), those of the other processes in (.+) and so on", said)
    assert found.groups() == (str(tmp_path / "state"), str(tmp_path / "state.1"))


def test_the_time_of_the_workers_is_shared_out():
    """By the work. Of three bricks on two workers, one of them has two bricks."""
    fit = small_fit(recipe=Recipe(n_passes=1, batch=8, lr=1e-3, max_seconds=10.0), n_processes=2)
    configs = dict(enumerate(map(fit.networks.config, (4, 4, 5))))
    limits = {k: recipe.max_seconds for k, recipe in fit.trainer.recipes(configs, seconds=2.0).items()}
    works = {k: fit.trainer.pass_work(k, config) for k, config in configs.items()}
    assert limits[2] / limits[0] == pytest.approx(works[2] / works[0])
    assert max(limits.values()) < 5 and sum(sorted(limits.values())[:2]) == pytest.approx(8.0, rel=0.1)
    alone = fit.trainer.recipes({0: configs[0]}, 2.0)
    assert alone[0].max_seconds == pytest.approx(8.0)


@pytest.mark.parametrize(("seconds", "is_told"), [(1.0, True), (1e6, False)])
def test_the_time_that_the_start_of_workers_takes_is_told(seconds, is_told, capsys):
    fit = small_fit(recipe=Recipe(n_passes=1, batch=8, lr=1e-3, max_seconds=seconds))
    fit.trainer.workers.start = lambda n: time.sleep(0.6)
    fit.trainer.train_bricks = lambda *_: {}
    fit.run()
    assert ("s went by before the training, 0." in capsys.readouterr().err) == is_told


def test_ctrl_c_keeps_the_networks_that_are_settled(monkeypatch, tmp_path, capsys):
    """What the brief fits cost is not lost, before any brick is done."""
    fit, again = small_fit(), small_fit()
    monkeypatch.setattr(fit.trainer, "recipes", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_bricks(fit, Checkpoint(str(tmp_path / "state"), OPTIONS))
    Checkpoint(str(tmp_path / "state"), OPTIONS).load(again)
    assert again.networks.configs == fit.networks.configs and again.seconds == fit.seconds > 0
    assert "0 of 4 bricks are in" in (said := capsys.readouterr().err) and "--resume continues the run" in said
