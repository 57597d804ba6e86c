"""NIfTI (.nii, .nii.gz): a reader, and the header to write. Sources: nifti1.h, nifti2.h.

World coordinates of the file are RAS: x, y, z point to right, anterior, superior. Those of a volume are LPS, in mm, and
times are in seconds.
"""

from __future__ import annotations

import dataclasses
import gzip
import math

import numpy as np

from cli import console
from formats.common import (
    LENGTHS_IN_MM,
    UNEVEN,
    VolumeError,
    as_volume_error,
    unit_of_length,
    volume_from_axes,
    warn_of_vectors,
)
from formats.packing import array_of
from formats.slabs import Frame
from formats.stored import StoredArray
from formats.variables import Variable
from formats.voxels import mapped, unpacked
from utils import SIGNS, Volume

MAX_AXIS = 32767  # most voxels along an axis
MOST_OFF = 0.1  # voxels by which a float32 origin may be off
NO_EXTENSION = bytes(4)  # between the header and the voxels
GZIP = b"\x1f\x8b"  # the first bytes of a packed file, whatever its name says: downloads are often unpacked on the way
VECTOR_INTENT = 1007  # intent code: the fifth axis has vector components
TYPES = {2: "uint8", 4: "int16", 8: "int32", 16: "float32", 64: "float64"}
TYPES |= {256: "int8", 512: "uint16", 768: "uint32", 1024: "int64", 1280: "uint64"}
TYPE_CODES = {dtype: code for code, dtype in TYPES.items()}
COLOURS = {128: 3, 2304: 4}  # bytes of a voxel, by the code of its type
COMPLEX_TYPES = (32, 1792, 2048)
UNIT_CODES = {"m": 1, "mm": 2, "\u00b5m": 3}
UNIT_IN_MM = {code: LENGTHS_IN_MM[unit] for unit, code in UNIT_CODES.items()}  # others are taken for mm
TIME_CODES = {"s": 8, "ms": 16, "us": 24, "\u00b5s": 24}
UNIT_IN_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
FIELDS = {  # of a header: type and offset in NIfTI-1, and in NIfTI-2
    "sizeof_hdr": ("i4", 0, "i4", 0),
    "magic": ("S4", 344, "S4", 4),
    "dim": ("(8,)i2", 40, "(8,)i8", 16),
    "intent_code": ("i2", 68, "i4", 504),
    "datatype": ("i2", 70, "i2", 12),
    "bitpix": ("i2", 72, "i2", 14),
    "pixdim": ("(8,)f4", 76, "(8,)f8", 104),
    "vox_offset": ("f4", 108, "i8", 168),
    "scl_slope": ("f4", 112, "f8", 176),
    "scl_inter": ("f4", 116, "f8", 184),
    "xyzt_units": ("u1", 123, "i4", 500),
    "toffset": ("f4", 136, "f8", 216),
    "qform_code": ("i2", 252, "i4", 344),
    "sform_code": ("i2", 254, "i4", 348),
    "quatern": ("(3,)f4", 256, "(3,)f8", 352),
    "qoffset": ("(3,)f4", 268, "(3,)f8", 376),
    "srow": ("(3,4)f4", 280, "(3,4)f8", 400),
    "intent_name": ("S16", 328, "S16", 508),
}


def _header_type(n_bytes: int, first: int) -> np.dtype:
    """The type of a header of so many bytes, little-endian. first: of the two columns of FIELDS that describe it."""
    formats, offsets = ([column[k] for column in FIELDS.values()] for k in (first, first + 1))
    return np.dtype({"names": [*FIELDS], "formats": formats, "offsets": offsets, "itemsize": n_bytes}).newbyteorder("<")


HEADER, HEADER_2 = _header_type(348, 0), _header_type(540, 2)


