"""The volume as a sampled function: normalised values and coordinates, samples, gradients, evaluation, metrics.

The coordinate convention lives here and nowhere else: the longest axis spans [-1, 1], the others in
proportion to their number of voxels, voxels at the centre of the axis at 0; values are normalised to
[-1, 1] by the volume's own range. Paper, section 3; the same figures as the original scripts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from net_coder import FieldHeader
from volume import Volume

EVALUATION_CHUNK = {"cpu": 1 << 13, "cuda": 1 << 20}  # voxels at a time: activations stay in a core's cache, fill a GPU


# --- coordinates ------------------------------------------------------------------------------------


def axis_coordinates(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Normalised coordinates of the voxels along each axis of a grid, float64.

    Voxel i of n is at (2 i - (n - 1)) / (longest - 1), so an axis of one voxel is at 0.
    """
    longest = max(max(shape) - 1, 1)
    return [(2.0 * np.arange(n) - (n - 1)) / longest for n in shape]


def voxel_size(shape: tuple[int, ...]) -> float:
    """Distance between neighbouring voxels in normalised coordinates, the same along every axis."""
    return 2.0 / max(max(shape) - 1, 1)


def axis_tensors(shape: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    """`axis_coordinates` as float32 tensors on `device`."""
    return [torch.from_numpy(axis).float().to(device) for axis in axis_coordinates(shape)]


def flat_coordinates(axes: list[torch.Tensor], flat: torch.Tensor) -> torch.Tensor:
    """Normalised coordinates, float32 (n, d_in), of the voxels with the flat (C-order) indices `flat`."""
    columns = []
    for axis in reversed(axes):
        columns.append(axis[flat % len(axis)])
        flat = flat // len(axis)
    return torch.stack(columns[::-1], dim=-1)


# --- values -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """The dtype of a field and the least and greatest value of each of its components.

    low, high: arrays of shape (components,) in that dtype, so that 64-bit integers stay exact.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        return self.low.dtype

    @property
    def extent(self) -> np.ndarray:
        """high - low of each component, float64."""
        return (self.high.astype(_wide(self.dtype)) - self.low.astype(_wide(self.dtype))).astype(np.float64)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Values of shape (..., components) -> float32 in [-1, 1]; a constant component becomes 0."""
        wide = _wide(self.dtype)
        offset = values.astype(wide) - self.low.astype(wide)
        extent = np.where(self.extent > 0, self.extent, 1.0)
        return np.where(self.extent > 0, 2.0 * (offset / extent) - 1.0, 0.0).astype(np.float32)

    def denormalise(self, values: np.ndarray, as_float: bool = False) -> np.ndarray:
        """Normalised values of shape (..., components) -> the field's own units and dtype.

        Clipped to the range, which can only lessen the error. Integers are rounded; `as_float` gives
        float32 instead, or float64 where the field's own type is wider than that.
        """
        wide = _wide(self.dtype)
        unit = (np.clip(values.astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
        offset = unit.astype(wide) * self.extent.astype(wide)
        low = self.low.astype(wide)
        if as_float and self.dtype.kind in "iu":
            return (low + offset).astype(np.float32 if self.dtype.itemsize <= 2 else np.float64)
        result = np.clip(low + offset, low, self.high.astype(wide))  # before the cast, which would wrap around
        return (result if self.dtype.kind == "f" else np.rint(result)).astype(self.dtype)


def _wide(dtype: np.dtype) -> np.dtype:
    """A float type that holds every value of `dtype` exactly (where the machine's long double is wide enough)."""
    return np.dtype(np.longdouble if dtype.kind in "iu" and dtype.itemsize == 8 else np.float64)


def value_range(values: np.ndarray) -> ValueRange:
    """The range of each component of values of shape (..., components)."""
    axes = tuple(range(values.ndim - 1))
    return ValueRange(values.min(axis=axes), values.max(axis=axes))


def describe(volume: Volume, d_in: int) -> FieldHeader:
    """What a blob says about a volume of `d_in` grid axes."""
    values = value_range(components_last(volume.array, d_in))
    shape, rest = volume.array.shape[:d_in], (volume.name, volume.direction, volume.units)
    return FieldHeader(shape, values.low, values.high, volume.spacing, volume.origin, *rest)


def components_last(array: np.ndarray, d_in: int) -> np.ndarray:
    """An array of `d_in` grid axes as (grid..., components), with one component when it had no such axis."""
    return array if array.ndim > d_in else array[..., None]


# --- samples ----------------------------------------------------------------------------------------


class Field:
    """A normalised volume, drawn from by flat (C-order) voxel index, for training on a device.

    shape: of the grid. values: float32 tensor (voxels, components), in [-1, 1]; on the device, or in the host's
    memory when half of what the device has free does not hold it.
    """

    def __init__(self, normalised: np.ndarray, device: torch.device):
        self.shape = normalised.shape[:-1]
        self.device = device
        self.n_voxels = math.prod(self.shape)
        values = torch.from_numpy(normalised.reshape(self.n_voxels, -1))
        bytes_needed = values.nbytes + 8 * self.n_voxels  # the order of the voxels takes 8 bytes each
        fits = device.type != "cuda" or bytes_needed < torch.cuda.mem_get_info(device)[0] // 2
        self.values = values.to(device if fits else "cpu")
        self.axes = axis_tensors(self.shape, self.values.device)
        self.variance = float(self.values.var(dim=0, correction=0).mean())

    def shuffled(self, seed: int, index: int) -> torch.Tensor:
        """The order in which pass number `index` sees the voxels: all of them, once each."""
        generator = torch.Generator(self.values.device)
        generator.manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1))
        return torch.randperm(self.n_voxels, generator=generator, device=self.values.device)

    def samples(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (n, d_in) and values (n, components), on the training device, of the voxels `flat`."""
        return flat_coordinates(self.axes, flat).to(self.device), self.values[flat].to(self.device)

    def gradients(self) -> torch.Tensor:
        """Finite differences of the normalised values by the normalised coordinates: (voxels, components, d_in).

        Central, one-sided at the faces, zero along an axis of one voxel.
        """
        grid = self.values.cpu().numpy().reshape(*self.shape, -1)
        step = voxel_size(self.shape)
        slopes = [
            np.gradient(grid, step, axis=axis) if n > 1 else np.zeros_like(grid) for axis, n in enumerate(self.shape)
        ]
        gradients = np.stack(slopes, axis=-1).reshape(self.n_voxels, -1, len(self.shape))
        return torch.from_numpy(gradients).to(self.values.device)


# --- evaluation -------------------------------------------------------------------------------------


@torch.inference_mode()
def reconstruct(
    net: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    values: ValueRange,
    device: torch.device,
    as_float: bool = False,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> np.ndarray:
    """The volume that a network holds: its value at every voxel of a grid, in the field's own units and dtype.

    Returns shape (grid..., components), as ValueRange.denormalise makes it. `on_progress(fraction)` is
    told how much is done.
    """
    axes = axis_tensors(shape, device)
    n_voxels, chunk = math.prod(shape), EVALUATION_CHUNK[device.type]
    empty = values.denormalise(np.empty((0, len(values.low)), np.float32), as_float)
    result = np.empty((n_voxels, len(values.low)), dtype=empty.dtype)
    for start in range(0, n_voxels, chunk):
        flat = torch.arange(start, min(start + chunk, n_voxels), device=device)
        normalised = net(flat_coordinates(axes, flat)).cpu().numpy()
        result[start : start + len(flat)] = values.denormalise(normalised, as_float)
        on_progress((start + len(flat)) / n_voxels)
    return result.reshape(*shape, -1)


# --- metrics ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Metrics:
    """psnr in dB over the full range of the original, rmse and max_error in its units."""

    psnr: float
    rmse: float
    max_error: float


def compare(original: np.ndarray, decoded: np.ndarray) -> Metrics:
    """How far `decoded` is from `original`, computed in float64 (differences of 64-bit integers exactly).

    psnr = 20 log10((max - min) / rmse), infinite when nothing differs.
    """
    wide = _wide(original.dtype)
    extent = float(original.max().astype(wide) - original.min().astype(wide))
    scale = extent or 1.0  # squares of the scaled differences neither overflow nor vanish
    squares, largest = 0.0, 0.0
    flat_original, flat_decoded = original.reshape(-1), decoded.reshape(-1)
    for start in range(0, original.size, 1 << 20):
        part = slice(start, start + (1 << 20))
        difference = (flat_decoded[part].astype(wide) - flat_original[part].astype(wide)).astype(np.float64) / scale
        squares += float(np.dot(difference, difference))
        largest = max(largest, float(np.abs(difference).max()))
    error = math.sqrt(squares / original.size)
    if error == 0:
        return Metrics(math.inf, 0.0, 0.0)
    return Metrics(-20 * math.log10(error) if extent else -math.inf, error * scale, largest * scale)


def constant_psnr(original: np.ndarray) -> float:
    """PSNR in dB of the best constant in place of values of shape (..., components)."""
    wide = _wide(original.dtype)
    offset = original.reshape(-1, original.shape[-1]).astype(wide) - original.min().astype(wide)
    return -10 * math.log10((offset / offset.max()).var(axis=0).mean())


def file_ratios(n_values: int, dtype: np.dtype, n_bytes: int) -> dict[str, str]:
    """file_ratio: 4 bytes x values / file bytes; source_ratio: bytes of the source / file bytes, when they differ."""
    ratios = {"file_ratio": f"{4 * n_values / n_bytes:.2f}"}
    if dtype.itemsize != 4:
        ratios["source_ratio"] = f"{dtype.itemsize * n_values / n_bytes:.2f}"
    return ratios
