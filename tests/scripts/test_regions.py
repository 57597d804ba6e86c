"""net_decompress.py asked for a part: --roi, --resolution, --gradient, --points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import field_net, make_blob, make_header
from helpers.scripts import decompress, error_of, results
from helpers.vtk import vtk_read
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkFiltersGeneral import vtkGradientFilter
from vtkmodules.vtkIOXML import vtkXMLImageDataReader

import net_decompress
from field.neural_field import NeuralField
from utils import voxel_grid

SHAPE = (9, 7, 5)
SPACING, ORIGIN = (0.5, 2.0, 1.25), (10.0, -4.0, 0.25)


@pytest.fixture(scope="module")
def blob(request, tmp_path_factory):
    """A blob of random weights."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    dtype = getattr(request, "param", "float32")
    header = make_header(SHAPE, 0, 50000, dtype, spacing=SPACING, origin=ORIGIN, name="density")
    path.write_bytes(make_blob(header, field_net()))
    return path


of_either_type = pytest.mark.parametrize("blob", ["float32", "uint16"], indirect=True)


@of_either_type
def test_roi_is_that_part_of_the_full_decode_in_place(blob, tmp_path):
    whole = decompress(blob, tmp_path / "whole.npy")
    part = decompress(blob, tmp_path / "part.npy", "--roi", "2:5,:6,4")
    np.testing.assert_array_equal(part, whole[2:5, :6, 4:])
    assert part.dtype == whole.dtype
    decompress(blob, tmp_path / "part.vti", "--roi", "2:5,1:,3:4")
    image = vtk_read(tmp_path / "part.vti")
    np.testing.assert_array_equal(image.array, whole[2:5, 1:, 3:4])
    np.testing.assert_allclose(image.spacing, SPACING)
    np.testing.assert_allclose(image.origin, [10 + 2 * 0.5, -4 + 1 * 2.0, 0.25 + 3 * 1.25])


@pytest.mark.parametrize("roi", ["2:2,:,:", "3:2,:,:", "0:10,:,:", ":,:", ":,:,:,:"])
def test_roi_outside_the_volume_is_refused(blob, tmp_path, roi):
    message = error_of(net_decompress.main, "--compressed", blob, "--recon", tmp_path / "r.npy", "--roi", roi)
    assert "--roi" in message and "(9, 7, 5)" in message and "found" in message
    assert not (tmp_path / "r.npy").exists()


@pytest.mark.parametrize("flag", ["--roi=1,2,", "--roi=a:b,:,:", "--roi=-1:3,:,:", "--roi=1:2:3,:,:", "--roi="])
def test_roi_that_is_none(blob, flag):
    message = error_of(net_decompress.main, "--compressed", blob, flag)
    assert "--roi" in message and "without negative indices, found" in message


@of_either_type
def test_resolution_keeps_the_extent(blob, tmp_path):
    decompress(blob, tmp_path / "fine.vti", "--resolution", "17,7,3")
    image = vtk_read(tmp_path / "fine.vti")
    assert image.dimensions == (17, 7, 3)
    np.testing.assert_allclose(image.origin, ORIGIN)
    np.testing.assert_allclose(image.spacing, [0.25, 2.0, 2.5])
    whole = decompress(blob, tmp_path / "whole.npy")
    np.testing.assert_allclose(image.array[::2], whole[:, :, ::2], rtol=0, atol=0.05)


@of_either_type
def test_resolution_of_a_region(blob, tmp_path):
    decompress(blob, tmp_path / "fine.vti", "--resolution", "7,1,5", "--roi", "2:6,3:6,:")
    image = vtk_read(tmp_path / "fine.vti")
    np.testing.assert_allclose(image.origin, [10 + 2 * 0.5, -4 + 4 * 2.0, 0.25])  # one point: the middle of 3, 4, 5
    np.testing.assert_allclose(image.spacing[::2], [0.25, 1.25])
    whole = decompress(blob, tmp_path / "whole.npy")
    np.testing.assert_allclose(image.array[::2], whole[2:6:1, 4:5], rtol=0, atol=0.05)


@pytest.mark.parametrize("resolution", ["0,1,1", "4,4", "a,b,c", "4,4,4,4", "-1,2,2", "4294967296,1,1"])
def test_resolution_that_is_none(blob, resolution):
    message = error_of(net_decompress.main, "--compressed", blob, f"--resolution={resolution}")
    assert "--resolution" in message and "expected" in message


