"""VTK's grids as volumes: cells, rectilinear grids, and what VTK resamples to an image."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import compress, decompress, train
from helpers.volume_files import refusal
from helpers.volumes import TURNED, slanted
from helpers.vtk import vtk_image
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkRectilinearGrid
from vtkmodules.vtkCommonTransforms import vtkTransform
from vtkmodules.vtkFiltersCore import vtkAppendFilter, vtkResampleToImage, vtkThreshold
from vtkmodules.vtkFiltersGeneral import vtkImageDataToPointSet, vtkTransformFilter
from vtkmodules.vtkFiltersGeometry import vtkGeometryFilter
from vtkmodules.vtkIOHDF import vtkHDFWriter
from vtkmodules.vtkIOLegacy import vtkDataSetWriter
from vtkmodules.vtkIOXML import vtkXMLDataSetWriter

from formats.common import VolumeError
from formats.reading import read_volume
from formats.vtk_grids import volume_of_data_set
from utils import Volume

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE, SPACING, ORIGIN = (6, 5, 4), (0.5, 2.0, 3.0), (-1.0, 10.0, 0.25)
LIST = ("Resample To Image", "--resample NX,NY,NZ")


def write(path: Path, data: object) -> str:
    """The path of a file of this data set, in the format of its suffix."""
    writer = {".vtk": vtkDataSetWriter, ".vtkhdf": vtkHDFWriter}.get(path.suffix, vtkXMLDataSetWriter)()
    writer.SetFileName(str(path))
    writer.SetInputData(data)
    assert writer.Write()
    return str(path)


def add_cells(data: object, values: np.ndarray, name: str = "c") -> object:
    """The data set with an array on its cells."""
    array = numpy_to_vtk(values.ravel(order="F"), deep=True)
    array.SetName(name)
    data.GetCellData().AddArray(array)
    data.GetCellData().SetActiveScalars(name)
    return data


def image_of_cells(shape: tuple[int, ...] = SHAPE, **place) -> object:
    """An image of so many cells, an array on these and none on the points."""
    image = vtk_image(np.zeros([n + 1 for n in shape]), SPACING, ORIGIN, **place)
    image.GetPointData().Initialize()
    return add_cells(image, slanted(shape))


def linear(points: np.ndarray) -> np.ndarray:
    return points @ (3.0, -2.0, 1.0) + 5.0


def image_of_points(dtype: object = np.float32) -> object:
    """An image whose values are linear in space."""
    index = np.stack(np.meshgrid(*map(range, SHAPE), indexing="ij"), -1)
    return vtk_image(linear(index * SPACING + ORIGIN).astype(dtype), SPACING, ORIGIN, "p")


def output(algorithm: object, data: object) -> object:
    algorithm.SetInputDataObject(data)
    algorithm.Update()
    return algorithm.GetOutputDataObject(0)


def unstructured(dtype: object = np.float32) -> object:
    return output(vtkAppendFilter(), image_of_points(dtype))


def structured() -> object:
    """Cells that stand askew."""
    askew = vtkTransform()
    askew.RotateZ(30)
    bent = vtkTransformFilter()
    bent.SetTransform(askew)
    grid = output(bent, output(vtkImageDataToPointSet(), image_of_points()))
    values = vtk_to_numpy(grid.GetPointData().GetScalars())
    values[:] = linear(vtk_to_numpy(grid.GetPoints().GetData()))
    return grid


def rectilinear(*axes: np.ndarray) -> object:
    grid = vtkRectilinearGrid()
    grid.SetDimensions([len(axis) for axis in axes])
    for axis, values in zip("XYZ", axes, strict=True):
        getattr(grid, f"Set{axis}Coordinates")(numpy_to_vtk(values, deep=True))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = numpy_to_vtk(linear(points).ravel(order="F").astype(np.float32), deep=True)
    values.SetName("p")
    grid.GetPointData().SetScalars(values)
    return grid


def places(volume: Volume) -> np.ndarray:
    """Where the voxels of a volume lie, (x, y, z, 3)."""
    steps = np.reshape(volume.geometry.direction, (3, 3)) * volume.geometry.spacing
    index = np.stack(np.meshgrid(*map(range, volume.array.shape[:3]), indexing="ij"), -1)
    return index @ steps.T + volume.geometry.origin


# --- cells of an image ------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "direction"), [(".vti", None), (".vti", TURNED), (".vtk", None), (".vtkhdf", None)])
@pytest.mark.parametrize("extent", [None, (2, 8, -1, 4, 10, 14)])
def test_a_cell_is_a_voxel_at_its_middle(suffix, direction, extent, tmp_path):
    """By VTK's own corners of each cell."""
    if extent and suffix == ".vtkhdf":
        pytest.skip("VTK's writer does not write it")
    image = image_of_cells(direction=direction, extent=extent)
    volume = read_volume(write(tmp_path / f"a{suffix}", image))
    assert volume.array.shape == SHAPE and volume.geometry.spacing == SPACING and volume.geometry.name == "c"
    np.testing.assert_array_equal(volume.array, slanted(SHAPE))
    found = places(volume)
    for number, index in enumerate(np.ndindex(SHAPE[::-1])):
        corners = image.GetCell(number).GetPoints()
        middle = np.mean([corners.GetPoint(i) for i in range(corners.GetNumberOfPoints())], axis=0)
        np.testing.assert_allclose(found[index[::-1]], middle, atol=1e-12)


