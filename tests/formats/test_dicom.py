"""DICOM: folders of slices, and files of several."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.volume_files import ORIGIN, SPACING, dicom_slice, refusal, write_dicom
from helpers.volumes import slanted

from formats.reading import read_volume, source_files
from utils import IDENTITY, is_missing

SHAPE = (4, 3, 2)


@pytest.mark.parametrize("stored", [np.uint16, np.int16])
@pytest.mark.parametrize(
    ("slope", "shift", "dtype"),
    [
        (1, -1024, np.int16), (-1, 5, np.int16), (2, -1024, np.int32), (3, -1024, np.int32), (0.5, -3, np.float32),
        (3e6, 0, np.int64), (1, 3_000_000_000, np.int64), (1, 1e20, np.float32), (1e18, 0, np.float32),
    ],
)  # fmt: skip
def test_dicom_rescaled(slope, shift, dtype, stored, tmp_path):
    """Exact where an integer holds all, else floats; never wrapped around, as VTK would do."""
    array = np.array([0, 1, 32767, 20000, 100, 7, 8, 30001, 1, 2, 3, 4], stored).reshape(2, 3, 2)
    found = read_volume(str(write_dicom(tmp_path, array, shift=shift, slope=f"{slope:g}"))).array
    np.testing.assert_array_equal(found, (array.astype(float) * slope + shift).astype(dtype))
    assert found.dtype == dtype


@pytest.mark.parametrize(
    "more", [{"syntax": "1.2.840.10008.1.2.4.90"}, {"syntax": "1.2.840.10008.1.2.2"}, {"frames": "12"}]
)
def test_dicom_that_pydicom_cannot_read(more, tmp_path):
    assert "pydicom cannot read it" in refusal(write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16), **more))


@pytest.mark.parametrize(
    "values",
    [
        {"PixelValueTransformation": {"RescaleSlope": 2, "RescaleIntercept": -7}},
        {"RealWorldValueMapping": {"RealWorldValueSlope": 2.0, "RealWorldValueIntercept": -7.0}},
        {
            "PixelValueTransformation": {"RescaleSlope": 1, "RescaleIntercept": 0},  # as highdicom writes it
            "RealWorldValueMapping": {"RealWorldValueSlope": 2.0, "RealWorldValueIntercept": -7.0},
        },
        {
            "PixelValueTransformation": {"RescaleSlope": 2, "RescaleIntercept": -7},
            "RealWorldValueMapping": {"RealWorldValueSlope": 9.0, "RealWorldValueIntercept": 0.0},
        },
    ],
)
def test_dicom_of_several_slices_in_a_file(values, tmp_path):
    """An enhanced one: place, spacing and rescaling are in groups, of each slice or of all of them.

    Parametric maps have their own names for slope and intercept.
    """
    pydicom = pytest.importorskip("pydicom")
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)

    def group(**sequences: dict) -> object:
        made = pydicom.Dataset()
        for name, elements in sequences.items():
            item = pydicom.Dataset()
            for key, value in elements.items():
                setattr(item, key, value)
            setattr(made, f"{name}Sequence", [item])
        return made

    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = file.SeriesInstanceUID = "1.2.3"
    file.NumberOfFrames, file.Rows, file.Columns = array.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelData = 1, "MONOCHROME2", array.tobytes()
    measures = {"PixelSpacing": [0.5, 0.8], "SliceThickness": 9.0}
    file.SharedFunctionalGroupsSequence = [
        group(
            PixelMeasures=measures,
            PlaneOrientation={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            **values,
        )
    ]
    places = [[-6, -16, z] for z in (25.0, 20.0, 15.0, 10.0)]  # from the last slice to the first
    file.PerFrameFunctionalGroupsSequence = [group(PlanePosition={"ImagePositionPatient": place}) for place in places]
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = read_volume(str(tmp_path))
    np.testing.assert_array_equal(found.array, 2 * array[::-1].transpose(2, 1, 0) - 7)
    assert found.geometry.spacing == (0.8, 0.5, 5.0) and found.geometry.origin == (-6.0, -16.0, 10.0)
    assert f"--volume {shlex.quote(str(tmp_path))}" in refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("mappings", "slope", "said"),
    [
        ([{"RealWorldValueSlope": 2.0}], 2, ""),
        ([{"RealWorldValueSlope": 2.0}, {"RealWorldValueSlope": 2.0}], 2, ""),
        ([{"RealWorldValueSlope": 2.0}, {"RealWorldValueSlope": 3.0}], 2, "of its 2 mappings to real world values"),
        ([{"RealWorldValueLUTData": [0.0, 1.0]}], 1, "its real world values are in a table"),
    ],
)
def test_real_world_values_at_the_top_of_a_file(mappings, slope, said, tmp_path, capsys):
    """As in the slices of older scanners; of several mappings, and of a table, a warning tells."""
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    folder = write_dicom(tmp_path, array)
    for path in folder.glob("*.dcm"):
        file = pydicom.dcmread(path)
        file.RealWorldValueMappingSequence = [pydicom.Dataset() for _ in mappings]
        for item, elements in zip(file.RealWorldValueMappingSequence, mappings, strict=True):
            for key, value in elements.items():
                setattr(item, key, value)
        file.save_as(path)
    np.testing.assert_array_equal(read_volume(str(folder)).array, slope * array)
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == bool(said)


def test_dicom_of_slices_that_do_not_belong_together(tmp_path):
    array = slanted((4, 3, 3)).astype(np.uint16)
    folder = write_dicom(tmp_path, array, order=(0, 1, 2))
    sound = (folder / "1.dcm").read_bytes()
    (folder / "1.dcm").write_bytes(dicom_slice(array[:, :, 1], (-1.0, 10.0, 3.5)))
    assert "equal distances" in refusal(folder)
    (folder / "1.dcm").write_bytes(dicom_slice(array[:, :2, 1], (-1.0, 10.0, 3.25)))
    assert "another series" in refusal(folder)
    (folder / "1.dcm").write_bytes(sound)
    (folder / "copy.dcm").write_bytes(sound)
    assert "equal distances" in refusal(folder)
    (folder / "copy.dcm").unlink()
    assert read_volume(str(folder)).array.shape == (4, 3, 3)


def test_dicom_of_frames_at_one_position(tmp_path):
    """As of a film, in one file or in several: none is missing."""
    film = tmp_path / "film"
    film.mkdir()
    frames = np.concatenate([slanted((4, 3)).astype(np.uint16)] * 5, axis=1)
    data = dicom_slice(frames, (1.0, 2.0, 3.0), frames="5")
    rows = (0x28).to_bytes(2, "little") + (0x10).to_bytes(2, "little") + b"US\2\0"
    (film / "a.dcm").write_bytes(data.replace(rows + b"\x0f", rows + b"\3"))
    files = write_dicom(tmp_path, slanted((4, 3, 1)).astype(np.uint16))
    (files / "copy.dcm").write_bytes((files / "1.dcm").read_bytes())
    for folder, n in ((film, 5), (files, 2)):
        message = refusal(folder)
        assert f"expected slices at different positions, found all {n} at [" in message and "pixel_array" in message


def edit(path: Path, **elements) -> None:
    """Set these elements of a slice; None leaves one out."""
    file = pydicom.dcmread(path)
    for name, value in elements.items():
        delattr(file, name) if value is None and name in file else setattr(file, name, value)
    pydicom.filewriter.correct_ambiguous_vr(file, is_little_endian=True)
    file.save_as(path)


def edited(folder: Path, **elements) -> Path:
    """A scan in whose slices these elements have these values; those without one are left out."""
    scan = write_dicom(folder, slanted(SHAPE).astype(np.uint16))
    for path in scan.glob("*.dcm"):
        edit(path, **elements)
    return scan


def test_dicom_without_spacing_or_factors(tmp_path):
    geometry = read_volume(str(edited(tmp_path, PixelSpacing=None, RescaleSlope=""))).geometry
    assert geometry.spacing == (1.0, 1.0, SPACING[2]) and geometry.origin == ORIGIN


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"PixelSpacing": [0, 1]}, "expected a positive spacing, found 0.0, 1.0"),
        ({"ImagePositionPatient": None}, "expected a position and two directions in space, found [[], "),
        ({"ImageOrientationPatient": None}, "expected a position and two directions in space"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "found a mosaic of Siemens, whose tiles are"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "found ModalityLUTSequence: save pydicom.pixels.apply_modality"),
        ({"DoseGridScaling": "0.01"}, "found DoseGridScaling: save file.pixel_array * file.DoseGridScaling as .npy"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "found a palette: save pydicom.pixels.apply_color_lut"),
    ],
    ids=str,
)
def test_dicom_without_a_place_or_whose_numbers_are_no_values(elements, said, tmp_path, recwarn):
    assert said in refusal(edited(tmp_path, **elements)) and not recwarn.list


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"RescaleSlope": "1e300"}, "expected finite values, found infinite ones: slope 1e+300, intercept 0.0"),
        ({"PixelSpacing": ["1e999", 1]}, "expected a finite place, found [-1.0, 10.0, 0.25], voxel steps [[1.0"),
        ({"ImagePositionPatient": ["1e999", 1, 2]}, "expected a finite place, found [inf, 1.0, 2.0], voxel steps"),
        ({"ImageOrientationPatient": None}, "expected a position and two directions in space"),
        ({"Rows": 2}, "is of another series than"),
    ],
    ids=str,
)
def test_the_slice_that_is_refused_is_named(elements, said, tmp_path):
    scan = write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16))
    edit(scan / "1.dcm", **elements)
    assert refusal(scan).startswith(f"{scan / '1.dcm'}: {said}")


def test_slices_around_a_missing_one_are_named(tmp_path):
    scan = write_dicom(tmp_path, slanted((4, 3, 5)).astype(np.uint16), order=range(5))
    (scan / "2.dcm").unlink()
    assert f"found 6 mm between {scan / '1.dcm'} and {scan / '3.dcm'}, a median of 3 mm" in refusal(scan)


def test_a_lone_slice_of_negative_thickness_is_not_mirrored(tmp_path):
    scan = edited(tmp_path, SpacingBetweenSlices="-2")
    for name in ("0.dcm", "2.dcm"):
        (scan / name).unlink(missing_ok=True)
    assert read_volume(str(scan)).geometry.direction == IDENTITY


def test_the_spacing_of_a_secondary_capture(tmp_path):
    """As GDCM writes and reads it."""
    geometry = read_volume(str(edited(tmp_path, PixelSpacing=None, NominalScannedPixelSpacing=[2.5, 0.75]))).geometry
    assert geometry.spacing == (0.75, 2.5, SPACING[2])


@pytest.mark.parametrize(("slopes", "dtype"), [((1, 2), np.int16), ((1, 0.5), np.float32), ((2, 0.5), np.float64)])
def test_dicom_whose_slices_are_rescaled_in_different_ways(slopes, dtype, tmp_path):
    """As those of PET are, of which some may not be rescaled at all."""
    scan = edited(tmp_path)
    for name, slope in zip(("1.dcm", "0.dcm"), slopes, strict=True):
        edit(scan / name, RescaleSlope=str(slope), RescaleIntercept="0")
    found = read_volume(str(scan)).array
    np.testing.assert_array_equal(found, slanted(SHAPE).astype(np.uint16) * np.array(slopes))
    assert found.dtype == dtype


@pytest.mark.parametrize("start", [0, 132])
def test_dicom_without_its_first_bytes(start, tmp_path):
    """The volume would lack a slice."""
    scan = write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16))
    (scan / "._1.dcm").write_bytes(b"of macOS")
    read_volume(str(scan))
    (scan / "0.dcm").write_bytes((scan / "0.dcm").read_bytes()[start:] if start else b"")
    assert refusal(scan).startswith(f"{scan / '0.dcm'}: expected a slice, found no DICM after 128 bytes: ")


def test_dicom_of_slices_without_voxels_or_of_a_tilted_gantry_has_a_way_out(tmp_path):
    scan = edited(tmp_path, Modality="SR", Rows=None)
    assert "found a file of the modality SR without voxels: move it" in refusal(scan)
    (tmp_path / "tilted").mkdir()
    scan = write_dicom(tmp_path / "tilted", slanted(SHAPE).astype(np.uint16))
    file = pydicom.dcmread(scan / "1.dcm")
    shift = 0.5 * np.array(file.ImageOrientationPatient[:3])
    edit(scan / "1.dcm", ImagePositionPatient=list(np.array(file.ImagePositionPatient) + shift))
    assert "dcm2niix" in refusal(scan)


def test_a_slice_without_a_suffix_names_its_folder(tmp_path):
    """As scanners export them."""
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert f"--volume {shlex.quote(str(tmp_path))}" in refusal(tmp_path / "IM0001")


def test_dicom_of_two_series(tmp_path):
    scan = edited(tmp_path, SeriesInstanceUID="1.2.3")
    edit(scan / "1.dcm", SeriesInstanceUID="1.2.4")
    assert f"is of another series than {scan / '0.dcm'}: other SeriesInstanceUID: " in refusal(scan)


@pytest.mark.parametrize(
    "other",
    [
        {"RescaleType": "US"},
        {"Units": "BQML"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"BitsStored": 12, "HighBit": 11},
    ],
    ids=str,
)
def test_a_slice_whose_values_mean_something_else_is_told(other, tmp_path, capsys):
    scan = edited(tmp_path)
    read_volume(str(scan))
    assert not capsys.readouterr().err
    edit(scan / "1.dcm", **other)
    read_volume(str(scan))
    (key, value), *_ = other.items()
    said = capsys.readouterr().err
    assert said.startswith(f"{scan / '1.dcm'}: warning: its {key} is '{value}', that of {scan / '0.dcm'} is '")
    assert said.count("\n") == 1


def test_a_high_bit_above_the_bits_that_are_stored_is_told(tmp_path, capsys):
    """The upper bits of such values are lost: 0x1230 was read as 0x230. The way out that is told keeps them."""
    scan = edited(tmp_path, BitsStored=12, PixelData=np.full(12, 0x1230, np.uint16).tobytes())
    volume = read_volume(str(scan))
    said = capsys.readouterr().err
    assert said.startswith(f"{scan}: warning: its HighBit is 15, its BitsStored 12: ") and said.count("\n") == 1
    assert (volume.array == 0x230).all()
    for path in scan.glob("*.dcm"):
        edit(path, BitsStored=pydicom.dcmread(path).HighBit + 1)
    assert (read_volume(str(scan)).array == 0x1230).all() and not capsys.readouterr().err


def test_dicom_of_the_least_of_32_bit_integers(tmp_path):
    """It has no absolute value: it was taken for a small number, and became 0 in 16 bits."""
    stored = np.arange(24, dtype=np.int32).reshape(SHAPE)
    stored[1, 2, 1] = np.iinfo(np.int32).min
    scan = write_dicom(tmp_path, stored.astype(np.int16), order=(0, 1, 2))
    wide = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "PixelRepresentation": 1}
    for z in range(2):
        edit(scan / f"{z}.dcm", **wide, PixelData=stored[:, :, z].T.tobytes())
    volume = read_volume(str(scan))
    assert volume.array.dtype == np.int32
    np.testing.assert_array_equal(volume.array, stored)


@pytest.mark.parametrize(("slope", "shift", "mark"), [("1", "-1024", -3024), ("0.5", "-1000", np.nan)])
def test_dicom_padding_is_missing(slope, shift, mark, tmp_path):
    """The value that is declared, and those up to the limit; rescaled as the values are."""
    stored = np.arange(24).reshape(4, 3, 2).astype(np.int16)
    stored[0, :, 0], stored[1, 2, 1] = (-2000, -1990, -1995), -2000
    scan = write_dicom(tmp_path, stored, shift=float(shift), slope=slope)
    for path in scan.glob("[0-9].dcm"):
        edit(path, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    volume = read_volume(str(scan))
    np.testing.assert_array_equal(volume.fill, mark)
    np.testing.assert_array_equal(is_missing(volume.values, volume.fill), stored < 0)
    present = stored >= 0
    np.testing.assert_array_equal(volume.array[present], stored[present] * float(slope) + float(shift))
    taken = read_volume(str(scan), fill="none")
    np.testing.assert_array_equal(taken.array, stored * float(slope) + float(shift))


def test_fill_is_of_the_type_that_dicom_values_have_without_padding(tmp_path):
    """Padding of several values makes floats of them."""
    stored = np.arange(24).reshape(4, 3, 2).astype(np.int16)
    stored[0] = -2000
    scan = write_dicom(tmp_path, stored, shift=-1024.0)
    for z in range(2):
        edit(scan / f"{z}.dcm", PixelPaddingValue=-2000, RescaleIntercept=str(z))
    assert read_volume(str(scan)).array.dtype == np.float64
    volume = read_volume(str(scan), fill=-2000)
    assert volume.array.dtype == np.int16 == volume.fill.dtype and volume.fill == -2000


def test_a_slice_that_cannot_be_opened(tmp_path, monkeypatch):
    scan = write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("formats.dicom.is_slice", refuse)
    assert refusal(scan).endswith(": cannot be read: Permission denied")
    assert source_files(str(scan)) == [str(scan)]
