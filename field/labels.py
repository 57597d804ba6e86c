"""Colours of labels: whole numbers of which there are only a few, such as the tissues of a segmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from field.colours import ColourScale, rgb_of
from utils import few_values

COLOURS = "d9d9d9 4e79a7 f28e2b 59a14f e15759 76b7b2 edc948 b07aa1 9c755f ff9da7 6b4c9a 1b9e77"  # background first


@dataclasses.dataclass(frozen=True)
class LabelScale(ColourScale):
    """The scale of labels, in equal steps.

    labels: in rising order. table: an RGB row for each label, uint8. texts: what stands at the colour bar.
    """

    labels: np.ndarray
    table: np.ndarray
    texts: tuple[str, ...]
    is_discrete = True

    @classmethod
    def of(cls, labels: np.ndarray) -> LabelScale:
        """The scale of at most MOST_LABELS whole numbers."""
        colours, first = rgb_of(COLOURS), _background(labels)
        table = np.concatenate([colours[1 : first + 1], colours[:1], colours[first + 1 :]])
        return cls(labels, table[: len(labels)], tuple(f"{label:.0f}" for label in labels))

    @property
    def background(self) -> float:
        """The place of the background, from 0 to 1: of the label 0, or else of the least label."""
        return _background(self.labels) / self._steps

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Labels -> 0 to 1, in equal steps. Another value counts as the nearest label. NaN stays NaN."""
        nearest = np.searchsorted((self.labels[:-1] + self.labels[1:]) / 2, values)
        return np.where(np.isnan(values), np.nan, nearest / self._steps)

    def visible(self, at: np.ndarray) -> np.ndarray:
        """Whether a solid shows a place on the scale: all labels but the background; see Scale.visible."""
        return np.rint(at * self._steps) != _background(self.labels)

    def ticks(self) -> list[tuple[float, str]]:
        """The texts at a colour bar, each at the middle of its colour; see Scale.ticks."""
        return [((k + 0.5) / len(self.texts), text) for k, text in enumerate(self.texts)]

    @property
    def _steps(self) -> int:
        return max(len(self.labels) - 1, 1)


DIFFERENCE = LabelScale(np.array([0.0, 1.0]), rgb_of("d9d9d9 c00000"), ("equal", "differs"))


def labels_in(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """The different values of `parts` without NaN, in rising order; None when they are too many for labels."""
    found = few_values(*(part[~np.isnan(part)] for part in parts))
    return None if found is None or not len(found) else found


def _background(labels: np.ndarray) -> int:
    """The number of the label that is the background."""
    return int(np.argmax(labels == 0))
