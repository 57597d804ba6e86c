"""HDF5 without conventions, and HDF5 that is not to be trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import volume_files
from helpers.volumes import slanted, whole

from formats.common import VolumeError
from formats.reading import read_volume

h5py = pytest.importorskip("h5py")

SHAPE = (7, 6, 5)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "a.h5")


def refusal(path: str, array: str | None = None) -> str:
    message = volume_files.refusal(path, array=array)
    assert message.startswith(f"{path}: ")
    return message


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("user_block", [0, 512])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "u1", "?", "<f8", "<f2"])
@pytest.mark.parametrize("chunks", [None, (2, 4, 3)])
def test_values_and_types(path, dtype, chunks, user_block):
    """Plain values are memory-mapped, also behind a user block, as MATLAB has one."""
    array = (slanted(SHAPE) > 20 if dtype == "?" else slanted(SHAPE)).astype(dtype)
    with h5py.File(path, "w", userblock_size=user_block) as file:
        file.create_dataset(
            "run/density", data=array.T, chunks=chunks, compression=chunks and "gzip", shuffle=bool(chunks)
        )
    volume = read_volume(path)
    expected = array.astype(np.uint8 if dtype == "?" else array.dtype.newbyteorder("="))
    assert volume.array.dtype == expected.dtype and volume.geometry.name == "density"
    assert isinstance(volume.array, np.memmap) == (chunks is None and dtype in ("<f4", "u1", "<f8", "<f2"))
    np.testing.assert_array_equal(whole(volume.array), expected)


def test_four_nameless_axes(path):
    """As of a .npy file, whose first axis is time: four axes that may end in components need a word."""
    with h5py.File(path, "w") as file:
        file["series"], file["either"] = slanted((4, 5, 6, 7)), slanted((5, 6, 7, 3))
    assert read_volume(path, array="series").array.shape == (4, 7, 6, 5)
    assert "expected --d_in 4 (a time series) or --d_out 3 (components)" in refusal(path, "either")
    assert read_volume(path, 3, 3, "either").array.shape == (7, 6, 5, 3)
    assert read_volume(path, 4, array="either").array.shape == (5, 3, 7, 6)


def test_five_nameless_axes(path):
    """Whatever comes before the last four, these need the same word."""
    with h5py.File(path, "w") as file:
        file["v"] = slanted((1, 5, 6, 7, 3))
    assert "expected --d_in 4 (a time series) or --d_out 3 (components)" in refusal(path)
    assert read_volume(path, d_out=3).array.shape == (7, 6, 5, 3)


def test_axes_of_which_only_some_have_a_name(path, capsys):
    with h5py.File(path, "w") as file:
        series = file.create_dataset("q", data=slanted((2, 3, 4, 5)))
        series.dims[2].label, series.dims[3].label = "y", "x"
    assert read_volume(path).array.shape == (2, 5, 4, 3)
    told = capsys.readouterr().err
    assert all(f"q: an axis without a name is taken for {role}, though nothing says so" in told for role in "zt")


def test_labels_of_axes(path):
    """As of Dedalus: the names of the scales say nothing."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset("a", data=slanted((3, 7, 5)))
        for k, (label, name) in enumerate([("t", "sim_time"), ("x", "x_hash"), ("z", "z_hash")]):
            file[f"scales/{name}"] = 0.5 * np.arange(array.shape[k])
            file[f"scales/{name}"].make_scale(name)
            array.dims[k].label = label
            array.dims[k].attach_scale(file[f"scales/{name}"])
    volume = read_volume(str(path), array="a")
    np.testing.assert_array_equal(whole(volume.array)[:, :, 0], slanted((3, 7, 5)))


def test_a_grid_of_yt(path):
    """As its save_as_dataset writes one: x is the slowest axis."""
    with h5py.File(path, "w") as file:
        file["grid/density"] = slanted(SHAPE)
        file.attrs["data_type"], file.attrs["container_type"] = "yt_data_container", "covering_grid"
    np.testing.assert_array_equal(whole(read_volume(path).array), slanted(SHAPE))


