"""What a field says of itself: a line of text, and for a notebook a table with a slice."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

import numpy as np

from field.colours import magnitude, scale_of, with_nan
from field.png import png_of
from formats.common import AXES
from formats.slabs import on_one_line

if TYPE_CHECKING:
    from field.neural_field import NeuralField

SIDE = 320  # pixels of the longer side of a slice, and most positions along an axis that are evaluated for it
LEFT = "style='text-align:left'"


def facts_of(field: NeuralField) -> dict[str, str]:
    """What is known of a field, in words, by the name of each fact."""
    header = field.header
    ranges = ", ".join(f"{_figure(low)} to {_figure(high)}" for low, high in header.value_range.pairs())
    n_missing = header.n_voxels - header.n_present
    return {
        "shape": " x ".join(map(str, header.shape)),
        "type": str(header.dtype) + (f", {header.n_components} components" if header.n_components > 1 else ""),
        "range": f"{ranges} {on_one_line(field.units)}".rstrip(),
        "spacing": ", ".join(map(_figure, field.spacing)),
        "origin": ", ".join(map(_figure, field.origin)),
    } | ({"missing": f"{n_missing:,} voxels"} if n_missing else {})


def line_of(field: NeuralField) -> str:
    """What is known of a field, on one line."""
    facts = facts_of(field)
    start = f"{on_one_line(field.name)}: {facts.pop('shape')} {facts.pop('type')}"
    return ", ".join([start, *(f"{name} {fact}" for name, fact in facts.items())])


def html_of(field: NeuralField) -> str:
    """What is known of a field as a table in HTML, and a slice through its middle."""
    facts = [(name, html.escape(fact)) for name, fact in facts_of(field).items()]
    rows = "".join(f"<tr><th {LEFT}>{name}</th><td {LEFT}>{fact}</td></tr>" for name, fact in facts)
    caption = f"<caption {LEFT}><b>{html.escape(on_one_line(field.name))}</b></caption>"
    return f"<div style='display:flex;gap:1em'><table>{caption}{rows}</table>{_slice_in_html(field)}</div>"


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _slice_in_html(field: NeuralField) -> str:
    """The image of the slice z = middle, of the middle step: x to the right, y upwards."""
    shape = field.header.shape
    names = AXES[len(shape)]
    middles = {name: n // 2 for name, n in zip(names, shape, strict=True) if name in "tz"}
    key = tuple(middles.get(name, slice(None, None, -(-n // SIDE))) for name, n in zip(names, shape, strict=True))
    counts = [len(range(n)[part]) for n, part in zip(shape, key, strict=True) if isinstance(part, slice)]
    plane = magnitude(with_nan(field[key].reshape(*counts, *(1,) * (2 - len(counts)), -1), field.header.fill))
    image = np.ascontiguousarray(scale_of([plane]).colours(plane).transpose(1, 0, 2)[::-1])
    lengths = {name: n * abs(s) or 1.0 for name, n, s in zip(names, shape, field.spacing, strict=True)}
    sides = np.array([lengths["x"], lengths.get("y", lengths["x"] / 8)])
    width, height = np.maximum(np.rint(SIDE * sides / sides.max()), 8).astype(int)
    data = base64.b64encode(png_of(image)).decode()
    where = ", ".join(f"{name} index {index}" for name, index in middles.items())
    size = f"style='width:{width}px;height:{height}px;image-rendering:pixelated'"
    return f"<figure><img {size} src='data:image/png;base64,{data}'><figcaption>{where}</figcaption></figure>"
