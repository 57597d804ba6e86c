"""Volumes as VTK's own readers and writers have them. The only helpers that need VTK."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkIOImage import vtkMetaImageReader, vtkNIFTIImageReader, vtkNrrdReader
from vtkmodules.vtkIOXML import vtkXMLImageDataReader, vtkXMLImageDataWriter

VTK_READERS = {
    ".vti": vtkXMLImageDataReader,
    ".nrrd": vtkNrrdReader,
    ".mhd": vtkMetaImageReader,
    ".mha": vtkMetaImageReader,
    ".nii": vtkNIFTIImageReader,
    ".gz": vtkNIFTIImageReader,
}


def vtk_read(path: Path) -> SimpleNamespace:
    """What VTK's own reader finds in a file: dimensions, spacing, origin, direction, name, and array[x, y, z], voxel by
    voxel through VTK's own indexing."""
    reader = VTK_READERS[path.suffix]()
    assert reader.CanReadFile(str(path))
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    scalars = image.GetPointData().GetScalars()
    dims, n = image.GetDimensions(), scalars.GetNumberOfComponents()
    values = [
        [scalars.GetComponent(image.ComputePointId((i, j, k)), c) for c in range(n)]
        for i in range(dims[0])
        for j in range(dims[1])
        for k in range(dims[2])
    ]
    array = np.array(values).reshape(*dims, n)
    return SimpleNamespace(
        dimensions=dims,
        spacing=image.GetSpacing(),
        origin=image.GetOrigin(),
        direction=tuple(image.GetDirectionMatrix().GetData()),
        name=scalars.GetName(),
        type=scalars.GetDataTypeAsString(),
        array=array[..., 0] if n == 1 else array,
        reader=reader,
    )


def vtk_image(
    arrays, spacing=(1, 1, 1), origin=(0, 0, 0), name="density", extent=None, direction=None, active=None, time=None
):
    """A vtkImageData of array[x, y, z], or of several by name, set voxel by voxel through VTK's own indexing."""
    arrays = arrays if isinstance(arrays, dict) else {name: arrays}
    shape = next(iter(arrays.values())).shape[:3]
    image = vtkImageData()
    image.SetExtent(extent or [v for n in shape for v in (0, n - 1)])
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirectionMatrix(direction)
    start = image.GetExtent()[::2]
    for key, array in arrays.items():
        columns = array.reshape(*shape, -1)
        scalars = numpy_to_vtk(np.zeros((columns[..., 0].size, columns.shape[-1]), array.dtype), deep=True)
        for index in np.ndindex(shape):
            point = image.ComputePointId([i + s for i, s in zip(index, start, strict=True)])
            scalars.SetTuple(point, columns[index].tolist())
        scalars.SetName(key)
        image.GetPointData().AddArray(scalars)
    image.GetPointData().SetActiveScalars(active or next(iter(arrays)))
    if time is not None:
        value = numpy_to_vtk(np.array([time]), deep=True)
        value.SetName("TimeValue")
        image.GetFieldData().AddArray(value)
    return image


def vtk_write(path: Path, *args, **keywords) -> None:
    """Write a `vtk_image` with VTK's own writer."""
    writer = vtkXMLImageDataWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(vtk_image(*args, **keywords))
    assert writer.Write()
