"""Which colour a value has, and how opaque it is: scales for CT, signed, mostly empty and other fields. NumPy only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

MOST_QUANTILES = 1_000_000  # values from which quantiles are taken
MISSING = 255  # grey level of voxels without a value: white, which neither table has
VIRIDIS = "440154 472c7a 3b518b 2c718e 21908d 27ad81 5cc863 aadc32 fde725"
COOL_WARM = "3b4cc0 688aef 99baff c9d8f0 dddddd edd1c2 f7a789 e26a53 b40426"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a value looks. low, high: at the ends of `table`, RGB rows; whether some values are below or above them.

    opaque: how far from the background, of 0 to 1, a solid begins to be seen, and is opaque.
    """

    low: float
    high: float
    table: np.ndarray
    is_below: bool = False
    is_above: bool = False
    opaque: tuple[float, float] = (0.0, 1.0)

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Values -> 0 to 1, those of a constant field to its middle; NaN stays."""
        if self.low == self.high:
            return values * 0.0 + 0.5
        return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Values (...) -> RGB (..., 3), uint8."""
        index = np.rint(np.nan_to_num(self.unit(values)) * (len(self.table) - 1)).astype(int)
        return np.where(np.isnan(values)[..., None], np.uint8(MISSING), self.table[index])

    @property
    def background(self) -> float:
        """Where nothing is, of 0 to 1: 0 in a signed field, the least value in any other."""
        return 0.5 if self.low == -self.high else 0.0

    def opacities(self) -> list[tuple[float, float]]:
        """(where, of 0 to 1; opacity) of the values of a solid."""
        at = np.linspace(0.0, 1.0, 257)
        start, end = self.opaque
        ramp = np.clip((np.abs(at - self.background) - start) / max(end - start, 1e-3), 0.0, 1.0)
        return list(zip(at.tolist(), (0.9 * ramp**1.5).tolist(), strict=True))


def colour_table(anchors: str) -> np.ndarray:
    """256 RGB rows, uint8, evenly between the anchors."""
    rgb = np.array([list(bytes.fromhex(anchor)) for anchor in anchors.split()])
    at = np.linspace(0, len(rgb) - 1, 256)
    return np.stack([np.rint(np.interp(at, range(len(rgb)), channel)) for channel in rgb.T], axis=1).astype(np.uint8)


def scale_of(
    parts: Sequence[np.ndarray], rare: float = 0.01, hidden: float = 0.6, is_signed: bool | None = None
) -> Scale:
    """The scale for such values; NaN left out. is_signed: whether 0 is its middle; None to see by the values.

    Of the lesser 40 % and of the greater 40 % of the values, the part `rare` does not count where it would double the
    scale. A solid shows none of the part `hidden` that is nearest to the background: CT, signed and mostly empty
    fields alike come out as bodies.
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


def figure_of(value: float, extent: float) -> str:
    """A value on a scale of that extent, to three figures of the extent."""
    if value == 0 or extent == 0:
        return f"{value:.6g}"
    if extent >= 1e-3 and abs(value) < 1e6:
        return f"{value:.{max(0, 2 - math.floor(math.log10(extent)))}f}"
    return f"{value:.{2 + max(0, round(math.log10(abs(value) / extent)))}e}"
