"""Arrays that are never whole in memory: the steps of a series in their files, and values computed on demand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from utils import Box, drop_pages


class StackedSteps:
    """The steps of a time series as an array [t, ...] that is never made. All steps have one shape and type.

    It supports the indexing by which volumes are read: `steps[t]` is the array of step t; `steps[..., x]` is the series
    of `[..., x]` of each step; `steps[box]` is a copy of the values in a box.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays, self.dtype = arrays, arrays[0].dtype
        self.shape = (len(arrays), *arrays[0].shape)
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.strides = (math.inf, *arrays[0].strides)  # time is the slowest axis

    def __getitem__(self, key: int | Box | tuple) -> np.ndarray | StackedSteps:
        if isinstance(key, int):
            return self.arrays[key]
        if key[0] is Ellipsis:
            return StackedSteps([array[key] for array in self.arrays])
        chosen = self.arrays[key[0]]
        values = np.stack([array[key[1:]] for array in chosen])
        for array in chosen:
            drop_pages(array)
        return values


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array whose values are computed on demand: `array[box]`, with one slice per axis of the grid.

    shape: of the grid, followed by the number of components when there are several. evaluate(box): computes that part
    of the array. array[i]: the lazy array at index i of the first axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    evaluate: Callable[[Box], np.ndarray]

    def __getitem__(self, key: Box | int) -> np.ndarray | LazyArray:
        if isinstance(key, int):
            first = slice(key, key + 1)
            return LazyArray(self.shape[1:], self.dtype, lambda box: self.evaluate((first, *box))[0])
        if not isinstance(key, tuple):
            raise TypeError(f"expected a slice for each axis of the grid, found {key}")
        return self.evaluate(key)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("expected an array in memory, found a lazy one, which is evaluated box by box")
