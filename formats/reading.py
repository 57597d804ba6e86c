"""Reads volume files of every format and checks the volumes.

`Volume.array[x, y, z]`: axis 0 is x, as in the original scripts. The readers of spatial formats return arrays (x, y, z,
components). Most of these formats store x fastest, so the array is a transposed view.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import math
import os
import shlex
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cli import console
from cli.arguments import Options
from cli.files import is_zarr
from formats import dicom, hdf5, metaimage, netcdf, nifti, npz, nrrd, pvd, raw, series, tiff, zarr
from formats.cf import volume_of_variable
from formats.common import BY_PARAVIEW, COMPLEX_WAY_OUT, VolumeError, as_volume_error, in_type, suffix_of
from formats.packing import unmarked
from formats.variables import chosen
from formats.vtk_process import VTK_READERS, read_by_vtk
from utils import BLOB_MAGIC, UserError, Volume, VolumeHeader, differences, header_of, is_missing, read_in_boxes

READERS = {
    **dict.fromkeys((".nrrd", ".nhdr"), nrrd.read_nrrd),
    **dict.fromkeys(VTK_READERS, read_by_vtk),
    **dict.fromkeys((".mhd", ".mha"), metaimage.read_meta),
    **dict.fromkeys((".nii", ".nii.gz"), nifti.read_nifti),
    **dict.fromkeys((".tif", ".tiff"), tiff.read_tiff),
}
READERS_OF_ARRAYS = {  # of files that hold arrays with names: read(path, name); of .npz also d_in and d_out
    **dict.fromkeys((".nc", ".nc4", ".cdf"), netcdf.read_netcdf),
    **dict.fromkeys((".h5", ".hdf5", ".he5", ".mat"), hdf5.read_hdf5),
    ".npz": npz.read_npz,
}
SIGNATURES = (b"CDF", b"\x89HDF")  # of NetCDF and HDF5, whose files of simulations often have no suffix, or any
HEADERS = {".nrrd": nrrd, ".nhdr": nrrd, ".mhd": metaimage, ".mha": metaimage}  # which may name a file of voxels
SEVERAL_FILES = {  # formats whose files only name others, and what to give in place of them
    **dict.fromkeys((".pvd", ".series"), "give it alone, in no pattern and no other list"),
    **dict.fromkeys((".pvti", ".pvtr", ".pvts", ".pvtu", ".pvtp", ".vtm", ".vtmb", ".vtpd", ".vtpc"), BY_PARAVIEW),
    **dict.fromkeys((".vth", ".vthb", ".xmf", ".xdmf", ".case", ".foam"), BY_PARAVIEW),
}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
BY_IMAGEJ = "ImageJ's File > Import > Image Sequence makes one .tif of pictures"
PACKED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ", b"PK\3\4")  # first bytes of gzip, bzip2, xz and zip
OF_MRC = (".mrc", ".mrcs", ".map", ".ccp4", ".rec", ".st")
OF_BIOFORMATS = (".czi", ".lif", ".nd2", ".ims", ".oib", ".lsm", ".stk", ".dm3", ".dm4", ".am")
OF_NIBABEL = (".img", ".hdr", ".img.gz", ".hdr.gz", ".mgh", ".mgz")
OF_VASP = (".vasp", "chgcar", "parchg", "locpot")  # most of its files have a name of their own, without a suffix
OTHER_SUFFIXES = {  # of formats that are not read: what makes a file that is read; {path!r} is the name of the file
    **dict.fromkeys(OF_MRC, "numpy.save('a.npy', mrcfile.open({path!r}).data.T) saves its values"),
    **dict.fromkeys(OF_BIOFORMATS, "Fiji opens it, by Bio-Formats, and saves a .tif"),
    **dict.fromkeys(OF_NIBABEL, "nibabel.save(nibabel.load({path!r}), 'scan.nii.gz') makes one that is"),
    **dict.fromkeys((".nek5000", ".cgns", ".e", ".exo", ".silo", ".cube"), BY_PARAVIEW),
    **dict.fromkeys((".grib", ".grib2", ".grb", ".grb2"), "xarray's engine='cfgrib' and to_netcdf make one that is"),
    **dict.fromkeys(OF_VASP, "numpy.save('a.npy', pymatgen.io.vasp.Chgcar.from_file({path!r}).data['total']) saves it"),
    **dict.fromkeys((".txm", ".txrm"), "numpy.save('a.npy', dxchange.read_txrm({path!r})[0].T) saves its values"),
    **dict.fromkeys((".sgy", ".segy"), "numpy.save('a.npy', segyio.tools.cube({path!r})) saves its values"),
    ".bov": "--volume takes its DATA_FILE, with the --shape, --dtype and --endian that it says",
    ".vgi": "--volume takes the .vol file that it names, with the --shape and --dtype that it says",
    ".pt": "numpy.save('a.npy', torch.load({path!r}).numpy()) saves a tensor",
    ".dx": "numpy.save('a.npy', gridData.Grid({path!r}).grid) saves its values",
    ".fits": "numpy.save('a.npy', astropy.io.fits.getdata({path!r}).T) saves its values",
}
OTHER_FOLDERS = {  # by entries that a folder of the format has: what it is, and what makes a file that is read
    ("Header", "Level_0"): f"a plotfile of AMReX, of several grids: {BY_PARAVIEW}",
    ("constant", "system"): f"a case of OpenFOAM: make an empty file a.foam in it, and {BY_PARAVIEW}",
    ("md.idx", "md.0"): "a file of ADIOS: numpy.save('a.npy', adios2.FileReader({path!r}).read(NAME).T) saves an array",
    ("attributes.json",): "N5: Fiji's File > Import > N5 opens it, and saves a .tif",
}
MOST_LISTED = 5  # files of a folder in a message


def source_files(path: str) -> list[str]:
    """All files that a volume is read from: those of a pattern or a list, the list, slices, a header's voxels."""
    found = [path] if pvd.is_list(path) else []
    for name, _ in series.steps_of(path):
        found.append(name)
        suffix = suffix_of(name)
        with contextlib.suppress(VolumeError, OSError):  # `read_volume` will tell it
            if os.path.isdir(name):
                found += zarr.files_of(name) if is_zarr(name) else dicom.slice_files(name)
            elif suffix in HEADERS and os.path.isfile(name):
                found.append(HEADERS[suffix].data_file(name))
    return found


