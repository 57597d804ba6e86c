"""TIFF, read by tifffile (pip install tifffile imagecodecs)."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np

from cli import console
from cli.arguments import to_number
from formats.common import (
    LENGTHS_IN_MM,
    MAX_EXPANSION,
    VolumeError,
    as_volume_error,
    import_package,
    in_type,
    narrowed,
    rescaled,
    unit_of_length,
    volume_from_axes,
)
from formats.slabs import frame_of, on_one_line, slices_first
from utils import Volume

ROLES = {"X": "x", "Y": "y", "Z": "z", "I": "z", "Q": "z", "T": "t", "C": "c", "S": "c"}  # I, Q: of pages without names
BLACK_IS_ZERO, RGB = 1, 2  # values of the tag PhotometricInterpretation
UNCOMPRESSED = 1  # value of the tag Compression
GDAL_NODATA = 42113  # a tag: the value of missing voxels, as text
NO_UNIT = "reference frame"  # OME's word for a unit of length that is not known
NO_UNIT_OF_VALUES = "gray value"  # ImageJ's word, in lower case
CLASSIC_BYTES = (1 << 32) - (1 << 25)  # most bytes of voxels in a TIFF that is no BigTIFF


def read_tiff(path: str) -> Volume:
    """The volume of a TIFF; y counts the rows as stored. Spacing, channels and times are those of ImageJ and OME."""
    tifffile = import_package("tifffile", "tifffile imagecodecs", path)
    with (
        as_volume_error(path, "tifffile cannot read it"),
        _told_errors() as told,
        tifffile.TiffFile(path, _multifile=False) as file,  # OME may name further files
    ):
        pages, metadata = list(file.pages), file.imagej_metadata or {}
        shapes = [entry.get("shape") for entry in file.shaped_metadata or ()]  # as tifffile itself writes it
        if all(shapes) and shapes and sum(map(math.prod, shapes)) != sum(page.size for page in pages):
            raise VolumeError(f"{path}: truncated or damaged: expected pages of shape {shapes[0]}, found {len(pages)}")
        _check_pages(path, pages, metadata)
        image = file.series[0]
        if len(file.series) > 1 or len(image.pages) != len(pages) or None in image.pages:
            what = f"expected one image, found {len(file.series)}, or pages that are in none"
            way_out = "tifffile.imread(path, series=0).T, or key=slice(None) for all pages, saved as .npy, is read"
            raise VolumeError(f"{path}: {what}: {way_out}")
        if file.is_ome and image.kind != "ome":
            way_out = "Fiji opens all of its files, by Bio-Formats, and saves one .tif"
            raise VolumeError(f"{path}: expected all pages that its OME description names, in this file: {way_out}")
        roles = _roles(path, image.axes, image.shape)
        # ImageJ's voxels would otherwise be read from one place on, wherever their pages lie.
        array = np.stack([page.asarray() for page in (pages if metadata else image.pages)]).reshape(image.shape)
        array, fill = _calibrated(path, array, metadata), _fill(array.dtype, pages[0].tags.valueof(GDAL_NODATA))
        if fill is not None:  # the tag names a stored value
            fill = in_type(_calibrated(path, fill[None], metadata).item(), array.dtype)
        ome = file.ome_metadata or ""
        spacing, units, time_step = _ome_spacing(path, ome) if ome else _imagej_spacing(pages[0].tags, metadata)
        if any(entry.get("spacing", 1) not in (None, 1) for entry in file.shaped_metadata or ()):
            way_out = "tifffile.imwrite(..., imagej=True), or ome=True with PhysicalSizeX, writes it as it is read"
            console.warn(path, f"spacing 1 is taken, not that of its own description: {way_out}")
        if told:
            raise VolumeError(f"{path}: tifffile cannot read all of it: {told[0]}")
    array = array.transpose([roles.index(role) for role in "txyzc" if role in roles])
    array = np.expand_dims(array, [i for i, role in enumerate("txyzc"["t" not in roles :]) if role not in roles])
    volume = volume_from_axes(path, array, np.diag(spacing), np.zeros(3))
    place = _own_description(ome)
    unsaid = ("xyz" if place.get("space") else "") + ("" if "t" in roles else "t")  # lengths in a body are mm
    said = {f"units_{axis}": unit for axis, unit in units.items() if axis not in unsaid and unit not in ("", NO_UNIT)}
    unit = on_one_line(str(metadata.get("vunit", "")))
    names = {"units": unit if unit.lower() != NO_UNIT_OF_VALUES else "", **place}
    geometry = dataclasses.replace(volume.geometry, **names, axis_attributes=said)
    geometry = geometry.with_time(time_step, 0.0) if "t" in roles else geometry
    return dataclasses.replace(volume, geometry=geometry, fill=fill)


def _roles(path: str, axes: str, shape: tuple[int, ...]) -> list[str]:
    """What each of tifffile's axes is: x, y, z, t, or c for components. Raises VolumeError."""
    roles = [ROLES.get(axis, axis) for axis in axes]
    what = f"{path}: expected axes of space, time and channels, found {axes} of shape {shape}"
    if len({*roles}) < len(roles) or not {"x", "y"} <= {*roles} <= {*"txyzc"}:
        raise VolumeError(f"{what}: tifffile.imwrite(..., metadata={{'axes': 'ZYX'}}) names them")
    if "C" in axes and not {"z", "t"} & {*roles}:
        said_by = "ImageJ's Image > Properties, or tifffile.imwrite(..., metadata={'axes': 'ZYX'})"
        raise VolumeError(f"{what}: if the channels are slices, {said_by}, says so")
    return roles


