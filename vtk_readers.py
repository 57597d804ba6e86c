"""What VTK reads: its own formats, MetaImage, NIfTI, DICOM, TIFF. Run as a script, see `volume_readers.read_by_vtk`:

    python vtk_readers.py PATH [ARRAY]

writes to stdout a line of JSON, of the volume or of an error, and then the voxels as they lie in memory, x fastest.

Voxels keep the order of their file, where VTK turns some over. World coordinates are those of the file, unconverted:
DICOM's and ITK's axes point left, posterior, superior, those of NIfTI right, anterior, superior.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys

import numpy as np
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkDataArray, vtkOutputWindow, vtkStringOutputWindow
from vtkmodules.vtkCommonDataModel import vtkDataObject
from vtkmodules.vtkCommonExecutionModel import vtkStreamingDemandDrivenPipeline as Pipeline

from volume import Volume, VolumeError, oriented, suffix_of
from volume_readers import MAX_EXPANSION

# --- VTK --------------------------------------------------------------------------------------------


def read_vti(path: str, name: str | None = None) -> Volume:
    """VTK image data in XML."""
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    reader = vtkXMLImageDataReader()
    if not reader.CanReadFile(path):
        raise VolumeError(f"{path}: not VTK image data")
    return _volume(path, _output(path, reader), name)


def read_legacy(path: str, name: str | None = None) -> Volume:
    """VTK's legacy format, structured points."""
    from vtkmodules.vtkIOLegacy import vtkStructuredPointsReader

    reader = vtkStructuredPointsReader()
    reader.ReadAllScalarsOn()
    reader.ReadAllVectorsOn()
    reader.ReadAllFieldsOn()
    image = _output(path, reader, 8)  # an array of bits grows so much
    data = image.GetPointData()
    expected = sum(data.GetArray(i).GetNumberOfValues() for i in range(data.GetNumberOfArrays()) if data.GetArray(i))
    if (found := _numbers_of_text(path)) is not None and found < expected:
        raise VolumeError(f"{path}: truncated: expected {expected} numbers, found {found}")
    return _volume(path, image, name)


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
    image = _output(path, reader)
    if not image.IsA("vtkImageData"):
        raise VolumeError(f"{path}: expected image data, found {image.GetClassName()}")
    if reader.GetNumberOfSteps() > 1:
        raise VolumeError(f"{path}: expected one time step, found {reader.GetNumberOfSteps()}")
    return _volume(path, image, name)


def _output(path: str, reader, expansion: int = MAX_EXPANSION, source: str | None = None):
    """What a VTK reader makes of a file. Raises VolumeError when it cannot, with its reason.

    A file (or the `source` of its data) of which one byte would have to become more than `expansion` is refused
    before VTK allocates what its header announces.
    """
    said = vtkStringOutputWindow()
    vtkOutputWindow.SetInstance(said)
    reader.SetFileName(path)
    reader.UpdateInformation()
    if not (failed := _failure(said)):
        expected, found = _announced(reader.GetOutputInformation(0)), os.path.getsize(source or path)
        if expected > expansion * found:
            raise VolumeError(f"{path}: truncated: expected {expected} bytes of voxels, found {found} bytes in all")
        reader.Update()
        failed = _failure(said)
    if failed or reader.GetErrorCode():
        raise VolumeError(f"{path}: VTK cannot read it: {failed or 'damaged or truncated'}")
    return reader.GetOutputDataObject(0)


def _failure(said: vtkStringOutputWindow) -> str | None:
    """The first error that VTK has told of; some it calls warnings."""
    found = re.search(r"(?:ERROR: .*\n(?:.*\): )?(.+)|(Error reading.+))", said.GetOutput())
    return found and " ".join((found[1] or found[2]).split())


def _announced(information) -> int:
    """Bytes of the scalars that a file's header announces, of one byte a voxel where their type is not known yet."""
    extent = information.Get(Pipeline.WHOLE_EXTENT()) if information.Has(Pipeline.WHOLE_EXTENT()) else (0, -1)
    count = math.prod(max(last - first + 1, 0) for first, last in zip(extent[::2], extent[1::2], strict=True))
    scalars = vtkDataObject.GetActiveFieldInformation(information, vtkDataObject.FIELD_ASSOCIATION_POINTS, 0)
    if scalars and scalars.Has(vtkDataObject.FIELD_ARRAY_TYPE()):
        count *= vtkDataArray.GetDataTypeSize(scalars.Get(vtkDataObject.FIELD_ARRAY_TYPE()))
    if scalars and scalars.Has(vtkDataObject.FIELD_NUMBER_OF_COMPONENTS()):
        count *= max(scalars.Get(vtkDataObject.FIELD_NUMBER_OF_COMPONENTS()), 1)
    return count


