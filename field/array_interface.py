"""What makes a NeuralField an array, shows it, and hands it to other libraries. All values are evaluated on demand."""

from __future__ import annotations

import numpy as np

from field.conversion import vtk_of, xarray_of
from field.description import html_of, line_of
from formats.arrays import Shaped
from utils import Grid, Volume, VolumeHeader


class ArrayInterface(Shaped):
    """A base class of a class with `header`, `grid()`, `on_grid(grid)` and `lazy()`.

    The array is that of the decoded volume: [x, y, z], with t before and components after them where there are any.
    """

    header: VolumeHeader

    # --- what it is ---

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of voxels along each axis, followed by the number of components when there are several."""
        n = self.header.n_components
        return self.header.shape + (n,) * (n > 1)

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self.header.dtype

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance between voxels along each axis, in the file's units of length (and time)."""
        return self.header.geometry.spacing

    @property
    def origin(self) -> tuple[float, ...]:
        """The position of the first voxel."""
        return self.header.geometry.origin

    @property
    def name(self) -> str:
        return self.header.geometry.name

    @property
    def units(self) -> str:
        """The units of the values, "" when unknown."""
        return self.header.geometry.units

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {line_of(self)}>"

    def _repr_html_(self) -> str:
        return html_of(self)

    # --- as an array ---

    def __getitem__(self, key: object) -> np.ndarray | np.generic:
        """The values of the chosen voxels, and no others. key: integers, slices of any step and `...`, as of NumPy."""
        return np.asarray(self.lazy()[key])[()]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.lazy().__array__(dtype, copy)

    # --- in other libraries ---

    def to_xarray(self, grid: Grid | None = None) -> object:
        """The values on a grid, by default at every voxel, as an xarray.DataArray; see conversion.xarray_of."""
        return xarray_of(self._decoded(grid))

    def to_vtk(self, grid: Grid | None = None) -> object:
        """The same as a vtkImageData, which pyvista.wrap takes; see conversion.vtk_of. A series needs a single time."""
        return vtk_of(self._decoded(grid))

    def _decoded(self, grid: Grid | None) -> Volume:
        grid = grid or self.grid()
        return Volume(self.on_grid(grid), grid.geometry(self.header.geometry), self.header.fill)
