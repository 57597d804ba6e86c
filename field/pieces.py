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

from utils import Box, Grid


class Split(NamedTuple):
    """The bricks of positions along an axis."""

    lower: np.ndarray  # the brick of each position; in a cut zone the lower one of the two
    weight: np.ndarray  # of the upper brick; 0 outside the cut zones
    slope: np.ndarray  # the derivative of this weight by the position

    def of(self, brick: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weight of a brick at some of the positions, at which it has one, and the derivative of this weight."""
        is_upper, weight, slope = self.lower[index] < brick, self.weight[index], self.slope[index]
        return np.where(is_upper, weight, 1.0 - weight), np.where(is_upper, slope, -slope)


def split(p: np.ndarray, cuts: np.ndarray) -> Split:
    """The bricks of positions along an axis. p: in voxels, float64. cuts: bricks.cuts of the axis."""
    inner = cuts[1:-1]
    if not len(inner):
        return Split(np.zeros(len(p), np.int64), np.zeros(len(p)), np.zeros(len(p)))
    lower = np.searchsorted(inner + 0.5, p, side="right")
    t = p - inner[np.minimum(lower, len(inner) - 1)] + 0.5
    t = np.where(lower < len(inner), np.maximum(t, 0.0), 0.0)
    return Split(lower, t * t * (3.0 - 2.0 * t), 6.0 * t * (1.0 - t))


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
    lower = [split(axis, at).lower for axis, at in zip(grid.axes, cuts, strict=True)]
    borders = [np.flatnonzero(np.diff(bricks)) + 1 for bricks in lower]
    found, left = [], [tuple(slice(0, n) for n in grid.shape)]
    while left:
        box = left.pop()
        lengths = [part.stop - part.start for part in box]
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
    found, sides, n = split(p, cuts), [], len(p)
    is_in = [found.weight < 1, found.weight > 0]  # the lower brick, the upper one
    key = np.sort(np.concatenate([(found.lower + k) * n + np.arange(n) for k in (0, 1)])[np.concatenate(is_in)])
    bricks, indices = key // n, key % n
    starts = np.flatnonzero(np.diff(bricks, prepend=-1)).tolist()
    for start, stop in itertools.pairwise([*starts, len(key)]):
        brick, index = int(bricks[start]), indices[start:stop]
        of_brick = found.of(brick, index) if found.weight[index].any() else (None, None)
        first, last = int(index[0]), int(index[-1])
        place = slice(first, last + 1) if last + 1 - first == len(index) else index
        sides.append(_Side(brick, place, p[index] - cuts[brick], *of_brick))
    return sides


# --- at points --------------------------------------------------------------------------------------


def pieces_of_points(points: np.ndarray, cuts: list[np.ndarray]) -> Iterator[Piece]:
    """The pieces of positions (n, d_in) in voxels, in the order of the bricks."""
    axes, counts = [split(p, at) for p, at in zip(points.T, cuts, strict=True)], [len(at) - 1 for at in cuts]
    found = []
    for corner in itertools.product((0, 1), repeat=len(axes)):
        is_in = [axis.weight > 0 if is_upper else axis.weight < 1 for is_upper, axis in zip(corner, axes, strict=True)]
        index = np.flatnonzero(np.all(is_in, axis=0))
        bricks = [axis.lower[index] + is_upper for is_upper, axis in zip(corner, axes, strict=True)]
        found.append((np.ravel_multi_index(bricks, counts), index))
    numbers, indices = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(numbers, kind="stable")
    numbers, indices = numbers[order], indices[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    for start, stop in itertools.pairwise([*starts, len(numbers)]):
        brick, index = tuple(map(int, np.unravel_index(numbers[start], counts))), indices[start:stop]
        local = points[index] - [at[i] for at, i in zip(cuts, brick, strict=True)]
        along = [axis.of(i, index) for axis, i in zip(axes, brick, strict=True)]
        yield Piece(brick, (index,), local, *map(list, zip(*along, strict=True)))