def test_cells_of_a_flat_image(tmp_path):
    """Its third axis has one point, and the cells lie there."""
    image = vtk_image(np.zeros((7, 6, 1)), SPACING, ORIGIN)
    image.GetPointData().Initialize()
    volume = read_volume(write(tmp_path / "a.vti", add_cells(image, slanted((6, 5, 1)))))
    np.testing.assert_array_equal(volume.array, slanted((6, 5, 1)))
    assert volume.geometry.origin == (ORIGIN[0] + 0.25, ORIGIN[1] + 1.0, ORIGIN[2])


def test_arrays_on_points_go_before_those_on_cells(tmp_path):
    path = write(tmp_path / "a.vti", add_cells(image_of_points(), slanted([n - 1 for n in SHAPE])))
    assert read_volume(path).geometry.name == "p" and read_volume(path).array.shape == SHAPE
    cells = read_volume(path, array="c")
    np.testing.assert_array_equal(cells.array, slanted([n - 1 for n in SHAPE]))
    assert cells.geometry.origin == tuple(np.add(ORIGIN, np.divide(SPACING, 2)))
    said = refusal(path, array="q")
    assert "holds no array 'q'" in said and "'p'" in said and "'c'" in said


@pytest.mark.parametrize("name", [None, ""])
def test_an_array_without_a_name_is_told_as_such(name, capsys):
    image = add_cells(image_of_points(), slanted([n - 1 for n in SHAPE]))
    image.GetPointData().GetArray(0).SetName(name)
    assert volume_of_data_set("a.vtk", image).geometry.name == "sf"
    assert "its array (unnamed) is read, not 'c': --array" in capsys.readouterr().err
    with pytest.raises(VolumeError, match=r"holds no array 'q', only \(unnamed\), 'c'"):
        volume_of_data_set("a.vtk", image, "q")


def test_an_array_on_points_and_on_cells_is_told(tmp_path, capfd):
    image = add_cells(image_of_points(), slanted([n - 1 for n in SHAPE]))
    path = write(tmp_path / "a.vti", image)
    assert read_volume(path).array.shape == SHAPE
    told = capfd.readouterr().err
    assert "on cells" not in told and "its array 'p' is read, not 'c'" in told
    image.GetCellData().GetArray(0).SetName("p")
    path = write(tmp_path / "a.vti", image)
    assert read_volume(path).array.shape == SHAPE
    told = capfd.readouterr().err
    assert "p is on points and on cells: that on points is read" in told and "its array 'p' is read" not in told


