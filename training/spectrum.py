"""Finds the plane waves of which a volume consists: the peaks of its spectrum.

Lattices, standing waves and other patterns that repeat consist of a few. A network that starts from these waves is tens
of decibels better than one that has to find them.
"""

from __future__ import annotations

import math

import torch

from utils import voxel_size

MOST_VOXELS = 1 << 21  # of the part of a volume that is looked at: a pattern that repeats is in every part
NEAR = 1  # bins on each side of a peak that hold its energy
APART = 2  # bins on each side of a peak that are no further peak: Hann's window makes a peak four bins wide


def plane_waves(values: torch.Tensor, shape: tuple[int, ...], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n strongest plane waves of a volume, the strongest first, and the share of the variance that each has.

    values: (voxels, components), NaN where missing. shape: of the grid. Returns the frequencies (n, d_in), radians per
    unit of the normalised coordinates, float64, and the shares (n,), both on the CPU. A volume of fewer peaks gives
    fewer. Where all that is looked at is missing, all are NaN.

    The middle of the volume is weighted by Hann's window, so that its faces do not count as edges. Between two bins of
    the spectrum, the top of a parabola through the logarithms of three bins gives the frequency.
    """
    power = _power_spectrum(values.cpu(), shape)
    sizes, total = tuple(power.shape), float(power.sum())
    left = power.clone()
    left[_box((0,) * len(sizes), APART - 1, sizes)] = 0.0  # the window's own
    frequencies, shares = [], []
    while len(frequencies) < n:
        peak = tuple(int(i) for i in torch.unravel_index(left.argmax(), sizes))
        if left[peak] <= 1e-12 * total:
            break
        both = {peak, tuple(-i % size for i, size in zip(peak, sizes, strict=True))}  # a wave is at k and -k
        shares.append(sum(float(left[_box(at, NEAR, sizes)].sum()) for at in both) / total)
        for at in both:
            left[_box(at, APART, sizes)] = 0.0
        frequencies.append([
            2 * math.pi * _top(power, peak, axis) / (size * voxel_size(shape, axis)) if size > 1 else 0.0
            for axis, size in enumerate(sizes)
        ])  # fmt: skip
    return torch.tensor(frequencies, dtype=torch.float64).reshape(-1, len(shape)), torch.tensor(shares)


def _power_spectrum(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The power of each bin of the discrete Fourier transform of the middle of a volume, summed over its components."""
    side = int(MOST_VOXELS ** (1 / len(shape)))
    box = [slice(max(size - side, 0) // 2, max(size - side, 0) // 2 + side) for size in shape]
    grid = values.reshape(*shape, -1)[tuple(box)].double()
    weights, axes = (~grid[..., :1].isnan()).double(), tuple(range(len(shape)))
    for axis in axes:
        size = grid.shape[axis]
        window = torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]
        weights *= window.reshape([size if k == axis else 1 for k in range(grid.ndim)])
    grid = grid.nan_to_num()
    mean = (grid * weights).sum(axes) / weights.sum()
    return torch.fft.fftn((grid - mean) * weights, dim=axes).abs().square().sum(-1)


def _box(at: tuple[int, ...], reach: int, sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """The index of the bins at most `reach` from this one along each axis. The spectrum is periodic."""
    near = [torch.arange(i - reach, i + reach + 1).remainder(size).unique() for i, size in zip(at, sizes, strict=True)]
    return torch.meshgrid(*near, indexing="ij")


def _top(power: torch.Tensor, peak: tuple[int, ...], axis: int) -> float:
    """The number of the bin where the peak has its top along an axis, between -size / 2 and size / 2."""
    size = power.shape[axis]
    around = [(*peak[:axis], (peak[axis] + step) % size, *peak[axis + 1 :]) for step in (-1, 0, 1)]
    before, here, after = (math.log(max(float(power[at]), 1e-300)) for at in around)
    curvature = before - 2 * here + after
    shift = (before - after) / (2 * curvature) if curvature < 0 else 0.0
    return (peak[axis] - size if peak[axis] > size / 2 else peak[axis]) + min(max(shift, -0.5), 0.5)