def read_asked(opt: Options, d_in: int | None, d_out: int | None, fill: float | str | None) -> Volume:
    """`read_volume` of --volume, as the flags of `cli.arguments.add_volume_arguments` ask."""
    layout = raw.raw_layout(opt.shape, opt.dtype, opt.endian)
    return read_volume(opt.volume, d_in, d_out, opt.array, layout, fill, opt.resample)


def read_original(
    opt: Options, d_in: int, d_out: int, expected: VolumeHeader | None, source: str
) -> tuple[Volume, VolumeHeader, list[str]]:
    """The volume in --volume of which a field was made, its header, and its `differences` from the expected header.

    expected: the header in the file `source`, None if that holds none. Raises UserError for another shape.
    """
    volume = read_asked(opt, d_in, d_out, expected and expected.fill_option)
    found = header_of(volume)
    differing = differences(found, expected) if expected else []
    if "shape" in differing:
        raise UserError(f"{opt.volume}: expected shape {expected.shape}, as in {source}, found {volume.array.shape}")
    return volume, found, differing


def read_volume(
    path: str,
    d_in: int | None = None,
    d_out: int | None = None,
    array: str | None = None,
    layout: raw.RawLayout | None = None,
    fill: float | str | None = None,
    resample: tuple[int, ...] | None = None,
) -> Volume:
    """Read a volume of `d_in` axes, with a last axis of `d_out` components when d_out is above 1.

    d_in: None means three axes, or four for a time series: a pattern of names, a list of several files, a file of
    several times, or a .npy array of four axes besides components. d_out: None means all components of the file.
    array: the name of the array to read. layout: of a headerless file. fill: the value of missing voxels. None takes
    the value that the file declares, if any; "none" takes no value. With "none", and with another value than the
    declared one, all values stay as they are stored. resample: the number of voxels along x, y and z of the image that
    is made of a VTK grid which is no image.

    The values keep their type, in the machine's byte order; booleans become uint8. A file that can be memory-mapped is
    not copied. Raises VolumeError for anything that is not a numeric volume of that form, finite where it is not
    missing.
    """
    asked = _Asked(d_out, array, layout, fill, resample)
    is_list, steps = pvd.is_list(path), series.steps_of(path)
    if not (is_list or series.is_pattern(path)):
        return _read_file(path, d_in, asked)
    if is_list and d_in != 4 and len(steps) == 1:
        name, time = steps[0]
        volume = _read_file(name, d_in or 3, asked, path)
        return volume if time is None else dataclasses.replace(volume, time=time)
    volume = series.read_files(path, steps, lambda step: _read_file(step, 3, asked, path), 4 if is_list else d_in)
    if d_in not in (None, volume.geometry.d_in):
        found = "a time series, of 4 axes" if volume.geometry.d_in == 4 else "the slices of a volume, of 3 axes"
        raise VolumeError(f"{path}: expected {d_in} axes, found several files: {found}")
    return volume