@pytest.mark.parametrize("resolution", ["4294967295,1,1", "2,7,4000000000"])
def test_resolution_beyond_memory(blob, tmp_path, resolution):
    """Refused before its positions, 32 GiB, are made."""
    files = ("--compressed", blob, "--recon", tmp_path / "r.npy")
    message = error_of(net_decompress.main, *files, "--resolution", resolution)
    assert "--resolution" in message and "expected at most 67108864 points, found 4" in message
    assert not (tmp_path / "r.npy").exists()


def test_a_shape_beyond_memory(tmp_path):
    """Which a blob of a few hundred bytes may announce."""
    (tmp_path / "blob").write_bytes(make_blob(make_header(((1 << 32) - 1, 1, 1)), field_net()))
    message = error_of(net_decompress.main, "--compressed", tmp_path / "blob", "--recon", tmp_path / "r.npy")
    shape = f"{tmp_path / 'blob'} has shape (4294967295, 1, 1)"
    assert message == f"{shape}: axis 0: expected at most 67108864 points, found 4294967295"


def test_several_points_along_one_voxel_are_refused(blob):
    message = error_of(net_decompress.main, "--compressed", blob, "--roi", "1:2,:,:", "--resolution", "2,7,5")
    assert "axis 0" in message and "1 point" in message


@of_either_type
def test_gradient_is_an_array_of_its_own(blob, tmp_path):
    decompress(blob, tmp_path / "g.vti", "--gradient", "--roi", "2:6,:,1:4")
    reader = vtkXMLImageDataReader()
    reader.SetFileName(str(tmp_path / "g.vti"))
    reader.Update()
    data = reader.GetOutput().GetPointData()
    assert data.GetScalars().GetName() == "density" and data.GetNumberOfArrays() == 2
    found = vtk_to_numpy(data.GetArray("density_gradient")).reshape(3, 7, 4, 3).transpose(2, 1, 0, 3)
    field = NeuralField.open(blob)
    np.testing.assert_array_equal(found, field.gradient_on_grid(voxel_grid(SHAPE, np.s_[2:6, :, 1:4])))


def test_jacobian_has_the_order_of_vtks_own(tmp_path):
    """Of a field all but linear, whose finite differences are its derivatives."""
    slopes = torch.tensor([[0.2, -0.3, 0.4], [-0.1, 0.5, 0.15], [0.05, 0.25, -0.35]])
    net = field_net(n_neurons=3, n_layers=1, d_out=3, omega_0=1.0)
    for parameter, value in zip(net.parameters(), (slopes / 100, 0.0, 100 * torch.eye(3), 0.0), strict=True):
        parameter.data[:] = value
    header = make_header(SHAPE, -10.0, 10.0, d_out=3, spacing=SPACING, origin=ORIGIN, name="velocity")
    (tmp_path / "blob").write_bytes(make_blob(header, net, 12))
    decompress(tmp_path / "blob", tmp_path / "g.vti", "--gradient")
    reader = vtkXMLImageDataReader()
    reader.SetFileName(str(tmp_path / "g.vti"))
    gradient = vtkGradientFilter()
    gradient.SetInputConnection(reader.GetOutputPort())
    gradient.SetInputArrayToProcess(0, 0, 0, 0, "velocity")
    gradient.SetResultArrayName("differences")
    gradient.Update()
    data = gradient.GetOutput().GetPointData()
    found, differences = (vtk_to_numpy(data.GetArray(name)) for name in ("velocity_gradient", "differences"))
    assert found.shape == (9 * 7 * 5, 9) and len(set(found[0].tolist())) == 9
    np.testing.assert_allclose(found, differences, rtol=1e-4)


def test_gradient_needs_a_file_of_several_arrays(blob, tmp_path):
    message = error_of(net_decompress.main, "--compressed", blob, "--recon", tmp_path / "g.npy", "--gradient")
    assert "--gradient" in message and ".vti" in message


