"""How a volume is cut, and what each brick gets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.volumes import slanted

from cli.progress import NoProgress
from field.bricks import brick_boxes
from siren import MAX_NEURONS, SirenConfig, count_parameters
from training.cutting import (
    PARAMETERS,
    brick_volume,
    counts_for,
    detail,
    missing_in,
    passes_for,
    passes_over,
    shared_out,
    survey,
    width_for,
    with_one_extent,
)
from training.recipe import BATCH, MIN_STEPS
from utils import Geometry, Volume, header_of

FIELDS = {"n_layers": 3, "d_in": 3, "d_out": 1}


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
    assert counts_for(shape, math.prod(shape) / ratio, None, "cpu") == counts


def test_auto_cuts_more_the_longer_the_fit():
    assert counts_for((128,) * 3, 42_000, 100.0, "cpu") == (2, 2, 2)
    assert counts_for((256,) * 3, 336_000, None, "cuda") == (1, 1, 1)


def test_components_of_a_brick_have_one_extent():
    """The smaller ones get a wider range, around their own, within the limits. One component keeps its own range."""
    low, high = np.float32([[-1, -0.1, 0.99], [0.25, -1, 0]]), np.float32([[0.5, 0.1, 1], [0.25, -1, 0]])
    wider = with_one_extent(low, high)
    np.testing.assert_allclose(wider[0], [[-1, -0.75, -0.5], [0.25, -1, 0]], atol=1e-6)
    np.testing.assert_allclose(wider[1], [[0.5, 0.75, 1], [0.25, -1, 0]], atol=1e-6)
    ends = np.sort(np.random.default_rng(0).uniform(-1, 1, (2, 1000, 1)).astype(np.float32), axis=0)
    assert all(np.array_equal(a, b) for a, b in zip(with_one_extent(*ends), ends, strict=True))
    low, high = np.sort(np.random.default_rng(0).uniform(-1, 1, (2, 1000, 3)).astype(np.float32), axis=0)
    wide_low, wide_high = with_one_extent(low, high)
    assert ((wide_low <= low) & (wide_high >= high) & (wide_low >= -1) & (wide_high <= 1)).all()


@pytest.mark.parametrize("shape", [(1024,) * 3, (700, 90, 333), (4000, 3000)])
def test_bricks_have_about_as_many_parameters_as_wanted(shape):
    counts = counts_for(shape, math.prod(shape) / 20, None, "cpu")
    assert 0.5 < math.prod(shape) / 20 / math.prod(counts) / PARAMETERS < 2


@pytest.mark.parametrize(
    ("voxels", "parameters", "bricks", "passes"),
    [
        (512**3, 512**3 / 50, 216, 8),
        (180**3, 180**3 / 50, 8, 35.3),  # between: ten minutes
        (128**3, 128**3 / 50, 8, 45),
        (16**3, 16**3 / 50, 8, 1500),  # a step a pass
    ],
)
def test_passes_follow_from_the_work(voxels, parameters, bricks, passes):
    assert passes_for(voxels, parameters, bricks, "cpu") == pytest.approx(passes, rel=0.01)
    assert passes_for(voxels, parameters, bricks, "cuda") == max(45, passes)


def test_a_pass_over_one_side_of_mirrors_counts_as_many_as_it_has_images():
    assert passes_for(129**3, 42_000, 8, "cpu") == 45 < passes_for(129**3, 42_000, 8, "cpu", 4.0) == 180
    both = [passes_for(257**3, 2.7e6, 216, "cpu", n_images) for n_images in (1.0, 8.0)]
    assert both[0] == both[1] < 45  # ten minutes allow no more


def test_detail_is_what_planes_leave():
    x, y, z = np.mgrid[:8, :12, :5].astype(np.float32)
    assert detail((x - 2 * y + 3 * z + 1)[..., None]) == pytest.approx(0, abs=1e-3)
    assert detail((x * y)[..., None]) == pytest.approx(1.25**2 * 8 * 12 * 5, rel=1e-3)
    noise = np.random.default_rng(0).normal(size=(40, 40, 40, 1)).astype(np.float32)
    assert detail(noise) == pytest.approx(40**3 * 60 / 64, rel=0.02)  # a plane takes 4 of 64 degrees of freedom
    assert detail(2 * noise) == pytest.approx(4 * detail(noise), rel=1e-3)


def test_detail_is_seen_in_every_voxel():
    """Also where sides are no multiples of a block's."""
    noise = np.random.default_rng(0).normal(size=(39, 38, 37, 1)).astype(np.float32)
    assert detail(noise) == pytest.approx(39 * 38 * 37 * 60 / 64, rel=0.03)
    for axis, n in enumerate(noise.shape[:3]):
        alone = np.zeros_like(noise)
        alone[tuple(slice(n - 1, n) if k == axis else slice(None) for k in range(3))] = 1.0
        assert detail(alone) > 0


def test_detail_of_missing_voxels_and_thin_grids():
    noise = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
    half = noise.copy()
    half[:4] = np.nan
    assert detail(half) == pytest.approx(detail(noise[4:]), rel=1e-5)
    assert detail(noise[:1, :1, :1]) < 1e-9 and np.isfinite(detail(noise[:3, :1, :5]))
    assert detail(np.full((8, 8, 8, 1), np.nan, np.float32)) == 0


