"""Evaluate a network at many positions, chunk by chunk, on several threads or a GPU. NumPy; torch on a GPU.

On the CPU, NumPy's sines take a third of the time of torch's, and need no torch where a blob is only read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator

import numpy as np

from field import portable
from field.layers import SirenConfig, layer_table
from utils import Grid, normalised_coordinates

# Positions in a chunk: activations stay in a core's cache, or fill a GPU. The last chunk is padded. On a CPU, it is no
# power of two: rows a power of two apart would share a few sets of the cache.
CHUNK = {"cpu": 1072, "cuda": 1 << 18}
STORED = 1 << 14  # positions whose results are handed on at a time: what is computed of them stays in a core's cache
TILE = 16  # a GPU multiplies matrices whose sizes are multiples of this several times as fast
# Positions by number -> (d_in, positions), normalised: a NumPy array, or a tensor on a GPU.
Coordinates = Callable[[slice], object]
Positions = Grid | np.ndarray  # those of a grid, or (n, d_in); in voxels
OnProgress = Callable[[float], None]
# Takes the numbers of positions, their values (d_out, positions), and what else is asked for, such as derivatives.
Store = Callable[[slice | np.ndarray, np.ndarray, np.ndarray | None], None]


def no_progress(fraction: float) -> None:
    """Tells nobody how much is done."""


def uses_torch(device: str) -> bool:
    """Whether a device computes with torch, not with NumPy."""
    return device != "cpu"


def check_device(device: str) -> None:
    """Raise ValueError for a device that there is not."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device: expected cpu or cuda, found {device}")
    if uses_torch(device):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(device).index or 0) >= count:
            raise ValueError(f"device: expected one of {count} GPUs of torch, found {device}")


def along_axes(axes: list, flat: object) -> list:
    """The coordinate along each axis of the positions with the numbers `flat` in C order; arrays, or tensors."""
    columns = []
    for axis in reversed(axes):
        before = flat // len(axis)
        columns.append(axis[flat - before * len(axis)])  # the remainder, which % would divide for again
        flat = before
    return columns[::-1]


def coordinates_of(positions: Positions, shape: tuple[int, ...], device: str = "cpu") -> Coordinates:
    """The normalised coordinates of positions; those of a grid are numbered in C order. shape: voxels of the field.

    On a GPU, those of a grid are made there: a copy from the host takes longer than the evaluation.
    """

    def of_points(part: slice) -> np.ndarray:
        axes = [normalised_coordinates(axis, shape, k) for k, axis in enumerate(positions[part].T)]
        return np.stack(axes).astype(np.float32)

    if not isinstance(positions, Grid):
        return of_points
    xp, place = np, {}
    axes = [normalised_coordinates(axis, shape, k).astype(np.float32) for k, axis in enumerate(positions.axes)]
    if uses_torch(device):
        import torch

        xp, place, axes = torch, {"device": device}, [torch.from_numpy(axis).to(device) for axis in axes]
    return lambda part: xp.stack(along_axes(axes, xp.arange(part.start, part.stop, **place)))


def count_positions(positions: Positions) -> int:
    return math.prod(positions.shape) if isinstance(positions, Grid) else len(positions)


def positions_at(positions: Positions, numbers: np.ndarray) -> np.ndarray:
    """The positions of these numbers, (n, d_in). Those of a grid are numbered in C order."""
    if not isinstance(positions, Grid):
        return positions[numbers]
    index = np.unravel_index(numbers, positions.shape)
    return np.stack([axis[i] for axis, i in zip(positions.axes, index, strict=True)], axis=1)


