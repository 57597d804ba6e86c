"""What VTK reads: its own formats, MetaImage, NIfTI, DICOM, TIFF. Run as a script, see `volume_readers.read_by_vtk`:

    python vtk_readers.py PATH [ARRAY]

writes to stdout a line of JSON, of the volume or of an error, and then the voxels, x fastest. Those that a file holds
as they are it leaves there, and says where.

Voxels keep the order of their file, where VTK turns some over. World coordinates are those of the file, unconverted:
DICOM's and ITK's axes point left, posterior, superior, those of NIfTI right, anterior, superior.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import struct
import sys
from collections.abc import Iterator

import numpy as np

from volume import LazyArray, Volume, VolumeError, oriented, suffix_of
from vtk_output import MAX_EXPANSION, mapped, output_of, read_header, volume_of

# --- VTK --------------------------------------------------------------------------------------------


def read_vti(path: str, name: str | None = None) -> Volume:
    """VTK image data in XML."""
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    reader = vtkXMLImageDataReader()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTK image data")
    return volume_of(path, output_of(path, reader), name)


def read_legacy(path: str, name: str | None = None) -> Volume:
    """VTK's legacy format, structured points."""
    from vtkmodules.vtkIOLegacy import vtkStructuredPointsReader

    reader = vtkStructuredPointsReader()
    reader.ReadAllScalarsOn()
    reader.ReadAllVectorsOn()
    reader.ReadAllFieldsOn()
    image = output_of(path, reader, 8)  # an array of bits grows so much
    data = image.GetPointData()
    expected = sum(data.GetArray(i).GetNumberOfValues() for i in range(data.GetNumberOfArrays()) if data.GetArray(i))
    if (found := _numbers_of_text(path)) is not None and found < expected:
        raise VolumeError(f"{path}: truncated: expected {expected} numbers, found {found}")
    return volume_of(path, image, name)


def _numbers_of_text(path: str) -> int | None:
    """How many values a legacy file of text holds, which VTK does not mind; None for one of binary data."""
    with open(path, "rb") as file:
        lines = (line.split() for line in file)
        next(lines), next(lines)
        if next(lines) != [b"ASCII"]:
            return None
        return sum(len(words) for words in lines if words and re.fullmatch(rb"(?i)[-+.\d].*|nan|inf", words[0]))


def read_vtkhdf(path: str, name: str | None = None) -> Volume:
    """VTK image data in HDF5, of one time step."""
    from vtkmodules.vtkIOHDF import vtkHDFReader

    reader = vtkHDFReader()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not a VTKHDF file")
    image = output_of(path, reader)
    if not image.IsA("vtkImageData"):
        raise VolumeError(f"{path}: expected image data, found {image.GetClassName()}")
    if reader.GetNumberOfSteps() > 1:
        raise VolumeError(f"{path}: expected one time step, found {reader.GetNumberOfSteps()}")
    return volume_of(path, image, name)


# --- MetaImage --------------------------------------------------------------------------------------


LONG = ("MET_LONG_LONG", "MET_ULONG_LONG")


