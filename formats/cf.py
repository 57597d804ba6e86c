"""Variables on named dimensions as volumes, and back, by the CF conventions: axes, coordinates, units.

Source: cfconventions.org, sections 4 and 5. The readers of NetCDF, HDF5 and Zarr give what `volume_of_variable` takes.
The writers call `description`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cli import console
from formats.common import AXES, COMPLEX_WAY_OUT, UNEVEN, VolumeError, of_three_axes, volume_from_axes
from formats.packing import array_of, decoding
from formats.raw import check_last_axis
from formats.series import with_times
from formats.slabs import on_one_line
from formats.variables import Variable, axes_of, first_of
from utils import DEFAULT_NAME, Volume

ULPS = 4  # most that a coordinate may be off equal steps, in units of its last place

# What names an axis, in lower case: the attribute axis comes first, then standard_name and units, then the names.
STANDARD_NAMES = {
    **dict.fromkeys(("longitude", "grid_longitude", "projection_x_coordinate"), "x"),
    **dict.fromkeys(("latitude", "grid_latitude", "projection_y_coordinate"), "y"),
    **dict.fromkeys(("altitude", "height", "depth", "air_pressure", "model_level_number"), "z"),
    "time": "t",
}
DEGREES_EAST = r"degrees?_?(e|east)$"
UNITS = (
    (DEGREES_EAST, "x"),
    (r"degrees?_?(n|north)$", "y"),
    (r"(h?pa|mbar|millibar|bar|level|layer|sigma_level)$", "z"),
    (r".+ since |(second|minute|hour|day)s?$", "t"),
)
NAMES = {
    **dict.fromkeys(("x", "lon", "longitude", "nx", "west_east", "west_east_stag"), "x"),
    **dict.fromkeys(("y", "lat", "latitude", "ny", "south_north", "south_north_stag"), "y"),
    **dict.fromkeys(("z", "lev", "level", "plev", "depth", "height", "altitude"), "z"),
    **dict.fromkeys(("nz", "bottom_top", "bottom_top_stag"), "z"),
    **dict.fromkeys(("t", "time"), "t"),
    **dict.fromkeys(("c", "channel", "component"), "c"),
}
SPACING = re.compile(  # in a name of no convention; steps in time are others
    "^(?!.*(time|tempor)).*(spacing|(voxel|pixel|element)_?size|resolution)|^delta$"
)


def volume_of_variable(
    path: str, variables: Mapping[str, Variable], name: str, d_in: int | None, d_out: int | None
) -> Volume:
    """The volume of the variable of that name: an array ((t,) x, y, z, components). Raises VolumeError.

    variables: all arrays of numbers in the file, and single numbers, of which one may be the time. d_in, d_out: as in
    `read_volume`; they tell what nameless axes are.
    """
    variable = variables[name]
    if variable.refusal:
        raise VolumeError(variable.refusal)
    if 0 in variable.shape:
        raise VolumeError(f"{path}: {name}: is empty: {axes_of(variable)}")
    if variable.dtype.kind == "c":
        what = f"expected integers or floats, found dtype {variable.dtype}"
        raise VolumeError(f"{path}: {name}: {what}: {COMPLEX_WAY_OUT}")
    coordinates = {dim: variables[dim] for dim in variable.dims if dim in variables and variables[dim].dims == (dim,)}
    roles = _roles(path, name, variable, coordinates, d_in, d_out)
    is_series = "t" in roles and variable.shape[roles["t"]] > 1
    if variable.note:
        console.warn(path, f"{name}: {variable.note}")
    in_space = [axis for role, axis in roles.items() if role in "xyz"]
    if unplaced := [axis for axis in in_space if variable.shape[axis] > 1 and variable.dims[axis] not in coordinates]:
        _warn_of_positions(path, name, variables, unplaced)
        if not variable.note:
            _warn_of_steps(path, name, variables, [variable.shape[axis] for axis in in_space])
    used = [roles.get(role) for role in ("txyzc" if is_series else "xyzc")]
    array, fill = array_of(f"{path}: {name}" if name else path, variable, used)
    steps, origin = np.ones(3), np.zeros(3)
    for k, role in enumerate("xyz"):
        if role in roles and (dim := variable.dims[roles[role]]) in coordinates:
            steps[k], origin[k] = _steps(path, dim, coordinates[dim])
    turned = variable.numbers("direction")  # `description` writes it, and origin and space
    directions = np.diag(steps)
    if len(turned) == 9:
        corner = np.array(variable.numbers("origin") or origin)
        origin, directions = corner + np.reshape(turned, (3, 3)) @ (origin - corner), np.reshape(turned, (3, 3)) * steps
    space = "LPS" if variable.text("space") == "LPS" else ""
    axes = {role: coordinates.get(variable.dims[axis]) for role, axis in roles.items() if role in "txyz"}
    if not axes.get("t"):
        time_dims = (variable.dims[roles["t"]],) if "t" in roles else ()
        axes["t"] = _listed_time(name, variable, variables, time_dims)
    said = {key: text for key, text in _axis_attributes(axes).items() if not space or text != "mm"}  # which LPS implies
    names = {"name": name.rsplit("/", 1)[-1], "units": variable.text("units")}
    volume = volume_from_axes(path, array, directions, origin, space, **names, axis_attributes=said)
    geometry = volume.geometry
    if len(turned) == 9 and (steps > 0).all():
        geometry = dataclasses.replace(geometry, direction=tuple(map(float, turned)))
    times = _positions(path, axes["t"]).ravel().tolist() if axes["t"] else [None]
    if is_series:
        return Volume(array, with_times(path, geometry, times), fill)
    return Volume(array, geometry, fill, times[0])


# --- its axes -----------------------------------------------------------------------------------------


def _roles(
    path: str, name: str, variable: Variable, coordinates: Mapping[str, Variable], d_in: int | None, d_out: int | None
) -> dict[str, int]:
    """The axis of the file for each of t, x, y, z and c (components) that there is. Raises VolumeError.

    The names and the coordinates of the axes decide, first those of several indices, then the letters of their names.
    Of the others, the last is x, the one before y, as in C order. Further axes of one index are left out. A second time
    is no place.
    """
    roles: dict[str, int] = {}
    labels = variable.labels or variable.dims
    found = [
        _role(dim, coordinates.get(dim)) or _role(label, None) for dim, label in zip(variable.dims, labels, strict=True)
    ]
    for axis in sorted(range(len(found)), key=lambda axis: variable.shape[axis] == 1):
        if found[axis]:
            roles.setdefault(found[axis], axis)
    rest = [axis for axis in range(len(found)) if axis not in roles.values() and found[axis] != "t"]
    if not any(variable.dims):
        check_last_axis(f"{path}: {name}", variable.shape[-4:], d_in, d_out)
        n_axes = len(variable.shape)
        if n_axes > 1 and ((d_out or 1) > 1 or (d_in and n_axes > d_in)):
            roles["c"] = rest.pop()
    for role, axis in _by_letters(variable, [axis for axis in rest if variable.shape[axis] > 1]).items():
        if role not in roles:
            roles[role] = axis
            rest.remove(axis)
    says_places = not {"x", "y", "z"}.isdisjoint(roles)
    guessed = []  # the names of axes, and what they are taken for
    rest.sort(key=lambda axis: (variable.shape[axis] > 1, axis))
    for role in "xyzt":
        if rest and role not in roles and (role != "t" or not variable.dims[rest[-1]]):
            roles[role] = rest.pop()
            if says_places and variable.shape[roles[role]] > 1:
                guessed.append((variable.dims[roles[role]].rsplit("/", 1)[-1] or "an axis without a name", role))
    if left := [axis for axis, n in enumerate(variable.shape) if n > 1 and axis not in roles.values()]:
        what = f"expected axes of t, x, y, z and components, found {axes_of(variable)}"
        one = f"a file with one index of {variable.dims[left[-1]] or 'the others'}, as by ncks -d or xarray's isel"
        components = "an axis of components has to be called component, as by xarray's rename"
        raise VolumeError(f"{path}: {name}: {what}: write {one}; {components}")
    for dim, role in guessed:
        way_out = "if it is no place and no time, as of an ensemble, write a file with one index of it, as by isel"
        console.warn(path, f"{name}: {dim} is taken for {role}, though nothing says so: {way_out}")
    return roles


def _by_letters(variable: Variable, axes: list[int]) -> dict[str, int]:
    """The axes whose names differ by a letter alone, x, y or z, at their begin or end, as xc, yc, zc; {} for others."""
    labels = variable.labels or variable.dims
    names = [(labels[axis] or variable.dims[axis]).rsplit("/", 1)[-1].lower() for axis in axes]
    letters = ["".join(re.findall("^[xyz]|[xyz]$", name)) for name in names]
    found = dict(zip(letters, axes, strict=True))
    stems = {re.sub("^[xyz]|[xyz]$", "*", name) for name in names}
    return found if len(found) == len(axes) > 1 == len(stems) and {*found} <= {"x", "y", "z"} else {}


def _role(dim: str, coordinate: Variable | None) -> str | None:
    """What an axis is, one of t, x, y, z and c; None if neither its coordinate nor its name says so."""
    if coordinate is not None:
        if (axis := coordinate.text("axis").lower()) in ("t", "x", "y", "z"):
            return axis
        if role := STANDARD_NAMES.get(coordinate.text("standard_name").lower()):
            return role
        if coordinate.text("positive"):
            return "z"
        units = coordinate.text("units").lower()
        if role := next((role for pattern, role in UNITS if re.match(pattern, units)), None):
            return role
    return NAMES.get(dim.rsplit("/", 1)[-1].lower())


def _warn_of_positions(path: str, name: str, variables: Mapping[str, Variable], axes: Sequence[int]) -> None:
    """Say so when other arrays are, or may be, the positions along axes of space that have no coordinate.

    They are where the attribute coordinates names them (CF, section 5.2), or where they are longitudes and latitudes of
    these axes. They may be where nothing links them: they have one axis of more than one index, without a name, of that
    length, as in MATLAB's files too; or they are called coordinates and have all axes; or they are places along one of
    these axes that has another name.
    """
    variable, listed = variables[name], _listed_coordinates(name, variables[name])
    dims, lengths = {variable.dims[axis] for axis in axes} - {""}, [variable.shape[axis] for axis in axes]
    are_nameless, curved, unlinked, along = not any(variable.dims), [], [], {}
    for key, other in variables.items():
        if key == name or other.dtype.kind not in "iuf":  # records and truth values are no positions
            continue
        if dims & {*other.dims} and {*other.dims} <= {*variable.dims}:
            role = _role(key, other)
            curved += [key] * (key in listed or (len(other.dims) > 1 and role in ("x", "y")))
            if len(other.dims) == 1 and key not in listed and role in ("x", "y", "z"):
                along.setdefault(other.dims[0], {})[key] = role
        is_along = may_be_along(other, lengths) and (are_nameless or not any(other.dims))
        unlinked += [key] * (is_along or ("coord" in key.lower() and other.shape == variable.shape))
    for found in along.values():  # longitudes and latitudes along one axis are those of an unstructured mesh
        (curved if {"x", "y"} <= {*found.values()} else unlinked).extend(found)
    if curved:
        what = f"{', '.join(curved)} give positions that are no regular grid: voxel numbers are taken for them"
        console.warn(path, f"{what}: regrid it first, as by xesmf or scipy.interpolate.griddata, if places matter")
    if unlinked:
        what = f"{first_of(unlinked)} may be positions along its axes, but are not linked to these"
        way_out = "h5py's make_scale and attach_scale, or xarray's assign_coords or swap_dims, link them"
        console.warn(path, f"{name}: {what}: spacing 1 is taken: {way_out}")


def _warn_of_steps(path: str, name: str, variables: Mapping[str, Variable], sizes: Sequence[int]) -> None:
    """Say so when an attribute or an array may say the spacing. sizes: of the axes of space."""
    if steps := steps_of_no_convention(name, variables, sizes):
        way_out = "coordinates say it, as h5py's make_scale and attach_scale, or xarray's assign_coords, make them"
        console.warn(path, f"{name}: spacing 1 is taken, not that of {first_of(steps)}: {way_out}")


def may_be_along(variable: Variable, lengths: Sequence[int]) -> bool:
    """Whether an array of numbers has one axis of more than one index, of one of these lengths."""
    return variable.dtype.kind in "iuf" and [n for n in variable.shape if n > 1] in [[n] for n in lengths]


def steps_of_no_convention(name: str, variables: Mapping[str, Variable], sizes: Sequence[int]) -> list[str]:
    """The attributes of a variable, and the arrays that `_may_be_steps`, that may say another spacing than 1.

    They do in any form but text and truth. 0 and numbers of voxels say none. sizes: of the axes of space.
    """
    variable = variables[name]
    said = {key: variable.numbers(key) for key in variable.attributes if SPACING.search(key.lower())}
    is_word = {key: variable.text(key) or isinstance(variable.attributes[key], bool | np.bool_) for key in said}
    said = {key: numbers for key, numbers in said.items() if not is_word[key]}
    said |= {key: np.ravel(other.source[...]).tolist() for key, other in variables.items() if _may_be_steps(key, other)}
    return [key for key, numbers in said.items() if {*numbers} not in ({0}, {1}, {*sizes}, {*variable.shape})]


def _may_be_steps(key: str, variable: Variable) -> bool:
    """Whether an array has the name of steps, and one or three numbers."""
    is_short = math.prod(variable.shape) in (1, 3) and variable.dtype.kind in "iuf" and not variable.refusal
    return is_short and bool(SPACING.search(key.rsplit("/", 1)[-1].lower()))


def _listed_coordinates(name: str, variable: Variable) -> set[str]:
    """The names in the file that the attribute coordinates of a variable gives."""
    parent = name.rpartition("/")[0]
    return {f"{parent}/{part}".strip("/") for part in variable.text("coordinates").split()}


def _listed_time(
    name: str, variable: Variable, variables: Mapping[str, Variable], dims: tuple[str, ...]
) -> Variable | None:
    """What a variable names as its time, for want of a coordinate (CF, sections 5 and 5.7); None unless there is one.

    dims: the axis of time; () where there is none, so that the time is a number. Of several, the one whose standard
    name is time is it. The time at which a forecast began is not.
    """
    listed, found = _listed_coordinates(name, variable), {}

    def is_known(other: Variable) -> bool:
        return other.dtype.kind != "i" or bool((other.source[...] > np.iinfo(other.dtype).min).all())  # xarray's NaT is

    for key in listed & {*variables}:
        other, standard = variables[key], variables[key].text("standard_name").lower()
        is_time = other.dims == dims and not other.refusal and _role(key, other) == "t" and is_known(other)
        if is_time and standard in ("", "time"):
            found[key] = standard
    meant = [key for key, standard in found.items() if standard] or [*found]
    return variables[meant[0]] if len(meant) == 1 else None


def _axis_attributes(axes: Mapping[str, Variable | None]) -> dict[str, str]:
    """The units of the coordinates, the calendar and the sense of z, as `Geometry.axis_attributes` has them."""
    found = {f"units_{role}": coordinate.text("units") for role, coordinate in axes.items() if coordinate}
    found |= {"calendar": axes["t"].text("calendar")} if axes.get("t") else {}
    found |= {"positive_z": axes["z"].text("positive")} if axes.get("z") else {}
    return {key: text for key, text in found.items() if text}


def _steps(path: str, dim: str, coordinate: Variable) -> tuple[float, float]:
    """The step of a coordinate, which may be negative, and its start. Raises VolumeError unless the steps are equal.

    Longitudes may wrap: 358, 0, 2 are 358, 360, 362.
    """
    found = _positions(path, coordinate)
    if not np.isfinite(found).all():
        what = f"expected numbers along {dim}, found {_shortened(found)}"
        raise VolumeError(f"{path}: {what}: write a file whose coordinate has them, or without the coordinate")
    if len(found) == 1:
        return (*coordinate.numbers("spacing"), 1.0)[0], float(found[0])
    gaps = np.diff(found)
    is_monotonic = (gaps > 0).all() or (gaps < 0).all()
    turns = np.round(gaps / 360) if _is_longitude(dim, coordinate) else np.zeros(len(gaps))
    whole = found if is_monotonic else found - 360 * np.append(0.0, np.cumsum(turns))
    eps = np.finfo(coordinate.dtype if coordinate.dtype.kind == "f" else np.float64).eps
    precision = ULPS * eps * np.abs(whole).max()

    def off(step: float) -> float:
        return np.abs(whole[0] + step * np.arange(len(whole)) - whole).max()

    step = (whole[-1] - whole[0]) / (len(whole) - 1)
    step = min(float(f"{step:.6g}"), step, key=lambda step: off(step) > precision)  # 0.1 rather than 0.09999999
    if step and off(step) <= UNEVEN * abs(step) + precision:
        return float(step), float(whole[0])
    expected, shown, name = "equal steps", _shortened(found), dim.rsplit("/", 1)[-1]
    if turns.any():
        k = int(np.flatnonzero(turns)[0])
        shown = f"a jump from {found[k]:g} to {found[k + 1]:g}"
        order = f"a.assign_coords({name}=numpy.unwrap(a.{name}, period=360)).sortby('{name}')"
        way_out = f"put the longitudes in order first, as by xarray's {order}"
    elif is_monotonic:
        even = f"interp({name}=numpy.linspace({found.min():g}, {found.max():g}, {len(found)}))"
        way_out = f"interpolate it first, as by xarray's {even}"
    else:
        expected = "positions in rising or falling order"
        way_out = f"sort them first, as by xarray's sortby('{name}'), or leave them out, as by drop_vars('{name}')"
    raise VolumeError(f"{path}: expected {expected} along {dim}, found {shown}: {way_out}")


def _is_longitude(dim: str, coordinate: Variable) -> bool:
    """Whether a coordinate wraps after 360, by its units, its standard name or its name."""
    names = coordinate.text("standard_name").lower(), dim.rsplit("/", 1)[-1].lower()
    in_degrees = re.match(DEGREES_EAST, coordinate.text("units").lower())
    return bool(in_degrees or {"longitude", "grid_longitude", "lon"} & {*names})


def _positions(path: str, coordinate: Variable) -> np.ndarray:
    """All values of a coordinate, float64."""
    if coordinate.refusal:
        raise VolumeError(coordinate.refusal)
    said = {key: text for key, text in coordinate.attributes.items() if not key.startswith("valid_")}
    _, decode, _ = decoding(f"{path}: a coordinate", coordinate._replace(attributes=said))
    stored = np.asarray(coordinate.source[...])
    return (decode(stored) if decode else stored).astype(np.float64)


def _shortened(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:g}" for number in numbers[:5]) + ", ..." * (len(numbers) > 5)


# --- written ------------------------------------------------------------------------------------------


class Description(NamedTuple):
    """What a file says of a volume: the names of the variable and of its axes, attributes, coordinates.

    dims, shape: in the order of the file, ((t,) z, y, x, component). coordinates: positions and attributes of an axis.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    coordinates: dict[str, tuple[np.ndarray, dict[str, str | float]]]