def test_a_few_missing_voxels_take_away_a_little_detail():
    """They are in nearly every block."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(16, 16, 16, 1)).astype(np.float32)
    some = noise.copy()
    some[random.random((16, 16, 16)) < 0.1] = np.nan
    assert 0.8 < detail(some) / detail(noise) < 1.0


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03, 0.003])
def test_few_scattered_voxels_have_the_detail_of_all(share):
    """Though a plane may go through all of a block's."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(23, 23, 23, 1)).astype(np.float32)
    noise[random.random((23, 23, 23)) > share] = np.nan
    assert 0.6 < detail(noise) / np.count_nonzero(~np.isnan(noise)) < 1.5


def test_a_survey_tells_the_ends_of_each_brick():
    array = slanted((9, 7, 5))
    array[:5, :4] = 3.0  # a constant brick
    array[8, 6, 4] = np.nan
    volume = Volume(array, Geometry.plain(3), fill=np.float32(np.nan))
    header, counts = header_of(volume), (2, 2, 1)
    boxes = brick_boxes(header.shape, counts)
    found = survey(volume, header.values, boxes, NoProgress())
    assert found.is_constant.tolist() == [True, False, False, False]
    assert found.n_voxels.tolist() == [5 * 4 * 5] * 3 + [5 * 4 * 5 - 1]
    for k, box in enumerate(boxes):
        brick = brick_volume(volume, header.values, box).array
        assert [found.low[k], found.high[k]] == [np.nanmin(brick), np.nanmax(brick)]
    changed = Volume(array + (array == 3.0), volume.geometry, volume.fill)
    assert survey(changed, header.values, boxes, NoProgress()).crc32 != found.crc32


def test_the_mean_of_a_large_brick():
    """In float32, a sum over a million voxels is wrong by 1/10,000."""
    volume = Volume(np.full((1 << 10, 1 << 10, 2), 0.3, np.float32), Geometry.plain(2))
    volume.array[0, :2] = [[0, 0], [1, 1]]
    found = survey(volume, header_of(volume).values, brick_boxes((1 << 10, 1 << 10), (1, 1)), NoProgress()).mean
    assert found[0] == pytest.approx([-0.4, -0.4], abs=2e-6) and found.dtype == np.float32


def test_a_survey_of_missing_voxels_alone():
    array = slanted((9, 7, 5))
    array[:5] = np.nan
    volume = Volume(array, Geometry.plain(3), fill=np.float32(np.nan))
    values = header_of(volume).values
    found = survey(volume, values, brick_boxes((9, 7, 5), (2, 1, 1)), NoProgress())
    assert found.is_constant.tolist() == [True, False] and found.n_voxels[0] == 0
    assert 0 < found.variance < 4


def test_parameters_go_where_they_are_needed():
    need, n_voxels = np.array([0.0, 1.0, 2.0, 4.0, 1e-9]), np.full(5, 100_000)
    configs = shared_out(20_000, need, n_voxels, FIELDS)
    sizes = [count_parameters(config) if config else 0 for config in configs]
    assert sizes[0] == 0 and sizes[4] == count_parameters(SirenConfig(4, **FIELDS))
    assert sum(sizes) == pytest.approx(20_000, rel=0.05)
    assert sizes[2] / sizes[1] == pytest.approx(2, rel=0.15) and sizes[3] / sizes[2] == pytest.approx(2, rel=0.15)


def test_a_small_brick_gets_no_more_than_its_share():
    sizes = [count_parameters(c) for c in shared_out(1e9, np.array([1.0, 1.0]), np.array([4_000, 40_000]), FIELDS)]
    assert sizes == pytest.approx([1_000, 10_000], rel=0.1)


def test_no_network_is_wider_than_a_file_holds():
    assert width_for(1e13, {"n_layers": 1, "d_in": 3, "d_out": 1}) == MAX_NEURONS


def test_the_mask_of_a_box_is_that_of_the_brick():
    array = slanted((9, 7, 5))
    array[3:6, 2, 1:4] = np.nan
    volume = Volume(array, Geometry.plain(3), np.float32(np.nan))
    box = (slice(0, 5), slice(1, 4), slice(2, 5))
    header = header_of(volume)
    mask, expected = missing_in(header, box), header_of(brick_volume(volume, header.values, box)).missing
    assert mask.count == 4 and mask.shape == (5, 3, 3) and np.isnan(mask.fill)
    np.testing.assert_array_equal(mask.bits, expected.bits)
    assert missing_in(header, (slice(0, 3), slice(1, 4), slice(2, 5))) is None
    assert missing_in(header_of(Volume(slanted((9, 7, 5)), Geometry.plain(3))), box) is None


def test_a_sparse_brick_takes_as_many_steps_as_a_whole_one():
    """But at most MIN_STEPS for this."""
    assert passes_over(8, 80**3, 80**3) == 8
    for n_present in (1000, 5000, 25_000):
        steps = passes_over(8, n_present, 80**3) * math.ceil(n_present / BATCH)
        assert steps == MIN_STEPS < 8 * 80**3 / BATCH
    assert passes_over(8, 1000, 10_000) == 8 * 5
    assert passes_over(8, 0, 10_000) > 0