def scaled_layers(config: SirenConfig, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """[W b] of every linear layer of a network, times its factors: float32, as Network takes them."""
    layers = []
    for layer in layer_table(config):
        weight = weights[f"{layer.name}.weight"].astype(np.float64) * (layer.omega * layer.scale)
        bias = weights[f"{layer.name}.bias"].astype(np.float64) * layer.omega
        layers.append(np.column_stack([weight, bias]).astype(np.float32))
    return layers


class Network:
    """A network's matrices on a device. Positions lie along the last axis; a row of ones takes the biases in.

    On a GPU, zeros pad the rows of the matrices. layers: [W b] of every linear layer, times its factors. precision:
    "float32", "float64", or "portable": float64 by field.portable, on the CPU, without derivatives. n: the number of
    positions, where it is known and small: the chunks are then of such a size that little is padded.
    """

    def __init__(self, layers: list[np.ndarray], is_residual: bool, device: str, precision: str, n: int | None):
        is_portable = precision == "portable"
        self.is_residual, self.device = is_residual, "cpu" if is_portable else device
        self.chunk = _chunk(CHUNK[self.device.partition(":")[0]], n)
        self.precision = "float64" if is_portable else precision
        self.xp, self.layers, self.n_ahead = np, [layer.astype(self.precision) for layer in layers], 0
        self.rows = len(layers[0]) + 1  # of the activations
        if uses_torch(self.device):
            import torch

            self.xp, self.n_ahead, self.rows = torch, 1, -(-self.rows // TILE) * TILE
            padded = [np.pad(layer, ((0, 0), (0, self.rows - layer.shape[1]))) for layer in self.layers[1:]]
            self.layers = [torch.from_numpy(layer).to(device) for layer in (self.layers[0], *padded)]
        arithmetic = portable if is_portable else self.xp
        self.matmul, self.sin = arithmetic.matmul, arithmetic.sin

    def _empty(self, *shape: int) -> object:
        place = {} if self.xp is np else {"device": self.device}
        return self.xp.empty((*shape, self.chunk), dtype=getattr(self.xp, self.precision), **place)

    def _with_one(self, n_rows: int, width: int) -> object:
        """Rows of activations: `width` of them to be filled in, a row of ones, and zeros."""
        rows = self._empty(n_rows)
        rows[width] = 1.0
        rows[width + 1 :] = 0.0
        return rows

    def __call__(self, x: object, with_slopes: bool) -> Callable[[], list[np.ndarray | None]]:
        """Begin to evaluate at positions x (d_in, n), n at most `chunk`. Returns a function that waits for the results.

        It gives the values (d_out, n), and their derivatives (d_in, d_out, n) or None. The derivatives are carried
        along with the values (forward mode), one direction per axis.
        """
        xp, (first, *hidden, last) = self.xp, self.layers
        (d_in, n), width = x.shape, len(first)
        inputs, phase = self._with_one(d_in + 1, d_in), self._empty(width)
        inputs[:d_in, :n] = x if xp is np else xp.as_tensor(x, device=self.device)
        inputs[:d_in, n:] = 0.0
        h, a, b = (self._with_one(self.rows, width) for _ in range(3))
        d_inputs = dh = da = db = None
        if with_slopes:
            d_inputs = self._empty(d_in, d_in)
            d_inputs[:] = 0.0
            for axis in range(d_in):
                d_inputs[axis, axis] = 1.0
            dh, da, db = (self._empty(d_in, width) for _ in range(3))

        def sine_layer(layer, source, d_source, out, d_out) -> None:
            self.matmul(layer, source, out=phase)
            if with_slopes:
                xp.matmul(layer[:, : d_source.shape[-2]], d_source, out=d_out)
                d_out *= xp.cos(phase, out=out[:width])
            self.sin(phase, out=out[:width])

        sine_layer(first, inputs, d_inputs, h, dh)
        if self.is_residual:
            for layer_1, layer_2 in zip(hidden[::2], hidden[1::2], strict=True):
                sine_layer(layer_1, h, dh, a, da)
                sine_layer(layer_2, a, da, b, db)
                h[:width] += b[:width]
                if with_slopes:
                    dh += db
        else:
            for layer in hidden:
                sine_layer(layer, h, dh, a, da)
                h, dh, a, da = a, da, h, dh

        y = self.matmul(last, h)[:, :n]
        dy = xp.matmul(last[:, :width], dh)[..., :n] if with_slopes else None
        return (lambda: [y, dy]) if xp is np else _fetched(y, dy)


_setting = threading.Lock()  # of `full_float32`, as it is a setting of the process


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Within, a GPU does not round products of float32 to TF32, whatever the process has asked for."""
    import torch

    products = torch.backends.cuda.matmul
    with _setting:
        kept, products.fp32_precision = products.fp32_precision, "ieee"
        try:
            yield
        finally:
            products.fp32_precision = kept


def _chunk(most: int, n: int | None) -> int:
    """Positions in a chunk, at most `most`, so that n positions nearly fill the last one. No multiple of 64."""
    if not n:
        return most
    even = -(-n // -(-n // most) // 16) * 16
    return min(even + 16 * (even % 64 == 0), most)


def _fetched(*tensors: object) -> Callable[[], list[np.ndarray | None]]:
    """Begin to copy tensors to the host. Returns a function that waits for the copies and gives them."""
    import torch

    copies = [None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in tensors]
    copied = torch.cuda.Event() if tensors[0].is_cuda else None
    if copied:
        copied.record(torch.cuda.current_stream(tensors[0].device))

    def fetch() -> list[np.ndarray | None]:
        if copied:
            copied.synchronize()
        return [None if copy is None else copy.numpy() for copy in copies]

    return fetch


def evaluate(
    network: Network,
    positions: Positions,
    shape: tuple[int, ...],
    store: Store,
    n_threads: int,
    with_slopes: bool,
    on_progress: OnProgress,
) -> None:
    """Evaluate a network at positions, chunk by chunk: `store(part, values, slopes)` takes the results, part by part.

    shape: voxels of the field. values: (d_out, positions). slopes: their derivatives by the normalised coordinates,
    (d_in, d_out, positions), or None. `on_progress(fraction)` is told how much is done; what it raises ends the
    evaluation.
    """
    n, coordinates = count_positions(positions), coordinates_of(positions, shape, network.device)
    starts = iter(range(0, n, network.chunk))

    def end(part: slice, fetch: Callable[[], list[np.ndarray | None]], on_progress: OnProgress) -> None:
        hand_on(store, range(part.start, part.stop), *fetch())
        on_progress(part.stop / n)

    @np.errstate(over="ignore", invalid="ignore")  # derivatives of weights of any size may overflow
    def work(on_progress: OnProgress, most: int | None = None) -> None:
        begun = collections.deque()  # a GPU computes the next chunk while this one is stored
        precisely = contextlib.nullcontext if network.xp is np else full_float32
        for start in itertools.islice(starts, most):
            part = slice(start, min(start + network.chunk, n))
            x = coordinates(part)
            with precisely():
                begun.append((part, network(x, with_slopes)))
            if len(begun) > network.n_ahead:
                end(*begun.popleft(), on_progress)
        for part, fetch in begun:
            end(part, fetch, on_progress)

    work(on_progress, 1)  # here, so that the progress is told at least once: helpers might do all other chunks
    do_with_helpers(starts, work, on_progress, n_threads - 1 if network.xp is np else 0)
    on_progress(1.0)


def hand_on(store: Store, numbers: range | np.ndarray, y: np.ndarray, more: np.ndarray | None) -> None:
    """Store results at the positions of these numbers, STORED of them at a time. y, more: (..., positions)."""
    for first in range(0, len(numbers), STORED):
        part = slice(first, first + STORED)
        some = numbers[part]
        at = slice(some.start, some.stop) if isinstance(some, range) else some  # by a slice, NumPy stores faster
        store(at, y[..., part], None if more is None else more[..., part])


def do_with_helpers(
    jobs: Iterator, work: Callable[[OnProgress], None], on_progress: OnProgress, n_helpers: int
) -> None:
    """Do `work(on_progress)` here, and `work` on so many threads. Each takes jobs until the iterator has none left."""
    if n_helpers < 1:
        work(on_progress)
        return
    with concurrent.futures.ThreadPoolExecutor(n_helpers) as pool:
        helpers = [pool.submit(work, no_progress) for _ in range(n_helpers)]
        try:
            work(on_progress)
        finally:  # after an error, or Ctrl-C, nothing is left for the helpers to begin
            collections.deque(jobs, maxlen=0)
        for helper in helpers:
            helper.result()
