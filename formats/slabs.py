"""A volume slab by slab, in the order of the file, because the volume may be larger than memory.

`array[box]` is asked for SLAB_BYTES at a time, or for one plane of voxels if that is more. Every voxel is asked for
once. Memory holds at most three slabs: the last one, its copy in the order of the file, and the next one. The
evaluation of a slab needs memory, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from formats.arrays import LazyArray
from formats.common import of_three_axes
from utils import DEFAULT_NAME, Box, Geometry, Volume

SLAB_BYTES = 1 << 26  # most bytes of a slab of several planes


class Frame(NamedTuple):
    """What the header of a file says of a volume.

    d_in: the number of grid axes of the array. grid, geometry: always of the three axes of space. dtype: as stored,
    little-endian. time: of the first step, None where it is unknown. n_times, time_step: 1 and 0 where it is no series.
    """

    d_in: int
    grid: tuple[int, ...]
    n_components: int
    dtype: np.dtype
    geometry: Geometry
    time: float | None
    n_times: int = 1
    time_step: float = 0.0

    def of(self, array: np.ndarray | LazyArray) -> Frame:
        """The same frame with the components and the type of another array on the same grid."""
        return self._replace(n_components=math.prod(array.shape[self.d_in :]), dtype=without_float16(array.dtype))


def frame_of(volume: Volume, has_float16: bool) -> Frame:
    """The frame of a volume. has_float16: whether the format has 16-bit floats."""
    whole, dtype = volume.geometry, np.dtype(volume.array.dtype)
    first = int(whole.d_in == 4)  # axis of space
    given, shape = whole.axes_between(first), volume.array.shape[first:]
    geometry = Geometry(
        tuple(map(float, of_three_axes(given.spacing, 1))),
        tuple(map(float, of_three_axes(given.origin, 0))),
        given.direction,
        on_one_line(given.name) or DEFAULT_NAME,  # VTK does not read an array without a name
        on_one_line(given.units),
        given.space,
        {key: on_one_line(text) for key, text in given.axis_attributes.items()},
    )
    stored = dtype.newbyteorder("<") if has_float16 else without_float16(dtype)
    grid, n_components = of_three_axes(shape[: given.d_in], 1), math.prod(shape[given.d_in :])
    time = (volume.array.shape[0], whole.spacing[0]) if first else ()
    start = whole.origin[0] if first else volume.time
    return Frame(whole.d_in, grid, n_components, stored, geometry, start, *time)


def without_float16(dtype: np.dtype) -> np.dtype:
    """The little-endian type that holds the values of `dtype` in a format without float16."""
    return np.dtype("<f4") if dtype == np.float16 else np.dtype(dtype).newbyteorder("<")


def on_one_line(text: str) -> str:
    """The printable characters on one line, so that a name from another file cannot add lines to a header."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def figures(values: np.ndarray | tuple[float, ...], separator: str = " ") -> str:
    """The numbers as text. Reading the text gives the same float64 again."""
    return separator.join(repr(float(v)) for v in np.ravel(values))


def slabs(array: np.ndarray | LazyArray, d_in: int) -> Iterator[np.ndarray]:
    """Yield the array in slabs along its first axis. d_in: the number of grid axes."""
    n, *others = array.shape
    per_plane = math.prod(others) * array.dtype.itemsize
    step = max(1, SLAB_BYTES // per_plane)
    for start in range(0, n, step):
        yield array[(slice(start, min(start + step, n)), *(slice(0, length) for length in others[: d_in - 1]))]


def x_fastest(array: np.ndarray | LazyArray, frame: Frame) -> Iterator[np.ndarray]:
    """Yield the values in the order of most files: x fastest, the components of a voxel together."""
    return (values for _, values in slices_first(array, frame.d_in, frame.dtype))


def slices_first(
    array: np.ndarray | LazyArray, d_in: int, dtype: np.dtype, multiple: int = 1
) -> Iterator[tuple[Box, np.ndarray]]:
    """Yield (box, values) of the array as ((t,) z, y, x, components), slab by slab, each of a multiple of z-slices."""
    n, shape = array.shape[d_in - 1], array.shape
    n_steps = shape[0] if d_in == 4 else 1
    per_plane = math.prod(shape) * array.dtype.itemsize // n // n_steps
    thickness = max(1, SLAB_BYTES // per_plane // multiple) * multiple
    order = (*([0] if d_in == 4 else []), *reversed(range(d_in == 4, d_in)), *range(d_in, len(shape)))
    for t, start in itertools.product(range(n_steps), range(0, n, thickness)):
        box = [slice(0, length) for length in shape]
        box[d_in - 1] = slice(start, min(start + thickness, n))
        if d_in == 4:
            box[0] = slice(t, t + 1)
        values = array[tuple(box[:d_in])].transpose(order)
        yield tuple(box[axis] for axis in order), np.ascontiguousarray(values, dtype)


def planar(array: np.ndarray | LazyArray, frame: Frame) -> Iterator[np.ndarray]:
    """Yield the values x fastest, components slowest. An array larger than a slab is asked for once per component."""
    if frame.n_components == 1:
        yield from x_fastest(array, frame)
        return
    if math.prod(array.shape) * array.dtype.itemsize <= SLAB_BYTES:
        array = np.asarray(array)
    for component in range(frame.n_components):
        for part in x_fastest(array, frame):
            yield np.ascontiguousarray(part[..., component])
