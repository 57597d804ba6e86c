"""A volume: values on a regular grid in space, and how a headerless file holds them."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class VolumeError(Exception):
    """A volume file that cannot be read or written; the message names it, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """Values on a regular grid.

    array: one value per voxel, shape (x, y, z), or (x, y, z, components); may be a read-only memory map, in any order
    of axes in memory. spacing, origin: one figure per grid axis, in the units of length that the file uses. name: of
    the field. direction: 3 x 3, row by row; its columns are the directions of the grid's axes in space: voxel i lies at
    origin + direction (spacing i). units: of the values, "" when unknown.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    name: str = "sf"
    direction: tuple[float, ...] = IDENTITY
    units: str = ""


@dataclasses.dataclass(frozen=True)
class RawLayout:
    """What a headerless file holds: voxels along x, y, z, a NumPy dtype's name, "little" or "big" endian; x fastest."""

    shape: tuple[int, ...]
    dtype: str
    endian: str = "little"


def raw_layout(shape: tuple[int, ...] | None, dtype: str | None, endian: str | None) -> RawLayout | None:
    """The layout that --shape, --dtype and --endian describe; None when none is given. Raises VolumeError."""
    if shape is None and dtype is None and endian is None:
        return None
    if shape is None or dtype is None:
        raise VolumeError("a headerless file: expected both --shape and --dtype (and --endian, little unless given)")
    return RawLayout(shape, dtype, endian or "little")


def suffix_of(path: str) -> str:
    """The file's suffix in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()