@contextlib.contextmanager
def _told_errors() -> Iterator[list[str]]:
    """The errors that tifffile logs in the block without raising them. None of them is printed."""
    told, logger, handler = [], logging.getLogger("tifffile"), logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def _check_pages(path: str, pages: list, metadata: dict) -> None:
    """Raise VolumeError unless each page is a slice whose data are all in the file: tifffile invents missing data."""
    if not pages:
        raise VolumeError(f"{path}: has no pages")
    if metadata.get("images", len(pages)) != len(pages):
        raise VolumeError(f"{path}: expected {metadata['images']} pages, as ImageJ wrote, found {len(pages)}")
    n_bytes, first = os.path.getsize(path), pages[0]
    if sum(page.nbytes for page in pages) > MAX_EXPANSION * n_bytes:
        raise VolumeError(f"{path}: truncated: {n_bytes} bytes are too few for its {len(pages)} pages")
    for page in pages:
        if (page.shape, page.dtype, page.axes) != (first.shape, first.dtype, first.axes):
            raise VolumeError(f"{path}: expected pages of one size and type, found {page.shape} and {first.shape}")
    for page in pages:
        if page.photometric not in (BLACK_IS_ZERO, RGB):
            way_out = "ImageJ's Image > Type, or tifffile.imwrite(..., photometric='minisblack'), makes it one"
            what = f"expected grey, where zero is black, or RGB, found {page.photometric.name}"
            raise VolumeError(f"{path}: {what}: {way_out}")
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        n_needed = page.size * page.bitspersample // 8
        is_short = page.compression == UNCOMPRESSED and sum(length for _, length in pieces) < n_needed
        if is_short or not all(at > 0 and length > 0 and at + length <= n_bytes for at, length in pieces):
            raise VolumeError(f"{path}: truncated: a part of its voxels is not within its {n_bytes} bytes")


def _calibrated(path: str, array: np.ndarray, imagej: dict) -> np.ndarray:
    """The values that ImageJ shows: c0 + c1 * those stored, as of its signed 16-bit images. Raises VolumeError."""
    if "cf" not in imagej:
        return array
    if imagej["cf"] != 0:
        what = f"expected values, or a straight line that makes them, found ImageJ's function {imagej['cf']}"
        raise VolumeError(f"{path}: {what}: ImageJ's Image > Type > 32-bit makes values of them")
    return narrowed(rescaled(array, float(imagej.get("c1", 1)), float(imagej.get("c0", 0))))


def _fill(dtype: np.dtype, text: str | None) -> np.generic | None:
    """The value of missing voxels that GDAL's tag gives; None without the tag, and where the type has no such value."""
    try:
        return None if text is None else in_type(to_number(text), dtype)
    except (ValueError, OverflowError):
        return None


