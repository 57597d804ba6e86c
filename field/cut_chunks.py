"""What the chunks S and B of a blob hold: mirrors, the cut into bricks and their ranges. See field/blob.py."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import numpy as np

from field.binary import ByteReader
from field.bricks import Cut, check_cut


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
