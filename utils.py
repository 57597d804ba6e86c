"""The volume as a sampled function: its description, coordinates, grids, value range, missing voxels. NumPy only.

The coordinate convention lives here and nowhere else: the longest axis of space spans [-1, 1]. The others span less, in
proportion to their number of voxels; the middle of every axis is at 0. Time, the first of four axes, spans [-1, 1] by
itself. Values are normalised to [-1, 1] by the volume's own range. Source: the paper, section 3; the original scripts
have the same figures.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import mmap
from collections.abc import Iterable, Iterator

import numpy as np

DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
MAX_SKEW = 1e-3  # by which products of directions may differ from those of unit vectors at right angles
MAX_GRID_POINTS = 1 << 26  # along an axis of a grid, whose positions are held: half a GiB
BOX_VALUES = 1 << 20  # values that are read from a volume at a time
MASK_BOX_VALUES = 1 << 25  # the same, where voxels are only looked for


class UserError(Exception):
    """Something the user can mend: one line that names the file, what was expected and what was found."""


# --- the volume ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the voxels of a grid lie, and what their values are called.

    spacing, origin: one figure per grid axis, in the units of length (and time) that the file uses. direction: 3 x 3,
    row by row; its columns are the directions in space of the grid's axes, time left out: voxel i lies at origin +
    direction (spacing i). name: of the values. units: of the values, "" when unknown.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...] = IDENTITY
    name: str = "sf"
    units: str = ""

    @classmethod
    def plain(cls, d_in: int) -> Geometry:
        """Of a grid of `d_in` axes whose file says nothing: spacing 1, origin 0."""
        return cls((1.0,) * d_in, (0.0,) * d_in)

    @property
    def d_in(self) -> int:
        """The number of grid axes."""
        return len(self.spacing)

    @property
    def axis_directions(self) -> np.ndarray:
        """The directions of the grid's axes, (d_in, d_in), one a column; time has one of its own."""
        directions = np.eye(4)
        directions[1:, 1:] = np.reshape(self.direction, (3, 3))
        first = 0 if self.d_in == 4 else 1
        return directions[first : first + self.d_in, first : first + self.d_in]

    @property
    def is_orthonormal(self) -> bool:
        """Whether the directions have unit length and are at right angles."""
        matrix = np.reshape(self.direction, (3, 3))
        return bool(np.abs(matrix.T @ matrix - np.eye(3)).max() <= MAX_SKEW)

    def with_time(self, step: float, start: float) -> Geometry:
        """The same with an axis of time before those of space."""
        return dataclasses.replace(self, spacing=(step, *self.spacing), origin=(start, *self.origin))

    def first_axes(self, start: int, stop: int | None = None) -> Geometry:
        """The same with the axes from `start` up to `stop` only."""
        return dataclasses.replace(self, spacing=self.spacing[start:stop], origin=self.origin[start:stop])


