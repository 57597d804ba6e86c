"""The voxels of a file: mapped where they are stored as they are, held where they are packed. And where they lie."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import zlib

import numpy as np

from cli import console
from formats.common import MAX_EXPANSION, VolumeError, as_volume_error

AT_END = -1  # an offset: the voxels are the last bytes of the file
PIECE = 1 << 26  # bytes of what follows the voxels that are unpacked at a time


def file_beside(path: str, named: str, field: str) -> str:
    """The file of voxels that a header names in that field, relative to its own folder. Raises VolumeError."""
    source = os.path.join(os.path.dirname(path), named)
    if os.path.isfile(source):
        return source
    is_several = bool(named) and (named.split()[0].upper() == "LIST" or "%" in named)
    if named and not is_several and not os.path.exists(source):
        raise VolumeError(f"{path}: its data file {source} does not exist")
    joined = f"SimpleITK.WriteImage(SimpleITK.ReadImage({path!r}), 'one.nrrd')"
    way_out = f": {joined} makes one of several" if is_several else ""
    raise VolumeError(f"{path}: expected its voxels in one file, found {field} {named or 'none'}{way_out}")


def mapped(source: str, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """A memory map of voxels that a file stores as they are. Raises VolumeError when it holds too few bytes."""
    expected, n_bytes = math.prod(shape) * dtype.itemsize, os.path.getsize(source)
    start = n_bytes - expected if offset == AT_END else offset
    if not 0 <= start <= n_bytes - expected:
        found = n_bytes - max(start, 0)
        raise VolumeError(f"{source}: truncated: expected {expected} bytes of voxels, found {max(found, 0)}")
    with as_volume_error(source, "its voxels cannot be read"):
        return np.memmap(source, dtype, "r", start, shape, order="F")


def unpacked(
    source: str, dtype: np.dtype, shape: tuple[int, ...], encoding: str, offset: int = 0, skipped: int = 0
) -> np.ndarray:
    """Voxels from a text, or from a stream of zlib, gzip or bzip2, which may hold more. Raises VolumeError.

    offset: the byte at which the text or the stream begins. skipped: the bytes of the stream before the voxels.
    """
    count, available = math.prod(shape), os.path.getsize(source) - offset
    expected, most = count * dtype.itemsize, MAX_EXPANSION * available
    if skipped + expected > most:
        raise VolumeError(f"{source}: truncated: expected {expected} bytes of voxels, found {available} packed ones")
    with as_volume_error(source, "its voxels cannot be read"), open(source, "rb") as file:
        file.seek(offset)
        if encoding == "text":
            values = np.array(file.read().split(), dtype.newbyteorder("="))
        else:
            content = _stream(file, encoding, skipped + expected, most)
            values = np.frombuffer(content, dtype, (len(content) - skipped) // dtype.itemsize, skipped)
    if len(values) != count:
        raise VolumeError(f"{source}: truncated or damaged: expected {count} voxels, found {len(values)}")
    return values.reshape(shape, order="F")


def _stream(file, encoding: str, n_bytes: int, most: int) -> bytes:
    """The first bytes of what is packed in a file. All of it is unpacked, so that its checksum counts.

    most: bytes that may follow. A kilobyte of bzip2 can hold a gigabyte; zlib and gzip cannot.
    """
    n_more = 0
    if encoding == "zlib":
        inflater = zlib.decompressobj(wbits=47)  # zlib's own form, or that of gzip
        content = inflater.decompress(file.read(), n_bytes)
        while not inflater.eof and (more := inflater.decompress(inflater.unconsumed_tail, PIECE)):
            n_more += len(more)
        if not inflater.eof:
            raise ValueError("its end is missing")
    else:
        stream = {"gzip": gzip, "bzip2": bz2}[encoding].open(file)
        content = stream.read(n_bytes)
        while n_more <= most and (more := stream.read(PIECE)):
            n_more += len(more)
        if n_more > most:
            raise ValueError(f"more than {most} bytes follow the voxels")
    if n_more:
        console.warn(file.name, f"{n_more} bytes follow the voxels that its header tells of: they are not read")
    return content