class _Asked(NamedTuple):
    """What is asked of each file of a volume, see `read_volume`."""

    d_out: int | None
    array: str | None
    layout: raw.RawLayout | None
    fill: float | str | None
    resample: tuple[int, ...] | None


def _read_file(path: str, d_in: int | None, asked: _Asked, pattern: str = "") -> Volume:
    """The volume of one file, with its fill value. pattern: of the files of which it is one, or ""."""
    _warn_of_voxels_elsewhere(path)
    fill = asked.fill
    volume = _read(path, d_in, asked, is_marked=fill != "none")
    if fill == "none":
        volume = dataclasses.replace(volume, fill=None)
    elif fill is not None:
        declared, given = volume.fill, _fill(path, volume.array.dtype, fill)
        if declared is not None and not np.array_equal(declared, given, equal_nan=True):
            console.warn(path, f"declares {declared} as missing: with --fill {fill} it counts as a value")
            volume = _read(path, d_in, asked, is_marked=False)  # with what is beyond a valid range
        volume = dataclasses.replace(volume, fill=_fill(path, volume.array.dtype, fill))
    _check(path, volume, d_in or volume.geometry.d_in, asked.d_out, pattern)
    return volume


def _warn_of_voxels_elsewhere(path: str) -> None:
    """Say so when a header takes its voxels from outside its folder: that of a stranger may name any file."""
    if suffix_of(path) in HEADERS:
        source = source_files(path)[-1]
        folder = os.path.join(os.path.realpath(os.path.dirname(path) or "."), "")
        if source != path and not os.path.realpath(source).startswith(folder):
            console.warn(path, f"its voxels are read from {source}, outside its folder")


def _read(path: str, d_in: int | None, asked: _Asked, is_marked: bool) -> Volume:
    """The unchecked volume of a file, with `d_in` axes where the file can have so many. Raises VolumeError.

    is_marked: whether what the file declares to be missing gets the fill value.
    """
    d_out, array, layout, _, resample = asked
    reader = _reader_of(path, layout)
    if layout is not None and reader is not raw.read_raw:
        raise VolumeError(f"{path}: --shape, --dtype and --endian describe headerless files, this one says it itself")
    if resample is not None and reader is not read_by_vtk:
        raise VolumeError(f"{path}: --resample is for {' '.join(VTK_READERS)}, this one is a grid of voxels")
    is_of_arrays = reader is zarr.read_zarr or reader in READERS_OF_ARRAYS.values()
    if array is not None and not (is_of_arrays or reader is read_by_vtk):
        raise VolumeError(f"{path}: --array picks one of several arrays by its name, this file has one without a name")
    if reader is raw.read_npy:
        volume = raw.read_npy(path, d_in, d_out)
    elif reader is npz.read_npz:
        volume = npz.read_npz(path, array, d_in, d_out)
    elif is_of_arrays:
        variables, name = reader(path, array)
        with as_volume_error(path, "cannot be read"):
            name = chosen(path, variables, name)
            if not is_marked:
                variables[name] = unmarked(variables[name])
            volume = volume_of_variable(path, variables, name, d_in, d_out)
    elif reader is read_by_vtk:
        volume = read_by_vtk(path, array, resample)
    elif reader is raw.read_raw:
        volume = raw.read_raw(path, layout)
    elif reader is dicom.read_dicom:
        volume = dicom.read_dicom(path, is_marked)
    else:
        volume = reader(path)
    if reader not in (raw.read_npy, npz.read_npz):  # in which all axes are told apart by d_in and d_out
        volume = _with_axes(path, volume, d_in or 3, d_out)
    return dataclasses.replace(volume, array=_native(path, volume.array))


