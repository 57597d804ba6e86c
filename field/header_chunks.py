"""What the chunks F, G, d, w, a and q of a blob hold: the grid, its place, names, the writer. See field/blob.py."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from field.binary import BlobError, ByteReader, carrier
from utils import AXIS_ATTRIBUTES, DEFAULT_NAME, DTYPES, IDENTITY, SIGNS, Geometry, VolumeHeader, quoted

MAX_VOXELS = 1 << 40  # most voxels of a grid
EXACT = (1 << 15) - 1  # stands in chunk q for an infinite PSNR


def check_header(header: VolumeHeader, d_in: int, d_out: int) -> None:
    """Raise BlobError unless the header describes a possible field of `d_in` axes and `d_out` components."""
    shape, geometry = header.shape, header.geometry
    spacing, origin, direction = geometry.spacing, geometry.origin, geometry.direction
    for key, text in {"name": geometry.name, "units": geometry.units, **geometry.axis_attributes}.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BlobError(f"{key}: expected text that UTF-8 holds, found {quoted(text)}") from None
    if not 1 <= d_in <= 4 or len(shape) != d_in or len(spacing) != d_in or len(origin) != d_in:
        found = f"shape {quoted(shape)}, spacing {quoted(spacing)}, origin {quoted(origin)}"
        raise BlobError(f"expected {d_in} axes, found {found}")
    if any(not isinstance(n, int) or not 1 <= n < 1 << 32 for n in shape) or math.prod(shape) > MAX_VOXELS:
        raise BlobError(f"shape {quoted(shape)}: expected at least 1 voxel an axis and at most {MAX_VOXELS} in all")
    if not all(isinstance(s, int | float) and math.isfinite(s) for s in (*spacing, *origin)):
        raise BlobError(f"spacing {quoted(spacing)}, origin {quoted(origin)}: expected finite numbers")
    if not all(s > 0 for s in spacing):
        raise BlobError(f"spacing {quoted(spacing)}: expected positive numbers")
    if len(direction) != 9 or not all(isinstance(d, int | float) and abs(d) < 2 for d in direction):
        raise BlobError(f"direction {quoted(direction)}: expected 9 numbers, 3 x 3 row by row")
    if not geometry.is_orthonormal or not geometry.stays_within(d_in):
        what = "columns of unit length, at right angles, those of the axes within the first dimensions"
        raise BlobError(f"direction {quoted(direction)}: expected {what}")
    if geometry.space not in ("", "LPS"):
        raise BlobError(f"space: expected LPS or no text, found {quoted(geometry.space)}")
    if header.dtype.name not in DTYPES:
        raise BlobError(f"dtype {header.dtype}: expected one of {', '.join(DTYPES)}")
    if header.low.shape != (d_out,) or header.high.shape != (d_out,):
        raise BlobError(f"expected the range of {d_out} components, found {len(header.low)}")
    if not (np.isfinite(header.low).all() and np.isfinite(header.high).all() and (header.low <= header.high).all()):
        raise BlobError(f"range {quoted(header.low)} to {quoted(header.high)}: expected finite values, the lower first")
    missing = header.missing
    if missing and (missing.shape, missing.fill.dtype) != (shape, header.dtype):
        raise BlobError(f"missing voxels: of another shape or dtype: {missing.shape}, {missing.fill.dtype}")


# --- the header: F, G, d, w, a ------------------------------------------------------------------------


def encode_header(header: VolumeHeader) -> dict[str, bytes]:
    """The chunks of a header but that of its mask, by type, in the order of the file. See `check_header`."""
    shape, dtype = header.shape, header.dtype
    limits = np.stack([header.low, header.high], axis=1).astype(carrier(dtype))
    axes = struct.pack(f"<3B{len(shape)}I", len(shape), len(limits), DTYPES.index(dtype.name), *shape)
    return {"F": axes + limits.tobytes(), **_encode_geometry(header.geometry)}


def decode_header(chunks: Mapping[str, ByteReader]) -> VolumeHeader:
    """The header in the chunks of a blob, without its mask. Raises BlobError."""
    content = chunks["F"]
    d_in, d_out, code = content.unpack("3B")
    if not 1 <= d_in <= 4 or d_out < 1 or code >= len(DTYPES):
        raise BlobError(
            f"d_in, d_out, dtype: expected 1 to 4, 1 to 255, below {len(DTYPES)}, found {d_in}, {d_out}, {code}"
        )
    dtype = np.dtype(DTYPES[code])
    shape = content.unpack(f"{d_in}I")
    limits = content.array(carrier(dtype), 2 * d_out).reshape(d_out, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = limits.T.astype(dtype)
        if not np.array_equal(np.stack([low, high], axis=1).astype(limits.dtype), limits):
            raise BlobError(f"range {limits.tolist()}: does not fit dtype {dtype}")
    header = VolumeHeader(shape, low, high, _decode_geometry(chunks, d_in))
    check_header(header, d_in, d_out)
    return header


def _encode_geometry(geometry: Geometry) -> dict[str, bytes]:
    """The chunks G, d, w and a, those that are needed."""
    d_in, chunks = geometry.d_in, {}
    world, geometry = _world(geometry)
    if geometry.spacing != (1.0,) * d_in or geometry.origin != (0.0,) * d_in:
        chunks["G"] = struct.pack(f"<{2 * d_in}d", *geometry.spacing, *geometry.origin)
    if geometry.direction != IDENTITY:
        chunks["d"] = struct.pack("<9d", *geometry.direction)
    if world:
        chunks["w"] = struct.pack("B", world)
    attributes = {"name": geometry.name} if geometry.name != DEFAULT_NAME else {}
    attributes |= ({"units": geometry.units} if geometry.units else {}) | geometry.axis_attributes
    if attributes:
        chunks["a"] = json.dumps(attributes, separators=(",", ":")).encode()
    return chunks


def _decode_geometry(chunks: Mapping[str, ByteReader], d_in: int) -> Geometry:
    """The geometry in the chunks G, d, w and a, as far as they are there. Raises BlobError."""
    spacing, origin, direction, world, attributes = (1.0,) * d_in, (0.0,) * d_in, IDENTITY, None, {}
    if content := chunks.get("G"):
        spacing, origin = content.unpack(f"{d_in}d"), content.unpack(f"{d_in}d")
    if content := chunks.get("d"):
        direction = content.unpack("9d")
    if content := chunks.get("w"):
        (world,) = content.unpack("B")
        if world not in (1, 2):
            raise BlobError(f"world axes: expected 1 or 2, found {world}")
    if content := chunks.get("a"):
        attributes = _decode_attributes(content.rest())
    names = attributes.get("name", DEFAULT_NAME), attributes.get("units", "")
    said = {key: attributes[key] for key in AXIS_ATTRIBUTES if key in attributes}
    geometry = Geometry(spacing, origin, direction, *names, "LPS" if world else "", said)
    return geometry.with_signs(SIGNS["RAS"]) if world == 2 else geometry


def _world(geometry: Geometry) -> tuple[int | None, Geometry]:
    """The content of chunk w, and the geometry in the coordinates that it names: in those that need no chunk d."""
    if not geometry.space:
        return None, geometry
    turned = geometry.with_signs(SIGNS["RAS"])
    return (2, turned) if turned.direction == IDENTITY else (1, geometry)


def _decode_attributes(text: bytes) -> dict[str, str]:
    try:
        attributes = json.loads(text.decode())
    except (ValueError, RecursionError):
        attributes = None
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise BlobError("attributes: expected a JSON object of text by key")
    return attributes


# --- the writer: q ------------------------------------------------------------------------------------


class Written(NamedTuple):
    """The program that wrote a blob, and how good the blob is. psnr: in dB, to 0.01 dB; NaN if it is unknown."""

    version: tuple[int, int]
    psnr: float = math.nan


def encode_written(written: Written) -> bytes:
    """The content of chunk q."""
    version = struct.pack("2B", *written.version)
    if math.isnan(written.psnr):
        return version
    hundredths = EXACT if written.psnr == math.inf else round(min(max(100 * written.psnr, -EXACT), EXACT - 1))
    return version + struct.pack("<h", hundredths)


def decode_written(content: ByteReader) -> Written:
    """The content of chunk q. Raises BlobError."""
    version = content.unpack("2B")
    if content.ended:
        return Written(version)
    (hundredths,) = content.unpack("h")
    return Written(version, math.inf if hundredths == EXACT else hundredths / 100)
