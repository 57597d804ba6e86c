"""Finds the plane waves of which a volume consists: the peaks of its spectrum.

Lattices, standing waves and other patterns that repeat consist of a few. A network that starts from these waves is tens
of decibels better than one that has to find them.
"""

from __future__ import annotations

import math

import numpy as np

from utils import voxel_size

# A volume consists of plane waves if a sum of so many explains most of its variance. The sum explains 0.5 to 1 of the
# variance of lattices, 0.1 to 0.85 of that of layers and wave packets, at most 0.85 of that of lines, and at most 0.35
# of that of other images and volumes. The trials decide.
N_WAVES = 16
TRIED_SHARE = 0.45  # of the variance, above which networks that start from the waves compete
SURE_SHARE = 0.9  # above which they are taken where there are no trials
MOST_VOXELS = 1 << 21  # of the part of a volume that is looked at: a pattern that repeats is in every part
N_SAMPLES = 1 << 13  # voxels that tell what waves explain
APART = 2  # bins on each side of a peak that are no further peak: Hann's window makes a peak four bins wide


def waves_of(values: np.ndarray, n_neurons: int, share: float) -> np.ndarray | None:
    """The frequencies of the `plane_waves` of a volume, if N_WAVES of them explain more than a share of its variance.

    n_neurons: the width of the network that starts from these waves: a sine and a cosine of each.
    """
    frequencies = plane_waves(values, max(N_WAVES, math.ceil(n_neurons / 2)))
    return frequencies if explained_share(values, frequencies[:N_WAVES]) > share else None


def plane_waves(values: np.ndarray, n: int) -> np.ndarray:
    """The frequencies (n, d_in) of the n strongest plane waves of a volume, radians per unit of the coordinates.

    values: (grid..., components), NaN where missing. A volume of fewer peaks gives fewer.

    The middle of the volume is weighted by Hann's window, so that its faces do not count as edges. Between two bins of
    the spectrum, the top of a parabola through the logarithms of three bins gives the frequency.
    """
    power = _power_spectrum(_middle(values))
    sizes, least = power.shape, 1e-12 * power.sum()
    units = [2 * math.pi / (size * voxel_size(values.shape[:-1], axis)) for axis, size in enumerate(sizes)]
    left, frequencies = power.copy(), []
    left[_box((0,) * len(sizes), APART - 1, sizes)] = 0.0  # what varies slowly is no pattern that repeats
    while len(frequencies) < n:
        peak = tuple(map(int, np.unravel_index(left.argmax(), sizes)))
        if not left[peak] > least:  # true for NaN, where all is missing
            break
        frequencies.append([_top(power, peak, axis) * unit for axis, unit in enumerate(units)])
        for at in (peak, tuple(-i % size for i, size in zip(peak, sizes, strict=True))):  # a wave is at k and -k
            left[_box(at, APART, sizes)] = 0.0
    return np.reshape(frequencies, (-1, len(sizes)))


def explained_share(values: np.ndarray, frequencies: np.ndarray) -> float:
    """The share of a volume's variance that the best sum of waves of these frequencies explains, at some voxels.

    It is 0 where too few voxels are present to tell.
    """
    part = _middle(values)
    present = np.flatnonzero(~np.isnan(part[..., 0]))
    if len(present) < 10 * (1 + 2 * len(frequencies)):
        return 0.0
    chosen = np.unravel_index(np.random.default_rng(0).choice(present, N_SAMPLES), part.shape[:-1])
    scales = [voxel_size(values.shape[:-1], axis) for axis in range(len(chosen))]
    phases = np.stack(chosen, axis=1) * scales @ frequencies.T
    terms = np.concatenate([np.ones((N_SAMPLES, 1)), np.cos(phases), np.sin(phases)], axis=1)
    found = part[chosen].astype(np.float64)
    left = found - terms @ np.linalg.lstsq(terms, found)[0]
    variance = found.var(axis=0).sum()
    return 1 - left.var(axis=0).sum() / variance if variance else 0.0


def _middle(values: np.ndarray) -> np.ndarray:
    """The part of a volume that is looked at."""
    *grid, _ = values.shape
    most = round(MOST_VOXELS ** (1 / len(grid)))  # the root may be 127.999...
    return values[tuple(slice(max(n - most, 0) // 2, max(n - most, 0) // 2 + most) for n in grid)]


def _power_spectrum(values: np.ndarray) -> np.ndarray:
    """The power of each bin of the discrete Fourier transform of a volume, summed over its components."""
    axes = tuple(range(values.ndim - 1))
    weights = ~np.isnan(values[..., :1])
    for axis in axes:
        window = np.hanning(values.shape[axis] + 2)[1:-1]
        weights = weights * window.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    values = np.where(weights > 0, values, 0.0)
    with np.errstate(invalid="ignore"):  # all are missing
        mean = (values * weights).sum(axis=axes) / weights.sum()
        return np.square(np.abs(np.fft.fftn((values - mean) * weights, axes=axes))).sum(axis=-1)


def _box(at: tuple[int, ...], reach: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The index of the bins at most `reach` from this one along each axis. The spectrum is periodic."""
    return np.ix_(*(np.arange(i - reach, i + reach + 1) % size for i, size in zip(at, sizes, strict=True)))


def _top(power: np.ndarray, peak: tuple[int, ...], axis: int) -> float:
    """The number of the bin where the peak has its top along an axis, between -size / 2 and size / 2."""
    size = power.shape[axis]
    around = [(*peak[:axis], (peak[axis] + step) % size, *peak[axis + 1 :]) for step in (-1, 0, 1)]
    before, here, after = (math.log(max(power[at], 1e-300)) for at in around)
    curvature = before - 2 * here + after
    shift = (before - after) / (2 * curvature) if curvature < 0 else 0.0
    return (peak[axis] - size if peak[axis] > size / 2 else peak[axis]) + min(max(shift, -0.5), 0.5)
