"""Every format that is read, written by another: voxels by their index, spacing, origin, direction, damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.volume_files import (
    FORMATS,
    ORIGIN,
    SPACING,
    in_ras,
    nifti,
    nrrd_header,
    refusal,
    write_dicom,
    write_meta,
    write_nrrd,
    write_raw,
    write_tiff,
)
from helpers.volumes import MIRRORED, TURNED, slanted

from formats.common import VolumeError
from formats.raw import RawLayout
from formats.reading import read_volume
from utils import IDENTITY

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)


@pytest.mark.parametrize(("write", "keeps"), FORMATS)
def test_voxels_and_geometry(write, keeps, tmp_path, capfd):
    array = slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32)
    path = write(tmp_path, array)
    capfd.readouterr()
    volume = read_volume(str(path))
    for index in itertools.product(*map(range, SHAPE)):
        assert volume.array[index] == 20 + 3 * index[0] - 2 * index[1] + index[2], index
    assert volume.array.dtype == array.dtype and volume.array.shape == SHAPE
    place = in_ras(volume.geometry) if ".nii" in path.name else volume.geometry
    assert volume.geometry.spacing == (SPACING if "s" in keeps else (1.0, 1.0, 1.0))
    assert place.origin == (ORIGIN if "o" in keeps else (0.0, 0.0, 0.0))
    assert place.direction == IDENTITY
    assert volume.geometry.units == ("kg" if "u" in keeps else "")
    assert ("rho" in volume.geometry.name) == ("n" in keeps)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("direction", [TURNED, MIRRORED])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if "d" in f.values[1]])
def test_direction(write, keeps, direction, tmp_path):
    if write is write_dicom and direction == MIRRORED:
        pytest.skip("DICOM has no left-handed volumes")
    array = slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32)
    volume = read_volume(str(write(tmp_path, array, direction)))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.geometry.direction, direction, atol=1e-7)
    np.testing.assert_allclose(volume.geometry.spacing, SPACING, rtol=1e-7)
    np.testing.assert_allclose(volume.geometry.origin, ORIGIN, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "float64"])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id != "dicom" and "tif" not in f.id])
def test_types(write, keeps, dtype, tmp_path):
    array = (slanted(SHAPE) - 25 * (dtype != "uint8")).astype(dtype)
    found = read_volume(str(write(tmp_path, array))).array
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id != "dicom"])
def test_truncated(write, keeps, share, tmp_path, capfd):
    array = np.random.default_rng(0).standard_normal((12, 10, 8)).astype(np.float32)
    path = write(tmp_path, array)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * share)])
    capfd.readouterr()
    assert str(data.stem) in refusal(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("write", "keeps"), FORMATS)
def test_a_damaged_header(write, keeps, tmp_path):
    """Refused, or read as finite numbers: never another exception. VTK's readers crash on some of these."""
    path = write(tmp_path, slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32))
    files = [path] if path.is_file() else list(path.glob("*.dcm"))
    rng = np.random.default_rng(len(str(path.name)))
    for _ in range(6):
        file = files[int(rng.integers(len(files)))]
        content = bytearray(sound := file.read_bytes())
        for _ in range(3):
            at = int(rng.integers(min(len(content), 400)))
            content[at : at + 4] = [b"9999", b"\xff\xff\xff\x7f", b"\0\0\0\0", rng.bytes(3)][int(rng.integers(4))]
        file.write_bytes(content)
        with contextlib.suppress(VolumeError):
            assert np.isfinite(read_volume(str(path)).array).all()
        file.write_bytes(sound)


def file_of_voxels(path: Path) -> Path:
    """The file itself, that beside a header, or the second slice of a folder."""
    beside = {".mhd": "a.raw", ".nhdr": "voxels.gz"}
    return path / "0.dcm" if path.is_dir() else path.with_name(beside.get(path.suffix, path.name))


CHECKSUMMED = ("a.vti-", "a.VTI-SetDataModeToAppended-EncodeAppendedDataOff", "a.nii.gz-", "a.nhdr", "a.mha-")
CHECKSUMMED += ("a.vti-SetByteOrderToBigEndian-SetCompressorTypeToLZMA",)


@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id not in CHECKSUMMED])
def test_a_changed_voxel_is_no_other(write, keeps, tmp_path):
    array = np.arange(1000, 1024, dtype=np.uint16 if write is write_dicom else np.float32).reshape(SHAPE)
    changed = array.copy()
    changed[2, 1, 1] = 2019
    path = write(tmp_path, array)
    file = file_of_voxels(path)
    content = file.read_bytes()
    old, new = (
        (a[2, 1, 1].tobytes(), a[2, 1, 1].byteswap().tobytes(), str(int(a[2, 1, 1])).encode()) for a in (array, changed)
    )
    form = next(i for i in range(3) if content.count(old[i]) == 1)
    file.write_bytes(content.replace(old[form], new[form]))
    np.testing.assert_array_equal(read_volume(str(path)).array, changed)


