"""One pass over a volume in bricks, before any fit: the range, the mean and the detail of each brick."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cli.progress import Progress
from training.streaming import unpacked
from utils import Box, Geometry, Mask, ValueRange, Volume, VolumeHeader, drop_pages, shape_of

BLOCK = 4  # side of the blocks of voxels that `detail` compares with planes


class Survey(NamedTuple):
    """What one pass over the volume tells of each brick, in normalised values of the whole volume.

    low, high, mean: (bricks, components); for the first two see `with_one_extent`. detail: (bricks,), see `detail`.
    n_present: (bricks,) the number of voxels that are not missing. variance, crc32: of all values of the volume.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    detail: np.ndarray
    n_present: np.ndarray
    variance: float
    crc32: int

    @property
    def is_constant(self) -> np.ndarray:
        """Whether a brick needs no network, (bricks,)."""
        return (self.low == self.high).all(axis=1)

    @property
    def medium_size(self) -> int:
        """The voxels, without missing ones, of a brick that is not constant, in the mean; at least 1."""
        sizes = self.n_present[~self.is_constant]
        return max(round(sizes.mean()), 1) if len(sizes) else 1


def survey(volume: Volume, value_range: ValueRange, boxes: Sequence[Box], progress: Progress) -> Survey:
    """The Survey of a volume. A brick without a voxel that is not missing counts as constant."""
    columns, crc32 = [], 0
    for box in boxes:
        brick = brick_volume(volume, value_range, box).values
        crc32 = zlib.crc32(np.ascontiguousarray(brick), crc32)
        present = brick[~np.isnan(brick).any(axis=-1)]
        count = len(present)
        present = present if count else np.zeros((1, brick.shape[-1]), np.float32)
        mean, variance = present.mean(axis=0, dtype=np.float64), present.var(axis=0, dtype=np.float64)
        ends = present.min(axis=0), present.max(axis=0), mean.astype(np.float32)
        columns.append((*ends, variance, detail(brick), count))
        progress.advance(1 / len(boxes))
    low, high, mean, variances, details, n_present = map(np.array, zip(*columns, strict=True))
    weights = n_present[:, None] / n_present.sum()
    between = np.square(mean - (weights * mean).sum(axis=0))
    variance = float((weights * (variances + between)).sum(axis=0).mean())
    return Survey(*with_one_extent(low, high), mean, details, n_present, variance, crc32)


def brick_volume(volume: Volume, value_range: ValueRange, box: Box) -> Volume:
    """A brick as a volume: normalised values of the whole volume, float32, NaN where missing."""
    fill = None if value_range.fill is None else np.float32(np.nan)
    brick = Volume(value_range.normalise(volume.values[box]), Geometry.plain(len(box)), fill)
    drop_pages(volume.values)
    return brick


def missing_in(header: VolumeHeader, box: Box) -> Mask | None:
    """The mask of a `brick_volume`, from the header alone; None when no voxel of it is missing."""
    if not header.missing:
        return None
    index = np.ix_(*(np.arange(cut.start, cut.stop) for cut in box))
    mask = Mask.of(shape_of(box), np.float32(np.nan), header.missing.at(index))
    return mask if mask.bits.any() else None


def ready_to_cut(volume: Volume) -> Volume:
    """The volume, its values `unpacked`: a chunk has parts of several bricks. Raises UserError."""
    return Volume(unpacked(volume.values), volume.geometry, volume.fill)


def with_one_extent(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of bricks, float32 (..., components), widened so that all components of a brick have the same extent.

    An error of one component then counts as much as of another one, as in the volume. They stay within -1 to 1.
    """
    extent = (high.astype(np.float64) - low).max(axis=-1, keepdims=True)
    start = np.clip((high.astype(np.float64) + low - extent) / 2, -1.0, 1.0 - extent)
    return np.minimum(start.astype(np.float32), low), np.maximum((start + extent).astype(np.float32), high)


def error_factor(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The factor (...) that makes a squared error of a brick, in its own range, one in the range of the volume.

    low, high: (..., components) of bricks, in normalised values of the volume.
    """
    return np.square((high.astype(np.float64) - low) / 2).mean(axis=-1)


def detail(normalised: np.ndarray) -> float:
    """What is finer than a few voxels: the squared error that planes leave in blocks, summed over all voxels.

    normalised: (grid..., components), NaN where missing; there, the error counts as 0. A block has BLOCK voxels a side.
    Where blocks do not fit into a side, they overlap. Blocks with hardly more voxels than a plane has terms count as
    the mean of the others; if there are no others, the error is that of a constant.
    """
    blocks, sides = _blocks(normalised)
    is_present = ~np.isnan(blocks).any(axis=-1, keepdims=True)
    if not is_present.any():
        return 0.0
    blocks = np.where(is_present, blocks, np.float32(0))
    sizes, n_terms = is_present[..., 0].sum(axis=1), 1 + sum(side > 1 for side in sides)
    used = sizes > 2 * n_terms
    if used.any():
        planes = _planes(blocks, is_present, sides)
        squares = np.square((blocks - planes) * is_present).sum(axis=(1, 2), dtype=np.float64)
        share = 1 - n_terms / math.prod(sides)  # of the variance that a plane leaves in a whole block of noise
        n = sizes[used]
        mean = share * (squares[used] * n / (n - n_terms)).sum() / n.sum()
    else:
        mean = np.square(blocks - blocks.mean(axis=(0, 1), where=is_present)).mean(where=is_present) * blocks.shape[-1]
    return float(mean) * np.count_nonzero(~np.isnan(normalised).any(axis=-1))


def _blocks(normalised: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The blocks of `detail`, (blocks, voxels, components), and the voxels along each side of a block."""
    *grid, d_out = normalised.shape
    sides = [min(BLOCK, n) for n in grid]
    firsts = [np.linspace(0, n - side, -(-n // side)).round() for n, side in zip(grid, sides, strict=True)]
    indices = [np.add.outer(first, np.arange(side)).astype(int) for first, side in zip(firsts, sides, strict=True)]
    blocks = normalised[np.ix_(*(index.ravel() for index in indices))]
    # Each axis becomes two: the block's number along it, and the voxel in the block. The numbers go to the front.
    blocks = blocks.reshape(*(length for index in indices for length in index.shape), d_out)
    axes = range(2 * len(grid))
    return blocks.transpose(*axes[::2], *axes[1::2], -1).reshape(-1, math.prod(sides), d_out), sides


def _planes(blocks: np.ndarray, is_present: np.ndarray, sides: list[int]) -> np.ndarray:
    """The plane in each block, of its shape: the best constant and slopes, by least squares, for what is present."""
    offsets = [axis.ravel() - (side - 1) / 2 for axis, side in zip(np.indices(sides), sides, strict=True)]
    terms = np.stack([np.ones(math.prod(sides)), *offsets], axis=1)  # (voxels, terms)
    n_terms = terms.shape[1]
    products = is_present[..., 0] @ (terms[:, :, None] * terms[:, None, :]).reshape(len(terms), -1)
    matrices = products.reshape(-1, n_terms, n_terms) + 1e-6 * np.eye(n_terms)  # not singular
    terms = terms.astype(np.float32)
    return terms @ np.linalg.solve(matrices, terms.T @ blocks).astype(np.float32)
