"""The volume as normalised training samples, drawn in shuffled order, either evenly or by a density."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from field.evaluation import along_axes
from training.devices import memory_of
from training.mirrors import near_the_middle
from utils import axis_coordinates, normalised_coordinates, voxel_size

DENSITY_UNITS = 1 << 20  # integer units that represent a density of 1
JUDGING_VOXELS = 1 << 12  # voxels for the judgement of a fit or of a symmetry
BY_ERROR = 0.75  # share of the draws that follow the error; at 0.5, the worst voxels are drawn too seldom
SLAB = {"cpu": 1 << 14, "cuda": 1 << 18}  # voxels in one evaluation of a network; fewer leave a GPU idle
ASYMMETRY = 1e-3  # a symmetric volume has less: mean square of half the difference of mirror images / variance


def axis_tensors(shape: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    """`axis_coordinates` as float32 tensors on `device`."""
    return [torch.from_numpy(axis).float().to(device) for axis in axis_coordinates(shape)]


def flat_coordinates(axes: list[torch.Tensor], flat: torch.Tensor) -> torch.Tensor:
    """Normalised coordinates, float32 (n, d_in), of the voxels with the flat (C-order) indices `flat`."""
    return torch.stack(along_axes(axes, flat), dim=-1)


def all_coordinates(axes: list[torch.Tensor]) -> torch.Tensor:
    """The `flat_coordinates` of all voxels of a grid."""
    return flat_coordinates(axes, torch.arange(math.prod(map(len, axes)), device=axes[0].device))


def draw_by_density(density: torch.Tensor, n_drawn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws `n_drawn` voxels or points by a density whose mean is 1. Returns their indices and weights.

    The weighted mean of a quantity over the draws estimates its mean over all voxels. If there are at most `n_drawn`
    voxels, all are returned.
    """
    n = len(density)
    if n <= n_drawn:
        return torch.arange(n, device=density.device), torch.ones_like(density)
    ends = (density * DENSITY_UNITS).long().cumsum(0)
    at = torch.rand(n_drawn, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(density.device)
    part = ends[-1].double() / n_drawn  # one draw in each of equal parts; a float32 could end beyond the last voxel
    at = (at + torch.arange(n_drawn, device=density.device)) * part
    chosen = torch.searchsorted(ends, at.long(), right=True)
    return chosen, 1 / density[chosen]


def density_of(errors: torch.Tensor, n_present: int, by_error: float = BY_ERROR) -> torch.Tensor:
    """The density (voxels,) for importance sampling, 1 in the mean (Katharopoulos and Fleuret, 2018).

    The share `by_error` of the draws follows the root of the squared errors; the rest is even. If few voxels hold most
    of the error, even draws rarely hit them, and the gradient is mostly noise. With weights of 1 / density, a loss
    remains the mean over all voxels. No weight exceeds 1 / (1 - by_error).

    errors: (voxels,) squared errors, zero for missing voxels. n_present: the number of voxels that are not missing.
    """
    size = errors.sqrt()
    mean = size.sum() / n_present + 1e-30
    return by_error * size / mean + (1 - by_error)


class VoxelSampler:
    """Draws training samples from a normalised volume in memory. A flat (C-order) index identifies a voxel.

    shape: of the grid, voxels. values: float32 tensor (voxels, components) in [-1, 1], NaN where missing. The tensor is
    on the device, or in host memory if training would take more than half of the device's memory: what is free of it
    would change from run to run, and with it the order of the samples. n_present: the number of voxels that are not
    missing; only these are drawn. is_resident: whether `samples` reads the same memory of the device at every step.
    """

    def __init__(self, normalised: np.ndarray, device: torch.device):
        self.shape = normalised.shape[:-1]
        self.device = device
        values = torch.from_numpy(normalised.reshape(math.prod(self.shape), -1))
        # 48 bytes a voxel: `shuffled` with a density. 4 for each coordinate: `coordinates`.
        bytes_needed = values.nbytes + (48 + 4 * len(self.shape)) * len(values)
        fits = bytes_needed < memory_of(device) / 2
        self.values, self.is_resident = values.to(device if fits else "cpu"), fits
        self.axes = axis_tensors(self.shape, self.values.device)
        is_missing = self.values[:, 0].isnan()
        self.present = (~is_missing).nonzero()[:, 0] if is_missing.any() else None  # None: every voxel
        self.n_present = len(self.values if self.present is None else self.present)
        present = self.values if self.present is None else self.values[self.present]
        self.mean = present.mean(dim=0)
        self.variance = float(present.var(dim=0, correction=0).mean())

    def deviations(self) -> torch.Tensor:
        """The squared error (voxels,) of a constant, the mean; zero for missing voxels."""
        return (self.values - self.mean).square().mean(1).nan_to_num_()

    @torch.no_grad()
    def squared_errors(self, net: torch.nn.Module) -> torch.Tensor:
        """The squared error (voxels,) of a network, with its output clipped as in decoding; zero for missing voxels."""
        errors, start = [], 0
        for values in self.values.split(SLAB[self.device.type]):
            flat = torch.arange(start, start + len(values), device=values.device)
            found = net(flat_coordinates(self.axes, flat).to(self.device)).clamp_(-1, 1)
            errors.append((found.to(values.device) - values).square().mean(1).nan_to_num_())
            start += len(values)
        return torch.cat(errors)

    def mean_squared_error(self, net: torch.nn.Module) -> float:
        """The mean of `squared_errors`."""
        return float(self.squared_errors(net).sum(dtype=torch.float64)) / self.n_present

    def density(self, errors: torch.Tensor) -> torch.Tensor:
        """The `density_of` all voxels. Missing voxels have a density, too, but are never drawn."""
        return density_of(errors, self.n_present)

    def drawn(self, density: torch.Tensor, n_drawn: int = JUDGING_VOXELS) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat indices and weights of voxels that are drawn by `draw_by_density`, without missing voxels."""
        if self.present is None:
            return draw_by_density(density, n_drawn)
        chosen, weights = draw_by_density(density[self.present], n_drawn)
        return self.present[chosen], weights

    def judging_voxels(
        self, density: torch.Tensor | None = None, n_drawn: int = JUDGING_VOXELS
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The voxels that judge a fit: coordinates and values, as from `samples`, and weights (n,).

        density: that of the batches; None draws voxels by their distance from the mean value.
        """
        flat, weights = self.drawn(self.density(self.deviations()) if density is None else density, n_drawn)
        x, values = flat_coordinates(self.axes, flat), self.values[flat]
        return x.to(self.device), values.to(self.device), weights.to(self.device)

    def shuffled(self, seed: int, index: int, density: torch.Tensor | None = None) -> torch.Tensor:
        """The order in which pass number `index` sees the voxels that are not missing, each once.

        density: (voxels,), 1 in the mean. If given, each voxel occurs as often as its density says, rounded up or down
        (systematic sampling).
        """
        generator = torch.Generator(self.values.device)
        generator.manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1))
        order = torch.randperm(self.n_present, generator=generator, device=self.values.device)
        if density is not None:
            # Each voxel takes a stretch of a line, as long as its density. Samples lie on the line at equal distances.
            # A voxel is drawn once for each sample on its stretch.
            density, n = density if self.present is None else density[self.present], self.n_present
            ends = (density * DENSITY_UNITS).long().cumsum(0)  # integers, so that sums are reproducible on a GPU, too
            first = torch.rand(1, generator=generator, device=order.device, dtype=torch.float64)
            n_before = (ends * (n / ends[-1].double()) - first).ceil_().long().clamp_(0, n)  # samples before each end
            n_before[-1] = n
            counts = n_before.diff(prepend=n_before.new_zeros(1))
            order = torch.repeat_interleave(counts, output_size=n)[order]
        return order if self.present is None else self.present[order]

    def batches(
        self, seed: int, index: int, n_batches: int, first: int, density: torch.Tensor | None = None
    ) -> Sequence[torch.Tensor]:
        """Pass number `index` of `shuffled` in `n_batches` equal batches of flat indices, from batch `first` on."""
        return self.shuffled(seed, index, density).tensor_split(n_batches)[first:]

    def samples(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (n, d_in) and values (n, components), on the training device, of the voxels `flat`."""
        if self.is_resident and self.device.type != "cpu":
            return self.coordinates[flat], self.values[flat]
        return flat_coordinates(self.axes, flat).to(self.device), self.values[flat].to(self.device)

    @functools.cached_property
    def coordinates(self) -> torch.Tensor:
        """The coordinates (voxels, d_in) of all voxels. A GPU takes less time to read than to compute them."""
        return all_coordinates(self.axes)

    @functools.cached_property
    def mirror_planes(self) -> list[float | None]:
        """For each axis, the normalised coordinate of a plane of mirror symmetry of the volume, or None.

        Only planes near the middle are tested, on voxels drawn by their distance from the mean.
        """
        flat, weights = self.drawn(self.density(self.deviations()))
        return [self._mirror_plane(axis, flat, weights) for axis in range(len(self.shape))]

    def _mirror_plane(self, axis: int, flat: torch.Tensor, weights: torch.Tensor) -> float | None:
        n, stride = self.shape[axis], math.prod(self.shape[axis + 1 :])
        index = flat // stride % n
        least, found = 4 * ASYMMETRY * self.variance, None
        for both in near_the_middle(n) if n > 3 else ():  # both = an index + its mirror image's
            other = both - index
            is_inside = (other >= 0) & (other < n)
            pairs = flat[is_inside], (flat + (other - index) * stride)[is_inside]
            squares = (self.values[pairs[0]] - self.values[pairs[1]]).square().nan_to_num_().mean(1)
            difference = float((squares * weights[is_inside]).mean())
            if difference < least:
                least, found = difference, float(normalised_coordinates(both / 2, self.shape, axis))
        return found

    def slopes(self, flat: torch.Tensor) -> torch.Tensor:
        """Finite differences (n, components, d_in), on the training device, of the voxels `flat`."""
        return self.all_slopes[flat].to(self.device)

    @functools.cached_property
    def all_slopes(self) -> torch.Tensor:
        """`finite_differences` of every voxel: (voxels, components, d_in)."""
        slopes = finite_differences(self.values.cpu().numpy().reshape(*self.shape, -1), self.shape)
        return torch.from_numpy(slopes.reshape(len(self.values), *slopes.shape[-2:])).to(self.values.device)

    @functools.cached_property
    def crc32(self) -> int:
        """Checksum of the values."""
        return zlib.crc32(self.values.cpu().numpy())


def finite_differences(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Slopes (grid..., components, d_in) of normalised values (grid..., components) along normalised coordinates.

    shape: of the whole volume; `grid` is a part of it. Differences are central, but one-sided at the faces of `grid`
    and beside a missing voxel. The slope is NaN between two missing voxels, and zero along an axis of one voxel.
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