def test_comparison_of_a_region_is_over_the_range_of_the_volume(tmp_path, capsys):
    header = make_header(SHAPE, 0.0, 1.0, spacing=SPACING, origin=ORIGIN)
    (tmp_path / "blob").write_bytes(make_blob(header, field_net()))
    whole = decompress(tmp_path / "blob", tmp_path / "whole.npy")
    original = np.clip(whole + 0.01, 0, 1)
    original[0, 0, 0], original[8, 0, 0] = 0.0, 1.0
    np.save(tmp_path / "v.npy", original)
    capsys.readouterr()
    part = np.s_[2:5, :, :]
    decompress(tmp_path / "blob", tmp_path / "r.npy", "--volume", tmp_path / "v.npy", "--roi", "2:5,:,:")
    rmse = np.sqrt(np.mean((whole[part].astype(float) - original[part]) ** 2))
    found = results(capsys.readouterr().out)
    assert float(found["psnr"]) == pytest.approx(-20 * np.log10(rmse), abs=1e-3)
    assert float(found["rmse"]) == pytest.approx(rmse, rel=1e-5)


@pytest.mark.parametrize("flags", [("--resolution", "9,7,5"), ("--resolution", "9,1,5", "--roi", ":,3:6,:")])
def test_a_resolution_of_voxels_is_compared(chain, tmp_path, capsys, flags):
    part = np.s_[:, :, :] if len(flags) == 2 else np.s_[:, 4:5, :]
    found = decompress(chain.blob, tmp_path / "r.npy", "--volume", chain.volume, *flags)
    difference = found.astype(float) - np.load(chain.volume)[part]
    out, err = capsys.readouterr()
    assert float(results(out)["rmse"]) == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-5) and err == ""


def test_positions_that_are_no_voxels_are_not_compared_and_that_is_said(chain, tmp_path, capsys):
    decompress(chain.blob, tmp_path / "r.npy", "--volume", chain.volume, "--resolution", "5,7,5")
    out, err = capsys.readouterr()
    what = "not compared: --resolution asks for other positions than its voxels"
    assert err == f"net_decompress.py: warning: {chain.volume}: {what}\n" and "psnr" not in results(out)
    (tmp_path / "blob").write_bytes(make_blob(make_header((4, 6, 5, 3)), field_net(d_in=4)))
    volume = decompress(tmp_path / "blob", tmp_path / "v.npy")
    volume[0, 0, 0, :2] = 0, 1  # the range of the header
    np.save(tmp_path / "v.npy", volume)
    capsys.readouterr()
    decompress(tmp_path / "blob", tmp_path / "r.npy", "--volume", tmp_path / "v.npy", "--time", "1.5")
    assert "v.npy: not compared: --time 1.5 asks for other positions than its voxels\n" in capsys.readouterr().err


# --- points -----------------------------------------------------------------------------------------

INDEX = np.array([[0, 0, 0], [8, 6, 4], [2.5, 1.25, 3.75]])
POINTS = INDEX * SPACING + ORIGIN


@of_either_type
def test_points_in_npy(blob, tmp_path, capsys):
    np.save(tmp_path / "p.npy", POINTS)
    found = decompress(blob, tmp_path / "out.npy", "--points", tmp_path / "p.npy")
    field = NeuralField.open(blob)
    np.testing.assert_array_equal(found, field.at(POINTS))
    assert results(capsys.readouterr().out)["points"] == "3"
    found = decompress(blob, tmp_path / "out.npy", "--points", tmp_path / "p.npy", "--gradient")
    np.testing.assert_array_equal(found, np.column_stack([field.at(POINTS), field.gradient_at(POINTS)]))


def test_points_in_npy_of_float32_may_be_on_the_boundary(tmp_path):
    """float32 rounds 100.1 downwards, by more than 1e-6 voxels."""
    header = make_header(SHAPE, spacing=(0.1,) * 3, origin=(100.1,) * 3)
    (tmp_path / "blob").write_bytes(make_blob(header, field_net()))
    np.save(tmp_path / "p.npy", np.full((1, 3), 100.1, np.float32))
    found = decompress(tmp_path / "blob", tmp_path / "o.npy", "--points", tmp_path / "p.npy")
    assert np.isfinite(found).all()