def test_the_axes_of_vigra(path):
    """As ilastik has them."""
    array = slanted((5, 6, 7, 2))
    for axes in ("zyxc", "xyzc", "czyx"):
        with h5py.File(path, "w") as file:
            file["exported_data"] = array.transpose(["xyzc".index(axis) for axis in axes])
            tags = [{"key": axis, "typeFlags": 2, "resolution": 0, "description": ""} for axis in axes]
            file["exported_data"].attrs["axistags"] = json.dumps({"axes": tags})
        for d_out in (None, 2):
            np.testing.assert_array_equal(whole(read_volume(path, d_out=d_out).array), array)


@pytest.mark.parametrize(
    "said",
    [
        *("x, y, z", "[" * 10_000, "3", "{}", '{"axes": 3}', '{"axes": [{}, {}, {}]}', b"\xff", 3, [1.0, 2.0]),
        json.dumps({"axes": [{"key": key} for key in (1, None, [])]}),
        json.dumps({"axes": [{"key": "?"}] * 3}),
    ],
    ids=lambda said: repr(said)[:30],
)
def test_an_attribute_that_is_called_axistags(path, said):
    """It says nothing where it is not of vigra, and is no hindrance to other arrays."""
    with h5py.File(path, "w") as file:
        for name in "ab":
            file[name] = slanted(SHAPE)
        file["a"].attrs["axistags"] = said
    for name in "ab":
        np.testing.assert_array_equal(whole(read_volume(path, array=name).array), slanted(SHAPE).T)


def test_scales_go_before_axistags(path):
    with h5py.File(path, "w") as file:
        file["v"] = slanted(SHAPE)
        file["v"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "xyz"]})
        for k, name in enumerate("xyz"):
            file[name] = 0.5 * np.arange(SHAPE[k])
            file[name].make_scale()
            file["v"].dims[k].attach_scale(file[name])
    volume = read_volume(path)
    assert volume.geometry.spacing == (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(whole(volume.array), slanted(SHAPE))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["rho", "E/y"])
def test_a_mesh_of_openpmd(path, name, order, capsys):
    """The record of a component is its group. Fortran's order is that of no array in HDF5, but of the attributes."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset(f"data/100/fields/{name}", data=slanted(SHAPE).T)
        record, turned = array if name == "rho" else array.parent, slice(None, None, -1 if order == "F" else 1)
        record.attrs["geometry"], record.attrs["dataOrder"] = np.bytes_("cartesian"), order
        record.attrs["axisLabels"] = [b"z", b"y", b"x"][turned]
        record.attrs["gridSpacing"] = np.array([3, 2, 0.5], np.float32)[turned]
        record.attrs["gridGlobalOffset"], record.attrs["gridUnitSI"] = [30.0, 20.0, 10.0][turned], 0.01
        array.attrs["position"] = [0.0, 0.5, 0.0][turned]
        array.attrs["unitSI"] = 1.0
        file["data/100"].attrs.update({"time": np.float32(2.5), "dt": 0.1, "timeUnitSI": 1e-3})
    volume = read_volume(path)
    np.testing.assert_array_equal(whole(volume.array), slanted(SHAPE))
    assert volume.geometry.spacing == (0.005, 0.02, 0.03)
    assert volume.geometry.origin == pytest.approx((0.1, 0.21, 0.3), abs=1e-12)
    assert volume.geometry.attributes_of("y") == {"units": "m"} and capsys.readouterr().err == ""
    assert volume.time == 2.5e-3 and volume.geometry.attributes_of("t") == {"units": "s"}
    assert volume.geometry.units == ""
    with h5py.File(path, "a") as file:
        file[f"data/100/fields/{name}"].attrs["unitSI"] = 1e3
    np.testing.assert_array_equal(whole(read_volume(path).array), slanted(SHAPE))
    assert f"{name}: its unitSI is not applied" in capsys.readouterr().err
    wrong = {
        "geometry": "thetaMode",
        "gridSpacing": [1, np.nan, 2],
        "gridUnitSI": 0.0,
        "axisLabels": [b"z", b"y", b"c"],
    }
    for key, value in wrong.items():
        with h5py.File(path, "a") as file:
            attributes = file[f"data/100/fields/{name.split('/')[0]}"].attrs
            right, attributes[key] = attributes[key], value
        assert read_volume(path).geometry.spacing == (1.0, 1.0, 1.0)
        assert f"{name}: its gridSpacing is not read" in capsys.readouterr().err
        with h5py.File(path, "a") as file:
            file[f"data/100/fields/{name.split('/')[0]}"].attrs[key] = right
            file["data/100"].attrs["time"] = np.nan
    assert read_volume(path).time is None


def test_a_single_time_that_is_scaled(path):
    with h5py.File(path, "w") as file:
        file["v"], file["time"] = slanted(SHAPE), np.int32(30)
        file["v"].attrs["coordinates"] = "time"
        file["time"].attrs.update({"scale_factor": 0.5, "add_offset": 1.0})
    assert read_volume(path).time == 16.0


@pytest.mark.parametrize("is_linked", [False, True])
def test_positions_that_nothing_links_to_the_axes_are_told(path, is_linked, capsys):
    """As in a cutout of the turbulence data of Johns Hopkins."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset("rho", data=slanted((4, 5, 7)))
        for k, name in enumerate(("zcoor", "ycoor", "xcoor")):
            file[name] = 0.5 * np.arange(array.shape[k])
            if is_linked:
                file[name].make_scale()
                array.dims[k].attach_scale(file[name])
        file["counts"] = np.arange(9)  # of another length
        file["scalars"] = np.zeros(7, [("name", "S8"), ("value", "i4")])  # as of FLASH
        file["is_used"] = np.zeros(7, bool)
        if not is_linked:
            file["matlab"] = np.zeros((7, 1))
        file["one"] = np.arange(1)
    spacing, told = read_volume(path).geometry.spacing, capsys.readouterr().err
    if is_linked:
        assert spacing == (0.5, 0.5, 0.5) and told == ""
    else:
        what = "rho: matlab, xcoor, ycoor, zcoor may be positions along its axes, but are not linked to these"
        assert spacing == (1.0, 1.0, 1.0) and what in told


