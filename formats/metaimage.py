"""MetaImage (.mhd, .mha): a reader that uses VTK, in the process of formats/vtk_process.py, and the header to write.

World coordinates are LPS, as ITK has them. The field AnatomicalOrientation says the same again, in letters of which
there are two readings. As ITK does, the reader takes the matrix alone.
"""

from __future__ import annotations

import math
import os
import sys
import zlib

import numpy as np

from formats.common import MAX_EXPANSION, VolumeError, volume_from_axes
from formats.slabs import Frame, figures
from utils import Volume

META_TYPES = {
    "int8": "MET_CHAR",
    "int16": "MET_SHORT",
    "int32": "MET_INT",
    "uint8": "MET_UCHAR",
    "uint16": "MET_USHORT",
    "uint32": "MET_UINT",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}
LONG = ("MET_LONG_LONG", "MET_ULONG_LONG")  # 64-bit integers, which terminate VTK's reader


def read_meta(path: str) -> Volume:
    """The volume of a .mha file, or of a .mhd file and its data file. Uncompressed binary data are mapped."""
    from vtkmodules.vtkIOImage import vtkMetaImageReader

    from formats.vtk_grids import volume_of_data_set
    from formats.vtk_output import dtype_of, mapped, output_of, read_header

    header, end = _read_header(path)
    source = data_file(path)
    start = end if source == path else 0
    if header.get("ElementType") in LONG:
        raise VolumeError(f"{path}: VTK does not read 64-bit integers in MetaImage, only in other formats, as .nrrd")
    is_binary, is_packed = _flag(path, header, "BinaryData", True), _flag(path, header, "CompressedData")
    is_big = any(_flag(path, header, name) for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    if is_packed and (not is_binary or "HeaderSize" in header):
        raise VolumeError(f"{path}: expected compressed voxels in binary form and without HeaderSize")
    expansion = MAX_EXPANSION if is_packed else 1 if is_binary else 8
    reader = vtkMetaImageReader()
    if "HeaderSize" in header:
        array = volume_of_data_set(path, output_of(path, reader, expansion, source)).array
    else:
        read_header(path, reader, expansion, source)
        sizes = (reader.GetNumberOfScalarComponents(), *(last + 1 for last in reader.GetDataExtent()[1::2]))
        is_swapped = is_big != (sys.byteorder == "big")
        if is_binary and not is_packed:
            array = mapped(source, reader, sizes, start, is_swapped)
        else:
            dtype = dtype_of(reader, is_swapped)
            content = _inflated if is_packed else _numbers
            array = content(source, start, math.prod(sizes), dtype).reshape(sizes, order="F")
        array = np.moveaxis(array, 0, -1)
    spacing = [step or 1.0 for step in reader.GetDataSpacing()]  # VTK has 0 for an axis that the file lacks
    signs = [-1.0 if step.startswith("-") else 1.0 for step in header.get("ElementSpacing", "").split()[:3]]
    signs += [1.0] * (3 - len(signs))  # ITK turns the axis round; VTK drops the sign
    axes = _directions(path, header).T * spacing * signs
    return volume_from_axes(path, array, axes, np.array(reader.GetDataOrigin()), "LPS")


def _directions(path: str, header: dict[str, str]) -> np.ndarray:
    """The directions of the three axes, as rows, as in ITK. Raises VolumeError.

    VTK is not asked: until 9.6 it leaves them out, and it mixes up those of fewer axes.
    """
    name = next((name for name in ("TransformMatrix", "Rotation", "Orientation") if name in header), None)
    directions = np.eye(3)
    if name is None:
        return directions
    try:
        found = np.array([float(number) for number in header[name].split()])
        n = int(header["NDims"])
        matrix = found.reshape(n, n)[:3, :3]
    except (KeyError, ValueError):
        raise VolumeError(f"{path}: expected {name} = a square matrix of NDims numbers, found {header[name]}") from None
    directions[:n, :n] = matrix
    if n < 3 and abs(np.linalg.det(directions)) < 0.5:
        hint = "VTK writes it so for images of one slice: write them as .vti or .nrrd"
        raise VolumeError(f"{path}: expected axes at right angles, found {name} = {header[name]}: {hint}")
    return directions


def data_file(path: str) -> str:
    """The file that holds the voxels: the one that a header names, or the header's own. Raises VolumeError."""
    data = _read_header(path)[0].get("ElementDataFile", "")
    source = path if data.upper() == "LOCAL" else os.path.join(os.path.dirname(path), data)
    if not os.path.isfile(source):
        if data and data.split()[0].upper() != "LIST" and "%" not in data and not os.path.exists(source):
            raise VolumeError(f"{path}: its data file {source} does not exist")
        raise VolumeError(f"{path}: expected its voxels in one file, found ElementDataFile = {data or 'none'}")
    return source


def _flag(path: str, header: dict[str, str], name: str, default: bool = False) -> bool:
    """Whether a field says True. Raises VolumeError for what is neither True nor False."""
    value = header.get(name, str(default))
    if value.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise VolumeError(f"{path}: {name}: expected True or False, found {value}")
    return value.lower() in ("true", "t", "1")


def _inflated(source: str, start: int, n: int, dtype: np.dtype) -> np.ndarray:
    """The n voxels of a zlib or gzip stream, checksum and all, which VTK does not look at. Raises VolumeError."""
    n_bytes = n * dtype.itemsize
    with open(source, "rb") as file:
        file.seek(start)
        inflater = zlib.decompressobj(wbits=47)  # either form
        try:
            found = inflater.decompress(file.read(), n_bytes + 1)
        except zlib.error as error:
            raise VolumeError(f"{source}: its voxels are damaged: {error}") from None
    if len(found) != n_bytes or not inflater.eof:
        raise VolumeError(f"{source}: truncated: expected {n_bytes} bytes of voxels, found {len(found)}")
    return np.frombuffer(found, dtype)


def _numbers(source: str, start: int, n: int, dtype: np.dtype) -> np.ndarray:
    """The n voxels of a text, of which VTK does not notice that there are fewer. Raises VolumeError."""
    with open(source, "rb") as file:
        file.seek(start)
        words = file.read().split()
    if len(words) != n:
        raise VolumeError(f"{source}: truncated: expected {n} numbers, found {len(words)}")
    try:
        return np.array([dtype.type(word.decode()) for word in words], dtype)
    except (ValueError, OverflowError) as error:
        raise VolumeError(f"{source}: its voxels are damaged: {error}") from None


def _read_header(path: str) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage's header, and the offset at which the header ends, in bytes."""
    fields, end = {}, 0
    with open(path, "rb") as file:
        for line in file.read(1 << 16).splitlines(keepends=True):
            end += len(line)
            key, _, value = (part.strip() for part in _text(line).partition("="))
            fields[key] = value
            if key == "ElementDataFile":  # the voxels follow
                break
    return fields, end


def _text(line: bytes) -> str:
    """A line of a header as text, which may name a file: UTF-8, or else Latin-1, which has a letter for every byte."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def meta_header(frame: Frame, data: str) -> bytes:
    """The header of a MetaImage. TransformMatrix lists the axes' directions one by one, as ITK reads them."""
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        f"TransformMatrix = {figures(np.reshape(frame.geometry.direction, (3, 3)).T)}",
        f"Offset = {figures(frame.geometry.origin)}",
        f"ElementSpacing = {figures(frame.geometry.spacing)}",
        "DimSize = {} {} {}".format(*frame.grid),
        f"ElementNumberOfChannels = {frame.n_components}",
        f"ElementType = {META_TYPES[frame.dtype.name]}",
        f"ElementDataFile = {data}",
    ]
    return "\n".join([*lines, ""]).encode()