@dataclasses.dataclass(frozen=True)
class Volume:
    """Values on a regular grid.

    array: one value per voxel, shape (x, y, z), (t, x, y, z), or with a last axis of components; may be a read-only
    memory map, in any order of axes in memory, or the StackedSteps of a series. fill: the value of missing voxels, a
    scalar of the array's dtype, NaN included; None when none are marked. time: of a volume that is one step of a
    series, where its file says it.
    """

    array: np.ndarray
    geometry: Geometry
    fill: np.generic | None = None
    time: float | None = None

    @property
    def values(self) -> np.ndarray:
        """The array as (grid..., components), with one component where it has no such axis."""
        return self.array if self.array.ndim > self.geometry.d_in else self.array[..., None]

    @functools.cached_property
    def value_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and greatest value of each component; see the function `value_limits`."""
        return value_limits(self.values, self.fill)

    def at_step(self) -> Volume:
        """A series of one step as a volume in space."""
        geometry = self.geometry
        return dataclasses.replace(self, array=self.array[0], geometry=geometry.first_axes(1), time=geometry.origin[0])


@dataclasses.dataclass(frozen=True)
class VolumeHeader:
    """Everything that is known of a volume but its values; what a blob says of its field.

    shape: grid axes, voxels. low, high: the range of each component, arrays of the volume's dtype. missing: the voxels
    without a value, None when all have one.
    """

    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    geometry: Geometry
    missing: Mask | None = None

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self.low.dtype

    @property
    def n_components(self) -> int:
        """Values per voxel."""
        return len(self.low)

    @property
    def n_voxels(self) -> int:
        """How many voxels the grid has."""
        return math.prod(self.shape)

    @property
    def n_present(self) -> int:
        """How many voxels are not missing."""
        return self.n_voxels - (self.missing.count if self.missing else 0)

    @property
    def values(self) -> ValueRange:
        """The range of the values."""
        return ValueRange(self.low, self.high, self.fill)

    @property
    def fill(self) -> np.generic | None:
        """What stands in missing voxels."""
        return self.missing.fill if self.missing else None


def differences(found: VolumeHeader, expected: VolumeHeader) -> list[str]:
    """What tells the volume of one header from that of another: any of shape, dtype, range, missing."""
    differing = ["shape"] if found.shape != expected.shape else []
    differing += ["dtype"] if found.dtype != expected.dtype else []
    differing += ["range"] if [*found.low, *found.high] != [*expected.low, *expected.high] else []
    is_alike = found.missing is expected.missing or (
        found.missing and expected.missing and np.array_equal(found.missing.bits, expected.missing.bits)
    )
    return differing + ([] if is_alike else ["missing"])


def header_of(volume: Volume) -> VolumeHeader:
    """The header of a volume."""
    shape = volume.array.shape[: volume.geometry.d_in]
    return VolumeHeader(shape, *volume.value_limits, volume.geometry, find_missing(volume.values, volume.fill))


# --- read box by box ----------------------------------------------------------------------------------

Box = tuple[slice, ...]


def boxes(values: np.ndarray, n: int | None = None, order: Iterable[int] | None = None) -> list[Box]:
    """Boxes of nearly equal size that make up the grid of values (..., components), of at most n or BOX_VALUES values.

    Boxes follow the order of memory, or `order`, the fastest axis last. So each box is nearly one contiguous read.
    """
    shape, left = values.shape[:-1], max(1, (n or BOX_VALUES) // values.shape[-1])
    order = list(order or sorted(range(len(shape)), key=lambda axis: -abs(values.strides[axis])))
    cuts = {}
    for axis in reversed(order):
        n_parts = -(-shape[axis] // left)
        left = max(1, left // shape[axis])
        ends = [shape[axis] * k // n_parts for k in range(n_parts + 1)]
        cuts[axis] = [slice(*pair) for pair in itertools.pairwise(ends)]
    products = itertools.product(*(cuts[axis] for axis in order))
    return [tuple(product[order.index(axis)] for axis in range(len(shape))) for product in products]


def read_in_boxes(values: np.ndarray, chosen: Iterable[Box] | None = None) -> Iterator[tuple[Box, np.ndarray]]:
    """Boxes, by default all of `boxes(values)`, with the values in them.

    The pages of a memory map are let go of after each, else they would count as memory in use.
    """
    for box in boxes(values) if chosen is None else chosen:
        yield box, values[box]
        drop_pages(values)


def drop_pages(values: np.ndarray) -> None:
    """Take the pages of a memory map out of memory; nothing where it is none."""
    while isinstance(values, np.ndarray):
        values = values.base
    if isinstance(values, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        values.madvise(mmap.MADV_DONTNEED)


def value_limits(values: np.ndarray, fill: np.generic | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest value of each component of values (..., components), missing voxels left out.

    NaN where there is one that marks nothing. Raises ValueError when every voxel is missing.
    """
    ends = []
    for _, part in read_in_boxes(values):
        rows = part.reshape(-1, part.shape[-1]) if fill is None else part[~is_missing(part, fill)]
        if len(rows):
            ends.append((rows.min(axis=0), rows.max(axis=0)))
    if not ends:
        raise ValueError("every voxel is missing")
    return np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)


# --- missing voxels -----------------------------------------------------------------------------------


