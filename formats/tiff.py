"""TIFF with one page per slice, read by tifffile (pip install tifffile imagecodecs)."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator

import numpy as np

from formats.common import MAX_EXPANSION, VolumeError, import_reader, volume_from_axes
from utils import Volume

BLACK_IS_ZERO, RGB = 1, 2  # values of the tag PhotometricInterpretation
UNCOMPRESSED = 1  # value of the tag Compression


def read_tiff(path: str) -> Volume:
    """The volume of a TIFF with one page per slice; y counts the rows as stored. Only ImageJ's files give a spacing."""
    tifffile = import_reader("tifffile", "tifffile imagecodecs", path)
    try:
        with _told_errors() as told, tifffile.TiffFile(path) as file:
            pages, metadata = list(file.pages), file.imagej_metadata or {}
            shapes = [entry.get("shape") for entry in file.shaped_metadata or ()]  # as tifffile itself writes it
            if shapes and shapes[0] and math.prod(shapes[0]) != sum(page.size for page in pages):
                raise VolumeError(f"{path}: expected a page a slice, found {len(pages)} pages of shape {shapes[0]}")
            _check_pages(path, pages, metadata)
            array = np.stack([page.asarray().reshape(*page.shape[:2], -1) for page in pages])  # (z, y, x, components)
            spacing = _spacing(pages[0].tags, metadata)
            if told:
                raise VolumeError(f"{path}: tifffile cannot read all of it: {told[0]}")
    except VolumeError:
        raise
    except Exception as error:  # a damaged file can fail in any of tifffile's parsers
        raise VolumeError(f"{path}: tifffile cannot read it: {error}") from None
    return volume_from_axes(path, array.transpose(2, 1, 0, 3), np.diag(spacing), np.zeros(3))


@contextlib.contextmanager
def _told_errors() -> Iterator[list[str]]:
    """The errors that tifffile logs in the block without raising them. None of them is printed."""
    told, logger, handler = [], logging.getLogger("tifffile"), logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def _check_pages(path: str, pages: list, metadata: dict) -> None:
    """Raise VolumeError unless each page is a slice whose data are all in the file: tifffile invents missing data."""
    if not pages:
        raise VolumeError(f"{path}: has no pages")
    if metadata.get("images", len(pages)) != len(pages) or {"channels", "frames"} & metadata.keys():
        raise VolumeError(f"{path}: expected a page a slice, found {len(pages)} pages and {metadata}")
    n_bytes, first = os.path.getsize(path), pages[0]
    if sum(page.nbytes for page in pages) > MAX_EXPANSION * n_bytes:
        raise VolumeError(f"{path}: truncated: {n_bytes} bytes are too few for its {len(pages)} pages")
    for page in pages:
        if (page.shape, page.dtype, page.axes) != (first.shape, first.dtype, first.axes):
            raise VolumeError(f"{path}: expected pages of one size and type, found {page.shape} and {first.shape}")
    for page in pages:
        if page.axes not in ("YX", "YXS") or page.photometric not in (BLACK_IS_ZERO, RGB):
            found = f"axes {page.axes}, {page.photometric!r}"
            raise VolumeError(f"{path}: expected grey (zero is black) or interleaved RGB samples, found {found}")
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        n_needed = page.size * page.bitspersample // 8
        is_short = page.compression == UNCOMPRESSED and sum(length for _, length in pieces) < n_needed
        if is_short or not all(at > 0 and length > 0 and at + length <= n_bytes for at, length in pieces):
            raise VolumeError(f"{path}: truncated: a part of its voxels is not within its {n_bytes} bytes")


def _spacing(tags, metadata: dict) -> list[float]:
    """The spacing along x, y and z; 1 where ImageJ did not write the file or wrote no valid spacing."""
    if not metadata:
        return [1.0] * 3
    try:
        across = [tags[key].value[1] / tags[key].value[0] for key in ("XResolution", "YResolution")]
        return [*across, float(metadata.get("spacing", 1))]
    except (KeyError, ZeroDivisionError, ValueError, TypeError):
        return [1.0] * 3
