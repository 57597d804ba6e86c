"""Colour and opacity of a value: scales for CT, signed, mostly empty and other volumes. NumPy only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from utils import is_missing

MOST_QUANTILES = 1_000_000  # most values from which quantiles are computed
MISSING = 255  # grey level of missing voxels: white, a colour that neither table has
VIRIDIS = "440154 472c7a 3b518b 2c718e 21908d 27ad81 5cc863 aadc32 fde725"
COOL_WARM = "3b4cc0 688aef 99baff c9d8f0 dddddd edd1c2 f7a789 e26a53 b40426"


class ColourScale:
    """A base class of scales: the colours of values.

    A scale has a `table` of RGB rows, uint8. Places on it are from 0 to 1: `unit` gives those of values, `background`
    that of empty space, `ticks` those of the figures at its bar; `visible` tells how much of them a solid shows.
    is_discrete: whether nothing lies between two values.
    """

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Values (...) -> RGB (..., 3), uint8. NaN becomes MISSING."""
        unit = self.unit(values)
        index = np.rint(np.nan_to_num(unit) * (len(self.table) - 1)).astype(int)
        return np.where(np.isnan(unit)[..., None], np.uint8(MISSING), self.table[index])


@dataclasses.dataclass(frozen=True)
class Scale(ColourScale):
    """The scale of numbers, between two ends."""

    low: float  # value at the first row of the table
    high: float  # value at the last row of the table
    table: np.ndarray  # RGB rows, uint8
    is_below: bool = False  # whether some values are below low
    is_above: bool = False  # whether some values are above high
    opaque: tuple[float, float] = (0.0, 1.0)  # distances from the background where a solid becomes visible, opaque
    is_discrete = False

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Values -> 0 to 1, clipped to low..high. The result is 0.5 when low equals high. NaN stays NaN."""
        if self.low == self.high:
            return values * 0.0 + 0.5
        return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)

    @property
    def background(self) -> float:
        """The place of empty space on the scale, from 0 to 1: the value 0 on a signed scale, else the least value."""
        return 0.5 if self.low == -self.high else 0.0

    def visible(self, at: np.ndarray) -> np.ndarray:
        """How much of a place on the scale a solid shows, 0 to 1."""
        start, end = self.opaque
        return np.clip((np.abs(at - self.background) - start) / max(end - start, 1e-3), 0.0, 1.0) ** 2

    def ticks(self) -> list[tuple[float, str]]:
        """The figures at a colour bar: pairs of a place on the bar (0 to 1) and a text. Clipped ends have a sign."""
        extent, ticks = self.high - self.low, []
        for place in np.linspace(0, 1, 5).tolist() if extent > 0 else [0.5]:
            sign = "\u2264 " if self.is_below and place == 0 else "\u2265 " if self.is_above and place == 1 else ""
            ticks.append((place, sign + figure_of(self.low * (1 - place) + self.high * place, extent)))
        return ticks


def rgb_of(anchors: str) -> np.ndarray:
    """The RGB rows, uint8, of hexadecimal numbers."""
    return np.array([list(bytes.fromhex(anchor)) for anchor in anchors.split()], np.uint8)


def colour_table(anchors: str) -> np.ndarray:
    """A table of 256 RGB rows, uint8, at equal steps between the anchors."""
    rgb = rgb_of(anchors)
    at = np.linspace(0, len(rgb) - 1, 256)
    return np.stack([np.rint(np.interp(at, range(len(rgb)), channel)) for channel in rgb.T], axis=1).astype(np.uint8)


def scale_of(
    parts: Sequence[np.ndarray], rare: float = 0.01, hidden: float = 0.6, is_signed: bool | None = None
) -> Scale:
    """The scale for the finite values of `parts`. is_signed: whether 0 is its middle; None: the values decide.

    rare: the share of the lowest 40 % of the values, and of the highest 40 %, that counts as a tail. The scale leaves
    out a tail that would double its length. hidden: the share of the values, the nearest to the background, that a
    solid does not show. So a solid shows a body in CT, signed and mostly empty volumes alike.
    """
    values = np.concatenate([part[np.isfinite(part)] for part in parts])
    values = values if values.size else np.zeros(1)
    low, high = least, greatest = float(values.min()), float(values.max())
    values = values[:: 1 + values.size // MOST_QUANTILES]
    bounds = np.quantile(values, (0.4, 0.6))
    lesser, greater = values[values < bounds[0]], values[values > bounds[1]]
    common_low = float(np.quantile(lesser, rare)) if lesser.size else low
    common_high = float(np.quantile(greater, 1 - rare)) if greater.size else high
    extent = common_high - common_low
    if extent > 0:
        low = common_low if least < common_low - extent else least
        high = common_high if greatest > common_high + extent else greatest
    if is_signed is None:
        is_signed = low < 0 < high and min(-low, high) > 0.05 * max(-low, high)
    if is_signed:
        low, high = -max(-low, high), max(-low, high)
    scale = Scale(low, high, colour_table(COOL_WARM if is_signed else VIRIDIS), least < low, greatest > high)
    distance = np.abs(scale.unit(values) - scale.background)
    start = max(float(np.quantile(distance, hidden)), 0.02)
    seen = distance[distance > start]
    return dataclasses.replace(scale, opaque=(start, float(np.quantile(seen, 0.9)) if seen.size else 1.0))


def with_nan(values: np.ndarray, fill: np.generic | None) -> np.ndarray:
    """Values (..., components) as float64, with NaN in voxels that are missing or not finite."""
    is_gone = is_missing(values, fill) | ~np.isfinite(values).all(axis=-1)
    return np.where(is_gone[..., None], np.nan, values.astype(np.float64))


def magnitude(values: np.ndarray) -> np.ndarray:
    """(..., components) -> (...): the value of a single component, or the magnitude of several components."""
    if values.shape[-1] == 1:
        return values[..., 0]
    largest = np.nanmax(np.abs(values), initial=0.0) or 1.0  # scaled values have squares that do not overflow
    return np.linalg.norm(values / largest, axis=-1) * largest


def figure_of(value: float, extent: float) -> str:
    """A value as text. Its last digit is the third significant digit of `extent`, the length of the scale."""
    if value == 0 or extent == 0:
        return f"{value:.6g}"
    if extent >= 1e-3 and abs(value) < 1e6:
        return f"{value:.{max(0, 2 - math.floor(math.log10(extent)))}f}"
    return f"{value:.{2 + max(0, round(math.log10(abs(value) / extent)))}e}"


def round_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers between two ends, with their texts, at no more than `most` equal steps."""
    least, greatest = min(low, high), max(low, high)
    extent = greatest - least
    if not 0 < extent < math.inf:
        return [(low, f"{low:.6g}")]
    power = 10.0 ** math.floor(math.log10(extent / most))
    step = next(power * k for k in (1, 2, 5, 10, 20) if extent / (power * k) <= most + 1e-9)
    numbers = range(math.ceil(least / step - 1e-9), math.floor(greatest / step + 1e-9) + 1)
    n_digits = max(6, len(str(max(map(abs, numbers), default=0))))  # so that the texts differ
    return [(number * step, f"{number * step:.{n_digits}g}") for number in numbers]
