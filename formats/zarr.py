"""Zarr, versions 2 and 3: folders of chunks, by the package zarr (pip install zarr), with the scales of OME-Zarr.

A folder is not trusted: only codecs of `CODECS` are run, and only files that lie in the folder itself are read.
Sources: zarr-specs.readthedocs.io, ngff.openmicroscopy.org (0.1 to 0.5).
"""

from __future__ import annotations

import base64
import functools
import json
import math
import os
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from formats.cf import description
from formats.common import MAX_EXPANSION, VolumeError, as_volume_error, import_package
from formats.slabs import slices_first, without_float16
from formats.variables import Variable
from utils import Volume, quoted

CHUNK = {"t": 1, "z": 16, "y": 128, "x": 128}  # voxels of a chunk that is written: 1 MiB of float32
MAX_METADATA_BYTES = 1 << 26
BLOSC_HEADER = 16  # bytes; the last four say the length of the chunk
# None of them makes objects: the codec pickle would run what it finds.
CODECS = {"bytes", "endian", "transpose", "sharding_indexed", "crc32c", "gzip", "zstd", "blosc", "zlib", "bz2", "lzma"}
CODECS |= {"lz4", "delta", "shuffle", "fixedscaleoffset", "quantize", "bitround", "packbits", "astype"}
CODECS |= {"fletcher32", "crc32", "adler32"}


