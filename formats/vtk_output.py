"""What VTK's readers find in a file: its header, its data object, or the reason why there is none."""

from __future__ import annotations

import math
import os
import re

from vtkmodules.vtkCommonCore import vtkDataArray, vtkOutputWindow, vtkStringOutputWindow
from vtkmodules.vtkCommonDataModel import vtkDataObject
from vtkmodules.vtkCommonExecutionModel import vtkStreamingDemandDrivenPipeline as Pipeline

from formats.common import MAX_EXPANSION, VolumeError


def output_of(path: str, reader, expansion: int = MAX_EXPANSION):
    """The data object that a VTK reader makes of a file. Raises VolumeError with VTK's reason when VTK fails."""
    said = read_header(path, reader, expansion)
    reader.Update()
    _check(path, reader, said)
    return reader.GetOutputDataObject(0)


def read_header(path: str, reader, expansion: int) -> vtkStringOutputWindow:
    """Let a VTK reader read a file's header. Returns the window that collects VTK's errors. Raises VolumeError.

    A file is refused before VTK allocates memory if its header announces more than `expansion` bytes of voxels per byte
    of file.
    """
    said = vtkStringOutputWindow()
    vtkOutputWindow.SetInstance(said)
    reader.SetFileName(path)
    reader.UpdateInformation()
    _check(path, reader, said)
    expected, found = _announced(reader.GetOutputInformation(0)), os.path.getsize(path)
    if expected > expansion * found:
        raise VolumeError(f"{path}: truncated: expected {expected} bytes of voxels, found {found} bytes in all")
    return said


def _check(path: str, reader, said: vtkStringOutputWindow) -> None:
    """Raise VolumeError with the first error that VTK has reported, if any. VTK calls some errors warnings."""
    found = re.search(r"(?:ERROR: .*\n(?:.*\): )?(.+)|(Error reading.+))", said.GetOutput())
    if found or reader.GetErrorCode():
        reason = " ".join((found[1] or found[2]).split()) if found else "damaged or truncated"
        raise VolumeError(f"{path}: VTK cannot read it: {reason}")


def _announced(information) -> int:
    """How many bytes of voxels a file's header announces. A type that is not known yet counts as one byte."""
    extent = information.Get(Pipeline.WHOLE_EXTENT()) if information.Has(Pipeline.WHOLE_EXTENT()) else (0, -1)
    count = math.prod(max(last - first + 1, 0) for first, last in zip(extent[::2], extent[1::2], strict=True))
    scalars = vtkDataObject.GetActiveFieldInformation(information, vtkDataObject.FIELD_ASSOCIATION_POINTS, 0)
    if scalars and scalars.Has(vtkDataObject.FIELD_ARRAY_TYPE()):
        count *= vtkDataArray.GetDataTypeSize(scalars.Get(vtkDataObject.FIELD_ARRAY_TYPE()))
    if scalars and scalars.Has(vtkDataObject.FIELD_NUMBER_OF_COMPONENTS()):
        count *= max(scalars.Get(vtkDataObject.FIELD_NUMBER_OF_COMPONENTS()), 1)
    return count
