"""Planes of mirror symmetry: found where both sides are alike, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.volumes import slanted

import utils
from training import cutting
from training.choices import bricks_for
from training.mirrors import find_mirrors
from training.options import parse
from utils import Geometry, Volume, header_of


def mirrored(array: np.ndarray, axis: int, mirror: int, n: int) -> np.ndarray:
    """n voxels along an axis, whose values are those of the array and, beyond a mirror, of the images."""
    index = np.arange(n)
    return np.take(array, np.where(2 * index > mirror, mirror - index, index), axis)


def mirrors_of(array: np.ndarray, d_in: int = 3, fill: object = None) -> tuple[int, ...]:
    volume = Volume(array, Geometry.plain(d_in), fill)
    return find_mirrors(volume, header_of(volume))


def symmetric(shape=(20, 17, 12), mirrors=(20, 15, 0)) -> np.ndarray:
    """A field with these mirrors, all in the upper half of an axis."""
    array = slanted(shape) + np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for axis, mirror in enumerate(mirrors):
        if mirror:
            array = mirrored(array, axis, mirror, shape[axis])
    return array


@pytest.mark.parametrize("mirrors", [(19, 0, 0), (20, 16, 11), (0, 17, 0), (0, 0, 12)])
def test_mirrors_are_found(mirrors, monkeypatch):
    """Between voxels and at voxels, in the middle and beside it; box by box too."""
    array = symmetric(mirrors=mirrors)
    assert mirrors_of(array) == mirrors
    flipped = tuple(2 * (n - 1) - m if m else 0 for m, n in zip(mirrors, array.shape, strict=True))
    assert mirrors_of(array[::-1, ::-1, ::-1]) == flipped
    monkeypatch.setattr(utils, "BOX_VALUES", 50)
    assert mirrors_of(array) == mirrors


def test_there_is_none():
    assert mirrors_of(slanted((20, 17, 12))) == ()
    assert mirrors_of(symmetric(mirrors=(30, 0, 0))) == ()  # far from the middle
    assert mirrors_of(symmetric()[:7, :7]) == ()  # few voxels


def test_integers_components_and_planes():
    array = np.rint(symmetric() * 20).astype(np.int16)
    assert mirrors_of(array) == (20, 15, 0)
    assert mirrors_of(np.stack([array, array**2], axis=-1)) == (20, 15, 0)
    assert mirrors_of(np.stack([array, slanted(array.shape)], axis=-1)) == ()
    assert mirrors_of(array[:, :, 3], 2) == (20, 15)


def test_labels_are_not_merged():
    """Two labels on either side of a mirror differ by 1 of 1000."""
    labels = np.sign(symmetric()).astype(np.int16)
    labels[10] = 1000  # a plane that is its own image
    assert mirrors_of(labels) == (20, 15, 0)
    labels[3, 4, 5] += 1
    assert mirrors_of(labels) == ()


def test_none_is_looked_for_in_a_series_or_where_voxels_are_missing():
    array = symmetric()
    assert mirrors_of(np.stack([array] * 9), 4) == ()
    array[0, 0, 0] = -99
    assert mirrors_of(array, fill=np.float32(-99)) == ()


def test_both_sides_may_differ_a_little():
    """By roundoff: a mirror. By noise of 1/1000 of the range, or in a single voxel: none."""
    array = symmetric()
    noise = np.random.default_rng(1).normal(size=array.shape).astype(np.float32) * np.ptp(array)
    assert mirrors_of(array + 1e-5 * noise) == (20, 15, 0)
    assert mirrors_of(array + 1e-3 * noise) == ()
    marked = array.copy()
    marked[3, 4, 5] += np.ptp(array) / 20
    assert mirrors_of(marked) == ()


def test_a_single_voxel_off_the_lines_that_are_looked_at_first(monkeypatch):
    monkeypatch.setattr("training.mirrors.LINES", 2)
    array = symmetric(mirrors=(20, 0, 0))
    assert mirrors_of(array) == (20, 0, 0)
    array[3, 4, 5] += np.ptp(array) / 20
    assert mirrors_of(array) == ()


def test_bricks_lie_on_one_side(monkeypatch):
    """As many as this side has voxels for. Of a volume that --bricks auto cuts, one side is cut, too."""
    array = symmetric((20, 17, 12), (20, 16, 11))
    volume = Volume(array, Geometry.plain(3))

    def found(*flags: str):
        return bricks_for(parse(["--volume", "v.npy", *flags]), volume, header_of(volume))

    assert found() == found("--bricks", "none") == found("--bricks", "1,1,1") == ((1, 1, 1), ())
    assert found("--bricks", "2,16,9") == ((2, 8, 6), (20, 16, 11))
    monkeypatch.setattr(cutting, "ONE_NETWORK_WORK", (0.0, 0.0))
    monkeypatch.setattr(cutting, "PARAMETERS", 10)
    few, many = found("--compression_ratio", "100")[0], found("--compression_ratio", "10")[0]
    assert found("--compression_ratio", "10")[1] == (20, 16, 11) and 1 < math.prod(few) < math.prod(many)


def test_a_volume_that_is_the_same_along_an_axis_has_its_mirror_in_the_middle():
    array = np.repeat(slanted((20, 17, 1)), 12, axis=2)
    assert mirrors_of(array) == (0, 0, 11)
