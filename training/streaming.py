"""Training samples of a volume too large for memory: contiguous stretches of its file, shuffled in a buffer.

Every pass reads every stretch once, in random order. The stretches refill the buffer again and again, and voxels are
drawn from it in random order. The buffer holds several stretches, from all over the volume, for each sample of a batch.
So a batch is as mixed as one of single random voxels, but the disk reads kilobytes at a time.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch

from cli.files import check_space
from training.sampler import (
    JUDGING_VOXELS,
    SLAB,
    VoxelSampler,
    axis_tensors,
    density_of,
    draw_by_density,
    finite_differences,
    flat_coordinates,
)
from utils import Box, UserError, ValueRange, boxes, drop_pages, read_in_boxes

MAX_VOXELS_IN_MEMORY = 1 << 27  # voxels of one component; the same everywhere
VOXEL_BYTES, VALUE_BYTES = 56, 4  # most memory that training takes for a voxel and for each of its components
BUFFER = 1 << 24  # voxels
KEPT = BUFFER // 4 * 3  # voxels left in the buffer when it is refilled
STRETCH = 1 << 10  # voxels in a stretch; in a longer one the voxels are more alike, which costs quality
Item, Found = TypeVar("Item"), TypeVar("Found")
JUDGING_STRETCHES = 256  # stretches that are read at a time for the judgement of a fit


def make_sampler(
    original: np.ndarray, value_range: ValueRange, device: torch.device, with_slopes: bool = False
) -> VoxelSampler | StreamingSampler:
    """The sampler of a volume (grid..., components): in memory, or streamed from its file if the volume is large.

    with_slopes: whether training needs `slopes`.
    """
    n_bytes = math.prod(original.shape[:-1]) * (VOXEL_BYTES + VALUE_BYTES * original.shape[-1])
    if n_bytes > MAX_VOXELS_IN_MEMORY * (VOXEL_BYTES + VALUE_BYTES):
        return StreamingSampler(unpacked(original), value_range, device, with_slopes)
    return VoxelSampler(normalised(original, value_range), device)


def normalised(original: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """The normalised values of a volume (grid..., components) in memory: float32, NaN where missing."""
    found = np.empty(original.shape, np.float32)
    for box, part in read_in_boxes(original):
        found[box] = value_range.normalise(part)
    return found


def unpacked(original: np.ndarray) -> np.ndarray:
    """The values (grid..., components) themselves, or where they are stored in chunks, a memory map of a copy.

    Training reads parts of a chunk at many times. In the copy, no chunk has to be decoded again for each part. The
    system removes the file of the copy at the end. Raises UserError when the disk has too little space.
    """
    if math.prod(getattr(original, "chunks", ())) == 1:
        return original
    n_bytes, folder = original.size * original.dtype.itemsize, tempfile.gettempdir()
    what = "an unpacked copy of the volume (TMPDIR names another folder)"
    check_space(os.path.join(folder, "."), n_bytes, what)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a write to a map of a full disk would end the process
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            copy = np.memmap(file, original.dtype, "w+", shape=original.shape)
        except OSError as error:  # as beyond a quota
            raise UserError(f"{folder}: no room for {what}: {error.strerror}") from None
        for box, part in read_in_boxes(original):
            copy[box] = part
            drop_pages(copy)
    return copy


def read_ahead(read: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Yield `read(item)` for each item. A thread reads the next item while the caller works with the latest."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ahead = None
        for item in items:
            now, ahead = ahead, pool.submit(read, item)
            if now is not None:
                yield now.result()
        if ahead is not None:
            yield ahead.result()


class StreamingSampler:
    """A sampler like VoxelSampler of a memory map, `original` (grid..., components): it is read in parts.

    A place in the buffer identifies a voxel, where VoxelSampler has its flat index.
    """

    is_resident = False  # every refill takes new memory

    def __init__(self, original: np.ndarray, value_range: ValueRange, device: torch.device, with_slopes: bool):
        self.original, self.value_range, self.device, self.with_slopes = original, value_range, device, with_slopes
        self.shape = original.shape[:-1]
        self.axes = axis_tensors(self.shape, device)
        self.stretches = boxes(original, STRETCH * original.shape[-1])
        self.n_present, self.mean, self.variance = self._statistics()
        self.n_refills = math.ceil(self.n_present / (BUFFER - KEPT))
        self.reads_ahead = device.type == "cuda"  # a CPU's cores train meanwhile
        self.buffer: list[torch.Tensor] = []  # by place: flat indices, values, and slopes if wanted

    def _statistics(self) -> tuple[int, torch.Tensor, float]:
        """(number of voxels not missing, mean of each component, variance) of the normalised values."""
        n, sums, squares = 0, 0.0, 0.0
        for _, part in read_in_boxes(self.original):
            rows = self.value_range.normalise(part).reshape(-1, part.shape[-1]).astype(np.float64)
            rows = rows[~np.isnan(rows[:, 0])]
            n += len(rows)
            sums, squares = sums + rows.sum(axis=0), squares + np.einsum("ij,ij->j", rows, rows)
        mean = sums / n
        return n, torch.from_numpy(mean).float().to(self.device), float((squares / n - mean**2).mean())

    @functools.cached_property
    def crc32(self) -> int:
        """Checksum of the values."""
        return functools.reduce(lambda crc, part: zlib.crc32(part[1].tobytes(), crc), read_in_boxes(self.original), 0)

    def judging_voxels(
        self, density: None = None, n_drawn: int = JUDGING_VOXELS
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `VoxelSampler.judging_voxels` without a density, from stretches drawn at random."""
        flat = torch.empty(0, dtype=torch.int64, device=self.device)
        values = torch.empty(0, self.original.shape[-1], device=self.device)
        order = np.random.default_rng(0).permutation(len(self.stretches))
        for start in range(0, len(order), JUDGING_STRETCHES):
            more = self._on_device(self._columns(order[start : start + JUDGING_STRETCHES]))
            flat, values = torch.cat([flat, more[0]]), torch.cat([values, more[1]])
            if len(flat) >= n_drawn:
                break
        density = density_of((values - self.mean).square().mean(1), len(values))
        chosen, weights = draw_by_density(density, n_drawn)
        return flat_coordinates(self.axes, flat[chosen]), values[chosen], weights

    @torch.no_grad()
    def mean_squared_error(self, net: torch.nn.Module) -> float:
        """As `VoxelSampler.mean_squared_error`."""
        total, n_parts = 0.0, math.ceil(len(self.stretches) / JUDGING_STRETCHES)
        for chosen in np.array_split(np.arange(len(self.stretches)), n_parts):
            flat, values = self._on_device(self._columns(chosen))[:2]
            slab = SLAB[self.device.type]
            for places, expected in zip(flat.split(slab), values.split(slab), strict=True):
                found = net(flat_coordinates(self.axes, places)).clamp_(-1, 1)
                total += float((found - expected).square().mean(1).sum(dtype=torch.float64))
        return total / self.n_present

    @property
    def mirror_planes(self) -> list[None]:
        """None for each axis: a search for symmetry would read scattered voxels, which takes long."""
        return [None] * len(self.shape)

    def batches(
        self, seed: int, index: int, n_batches: int, first: int, density: None = None
    ) -> Iterator[torch.Tensor]:
        """Pass number `index` in equal batches of places, from batch `first` on: all voxels not missing, each once.

        density: always None, because no errors of single voxels are kept.
        """
        seeds = np.random.SeedSequence([seed, index])
        generator = torch.Generator(self.device).manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        order = np.random.default_rng(seeds).permutation(len(self.stretches))
        ends = [self.n_present * k // n_batches for k in range(n_batches + 1)]
        batch, rest = 0, None
        read = read_ahead if self.reads_ahead else map
        for refill, columns in enumerate(read(self._columns, np.array_split(order, self.n_refills)), 1):
            self._fill(columns, rest)
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
        """Finite differences (n, components, d_in) of the voxels at `places`; see `finite_differences`."""
        return self.buffer[2][places]

    def _fill(self, columns: list[np.ndarray], rest: torch.Tensor | None) -> None:
        """Fill the buffer with the voxels at the places `rest` and with the columns of others, which it empties."""
        kept = [] if rest is None else [[content[rest] for content in self.buffer]]
        self.buffer = []
        kept.append(self._on_device(columns))
        columns.clear()  # which lets their memory go now
        self.buffer = [torch.cat(column) for column in zip(*kept, strict=True)]

    def _columns(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The columns of `_read` for all chosen stretches, in the order of the file."""
        columns = zip(*map(self._read, (self.stretches[i] for i in np.sort(chosen))), strict=True)
        return [np.concatenate(column) for column in columns]

    def _on_device(self, columns: list[np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(column).to(self.device) for column in columns]

    def _read(self, box: Box) -> list[np.ndarray]:
        """Flat indices, normalised values, and slopes if wanted, of the voxels in a box that are not missing."""
        reach = int(self.with_slopes)
        wider = tuple(slice(max(cut.start - reach, 0), cut.stop + reach) for cut in box)
        inside = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wider, strict=True))
        for _, part in read_in_boxes(self.original, [wider]):
            grid = self.value_range.normalise(part)
        flat = np.zeros((), np.int64)
        for n, cut in zip(self.shape, box, strict=True):
            flat = np.add.outer(flat * n, np.arange(cut.start, cut.stop))
        columns = [flat.ravel(), grid[inside].reshape(flat.size, -1)]
        if self.with_slopes:
            slopes = finite_differences(grid, self.shape)[inside]
            columns.append(slopes.reshape(flat.size, *slopes.shape[-2:]))
        if self.value_range.fill is None:
            return columns
        is_present = ~np.isnan(columns[1][:, 0])
        return [column[is_present] for column in columns]