@pytest.mark.parametrize("name", ["resolution", "element_size_um", "VoxelSize"])
def test_a_spacing_of_no_convention_is_told(path, name, capsys):
    """Not where coordinates say it."""
    with h5py.File(path, "w") as file:
        file["v"] = slanted(SHAPE)
        file["v"].attrs[name] = [40.0, 4.0, 4.0]
        file["v"].attrs["resolution of the sensor"] = "low"
        file["v"].attrs["voxel_size"], file["v"].attrs["resolution in voxels"] = 1.0, SHAPE
        file["v"].attrs["n_voxels"] = 315
    assert read_volume(path).geometry.spacing == (1, 1, 1)
    assert f"v: spacing 1 is taken, not that of {name}: " in capsys.readouterr().err
    with h5py.File(path, "a") as file:
        for k, n in enumerate(SHAPE):
            file[f"scales/{k}"] = np.arange(n)
            file[f"scales/{k}"].make_scale()
            file["v"].dims[k].attach_scale(file[f"scales/{k}"])
    read_volume(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["voxel_size", "_SIMPL_GEOMETRY/SPACING", "/", "run"])
def test_a_spacing_beside_an_array_is_told(path, place, capsys):
    """In an array of three numbers, as of DREAM.3D, or in an attribute of a group."""
    with h5py.File(path, "w") as file:
        file["run/v"] = slanted(SHAPE)
        if place in file:
            file[place].attrs["Resolution"] = [4.0, 4.0, 40.0]
        else:
            file[place] = [4.0, 4.0, 40.0]
        file["grid_spacing"], file["voxel_sizes"] = 1.0, np.ones(2)
    assert read_volume(path).geometry.spacing == (1, 1, 1)
    expected = "Resolution" if place in ("/", "run") else place
    assert f"run/v: spacing 1 is taken, not that of {expected}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["", "int16"])
