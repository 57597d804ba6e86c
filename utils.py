"""The volume as a function of position: coordinates, grids, normalised values, metrics. NumPy only.

The coordinate convention lives here and nowhere else: the longest axis of space spans [-1, 1], the others in
proportion to their number of voxels, voxels at the centre of the axis at 0, and time, the first of four axes, spans
[-1, 1] by itself; values are normalised to [-1, 1] by the volume's own range. Paper, section 3; the same figures as
the original scripts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from mask import Mask
from net_coder import FieldHeader
from volume import Box, LazyArray, Volume, boxes, is_missing, limits, parts

EXACT = 1 << 28  # voxels up to which a network is measured at every one of them
MEASURED = 1 << 24  # voxels, at random, of a larger volume: the estimate is good to about 0.01 dB
PIECE = 1 << 12  # voxels of it that lie together
MOST_POINTS = 1 << 26  # along an axis of a grid, whose positions are held: half a GiB

# --- coordinates ------------------------------------------------------------------------------------


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

    def voxels(self) -> Box | None:
        """The box of voxels that these positions are; None when there are others, or voxels between them."""
        starts = [int(axis[0]) for axis in self.axes]
        box = tuple(slice(start, start + n) for start, n in zip(starts, self.shape, strict=True))
        is_box = all(np.array_equal(axis, np.arange(s.start, s.stop)) for axis, s in zip(self.axes, box, strict=True))
        return box if is_box else None

    def geometry(self, header: FieldHeader) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Spacing and origin of this grid, in the field's units of length. One position stands for a whole axis."""
        steps = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in self.axes]
        spacing = tuple(float(step * s) for step, s in zip(steps, header.spacing, strict=True))
        offsets = axis_directions(header) @ (np.array([axis[0] for axis in self.axes]) * header.spacing)
        return spacing, tuple(float(o + d) for o, d in zip(header.origin, offsets, strict=True))


def axis_directions(header: FieldHeader) -> np.ndarray:
    """The directions of a field's axes in space, (d_in, d_in), one a column; time has one of its own."""
    d_in = len(header.shape)
    directions = np.eye(4)
    directions[1:, 1:] = np.reshape(header.direction, (3, 3))
    first = 0 if d_in == 4 else 1
    return directions[first : first + d_in, first : first + d_in]


