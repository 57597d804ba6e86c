"""Cuts a volume into bricks, and shares its parameters out to them by what each of them needs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cli.progress import Progress
from field.bricks import held_shape
from field.network_chunk import MAX_PARAMETERS
from siren import LEAST_NEURONS, MAX_NEURONS, SirenConfig, count_parameters
from training.recipe import BATCH, MAX_PASSES, MIN_STEPS, default_passes, passes_for_min_steps, training_work
from training.streaming import unpacked
from utils import Box, Geometry, Mask, UserError, ValueRange, Volume, VolumeHeader, drop_pages, shape_of

PARAMETERS = 10_000  # of a brick's network, in the mean. Of 5,000 and 12,000 the larger is as fast, and has fewer seams
MOST_SHARE = 0.25  # most parameters of a brick's network / its voxels
# `--bricks auto` cuts a volume whose single network would be more `training_work`. On one core, 1e12 are 3 minutes. In
# this time, bricks of two volumes of 3 million voxels are 1.4 and 1.7 dB better. Four bricks on one side of a symmetric
# scan of the head, 4.4 million voxels, are 2.6 dB better than one.
ONE_NETWORK_WORK = {"cpu": 2e12, "cuda": 4e14}
BRICKS_WORK = {"cpu": 4e12, "cuda": 4e14}  # most work of all bricks together, by default
LEAST_PASSES = 8.0  # over each brick, by default
BLOCK = 4  # side of the blocks of voxels that `detail` compares with planes


def counts_for(shape: tuple[int, ...], n_parameters: float, passes: float | None, device: str) -> tuple[int, ...]:
    """The number of bricks along each axis by `--bricks auto`: 1 each where one network takes minutes.

    n_parameters: of all networks. passes: over the volume, None for the default. device: "cpu" or "cuda".
    """
    n_voxels = math.prod(shape)
    n_samples = n_voxels * (passes or default_passes(n_voxels, device == "cuda"))
    is_enough = training_work(n_samples, n_parameters) <= ONE_NETWORK_WORK[device]
    return (1,) * len(shape) if is_enough else counts_of_bricks(shape, n_parameters)


def counts_of_bricks(shape: tuple[int, ...], n_parameters: float) -> tuple[int, ...]:
    """The number of bricks along each axis that have about PARAMETERS each. n_parameters: of all of them."""
    n_voxels, space = math.prod(shape), shape[-3:]
    n_bricks, left = max(min(n_parameters, MOST_SHARE * n_voxels) / PARAMETERS, 1.0), sorted(space)
    side = (math.prod(left) / n_bricks) ** (1 / len(left))
    while left[0] < side:  # a thin axis is not cut, and the others so much the more
        left.pop(0)
        side = (math.prod(left) / n_bricks) ** (1 / len(left))
    counts = tuple(max(1, min(round((n - 1) / side), n - 1)) for n in space)
    return (1,) * (len(shape) - len(space)) + counts


def passes_for(n_voxels: int, n_parameters: float, n_bricks: int, device: str, n_images: float = 1.0) -> float:
    """The number of passes over each brick by default: as many as BRICKS_WORK allows on the device, within limits.

    The limits are LEAST_PASSES and the passes of a volume of a brick's size. n_voxels: that bricks hold. n_parameters:
    of all networks. n_images: voxels of the volume for each voxel that is held; a pass over it then counts as many.
    """
    allowed = BRICKS_WORK[device] / training_work(n_voxels, n_parameters / n_bricks)
    most = max(n_images * MAX_PASSES, passes_for_min_steps(math.ceil(n_voxels / n_bricks)))
    return round(min(max(allowed, LEAST_PASSES), most), 1)


def passes_over(n_passes: float, n_present: int, n_voxels: int) -> float:
    """The passes over a brick of which only `n_present` voxels are not missing: `n_passes` or more.

    They are at least as many steps as a whole brick of `n_voxels` gets, but at most MIN_STEPS for this.
    """
    steps = min(n_passes * math.ceil(n_voxels / BATCH), MIN_STEPS)
    return max(n_passes, steps / math.ceil(max(n_present, 1) / BATCH))


def count_held(header: VolumeHeader, mirrors: tuple[int, ...]) -> int:
    """The number of voxels that bricks hold and that are not missing. No voxel of a volume with mirrors is missing."""
    return math.prod(held_shape(header.shape, mirrors)) if mirrors else header.n_present


def missing_in(header: VolumeHeader, box: Box) -> Mask | None:
    """The mask of a box of the volume, as of a `brick_volume`; None when no voxel of it is missing."""
    if not header.missing:
        return None
    index = np.ix_(*(np.arange(cut.start, cut.stop) for cut in box))
    mask = Mask.of(shape_of(box), np.float32(np.nan), [header.missing.at(index)])
    return mask if mask.bits.any() else None


def ready_to_cut(volume: Volume) -> Volume:
    """The volume, its values `unpacked`: a chunk has parts of several bricks. Raises UserError."""
    return Volume(unpacked(volume.values), volume.geometry, volume.fill)


def brick_volume(volume: Volume, values: ValueRange, box: Box) -> Volume:
    """A brick as a volume: normalised values of the whole volume, float32, NaN where missing."""
    fill = None if values.fill is None else np.float32(np.nan)
    brick = Volume(values.normalise(volume.values[box]), Geometry.plain(len(box)), fill)
    drop_pages(volume.values)
    return brick


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


class Survey(NamedTuple):
    """What one pass over the volume tells of each brick. low, high, mean: (bricks, components), normalised values.

    low, high: see `with_one_extent`.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    detail: np.ndarray
    n_voxels: np.ndarray  # that are not missing
    variance: float  # of all values
    crc32: int  # of all values

    @property
    def is_constant(self) -> np.ndarray:
        """Whether a brick needs no network, (bricks,)."""
        return (self.low == self.high).all(axis=1)

    @property
    def medium_size(self) -> int:
        """The voxels, without missing ones, of a brick that is not constant, in the mean; at least 1."""
        n_voxels = self.n_voxels[~self.is_constant]
        return max(round(n_voxels.mean()), 1) if len(n_voxels) else 1


