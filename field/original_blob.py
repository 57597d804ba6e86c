"""Reads the blobs of the original neurcomp scripts. Source: their net_coder.py."""

from __future__ import annotations

import math

import numpy as np

from field.binary import BlobError, ByteReader
from field.blob import decode_field, is_blob
from field.bricks import Bricks
from field.layers import SirenConfig, parameter_shapes
from field.network_chunk import network_of
from utils import VolumeHeader

ORIGINAL_BITS = (4, *range(6, 17))  # bits per index; the original reader garbles indices of 1, 2, 3 and 5 bits


def decode_either(data: bytes, large: bool = False) -> tuple[VolumeHeader | None, Bricks]:
    """Header and bricks of a blob of either kind; the header is None in an original one. Raises BlobError.

    large: see `decode_field`. An original blob is as long as what it holds, and needs no such limit.
    """
    if not data:
        raise BlobError("is empty: expected a blob, found a file of 0 bytes")
    return decode_field(data, large) if is_blob(data) else (None, Bricks.whole(*decode_original(data)))


def decode_original(data: bytes) -> tuple[SirenConfig, dict[str, np.ndarray]]:
    """The network (settings, float32 tensors by name) of a blob of the original neurcomp scripts.

    Such a blob has no magic bytes and no header. Each hidden matrix is stored as a codebook and indices into it. Raises
    BlobError unless every byte of the blob is accounted for.
    """
    reader = ByteReader(data, "a blob of the original scripts")
    n_layers, d_in, d_out, is_residual = reader.unpack("4B")
    widths = reader.unpack(f"{n_layers}I")
    (bits,) = reader.unpack("B")
    if is_residual > 1 or len(set(widths)) != 1:
        raise BlobError("not a blob of this suite or of the original scripts")
    sizes = {"n_neurons": widths[0], "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    config = network_of(**sizes, is_residual=bool(is_residual))
    if bits not in ORIGINAL_BITS:
        raise BlobError(f"bits: the original reads {ORIGINAL_BITS} rightly, found {bits}")
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        count = math.prod(shape)
        if name.endswith("weight") and not name.startswith(("net_layers.0.", f"net_layers.{n_layers}.")):
            centroids = reader.array("<f4", 1 << bits)
            tensors[name] = centroids[_unpack_original_indices(reader, bits, count)].reshape(shape)
        else:
            tensors[name] = reader.array("<f4", count).reshape(shape).copy()
        if not np.isfinite(tensors[name]).all():
            raise BlobError(f"{name} holds NaN or infinite weights")
    reader.end()
    return config, tensors


def _unpack_original_indices(reader: ByteReader, bits: int, count: int) -> np.ndarray:
    """Indices of `bits` bits each, the most significant bit first.

    When `bits` is not a multiple of 8, the last index follows again as u32. Only the u32 counts, because the bits of a
    partial last byte are right-aligned in that byte.
    """
    packed = np.unpackbits(reader.array("u1", (bits * count + 7) // 8), count=bits * count)
    places = (1 << np.arange(bits)[::-1]).astype(np.uint32)
    indices = packed.reshape(count, bits) @ places
    if bits % 8:
        indices[-1] = reader.unpack("I")[0]
        if indices[-1] >= 1 << bits:
            raise BlobError(f"an index of {bits} bits is {indices[-1]}")
    return indices
