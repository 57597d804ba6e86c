"""Label maps: volumes whose values name regions. The distance of two labels says nothing, and a network mixes them."""

from __future__ import annotations

import numpy as np

from utils import MOST_LABELS, boxes, is_missing, read_in_boxes

PIECE_VOXELS, MOST_PIECES = 1 << 14, 16  # of the sample, evenly spread over the volume
FLAT = 4  # commonest values that may be the background of a scan, a saturated part, or other flat areas
MIN_PAIRS = 100  # fewer pairs of neighbours tell nothing
MIN_EQUAL = 0.7  # part of the pairs that are equal: more than in a scan, also one that was enlarged twice
MIN_JUMP = 2  # median distance of the others in the order of all values; 1 in smooth data of few different values
WARNING = (
    f"its values look like labels, of more than {MOST_LABELS} regions: between two labels the network gives others. "
    "One mask for each label keeps them apart: NumPy's array[..., None] == numpy.unique(array), with --d_out"
)


def look_like_labels(values: np.ndarray, fill: np.generic | None) -> bool:
    """Whether values (..., components) look like more than MOST_LABELS labels.

    Labels are whole numbers. Most neighbours are equal, and the others are not next to each other in the order of all
    values. Neighbours of which one has one of the FLAT commonest values, or is missing, are left out.
    """
    if values.shape[-1] > 1:
        return False
    all_boxes, samples = boxes(values, PIECE_VOXELS), []
    for _, part in read_in_boxes(values, all_boxes[:: max(1, len(all_boxes) // MOST_PIECES)]):
        inner = boxes(part, PIECE_VOXELS)  # of a stored chunk, which may be far larger
        part = part[inner[len(inner) // 2]]
        first = max(part.ndim - 4, 0)  # of the axes of space
        axis = first + int(np.argmax(part.shape[first:]))
        rows = np.moveaxis(part, axis, 0)
        pairs = np.stack([rows[:-1].ravel(), rows[1:].ravel()])
        pairs = pairs[:, ~is_missing(pairs.T, fill)]
        if pairs.dtype.kind == "f" and (pairs != np.rint(pairs)).any():
            return False
        samples.append(pairs)
    pairs = np.concatenate(samples, axis=1)
    different, ranks, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    ranks = ranks.reshape(pairs.shape)
    jumps = np.abs(np.diff(ranks[:, ~np.isin(ranks, np.argsort(counts)[-FLAT:]).any(axis=0)], axis=0))
    borders = jumps[jumps > 0]
    if len(different) <= MOST_LABELS or jumps.size < MIN_PAIRS or not borders.size:
        return False
    return bool(borders.size < (1 - MIN_EQUAL) * jumps.size and np.median(borders) >= MIN_JUMP)
