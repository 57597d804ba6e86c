"""NetCDF, HDF5 and Zarr as xarray writes them: what the CF conventions say of a variable comes with its volume."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import decompress, listing, results, train
from helpers.volume_files import refusal
from helpers.volumes import slanted, whole

import net_compress
import net_decompress
from formats.common import VolumeError
from formats.moments import from_one_moment
from formats.reading import read_volume
from formats.writing import write_volume
from utils import Geometry, Volume, header_of, is_missing

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
h5py, scipy_io, zarr = map(pytest.importorskip, ("h5py", "scipy.io", "zarr"))

SHAPE = (7, 6, 5)  # x, y, z
KINDS = ("nc3", "nc4", "nc4 chunks", "zarr2", "zarr3")


def write(folder: Path, kind: str, data, encoding: dict | None = None) -> str:
    """The data set in a file of that kind."""
    encoding = {name: dict(found) for name, found in (encoding or {}).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features of Zarr 3 that are new
        if kind.startswith("zarr"):
            for name, found in data.data_vars.items():
                encoding.setdefault(name, {})["chunks"] = tuple(max(1, n // 2) for n in found.shape)
            data.to_zarr(folder / "a.zarr", zarr_format=int(kind[-1]), encoding=encoding)
            return str(folder / "a.zarr")
        if kind == "nc4 chunks":
            for name, found in data.data_vars.items():
                chunks = tuple(max(1, n // 2) for n in found.shape)
                encoding.setdefault(name, {}).update(zlib=True, chunksizes=chunks)
        data.to_netcdf(folder / "a.nc", engine="scipy" if kind == "nc3" else "h5netcdf", encoding=encoding)
    return str(folder / "a.nc")


def grid(array: np.ndarray, dims: tuple[str, ...] = ("z", "y", "x"), attributes: dict | None = None, **coordinates):
    """A data set of the variable "v", [x, y, z] whatever its dims. coordinates: (values, attributes) by dim."""
    return xarray.Dataset(
        {"v": (dims, array.T, attributes or {})},
        coords={dim: (dim, np.asarray(values), given) for dim, (values, given) in coordinates.items()},
    )


def set_attribute(path: str, name: str, value: object) -> None:
    """Set an attribute of "v" as it is."""
    if path.endswith(".zarr"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.open_array(f"{path}/v").attrs[name] = value
    elif Path(path).read_bytes()[:3] == b"CDF":
        with scipy_io.netcdf_file(path, "a", mmap=False) as file:
            setattr(file.variables["v"], name, value)
    else:
        with h5py.File(path, "a") as file:
            file["v"].attrs[name] = value


# --- what comes with the values ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_name_and_units(tmp_path, kind):
    array = slanted(SHAPE)
    data = grid(
        array,
        ("height", "lat", "lon"),
        {"units": "K"},
        height=(np.arange(5) * 250.0 + 100, {"positive": "up"}),
        lat=(np.linspace(60, 50, 6, dtype=np.float32), {"units": "degrees_north"}),
        lon=(np.arange(7) * 0.1 - 3, {"standard_name": "longitude"}),
    )
    volume = read_volume(write(tmp_path, kind, data))
    np.testing.assert_array_equal(whole(volume.array), array)
    geometry = volume.geometry
    assert (geometry.name, geometry.units, volume.array.dtype) == ("v", "K", np.float32)
    assert geometry.spacing == (0.1, 2.0, 250.0) and geometry.origin == (-3.0, 60.0, 100.0)
    assert geometry.direction == (1, 0, 0, 0, -1, 0, 0, 0, 1)  # latitudes fall


@pytest.mark.parametrize(
    ("dims", "attributes"),
    [
        (("z", "y", "x"), {}),
        (("x", "y", "z"), {}),
        (("a", "b", "c_"), {}),
        (("y", "x", "lev"), {}),
        (("p", "q", "r"), {"p": {"axis": "X"}, "q": {"axis": "Z"}}),
        (("p", "q", "r"), {"p": {"units": "degrees_east"}, "r": {"units": "hPa"}}),
        (("a", "b", "c_"), {"a": {"axis": "XY"}}),
    ],
)
def test_axes_are_found_by_attributes_then_names_then_order(tmp_path, dims, attributes):
    """Of three axes. In each case here, the one called first of `axes` is x."""
    stored = slanted((5, 6, 7))
    coords = {
        dim: (dim, np.arange(n) * 1.0, attributes.get(dim, {})) for dim, n in zip(dims, stored.shape, strict=True)
    }
    path = write(tmp_path, "nc3", xarray.Dataset({"v": (dims, stored)}, coords=coords))
    order = {"zyx": (2, 1, 0), "xyz": (0, 1, 2), "abc_": (2, 1, 0), "yxlev": (1, 0, 2)}.get("".join(dims))
    order = order or ((0, 2, 1) if "q" in attributes else (0, 1, 2))
    np.testing.assert_array_equal(whole(read_volume(path).array), stored.transpose(order))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mark", [-99.0, np.nan])
def test_a_declared_fill_value_marks_missing_voxels(tmp_path, kind, mark):
    array = slanted(SHAPE)
    array[1, 2, 3] = array[0, 0, 0] = np.nan
    path = write(tmp_path, kind, grid(array), {"v": {"_FillValue": np.float32(mark)}})
    volume = read_volume(path)
    np.testing.assert_equal(volume.fill, np.float32(mark))
    np.testing.assert_array_equal(whole(volume.array), np.where(np.isnan(array), np.float32(mark), array))
    assert read_volume(path, fill=5).fill == 5 if mark == mark else "2 NaN" in refusal(path, fill="none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marks", [(None, -999.0), (-999.0, None), (None, np.nan), (-999.0, -9999.0)])
def test_the_fill_values_of_a_series(tmp_path, kind, marks):
    """That of one file counts for all, and --fill for any."""
    array = slanted((2, *SHAPE))
    array[1, 1, 2, 3] = array[1, 0, 0, 0] = -999.0
    for t, mark in enumerate(marks):
        (tmp_path / str(t)).mkdir()
        if mark is not None and np.isnan(mark):
            array[t][array[t] == -999] = np.nan
        write(tmp_path / str(t), kind, grid(array[t]), {"v": {"_FillValue": mark and np.float32(mark)}})
    pattern, given = str(tmp_path / "?" / "a.*"), [mark for mark in marks if mark is not None]
    if len(given) > 1:
        assert "1/a." in (message := refusal(pattern)) and "0/a." in message and "--fill" in message
    else:
        header = header_of(read_volume(pattern))
        is_gone = is_missing(array[..., None], np.float32(given[0]))
        assert (header.low[0], header.high[0]) == (array[~is_gone].min(), array[~is_gone].max())
        np.testing.assert_array_equal(header.missing.at(np.indices(array.shape)), is_gone)
    if np.isfinite(given).all():
        assert read_volume(pattern, fill=-999).fill == -999 and read_volume(pattern, fill=5).fill == 5
        assert read_volume(pattern, fill="none").fill is None


@pytest.mark.parametrize("kind", KINDS)
def test_packed_values(tmp_path, kind):
    array = np.round(slanted(SHAPE).astype(np.float64), 1)
    array[3, 3, 3] = np.nan
    packing = {"dtype": "int16", "scale_factor": 0.1, "add_offset": 20.0, "_FillValue": np.int16(-999)}
    volume = read_volume(write(tmp_path, kind, grid(array), {"v": packing}))
    assert volume.array.dtype == np.float32 and np.isnan(volume.fill)
    np.testing.assert_allclose(whole(volume.array), array, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "text"),
    [("add_offset", "20.0"), ("missing_value", "-999"), ("valid_range", "0, 30"), ("valid_max", "30"),
     ("_FillValue", "-9")],
)  # fmt: skip
def test_numbers_that_are_told_by_text(tmp_path, kind, name, text):
    """The values would be those that are stored, missing ones among them."""
    path = write(tmp_path, kind, grid(slanted(SHAPE), attributes={} if name == "_FillValue" else {name: text}))
    if name == "_FillValue":  # xarray writes it as a number
        set_attribute(path, name, text)
    message = refusal(path)
    assert f"{path}: v: expected a number as {name}, found the text {text!r}: " in message and "attrs" in message


def test_a_text_with_nothing_in_it_tells_no_number(tmp_path):
    path = write(tmp_path, "nc4", grid(slanted(SHAPE), attributes={"missing_value": ""}))
    np.testing.assert_array_equal(whole(read_volume(path).array), slanted(SHAPE))


def test_several_marks_become_one(tmp_path):
    array = slanted(SHAPE).astype(np.int16)
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = -1, -2, -3
    marks = {"_FillValue": np.int16(-1), "missing_value": np.array([-2, -3], np.int16)}
    for kind in ("nc3", "nc4 chunks"):
        (tmp_path / kind).mkdir()
        volume = read_volume(write(tmp_path / kind, kind, grid(array, attributes=marks)))
        assert volume.fill == -1 and np.count_nonzero(whole(volume.array) == -1) == 3


@pytest.mark.parametrize("mark", [None, -7])
@pytest.mark.parametrize(
    ("dtype", "limits", "low", "high"),
    [
        ("int16", {"valid_range": np.array([2, 30], np.int16)}, 2, 30),
        ("uint8", {"valid_max": np.uint8(30)}, -1e9, 30),
        ("float32", {"valid_min": 20.5}, 20.5, 1e9),
        ("int32", {"valid_min": 20.5, "valid_max": 25.5}, 20.5, 25.5),
        ("float64", {"valid_range": [np.nan, 30.0]}, -1e9, 30),
        ("int16", {"valid_range": np.array([20, 300], np.int16), "scale_factor": 0.1, "add_offset": 0.0}, 2, 30),
        ("int16", {"valid_range": [2.0, 30.0], "scale_factor": -0.1, "add_offset": 40.0}, 2, 30),  # of unpacked values
        ("int16", {"valid_range": np.float32([20.1, 30.1]), "scale_factor": 0.1, "add_offset": 0.0}, 20.1, 30.1),
    ],
)
def test_values_beyond_the_valid_range_are_missing(tmp_path, dtype, limits, low, high, mark):
    """Where no fill value is declared, too. It may lie beyond the range itself."""
    stored = np.rint(10 * slanted(SHAPE) if "scale_factor" in limits else slanted(SHAPE)).astype(dtype)
    attributes = limits | ({} if mark is None or dtype == "uint8" else {"missing_value": np.dtype(dtype).type(mark)})
    if "missing_value" in attributes:
        stored[0, 0, 0] = mark
    volume = read_volume(write(tmp_path, "nc3" if dtype == "int16" else "nc4", grid(stored, attributes=attributes)))
    exact = stored.astype(float) * limits.get("scale_factor", 1) + limits.get("add_offset", 0)
    is_gone = (exact < low - 1e-6) | (exact > high + 1e-6)
    is_gone[0, 0, 0] |= "missing_value" in attributes
    found = whole(volume.array)
    assert 0 < is_gone.sum() < is_gone.size
    np.testing.assert_array_equal(is_missing(found[..., None], volume.fill), is_gone)
    np.testing.assert_allclose(found[~is_gone], exact[~is_gone], rtol=1e-6)


@pytest.mark.parametrize("kind", ["nc3", "nc4 chunks", "zarr3"])
@pytest.mark.parametrize("fill", ["none", -5])
@pytest.mark.parametrize(
    "said",
    [
        {"valid_range": np.array([20, 30], np.int16)},
        {"_FillValue": np.int16(21), "missing_value": np.array([22, 23], np.int16)},
        {"valid_max": np.int16(30), "scale_factor": 0.5, "add_offset": 1.0},
    ],
)
def test_values_that_the_user_takes_for_values_are_as_stored(tmp_path, kind, fill, said, capsys):
    stored = np.rint(slanted(SHAPE)).astype(np.int16)
    volume = read_volume(write(tmp_path, kind, grid(stored, attributes=said)), fill=fill)
    np.testing.assert_array_equal(whole(volume.array), stored * said.get("scale_factor", 1) + said.get("add_offset", 0))
    assert volume.fill == (None if fill == "none" else fill)
    assert ("with --fill -5 it counts as a value" in capsys.readouterr().err) == (fill == -5)


@pytest.mark.parametrize("says", ["false", "False", "true", "TRUE"])
@pytest.mark.parametrize("kind", ["nc3", "nc4"])
def test_bytes_are_signed_or_not_as_the_file_says(tmp_path, kind, says):
    """NetCDF-3 has no unsigned bytes, and OPeNDAP no signed ones."""
    is_signed = says.lower() == "false"
    exact = np.arange(210).reshape(SHAPE).astype(np.uint8 if not is_signed else np.int8)
    stored = exact.view(np.int8 if kind == "nc3" else np.uint8)
    attributes = {"_Unsigned": says, "missing_value": stored[6, 5, 4], "valid_max": stored[3, 2, 1]}
    volume = read_volume(write(tmp_path, kind, grid(stored, attributes=attributes)))
    is_gone = (exact > exact[3, 2, 1]) | (exact == exact[6, 5, 4])
    assert volume.array.dtype == exact.dtype and volume.fill == exact[6, 5, 4]
    np.testing.assert_array_equal(whole(volume.array), np.where(is_gone, volume.fill, exact))


@pytest.mark.parametrize(("mark", "dtype"), [(np.int16(-9999), np.uint8), (np.int32(65535), np.int16)])
def test_a_mark_that_the_type_has_not_marks_nothing(tmp_path, mark, dtype):
    """Nor a number of the same bits."""
    stored = np.arange(-100, 110).reshape(SHAPE).astype(dtype)
    volume = read_volume(write(tmp_path, "nc4", grid(stored, attributes={"missing_value": mark})))
    assert volume.fill is None and np.array_equal(whole(volume.array), stored)


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_axis_is_a_series(tmp_path, kind):
    array = slanted((*SHAPE, 4))
    data = grid(array, ("time", "z", "y", "x"), time=(6.0 + 3 * np.arange(4), {"units": "hours since 2001-01-01"}))
    volume = read_volume(write(tmp_path, kind, data))
    np.testing.assert_array_equal(whole(volume.array), np.moveaxis(array, 3, 0))
    assert volume.geometry.spacing == (3.0, 1.0, 1.0, 1.0) and volume.geometry.origin == (6.0, 0.0, 0.0, 0.0)


def test_times_in_unequal_steps_are_counted(tmp_path, capsys):
    """They have no units then: nothing says what step 1 is."""
    said = {"units": "days since 2001-01-01", "calendar": "noleap"}
    data = grid(slanted((*SHAPE, 3)), ("time", "z", "y", "x"), time=([0.0, 31.0, 59.0], said))
    data["v"].attrs["_FillValue"] = 7.0
    geometry = read_volume(write(tmp_path, "nc4", data), fill="none").geometry
    assert geometry.spacing[0] == 1.0 and geometry.attributes_of("t") == {}
    assert capsys.readouterr().err.count("its times are not in equal steps") == 1


def test_times_that_fall_are_told(tmp_path, capsys):
    data = grid(slanted((*SHAPE, 3)), ("time", "z", "y", "x"), time=([3.0, 2.0, 1.0], {}))
    assert read_volume(write(tmp_path, "nc4", data)).geometry.spacing[0] == 1.0
    assert "its times fall: taken as 0, 1, 2" in capsys.readouterr().err


def files_of_one_step(folder: Path, units: list[str], times: list[float], calendar: str | None = None) -> str:
    """The pattern of NetCDF files of one step, each with its units of time. The values of a step are its number."""
    for k, (unit, time) in enumerate(zip(units, times, strict=True)):
        said = {"units": unit} | ({"calendar": calendar} if calendar else {})
        data = grid(np.full((*SHAPE, 1), k), ("t", "z", "y", "x"), t=([time], said), z=(np.arange(5), {"units": "m"}))
        data.to_netcdf(folder / f"s{k}.nc", engine="h5netcdf")
    return str(folder / "s*.nc")


DAYS, SIXES = "days since 2020-", "hours since 2001-01-01 06:00:00"


@pytest.mark.parametrize(
    ("units", "times", "calendar", "order", "step"),
    [
        ([DAYS + "02-01", DAYS + "01-30", DAYS + "01-31"], [0, 0, 0], "proleptic_gregorian", [1, 2, 0], 1.0),
        ([SIXES, "days since 2001-01-01", "minutes since 2001-1-1T0:0:0Z"], [6, 0.25, 1080], None, [1, 0, 2], 0.25),
        ([DAYS + "03-01", DAYS + "02-28"], [0, 0], "standard", [1, 0], 2.0),
        ([DAYS + "03-01", DAYS + "02-28"], [0, 0], "noleap", [1, 0], 1.0),
        ([DAYS + "03-01", DAYS + "02-30"], [0, 0], "360_day", [1, 0], 1.0),
        (
            [f"seconds since 2020-01-01 00:00:00.{us}" for us in ("000003", "000001", "000002")],
            [0] * 3,
            None,
            [1, 2, 0],
            1e-6,
        ),
        ([f"Days since 2020-01-{day} 00:00 GMT" for day in ("02", "01")], [0, 0], "Gregorian", [1, 0], 1.0),
    ],
)
def test_files_whose_times_count_from_different_moments(tmp_path, capsys, units, times, calendar, order, step):
    """They are counted from the earliest moment, by the arithmetic of their calendar, and put in order."""
    volume = read_volume(files_of_one_step(tmp_path, units, times, calendar))
    assert volume.array[:, 0, 0, 0].tolist() == order
    assert volume.geometry.origin[0] == times[1] and volume.geometry.spacing[0] == pytest.approx(step)
    assert volume.geometry.attributes_of("t") == {"units": units[1]} | ({"calendar": calendar} if calendar else {})
    assert capsys.readouterr().err == ""


def test_steps_that_xarray_wrote_one_by_one(tmp_path):
    """Each of its files has time 0, and counts from its own day."""
    for day in ("2020-01-30", "2020-01-31", "2020-02-01"):
        data = grid(np.full((*SHAPE, 1), int(day[-2:])), ("time", "z", "y", "x"))
        name = "-".join(reversed(day.split("-")))
        data.assign_coords(time=[np.datetime64(day, "ns")]).to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    volume = read_volume(str(tmp_path / "*.nc"))
    assert volume.array[:, 0, 0, 0].tolist() == [30, 31, 1]
    assert volume.geometry.units_of("t").startswith("days since 2020-01-30")


@pytest.mark.parametrize(
    ("units", "calendar"),
    [
        (["months since 2001-01-01", "months since 2001-02-01"], None),
        (["days", "hours"], None),
        (["days since 2001-01-01", "days since 2001-02-30"], "standard"),
        (["days since 1500-01-01", "days since 1600-01-01"], "standard"),
        (["days since 2001-01-01", "days since 2001-01-02"], "julian"),
        (["days since 2001-01-01 00:00 -6:00", "days since 2001-01-02"], None),
        (["days since 2001-01-01 25:00", "days since 2001-01-02"], None),
    ],
)
def test_moments_that_cannot_be_compared_are_told(tmp_path, capsys, units, calendar):
    geometry = read_volume(pattern := files_of_one_step(tmp_path, units, [1, 0], calendar)).geometry
    assert (geometry.origin[0], geometry.spacing[0]) == (0.0, 1.0) and geometry.axis_attributes == {"units_z": "m"}
    told = capsys.readouterr().err
    assert f"{pattern}: warning: its files count time from different moments" in told
    assert all(unit in told for unit in units) and "in the order of the file names, at times 0, 1, 2" in told


def test_times_that_are_no_numbers_do_not_count_from_a_moment():
    said = [{"units": f"days since 2020-01-{day}"} for day in ("01", "02")]
    assert from_one_moment([0.0, 0.0], said) == ([0.0, 1.0], said[0]["units"])
    assert all(from_one_moment([0.0, time], said) is None for time in (np.nan, np.inf, 1e308))


def test_moments_of_different_calendars_are_told(tmp_path, capsys):
    for k, calendar in enumerate(("noleap", "standard")):
        said = {"units": "days since 2001-01-01", "calendar": calendar}
        grid(slanted((*SHAPE, 1)), ("t", "z", "y", "x"), t=([k], said)).to_netcdf(
            tmp_path / f"s{k}.nc", engine="h5netcdf"
        )
    assert read_volume(str(tmp_path / "s*.nc")).geometry.attributes_of("t") == {}
    assert "'days since 2001-01-01 noleap' in" in capsys.readouterr().err


def test_a_file_a_step(tmp_path):
    """One step in each file, which says its time."""
    array = slanted((*SHAPE, 3))
    for k in range(3):
        data = grid(array[..., k : k + 1], ("t", "z", "y", "x"), t=([10.0 + 5 * k], {}))
        data.to_netcdf(
            tmp_path / f"s{k}.nc", engine="h5netcdf", encoding={"v": {"zlib": True, "chunksizes": (1, 2, 3, 4)}}
        )
    volume = read_volume(str(tmp_path / "s*.nc"))
    assert volume.geometry.spacing[0] == 5.0 and volume.geometry.origin[0] == 10.0
    np.testing.assert_array_equal(whole(volume.array), np.moveaxis(array, 3, 0))
    part = volume.array.part((slice(1, 3), slice(2, 4), slice(None), slice(None)))
    np.testing.assert_array_equal(whole(part), np.moveaxis(array, 3, 0)[1:3, 2:4])


@pytest.mark.parametrize("kind", KINDS)
def test_snapshots_with_a_scalar_time(tmp_path, kind):
    """As xarray's isel leaves one: named by the attribute coordinates. A forecast has a second one, of its begin."""
    said = {"units": "hours since 2001-01-01", "calendar": "noleap"}
    array = slanted((*SHAPE, 3))
    data = grid(array, ("time", "z", "y", "x"), time=(6.0 + 3 * np.arange(3), said), z=(np.arange(5), {"units": "m"}))
    data = data.assign_coords(begin=((), 3.0, said | {"standard_name": "forecast_reference_time"}))
    for k in range(3):
        (tmp_path / f"s{k}").mkdir()
        path = write(tmp_path / f"s{k}", kind, data.isel(time=2 - k))
        assert read_volume(path).time == 12.0 - 3 * k
        assert "holds no array 'time'" in refusal(path, array="time")
    volume = read_volume(str(tmp_path / "s?" / "a.*"))
    np.testing.assert_array_equal(whole(volume.array), np.moveaxis(array, 3, 0))
    assert volume.geometry.spacing[0] == 3.0 and volume.geometry.origin[0] == 6.0
    assert volume.geometry.attributes_of("t") == said and volume.geometry.units_of("z") == "m"