def files_of(folder: str) -> list[str]:
    """All files in a Zarr folder. Raises VolumeError when one is a link or no regular file."""
    found, folders = [], [folder]
    try:
        while folders:  # no recursion: a stranger's folders may be nested a thousand times
            for entry in os.scandir(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(entry.path)
                else:
                    what = "expected a file in the Zarr folder itself, found a link or a device"
                    raise VolumeError(f"{entry.path}: {what}")
    except OSError as error:
        raise VolumeError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None
    return found


def read_zarr(path: str, name: str | None) -> tuple[dict[str, Variable], str | None]:
    """The arrays in a Zarr folder, and the name of the one that is meant: of the levels of OME-Zarr, the first one.

    Raises VolumeError.
    """
    zarr, path = import_package("zarr", "zarr", path), os.path.normpath(path)  # a shell completes it with a slash
    _make_blosc_safe()
    sizes: dict[str, int] = {}  # bytes of the files of each folder, with those of the folders in it
    for file in files_of(path):
        folder = os.path.dirname(file)
        while len(folder) >= len(path):
            sizes[folder] = sizes.get(folder, 0) + os.path.getsize(file)
            folder = os.path.dirname(folder)
    variables: dict[str, Variable] = {}
    groups = []
    with as_volume_error(path, "zarr cannot read it"):
        for folder in sorted(sizes):
            settings, attributes = _metadata(folder)
            key = os.path.relpath(folder, path).replace(os.sep, "/").removeprefix(".")
            if settings.get("node_type") == "array":
                if key == "":
                    _check_above(path)
                variables |= _variable(zarr, path, key, settings, attributes, sizes[folder])
            elif scales := _scales(attributes):
                groups.append((key, scales))
        for key, scales in groups:
            levels = _scaled(path, key, scales, variables)
            if key == "" and name is None:
                name = levels[0]
        return variables, name


@functools.cache
def _make_blosc_safe() -> None:
    """Have the length of each chunk of Blosc checked: Blosc trusts it, and would read memory beyond the chunk."""
    import numcodecs
    import zarr.codecs.blosc

    class Blosc(numcodecs.Blosc):
        def decode(self, buf, out=None):
            chunk = memoryview(buf).cast("B")
            if len(chunk) < BLOSC_HEADER or int.from_bytes(chunk[12:BLOSC_HEADER], "little") > len(chunk):
                raise ValueError("expected a whole chunk of Blosc, found a part of one")
            return super().decode(buf, out)

    numcodecs.register_codec(Blosc)  # for version 2
    zarr.codecs.blosc.Blosc = Blosc  # for version 3


def _metadata(folder: str) -> tuple[dict, dict]:
    """(metadata as in version 3, attributes) of an array or a group; ({}, {}) of another folder."""

    def content(name: str) -> dict:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return {}
        if os.path.getsize(path) > MAX_METADATA_BYTES:
            raise VolumeError(f"{path}: expected at most {MAX_METADATA_BYTES} bytes of metadata")
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    if settings := content("zarr.json"):
        return settings, settings.get("attributes") or {}
    if settings := content(".zarray"):
        codecs = [{"name": codec["id"]} for codec in (*(settings["filters"] or ()), settings["compressor"]) if codec]
        return settings | {"node_type": "array", "data_type": settings["dtype"], "codecs": codecs}, content(".zattrs")
    return {}, content(".zattrs")


def _scales(attributes: dict) -> dict:
    """What a group says of the levels of its OME-Zarr image; {} where it holds none."""
    return ((attributes.get("ome") or attributes).get("multiscales") or [{}])[0]


def _check_above(path: str) -> None:
    """Raise VolumeError when an array is a level of an OME-Zarr image: a folder above has its spacing and axes."""
    place = Path(os.path.abspath(path))
    for depth, above in enumerate(place.parents, 1):
        level = place.relative_to(above).as_posix()
        if level in [found["path"] for found in _scales(_metadata(str(above))[1]).get("datasets", ())]:
            folder = os.path.normpath(os.path.join(path, *[".."] * depth))
            way_out = f"--volume {shlex.quote(folder)} --array {shlex.quote(level)}"
            raise VolumeError(f"{path}: is a level of an OME-Zarr image, whose spacing is told above it: {way_out}")


def _variable(zarr: Any, path: str, name: str, settings: dict, attributes: dict, n_bytes: int) -> dict[str, Variable]:
    """The array, by its name; nothing if it is not of numbers. n_bytes: of its files. Raises VolumeError."""
    if not re.fullmatch(r"(u?int|float|complex)\d+|bool|[<>|=]?([iufb]\d|c\d+)", str(settings["data_type"])):
        return {}
    codecs, folder = {*_codecs(settings["codecs"])}, os.path.join(path, name)
    if unknown := sorted(codecs - CODECS):
        raise VolumeError(f"{path}: {name}: expected codecs of Zarr's own, found {', '.join(unknown)}: write it anew")
    if "sharding_indexed" in codecs:  # Zarr takes an empty file for a shard that was never written
        for file in files_of(folder):
            if not os.path.getsize(file):
                raise VolumeError(f"{file}: expected a shard, found an empty file: copy or write it again")
    store = zarr.storage.LocalStore(folder, read_only=True)
    array = zarr.open_array(store, mode="r", zarr_format=settings["zarr_format"])
    if n_bytes * MAX_EXPANSION < math.prod(array.shape) * array.dtype.itemsize:
        raise VolumeError(f"{folder}: {n_bytes} bytes are too few for {math.prod(array.shape)} values")
    dims = attributes.get("_ARRAY_DIMENSIONS") or settings.get("dimension_names") or ()
    if settings["zarr_format"] == 2 and dims and array.fill_value is not None:  # as xarray writes it
        attributes = {"_FillValue": array.fill_value, **attributes}
    elif re.fullmatch("[A-Za-z0-9+/]{11}=", fill := str(attributes.get("_FillValue"))):  # xarray's way for a float64
        attributes = {**attributes, "_FillValue": np.frombuffer(base64.b64decode(fill), "<f8")}
    parent = name.rpartition("/")[0]
    names = [f"{parent}/{dim}".strip("/") if dim else "" for dim in dims] or [""] * array.ndim
    return {name: Variable(tuple(names), array.dtype, attributes, array, array.chunks)}


def _codecs(codecs: list[dict]) -> Iterator[str]:
    """The names of all codecs, with those within shards."""
    for codec in codecs:
        yield str(codec["name"]).removeprefix("numcodecs.")
        inner = codec.get("configuration") or {}
        yield from _codecs([*inner.get("codecs", ()), *inner.get("index_codecs", ())])


def _scaled(path: str, group: str, scales: dict, variables: dict[str, Variable]) -> list[str]:
    """Give the levels of an OME-Zarr image their axes, with coordinates; their names."""
    said = [{"name": axis} if isinstance(axis, str) else axis for axis in scales.get("axes") or "tczyx"]
    axes = [axis["name"] for axis in said]
    levels = []
    for level in scales["datasets"]:
        name = f"{group}/{level['path']}".strip("/")
        if name not in variables or len(variables[name].shape) != len(axes):
            raise VolumeError(f"{path}: level {level['path']!r}: expected an array of the axes {', '.join(axes)}")
        levels.append(name)
        step, start = np.ones(len(axes)), np.zeros(len(axes))
        for change in [*level.get("coordinateTransformations", ()), *scales.get("coordinateTransformations", ())]:
            if not {*change} & {"scale", "translation"} and change.get("type") != "identity":
                what = f"expected a scale or a translation, found {quoted(change)}"
                raise VolumeError(f"{path}: level {level['path']!r}: {what}")
            factor = np.array(change.get("scale", 1.0), float)
            step, start = step * factor, start * factor + np.array(change.get("translation", 0.0), float)
        variables[name] = variables[name]._replace(dims=tuple(f"{name}/{axis}" for axis in axes))
        for k, axis in enumerate(axes):
            positions = start[k] + step[k] * np.arange(variables[name].shape[k])
            attributes = {"units": said[k].get("unit", ""), "spacing": step[k]}
            variables[f"{name}/{axis}"] = Variable((f"{name}/{axis}",), positions.dtype, attributes, positions)
    return levels


def write_zarr(path: str, volume: Volume) -> None:
    """Write a volume as a group of Zarr 3, as xarray does: chunk by chunk, compressed by Zarr's default."""
    zarr = import_package("zarr", "zarr", path)
    dtype = without_float16(np.dtype(volume.array.dtype)).newbyteorder("=")
    said, d_in = description(volume, dtype), volume.geometry.d_in
    chunks = [min(CHUNK.get(dim, n), n) for dim, n in zip(said.dims, said.shape, strict=True)]
    os.mkdir(path)
    store = zarr.storage.LocalStore(path)
    group = zarr.create_group(store, attributes={"Conventions": "CF-1.8"})
    for axis, (positions, attributes) in said.coordinates.items():
        group.create_array(axis, data=positions, dimension_names=[axis], attributes=attributes)
    attributes = {name: np.asarray(value).tolist() for name, value in said.attributes.items()}
    if "_FillValue" in attributes and dtype.kind == "f":  # as xarray writes it
        attributes["_FillValue"] = base64.b64encode(np.array(attributes["_FillValue"], "<f8").tobytes()).decode()
    values = group.create_array(
        said.name, shape=said.shape, dtype=dtype, chunks=chunks, dimension_names=said.dims, attributes=attributes
    )
    for box, part in slices_first(volume.array, d_in, dtype, chunks[said.dims.index("xyz"[min(d_in, 3) - 1])]):
        values[(0,) * (values.ndim - part.ndim) + box] = part  # 0: the step of a series
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Zarr 3 does not specify it yet; xarray looks for it
        zarr.consolidate_metadata(store)