def _volume(path: str, image, name: str | None = None) -> Volume:
    """The array `name` (or the scalars, or else the first) on the points of a vtkImageData; none of it is copied."""
    data = image.GetPointData()
    arrays = {data.GetArrayName(i): data.GetArray(i) for i in range(data.GetNumberOfArrays()) if data.GetArray(i)}
    if name is not None and name not in arrays:
        raise VolumeError(f"{path}: holds no array {name!r}, only {', '.join(map(repr, arrays)) or 'none'}")
    values = arrays[name] if name is not None else data.GetScalars() or data.GetArray(0)
    shape = image.GetDimensions()
    if values is None or values.GetNumberOfTuples() != math.prod(shape):
        raise VolumeError(f"{path}: expected an array on the points of an image, found none")
    array = vtk_to_numpy(values).reshape(*shape[::-1], values.GetNumberOfComponents()).transpose(2, 1, 0, 3)
    matrix, spacing = image.GetDirectionMatrix(), image.GetSpacing()
    direction = np.array([[matrix.GetElement(i, j) for j in range(3)] for i in range(3)])
    origin = tuple((image.GetOrigin() + direction @ np.multiply(spacing, image.GetExtent()[::2])).tolist())
    units = values.GetInformation().Get(vtkDataArray.UNITS_LABEL()) or ""
    times = image.GetFieldData().GetArray("TimeValue")
    time = times.GetTuple1(0) if times and times.GetNumberOfValues() == 1 else None
    direction = tuple(direction.ravel().tolist())
    return Volume(array, spacing, origin, values.GetName() or "sf", direction, units, time=time)


# --- MetaImage --------------------------------------------------------------------------------------


def read_meta(path: str) -> Volume:
    """MetaImage: .mhd with its data in another file, or .mha."""
    from vtkmodules.vtkIOImage import vtkMetaImageReader

    header: dict[str, str] = {}
    with open(path, "rb") as file:
        for line in file.read(1 << 16).decode("latin-1").splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            header[key] = value
            if key == "ElementDataFile":  # what follows are voxels
                break
    data = header.get("ElementDataFile", "")
    source = path if data.upper() == "LOCAL" else os.path.join(os.path.dirname(path), data)
    if not os.path.isfile(source):
        raise VolumeError(f"{path}: expected its voxels in one file, found ElementDataFile = {data or 'none'}")
    is_packed, is_text = header.get("CompressedData", "") == "True", header.get("BinaryData", "True") != "True"
    expansion = MAX_EXPANSION if is_packed else 8 if is_text else 1
    volume = _volume(path, _output(path, vtkMetaImageReader(), expansion, source))
    # Rows are the axes' directions, as in ITK; VTK takes the columns for them.
    direction = np.reshape(volume.direction, (3, 3)).T
    return oriented(path, volume.array, direction * volume.spacing, volume.origin)


# --- NIfTI ------------------------------------------------------------------------------------------


def read_nifti(path: str) -> Volume:
    """NIfTI (.nii, .nii.gz): scaled values, in the space of the sform, or else of the qform."""
    from vtkmodules.vtkIOImage import vtkNIFTIImageReader

    reader = vtkNIFTIImageReader()
    is_packed = path.lower().endswith(".gz")
    image = _output(path, reader, MAX_EXPANSION if is_packed else 1)
    header = reader.GetNIFTIHeader()
    if header.GetDim(0) >= 4 and header.GetDim(4) > 1:
        raise VolumeError(f"{path}: expected one time step, found {header.GetDim(4)}")
    array = _volume(path, image).array
    if reader.GetQFac() < 0:
        array = array[:, :, ::-1]  # VTK has turned it over
    slope, shift = header.GetSclSlope(), header.GetSclInter()
    if math.isfinite(slope) and math.isfinite(shift) and slope != 0 and (slope, shift) != (1, 0):
        is_narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
        array = (array * np.float64(slope) + shift).astype(np.float32 if is_narrow else np.float64)
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
    image = _output(path, reader, 1)
    if str(reader.GetTransferSyntaxUID()).strip("\0 ") not in PLAIN_SYNTAXES:
        raise VolumeError(f"{path}: expected uncompressed little-endian voxels, found {reader.GetTransferSyntaxUID()}")
    if re.search(rb"\x28\0\x08\0(IS..|.\0\0\0) *(0*[2-9]|0*1\d)", _start(path), re.S):
        raise VolumeError(f"{path}: expected one slice a file, found several frames")
    plane = _volume(path, image).array[:, ::-1, 0]  # VTK has turned the rows over
    slope, shift = reader.GetRescaleSlope(), reader.GetRescaleOffset()
    if plane.dtype.kind in "iu":  # VTK has rescaled it, and wrapped it around at the end of the type
        if slope != 1:
            raise VolumeError(f"{path}: expected a rescale slope of 1, or one with a fraction, found {slope}")
        stored = f"{'i' if reader.GetPixelRepresentation() else 'u'}{plane.dtype.itemsize}"
        plane = (plane.astype(np.int32) - int(shift)).astype(stored)
        plane = plane.astype(np.int32) + int(shift) if shift else plane
    # Single precision; its shortest decimals are those of the file.
    position, orientation, lengths = (
        np.array([float(str(np.float32(value))) for value in values])
        for values in (reader.GetImagePositionPatient(), reader.GetImageOrientationPatient(), reader.GetPixelSpacing())
    )
    row, column = orientation[:3], orientation[3:]
    steps = np.stack([row * lengths[0], column * lengths[1], np.cross(row, column) * (lengths[2] or 1.0)], axis=1)
    return plane, position, steps


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
    array = _volume(path, _output(path, reader)).array
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
    array = np.ascontiguousarray(volume.array.transpose(2, 1, 0, 3))
    geometry = {"spacing": volume.spacing, "origin": volume.origin, "direction": volume.direction}
    header = {"shape": array.shape, "dtype": array.dtype.str, **geometry}
    header |= {"name": volume.name, "units": volume.units, "time": volume.time}
    out.write(json.dumps(header).encode() + b"\n")
    out.write(memoryview(array).cast("B"))
    out.close()


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
