"""A PNG file of an RGB image. The standard library is enough, so that a field shows itself without VTK."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BITS = (8, 2, 0, 0, 0)  # bits per channel, colour type RGB, and the only methods that there are


def png_of(image: np.ndarray) -> bytes:
    """The PNG file of an image (rows from the top, columns, 3), uint8. Source: the PNG specification, W3C, 2003."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">II5B", width, height, *RGB_8_BITS)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
