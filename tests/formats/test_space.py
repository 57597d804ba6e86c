"""Left stays left: voxels lie where SimpleITK and nibabel find them, through every format and through the blob."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import decode_blob, field_net, make_blob
from helpers.vtk import vtk_read, vtk_write

from field.blob import decode_field
from field.bricks import Bricks
from field.layers import SirenConfig
from field.neural_field import NeuralField
from formats.common import VolumeError
from formats.reading import read_volume
from formats.writing import write_volume
from siren import FieldNet
from training.network_files import configuration, field_header
from utils import IDENTITY, Geometry, Volume, VolumeHeader, header_of

sitk = pytest.importorskip("SimpleITK")
nibabel = pytest.importorskip("nibabel")
pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE, SPACING, ORIGIN = (5, 4, 3), (0.5, 2.0, 3.0), (-11.0, 20.0, 37.5)
ARRAY = np.arange(60, dtype=np.int16).reshape(SHAPE)  # each value once: it names its voxel
CORNERS = [*itertools.product(*((0, n - 1) for n in SHAPE)), (1, 2, 0)]
OBLIQUE = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
DIRECTIONS = {"axial": np.eye(3), "oblique": OBLIQUE, "near 180": OBLIQUE @ np.diag([-1.0, -1.0, 1.0])}
LPS_OF_RAS = np.array([-1.0, -1.0, 1.0])


def seen_by_sitk(path: Path) -> dict[int, np.ndarray]:
    """Where SimpleITK finds the voxels of a file, or of a folder of slices, in LPS, by their values."""
    if path.is_dir():
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    else:
        image = sitk.ReadImage(str(path))
    return {int(image[index]): np.array(image.TransformIndexToPhysicalPoint(index)) for index in CORNERS}


def seen_by_nibabel(path: Path, form: str = "sform") -> dict[int, np.ndarray]:
    """Where nibabel finds the voxels of a file, turned from RAS to LPS."""
    image = nibabel.load(path)
    affine, array = getattr(image, f"get_{form}")(), np.asarray(image.dataobj)
    return {int(array[index]): LPS_OF_RAS * (affine[:3, :3] @ index + affine[:3, 3]) for index in CORNERS}


def found_in(volume: Volume) -> dict[int, np.ndarray]:
    """Where a volume has its voxels, by their values."""
    place = volume.geometry
    steps = np.reshape(place.direction, (3, 3)) * place.spacing
    return {int(volume.array[index]): place.origin + steps @ index for index in CORNERS}


def assert_same_places(found: dict[int, np.ndarray], expected: dict[int, np.ndarray], off: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for value, place in expected.items():
        np.testing.assert_allclose(found[value], place, rtol=0, atol=off)


def write_source(folder: Path, kind: str, direction: np.ndarray) -> Path:
    """A scan as SimpleITK writes it; NIfTI as nibabel does."""
    if kind.startswith("nii"):
        affine = np.eye(4)
        affine[:3] = LPS_OF_RAS[:, None] * np.column_stack([direction * SPACING, ORIGIN])
        nibabel.save(nibabel.Nifti1Image(ARRAY, affine), folder / f"a.{kind}")
        return folder / f"a.{kind}"
    image = sitk.GetImageFromArray(ARRAY.T)
    image.SetSpacing(SPACING), image.SetOrigin(ORIGIN), image.SetDirection(direction.ravel())
    if kind != "dicom":
        sitk.WriteImage(image, str(folder / f"a.{kind}"))
        return folder / f"a.{kind}"
    (folder / "a").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(SHAPE[2]):
        plane = image[:, :, z]
        position = image.TransformIndexToPhysicalPoint((0, 0, z))
        for tag, value in {"0020|0032": position, "0020|0037": direction.T.ravel()[:6]}.items():
            plane.SetMetaData(tag, "\\".join(f"{number:.12g}" for number in value))
        plane.SetMetaData("0020|000e", "1.2.3.4")
        plane.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.2")  # of a CT scanner
        writer.SetFileName(str(folder / "a" / f"{z}.dcm"))
        writer.Execute(plane)
    return folder / "a"


def through_the_blob(volume: Volume) -> VolumeHeader:
    """The header of a volume after thenet.json and a blob."""
    config = SirenConfig(n_neurons=6, n_layers=3, d_in=volume.geometry.d_in)
    same = ("grad_lambda", "w0", "compression_ratio", "batchSize", "oversample", "lr", "n_passes", "pass_decay")
    options = dict.fromkeys((*same, "lr_decay", "clip", "seed"))
    header = header_of(volume)
    settings = configuration(options, header, header.value_range, config, {}, Bricks.of(FieldNet(config)), 0.0)
    again = field_header("a.json", {**settings, "shape": list(header.shape)} | in_lists(settings), config)
    return decode_blob(make_blob(again, field_net(d_in=config.d_in)))[0]


def in_lists(settings: dict) -> dict:
    """The tuples of a configuration as lists, as JSON returns them."""
    return {key: list(value) for key, value in settings.items() if isinstance(value, tuple)}


# --- every pair -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("source", ["dicom", "nrrd", "nhdr", "mha", "mhd", "nii", "nii.gz"])
def test_voxels_stay_in_place(source, direction, tmp_path, capfd):
    path = write_source(tmp_path, source, DIRECTIONS[direction])
    expected = seen_by_sitk(path)
    volume = read_volume(str(path))
    assert_same_places(found_in(volume), expected)
    header = through_the_blob(volume)
    assert header.geometry == volume.geometry and header.geometry.space == "LPS"
    capfd.readouterr()
    for target in ("nrrd", "mha", "mhd", "nii", "nii.gz", "vti"):
        result = tmp_path / f"b.{target}"
        write_volume(str(result), Volume(volume.array, header.geometry))
        again = read_volume(str(result))
        assert_same_places(found_in(again), expected)
        assert again.geometry.space == "LPS"
        if target != "vti":
            assert_same_places(seen_by_sitk(result), expected)
        if target.startswith("nii"):
            assert nibabel.load(result).header.get_xyzt_units()[0] == "mm"
            assert_same_places(seen_by_nibabel(result), expected)
            # A turn by nearly 180 degrees is what a quaternion in float32 holds worst.
            assert_same_places(seen_by_nibabel(result, "qform"), expected, 0.01)
    assert capfd.readouterr() == ("", "")


def test_positions_are_those_of_simple_itk(tmp_path):
    """Of a field: asked for the place that SimpleITK gives to a voxel, it gives the value on the grid."""
    path = write_source(tmp_path, "nii", OBLIQUE)
    image, volume = sitk.ReadImage(str(path)), read_volume(str(path))
    field = NeuralField(*decode_field(make_blob(header_of(volume), field_net())))
    values = field.on_grid(as_float=True)
    points = [image.TransformIndexToPhysicalPoint(index) for index in CORNERS]
    np.testing.assert_allclose(field.at(points), [values[index] for index in CORNERS], rtol=0, atol=1e-2)
    part = field.grid(roi=np.s_[1:4, 2:4, 1:3])
    np.testing.assert_allclose(
        part.geometry(field.header.geometry).origin, image.TransformIndexToPhysicalPoint((1, 2, 1)), atol=1e-5
    )


# --- NRRD, MetaImage, NIfTI apart -------------------------------------------------------------------


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "RAS", "las", "LPS", None])
def test_the_space_of_a_nrrd(space, tmp_path):
    """Its own is turned into LPS; without one it is as it is, and stays without one."""
    path = write_source(tmp_path, "nrrd", OBLIQUE)
    said = f"space: {space}" if space else "space dimension: 3"
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", said.encode()))
    volume = read_volume(str(path))
    assert_same_places(found_in(volume), seen_by_sitk(path))
    assert volume.geometry.space == ("LPS" if space else "")
    write_volume(str(tmp_path / "b.nrrd"), volume)
    written = (tmp_path / "b.nrrd").read_bytes()
    assert (b"space: left-posterior-superior" in written) == bool(space)
    assert (b"space dimension: 3" in written) != bool(space)
    assert_same_places(seen_by_sitk(tmp_path / "b.nrrd"), seen_by_sitk(path))


@pytest.mark.parametrize(
    ("said", "kind", "stay_in"),
    [
        ("space: right-anterior-superior", "vector", "RAS"),
        ("space: right-anterior-superior", "3-color", None),
        ("space: right-anterior-superior", "list", None),
        ("space: LAS", "???", "LAS"),
        ("space: LAS", "covariant-vector", "LAS"),
        ("space: LPS", "vector", None),
        ("space: LPS\nmeasurement frame: (1,0,0) (0,1.0,0) (0, 0, 1)", "vector", None),
        ("space: LPS\nmeasurement frame: (0,1,0) (-1,0,0) (0,0,1)", "vector", "its measurement frame"),
        ("space dimension: 3\nmeasurement frame: (0,1,0) (-1,0,0) (0,0,1)", "vector", "its measurement frame"),
        ("space dimension: 3", "vector", None),
    ],
)
def test_vectors_of_a_nrrd_are_not_turned(said, kind, stay_in, tmp_path, capsys):
    """Only positions are. A warning says so."""
    write_volume(str(tmp_path / "a.nrrd"), Volume(np.zeros((*SHAPE, 3), np.float32), Geometry.plain(3)))
    content = (tmp_path / "a.nrrd").read_bytes().replace(b"kinds: vector", f"kinds: {kind}".encode())
    (tmp_path / "a.nrrd").write_bytes(content.replace(b"space dimension: 3", said.encode()))
    capsys.readouterr()
    read_volume(str(tmp_path / "a.nrrd"))
    told = capsys.readouterr().err
    assert (f"the components of its vectors stay in {stay_in}, " in told) == (stay_in is not None)
    assert ("NumPy's array * (" in told) == (stay_in in ("RAS", "LAS"))
    assert stay_in or told == ""


@pytest.mark.parametrize("space", ["space: left-posterior-superior", "space dimension: 3"])
def test_the_units_of_a_nrrd(space, tmp_path):
    """A world of anatomy is in mm, as that of a NIfTI; the units of another one stay with it."""
    path = write_source(tmp_path, "nrrd", OBLIQUE)
    plain = read_volume(str(path)).geometry
    said = f'{space}\nspace units: "um" "um" "um"'.encode()
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", said))
    volume = read_volume(str(path))
    factor = 1e-3 if volume.geometry.space else 1.0
    np.testing.assert_allclose(volume.geometry.spacing, factor * np.array(plain.spacing))
    np.testing.assert_allclose(volume.geometry.origin, factor * np.array(plain.origin))
    write_volume(str(tmp_path / "b.nrrd"), volume)
    again = read_volume(str(tmp_path / "b.nrrd")).geometry
    assert again == volume.geometry
    assert again.attributes_of("x") == {"units": "mm" if again.space else "\u00b5m"}
    write_volume(str(tmp_path / "b.nii"), volume)
    np.testing.assert_allclose(read_volume(str(tmp_path / "b.nii")).geometry.spacing, 1e-3 * np.array(plain.spacing))


@pytest.mark.parametrize("letters", ["RAI", "LPS", "RAS", "???"])
def test_a_meta_image_is_placed_by_its_matrix_alone(letters, tmp_path):
    """As ITK does it: of its letters there are two readings."""
    path = write_source(tmp_path, "mha", OBLIQUE)
    content = path.read_bytes()
    at = content.index(b"AnatomicalOrientation = ") + 24
    path.write_bytes(content[:at] + letters.encode() + content[at + 3 :])
    assert_same_places(found_in(read_volume(str(path))), seen_by_sitk(path))


@pytest.mark.parametrize("unit", ["meter", "mm", "micron", "unknown"])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 2)])
def test_forms_and_units_of_a_nifti(codes, unit, tmp_path):
    """The world is in mm, as it is for ITK."""
    affine = np.array([[0, -2.0, 0, 5], [0.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(ARRAY, affine)
    image.set_qform(affine, codes[0]), image.set_sform(affine, codes[1])
    image.header.set_xyzt_units(unit, "sec")
    nibabel.save(image, tmp_path / "a.nii")
    expected = seen_by_sitk(tmp_path / "a.nii")
    volume = read_volume(str(tmp_path / "a.nii"))
    size = max(volume.geometry.spacing)
    assert_same_places(found_in(volume), expected, 1e-5 * size)
    write_volume(str(tmp_path / "b.nii"), volume)
    assert_same_places(seen_by_sitk(tmp_path / "b.nii"), expected, 1e-5 * size)
    assert_same_places(seen_by_nibabel(tmp_path / "b.nii"), expected, 1e-5 * size)


def test_a_nifti_that_does_not_say_where_left_is(tmp_path):
    """Without either form, as ANALYZE has none: as it is, with a note where NIfTI is written of it."""
    image = nibabel.Nifti1Image(ARRAY, None)
    image.header.set_zooms(SPACING)
    image.header["qform_code"], image.header["sform_code"] = 0, 0
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(str(tmp_path / "a.nii"))
    assert (volume.geometry.space, volume.geometry.spacing, volume.geometry.direction) == ("", SPACING, IDENTITY)
    assert_same_places(found_in(volume), seen_by_sitk(tmp_path / "a.nii"))


@pytest.mark.parametrize(("unit", "second"), [("sec", 1.0), ("msec", 1e-3), ("usec", 1e-6)])
def test_a_nifti_of_several_times(unit, second, tmp_path):
    series = np.stack([ARRAY, ARRAY + 100, -ARRAY], axis=3)
    affine = np.vstack([LPS_OF_RAS[:, None] * np.column_stack([OBLIQUE * SPACING, ORIGIN]), (0, 0, 0, 1)])
    image = nibabel.Nifti1Image(series, affine)
    image.header.set_zooms((*SPACING, 2.5))
    image.header.set_xyzt_units("mm", unit)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(str(tmp_path / "a.nii"))
    assert volume.geometry.spacing[0] == pytest.approx(2.5 * second)
    assert volume.geometry.attributes_of("t") == {"units": "s"}
    header = through_the_blob(volume)
    assert header.geometry == volume.geometry
    first = Volume(volume.array, header.geometry).at_step()
    write_volume(str(tmp_path / "b.nii"), first)
    expected = {int(ARRAY[index]): ORIGIN + (OBLIQUE * SPACING) @ index for index in CORNERS}
    assert_same_places(seen_by_sitk(tmp_path / "b.nii"), expected)


@pytest.mark.parametrize(("unit", "found_unit"), [("s", "sec"), ("ms", "msec"), ("days since 2001-01-01", "unknown")])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_series_as_nifti(suffix, n, unit, found_unit, tmp_path):
    """In one file, as nibabel finds it: time is the fourth axis, the fifth one holds components."""
    array = np.stack([ARRAY, ARRAY + 100])[..., None] * np.arange(1, n + 1, dtype=np.int16)
    array = array if n > 1 else array[..., 0]
    place = Geometry(SPACING, tuple(ORIGIN), tuple(OBLIQUE.ravel()), space="LPS", axis_attributes={"units_t": unit})
    path = str(tmp_path / f"a{suffix}")
    write_volume(path, Volume(array, place.with_time(2.5, 7.0)))
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.moveaxis(array, 0, 3))
    assert image.header["pixdim"][4] == 2.5 and image.header["toffset"] == 7
    assert image.header.get_xyzt_units() == ("mm", found_unit)
    affine = LPS_OF_RAS[:, None] * np.column_stack([OBLIQUE * SPACING, ORIGIN])
    np.testing.assert_allclose(image.affine[:3], affine, atol=1e-5)
    found = read_volume(path)
    second = 1e-3 if unit == "ms" else 1.0
    np.testing.assert_array_equal(np.asarray(found.array), array)
    assert (found.geometry.spacing[0], found.geometry.origin[0]) == pytest.approx((2.5 * second, 7 * second))


def test_a_series_as_nifti_that_starts_too_late(tmp_path):
    """Seconds since 1970: float32 has steps of 128 s there."""
    series = np.stack([ARRAY, ARRAY])
    for step, is_written in ((2.5, False), (1e6, True)):
        volume = Volume(series, Geometry(SPACING, tuple(ORIGIN)).with_time(step, 1.7e9 + 1))
        if is_written:
            write_volume(str(tmp_path / "a.nii"), volume)
        else:
            with pytest.raises(VolumeError, match=r"float32 in NIfTI, .*in time 2\.5, 1700000001"):
                write_volume(str(tmp_path / "a.nii"), volume)


def test_an_image_of_two_axes(tmp_path):
    plane = np.arange(20, dtype=np.int16).reshape(5, 4)
    nibabel.save(nibabel.Nifti1Image(plane, np.diag([0.5, 2.0, 1.0, 1.0]) + np.eye(4, k=3) * 7), tmp_path / "a.nii")
    volume = read_volume(str(tmp_path / "a.nii"), 2)
    header = through_the_blob(volume)
    assert header.geometry == volume.geometry and volume.geometry.origin == (-7.0, 0.0)
    write_volume(str(tmp_path / "b.nii"), Volume(volume.array, header.geometry))
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii").affine, nibabel.load(tmp_path / "a.nii").affine)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "b.nii").get_fdata()[..., 0], plane)


def test_files_of_two_worlds_are_no_series(tmp_path):
    for step, space in enumerate(("LPS", "LPS", "")):
        write_volume(str(tmp_path / f"{step}.vti"), Volume(ARRAY, Geometry(SPACING, ORIGIN, space=space)))
    with pytest.raises(VolumeError, match=r"2\.vti: expected space LPS, as in .*0\.vti, found "):
        read_volume(str(tmp_path / "*.vti"))


# --- VTK's own files --------------------------------------------------------------------------------


def test_a_vti_keeps_its_place_through_nifti(tmp_path, capfd):
    """It says nothing of left, and is taken for LPS where a format must say it; then it does say it."""
    vtk_write(tmp_path / "a.vti", ARRAY, SPACING, ORIGIN, direction=OBLIQUE.ravel())
    volume = read_volume(str(tmp_path / "a.vti"))
    assert volume.geometry.space == ""
    write_volume(str(tmp_path / "same.vti"), volume)
    assert b"SPACE" not in (tmp_path / "same.vti").read_bytes()
    assert capfd.readouterr().err == ""
    write_volume(str(tmp_path / "b.nii"), volume)
    told = capfd.readouterr().err
    assert "b.nii" in told and "left, posterior, superior" in told and told.count("\n") == 1
    write_volume(str(tmp_path / "c.vti"), read_volume(str(tmp_path / "b.nii")))
    before, after = vtk_read(tmp_path / "a.vti"), vtk_read(tmp_path / "c.vti")
    np.testing.assert_array_equal(after.array, before.array)
    for what in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(after, what), getattr(before, what), atol=1e-6)
    assert after.reader.GetOutput().GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "LPS"


@pytest.mark.parametrize(("letters", "signs"), [("LPS", (1, 1, 1)), ("RAS", LPS_OF_RAS), ("up", None)])
def test_a_vti_that_says_its_space(letters, signs, tmp_path):
    """As 3D Slicer says it in its own VTK files."""
    place = Geometry(SPACING, ORIGIN, tuple(OBLIQUE.ravel().tolist()), space="LPS")
    write_volume(str(tmp_path / "a.vti"), Volume(ARRAY, place))
    codes = [" ".join(str(ord(letter)) for letter in text).encode() for text in ("LPS", letters)]
    content = (tmp_path / "a.vti").read_bytes()
    assert content.count(codes[0]) == 1
    (tmp_path / "a.vti").write_bytes(content.replace(*codes))
    found = read_volume(str(tmp_path / "a.vti")).geometry
    assert found.space == ("LPS" if signs is not None else "")
    np.testing.assert_allclose(found.origin, np.multiply(ORIGIN, 1 if signs is None else signs))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(("name", "space", "is_told"), [("a.nii", "LPS", True), ("a.nii", "", True),
                                                        ("a.vti", "RAS", True), ("a.vti", "LPS", False),
                                                        ("a.vti", "", False)])  # fmt: skip
def test_vectors_of_a_file_in_ras_are_not_turned(name, space, is_told, dtype, tmp_path, capsys):
    """Only positions are. A warning says so, unless they are colours."""
    array, path = np.arange(72).reshape(4, 3, 2, 3).astype(dtype), tmp_path / name
    write_volume(str(path), Volume(array, Geometry(SPACING, ORIGIN, space="LPS" if space else "")))
    if space == "RAS":
        codes = [" ".join(str(ord(letter)) for letter in text).encode() for text in ("LPS", "RAS")]
        path.write_bytes(path.read_bytes().replace(*codes))
    capsys.readouterr()
    np.testing.assert_array_equal(read_volume(str(path)).array, array)
    told, way_out = capsys.readouterr().err, "turn those that are in RAS, as by NumPy's array * (-1.0, -1.0, 1.0)"
    assert way_out in told if is_told and dtype == "float32" else told == ""
