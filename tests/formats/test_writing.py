"""Volumes to files: what other readers than ours find in them."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers.scripts import ROOT, listing
from helpers.volumes import TURNED, slanted, whole
from helpers.vtk import vtk_read
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOXML import vtkXMLImageDataReader

from cli import files
from formats import slabs, zarr
from formats.arrays import LazyArray
from formats.common import VolumeError, suffix_of
from formats.reading import read_volume
from formats.writing import SUFFIXES, output_files, output_path, write_volume
from utils import DEFAULT_NAME, DTYPES, IDENTITY, Geometry, UserError, Volume

pytestmark = pytest.mark.usefixtures("quick_vtk")

SPACING, ORIGIN = (0.1, 2 / 3, 3.0), (-1.5, 10.1, 0.25)
SHAPE = (11, 4, 3)  # VTK takes a first axis of up to 9 in a NRRD file for components
IMAGES = (".vti", ".nrrd", ".mhd", ".mha", ".nii", ".nii.gz")  # that VTK reads


def volume_of(array, direction=IDENTITY, **fields) -> Volume:
    d_in = len(fields.get("spacing", SPACING))
    rest = {key: fields.pop(key) for key in ("fill", "time") if key in fields}
    geometry = Geometry(**{"spacing": SPACING, "origin": ORIGIN[:d_in], "direction": direction, **fields})
    return Volume(array, geometry, **rest)


def vectors(n: int, shape=SHAPE) -> np.ndarray:
    return np.stack([slanted(shape) * (c + 1) - 7 * c for c in range(n)], axis=-1)


def lazy(array: np.ndarray) -> tuple[LazyArray, np.ndarray]:
    """The array in boxes, and how often each of its voxels has been asked for."""
    counts = np.zeros(array.shape[:3], int)

    def evaluate(box):
        counts[box] += 1
        return array[box]

    return LazyArray(array.shape, array.dtype, evaluate, len(SHAPE)), counts


def never(box):
    raise AssertionError("evaluated")


# --- what other readers find ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", IMAGES)
def test_values_and_geometry_through_vtks_own_reader(tmp_path, suffix, dtype):
    array, path = slanted(SHAPE).astype(dtype), tmp_path / f"a b{suffix}"
    if suffix in (".mhd", ".mha") and dtype in ("int64", "uint64"):
        with pytest.raises(VolumeError, match=f"MetaImage cannot hold {dtype}"):
            write_volume(str(path), volume_of(LazyArray(SHAPE, np.dtype(dtype), never)))
        return
    write_volume(str(path), volume_of(array))
    found = vtk_read(path)
    assert found.dimensions == SHAPE
    np.testing.assert_array_equal(found.array, array)
    names = {"int8": "(signed )?char", "int64": "long.*", "uint64": "unsigned long.*", "float64": "double"}
    names |= {"uint8": "unsigned char", "int16": "short", "uint16": "unsigned short", "int32": "int"}
    assert re.fullmatch({**names, "uint32": "unsigned int"}.get(dtype, "float"), found.type)
    if ".nii" in suffix:  # float32; VTK leaves the origin to the matrix
        np.testing.assert_array_equal(found.spacing, np.float32(SPACING))
    else:
        np.testing.assert_allclose(found.spacing, SPACING, rtol=1e-15)
        assert found.origin == ORIGIN


@pytest.mark.parametrize("suffix", IMAGES)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_components(tmp_path, suffix, n):
    path = tmp_path / f"v{suffix}"
    write_volume(str(path), volume_of(vectors(n)))
    np.testing.assert_array_equal(vtk_read(path).array, vectors(n))


@pytest.mark.parametrize("suffix", IMAGES)
@pytest.mark.parametrize("shape", [(11, 4), (11,)])
def test_fewer_axes(tmp_path, suffix, shape):
    path = tmp_path / f"image{suffix}"
    n = len(shape)
    write_volume(str(path), volume_of(slanted(shape), spacing=SPACING[:n]))
    found = vtk_read(path)
    assert found.dimensions == (*shape, 1, 1)[:3]
    np.testing.assert_allclose(found.spacing, (*SPACING[:n], 1, 1)[:3], rtol=1e-7)
    np.testing.assert_array_equal(found.array.reshape(shape), slanted(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 3), (4, 3)])
def test_npy_is_as_numpy_writes_it(tmp_path, dtype, shape):
    array = slanted(shape).astype(dtype)
    write_volume(str(tmp_path / "a.npy"), volume_of(array, spacing=SPACING[: min(len(shape), 3)]))
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_says_in_its_name_what_it_holds(tmp_path, dtype):
    array = slanted(SHAPE).astype(dtype)
    write_volume(str(tmp_path / "a.raw"), volume_of(array))
    assert set(listing(tmp_path)) == {f"a_11x4x3_{dtype}.raw"}
    found = np.fromfile(tmp_path / f"a_11x4x3_{dtype}.raw", np.dtype(dtype).newbyteorder("<"))
    assert found.size == array.size
    for x, y, z in np.ndindex(SHAPE):
        assert found[x + 11 * (y + 4 * z)] == array[x, y, z]


# --- where the voxels lie ---------------------------------------------------------------------------


def test_direction_and_units_of_a_vti(tmp_path):
    name = 'say "p" & <q>'
    volume = volume_of(slanted(SHAPE), TURNED, name=name, units="m/s & <K>")
    write_volume(str(tmp_path / "v.vti"), volume)
    found = vtk_read(tmp_path / "v.vti")
    assert (found.direction, found.origin, found.spacing, found.name) == (TURNED, ORIGIN, SPACING, name)
    again = read_volume(str(tmp_path / "v.vti"))
    assert (again.geometry.direction, again.geometry.units, again.geometry.name) == (TURNED, "m/s & <K>", name)


@pytest.mark.parametrize("direction", [IDENTITY, TURNED, (-1, 0, 0, 0, 1, 0, 0, 0, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_space_of_a_nifti(tmp_path, suffix, direction):
    """Every voxel lies where sform and qform put it, also where VTK turns the slices over to have right-handed axes."""
    path, array = tmp_path / f"a{suffix}", slanted(SHAPE)
    write_volume(str(path), volume_of(array, direction))
    found = vtk_read(path)
    header = found.reader.GetNIFTIHeader()
    assert (header.GetQFormCode(), header.GetSFormCode()) == (2, 2)
    assert (header.GetSclSlope(), header.GetSclInter(), header.GetVoxOffset()) == (1.0, 0.0, 352.0)
    for form in (found.reader.GetQFormMatrix(), found.reader.GetSFormMatrix()):
        matrix = np.reshape(form.GetData(), (4, 4))
        for index in np.ndindex(SHAPE):
            place = (matrix[:3, :3] @ np.multiply(index, found.spacing) + matrix[:3, 3]) * (-1, -1, 1)  # RAS to LPS
            ours = np.reshape(direction, (3, 3)).T @ (place - ORIGIN) / SPACING
            np.testing.assert_allclose(ours, np.rint(ours), atol=1e-4)
            assert found.array[index] == array[tuple(np.rint(ours).astype(int))]


def test_gzip_is_the_plain_file_and_the_same_every_time(tmp_path):
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        write_volume(str(tmp_path / name), volume_of(slanted(SHAPE)))
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == (tmp_path / "a.nii").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("n", [1, 3])
def test_nrrd_header(tmp_path, n):
    array = vectors(n) if n > 1 else slanted(SHAPE)
    write_volume(str(tmp_path / "a.nrrd"), volume_of(array, TURNED, name="rho\nencoding: gzip", units="K"))
    text, _, data = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    lines = text.decode().splitlines()
    fields = dict(line.split(": ", 1) for line in lines[1:])
    assert len(fields) == len(lines) - 1 and lines[0].startswith("NRRD000")
    assert fields["content"] == "rho encoding: gzip" and fields["sample units"] == '"K"'
    assert fields["encoding"] == "raw" and fields["endian"] == "little" and fields["type"] == "float"
    found = [[float(v) for v in step.strip("()").split(",")] for step in fields["space directions"].split()[-3:]]
    np.testing.assert_allclose(found, (np.reshape(TURNED, (3, 3)) * SPACING).T, rtol=1e-15)
    assert [float(v) for v in fields["space origin"].strip("()").split(",")] == list(ORIGIN)
    sizes = [int(size) for size in fields["sizes"].split()]
    stored = np.frombuffer(data, "<f4").reshape(sizes, order="F")
    np.testing.assert_array_equal(stored if n == 1 else np.moveaxis(stored, 0, -1), array)


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
def test_direction_of_a_metaimage(tmp_path, suffix):
    """Its matrix has the axes one after the other; VTK reads them as columns."""
    write_volume(str(tmp_path / f"a{suffix}"), volume_of(slanted(SHAPE), TURNED))
    found = np.reshape(vtk_read(tmp_path / f"a{suffix}").direction, (3, 3))
    np.testing.assert_array_equal(found.T, np.reshape(TURNED, (3, 3)))
    assert set(listing(tmp_path)) == ({"a.mhd", "a.raw"} if suffix == ".mhd" else {"a.mha"})


# --- .vti -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 32, 8), (64, 32, 16), (40, 33, 29), (200, 200, 3)])
def test_blocks_of_a_vti(tmp_path, shape):
    """One whole block, two, some and a part of one, planes larger than a block; whole and in part."""
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    path = tmp_path / "a.vti"
    write_volume(str(path), volume_of(array, name="rho θ"), {"b": vectors(3, shape)})
    reader = vtkXMLImageDataReader()
    reader.SetFileName(str(path))
    for extent in ((3, 9, 5, 30, 1, 2), (0, shape[0] - 1, 0, shape[1] - 1, 0, shape[2] - 1)):
        reader.UpdateExtent(extent)
        image = reader.GetOutput()
        assert image.GetExtent() == extent and image.GetPointData().GetScalars().GetName() == "rho θ"
        box = tuple(slice(extent[2 * i], extent[2 * i + 1] + 1) for i in range(3))
        sizes = image.GetDimensions()[::-1]
        for name, values in (("rho θ", array), ("b", vectors(3, shape))):
            found = vtk_to_numpy(image.GetPointData().GetArray(name)).reshape(*sizes, -1).transpose(2, 1, 0, 3)
            np.testing.assert_array_equal(found, values[box].reshape(found.shape))


@pytest.mark.parametrize("suffix", [".vti", ".nrrd", ".nc", ".zarr", ".tif"])
@pytest.mark.parametrize("name", ["", " ", "\u200b"])
def test_a_name_without_a_letter_becomes_the_usual_one(tmp_path, name, suffix):
    """VTK reads no array without a name."""
    write_volume(str(tmp_path / f"v{suffix}"), volume_of(slanted(SHAPE), name=name))
    volume = read_volume(str(tmp_path / f"v{suffix}"))
    np.testing.assert_array_equal(volume.array[...], slanted(SHAPE))
    assert volume.geometry.name == DEFAULT_NAME


def test_only_vti_holds_several_arrays(tmp_path):
    for suffix in set(SUFFIXES) - {".vti"}:
        with pytest.raises(VolumeError, match="holds one array, found 2"):
            write_volume(str(tmp_path / f"a{suffix}"), volume_of(slanted(SHAPE)), {"b": slanted(SHAPE)})
    assert listing(tmp_path) == {}


# --- .nc, .h5, .zarr, .tif --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nc", ".h5", ".zarr", ".tif"])
@pytest.mark.parametrize(
    "volume",
    [
        volume_of(slanted(SHAPE), name="rho x", units="K"),
        volume_of(slanted(SHAPE).astype(np.uint16), TURNED, name="v", space="LPS"),
        volume_of(vectors(3)),
        volume_of(slanted(SHAPE[:2]), (-1.0, 0, 0, 0, 1, 0, 0, 0, 1), spacing=SPACING[:2]),
        volume_of(slanted((SHAPE[0], 1, 1)), (1.0, 0, 0, 0, 1, 0, 0, 0, -1)),
        volume_of(slanted((*SHAPE[:2], 1)), TURNED),
        volume_of(slanted(SHAPE), fill=np.float32(20), time=4.5),
        volume_of(slanted((2, *SHAPE)), spacing=(2.0, *SPACING), origin=(7.0, *ORIGIN)),
    ],
    ids=["plain", "turned", "vectors", "image", "row", "turned slice", "step", "series"],
)
def test_all_comes_back(tmp_path, suffix, volume):
    """Values, place, name and units; the fill value and times too where the format has them."""
    path, d_in = str(tmp_path / f"a{suffix}"), volume.geometry.d_in
    if suffix == ".tif" and d_in == 4:
        with pytest.raises(VolumeError, match="holds up to three axes"):
            write_volume(path, volume)
        return
    write_volume(path, volume)
    found = read_volume(path, None if d_in == 4 else d_in)
    assert found.geometry == volume.geometry and found.array.dtype == volume.array.dtype
    assert suffix == ".tif" or (found.fill, found.time) == (volume.fill, volume.time)
    np.testing.assert_array_equal(whole(found.array), volume.array)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_as_xarray_reads_it(tmp_path, suffix):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    array = slanted((2, *SHAPE))
    geometry = {"spacing": (2.0, *SPACING), "origin": (7.0, *ORIGIN), "name": "rho", "units": "K"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Consolidated metadata")
        write_volume(str(tmp_path / f"a{suffix}"), volume_of(array, fill=array[0, 0, 0, 0], **geometry))
    engine = "zarr" if suffix == ".zarr" else "h5netcdf"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Failed to open Zarr store with consolidated metadata")
        data = xarray.open_dataset(tmp_path / f"a{suffix}", engine=engine)
    with data:
        rho = data.rho.transpose("t", "x", "y", "z")
        expected = np.where(array == array[0, 0, 0, 0], np.nan, array)
        np.testing.assert_array_equal(rho, expected)
        assert rho.units == "K"
        for axis, start, step in zip("txyz", geometry["origin"], geometry["spacing"], strict=True):
            np.testing.assert_allclose(rho[axis], start + step * np.arange(rho.sizes[axis]), rtol=1e-14)


def test_as_tifffile_reads_it(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    write_volume(str(tmp_path / "a.tif"), volume_of(slanted(SHAPE)))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.series[0].axes == "ZYX" and f'PhysicalSizeX="{SPACING[0]}"' in file.ome_metadata
        np.testing.assert_array_equal(file.asarray(), slanted(SHAPE).T)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_zarr_folder_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, at_once):
    """Nothing of the old one is left; a folder that is no Zarr, or that holds an input, is never replaced."""
    if not at_once:
        monkeypatch.setattr(files, "_exchange_at_once", lambda a, b: False)
    path = tmp_path / "a.zarr"
    write_volume(str(path), volume_of(slanted(SHAPE), name="old"))
    write_volume(str(path), volume_of(slanted((5, 4, 3))))
    assert read_volume(str(path)).array.shape == (5, 4, 3)
    assert {p.name for p in path.iterdir()} == {"sf", "x", "y", "z", "zarr.json"} and [*tmp_path.iterdir()] == [path]
    files.check_outputs([str(path)])
    with pytest.raises(UserError, match="would remove"):
        files.check_outputs([str(path)], [str(path / "zarr.json")])
    with pytest.raises(UserError, match="would overwrite"):
        files.check_outputs([str(path)], [str(path)])
    for child in (*path.iterdir(),):
        if child.name == "zarr.json":
            child.rename(path / "precious")
    with pytest.raises(UserError, match="is a folder: choose another name"):
        files.check_outputs([str(path)])
    with pytest.raises(UserError, match="cannot be written"):
        write_volume(str(path), volume_of(slanted(SHAPE)))
    assert (path / "precious").exists() and [*tmp_path.iterdir()] == [path]


def test_a_writer_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(VolumeError, match=r"a\.nc: a file of this format needs h5py: pip install h5py"):
        output_path("a.nc")


# --- slab by slab -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slab_bytes", [1, 700, 5000])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_in_slabs_is_the_same_file(tmp_path, monkeypatch, suffix, n, slab_bytes):
    """And asks for every voxel once; NIfTI, with the components slowest, once for each of them."""
    if n > 1 and suffix == ".raw":
        return
    array = vectors(n, (13, 11, 9)) if n > 1 else slanted((13, 11, 9))
    for folder in ("whole", "slabs"):
        (tmp_path / folder).mkdir()
    write_volume(str(tmp_path / "whole" / f"a{suffix}"), volume_of(array))
    monkeypatch.setattr(slabs, "SLAB_BYTES", slab_bytes)
    boxes, counts = lazy(array)
    write_volume(str(tmp_path / "slabs" / f"a{suffix}"), volume_of(boxes))
    assert (counts == (n if ".nii" in suffix else 1)).all()
    assert listing(tmp_path / "slabs") == listing(tmp_path / "whole")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_is_that_of_a_few_slabs(tmp_path, monkeypatch, suffix):
    shape = (64, 128, 512)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 1 << 20)
    boxes = LazyArray(shape, np.dtype("f4"), lambda box: np.zeros([part.stop - part.start for part in box], "f4"))
    write_volume(str(tmp_path / f"warm{suffix}"), volume_of(slanted(SHAPE)))
    tracemalloc.start()
    write_volume(str(tmp_path / f"a{suffix}"), volume_of(boxes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20  # of 16 MiB


def test_small_nifti_vectors_are_evaluated_once(tmp_path):
    boxes, counts = lazy(vectors(3))
    write_volume(str(tmp_path / "a.nii"), volume_of(boxes))
    assert (counts == 1).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_old_files_stay_when_the_values_fail(tmp_path, monkeypatch, suffix):
    write_volume(str(tmp_path / f"a{suffix}"), volume_of(slanted(SHAPE)))
    before = listing(tmp_path)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 1)
    monkeypatch.setitem(zarr.CHUNK, "z", 1)

    def evaluate(box):
        if max(box[0].start, box[2].start) > 1:
            raise KeyboardInterrupt
        return slanted(SHAPE)[box] + 1

    with pytest.raises(KeyboardInterrupt):
        write_volume(str(tmp_path / f"a{suffix}"), volume_of(LazyArray(SHAPE, np.dtype("f4"), evaluate)))
    assert listing(tmp_path) == before


# --- what is refused, before anything is evaluated --------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_refused_by_the_system(tmp_path, suffix):
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_volume(str(tmp_path / "no" / f"a{suffix}"), volume_of(slanted(SHAPE)))


@pytest.mark.parametrize("suffix", [".h5", ".nc"])
@pytest.mark.parametrize("n_bytes", [600, 9000])  # the values are 8192; a file of HDF5 is some kB larger
def test_a_full_disk_is_an_error_and_ends_no_process(tmp_path, suffix, n_bytes):
    pytest.importorskip("resource")
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from formats.writing import write_volume
from utils import Geometry, UserError, Volume
resource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, {n_bytes}))
try:
    write_volume("a{suffix}", Volume(np.ones((16, 16, 8), "f4"), Geometry.plain(3)))
except UserError as error:
    sys.exit(str(error))
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (1, f"a{suffix}: cannot be written: File too large\n")
    assert listing(tmp_path) == {}


def test_output_names():
    assert output_path("a b/recon") == "a b/recon.vti"
    assert output_path("v1.2/recon") == "v1.2/recon.vti"
    assert output_path("recon.VTI") == "recon.VTI"
    assert output_path("recon.nii.gz") == "recon.nii.gz"
    assert suffix_of("a.b/C.NPY") == ".npy" and suffix_of("a.b.NII.gz") == ".nii.gz"
    for path, suffix in (("recon.stl", ".stl"), ("recon.nii.bz2", ".bz2"), ("recon.gz", ".gz")):
        with pytest.raises(VolumeError, match=re.escape(f"{path}: cannot write {suffix} files")):
            output_path(path)


def test_names_of_files():
    dtype = np.dtype("uint8")
    assert output_files("d/a.vti", (4, 3, 2), dtype) == ["d/a.vti"]
    assert output_files("d.x/a.mhd", (4, 3, 2), dtype) == ["d.x/a.mhd", "d.x/a.raw"]
    assert output_files("d/a.raw", (4, 3, 2), dtype) == ["d/a_4x3x2_uint8.raw"]
    assert output_files("d/a_b_4x3x2_uint8.raw", (4, 3, 2), dtype) == ["d/a_b_4x3x2_uint8.raw"]
    assert output_files("a_4x3x2_uint8/b.raw", (4, 3), dtype) == ["a_4x3x2_uint8/b_4x3x1_uint8.raw"]
    for wrong in ("a_4x3x3_uint8.raw", "a_4x3x2_int8.raw", "a_2x3x4_uint8.raw", "a_4x3x2_byte.raw"):
        with pytest.raises(VolumeError, match=re.escape(f"{wrong}: expected a name that ends in _4x3x2_uint8.raw")):
            output_files(wrong, (4, 3, 2), dtype)
    for wrong in ("50%.mhd", "LIST of.mhd"):
        with pytest.raises(VolumeError, match=re.escape("use .mha")):
            output_files(wrong, (4, 3, 2), dtype)


def test_what_a_format_cannot_hold(tmp_path):
    def refusal(name: str, shape, dtype="float32", **fields) -> str:
        with pytest.raises(VolumeError) as caught:
            write_volume(str(tmp_path / name), volume_of(LazyArray(shape, np.dtype(dtype), never), **fields))
        assert str(caught.value).startswith(str(tmp_path / name))
        assert listing(tmp_path) == {}
        return str(caught.value)

    assert "no place for 3 components" in refusal("a.raw", (4, 3, 2, 3))
    assert "32767 voxels an axis" in refusal("a.nii", (4, 3, 32768))
    assert "32767 voxels an axis" in refusal("a.nii.gz", (32768, 3, 2))
    assert "float32 in NIfTI" in refusal("a.nii", (4, 3, 2), origin=(0.0, 1e39, 0.0))
    assert "float32 in NIfTI" in refusal("a.nii", (4, 3, 2), spacing=(1.0, 1e-60, 1.0))
    # 5000000.3 becomes 5000000.5, as much as two voxels away.
    far = refusal("a.nii", (4, 3, 2), spacing=(0.1, 0.1, 0.1), origin=(0.0, 5000000.3, 0.0))
    assert "float32 in NIfTI, found (0.1, 0.1, 0.1), (0.0, 5000000.3, 0.0): .nc keeps them" in far


@pytest.mark.parametrize("suffix", [".mha", ".nii"])
def test_units_that_differ_by_axis_are_told(suffix, tmp_path, capfd):
    """As of a model whose x and y are in km, and z in m."""
    units = {"units_x": "km", "units_y": "km", "units_z": "m"}
    place = Geometry((2.0, 2.0, 50.0), (0.0, 0.0, 0.0), axis_attributes=units)
    path = str(tmp_path / f"a{suffix}")
    write_volume(path, Volume(np.zeros((4, 3, 2), np.float32), place))
    assert "its lengths are in km, m, which others take for mm" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "unit", "is_told"),
    [(".mha", "\u00b5m", True), (".mha", "mm", False), (".nii", "micrometer", False), (".nii", "nm", True)],
)
def test_a_unit_of_length_that_a_format_does_not_hold_is_told(suffix, unit, is_told, tmp_path, capfd):
    """OME-Zarr spells units out."""
    place = Geometry((0.5, 0.5, 2.0), (0.0, 0.0, 0.0), axis_attributes={f"units_{axis}": unit for axis in "xyz"})
    path = str(tmp_path / f"a{suffix}")
    write_volume(path, Volume(np.zeros((4, 3, 2), np.float32), place))
    assert ("take for mm" in capfd.readouterr().err) == is_told
    if unit == "micrometer":
        assert read_volume(path).geometry.spacing == pytest.approx((0.0005, 0.0005, 0.002))
