"""Volumes that several test modules share."""

from __future__ import annotations

import numpy as np

SHAPE = (9, 7, 5)


def slanted(shape: tuple[int, ...]) -> np.ndarray:
    """20 + 3 i - 2 j + k (per voxel), float32: voxel (last, 0, 0) is low in j, high in i, unlike its mirror images."""
    slopes = (3.0, -2.0, 1.0, 0.5)
    index = np.indices(shape)
    return (20.0 + sum(s * i for s, i in zip(slopes, index, strict=False))).astype(np.float32)
