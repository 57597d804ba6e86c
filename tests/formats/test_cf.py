"""NetCDF, HDF5 and Zarr as xarray writes them: what the CF conventions say of a variable comes with its volume."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import decompress, listing, results, train
from helpers.variables import KINDS, SHAPE, grid, write, xarray
from helpers.volume_files import refusal
from helpers.volumes import slanted, whole

import net_compress
import net_decompress
from formats.common import VolumeError
from formats.reading import read_volume
from formats.writing import write_volume
from utils import Geometry, Volume

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_without_a_step_is_empty(tmp_path, kind):
    """As of a run that ended before its first output: only the lengths of the axes are there."""
    data = grid(np.zeros((*SHAPE, 0), np.float32), ("time", "z", "y", "x"), time=(np.zeros(0), {}))
    assert "v: is empty: time 0, z " in refusal(write(tmp_path, kind, data))


@pytest.mark.parametrize(
    ("dims", "attributes"),
    [
        (("z", "y", "x"), {}),
        (("x", "y", "z"), {}),
        (("a", "b", "c_"), {}),
        (("xc", "yc", "zc"), {}),
        (("ncells_x", "ncells_y", "ncells_z"), {}),
        (("xt", "yt", "r"), {"r": {"positive": "up"}}),
        (("xt", "yu", "zw"), {}),
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
    order = {"abc_": (2, 1, 0), "zyx": (2, 1, 0), "xtyuzw": (2, 1, 0), "yxlev": (1, 0, 2)}.get("".join(dims))
    order = order or ((0, 2, 1) if "q" in attributes else (0, 1, 2))
    np.testing.assert_array_equal(whole(read_volume(path).array), stored.transpose(order))


def test_an_axis_alone_is_not_taken_for_its_coordinate(tmp_path):
    x, array = np.arange(12.0), slanted((12, 1, 1))
    path = write(tmp_path, "nc4", grid(array, x=(x, {}), y=(x[:1], {}), z=(x[:1], {})))
    np.testing.assert_array_equal(whole(read_volume(path).array), array)


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


def test_positions_along_axes_of_other_names_are_told(tmp_path, capsys):
    """As where the axis nx has its positions in x; of one axis with both, as of spectral elements, are no grid."""
    data = grid(slanted(SHAPE), ("nz", "ny", "nx"))
    data["x"], data["lat"], data["area"] = ("nx", np.arange(7) / 2), ("ny", np.arange(6) / 2), ("nx", np.ones(7))
    assert read_volume(write(tmp_path, "nc3", data), array="v").geometry.spacing == (1.0, 1.0, 1.0)
    said = capsys.readouterr().err
    assert "v: x, lat may be positions along its axes" in said and "swap_dims" in said and said.count("\n") == 1
    (tmp_path / "mesh").mkdir()
    data["lat"], data["lon"] = ("nx", np.sin(np.arange(7))), ("nx", np.cos(np.arange(7)))
    read_volume(write(tmp_path / "mesh", "nc3", data[["v", "lat", "lon"]]), array="v")
    said = capsys.readouterr().err
    assert "lat, lon give positions that are no regular grid" in said and said.count("\n") == 1


@pytest.mark.parametrize("kind", ["nc3", "nc4"])
def test_minc_of_version_1_is_refused(tmp_path, kind):
    """Its values are scaled by slice, and its axes have their steps in attributes."""
    data = xarray.Dataset({"image": (("zspace", "yspace", "xspace"), slanted(SHAPE).astype("i2"))})
    data["image-max"] = "zspace", np.arange(SHAPE[0], dtype=float)
    message = refusal(write(tmp_path, kind, data))
    assert "expected plain " in message and "found MINC, which scales values by slice: nibabel.save(" in message


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
    said = refusal(write(tmp_path, "nc4", data))
    assert "write a file with one index of member" in said and "has to be called component" in said
    assert read_volume(write(tmp_path, "zarr3", data.rename(member="component"))).array.shape == (*SHAPE, 2)


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