def _imagej_spacing(tags, imagej: dict) -> tuple[list[float], dict[str, str], float]:
    """(spacing along x, y, z; units by axis; time between two steps), 1 where ImageJ wrote no valid one."""
    if not imagej:
        return [1.0] * 3, {}, 1.0
    time_step = float(imagej.get("finterval") or 1)
    of_time = {"t": str(imagej.get("tunit", "s"))} if imagej.get("finterval") else {}  # seconds are left out
    try:
        across = [tags[key].value[1] / tags[key].value[0] for key in ("XResolution", "YResolution")]
        unit = imagej.get("unit", "")
        units = {"x": unit, "y": imagej.get("yunit", unit)}
        units |= {"z": imagej.get("zunit", unit)} if "spacing" in imagej else {}
        units = {axis: unit_of_length(str(found)) for axis, found in units.items() if found != "pixel"}
        between = abs(float(imagej.get("spacing", 0))) or 1.0  # as ImageJ takes it
        return [*across, between], units | of_time, time_step
    except (KeyError, ZeroDivisionError, ValueError, TypeError):
        return [1.0] * 3, of_time, time_step


def _ome_spacing(path: str, ome: str) -> tuple[list[float], dict[str, str], float]:
    """The same from OME's description, lengths in the unit of the first one. Raises VolumeError if they cannot be."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", ome)
    found = dict(re.findall(r"""\b(\w+)=["']([^"']*)""", pixels[0] if pixels else ""))
    sizes = {axis: found[f"PhysicalSize{axis}"] for axis in "XYZ" if f"PhysicalSize{axis}" in found}
    lengths = {axis: float(size) for axis, size in sizes.items()}
    units = {axis: unit_of_length(html.unescape(found.get(f"PhysicalSize{axis}Unit", "\u00b5m"))) for axis in sizes}
    unit = next(iter(units.values()), "")
    if len({*units.values()}) > 1:
        if not {*units.values()} <= {*LENGTHS_IN_MM}:
            raise VolumeError(f"{path}: expected lengths in one unit, found {', '.join(sorted({*units.values()}))}")
        factors = {axis: LENGTHS_IN_MM[units[axis]] / LENGTHS_IN_MM[unit] for axis in units}
        lengths = {axis: float(f"{size * factors[axis]:.15g}") for axis, size in lengths.items()}
    spacing = [lengths.get(axis, 1.0) for axis in "XYZ"]
    of_time = {"t": html.unescape(found.get("TimeIncrementUnit", "s"))} if "TimeIncrement" in found else {}
    return spacing, {axis.lower(): unit for axis in units} | of_time, float(found.get("TimeIncrement", 1))


def _own_description(ome: str) -> dict[str, Any]:
    """The fields of the geometry that `write_tiff` has put into OME's description; {} if another program wrote it."""
    try:
        found = json.loads(html.unescape(re.search(r"<Description>([^<]*)</Description>", ome)[1]))
        place = {key: tuple(map(float, found[key])) for key in ("origin", "direction")}
        names = {key: str(found[key]) for key in ("name", "units") if found[key]}
        numbers = [*place["origin"], *place["direction"]]
        is_whole = (len(place["origin"]), len(numbers)) == (3, 12) and np.isfinite(numbers).all()
        return {**place, **names, "space": "LPS" if found["space"] == "LPS" else ""} if is_whole else {}
    except (TypeError, KeyError, ValueError):
        return {}


def write_tiff(path: str, volume: Volume) -> None:
    """Write a volume as OME-TIFF, a page a slice, not compressed. What OME has no place for is in its description."""
    tifffile = import_package("tifffile", "tifffile", path)
    frame = frame_of(volume, has_float16=False)
    geometry, is_vector = frame.geometry, frame.n_components > 1
    unit = geometry.unit_of_lengths(frame.d_in)
    unit = unit if unit in LENGTHS_IN_MM else NO_UNIT
    metadata = {"axes": "ZYX" + "S" * is_vector, "Name": geometry.name}
    for axis, step in zip("XYZ", geometry.spacing, strict=True):
        metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": unit}
    place = {key: getattr(geometry, key) for key in ("origin", "direction", "name", "units", "space")}
    metadata["Description"] = json.dumps(place)
    metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, metadata["Description"]))  # the same file every time
    shape = (*reversed(frame.grid), *[frame.n_components] * is_vector)

    def pages() -> Iterator[np.ndarray]:
        for _, part in slices_first(volume.array, frame.d_in, frame.dtype):
            yield from part.reshape(-1, *shape[1:])

    is_large = math.prod(shape) * frame.dtype.itemsize > CLASSIC_BYTES
    with tifffile.TiffWriter(path, ome=True, bigtiff=is_large, byteorder="<") as file:
        layout = {"planarconfig": "contig"} if is_vector else {}
        file.write(pages(), shape=shape, dtype=frame.dtype, photometric="minisblack", metadata=metadata, **layout)