def test_the_time_of_a_forecast_is_not_that_of_its_begin(tmp_path):
    """As cfgrib writes it: `time` is the begin, and `valid_time` has the standard name time. NaT is no time."""
    said, data = {"units": "hours since 2001-01-01"}, grid(slanted(SHAPE), ("z", "y", "x"))
    begin = ((), 3.0, said | {"standard_name": "forecast_reference_time"})
    path = write(tmp_path, "nc4", data.assign_coords(time=begin))
    assert read_volume(path).time is None
    path = write(
        tmp_path, "nc4", data.assign_coords(time=begin, valid_time=((), 15.0, said | {"standard_name": "time"}))
    )
    assert read_volume(path).time == 15.0
    path = write(tmp_path, "nc4", data.assign_coords(time=((), np.iinfo(np.int64).min, said)))
    assert read_volume(path).time is None


def test_an_axis_alone_is_not_taken_for_its_coordinate(tmp_path):
    x, array = np.arange(12.0), slanted((12, 1, 1))
    path = write(tmp_path, "nc4", grid(array, x=(x, {}), y=(x[:1], {}), z=(x[:1], {})))
    np.testing.assert_array_equal(whole(read_volume(path).array), array)


def test_a_number_that_is_no_coordinate_is_no_time(tmp_path):
    said = {"units": "hours since 2001-01-01"}
    data = grid(slanted(SHAPE)).assign(time=((), 6.0, said))
    assert read_volume(write(tmp_path, "nc3", data)).time is None
    (tmp_path / "two").mkdir()
    data = grid(slanted(SHAPE)).assign_coords(begin=((), 6.0, said), end=((), 7.0, said))
    assert read_volume(write(tmp_path / "two", "nc4", data)).time is None