@of_either_type
@pytest.mark.parametrize("head", ["", "x,y,z\n", "\ufeffx, y, z\n"])
def test_points_in_csv(blob, tmp_path, head):
    rows = "\n".join(",".join(map(repr, map(float, row))) for row in POINTS)
    (tmp_path / "p.csv").write_text(f"{head}{rows}\n", encoding="utf-8")
    net_decompress.main(["--compressed", str(blob), "--points", "p.csv", "--recon", "o", "--gradient"])
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert lines[0] == "x,y,z,density,ddensity/dx,ddensity/dy,ddensity/dz"
    assert [line.rsplit(",", 4)[0] for line in lines[1:]] == rows.splitlines()  # 3.57, not 3.5699999999999998
    table = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    field = NeuralField.open(blob)
    np.testing.assert_array_equal(table[:, :3], POINTS)
    np.testing.assert_array_equal(table[:, 3].astype(np.float32), field.at(POINTS))
    np.testing.assert_array_equal(table[:, 4:].astype(np.float32), field.gradient_at(POINTS))


@of_either_type
def test_points_outside(blob, tmp_path, capsys):
    np.save(tmp_path / "p.npy", np.vstack([POINTS, [[0, 0, 0]]]))
    argv = ("--compressed", blob, "--points", tmp_path / "p.npy", "--recon", tmp_path / "o.npy")
    message = error_of(net_decompress.main, *argv)
    assert "1 of 4" in message and "number 3" in message and "--outside nan" in message
    assert not (tmp_path / "o.npy").exists()
    found = decompress(blob, tmp_path / "o.npy", "--points", tmp_path / "p.npy", "--outside", "nan")
    assert np.isnan(found).tolist() == [False, False, False, True]
    assert results(capsys.readouterr().out)["outside"] == "1"


@pytest.mark.parametrize(
    ("names", "row"),
    [
        ("z,y,x", "{z},{y},{x}"),
        ('"Y", "x" ,z', "{y},{x},{z}"),
        ("# y,z,x", "{y},{z},{x}"),
        ("", "{x},{y},{z}"),
        ('"x","y","z"', '"{x}","{y}","{z}"'),
        # As ParaView saves a probe's line: values, positions, and what need not be a number.
        ('"sf","Points:0","Points:1","Points:2","label"', '0.5,{x},{y},{z},"a, b"'),
        ("sf,X,Y,Z,Points Magnitude", '0.5,{x},{y},{z},"a, b"'),
    ],
)
def test_columns_of_a_csv_file_are_those_that_it_names(blob, tmp_path, names, row):
    rows = [row.format(x=repr(x), y=repr(y), z=repr(z)) for x, y, z in POINTS.tolist()]
    (tmp_path / "p.csv").write_text("\n".join([names, *rows]))
    found = decompress(blob, tmp_path / "out.npy", "--points", tmp_path / "p.csv")
    np.testing.assert_array_equal(found, NeuralField.open(blob).at(POINTS))


