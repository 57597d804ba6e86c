"""DICOM: a folder of slices, one or several in a file, read by pydicom (pip install pydicom).

Sources: DICOM PS3.3, C.7.6.2; of several in a file C.7.6.16.

World coordinates are those of the files, LPS: x, y, z point to left, posterior, superior.
"""

from __future__ import annotations

import dataclasses
import io
import os
import shlex
import warnings
from typing import NamedTuple

import numpy as np

from cli import console
from cli.files import read_bytes
from formats.common import VolumeError, as_volume_error, import_package, narrowed, rescaled, suffix_of, volume_from_axes
from utils import Volume, quoted

MAX_SLICE_DIFFERENCE = 1e-4  # most that voxel steps may differ between two slices, in mm
MAX_UNEVENNESS = 0.02  # most that a slice may be off its place, relative to the distance between slices
GROUPS = {  # where a file of several slices, an enhanced one, has what other files have at the top
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    **dict.fromkeys(("PixelSpacing", "SpacingBetweenSlices", "SliceThickness"), "PixelMeasuresSequence"),
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept", "RescaleType"), "PixelValueTransformationSequence"),
}
REAL_WORLD = "RealWorldValueMappingSequence"  # what parametric maps have in place of a rescaling, or besides one by 1
MEANINGS = "BitsStored", "PhotometricInterpretation", "RescaleType", "Units"  # say what values mean, but change none

NO_VALUES = {  # what makes values of the stored numbers in another way than a slope, and what makes a file of them
    "ModalityLUTSequence": "pydicom.pixels.apply_modality_lut(file.pixel_array, file)",
    "DoseGridScaling": "file.pixel_array * file.DoseGridScaling",
}


class _Slice(NamedTuple):
    """A slice: values (x, y, components), where the first lies, and the steps along the three axes, as columns.

    stored: the type of the values before they are rescaled, which may differ from slice to slice. is_padding: the
    values, of the same shape, that the file declares to be none. padding: what marks them, rescaled. meanings: what the
    file says by each of MEANINGS, "" where it says nothing. note: what is to be told of its values, if anything.
    """

    path: str
    plane: np.ndarray
    stored: np.dtype
    is_padding: np.ndarray
    padding: np.generic | None
    position: np.ndarray
    steps: np.ndarray
    series: str
    meanings: tuple[str, ...]
    note: str

    def difference(self, other: _Slice) -> str:
        """What tells that both are of different series; "" if nothing does."""
        if self.plane.shape != other.plane.shape:
            return "other size"
        if self.stored != other.stored:
            return "other type"
        if np.abs(self.steps - other.steps).max() > MAX_SLICE_DIFFERENCE:
            return "other spacing or direction"
        return "other SeriesInstanceUID" if self.series != other.series else ""