def read_meta(path: str) -> Volume:
    """MetaImage: .mhd with its data in another file, or .mha; mapped where they are uncompressed and at once there."""
    from vtkmodules.vtkIOImage import vtkMetaImageReader

    header, end = _meta_header(path)
    data = header.get("ElementDataFile", "")
    is_local = data.upper() == "LOCAL"
    source = path if is_local else os.path.join(os.path.dirname(path), data)
    if not os.path.isfile(source):
        if data and data.split()[0].upper() != "LIST" and "%" not in data and not os.path.exists(source):
            raise VolumeError(f"{path}: its data file {source} does not exist")
        raise VolumeError(f"{path}: expected its voxels in one file, found ElementDataFile = {data or 'none'}")
    if header.get("ElementType") in LONG:
        raise VolumeError(f"{path}: VTK does not read 64-bit integers in MetaImage, only in other formats, as .nrrd")
    is_packed, is_text = header.get("CompressedData", "") == "True", header.get("BinaryData", "True") != "True"
    expansion = MAX_EXPANSION if is_packed else 8 if is_text else 1
    reader = vtkMetaImageReader()
    order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
    flags = header.get("BinaryData"), header.get("CompressedData", "False")
    if flags == ("True", "False") and order in ("True", "False") and "HeaderSize" not in header:
        read_header(path, reader, expansion, source)
        sizes = (reader.GetNumberOfScalarComponents(), *(last + 1 for last in reader.GetDataExtent()[1::2]))
        is_swapped = (order == "True") != (sys.byteorder == "big")
        array = np.moveaxis(mapped(source, reader, sizes, end if is_local else 0, is_swapped), 0, -1)
    else:
        array = volume_of(path, output_of(path, reader, expansion, source)).array
    # Rows are the axes' directions, as in ITK; VTK takes the columns for them.
    direction = np.reshape(reader.GetDataDirection(), (3, 3)).T
    return oriented(path, array, direction * reader.GetDataSpacing(), np.array(reader.GetDataOrigin()))


def _meta_header(path: str) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage's header, and where it ends."""
    fields, end = {}, 0
    with open(path, "rb") as file:
        for line in file.read(1 << 16).splitlines(keepends=True):
            end += len(line)
            key, _, value = (part.strip() for part in line.decode("latin-1").partition("="))
            fields[key] = value
            if key == "ElementDataFile":  # what follows are voxels
                break
    return fields, end


# --- NIfTI ------------------------------------------------------------------------------------------


RGB, COMPLEX = (128, 2304), (32, 1792, 2048)  # types of NIfTI


def read_nifti(path: str) -> Volume:
    """NIfTI (.nii, .nii.gz): scaled values, in the space of the sform, or else of the qform; a series of its steps."""
    from vtkmodules.vtkIOImage import vtkNIFTIImageReader

    reader = vtkNIFTIImageReader()
    reader.TimeAsVectorOn()
    is_packed = path.lower().endswith(".gz")
    expansion = MAX_EXPANSION if is_packed else 1
    read_header(path, reader, expansion)
    header = reader.GetNIFTIHeader()
    sizes = [header.GetDim(i) if i <= header.GetDim(0) else 1 for i in range(1, 8)]
    is_rgb = header.GetDataType() in RGB
    if header.GetDataType() in COMPLEX:
        raise VolumeError(f"{path}: expected real values, found complex ones")
    if math.prod(sizes[5:]) != 1 or (is_rgb and math.prod(sizes[3:]) != 1):
        raise VolumeError(f"{path}: expected axes of space, time and components, found sizes {sizes}")
    if is_packed or is_rgb:
        array = volume_of(path, output_of(path, reader, expansion)).array
        array = array.reshape(*array.shape[:3], sizes[3], -1)
        array = array[:, :, ::-1] if reader.GetQFac() < 0 else array  # VTK has turned it over
    else:
        array = mapped(path, reader, tuple(sizes[:5]), int(header.GetVoxOffset()), bool(reader.GetSwapBytes()))
    array = array[:, :, :, 0] if sizes[3] == 1 else np.moveaxis(array, 3, 0)
    volume = _nifti_place(path, header, _scaled(array, header.GetSclSlope(), header.GetSclInter()))
    if sizes[3] == 1:
        return volume
    step, start = abs(header.GetPixDim(4)) or 1.0, header.GetTOffset()
    return dataclasses.replace(volume, spacing=(step, *volume.spacing), origin=(start, *volume.origin))


def _scaled(array: np.ndarray, slope: float, shift: float) -> np.ndarray | LazyArray:
    """The values slope * array + shift, where NIfTI takes these for a scale."""
    if not (math.isfinite(slope) and math.isfinite(shift) and slope != 0 and (slope, shift) != (1, 0)):
        return array
    is_narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
    dtype = np.dtype(np.float32 if is_narrow else np.float64)
    return LazyArray(array.shape, dtype, lambda box: (array[box] * np.float64(slope) + shift).astype(dtype))


