"""Files <-> volumes. The only place that knows a file format of volumes, and VTK's order of voxels.

`Volume.array[x, y, z]`: axis 0 is x, as in the original scripts. VTK stores x fastest, so an array goes to
VTK in Fortran order.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tokenize
from xml.sax.saxutils import escape

import numpy as np

SUFFIXES = (".npy", ".vti")
FIRST_VTK_ERROR = 20000  # lesser codes are the system's


class VolumeError(Exception):
    """A volume file that cannot be read or written; the message names it, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """Values on a regular grid.

    array: one value per voxel, shape (x, y, z), or (x, y, z, components). spacing, origin: one figure
    per grid axis, in the units of length that the file uses. name: of the field.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    name: str = "sf"


def read_volume(path: str, d_in: int = 3, d_out: int = 1) -> Volume:
    """Read a volume of `d_in` axes, with a last axis of `d_out` components when that is above 1.

    The array keeps its values and type, in the machine's byte order; booleans become uint8. Raises
    VolumeError for anything that is not a finite numeric volume of that form.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from None
    if start[:6] == b"\x93NUMPY":
        volume = _read_npy(path, d_in)
    elif suffix_of(path) == ".vti":
        volume = _read_vti(path, d_in)
    else:
        raise VolumeError(f"{path}: expected a NumPy array (.npy) or VTK image data (.vti), found {start!r}...")
    if not all(0 < s < math.inf for s in volume.spacing):
        raise VolumeError(f"{path}: expected a positive spacing, found {volume.spacing}")
    array = _native(path, volume.array)
    expected = d_in + (d_out > 1)
    if array.ndim != expected or (d_out > 1 and array.shape[-1] != d_out):
        form = f"{d_in} axes" + (f" and {d_out} components" if d_out > 1 else "")
        raise VolumeError(f"{path}: expected {form}, found shape {array.shape}")
    if array.size == 0:
        raise VolumeError(f"{path}: is empty: shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), array.shape))
        raise VolumeError(
            f"{path}: expected finite values, found {np.count_nonzero(bad)} NaN or infinite ones, the first at {first}"
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(float(array.max()) - float(array.min())):
            raise VolumeError(f"{path}: the range of its values, {array.min()} to {array.max()}, overflows float64")
    return dataclasses.replace(volume, array=array)


def _native(path: str, array: np.ndarray) -> np.ndarray:
    """`array` as a plain, C-ordered, native-endian array of integers or floats."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind not in "iuf":
        raise VolumeError(f"{path}: expected integers or floats, found dtype {array.dtype}")
    dtype = array.dtype.newbyteorder("=")
    if dtype.itemsize > 8:  # long double: no file format of ours and no network holds it
        dtype = np.dtype(np.float64)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return np.array(array, dtype=dtype, order="C")


def _read_npy(path: str, d_in: int) -> Volume:
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
    return Volume(array, spacing=(1.0,) * d_in, origin=(0.0,) * d_in)


def _read_vti(path: str, d_in: int) -> Volume:
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    reader = vtkXMLImageDataReader()
    reader.GlobalWarningDisplayOff()  # one line of ours instead of VTK's many
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTK image data")
    reader.SetFileName(path)
    reader.Update()
    reader.GlobalWarningDisplayOn()
    image = reader.GetOutput()
    data = image.GetPointData()
    scalars = data.GetScalars() or data.GetArray(0)
    shape = image.GetDimensions()
    if reader.GetErrorCode() or scalars is None or scalars.GetNumberOfTuples() != np.prod(shape):
        raise VolumeError(f"{path}: expected VTK image data with an array on its points, found none")
    if not image.GetDirectionMatrix().IsIdentity():
        raise VolumeError(f"{path}: expected axes along x, y and z, found a rotated image")
    n_components = scalars.GetNumberOfComponents()
    values = vtk_to_numpy(scalars).reshape(*shape[::-1], n_components).transpose(2, 1, 0, 3)
    values = values.reshape(*(shape[:d_in] if math.prod(shape[d_in:]) == 1 else shape), n_components)
    if n_components == 1:
        values = values[..., 0]
    first = image.GetExtent()[::2]
    spacing = image.GetSpacing()
    origin = [o + i * s for o, i, s in zip(image.GetOrigin(), first, spacing, strict=True)]
    return Volume(values, tuple(spacing[:d_in]), tuple(origin[:d_in]), scalars.GetName() or "sf")


def suffix_of(path: str) -> str:
    """The file's suffix in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def output_path(path: str) -> str:
    """`path` with .vti appended when it has no suffix. Raises VolumeError for one that cannot be written."""
    suffix = suffix_of(path)
    if not suffix:
        return path + ".vti"
    if suffix not in SUFFIXES:
        raise VolumeError(f"{path}: cannot write {suffix} files, only {' and '.join(SUFFIXES)}")
    return path


def write_volume(path: str, volume: Volume, suffix: str) -> None:
    """Write `volume` to `path` in the format that `suffix` names, whatever `path` itself ends in.

    A .npy file holds the values alone; a .vti file also spacing, origin and name.
    Raises OSError when the system refuses to write.
    """
    if suffix == ".npy":
        with open(path, "wb") as file:
            np.save(file, volume.array, allow_pickle=False)
    else:
        _write_vti(path, volume)


def _write_vti(path: str, volume: Volume) -> None:
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOXML import vtkXMLImageDataWriter

    d_in = len(volume.spacing)
    padding = 3 - d_in  # VTK's images have three axes
    array = volume.array
    if array.dtype == np.float16:  # VTK has no such type; float32 holds its values exactly
        array = array.astype(np.float32)
    grid = array.shape[:d_in] + (1,) * padding
    n_components = 1 if array.ndim == d_in else array.shape[-1]
    values = array.reshape(*grid, n_components).transpose(2, 1, 0, 3).reshape(-1, n_components)

    image = vtkImageData()
    image.SetDimensions(*grid)
    image.SetSpacing(*volume.spacing, *(1.0,) * padding)
    image.SetOrigin(*volume.origin, *(0.0,) * padding)
    scalars = numpy_to_vtk(np.ascontiguousarray(values), deep=True)
    scalars.SetName(escape(volume.name, {'"': "&quot;"}))  # VTK writes it into its XML as it is
    image.GetPointData().SetScalars(scalars)

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
