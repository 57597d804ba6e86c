"""What the chunks M and H of a blob hold: the fill value and the mask of missing voxels. See field/blob.py."""

from __future__ import annotations

import lzma
import math

import numpy as np

from field.binary import BlobError, ByteReader, carrier
from field.entropy_coder import StreamError
from field.mask_coder import decode_mask, encode_mask
from utils import Mask

MAX_MASK_VOXELS = 1 << 35  # most voxels of a mask, 4 GiB of bits; a larger one is refused before memory is allocated
FILTER = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}


def encode_missing(missing: Mask) -> bytes:
    """The content of chunk M. The chosen axis gives the shortest stream."""
    filters = [{**FILTER, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    size, unused = len(missing.bits), -math.prod(missing.shape) % 8
    bits = int.from_bytes(missing.bits.tobytes(), "big")
    streams = []
    for axis, distance in enumerate(_strides(missing.shape)):
        stored = (bits ^ (bits >> distance if axis else 0)) >> unused << unused
        streams.append(bytes([axis]) + lzma.compress(stored.to_bytes(size, "big"), lzma.FORMAT_RAW, filters=filters))
    return _encode_fill(missing) + min(streams, key=len)


def encode_predicted(missing: Mask) -> bytes:
    """The content of chunk H, of at most mask_coder.MAX_VOXELS voxels."""
    are_missing = np.unpackbits(missing.bits, count=math.prod(missing.shape)).astype(bool)
    return _encode_fill(missing) + encode_mask(are_missing.reshape(missing.shape))


def decode_predicted(content: ByteReader, dtype: np.dtype, shape: tuple[int, ...]) -> Mask:
    """The mask of missing voxels from the content of chunk H. Raises BlobError."""
    fill = _decode_fill(content, dtype)
    try:
        return Mask.of(shape, fill, decode_mask(content.rest(), shape))
    except StreamError as error:
        raise BlobError(f"missing voxels: its stream is damaged: {error}") from None


def _encode_fill(missing: Mask) -> bytes:
    return missing.fill.astype(carrier(missing.fill.dtype)).tobytes()


def _decode_fill(content: ByteReader, dtype: np.dtype) -> np.generic:
    carried = content.array(carrier(dtype), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        fill = carried.astype(dtype)[0]
        if np.isinf(fill) or not np.array_equal(fill.astype(carried.dtype), carried[0], equal_nan=dtype.kind == "f"):
            raise BlobError(f"fill value {carried[0]}: is none of dtype {dtype}")
    return fill


def decode_missing(content: ByteReader, dtype: np.dtype, shape: tuple[int, ...]) -> Mask:
    """The mask of missing voxels from the content of chunk M. Raises BlobError."""
    fill = _decode_fill(content, dtype)
    (axis,), n_voxels = content.unpack("B"), math.prod(shape)
    size, unused = (n_voxels + 7) // 8, -n_voxels % 8
    if axis > len(shape) or n_voxels > MAX_MASK_VOXELS:
        expected = f"axis: expected 0 to {len(shape)} and at most {MAX_MASK_VOXELS} voxels"
        raise BlobError(f"missing voxels: {expected}, found {axis}, {n_voxels}")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[FILTER])
    try:
        stored = decoder.decompress(content.rest(), size + 1)
    except lzma.LZMAError as error:
        raise BlobError(f"missing voxels: its stream is damaged: {error}") from None
    if len(stored) != size or not decoder.eof or decoder.unused_data:
        raise BlobError(f"missing voxels: expected a stream of {size} bytes, found another length")
    bits = np.frombuffer(stored, np.uint8)
    if bits[-1] & ((1 << unused) - 1):
        raise BlobError("missing voxels: unused bits: expected 0")
    bits = _undo_xor(bits, _strides(shape)[axis])
    bits[-1] &= 0xFF >> unused << unused
    return Mask(shape, fill, bits)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """0, then for each axis the distance in C order between neighbouring voxels."""
    return [0, *(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))]


def _undo_xor(stored: np.ndarray, distance: int) -> np.ndarray:
    """The bits, eight a byte, of which number i was stored xor number i - distance. Takes time linear in the bits."""
    n_bytes = len(stored)
    if distance % 8:
        bits = int.from_bytes(stored.tobytes(), "big")
        while distance % 8:  # bit i ^ bit i - d, xor the same d earlier, is bit i ^ bit i - 2d: at most three passes
            bits ^= bits >> distance
            distance *= 2
        stored = np.frombuffer(bits.to_bytes(n_bytes, "big"), np.uint8)
    if not 0 < distance < 8 * n_bytes:
        return stored.copy()
    rows = np.zeros((-(-8 * n_bytes // distance), distance // 8), np.uint8)
    rows.ravel()[:n_bytes] = stored
    return np.bitwise_xor.accumulate(rows, axis=0, out=rows).ravel()[:n_bytes]