def _nifti_place(path: str, header, array: np.ndarray | LazyArray) -> Volume:
    """The values in the place that a header gives them."""
    lengths = np.abs([header.GetPixDim(i) or 1.0 for i in (1, 2, 3)])
    name = header.GetIntentName().strip() or "sf"
    if header.GetSFormCode() > 0:
        rows = np.array([header.GetSRowX(), header.GetSRowY(), header.GetSRowZ()])
        try:
            return oriented(path, array, rows[:, :3], rows[:, 3], name=name)
        except VolumeError:
            if header.GetQFormCode() <= 0:  # the qform has right angles always
                raise
    if header.GetQFormCode() <= 0:
        return oriented(path, array, np.diag(lengths), np.zeros(3), name=name)
    b, c, d = header.GetQuaternB(), header.GetQuaternC(), header.GetQuaternD()
    a = math.sqrt(max(1 - b * b - c * c - d * d, 0))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    lengths[2] *= -1 if header.GetPixDim(0) < 0 else 1
    origin = [header.GetQOffsetX(), header.GetQOffsetY(), header.GetQOffsetZ()]
    return oriented(path, array, turn * lengths, origin, name=name)


# --- DICOM ------------------------------------------------------------------------------------------

PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # voxels uncompressed, little-endian


def read_dicom(folder: str) -> Volume:
    """A folder of DICOM files, each a slice of one volume; they are put in order by their positions."""
    paths = sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and _is_dicom(entry.path))
    if not paths:
        raise VolumeError(f"{folder}: expected a folder of DICOM files, found none")
    planes, positions, axes = [], [], []
    for path in paths:
        plane, position, steps = _read_dicom_slice(path)
        planes.append(plane)
        positions.append(position)
        axes.append(steps)
        if plane.shape != planes[0].shape or plane.dtype != planes[0].dtype or np.abs(steps - axes[0]).max() > 1e-4:
            raise VolumeError(f"{path}: is of another series than {paths[0]}: other size, type, spacing or direction")
    normal = np.cross(*(axes[0][:, :2] / np.linalg.norm(axes[0][:, :2], axis=0)).T)
    order = np.argsort([position @ normal for position in positions])
    positions = np.array(positions)[order]
    if len(paths) > 1:
        step = (positions[-1] - positions[0]) / (len(paths) - 1)
        off = np.abs(positions - positions[0] - step * np.arange(len(paths))[:, None]).max()
        if not off < 0.02 * np.linalg.norm(step):
            raise VolumeError(f"{folder}: expected slices of one series at equal distances, found one off by {off:.4g}")
        axes[0][:, 2] = step
    array = np.stack([planes[i] for i in order], axis=2)
    if array.dtype == np.int32 and np.abs(array).max() < 1 << 15:
        array = array.astype(np.int16)
    return oriented(folder, array, axes[0], positions[0])


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


def _is_dicom(path: str) -> bool:
    return _start(path)[128:132] == b"DICM" and os.path.basename(path).upper() != "DICOMDIR"