def read_nifti(path: str) -> Volume:
    """A NIfTI file's volume: values scaled, geometry from the sform or else the qform. Several times are a series."""
    with as_volume_error(path, "cannot be read"):
        with open(path, "rb") as file:
            is_packed = file.read(len(GZIP)) == GZIP
        with (gzip.open if is_packed else open)(path, "rb") as file:
            header, order = _header(path, file.read(HEADER_2.itemsize))
    code, rank, offset = int(header["datatype"]), int(header["dim"][0]), float(header["vox_offset"])
    sizes = [int(n) if axis < rank else 1 for axis, n in enumerate(header["dim"][1:])]
    if code in COMPLEX_TYPES:
        raise VolumeError(f"{path}: expected real values, found complex ones")
    if code not in TYPES and code not in COLOURS:
        raise VolumeError(f"{path}: expected numbers of up to 64 bits, found NIfTI's type {code}")
    n_most = 3 if code in COLOURS else 5  # axes of more than one voxel
    if not 1 <= rank <= 7 or min(sizes) < 1 or math.prod(sizes[n_most:]) != 1:
        raise VolumeError(f"{path}: expected axes of space, time and components, found sizes {sizes}")
    if not header.dtype.itemsize <= offset < 1 << 60:
        raise VolumeError(f"{path}: expected voxels after the header, found them from byte {offset:g} on")
    dtype = np.dtype(TYPES.get(code, "uint8")).newbyteorder(order)
    shape, roles = ((COLOURS[code], *sizes[:4]), "cxyzt") if code in COLOURS else (tuple(sizes[:5]), "xyztc")
    if is_packed:
        stored = unpacked(path, dtype, shape, "gzip", skipped=int(offset))
    else:
        stored = mapped(path, dtype, shape, int(offset))
    scaling = _scaling(header) if code in TYPES else {}  # which does not apply to colours
    variable = Variable(tuple(roles[::-1]), dtype, scaling, stored.T)
    is_series = sizes[3] > 1
    array, _ = array_of(path, variable, [variable.dims.index(role) for role in ("txyzc" if is_series else "xyzc")])
    volume = _nifti_place(path, header, array)
    warn_of_vectors(path, array, "RAS" if volume.geometry.space else "")
    if not is_series:
        return volume
    second = UNIT_IN_SECONDS.get(header["xyzt_units"] & 0x38)
    times = abs(float(header["pixdim"][4])) or 1.0, float(header["toffset"])
    space = dataclasses.replace(volume.geometry, axis_attributes={"units_t": "s"} if second else {})
    return dataclasses.replace(volume, geometry=space.with_time(*(time * (second or 1.0) for time in times)))


def _header(path: str, start: bytes) -> tuple[np.void, str]:
    """The header at the start of a file, and the order of its bytes, < or >. Raises VolumeError."""
    # Some single files have the magic of a pair, ni1 or ni2. The voxels of a real pair begin at byte 0 of another file.
    for form, magics in ((HEADER, (b"n+1", b"ni1")), (HEADER_2, (b"n+2", b"ni2"))):
        for order in "<>":
            header = np.frombuffer(start.ljust(form.itemsize), form.newbyteorder(order), 1)[0]
            if header["sizeof_hdr"] == form.itemsize and header["magic"] in magics:
                return header, order
    raise VolumeError(f"{path}: not a NIfTI file with header and voxels in one")


def _scaling(header: np.void) -> dict[str, float]:
    """The slope and the shift of the values, as attributes of a variable. A shift that is no number is 0."""
    slope, shift = float(header["scl_slope"]), float(header["scl_inter"])
    is_scaled = math.isfinite(slope) and slope != 0
    return {"scale_factor": slope, "add_offset": shift if math.isfinite(shift) else 0.0} if is_scaled else {}


