"""Training samples of a volume too large for memory: whole stretches of its file, shuffled in a buffer.

Every pass reads every stretch once, in a random order, fills the buffer up with them again and again, and draws from
there in a random order. With some stretches from all over the volume for each sample of a batch, the batch is as mixed
as one of single voxels, and the disk reads kilobytes in one go.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from training.sampler import (
    JUDGING_VOXELS,
    VoxelSampler,
    axis_tensors,
    density_of,
    draw_by_density,
    finite_differences,
    flat_coordinates,
)
from utils import Box, ValueRange, boxes, read_in_boxes

MAX_VOXELS_IN_MEMORY = 1 << 27  # voxels: training takes 12 bytes for each, beside the volume; the same on every machine
BUFFER = 1 << 24  # voxels
KEPT = BUFFER // 4 * 3  # voxels left in it when it is filled up again
STRETCH = 1 << 10  # voxels: longer ones are more alike, and cost quality
JUDGING_STRETCHES = 256  # from which the voxels come that a fit is judged by


def make_sampler(
    original: np.ndarray, values: ValueRange, device: torch.device, with_slopes: bool = False
) -> VoxelSampler | StreamingSampler:
    """The field of a volume (grid..., components), to train on: in memory, or streamed from its file when it is large.

    with_slopes: whether slopes will be asked for.
    """
    if math.prod(original.shape[:-1]) > MAX_VOXELS_IN_MEMORY:
        return StreamingSampler(original, values, device, with_slopes)
    normalised = np.empty(original.shape, np.float32)
    for box, part in read_in_boxes(original):
        normalised[box] = values.normalise(part)
    return VoxelSampler(normalised, device)


class StreamingSampler:
    """As VoxelSampler, but `original` (grid..., components), a memory map, is read and normalised when it is drawn.

    A voxel is known by its place in the buffer.
    """

    def __init__(self, original: np.ndarray, values: ValueRange, device: torch.device, with_slopes: bool = False):
        self.original, self.range, self.device, self.with_slopes = original, values, device, with_slopes
        self.shape = original.shape[:-1]
        self.axes = axis_tensors(self.shape, device)
        self.stretches = boxes(original, STRETCH * original.shape[-1])
        self.n_voxels, self.mean, self.variance = self._statistics()
        self.n_refills = math.ceil(self.n_voxels / (BUFFER - KEPT))
        self.buffer: list[torch.Tensor] = []  # by place: flat index, values, and slopes if any

    def _statistics(self) -> tuple[int, torch.Tensor, float]:
        """How many voxels are not missing; of the normalised values the mean of each component, and the variance."""
        n, sums, squares = 0, 0.0, 0.0
        for _, part in read_in_boxes(self.original):
            rows = self.range.normalise(part).reshape(-1, part.shape[-1]).astype(np.float64)
            rows = rows[~np.isnan(rows[:, 0])]
            n += len(rows)
            sums, squares = sums + rows.sum(axis=0), squares + np.einsum("ij,ij->j", rows, rows)
        mean = sums / n
        return n, torch.from_numpy(mean).float().to(self.device), float((squares / n - mean**2).mean())

    @functools.cached_property
    def crc32(self) -> int:
        """Checksum of the values."""
        return functools.reduce(lambda crc, part: zlib.crc32(part[1].tobytes(), crc), read_in_boxes(self.original), 0)

    def judging_voxels(self, density: None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `VoxelSampler.probe`, from stretches drawn at random."""
        flat = torch.empty(0, dtype=torch.int64, device=self.device)
        values = torch.empty(0, self.original.shape[-1], device=self.device)
        order = np.random.default_rng(0).permutation(len(self.stretches))
        for start in range(0, len(order), JUDGING_STRETCHES):
            more = self._read_all(order[start : start + JUDGING_STRETCHES])
            flat, values = torch.cat([flat, more[0]]), torch.cat([values, more[1]])
            if len(flat) >= JUDGING_VOXELS:
                break
        chosen, weights = draw_by_density(density_of((values - self.mean).square().mean(1), len(values)))
        return flat_coordinates(self.axes, flat[chosen]), values[chosen], weights

    def mirrors(self) -> list[None]:
        """No plane of symmetry is looked for: voxels here and there take long to read."""
        return [None] * len(self.shape)

    def batches(
        self, seed: int, index: int, n_batches: int, first: int, density: None = None
    ) -> Iterator[torch.Tensor]:
        """Pass number `index` in equal batches, from batch `first` on: all voxels not missing, once each.

        density: there is none, a voxel's errors are not known.
        """
        seeds = np.random.SeedSequence([seed, index])
        generator = torch.Generator(self.device).manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        order = np.random.default_rng(seeds).permutation(len(self.stretches))
        ends = [self.n_voxels * k // n_batches for k in range(n_batches + 1)]
        batch, rest = 0, None
        for refill, chosen in enumerate(np.array_split(order, self.n_refills), 1):
            self._fill(chosen, rest)
            places = torch.randperm(len(self.buffer[0]), generator=generator, device=self.device)
            kept = KEPT if refill < self.n_refills else 0
            while batch < n_batches and ends[batch + 1] - ends[batch] + kept <= len(places):
                drawn, places = places.tensor_split([ends[batch + 1] - ends[batch]])
                batch += 1
                if batch > first:
                    yield drawn
            rest = places

    def samples(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (n, d_in) and values (n, components), on the training device, of the voxels at `places`."""
        return flat_coordinates(self.axes, self.buffer[0][places]), self.buffer[1][places]

    def slopes(self, places: torch.Tensor) -> torch.Tensor:
        """Finite differences (n, components, d_in); see samples.finite_differences."""
        return self.buffer[2][places]

    def _fill(self, chosen: np.ndarray, rest: torch.Tensor | None) -> None:
        """Fill the buffer with the chosen stretches and what is at the places `rest`."""
        kept = [] if rest is None else [[content[rest] for content in self.buffer]]
        self.buffer = []
        kept.append(self._read_all(chosen))
        self.buffer = [torch.cat(column) for column in zip(*kept, strict=True)]

    def _read_all(self, chosen: np.ndarray) -> list[torch.Tensor]:
        """What `_read` gives of the chosen stretches, in the order of the file."""
        columns = zip(*map(self._read, (self.stretches[i] for i in np.sort(chosen))), strict=True)
        return [torch.from_numpy(np.concatenate(column)).to(self.device) for column in columns]

    def _read(self, box: Box) -> list[np.ndarray]:
        """Flat indices, normalised values, and slopes if they are wanted, of the voxels in a box but missing ones."""
        reach = int(self.with_slopes)
        wider = tuple(slice(max(cut.start - reach, 0), cut.stop + reach) for cut in box)
        inside = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wider, strict=True))
        for _, part in read_in_boxes(self.original, [wider]):
            grid = self.range.normalise(part)
        flat = np.zeros((), np.int64)
        for n, cut in zip(self.shape, box, strict=True):
            flat = np.add.outer(flat * n, np.arange(cut.start, cut.stop))
        columns = [flat.ravel(), grid[inside].reshape(flat.size, -1)]
        if self.with_slopes:
            slopes = finite_differences(grid, self.shape)[inside]
            columns.append(slopes.reshape(flat.size, *slopes.shape[-2:]))
        if self.range.fill is None:
            return columns
        is_present = ~np.isnan(columns[1][:, 0])
        return [column[is_present] for column in columns]
