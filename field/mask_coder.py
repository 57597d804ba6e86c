"""A mask <-> bytes: each voxel is predicted by those around it, from a coarse lattice to the finest.

The docstring of field/blob.py specifies the format, under "Chunk H". A step adds the voxels in the middle between known
ones. Where those around say surely what a voxel is, only the exceptions are coded; all others are coded one by one.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from field.entropy_coder import MAX_LANES, TABLE_BITS, Decoder, StreamError, encode_intervals

MAX_VOXELS = 1 << 24  # of a mask: with more, decoding would take longer than a few seconds
ONE = 1 << TABLE_BITS  # the frequencies of 0 and 1 sum to this
SURE = 1 << 7  # a bit is sure where one of its frequencies is less
RUN = 64  # sure bits that share a flag
LEAST_BATCH = 8  # bits after which the model learns them, at first
BATCHES = 128  # later on: the bits learnt / BATCHES
BYTES_A_LANE = 256  # of a stream that has more than one state
MOST_A_LANE = 1024  # bytes of a state, if there are less than MAX_LANES: with few states, decoding takes longer
HEAD = "<BH"  # of a stream: 2 order + 1 if voxel 0 is missing; the number of states

Group = tuple[np.ndarray, np.ndarray]  # bits, and how often of 2^16 times each is 1


def encode_mask(are_missing: np.ndarray) -> bytes:
    """The stream of a mask, booleans of 1 to MAX_VOXELS voxels. The chosen order of the steps gives the fewest bits."""
    candidates = ((order, _groups(are_missing, order)) for order in range(2 * are_missing.ndim))
    order, groups = min(candidates, key=lambda candidate: _count_bits(candidate[1]))
    lanes = int(np.clip(_count_bits(groups) / (8 * BYTES_A_LANE), 1, MAX_LANES))
    intervals = ((np.where(bits, ONE - ones, 0), np.where(bits, ones, ONE - ones)) for bits, ones in reversed(groups))
    return struct.pack(HEAD, 2 * order + int(are_missing.flat[0]), lanes) + encode_intervals(intervals, lanes)


def decode_mask(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of a stream, booleans. Raises StreamError unless the stream holds exactly this mask."""
    size = struct.calcsize(HEAD)
    if len(data) < size or math.prod(shape) > MAX_VOXELS:
        raise StreamError(f"expected at least {size} bytes for at most {MAX_VOXELS} voxels, found {len(data)}, {shape}")
    first, lanes = struct.unpack(HEAD, data[:size])
    if first >= 4 * len(shape) or not 1 <= lanes <= MAX_LANES:
        expected = f"an order below {2 * len(shape)} and 1 to {MAX_LANES} states"
        raise StreamError(f"expected {expected}, found {first // 2} and {lanes}")
    if lanes < MAX_LANES and len(data) - size > MOST_A_LANE * lanes:
        raise StreamError(f"expected at most {MOST_A_LANE} bytes for each of {lanes} states, found {len(data) - size}")
    known, model = np.zeros(shape, bool), _Model(len(shape))
    known.flat[0] = first % 2
    decoder = Decoder(data[size:], known.size, lanes)
    for step in _steps(known, first // 2):
        for where, contexts in step.batches(model):
            batch = _Batch(model, contexts)
            flags = decoder.take_bits(batch.ones_of_flags)
            are_coded = batch.are_coded(flags)
            bits = batch.expected
            bits[are_coded] = decoder.take_bits(batch.ones[are_coded])
            model.learn(contexts, bits, flags)
            step.new[where] = bits
        known[step.place] = step.new.reshape(step.shape)
    decoder.end()
    return known


def _groups(are_missing: np.ndarray, order: int) -> list[Group]:
    """What the stream of a mask holds, in its order."""
    model, groups = _Model(are_missing.ndim), []
    for step in _steps(are_missing, order):
        for where, contexts in step.batches(model):
            batch, bits = _Batch(model, contexts), step.new[where]
            flags = batch.flags(bits)
            are_coded = batch.are_coded(flags)
            groups += [(flags, batch.ones_of_flags), (bits[are_coded], batch.ones[are_coded])]
            model.learn(contexts, bits, flags)
    return groups


def _count_bits(groups: Sequence[Group]) -> float:
    return sum(float((TABLE_BITS - np.log2(np.where(bits, ones, ONE - ones))).sum()) for bits, ones in groups)


# --- frequencies ----------------------------------------------------------------------------------------


class _Model:
    """How often a bit is 1 in each context, by those learnt and half a 0 and half a 1. The last context: of flags."""

    def __init__(self, n_axes: int):
        n_contexts = n_axes * 3 * _lateral_counts(n_axes) * _around_counts(n_axes) + 1
        self.n_learnt = 0  # bits, no flags
        self.n_twice, self.n_ones_twice = np.full(n_contexts, 2), np.full(n_contexts, 1)

    def ones(self, contexts: np.ndarray) -> np.ndarray:
        """How often, of 2^16 times, a bit of each of these contexts is 1."""
        return (1 + self.n_ones_twice * (ONE - 2) // self.n_twice).astype(np.int32)[contexts]

    def learn(self, contexts: np.ndarray, bits: np.ndarray, flags: np.ndarray) -> None:
        """Count bits of these contexts, and flags."""
        self.n_learnt += len(bits)
        self.n_twice += 2 * np.bincount(contexts, minlength=len(self.n_twice))
        self.n_ones_twice += 2 * np.bincount(contexts[bits], minlength=len(self.n_twice))
        self.n_twice[-1] += 2 * len(flags)
        self.n_ones_twice[-1] += 2 * np.count_nonzero(flags)


class _Batch:
    """How the bits are coded that the model learns together.

    expected: the more frequent value of each. ones: how often, of 2^16 times, each is 1 where it is coded. sure: the
    numbers of the bits that are nearly always as expected. ones_of_flags: as ones, of the flags of all runs of them.
    """

    def __init__(self, model: _Model, contexts: np.ndarray):
        ones = model.ones(contexts)
        is_sure = np.minimum(ones, ONE - ones) < SURE
        self.expected = ones > ONE // 2
        self.ones = np.where(is_sure, ones.clip(ONE // RUN, ONE - ONE // RUN), ones)
        self.sure = np.flatnonzero(is_sure)
        self.ones_of_flags = model.ones(np.full(-(-len(self.sure) // RUN), -1))

    def flags(self, bits: np.ndarray) -> np.ndarray:
        """Of each run of sure bits, whether one is not as expected."""
        flags = np.zeros(len(self.ones_of_flags), bool)
        flags[np.flatnonzero((bits != self.expected)[self.sure]) // RUN] = True
        return flags

    def are_coded(self, flags: np.ndarray) -> np.ndarray:
        """Which bits are coded one by one: those that are not sure, and those of flagged runs."""
        are_coded = np.ones(len(self.ones), bool)
        are_coded[self.sure] = np.repeat(flags, RUN)[: len(self.sure)]
        return are_coded


# --- lattices and contexts ------------------------------------------------------------------------------


class _Step(NamedTuple):
    """The voxels in the middle between those of a lattice that are neighbours along an axis.

    old: the mask of the lattice. place, shape: where the new voxels lie, and how many along each axis. new: their mask,
    flat, which a decoder fills batch by batch.
    """

    axis: int
    old: np.ndarray
    place: tuple[slice, ...]
    shape: tuple[int, ...]
    new: np.ndarray

    def batches(self, model: _Model) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The numbers of new voxels and their contexts: first all even voxels, then the odd ones between them."""
        across = [np.arange(n, dtype=np.uint8) * (k != self.axis) for k, n in enumerate(self.shape)]
        is_odd = functools.reduce(np.bitwise_xor, np.ix_(*across)) & 1
        for parity in (0, 1):
            numbers = np.flatnonzero(is_odd == parity)
            i = 0
            while i < len(numbers):
                where = numbers[i : i + max(LEAST_BATCH, model.n_learnt // BATCHES)]
                yield where, self._contexts(where, bool(parity))
                i += len(where)

    def _contexts(self, where: np.ndarray, are_odd: bool) -> np.ndarray:
        """The contexts of these new voxels, all even or all odd: how many of those around are missing.

        sides: of the two between which a voxel lies. lateral: of the neighbours of these across the axis. around: of
        the even neighbours of an odd voxel.
        """
        index, n_axes = np.unravel_index(where, self.shape), len(self.shape)
        across = [axis for axis in range(n_axes) if axis != self.axis]
        before = np.ravel_multi_index(index, self.old.shape)
        has_after = index[self.axis] < self.old.shape[self.axis] - 1
        after = before + has_after * math.prod(self.old.shape[self.axis + 1 :])
        sides = lateral = 0
        for side in (before, after):
            sides += self.old.ravel()[side]
            lateral += _beside(self.old, side, index, across, mirrored=False)
        around = 1 + _beside(self.new.reshape(self.shape), where, index, across, mirrored=True) if are_odd else 0
        contexts = (self.axis * 3 + sides.astype(np.int16)) * _lateral_counts(n_axes) + lateral
        return contexts * _around_counts(n_axes) + around


def _beside(
    lattice: np.ndarray, where: np.ndarray, index: tuple[np.ndarray, ...], axes: Sequence[int], mirrored: bool
) -> np.ndarray:
    """How many of the neighbours along these axes are missing, of the voxels of these numbers and indices.

    Beyond an end of the lattice, the voxel itself counts; if mirrored, the neighbour at the other side, or none.
    """
    count = np.zeros(len(where), np.uint8)
    for axis in axes:
        n, distance = lattice.shape[axis], math.prod(lattice.shape[axis + 1 :])
        if mirrored and n == 1:
            continue
        back = distance if mirrored else 0
        count += lattice.ravel()[where + np.where(index[axis] > 0, -distance, back)]
        count += lattice.ravel()[where + np.where(index[axis] < n - 1, distance, -back)]
    return count


def _lateral_counts(n_axes: int) -> int:
    """How many different counts there are of the voxels beside the two on the sides."""
    return 4 * (n_axes - 1) + 1


def _around_counts(n_axes: int) -> int:
    """How many different counts there are of the voxels around; none is counted for an even voxel."""
    return 2 * (n_axes - 1) + 2


def _steps(known: np.ndarray, order: int) -> Iterator[_Step]:
    """The steps from voxel 0 to the whole mask. A decoder fills in `known` what each adds, before the next.

    order: the axis that is refined last in each round, or the number of axes + the axis that is refined after all.
    """
    last, is_apart = order % known.ndim, order >= known.ndim
    axes = [axis for axis in reversed(range(known.ndim)) if axis != last] + [last]
    levels = [(n - 1).bit_length() for n in known.shape]
    refined = [axis for level in range(max(levels), 0, -1) for axis in axes if levels[axis] >= level]
    strides = [1 << level for level in levels]
    for axis in sorted(refined, key=lambda axis: is_apart and axis == last):
        old = np.ascontiguousarray(known[tuple(slice(None, None, stride) for stride in strides)])
        half = strides[axis] // 2
        place = tuple(slice(half if k == axis else 0, None, stride) for k, stride in enumerate(strides))
        strides[axis] = half
        new = known[place]
        yield _Step(axis, old, place, new.shape, new.flatten())
