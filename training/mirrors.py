"""Finds planes of mirror symmetry of a large volume, so that its bricks hold one side of them only.

One network learns both sides of a symmetric volume for the price of one. Bricks do not know of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from cli.progress import Progress
from utils import Volume, VolumeHeader, few_values, read_in_boxes

# Two sides are alike if their difference, of values of range 2, has at most this RMS and this maximum. The first
# limits the PSNR of the other side to 80 dB; the second keeps a few voxels that differ from being lost.
# Labels must be equal.
MOST_RMS, MOST_DIFFERENCE = 2e-4, 2e-2
LINES = 32  # about so many along each other axis: lines of voxels that are looked at before the whole volume is
LEAST_VOXELS = 8  # along an axis


def near_the_middle(n: int) -> range:
    """The mirrors, as `find_mirrors` gives them, at most n / 16 voxels from the middle of an axis of n voxels."""
    return range(n - 1 - n // 8, n + n // 8)


def find_mirrors(volume: Volume, header: VolumeHeader) -> tuple[int, ...]:
    """For each axis, the sum of the indices of a voxel and of its mirror image, or 0; () if no axis has a mirror.

    Only planes near the middle are looked for, and none in a time series or where voxels are missing.
    """
    if len(header.shape) not in (2, 3) or header.missing:
        return ()
    found = []
    with Progress("looking for symmetry", len(header.shape) + 1.0) as progress:
        lines = _lines(volume, header)
        progress.advance(1.0)
        are_labels = header.value_range.is_integer and few_values(*lines) is not None
        limits = (0.0, 0.0) if are_labels else (MOST_RMS, MOST_DIFFERENCE)
        for axis, along in enumerate(lines):
            mirror = _mirror_of(along, limits) if len(along) >= LEAST_VOXELS else 0
            is_found = mirror and _are_alike(_differences(volume, header, axis, mirror), limits)
            found.append(mirror if is_found else 0)
            progress.advance(1.0)
    return tuple(found) if any(found) else ()


def _lines(volume: Volume, header: VolumeHeader) -> list[np.ndarray]:
    """Normalised values of some lines along each axis: (n, lines) for an axis of n voxels."""
    shape, found = header.shape, []
    # For each axis, the steps from line to line: the lines have all voxels along it, and some along the others.
    steps = [[1 if k == axis else max(1, n // LINES) for k, n in enumerate(shape)] for axis in range(len(shape))]
    for step in steps:
        n_found = [-(-n // each) for n, each in zip(shape, step, strict=True)]
        found.append(np.empty((*n_found, header.n_components), np.float32))
    for box, values in read_in_boxes(volume.values):
        for array, step in zip(found, steps, strict=True):
            places, inside = zip(*map(_multiples, box, step), strict=True)
            array[places] = header.value_range.normalise(values[inside])
    return [np.moveaxis(array, axis, 0).reshape(shape[axis], -1) for axis, array in enumerate(found)]


def _multiples(cut: slice, step: int) -> tuple[slice, slice]:
    """The multiples of `step` in a range of indices: which of all multiples they are; where in the range they lie."""
    first, stop = -(-cut.start // step), -(-cut.stop // step)
    return slice(first, stop), slice(first * step - cut.start, None, step)


def _mirror_of(lines: np.ndarray, limits: tuple[float, float]) -> int:
    """The mirror near the middle with the least difference of both sides; 0 if they are not alike."""
    n = len(lines)
    near = sorted(near_the_middle(n), key=lambda mirror: abs(mirror - (n - 1)))

    def difference(mirror: int) -> np.ndarray:
        both = lines[max(mirror - n + 1, 0) : mirror + 1]
        return both - both[::-1]

    best = min(near, key=lambda mirror: float(np.square(difference(mirror)).mean()))
    return best if _are_alike([difference(best)], limits) else 0


def _differences(volume: Volume, header: VolumeHeader, axis: int, mirror: int) -> Iterator[np.ndarray]:
    """The normalised values of one side less those of the other, part by part."""
    n = header.shape[axis]
    for box, values in read_in_boxes(volume.values):
        start = box[axis].start
        first, stop = max(start, mirror - n + 1), min(box[axis].stop, mirror // 2 + 1)
        if first < stop:
            own = np.moveaxis(values, axis, 0)[first - start : stop - start]
            image_box = (*box[:axis], slice(mirror - stop + 1, mirror - first + 1), *box[axis + 1 :])
            images = np.moveaxis(volume.values[image_box], axis, 0)[::-1]
            yield header.value_range.normalise(own) - header.value_range.normalise(images)


def _are_alike(differences: Iterable[np.ndarray], limits: tuple[float, float]) -> bool:
    """Whether both sides are alike. limits: of the RMS and of the maximum."""
    (most_rms, most), total, count = limits, 0.0, 0
    for difference in differences:
        if not np.abs(difference).max(initial=0.0) <= most:
            return False
        total, count = total + float(np.square(difference).sum(dtype=np.float64)), count + difference.size
    return math.sqrt(total / max(count, 1)) <= most_rms
