"""Outliers: a few values so far away that all other values take up only a small part of the volume's range."""

from __future__ import annotations

import math

import numpy as np

from utils import BOX_VALUES, ValueRange, is_missing, read_in_boxes

MIDDLE = (0.001, 0.999)  # quantiles; values between them are no outliers
MIN_FILL_VOXELS, MIN_FILL_SHARE = 8, 1e-3  # fewer equal values, or a smaller share of the voxels, are outliers
WIDER = 10  # a range this many times as wide as the middle is ruined by outliers


def count_beyond(original: np.ndarray, low: np.ndarray, high: np.ndarray, fill: np.generic | None) -> int:
    """The number of values (..., components) beyond low..high (components,), without missing voxels."""
    count = 0
    for _, part in read_in_boxes(original):
        present = part[~is_missing(part, fill)]
        count += np.count_nonzero((present < low) | (present > high))
    return count


def far_limits(original: np.ndarray, values: ValueRange) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), float64: values (..., components) beyond are outliers. A component without outliers has infinities.

    A component has outliers if its range is over 10 times as wide as the middle 99.8 % of about a million values.
    Each limit then lies one width of this middle away from it.
    """
    sample = _sample(original, values).astype(np.float64)
    a, b = np.quantile(sample, MIDDLE, axis=0) if len(sample) else np.zeros((2, sample.shape[1]))
    is_ruined = (values.extent > WIDER * (b - a)) & (b > a)  # a == b: an object before an even background
    return np.where(is_ruined, 2 * a - b, -math.inf), np.where(is_ruined, 2 * b - a, math.inf)


def _sample(original: np.ndarray, values: ValueRange) -> np.ndarray:
    """About a million of the values (..., components), equally spaced: (n, components), without missing voxels."""
    step = max(1, original.size // BOX_VALUES)
    sample = np.concatenate([part.reshape(-1, part.shape[-1])[::step].copy() for _, part in read_in_boxes(original)])
    return sample[~is_missing(sample, values.fill)]


def unnamed_fill(original: np.ndarray, values: ValueRange) -> tuple[np.generic, int] | None:
    """A value that probably marks missing voxels, and in how many it stands; None if there is none.

    Such a value is an end of the range. It stands in 8 voxels or more, and in 0.1 % of all or more. It lies more than
    10 times as far from all other values as these lie from each other.
    """
    for c, sample in enumerate(_sample(original, values).T):
        for end in (values.low[c], values.high[c]):
            if not _is_far(end, sample[sample != end]):
                continue
            count, ends = 0, []
            for _, part in read_in_boxes(original[..., c : c + 1]):
                present = part[~is_missing(part, values.fill)]
                others = present[present != end]
                count += present.size - others.size
                ends += [others.min(), others.max()] if others.size else []
            if count >= max(MIN_FILL_VOXELS, MIN_FILL_SHARE * original[..., c].size) and _is_far(end, np.array(ends)):
                return end, count
    return None


def _is_far(end: np.generic, others: np.ndarray) -> bool:
    """Whether a value lies more than WIDER times as far from the others as these lie from each other."""
    if not others.size:
        return False
    low, high = float(others.min()), float(others.max())
    return high > low and min(abs(float(end) - low), abs(float(end) - high)) > WIDER * (high - low)


def warning(original: np.ndarray, values: ValueRange) -> str | None:
    """A warning about outliers in a volume (..., components) of range `values`; None if there are none.

    The warning is about the component whose range the outliers widen most.
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
