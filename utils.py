"""A volume and its header: geometry, value range, missing voxels, coordinates, grids. NumPy only.

Only this module defines coordinates. The longest axis of space spans [-1, 1]. Every other axis of space spans less, in
proportion to its number of voxels minus 1. The middle of every axis is at 0. Time, the first of four axes, spans
[-1, 1] independently of space. Values are normalised to [-1, 1] by the volume's own range. Source: the paper, section
3, and the original scripts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import mmap
from collections.abc import Iterable, Iterator

import numpy as np

SUITE_VERSION = 1, 0  # major and minor; a blob says which version wrote it
BLOB_MAGIC = b"\x93NVC"  # the first bytes of a blob
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
AXIS_ATTRIBUTES = ("units_t", "units_x", "units_y", "units_z", "calendar", "positive_z")
DEFAULT_NAME = "sf"  # of values without a name, as in the files of the original scripts
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SIGNS = {"LPS": (1.0, 1.0, 1.0), "RAS": (-1.0, -1.0, 1.0), "LAS": (1.0, -1.0, 1.0)}  # of x, y, z: to LPS and back
MOST_LABELS = 12  # most different integers that may be labels. Each has a colour; their distances say nothing
MOST_QUOTED = 200  # characters of a value in a message
MAX_SKEW = 1e-3  # most that a dot product of two axis directions may differ from the exact 0 or 1
MAX_GRID_POINTS = 1 << 26  # most positions along an axis of a grid; as float64 they take 512 MiB
BOX_VALUES = 1 << 20  # most values read from a volume at a time


class UserError(Exception):
    """An error that the user can correct. Its message is one line: the file, what was expected, what was found."""


def quoted(value: object) -> str:
    """The value as a message quotes it: at most MOST_QUOTED characters, because files can hold text of any length."""
    text = repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED - 4]} ..."


# --- the volume ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The geometry of a grid, and the name and units of its values.

    spacing, origin: one number per grid axis, in the file's units of length (and time). direction: a 3 x 3 matrix, row
    by row. Its columns are the directions of the grid's axes in space, without time. Voxel i lies at origin + direction
    (spacing i). name: the name of the values. units: the units of the values, "" when unknown. space: "LPS" when x, y
    and z of space are known to point to left, posterior and superior, in mm; "" when they may point anywhere.
    axis_attributes: what the file says of its coordinates, as far as it does, by AXIS_ATTRIBUTES: their units, such as
    degrees_north or hours since 2001-01-01, the calendar of the times, and whether z counts up or down.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...] = IDENTITY
    name: str = DEFAULT_NAME
    units: str = ""
    space: str = ""
    axis_attributes: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def plain(cls, d_in: int) -> Geometry:
        """The geometry of a grid of `d_in` axes whose file gives none: spacing 1, origin 0."""
        return cls((1.0,) * d_in, (0.0,) * d_in)

    @property
    def d_in(self) -> int:
        """The number of grid axes."""
        return len(self.spacing)

    @property
    def axis_directions(self) -> np.ndarray:
        """The directions of the grid's axes as columns, shape (d_in, d_in). Time has its own dimension."""
        directions = np.eye(4)
        directions[1:, 1:] = np.reshape(self.direction, (3, 3))
        first = 0 if self.d_in == 4 else 1
        return directions[first : first + self.d_in, first : first + self.d_in]

    def axis_positions(self, axes: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Coordinates in space along each grid axis, float64. axes: for each axis, the positions in voxels.

        Where the axes are turned, there are no such coordinates. The results are distances from the first voxel.
        """
        steps, starts = np.diag(self.axis_directions) * self.spacing, np.array(self.origin, np.float64)
        if self.is_turned:
            steps, starts[-3:] = np.array(self.spacing), 0.0
        return [start + step * axis for start, step, axis in zip(starts, steps, axes, strict=True)]

    @property
    def is_turned(self) -> bool:
        """Whether an axis of the grid is not parallel to the dimension of space of the same number."""
        return bool(np.abs(np.abs(self.axis_directions) - np.eye(self.d_in)).max() > MAX_SKEW)

    @property
    def is_orthonormal(self) -> bool:
        """Whether the directions have unit length and are at right angles, within MAX_SKEW."""
        matrix = np.reshape(self.direction, (3, 3))
        return bool(np.abs(matrix.T @ matrix - np.eye(3)).max() <= MAX_SKEW)

    def attributes_of(self, axis: str) -> dict[str, str]:
        """The attributes of a coordinate, as the CF conventions name them. axis: one of t, x, y, z."""
        mm = "mm" if self.space and axis != "t" else ""
        found = {"units": self.axis_attributes.get(f"units_{axis}", mm)}
        found |= {"calendar": self.axis_attributes.get("calendar", "")} if axis == "t" else {}
        found |= {"positive": self.axis_attributes.get("positive_z", "")} if axis == "z" else {}
        return {name: text for name, text in found.items() if text}

    def units_of(self, axis: str) -> str:
        """The units of a coordinate, "" when unknown. axis: one of t, x, y, z."""
        return self.attributes_of(axis).get("units", "")

    def unit_of_lengths(self, d_in: int) -> str:
        """The unit of the first `d_in` axes of space, "" when unknown or not the same for all."""
        units = {self.units_of(axis) for axis in "xyz"[:d_in]}
        return units.pop() if len(units) == 1 else ""

    def stays_within(self, d_in: int) -> bool:
        """Whether the first `d_in` axes of space lie in its first d_in dimensions, and so say all about a place."""
        return not np.abs(np.reshape(self.direction, (3, 3))[d_in:, :d_in]).max(initial=0.0) > MAX_SKEW

    def with_time(self, step: float, start: float) -> Geometry:
        """The same geometry with a time axis before the axes of space."""
        return dataclasses.replace(self, spacing=(step, *self.spacing), origin=(start, *self.origin))

    def with_signs(self, signs: tuple[float, ...]) -> Geometry:
        """The same place in coordinates x, y, z that have these signs, 1 or -1, in the coordinates of `self`."""
        direction = np.reshape(self.direction, (3, 3)) * np.reshape(signs, (3, 1)) + 0.0  # 0.0: -0 becomes 0
        signs = (1.0, *signs) if self.d_in == 4 else signs
        origin = tuple(o * sign + 0.0 for o, sign in zip(self.origin, signs, strict=False))
        return dataclasses.replace(self, origin=origin, direction=tuple(direction.ravel().tolist()))

    def axes_between(self, start: int, stop: int | None = None) -> Geometry:
        """The same geometry with only the axes from `start` up to, but not including, `stop`."""
        return dataclasses.replace(self, spacing=self.spacing[start:stop], origin=self.origin[start:stop])


@dataclasses.dataclass(frozen=True)
class Volume:
    """Values on a regular grid.

    array: shape (x, y, z), (x, y), (x,) or (t, x, y, z), with one more axis at the end when voxels have several
    components. It may be a read-only memory map with any order of axes in memory, a StackedSteps, a StoredArray or a
    LazyArray. fill: the value that marks missing voxels, a scalar of the array's dtype, possibly NaN; None when no
    value marks them. time: the time of a volume that is one step of a series, if its file gives the time.
    """

    array: np.ndarray
    geometry: Geometry
    fill: np.generic | None = None
    time: float | None = None

    @property
    def values(self) -> np.ndarray:
        """The array with shape (grid..., components), also when there is only one component."""
        return self.array if self.array.ndim > self.geometry.d_in else self.array[..., None]

    @functools.cached_property
    def value_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest value of each component, from the function `value_limits`."""
        return value_limits(self.values, self.fill)

    def at_step(self) -> Volume:
        """A series of one step as a volume in space, with the time of that step."""
        geometry = self.geometry
        space, time = geometry.axes_between(1), geometry.origin[0]
        return dataclasses.replace(self, array=self.array[0], geometry=space, time=time)


@dataclasses.dataclass(frozen=True)
class VolumeHeader:
    """All that is known of a volume except its values. A blob stores the header of its field.

    shape: the number of voxels along each grid axis. low, high: the least and the greatest value of each component,
    arrays of the volume's dtype. missing: the voxels without a value; None when every voxel has one.
    """

    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    geometry: Geometry
    missing: Mask | None = None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.low.dtype

    @property
    def n_components(self) -> int:
        """The number of values per voxel."""
        return len(self.low)

    @property
    def n_voxels(self) -> int:
        """The number of voxels of the grid, including missing voxels."""
        return math.prod(self.shape)

    @property
    def n_present(self) -> int:
        """The number of voxels that are not missing."""
        return self.n_voxels - (self.missing.count if self.missing else 0)

    @property
    def value_range(self) -> ValueRange:
        """The range of the values, with the fill value."""
        return ValueRange(self.low, self.high, self.fill)

    @property
    def fill(self) -> np.generic | None:
        """The value of missing voxels; None when no voxel is missing."""
        return self.missing.fill if self.missing else None

    @property
    def fill_option(self) -> np.generic | str:
        """What `read_volume` needs as `fill` to read the volume with the same missing voxels: its fill, or "none"."""
        return "none" if self.fill is None else self.fill


def differences(found: VolumeHeader, expected: VolumeHeader) -> list[str]:
    """The properties in which two headers differ: any of shape, dtype, range, missing."""
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


def shape_of(box: Box) -> tuple[int, ...]:
    """The number of voxels of a box along each axis."""
    return tuple(cut.stop - cut.start for cut in box)


def boxes(values: np.ndarray, n: int | None = None) -> list[Box]:
    """Split the grid of values (..., components) into boxes of nearly equal size.

    n: the most values in a box, BOX_VALUES by default. Boxes follow the order of memory, so each box is nearly one
    contiguous read. Of an array that is stored in chunks, a box holds whole chunks, at least one: each chunk is read
    once.
    """
    shape = values.shape[:-1]
    chunks = getattr(values, "chunks", (1,) * values.ndim)
    left = max(1, (n or BOX_VALUES) // values.shape[-1] // math.prod(chunks[: len(shape)]))
    order = sorted(range(len(shape)), key=lambda axis: -abs(values.strides[axis]))  # the fastest axis last
    cuts = {}
    for axis in reversed(order):
        n_chunks = -(-shape[axis] // chunks[axis])
        n_parts = -(-n_chunks // left)
        left = max(1, left // n_chunks)
        ends = [min(n_chunks * k // n_parts * chunks[axis], shape[axis]) for k in range(n_parts + 1)]
        cuts[axis] = [slice(*pair) for pair in itertools.pairwise(ends)]
    products = itertools.product(*(cuts[axis] for axis in order))
    return [tuple(product[order.index(axis)] for axis in range(len(shape))) for product in products]


def read_in_boxes(values: np.ndarray, chosen: Iterable[Box] | None = None) -> Iterator[tuple[Box, np.ndarray]]:
    """Yield boxes, by default all of `boxes(values)`, each with the values in it.

    The pages of a memory map are released after each box; otherwise they would count as used memory.
    """
    for box in boxes(values) if chosen is None else chosen:
        yield box, values[box]
        drop_pages(values)


def drop_pages(values: np.ndarray) -> None:
    """Release the memory of a memory map's pages. Does nothing for other arrays."""
    while isinstance(values, np.ndarray):
        values = values.base
    if isinstance(values, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        values.madvise(mmap.MADV_DONTNEED)


def value_limits(values: np.ndarray, fill: np.generic | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of each component of values (..., components), without missing voxels.

    A limit is NaN when a voxel that is not missing is NaN. Raises ValueError when every voxel is missing.
    """
    ends = []
    for _, part in read_in_boxes(values):
        rows = part.reshape(-1, part.shape[-1]) if fill is None else part[~is_missing(part, fill)]
        if len(rows):
            ends.append((rows.min(axis=0), rows.max(axis=0)))
    if not ends:
        raise ValueError("every voxel is missing")
    return np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)


def few_values(*arrays: np.ndarray) -> np.ndarray | None:
    """The different values of all arrays, in rising order; None if they are too many for labels."""
    found = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    return found if len(found) <= MOST_LABELS else None


# --- missing voxels -----------------------------------------------------------------------------------


def equal_to(values: np.ndarray, mark: np.generic) -> np.ndarray:
    """Which values are a mark, possibly NaN."""
    return np.isnan(values) if mark != mark else values == mark


def is_missing(values: np.ndarray, fill: np.generic | None) -> np.ndarray:
    """Which voxels of values (..., components) are missing, booleans: `fill` is in at least one component."""
    if fill is None:
        return np.broadcast_to(False, values.shape[:-1])
    return equal_to(values, fill).any(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The missing voxels of a grid.

    shape: the number of voxels along each axis. fill: the value of a missing voxel, a scalar of the volume's dtype,
    possibly NaN. bits: uint8, one bit per voxel in C order, highest bit first; 1 where missing, 0 in unused bits.
    """

    shape: tuple[int, ...]
    fill: np.generic
    bits: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, ...], fill: np.generic, are_missing: np.ndarray) -> Mask:
        """The mask of a grid. are_missing: booleans of all voxels, in C order."""
        return cls(shape, fill, np.packbits(are_missing))

    @property
    def count(self) -> int:
        """The number of missing voxels."""
        return int.from_bytes(self.bits.tobytes(), "big").bit_count()

    def at(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Whether voxels are missing, booleans. index: one array of voxel indices per axis; the arrays broadcast."""
        flat = np.ravel_multi_index(index, self.shape)
        return (self.bits[flat >> 3] >> (7 - (flat & 7)).astype(np.uint8) & 1).astype(bool)


def find_missing(values: np.ndarray, fill: np.generic | None) -> Mask | None:
    """The mask of the missing voxels of values (..., components); None when no voxel is missing."""
    if fill is None:
        return None
    shape = values.shape[:-1]
    bits = np.zeros(-(-math.prod(shape) // 8), np.uint8)
    for box, part in read_in_boxes(values):
        index = np.nonzero(is_missing(part, fill))
        flat = np.ravel_multi_index([i + cut.start for i, cut in zip(index, box, strict=True)], shape)
        np.bitwise_or.at(bits, flat >> 3, (128 >> (flat & 7)).astype(np.uint8))
    return Mask(shape, fill, bits) if bits.any() else None


def count_lost(values: np.ndarray, fill: np.generic) -> int:
    """How many values (..., components) are not `fill` themselves but lie in a voxel that is missing."""
    count = 0
    for _, part in read_in_boxes(values):
        gone = part[is_missing(part, fill)]
        count += np.count_nonzero(~equal_to(gone, fill))
    return count


# --- coordinates --------------------------------------------------------------------------------------


def axis_coordinates(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Normalised coordinates of the voxels along each axis of a grid, float64.

    Voxel i of n is at (2 i - (n - 1)) / (longest - 1), so an axis of one voxel is at 0.
    """
    return [normalised_coordinates(np.arange(n), shape, axis) for axis, n in enumerate(shape)]


def normalised_coordinates(index: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Normalised coordinates of positions along an axis, float64. index: the positions in voxels."""
    return (2.0 * index - (shape[axis] - 1)) / _voxels_across(shape, axis)


def voxel_size(shape: tuple[int, ...], axis: int) -> float:
    """The distance between neighbouring voxels along an axis, in normalised coordinates."""
    return 2.0 / _voxels_across(shape, axis)


def _voxels_across(shape: tuple[int, ...], axis: int) -> int:
    """The distance from -1 to 1 in voxels, at least 1. All axes of space share one such scale; time has its own."""
    alike = shape if len(shape) < 4 else shape[1:] if axis else shape[:1]
    return max(max(alike) - 1, 1)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The positions at which a field is evaluated: all combinations of the positions along the axes.

    axes: for each axis of the field, the positions in voxels, float64; fractions are allowed.
    """

    axes: tuple[np.ndarray, ...]

    def __repr__(self) -> str:
        return f"<Grid of {' x '.join(map(str, self.shape))} positions>"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    def part(self, box: tuple[slice, ...]) -> Grid:
        """The positions within a box. The box counts positions of this grid, not voxels."""
        return Grid(tuple(axis[part] for axis, part in zip(self.axes, box, strict=True)))

    def as_voxel_box(self) -> Box | None:
        """The box of voxels that these positions are; None unless they are consecutive whole voxels."""
        starts = [int(axis[0]) for axis in self.axes]
        box = tuple(slice(start, start + n) for start, n in zip(starts, self.shape, strict=True))
        is_box = all(np.array_equal(axis, np.arange(s.start, s.stop)) for axis, s in zip(self.axes, box, strict=True))
        return box if is_box else None

    def geometry(self, field: Geometry) -> Geometry:
        """The geometry of these positions. An axis of one position has the spacing of the field's voxels."""
        steps = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in self.axes]
        spacing = tuple(float(step * s) for step, s in zip(steps, field.spacing, strict=True))
        offsets = field.axis_directions @ (np.array([axis[0] for axis in self.axes]) * field.spacing)
        origin = tuple(float(o + d) for o, d in zip(field.origin, offsets, strict=True))
        return dataclasses.replace(field, spacing=spacing, origin=origin)


def voxel_grid(
    shape: tuple[int, ...], roi: tuple[slice | int, ...] | None = None, resolution: tuple[int, ...] | None = None
) -> Grid:
    """The voxels of a grid of that shape, or of a box of it; or evenly spaced points over the same extent.

    roi: the box, one slice of step 1 or one index per axis. resolution: the number of points along each axis, from the
    first voxel to the last one; a single point lies at the middle. Raises ValueError for a wrong number of axes, for a
    box that is empty or not within the grid, for numbers of points that are not whole, for several points along one
    voxel, and for more than MAX_GRID_POINTS along an axis.
    """
    roi = (slice(None),) * len(shape) if roi is None else (roi,) if isinstance(roi, slice | int | np.integer) else roi
    resolution = None if resolution is None else np.ravel(resolution).tolist()
    if len(roi) != len(shape) or (resolution is not None and len(resolution) != len(shape)):
        raise ValueError(f"expected {len(shape)} axes, found {len(resolution if len(roi) == len(shape) else roi)}")
    axes = []
    for axis, (n, part) in enumerate(zip(shape, roi, strict=True)):
        if isinstance(part, int | np.integer):
            part = slice(int(part), int(part) + 1)
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise ValueError(f"axis {axis}: expected a slice of step 1, found {part}")
        first, stop = 0 if part.start is None else part.start, n if part.stop is None else part.stop
        if not 0 <= first < stop <= n:
            raise ValueError(f"axis {axis}: expected a range within 0:{n} that is not empty, found {first}:{stop}")
        count = stop - first if resolution is None else resolution[axis]
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"axis {axis}: expected a whole number of points, at least 1, found {count}")
        if count > 1 and stop - first == 1:
            raise ValueError(f"axis {axis}: expected 1 point along 1 voxel, found {count}")
        if count > MAX_GRID_POINTS:
            raise ValueError(f"axis {axis}: expected at most {MAX_GRID_POINTS} points, found {count}")
        middle = (first + stop - 1) / 2
        axes.append(np.linspace(first, stop - 1, count) if count > 1 else np.array([middle]))
    return Grid(tuple(axes))


# --- values -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """The dtype of a volume, and the least and the greatest value of each component.

    low, high: arrays of shape (components,) in that dtype, so that 64-bit integers stay exact. fill: the value of
    missing voxels, which the range leaves out; None when no value marks them.
    """

    low: np.ndarray
    high: np.ndarray
    fill: np.generic | None = None

    def pairs(self) -> list[list[int | float]]:
        """(low, high) of each component, as Python numbers."""
        return np.stack([self.low, self.high], axis=1).tolist()

    def may_be_clipped_from(self, whole: ValueRange) -> bool:
        """Whether this is a smaller range within that of a whole volume."""
        is_within = bool((whole.low <= self.low).all() and (self.high <= whole.high).all())
        return is_within and self.pairs() != whole.pairs()

    def clipped(self, low: float, high: float) -> ValueRange:
        """The range clipped to low..high.

        Raises ValueError if none is left, if an integer dtype gets a fraction, and if an end is the fill value: no
        decoded value but that of a missing voxel equals it.
        """
        ends = [[max(end, low) for end in self.low.tolist()], [min(end, high) for end in self.high.tolist()]]
        if any(a > b for a, b in zip(*ends, strict=True)) or (not self.is_constant and ends[0] == ends[1]):
            spans = ", ".join(f"{a} to {b}" for a, b in self.pairs())
            raise ValueError(f"leaves no range of the values, which are from {spans}")
        if self.is_integer and any(end != int(end) for end in (*ends[0], *ends[1])):
            raise ValueError(f"expected whole numbers, the values are of {self.dtype}")
        found = ValueRange(*(np.array([self.dtype.type(end) for end in part]) for part in ends), self.fill)
        if is_missing(np.stack([found.low, found.high]), self.fill).any():
            raise ValueError(f"expected ends other than {self.fill!s}, which marks missing voxels")
        return found

    @property
    def dtype(self) -> np.dtype:
        return self.low.dtype

    @property
    def is_integer(self) -> bool:
        return self.dtype.kind in "iu"

    @property
    def is_constant(self) -> bool:
        """Whether each component has one value only. The range alone then describes the volume."""
        return bool((self.low == self.high).all())

    @property
    def extent(self) -> np.ndarray:
        """high - low of each component, float64."""
        if self.is_integer:
            return self._integer_extent.astype(np.float64)
        return self.high.astype(np.float64) - self.low.astype(np.float64)

    @property
    def _integer_extent(self) -> np.ndarray:
        """high - low of each component of integers, uint64."""
        return self.high.astype(np.uint64) - self.low.astype(np.uint64)  # modulo 2^64

    @property
    def float_dtype(self) -> np.dtype:
        """The dtype of values that are not rounded to integers."""
        return float_for(self.dtype)

    @property
    def has_fractions(self) -> bool:
        """Whether `float_dtype` holds more than the integers themselves: beyond 2^53, float64 holds not even these."""
        return max(abs(end) for pair in self.pairs() for end in pair) <= 1 << 53

    def decoded_dtype(self, as_float: bool) -> np.dtype:
        """The dtype of decoded values. as_float: integers stay unrounded, of `float_dtype`."""
        return self.float_dtype if as_float and self.is_integer else self.dtype

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Values (..., components) -> float32 in [-1, 1]: NaN where missing, 0 in a constant component.

        Values outside the range become the nearest end. Only a volume whose range was clipped has such values.
        """
        wide = wide_float(self.dtype)
        extent = np.where(self.extent > 0, self.extent, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):  # a fill value may overflow, or be infinite
            offset = values.astype(wide) - self.low.astype(wide)
            unit = np.clip(offset / extent, 0.0, 1.0)
            result = np.where(self.extent > 0, 2.0 * unit - 1.0, 0.0).astype(np.float32)
        result[is_missing(values, self.fill)] = np.nan
        return result

    def denormalise(self, values: np.ndarray, as_float: bool = False) -> np.ndarray:
        """Normalised values (..., components) -> values in the volume's own units and dtype.

        Values are clipped to the range, which can only reduce the error. Integers are rounded, but not with `as_float`;
        see `decoded_dtype`. If a decoded value happens to equal the fill value, it is replaced by the next smaller
        number, so that the voxel does not count as missing.
        """
        unit = (np.fmin(np.fmax(values.astype(np.float64), -1.0), 1.0) + 1.0) / 2.0  # NaN becomes the least value
        if self.is_integer and as_float:
            return self._unrounded(unit).astype(self.float_dtype)
        result = self._integers(unit) if self.is_integer else self._floats(unit)
        if self.fill is not None and (result == self.fill).any():
            is_float = self.dtype.kind == "f"
            below = np.nextafter(self.fill, self.low) if is_float else self.fill - (self.fill > self.low)
            result = np.where(result == self.fill, below, result)
        return result

    def _unrounded(self, unit: np.ndarray) -> np.ndarray:
        """Values from 0, the least one, to 1, the greatest, in the volume's own units: float64."""
        return self.low.astype(np.float64) + unit * self.extent

    def _floats(self, unit: np.ndarray) -> np.ndarray:
        """The same of the volume's own dtype, floats."""
        return np.clip(self._unrounded(unit), self.low, self.high).astype(self.dtype)  # rounding may leave the range

    def _integers(self, unit: np.ndarray) -> np.ndarray:
        """The integers nearest to values from 0, the least one, to 1, the greatest. Exact in 64 bits."""
        offset = np.rint(unit * self.extent)
        is_inside = offset < self.extent  # in float64 the extent may be rounded up to 2^64
        steps = np.where(is_inside, np.where(is_inside, offset, 0.0).astype(np.uint64), self._integer_extent)
        return (self.low.astype(np.uint64) + steps).astype(self.dtype)  # modulo 2^64


def float_for(dtype: np.dtype) -> np.dtype:
    """float32, or float64 where float32 does not hold the dtype: float64, and integers of more than 16 bits."""
    return np.result_type(dtype, np.float32)


def wide_float(dtype: np.dtype) -> np.dtype:
    """A float type that holds every value of `dtype` exactly, if the machine's long double is wide enough."""
    return np.dtype(np.longdouble if dtype.kind in "iu" and dtype.itemsize == 8 else np.float64)


def value_range(values: np.ndarray) -> ValueRange:
    """The range of each component of values (..., components), none of which is missing."""
    return ValueRange(*value_limits(values))
