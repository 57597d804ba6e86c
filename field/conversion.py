"""A decoded volume as an object of another library. xarray and VTK are imported where they are asked for."""

from __future__ import annotations

import math

import numpy as np

from formats.cf import description
from formats.common import AXES
from formats.slabs import frame_of
from utils import Volume


def xarray_of(volume: Volume) -> object:
    """The xarray.DataArray of a volume, with what `net_decompress.py --recon recon.nc` writes of it: see `description`.

    The axes are x, y, z, before them t, after them component. Each has its coordinate; along turned axes, positions run
    from the origin on. Attributes: units; _FillValue, the value of missing voxels; direction where the axes are turned;
    space where it is known. Its to_netcdf writes a file that is read back in the same place.
    """
    import xarray

    axes, said = AXES[volume.geometry.d_in], description(volume, volume.array.dtype)
    return xarray.DataArray(
        volume.array,
        {axis: (axis, *said.coordinates[axis]) for axis in axes},
        (*axes, *["component"] * (volume.array.ndim > len(axes))),
        said.name,
        said.attributes,
    )


def vtk_of(volume: Volume) -> object:
    """The vtkImageData of a volume in space. float16 becomes float32, which VTK has.

    Raises ValueError for a time series of several steps.
    """
    from vtkmodules.vtkCommonCore import vtkDataArray
    from vtkmodules.vtkCommonDataModel import vtkImageData

    if volume.geometry.d_in == 4:
        if len(volume.array) > 1:
            raise ValueError(f"expected one time, found a series of {len(volume.array)}: choose one by grid(time=T)")
        volume = volume.at_step()
    frame, image = frame_of(volume, has_float16=False), vtkImageData()
    image.SetDimensions(frame.grid)
    image.SetSpacing(frame.geometry.spacing)
    image.SetOrigin(frame.geometry.origin)
    image.SetDirectionMatrix(frame.geometry.direction)
    values = vtk_array(frame.geometry.name, volume.array, frame.grid)
    if frame.geometry.units:
        values.GetInformation().Set(vtkDataArray.UNITS_LABEL(), frame.geometry.units)
    image.GetPointData().AddArray(values)
    image.GetPointData().SetActiveScalars(values.GetName())
    return image


def vtk_array(name: str, array: np.ndarray, size: tuple[int, ...]) -> object:
    """The VTK array of an array [x, y, z] or [x, y, z, components], in VTK's order: x fastest."""
    from vtkmodules.util.numpy_support import numpy_to_vtk

    array = array.astype(np.float32) if array.dtype == np.float16 else array  # VTK has no float16
    values = array.reshape(*size, -1).transpose(2, 1, 0, 3).reshape(math.prod(size), -1)
    data = numpy_to_vtk(np.ascontiguousarray(values), deep=True)
    data.SetName(name)
    return data
