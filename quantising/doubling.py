"""What the next doubling of a network would gain, predicted by the cosine transform of the volume.

The more coefficients of the transform are kept, the higher is the PSNR. At the PSNR of the network, half of them would
have had so much less. The next doubling of the network gains about as much.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from training.recipe import error_of, psnr_of
from utils import Box, ValueRange, Volume

# The volume is transformed in blocks of at most about so many voxels, with at most so many along an axis.
BLOCK_VOXELS, MOST_SIDE = 1 << 15, 256
MOST_VALUES = 1 << 22  # of a larger volume, random blocks stand for all


def gain_of_doubling(volume: Volume, value_range: ValueRange, psnr: float) -> float:
    """The PSNR in dB that twice the weights would add to a network of this PSNR. value_range: of the header."""
    blocks = (value_range.normalise(volume.values[box]) for box in _blocks(volume.values.shape))
    energies = np.sort(np.concatenate([_energies(block) for block in blocks]))
    errors = energies.cumsum() / max(len(energies), 1)  # mean squared error without a coefficient and all smaller ones
    n_kept = len(energies) - int(np.searchsorted(errors, error_of(psnr)))
    return psnr - psnr_of(float(errors[-1 - n_kept // 2])) if n_kept > 1 else 0.0


def _blocks(shape: tuple[int, ...]) -> list[Box]:
    """Blocks of a volume (grid..., components): all, or random ones of a large volume."""
    grid = shape[:-1]
    side = min(round(BLOCK_VOXELS ** (1 / len(grid))), MOST_SIDE)
    counts = [math.ceil(n / side) for n in grid]
    n_blocks, n_values = math.prod(counts), math.prod(shape)
    n_chosen = n_blocks if n_values <= MOST_VALUES else max(n_blocks * MOST_VALUES // n_values, 1)
    chosen = np.sort(np.random.default_rng(0).choice(n_blocks, n_chosen, replace=False))
    ends = [np.linspace(0, n, count + 1).round().astype(int).tolist() for n, count in zip(grid, counts, strict=True)]
    places = zip(*(index.tolist() for index in np.unravel_index(chosen, counts)), strict=True)
    return [tuple(slice(*at[i : i + 2]) for at, i in zip(ends, place, strict=True)) for place in places]


def _energies(block: np.ndarray) -> np.ndarray:
    """The squared coefficients of a block (grid..., components), NaN where missing: the mean stands for these."""
    is_missing = np.isnan(block)
    if is_missing.all():
        return np.empty(0)
    axes = tuple(range(block.ndim - 1))
    coefficients = np.where(is_missing, np.nan_to_num(block).sum(axes) / np.count_nonzero(~is_missing, axes), block)
    for axis in axes:
        along = np.tensordot(_cosines(block.shape[axis]), coefficients, (1, axis))
        coefficients = np.moveaxis(along, 0, axis)
    return np.square(coefficients).ravel()


@functools.cache
def _cosines(n: int) -> np.ndarray:
    """The orthonormal matrix (n, n) of the discrete cosine transform (DCT-II)."""
    number = np.arange(n)
    matrix = np.cos(np.pi / n * (number + 0.5) * number[:, None]) * math.sqrt(2 / n)
    matrix[0] *= math.sqrt(0.5)
    return matrix
