"""How a field is cut into boxes (bricks), each held by a network of its own; the chunks S and B. See field/blob.py."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from field.binary import BlobError, ByteReader
from field.layers import SirenConfig
from utils import Box

MAX_BRICKS = 1 << 20


class StoredNetwork(NamedTuple):
    """A network: its settings, and its float32 weights by name."""

    config: SirenConfig
    weights: dict[str, np.ndarray]


class Cut(NamedTuple):
    """How a field is cut into bricks, and the range of each brick.

    counts: the number of bricks along each axis. low, high: float32 (bricks, components), in the normalised values of
    the whole field; the bricks in C order. A brick whose low is its high in every component is constant. mirrors: for
    each axis m, the sum of the indices of a voxel and of its mirror image, or 0 without a mirror; () without any.
    """

    counts: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    mirrors: tuple[int, ...] = ()

    @property
    def is_constant(self) -> np.ndarray:
        """Which bricks are constant, booleans."""
        return (self.low == self.high).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Bricks:
    """How a field is cut into bricks, and the network of each.

    cut: how the field is cut. networks: one of each brick, None for a constant one. They may be decoded whenever they
    are asked for, which may raise BlobError.
    """

    cut: Cut
    networks: Sequence[StoredNetwork | None]

    @classmethod
    def whole(cls, config: SirenConfig, weights: dict[str, np.ndarray]) -> Bricks:
        """The one brick of a field that is not cut."""
        ends = (np.full((1, config.d_out), end, np.float32) for end in (-1, 1))
        return cls(Cut((1,) * config.d_in, *ends), [StoredNetwork(config, weights)])

    @classmethod
    def of(cls, net: object) -> Bricks:
        """The one brick that is a siren.FieldNet. On a CPU, both share the memory of the weights."""
        weights = {name: tensor.cpu().numpy() for name, tensor in net.state_dict().items()}
        return cls.whole(net.config, weights)

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases of all networks. It decodes them."""
        return sum(network.config.n_parameters for network in self.networks if network)

    @property
    def is_whole(self) -> bool:
        """Whether one network holds the whole field as it is."""
        counts, low, high, mirrors = self.cut
        return math.prod(counts) == 1 and not mirrors and bool((low == -1).all() and (high == 1).all())


def check_cut(cut: Cut, shape: tuple[int, ...], d_out: int) -> None:
    """Raise BlobError unless a field of this shape and of `d_out` components can be cut so."""
    if cut.mirrors:
        most = [max(2 * n - 3, 0) for n in shape]
        is_one_each = len(cut.mirrors) == len(shape) and any(cut.mirrors)
        if not (is_one_each and all(0 <= m <= n for m, n in zip(cut.mirrors, most, strict=True))):
            raise BlobError(f"mirrors: expected 0 to {most}, not all of them 0, found {list(cut.mirrors)}")
    n_bricks = check_counts(cut.counts, shape, cut.mirrors)
    if not cut.low.shape == cut.high.shape == (n_bricks, d_out):
        raise BlobError(f"expected ranges of {n_bricks} bricks, of {d_out} components, found {cut.low.shape}")
    if not ((cut.low >= -1) & (cut.low <= cut.high) & (cut.high <= 1)).all():
        raise BlobError("ranges of bricks: expected values from -1 to 1, the lower first")


def check_counts(counts: tuple[int, ...], shape: tuple[int, ...], mirrors: tuple[int, ...]) -> int:
    """The number of bricks. Raises BlobError unless a field of this shape can have so many along each axis."""
    most = [min(max(last - first, 1), 65535) for first, last in held(shape, mirrors)]
    if len(counts) != len(shape) or any(not 1 <= k <= n for k, n in zip(counts, most, strict=True)):
        raise BlobError(f"bricks along each axis: expected 1 to {most}, found {list(counts)}")
    if math.prod(counts) > MAX_BRICKS:
        raise BlobError(f"expected at most {MAX_BRICKS} bricks, found {math.prod(counts)}")
    return math.prod(counts)


def encode_cut(cut: Cut) -> dict[str, bytes]:
    """The chunks S, if there are mirrors, and B of a cut, by type, in the order of the file. See `check_cut`."""
    d_in = len(cut.counts)
    mirrors = {"S": struct.pack(f"<{d_in}Q", *cut.mirrors)} if cut.mirrors else {}
    ranges = np.stack([cut.low, cut.high], axis=1).astype("<f4").tobytes()
    return mirrors | {"B": struct.pack(f"<{d_in}H", *cut.counts) + ranges}


def decode_cut(chunks: Mapping[str, ByteReader], shape: tuple[int, ...], d_out: int) -> Cut:
    """The cut in the chunks of a blob of this shape and of `d_out` components. Raises BlobError."""
    mirrors = chunks["S"].unpack(f"{len(shape)}Q") if "S" in chunks else ()
    counts = chunks["B"].unpack(f"{len(shape)}H")
    n_bricks = math.prod(counts)
    low, high = chunks["B"].array("<f4", 2 * n_bricks * d_out).reshape(n_bricks, 2, d_out).transpose(1, 0, 2)
    cut = Cut(counts, low.astype(np.float32), high.astype(np.float32), mirrors)
    check_cut(cut, shape, d_out)
    return cut


def held(shape: tuple[int, ...], mirrors: tuple[int, ...]) -> list[tuple[int, int]]:
    """The first and the last voxel of each axis that bricks hold: all, or the larger side of a mirror. See Cut."""
    return [
        (0, n - 1) if not m else (0, (m + 1) // 2) if m >= n - 1 else (m // 2, n - 1)
        for n, m in zip(shape, mirrors or (0,) * len(shape), strict=True)
    ]


def held_shape(shape: tuple[int, ...], mirrors: tuple[int, ...]) -> tuple[int, ...]:
    """The number of voxels along each axis that bricks hold."""
    return tuple(last - first + 1 for first, last in held(shape, mirrors))


def cuts(shape: tuple[int, ...], counts: tuple[int, ...], mirrors: tuple[int, ...] = ()) -> list[list[int]]:
    """For each axis, the k + 1 voxels at which it is cut into k bricks; the first and the last one are its ends."""
    return [
        [first + (2 * i * (last - first) + k) // (2 * k) for i in range(k + 1)]
        for (first, last), k in zip(held(shape, mirrors), counts, strict=True)
    ]


def brick_boxes(shape: tuple[int, ...], counts: tuple[int, ...], mirrors: tuple[int, ...] = ()) -> list[Box]:
    """The voxels of every brick, in C order. Neighbours share a layer of voxels."""
    sides = [[slice(first, last + 1) for first, last in itertools.pairwise(at)] for at in cuts(shape, counts, mirrors)]
    return list(itertools.product(*sides))


def reflected(p: np.ndarray, n: int, mirror: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions on an axis of n voxels, those beyond its mirror at their images; and the derivative of this, 1 or -1.

    mirror: as of Cut, not 0.
    """
    is_beyond = 2 * p > mirror if mirror >= n - 1 else 2 * p < mirror
    return np.where(is_beyond, mirror - p, p), np.where(is_beyond, -1.0, 1.0)
