"""How a field is cut into boxes (bricks), each held by a network of its own. See field/blob.py, "Chunk B, bricks"."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from field.binary import BlobError
from utils import Box

MAX_BRICKS = 1 << 20
Network = tuple[dict, dict[str, np.ndarray]]  # a description (the fields of SirenConfig), float32 weights by name


class Cut(NamedTuple):
    """How a field is cut into bricks, and the range of each brick.

    counts: the number of bricks along each axis. low, high: float32 (bricks, components), in the normalised values of
    the whole field; the bricks in C order. A brick whose low is its high in every component is constant.
    """

    counts: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray

    @property
    def is_constant(self) -> np.ndarray:
        """Which bricks are constant, booleans."""
        return (self.low == self.high).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Bricks:
    """How a field is cut into bricks, and the network of each.

    counts, low, high: see Cut. networks: one of each brick, None for a constant one. They may be decoded whenever they
    are asked for, which may raise BlobError.
    """

    counts: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    networks: Sequence[Network | None]

    @classmethod
    def whole(cls, network: dict, weights: dict[str, np.ndarray]) -> Bricks:
        """The one brick of a field that is not cut."""
        ends = (np.full((1, network["d_out"]), end, np.float32) for end in (-1, 1))
        return cls((1,) * network["d_in"], *ends, [(network, weights)])

    @property
    def cut(self) -> Cut:
        """How the field is cut."""
        return Cut(self.counts, self.low, self.high)

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases of all networks. It decodes them."""
        return sum(array.size for network in self.networks if network for array in network[1].values())

    @property
    def is_whole(self) -> bool:
        """Whether one network holds the whole field as it is."""
        return len(self.low) == 1 and bool((self.low == -1).all() and (self.high == 1).all())


def check_cut(cut: Cut, shape: tuple[int, ...], d_out: int) -> None:
    """Raise BlobError unless a field of this shape and of `d_out` components can be cut so."""
    most = [min(max(n - 1, 1), 65535) for n in shape]
    if len(cut.counts) != len(shape) or any(not 1 <= k <= n for k, n in zip(cut.counts, most, strict=True)):
        raise BlobError(f"bricks along each axis: expected 1 to {most}, found {list(cut.counts)}")
    n_bricks = math.prod(cut.counts)
    if n_bricks > MAX_BRICKS:
        raise BlobError(f"expected at most {MAX_BRICKS} bricks, found {n_bricks}")
    if not cut.low.shape == cut.high.shape == (n_bricks, d_out):
        raise BlobError(f"expected ranges of {n_bricks} bricks, of {d_out} components, found {cut.low.shape}")
    if not ((cut.low >= -1) & (cut.low <= cut.high) & (cut.high <= 1)).all():
        raise BlobError("ranges of bricks: expected values from -1 to 1, the lower first")


def cuts(n: int, k: int) -> list[int]:
    """The k + 1 voxels at which an axis of n voxels is cut into k bricks; the first and the last voxel are two."""
    return [(2 * i * (n - 1) + k) // (2 * k) for i in range(k + 1)]


def brick_boxes(shape: tuple[int, ...], counts: tuple[int, ...]) -> list[Box]:
    """The voxels of every brick, in C order. Neighbours share a layer of voxels."""
    sides = [
        [slice(first, last + 1) for first, last in itertools.pairwise(cuts(n, k))]
        for n, k in zip(shape, counts, strict=True)
    ]
    return list(itertools.product(*sides))
