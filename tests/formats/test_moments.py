"""Times of NetCDF and Zarr: steps, calendars, moments that they count from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.variables import KINDS, SHAPE, grid, write, xarray
from helpers.volume_files import refusal
from helpers.volumes import slanted, whole

from formats.moments import from_one_moment
from formats.reading import read_volume


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


@pytest.mark.parametrize("kind", KINDS)
def test_the_times_that_a_variable_names(tmp_path, kind):
    """WRF's axis of time has no coordinate, but a variable names its times."""
    data = xarray.Dataset(
        {"v": (("Time", "bottom_top", "south_north", "west_east_stag"), slanted((3, *SHAPE)).transpose(0, 3, 2, 1))},
        coords={"XTIME": ("Time", [60.0, 90.0, 120.0], {"units": "minutes since 2005-08-28"})},
    )
    geometry = read_volume(write(tmp_path, kind, data)).geometry
    assert geometry.spacing[0] == 30.0 and geometry.origin[0] == 60.0
    assert geometry.attributes_of("t")["units"] == "minutes since 2005-08-28"


def test_an_axis_in_hours_is_time(tmp_path):
    steps = ("step", [0.0, 6.0], {"units": "hours"})
    dims = {"step": steps, "isobaricInhPa": [500.0, 600.0], "latitude": [1.0, 2.0, 3.0], "longitude": [1.0, 2.0]}
    data = xarray.Dataset({"v": ([*dims], slanted((2, 2, 3, 2)))}, coords=dims)
    volume = read_volume(write(tmp_path, "nc4", data))
    assert volume.array.shape == (2, 2, 3, 2) and volume.geometry.spacing[0] == 6.0


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
