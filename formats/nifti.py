"""NIfTI (.nii, .nii.gz): a reader that uses VTK, in the process of vtk_process.py, and a header. Source: nifti1.h.

World coordinates of the file are RAS: x, y, z point to right, anterior, superior. Those of a volume are LPS, in mm, and
times are in seconds.
"""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np

from formats.arrays import LazyArray
from formats.common import LENGTHS_IN_MM, MAX_EXPANSION, VolumeError, volume_from_axes, warn_of_vectors
from formats.slabs import Frame
from utils import SIGNS, Volume, float_for

MAX_AXIS = 32767  # most voxels along an axis
VECTOR_INTENT = 1007  # intent code: the fifth axis has vector components
NIFTI_TYPES = {
    "int8": 256,
    "int16": 4,
    "int32": 8,
    "int64": 1024,
    "uint8": 2,
    "uint16": 512,
    "uint32": 768,
    "uint64": 1280,
    "float32": 16,
    "float64": 64,
}
UNIT_CODES = {"m": 1, "mm": 2, "\u00b5m": 3}
UNIT_IN_MM = {code: LENGTHS_IN_MM[unit] for unit, code in UNIT_CODES.items()}  # others are taken for mm
UNIT_IN_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # s, ms, us
RGB_TYPES, COMPLEX_TYPES = (128, 2304), (32, 1792, 2048)  # codes of data types


def read_nifti(path: str) -> Volume:
    """A NIfTI file's volume: values scaled, geometry from the sform or else the qform. Several times are a series."""
    from vtkmodules.vtkIOImage import vtkNIFTIImageReader

    from formats.vtk_grids import volume_of_data_set
    from formats.vtk_output import mapped, output_of, read_header

    reader = vtkNIFTIImageReader()
    reader.TimeAsVectorOn()
    is_packed = path.lower().endswith(".gz")
    expansion = MAX_EXPANSION if is_packed else 1
    read_header(path, reader, expansion)
    header = reader.GetNIFTIHeader()
    sizes = [header.GetDim(i) if i <= header.GetDim(0) else 1 for i in range(1, 8)]
    is_rgb = header.GetDataType() in RGB_TYPES
    if header.GetDataType() in COMPLEX_TYPES:
        raise VolumeError(f"{path}: expected real values, found complex ones")
    if math.prod(sizes[5:]) != 1 or (is_rgb and math.prod(sizes[3:]) != 1):
        raise VolumeError(f"{path}: expected axes of space, time and components, found sizes {sizes}")
    if is_packed or is_rgb:
        array = volume_of_data_set(path, output_of(path, reader, expansion)).array
        array = array.reshape(*array.shape[:3], sizes[3], -1)
        array = array[:, :, ::-1] if reader.GetQFac() < 0 else array  # VTK has reversed z
    else:
        array = mapped(path, reader, tuple(sizes[:5]), int(header.GetVoxOffset()), bool(reader.GetSwapBytes()))
    array = array[:, :, :, 0] if sizes[3] == 1 else np.moveaxis(array, 3, 0)
    volume = _nifti_place(path, header, _scaled(array, header.GetSclSlope(), header.GetSclInter()))
    warn_of_vectors(path, volume.array, "RAS" if volume.geometry.space else "")
    if sizes[3] == 1:
        return volume
    second = UNIT_IN_SECONDS.get(header.GetXYZTUnits() & 0x38)
    step, start = (part * (second or 1.0) for part in (abs(header.GetPixDim(4)) or 1.0, header.GetTOffset()))
    space = dataclasses.replace(volume.geometry, axis_attributes={"units_t": "s"} if second else {})
    return dataclasses.replace(volume, geometry=space.with_time(step, start))


def _scaled(array: np.ndarray, slope: float, shift: float) -> np.ndarray | LazyArray:
    """slope * array + shift, computed on demand; `array` itself where slope and shift mean no scaling.

    A shift that is no number is 0, as in the NIfTI library.
    """
    shift = shift if math.isfinite(shift) else 0.0
    if not (math.isfinite(slope) and slope != 0 and (slope, shift) != (1, 0)):
        return array
    dtype = float_for(array.dtype)
    return LazyArray(array.shape, dtype, lambda box: (array[box] * np.float64(slope) + shift).astype(dtype))


