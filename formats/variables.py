"""The arrays in a file of several: their axes and attributes, and which of them is meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from formats.common import VolumeError

MAX_LISTED = 20  # names in a message


class Variable(NamedTuple):
    """An array in a file, of which no value is read yet.

    dims: the name of each axis, "" where it has none. source: see `StoredArray`. chunks: the lengths of a piece that is
    decoded at once; None where any part is read as fast as another. refusal: why it is not read, "" if it is. labels:
    what the axes are called besides their names, if anything. note: what is to be told when it is read.
    """

    dims: tuple[str, ...]
    dtype: np.dtype
    attributes: Mapping[str, Any]
    source: Any
    chunks: tuple[int, ...] | None = None
    refusal: str = ""
    labels: tuple[str, ...] = ()
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def text(self, name: str) -> str:
        """An attribute as text, "" where there is none."""
        value = self.attributes.get(name, "")
        value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return value if isinstance(value, str) else ""

    def numbers(self, name: str) -> list[int | float]:
        """The numbers of an attribute; [] where it has none."""
        try:
            found = np.ravel(np.asarray(self.attributes.get(name, ())))
        except ValueError:  # lists of different lengths
            return []
        return found.tolist() if found.dtype.kind in "iuf" else []


def chosen(path: str, variables: Mapping[str, Variable], name: str | None) -> str:
    """The name of the array that is meant: `name`, or else the only array of most axes. Raises VolumeError.

    An array of complex numbers, or of records, is meant only where its name is given, or where there are no others. A
    single number is none.
    """
    variables = {name: found for name, found in variables.items() if found.shape or found.refusal}
    if name is not None:
        if name.strip("/") in variables:
            return name.strip("/")
        raise VolumeError(f"{path}: holds no array {name!r}, only {_listed(variables)}")
    if not variables:
        raise VolumeError(f"{path}: expected arrays of numbers, found none")
    real = {name: found for name, found in variables.items() if found.dtype.kind not in "cV"}
    data = _without_coordinates(real or variables)
    n_axes = {name: min(sum(n > 1 for n in found.shape), 3) for name, found in data.items()}
    most = [name for name, n in n_axes.items() if n == max(n_axes.values())]
    if len(most) != 1:
        raise VolumeError(f"{path}: expected --array, the name of one of its arrays: {_listed(variables)}")
    return most[0]


def _without_coordinates(variables: Mapping[str, Variable]) -> Mapping[str, Variable]:
    """The arrays that are not the positions along an axis; all of them if there are no others."""
    return {name: found for name, found in variables.items() if found.dims != (name,)} or variables


def _listed(variables: Mapping[str, Variable]) -> str:
    """The arrays of a file, those of most axes first: temperature (time 12, lat 64, lon 128; float32; K), ..."""
    ordered = sorted(_without_coordinates(variables).items(), key=lambda item: -len(item[1].shape))

    def text_of(item: tuple[str, Variable]) -> str:
        name, found = item
        return f"{name} ({'; '.join(filter(None, (axes_of(found), found.dtype.name, found.text('units'))))})"

    return first_of(ordered, text_of) or "none of numbers"


def first_of(items: Sequence[Any], text_of: Callable[[Any], str] = str) -> str:
    """The texts of the first items, and how many more there are, for a message. A file may hold very many."""
    left = len(items) - MAX_LISTED
    return ", ".join([*map(text_of, items[:MAX_LISTED]), *[f"{left} more"] * (left > 0)])


def axes_of(variable: Variable) -> str:
    """The axes of an array with their lengths: time 12, lat 64, lon 128."""
    names = (dim.rsplit("/", 1)[-1] for dim in variable.dims)
    return ", ".join(f"{name} {n}".strip() for name, n in zip(names, variable.shape, strict=True))