@pytest.mark.parametrize("kind", ["nc3", "zarr3"])
def test_components_and_images(tmp_path, kind):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    flow = xarray.Dataset({"v": (("y", "component", "x"), slanted((6, 3, 7)))})
    volume = read_volume(write(tmp_path / "a", kind, flow), 2, 3)
    np.testing.assert_array_equal(whole(volume.array), slanted((6, 3, 7)).transpose(2, 0, 1))
    scalar = read_volume(write(tmp_path / "b", kind, grid(slanted((7, 6)), ("y", "x"))), 2)
    np.testing.assert_array_equal(whole(scalar.array), slanted((7, 6)))


# --- what is refused, with the way out --------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_several_arrays(tmp_path, kind):
    data = grid(slanted(SHAPE), attributes={"units": "K"}, x=(np.arange(7) * 0.5, {}))
    path = write(
        tmp_path, kind, data.assign(w=(data.v.dims, data.v.values + 1, {"units": "K"}), line=("x", np.arange(7)))
    )
    listed = "v (z 5, y 6, x 7; float32; K), w (z 5, y 6, x 7; float32; K), line (x 7; int"
    assert f"{path}: expected --array, the name of one of its arrays: {listed}" in refusal(path)
    assert f"holds no array 'u', only {listed}" in refusal(path, array="u")
    assert whole(read_volume(path, array="/w").array)[0, 0, 0] == slanted(SHAPE)[0, 0, 0] + 1


