"""Bytes of a file of unknown origin, read in order: each length is checked before it is trusted."""

from __future__ import annotations

import struct

import numpy as np

from utils import UserError


class BlobError(UserError):
    """A blob, or an input of the encoder, breaks the format. The message says what was expected and what was found."""


class ByteReader:
    """Bytes that are read in order. Each length is checked before it is trusted."""

    __slots__ = ("data", "position", "what")  # a file can hold very many chunks

    def __init__(self, data: bytes, what: str):
        self.data, self.position, self.what = data, 0, what

    def take(self, length: int) -> bytes:
        found = len(self.data) - self.position
        if length > found:
            raise BlobError(f"truncated: expected {length} more bytes of {self.what}, found {found}")
        self.position += length
        return self.data[self.position - length : self.position]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.position)

    def unpack(self, form: str) -> tuple:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    @property
    def ended(self) -> bool:
        return self.position == len(self.data)

    def end(self) -> None:
        if not self.ended:
            raise BlobError(f"{len(self.data) - self.position} unexpected bytes after the {self.what}")


def carrier(dtype: np.dtype) -> str:
    """The little-endian type of 8 bytes that holds every value of `dtype`."""
    return f"<{dtype.kind}8"
