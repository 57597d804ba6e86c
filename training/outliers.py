"""Outliers: values so far from all others that these take up only a small part of the volume's range."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from utils import BOX_VALUES, ValueRange, few_values, is_missing, read_in_boxes

MIDDLE = (0.001, 0.999)  # quantiles; values between them are no outliers
WIDER = 10  # a range this many times as wide as the middle is ruined; a value this many widths away is far
MOST_MARKS = 8  # most different values that mark missing voxels
MIN_FILL_VOXELS, MIN_FILL_SHARE = 8, 1e-3  # voxels for each of them, and part of all voxels: fewer are outliers
LIKELY_SHARE, LIKELY_GAP = 0.01, 0.25  # part of the voxels, and of the range: more of both may be a fill value
BULK, DECADES = (0.01, 0.999), 3  # quantiles; positive values that spread between them over more call for a logarithm


@dataclasses.dataclass(frozen=True)
class Outliers:
    """The outliers of one component of a volume.

    values: the different ones, ascending; of more than MOST_MARKS only some. count: how many there are in all. others:
    (lowest, highest) of the other values. limits: the range of the volume. n_voxels: of the volume. call_for_logarithm:
    whether all values are positive, and spread over many decades. padding: a value of many voxels, in none of the
    above, which would hide the outliers; None if there is none.
    """

    component: int
    values: np.ndarray
    count: int
    others: tuple[np.generic, np.generic]
    limits: ValueRange
    n_voxels: int
    call_for_logarithm: bool = False
    padding: np.generic | None = None

    @property
    def are_marks(self) -> bool:
        """Whether these probably mark missing voxels: a few exact values, each in many voxels, far from all others."""
        needed = max(MIN_FILL_VOXELS * len(self.values), MIN_FILL_SHARE * self.n_voxels)
        low, high = _far_from(*map(float, self.others))
        is_far = not ((self.values >= low) & (self.values <= high)).any()
        return is_far and len(self.values) <= MOST_MARKS and self.count >= needed and self.padding is None

    @property
    def factor(self) -> float:
        """The width of the range, relative to that of the other values."""
        return float(self.limits.extent[self.component] / ValueRange(*np.reshape(self.others, (2, 1))).extent[0])

    def replaced_by(self, fill: np.generic) -> str:
        """The NumPy statement that writes `fill` in place of these values."""
        low, high = self.others
        array = "array" if len(self.limits.low) == 1 else f"array[..., {self.component}]"
        is_below, is_above = self.values[0] < low, self.values[-1] > high
        which = f"{array} < {low!s}" if is_below else f"{array} > {high!s}"
        which = f"({which}) | ({array} > {high!s})" if is_below and is_above else which
        return f"NumPy's {array}[{which}] = {'np.nan' if fill != fill else str(fill)}"

    def question(self) -> str:
        """One line that asks whether these values mark missing voxels, with what to type."""
        first, fill = self.values[0], self.limits.fill
        *most, last = map(str, self.values)  # str() gives the shortest text, an f-string all digits of a float64
        what = f"values {', '.join(most)} and {last} stand" if most else f"value {last} stands"
        marked, otherwise = f"--fill {first!s}", "--fill none"
        if fill is not None:  # a volume has one fill value
            marked, otherwise = self.replaced_by(fill), f"--clip {self.limits.low.min()!s},{self.limits.high.max()!s}"
        elif most:
            marked = f"{self.replaced_by(first)}, and {marked}"
        return (
            f"the {what} in {self.count} voxels, far from all others: {marked} if this marks missing voxels, "
            f"{otherwise} if not"
        )

    def warning(self) -> str:
        """One line that says how much of the range these values take, with what to type."""
        low, high = map(str, (self.limits.low[self.component], self.limits.high[self.component]))
        component = f"component {self.component}: " if len(self.limits.low) > 1 else ""
        logarithm = "the logarithm, NumPy's log10(array), if small values count, or " if self.call_for_logarithm else ""
        kept, fill = self.others, self.limits.fill
        what, mark = "and", self.values[0] if len(self.values) == 1 else None
        if self.padding is not None:
            kept = min(*kept, self.padding), max(*kept, self.padding)
            what, mark = f"and with {self.padding!s}", self.padding if fill is None else None
        way_out = f"consider {logarithm}--clip {','.join(map(str, kept))}"
        if mark is not None:
            marked = f"--fill {mark!s}" if fill is None else self.replaced_by(fill)
            way_out += f", or {marked} if this marks missing voxels"
        return (
            f"{component}{self.count} of {self.n_voxels} values lie far from all others, {what} make the range, {low} "
            f"to {high}, {np.rint(self.factor):.7g} times as wide as these take: {way_out}"
        )


def find_outliers(original: np.ndarray, limits: ValueRange) -> Outliers | None:
    """The outliers of a volume (..., components) of range `limits`; None if there are none.

    Values that may mark missing voxels come first, then the outliers of the component whose range they widen most.
    Labels have no outliers, but may mark missing voxels.
    """
    found, samples = [], _sample(original, limits)
    may_be_labels = limits.is_integer and few_values(samples) is not None
    for c, exact in enumerate(samples.T):
        sample, padding = exact.astype(np.float64), None
        if not (ends := far_limits(sample, float(limits.extent[c]))):
            ends, padding = _limits_beside_padding(exact)
        outliers = ends and _beyond(original, limits, c, *ends, padding)
        if outliers and (outliers.are_marks or not may_be_labels):
            found.append(dataclasses.replace(outliers, call_for_logarithm=_spread_over_decades(sample)))
    return max(found, key=lambda outliers: (outliers.are_marks, outliers.factor), default=None)


def likely_fill(original: np.ndarray, limits: ValueRange) -> np.generic | None:
    """A least or greatest value (..., components) that may mark missing voxels; None if there is none.

    Many voxels have exactly this value, and no value lies near. It need not be far enough to be an outlier.
    """
    for sample, extent in zip(_sample(original, limits).T, limits.extent, strict=True):
        for value, gap in _common_ends(sample):
            if gap > LIKELY_GAP * extent:
                return value
    return None


def _common_ends(sample: np.ndarray) -> list[tuple[np.generic, float]]:
    """The least and the greatest value of a component (n,), those in many voxels, and how far off the next value is."""
    values, counts = np.unique(sample, return_counts=True)
    is_common = counts >= max(LIKELY_SHARE * len(sample), MIN_FILL_VOXELS)
    ends = ((0, 1), (-1, -2)) if len(values) > 2 else ()
    return [(values[a], abs(float(values[a]) - float(values[b]))) for a, b in ends if is_common[a]]


def _limits_beside_padding(sample: np.ndarray) -> tuple[tuple[float, float] | None, np.generic | None]:
    """The limits of a component (n,) without padding, as `far_limits` has them, and the padding; else None, None.

    Padding is a value at an end that widens the range of the others so much that it hides their outliers.
    """
    for padding, gap in _common_ends(sample):
        rest = sample[sample != padding].astype(np.float64)
        if ends := far_limits(rest, float(np.ptp(rest))):
            others = rest[(rest >= ends[0]) & (rest <= ends[1])]
            if gap > np.ptp(others):
                return ends, padding
    return None, None


def _sample(original: np.ndarray, limits: ValueRange) -> np.ndarray:
    """About a million of the values (..., components), equally spaced: (n, components), without missing voxels."""
    step = max(1, original.size // BOX_VALUES)
    sample = np.concatenate([part.reshape(-1, part.shape[-1])[::step].copy() for _, part in read_in_boxes(original)])
    return sample[~is_missing(sample, limits.fill)]


@np.errstate(over="ignore")  # a limit may be infinite
def far_limits(sample: np.ndarray, extent: float) -> tuple[float, float] | None:
    """(low, high): values of a component beyond them are outliers. None if there are none.

    sample: values of the component, (n,) float64. extent: the width of its range. A few exact values may lie far from
    all others. If not, outliers are found where the range is over 10 times as wide as the middle 99.8 % of the sample.
    Each limit then lies one width of this middle away from it.
    """
    different = np.unique(sample)
    for n in range(min(MOST_MARKS, (len(different) - 1) // 2), 0, -1):  # the others are more
        for n_low in range(n + 1):
            below, others, above = np.split(different, [n_low, len(different) - n + n_low])
            low, high = _far_from(others[0], others[-1])
            if (below < low).all() and (above > high).all():
                return low, high
    a, b = np.quantile(sample, MIDDLE) if sample.size else (0.0, 0.0)
    is_ruined = extent > WIDER * (b - a) > 0  # a == b: an object before an even background
    return (2 * a - b, 2 * b - a) if is_ruined else None


def _spread_over_decades(sample: np.ndarray) -> bool:
    """Whether all values (n,) are positive, and most of them spread over more than DECADES."""
    low, high = np.quantile(sample, BULK)
    return sample.min() > 0 and high / 10**DECADES > low


def _far_from(low: float, high: float) -> tuple[float, float]:
    """The limits beyond which a value lies WIDER widths of low..high away from it."""
    far = WIDER * (high - low)
    return low - far, high + far


def _beyond(
    original: np.ndarray, limits: ValueRange, component: int, low: float, high: float, padding: np.generic | None
) -> Outliers | None:
    """The values of a component beyond low..high, but for padding, as outliers; None if there are none."""
    n_voxels, count, found, ends = math.prod(original.shape[:-1]), 0, [], []
    for _, part in read_in_boxes(original):
        present = part[~is_missing(part, limits.fill)][:, component]
        present = present if padding is None else present[present != padding]
        is_other = (present >= low) & (present <= high)
        others, far = present[is_other], present[~is_other]
        count += far.size
        found.append(np.unique(far)[: MOST_MARKS + 1])
        ends += [others.min(), others.max()] if others.size else []
    different = np.unique(np.concatenate(found))
    if not count:
        return None
    return Outliers(component, different, count, (min(ends), max(ends)), limits, n_voxels, padding=padding)


def count_beyond(original: np.ndarray, low: np.ndarray, high: np.ndarray, fill: np.generic | None) -> int:
    """The number of values (..., components) beyond low..high (components,), without missing voxels."""
    count = 0
    for _, part in read_in_boxes(original):
        present = part[~is_missing(part, fill)]
        count += np.count_nonzero((present < low) | (present > high))
    return count
