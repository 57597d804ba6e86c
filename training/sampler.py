"""The volume as training samples: normalised, drawn from in a shuffled order, evenly or by a density."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from utils import axis_coordinates, voxel_size

DENSITY_UNITS = 1 << 20  # integer units of a density of 1
JUDGING_VOXELS = 1 << 12  # voxels that a fit, or a symmetry, is judged by
BY_ERROR = 0.75  # share of the draws that go by the error; with half, the worst voxels are drawn too seldom
SLAB = 1 << 14  # voxels that a network is evaluated at in one go
ASYMMETRY = 1e-3  # mean squared difference of mirror images, relative to the variance, that still counts as symmetric


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


def draw_by_density(density: torch.Tensor, n_drawn: int = JUDGING_VOXELS) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws `n_drawn` voxels, or points, by a density, 1 in the mean. Returns their indices and weights.

    The weighted mean of any figure over the draws is about its mean over all voxels. If there are no more than
    `n_drawn`, all are returned.
    """
    n = len(density)
    if n <= n_drawn:
        return torch.arange(n, device=density.device), torch.ones_like(density)
    ends = (density * DENSITY_UNITS).long().cumsum(0)
    at = torch.rand(n_drawn, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(density.device)
    at = (at + torch.arange(n_drawn, device=density.device)) * (ends[-1] / n_drawn)  # one in each of equal parts
    chosen = torch.searchsorted(ends, at.long(), right=True)
    return chosen, 1 / density[chosen]


def density_of(errors: torch.Tensor, n_voxels: int, by_error: float = BY_ERROR) -> torch.Tensor:
    """How often to draw each voxel, 1 in the mean: importance sampling (Katharopoulos and Fleuret, 2018).

    The share `by_error` of the draws goes by the root of the squared errors, the rest is even. Where few voxels hold
    most of the error, an even draw rarely meets them, and its gradient is mostly noise. Weighted by 1 / density, a loss
    remains the mean over all voxels; no weight exceeds 1 / (1 - by_error).

    errors: (voxels,), squared, zero for voxels that are not among the `n_voxels` that count.
    """
    size = errors.sqrt()
    mean = size.sum() / n_voxels + 1e-30
    return by_error * size / mean + (1 - by_error)


class VoxelSampler:
    """Draws training samples from a normalised volume in memory. A voxel is known by its flat (C-order) index.

    shape: of the grid, voxels. values: float32 tensor (voxels, components) in [-1, 1], NaN where missing; on the
    device, or in the host's memory if it takes more than half of what the device has free. n_voxels: of those that are
    not missing; only these are drawn.
    """

    def __init__(self, normalised: np.ndarray, device: torch.device):
        self.shape = normalised.shape[:-1]
        self.device = device
        values = torch.from_numpy(normalised.reshape(math.prod(self.shape), -1))
        bytes_needed = values.nbytes + 48 * len(values)  # what an order of the voxels is made from, by density
        fits = device.type != "cuda" or bytes_needed < torch.cuda.mem_get_info(device)[0] // 2
        self.values = values.to(device if fits else "cpu")
        self.axes = axis_tensors(self.shape, self.values.device)
        is_missing = self.values[:, 0].isnan()
        self.present = (~is_missing).nonzero()[:, 0] if is_missing.any() else None  # None: every voxel
        self.n_voxels = len(self.values if self.present is None else self.present)
        present = self.values if self.present is None else self.values[self.present]
        self.mean = present.mean(dim=0)
        self.variance = float(present.var(dim=0, correction=0).mean())

    def deviations(self) -> torch.Tensor:
        """The squared error (voxels,) of a constant, of missing voxels zero."""
        return (self.values - self.mean).square().mean(1).nan_to_num_()

    @torch.no_grad()
    def squared_errors(self, net: torch.nn.Module) -> torch.Tensor:
        """The squared error (voxels,) of a network, clipped as when it is decoded; of missing voxels zero."""
        errors, start = [], 0
        for values in self.values.split(SLAB):
            flat = torch.arange(start, start + len(values), device=values.device)
            found = net(flat_coordinates(self.axes, flat).to(self.device)).clamp_(-1, 1)
            errors.append((found.to(values.device) - values).square().mean(1).nan_to_num_())
            start += len(values)
        return torch.cat(errors)

    def density(self, errors: torch.Tensor) -> torch.Tensor:
        """`density_of` every voxel; missing ones are never drawn."""
        return density_of(errors, self.n_voxels)

    def drawn(self, density: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxels drawn by a density of all voxels, missing ones left out: flat indices and weights. See `drawn_by`."""
        if self.present is None:
            return draw_by_density(density)
        chosen, weights = draw_by_density(density[self.present])
        return self.present[chosen], weights

    def judging_voxels(self, density: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The voxels that a fit is judged by: coordinates and values, as of `samples`, and weights.

        They are drawn by the density that batches are drawn by; without one, by their distance from the mean value.
        """
        flat, weights = self.drawn(self.density(self.deviations()) if density is None else density)
        x, values = flat_coordinates(self.axes, flat), self.values[flat]
        return x.to(self.device), values.to(self.device), weights.to(self.device)

    def shuffled(self, seed: int, index: int, density: torch.Tensor | None = None) -> torch.Tensor:
        """The order in which pass number `index` sees the voxels that are not missing, each once.

        density: (voxels,), 1 in the mean. Each voxel is then seen as often as it says, rounded up or down (systematic
        sampling).
        """
        generator = torch.Generator(self.values.device)
        generator.manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1))
        order = torch.randperm(self.n_voxels, generator=generator, device=self.values.device)
        if density is not None:
            density = density if self.present is None else density[self.present]
            ends = (density * DENSITY_UNITS).long().cumsum(0)  # integers: the same sums on every run, on a GPU too
            start = torch.rand(1, generator=generator, device=order.device, dtype=torch.float64)
            # Of n_voxels samples at equal distances, how many fall on the voxels up to each.
            reached = (ends * (self.n_voxels / ends[-1].double()) - start).ceil_().long().clamp_(0, self.n_voxels)
            reached[-1] = self.n_voxels
            counts = reached.diff(prepend=reached.new_zeros(1))
            order = torch.repeat_interleave(counts, output_size=self.n_voxels)[order]
        return order if self.present is None else self.present[order]

    def batches(
        self, seed: int, index: int, n_batches: int, first: int, density: torch.Tensor | None = None
    ) -> Sequence[torch.Tensor]:
        """Pass number `index`, `shuffled`, in so many equal batches, from batch `first` on: indices of voxels."""
        return self.shuffled(seed, index, density).tensor_split(n_batches)[first:]

    def samples(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (n, d_in) and values (n, components), on the training device, of the voxels `flat`."""
        return flat_coordinates(self.axes, flat).to(self.device), self.values[flat].to(self.device)

    def mirrors(self) -> list[float | None]:
        """For each axis the normalised coordinate of a plane in which the field is its own mirror image, or None.

        Of planes near the middle, judged by voxels drawn by their distance from the mean.
        """
        flat, weights = self.drawn(self.density(self.deviations()))
        return [self._mirror(axis, flat, weights) for axis in range(len(self.shape))]

    def _mirror(self, axis: int, flat: torch.Tensor, weights: torch.Tensor) -> float | None:
        n, stride = self.shape[axis], math.prod(self.shape[axis + 1 :])
        index = flat // stride % n
        least, found = 4 * ASYMMETRY * self.variance, None
        for both in range(n - 1 - n // 8, n + n // 8) if n > 3 else ():  # the sum of an index and its mirror's
            other = both - index
            is_inside = (other >= 0) & (other < n)
            pairs = flat[is_inside], (flat + (other - index) * stride)[is_inside]
            squares = (self.values[pairs[0]] - self.values[pairs[1]]).square().nan_to_num_().mean(1)
            difference = float((squares * weights[is_inside]).mean())
            if difference < least:
                least, found = difference, both / (n - 1) - 1
        return found

    def slopes(self, flat: torch.Tensor) -> torch.Tensor:
        """Finite differences (n, components, d_in), on the training device, of the voxels `flat`."""
        return self.gradients[flat].to(self.device)

    @functools.cached_property
    def gradients(self) -> torch.Tensor:
        """`finite_differences` of every voxel: (voxels, components, d_in)."""
        slopes = finite_differences(self.values.cpu().numpy().reshape(*self.shape, -1), self.shape)
        return torch.from_numpy(slopes.reshape(len(self.values), *slopes.shape[-2:])).to(self.values.device)

    @functools.cached_property
    def crc32(self) -> int:
        """Checksum of the values."""
        return zlib.crc32(self.values.cpu().numpy())


def finite_differences(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Differences of normalised values (grid..., components) by normalised coordinates: (grid..., components, d_in).

    shape: of the whole of which `grid` is a part. Central, one-sided at the faces of `grid` and beside missing voxels,
    NaN between two of them; zero along an axis of one voxel.
    """
    return np.stack([_slope(grid, axis, voxel_size(shape, axis)) for axis in range(len(shape))], axis=-1)


def _slope(grid: np.ndarray, axis: int, step: float) -> np.ndarray:
    if grid.shape[axis] == 1:
        return np.zeros_like(grid)
    slope = np.gradient(grid, step, axis=axis)
    if not np.isnan(slope).any():
        return slope
    nothing = np.float32(np.nan)
    backward = np.diff(grid, axis=axis, prepend=nothing) / np.float32(step)
    forward = np.diff(grid, axis=axis, append=nothing) / np.float32(step)
    return np.where(np.isnan(slope), np.where(np.isnan(forward), backward, forward), slope)
