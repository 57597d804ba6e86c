"""How a fit is done where nothing else is asked for: passes, batches, rates, momentum."""

from __future__ import annotations

import math

import pytest
from helpers.networks import field_net

from training.optimizers import share_of_latest
from training.recipe import Recipe, default_recipe


@pytest.mark.parametrize(("side", "n_passes"), [(8, 1500), (32, 94), (40, 47), (64, 45), (128, 16), (512, 5)])
def test_default_passes(side, n_passes):
    recipe = default_recipe(side**3, field_net().config)
    assert recipe.n_passes == n_passes
    assert n_passes * math.ceil(side**3 / recipe.batch) >= 1500 and recipe.batch == 2048


def test_a_short_fit_takes_smaller_batches():
    """Below 1,500 steps of 2,048 samples 1,024; below 750 steps of these 512, and no fewer."""
    config = field_net().config
    found = [default_recipe(64**3, config, n_passes=n).batch for n in (12, 11, 3, 2, 0.01)]
    assert found == [2048, 1024, 1024, 512, 512]
    assert default_recipe(64**3, config, n_passes=11).n_passes == 11
    assert default_recipe(64**3, config, max_seconds=1e6).batch == 1024


@pytest.mark.parametrize(("side", "n_passes"), [(8, 5760), (64, 360), (128, 64), (256, 20), (512, 6), (1024, 5)])
def test_a_gpu_takes_more_passes_of_larger_batches(side, n_passes):
    recipe = default_recipe(side**3, field_net().config, is_gpu=True)
    assert (recipe.n_passes, recipe.batch) == (n_passes, 16384)
    assert n_passes * math.ceil(side**3 / recipe.batch) >= 5760
    assert recipe.lr == default_recipe(side**3, field_net().config).lr


def test_a_short_fit_on_a_gpu_takes_smaller_batches():
    config = field_net().config
    assert [default_recipe(64**3, config, n_passes=n, is_gpu=True).batch for n in (94, 93, 47, 12, 11, 1)] == [
        *(16384, 8192, 8192, 2048, 1024, 1024)
    ]
    assert default_recipe(64**3, config, max_seconds=1, is_gpu=True).batch == 16384


def test_a_short_fit_with_a_time_limit_warms_up_in_a_fifth_of_it():
    recipe = Recipe(n_passes=1, batch=60, lr=0.5, max_seconds=1.0)
    assert recipe.rate(4, 105, 0.1) == pytest.approx(0.5 * 0.5 * 0.9**2)
    assert recipe.rate(9, 105, 0.2) == pytest.approx(0.5 * 0.8**2)
    assert recipe.rate(24, 105, 0.001) == pytest.approx(0.5 * 0.5 * 0.999**2)


def test_momentum_averages_over_more_steps_where_voxels_are_seen_often():
    found = [Recipe(n_passes=n, batch=100, lr=1e-3).momentum_steps for n in (0.1, 8, 45, 300)]
    assert found == [20, 20, 45, 50]
    assert Recipe(n_passes=45, batch=100, lr=1e-3, max_seconds=9.0).momentum_steps == 20
    shares = [share_of_latest(number, 50) for number in range(1, 1000)]
    assert shares[0] == 1 and shares[-1] == 1 / 50 and shares == sorted(shares, reverse=True)
