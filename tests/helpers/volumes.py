"""Volumes that several test modules share."""

from __future__ import annotations

import math

import numpy as np

from utils import ValueRange, value_limits

SHAPE = (9, 7, 5)
TURNED = (0.0, 0.6, -0.8, -1.0, 0.0, 0.0, 0.0, 0.8, 0.6)  # a direction along no axis of space
MIRRORED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def slanted(shape: tuple[int, ...]) -> np.ndarray:
    """20 + 3 i - 2 j + k (per voxel), float32: voxel (last, 0, 0) is low in j, high in i, unlike its mirror images."""
    slopes = (3.0, -2.0, 1.0, 0.5)
    index = np.indices(shape)
    return (20.0 + sum(s * i for s, i in zip(slopes, index, strict=False))).astype(np.float32)


def whole(array) -> np.ndarray:
    """All the values of an array that may lie in a file."""
    return array[tuple(map(slice, array.shape))]


def range_without(values: np.ndarray, fill: np.generic | None) -> ValueRange:
    """The range of values (..., components) of which those are missing that are `fill`."""
    return ValueRange(*value_limits(values, fill), fill)


def psnr_of(array: np.ndarray, decoded: np.ndarray) -> float:
    """By hand, in Python's exact integers where the values are integers."""
    pairs = list(zip(array.ravel().tolist(), decoded.ravel().tolist(), strict=True))
    extent = max(a for a, _ in pairs) - min(a for a, _ in pairs)
    squares = sum(float(a - b) ** 2 for a, b in pairs)
    return 20 * math.log10(extent / math.sqrt(squares / len(pairs))) if squares else math.inf


def waves(shape: tuple[int, ...]) -> np.ndarray:
    """A sum of sines along the axes, float32: smooth, and the same on every machine but for the last bit."""
    return np.sin(np.indices(shape) / 3).sum(0).astype(np.float32)


def wave(shape: tuple[int, ...]) -> np.ndarray:
    """A product of two waves that lie across the axes, float32."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (np.sin(4 * x + y) * np.cos(3 * y - 2 * z)).astype(np.float32)


def noisy_waves(shape: tuple[int, ...]) -> np.ndarray:
    """`waves` with noise that no small network learns: 0.02 in the root mean square, 49 dB below the range."""
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return waves(shape) + np.float32(0.02) * noise


def labels(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros and ones, uint8, each on one side of a smooth surface."""
    return (np.sin(np.indices(shape) / 4).sum(0) > 0).astype(np.uint8)


def large_integers(shape: tuple[int, ...]) -> np.ndarray:
    """int64 around 2^62, from -300 to 300 of it: differences that float64 does not hold."""
    return np.rint(100 * np.sin(np.indices(shape) / 4).sum(0)).astype(np.int64) + 2**62


def noise(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise, float32."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)
