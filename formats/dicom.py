"""DICOM: a folder of slices, one file each, read by pydicom (pip install pydicom). Source: DICOM PS3.3, C.7.6.2.

World coordinates are those of the files: the axes point left, posterior, superior.
"""

from __future__ import annotations

import os
import warnings

import numpy as np

from formats.common import VolumeError, import_reader, volume_from_axes
from utils import Volume

MAX_SLICE_DIFFERENCE = 1e-4  # most that voxel steps may differ between two slices, in mm
MAX_UNEVENNESS = 0.02  # most that a slice may be off its place, relative to the distance between slices


def read_dicom(folder: str) -> Volume:
    """The volume of the slices in a folder, sorted by position. The slope and intercept of the files are applied.

    Raises VolumeError when there is no slice, when slices belong to several series, or when a slice is missing.
    """
    paths = slice_files(folder)
    if not paths:
        raise VolumeError(f"{folder}: expected a folder of DICOM files, found none")
    planes, positions, axes = [], [], []
    for path in paths:
        plane, position, steps = _read_slice(path)
        planes.append(plane)
        positions.append(position)
        axes.append(steps)
        is_alike = plane.shape == planes[0].shape and plane.dtype == planes[0].dtype
        if not is_alike or np.abs(steps - axes[0]).max() > MAX_SLICE_DIFFERENCE:
            raise VolumeError(f"{path}: is of another series than {paths[0]}: other size, type, spacing or direction")
    normal = np.cross(*(axes[0][:, :2] / np.linalg.norm(axes[0][:, :2], axis=0)).T)
    order = np.argsort([position @ normal for position in positions])
    positions = np.array(positions)[order]
    if len(paths) > 1:
        step = (positions[-1] - positions[0]) / (len(paths) - 1)
        off = np.abs(positions - positions[0] - step * np.arange(len(paths))[:, None]).max()
        if not off < MAX_UNEVENNESS * np.linalg.norm(step):
            raise VolumeError(f"{folder}: expected slices of one series at equal distances, found one off by {off:.4g}")
        axes[0][:, 2] = step
    array = np.stack([planes[i] for i in order], axis=2)
    if array.dtype == np.int32 and np.abs(array).max() < 1 << 15:
        array = array.astype(np.int16)
    return volume_from_axes(folder, array, axes[0], positions[0])


def slice_files(folder: str) -> list[str]:
    """The slices that lie in a folder, by name."""
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and _is_slice(entry.path))


def _is_slice(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" and os.path.basename(path).upper() != "DICOMDIR"


def _read_slice(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (x, y, components), position of the first voxel, and the steps along the three axes as columns (3, 3)."""
    pydicom = import_reader("pydicom", "pydicom", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of elements that break the standard but are not used
            file = pydicom.dcmread(path)
            n_frames = int(file.get("NumberOfFrames") or 1)
            plane = file.pixel_array if n_frames == 1 else None
            slope, shift = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
            position = np.array(file.ImagePositionPatient, float)
            row, column = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
            between_rows, between_columns = map(float, file.PixelSpacing)
            thickness = float(file.get("SpacingBetweenSlices") or file.get("SliceThickness") or 1.0)
    except Exception as error:  # a damaged file can fail in any of pydicom's parsers
        raise VolumeError(f"{path}: pydicom cannot read it: {error}") from None
    if n_frames > 1:
        raise VolumeError(f"{path}: expected one slice a file, found several frames")
    if position.shape != (3,):
        raise VolumeError(f"{path}: expected a position in space, found {position}")
    steps = np.stack([row * between_columns, column * between_rows, np.cross(row, column) * thickness], axis=1)
    plane = plane.reshape(*plane.shape[:2], -1).swapaxes(0, 1)
    return _rescaled(plane, slope, shift), position, steps


def _rescaled(plane: np.ndarray, slope: float, shift: float) -> np.ndarray:
    """slope * plane + shift, in integers if plane, slope and shift are whole numbers."""
    if (slope, shift) == (1, 0):
        return plane
    is_narrow = plane.dtype.itemsize <= 2
    if plane.dtype.kind in "iu" and slope.is_integer() and shift.is_integer():
        return plane.astype(np.int32 if is_narrow else np.int64) * int(slope) + int(shift)
    return (plane * slope + shift).astype(np.float32 if is_narrow else np.float64)
