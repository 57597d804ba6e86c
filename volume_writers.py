"""Volumes -> files: what writes each format of volumes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from xml.sax.saxutils import escape

import numpy as np

from volume import Volume, VolumeError, suffix_of

SUFFIXES = (".npy", ".vti")
FIRST_VTK_ERROR = 20000  # lesser codes are the system's


def output_path(path: str) -> str:
    """`path` with .vti appended when it has no suffix. Raises VolumeError for one that cannot be written."""
    suffix = suffix_of(path)
    if not suffix:
        return path + ".vti"
    if suffix not in SUFFIXES:
        raise VolumeError(f"{path}: cannot write {suffix} files, only {' and '.join(SUFFIXES)}")
    return path


def write_volume(path: str, volume: Volume, suffix: str, extra: Mapping[str, np.ndarray] | None = None) -> None:
    """Write `volume` to `path` in the format that `suffix` names, whatever `path` itself ends in.

    A .npy file holds the values alone; a .vti file also spacing, origin, name and time, and further arrays by name.
    Raises OSError when the system refuses to write.
    """
    if suffix == ".npy":
        with open(path, "wb") as file:
            np.save(file, volume.array, allow_pickle=False)
    else:
        _write_vti(path, volume, extra or {})


def _write_vti(path: str, volume: Volume, extra: Mapping[str, np.ndarray]) -> None:
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonCore import vtkDataArray
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOXML import vtkXMLImageDataWriter

    d_in = len(volume.spacing)
    padding = 3 - d_in  # VTK's images have three axes
    grid = volume.array.shape[:d_in] + (1,) * padding
    image = vtkImageData()
    image.SetDimensions(*grid)
    image.SetSpacing(*volume.spacing, *(1.0,) * padding)
    image.SetOrigin(*volume.origin, *(0.0,) * padding)
    image.SetDirectionMatrix(volume.direction)
    for name, array in {volume.name: volume.array, **extra}.items():
        if array.dtype == np.float16:  # VTK has no such type; float32 holds its values exactly
            array = array.astype(np.float32)
        n_components = math.prod(array.shape[d_in:])
        values = array.reshape(*grid, n_components).transpose(2, 1, 0, 3).reshape(-1, n_components)
        data = numpy_to_vtk(np.ascontiguousarray(values), deep=True)
        data.SetName(escape(name, {'"': "&quot;"}))  # VTK writes it into its XML as it is
        if volume.units and name == volume.name:
            data.GetInformation().Set(vtkDataArray.UNITS_LABEL(), volume.units)
        image.GetPointData().AddArray(data)
    if volume.time is not None:
        time = numpy_to_vtk(np.array([volume.time]), deep=True)
        time.SetName("TimeValue")
        image.GetFieldData().AddArray(time)
    image.GetPointData().SetActiveScalars(escape(volume.name, {'"': "&quot;"}))

    with open(path, "wb"):  # VTK says little about why a file cannot be written; the system does
        pass
    writer = vtkXMLImageDataWriter()
    writer.SetFileName(path)
    writer.SetInputData(image)
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()
    writer.SetCompressorTypeToZLib()
    writer.GlobalWarningDisplayOff()
    is_written = writer.Write()
    writer.GlobalWarningDisplayOn()
    code = writer.GetErrorCode()
    if not is_written or code:
        raise OSError(code, os.strerror(code) if 0 < code < FIRST_VTK_ERROR else f"VTK reports error {code}")
