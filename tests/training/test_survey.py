"""What is known of each brick before its fit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.volumes import slanted

from cli.progress import NoProgress
from field.bricks import brick_boxes
from training.survey import brick_volume, detail, missing_in, survey, with_one_extent
from utils import Geometry, Volume, header_of


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
    found = survey(volume, header.value_range, boxes, NoProgress())
    assert found.is_constant.tolist() == [True, False, False, False]
    assert found.n_present.tolist() == [5 * 4 * 5] * 3 + [5 * 4 * 5 - 1]
    for k, box in enumerate(boxes):
        brick = brick_volume(volume, header.value_range, box).array
        assert [found.low[k], found.high[k]] == [np.nanmin(brick), np.nanmax(brick)]
    changed = Volume(array + (array == 3.0), volume.geometry, volume.fill)
    assert survey(changed, header.value_range, boxes, NoProgress()).crc32 != found.crc32


def test_the_mean_of_a_large_brick():
    """In float32, a sum over a million voxels is wrong by 1/10,000."""
    volume = Volume(np.full((1 << 10, 1 << 10, 2), 0.3, np.float32), Geometry.plain(2))
    volume.array[0, :2] = [[0, 0], [1, 1]]
    found = survey(volume, header_of(volume).value_range, brick_boxes((1 << 10, 1 << 10), (1, 1)), NoProgress()).mean
    assert found[0] == pytest.approx([-0.4, -0.4], abs=2e-6) and found.dtype == np.float32


def test_a_survey_of_missing_voxels_alone():
    array = slanted((9, 7, 5))
    array[:5] = np.nan
    volume = Volume(array, Geometry.plain(3), fill=np.float32(np.nan))
    values = header_of(volume).value_range
    found = survey(volume, values, brick_boxes((9, 7, 5), (2, 1, 1)), NoProgress())
    assert found.is_constant.tolist() == [True, False] and found.n_present[0] == 0
    assert 0 < found.variance < 4


def test_the_mask_of_a_box_is_that_of_the_brick():
    array = slanted((9, 7, 5))
    array[3:6, 2, 1:4] = np.nan
    volume = Volume(array, Geometry.plain(3), np.float32(np.nan))
    box = (slice(0, 5), slice(1, 4), slice(2, 5))
    header = header_of(volume)
    mask, expected = missing_in(header, box), header_of(brick_volume(volume, header.value_range, box)).missing
    assert mask.count == 4 and mask.shape == (5, 3, 3) and np.isnan(mask.fill)
    np.testing.assert_array_equal(mask.bits, expected.bits)
    assert missing_in(header, (slice(0, 3), slice(1, 4), slice(2, 5))) is None
    assert missing_in(header_of(Volume(slanted((9, 7, 5)), Geometry.plain(3))), box) is None
