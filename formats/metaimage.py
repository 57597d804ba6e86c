"""MetaImage (.mhd, .mha): a reader, and the header to write.

World coordinates are LPS, as ITK has them. The field AnatomicalOrientation says the same again, in letters of which
there are two readings. As ITK does, the reader takes the matrix alone. Lengths become mm by the field DistanceUnits,
which ITK keeps aside: "um", "mm" or "cm".
"""

from __future__ import annotations

import numpy as np

from formats.common import LENGTHS_IN_MM, VolumeError, of_three_axes, unit_of_length, volume_from_axes
from formats.slabs import Frame, figures
from formats.voxels import file_beside, mapped, unpacked
from utils import Volume

# MET_LONG is of 32 bits in ITK and of 64 in VTK, and so is refused.
TYPES = {"MET_CHAR": "int8", "MET_SHORT": "int16", "MET_INT": "int32", "MET_LONG_LONG": "int64"}
TYPES |= {"MET_UCHAR": "uint8", "MET_USHORT": "uint16", "MET_UINT": "uint32", "MET_ULONG_LONG": "uint64"}
TYPES |= {"MET_FLOAT": "float32", "MET_DOUBLE": "float64"}
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


def read_meta(path: str) -> Volume:
    """The volume of a .mha file, or of a .mhd file and its data file. Uncompressed binary data are mapped."""
    header, end = _read_header(path)
    if header.get("NDims", "").strip() == "4":
        way_out = f"SimpleITK.WriteImage(SimpleITK.ReadImage({path!r}), 'series.nii') writes a time series that is read"
        raise VolumeError(f"{path}: expected up to three axes, found NDims = 4: {way_out}")
    source = data_file(path)
    is_big = any(_flag(path, header, name) for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    is_binary, is_packed = _flag(path, header, "BinaryData", True), _flag(path, header, "CompressedData")
    if is_packed and (not is_binary or "HeaderSize" in header):
        raise VolumeError(f"{path}: expected compressed voxels in binary form and without HeaderSize")
    kind = header.get("ElementType")
    if kind not in TYPES:
        raise VolumeError(f"{path}: expected ElementType {', '.join(TYPES)}, found {kind}")
    try:
        shape = tuple(map(int, header["DimSize"].split()))
        n_components = int(header.get("ElementNumberOfChannels", 1))
        offset = int(header.get("HeaderSize", 0)) or (end if source == path else 0)  # -1 is AT_END
        spacing = _numbers(header, ("ElementSpacing", "ElementSize"), shape, 1.0)
        origin = _numbers(header, ("Origin", "Offset", "Position"), shape, 0.0)
        if not 1 <= int(header["NDims"]) == len(shape) <= 3 or min(*shape, n_components) < 1:
            raise ValueError(f"expected up to 3 axes, found NDims = {header['NDims']}, DimSize = {header['DimSize']}")
    except (KeyError, ValueError) as error:
        raise VolumeError(f"{path}: not a readable MetaImage header: {error}") from None
    sizes = (n_components, *of_three_axes(shape, 1))
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if is_big else "<")
    if is_binary and not is_packed:
        array = mapped(source, dtype, sizes, offset)
    else:
        array = unpacked(source, dtype, sizes, "zlib" if is_packed else "text", offset)
    steps = _directions(path, header).T * [length or 1.0 for length in spacing]  # a negative one turns the axis round
    unit = LENGTHS_IN_MM.get(unit_of_length(header.get("DistanceUnits", "")), 1.0)
    return volume_from_axes(path, np.moveaxis(array, 0, -1), steps * unit, np.array(origin) * unit, "LPS")


def _numbers(header: dict[str, str], fields: tuple[str, ...], shape: tuple[int, ...], rest: float) -> tuple[float, ...]:
    """One number for each of three axes, by the first of these fields that there is; `rest` where it says nothing.

    As in ITK, the field may have more numbers than the image has axes: those of an image are often three.
    """
    field = next((field for field in fields if field in header), fields[0])
    text = header.get(field, "")
    numbers = tuple(map(float, text.split()[: len(shape)]))
    if len(numbers) not in (0, len(shape)):
        raise ValueError(f"expected {field} = {len(shape)} numbers, found {text}")
    return of_three_axes(numbers or (rest,), rest)


def _directions(path: str, header: dict[str, str]) -> np.ndarray:
    """The directions of the three axes, as rows, as in ITK. Raises VolumeError."""
    name = next((name for name in ("TransformMatrix", "Rotation", "Orientation") if name in header), None)
    directions = np.eye(3)
    if name is None:
        return directions
    try:
        n = int(header["NDims"])
        directions[:n, :n] = np.reshape(list(map(float, header[name].split())), (n, n))
    except ValueError:
        raise VolumeError(f"{path}: expected {name} = a square matrix of NDims numbers, found {header[name]}") from None
    if n < 3 and abs(np.linalg.det(directions)) < 0.5:
        hint = "VTK writes it so for images of one slice: write them as .vti or .nrrd"
        raise VolumeError(f"{path}: expected axes at right angles, found {name} = {header[name]}: {hint}")
    return directions


def data_file(path: str) -> str:
    """The file that holds the voxels: the one that a header names, or the header's own. Raises VolumeError."""
    header, _ = _read_header(path)
    named = header.get("ElementDataFile", "")
    return path if named.upper() == "LOCAL" else file_beside(path, named, "ElementDataFile =")


def _flag(path: str, header: dict[str, str], name: str, default: bool = False) -> bool:
    """Whether a field says True. Raises VolumeError for what is neither True nor False."""
    value = header.get(name, str(default))
    if value.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise VolumeError(f"{path}: {name}: expected True or False, found {value}")
    return value.lower() in ("true", "t", "1")


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
        f"ElementType = {TYPE_NAMES[frame.dtype.name]}",
        f"ElementDataFile = {data}",
    ]
    return "\n".join([*lines, ""]).encode()