def _reader_of(path: str, layout: raw.RawLayout | None) -> Callable:
    """What reads a file or a folder. layout: of a headerless file. Raises VolumeError for what nothing reads."""
    if os.path.isdir(path):
        if is_zarr(path):
            return zarr.read_zarr
        if dicom.slice_files(path):
            return dicom.read_dicom
        raise VolumeError(f"{path}: {_reason_against_folder(path)}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise VolumeError(f"{path}: expected a file or a folder, found neither")
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from None
    is_described = bool(layout or raw.layout_of_name(path))
    if not (start or is_described):
        raise VolumeError(f"{path}: is empty: expected a volume, found a file of 0 bytes")
    if start[:6] == b"\x93NUMPY":
        return raw.read_npy
    suffix = suffix_of(path)
    if reader := (READERS | READERS_OF_ARRAYS).get(suffix):
        return reader
    if is_described and not (suffix.endswith(".gz") and start.startswith(PACKED)):
        return raw.read_raw
    if start.startswith(SIGNATURES):
        return netcdf.read_netcdf
    if suffix == ".raw":  # which says what is missing
        return raw.read_raw
    raise VolumeError(f"{path}: {_reason_against(path, start)}")


def _reason_against(path: str, start: bytes) -> str:
    """A text: why a file is no volume, and what to give in place of it. start: its first bytes."""
    suffix = suffix_of(path) or os.path.basename(path).lower()
    if suffix == ".dcm" or dicom.is_slice(path):
        folder = shlex.quote(os.path.dirname(path) or ".")
        return f"expected the folder of the DICOM slices, found a file: --volume {folder}"
    if suffix in SEVERAL_FILES:
        return f"only names the files that hold the values: {SEVERAL_FILES[suffix]}"
    if suffix in OTHER_SUFFIXES and not start.startswith(b"ENVI"):  # whose .hdr is another one
        return f"{suffix} files are not read: {OTHER_SUFFIXES[suffix].format(path=path)}"
    if suffix in PICTURES:
        return f"expected a volume, found a picture: {BY_IMAGEJ}"
    if suffix == ".pth":
        return "expected a volume, found a network: net_compress.py --net reads it"
    if start.startswith(BLOB_MAGIC):
        return "expected a volume, found a blob: net_decompress.py makes a volume of it"
    if start.startswith(PACKED):
        return "expected a volume, found a packed file: unpack it first, as by gunzip or unzip"
    suffixes = " ".join([*READERS, *READERS_OF_ARRAYS])
    raw_file = "a headerless file with --shape and --dtype or a name like a_256x256x128_uint8.raw"
    return f"expected a volume (.npy {suffixes}, a folder of DICOM or Zarr files, or {raw_file}), found {start!r}..."


def _reason_against_folder(folder: str) -> str:
    """A text: what a folder without slices holds, and what to give in place of it."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry.path for entry in entries if entry.is_dir()]
    suffixes = (".npy", ".raw", *READERS, *READERS_OF_ARRAYS)
    files = [entry for entry in entries if entry.is_file() or is_zarr(entry.path)]
    volumes = [entry.path for entry in files if suffix_of(entry.name) in suffixes]
    found = f"{len(entries) - len(folders)} files and {len(folders)} folders, none of them a volume"
    if volumes:
        ending = collections.Counter(path[-len(suffix_of(path)) :] for path in volumes).most_common(1)[0][0]
        found = _volumes_of(folder, ending, [path for path in volumes if path.endswith(ending)])
    elif not folders and any(suffix_of(entry.name) in PICTURES for entry in files):
        found += f": {BY_IMAGEJ}"
    elif of_other := [what for marks, what in OTHER_FOLDERS.items() if {*marks} <= {entry.name for entry in entries}]:
        return f"expected a volume, found {of_other[0].format(path=folder)}"
    elif not entries:
        return "is empty: expected a folder of DICOM or Zarr files"
    elif folders:
        found += f": --volume {shlex.quote(folders[0])} looks there"
    return f"expected a folder of DICOM slices, found {found}"


def _volumes_of(folder: str, ending: str, paths: list[str]) -> str:
    """A text: the files of this ending in a folder, and what to type for as many as one volume can be made of."""
    forms = {path: _form(path) for path in paths}
    found, pattern, alike = f"{len(paths)} {ending} files", os.path.join(glob.escape(folder), f"*{ending}"), paths
    if len(set(forms.values())) > 1:
        listed = [f"{os.path.basename(path)} {forms[path]}" for path in paths]
        more = ["..."] * (len(listed) > MOST_LISTED)
        found += f" of different shapes or types ({', '.join([*listed[:MOST_LISTED], *more])})"
        patterns = {path: series.pattern_of(path) for path in paths}
        form, pattern = collections.Counter((forms[path], patterns[path]) for path in paths).most_common(1)[0][0]
        alike = [path for path in paths if (forms[path], patterns[path]) == (form, pattern)]
        alike = alike if sorted(glob.glob(pattern)) == alike else alike[:1]
    which = f"{len(alike)} of them" if len(alike) < len(paths) else "them" if len(alike) > 1 else "it"
    return f"{found}: --volume {shlex.quote(pattern if len(alike) > 1 else alike[0])} reads {which}"


def _form(path: str) -> str:
    """The shape and the type of a .npy file; of any other, "": to read its header may take a second."""
    with contextlib.suppress(VolumeError):
        if suffix_of(path) == ".npy":
            array = raw.read_npy(path, 3, None).array
            return f"{array.shape} {array.dtype}"
    return ""


def _with_axes(path: str, volume: Volume, d_in: int, d_out: int | None) -> Volume:
    """The volume of an array (x, y, z, components) without one-voxel axes beyond `d_in`, without a sole component.

    A time series keeps its four axes. Raises VolumeError for further axes of several voxels, unless `d_out` says that
    these are components.
    """
    array, shape = volume.array, volume.array.shape
    geometry = volume.geometry
    d_in = 4 if geometry.d_in == 4 else min(d_in, 3)  # `_check` refuses four axes for a single volume
    if not geometry.stays_within(d_in) or any(geometry.origin[d_in:]) or set(geometry.spacing[d_in:]) - {1.0}:
        raise VolumeError(f"{path}: --d_in {d_in} would lose a part of its place in space: leave the flag out")
    if math.prod(shape[d_in:-1]) == 1:
        array = array[(..., *[0] * (array.ndim - 1 - d_in), slice(None))]
    elif d_out is None:
        way_out = "leave --d_in out, or say by --d_out that the last axis holds components"
        raise VolumeError(f"{path}: expected {d_in} axes, found shape {shape[:-1]}: {way_out}")
    if shape[-1] == 1:
        array = array[..., 0]
    return dataclasses.replace(volume, array=array, geometry=geometry.axes_between(0, d_in))


def _native(path: str, array: np.ndarray) -> np.ndarray:
    """`array` with integers or floats in the machine's byte order, copied only if necessary. Raises VolumeError."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind not in "iuf":
        way_out = f": {COMPLEX_WAY_OUT}" if array.dtype.kind == "c" else ""
        if array.dtype.names:
            field = array.dtype.names[0]
            way_out = f": NumPy's np.save('field.npy', np.load({path!r})[{field!r}]) saves one field as a volume"
        raise VolumeError(f"{path}: expected integers or floats, found dtype {array.dtype}{way_out}")
    dtype = array.dtype.newbyteorder("=")
    if dtype.itemsize > 8:  # long double: neither our file formats nor a network hold it
        dtype = np.dtype(np.float64)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # a value becomes infinite, which `_check` refuses
        result = np.asarray(array).astype(dtype)  # asarray: the copy is not a memory map
    n_changed = np.count_nonzero((result != array) & ~np.isnan(array)) if array.dtype.itemsize > 8 else 0
    if n_changed:
        console.warn(path, f"{n_changed} values of {array.dtype} rounded to float64")
    return result


def _fill(path: str, dtype: np.dtype, fill: float) -> np.generic:
    """`fill` in that dtype, rounded if the dtype is a float. Raises VolumeError when the dtype has no such value."""
    if (found := in_type(fill, dtype)) is None:
        raise VolumeError(f"{path}: expected a fill value of its type, {dtype}, found {fill}")
    return found


def _check(path: str, volume: Volume, d_in: int, d_out: int | None, pattern: str) -> None:
    """Raise VolumeError unless the volume has `d_in` axes and `d_out` components, finite where not missing.

    pattern: of the files of which it is one, or "".
    """
    array = volume.array
    if volume.geometry.d_in < d_in:
        found = f" of {array.shape[-1]} components" if array.ndim > volume.geometry.d_in else ""
        if found and READERS.get(suffix_of(path)) is nrrd.read_nrrd:
            found += ": a list axis is taken for components, only one of kind time for time"
        expected = "a time series (a pattern of files, a .pvd, or four axes in a file)"
        raise VolumeError(f"{path}: expected {expected}, found a single volume{found}")
    if volume.geometry.d_in > d_in:
        way_out = _how_to_join(path, pattern) if pattern else ""
        raise VolumeError(f"{path}: expected {d_in} axes, found a time series of {len(array)} steps{way_out}")
    if suffix_of(path) in (".nii", ".nii.gz") and array.ndim == d_in == 4 and d_out == len(array):
        fifth = "nibabel.Nifti1Image(image.get_fdata()[:, :, :, None], image.affine)"
        raise VolumeError(f"{path}: its fourth axis is time: expected components along the fifth one, as by {fifth}")
    d_out = d_out or (array.shape[-1] if array.ndim > d_in else 1)
    expected = d_in + (d_out > 1)
    if array.ndim != expected or (d_out > 1 and array.shape[-1] != d_out):
        form = f"{d_in} axes" + (f" and {d_out} components" if d_out > 1 else "")
        way_out = ": --d_in 2 reads an image" if array.ndim == 2 and d_out == 1 else ""
        if pattern and array.ndim == expected - 1:
            way_out = _how_to_stack(pattern, d_out)
        raise VolumeError(f"{path}: expected {form}, found shape {array.shape}{way_out}")
    if array.size == 0:
        raise VolumeError(f"{path}: is empty: shape {array.shape}")
    if not all(0 < s < math.inf for s in volume.geometry.spacing):
        raise VolumeError(f"{path}: expected a positive spacing, found {volume.geometry.spacing}")
    if not np.isfinite(volume.geometry.origin).all():
        raise VolumeError(f"{path}: expected a finite origin, found {volume.geometry.origin}")
    if not volume.geometry.is_orthonormal:
        direction = np.reshape(volume.geometry.direction, (3, 3))
        raise VolumeError(f"{path}: expected axes of unit length, at right angles, found {direction.T.tolist()}")
    try:
        low, high = volume.value_limits  # NaN when a value is NaN
    except ValueError as error:
        raise VolumeError(f"{path}: {error}: all of its values are the fill value {volume.fill}") from None
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        other_order = ", or --endian big reads bytes in the other order" if suffix_of(path) == ".raw" else ""
        found = _not_finite(volume.values, volume.fill)
        raise VolumeError(f"{path}: expected finite values, found {found}{other_order}")
    with np.errstate(over="ignore"):
        if not np.isfinite(float(high.max()) - float(low.min())):
            what = f"the range of its values, {low.min()} to {high.max()}, overflows float64"
            way_out = "if they mark missing voxels, train.py --fill VALUE takes one as missing"
            raise VolumeError(f"{path}: {what}: {way_out}")


def _how_to_stack(pattern: str, d_out: int) -> str:
    """A text: how to make a volume of files of two axes, which a pattern names."""
    slices = f"[numpy.load(path) for path, _ in formats.series.steps_of({pattern!r})]"
    how = f"numpy.save('stack.npy', numpy.stack({slices}, axis=2))" + f", then --d_out {d_out}" * (d_out > 1)
    return f": slices, which have to be stacked into one file first, as by {how}"


def _how_to_join(path: str, pattern: str) -> str:
    """A text: how to make one series of files of several steps, which a pattern names."""
    if READERS_OF_ARRAYS.get(suffix_of(path)) is netcdf.read_netcdf:
        how = f"xarray.open_mfdataset({pattern!r}).to_netcdf('joined.nc'), which needs dask"
    else:
        how = "numpy.concatenate of their arrays [t, x, y, z], saved as one .npy"
    return f": a pattern is for files of one step: join them into one file first, as by {how}"


def _not_finite(values: np.ndarray, fill: np.generic | None) -> str:
    """A text: how many values (..., components) are NaN or infinite but not missing, and where the first one is."""
    n_nan, count, first = 0, 0, ()
    for box, part in read_in_boxes(values):
        bad = ~np.isfinite(part) & ~is_missing(part, fill)[..., None]
        if not count and bad.any():
            *grid, component = np.unravel_index(np.argmax(bad), bad.shape)
            first = tuple(int(i) + cut.start for i, cut in zip(grid, box, strict=True))
            first += (int(component),) if values.shape[-1] > 1 else ()
        count += np.count_nonzero(bad)
        n_nan += np.count_nonzero(np.isnan(part) & bad)
    way_out = "train.py --fill nan takes NaN as missing"
    if n_nan < count or fill is not None:
        value, more = ("np.nan", ", with train.py --fill nan") if fill is None else (fill, "")
        way_out = f"NumPy's array[~np.isfinite(array)] = {value} makes them missing{more}"
    return f"{count} NaN or infinite ones, the first at {first}: {way_out}"
