"""Finds the plane waves of which a volume consists: the peaks of its spectrum.

Lattices, standing waves and other patterns that repeat consist of a few. A network that starts from these waves is tens
of decibels better than one that has to find them.
"""

from __future__ import annotations

import math

import numpy as np

from utils import voxel_size

# A volume consists of plane waves if so many have most of its variance: of lattices 0.65 to 1, of others at most 0.45.
# Above the first share, networks that start from them compete; above the second one, they are taken without a trial.
N_WAVES, TRIED_SHARE, SURE_SHARE = 16, 0.75, 0.9
MOST_VOXELS = 1 << 21  # of the part of a volume that is looked at: a pattern that repeats is in every part
NEAR = 1  # bins on each side of a peak that hold its energy
APART = 2  # bins on each side of a peak that are no further peak: Hann's window makes a peak four bins wide


def waves_of(values: np.ndarray, n_neurons: int, share: float) -> np.ndarray | None:
    """The frequencies of the `plane_waves` of a volume, if N_WAVES of them have more than this share of its variance.

    n_neurons: the width of the network that starts from these waves: a sine and a cosine of each.
    """
    frequencies, shares = plane_waves(values, max(N_WAVES, math.ceil(n_neurons / 2)))
    return frequencies if shares[:N_WAVES].sum() > share else None


def plane_waves(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n strongest plane waves of a volume, the strongest first, and the share of the variance that each has.

    values: (grid..., components), NaN where missing. Returns the frequencies (n, d_in), radians per unit of the
    normalised coordinates, and the shares (n,). A volume of fewer peaks gives fewer. Where all that is looked at is
    missing, all are NaN.

    The middle of the volume is weighted by Hann's window, so that its faces do not count as edges. Between two bins of
    the spectrum, the top of a parabola through the logarithms of three bins gives the frequency.
    """
    power = _power_spectrum(values)
    sizes, total = power.shape, power.sum()
    left = power.copy()
    left[_box((0,) * len(sizes), APART - 1, sizes)] = 0.0  # the window's own
    frequencies, shares = [], []
    while len(frequencies) < n:
        peak = tuple(map(int, np.unravel_index(left.argmax(), sizes)))
        if left[peak] <= 1e-12 * total:
            break
        both = {peak, tuple(-i % size for i, size in zip(peak, sizes, strict=True))}  # a wave is at k and -k
        shares.append(sum(left[_box(at, NEAR, sizes)].sum() for at in both) / total)
        for at in both:
            left[_box(at, APART, sizes)] = 0.0
        per_bin = [2 * math.pi / (size * voxel_size(values.shape[:-1], k)) for k, size in enumerate(sizes)]
        frequencies.append([_top(power, peak, axis) * unit for axis, unit in enumerate(per_bin)])
    return np.reshape(frequencies, (-1, len(sizes))), np.array(shares)


def _power_spectrum(values: np.ndarray) -> np.ndarray:
    """The power of each bin of the discrete Fourier transform of the middle of a volume, summed over its components."""
    axes = range(values.ndim - 1)
    most = int(MOST_VOXELS ** (1 / len(axes)))
    grid = values[tuple(slice(max(n - most, 0) // 2, max(n - most, 0) // 2 + most) for n in values.shape[:-1])]
    weights = ~np.isnan(grid[..., :1])
    for axis in axes:
        window = np.hanning(grid.shape[axis] + 2)[1:-1]
        weights = weights * window.reshape([-1 if k == axis else 1 for k in range(grid.ndim)])
    with np.errstate(invalid="ignore"):  # all are missing
        grid = np.where(weights > 0, grid, 0.0)
        mean = (grid * weights).sum(axis=tuple(axes)) / weights.sum()
        return np.square(np.abs(np.fft.fftn((grid - mean) * weights, axes=tuple(axes)))).sum(axis=-1)


def _box(at: tuple[int, ...], reach: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The index of the bins at most `reach` from this one along each axis. The spectrum is periodic."""
    near = (np.arange(i - reach, i + reach + 1) % size for i, size in zip(at, sizes, strict=True))
    return np.ix_(*map(np.unique, near))


def _top(power: np.ndarray, peak: tuple[int, ...], axis: int) -> float:
    """The number of the bin where the peak has its top along an axis, between -size / 2 and size / 2."""
    size = power.shape[axis]
    around = [(*peak[:axis], (peak[axis] + step) % size, *peak[axis + 1 :]) for step in (-1, 0, 1)]
    before, here, after = (math.log(max(power[at], 1e-300)) for at in around)
    curvature = before - 2 * here + after
    shift = (before - after) / (2 * curvature) if curvature < 0 else 0.0
    return (peak[axis] - size if peak[axis] > size / 2 else peak[axis]) + min(max(shift, -0.5), 0.5)
