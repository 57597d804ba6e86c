"""A field held by a network: its values and exact derivatives on any grid or at any points.

field = NeuralField.open("compressed_out")
volume, box, plane = field[...], field[:, 8:24, 5:6], field[:, :, 20]  # arrays [x, y, z], and [x, y]
fine = field.on_grid(field.grid(resolution=(160, 128, 112)))
values, gradients = field.at(points), field.gradient_at(points)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from cli.files import read_regular
from field.blending import Blend
from field.blob import decode_field
from field.bricks import Bricks
from field.conversion import vtk_of, xarray_of
from field.description import html_of, line_of
from field.evaluation import OnProgress, Positions, check_device, count_positions, no_progress
from field.integers import evaluate_integers
from field.one_network import OneNetwork
from formats.arrays import LazyArray, Shaped
from utils import Box, Grid, Volume, VolumeHeader, voxel_grid, voxel_size

MASK_POSITIONS = 1 << 20  # positions whose nearest voxels are looked up in one go
INSIDE = 1e-6  # voxels by which rounding may move a point on the boundary out of the field, besides its own


class NeuralField(Shaped):
    """A field and the networks that hold it: an array whose values are evaluated when they are asked for.

    The array is that of the decoded volume: [x, y, z], with t before and components after them where there are any.
    It is safe to use from several threads, and can be pickled.

    header: shape, range, geometry and name of the field. bricks: its networks; see Bricks.whole for a single one.
    device: "cpu" or a CUDA device that torch has, n_threads: on the CPU, from 1; else a ValueError.
    """

    def __init__(self, header: VolumeHeader, bricks: Bricks, device: object = "cpu", n_threads: int = 1):
        self.header, self.values, self.device, self.n_threads = header, header.value_range, str(device), n_threads
        check_device(self.device)
        if not isinstance(n_threads, int | np.integer) or n_threads < 1:
            raise ValueError(f"n_threads: expected a whole number, at least 1, found {n_threads}")
        where = header.shape, self.values.extent, self.device, n_threads
        self.evaluator = OneNetwork(*bricks.networks[0], *where) if bricks.is_whole else Blend(bricks, *where)

    @classmethod
    def open(cls, path: str, device: object = "cpu", n_threads: int = 1, large: bool = False) -> NeuralField:
        """The field in a blob. Raises OSError when the file cannot be read, BlobError when it is no blob.

        The networks of bricks are decoded when they are needed. So a blob with wrong ones may raise BlobError later.
        large: also a blob of more than 2^24 weights, or with a mask of more than 2^30 voxels.
        """
        return cls(*decode_field(read_regular(path), large), device, n_threads)

    @classmethod
    def of(cls, net: object, header: VolumeHeader, device: object = "cpu", n_threads: int = 1) -> NeuralField:
        """The field that a siren.FieldNet holds now; later changes of the network do not change it."""
        return cls(header, Bricks.of(net), device, n_threads)

    # --- what it is ---

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of voxels along each axis, followed by the number of components when there are several."""
        n = self.header.n_components
        return self.header.shape + (n,) * (n > 1)

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self.header.dtype

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance between voxels along each axis, in the file's units of length (and time)."""
        return self.header.geometry.spacing

    @property
    def origin(self) -> tuple[float, ...]:
        """The position of the first voxel."""
        return self.header.geometry.origin

    @property
    def name(self) -> str:
        return self.header.geometry.name

    @property
    def units(self) -> str:
        """The units of the values, "" when unknown."""
        return self.header.geometry.units

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {line_of(self)}>"

    def _repr_html_(self) -> str:
        return html_of(self)

    def __getitem__(self, key: object) -> np.ndarray | np.generic:
        """The values of the chosen voxels, and no others. key: integers, slices of any step and `...`, as of NumPy."""
        return np.asarray(self.lazy()[key])[()]

    # --- on a grid ---

    def grid(
        self,
        roi: tuple[slice | int, ...] | None = None,
        resolution: tuple[int, ...] | None = None,
        time: float | slice | None = None,
    ) -> Grid:
        """The voxels, those in a box of space, or so many points over the same extent; see utils.voxel_grid.

        roi: a slice for each axis of space, or an index, which is a slice of one voxel. time, for a time series only: a
        time in steps, which may be a fraction, or a slice of whole steps; all steps by default. roi and resolution have
        no entry for time. Raises ValueError for what the field does not have.
        """
        shape = self.header.shape
        if isinstance(roi, str):
            raise ValueError(f"roi: expected slices, as of np.s_[0:5, :, :], found the text {roi!r}")
        space = voxel_grid(shape[-3:], roi, resolution)
        if len(shape) == 4:
            return Grid((_times(shape[0], time), *space.axes))
        if time is not None:
            raise ValueError(f"time: expected a time series, found {len(shape)} axes")
        return space

    def on_grid(
        self, grid: Grid | None = None, as_float: bool = False, on_progress: OnProgress = no_progress
    ) -> np.ndarray:
        """The values on a grid, by default at every voxel, in the field's own units and dtype.

        The array has the grid's shape, and a last axis of components when there are several. Where the nearest voxel is
        missing, it holds the fill value, or NaN in floats of a field of integers. as_float: see ValueRange.denormalise.
        `on_progress(fraction)` is told how much is done; what it raises ends the evaluation. Raises ValueError for a
        grid that reaches beyond the field.
        """
        grid = self._within(grid)
        result = self._shaped(self._values(grid, as_float, on_progress), grid.shape)
        return self._mark_missing(result, grid, self.header.fill if result.dtype == self.dtype else np.nan)

    def gradient_on_grid(self, grid: Grid | None = None, on_progress: OnProgress = no_progress) -> np.ndarray:
        """The derivatives of the values on a grid by position, in units of value per unit of length.

        The array has the grid's shape, an axis of components when there are several, and a last axis of the d_in
        directions; see `gradient_at`.
        """
        grid = self._within(grid)
        return self._mark_missing(self._shaped(self._gradient(grid, on_progress), grid.shape), grid, np.nan)

    def lazy(self, grid: Grid | None = None, as_float: bool = False) -> LazyArray:
        """The array of `on_grid`, whose values are evaluated when they are asked for. It can be pickled."""
        grid, n_axes = self._within(grid), len(self.header.shape)
        evaluate = partial(self._on_box, grid, as_float)  # a function of this method could not be pickled
        return LazyArray(grid.shape + self.shape[n_axes:], self.values.decoded_dtype(as_float), evaluate, n_axes)

    def _on_box(self, grid: Grid, as_float: bool, box: Box) -> np.ndarray:
        return self.on_grid(grid.part(box), as_float)

    # --- at points ---

    def at(self, points: np.ndarray) -> np.ndarray:
        """The values at physical positions (..., d_in): (...), or (..., components). One position gives one value.

        A value is NaN outside the field, at a masked position, and where the nearest voxel is missing. The dtype is
        float32, or float64 where the field holds float64 or integers of more than 16 bits.
        """
        return self._at(points, lambda index: self._values(index, True).astype(self.values.float_dtype, copy=False))

    def sample_line(self, a: np.ndarray, b: np.ndarray, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """The distances in space from `a`, and the values, as of `at`, at n positions from `a` to `b`, evenly.

        a, b: a position each, or the ends of several lines, (..., d_in). Both results begin with the axis of n.
        """
        if not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n: expected a whole number of positions, at least 1, found {n}")
        points = np.linspace(a, b, n)
        values = self.at(points)
        return np.linalg.norm(points[..., -3:] - points[0, ..., -3:], axis=-1), values

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of the physical positions (..., d_in) lie between the first voxel and the last of every axis."""
        _, is_inside, shape = _locate(self.header, points)
        return is_inside.reshape(shape)[()]

    def gradient_at(self, points: np.ndarray) -> np.ndarray:
        """The derivatives of the values by position at physical positions (..., d_in): (..., [components,] d_in).

        The derivative is 0 where the value is clipped to the field's range, and along an axis of one voxel. It is NaN
        where the value is. The dtype is that of `at`.
        """
        return self._at(points, self._gradient)

    # --- in other libraries ---

    def to_xarray(self, grid: Grid | None = None) -> object:
        """The values on a grid, by default at every voxel, as an xarray.DataArray; see conversion.xarray_of."""
        return xarray_of(self._decoded(grid))

    def to_vtk(self, grid: Grid | None = None) -> object:
        """The same as a vtkImageData, which pyvista.wrap takes; see conversion.vtk_of. A series needs a single time."""
        return vtk_of(self._decoded(grid))

    def _decoded(self, grid: Grid | None) -> Volume:
        grid = self._within(grid)
        return Volume(self.on_grid(grid), grid.geometry(self.header.geometry), self.header.fill)

    # --- how it is evaluated ---

    def _within(self, grid: Grid | None) -> Grid:
        """The grid, by default every voxel. Raises ValueError for positions outside, as in a grid of another field."""
        if grid is None:
            return self.grid()
        shape = self.header.shape
        ends = [n - 1 + INSIDE for n in shape]
        is_within = [((axis >= -INSIDE) & (axis <= end)).all() for axis, end in zip(grid.axes, ends, strict=False)]
        if len(grid.axes) != len(shape) or not all(is_within):
            raise ValueError(
                f"grid: expected positions within the voxels {shape}, found others: field.grid() makes them"
            )
        return grid

    def _mark_missing(self, result: np.ndarray, grid: Grid, mark: object) -> np.ndarray:
        """What was evaluated on a grid, with `mark` where the nearest voxel is missing."""
        if self.header.missing:
            first, *others = map(_nearest, grid.axes)
            step = max(1, MASK_POSITIONS // math.prod(grid.shape[1:]))
            for start in range(0, len(first), step):
                part = slice(start, start + step)
                result[part][self.header.missing.at(np.ix_(first[part], *others))] = mark
        return result

    def _at(self, points: np.ndarray, evaluate: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | np.generic:
        """What `evaluate` gives at physical positions, in their shape; NaN outside, and where voxels are missing."""
        index, is_inside, shape = _locate(self.header, points)
        result = evaluate(index)
        result[~is_inside] = np.nan
        if self.header.missing:
            result[self.header.missing.at(tuple(_nearest(index).T))] = np.nan
        return self._shaped(result, shape)

    def _shaped(self, result: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | np.generic:
        """Results (n, components, ...) in the shape of their positions, without an axis of a single component."""
        return result.reshape(shape + self.shape[len(self.header.shape) :] + result.shape[2:])[()]

    def _values(self, positions: Positions, as_float: bool, on_progress: OnProgress = no_progress) -> np.ndarray:
        """The values (n, components) at positions in voxels, of `decoded_dtype(as_float)`."""
        shape = count_positions(positions), self.header.n_components
        result = np.empty(shape, self.values.decoded_dtype(as_float))

        def store(part: slice | np.ndarray, y: np.ndarray, _: None) -> None:
            result[part] = self.values.denormalise(y.T, as_float)

        if result.dtype.kind in "iu":
            evaluate_integers(self.evaluator, positions, self.values, result, on_progress)
        else:
            self.evaluator.evaluate(positions, store, on_progress=on_progress)
        return result

    def _gradient(self, positions: Positions, on_progress: OnProgress = no_progress) -> np.ndarray:
        """The derivatives (n, components, axes) at positions in voxels."""
        shape, geometry = self.header.shape, self.header.geometry
        d_in = len(shape)
        result = np.empty((count_positions(positions), self.header.n_components, d_in), self.values.float_dtype)
        sizes = np.array([voxel_size(shape, axis) for axis in range(d_in)])
        per_index = sizes / 2 * self.values.extent[:, None]
        per_length = np.where(np.array(shape) > 1, per_index / geometry.spacing, 0.0)
        directions = geometry.axis_directions

        def store(part: slice | np.ndarray, y: np.ndarray, slopes: np.ndarray) -> None:
            is_free = np.abs(y.T) <= 1
            result[part] = (slopes.transpose(2, 1, 0) * per_length * is_free[..., None]) @ directions.T

        self.evaluator.evaluate(positions, store, also="slopes", on_progress=on_progress)
        return result


def _times(n: int, time: float | slice | None) -> np.ndarray:
    """The times, in steps, of a series of n steps that `time` asks for; see NeuralField.grid. Raises ValueError."""
    if time is None or isinstance(time, slice):
        return voxel_grid((n,), None if time is None else (time,)).axes[0]
    if not 0 <= time <= n - 1:
        raise ValueError(f"time: expected one from 0 to {n - 1}, found {time:g}")
    return np.array([float(time)])


def _locate(header: VolumeHeader, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Voxel indices (n, d_in) of physical positions, moved into the field; whether they were inside; their shape.

    A point on the boundary is inside, also where its own type, as float32, rounds it outwards.
    """
    given, geometry = np.asarray(points), header.geometry
    points = np.where(np.ma.getmask(points), np.nan, given.astype(np.float64))
    if not points.ndim or points.shape[-1] != geometry.d_in:
        raise ValueError(f"expected points of shape (..., {geometry.d_in}), found {points.shape}")
    shape, points = points.shape[:-1], points.reshape(-1, geometry.d_in)
    directions = geometry.axis_directions
    index = np.linalg.solve(directions, (points - geometry.origin).T).T / geometry.spacing
    last = np.array(header.shape) - 1.0
    eps = np.finfo(given.dtype).eps if given.dtype.kind == "f" else 0.0  # points of VTK's meshes are float32
    slack = INSIDE + eps * np.abs(np.where(np.isfinite(points), points, 0.0)) @ np.abs(directions) / geometry.spacing
    is_inside = (np.isfinite(index) & (index >= -slack) & (index <= last + slack)).all(axis=1)
    return np.clip(np.nan_to_num(index), 0.0, last), is_inside, shape


def _nearest(index: np.ndarray) -> np.ndarray:
    """The voxels nearest to positions in voxel indices."""
    return np.floor(index + 0.5).astype(np.int64)