def survey(
    volume: Volume, values: ValueRange, boxes: Sequence[Box], progress: Progress, with_detail: bool = True
) -> Survey:
    """The Survey of a volume. A brick without a voxel that is not missing counts as constant.

    with_detail: whether to look at it, which takes two thirds of the time.
    """
    columns, crc32 = [], 0
    for box in boxes:
        brick = brick_volume(volume, values, box).values
        crc32 = zlib.crc32(np.ascontiguousarray(brick), crc32)
        present = brick[~np.isnan(brick).any(axis=-1)]
        n_present = len(present)
        present = present if n_present else np.zeros((1, brick.shape[-1]), np.float32)
        mean, variance = present.mean(axis=0, dtype=np.float64), present.var(axis=0, dtype=np.float64)
        ends = present.min(axis=0), present.max(axis=0), mean.astype(np.float32)
        columns.append((*ends, variance, detail(brick) if with_detail else math.nan, n_present))
        progress.advance(1 / len(boxes))
    low, high, mean, variances, details, n_voxels = map(np.array, zip(*columns, strict=True))
    weights = n_voxels[:, None] / n_voxels.sum()
    between = np.square(mean - (weights * mean).sum(axis=0))
    variance = float((weights * (variances + between)).sum(axis=0).mean())
    return Survey(*with_one_extent(low, high), mean, details, n_voxels, variance, crc32)


def shared_out(n_parameters: float, need: np.ndarray, n_voxels: np.ndarray, fields: dict) -> list[SirenConfig | None]:
    """The network of each brick. All of them together have about `n_parameters`; a brick that needs 0 has none.

    need: what each brick needs of them, in any unit. n_voxels: of each brick. fields: of SirenConfig, but the width.
    Raises UserError for more parameters than a file can hold.
    """
    least = count_parameters(SirenConfig(LEAST_NEURONS, **fields))
    most = np.maximum(MOST_SHARE * n_voxels, least)
    low, high = 0.0, n_parameters / max(need[need > 0].min(initial=math.inf), 1e-300)
    for _ in range(100):  # the share of each need that uses up the parameters
        share = (low + high) / 2
        sizes = np.where(need > 0, np.clip(share * need, least, most), 0.0)
        low, high = (share, high) if sizes.sum() < n_parameters else (low, share)
    configs = [SirenConfig(width_for(size, fields), **fields) if size else None for size in sizes]
    n_all = sum(count_parameters(config) for config in configs if config)
    if n_all > MAX_PARAMETERS:
        way_out = "a larger --compression_ratio or fewer --bricks give fewer"
        raise UserError(f"bricks of {n_all} parameters in all, a file can hold at most {MAX_PARAMETERS}: {way_out}")
    return configs


def width_for(n_parameters: float, fields: dict) -> int:
    """The width, LEAST_NEURONS to MAX_NEURONS, whose number of parameters is the nearest to `n_parameters`."""

    def size(width: int) -> int:
        return count_parameters(SirenConfig(width, **fields))

    width = LEAST_NEURONS
    while width < MAX_NEURONS and size(width) + size(width + 1) < 2 * n_parameters:
        width += 1
    return width
