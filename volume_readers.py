"""Volume files -> volumes, format by format. VTK reads what it reads rightly.

A file of a spatial format becomes an array (x, y, z, components), with three figures of spacing and origin. VTK stores
x fastest, so such an array is a transposed view.
"""

from __future__ import annotations

import math
import tokenize

import numpy as np

from volume import RawLayout, Volume, VolumeError


def read_npy(path: str, d_in: int | None, d_out: int | None) -> Volume:
    """A NumPy array as a memory map, its axes as they are: of four, the first is time unless it is told otherwise."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(file)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are never unpickled")
        # A memory map checks the announced shape against the file's length before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False) if 0 not in shape else np.empty(shape, dtype)
    except (ValueError, OSError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise VolumeError(f"{path}: not a readable NumPy array: {error}") from None
    d_in = d_in or (4 if array.ndim - ((d_out or 1) > 1) > 3 else 3)
    return Volume(array, spacing=(1.0,) * d_in, origin=(0.0,) * d_in)


def read_raw(path: str, layout: RawLayout) -> Volume:
    """A headerless file as a memory map, whose bytes must be exactly those of `layout`."""
    dtype = np.dtype(layout.dtype).newbyteorder("<" if layout.endian == "little" else ">")
    expected = math.prod(layout.shape) * dtype.itemsize
    with open(path, "rb") as file:
        found = file.seek(0, 2)
    if found != expected:
        sizes = " x ".join(map(str, layout.shape))
        raise VolumeError(f"{path}: expected {expected} bytes for {sizes} of {layout.dtype}, found {found}")
    array = np.memmap(path, dtype, "r", shape=layout.shape, order="F")
    return Volume(array[..., None], (1.0,) * len(layout.shape), (0.0,) * len(layout.shape))


def read_vti(path: str, name: str | None) -> Volume:
    """VTK image data in XML."""
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    reader = vtkXMLImageDataReader()
    reader.GlobalWarningDisplayOff()  # one line of ours instead of VTK's many
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTK image data")
    reader.SetFileName(path)
    reader.Update()
    reader.GlobalWarningDisplayOn()
    if reader.GetErrorCode():
        raise VolumeError(f"{path}: expected VTK image data with an array on its points, found none")
    return _volume_of_image(path, reader.GetOutput(), name)


def _volume_of_image(path: str, image, name: str | None) -> Volume:
    """The array `name` (or the scalars, or else the first) on the points of a vtkImageData; none of it is copied."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonCore import vtkDataArray

    data = image.GetPointData()
    arrays = {data.GetArrayName(i): data.GetArray(i) for i in range(data.GetNumberOfArrays()) if data.GetArray(i)}
    if name is not None and name not in arrays:
        raise VolumeError(f"{path}: holds no array {name!r}, only {', '.join(map(repr, arrays)) or 'none'}")
    values = arrays[name] if name is not None else data.GetScalars() or data.GetArray(0)
    shape = image.GetDimensions()
    if values is None or values.GetNumberOfTuples() != math.prod(shape):
        raise VolumeError(f"{path}: expected VTK image data with an array on its points, found none")
    array = vtk_to_numpy(values).reshape(*shape[::-1], values.GetNumberOfComponents()).transpose(2, 1, 0, 3)
    matrix, spacing = image.GetDirectionMatrix(), image.GetSpacing()
    direction = np.array([[matrix.GetElement(i, j) for j in range(3)] for i in range(3)])
    origin = image.GetOrigin() + direction @ np.multiply(spacing, image.GetExtent()[::2])
    units = values.GetInformation().Get(vtkDataArray.UNITS_LABEL()) or ""
    times = image.GetFieldData().GetArray("TimeValue")
    time = times.GetTuple1(0) if times and times.GetNumberOfValues() == 1 else None
    geometry = tuple(origin.tolist()), values.GetName() or "sf", tuple(direction.ravel().tolist())
    return Volume(array, spacing, *geometry, units, time=time)