@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id in CHECKSUMMED])
def test_damaged_voxels_are_noticed(write, keeps, tmp_path):
    """By the checksum of what is compressed. Not everything in such a file matters."""
    array = np.arange(1000, 1024, dtype=np.float32).reshape(SHAPE)
    path = write(tmp_path, array)
    file, n_refused = file_of_voxels(path), 0
    content = file.read_bytes()
    for at in range(len(content) // 2, len(content), 1 + len(content) // 30):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            np.testing.assert_array_equal(read_volume(str(path)).array, array)
        except VolumeError:
            n_refused += 1
    assert n_refused > 5


@pytest.mark.parametrize(
    "suffix", [".vti", ".vtk", ".vtkhdf", ".hdf", ".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz"]
)
@pytest.mark.parametrize("content", [b"", b"hello\n" * 20, b"<VTKFile type='PolyData'></VTKFile>"])
def test_foreign(suffix, content, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert f"a{suffix}: " in refusal(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("name", [b"4096", b"99999999"])
@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if f.id.startswith(("a.vtk-", "a.m", "a.nrrd"))])
def test_sizes_that_are_not_there(write, keeps, name, tmp_path):
    """Refused before anything is allocated for them."""
    path = write(tmp_path, slanted(SHAPE))
    content = path.read_bytes()
    assert content.count(b"4 3 2") == 1
    path.write_bytes(content.replace(b"4 3 2", name + b" 999 999"))
    assert "expected" in refusal(path) or "VTK" in refusal(path)


@pytest.mark.parametrize(("write", "keeps"), [f for f in FORMATS if not f.id.startswith(("a.v", "a.V", "a.hdf"))])
def test_options_that_a_format_does_not_need(write, keeps, tmp_path):
    path = write(tmp_path, slanted(SHAPE).astype(np.uint16))
    assert "--array" in refusal(path, array="rho")
    if write is not write_raw:
        assert "--shape, --dtype and --endian" in refusal(path, layout=RawLayout(SHAPE, "uint16"))


def test_what_is_not_compressed_is_mapped(tmp_path):
    """Nothing of a large file is in memory before it is looked at; nor where its values are turned over by VTK."""
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), pixdim=(-1, *SPACING, 1, 1, 1, 1), q=(0, 0, 0, *ORIGIN)))
    write_meta(tmp_path / "a.mha", slanted(SHAPE))
    write_meta(tmp_path / "a.mhd", slanted(SHAPE), ElementDataFile="a.raw")
    (tmp_path / "a.raw").write_bytes(slanted(SHAPE).tobytes("F"))
    for name in ("a.nii", "a.mha", "a.mhd", write_nrrd(tmp_path, slanted(SHAPE)), write_raw(tmp_path, slanted(SHAPE))):
        found = read_volume(str(tmp_path / name)).array
        assert isinstance(found, np.memmap) and not found.flags.writeable
        np.testing.assert_array_equal(found, slanted(SHAPE))
    (tmp_path / "a.nii").write_bytes(nifti(slanted((4, 1, 1)), ">"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nii")).array, slanted((4, 1, 1)))


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)])
@pytest.mark.parametrize("more", [b"", bytes(24)], ids=["none", "24"])
def test_more_packed_voxels_than_a_header_tells_of(more, encoding, pack, tmp_path, capfd):
    content = slanted(SHAPE).tobytes(order="F") + more
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(slanted(SHAPE), encoding=encoding) + b"\n" + pack(content))
    write_meta(tmp_path / "a.mha", slanted(SHAPE), CompressedData="True")
    header = (tmp_path / "a.mha").read_bytes().partition(b"LOCAL\n")[0]
    (tmp_path / "a.mha").write_bytes(header + b"LOCAL\n" + zlib.compress(content))
    for name in ("a.nrrd", "a.mha"):
        np.testing.assert_array_equal(read_volume(str(tmp_path / name)).array, slanted(SHAPE))
        assert ("24 bytes follow the voxels" in capfd.readouterr().err) == bool(more)


def test_numbers_that_overflow_are_refused_in_one_line(tmp_path):
    """Without a warning of NumPy's before it."""
    (tmp_path / "a.nii").write_bytes(nifti(slanted(SHAPE), slope=3e38))
    write_meta(tmp_path / "a.mha", slanted(SHAPE), ElementSpacing="1e300 1 1")
    with warnings.catch_warnings(action="error"):
        assert "expected finite values" in refusal(tmp_path / "a.nii")
        assert "expected axes of finite length" in refusal(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        *[(name, "nibabel.save(nibabel.load({!r}), ") for name in ("a.hdr", "a.img", "a.img.gz", "a.mgz")],
        ("a.mrc", "mrcfile.open({!r}).data.T"),
        ("a.CZI", "Fiji opens it"),
        ("a.grib2", "xarray's engine='cfgrib' and to_netcdf"),
        ("{a}.fits", "astropy.io.fits.getdata({!r}).T"),
        ("{a}.segy", "segyio.tools.cube({!r})"),
        ("a.nek5000", "open it in ParaView"),
        ("CHGCAR", "pymatgen.io.vasp.Chgcar.from_file({!r})"),
        ("a.txm", "dxchange.read_txrm({!r})[0].T"),
        ("a.bov", "--volume takes its DATA_FILE"),
        ("a.vgi", "--volume takes the .vol file"),
    ],
)
def test_files_of_other_formats_have_a_way_out(name, way_out, tmp_path):
    (tmp_path / name).write_bytes(b"\x5c\1" + bytes(346))
    message = refusal(tmp_path / name)
    assert " files are not read: " in message and way_out.format(str(tmp_path / name)) in message


def test_a_header_of_envi_is_no_scan(tmp_path):
    (tmp_path / "a.hdr").write_text("ENVI\nsamples = 5\n")
    assert "or a headerless file with --shape and --dtype" in refusal(tmp_path / "a.hdr")


@pytest.mark.parametrize(("module", "packages"), [("pydicom", "pydicom"), ("tifffile", "tifffile imagecodecs")])
def test_a_reader_that_is_not_installed(module, packages, tmp_path, monkeypatch):
    """One line, with the way out."""
    array = slanted(SHAPE).astype(np.uint16)
    path = write_dicom(tmp_path, array) if module == "pydicom" else write_tiff(tmp_path, array)
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(path).endswith(f": a file of this format needs {module}: pip install {packages}")
