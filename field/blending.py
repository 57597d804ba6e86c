"""A field that is cut into bricks: its normalised values at any positions, blended where bricks meet.

Positions go box by box of a grid, or so many points at a time. Within a box, each brick's network is evaluated at the
positions where the brick has a weight, and the weighted values are added up in the order of the bricks. So the sum at a
position is the same whichever box it lies in, and boxes can be shared among threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial, reduce
from typing import NamedTuple

import numpy as np

from field.bricks import Bricks, cuts
from field.evaluation import (
    Network,
    OnProgress,
    Store,
    evaluate,
    grid_coordinates,
    is_residual,
    point_coordinates,
    scaled_layers,
    share,
)
from field.integers import ROUNDOFF, SAMPLE, largest_error, margins, sampled_voxels
from utils import Box, Grid, voxel_size

MAX_VALUES = 1 << 20  # values of a box
MIN_POSITIONS = 1 << 14  # of a box that is one of several
STORED = 1 << 13  # positions whose values are handed on at a time, to stay in a core's cache
KEPT = 4096  # bricks whose networks stay decoded
SAMPLED = 64  # voxels of a brick for each one at which the rounding errors are estimated
BLEND = 16.0  # largest error of a blended value by the arithmetic of the blend, in roundoffs


class Split(NamedTuple):
    """The bricks of positions along an axis."""

    lower: np.ndarray  # the brick of each position; in a cut zone the lower one of the two
    weight: np.ndarray  # of the upper brick; 0 outside the cut zones
    slope: np.ndarray  # the derivative of this weight by the position


def split(p: np.ndarray, at: list[int]) -> Split:
    """The bricks of positions along an axis. p: in voxels, float64. at: where the axis is cut, see bricks.cuts."""
    inner = np.array(at[1:-1], np.float64)
    if not len(inner):
        return Split(np.zeros(len(p), np.int64), np.zeros(len(p)), np.zeros(len(p)))
    lower = np.searchsorted(inner + 0.5, p, side="right")
    t = np.where(lower < len(inner), p - inner[np.minimum(lower, len(inner) - 1)] + 0.5, 0.0)
    t = np.maximum(t, 0.0)
    return Split(lower, t * t * (3.0 - 2.0 * t), 6.0 * t * (1.0 - t))


class Piece(NamedTuple):
    """The positions of a box at which a brick has a weight."""

    brick: int  # its number
    index: tuple  # of the positions within the box: slices or arrays
    local: Grid | np.ndarray  # the positions (n, d_in) in voxels of the brick
    weight: np.ndarray | None  # of the brick at each position, (n,); None: 1 at all of them
    slopes: np.ndarray | None  # the derivatives of this weight, (d_in, n)


class Brick:
    """What is needed to evaluate one brick. g = middle + half clip(y, -1, 1)."""

    def __init__(self, bricks: Bricks, number: int, shape: tuple[int, ...]):
        ends = [ends[number].astype(np.float64)[:, None] for ends in (bricks.low, bricks.high)]
        self.middle, self.half, self.shape = (ends[0] + ends[1]) / 2.0, (ends[1] - ends[0]) / 2.0, shape
        found = bricks.networks[number]
        self.layers = scaled_layers(*found) if found else None
        self.is_residual = is_residual(found[0]) if found else False
        self._margins: dict[str, np.ndarray] | None = None

    def margin(self, precision: str, extent: np.ndarray) -> np.ndarray:
        """The margin (d_out, 1) of g, see integers.margins; infinite where the precision does not decide integers."""
        if precision == "portable":
            return np.zeros_like(self.half)
        if self._margins is None:
            self._margins = {name: np.zeros_like(self.half) for name in ROUNDOFF}
            if self.layers:
                index = sampled_voxels(self.shape, min(max(math.prod(self.shape) // SAMPLED, SAMPLED), SAMPLE))
                coordinates = point_coordinates(self.shape, index)
                errors = largest_error(self.layers, self.is_residual, coordinates, len(index))
                found = margins(errors, extent * self.half[:, 0])
                self._margins = {name: found.get(name, np.inf) * self.half for name in ROUNDOFF}
        return self._margins[precision] + BLEND * ROUNDOFF[precision]


class Blend:
    """Evaluates the networks of bricks over a field. The arguments are those of field.one_network.OneNetwork."""

    precisions = (*ROUNDOFF, "portable")

    def __init__(self, bricks: Bricks, shape: tuple[int, ...], extent: np.ndarray, device: str, n_threads: int):
        self.bricks, self.shape, self.extent, self.device, self.n_threads = bricks, shape, extent, device, n_threads
        self.cuts = [cuts(n, k) for n, k in zip(shape, bricks.counts, strict=True)]
        self.d_out, self._kept = bricks.low.shape[1], {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}}

    def brick(self, number: int) -> Brick:
        """The brick of a number, decoded. Raises BlobError. Safe in several threads: at worst, two decode the same."""
        kept, found = self._kept, self._kept.get(number)
        if found is None:
            index = np.unravel_index(number, self.bricks.counts)
            shape = tuple(at[i + 1] - at[i] + 1 for at, i in zip(self.cuts, index, strict=True))
            found = Brick(self.bricks, number, shape)
            if len(kept) >= KEPT:
                kept = self._kept = {}
            kept[number] = found
        return found

    def evaluate(
        self,
        positions: Grid | np.ndarray,
        store: Store,
        precision: str = "float32",
        chosen: np.ndarray | None = None,
        also: str = "",
        on_progress: OnProgress = lambda fraction: None,
    ) -> None:
        """As OneNetwork.evaluate. Raises BlobError for a brick whose network is wrong."""
        on_boxes = isinstance(positions, Grid) and chosen is None
        n = math.prod(positions.shape) if on_boxes else len(positions if chosen is None else chosen)
        most = max(MAX_VALUES // self.d_out, 1)
        if self.n_threads > 1:
            most = min(most, max(n // (4 * self.n_threads), MIN_POSITIONS))
        parts = self._boxes(positions, most) if on_boxes else [slice(k, min(k + most, n)) for k in range(0, n, most)]

        def numbers_in(part: Box | slice) -> np.ndarray:
            if on_boxes:
                return _numbers(positions, part)
            return np.arange(part.start, part.stop) if chosen is None else chosen[part]

        def pieces_in(part: Box | slice, numbers: np.ndarray) -> Iterator[Piece]:
            if on_boxes:
                return self._pieces_of_grid(positions.part(part), also == "slopes")
            is_grid = isinstance(positions, Grid)
            return self._pieces_of_points(_positions_of(positions, numbers) if is_grid else positions[numbers])

        sizes = [_size(part) if on_boxes else part.stop - part.start for part in parts]
        jobs = iter(list(zip(itertools.accumulate(sizes, initial=0), parts, strict=False)))

        @np.errstate(over="ignore", invalid="ignore")
        def work(on_progress: OnProgress = lambda fraction: None) -> None:
            for start, part in jobs:
                numbers = numbers_in(part)
                shape = numbers.shape
                begun = partial(_tell, on_progress, start, numbers.size, n)
                y, more = self._blended(pieces_in(part, numbers), shape, precision, also, begun)
                _hand_on(store, numbers.ravel(), y, more)

        share(jobs, partial(work, on_progress), work, self.n_threads - 1)
        on_progress(1.0)

    def _blended(
        self, pieces: Iterator[Piece], shape: tuple[int, ...], precision: str, also: str, tell: OnProgress
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The normalised values (d_out, *shape) of a box, and their slopes or margins."""
        dtype = np.float32 if precision == "float32" else np.float64
        y = np.zeros((self.d_out, *shape), dtype)
        more, d_in, n_done = None, len(self.shape), 0
        if also:
            more = np.zeros((d_in, *y.shape) if also == "slopes" else y.shape, dtype)
        sizes = np.array([voxel_size(self.shape, axis) for axis in range(d_in)], dtype)[:, None, None]
        for piece in pieces:
            brick = self.brick(piece.brick)
            there = (..., *piece.index)
            at = y[there].shape[1:]
            g, slopes = self._values(brick, piece, precision, also == "slopes", partial(_tell_more, tell, n_done))
            n_done += g.shape[1]
            weight = None if piece.weight is None else piece.weight.astype(dtype)
            if also == "slopes":
                slopes = slopes if weight is None else slopes * weight
                if piece.slopes is not None:
                    slopes = slopes + piece.slopes.astype(dtype)[:, None] * g / sizes
                more[there] += slopes.reshape(d_in, self.d_out, *at)
            if also == "margins":
                margin = brick.margin(precision, self.extent).astype(dtype)
                margin = np.broadcast_to(margin, g.shape) if weight is None else margin * weight
                more[there] += margin.reshape(self.d_out, *at)
            if weight is not None:
                g *= weight
            y[there] += g.reshape(self.d_out, *at)
        y = np.clip(y, -1.0, 1.0, out=y).reshape(self.d_out, -1)
        return y, None if more is None else more.reshape(*more.shape[: -len(shape)], -1)

    def _values(
        self, brick: Brick, piece: Piece, precision: str, with_slopes: bool, tell: OnProgress
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The values g (d_out, n) of a brick at the positions of a piece, and their slopes (d_in, d_out, n)."""
        dtype = np.float32 if precision == "float32" else np.float64
        is_grid, d_in = isinstance(piece.local, Grid), len(self.shape)
        n = math.prod(piece.local.shape) if is_grid else len(piece.local)
        middle, half = brick.middle.astype(dtype), brick.half.astype(dtype)
        slopes = np.zeros((d_in, self.d_out, n), dtype) if with_slopes else None
        if brick.layers is None:
            return np.repeat(middle, n, axis=1), slopes
        g = np.empty((self.d_out, n), dtype)
        network = Network(brick.layers, brick.is_residual, self.device, precision, n)
        if is_grid:
            coordinates = grid_coordinates(brick.shape, piece.local, network.device)
        else:
            coordinates = point_coordinates(brick.shape, piece.local)
        scales = [voxel_size(brick.shape, axis) / voxel_size(self.shape, axis) for axis in range(d_in)]
        scales = np.array(scales, dtype)[:, None, None] * half

        def keep(part: slice, y: np.ndarray, dy: np.ndarray | None) -> None:
            g[:, part] = y
            if with_slopes:
                slopes[..., part] = np.where(np.abs(y) <= 1.0, dy * scales, 0.0)

        evaluate(network, 1, coordinates, n, keep, with_slopes, lambda fraction: tell(fraction * n))
        g = np.fmin(np.fmax(g, -1.0, out=g), 1.0, out=g)
        g *= half
        g += middle
        return g, slopes

    # --- which brick has a weight where ---

    def _boxes(self, grid: Grid, most: int) -> list[Box]:
        """A grid in boxes of at most so many positions, cut where bricks meet if possible: the fewer bricks a box."""
        lower = [split(axis, at).lower for axis, at in zip(grid.axes, self.cuts, strict=True)]
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
            middle = (first + stop) // 2
            cut = int(inside[np.argmin(np.abs(inside - middle))]) if len(inside) else middle
            left += [(*box[:axis], part, *box[axis + 1 :]) for part in (slice(cut, stop), slice(first, cut))]
        return found

    def _pieces_of_grid(self, grid: Grid, with_slopes: bool) -> Iterator[Piece]:
        """In the order of the bricks."""
        sides = [list(_sides(axis, at)) for axis, at in zip(grid.axes, self.cuts, strict=True)]
        for parts in itertools.product(*sides):
            number = int(np.ravel_multi_index([part.brick for part in parts], self.bricks.counts))
            index = tuple(part.index for part in parts)
            if not all(isinstance(part, slice) for part in index):
                index = np.ix_(*(np.arange(n)[part] for n, part in zip(grid.shape, index, strict=True)))
            weight, slopes = None, None
            if any(part.weight is not None for part in parts):
                ones = [np.ones(len(part.local)) if part.weight is None else part.weight for part in parts]
                weight, slopes = _outer(ones), []
            if weight is not None and with_slopes:
                for axis, part in enumerate(parts):
                    slope = np.zeros(len(part.local)) if part.slope is None else part.slope
                    slopes.append(_outer([*ones[:axis], slope, *ones[axis + 1 :]]))
                slopes = np.stack(slopes)
            yield Piece(number, index, Grid(tuple(part.local for part in parts)), weight, slopes)

    def _pieces_of_points(self, points: np.ndarray) -> Iterator[Piece]:
        """In the order of the bricks. points: (n, d_in), in voxels."""
        splits = [split(p, at) for p, at in zip(points.T, self.cuts, strict=True)]
        found = []  # of each corner of the bricks around: bricks, positions
        for corner in itertools.product((0, 1), repeat=len(splits)):
            is_there = np.ones(len(points), bool)
            for upper, axis in zip(corner, splits, strict=True):
                is_there &= axis.weight > 0 if upper else axis.weight < 1
            index = np.flatnonzero(is_there)
            of_axes = [axis.lower[index] + upper for upper, axis in zip(corner, splits, strict=True)]
            found.append((np.ravel_multi_index(of_axes, self.bricks.counts), index))
        numbers, index = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(numbers, kind="stable")
        numbers, index = numbers[order], index[order]
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, stop in itertools.pairwise([*starts.tolist(), len(numbers)]):
            number, chosen = int(numbers[start]), index[start:stop]
            of_axes = np.unravel_index(number, self.bricks.counts)
            local = points[chosen] - [at[i] for at, i in zip(self.cuts, of_axes, strict=True)]
            ones, slopes = [], []
            for i, axis in zip(of_axes, splits, strict=True):
                is_upper = axis.lower[chosen] < i
                ones.append(np.where(is_upper, axis.weight[chosen], 1.0 - axis.weight[chosen]))
                slopes.append(np.where(is_upper, axis.slope[chosen], -axis.slope[chosen]))
            by_axis = [math.prod([*ones[:k], slope, *ones[k + 1 :]]) for k, slope in enumerate(slopes)]
            yield Piece(number, (chosen,), local, math.prod(ones), np.stack(by_axis))


class _Side(NamedTuple):
    """The positions of an axis at which one of its bricks has a weight."""

    brick: int  # its number along this axis
    index: slice | np.ndarray
    local: np.ndarray  # the positions in voxels of the brick
    weight: np.ndarray | None  # None: 1 at all of them
    slope: np.ndarray | None


def _sides(p: np.ndarray, at: list[int]) -> Iterator[_Side]:
    """The bricks of an axis that have a weight at any of its positions, in order."""
    lower, weight, slope = split(p, at)
    for brick in range(int(lower.min()), int((lower + (weight > 0)).max()) + 1):
        is_upper = (lower == brick - 1) & (weight > 0)
        index = np.flatnonzero(is_upper | ((lower == brick) & (weight < 1)))
        if not len(index):
            continue
        first, stop = int(index[0]), int(index[-1]) + 1
        local = p[index] - at[brick]
        if not weight[index].any():
            of_brick = None, None
        else:
            is_upper = is_upper[index]
            of_brick = (
                np.where(is_upper, weight[index], 1.0 - weight[index]),
                np.where(is_upper, slope[index], -slope[index]),
            )
        yield _Side(brick, slice(first, stop) if stop - first == len(index) else index, local, *of_brick)


def _outer(factors: list[np.ndarray]) -> np.ndarray:
    """The products of all combinations of the factors, flat, in C order."""
    return reduce(np.multiply.outer, factors).ravel()


def _tell(on_progress: OnProgress, start: int, size: int, n: int, done: float) -> None:
    on_progress((start + min(done, size)) / n)


def _tell_more(tell: OnProgress, n_done: int, n: float) -> None:
    tell(n_done + n)


def _hand_on(store: Store, numbers: np.ndarray, y: np.ndarray, more: np.ndarray | None) -> None:
    """Store the values of a box, so many at a time that they stay in a core's cache."""
    for first in range(0, len(numbers), STORED):
        part = slice(first, first + STORED)
        store(numbers[part], y[:, part], None if more is None else more[..., part])


def _size(box: Box) -> int:
    return math.prod(part.stop - part.start for part in box)


def _numbers(grid: Grid, box: Box) -> np.ndarray:
    """The numbers of the positions in a box of a grid, shaped like the box."""
    return np.ravel_multi_index(np.ix_(*(np.arange(part.start, part.stop) for part in box)), grid.shape)


def _positions_of(grid: Grid, numbers: np.ndarray) -> np.ndarray:
    """The positions (n, d_in) of a grid by their numbers."""
    index = np.unravel_index(numbers, grid.shape)
    return np.stack([axis[i] for axis, i in zip(grid.axes, index, strict=True)], axis=1)
