"""Images of VTK's own formats: pieces, several arrays, place."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.volume_files import refusal, vti_of_pieces
from helpers.volumes import TURNED, slanted
from helpers.vtk import vtk_image, vtk_read, vtk_write
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkIOHDF import vtkHDFWriter
from vtkmodules.vtkIOLegacy import vtkStructuredPointsWriter
from vtkmodules.vtkIOXML import vtkXMLImageDataWriter

from formats.reading import read_volume
from formats.vtk_images import _is_covered
from utils import IDENTITY

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)


def test_these_tests_place_voxels_as_vtk_does(tmp_path):
    """By VTK's own indices, voxel by voxel: what helpers.vtk writes and reads."""
    array = np.random.default_rng(0).random((*SHAPE, 2))
    image = vtk_image(array, extent=(2, 5, -1, 1, 10, 11))
    vtk_write(tmp_path / "a.vti", array)
    found = vtk_read(tmp_path / "a.vti")
    for x, y, z, c in np.ndindex(array.shape):
        assert image.GetScalarComponentAsDouble(x + 2, y - 1, z + 10, c) == array[x, y, z, c]
        assert found.reader.GetOutput().GetScalarComponentAsDouble(x, y, z, c) == found.array[x, y, z, c]
    np.testing.assert_array_equal(found.array, array)


@pytest.mark.parametrize(
    ("kind", "pieces", "is_whole"),
    [
        ("PointData", ["0 1 0 1 0 1"], False),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 9 5 9"], True),
        ("PointData", ["0 9 0 9 0 5", "0 9 0 9 5 9"], True),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 9 6 9"], False),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 4 4 9", "0 5 4 9 4 9"], False),
        ("PointData", ["0 9 0 9 0 4", "0 9 0 4 4 9", "0 5 4 9 4 9", "5 9 4 9 4 9"], True),
        ("CellData", ["0 10 0 10 0 4", "0 10 0 10 5 10"], False),  # all points, and not all cells
        ("CellData", ["0 10 0 10 0 5", "0 10 0 10 5 10"], True),
        ("CellData", ["0 10 0 10 0 10"], True),
    ],
)
def test_pieces_that_are_not_the_whole(kind, pieces, is_whole, tmp_path):
    """VTK leaves the voxels between them as its memory happens to be."""
    array = slanted((10, 10, 10))
    (tmp_path / "a.vti").write_text(vti_of_pieces(array, pieces, kind))
    if is_whole:
        np.testing.assert_array_equal(read_volume(str(tmp_path / "a.vti")).array, array)
    else:
        assert "pieces do not make up the whole extent" in refusal(tmp_path / "a.vti")


@pytest.mark.parametrize("of_cells", [False, True])
def test_pieces_are_compared_without_an_array_of_all_points(of_cells):
    """A volume of gigabytes has as many points."""
    whole, half = (0, 1 << 20) * 3, 1 << 19
    pieces = [[*whole[:4], 0, half], [*whole[:4], half, 1 << 20]]
    assert _is_covered(whole, pieces, of_cells)
    assert not _is_covered(whole, pieces[:1], of_cells)


def test_pieces_that_are_none(tmp_path):
    """One in a comment fills no voxel, and those beyond the whole take no memory."""
    comment = '<!-- <Piece Extent="0 2 0 2 0 2"> -->'
    (tmp_path / "a.vti").write_text(vti_of_pieces(slanted((3, 3, 3)), ["0 2 0 2 0 1"], more=comment))
    assert "pieces do not make up the whole extent" in refusal(tmp_path / "a.vti")
    beyond = (f'<Piece Extent="{9 + k} {10**6 - k} {9 + k} {10**6 - k} {9 + k} {10**6 - k}"/>' for k in range(5000))
    (tmp_path / "b.vti").write_text(vti_of_pieces(slanted((3, 3, 3)), ["0 2 0 2 0 2"], more="".join(beyond)))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.vti")).array, slanted((3, 3, 3)))


