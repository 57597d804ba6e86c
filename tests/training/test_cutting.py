"""How a volume is cut, and how long each brick is fitted."""

from __future__ import annotations

import math

import pytest

from training.cutting import PARAMETERS, counts_for, passes_for, passes_over
from training.recipe import BATCH, MIN_STEPS


@pytest.mark.parametrize(
    ("shape", "ratio", "counts"),
    [
        ((128, 128, 128), 50, (1, 1, 1)),  # minutes
        ((144, 144, 144), 50, (2, 2, 2)),
        ((256, 256, 256), 50, (3, 3, 3)),
        ((256, 256, 256), 1000, (1, 1, 1)),  # few parameters: minutes
        ((41, 512, 512), 50, (1, 5, 5)),  # a thin axis is not cut
        ((10, 128, 128, 128), 50, (1, 3, 3, 3)),  # nor is time
        ((50_000_000,), 50, (100,)),
        ((1, 1, 30_000_000), 50, (1, 1, 60)),
    ],
)
def test_auto_cuts_what_would_take_long(shape, ratio, counts):
    assert counts_for(shape, math.prod(shape) / ratio, None, False) == counts


def test_auto_cuts_more_the_longer_the_fit():
    assert counts_for((128,) * 3, 42_000, 100.0, False) == (2, 2, 2)
    assert counts_for((256,) * 3, 336_000, None, True) == (1, 1, 1)


@pytest.mark.parametrize("shape", [(1024,) * 3, (700, 90, 333), (4000, 3000)])
def test_bricks_have_about_as_many_parameters_as_wanted(shape):
    counts = counts_for(shape, math.prod(shape) / 20, None, False)
    assert 0.5 < math.prod(shape) / 20 / math.prod(counts) / PARAMETERS < 2


@pytest.mark.parametrize(
    ("voxels", "parameters", "bricks", "passes"),
    [
        (512**3, 512**3 / 50, 216, 8),
        (180**3, 180**3 / 50, 8, 35.3),  # between: ten minutes
        (128**3, 128**3 / 50, 8, 90),
        (16**3, 16**3 / 50, 8, 1500),  # a step a pass
    ],
)
def test_passes_follow_from_the_work(voxels, parameters, bricks, passes):
    assert passes_for(voxels, parameters, bricks, False) == pytest.approx(passes, rel=0.01)
    assert passes_for(voxels, parameters, bricks, True) == (passes if passes > 90 else 45)


def test_a_pass_over_one_side_of_mirrors_counts_as_many_as_it_has_images():
    assert passes_for(129**3, 42_000, 8, False) == 90 < passes_for(129**3, 42_000, 8, False, 2.0) == 180
    both = [passes_for(257**3, 2.7e6, 216, False, n_images) for n_images in (1.0, 8.0)]
    assert both[0] == both[1] < 90  # ten minutes allow no more


def test_a_sparse_brick_takes_as_many_steps_as_a_whole_one():
    """But at most MIN_STEPS for this."""
    assert passes_over(8, 80**3, 80**3) == 8
    for n_present in (1000, 5000, 25_000):
        steps = passes_over(8, n_present, 80**3) * math.ceil(n_present / BATCH)
        assert steps == MIN_STEPS < 8 * 80**3 / BATCH
    assert passes_over(8, 1000, 10_000) == 8 * 5
    assert passes_over(8, 0, 10_000) > 0