def is_missing(values: np.ndarray, fill: np.generic | None) -> np.ndarray:
    """Which voxels of values (..., components), any part of a volume, are missing: those with `fill` in a component."""
    if fill is None:
        return np.broadcast_to(False, values.shape[:-1])
    return (np.isnan(values) if fill != fill else values == fill).any(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The missing voxels of a grid.

    shape: of the grid. fill: what stands in a missing voxel, a scalar of the field's dtype, NaN included. bits: uint8,
    eight voxels in C order each, the first one highest, set where missing; unused bits of the last one 0.
    """

    shape: tuple[int, ...]
    fill: np.generic
    bits: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, ...], fill: np.generic, parts: Iterable[np.ndarray]) -> Mask:
        """The mask whose voxels are, in C order, those of the boolean arrays `parts`, one after the other."""
        packed, rest = [], np.empty(0, bool)
        for part in parts:
            voxels = np.concatenate([rest, part.ravel()])
            whole = len(voxels) // 8 * 8
            packed.append(np.packbits(voxels[:whole]))
            rest = voxels[whole:]
        return cls(shape, fill, np.concatenate([*packed, np.packbits(rest)]))

    @property
    def count(self) -> int:
        """How many voxels are missing."""
        return int.from_bytes(self.bits.tobytes(), "big").bit_count()

    def at(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Whether voxels are missing: their indices along each axis, arrays that broadcast -> booleans."""
        flat = np.ravel_multi_index(index, self.shape)
        return (self.bits[flat >> 3] >> (7 - (flat & 7)).astype(np.uint8) & 1).astype(bool)


def find_missing(values: np.ndarray, fill: np.generic | None) -> Mask | None:
    """The missing voxels of values (..., components); None when there are none."""
    if fill is None:
        return None
    slabs = read_in_boxes(values, boxes(values, MASK_BOX_VALUES, range(values.ndim - 1)))
    mask = Mask.of(values.shape[:-1], fill, (is_missing(slab, fill) for _, slab in slabs))
    return mask if mask.bits.any() else None


def count_lost(values: np.ndarray, fill: np.generic) -> int:
    """How many of the values (..., components) are not missing themselves, in voxels that are."""
    count = 0
    for _, part in read_in_boxes(values):
        gone = part[is_missing(part, fill)]
        count += gone.size - np.count_nonzero(np.isnan(gone) if fill != fill else gone == fill)
    return count


# --- coordinates --------------------------------------------------------------------------------------


def axis_coordinates(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Normalised coordinates of the voxels along each axis of a grid, float64.

    Voxel i of n is at (2 i - (n - 1)) / (longest - 1), so an axis of one voxel is at 0.
    """
    return [normalised_coordinates(np.arange(n), shape, axis) for axis, n in enumerate(shape)]


def normalised_coordinates(index: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Normalised coordinates of positions along an axis, given in voxel indices; float64."""
    return (2.0 * index - (shape[axis] - 1)) / _voxels_across(shape, axis)


def voxel_size(shape: tuple[int, ...], axis: int) -> float:
    """Distance between neighbouring voxels along an axis in normalised coordinates."""
    return 2.0 / _voxels_across(shape, axis)


def _voxels_across(shape: tuple[int, ...], axis: int) -> int:
    """The distance from -1 to 1 in voxels: the longest of the axes that share a scale, which time does with none."""
    alike = shape if len(shape) < 4 else shape[1:] if axis else shape[:1]
    return max(max(alike) - 1, 1)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where to evaluate a field: the product of positions along its axes.

    axes: of each axis of the field the positions, float64, in voxel indices, which may be fractions.
    """

    axes: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    def part(self, box: tuple[slice, ...]) -> Grid:
        """The positions within a box of this grid's own indices."""
        return Grid(tuple(axis[part] for axis, part in zip(self.axes, box, strict=True)))

    def as_voxel_box(self) -> Box | None:
        """The box of voxels that these positions are; None when there are others, or voxels between them."""
        starts = [int(axis[0]) for axis in self.axes]
        box = tuple(slice(start, start + n) for start, n in zip(starts, self.shape, strict=True))
        is_box = all(np.array_equal(axis, np.arange(s.start, s.stop)) for axis, s in zip(self.axes, box, strict=True))
        return box if is_box else None

    def geometry(self, field: Geometry) -> Geometry:
        """The geometry of these positions, given that of the field's voxels. One position stands for a whole axis."""
        steps = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in self.axes]
        spacing = tuple(float(step * s) for step, s in zip(steps, field.spacing, strict=True))
        offsets = field.axis_directions @ (np.array([axis[0] for axis in self.axes]) * field.spacing)
        origin = tuple(float(o + d) for o, d in zip(field.origin, offsets, strict=True))
        return dataclasses.replace(field, spacing=spacing, origin=origin)


def voxel_grid(
    shape: tuple[int, ...], roi: tuple[slice, ...] | None = None, resolution: tuple[int, ...] | None = None
) -> Grid:
    """The voxels of a grid of that shape, only those in the box `roi`, or `resolution` points an axis from its first
    voxel to its last.

    roi: one slice per axis, of step 1. One point for an axis lies at the middle. Raises ValueError for a box that is
    empty or not within the grid, for several points along an axis where the box has one voxel, and for more than
    MAX_GRID_POINTS.
    """
    roi = (slice(None),) * len(shape) if roi is None else (roi,) if isinstance(roi, slice) else roi
    resolution = None if resolution is None else np.ravel(resolution).tolist()
    if len(roi) != len(shape) or (resolution and len(resolution) != len(shape)):
        raise ValueError(f"expected {len(shape)} axes, found {len(resolution if len(roi) == len(shape) else roi)}")
    axes = []
    for axis, (n, part) in enumerate(zip(shape, roi, strict=True)):
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise ValueError(f"axis {axis}: expected a slice of step 1, found {part}")
        first, stop = 0 if part.start is None else part.start, n if part.stop is None else part.stop
        if not 0 <= first < stop <= n:
            raise ValueError(f"axis {axis}: expected a range within 0:{n} that is not empty, found {first}:{stop}")
        count = resolution[axis] if resolution else stop - first
        if count < 1 or (count > 1 and stop - first == 1):
            raise ValueError(f"axis {axis}: expected 1 point along {stop - first} voxels, found {count}" if count > 1
                             else f"axis {axis}: expected at least 1 point, found {count}")  # fmt: skip
        if count > MAX_GRID_POINTS:
            raise ValueError(f"axis {axis}: expected at most {MAX_GRID_POINTS} points, found {count}")
        middle = (first + stop - 1) / 2
        axes.append(np.linspace(first, stop - 1, count) if count > 1 else np.array([middle]))
    return Grid(tuple(axes))


# --- values -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """The dtype of a field and the least and greatest value of each of its components.

    low, high: arrays of shape (components,) in that dtype, so that 64-bit integers stay exact. fill: what stands in
    missing voxels, which have no part in the range; None when there are none.
    """

    low: np.ndarray
    high: np.ndarray
    fill: np.generic | None = None

    def pairs(self) -> list[list[int | float]]:
        """(low, high) of each component, as Python's numbers."""
        return np.stack([self.low, self.high], axis=1).tolist()

    def clipped(self, low: float, high: float) -> ValueRange:
        """The range of values that are clipped to low..high. Raises ValueError when that leaves none of this dtype."""
        ends = [[max(end, low) for end in self.low.tolist()], [min(end, high) for end in self.high.tolist()]]
        if any(a > b for a, b in zip(*ends, strict=True)) or (self.extent.any() and ends[0] == ends[1]):
            spans = ", ".join(f"{a} to {b}" for a, b in self.pairs())
            raise ValueError(f"leaves no range of the values, which are from {spans}")
        if self.dtype.kind in "iu" and any(end != int(end) for end in (*ends[0], *ends[1])):
            raise ValueError(f"expected whole numbers, the values are of {self.dtype}")
        return ValueRange(*(np.array([self.dtype.type(end) for end in part]) for part in ends), self.fill)

    @property
    def dtype(self) -> np.dtype:
        return self.low.dtype

    @property
    def extent(self) -> np.ndarray:
        """high - low of each component, float64."""
        return (self.high.astype(wide_float(self.dtype)) - self.low.astype(wide_float(self.dtype))).astype(np.float64)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Values of shape (..., components) -> float32 in [-1, 1], NaN where missing; of a constant component 0.

        Those beyond the range, of a volume that is clipped to it, become its ends.
        """
        wide = wide_float(self.dtype)
        extent = np.where(self.extent > 0, self.extent, 1.0)
        with np.errstate(over="ignore"):  # of fill values
            offset = values.astype(wide) - self.low.astype(wide)
            unit = np.clip(offset / extent, 0.0, 1.0)
            result = np.where(self.extent > 0, 2.0 * unit - 1.0, 0.0).astype(np.float32)
        result[is_missing(values, self.fill)] = np.nan
        return result

    def denormalise(self, values: np.ndarray, as_float: bool = False) -> np.ndarray:
        """Normalised values of shape (..., components) -> the field's own units and dtype.

        Values are clipped to the range, which can only lessen the error. Integers are rounded; `as_float` gives float32
        instead, or float64 where the field's own type is wider than that. If a decoded value happens to equal the fill
        value, it is replaced by the next smaller number, so that the voxel does not count as missing.
        """
        wide = wide_float(self.dtype)
        unit = (np.clip(values.astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
        offset = unit.astype(wide) * self.extent.astype(wide)
        low = self.low.astype(wide)
        if as_float and self.dtype.kind in "iu":
            return (low + offset).astype(np.float32 if self.dtype.itemsize <= 2 else np.float64)
        result = np.clip(low + offset, low, self.high.astype(wide))  # before the cast, which would wrap around
        result = (result if self.dtype.kind == "f" else np.rint(result)).astype(self.dtype)
        if self.fill is not None and (result == self.fill).any():
            is_float = self.dtype.kind == "f"
            below = np.nextafter(self.fill, self.low) if is_float else self.fill - (self.fill > self.low)
            result = np.where(result == self.fill, below, result)
        return result


def wide_float(dtype: np.dtype) -> np.dtype:
    """A float type that holds every value of `dtype` exactly (where the machine's long double is wide enough)."""
    return np.dtype(np.longdouble if dtype.kind in "iu" and dtype.itemsize == 8 else np.float64)


def value_range(values: np.ndarray, fill: np.generic | None = None) -> ValueRange:
    """The range of each component of values of shape (..., components), missing voxels left out."""
    return ValueRange(*value_limits(values, fill), fill)