def read_dicom(folder: str, is_marked: bool) -> Volume:
    """The volume whose slices lie in a folder, by their positions. Values are rescaled, padding is missing.

    is_marked: whether padding, as the file declares it, gets a fill value. Raises VolumeError when slices are of
    several series, and when one of them is missing.
    """
    slices = [found for path in slice_files(folder) for found in _read_slices(path)]
    for found in slices:
        if difference := found.difference(slices[0]):
            what = f"is of another series than {slices[0].path}: {difference}"
            raise VolumeError(f"{found.path}: {what}: expected a folder a series, as dcm2niix or 3D Slicer sort them")
    _warn_of_other_meanings(slices)
    if note := next((found.note for found in slices if found.note), ""):
        console.warn(folder, note)
    steps = slices[0].steps.copy()
    slices.sort(key=lambda found: found.position @ np.cross(steps[:, 0], steps[:, 1]))
    positions = np.array([found.position for found in slices])
    if len(slices) > 1 and not np.ptp(positions, axis=0).any():
        what = f"expected slices at different positions, found all {len(slices)} at {positions[0].tolist()}"
        raise VolumeError(f"{folder}: {what}, as of a film: its pixel_array of pydicom, saved as .npy, is read")
    if len(slices) > 1:
        steps[:, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
        off = np.abs(positions - positions[0] - steps[:, 2] * np.arange(len(slices))[:, None]).max()
        if not off < MAX_UNEVENNESS * np.linalg.norm(steps[:, 2]):
            gaps = np.diff(positions, axis=0)
            k = int(np.abs(gaps - np.median(gaps, axis=0)).max(axis=1).argmax())
            lengths, ends = np.linalg.norm(gaps, axis=1), f"{slices[k].path} and {slices[k + 1].path}"
            found = f"{lengths[k]:.4g} mm between {ends}, a median of {np.median(lengths):.4g} mm"
            what = f"expected slices of one series at equal distances, found {found}"
            raise VolumeError(f"{folder}: {what}: is one missing, or are there several times?")
    array = np.stack([found.plane for found in slices], axis=2)
    fill = None
    if is_marked:
        array, fill = _filled(array, np.stack([found.is_padding for found in slices], axis=2), slices)
    array = narrowed(array)
    volume = volume_from_axes(folder, array, steps, positions[0], "LPS")
    return dataclasses.replace(volume, fill=None if fill is None else array.dtype.type(fill))


def _warn_of_other_meanings(slices: list[_Slice]) -> None:
    """Say so when the values of a slice may mean something else than those of the first one."""
    for found in slices:
        for key, text, first in zip(MEANINGS, found.meanings, slices[0].meanings, strict=True):
            if text != first:
                what = f"its {key} is {quoted(text)}, that of {slices[0].path} is {quoted(first)}"
                console.warn(found.path, f"{what}: move one of them to another folder if they are not of one series")
                return


def _filled(array: np.ndarray, is_padding: np.ndarray, slices: list[_Slice]) -> tuple[np.ndarray, np.generic | None]:
    """The values with one value for all padding, and this value; None where no voxel is padding.

    It is NaN for floats, and where slices are rescaled in different ways, so that their padding is of several values.
    """
    fills = {found.padding for found in slices if found.is_padding.any()}
    if not fills:
        return array, None
    if len(fills) > 1 and array.dtype.kind != "f":
        array = array.astype(np.float64)
    fill = fills.pop() if array.dtype.kind != "f" else array.dtype.type(np.nan)
    array[is_padding] = fill
    return array, fill


def slice_files(folder: str) -> list[str]:
    """The slices that lie in a folder, by name. Raises VolumeError, also for a file that only has the name of one."""
    try:
        files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
        found = [path for path in files if is_slice(path)]
    except OSError as error:
        raise VolumeError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None
    for path in sorted({*files} - {*found}):
        if suffix_of(path) == ".dcm" and not os.path.basename(path).startswith("."):  # as those that macOS adds
            what = "expected a slice, found no DICM after 128 bytes"
            raise VolumeError(f"{path}: {what}: DCMTK's dcmconv writes it anew if it is one, else remove it")
    return found


def is_slice(path: str) -> bool:
    """Whether a file has the mark of DICOM and is no index of others."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" and os.path.basename(path).upper() != "DICOMDIR"


def _read_slices(path: str) -> list[_Slice]:
    """The slices in a file. Where the file says no distance of voxels, it is 1."""
    pydicom = import_package("pydicom", "pydicom", path)
    content = io.BytesIO(read_bytes(path))  # a file would be given as much memory as a length in it says
    with as_volume_error(path, "pydicom cannot read it"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements that break the standard and are not looked at
        file = pydicom.dcmread(content)
        _check_values(path, file)
        n_frames = int(file.get("NumberOfFrames") or 1)
        planes = file.pixel_array if n_frames > 1 else [file.pixel_array]
        return [_slice(path, file, i, plane) for i, plane in enumerate(planes)]


def _check_values(path: str, file) -> None:
    """Raise VolumeError when the numbers that a file stores are no values, nor rescaled by slope and intercept."""
    if "Modality" in file and "Rows" not in file:
        what = f"expected a slice, found a file of the modality {file.Modality} without voxels"
        raise VolumeError(f"{path}: {what}: move it to another folder, unless it is a damaged slice")
    if "MOSAIC" in np.ravel(file.get("ImageType") or ()):
        way_out = f"dcm2niix {shlex.quote(os.path.dirname(path) or '.')} makes a NIfTI file of them, which is read"
        raise VolumeError(f"{path}: expected a slice, found a mosaic of Siemens, whose tiles are the slices: {way_out}")
    found = {key: way_out for key, way_out in NO_VALUES.items() if file.get(key)}
    if file.get("PhotometricInterpretation") == "PALETTE COLOR":
        found["a palette"] = "pydicom.pixels.apply_color_lut(file.pixel_array, file)"
    for key, way_out in found.items():
        what = f"expected values, or a slope and an intercept that make them, found {key}"
        raise VolumeError(f"{path}: {what}: save {way_out} as .npy, with file = pydicom.dcmread(path)")


def _slice(path: str, file, index: int, plane: np.ndarray) -> _Slice:
    """The slice of one frame of a file, which has that index. Raises VolumeError."""
    shared, frames = (file.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("Shared", "PerFrame"))
    groups = [*frames[index : index + 1], *shared[:1]]

    def get(key: str):
        items = [group[GROUPS[key]][0] for group in groups if key in GROUPS and group.get(GROUPS[key])]
        return next((item[key].value for item in items if key in item), file.get(key))

    slope, shift, note = float(get("RescaleSlope") or 1), float(get("RescaleIntercept") or 0), ""
    if (slope, shift) == (1, 0):
        mappings = next(filter(None, (group.get(REAL_WORLD) for group in (*groups, file))), ())
        slope, shift, note = _real_world_scale(mappings)
    n_bits, high_bit = file.get("BitsStored"), file.get("HighBit")
    if n_bits and high_bit and high_bit >= n_bits:  # of which pydicom, as ITK, takes the lower bits
        way_out = "pydicom's file.BitsStored = file.HighBit + 1 keeps all bits, if it is BitsStored that is wrong"
        note = f"its HighBit is {high_bit}, its BitsStored {n_bits}: values may lack their upper bits: {way_out}"
    place = [np.array(get(key) or (), float) for key in ("ImagePositionPatient", "ImageOrientationPatient")]
    spacing = get("PixelSpacing") or file.get("NominalScannedPixelSpacing") or (1, 1)
    between_rows, between_columns = map(float, spacing)
    between_slices = abs(float(get("SpacingBetweenSlices") or get("SliceThickness") or 1))
    if [part.size for part in place] != [3, 6]:
        found = [part.tolist() for part in place]
        raise VolumeError(f"{path}: expected a position and two directions in space, found {found}: no slice of a scan")
    if not (between_rows > 0 and between_columns > 0):
        raise VolumeError(f"{path}: expected a positive spacing, found {between_rows}, {between_columns}")
    row, column = place[1].reshape(2, 3)
    steps = np.stack([row * between_columns, column * between_rows, np.cross(row, column) * between_slices], axis=1)
    if not (np.isfinite(steps).all() and np.isfinite(place[0]).all()):
        raise VolumeError(f"{path}: expected a finite place, found {place[0].tolist()}, voxel steps {steps.T.tolist()}")
    plane = plane.reshape(*plane.shape[:2], -1).swapaxes(0, 1)
    values = rescaled(plane, slope, shift)
    if np.isinf(values).any():
        raise VolumeError(f"{path}: expected finite values, found infinite ones: slope {slope}, intercept {shift}")
    ends = _padding(file, plane)
    is_padding = (plane >= ends.min()) & (plane <= ends.max()) if ends.size else np.zeros(plane.shape, bool)
    padding = rescaled(ends, slope, shift)[0] if ends.size else None
    series, meanings = str(file.get("SeriesInstanceUID")), tuple(str(get(key) or "") for key in MEANINGS)
    return _Slice(path, values, plane.dtype, is_padding, padding, place[0], steps, series, meanings, note)


def _real_world_scale(mappings) -> tuple[float, float, str]:
    """The slope and the intercept of the first real world values of a slice, and what is to be told of them.

    Source: PS3.3, C.7.6.16.2.11. Further mappings are of other units, or of other stored values.
    """
    parts = ("RealWorldValueSlope", 1), ("RealWorldValueIntercept", 0)
    scales = [tuple(float(item.get(key) or usual) for key, usual in parts) for item in mappings] or [(1.0, 0.0)]
    note = ""
    if any("RealWorldValueLUTData" in item for item in mappings):
        scales, note = [(1.0, 0.0)], "its real world values are in a table, the values are read as they are stored"
    elif len({*scales}) > 1:
        note = f"of its {len(scales)} mappings to real world values, the first is read"
    way_out = "highdicom's get_frames(apply_real_world_transform=True), saved as .npy, applies others"
    return *scales[0], note and f"{note}: {way_out}"


def _padding(file, plane: np.ndarray) -> np.ndarray:
    """The stored value of padding, and the other end of its range where there is one; none where there is no padding.

    Source: PS3.3, C.7.5.1.1.2. Some files write a negative number as if it were unsigned, or the other way round.
    """
    value, limit = file.get("PixelPaddingValue"), file.get("PixelPaddingRangeLimit")
    dtype = plane.dtype.newbyteorder("=")
    if not isinstance(value, int) or dtype.kind not in "iu" or plane.shape[2] > 1:
        return np.zeros(0, dtype)
    ends = [value, limit] if isinstance(limit, int) else [value]
    return np.array([end % (1 << 8 * dtype.itemsize) for end in ends], f"u{dtype.itemsize}").view(dtype)