def test_columns_of_a_series_are_those_that_it_names(tmp_path):
    (tmp_path / "blob").write_bytes(make_blob(make_header((4, 6, 5, 3)), field_net(d_in=4)))
    (tmp_path / "p.csv").write_text("x,y,z,t\n5,4,2,1.5\n")
    found = decompress(tmp_path / "blob", tmp_path / "out.npy", "--points", tmp_path / "p.csv")
    np.testing.assert_array_equal(found, NeuralField.open(tmp_path / "blob").at([[1.5, 5, 4, 2]]))
    (tmp_path / "p.csv").write_text("time,x,y,z\n1,2,2,2\n")
    said = error_of(net_decompress.main, "--compressed", tmp_path / "blob", "--points", tmp_path / "p.csv")
    assert "p.csv: expected lines of t,x,y,z: its first line, 'time,x,y,z', does not name each" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.npy", b"no array", "expected an array of NumPy's: the magic string is not correct"),
        ("p.npy", b"", "expected an array of NumPy's: EOF"),
        ("p.csv", b"1,2\n", "expected lines of x,y,z: found 2 numbers a line, not 3"),
        ("p.csv", b"x,y,z\n1,2\n", "expected lines of x,y,z: invalid column index 2 in line 2 with 2 columns"),
        ("p.csv", b"x,y,z\n1,2,three\n", "could not convert string 'three' to float64 in line 2, column 3"),
        ("p.csv", b"1,2,3\n\n1,2,three\n1,2,3\n", "could not convert string 'three' to float64 in line 3, column 3"),
        ("p.csv", b"1,2,3\n\n1,2,3\n1,2,3,4\n", "changed from 3 to 4 in line 4"),
        ("p.csv", b"x;y;z\n1;2;3\n", "'x;y;z', does not name each of these columns once: columns are separated by"),
        ("p.csv", b"1 2 3\n4 5 6\n", "columns are separated by commas"),
        ("p.csv", b"a,b,c\n1,2,3\n", "its first line, 'a,b,c', does not name each of these columns once"),
        ("p.csv", b"x,y,y\n1,2,3\n", "its first line, 'x,y,y', does not name"),
        ("p.csv", b"x,Points:0,y,z\n1,1,2,3\n", "does not name each of these columns once"),
        ("p.csv", b"x,y,z\n", "expected lines of x,y,z: found none"),
        ("p.csv", b"", "expected lines of x,y,z: found none"),
        ("p.csv", b"\xff\xfe\x00", "expected lines of x,y,z: 'utf-8' codec"),
        ("p.npy", None, "cannot be read: No such file"),
        ("p.csv", None, "cannot be read: No such file"),
        ("p.txt", b"1,2,3\n", "expected positions in a file whose name ends in .npy or .csv"),
        ("p", b"1,2,3\n", "expected positions in a file whose name ends in .npy or .csv"),
    ],
)
def test_points_that_are_none(blob, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = error_of(net_decompress.main, "--compressed", blob, "--points", tmp_path / name, "--recon", tmp_path / "o")
    assert said.startswith(f"{tmp_path / name}: ") and message in said and "usecols" not in said
    assert not list(tmp_path.glob("o*"))


def test_points_of_nan_are_named_so(blob, tmp_path):
    np.save(tmp_path / "p.npy", np.vstack([POINTS, [[10, np.nan, 0.25]]]))
    said = error_of(net_decompress.main, "--compressed", blob, "--points", tmp_path / "p.npy")
    where = "the first is number 3, counted from 0, [10.0, nan, 0.25]"
    assert f"1 of 4 points lie outside the volume or are NaN, {where}" in said


def test_points_never_unpickle(blob, tmp_path):
    np.save(tmp_path / "p.npy", np.array([[{}, {}, {}]]), allow_pickle=True)
    assert "p.npy" in error_of(net_decompress.main, "--compressed", blob, "--points", tmp_path / "p.npy")


@pytest.mark.parametrize("other", ["--roi=:,:,:", "--resolution=2,2,2", "--volume=v.npy", "--time=0"])
def test_points_stand_alone(blob, tmp_path, other):
    np.save("v.npy", np.zeros(SHAPE))
    message = error_of(net_decompress.main, "--compressed", blob, "--points", tmp_path / "p.npy", other)
    assert "--points" in message and other.partition("=")[0] in message


def test_outside_belongs_to_points(blob):
    assert "--points" in error_of(net_decompress.main, "--compressed", blob, "--outside", "nan")


def test_points_of_another_suffix_are_refused(blob, tmp_path):
    np.save(tmp_path / "p.npy", POINTS)
    message = error_of(net_decompress.main, "--compressed", blob, "--points", "p.npy", "--recon", "o.vti")
    assert ".csv" in message and "o.vti" in message


def test_components_have_columns_of_their_own(tmp_path):
    header = make_header(SHAPE, d_out=2, spacing=SPACING, origin=ORIGIN, name="u,v")
    (tmp_path / "blob").write_bytes(make_blob(header, field_net(d_out=2)))
    np.save(tmp_path / "p.npy", POINTS)
    net_decompress.main(["--compressed", "blob", "--points", "p.npy", "--recon", "o.csv", "--gradient"])
    head = (tmp_path / "o.csv").read_text().splitlines()[0]
    assert head.startswith('x,y,z,"u,v_0","u,v_1","du,v_0/dx",')
    found = decompress(tmp_path / "blob", tmp_path / "o.npy", "--points", tmp_path / "p.npy")
    np.testing.assert_array_equal(found, NeuralField.open(tmp_path / "blob").at(POINTS))


@pytest.mark.parametrize(("name", "shown"), [("=1+1", "'=1+1"), ("\x1b[31m@x", "[31m@x"), ("density", "density")])
def test_a_name_is_no_formula_in_a_spreadsheet(name, shown, tmp_path):
    header = make_header(SHAPE, spacing=SPACING, origin=ORIGIN, name=name)
    (tmp_path / "blob").write_bytes(make_blob(header, field_net()))
    np.save(tmp_path / "p.npy", POINTS)
    net_decompress.main(["--compressed", "blob", "--points", "p.npy", "--recon", "o.csv"])
    assert (tmp_path / "o.csv").read_text().splitlines()[0] == f"x,y,z,{shown}"
