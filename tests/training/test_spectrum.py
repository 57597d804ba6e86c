"""The plane waves of which a volume consists."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training import spectrum
from training.spectrum import explained_share, plane_waves, waves_of
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
        ((400,), [[31.3], [75.0]]),
        ((40, 30), [[0.0, 20.0], [16.0, -24.1]]),
        ((40, 36, 44), [[14.0, 0.0, -14.0], [3.1, 22.0, 9.0], [0.0, 0.0, 30.3]]),
        ((1, 40, 44), [[0.0, 13.0, 20.0], [0.0, 33.0, -8.0]]),
        ((12, 14, 16, 18), [[12.0, 0.0, 16.0, 0.0], [0.0, 17.0, -11.0, 18.0]]),
    ],
)
def test_the_waves_of_a_sum_are_found(shape, frequencies):
    """The strongest one first. Each explains what half the square of its amplitude is of the variance."""
    amplitudes = [2.0, 1.4, 1.0][: len(frequencies)]
    values = sum_of_waves(shape, frequencies, amplitudes)
    found = plane_waves(values, len(frequencies))
    assert_alike(found, frequencies)
    shares = np.square(amplitudes) / np.square(amplitudes).sum()
    for n in range(1, len(frequencies) + 1):
        assert explained_share(values, np.array(frequencies)[:n]) == pytest.approx(shares[:n].sum(), abs=0.1)
    assert waves_of(values, 1, 0.8) is not None


def test_components_and_missing_voxels():
    shape, waves = (30, 32, 34), [[18.0, 0.0, 12.0], [0.0, 25.0, 0.0]]
    parts = [sum_of_waves(shape, [wave], [size]) for wave, size in zip(waves, (2.0, 1.0), strict=True)]
    values = np.concatenate(parts, axis=-1) + 5
    assert_alike(plane_waves(values, 2), waves)
    values[np.random.default_rng(0).random(shape) < 0.2] = np.nan
    before = values.copy()
    assert_alike(plane_waves(values, 2), waves)
    assert explained_share(values, np.array(waves)) > 0.99 and waves_of(values, 1, 0.8) is not None
    np.testing.assert_array_equal(values, before)


def test_other_volumes_do_not_consist_of_waves():
    shape = 32, 32, 32
    x, y, z = np.meshgrid(*axis_coordinates(shape), indexing="ij")
    noise = np.random.default_rng(0).standard_normal(shape)
    for volume in (noise, np.exp(-4 * (x * x + y * y + z * z)), x + y * z, np.sin(20 * np.sqrt(x * x + y * y + z * z))):
        assert plane_waves(volume.astype(np.float32)[..., None], 16).shape == (16, 3)
        assert waves_of(volume[..., None], 40, 0.4) is None
    for value in (7.0, np.nan):  # without a variance
        assert plane_waves(np.full((*shape, 1), value), 16).shape == (0, 3)
        assert waves_of(np.full((*shape, 1), value), 40, 0.0) is None
    few = noise[:6, :6, :6, None]  # of so few voxels, any waves explain much
    assert explained_share(few, plane_waves(noise[..., None], 16)) == 0.0


def test_of_a_large_volume_the_middle_is_looked_at(monkeypatch):
    monkeypatch.setattr(spectrum, "MOST_VOXELS", 30**3)
    shape, waves = (20, 50, 70), [[14.0, 30.0, -8.0]]
    values = sum_of_waves(shape, waves, [1.0])
    values[:, :10], values[:, 40:], values[:, :, :20], values[:, :, 50:] = [math.inf] * 4  # beyond the middle
    assert_alike(plane_waves(values, 1), waves)
    assert waves_of(values, 40, 0.9).shape == (20, 3)  # a sine and a cosine of each for 40 neurons
    assert spectrum._middle(values).shape == (20, 30, 30, 1)
