"""A field held by a network: its values and exact derivatives on any grid or at any points. NumPy; torch on a GPU.

    field = NeuralField.open("compressed_out")
    volume, box = field.on_grid(), field.on_grid(field.grid(roi=np.s_[:, 8:24, 5:6]))  # arrays [x, y, z]
    values, gradients = field.at(points), field.gradient_at(points)

On the CPU, NumPy's sines take a third of the time of torch's, and need no torch where a blob is only read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from field.blob import decode_single
from field.layers import linear_layers
from formats.arrays import LazyArray
from utils import Box, Grid, VolumeHeader, normalised_coordinates, voxel_grid, voxel_size

# Positions at a time: activations stay in a core's cache, or fill a GPU. Always that many, the last ones padded.
CHUNK = {"cpu": 1072, "cuda": 1 << 18}  # of a CPU: rows a power of two apart would share a few sets of its cache
MASK_POSITIONS = 1 << 20  # positions whose nearest voxels are looked up in one go
# Share of the range. Values this close to a rounding boundary of two integers are evaluated anew in float64: float32
# products depend on a position's place in its chunk, and a region must give the same integers as the whole.
NEAR = 1e-5
INSIDE = 1e-6  # voxels by which rounding may move a point on the boundary out of the field


class NeuralField:
    """A field and the network that holds it. Safe to use from several threads, and can be pickled.

    header: shape, range, geometry and name of the field. network: the fields of SirenConfig. weights: the float32
    parameters by name. device: "cpu" or a CUDA device that torch knows, else a ValueError; n_threads: on the CPU.
    """

    def __init__(
        self,
        header: VolumeHeader,
        network: dict,
        weights: dict[str, np.ndarray],
        device: object = "cpu",
        n_threads: int = 1,
    ):
        self.header, self.device, self.n_threads = header, str(device), n_threads
        if self.device.partition(":")[0] not in CHUNK:
            raise ValueError(f"device: expected cpu or cuda, found {self.device}")
        self.shape = header.shape
        self.values = header.values
        self.is_residual = network["is_residual"] and network["n_layers"] > 1
        self.layers = []  # [W b] of every layer, times its factors
        for layer in linear_layers(**network):
            weight = weights[f"{layer.name}.weight"].astype(np.float64) * (layer.omega * layer.scale)
            bias = weights[f"{layer.name}.bias"].astype(np.float64) * layer.omega
            self.layers.append(np.column_stack([weight, bias]).astype(np.float32))

    @classmethod
    def open(cls, path: str, device: object = "cpu", n_threads: int = 1) -> NeuralField:
        """The field in a blob. Raises OSError when the file cannot be read, BlobError when it is no blob."""
        with open(path, "rb") as file:
            return cls(*decode_single(file.read()), device, n_threads)

    @classmethod
    def of(cls, net: object, header: VolumeHeader, device: object = "cpu", n_threads: int = 1) -> NeuralField:
        """The field that a siren.FieldNet holds now; later changes of the network do not change it."""
        weights = {name: tensor.cpu().numpy() for name, tensor in net.state_dict().items()}
        return cls(header, dataclasses.asdict(net.config), weights, device, n_threads)

    # --- on a grid ---

    def grid(
        self,
        roi: tuple[slice, ...] | None = None,
        resolution: tuple[int, ...] | None = None,
        time: float | slice | None = None,
    ) -> Grid:
        """The voxels, those in a box of space, or so many points over the same extent; see utils.voxel_grid.

        time: of a time series, whose axis of time the others leave out: one, in steps, that may be a fraction, or a
        range of whole steps; all of them by default. Raises ValueError for what the field does not have.
        """
        space = voxel_grid(self.shape[-3:], roi, resolution)
        if len(self.shape) < 4:
            if time is not None:
                raise ValueError(f"time: expected a time series, found {len(self.shape)} axes")
            return space
        if time is None or isinstance(time, slice):
            times = voxel_grid(self.shape[:1], None if time is None else (time,)).axes[0]
        elif 0 <= time <= self.shape[0] - 1:
            times = np.array([float(time)])
        else:
            raise ValueError(f"time: expected one from 0 to {self.shape[0] - 1}, found {time:g}")
        return Grid((times, *space.axes))

    def dtype(self, as_float: bool = False) -> np.dtype:
        """The type of the values; see ValueRange.denormalise for `as_float`."""
        return self.values.denormalise(np.empty((0, len(self.values.low)), np.float32), as_float).dtype

    def on_grid(
        self,
        grid: Grid | None = None,
        as_float: bool = False,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> np.ndarray:
        """The values on a grid, by default at every voxel, in the field's own units and dtype.

        Returns the grid's shape, and a last axis of components when there are several; see ValueRange.denormalise for
        `as_float`. Where the nearest voxel is missing: its fill value, or NaN in floats of a field of integers.
        `on_progress(fraction)` is told how much is done; what it raises ends the evaluation.
        """
        grid = grid or self.grid()
        result = np.empty((math.prod(grid.shape), len(self.values.low)), self.dtype(as_float))

        coordinates = self._grid_coordinates(grid)
        is_close = np.zeros(len(result) if result.dtype.kind in "iu" else 0, bool)

        def store(part: slice, y: np.ndarray, _: None) -> None:
            result[part] = self.values.denormalise(y.T, as_float)
            if len(is_close):
                is_close[part] = self._is_close(y).any(axis=0)

        self._evaluate(coordinates, len(result), False, store, on_progress)
        for start in range(
            0, len(is_close), MASK_POSITIONS
        ):  # the numbers of all would take more memory than the values
            self._round_anew(result, start + np.flatnonzero(is_close[start : start + MASK_POSITIONS]), coordinates)
        result = result.reshape(*grid.shape, -1)
        for part, is_missing in self._missing_on(grid):
            result[part][is_missing] = self.header.fill if result.dtype == self.values.dtype else np.nan
        return self._drop_components(result)

    def _is_close(self, y: np.ndarray) -> np.ndarray:
        """Which normalised values (d_out, n) lie close to the border between two integers."""
        extent = self.values.extent[:, None]
        offset = (np.clip(y, -1.0, 1.0) + 1.0) / 2.0 * extent
        return np.abs(offset - np.floor(offset) - 0.5) <= NEAR * extent

    def _round_anew(
        self, result: np.ndarray, index: np.ndarray, coordinates: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Put integers that are rounded from a float64 evaluation into the rows `index` of a result."""

        def store(part: slice, y: np.ndarray, _: None) -> None:
            result[index[part]] = self.values.denormalise(y.T)

        self._evaluate(lambda part: coordinates(index[part]), len(index), False, store, precision="float64")

    def gradient_on_grid(
        self, grid: Grid | None = None, on_progress: Callable[[float], None] = lambda fraction: None
    ) -> np.ndarray:
        """The derivatives of the values on a grid by position, in units of value per unit of length.

        Returns the grid's shape, the components when there are several, and at last the axes of space; see
        `gradient_at`.
        """
        grid = grid or self.grid()
        result = self._gradient(self._grid_coordinates(grid), grid.shape, on_progress)
        for part, is_missing in self._missing_on(grid):
            result[part][is_missing] = np.nan
        return result

    def lazy(self, grid: Grid | None = None, as_float: bool = False) -> LazyArray:
        """As `on_grid`, but every box of the grid is evaluated when it is asked for."""
        grid = grid or self.grid()
        n_components = len(self.values.low)

        def evaluate(box: Box) -> np.ndarray:
            return self.on_grid(grid.part(box), as_float)

        return LazyArray(grid.shape + (n_components,) * (n_components > 1), self.dtype(as_float), evaluate)

    # --- at points ---

    def at(self, points: np.ndarray) -> np.ndarray:
        """The values at physical positions (n, d_in): (n,), or (n, components); NaN outside the field, and where the
        nearest voxel is missing.

        Floats: float32, or float64 where the field's own type is wider than that.
        """
        index, is_inside = self._locate(points)
        result = np.empty((len(index), len(self.values.low)), self.dtype(as_float=True))

        def store(part: slice, y: np.ndarray, _: None) -> None:
            result[part] = self.values.denormalise(y.T, True)

        self._evaluate(self._point_coordinates(index), len(result), False, store)
        result[~is_inside | self._is_missing(index)] = np.nan
        return self._drop_components(result)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of the physical positions (n, d_in) lie between the first voxel and the last of every axis."""
        return self._locate(points)[1]

    def gradient_at(self, points: np.ndarray) -> np.ndarray:
        """The derivatives of the values by position at physical positions (n, d_in): (n, [components,] d_in).

        Of the values as they are evaluated: 0 where those are clipped to the field's range, and along an axis of one
        voxel; NaN outside the field, and where the nearest voxel is missing. Same floats as `at`.
        """
        index, is_inside = self._locate(points)
        result = self._gradient(self._point_coordinates(index), (len(index),))
        result[~is_inside | self._is_missing(index)] = np.nan
        return result

    def _locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxel indices (n, d_in) of physical positions, moved into the field, and whether they were inside."""
        points = np.asarray(points, np.float64)
        d_in = len(self.shape)
        if points.ndim != 2 or points.shape[1] != d_in:
            raise ValueError(f"expected points of shape (n, {d_in}), found {points.shape}")
        geometry = self.header.geometry
        index = np.linalg.solve(geometry.axis_directions, (points - geometry.origin).T).T / geometry.spacing
        last = np.array(self.shape) - 1.0
        is_inside = ((index >= -INSIDE) & (index <= last + INSIDE)).all(axis=1)
        return np.clip(np.nan_to_num(index), 0.0, last), is_inside

    # --- missing voxels ---

    def _missing_on(self, grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
        """Parts of a grid along its first axis, and where in them the nearest voxel is missing; none without any."""
        if self.header.missing is None:
            return
        first, *others = (_nearest(axis) for axis in grid.axes)
        step = max(1, MASK_POSITIONS // math.prod(grid.shape[1:]))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            yield part, self.header.missing.at(np.ix_(first[part], *others))

    def _is_missing(self, index: np.ndarray) -> np.ndarray:
        """Whether the voxel nearest to each position (n, d_in), in voxel indices, is missing."""
        if self.header.missing is None:
            return np.zeros(len(index), bool)
        return self.header.missing.at(tuple(_nearest(index).T))

    # --- how it is evaluated ---

    def _grid_coordinates(self, grid: Grid) -> Callable[[slice | np.ndarray], np.ndarray]:
        axes = [normalised_coordinates(axis, self.shape, k).astype(np.float32) for k, axis in enumerate(grid.axes)]

        def coordinates(part: slice | np.ndarray) -> np.ndarray:
            flat = np.arange(part.start, part.stop) if isinstance(part, slice) else part
            index = np.unravel_index(flat, grid.shape)
            return np.stack([axis[i] for axis, i in zip(axes, index, strict=True)])

        return coordinates

    def _point_coordinates(self, index: np.ndarray) -> Callable[[slice], np.ndarray]:
        def coordinates(part: slice) -> np.ndarray:
            axes = [normalised_coordinates(axis, self.shape, k) for k, axis in enumerate(index[part].T)]
            return np.stack(axes).astype(np.float32)

        return coordinates

    def _drop_components(self, result: np.ndarray) -> np.ndarray:
        return result[..., 0] if len(self.values.low) == 1 else result

    def _gradient(
        self,
        coordinates: Callable[[slice], np.ndarray],
        shape: tuple[int, ...],
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> np.ndarray:
        d_in, d_out = len(self.shape), len(self.values.low)
        dtype = np.float64 if self.values.dtype.itemsize == 8 else np.float32
        result = np.empty((math.prod(shape), d_out, d_in), dtype)
        sizes = np.array([voxel_size(self.shape, axis) for axis in range(d_in)])
        per_index = sizes / 2 * self.values.extent[:, None]
        per_length = np.where(np.array(self.shape) > 1, per_index / self.header.geometry.spacing, 0.0)
        directions = self.header.geometry.axis_directions

        def store(part: slice, y: np.ndarray, slopes: np.ndarray) -> None:
            is_free = np.abs(y.T) <= 1
            result[part] = (slopes.transpose(2, 1, 0) * per_length * is_free[..., None]) @ directions.T

        self._evaluate(coordinates, len(result), True, store, on_progress)
        result = result.reshape(*shape, d_out, d_in)
        return result[..., 0, :] if d_out == 1 else result

    def _evaluate(
        self,
        coordinates: Callable[[slice], np.ndarray],
        n: int,
        with_slopes: bool,
        store: Callable[[slice, np.ndarray, np.ndarray | None], None],
        on_progress: Callable[[float], None] = lambda fraction: None,
        precision: str = "float32",
    ) -> None:
        """Evaluate the network at n normalised positions, chunk by chunk: `store(part, values, slopes)` takes them.

        coordinates(part): (d_in, positions) of the positions in that slice. values: (d_out, positions), slopes: their
        derivatives by the normalised coordinates (d_in, d_out, positions).
        """
        network = _Network(self.layers, self.is_residual, self.device, precision)

        starts = iter(range(0, n, network.chunk))

        def work(on_progress: Callable[[float], None] = lambda fraction: None, most: int | None = None) -> None:
            for start in itertools.islice(starts, most):
                part = slice(start, min(start + network.chunk, n))
                store(part, *network(coordinates(part), with_slopes))
                on_progress(part.stop / n)

        work(on_progress, 1)  # which may be all
        n_helpers = self.n_threads - 1 if network.xp is np else 0
        with concurrent.futures.ThreadPoolExecutor(max(n_helpers, 1)) as pool:
            helpers = [pool.submit(work) for _ in range(n_helpers)]
            try:
                work(on_progress)
            finally:  # after an error, or Ctrl-C, nothing is left for the helpers to begin
                collections.deque(starts, maxlen=0)
            for helper in helpers:
                helper.result()
        on_progress(1.0)


def _nearest(index: np.ndarray) -> np.ndarray:
    return np.floor(index + 0.5).astype(np.int64)


class _Network:
    """The network's matrices on a device. Positions lie along the last axis; a row of ones takes the biases in."""

    def __init__(self, layers: list[np.ndarray], is_residual: bool, device: str, precision: str = "float32"):
        self.is_residual, self.device, self.chunk = is_residual, device, CHUNK[device.partition(":")[0]]
        self.precision = precision
        self.xp, self.layers = np, [layer.astype(precision) for layer in layers]
        if device != "cpu":
            import torch

            self.xp, self.layers = torch, [torch.from_numpy(layer).to(device) for layer in self.layers]

    def _empty(self, *shape: int) -> object:
        place = {} if self.xp is np else {"device": self.device}
        return self.xp.empty((*shape, self.chunk), dtype=getattr(self.xp, self.precision), **place)

    def __call__(self, x: np.ndarray, with_slopes: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """x: (d_in, n), n at most `chunk` -> (d_out, n), and the derivatives (d_in, d_out, n) or None.

        The derivatives are carried along with the values (forward mode), one direction per axis.
        """
        xp, (first, *hidden, last) = self.xp, self.layers
        (d_in, n), width = x.shape, len(first)
        inputs, phase = self._empty(d_in + 1), self._empty(width)
        inputs[:-1] = 0.0
        inputs[:-1, :n] = x if xp is np else xp.from_numpy(x).to(self.device)
        h, a, b = (self._empty(width + 1) for _ in range(3))
        for rows in (inputs, h, a, b):
            rows[-1] = 1.0
        d_inputs = dh = da = db = None
        if with_slopes:
            d_inputs = self._empty(d_in, d_in)
            for axis in range(d_in):
                d_inputs[axis] = 0.0
                d_inputs[axis, axis] = 1.0
            dh, da, db = (self._empty(d_in, width) for _ in range(3))

        def sine_layer(layer, source, d_source, out, d_out) -> None:
            xp.matmul(layer, source, out=phase)
            if with_slopes:
                xp.matmul(layer[:, :-1], d_source, out=d_out)
                d_out *= xp.cos(phase, out=out[:-1])
            xp.sin(phase, out=out[:-1])

        sine_layer(first, inputs, d_inputs, h, dh)
        if self.is_residual:
            for layer_1, layer_2 in zip(hidden[::2], hidden[1::2], strict=True):
                sine_layer(layer_1, h, dh, a, da)
                sine_layer(layer_2, a, da, b, db)
                h[:-1] += b[:-1]
                if with_slopes:
                    dh += db
        else:
            for layer in hidden:
                sine_layer(layer, h, dh, a, da)
                h, dh, a, da = a, da, h, dh

        y = xp.matmul(last, h)[:, :n]
        dy = xp.matmul(last[:, :-1], dh)[..., :n] if with_slopes else None
        if xp is np:
            return y, dy
        return y.cpu().numpy(), dy.cpu().numpy() if with_slopes else None
