"""A volume: values on a regular grid in space, and how a headerless file holds them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
SLAB = 1 << 20  # values looked at in one go
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class VolumeError(Exception):
    """A volume file that cannot be read or written; the message names it, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """Values on a regular grid.

    array: one value per voxel, shape (x, y, z), (t, x, y, z), or with a last axis of components; may be a read-only
    memory map, in any order of axes in memory, or the `Steps` of a series. spacing, origin: one figure per grid axis,
    in the units of length (and time) that the file uses. name: of the field. direction: 3 x 3, row by row; its columns
    are the directions in space of the grid's axes, time left out: voxel i lies at origin + direction (spacing i).
    units: of the values, "" when unknown. fill: what stands in missing voxels, a scalar of the array's dtype, NaN
    included; None when none are marked. See `is_missing`. time: of a volume that is one step of a series, where its
    file says it.
    """

    array: np.ndarray | Steps
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    name: str = "sf"
    direction: tuple[float, ...] = IDENTITY
    units: str = ""
    fill: np.generic | None = None
    time: float | None = None

    @functools.cached_property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and greatest value of each component; see the function `limits`."""
        values = self.array if self.array.ndim > len(self.spacing) else self.array[..., None]
        return limits(values, self.fill)

    def at_step(self) -> Volume:
        """A series of one step as a volume in space."""
        return dataclasses.replace(
            self, array=self.array[0], spacing=self.spacing[1:], origin=self.origin[1:], time=self.origin[0]
        )


def is_missing(values: np.ndarray, fill: np.generic | None) -> np.ndarray:
    """Which voxels of values (..., components), any part of a volume, are missing: those with `fill` in a component."""
    if fill is None:
        return np.broadcast_to(False, values.shape[:-1])
    return (np.isnan(values) if fill != fill else values == fill).any(axis=-1)


Box = tuple[slice, ...]


def boxes(values: np.ndarray, n: int | None = None, order: Iterable[int] | None = None) -> list[Box]:
    """Boxes of nearly equal size that make up the grid of values (..., components), of at most n values each (SLAB).

    Boxes follow the order of memory, or `order`, the fastest axis last. So each box is nearly one contiguous read.
    """
    shape, left = values.shape[:-1], max(1, (n or SLAB) // values.shape[-1])
    order = list(order or sorted(range(len(shape)), key=lambda axis: -abs(values.strides[axis])))
    cuts = {}
    for axis in reversed(order):
        n_parts = -(-shape[axis] // left)
        left = max(1, left // shape[axis])
        ends = [shape[axis] * k // n_parts for k in range(n_parts + 1)]
        cuts[axis] = [slice(*pair) for pair in itertools.pairwise(ends)]
    products = itertools.product(*(cuts[axis] for axis in order))
    return [tuple(product[order.index(axis)] for axis in range(len(shape))) for product in products]


def parts(values: np.ndarray, chosen: Iterable[Box] | None = None) -> Iterator[tuple[Box, np.ndarray]]:
    """Boxes, by default all of `boxes(values)`, with the values in them.

    The pages of a memory map are let go of after each, else they would count as memory in use.
    """
    for box in boxes(values) if chosen is None else chosen:
        yield box, values[box]
        let_go(values)


def let_go(values: np.ndarray) -> None:
    """Take the pages of a memory map out of memory; nothing where it is none."""
    while isinstance(values, np.ndarray):
        values = values.base
    if isinstance(values, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        values.madvise(mmap.MADV_DONTNEED)


class Steps:
    """The steps of a time series, arrays of one shape and type, as an array [t, ...] that is never made.

    Of an array's ways it has those that volumes are read by: `steps[t]` is that step's array, `steps[..., x]` the
    series of the steps' `[..., x]`, and `steps[box]` a copy of the values in a box.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays, self.dtype = arrays, arrays[0].dtype
        self.shape = (len(arrays), *arrays[0].shape)
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.strides = (math.inf, *arrays[0].strides)  # one step after the other

    def __getitem__(self, key: int | Box | tuple) -> np.ndarray | Steps:
        if isinstance(key, int):
            return self.arrays[key]
        if key[0] is Ellipsis:
            return Steps([array[key] for array in self.arrays])
        chosen = self.arrays[key[0]]
        values = np.stack([array[key[1:]] for array in chosen])
        for array in chosen:
            let_go(array)
        return values


def limits(values: np.ndarray, fill: np.generic | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest value of each component of values (..., components), missing voxels left out.

    NaN where there is one that marks nothing. Raises ValueError when every voxel is missing.
    """
    ends = []
    for _, part in parts(values):
        rows = part.reshape(-1, part.shape[-1]) if fill is None else part[~is_missing(part, fill)]
        if len(rows):
            ends.append((rows.min(axis=0), rows.max(axis=0)))
    if not ends:
        raise ValueError("every voxel is missing")
    return np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)


def oriented(path: str, array: np.ndarray, steps: np.ndarray, origin: np.ndarray, **more: str) -> Volume:
    """The volume whose voxels lie a column of `steps` (3 x 3) apart along each axis."""
    spacing = np.linalg.norm(steps, axis=0)
    if not (np.isfinite(steps).all() and np.isfinite(origin).all() and (spacing > 0).all()):
        raise VolumeError(f"{path}: expected axes of finite length, found {steps.T.tolist()} from {np.ravel(origin)}")
    direction = steps / spacing + 0.0
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        raise VolumeError(f"{path}: expected axes at right angles, found {direction.T.tolist()}")
    spacing, origin, direction = (tuple(np.ravel(part).tolist()) for part in (spacing, origin, direction))
    return Volume(array, spacing, origin, direction=direction, **more)


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array whose values are computed when they are asked for: `array[box]`, a slice per axis of the grid.

    shape: of the grid, and components behind it when there are several. evaluate(box): that part of the array.
    array[i]: the array at one place along the first axis, lazy too.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    evaluate: Callable[[Box], np.ndarray]

    def __getitem__(self, key: Box | int) -> np.ndarray | LazyArray:
        if isinstance(key, int):
            first = slice(key, key + 1)
            return LazyArray(self.shape[1:], self.dtype, lambda box: self.evaluate((first, *box))[0])
        if not isinstance(key, tuple):
            raise TypeError(f"expected a slice for each axis of the grid, found {key}")
        return self.evaluate(key)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("expected an array in memory, found a lazy one, which is evaluated box by box")


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
