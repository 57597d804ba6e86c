"""A field that is cut into bricks: its normalised values at any positions, blended where bricks meet.

Positions go box by box of a grid, or so many points at a time. Each brick's network is evaluated at the positions where
the brick has a weight, and the weighted values are added up in the order of the bricks. So the sum at a position is the
same in whatever box it lies, and threads can share the boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from field.bricks import Bricks, cuts, reflected
from field.evaluation import (
    Network,
    OnProgress,
    Positions,
    Store,
    count_positions,
    do_with_helpers,
    evaluate,
    hand_on,
    no_progress,
    scaled_layers,
)
from field.integers import MOST_AGAIN, ROUNDOFF, SAMPLE, largest_error, margins
from field.pieces import Piece, boxes_of, pieces_of_grid, pieces_of_points
from utils import Box, Grid, voxel_size

MAX_VALUES = 1 << 20  # most values of a box
# Boxes that threads share, and least positions of a box. They do not depend on the number of threads, as the last bits
# of float32 depend on the box.
SHARES, MIN_POSITIONS = 16, 1 << 14
KEPT = 1 << 14  # most bricks whose networks stay decoded
SAMPLED = 64  # rounding errors are estimated at one of so many voxels of a brick
LEAST_SAMPLE = 64  # fewest voxels of a brick at which they are estimated
BLEND = 16.0  # largest error of a value by the arithmetic of the blend, in roundoffs


class Brick:
    """A brick, ready to be evaluated: g = middle + half clip(y, -1, 1). Raises BlobError for a wrong network.

    shape: voxels of the brick. extent: of the range of the values, (d_out,).
    """

    def __init__(self, bricks: Bricks, number: int, shape: tuple[int, ...], extent: np.ndarray):
        low, high = (ends[number].astype(np.float64)[:, None] for ends in (bricks.cut.low, bricks.cut.high))
        self.middle, self.half, self.shape, self.extent = (low + high) / 2.0, (high - low) / 2.0, shape, extent
        found = bricks.networks[number]
        self.layers = scaled_layers(*found) if found else None
        self.is_residual = bool(found) and found.config.is_residual

    @cached_property
    def margins(self) -> dict[str, np.ndarray]:
        """By precision, the margin (d_out, 1) of g, see integers.margins; infinite where it decides no integers."""
        found = dict.fromkeys(ROUNDOFF, np.zeros_like(self.half))
        if self.layers:
            n_sampled = min(max(math.prod(self.shape) // SAMPLED, LEAST_SAMPLE), SAMPLE)
            errors = largest_error(self.layers, self.is_residual, self.shape, n_sampled)
            of_network = margins(errors, self.extent * self.half[:, 0])
            infinite = np.where(self.half > 0, np.inf, 0.0)
            found = {name: of_network[name] * self.half if name in of_network else infinite for name in ROUNDOFF}
        return {name: margin + BLEND * ROUNDOFF[name] for name, margin in found.items()}

    def evaluate(
        self, positions: Positions, device: str, precision: str, with_slopes: bool, on_progress: OnProgress
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """g (d_out, n) at n positions in voxels of the brick, and its derivatives by them (d_in, d_out, n) or None."""
        dtype, n, d_in, d_out = _float(precision), count_positions(positions), len(self.shape), len(self.half)
        middle, half = self.middle.astype(dtype), self.half.astype(dtype)
        slopes = np.zeros((d_in, d_out, n), dtype) if with_slopes else None
        if self.layers is None:
            return np.repeat(middle, n, axis=1), slopes
        network, g = Network(self.layers, self.is_residual, device, precision, n), np.empty((d_out, n), dtype)
        scales = np.array([voxel_size(self.shape, axis) for axis in range(d_in)], dtype)[:, None, None] * half

        def store(part: slice, y: np.ndarray, dy: np.ndarray | None) -> None:
            g[:, part] = y
            if with_slopes:
                slopes[..., part] = np.where(np.abs(y) <= 1.0, dy * scales, 0.0)

        evaluate(network, positions, self.shape, store, 1, with_slopes, on_progress)
        np.clip(g, -1.0, 1.0, out=g)
        g *= half
        g += middle
        return g, slopes


class Blend:
    """Evaluates the bricks of a field. The arguments are those of one_network.OneNetwork. It can be pickled."""

    def __init__(self, bricks: Bricks, shape: tuple[int, ...], extent: np.ndarray, device: str, n_threads: int):
        self.bricks, self.shape, self.extent, self.device, self.n_threads = bricks, shape, extent, device, n_threads
        self.mirrors, self.d_out, self._kept = bricks.cut.mirrors, bricks.cut.low.shape[1], {}
        self.cuts = [np.array(at) for at in cuts(shape, bricks.cut.counts, self.mirrors)]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}}

    @property
    def precisions(self) -> list[str]:
        """The precisions in which integers are evaluated, the fastest first. One that decides few is left out."""
        most = MOST_AGAIN / max(float(self.extent.max()), 1.0)
        return [*(name for name, roundoff in ROUNDOFF.items() if BLEND * roundoff <= most), "portable"]

    def brick(self, place: tuple[int, ...]) -> Brick:
        """The brick of these numbers along the axes, decoded. Raises BlobError.

        Threads need no lock: at worst, two of them decode the same brick.
        """
        kept, found = self._kept, self._kept.get(place)
        if found is None:
            shape = tuple(int(at[i + 1] - at[i]) + 1 for at, i in zip(self.cuts, place, strict=True))
            found = Brick(self.bricks, int(np.ravel_multi_index(place, self.bricks.cut.counts)), shape, self.extent)
            if len(kept) >= KEPT:
                kept = self._kept = {}
            kept[place] = found
        return found

    def evaluate(
        self,
        positions: Positions,
        store: Store,
        precision: str = "float32",
        also: str = "",
        on_progress: OnProgress = no_progress,
    ) -> None:
        """As OneNetwork.evaluate. Raises BlobError for a brick whose network is wrong."""
        positions, signs = self._reflected(positions)
        n = count_positions(positions)
        most = min(max(MAX_VALUES // self.d_out, 1), max(n // SHARES, MIN_POSITIONS))
        if isinstance(positions, Grid):
            places = boxes_of(positions, self.cuts, most)
        else:
            places = [slice(k, k + most) for k in range(0, n, most)]
        jobs = iter(list(enumerate(places)))

        @np.errstate(over="ignore", invalid="ignore")  # derivatives of weights of any size may overflow
        def work(on_progress: OnProgress) -> None:
            for k, place in jobs:
                numbers, pieces = self._pieces(positions, place)
                y, more = self._blended(pieces, numbers.shape, precision, also, _within(on_progress, k, 1, len(places)))
                numbers = numbers.ravel()
                if signs and also == "slopes":
                    _turn(more, signs, numbers, positions)
                hand_on(store, numbers, y, more)

        do_with_helpers(jobs, work, on_progress, self.n_threads - 1 if self.device == "cpu" else 0)
        on_progress(1.0)

    def _reflected(self, positions: Positions) -> tuple[Positions, dict[int, np.ndarray]]:
        """The positions, those beyond a mirror at their images; and by axis with a mirror the derivatives, 1 or -1."""
        axes = list(positions.axes if isinstance(positions, Grid) else positions.T)
        signs = {}
        for axis, mirror in enumerate(self.mirrors):
            if mirror:
                axes[axis], signs[axis] = reflected(axes[axis], self.shape[axis], mirror)
        if not signs:
            return positions, signs
        return Grid(tuple(axes)) if isinstance(positions, Grid) else np.stack(axes, axis=1), signs

    def _pieces(self, positions: Positions, place: Box | slice) -> tuple[np.ndarray, Iterator[Piece]]:
        """The pieces of a box of a grid, or of some points; before them the numbers of positions that they index."""
        if isinstance(positions, Grid):
            index = np.ix_(*(np.arange(cut.start, cut.stop) for cut in place))
            return np.ravel_multi_index(index, positions.shape), pieces_of_grid(positions.part(place), self.cuts)
        return np.arange(len(positions))[place], pieces_of_points(positions[place], self.cuts)

    def _blended(
        self, pieces: Iterator[Piece], shape: tuple[int, ...], precision: str, also: str, on_progress: OnProgress
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The values (d_out, n) of a box, and their derivatives (d_in, d_out, n) or margins (d_out, n) or None."""
        dtype, d_in, size, n_done = _float(precision), len(self.shape), math.prod(shape), 0
        y, more = np.zeros((self.d_out, *shape), dtype), None
        if also:
            more = np.zeros((d_in, *y.shape) if also == "slopes" else y.shape, dtype)
        for piece in pieces:
            brick, there = self.brick(piece.brick), (..., *piece.index)
            at, n = y[there].shape, count_positions(piece.local)
            tell = _within(on_progress, n_done, n, size)
            g, dg = brick.evaluate(piece.local, self.device, precision, also == "slopes", tell)
            g, n_done = g.reshape(at), n_done + n
            weight = None if piece.weight is None else piece.weight.astype(dtype)
            if also == "slopes":
                dg = dg.reshape(d_in, *at)
                dg = dg if weight is None else dg * weight
                for axis in range(d_in):
                    slope = piece.slope(axis)
                    by_axis = dg[axis] if slope is None else dg[axis] + slope.astype(dtype) * g
                    more[axis][there] += by_axis / dtype(voxel_size(self.shape, axis))
            elif also == "margins" and precision != "portable":  # which decides all integers
                margin = brick.margins[precision].astype(dtype).reshape(-1, *[1] * len(shape))
                more[there] += margin if weight is None else margin * weight
            y[there] += g if weight is None else g * weight
        np.clip(y, -1.0, 1.0, out=y)
        return y.reshape(self.d_out, -1), None if more is None else more.reshape(*more.shape[: -len(shape)], -1)


def _float(precision: str) -> type[np.floating]:
    """The type of the sums in a precision of Network."""
    return np.float32 if precision == "float32" else np.float64


def _turn(slopes: np.ndarray, signs: dict[int, np.ndarray], numbers: np.ndarray, positions: Positions) -> None:
    """Turn derivatives (d_in, d_out, n) by reflected positions into those by the positions themselves, in place.

    signs: of Blend._reflected. numbers: of the n positions.
    """
    index = np.unravel_index(numbers, positions.shape) if isinstance(positions, Grid) else (numbers,) * len(slopes)
    for axis, along in signs.items():
        slopes[axis] *= along[index[axis]].astype(slopes.dtype)


def _within(on_progress: OnProgress, start: float, length: float, whole: float) -> OnProgress:
    """A callback for a part of the work: it passes on the fraction of the whole, at most 1. The parts may overlap."""
    return lambda fraction: on_progress(min((start + fraction * length) / whole, 1.0))