@pytest.mark.parametrize("name", ["rho", "T", None])
@pytest.mark.parametrize(
    ("writer_class", "suffix"),
    [(vtkXMLImageDataWriter, ".vti"), (vtkStructuredPointsWriter, ".vtk"), (vtkHDFWriter, ".vtkhdf")],
)
def test_array_picks_one_of_several(writer_class, suffix, name, tmp_path, capfd):
    arrays = {"rho": slanted(SHAPE), "T": -slanted(SHAPE), "v": np.stack([slanted(SHAPE)] * 3, -1)}
    writer = writer_class()
    writer.SetFileName(str(tmp_path / f"a{suffix}"))
    writer.SetInputData(vtk_image(arrays, active="T"))
    writer.Write()
    volume = read_volume(str(tmp_path / f"a{suffix}"), array=name)
    assert volume.geometry.name == (name or "T")
    told = capfd.readouterr().err
    assert told == "" if name else "its array 'T' is read, not 'rho', 'v': --array NAME" in told
    np.testing.assert_array_equal(volume.array, arrays[name or "T"])
    np.testing.assert_array_equal(read_volume(str(tmp_path / f"a{suffix}"), 3, 3, "v").array, arrays["v"])
    said = refusal(tmp_path / f"a{suffix}", array="p")
    assert "holds no array 'p'" in said and all(repr(key) in said for key in arrays)


@pytest.mark.parametrize("direction", [IDENTITY, TURNED])
def test_the_place_of_a_vti(tmp_path, direction, capfd):
    """The first voxel of an extent that starts elsewhere lies where VTK says it does."""
    extent = (2, 5, -1, 1, 10, 11)
    vtk_write(tmp_path / "a.vti", slanted((4, 3, 2)), (0.5, 2.0, 3.0), (1.0, 1.0, 1.0), "t", extent, direction)
    volume = read_volume(str(tmp_path / "a.vti"))
    np.testing.assert_array_equal(volume.array, slanted((4, 3, 2)))
    assert volume.geometry.direction == direction and volume.geometry.spacing == (0.5, 2.0, 3.0)
    image = vtkImageData()
    image.SetExtent(extent)
    image.SetSpacing(0.5, 2.0, 3.0)
    image.SetOrigin(1.0, 1.0, 1.0)
    image.SetDirectionMatrix(direction)
    assert capfd.readouterr().err == ""  # of other arrays, which there are not
    np.testing.assert_allclose(volume.geometry.origin, image.GetPoint(0), atol=1e-12)


@pytest.mark.parametrize("direction", [(2.0, 0, 0, 0, 1, 0, 0, 0, 1), (1.0, 0.1, 0, 0, 1, 0, 0, 0, 1), (0.0,) * 9])
def test_a_sheared_vti(tmp_path, direction):
    vtk_write(tmp_path / "a.vti", slanted((4, 3, 2)), direction=direction)
    assert "a.vti: expected axes of unit length, at right angles" in refusal(tmp_path / "a.vti")


def test_vti_with_nan(tmp_path):
    array = slanted((4, 3, 2))
    array[2, 1, 0] = np.nan
    vtk_write(tmp_path / "a.vti", array)
    assert "found 1 NaN or infinite" in (message := refusal(tmp_path / "a.vti")) and "(2, 1, 0)" in message


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("factor", [1.0, 0.1, 1e-30])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_legacy_file_in_the_wrong_byte_order_is_told(kind, factor, order, tmp_path, capsys):
    """VTK's own order is big-endian. Very small numbers may be meant."""
    array = (slanted(SHAPE) * factor).astype(f"{order}f{4 if kind == 'float' else 8}")
    array[0, 0, 0] = np.nan  # says nothing
    head = "# vtk DataFile Version 3.0\nby hand\nBINARY\nDATASET STRUCTURED_POINTS\nDIMENSIONS 4 3 2\nORIGIN 0 0 0\n"
    head += f"SPACING 1 1 1\nPOINT_DATA {array.size}\nSCALARS rho {kind} 1\nLOOKUP_TABLE default\n"
    (tmp_path / "a.vtk").write_bytes(head.encode() + array.tobytes(order="F") + b"\n")
    volume = read_volume(str(tmp_path / "a.vtk"), fill="nan")
    np.testing.assert_array_equal(volume.array, array.view(array.dtype.newbyteorder(">")))
    is_told = "rho seems little-endian, but .vtk files are big-endian" in capsys.readouterr().err
    assert is_told == (order == "<" and factor != 1e-30)
