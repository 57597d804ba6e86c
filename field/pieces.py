"""Where the bricks of a cut field have a weight: the pieces of a box of a grid, or of a list of points.

A piece is a brick and the positions at which it has a weight. Away from the cuts a position has one brick; in a cut
zone, which reaches half a voxel to either side of a cut, it has two along this axis, so at most 2^d_in in all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from utils import Box, Grid, shape_of


def bricks_along(p: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The brick of each position along an axis, in a cut zone the lower one; and whether the position lies in a zone.

    p: in voxels, float64. cuts: bricks.cuts of the axis.
    """
    inner = cuts[1:-1]
    lower = np.searchsorted(inner + 0.5, p, side="right")
    return lower, p > np.append(inner - 0.5, np.inf)[lower]


def weight_along(p: np.ndarray, cuts: np.ndarray, brick: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The weight along an axis of one of its bricks at positions of the brick, and the derivative of this weight.

    Both None: 1 and 0 at all positions.
    """
    factors, slopes = [], []
    if brick > 0:
        t = np.clip(p - cuts[brick] + 0.5, 0.0, 1.0)
        if (t < 1.0).any():
            factors.append(t * t * (3.0 - 2.0 * t))
            slopes.append(6.0 * t * (1.0 - t))
    if brick < len(cuts) - 2:
        t = np.clip(p - cuts[brick + 1] + 0.5, 0.0, 1.0)
        if (t > 0.0).any():
            factors.append(1.0 - t * t * (3.0 - 2.0 * t))
            slopes.append(-6.0 * t * (1.0 - t))
    return (math.prod(factors), sum(slopes)) if factors else (None, None)  # a position lies in one zone at most


class Piece(NamedTuple):
    """The positions of a box, or of a list, at which a brick has a weight."""

    brick: tuple[int, ...]  # its number along each axis
    index: tuple[slice | np.ndarray, ...]  # of the positions: what indexes an array of the box's shape
    local: Grid | np.ndarray  # the positions in voxels of the brick; an array is (n, d_in)
    # The brick's weight along each axis, and its derivative. All arrays broadcast to the shape of the indexed part.
    weights: list[np.ndarray | None]  # None: 1 at all positions
    slopes: list[np.ndarray | None]  # None: 0 at all positions

    @property
    def weight(self) -> np.ndarray | None:
        """The brick's weight; None: 1 at all positions."""
        return _product(self.weights)

    def slope(self, axis: int) -> np.ndarray | None:
        """The derivative of the brick's weight by the position along an axis, in voxels; None: 0 at all positions."""
        if self.slopes[axis] is None:
            return None
        return _product([*self.weights[:axis], self.slopes[axis], *self.weights[axis + 1 :]])


def _product(factors: list[np.ndarray | None]) -> np.ndarray | None:
    """From the first factor to the last, the same for every shape of them."""
    factors = [factor for factor in factors if factor is not None]
    return math.prod(factors) if factors else None


# --- on a grid --------------------------------------------------------------------------------------


def boxes_of(grid: Grid, cuts: list[np.ndarray], most: int) -> list[Box]:
    """The grid in boxes of at most so many positions, divided where bricks meet if possible.

    The fewer boxes share a brick, the fewer small pieces there are.
    """
    lower = [bricks_along(axis, at)[0] for axis, at in zip(grid.axes, cuts, strict=True)]
    borders = [np.flatnonzero(np.diff(bricks)) + 1 for bricks in lower]
    found, left = [], [tuple(slice(0, n) for n in grid.shape)]
    while left:
        box = left.pop()
        lengths = shape_of(box)
        if math.prod(lengths) <= most:
            found.append(box)
            continue
        axis = int(np.argmax(lengths))
        first, stop = box[axis].start, box[axis].stop
        inside = borders[axis][(borders[axis] > first) & (borders[axis] < stop)]
        at = (first + stop) // 2
        at = int(inside[np.argmin(np.abs(inside - at))]) if len(inside) else at
        left += [(*box[:axis], part, *box[axis + 1 :]) for part in (slice(at, stop), slice(first, at))]
    return found


def pieces_of_grid(grid: Grid, cuts: list[np.ndarray]) -> Iterator[Piece]:
    """The pieces of a grid, in the order of the bricks."""
    sides = [_sides(axis, at) for axis, at in zip(grid.axes, cuts, strict=True)]
    for parts in itertools.product(*sides):
        brick, index, local, weights, slopes = zip(*parts, strict=True)
        if not all(isinstance(part, slice) for part in index):
            index = np.ix_(*(np.arange(n)[part] for n, part in zip(grid.shape, index, strict=True)))
        across = [[-1 if k == axis else 1 for k in range(len(parts))] for axis in range(len(parts))]
        along = [
            [None if values is None else values.reshape(shape) for values, shape in zip(figures, across, strict=True)]
            for figures in (weights, slopes)
        ]
        yield Piece(brick, index, Grid(local), *along)


class _Side(NamedTuple):
    """The positions along an axis at which one of its bricks has a weight. See Piece."""

    brick: int
    index: slice | np.ndarray
    local: np.ndarray
    weight: np.ndarray | None
    slope: np.ndarray | None


def _sides(p: np.ndarray, cuts: np.ndarray) -> list[_Side]:
    """The bricks along an axis that have a weight at any of the positions p, in order."""
    (lower, is_blended), sides, n = bricks_along(p, cuts), [], len(p)
    upper = np.flatnonzero(is_blended)
    pairs = np.sort(np.concatenate([lower * n + np.arange(n), (lower[upper] + 1) * n + upper]))
    bricks, indices = pairs // n, pairs % n
    for part in _runs(bricks):
        brick, index = int(bricks[part.start]), indices[part]
        first, last = int(index[0]), int(index[-1])
        place = slice(first, last + 1) if last + 1 - first == len(index) else index
        sides.append(_Side(brick, place, p[index] - cuts[brick], *weight_along(p[index], cuts, brick)))
    return sides


def _runs(ascending: np.ndarray) -> list[slice]:
    """The runs of equal numbers."""
    starts = np.flatnonzero(np.diff(ascending, prepend=-1)).tolist()
    return [slice(*pair) for pair in itertools.pairwise([*starts, len(ascending)])]


# --- at points --------------------------------------------------------------------------------------


def pieces_of_points(points: np.ndarray, cuts: list[np.ndarray]) -> Iterator[Piece]:
    """The pieces of positions (n, d_in) in voxels, in the order of the bricks."""
    counts, n_bricks = [len(at) - 1 for at in cuts], math.prod(len(at) - 1 for at in cuts)
    lower, is_blended = zip(*(bricks_along(p, at) for p, at in zip(points.T, cuts, strict=True)), strict=True)
    first = np.ravel_multi_index(lower, counts)
    numbers, indices = [first], [np.arange(len(points))]
    for corner in itertools.product((0, 1), repeat=len(cuts)):
        upper = [axis for axis, is_upper in enumerate(corner) if is_upper]
        if upper:
            indices.append(np.flatnonzero(np.logical_and.reduce([is_blended[axis] for axis in upper])))
            numbers.append(first[indices[-1]] + sum(math.prod(counts[axis + 1 :]) for axis in upper))
    numbers, indices = np.concatenate(numbers), np.concatenate(indices)
    order = np.argsort(numbers.astype(np.uint16 if n_bricks <= 1 << 16 else np.int64), kind="stable")
    numbers, indices = numbers[order], indices[order]
    points = points[indices]
    for part in _runs(numbers):
        brick, p = tuple(map(int, np.unravel_index(numbers[part.start], counts))), points[part]
        along = [weight_along(x, at, i) for x, at, i in zip(p.T, cuts, brick, strict=True)]
        local = p - [at[i] for at, i in zip(cuts, brick, strict=True)]
        yield Piece(brick, (indices[part],), local, *map(list, zip(*along, strict=True)))
