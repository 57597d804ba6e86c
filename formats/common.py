"""What the formats share: their error, the layout of a headerless file, suffixes, axes in space."""

from __future__ import annotations

import dataclasses
import importlib
import os
from types import ModuleType

import numpy as np

from utils import Geometry, UserError, Volume

MAX_EXPANSION = 10_000  # bytes that one of a compressed file becomes: LZMA, the best of them, reaches 7000


class VolumeError(UserError):
    """A volume file that cannot be read or written; the message names it, what was expected and found."""


def import_reader(module: str, packages: str, path: str) -> ModuleType:
    """The module that reads a format. Raises VolumeError, with the way out, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise VolumeError(f"{path}: reading it needs {module}: pip install {packages}") from None


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
    """The file's suffix in lower case, with its dot; that of what it is packed from too, where it is packed."""
    stem, suffix = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def volume_from_axes(path: str, array: np.ndarray, steps: np.ndarray, origin: np.ndarray, **names: str) -> Volume:
    """The volume whose voxels lie a column of `steps` (3 x 3) apart along each axis. names: its name and units."""
    spacing = np.linalg.norm(steps, axis=0)
    if not (np.isfinite(steps).all() and np.isfinite(origin).all() and (spacing > 0).all()):
        raise VolumeError(f"{path}: expected axes of finite length, found {steps.T.tolist()} from {np.ravel(origin)}")
    direction = steps / spacing + 0.0
    geometry = Geometry(*(tuple(np.ravel(part).tolist()) for part in (spacing, origin, direction)), **names)
    if not geometry.is_orthonormal:
        raise VolumeError(f"{path}: expected axes at right angles, found {direction.T.tolist()}")
    return Volume(array, geometry)