def test_values_of_bigdataviewer(path, kind, capsys):
    """Its int16 without a word are uint16: Java has no unsigned numbers. Its spacing is in another file."""
    stored = (slanted(SHAPE) * 1000).astype(np.uint16)
    assert stored.max() > 32767
    with h5py.File(path, "w") as file:
        file["t00000/s00/0/cells"] = stored.view(np.int16)
        file["s00/resolutions"] = np.ones((1, 3))
        if kind:
            file["s00"].attrs["dataType"] = kind
    expected, found = stored.view(kind or np.uint16).T, read_volume(path).array
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(whole(found), expected)
    said = capsys.readouterr().err
    assert "cells: its spacing, which BigDataViewer has in an .xml file, is not read" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("described", "dtype"), [("", "<i2"), ("s00", "<i2"), ("s01/resolutions", "<i2"), ("s00/resolutions", "<i4")]
)
def test_other_integers_are_not_those_of_bigdataviewer(path, described, dtype):
    """It describes its arrays in a group, and has no integers of more bits."""
    with h5py.File(path, "w") as file:
        file["t00000/s00/0/cells"] = (slanted(SHAPE) - 20).astype(dtype)
        if described:
            file[described] = np.ones((1, 3))
    found = read_volume(path).array
    assert found.dtype == dtype and found.min() < 0


def test_names_as_of_meshes_are_read(path):
    """A matrix of connections is no mesh of Exodus, positions in a group are none of CGNS."""
    with h5py.File(path, "w") as file:
        file["v"], file["connect1"], file["grid/GridCoordinates/x"] = slanted(SHAPE), np.zeros((4, 4)), np.zeros(3)
    np.testing.assert_array_equal(whole(read_volume(path).array), slanted(SHAPE).T)


def test_the_attributes_of_a_group_are_looked_at_once(path, monkeypatch):
    """Thousands of arrays and of attributes would take minutes."""
    with h5py.File(path, "w") as file:
        for k in range(20):
            file[f"run/{k}"] = np.arange(k + 1)
        file["run/v"], file["run"].attrs["resolution"] = slanted(SHAPE), 0.5
    opened = []
    listed = h5py.AttributeManager.__iter__
    monkeypatch.setattr(h5py.AttributeManager, "__iter__", lambda self: opened.append(self) or listed(self))
    read_volume(path)
    assert len(opened) < 20


@pytest.mark.parametrize(
    ("name", "said"),
    [("time_resolution", 0.1), ("resolution_level", 0), ("uniform_spacing", True), ("resolution", [5, 7, 6])],
)
@pytest.mark.parametrize("place", ["v", "run", "array"])
def test_what_says_no_step_in_space_is_not_told(path, name, said, place, capsys):
    """The last one is the numbers of voxels of a series."""
    with h5py.File(path, "w") as file:
        file["run/v"] = np.zeros((4, *SHAPE), np.float32)
        if place == "array":
            file[name] = said
        else:
            file["run" if place == "run" else "run/v"].attrs[name] = said
    read_volume(path, 4)
    assert capsys.readouterr().err == ""


def test_positions_of_every_voxel_are_told(path, capsys):
    """As of PLUTO."""
    with h5py.File(path, "w") as file:
        file["vars/rho"] = slanted(SHAPE)
        file["cell_coords/X"], file["node_coords/X"] = slanted(SHAPE), slanted([n + 1 for n in SHAPE])
    read_volume(path, array="vars/rho")
    assert "vars/rho: cell_coords/X may be positions along its axes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wrfout_d01_2005-08-28", "plt_cnt_0010", "a.athdf", "DD0010.cpu0000"])
def test_a_file_is_known_by_its_first_bytes(tmp_path, name):
    with h5py.File(tmp_path / name, "w") as file:
        file["rho"] = slanted((4, 3, 2))
    assert read_volume(str(tmp_path / name), array="rho").array.shape == (2, 3, 4)