def _nifti_place(path: str, header, array: np.ndarray | LazyArray) -> Volume:
    """The volume of these values, with the geometry and the name that the header gives. Raises VolumeError.

    A header with neither form, as of ANALYZE files, does not say where left is.
    """
    unit = UNIT_IN_MM.get(header.GetXYZTUnits() & 7, 1.0)
    lengths = np.abs([header.GetPixDim(i) or 1.0 for i in (1, 2, 3)]) * unit
    name = header.GetIntentName().strip()
    if header.GetSFormCode() > 0:
        rows = np.array([header.GetSRowX(), header.GetSRowY(), header.GetSRowZ()]) * unit
        try:
            return volume_from_axes(path, array, rows[:, :3], rows[:, 3], "RAS", name=name)
        except VolumeError:
            if header.GetQFormCode() <= 0:  # a qform always has right angles
                raise
    if header.GetQFormCode() <= 0:
        return volume_from_axes(path, array, np.diag(lengths), np.zeros(3), name=name)
    b, c, d = header.GetQuaternB(), header.GetQuaternC(), header.GetQuaternD()
    a = math.sqrt(max(1 - b * b - c * c - d * d, 0))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    lengths[2] *= -1 if header.GetPixDim(0) < 0 else 1
    origin = np.array([header.GetQOffsetX(), header.GetQOffsetY(), header.GetQOffsetZ()]) * unit
    return volume_from_axes(path, array, turn * lengths, origin, "RAS", name=name)


def nifti_header(path: str, frame: Frame) -> bytes:
    """A NIfTI-1 header for one file, with a float32 sform and qform. Raises VolumeError for a place beyond float32.

    A volume that does not say where its axes point is taken to be in LPS.
    """
    c = frame.n_components
    dim = (5, *frame.grid, 1, c, 1, 1) if c > 1 else (3, *frame.grid, 1, 1, 1, 1)
    place = frame.geometry.with_signs(SIGNS["RAS"])
    direction = np.reshape(place.direction, (3, 3))
    side = 1.0 if np.linalg.det(direction) > 0 else -1.0  # the qform holds no mirrored axes, but this sign of the third
    qform = (*_quaternion(direction * (1.0, 1.0, side)), *place.origin)
    sform = np.column_stack([direction * place.spacing, place.origin]).ravel()
    with np.errstate(over="ignore"):
        floats = np.float32([*place.spacing, *qform, *sform])
    if not (np.isfinite(floats).all() and (floats[:3] > 0).all()):
        raise VolumeError(
            f"{path}: spacing and origin are float32 in NIfTI, found {place.spacing}, {frame.geometry.origin}"
        )
    dtype, no_time = frame.dtype, (0.0,) * 4
    unit = UNIT_CODES.get(place.unit_of_lengths(frame.d_in), 0)
    return struct.pack(
        "<i36x8h12x4h8f3f3xB128x2h6f12f16s4s4x",
        *(348, *dim),
        *(VECTOR_INTENT if c > 1 else 0, NIFTI_TYPES[dtype.name], 8 * dtype.itemsize, 0),
        *(side, *floats[:3], *no_time),
        *(352.0, 1.0, 0.0, unit),  # offset of the voxels, slope, intercept, unit
        *(2, 2),  # qform and sform are aligned with the anatomy
        *floats[3:],
        *(b"", b"n+1"),
    )


def _quaternion(turn: np.ndarray) -> np.ndarray:
    """(b, c, d) of the unit quaternion a + bi + cj + dk, a >= 0, nearest to a rotation matrix. Source: Bar-Itzhack."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn
    lower = [
        [xx + yy + zz, 0, 0, 0],
        [zy - yz, xx - yy - zz, 0, 0],
        [xz - zx, xy + yx, yy - xx - zz, 0],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ]
    a, *others = np.linalg.eigh(np.array(lower))[1][:, -1]
    return np.copysign(1.0, a) * np.array(others)
