"""Which voxels of a volume hold no value: a bit each, in memory and, compressed, in a file (chunk M of a blob)."""

from __future__ import annotations

import dataclasses
import lzma
import math
from collections.abc import Iterable

import numpy as np

MAX_VOXELS = 1 << 35  # 4 GiB of bits: a larger mask is refused before anything is allocated for it
FILTER = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}


class MaskError(ValueError):
    """Bytes that are no mask of that shape."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The missing voxels of a grid.

    shape: of the grid. fill: what stands in a missing voxel, a scalar of the field's dtype, NaN included. bits: uint8,
    eight voxels in C order each, the first one highest, set where missing; unused bits of the last one 0.
    """

    shape: tuple[int, ...]
    fill: np.generic
    bits: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, ...], fill: np.generic, parts: Iterable[np.ndarray]) -> Mask:
        """The mask whose voxels are, in C order, those of the boolean arrays `parts`, one after the other."""
        packed, rest = [], np.empty(0, bool)
        for part in parts:
            voxels = np.concatenate([rest, part.ravel()])
            whole = len(voxels) // 8 * 8
            packed.append(np.packbits(voxels[:whole]))
            rest = voxels[whole:]
        return cls(shape, fill, np.concatenate([*packed, np.packbits(rest)]))

    @property
    def count(self) -> int:
        """How many voxels are missing."""
        return int.from_bytes(self.bits.tobytes()).bit_count()

    def at(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Whether voxels are missing: their indices along each axis, arrays that broadcast -> booleans."""
        flat = np.ravel_multi_index(index, self.shape)
        return (self.bits[flat >> 3] >> (7 - (flat & 7)).astype(np.uint8) & 1).astype(bool)


def same(a: Mask | None, b: Mask | None) -> bool:
    """Whether the same voxels are missing in both."""
    return a is b or (a is not None and b is not None and np.array_equal(a.bits, b.bits))


def strides(shape: tuple[int, ...]) -> list[int]:
    """0, then the distance in C order of neighbours along each axis."""
    return [0, *(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))]


def compress(mask: Mask) -> bytes:
    """u8 axis and LZMA2 stream of chunk M, see net_coder; with the axis that makes it shortest."""
    filters = [{**FILTER, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    size, unused = len(mask.bits), -math.prod(mask.shape) % 8
    bits = int.from_bytes(mask.bits.tobytes())
    streams = []
    for axis, distance in enumerate(strides(mask.shape)):
        stored = (bits ^ (bits >> distance if axis else 0)) >> unused << unused
        streams.append(bytes([axis]) + lzma.compress(stored.to_bytes(size), lzma.FORMAT_RAW, filters=filters))
    return min(streams, key=len)


def decompress(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The bits that `compress` was given. Raises MaskError for anything else."""
    n_voxels, (axis, stream) = math.prod(shape), (data[0], data[1:]) if data else (-1, b"")
    size, unused = (n_voxels + 7) // 8, -n_voxels % 8
    if not 0 <= axis <= len(shape) or n_voxels > MAX_VOXELS:
        raise MaskError(f"axis: expected 0 to {len(shape)} and at most {MAX_VOXELS} voxels, found {axis}, {n_voxels}")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[FILTER])
    try:
        stored = decoder.decompress(stream, size + 1)
    except lzma.LZMAError as error:
        raise MaskError(f"its stream is damaged: {error}") from None
    if len(stored) != size or not decoder.eof or decoder.unused_data:
        raise MaskError(f"expected a stream of {size} bytes, found another length")
    bits = int.from_bytes(stored)
    if bits & ((1 << unused) - 1):
        raise MaskError("unused bits: expected 0")
    distance = strides(shape)[axis]
    while 0 < distance < n_voxels:  # undoes bit i ^= bit i - distance, all at once
        bits ^= bits >> distance
        distance *= 2
    return np.frombuffer((bits >> unused << unused).to_bytes(size), np.uint8)
