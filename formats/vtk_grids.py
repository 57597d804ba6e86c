"""VTK's data sets as volumes: the points or the cells of an image, and what VTK resamples to an image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkDataArray

from cli import console
from formats.common import UNEVEN, VolumeError, of_three_axes, warn_of_vectors
from formats.variables import first_of
from formats.vtk_images import arrays_of
from utils import DEFAULT_NAME, SIGNS, Geometry, Volume, float_for

NO_IMAGES = {
    "vtkStructuredGrid": "a structured grid, which may be curved",
    "vtkUnstructuredGrid": "an unstructured grid",
    "vtkPolyData": "a surface or points",
}
WAY_OUT = "--resample NX,NY,NZ makes an image of it, as does ParaView's filter Resample To Image"
IS_VALID = "vtkValidPointMask"  # array of VTK's filter: 0 at points of the image that lie outside the data set
GHOSTS = "vtkGhostType"  # array of bits, of which these hide a point or a cell; others mark copies, which are values
HIDDEN_POINT, HIDDEN_CELL = 2, 32


def volume_of_data_set(path: str, data, name: str | None = None, resample: tuple[int, ...] | None = None) -> Volume:
    """The volume of an array of a VTK data set, see `_chosen`. An array on points is not copied.

    A cell is a voxel at its middle. resample: the number of points along x, y, z of the image that VTK makes of the
    data set; None for a data set that is an image. Voxels outside the data set, and hidden ones, are NaN. Raises
    VolumeError.
    """
    if resample:
        data = _resampled(path, data, resample)
    shape, geometry = _points(path, data)
    values, is_on_cells = _chosen(path, data, name)
    if is_on_cells:
        inwards = np.multiply(geometry.spacing, [0.5 * (n > 1) for n in shape])
        origin = geometry.origin + np.reshape(geometry.direction, (3, 3)) @ inwards
        geometry = dataclasses.replace(geometry, origin=tuple(origin.tolist()))
        shape = tuple(max(n - 1, 1) for n in shape)
    array = vtk_to_numpy(values).reshape(*shape[::-1], values.GetNumberOfComponents())
    is_missing = _is_missing(data, is_on_cells, math.prod(shape))
    if is_missing.any():
        array = array.astype(float_for(array.dtype))
        array[is_missing.reshape(array.shape[:-1])] = np.nan
    units = values.GetInformation().Get(vtkDataArray.UNITS_LABEL()) or ""
    times = data.GetFieldData().GetArray("TimeValue")
    time = times.GetTuple1(0) if times and times.GetNumberOfValues() == 1 else None
    geometry = dataclasses.replace(geometry, name=values.GetName() or DEFAULT_NAME, units=units)
    space = _space_of(data)
    warn_of_vectors(path, array, space)
    geometry = dataclasses.replace(geometry.with_signs(SIGNS[space]), space="LPS") if space else geometry
    return Volume(array.transpose(2, 1, 0, 3), geometry, time=time)


def _chosen(path: str, data, name: str | None) -> tuple[vtkDataArray, bool]:
    """An array of a data set, and whether it is on cells. Raises VolumeError when there is none.

    name: of the array. Without a name, it is the active scalars, or else the first array; a warning names the others.
    Arrays on points go before those on cells.
    """
    parts = (data.GetPointData(), data.GetCellData())
    arrays = [(array, part is parts[1]) for part in parts for array in arrays_of(part) if _has_values(array)]
    names = dict.fromkeys(array.GetName() for array, _ in arrays)
    if name is not None and name not in names:
        raise VolumeError(f"{path}: holds no array {name!r}, only {', '.join(map(_shown, names)) or 'none'}")
    if not arrays:
        raise VolumeError(f"{path}: expected an array on the points or the cells of an image, found none")
    values, is_on_cells = next(found for found in arrays if name in (None, found[0].GetName()))
    if name is None:
        active = parts[is_on_cells].GetScalars()
        values = active if active and _has_values(active) else values
        if others := [_shown(other) for other in names if other != values.GetName()]:
            what = f"its array {_shown(values.GetName())} is read, not {first_of(others)}"
            console.warn(path, f"{what}: --array NAME reads another one")
    if not is_on_cells and parts[1].HasArray(values.GetName() or ""):
        way_out = "ParaView's filter Pass Arrays leaves that on cells alone"
        console.warn(path, f"{values.GetName()} is on points and on cells: that on points is read; {way_out}")
    if values.GetNumberOfTuples() != (data.GetNumberOfCells() if is_on_cells else data.GetNumberOfPoints()):
        what = "cell" if is_on_cells else "point"
        raise VolumeError(f"{path}: expected a value at each {what}, found {values.GetNumberOfTuples()}")
    return values, is_on_cells


def _has_values(array: vtkDataArray) -> bool:
    return array.GetName() not in (IS_VALID, GHOSTS)


def _shown(name: str | None) -> str:
    return repr(name) if name else "(unnamed)"


def _points(path: str, data) -> tuple[tuple[int, ...], Geometry]:
    """The number of points of an image along each axis, and where they lie. Raises VolumeError for other data sets."""
    if data.IsA("vtkImageData"):
        matrix, spacing = data.GetDirectionMatrix(), data.GetSpacing()
        direction = np.array([[matrix.GetElement(i, j) for j in range(3)] for i in range(3)])
        origin = data.GetOrigin() + direction @ np.multiply(spacing, data.GetExtent()[::2])
        steps = [step or (1.0 if n == 1 else 0.0) for step, n in zip(spacing, data.GetDimensions(), strict=True)]
        return data.GetDimensions(), _geometry(steps, origin, direction)
    if not data.IsA("vtkRectilinearGrid"):
        kind = data.GetClassName()
        raise VolumeError(f"{path}: expected an image, found {NO_IMAGES.get(kind, kind)}: {WAY_OUT}")
    axes = [vtk_to_numpy(part) for part in (data.GetXCoordinates(), data.GetYCoordinates(), data.GetZCoordinates())]
    steps = [float(axis[-1] - axis[0]) / (len(axis) - 1) if len(axis) > 1 else 1.0 for axis in axes]
    for letter, axis, step in zip("xyz", axes, steps, strict=True):
        off = np.abs(axis - (axis[0] + step * np.arange(len(axis)))).max()
        rounding = np.spacing(np.abs(axis).max()) if axis.dtype.kind == "f" else 0.0
        if not (step and off <= UNEVEN * abs(step) + rounding):
            raise VolumeError(f"{path}: expected equal steps along each axis, found others along {letter}: {WAY_OUT}")
    return data.GetDimensions(), _geometry(steps, np.array([float(axis[0]) for axis in axes]), np.eye(3))


def _geometry(steps: Sequence[float], origin: np.ndarray, direction: np.ndarray) -> Geometry:
    """The geometry of an image. A negative step turns its axis round, as that of a coordinate that falls."""
    turned = direction * np.where(np.less(steps, 0), -1.0, 1.0) + 0.0  # 0.0: -0 becomes 0
    return Geometry(tuple(map(abs, steps)), tuple(origin.tolist()), tuple(turned.ravel().tolist()))


def _resampled(path: str, data, counts: tuple[int, ...]):
    """The image that VTK's own filter makes of a data set: so many points along x, y, z, over all of its extent."""
    from vtkmodules.vtkFiltersCore import vtkResampleToImage

    if data.IsA("vtkImageData"):
        raise VolumeError(f"{path}: is an image as it is: leave --resample out")
    if not (data.IsA("vtkDataSet") or data.IsA("vtkCompositeDataSet")):
        raise VolumeError(f"{path}: expected a data set, found {data.GetClassName()}, which has no points")
    counts = of_three_axes(counts, 1)
    sampler = vtkResampleToImage()
    sampler.SetInputDataObject(data)
    sampler.SetSamplingDimensions(counts)
    sampler.Update()
    image = sampler.GetOutput()
    is_valid = image.GetPointData().GetArray(IS_VALID)
    if not (is_valid and vtk_to_numpy(is_valid).any()):
        raise VolumeError(f"{path}: --resample: expected points within its cells, found none of {counts} there")
    for letter, n, step in zip("xyz", counts, image.GetSpacing(), strict=True):
        if n > 1 and not step > 0:
            raise VolumeError(f"{path}: --resample: is flat along {letter}: expected 1 point along it, found {n}")
    image.SetSpacing([step or 1.0 for step in image.GetSpacing()])
    return image


def _is_missing(data, is_on_cells: bool, n_voxels: int) -> np.ndarray:
    """Which points or cells of an image are hidden, or outside the data set that was resampled; all in VTK's order."""
    attributes = data.GetCellData() if is_on_cells else data.GetPointData()
    is_missing = np.zeros(n_voxels, bool)
    if (ghosts := attributes.GetArray(GHOSTS)) and ghosts.GetNumberOfValues() == n_voxels:
        is_missing |= vtk_to_numpy(ghosts).astype(np.uint8) & (HIDDEN_CELL if is_on_cells else HIDDEN_POINT) > 0
    if not is_on_cells and (is_valid := attributes.GetArray(IS_VALID)):
        is_missing |= vtk_to_numpy(is_valid) == 0
    return is_missing


def _space_of(data) -> str:
    """Where x, y, z of a data set point, one of SIGNS, as 3D Slicer says it; "" where it does not."""
    said = data.GetFieldData().GetAbstractArray("SPACE")
    space = said.GetValue(0) if said and said.IsA("vtkStringArray") and said.GetNumberOfValues() else ""
    return space if space in SIGNS else ""
