"""The plane waves of which a volume consists."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training import spectrum
from training.spectrum import plane_waves, waves_of
from utils import axis_coordinates


def sum_of_waves(shape, frequencies, amplitudes):
    """The volume (grid..., 1) of waves of these frequencies, radians per unit."""
    grid = np.stack(np.meshgrid(*axis_coordinates(shape), indexing="ij"), axis=-1)
    phases = grid @ np.array(frequencies, float).T + np.arange(len(frequencies))
    return (np.cos(phases) @ np.array(amplitudes, float)).astype(np.float32)[..., None]


def assert_alike(found, expected, within=0.3):
    """A wave has two frequencies, k and -k."""
    assert found.shape == (len(expected), len(expected[0]))
    for row, other in zip(found, np.array(expected, float), strict=True):
        assert min(np.abs(row - other).max(), np.abs(row + other).max()) < within


@pytest.mark.parametrize(
    ("shape", "frequencies"),
    [
        ((60,), [[11.3], [25.0]]),
        ((40, 30), [[0.0, 20.0], [16.0, -24.1]]),
        ((40, 36, 44), [[14.0, 0.0, -14.0], [3.1, 22.0, 9.0], [0.0, 0.0, 30.3]]),
        ((1, 40, 44), [[0.0, 13.0, 20.0], [0.0, 33.0, -8.0]]),
        ((12, 14, 16, 18), [[12.0, 0.0, 16.0, 0.0], [0.0, 17.0, -11.0, 18.0]]),
    ],
)
def test_the_waves_of_a_sum_are_found(shape, frequencies):
    """The strongest one first, with a share of the variance that is about half the square of its amplitude."""
    amplitudes = [2.0, 1.4, 1.0][: len(frequencies)]
    found, shares = plane_waves(sum_of_waves(shape, frequencies, amplitudes), len(frequencies))
    assert_alike(found, frequencies)
    expected = np.square(amplitudes) / np.square(amplitudes).sum()
    assert shares == pytest.approx(expected, abs=0.1)


def test_components_and_missing_voxels():
    shape, waves = (30, 32, 34), [[18.0, 0.0, 12.0], [0.0, 25.0, 0.0]]
    parts = [sum_of_waves(shape, [wave], [size]) for wave, size in zip(waves, (2.0, 1.0), strict=True)]
    values = np.concatenate(parts, axis=-1) + 5
    assert_alike(plane_waves(values, 2)[0], waves)
    values[np.random.default_rng(0).random(shape) < 0.2] = np.nan
    before = values.copy()
    found, shares = plane_waves(values, 2)
    assert_alike(found, waves)
    assert shares.sum() > 0.5
    np.testing.assert_array_equal(values, before)


def test_other_volumes_do_not_consist_of_waves():
    shape = 32, 32, 32
    x, y, z = np.meshgrid(*axis_coordinates(shape), indexing="ij")
    noise = np.random.default_rng(0).standard_normal(shape)
    for volume in (noise, np.exp(-4 * (x * x + y * y + z * z)), x + y * z, np.sin(20 * np.sqrt(x * x + y * y + z * z))):
        found, shares = plane_waves(volume.astype(np.float32)[..., None], 16)
        assert found.shape == (16, 3) and 0 < shares.sum() < 0.5
        assert waves_of(volume[..., None], 40, 0.5) is None
    found, shares = plane_waves(np.full((*shape, 1), 7.0), 16)
    assert found.shape == (0, 3) and shares.shape == (0,)
    assert np.isnan(plane_waves(np.full((*shape, 1), np.nan), 16)[1]).all()
    for value in (7.0, np.nan):
        assert waves_of(np.full((*shape, 1), value), 40, 0.5) is None


def test_of_a_large_volume_the_middle_is_looked_at(monkeypatch):
    monkeypatch.setattr(spectrum, "MOST_VOXELS", 30**3)
    shape, waves = (20, 50, 70), [[14.0, 30.0, -8.0]]
    values = sum_of_waves(shape, waves, [1.0])
    values[:, :10], values[:, 40:], values[:, :, :20], values[:, :, 50:] = [math.inf] * 4  # beyond the middle
    found, shares = plane_waves(values, 1)
    assert_alike(found, waves)
    assert shares[0] > 0.9
    assert waves_of(values, 40, 0.9).shape == (20, 3)  # a sine and a cosine of each for 40 neurons