def _read_dicom_slice(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (x, y, components), the position of the first, and the steps along the three axes, as columns."""
    from vtkmodules.vtkIOImage import vtkDICOMImageReader

    reader = vtkDICOMImageReader()
    image = output_of(path, reader, 1)
    if str(reader.GetTransferSyntaxUID()).strip("\0 ") not in PLAIN_SYNTAXES:
        raise VolumeError(f"{path}: expected uncompressed little-endian voxels, found {reader.GetTransferSyntaxUID()}")
    if re.search(rb"\x28\0\x08\0(IS..|.\0\0\0) *(0*[2-9]|0*1\d)", _start(path), re.S):
        raise VolumeError(f"{path}: expected one slice a file, found several frames")
    plane = volume_of(path, image).array[:, ::-1, 0]  # VTK has turned the rows over
    slope, shift = reader.GetRescaleSlope(), reader.GetRescaleOffset()
    if plane.dtype.kind in "iu":  # VTK has rescaled it, and wrapped it around at the end of the type
        dtype = np.dtype(f"<{'i' if reader.GetPixelRepresentation() else 'u'}{plane.dtype.itemsize}")
        if slope == 1:
            plane = (plane.astype(np.int32) - int(shift)).astype(dtype)
        else:  # of what it has multiplied the highest bits are lost
            plane = _stored_slice(path, plane.shape, dtype)
        plane = plane.astype(np.int32) * int(slope) + int(shift) if (slope, shift) != (1, 0) else plane
    # Single precision; its shortest decimals are those of the file.
    position, orientation, lengths = (
        np.array([float(str(np.float32(value))) for value in values])
        for values in (reader.GetImagePositionPatient(), reader.GetImageOrientationPatient(), reader.GetPixelSpacing())
    )
    row, column = orientation[:3], orientation[3:]
    steps = np.stack([row * lengths[0], column * lengths[1], np.cross(row, column) * (lengths[2] or 1.0)], axis=1)
    return plane, position, steps


def _stored_slice(path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The values (x, y, components) of a slice as the file holds them, found by their tag and length."""
    with open(path, "rb") as file:
        content = file.read()
    count = math.prod(shape)
    length = count * dtype.itemsize
    found = re.search(rb"\xe0\x7f\x10\0(?:O[BW]\0\0)?" + re.escape(struct.pack("<I", length + length % 2)), content)
    if not found or len(content) < found.end() + length:
        raise VolumeError(f"{path}: expected {length} bytes of voxels in one piece, found none")
    return np.frombuffer(content, dtype, count, found.end()).reshape(shape[1], shape[0], -1).swapaxes(0, 1)


# --- TIFF -------------------------------------------------------------------------------------------


def read_tiff(path: str) -> Volume:
    """A TIFF of one page a slice; y counts the rows as stored. Only ImageJ's say how far apart voxels are."""
    from vtkmodules.vtkIOImage import vtkTIFFReader

    pages = _tiff_pages(path)
    first = pages[0]
    for page in pages:
        if any(page.get(tag) != first.get(tag) for tag in (256, 257, 258, 277, 339)):
            raise VolumeError(f"{path}: expected pages of one size and type, found others")
    bits, samples, planar = first.get(258, (1,)), first.get(277, (1,))[0], first.get(284, (1,))[0]
    if len(set(bits)) > 1 or bits[0] not in (8, 16, 32):
        raise VolumeError(f"{path}: expected 8, 16 or 32 bits a sample, found {bits}")
    if first.get(259, (1,))[0] not in (1, 5, 8, 32773) or 322 in first or (planar != 1 and samples > 1):
        raise VolumeError(f"{path}: expected interleaved strips, plain or of LZW, deflate or PackBits")
    if first.get(262, (-1,))[0] not in (1, 2) or samples not in (1, 3, 4):
        raise VolumeError(f"{path}: expected grey (zero is black) or RGB samples")
    text = bytes(first.get(270, b"")).decode("latin-1")
    found = dict(re.findall(r"^(\w+)=(.*?)\s*$", text, re.M)) if text.startswith("ImageJ=") else {}
    if int(found.get("images", len(pages))) != len(pages) or {"channels", "frames"} & found.keys():
        raise VolumeError(f"{path}: expected a page a slice, found {len(pages)} pages and {found}")
    reader = vtkTIFFReader()
    reader.SetOrientationType(1)  # leaves the rows as they are stored
    array = volume_of(path, output_of(path, reader)).array
    if array.shape != (first[256][0], first[257][0], len(pages), samples):
        raise VolumeError(f"{path}: VTK cannot read it: expected {len(pages)} pages, found shape {array.shape}")
    try:
        across = [first[tag][1] / first[tag][0] for tag in (282, 283)] if found else [1.0, 1.0]
        spacing = [*across, float(found.get("spacing", 1))]
    except (KeyError, ZeroDivisionError, ValueError):
        spacing = [1.0] * 3
    return oriented(path, array, np.diag(spacing), np.zeros(3))


TIFF_TAGS = (256, 257, 258, 259, 262, 270, 277, 282, 283, 284, 322, 339)
TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 16: "Q"}  # of the tags that matter here


