"""HDF5, and NetCDF-4, which is HDF5 with named dimensions: read and written by h5py (pip install h5py).

Source of the meshes of openPMD: github.com/openPMD/openPMD-standard, version 1.1, Mesh Based Records.

A file is not trusted: links to other files, data in other files and filters that are plugins are refused.
"""

from __future__ import annotations

import collections
import functools
import io
import json
import math
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from cli.files import LossyFile
from formats.cf import SPACING, description
from formats.common import BY_PARAVIEW, MAX_EXPANSION, VolumeError, as_volume_error, import_package
from formats.slabs import slices_first, without_float16
from formats.variables import Variable, first_of
from utils import Volume

FILTERS = (1, 2, 3, 4, 5, 6, 32000)  # deflate, shuffle, Fletcher-32, szip, n-bit, scale-offset, LZF: h5py has them all
MOST_NESTED = 100  # groups one in another; HDF5 takes minutes for ten thousand
BY_YT = (
    "with ds = yt.load(...), np.save('a.npy', ds.covering_grid(0, ds.domain_left_edge, ds.domain_dimensions)"
    "['density'].v) makes one grid of them, of the coarsest level"
)
MINC = "MINC, which scales values by slice: nibabel.save(nibabel.load('scan.mnc'), 'scan.nii') makes NIfTI"
OTHER_FORMATS = {  # kept in HDF5 or NetCDF, by a pattern of where their arrays are; what makes plain ones of them
    "minc-2.0/": MINC,
    "image-max$": MINC,  # version 1, which is NetCDF
    "eb_prop1$": f"Exodus, of a mesh that is no regular grid: {BY_PARAVIEW}",
    ".*/GridCoordinates/.+/ data$": f"CGNS, whose grids have positions of their own: {BY_PARAVIEW}",
    "(latCell|cellsOnCell)$": "MPAS, whose cells lie on no regular grid: uxarray's remap.to_rectilinear makes one",
    "DataSet/ResolutionLevel 0/": "Imaris, which pads its arrays: Fiji opens it under its name .ims and saves a .tif",
    "ITKImage/": "an image of ITK: SimpleITK.WriteImage(SimpleITK.ReadImage('a.h5'), 'a.nrrd') keeps its place",
    "refine level$": f"FLASH, whose arrays are blocks of an adaptive mesh: {BY_YT}",
    "LogicalLocations$": f"Athena++, whose arrays are blocks of an adaptive mesh: {BY_YT}",
    r"PartType\d+/": "particles, as of Gadget, on no grid: yt's arbitrary_grid makes one, np.save saves its values",
    "VTKHDF/": "VTKHDF, which has spacing and origin of its own: a name that ends in .vtkhdf reads them",
}
NO_SCALE = "its ScaleFactor and Offset, as of HDF-EOS, are not applied: the values are as they are stored"
NO_MESH = "its gridSpacing is not read, which is not that of a Cartesian mesh of its axes: spacing 1 is taken"
NO_UNIT = "its unitSI is not applied: the values are as they are stored, lengths are in m"
NO_XML = "its spacing, which BigDataViewer has in an .xml file, is not read: spacing 1 is taken"
VIEWER = re.compile(r"t\d+/(s\d+)/\d+/cells")  # an array of BigDataViewer, and the group that describes it
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"  # what NetCDF names a scale without values


def read_hdf5(path: str, name: str | None) -> tuple[dict[str, Variable], str | None]:
    """The arrays in an HDF5 file, and the name of the one that `name`, perhaps of a link, means. Raises VolumeError.

    The file stays open as long as an array is used.
    """
    h5py = import_package("h5py", "h5py", path)
    with open(path, "rb") as file:
        if file.read(10) == b"MATLAB 5.0":
            raise VolumeError(f"{path}: expected a MATLAB 7.3 file, found an older one: MATLAB's save -v7.3 writes it")
    with as_volume_error(path, "h5py cannot read it"):
        found: dict[str, Variable] = {}
        coordinates: dict[str, Variable] = {}

        @functools.cache
        def steps_in(group: str) -> dict[str, Any]:
            """The attributes of a group that may say the spacing of its arrays."""
            attributes = file[group or "/"].attrs
            return {name: attributes[name] for name in attributes if SPACING.search(name.lower())}

        def visit(key: str, item: Any) -> None:
            if key.count("/") > MOST_NESTED:
                raise VolumeError(f"{path}: expected at most {MOST_NESTED} groups one in another, found more")
            if _is_array(h5py, item):
                found[key] = _variable(h5py, path, key, item)
                if not any(found[key].dims):
                    said = collections.ChainMap(found[key].attributes, steps_in(key.rpartition("/")[0]), steps_in(""))
                    found[key] = found[key]._replace(attributes=said)
                if not found[key].refusal and ("gridSpacing" in item.attrs or "gridSpacing" in item.parent.attrs):
                    found[key], own = _on_mesh(key, found[key], item)
                    coordinates.update(own)

        file = h5py.File(path, "r")
        file.visititems(visit)  # every object once; no link to another file is followed
        if name is not None and name.strip("/") not in found:
            meant = _linked(h5py, file, name)
            name = next((key for key in found if file[key] == meant), name)
        check_is_plain(path, "HDF5", found, name)
        return found | coordinates, name