# --- rectilinear grids ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".vtr", ".vtk"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_a_rectilinear_grid_of_equal_steps(suffix, dtype, tmp_path):
    """float32 does not hold a step of 0.1: a step may be off by what the type rounds."""
    step = 2 if dtype is np.int32 else 0.1
    axes = (np.arange(50) * step + 1000).astype(dtype), np.arange(4).astype(dtype), np.array([7]).astype(dtype)
    volume = read_volume(write(tmp_path / f"a{suffix}", rectilinear(*axes)))
    assert volume.geometry.spacing == pytest.approx((step, 1.0, 1.0), rel=1e-4) and volume.array.shape == (50, 4, 1)
    assert volume.geometry.origin == (1000.0, 0.0, 7.0)
    np.testing.assert_allclose(linear(places(volume)), volume.array, rtol=1e-5)


def test_cells_of_a_rectilinear_grid(tmp_path):
    grid = rectilinear(*(np.arange(n + 1.0) * s + o for n, s, o in zip(SHAPE, SPACING, ORIGIN, strict=True)))
    volume = read_volume(write(tmp_path / "a.vtr", add_cells(grid, slanted(SHAPE))), array="c")
    np.testing.assert_array_equal(volume.array, slanted(SHAPE))
    assert volume.geometry.spacing == SPACING
    assert volume.geometry.origin == tuple(np.add(ORIGIN, np.divide(SPACING, 2)))


@pytest.mark.parametrize("y", [[0.0, 1.0, 2.01], [0.0, 0.0, 0.0], [2.0, 1.0, 1.5]])
def test_a_rectilinear_grid_of_other_steps(y, tmp_path):
    path = write(tmp_path / "a.vtr", rectilinear(np.arange(3.0), np.array(y), np.arange(3.0)))
    said = refusal(path)
    assert "along y" in said and all(way in said for way in LIST)


@pytest.mark.parametrize("suffix", [".vti", ".vtr"])
def test_a_negative_step_turns_its_axis_round(suffix, tmp_path):
    """Of points and of cells."""
    axes = np.arange(6.0) * 0.5 - 1, 10 - 2 * np.arange(5.0), np.arange(4.0) * 3
    grid = rectilinear(*axes)
    if suffix == ".vti":
        grid = vtk_image(linear(np.stack(np.meshgrid(*axes, indexing="ij"), -1)), (0.5, -2.0, 3.0), (-1, 10, 0), "p")
    middles = np.stack(np.meshgrid(*[(axis[1:] + axis[:-1]) / 2 for axis in axes], indexing="ij"), -1)
    path = write(tmp_path / f"a{suffix}", add_cells(grid, linear(middles)))
    for name in "pc":
        volume = read_volume(path, array=name)
        assert volume.geometry.spacing == (0.5, 2.0, 3.0)
        np.testing.assert_allclose(linear(places(volume)), volume.array, rtol=1e-5)


def test_a_flat_image_without_a_spacing(tmp_path):
    path = write(tmp_path / "a.vti", vtk_image(slanted((4, 3, 1)), (0.5, 2.0, 0.0)))
    assert read_volume(path).geometry.spacing == (0.5, 2.0, 1.0)
    assert "expected a positive spacing" in refusal(write(tmp_path / "b.vti", vtk_image(slanted((4, 3, 2)), (1, 1, 0))))


# --- the other grids --------------------------------------------------------------------------------

GRIDS = [
    (".vtu", unstructured),
    (".vtk", unstructured),
    (".vtkhdf", unstructured),
    (".vts", structured),
    (".vtk", structured),
    (".vtp", lambda: output(vtkGeometryFilter(), image_of_points())),
    (".vtr", lambda: rectilinear(np.array([0.0, 1.0, 4.0]), np.arange(3.0), np.arange(3.0))),
]