def test_links_in_a_file(path):
    """As NeXus has them: a soft link, one by another one and by a group, and a second name."""
    with h5py.File(path, "w") as file:
        file["entry/detector/data"], file["other"] = slanted(SHAPE), slanted(SHAPE) + 1
        file["entry/plot/soft"] = h5py.SoftLink("/entry/detector/data")
        file["entry/near"] = h5py.SoftLink("./detector")
        file["again"] = h5py.SoftLink("entry/near/../near/data")
        file["twice"] = h5py.SoftLink("entry/near/data")
        file["hard"] = file["entry/detector/data"]
        file["circle"], file["nowhere"] = h5py.SoftLink("/circle/a"), h5py.SoftLink("/entry/no")
        file["group"] = h5py.SoftLink("/entry/detector")
    names = ("entry/plot/soft", "/entry/near/data", "twice", "hard", "group/data")
    for volume in (read_volume(path, array=name) for name in names):
        np.testing.assert_array_equal(whole(volume.array), slanted(SHAPE).T)
        assert volume.geometry.name == "data"
    for name in ("circle", "nowhere", "group", "again", "twice/more"):
        assert f"holds no array {name!r}, only " in refusal(path, name)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("a.mnc", "minc-2.0/image/0/image", "expected plain HDF5, found MINC, which scales values"),
        ("a.h5", "minc-2.0/image/0/image", "expected plain HDF5, found MINC, which scales values"),
        ("a.ims", "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data", "found Imaris, which pads its arrays"),
        ("a.h5", "ITKImage/0/VoxelData", "found an image of ITK: SimpleITK.WriteImage("),
        ("a.h5", "VTKHDF/PointData/rho", "found VTKHDF, which has spacing and origin of its own"),
        ("run_0010", "VTKHDF/CellData/rho", "a name that ends in .vtkhdf"),
        ("plt_cnt_0010", "refine level", "found FLASH, whose arrays are blocks of an adaptive mesh: with ds = yt.load"),
        ("a.athdf", "LogicalLocations", "found Athena++, whose arrays are blocks of an adaptive mesh: with ds"),
        ("can.e", "eb_prop1", "found Exodus, of a mesh that is no regular grid: open it in ParaView"),
        ("wing.cgns", "Base/Zone/GridCoordinates/CoordinateX/ data", "found CGNS, whose grids have positions"),
        ("history.nc", "latCell", "found MPAS, whose cells lie on no regular grid: uxarray's remap"),
        ("snap_010.hdf5", "PartType1/Coordinates", "found particles, as of Gadget, on no grid: yt's arbitrary_grid"),
    ],
)
def test_other_formats_in_hdf5_are_known_by_their_groups(tmp_path, name, array, said):
    with h5py.File(tmp_path / name, "w") as file:
        file[array] = slanted(SHAPE)
        file["own/rho"] = slanted(SHAPE)
    assert said in refusal(str(tmp_path / name)) and said in refusal(str(tmp_path / name), f"/{array}")
    if name in ("a.h5", "snap_010.hdf5"):
        assert read_volume(str(tmp_path / name), array="own/rho").array.shape == SHAPE[::-1]


@pytest.mark.parametrize("array", ["PartTypes", "PartType0", "refine levels", "LogicalLocationsOfBlocks"])
def test_names_like_those_of_other_formats_are_plain(path, array):
    with h5py.File(path, "w") as file:
        file[array] = slanted(SHAPE)
    assert read_volume(path).geometry.name == array


def test_records_have_a_way_out(path):
    """As MATLAB has complex numbers. Beside numbers, they are not meant."""
    with h5py.File(path, "w") as file:
        file["k"] = np.zeros(SHAPE, [("real", "f4"), ("imag", "f4")])
    way_out = "np.save('field.npy', h5py.File(...)['/k']['real'].T) saves one field as a volume"
    said = refusal(path)
    assert "k: expected numbers, found records of real, imag: " in said and way_out in said
    with h5py.File(path, "a") as file:
        file["a"] = slanted(SHAPE)
    assert read_volume(path).geometry.name == "a"
    assert way_out in refusal(path, "k")


def test_scales_of_hdf_eos_are_told(path, capsys):
    with h5py.File(path, "w") as file:
        for name, scale in (("a", [0.01]), ("b", [1.0])):
            file[name] = slanted(SHAPE)
            file[name].attrs["ScaleFactor"], file[name].attrs["Offset"] = scale, [0.0]
    np.testing.assert_array_equal(whole(read_volume(path, array="a").array), slanted(SHAPE).T)
    assert (
        "a: its ScaleFactor and Offset, as of HDF-EOS, are not applied: the values are as they are stored"
        in capsys.readouterr().err
    )
    with h5py.File(path, "a") as file:
        file["a"].attrs["scale_factor"] = 0.01
    read_volume(path, array="a")
    read_volume(path, array="b")
    assert capsys.readouterr().err == ""