def check_is_plain(path: str, kind: str, found: Mapping[str, Variable], name: str | None) -> None:
    """Raise VolumeError when the names of the arrays in a file of that kind are those of one of OTHER_FORMATS."""
    for pattern, what in OTHER_FORMATS.items():
        is_apart = pattern.endswith("/") and name is not None  # a group beside which other arrays are plain
        if any(re.match(pattern, key) for key in ([name.strip("/")] if is_apart else found)):
            raise VolumeError(f"{path}: expected plain {kind}, found {what}")


def _linked(h5py: Any, place: Any, name: str) -> Any:
    """The object of that name in a file, by soft links too; None where a link leads to another file, or nowhere."""
    file, parts = place, name.split("/")
    for _ in range(MOST_NESTED):  # links may lead in a circle
        parts = [part for part in parts if part not in ("", ".")]
        if not parts:
            return place
        link = place.get(parts[0], getlink=True) if isinstance(place, h5py.Group) else None
        if isinstance(link, h5py.SoftLink):
            place = file if link.path.startswith("/") else place
            parts = [*link.path.split("/"), *parts[1:]]
        elif isinstance(link, h5py.HardLink):
            place, parts = place[parts[0]], parts[1:]
        else:
            break
    return None


def _is_array(h5py: Any, item: Any) -> bool:
    """Whether an object of a file is an array of numbers or of records, or a number."""
    try:
        if not isinstance(item, h5py.Dataset) or not (item.dtype.kind in "iufbc" or (item.dtype.names and item.shape)):
            return False
    except TypeError:  # a type that NumPy has not
        return False
    is_unnamed = NO_VARIABLE in np.asarray(item.attrs.get("NAME", b"")).tobytes()
    return not is_unnamed and (item.is_virtual or item.shape is not None)


def _variable(h5py: Any, path: str, name: str, item: Any) -> Variable:
    """An array of the file, with the names of its axes."""
    if reason := _reason_against(item):
        source = SimpleNamespace(shape=() if item.is_virtual else item.shape)
        return Variable(("",) * len(source.shape), item.dtype, {}, source, refusal=f"{path}: {name}: {reason}")
    dims = (name,) if item.is_scale and item.ndim == 1 else _names_of_axes(item)
    source = item
    offset = item.id.get_offset()
    is_plain = item.id.get_type().equal(h5py.h5t.py_create(item.dtype))
    if item.chunks is None and offset is not None and is_plain and item.size and item.shape:
        source = np.memmap(path, item.dtype, "r", offset, item.shape)
    labels = tuple(dim.label for dim in item.dims)
    attributes, note = item.attrs, _note(item.attrs)
    setup = _linked(h5py, item.file, of_viewer[1]) if (of_viewer := VIEWER.fullmatch(name)) else None
    if isinstance(setup, h5py.Group) and "resolutions" in setup:
        note = NO_XML
        if item.dtype.itemsize == 2 and "dataType" not in setup.attrs:  # BigDataViewer stored uint16 as int16
            attributes = collections.ChainMap(attributes, {"_Unsigned": "true"})
    return Variable(dims, item.dtype, attributes, source, item.chunks, labels=labels, note=note)


def _names_of_axes(item: Any) -> tuple[str, ...]:
    """The name of each axis: that of its scale, its label, or "". Without any, what yt or vigra (in ilastik) says."""
    names = tuple(dim[0].name.strip("/") if len(dim) else dim.label for dim in item.dims)
    if any(names):
        return names
    if item.ndim == 3 and "container_type" in item.file.attrs:  # a grid that yt's save_as_dataset saved
        return "x", "y", "z"
    return _axis_tags(item) or names


def _axis_tags(item: Any) -> tuple[str, ...]:
    """The names of the axes in the attribute axistags, as vigra writes it; () where it holds anything else."""
    try:
        keys = tuple(axis["key"] for axis in json.loads(item.attrs["axistags"])["axes"])
        are_names = len(keys) == len({*keys}) == item.ndim and all(isinstance(key, str) for key in keys)
    except Exception:  # an attribute of that name may be of any type
        return ()
    return keys if are_names else ()


def _note(attributes: Mapping[str, Any]) -> str:
    """What is to be told of an array whose values have a scale that is not one of CF; "" of others."""
    if "ScaleFactor" not in attributes or "scale_factor" in attributes:  # the latter is of CF, and is applied
        return ""
    is_same = np.all(attributes["ScaleFactor"] == 1) and np.all(attributes.get("Offset", 0) == 0)
    return "" if is_same else NO_SCALE