@pytest.mark.parametrize(("suffix", "make"), GRIDS)
def test_a_grid_that_is_no_image(suffix, make, tmp_path):
    """Refused with what to do; with --resample VTK's own filter makes an image, NaN outside of the grid."""
    path = write(tmp_path / f"a{suffix}", make())
    said = refusal(path)
    assert path in said and all(way in said for way in LIST)
    counts = (7, 9, 5)
    volume = read_volume(path, resample=counts, fill=np.nan)
    assert volume.array.shape == counts and volume.geometry.name == "p"
    is_inside = ~np.isnan(volume.array)
    assert is_inside.sum() >= 50
    np.testing.assert_allclose(volume.array[is_inside], linear(places(volume))[is_inside], atol=1e-3)
    if not is_inside.all():
        assert "--fill nan" in refusal(path, resample=counts)
    else:
        np.testing.assert_array_equal(read_volume(path, resample=counts).array, volume.array)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("suffix", "make"), GRIDS)
def test_damaged_grids(suffix, make, share, tmp_path):
    """Cut short, refused; with bytes of the header changed, refused or read: never another exception."""
    path = Path(write(tmp_path / f"a{suffix}", make()))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refusal(str(path), resample=(4, 4, 4), fill=np.nan)
    rng = np.random.default_rng(int(100 * share))
    for _ in range(3):
        changed = bytearray(content)
        at = int(rng.integers(min(len(content), 900)))
        changed[at : at + 4] = [b"9999", b"\xff\xff\xff\x7f", b"\0\0\0\0", rng.bytes(3)][int(rng.integers(4))]
        path.write_bytes(changed)
        with contextlib.suppress(VolumeError):
            assert not np.isinf(read_volume(str(path), resample=(4, 4, 4), fill=np.nan).array).any()


@pytest.mark.parametrize("suffix", [".vtu", ".vtk"])
@pytest.mark.parametrize("what", ["points", "cells"])
def test_points_and_cells_that_are_not_there(suffix, what, tmp_path):
    """Refused before anything is allocated for them."""
    grid = unstructured()
    n = grid.GetNumberOfPoints() if what == "points" else grid.GetNumberOfCells()
    path = Path(write(tmp_path / f"a{suffix}", grid))
    key = f'NumberOf{what.title()}="' if suffix == ".vtu" else f"{what.upper()} "
    old = f"{key}{n if suffix == '.vtu' or what == 'points' else n + 1}".encode()
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, f"{key}2000000000".encode()))
    assert "points and cells, found" in refusal(str(path), resample=(4, 4, 4))


@pytest.mark.parametrize(("dtype", "expected"), [(np.uint8, np.float32), (np.int32, np.float64)])
def test_voxels_outside_a_grid_are_missing(dtype, expected, tmp_path):
    """Also of integers, which become floats; also in a .vti that ParaView's filter has made."""
    half = vtkThreshold()
    half.SetThresholdFunction(half.THRESHOLD_UPPER)
    half.SetUpperThreshold(22)
    half.SetInputArrayToProcess(0, 0, 0, 1, "c")
    cells = slanted([n - 1 for n in SHAPE])
    grid = output(half, add_cells(vtk_image(slanted(SHAPE).astype(dtype), SPACING, ORIGIN, "p"), cells))
    assert 0 < grid.GetNumberOfCells() < cells.size
    resampled = vtkResampleToImage()
    resampled.SetSamplingDimensions(SHAPE)
    volumes = [
        read_volume(write(tmp_path / "a.vtu", grid), resample=SHAPE, fill=np.nan),
        read_volume(write(tmp_path / "a.vti", output(resampled, grid)), fill=np.nan),
    ]
    for volume in volumes:
        assert volume.array.dtype == expected and 0 < np.isnan(volume.array).sum() < volume.array.size
        assert np.nanmin(volume.array) > 0  # VTK gives 0 to points outside
    np.testing.assert_array_equal(*(volume.array for volume in volumes))