def _tiff_pages(path: str) -> list[dict[int, tuple]]:
    """Numbers by tag, of every page."""
    pages, seen = [], set()
    with open(path, "rb") as file:

        def unpack(form: str) -> tuple:
            return struct.unpack(endian + form, file.read(struct.calcsize(endian + form)))

        try:
            endian = {b"II": "<", b"MM": ">"}[file.read(2)]
            is_big = {42: False, 43: True}[unpack("H")[0]]
            count, place = ("Q", "Q") if is_big else ("H", "I")
            offset = unpack("HHQ" if is_big else "I")[-1]
            if not offset:
                raise ValueError("it has no pages")
            while offset:
                if offset in seen:
                    raise ValueError("its pages go round in a circle")
                seen.add(offset)
                file.seek(offset)
                page = {}
                for _ in range(unpack(count)[0]):
                    tag, kind, n = unpack("HH" + place)
                    value, after = file.read(struct.calcsize(place)), file.tell()
                    if tag in TIFF_TAGS and kind in TIFF_TYPES and n <= 1 << 16:
                        form = f"{endian}{n * TIFF_TYPES[kind]}"
                        if struct.calcsize(form) > len(value):
                            file.seek(*struct.unpack(endian + place, value))
                            value = file.read(struct.calcsize(form))
                            file.seek(after)
                        page[tag] = struct.unpack(form, value[: struct.calcsize(form)])
                pages.append(page)
                if not all(page.get(tag) for tag in (256, 257)):
                    raise ValueError("a page has no size")
                offset = unpack(place)[0]
        except (KeyError, ValueError, OSError, OverflowError, struct.error) as error:
            raise VolumeError(f"{path}: not a readable TIFF file: {error}") from None
    return pages


# --- the process ------------------------------------------------------------------------------------


def main(path: str, *names: str) -> None:
    """Write the volume in a file, or the one of that name in it, to stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # where VTK prints
    _limit_memory()
    try:
        volume = read_dicom(path) if os.path.isdir(path) else READERS[suffix_of(path)](path, *names)
    except VolumeError as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    array = volume.array
    header = {"shape": array.shape, "dtype": array.dtype.str, "name": volume.name, "units": volume.units}
    header |= {"spacing": volume.spacing, "origin": volume.origin, "direction": volume.direction, "time": volume.time}
    if is_mapped := isinstance(array, np.memmap):
        header["map"] = [array.filename, array.offset, array.strides]
    out.write(json.dumps(header).encode() + b"\n")
    for box in () if is_mapped else _slices(array.shape):
        out.write(memoryview(np.ascontiguousarray(array[box].swapaxes(-2, -4))).cast("B"))
    out.close()


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Boxes of one place along z, and of one step if there are any, of an array ((t,) x, y, z, components)."""
    *times, _, _, n_z, _ = shape
    for *before, z in itertools.product(*(range(n) for n in (*times, n_z))):
        yield (*(slice(t, t + 1) for t in before), slice(None), slice(None), slice(z, z + 1))


def _limit_memory() -> None:
    """What damaged headers ask for beyond the machine's memory is not given."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


READERS = {
    ".vti": read_vti,
    ".vtk": read_legacy,
    **dict.fromkeys((".vtkhdf", ".hdf"), read_vtkhdf),
    **dict.fromkeys((".mhd", ".mha"), read_meta),
    **dict.fromkeys((".nii", ".nii.gz"), read_nifti),
    **dict.fromkeys((".tif", ".tiff"), read_tiff),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
