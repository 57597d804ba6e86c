"""Arrays that stay in their file: only the parts that are asked for are read and decoded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from formats.arrays import Shaped
from formats.common import as_volume_error
from utils import Box, drop_pages


def in_axes(values: np.ndarray, axes: tuple[int | None, ...]) -> np.ndarray:
    """A view of values with these of their axes, None for an axis of one voxel. The others are of one index each."""
    used = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(values.ndim) if axis not in used]
    return values.transpose(*rest, *used).reshape([1 if axis is None else values.shape[axis] for axis in axes])


@dataclasses.dataclass(frozen=True)
class StoredArray(Shaped):
    """A view of an array in a file, with axes of its own.

    path: the name of the file, for errors. source: the array in the file, read by `source[slices]`: a memory map, or a
    data set of HDF5 or Zarr. decode: makes values of type `dtype` of the stored ones, in the same shape. window: for
    each axis of the file, the indices that this view has. axes: for each axis of this view, the axis of the file; None
    for an axis of one voxel that the file has not. file_chunks: the lengths of a piece that is decoded at once, along
    the axes of the file.

    `array[box]` with one slice per axis are values, as is `array[...]`. `array[i]` and `array[..., key]` are views.
    np.asarray(array) reads all values.
    """

    path: str
    source: Any
    dtype: np.dtype
    decode: Callable[[np.ndarray], np.ndarray]
    window: tuple[range, ...]
    axes: tuple[int | None, ...]
    file_chunks: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(1 if axis is None else len(self.window[axis]) for axis in self.axes)

    @property
    def chunks(self) -> tuple[int, ...]:
        """The lengths of a chunk along the axes of this view."""
        return tuple(1 if axis is None else self.file_chunks[axis] for axis in self.axes)

    @property
    def strides(self) -> tuple[int, ...]:
        """The distances between neighbours in the order of the file, in values."""
        lengths = [len(indices) for indices in self.window]
        return tuple(0 if axis is None else math.prod(lengths[axis + 1 :]) for axis in self.axes)

    def __getitem__(self, key: int | Box | tuple) -> np.ndarray | StoredArray:
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"expected an index below {len(self)}, found {key}")
            return self.part((key,))
        if key is Ellipsis:
            return self._values()
        if key[0] is Ellipsis:
            n_used = sum(part is not None for part in key[1:])
            return self.part((slice(None),) * (self.ndim - n_used) + key[1:])
        return self.part(key)._values()

    def part(self, key: tuple) -> StoredArray:
        """The view of a part. key: for each of the first axes an index, a slice, or None for a new axis."""
        window, axes, left = list(self.window), [], iter(self.axes)
        for part in key:
            axis = None if part is None else next(left)
            if axis is not None:
                window[axis] = window[axis][part if isinstance(part, slice) else slice(part, part + 1 or None)]
            if part is None or isinstance(part, slice):  # an index leaves no axis
                axes.append(axis)
        return dataclasses.replace(self, window=tuple(window), axes=(*axes, *left))

    def _values(self) -> np.ndarray:
        key = tuple(slice(part.start, part.stop, part.step) for part in self.window)
        with as_volume_error(self.path, "a part of its values cannot be read"):
            values = self.decode(np.asarray(self.source[key]))
        drop_pages(self.source)
        return in_axes(values, self.axes)