@pytest.mark.parametrize("suffix", [".vti", ".vtr", ".vtk", ".vtkhdf"])
@pytest.mark.parametrize(("is_on_cells", "hidden"), [(False, 2), (True, 32)])
def test_hidden_voxels_are_missing(tmp_path, suffix, is_on_cells, hidden):
    """As ParaView hides them. Copies for neighbouring processes are values."""
    axes = [np.arange(n, dtype=float) for n in SHAPE]
    data = rectilinear(*axes) if suffix == ".vtr" else vtk_image(slanted(SHAPE), SPACING, ORIGIN, "p")
    shape = tuple(n - is_on_cells for n in SHAPE)
    if is_on_cells:
        add_cells(data, slanted(shape))
        data.GetPointData().RemoveArray("p")
    marks = np.zeros(shape, np.uint8)
    marks[1, 2, 0], marks[0, 0, 2], marks[3, 1, 1] = hidden, hidden | 1, 1
    ghosts = numpy_to_vtk(marks.ravel(order="F"), deep=True)
    ghosts.SetName("vtkGhostType")
    (data.GetCellData() if is_on_cells else data.GetPointData()).AddArray(ghosts)
    path = write(tmp_path / f"a{suffix}", data)
    assert "--fill nan" in refusal(path)
    array = read_volume(path, fill=np.nan).array
    assert np.argwhere(np.isnan(array)).tolist() == [[0, 0, 2], [1, 2, 0]]


def test_what_cannot_be_resampled(tmp_path):
    flat = output(vtkAppendFilter(), vtk_image(slanted((5, 4, 1)), SPACING, (1, 2, 0), "p"))
    path = write(tmp_path / "flat.vtu", flat)
    assert "flat along z" in refusal(path, resample=(5, 4, 2))
    volume = read_volume(path, 2, resample=(5, 4))
    np.testing.assert_allclose(volume.array, slanted((5, 4)), atol=1e-3)
    points = output(vtkGeometryFilter(), image_of_points())
    points.SetPolys(None), points.SetVerts(None)
    assert "found none of (4, 4, 4)" in refusal(write(tmp_path / "cloud.vtp", points), resample=(4, 4, 4))
    assert "leave --resample out" in refusal(write(tmp_path / "a.vti", image_of_points()), resample=(4, 4, 4))
    np.save(tmp_path / "a.npy", slanted(SHAPE))
    assert "--resample is for .vti .vtr" in refusal(str(tmp_path / "a.npy"), resample=(4, 4, 4))


@pytest.mark.parametrize(("suffix", "way"), [(".pvti", "save the result as .vti"), (".vtm", "Resample To Image")])
def test_files_that_name_other_files(suffix, way, tmp_path):
    (tmp_path / f"a{suffix}").write_text("<VTKFile>")
    assert way in refusal(str(tmp_path / f"a{suffix}"))


def test_a_vtkhdf_of_several_times(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write(tmp_path / "a.vtkhdf", image_of_points())
    with h5py.File(path, "a") as file:
        steps = file["VTKHDF"].create_group("Steps")
        steps.attrs["NSteps"] = 2
        steps["Values"] = [0.0, 1.0]
    said = refusal(path)
    assert "expected one time step, found 2" in said and "by a pattern" in said


def test_other_hdf5_under_the_suffix_of_vtkhdf_has_a_way_out(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf", "w") as file:
        file["rho"] = np.zeros((4, 3, 2))
    assert "not VTKHDF: other HDF5 is read under a name that ends in .h5, HDF4 after h4toh5" in refusal(
        str(tmp_path / "a.hdf")
    )


def test_the_scripts_resample(tmp_path, capsys):
    """train.py by --resample, and the next command too; what comes back is compared with the image."""
    path = write(tmp_path / "a.vtu", unstructured())
    trained = train(path, tmp_path, "--n_passes", 1, "--resample", "9,8,7")
    assert "--resample 9,8,7" in capsys.readouterr().out
    compress(trained, tmp_path / "blob", "--volume", path, "--resample", "9,8,7", "--n_passes", 0)
    decompress(tmp_path / "blob", tmp_path / "b.vti", "--volume", path, "--resample", "9,8,7")
    assert read_volume(str(tmp_path / "b.vti")).array.shape == (9, 8, 7)
