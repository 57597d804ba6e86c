"""What the next doubling of a network would gain, by the cosine transform of the volume."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from quantising import doubling
from quantising.doubling import MOST_VALUES, gain_of_doubling
from utils import Geometry, ValueRange, Volume, shape_of

ENDS = ValueRange(np.float32([-1]), np.float32([1]))
PSNR = 30.0  # of the network, dB
SIDE = 32  # voxels of a block along each of three axes


def gain(values: np.ndarray, psnr: float = PSNR, fill: object = None) -> float:
    """`gain_of_doubling` for normalised values of one component."""
    volume = Volume(values[..., None].astype(np.float32), Geometry.plain(values.ndim), fill)
    return gain_of_doubling(volume, dataclasses.replace(ENDS, fill=fill), psnr)


def with_spectrum(exponent: float, side: int = SIDE) -> np.ndarray:
    """A random field of one block, in [-1, 1]: coefficient k of its transform, the largest first, is k^exponent."""
    generator = np.random.default_rng(0)
    size = np.arange(1.0, side**3 + 1) ** exponent * generator.choice([-1.0, 1.0], side**3)
    field = generator.permutation(size).reshape(side, side, side)
    for _ in range(3):  # the matrix is orthonormal, so its transpose goes back
        field = np.moveaxis(np.tensordot(doubling._cosines(side).T, field, (1, 0)), 0, 2)
    return field / np.abs(field).max()


@pytest.mark.parametrize(("exponent", "psnr"), [(-1.0, 30.0), (-2.0, 80.0), (-3.0, 120.0)])
def test_the_gain_is_that_of_a_known_spectrum(exponent, psnr):
    """The errors of the first n coefficients are about n^(2 exponent + 1): twice as many gain so many dB."""
    expected = -(2 * exponent + 1) * 10 * math.log10(2)
    assert gain(with_spectrum(exponent), psnr) == pytest.approx(expected, rel=0.2)


def test_a_trend_is_no_detail():
    """A network has it from its first weights on, and noise gains little by further ones."""
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (40, 30, 20))
    trend = np.linspace(-0.9, 0.9, 40)[:, None, None]
    assert 0 <= gain(trend + noise, 46.0) < 2 < gain(with_spectrum(-2.0))


def test_noise_gains_less_than_a_smooth_field():
    assert 0 <= gain(np.random.default_rng(0).uniform(-1, 1, (40, 30, 20)), 7.0) < 1


@pytest.mark.parametrize("shape", [(1,), (70,), (40, 1), (33, 65, 3), (3, 9, 10, 11)])
def test_grids_of_all_kinds(shape):
    values = np.random.default_rng(1).uniform(-1, 1, shape)
    assert math.isfinite(gain(values, 10.0))


def test_what_is_missing_or_constant_gains_nothing():
    assert gain(np.full((9, 8, 7), np.nan), fill=np.float32(np.nan)) == 0
    assert gain(np.zeros((9, 8, 7))) == 0
    values = with_spectrum(-2.0)
    values[:5] = np.nan
    assert gain(values, 60.0, np.float32(np.nan)) > 0


def test_components_count_together():
    one = with_spectrum(-2.0)[..., None].astype(np.float32)
    both, ends = np.concatenate([one, one], axis=-1), ValueRange(np.float32([-1, -1]), np.float32([1, 1]))
    found = gain_of_doubling(Volume(both, Geometry.plain(3)), ends, PSNR)
    assert found == pytest.approx(gain(one[..., 0]), rel=1e-3)


@pytest.mark.parametrize("grid", [(512, 512, 512), (1000, 900, 800), (9, 300, 300, 300), (40_000, 30_000), (1 << 27,)])
def test_blocks_of_a_large_grid_lie_everywhere(grid):
    blocks = doubling._blocks((*grid, 2))
    assert MOST_VALUES / 8 < sum(2 * math.prod(shape_of(block)) for block in blocks) < 1.5 * MOST_VALUES
    assert all(len({block[axis].start for block in blocks}) > 9 for axis, n in enumerate(grid) if n > 9)