def _on_mesh(name: str, variable: Variable, item: Any) -> tuple[Variable, dict[str, Variable]]:
    """An array of openPMD with the names of its axes, and the coordinates of these; as it is on no Cartesian mesh.

    The time of the iteration, in s, is one of the coordinates.
    """
    record = collections.ChainMap(item.attrs, item.parent.attrs)  # the array itself, or the group of its components
    said, n_axes = variable._replace(attributes=record), len(variable.shape)
    labels = np.ravel(record.get("axisLabels", ())).astype(str).tolist()
    place = [said.numbers(key) for key in ("gridGlobalOffset", "position", "gridSpacing", "gridUnitSI")]
    place[3] *= n_axes if len(place[3]) == 1 else 1
    is_mesh = said.text("geometry") == "cartesian" and {*labels} <= {"x", "y", "z"}
    is_mesh = is_mesh and {n_axes} == {len({*labels}), *map(len, [labels, *place])}
    if not (is_mesh and np.isfinite(place).all() and np.all(place[2:])):  # a step or a unit of 0 gives no place
        return variable._replace(note=NO_MESH), {}
    axes = [*zip(labels, *place, strict=True)][:: -1 if said.text("dataOrder") == "F" else 1]
    coordinates = {}
    for (label, start, part, step, unit), n in zip(axes, variable.shape, strict=True):
        positions = (start + (part + np.arange(n)) * step) * unit
        attributes = {"units": "m", "spacing": step * unit}
        coordinates[f"{name}/{label}"] = Variable((f"{name}/{label}",), positions.dtype, attributes, positions)
    note = "" if np.all(item.attrs.get("unitSI", 1) == 1) else NO_UNIT
    variable = variable._replace(dims=tuple(coordinates), labels=(), note=note)
    said = variable._replace(attributes=item.file["/".join(name.split("/")[:2])].attrs)  # of data/100, the iteration
    times = said.numbers("time") + said.numbers("timeUnitSI")
    if len(times) == 2 and np.isfinite(times).all():
        time = np.array(float(times[0]) * times[1])
        coordinates[f"{name}/t"] = Variable((), time.dtype, {"units": "s"}, time)
        named = {"coordinates": f"{name.rsplit('/', 1)[-1]}/t"}  # as CF names a time, see `_listed_time` of cf.py
        variable = variable._replace(attributes=collections.ChainMap(named, variable.attributes))
    return variable, coordinates


def _reason_against(item: Any) -> str | None:
    """Why a data set is not read; None if it is."""
    if item.is_virtual:
        return "is made of the data of other files, which are not read: h5repack copies them into one file"
    if item.external:
        return f"its data are in another file, {item.external[0][0]}, which is not read: h5repack makes one file"
    if item.dtype.names:
        what = f"expected numbers, found records of {first_of(item.dtype.names)}"
        saved = f"np.save('field.npy', h5py.File(...)[{item.name!r}][{item.dtype.names[0]!r}].T)"
        return f"{what}: NumPy's {saved} saves one field as a volume"
    properties = item.id.get_create_plist()
    filters = [properties.get_filter(k) for k in range(properties.get_nfilters())]
    for code, _, _, label in filters:
        if code not in FILTERS:
            what = label.decode("utf-8", "replace") or "unknown"
            return f"its filter {code} ({what}) is a plugin, which is not run: h5repack -f GZIP=4 writes it anew"
    if item.size and not item.id.get_storage_size():
        what = f"expected {math.prod(item.shape)} values, found none"
        return f"{what}: it was never written: run what makes the file again"
    if item.size and (n_bytes := item.id.get_storage_size()) * MAX_EXPANSION < item.nbytes:
        return f"{n_bytes} bytes are too few for {math.prod(item.shape)} values"
    return None


def write_hdf5(path: str, volume: Volume) -> None:
    """Write a volume as NetCDF-4, which is HDF5: not compressed, slab by slab."""
    h5py = import_package("h5py", "h5py", path)
    dtype = without_float16(np.dtype(volume.array.dtype))
    said = description(volume, dtype)
    # HDF5 ends the process when it cannot write in the close of a file, and h5py cannot pass on an error from there.
    with LossyFile(path, "w+") as disk:
        with io.BufferedRandom(disk) as buffered, h5py.File(buffered, "w", track_order=True) as file:
            file.attrs["Conventions"] = "CF-1.8"
            for dim, n in zip(said.dims, said.shape, strict=True):
                positions, attributes = said.coordinates.get(dim, (np.arange(n), {}))
                file.create_dataset(dim, data=positions, track_order=True).make_scale(dim)
                file[dim].attrs.update(attributes)
            values = file.create_dataset(said.name, said.shape, dtype, track_order=True)
            values.attrs.update(said.attributes)
            for k, dim in enumerate(said.dims):
                values.dims[k].attach_scale(file[dim])
            for box, part in slices_first(volume.array, volume.geometry.d_in, dtype):
                values[(0,) * (values.ndim - part.ndim) + box] = part  # 0: the step of a series
                if disk.failure:
                    break
        if disk.failure:
            raise disk.failure