@pytest.mark.parametrize("kind", ["nc3", "zarr2"])
def test_unequal_steps_of_space(tmp_path, kind):
    data = grid(slanted(SHAPE), z=([1000.0, 925.0, 850.0, 700.0, 500.0], {"units": "hPa"}))
    message = refusal(write(tmp_path, kind, data))
    assert "expected equal steps along z, found 1000, 925, 850, 700, 500" in message and "interp(z=" in message


EAST = {"units": "degrees_east"}


def over_longitudes(longitudes, attributes, name="lon"):
    array = slanted((len(longitudes), 6, 5))
    return grid(array, ("z", "y", name), **{name: (longitudes, attributes)})


@pytest.mark.parametrize("kind", ["nc3", "nc4", "zarr3"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize(
    ("start", "step", "n", "wrapped"),
    [(340, 2, 24, lambda lon: lon % 360), (26, -2, 24, lambda lon: lon % 360), (170, 5, 5, lambda lon: lon - 360)],
    ids=["Greenwich", "westward", "date line"],
)
def test_longitudes_that_wrap(tmp_path, kind, dtype, start, step, n, wrapped):
    whole_turn = start + step * np.arange(n)
    found = np.where((whole_turn < 0) | (whole_turn >= 180), wrapped(whole_turn), whole_turn).astype(dtype)
    assert np.abs(np.diff(found)).max() > 180
    volume = read_volume(write(tmp_path, kind, over_longitudes(found, EAST)))
    np.testing.assert_array_equal(whole(volume.array), slanted((n, 6, 5)))
    assert (volume.geometry.spacing[0], volume.geometry.direction[0]) == (abs(step), np.sign(step))
    assert volume.geometry.origin[0] == start


@pytest.mark.parametrize(
    ("name", "attributes"), [("lon", {}), ("i", EAST), ("i", {"standard_name": "longitude", "axis": "X"})]
)
def test_longitudes_are_known_by_their_units_or_names(tmp_path, name, attributes):
    data = over_longitudes((350.5 + np.arange(20)) % 360, attributes, name)
    geometry = read_volume(write(tmp_path, "nc4", data)).geometry
    assert geometry.spacing[0] == 1.0 and geometry.origin[0] == 350.5


def test_the_longitudes_of_a_globe_stay(tmp_path):
    for k, longitudes in enumerate(([0.0, 270.0], np.arange(0.0, 360.0, 2.0), np.arange(180.0, -180.0, -2.0))):
        (tmp_path / str(k)).mkdir()
        geometry = read_volume(write(tmp_path / str(k), "nc4", over_longitudes(longitudes, EAST))).geometry
        assert geometry.origin[0] == longitudes[0] and geometry.spacing[0] == abs(longitudes[1] - longitudes[0])


def test_longitudes_with_a_gap_are_put_in_order_not_interpolated(tmp_path):
    """Those on both sides of Greenwich, in rising order. The advice makes a file that is read."""
    longitudes = np.append(np.arange(0.0, 28, 2), np.arange(340.0, 360, 2))
    data = over_longitudes(longitudes, EAST)
    path = write(tmp_path, "nc4", data)
    message = refusal(path)
    assert "found a jump from 26 to 340" in message and "interp" not in message
    advice = message.partition("as by xarray's a.")[2]
    fixed = eval(f"a.{advice}", {"a": data, "numpy": np})
    (tmp_path / "fixed").mkdir()
    geometry = read_volume(write(tmp_path / "fixed", "nc4", fixed)).geometry
    assert geometry.spacing[0] == 2.0 and geometry.origin[0] == -20.0


@pytest.mark.parametrize("positions", [[0.0, 2.0, 1.0, 3.0, 4.0], [0.0, 1.0, 1.0, 2.0, 3.0], [7.0] * 5])
def test_positions_in_no_order_are_not_interpolated(tmp_path, positions):
    data = grid(slanted(SHAPE), z=(positions, {"units": "m"}))
    message = refusal(write(tmp_path, "nc4", data))
    assert "expected positions in rising or falling order along z, found " in message and "interp" not in message
    assert "sortby('z')" in message and "drop_vars('z')" in message
    for name in ["sortby", "drop_vars"][len({*positions}) < len(positions) :]:
        (tmp_path / name).mkdir()
        fixed = read_volume(write(tmp_path / name, "nc4", getattr(data, name)("z")))
        assert fixed.geometry.spacing[2] == 1.0 and fixed.geometry.origin[2] == 0.0


def test_a_coordinate_that_is_no_number(tmp_path):
    message = refusal(write(tmp_path, "nc4", grid(slanted(SHAPE), z=([1.0, np.nan, 3.0, 4.0, 5.0], {}))))
    assert "expected numbers along z, found 1, nan" in message and "interp" not in message


@pytest.mark.parametrize("kind", ["nc3", "nc4", "zarr3"])
def test_positions_that_are_no_regular_grid_are_told(tmp_path, capsys, kind):
    """Longitudes and latitudes for every voxel; not where the axes have coordinates of their own besides."""
    data = grid(slanted(SHAPE)).assign_coords(lat=(("y", "x"), slanted(SHAPE[:2]).T), time=0.0)
    assert read_volume(write(tmp_path, kind, data)).geometry.spacing == (1.0, 1.0, 1.0)
    said = capsys.readouterr().err
    assert "lat give positions that are no regular grid" in said and "regrid it" in said and said.count("\n") == 1
    (tmp_path / "regular").mkdir()
    read_volume(write(tmp_path / "regular", kind, data.assign_coords(x=2.0 * np.arange(7), y=np.arange(6))))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("n_starts", [1, 2])
def test_of_two_times_none_becomes_a_place(tmp_path, n_starts):
    """As of forecasts: the times at which they began come first."""
    dims, said = ("start", "time", "lat", "lon"), {"units": "hours since 2001-01-01"}
    data = grid(slanted((7, 6, 5, n_starts)), dims, start=(range(n_starts), said), time=(6.0 * np.arange(5), said))
    path = write(tmp_path, "nc4", data)
    if n_starts == 1:
        assert read_volume(path).array.shape == (5, 7, 6, 1) and read_volume(path).geometry.spacing[0] == 6.0
    else:
        assert "write a file with one index of time, as by" in refusal(path)


def test_a_dimension_of_which_nothing_is_said_is_told(tmp_path, capsys):
    """Where others are known: an ensemble of maps is no volume."""
    xarray = pytest.importorskip("xarray")
    values = np.random.default_rng(0).random((3, 4, 5, 6))
    for dims, told in ((("time", "member", "lat", "lon"), "q: member is taken for z"), ("tijk", ""), ("tzyx", "")):
        xarray.Dataset({"q": (tuple(dims), values)}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        volume = read_volume(str(tmp_path / "a.nc"))
        np.testing.assert_array_equal(np.asarray(volume.array), values.transpose(0, 3, 2, 1))
        found = capsys.readouterr().err
        assert told in found and bool(told) == bool(found)


def test_a_fifth_axis(tmp_path):
    data = grid(slanted((*SHAPE, 2)), ("member", "z", "y", "x"))
    assert "write a file with one index of member" in refusal(write(tmp_path, "nc4", data))


@pytest.mark.parametrize(("package", "kind"), [("scipy", "nc3"), ("h5py", "nc4"), ("zarr", "zarr3")])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, package, kind):
    path = write(tmp_path, kind, grid(slanted(SHAPE)))
    monkeypatch.setitem(sys.modules, "scipy.io" if package == "scipy" else package, None)
    assert refusal(path).endswith(f": pip install {package}")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_line(tmp_path, kind):
    """A file of the set cut short, or with a bit turned: it is refused with one line, or read."""
    rng = np.random.default_rng(0)
    path = Path(write(tmp_path, kind, grid(slanted(SHAPE), x=(np.arange(7.0), {}))))
    files = listing(tmp_path)
    for name in [*files][:: max(1, len(files) // 3)]:
        content = files[name]
        damaged = [content[: len(content) * k // 3] for k in range(3)]
        for _ in range(3 if len(files) > 1 else 12):
            changed = bytearray(content)
            changed[rng.integers(min(len(changed), 4000))] ^= 1 << rng.integers(8)
            damaged.append(bytes(changed))
        for data in damaged:
            (tmp_path / name).write_bytes(data)
            try:
                assert read_volume(str(path), array="v").array.ndim == 3
            except VolumeError as error:
                assert "\n" not in str(error)
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_a_part_of_turned_axes_stays_in_its_place(tmp_path, name):
    """As xarray cuts it out, or turns it round: coordinates run along the axes from the corner of the whole."""
    geometry = Geometry((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), (0.0, 0.6, -0.8, -1.0, 0.0, 0.0, 0.0, 0.8, 0.6))
    turn = np.reshape(geometry.direction, (3, 3))
    write_volume(str(tmp_path / name), Volume(slanted(SHAPE), geometry))
    data = xarray.open_dataset(tmp_path / name, engine="zarr" if name == "a.zarr" else "h5netcdf").load()
    for k, (part, step) in enumerate(((slice(2, None), 1), (slice(None, None, -2), -2))):
        (tmp_path / str(k)).mkdir()
        found = read_volume(write(tmp_path / str(k), "nc4", data.isel(x=part)))
        np.testing.assert_array_equal(whole(found.array), slanted(SHAPE)[part])
        first = np.arange(SHAPE[0])[part][0]
        np.testing.assert_allclose(found.geometry.origin, geometry.origin + turn @ (first, 0, 0), atol=1e-12)
        steps = np.reshape(found.geometry.direction, (3, 3)) * found.geometry.spacing
        np.testing.assert_allclose(steps, turn * [step, 2, 3], atol=1e-12)


# --- the scripts ------------------------------------------------------------------------------------


def test_from_a_file_to_a_comparison_with_it(tmp_path, capsys):
    """The fill value that the file declares, its chunks and the units of its coordinates, through the scripts."""
    array = np.stack([slanted(SHAPE)] * 2, axis=-1)
    array[0, :2] = np.nan
    axes = {
        "lat": (50 - np.arange(6) / 2, {"units": "degrees_north"}),
        "lev": (np.arange(5.0), {"units": "m", "positive": "down"}),
    }
    axes["time"] = np.arange(2) * 6.0, {"units": "hours since 2001-01-01", "calendar": "noleap"}
    path = write(tmp_path, "nc4 chunks", grid(array, ("time", "lev", "lat", "lon"), {"units": "K"}, **axes))
    trained = train(path, tmp_path)
    assert trained.settings["units"] == "K" and results(capsys.readouterr().out)["missing"] == "20"
    blob = tmp_path / "blob"
    arguments = ("--net", trained.network, "--config", trained.config, "--compressed", blob, "--volume", path)
    net_compress.main([*map(str, arguments), "--n_passes", "1"])
    decoded = decompress(blob, tmp_path / "out.npy", "--volume", path)
    assert "warning" not in capsys.readouterr().err
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(np.moveaxis(array, 3, 0)))
    source = read_volume(path).geometry
    assert len(source.axis_attributes) == 5 and source.axis_attributes["positive_z"] == "down"
    for name in ("out.nc", "out.zarr"):
        net_decompress.main(["--compressed", str(blob), "--recon", str(tmp_path / name)])
        assert read_volume(str(tmp_path / name)).geometry == source
    net_decompress.main(["--compressed", str(blob), "--recon", str(tmp_path / "step.nc"), "--time", "1"])
    with xarray.open_dataset(tmp_path / "step.nc", engine="h5netcdf", decode_times=False) as step:
        assert step.t.values[0] == 6.0 and step.t.attrs == axes["time"][1] | {"axis": "T"}
        assert step.y.units == "degrees_north"