def _nifti_place(path: str, header: np.void, array: np.ndarray | StoredArray) -> Volume:
    """The volume of these values, with the geometry and the name that the header gives. Raises VolumeError.

    A header with neither form does not say where left is.
    """
    unit = UNIT_IN_MM.get(header["xyzt_units"] & 7, 1.0)
    side, *lengths = header["pixdim"][:4].tolist()
    lengths = np.abs([length or 1.0 for length in lengths]) * unit
    name = header["intent_name"].partition(b"\0")[0].decode("utf-8", "replace").strip()
    if header["sform_code"] > 0:
        rows = header["srow"].astype(np.float64) * unit
        if header["qform_code"] <= 0 and not rows[:, :3].any():
            way_out = f"image = nibabel.load({path!r}), image.set_sform(None) and nibabel.save leave it out"
            raise VolumeError(f"{path}: expected axes in its sform, found zeros: {way_out}")
        try:
            return volume_from_axes(path, array, rows[:, :3], rows[:, 3], "RAS", name=name)
        except VolumeError:
            if header["qform_code"] <= 0:  # a qform always has right angles
                raise
            what = "the position is that of its qform, as its sform has no axes of finite length at right angles"
            console.warn(path, f"{what}: nibabel.processing.resample_to_output makes a file in the place of the sform")
    if header["qform_code"] <= 0:
        return volume_from_axes(path, array, np.diag(lengths), np.zeros(3), name=name)
    b, c, d = header["quatern"].tolist()
    a = math.sqrt(max(1 - b * b - c * c - d * d, 0))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    lengths[2] *= -1 if side < 0 else 1
    return volume_from_axes(path, array, turn * lengths, header["qoffset"].astype(np.float64) * unit, "RAS", name=name)


def nifti_header(path: str, frame: Frame) -> bytes:
    """A NIfTI-1 header for one file, with a float32 sform and qform. Raises VolumeError for what float32 cannot hold.

    The fourth axis is time, the fifth one components. A volume that does not say where its axes point is taken to be in
    LPS.
    """
    c = frame.n_components
    n_axes, is_series = 5 if c > 1 else max(3, frame.d_in), frame.d_in == 4
    step, start = (frame.time_step, frame.time) if is_series else (0.0, 0.0)
    place = frame.geometry.with_signs(SIGNS["RAS"])
    direction = np.reshape(place.direction, (3, 3))
    side = 1.0 if np.linalg.det(direction) > 0 else -1.0  # the qform holds no mirrored axes, but this sign of the third
    header = np.zeros((), HEADER)
    fields = {
        "sizeof_hdr": HEADER.itemsize,
        "magic": b"n+1",
        "dim": (n_axes, *frame.grid, frame.n_times, c, 1, 1),
        "intent_code": VECTOR_INTENT if c > 1 else 0,
        "datatype": TYPE_CODES[frame.dtype.name],
        "bitpix": 8 * frame.dtype.itemsize,
        "pixdim": (side, *place.spacing, step, 0.0, 0.0, 0.0),
        "vox_offset": HEADER.itemsize + len(NO_EXTENSION),
        "scl_slope": 1.0,
        "xyzt_units": UNIT_CODES.get(unit_of_length(place.unit_of_lengths(min(frame.d_in, 3))), 0)
        + TIME_CODES.get(place.units_of("t"), 0) * is_series,
        "toffset": start,
        "qform_code": 2,  # aligned with the anatomy
        "sform_code": 2,
        "quatern": _quaternion(direction * (1.0, 1.0, side)),
        "qoffset": place.origin,
        "srow": np.column_stack([direction * place.spacing, place.origin]),
    }
    with np.errstate(over="ignore"):
        for field, value in fields.items():
            header[field] = value
    floats = np.concatenate([header["pixdim"], [header["toffset"]], header["qoffset"], header["srow"].ravel()])
    is_held = bool(np.isfinite(floats).all() and (header["pixdim"][1:4] > 0).all())
    is_held = is_held and abs(float(header["toffset"]) - start) <= UNEVEN * step
    off = direction.T @ (header["qoffset"] - np.array(place.origin)) if is_held else np.inf  # along the axes
    if not (np.abs(off) <= MOST_OFF * np.array(place.spacing)).all():
        found = f"{place.spacing}, {frame.geometry.origin}" + f", in time {step}, {start}" * is_series
        raise VolumeError(f"{path}: spacing and origin are float32 in NIfTI, found {found}: .nc keeps them")
    return header.tobytes() + NO_EXTENSION


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
