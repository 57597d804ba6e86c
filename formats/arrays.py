"""Arrays that are never whole in memory: the steps of a series in their files, and values computed on demand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from utils import Box, drop_pages


class Shaped:
    """A base class of arrays: what follows from their `shape`, and from `array[...]`, which gives all values."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("expected copy=True or None: the values are read or computed, not shared")
        return np.asarray(self[...], dtype)


class StackedSteps(Shaped):
    """The steps of a time series as an array [t, ...] that is never made. All steps have one shape and type.

    It supports the indexing by which volumes are read: `steps[t]` is the array of step t; `steps[..., x]` is the series
    of `[..., x]` of each step; `steps[box]` is a copy of the values in a box, `steps[...]` of all. It has `chunks` if a
    step has: of the lengths of a chunk in the steps, the longest ones.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays, self.dtype = arrays, arrays[0].dtype
        self.shape = (len(arrays), *arrays[0].shape)
        self.strides = (math.inf, *arrays[0].strides)  # time is the slowest axis
        if chunks := [array.chunks for array in arrays if hasattr(array, "chunks")]:
            self.chunks = (1, *map(max, zip(*chunks, strict=True)))

    def __getitem__(self, key: int | Box | tuple) -> np.ndarray | StackedSteps:
        if isinstance(key, int):
            return self.arrays[key]
        if key is Ellipsis:
            return np.stack([np.asarray(array) for array in self.arrays])
        if key[0] is Ellipsis:
            return StackedSteps([array[key] for array in self.arrays])
        chosen = self.arrays[key[0]]
        values = np.stack([array[key[1:]] for array in chosen])
        for array in chosen:
            drop_pages(array)
        return values

    def part(self, box: Box) -> StackedSteps:
        """The series of a box of each step, for the steps in it."""
        return StackedSteps([part_of(array, box[1:]) for array in self.arrays[box[0]]])


def part_of(array: np.ndarray | StackedSteps, box: Box) -> np.ndarray | StackedSteps:
    """The part of an array in a box. What is in a file stays there."""
    return array.part(box) if hasattr(array, "part") else array[box]


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray(Shaped, np.lib.mixins.NDArrayOperatorsMixin):
    """An array whose values are computed when they are asked for, and only those.

    shape: of the grid, followed by the number of components when there are several. evaluate(box): computes the values
    at one slice per axis of the grid. d_in: the number of grid axes; None when every axis is one.

    array[key] takes integers, slices of any step and `...`, as NumPy does. An integer alone gives the lazy array at
    that index of the first axis, because that may be a whole step of a series. np.asarray(array) computes all values,
    and so does arithmetic with the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    evaluate: Callable[[Box], np.ndarray] = dataclasses.field(repr=False)
    d_in: int | None = None

    def __getitem__(self, key: object) -> np.ndarray | np.generic | LazyArray:
        d_in = self.ndim if self.d_in is None else self.d_in
        if is_index(key) and d_in:
            first = one_of(self.shape[0], key, 0)
            return LazyArray(self.shape[1:], self.dtype, partial(self._at_first, first), d_in - 1)
        parts = expanded(key, self.shape)
        box = tuple(one_of(n, part, k) for k, (n, part) in enumerate(zip(self.shape, parts, strict=True)))
        counts = [len(range(n)[part]) for n, part in zip(self.shape, box, strict=True)]
        if 0 in counts:
            values = np.empty(counts, self.dtype)
        else:
            values = self.evaluate(box[:d_in])[(slice(None),) * d_in + box[d_in:]]
        return values[tuple(0 if is_index(part) else slice(None) for part in parts)]

    def _at_first(self, first: slice, box: Box) -> np.ndarray:
        return self.evaluate((first, *box))[0]

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: object, **keywords: object) -> object:
        targets = inputs[:1] if method == "at" else keywords.get("out", ())
        if any(isinstance(target, LazyArray) for target in targets):  # as of array += 1
            raise TypeError("out: expected an array in memory, found one that is computed: np.asarray makes one")
        inputs = [np.asarray(value) if isinstance(value, LazyArray) else value for value in inputs]
        return getattr(function, method)(*inputs, **keywords)


def is_index(key: object) -> bool:
    """Whether a key is one integer, of Python or of NumPy."""
    return isinstance(key, (int, np.integer)) and not isinstance(key, (bool, np.bool_))


def one_of(n: int, part: int | slice, axis: int) -> slice:
    """The slice of an axis of n values that a part of a key means. Raises IndexError for an index outside."""
    if not is_index(part):
        return part
    if not -n <= part < n:
        raise IndexError(f"axis {axis}: expected an index from {-n} to {n - 1}, found {part}")
    return slice(int(part) % n, int(part) % n + 1)


def expanded(key: object, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """One integer or slice per axis of an array. Raises IndexError for what is neither, and for too many."""
    parts = key if isinstance(key, tuple) else (key,)
    n_dots = sum(part is Ellipsis for part in parts)
    given = [part for part in parts if part is not Ellipsis]
    for part in given:
        if not is_index(part) and not isinstance(part, slice):
            found = f"{type(part).__name__}: [...] gives NumPy's array, which takes others"
            raise IndexError(f"expected integers, slices and ..., found {found}")
    if n_dots > 1 or len(given) > len(shape):
        raise IndexError(f"expected at most {len(shape)} axes and one ..., found {key!r}")
    at = next((k for k, part in enumerate(parts) if part is Ellipsis), len(parts))
    return (*parts[:at], *(slice(None),) * (len(shape) - len(given)), *parts[at + 1 :])
