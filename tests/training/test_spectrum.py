"""The plane waves of which a volume consists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training import spectrum
from training.spectrum import plane_waves
from utils import axis_coordinates


def sum_of_waves(shape, frequencies, amplitudes):
    """The volume (voxels, 1) of waves of these frequencies, radians per unit."""
    grid = np.stack(np.meshgrid(*axis_coordinates(shape), indexing="ij"), axis=-1)
    phases = grid @ np.array(frequencies, float).T + np.arange(len(frequencies))
    return torch.from_numpy(np.cos(phases) @ np.array(amplitudes, float)).float().reshape(-1, 1)


def assert_alike(found, expected, within=0.3):
    """A wave has two frequencies, k and -k."""
    assert found.shape == (len(expected), len(expected[0]))
    for row, other in zip(found.numpy(), np.array(expected, float), strict=True):
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
    found, shares = plane_waves(sum_of_waves(shape, frequencies, amplitudes), shape, len(frequencies))
    assert_alike(found, frequencies)
    expected = np.square(amplitudes) / np.square(amplitudes).sum()
    assert shares.numpy() == pytest.approx(expected, abs=0.1)


def test_components_and_missing_voxels():
    shape, waves = (30, 32, 34), [[18.0, 0.0, 12.0], [0.0, 25.0, 0.0]]
    values = torch.cat([sum_of_waves(shape, [wave], [size]) for wave, size in zip(waves, (2.0, 1.0), strict=True)], 1)
    values += 5.0
    assert_alike(plane_waves(values, shape, 2)[0], waves)
    values[torch.rand(len(values), generator=torch.Generator().manual_seed(0)) < 0.2] = math.nan
    before = values.clone()
    found, shares = plane_waves(values, shape, 2)
    assert_alike(found, waves)
    assert float(shares.sum()) > 0.5 and torch.equal(values.nan_to_num(), before.nan_to_num())


def test_other_volumes_do_not_consist_of_waves():
    shape = 32, 32, 32
    x, y, z = np.meshgrid(*axis_coordinates(shape), indexing="ij")
    noise = np.random.default_rng(0).standard_normal(shape)
    for volume in (noise, np.exp(-4 * (x * x + y * y + z * z)), x + y * z, np.sin(20 * np.sqrt(x * x + y * y + z * z))):
        values = torch.from_numpy(volume.astype(np.float32)).reshape(-1, 1)
        found, shares = plane_waves(values, shape, 16)
        assert found.shape == (16, 3) and 0 < float(shares.sum()) < 0.5
    found, shares = plane_waves(torch.full((32**3, 1), 7.0), shape, 16)
    assert found.shape == (0, 3) and shares.shape == (0,)
    assert plane_waves(torch.full((32**3, 1), math.nan), shape, 16)[1].isnan().all()


def test_of_a_large_volume_the_middle_is_looked_at(monkeypatch):
    monkeypatch.setattr(spectrum, "MOST_VOXELS", 30**3)
    shape, waves = (20, 50, 70), [[14.0, 30.0, -8.0]]
    values = sum_of_waves(shape, waves, [1.0]).reshape(*shape, 1)
    values[:, :10], values[:, 40:], values[:, :, :20], values[:, :, 50:] = [math.inf] * 4  # beyond the middle
    found, shares = plane_waves(values.reshape(-1, 1), shape, 1)
    assert_alike(found, waves)
    assert float(shares[0]) > 0.9