def description(volume: Volume, dtype: np.dtype) -> Description:
    """The description of a volume whose values are written as `dtype`. A single step of a series has an axis t."""
    geometry, shape, d_in = volume.geometry, volume.array.shape, volume.geometry.d_in
    directions = np.reshape(geometry.direction, (3, 3))
    signs = np.sign(np.diag(directions))
    is_turned = not np.array_equal(directions, np.diag(signs))
    coordinates = {}

    def said_of(axis: str) -> dict[str, str]:
        texts = geometry.attributes_of(axis)
        return {"axis": axis.upper(), **{name: on_one_line(text) for name, text in texts.items()}}

    for axis, n, step, start in zip(AXES[d_in], shape, geometry.spacing, geometry.origin, strict=False):
        sign = 1.0 if axis == "t" or is_turned else signs["xyz".index(axis)]
        alone = {"spacing": float(sign * step)} if n == 1 and axis != "t" else {}  # CF has no word for it
        coordinates[axis] = start + sign * step * np.arange(n), said_of(axis) | alone
    dims = (*["t"] * (d_in == 4), *reversed(AXES[min(d_in, 3)]))
    if volume.time is not None and d_in < 4:
        dims, coordinates["t"] = ("t", *dims), (np.array([volume.time]), said_of("t"))
    if len(shape) > d_in:
        dims = (*dims, "component")
    attributes: dict[str, Any] = {"units": on_one_line(geometry.units)} if geometry.units else {}
    if volume.fill is not None:
        attributes["_FillValue"] = dtype.type(volume.fill)
    if is_turned:
        attributes["direction"] = np.array(geometry.direction)
        attributes["origin"] = np.array(of_three_axes(geometry.origin[d_in == 4 :], 0.0))
    if geometry.space:
        attributes["space"] = geometry.space
    name = re.sub(r"[/\\]", "_", on_one_line(geometry.name)).strip(". ") or DEFAULT_NAME  # both part groups in Zarr
    sizes = {axis: len(positions) for axis, (positions, _) in coordinates.items()} | {"component": shape[-1]}
    name += "_" * (name in dims or name.startswith("__"))
    return Description(name, dims, tuple(sizes[dim] for dim in dims), attributes, coordinates)
