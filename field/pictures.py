"""Pictures of a decoded volume beside its original: slices through the middle, and a rendering.

The axes of a slice show coordinates in space, or along turned axes the distance from the first voxel. They grow to
the right and upwards, also where the file stores them falling: north lies above south.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from field.colours import ColourScale, magnitude, scale_of, with_nan
from field.drawing import Slice, draw_row, page
from field.labels import DIFFERENCE, LabelScale, labels_in
from field.metrics import Metrics
from field.neural_field import NeuralField
from field.rendering import render_solids
from formats.common import of_three_axes
from utils import Geometry, Grid

SOLID_VOXELS = 160**3  # most voxels of a rendered solid; software renders this many in a second
SOLID_SIDE = 512  # most voxels of a solid along an axis; drivers show nothing of textures above 2048

SHORT_UNITS = {"degrees_north": "\u00b0N", "degrees_east": "\u00b0E", "degrees": "\u00b0"}  # at axes


@dataclasses.dataclass(frozen=True)
class Views:
    """The parts of a volume that a picture shows. All but slices and steps are of three axes."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    positions: tuple[np.ndarray, ...]  # the coordinates along each axis; empty where the grid has no such axis
    slices: tuple[int, ...]  # axes that have a slice at right angles to them
    steps: tuple[int, ...]  # from a voxel of the solid to the next, in voxels of the volume; () without a solid

    @classmethod
    def of(cls, shape: tuple[int, ...], spacing: tuple[float, ...], positions: list[np.ndarray]) -> Views:
        """Of a grid. positions: the coordinates along its axes."""
        shape, positions = of_three_axes(shape, 1), of_three_axes(positions, np.empty(0))
        spacing = of_three_axes([abs(s) or 1.0 for s in spacing], 1.0)
        slices = tuple(k for k in range(3) if all(n > 1 for axis, n in enumerate(shape) if axis != k))
        side = SOLID_SIDE
        while math.prod(-(-n // -(-n // side)) for n in shape) > SOLID_VOXELS:
            side -= 1
        steps = tuple(-(-n // side) for n in shape) if min(shape) > 1 else ()
        return cls(shape, spacing, positions, slices or (max(k for k in range(3) if shape[k] == 1),), steps)

    @property
    def order(self) -> tuple[slice, ...]:
        """Turns around the axes along which coordinates fall: what is shown runs from the least to the greatest."""
        return tuple(slice(None, None, -1 if len(p) > 1 and p[-1] < p[0] else 1) for p in self.positions)

    def boxes(self) -> list[tuple[slice, ...]]:
        """The boxes of the slices, then the box of the solid, if there is one."""
        boxes = []
        for axis in self.slices:
            middle = self.shape[axis] // 2
            boxes.append(tuple(slice(middle, middle + 1) if k == axis else slice(None) for k in range(3)))
        return boxes + [tuple(slice(None, None, step) for step in self.steps)] * bool(self.steps)

    def values(self, array: np.ndarray, box: tuple[slice, ...], fill: np.generic | None) -> np.ndarray:
        """The values in a box, float64 (x, y, z, components), NaN in voxels that are missing or not finite."""
        shape = (len(range(n)[part]) for n, part in zip(self.shape, box, strict=True))
        return with_nan(array.reshape(*shape, -1), fill)[self.order]

    def slice_of(self, axis: int, values: np.ndarray, units: list[str]) -> Slice:
        """The slice at right angles to an axis. values: in its box, (x, y, z). units: of positions along x, y and z."""
        a, b = (k for k in range(3) if k != axis)
        along, middle = self.positions[axis], self.shape[axis] // 2
        caption = f"{'xyz'[axis]} = {along[middle]:.6g} {units[axis]}".rstrip() if len(along) else ""
        plane = values.reshape(values.shape[a], values.shape[b])
        names = (_label("xyz"[a], units[a]), _label("xyz"[b], units[b]))
        positions = (self.positions[a][self.order[a]], self.positions[b][self.order[b]])
        return Slice(plane, names, (self.spacing[a], self.spacing[b]), positions, caption)


class Row(NamedTuple):
    """What belongs to one volume. parts: its values in each box, (x, y, z), slices first."""

    heading: str
    parts: list[np.ndarray]
    scale: ColourScale
    units: str


def drawn_spacing(grid: Grid, geometry: Geometry) -> tuple[float, ...]:
    """The spacing of a grid in a picture. Where its axes of space have different units, a voxel of the field is a cube.

    Degrees of longitude and of latitude, whose units differ in their names, are alike.
    """
    spacing, space = grid.geometry(geometry).spacing, "xyz"[: min(len(grid.shape), 3)]
    if len({geometry.units_of(axis).partition("_")[0] for axis in space} - {""}) < 2:
        return spacing
    return tuple(a / (b or 1.0) for a, b in zip(spacing, geometry.spacing, strict=True))


def preview(
    field: NeuralField, grid: Grid, original: np.ndarray | None, steps: dict[int, Metrics], name: str, as_float: bool
) -> bytes:
    """A picture (PNG) of a field on a grid, and of the original and the error; of a time series at its middle step.

    Only the shown values are evaluated. original: the values on the grid, or None. steps: the metrics of each step;
    empty without an original. name: with which the title starts.
    """
    geometry, fill, step, space = field.header.geometry, field.values.fill, 0, slice(-3, None)  # the axes of space
    title = f"{name}: {geometry.name}, {' x '.join(map(str, grid.shape[space]))}"
    if len(grid.shape) == 4:
        middle = grid.shape[0] // 2
        grid = grid.part((slice(middle, middle + 1), *(slice(None),) * 3))
        step, original = grid.axes[0][0], None if original is None else original[middle]
        time = geometry.origin[0] + geometry.spacing[0] * step
        title += f", t = {time:.6g} {geometry.units_of('t')}".rstrip() + ("" if time == step else f" (step {step:g})")
    if geometry.is_turned:
        title += ", along turned axes from the first voxel"
    positions = geometry.axis_positions(grid.axes)[space]
    views = Views.of(grid.shape[space], drawn_spacing(grid, geometry)[space], positions)
    decoded, originals = [], []
    for box in views.boxes():
        part = box[: len(grid.shape)]
        time = (slice(None),) * (len(grid.shape) - len(part))
        decoded.append(views.values(field.on_grid(grid.part(time + part), as_float), box, fill))
        if original is not None:
            originals.append(views.values(original[part], box, fill))
    may_be_labels = field.values.is_integer and not as_float
    rows = rows_of(decoded, originals, may_be_labels, geometry.units)
    solids = [None] * len(rows)
    if views.steps:
        lengths = np.array(views.shape) * views.spacing
        solids = render_solids([row.parts[-1] for row in rows], [row.scale for row in rows], lengths)
    drawn, axis_units = [], [geometry.units_of(axis) for axis in "xyz"]
    for row, solid in zip(rows, solids, strict=True):
        parts = zip(views.slices, row.parts, strict=False)
        slices = [views.slice_of(k, part, axis_units) for k, part in parts]
        drawn.append(draw_row(row.heading, slices, row.scale, solid, row.units))
    title += quality_of(steps[int(step)] if steps else None, rows[0].scale.is_discrete)
    return page(title, np.concatenate(drawn, axis=0 if views.steps or len(views.slices) > 1 else 1))


def rows_of(decoded: list[np.ndarray], originals: list[np.ndarray], may_be_labels: bool, units: str) -> list[Row]:
    """The rows of a picture. decoded, originals: values (x, y, z, components); originals may be empty.

    may_be_labels: whether few different values of the original, if there is one, are labels. Of labels, the last row
    shows which voxels differ.
    """
    fields = {"decoded": decoded} | ({"original": originals} if originals else {})
    fields = {name: [magnitude(part) for part in parts] for name, parts in fields.items()}
    everything = list(itertools.chain(*fields.values()))
    is_vector = decoded[0].shape[-1] > 1
    labels = labels_in(fields.get("original", everything)) if may_be_labels and not is_vector else None
    scale = scale_of(everything) if labels is None else LabelScale.of(labels)
    which = ", magnitude" if is_vector else ""
    rows = [Row(name + which, parts, scale, units) for name, parts in fields.items()]
    if originals:
        errors = [magnitude(a - b) for a, b in zip(decoded, originals, strict=True)]
        if labels is None:
            rows.append(
                Row("error (decoded - original)" + which, errors, scale_of(errors, 0.03, 0.9, not is_vector), units)
            )
        else:
            rows.append(Row("difference", [np.where(np.isnan(e), e, e != 0) for e in errors], DIFFERENCE, ""))
    return rows


def quality_of(metrics: Metrics | None, is_of_labels: bool) -> str:
    """How far the decoded volume is from the original, for a title."""
    if metrics is None:
        return ""
    if not metrics.n_voxels:
        return ", nothing to compare"
    if is_of_labels:
        return f", {metrics.n_differing:,} of {metrics.n_voxels:,} voxels differ"
    return f", PSNR {metrics.psnr:.2f} dB" if metrics.n_differing else ", no voxel differs"


def _label(axis: str, units: str) -> str:
    """The name of an axis with its units, where there is room for these; the captions have them in full."""
    units = SHORT_UNITS.get(units, units)
    return f"{axis} [{units}]" if 0 < len(units) <= 3 else axis
