"""A pattern of files is one volume over time."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from helpers.volumes import TURNED, slanted, whole
from helpers.vtk import vtk_write

import formats
from cli import console
from formats.common import VolumeError
from formats.hdf5 import write_hdf5
from formats.reading import read_volume
from formats.series import files_of, is_pattern, read_files, steps_of
from formats.writing import write_volume
from utils import IDENTITY, Geometry, Volume, boxes, read_in_boxes, value_limits

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)


def write_steps(folder, n, times=None, **keywords):
    """step_0.vti, step_1.vti, ...; step t holds 100 t + slanted."""
    for t in range(n):
        time = None if times is None else times[t]
        vtk_write(folder / f"step_{t}.vti", 100 * t + slanted(SHAPE), time=time, **keywords)
    return str(folder / "step_*.vti")


def test_natural_order(tmp_path):
    names = ["step_2.vti", "step_10.vti", "step_1.vti", "step_010b.vti", "other.vti", "step_x.vti"]
    for name in names:
        (tmp_path / name).touch()
    found = [path.rsplit("/", 1)[1] for path in files_of(str(tmp_path / "step_*.vti"))]
    assert found == ["step_1.vti", "step_2.vti", "step_10.vti", "step_010b.vti", "step_x.vti"]


@pytest.mark.parametrize(
    "names",
    [
        "t_0 t_0.25 t_0.5 t_0.75 t_1 t_1.25 t_10",
        "t_0.000 t_0.0625 t_0.125 t_.25 t_1.5",
        "neg_-3 neg_-2.5 neg_-2 neg_-1 neg_0 neg_1 neg_10",
        "x=-1.50 x=-0.50 x=+0.00 x=+0.50",
        "-2 -1 0 1",
        "e_-1e+02 e_-1e-05 e_0 e_1e-05 e_0.001 e_2.5E-03 e_1 e_1e+16 e_1e+100",
        "re_5e2 re_1e3 re_2e3 re_1e4",
        "t1e-05 t0.001",
        "s1e2 s1e10 s2e1",  # episodes
        "step-01 step-2 step-03 step-10",
        "v1.2.3 v1.2.10 v1.10.0 v2",
        "a_v1.2 a_v1.9 a_v1.10",
        "a-1.9.0 a-1.10.0",
        "run_2023-12-31 run_2024-01-05 run_2024-1-10 run_2024-02-01",
        "run_2024.01.05 run_2024.1.10 run_2024.02.01",
        "step_1.5d step_2.5d step_10.5d",
        "t_20240105123456789012 t_20240105123456789013",
        "a1e9999 a1e10000 a1e-9999",
        "m_2020.1 m_2020.2 m_2020.9 m_2020.10 m_2020.11 m_2021.1",
        "m.2020.2 m.2020.3 m.2020.9 m.2020.10 m.2020.12 m.2021.3",
        "t_2020.125 t_2020.25 t_2020.5",
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".nii.gz", ".h5"])
def test_numbers_in_names_put_files_in_order(tmp_path, names, suffix):
    for name in names.split():
        (tmp_path / f"{name}{suffix}").touch()
    found = [path.rsplit("/", 1)[1].removesuffix(suffix) for path in files_of(str(tmp_path / "*"))]
    assert found == names.split()


def test_a_suffix_is_no_decimal_part_but_a_folder_has_none(tmp_path):
    for name in ("run1.9", "run1.10", "run1.100"):
        (tmp_path / name).touch()
    for name in ("t_0.25", "t_0.5", "t_1.zarr", "t_1.5.zarr"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "a_1.npy").touch()
    found = [path.rsplit("/", 1)[1] for path in files_of(str(tmp_path / "run*"))]
    assert found == ["run1.9", "run1.10", "run1.100"]
    expected = [str(tmp_path / "folders" / name) for name in ("t_0.25", "t_0.5", "t_1.zarr", "t_1.5.zarr")]
    assert files_of(str(tmp_path / "folders" / "t_*")) == expected
    assert files_of(str(tmp_path / "folders" / "*" / "*.npy")) == [f"{folder}/a_1.npy" for folder in expected]


def test_a_file_of_that_very_name_is_no_pattern(tmp_path):
    path = tmp_path / "a[1].npy"
    np.save(path, slanted(SHAPE))
    (tmp_path / "a1.npy").touch()
    assert not is_pattern(str(path)) and files_of(str(path)) == [str(path)]
    np.testing.assert_array_equal(read_volume(str(path)).array, slanted(SHAPE))
    assert files_of("plain.npy") == ["plain.npy"]
    assert files_of(str(tmp_path / "a?.npy")) == [str(tmp_path / "a1.npy")]


def test_steps_of_vti(tmp_path):
    pattern = write_steps(tmp_path, 3, spacing=(0.5, 1, 2), origin=(7, 8, 9))
    volume = read_volume(pattern)
    expected = np.stack([100 * t + slanted(SHAPE) for t in range(3)])
    np.testing.assert_array_equal(whole(volume.array), expected)
    assert volume.array.dtype == np.float32 and volume.geometry.name == "density" and volume.time is None
    assert volume.geometry.spacing == (1.0, 0.5, 1.0, 2.0) and volume.geometry.origin == (0.0, 7.0, 8.0, 9.0)
    np.testing.assert_array_equal(whole(read_volume(pattern, 4, 1).array), expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_steps_of_mapped_files_stay_maps(tmp_path, order):
    array = np.random.default_rng(0).random((3, *SHAPE, 2))
    for t in range(3):
        np.save(tmp_path / f"v{t}.npy", np.asarray(array[t], order=order))
    series = read_volume(str(tmp_path / "v*.npy"), 4, 2).array
    assert (series.shape, series.ndim, series.size, series.dtype) == (array.shape, 5, array.size, array.dtype)
    assert all(isinstance(series[t], np.memmap) for t in range(3))
    np.testing.assert_array_equal(series[2], array[2])
    np.testing.assert_array_equal(series[..., 1:][1:3, :2, 1:, :], array[1:3, :2, 1:, :, 1:])
    found = list(read_in_boxes(series, boxes(series, 8)))
    order = (0, 1, 2, 3) if order == "C" else (0, 3, 2, 1)
    joined = np.concatenate([part.transpose(*order, 4).ravel() for _, part in found])
    np.testing.assert_array_equal(joined, array.transpose(*order, 4).ravel())  # in the order of the files
    assert max(part.size for _, part in found) <= 8
    np.testing.assert_array_equal(value_limits(series), value_limits(array))
    with pytest.raises(VolumeError, match=r"v0\.npy: expected 3 axes and 3 components"):
        read_volume(str(tmp_path / "v*.npy"), None, 3)


def test_more_files_than_a_process_may_open(tmp_path):
    resource = pytest.importorskip("resource")
    for t in range(100):
        np.save(tmp_path / f"v{t}.npy", np.full(SHAPE, t, np.uint8))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (90, before[1]))
        series = read_volume(str(tmp_path / "v*.npy")).array
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    np.testing.assert_array_equal(whole(series)[:, 0, 0, 0], np.arange(100))


def several(pattern):
    return str(pattern), steps_of(str(pattern))


def test_what_several_files_warn_of_is_told_once(tmp_path, capsys):
    def read(path: str) -> Volume:
        console.warn(path, "has no units")
        if path.endswith("3"):
            console.warn(path, "is odd")
            raise VolumeError("no volume")
        return Volume(slanted((3, 4, 5)), Geometry.plain(3))

    for k in range(4):
        (tmp_path / f"s{k}").touch()
    with pytest.raises(VolumeError, match="no volume"):
        read_files(*several(tmp_path / "s?"), read, None)
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{tmp_path / 's0'}: warning: has no units (3 more files likewise)"
    assert second == f"{tmp_path / 's3'}: warning: is odd"


def test_one_step_is_a_series(tmp_path):
    assert read_volume(write_steps(tmp_path, 1, [2.5])).array.shape == (1, *SHAPE)
    assert read_volume(str(tmp_path / "step_*.vti")).geometry.origin[0] == 2.5


@pytest.mark.parametrize(
    ("times", "spacing", "origin"),
    [
        ([0.5, 0.75, 1.0], 0.25, 0.5),
        ([0.0, 0.1, 0.2000001], 0.10000005, 0.0),
        ([None, None, None], 1.0, 0.0),
    ],
)
def test_times_that_the_files_say(tmp_path, capsys, times, spacing, origin):
    volume = read_volume(write_steps(tmp_path, 3, times))
    assert volume.geometry.spacing[0] == pytest.approx(spacing, rel=1e-12) and volume.geometry.origin[0] == origin
    assert not capsys.readouterr().err


@pytest.mark.parametrize("times", [[0.0, 0.1, 0.3], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, np.nan, 2.0]])
def test_times_that_are_not_in_equal_steps_are_replaced(tmp_path, capsys, times):
    """Times that repeat do not put the files in another order."""
    volume = read_volume(write_steps(tmp_path, 3, times))
    np.testing.assert_array_equal(whole(volume.array), np.stack([100 * t + slanted(SHAPE) for t in range(3)]))
    assert volume.geometry.spacing[0] == 1.0 and volume.geometry.origin[0] == 0.0
    assert "not in equal steps" in capsys.readouterr().err


def test_files_go_in_the_order_of_their_times(tmp_path, capsys):
    volume = read_volume(write_steps(tmp_path, 4, [1.0, 0.5, 2.0, 1.5]))
    expected = np.stack([100 * t + slanted(SHAPE) for t in (1, 0, 3, 2)])
    np.testing.assert_array_equal(whole(volume.array), expected)
    assert volume.geometry.spacing[0] == 0.5 and volume.geometry.origin[0] == 0.5
    assert not capsys.readouterr().err
    volume = read_volume(write_steps(tmp_path, 4, [1.0, 0.5, 2.0, 7.0]))
    np.testing.assert_array_equal(whole(volume.array), expected[[0, 1, 3, 2]])
    assert volume.geometry.spacing[0] == 1.0 and "not in equal steps" in capsys.readouterr().err


def test_times_of_some_files_only_are_told(tmp_path, capsys):
    volume = read_volume(write_steps(tmp_path, 3, [1.0, None, 0.0]))
    np.testing.assert_array_equal(whole(volume.array), np.stack([100 * t + slanted(SHAPE) for t in range(3)]))
    assert volume.geometry.spacing[0] == 1.0 and volume.geometry.origin[0] == 0.0
    said = capsys.readouterr().err
    assert "1 of its files say no time, as " in said and "step_1.vti: taken as 0, 1, 2" in said


@pytest.mark.parametrize(
    ("key", "array", "keywords"),
    [
        ("shape", slanted((4, 3, 3)), {}),
        ("shape", np.stack([slanted(SHAPE)] * 2, axis=-1), {}),
        ("dtype", slanted(SHAPE).astype(np.float64), {}),
        ("spacing", slanted(SHAPE), {"spacing": (1, 1, 1.5)}),
        ("origin", slanted(SHAPE), {"origin": (0, 1, 0)}),
        ("direction", slanted(SHAPE), {"direction": (0, 1, 0, -1, 0, 0, 0, 0, 1)}),
    ],
)
def test_files_that_differ_are_refused(tmp_path, key, array, keywords):
    pattern = write_steps(tmp_path, 3)
    vtk_write(tmp_path / "step_2.vti", array, **keywords)
    with pytest.raises(VolumeError, match=rf"step_2\.vti: expected {key} .*, as in .*step_0\.vti, found "):
        read_volume(pattern)


def with_fills(folder, fills, shape=SHAPE):
    """What `read_files` makes of files a0, a1, ... that give these fill values."""
    for k in range(len(fills)):
        (folder / f"a{k}").touch()

    def read(path):
        return Volume(slanted(shape), Geometry.plain(3), fills[int(path[-1])])

    return read_files(*several(folder / "a?"), read, None)


@pytest.mark.parametrize("shape", [SHAPE, (4, 3, 1)], ids=["steps", "slices"])
@pytest.mark.parametrize("fill", [np.float32(-999), np.float32(np.nan)])
@pytest.mark.parametrize("which", [(0, 1, 1), (1, 0, 0), (0, 0, 1), (1, 1, 1)])
def test_the_fill_value_of_some_files_counts_for_all(tmp_path, shape, fill, which):
    volume = with_fills(tmp_path, [fill if given else None for given in which], shape)
    np.testing.assert_equal(volume.fill, fill)
    assert volume.geometry.d_in == (4 if shape == SHAPE else 3)


@pytest.mark.parametrize(("a", "b"), [(-999.0, -9999.0), (np.nan, -9999.0), (-999.0, np.nan)])
def test_files_of_different_fill_values_are_refused(tmp_path, a, b):
    message = rf"a2: expected fill value {a}, as in .*a1, found {b}: train\.py --fill VALUE "
    with pytest.raises(VolumeError, match=message):
        with_fills(tmp_path, [None, np.float32(a), np.float32(b)])


def test_pattern_without_files(tmp_path):
    with pytest.raises(VolumeError, match="found none"):
        read_volume(str(tmp_path / "step_*.vti"))


@pytest.mark.parametrize("d_in", [1, 2, 3])
def test_a_pattern_has_four_axes(tmp_path, d_in):
    with pytest.raises(VolumeError, match=f"expected {d_in} axes, found several files: a time series, of 4 axes"):
        read_volume(write_steps(tmp_path, 2), d_in)


@pytest.mark.parametrize("d_in", [None, 2, 3, 4])
@pytest.mark.parametrize("components", [(), (3,)])
def test_images_are_slices_to_be_stacked(tmp_path, d_in, components):
    """Whatever --d_in is given. The advice makes the volume."""
    images = np.random.default_rng(0).random((11, 7, 6, *components))
    for k, image in enumerate(images):
        np.save(tmp_path / f"s_{k}.npy", image)
    d_out = 3 if components else None
    pattern = str(tmp_path / "s_*.npy")
    with pytest.raises(VolumeError, match="slices, which have to be stacked into one file first") as caught:
        read_volume(pattern, d_in, d_out)
    message = str(caught.value)
    assert "--d_in" not in message and "\n" not in message
    eval(message.partition("as by ")[2].partition(", then --d_out 3")[0], {"numpy": np, "formats": formats})
    np.testing.assert_array_equal(read_volume("stack.npy", None, d_out).array, np.stack(images, axis=2))


def test_slices_with_another_number_of_axes(tmp_path):
    for k in range(3):
        tifffile.imwrite(tmp_path / f"slice_{k}.tif", slanted((4, 5)), photometric="minisblack")
    with pytest.raises(VolumeError, match="expected 2 axes, found several files: the slices of a volume, of 3 axes"):
        read_volume(str(tmp_path / "slice_*.tif"), 2)


@pytest.mark.parametrize(("suffix", "way_out"), [(".nc", "xarray.open_mfdataset("), (".h5", "numpy.concatenate ")])
@pytest.mark.parametrize("d_in", [None, 4])
def test_files_of_several_steps_are_to_be_joined(tmp_path, suffix, way_out, d_in):
    for k in range(2):
        volume = Volume(slanted((3, *SHAPE)), Geometry.plain(3).with_time(1.0, 3.0 * k))
        write_hdf5(str(tmp_path / f"s_{k}{suffix}"), volume)
    with pytest.raises(VolumeError, match="a time series of 3 steps: a pattern is for files of one step") as caught:
        read_volume(str(tmp_path / f"s_*{suffix}"), d_in)
    assert f"join them into one file first, as by {way_out}" in str(caught.value)


def test_images_that_say_their_times_are_steps(tmp_path, capsys):
    """A map a day. With --d_in 3 they are slices, and have no time."""
    array = slanted((3, 5, 4, 1))
    for k, time in enumerate((12.0, 10.0, 11.0)):
        write_volume(str(tmp_path / f"day_{k}.vti"), Volume(array[k], Geometry.plain(3), time=time))
    found = read_volume(str(tmp_path / "day_*.vti"))
    np.testing.assert_array_equal(np.asarray(found.array), array[[1, 2, 0]])
    assert found.geometry.origin[0] == 10 and capsys.readouterr().err == ""
    stacked = read_volume(str(tmp_path / "day_*.vti"), 3)
    assert stacked.array.shape == (5, 4, 3) and stacked.time is None


def test_images_of_one_time_are_slices(tmp_path, capsys):
    """As ParaView writes those of a step."""
    for k in range(3):
        write_volume(str(tmp_path / f"slice_{k}.vti"), Volume(slanted((5, 4, 1)), Geometry.plain(3), time=2.5))
    stacked = read_volume(str(tmp_path / "slice_*.vti"))
    assert stacked.array.shape == (5, 4, 3) and stacked.time == 2.5 and capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".mha", ".vti", ".nii"])
@pytest.mark.parametrize("direction", [IDENTITY, TURNED])
def test_slices_that_lie_one_above_the_other(direction, suffix, tmp_path, capsys):
    """Their distance is the spacing; they come in the order of their places, whatever their names and times."""
    array, z = slanted((5, 4, 3)), np.reshape(direction, (3, 3))[:, 2]
    for k, name in enumerate("bca"):
        origin = tuple((np.array([1.0, 2.0, -3.0]) + 0.75 * k * z).tolist())
        geometry = Geometry((0.5, 0.25, 9.0), origin, direction, space="LPS")
        write_volume(str(tmp_path / f"s_{name}{suffix}"), Volume(array[:, :, k : k + 1], geometry, time=1.0 - k))
    found = read_volume(str(tmp_path / f"s_*{suffix}"))
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_allclose(found.geometry.spacing, (0.5, 0.25, 0.75), rtol=1e-5)
    np.testing.assert_allclose(found.geometry.origin, (1.0, 2.0, -3.0), atol=1e-5)
    np.testing.assert_allclose(found.geometry.direction, direction, atol=1e-5)
    assert capsys.readouterr().err == ""
    with pytest.raises(VolumeError, match="expected origin"):
        read_volume(str(tmp_path / f"s_*{suffix}"), 4)


def test_slices_at_uneven_distances_or_beside_each_other(tmp_path):
    def written(*origins: tuple[float, float, float]) -> str:
        for k, origin in enumerate(origins):
            volume = Volume(slanted((5, 4, 1)), Geometry((1.0,) * 3, origin))
            write_volume(str(tmp_path / f"s_{k}.vti"), volume)
        return str(tmp_path / "s_*.vti")

    with pytest.raises(VolumeError, match="equal distances along z, found 1 to 2"):
        read_volume(written((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 3.0)))
    with pytest.raises(VolumeError, match="expected origin"):
        read_volume(written((0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 2.0)))


def test_slices_of_a_volume_are_no_time_series(tmp_path):
    """Files of one voxel along z, as of a stack of TIFF; with --d_in 4 they are steps."""
    array = slanted((5, 4, 12))
    for z in range(12):
        tifffile.imwrite(tmp_path / f"slice_{z}.tif", array[:, :, z].T.copy(), photometric="minisblack")
    found = read_volume(str(tmp_path / "slice_*.tif"))
    np.testing.assert_array_equal(found.array, array)
    assert found.geometry.d_in == 3 and found.array.shape == (5, 4, 12)
    assert read_volume(str(tmp_path / "slice_*.tif"), 3).array.shape == (5, 4, 12)
    assert read_volume(str(tmp_path / "slice_*.tif"), 4).array.shape == (12, 5, 4, 1)
    assert read_volume(str(tmp_path / "slice_7*.tif")).geometry.d_in == 4  # one file is no stack


@pytest.mark.parametrize(
    ("origin", "spacing", "is_alike"),
    [
        ((7.0000001, 8, 9), (0.5, 1, 2.0000001), True),
        ((7.0004, 8, 9), (0.5, 1, 2), True),
        ((7.001, 8, 9), (0.5, 1, 2), False),
        ((7, 8, 9), (0.5002, 1, 2), False),  # which adds up
    ],
)
def test_places_of_steps_that_differ_by_rounding(tmp_path, origin, spacing, is_alike):
    """As those that are stored as float32 or as texts."""
    pattern = write_steps(tmp_path, 2, spacing=(0.5, 1, 2), origin=(7, 8, 9))
    vtk_write(tmp_path / "step_1.vti", slanted(SHAPE), spacing=spacing, origin=origin)
    if is_alike:
        assert read_volume(pattern).geometry.origin == (0.0, 7.0, 8.0, 9.0)
    else:
        with pytest.raises(VolumeError, match="have to be alike"):
            read_volume(pattern)
