"""Writes a field on a grid to one file, or to one file per step of a series. Large volumes go slab by slab."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from cli import console
from cli.files import FileSet, check_space
from cli.progress import Progress
from field.evaluation import OnProgress
from field.neural_field import NeuralField
from formats.arrays import LazyArray
from formats.common import suffix_of
from formats.pvd import collection, collection_path
from formats.series import step_path
from formats.writing import WITH_TIME, least_bytes, output_files, write_volume
from utils import IDENTITY, Grid, UserError, Volume

MAX_VALUES_IN_MEMORY = 1 << 27  # values of a file, gradients included; a larger file is written slab by slab
OnValues = Callable[[Grid, np.ndarray | LazyArray], None]


class Output(NamedTuple):
    """What is written of a field."""

    path: str  # the file, or the name from which the names of the steps' files follow
    grid: Grid  # the positions
    is_one_time: bool = False  # whether a single time of a series is written
    as_float: bool = False  # whether integers stay unrounded
    with_gradient: bool = False  # whether the gradient is written, too

    @property
    def is_by_step(self) -> bool:
        """Whether each file holds one time of a series."""
        return len(self.grid.shape) == 4 and (self.is_one_time or suffix_of(self.path) not in WITH_TIME)

    def named(self, field: NeuralField) -> tuple[Output, list[str]]:
        """The same with the final name of the file, and the names of the files that will lie beside the file."""
        shape = self.grid.shape[self.is_by_step :]
        path, *beside = output_files(
            self.path, shape, field.values.decoded_dtype(self.as_float), field.header.n_components
        )
        return self._replace(path=path), beside

    def grids(self) -> dict[str, Grid]:
        """The grid of each file of values, by file name. Raises UserError for a series in a format of one volume."""
        if self.is_one_time or not self.is_by_step:
            return {self.path: self.grid}
        if suffix_of(self.path) != ".vti":
            formats = " or ".join((".vti", *WITH_TIME))
            raise UserError(f"{self.path}: a time series is written as {formats}; --time T writes one of its times")
        times, *space = self.grid.axes
        return {step_path(self.path, int(t)): Grid((times[k : k + 1], *space)) for k, t in enumerate(times)}

    def files(self) -> list[str]:
        """All files of values, and the collection that lists them, if any. The last one is the file to open."""
        grids = self.grids()
        return [*grids] if self.path in grids else [*grids, collection_path(self.path)]


def write_output(output: Output, field: NeuralField, source: str, on_values: OnValues | None, files: FileSet) -> None:
    """Evaluate a field and write its files. Raises UserError when the disk has too little space.

    source: the name of the field's file. on_values: called with each grid and its values. files: the new ones get their
    final names when it ends, all or none.
    """
    grids, times = output.grids(), {}
    shape = next(iter(grids.values())).shape
    n_points = math.prod(shape) * len(grids)
    n_arrays = field.header.n_components * (1 + len(field.header.shape) * output.with_gradient)
    n_bytes = n_points * n_arrays * field.values.decoded_dtype(output.as_float).itemsize
    check_space(output.path, least_bytes(output.path, n_bytes), f"{source}: its volume of shape {shape}")
    is_large = math.prod(shape) * n_arrays > MAX_VALUES_IN_MEMORY
    # Large volumes are not kept, so the comparison evaluates them again.
    n_evaluations = 1 + output.with_gradient + bool(is_large and on_values)
    if suffix_of(output.path) == ".vti" and field.header.geometry.direction != IDENTITY:
        way_out = "apply Image Data To Point Set before Contour"
        console.warn(output.path, f"VTK's contour filter leaves out the directions of its axes: {way_out}")
    index = "" if output.path in grids else files.add(collection_path(output.path))  # first: the index of the set
    with Progress("decoding", n_points * n_evaluations) as progress:

        def gradient_on(grid: Grid, on_progress: OnProgress) -> np.ndarray:  # of a step without the derivative by time
            return field.gradient_on_grid(grid, on_progress)[..., int(output.is_by_step) :]

        def write(path: str, grid: Grid) -> None:  # a function, so that its arrays are freed when it returns
            array = _evaluated(partial(field.on_grid, as_float=output.as_float), grid, progress, is_large)
            if on_values:
                on_values(grid, array)
            fill = field.header.fill
            if fill is not None and array.dtype != field.header.dtype:  # integers unrounded
                fill = array.dtype.type(np.nan)
            volume, extra = Volume(array, grid.geometry(field.header.geometry), fill), {}
            if output.with_gradient:
                gradient = _evaluated(gradient_on, grid, progress, is_large)
                extra[f"{volume.geometry.name}_gradient"] = gradient[0] if output.is_by_step else gradient
            if output.is_by_step:
                times[path] = volume.geometry.origin[0]
                volume = volume.at_step()
            write_volume(path, volume, extra, files)

        for path, grid in grids.items():
            write(path, grid)
        if index:
            with open(index, "wb") as file:
                file.write(collection(times))


def _evaluated(
    evaluate: Callable[..., np.ndarray], grid: Grid, progress: Progress, is_lazy: bool
) -> np.ndarray | LazyArray:
    """What `evaluate(grid, on_progress=...)` gives. progress: counts positions.

    is_lazy: whether the array is evaluated box by box, each box whenever it is asked for.
    """

    def now(grid: Grid) -> np.ndarray:
        done, size = progress.done, math.prod(grid.shape)
        return evaluate(grid, on_progress=lambda part: progress.update(done + part * size))

    if not is_lazy:
        return now(grid)
    d_in = len(grid.shape)
    like = now(grid.part((slice(0, 1),) * d_in))
    return LazyArray((*grid.shape, *like.shape[d_in:]), like.dtype, lambda box: now(grid.part(box)), d_in)