def voxel_grid(
    shape: tuple[int, ...], roi: tuple[slice, ...] | None = None, resolution: tuple[int, ...] | None = None
) -> Grid:
    """The voxels of a grid of that shape, only those in the box `roi`, or `resolution` points an axis from its first
    voxel to its last.

    roi: one slice per axis, of step 1. One point for an axis lies at the middle. Raises ValueError for a box that is
    empty or not within the grid, for several points along an axis where the box has one voxel, and for more than
    MOST_POINTS.
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
        if count > MOST_POINTS:
            raise ValueError(f"axis {axis}: expected at most {MOST_POINTS} points, found {count}")
        middle = (first + stop - 1) / 2
        axes.append(np.linspace(first, stop - 1, count) if count > 1 else np.array([middle]))
    return Grid(tuple(axes))


# --- values -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """The dtype of a field and the least and greatest value of each of its components.

    low, high: arrays of shape (components,) in that dtype, so that 64-bit integers stay exact. fill: what stands in
    missing voxels, which have no part in the range; None when there are none.
    """

    low: np.ndarray
    high: np.ndarray
    fill: np.generic | None = None

    @classmethod
    def of(cls, header: FieldHeader) -> ValueRange:
        """The range that a blob's header holds."""
        return cls(header.low, header.high, header.fill)

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
        return (self.high.astype(_wide(self.dtype)) - self.low.astype(_wide(self.dtype))).astype(np.float64)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Values of shape (..., components) -> float32 in [-1, 1], NaN where missing; of a constant component 0.

        Those beyond the range, of a volume that is clipped to it, become its ends.
        """
        wide = _wide(self.dtype)
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
        wide = _wide(self.dtype)
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


def _wide(dtype: np.dtype) -> np.dtype:
    """A float type that holds every value of `dtype` exactly (where the machine's long double is wide enough)."""
    return np.dtype(np.longdouble if dtype.kind in "iu" and dtype.itemsize == 8 else np.float64)


def value_range(values: np.ndarray, fill: np.generic | None = None) -> ValueRange:
    """The range of each component of values of shape (..., components), missing voxels left out."""
    return ValueRange(*limits(values, fill), fill)


def describe(volume: Volume, d_in: int) -> FieldHeader:
    """What a blob says about a volume of `d_in` grid axes."""
    shape, rest = volume.array.shape[:d_in], (volume.name, volume.direction, volume.units)
    missing = find_missing(components_last(volume.array, d_in), volume.fill)
    return FieldHeader(shape, *volume.limits, volume.spacing, volume.origin, *rest, missing)


def find_missing(values: np.ndarray, fill: np.generic | None) -> Mask | None:
    """The missing voxels of values (..., components); None when there are none."""
    if fill is None:
        return None
    slabs = parts(values, boxes(values, 1 << 25, range(values.ndim - 1)))
    mask = Mask.of(values.shape[:-1], fill, (is_missing(slab, fill) for _, slab in slabs))
    return mask if mask.bits.any() else None


def count_lost(values: np.ndarray, fill: np.generic) -> int:
    """How many of the values (..., components) are not missing themselves, in voxels that are."""
    count = 0
    for _, part in parts(values):
        gone = part[is_missing(part, fill)]
        count += gone.size - np.count_nonzero(np.isnan(gone) if fill != fill else gone == fill)
    return count


def components_last(array: np.ndarray, d_in: int) -> np.ndarray:
    """An array of `d_in` grid axes as (grid..., components), with one component when it had no such axis."""
    return array if array.ndim > d_in else array[..., None]


# --- metrics ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Metrics:
    """How far a field is from the original: PSNR in dB, RMSE and largest error in the original's units.

    psnrs: of each component, over its own range. psnr: of them together, from the mean of their squared errors, each
    relative to its component's range. n_voxels: that were compared.
    """

    psnr: float
    rmse: float
    max_error: float
    psnrs: tuple[float, ...]
    n_voxels: int

    def report(self, n_voxels: int | None = None) -> dict[str, str]:
        """The lines psnr, and psnr_0, psnr_1, ... of several components.

        psnr_estimate where fewer than `n_voxels`, those that there are, were compared.
        """
        key = "psnr" if n_voxels in (None, self.n_voxels) else "psnr_estimate"
        more = {f"{key}_{c}": f"{psnr:.3f}" for c, psnr in enumerate(self.psnrs)} if len(self.psnrs) > 1 else {}
        return {key: f"{self.psnr:.3f}", **more}


def compare(
    original: np.ndarray,
    decoded: np.ndarray | LazyArray,
    values: ValueRange | None = None,
    chosen: Iterable[Box] | None = None,
) -> Metrics:
    """How far `decoded` is from `original`, computed in float64 (differences of 64-bit integers exactly).

    psnr = 20 log10((max - min) / rmse), infinite when nothing differs. values: the range of the whole field, where
    `original` is a part of it or has several components, then along the last axis; `original`'s own when not given.
    Where `original` lies beyond `values`, of a volume that is clipped to it, the nearest end counts. chosen: the boxes
    to compare, by default all. Voxels missing in one of the arrays are left out; NaN marks them in `decoded` too. All
    figures are NaN when no voxel is left.
    """
    wide = _wide(np.result_type(original.dtype, decoded.dtype))
    values = values or value_range(original[..., None])
    n_components, extent = len(values.low), values.extent
    scale = np.where(extent > 0, extent, 1.0)  # squares of the scaled differences neither overflow nor vanish
    squares, largest, count = np.zeros(n_components), np.zeros(n_components), 0
    for box, part in parts(original if n_components > 1 else original[..., None], chosen):
        a, b = part.reshape(-1, n_components), decoded[box].reshape(-1, n_components)
        if values.fill is not None:
            is_present = ~(is_missing(a, values.fill) | is_missing(b, values.fill) | is_missing(b, np.float64(np.nan)))
            a, b = a[is_present], b[is_present]
        a = np.clip(a, values.low, values.high)
        difference = (b.astype(wide) - a.astype(wide)).astype(np.float64) / scale
        squares += np.einsum("ij,ij->j", difference, difference)
        largest = np.maximum(largest, np.abs(difference).max(axis=0, initial=0.0))
        count += len(difference)
    if not count:
        return Metrics(math.nan, math.nan, math.nan, (math.nan,) * n_components, 0)
    errors = squares / count
    rmse = math.sqrt(np.mean(errors * (scale / scale.max()) ** 2)) * scale.max()
    errors[(extent == 0) & (errors > 0)] = math.inf  # of a constant that is not met
    return Metrics(_psnr(errors.mean()), rmse, float((largest * scale).max()), tuple(map(_psnr, errors)), count)


def measured_boxes(original: np.ndarray) -> list[Box]:
    """What to compare of a volume (grid..., components): all of it, or random pieces of one above EXACT voxels."""
    n_voxels = math.prod(original.shape[:-1])
    if n_voxels <= EXACT:
        return boxes(original)
    pieces = boxes(original, PIECE * original.shape[-1])
    chosen = np.random.default_rng(0).choice(len(pieces), len(pieces) * MEASURED // n_voxels, replace=False)
    return [pieces[i] for i in np.sort(chosen)]


def overall(parts: list[Metrics]) -> Metrics:
    """The metrics of a field from those of its parts."""
    parts = [part for part in parts if part.n_voxels] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    weights = np.array([part.n_voxels for part in parts]) / max(sum(part.n_voxels for part in parts), 1)

    def mean(psnrs: Iterable[float]) -> float:
        return _psnr(weights @ 10.0 ** (np.array([*psnrs]) / -10))

    rmse = math.hypot(*(math.sqrt(w) * part.rmse for w, part in zip(weights, parts, strict=True)))
    psnrs = tuple(map(mean, zip(*(part.psnrs for part in parts), strict=True)))
    largest = max(part.max_error for part in parts)
    return Metrics(mean(part.psnr for part in parts), rmse, largest, psnrs, sum(part.n_voxels for part in parts))


def _psnr(error: float) -> float:
    """PSNR in dB of a mean squared error relative to the range."""
    return -10 * math.log10(error) if error else math.inf


def file_ratios(n_values: int, dtype: np.dtype, n_bytes: int) -> dict[str, str]:
    """file_ratio: 4 bytes x values / file bytes; source_ratio: bytes of the source / file bytes, when they differ."""
    ratios = {"file_ratio": f"{4 * n_values / n_bytes:.2f}"}
    if dtype.itemsize != 4:
        ratios["source_ratio"] = f"{dtype.itemsize * n_values / n_bytes:.2f}"
    return ratios