# --- files from strangers ---------------------------------------------------------------------------


def test_no_other_file_is_read(path, tmp_path):
    """Neither by a link, nor by a virtual data set, nor by a list of files that hold the values."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["v"] = slanted(SHAPE)
    (tmp_path / "secret.bin").write_bytes(slanted(SHAPE).tobytes())
    with h5py.File(path, "w") as file:
        file["link"] = h5py.ExternalLink(str(secret), "v")
        file["soft"] = h5py.SoftLink("/link")
        layout = h5py.VirtualLayout(SHAPE, "f4")
        layout[:] = h5py.VirtualSource(str(secret), "v", SHAPE)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("far", SHAPE, "f4", external=[(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)])
        file["own"] = slanted(SHAPE)
        with h5py.File(path[:-3] + "2.h5", "w") as second:
            second["link"] = h5py.ExternalLink(str(secret), "v")
    assert "holds no array 'link'" in refusal(path, "link") and "holds no array 'soft'" in refusal(path, "soft")
    assert "made of the data of other files" in refusal(path, "virtual")
    assert "its data are in another file" in refusal(path, "far")
    assert read_volume(path, array="own").array.shape == SHAPE[::-1]
    with pytest.raises(VolumeError, match="arrays of numbers, found none"):
        read_volume(path[:-3] + "2.h5")


def test_no_plugin_is_run(path):
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(SHAPE)
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(SHAPE)
        h5py.h5d.create(file.id, b"v", h5py.h5t.NATIVE_FLOAT, space, properties)
        file["v"][...] = 1.0
    assert "its filter 32015" in refusal(path) and "h5repack -f GZIP=4" in refusal(path)


def test_values_that_are_not_there(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("v", (1 << 13,) * 3, "f4", chunks=(256,) * 3)
        file.create_dataset("part", (1 << 13,) * 3, "f4", chunks=(16,) * 3)[:16, :16, :16] = 1.0
    assert "v: expected 549755813888 values, found none: it was never written" in refusal(path, "v")
    assert "bytes are too few for" in refusal(path, "part")


def test_groups_one_in_another(path):
    """HDF5 names every group in full: time grows by the third power of the depth."""
    for n, is_read in ((90, True), (2000, False)):
        with h5py.File(path, "w") as file:
            group = file
            for _ in range(n):
                group = group.create_group("a")
            group["v"] = slanted(SHAPE)
        if is_read:
            assert read_volume(path).array.shape == SHAPE[::-1]
        else:
            assert "expected at most 100 groups one in another" in refusal(path)


def test_a_damaged_chunk(path):
    with h5py.File(path, "w") as file:
        values = file.create_dataset("v", data=slanted(SHAPE), chunks=(5, 3, 5), compression="gzip")
        chunk = values.id.get_chunk_info(1)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    assert "a part of its values cannot be read" in refusal(path)


@pytest.mark.parametrize("name", ["a.h5", "a.mat", "a.nc"])
def test_not_hdf5(tmp_path, name):
    (tmp_path / name).write_bytes(b"no HDF5" * 40)
    assert "h5py cannot read it" in refusal(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"MATLAB 5.0 MAT-file" * 40)
    assert "save -v7.3" in refusal(str(tmp_path / name))


def test_complex_numbers_are_named(path):
    """They are passed over where there are other arrays."""
    said, both = "wave: expected integers or floats, found dtype complex64: NumPy's abs(array)", path[:-3] + "2.h5"
    for name, arrays in ((path, {"wave": 1j}), (both, {"wave": 1j, "magnitude": 1})):
        with h5py.File(name, "w") as file:
            file["text"] = "no number"
            for key, factor in arrays.items():
                file[key] = factor * slanted(SHAPE)
        assert said in refusal(name, "wave")
    assert said in refusal(path)
    assert read_volume(both).geometry.name == "magnitude"
    assert "wave (7, 6, 5; complex64)" in refusal(both, "phase")
