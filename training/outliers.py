"""Outliers: a few values so far from all others that these are left with little of the volume's range."""

from __future__ import annotations

import math

import numpy as np

from utils import BOX_VALUES, ValueRange, is_missing, read_in_boxes

MIDDLE = (0.001, 0.999)  # quantiles between which the values are no outliers
WIDER = 10  # a range that many times as wide as that of the middle is ruined


def count_beyond(original: np.ndarray, low: np.ndarray, high: np.ndarray, fill: np.generic | None) -> int:
    """How many of the values (..., components) lie beyond low..high, one a component; missing voxels left out."""
    count = 0
    for _, part in read_in_boxes(original):
        present = part[~is_missing(part, fill)]
        count += np.count_nonzero((present < low) | (present > high))
    return count


def far_limits(original: np.ndarray, values: ValueRange) -> tuple[np.ndarray, np.ndarray]:
    """Limits beyond which the values (..., components) of that range are outliers, float64; infinite if there are none.

    They are as far from the middle 99.8 % of about a million values as these spread, where the whole range is more than
    10 times as wide as theirs.
    """
    step = max(1, original.size // BOX_VALUES)
    sample = np.concatenate([part.reshape(-1, part.shape[-1])[::step].copy() for _, part in read_in_boxes(original)])
    sample = sample[~is_missing(sample, values.fill)].astype(np.float64)
    a, b = np.quantile(sample, MIDDLE, axis=0) if len(sample) else np.zeros((2, sample.shape[1]))
    is_ruined = (values.extent > WIDER * (b - a)) & (b > a)  # equal where an object stands before an even background
    return np.where(is_ruined, 2 * a - b, -math.inf), np.where(is_ruined, 2 * b - a, math.inf)


def warning(original: np.ndarray, values: ValueRange) -> str | None:
    """What to tell of the outliers among values (..., components) of that range; None when there are none to tell of.

    Of several components it is of the one whose range they widen most.
    """
    low, high = far_limits(original, values)
    spread = high - low
    c = int(np.argmax(values.extent / spread))
    if not math.isfinite(spread[c]):
        return None
    original, low, high = original[..., c : c + 1], low[c], high[c]
    ends = []
    for _, part in read_in_boxes(original):
        others = part[(part >= low) & (part <= high) & ~is_missing(part, values.fill)[..., None]]
        ends += [others.min(), others.max()] if len(others) else []
    ends = np.array([min(ends), max(ends)])[:, None]
    count, n_values = count_beyond(original, *ends, values.fill), original.size
    factor = values.extent[c] / ValueRange(*ends).extent[0]
    component = f"component {c}: " if len(spread) > 1 else ""
    return (
        f"{component}{count} of {n_values} values lie far from all others, and make the range, {values.low[c]} to "
        f"{values.high[c]}, {factor:.0f} times as wide as these take: consider --clip {ends[0][0]},{ends[1][0]}"
    )
