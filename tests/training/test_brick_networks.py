"""The network of each brick: its width by a brief fit, its depth by what few bricks with much detail show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.bricked_fits import small_fit
from helpers.volumes import slanted

from cli.progress import NoProgress, Progress
from field.layers import SirenConfig
from siren import MAX_NEURONS
from training.brick_networks import BRICK_DEPTHS, shared_out, width_for
from training.one_brick import FittedBrick
from training.recipe import Recipe, training_work
from training.shapes import HEAD_START

FORM = {"n_layers": 3, "d_in": 3, "d_out": 1}


def test_a_brick_with_more_detail_gets_more():
    array = slanted((33, 29, 5))
    array[18:, 16:] += np.random.default_rng(0).normal(size=(15, 13, 5)) * 5
    fit = small_fit(array.astype(np.float32), n_parameters=600)
    fit.networks.settle(NoProgress())
    sizes = [config.n_parameters for config in fit.networks.configs]
    assert sizes[3] > max(sizes[:3]) and sum(sizes) == pytest.approx(600, rel=0.3)


def test_where_no_time_is_left_each_brick_takes_a_step():
    """And the networks are as deep as the budget allows."""
    for n_parameters, depth in ((724, 5), (723, 3)):
        recipe = Recipe(n_passes=1, batch=8, lr=1e-3, max_seconds=1e-9)
        fit = small_fit(recipe=recipe, fields={"d_in": 3, "d_out": 1}, n_parameters=n_parameters)
        fit.run()
        assert sorted(fit.done) == [0, 1, 2, 3] and math.isfinite(fit.psnr)
        assert fit.networks.n_layers == depth and fit.bricks().n_parameters <= n_parameters


def test_with_a_time_limit_the_time_left_counts_from_when_processes_are_ready(monkeypatch):
    told = []
    monkeypatch.setattr(Progress, "update", lambda self, done, **_: told.append((self.description, done)))
    fit = small_fit(recipe=Recipe(n_passes=1, batch=8, lr=1e-3, max_seconds=1e-9))
    monkeypatch.setattr(fit.trainer.workers, "start", lambda n: told.append("started"))
    fit.run()
    assert told[told.index("started") + 1] == ("training", 0.0)


def test_the_depth_is_the_better_one_in_the_bricks_with_detail(monkeypatch):
    """A shallow one learns faster at first, and has to be that much better. A deep one has to be within the budget."""
    for more, n_parameters, depth in ((-0.1, 724, 5), (0.1, 724, 3), (-0.1, 723, 3)):
        fit = small_fit(fields={"d_in": 3, "d_out": 1}, n_parameters=n_parameters)

        def pilot_errors(configs, progress, passes=1.0, lead=HEAD_START[3] + more):
            return {k: 10 ** (-lead / 10) if config.n_layers == 3 else 1.0 for k, config in configs.items()}

        monkeypatch.setattr(fit.trainer, "pilot_errors", pilot_errors)
        fit.networks.settle(NoProgress())
        assert fit.networks.n_layers == depth and {config.n_layers for config in fit.networks.configs} == {depth}
    assert sorted(BRICK_DEPTHS) == [3, 5]


def test_a_depth_without_others_needs_no_pilots(monkeypatch):
    """Where it is given, or where the budget allows no other."""
    for fields, n_parameters in (({"n_layers": 3}, 5000), ({}, 723)):
        seen, fit = [], small_fit(fields={"d_in": 3, "d_out": 1} | fields, n_parameters=n_parameters)
        monkeypatch.setattr(fit.trainer, "pilot_errors", lambda configs, progress, passes=1.0, seen=seen: seen.append(
            (len(configs), passes)) or dict.fromkeys(configs, 1.0))  # fmt: skip
        fit.networks.settle(NoProgress())
        assert seen == [(4, 1.0)]


def test_depths_of_small_bricks_are_compared_after_more_than_a_few_steps(monkeypatch):
    """An eighth of the fit at most. The parameters are shared out by pilots of one pass."""
    seen = []
    fit = small_fit(fields={"d_in": 3, "d_out": 1}, n_parameters=724, recipe=Recipe(n_passes=80, batch=8, lr=1e-3))
    monkeypatch.setattr(fit.trainer, "pilot_errors", lambda configs, progress, passes=1.0: seen.append(
        (len(configs), passes)) or dict.fromkeys(configs, 1.0))  # fmt: skip
    fit.networks.settle(NoProgress())
    assert seen == [(4, 10.0), (4, 10.0), (4, 1.0)]


@pytest.mark.parametrize(("fields", "n_passes", "n_trainings"), [({"n_layers": 3}, 16, 2), ({}, 16, 4), ({}, 8, 3)])
def test_the_work_of_brief_fits_is_known_before(fields, n_passes, n_trainings, monkeypatch):
    """The steps of short fits take longer than their samples: the time left was up to twice what was true."""
    found, recipe = [], Recipe(n_passes=n_passes, batch=64, lr=1e-3)
    fit = small_fit(fields={"d_in": 3, "d_out": 1} | fields, n_parameters=724, recipe=recipe)

    def train_bricks(configs, recipes, *_):
        found.append(sum(fit.trainer.work_of(configs, recipes).values()))
        return dict.fromkeys(configs, FittedBrick({}, 1.0))

    monkeypatch.setattr(fit.trainer, "train_bricks", train_bricks)
    fit.run()
    assert len(found) >= n_trainings and sum(found) == pytest.approx(fit.networks.work_ahead(), rel=0.1)
    assert sum(found) > 1.3 * training_work(n_passes * fit.survey.n_present.sum(), fit.networks.budget / 4)


SIDES = [(80, False, 1024), (46, False, 512), (22, False, 256), (22, True, 1024)]


@pytest.mark.parametrize(("side", "is_gpu", "batch"), SIDES)
def test_a_pilot_of_a_small_brick_takes_small_batches(side, is_gpu, batch, monkeypatch):
    """A pass over 22^3 voxels would be 11 steps of 1,024 samples. On a GPU, smaller steps take hardly less time."""
    seen = []
    fit = small_fit(fields={"d_in": 3, "d_out": 1, "n_layers": 3}, n_parameters=724)
    survey = fit.trainer.survey._replace(n_present=np.full(4, side**3))
    monkeypatch.setattr(fit.trainer, "survey", survey)
    monkeypatch.setattr(fit.trainer, "has_stacks", is_gpu)
    monkeypatch.setattr(fit.trainer, "train_bricks", lambda configs, recipes, progress: seen.append(recipes) or {})
    fit.trainer.pilot_errors({0: fit.networks.config(4)}, NoProgress())
    assert seen[0][0].batch == fit.trainer.pilot_batch == batch


def test_bricks_without_a_voxel_do_not_count_for_the_recipe():
    """Nor do they end the fit, where fewer voxels than bricks are present."""
    array = np.full((13, 9, 5), np.nan, np.float32)
    array[0, 0, :2] = 1, 2
    fit = small_fit(array, fill=np.float32(np.nan))
    assert fit.survey.medium_size == 2
    fit.run()
    assert fit.networks.n_networks == 1 and sorted(fit.done) == [0]


def test_parameters_go_where_they_are_needed():
    need, n_voxels = np.array([0.0, 1.0, 2.0, 4.0, 1e-9]), np.full(5, 100_000)
    configs = shared_out(20_000, need, n_voxels, FORM)
    sizes = [config.n_parameters if config else 0 for config in configs]
    assert sizes[0] == 0 and sizes[4] == SirenConfig(4, **FORM).n_parameters
    assert sum(sizes) == pytest.approx(20_000, rel=0.05)
    assert sizes[2] / sizes[1] == pytest.approx(2, rel=0.15) and sizes[3] / sizes[2] == pytest.approx(2, rel=0.15)


def test_a_small_brick_gets_no_more_than_its_share():
    sizes = [c.n_parameters for c in shared_out(1e9, np.array([1.0, 1.0]), np.array([4_000, 40_000]), FORM)]
    assert sizes == pytest.approx([1_000, 10_000], rel=0.1)


def test_no_network_is_wider_than_a_file_holds():
    assert width_for(1e13, {"n_layers": 1, "d_in": 3, "d_out": 1}) == MAX_NEURONS
