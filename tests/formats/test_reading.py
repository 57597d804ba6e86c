"""Files to arrays and back; every file that is no volume is refused."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import volume_files
from helpers.volume_files import plain_nrrd_header
from helpers.volumes import slanted

from formats.common import VolumeError
from formats.raw import RawLayout, raw_layout
from formats.reading import read_volume, source_files
from formats.writing import write_volume
from utils import DTYPES, Geometry, Volume

pytestmark = pytest.mark.usefixtures("quick_vtk")

NATIVE = "<" if sys.byteorder == "little" else ">"


def saved(folder, array, name="a b.npy"):
    path = folder / name
    np.save(path, array, allow_pickle=True)
    return str(path)


def refusal(path, *args, **keywords) -> str:
    message = volume_files.refusal(path, *args, **keywords)
    assert message.startswith(f"{path}: ")
    return message


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_keeps_values_and_type(tmp_path, dtype, endian, order):
    """What need not be copied is not: nothing of a large file is in memory before it is looked at."""
    array = slanted((4, 3, 2)).astype(np.dtype(dtype).newbyteorder(endian), order=order)
    volume = read_volume(saved(tmp_path, array))
    assert volume.array.dtype == np.dtype(dtype) and volume.array.dtype.isnative
    is_mapped = np.dtype(dtype).itemsize == 1 or endian == NATIVE
    assert isinstance(volume.array, np.memmap) == is_mapped != volume.array.flags.writeable
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry == Geometry.plain(3) and volume.geometry.name == "sf"


@pytest.mark.parametrize(("stored", "expected"), [("bool", np.uint8), ("longdouble", np.float64)])
def test_types_that_no_format_holds_become_others(tmp_path, stored, expected):
    array = (slanted((4, 3, 2)) % 3).astype(stored)
    read = read_volume(saved(tmp_path, array)).array
    assert read.dtype == expected and len(np.unique(read)) > 1
    np.testing.assert_array_equal(read, array)


@pytest.mark.filterwarnings("error")
@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="long double is double here")
def test_long_double_beyond_float64_is_refused_without_a_warning(tmp_path):
    array = np.ones((2, 2, 2), np.longdouble)
    array[1, 0, 1] = np.longdouble("1e400")
    assert "(1, 0, 1)" in refusal(saved(tmp_path, array))


def test_npy_needs_no_suffix(tmp_path):
    np.save(tmp_path / "a.npy", slanted((3, 2, 2)))
    (tmp_path / "a.npy").rename(tmp_path / "a.volume")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.volume")).array, slanted((3, 2, 2)))


# --- what is refused --------------------------------------------------------------------------------


def test_options_that_a_file_does_not_need(tmp_path):
    path = saved(tmp_path, np.ones((4, 3, 2)))
    said = refusal(path, layout=RawLayout((4, 3, 2), "f4"))
    assert "--shape, --dtype and --endian describe headerless files" in said
    assert "--array" in refusal(path, array="T")
    assert raw_layout(None, None, None) is None
    (tmp_path / "a.raw").write_bytes(bytes(24))
    for given in ((None, None, None), ((4, 3, 2), None, None), (None, "uint8", "big"), (None, None, "big")):
        assert "a.raw: a headerless file: expected both" in refusal(tmp_path / "a.raw", layout=raw_layout(*given))


def test_missing_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "missing.npy")


@pytest.mark.parametrize("name", ["a [1]", "a.vti"])
def test_a_folder_says_what_it_holds_and_what_to_type(name, tmp_path):
    """What it proposes is read."""
    folder = tmp_path / name
    folder.mkdir()
    assert "is empty" in refusal(folder)
    assert f"1 folders, none of them a volume: --volume {shlex.quote(str(folder))} looks there" in refusal(tmp_path)
    (folder / "notes.txt").touch()
    for n_steps, said in ((1, "found 1 .npy files"), (2, "found 2 .npy files")):
        saved(folder, slanted((4, 3, 2)), f"step {n_steps}.npy")
        message = refusal(folder)
        assert said in message
        path = shlex.split(message[message.index("--volume") :])[1]
        assert read_volume(path).array.shape == ((4, 3, 2) if n_steps == 1 else (2, 4, 3, 2))


@pytest.mark.parametrize(
    ("name", "start", "said"),
    [
        ("a.raw.gz", b"\x1f\x8b\x08", "found a packed file: unpack it first"),
        ("a.npy.bz2", b"BZh9", "found a packed file: unpack it first"),
        ("thenet.pth", b"PK\3\4", "found a network: net_compress.py --net reads it"),
        ("a.zarr.zip", b"PK\3\4", "found a packed file: unpack it first"),
        ("a.png", b"\x89PNG", "found a picture: ImageJ's File > Import > Image Sequence makes one .tif"),
        ("a.xdmf", b"<Xdmf>", "only names the files that hold the values: open it in ParaView"),
    ],
)
def test_files_of_other_kinds_have_a_way_out(name, start, said, tmp_path):
    (tmp_path / name).write_bytes(start + bytes(24))
    assert said in refusal(tmp_path / name)
    if name == "a.raw.gz":
        layout = RawLayout((3, 3, 3), "uint8")
        assert said in refusal(tmp_path / name, layout=layout)
        (tmp_path / name).write_bytes(bytes(27))  # not packed, whatever its name says
        assert read_volume(str(tmp_path / name), layout=layout).array.shape == (3, 3, 3)
    if name == "a.png":
        assert "found 1 files and 0 folders, none of them a volume: ImageJ's File > Import" in refusal(tmp_path)
        (tmp_path / "slices").mkdir()  # as of a disc of DICOM, beside a logo
        assert "slices looks there" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("folder", "file", "said"),
    [
        ("Level_0", "Header", "a plotfile of AMReX, of several grids: open it in ParaView"),
        ("s0", "attributes.json", "found N5: Fiji's"),
    ],
)
def test_folders_of_other_formats_have_a_way_out(folder, file, said, tmp_path):
    (tmp_path / folder).mkdir()
    (tmp_path / file).touch()
    assert said in refusal(tmp_path)


@pytest.mark.parametrize(("n_steps", "shape"), [(3, (3, 4, 3, 2)), (1, (4, 3, 5))])
def test_a_folder_of_files_that_are_not_alike_says_so(n_steps, shape, tmp_path):
    """What it proposes is read: the steps of a series beside other arrays, or one array."""
    saved(tmp_path, slanted((4, 3, 5)), "mask.npy")
    for k in range(n_steps):
        saved(tmp_path, slanted((4, 3, 2)), f"step_{k}.npy")
    saved(tmp_path, slanted((4, 3, 2)).astype(np.uint8), "step_labels.npy")
    message = refusal(tmp_path)
    assert "mask.npy (4, 3, 5) float32, step_0.npy (4, 3, 2) float32" in message
    assert message.endswith(f"reads {n_steps} of them")
    assert read_volume(shlex.split(message[message.index("--volume") :])[1]).array.shape == shape
    with pytest.raises(VolumeError, match="have to be alike"):
        read_volume(f"{tmp_path}/*.npy")


@pytest.mark.parametrize("unreadable", ["a.nrrd", "v.raw"])
def test_a_header_or_its_voxels_that_cannot_be_opened(unreadable, tmp_path, monkeypatch):
    """One line, also where the names of all files are asked for first, as the scripts do."""
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((4, 3, 2), "data file: v.raw"))
    slanted((4, 3, 2)).tofile(tmp_path / "v.raw")
    opened = open

    def refuse(path, *rest, **more):
        if str(path).endswith(unreadable):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr("builtins.open", refuse)
    assert source_files(str(tmp_path / "a.nrrd"))[0] == str(tmp_path / "a.nrrd")
    assert "Permission denied" in volume_files.refusal(tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["a.npy", "a.txt", "a"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93NUM", "expected a volume (.npy .nrrd"),
        (b"hello\n" * 50, "found b'hello"),
        (b"", "is empty"),
        (b"\x93NVC\1", "found a blob: net_decompress.py"),
    ],
)
def test_not_an_array(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


class Bomb:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_object_arrays_are_never_unpickled(tmp_path):
    array = np.empty((2, 2, 2), object)
    array[:] = Bomb(str(tmp_path / "exploded"))
    assert "never unpickled" in refusal(saved(tmp_path, array))
    assert not (tmp_path / "exploded").exists()


def test_object_fields(tmp_path):
    assert "never unpickled" in refusal(saved(tmp_path, np.zeros((2, 2, 2), [("a", object)])))


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "U4", "S4", "datetime64[s]", "timedelta64[s]"])
def test_not_real_numbers(tmp_path, dtype):
    array = np.zeros((2, 2, 2), dtype)
    message = refusal(saved(tmp_path, array))
    assert f"expected integers or floats, found dtype {array.dtype}" in message
    assert ("array.real" in message) == (array.dtype.kind == "c")


def test_a_field_of_records_is_a_volume(tmp_path, monkeypatch):
    """The way out of the message leads to the values."""
    monkeypatch.chdir(tmp_path)
    array = np.zeros((4, 3, 2), [("it's", "f4"), ("v", "f4", 3)])
    array["it's"] = slanted((4, 3, 2))
    message = refusal(saved(tmp_path, array))
    assert "expected integers or floats" in message
    exec(re.search(r"NumPy's (.*) saves one field", message)[1], {"np": np})
    np.testing.assert_array_equal(read_volume("field.npy").array, array["it's"])


def test_both_parts_of_complex_values_are_two_components(tmp_path):
    array = np.full((4, 3, 2), 1 + 2j)
    assert "np.stack([array.real, array.imag], axis=-1), with --d_out 2, keeps" in refusal(saved(tmp_path, array))
    parts = saved(tmp_path, np.stack([array.real, array.imag], axis=-1))
    np.testing.assert_array_equal(read_volume(parts, d_out=2).array, np.broadcast_to([1, 2], (4, 3, 2, 2)))


@pytest.mark.parametrize(
    ("d_in", "d_out", "shapes"),
    [
        (3, 1, [(), (8,), (4, 2), (2, 2, 2, 1), (1, 2, 2, 2)]),
        (None, None, [(), (8,), (4, 2)]),  # fewer axes must be asked for
        (3, 3, [(4, 3, 2), (4, 3, 2, 2), (2, 4, 3, 2, 1)]),
        (None, 3, [(2, 3, 4, 5)]),
        (4, None, [(2, 3, 4)]),
        (4, 2, [(1,) * 6]),
    ],
)
def test_wrong_number_of_axes_or_components(tmp_path, d_in, d_out, shapes):
    form = f"{d_in or 3} axes" + (f" and {d_out} components" if d_out in (2, 3) else "")
    for shape in shapes:
        message = refusal(saved(tmp_path, np.ones(shape)), d_in, d_out)
        assert f"expected {form}, found shape {shape}" in message and ("--d_in 2" in message) == (len(shape) == 2)


def test_z_is_no_axis_of_components_unless_that_is_said(tmp_path):
    """As --d_in 2 may ask for a plane along x and z."""
    path = str(tmp_path / "a.nrrd")
    write_volume(path, Volume(slanted((4, 1, 3)), Geometry.plain(3)))
    assert "expected 2 axes, found shape (4, 1, 3): leave --d_in out" in refusal(path, 2)
    assert read_volume(path, 2, 3).values.shape == (4, 1, 3)


@pytest.mark.parametrize(
    ("shape", "d_in", "d_out", "found"),
    [
        ((2, 3, 4), None, None, 3),
        ((2, 3, 4, 5), None, None, 4),
        ((2, 3, 4, 5), None, 1, 4),
        ((2, 3, 4, 5), None, 5, 3),
        ((2, 3, 4, 5), 3, None, 3),
        ((5, 4, 3, 2), 3, None, 3),
        ((5, 4, 3, 2), 4, None, 4),
        ((5, 4, 3, 2), None, 1, 4),
        ((5, 4, 3, 2), None, 2, 3),
        ((2, 3, 4, 5), 3, 5, 3),
        ((2, 3, 4, 5), 4, None, 4),
        ((1, 2, 3, 4, 5), None, None, 4),
        ((1, 2, 3, 4, 5), None, 5, 4),
        ((2, 3), 2, None, 2),
        ((2, 3, 4), 2, None, 2),
        ((2, 3, 4), 2, 4, 2),
    ],
)
def test_axes_and_components_that_the_array_has(tmp_path, shape, d_in, d_out, found):
    volume = read_volume(saved(tmp_path, np.ones(shape)), d_in, d_out)
    assert volume.array.shape == shape and volume.geometry == Geometry.plain(found)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 9])
def test_four_axes_that_may_be_of_time_or_of_components(tmp_path, n):
    message = refusal(saved(tmp_path, np.ones((20, 16, 12, n))))
    assert f"expected --d_in 4 (a time series) or --d_out {n} (components)" in message
    assert f"shape (20, 16, 12, {n})" in message


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 0)])
def test_empty(tmp_path, shape):
    assert f"is empty: shape {shape}" in refusal(saved(tmp_path, np.ones(shape)))


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "longdouble"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, dtype, bad):
    array = np.ones((4, 3, 2), dtype)
    array[3, 0, 0] = array[1, 2, 1] = bad
    message = refusal(saved(tmp_path, array))
    assert "found 2 NaN or infinite" in message and "the first at (1, 2, 1)" in message


def test_range_beyond_float64(tmp_path):
    array = np.array([-1.5e308, 1.5e308]).reshape(2, 1, 1)
    assert "overflows float64: if they mark missing voxels, train.py --fill" in refusal(saved(tmp_path, array))


def test_every_truncation_of_a_npy(tmp_path):
    content = Path(saved(tmp_path, slanted((3, 2, 2)))).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.npy").write_bytes(content[:length])
        refusal(tmp_path / "cut.npy")


def test_corrupted_npy_headers(tmp_path):
    """Every damage of one byte of the header is refused or harmless, never another exception."""
    content = bytearray(Path(saved(tmp_path, slanted((3, 2, 2)))).read_bytes())
    for at in range(128):
        for damage in b"\x00'(9\xff":
            changed = content.copy()
            changed[at] = damage
            (tmp_path / "damaged.npy").write_bytes(changed)
            with contextlib.suppress(VolumeError):
                assert read_volume(str(tmp_path / "damaged.npy")).array.size <= 12


def test_announced_size_is_checked_before_it_is_allocated(tmp_path):
    content = Path(saved(tmp_path, np.ones((2, 2, 2)))).read_bytes()
    for shape in (b"(2, 2, 9**9),", b"(99999999999, 9, 9),", b"(-2, -2, 2), "):
        (tmp_path / "huge.npy").write_bytes(content.replace(b"(2, 2, 2), }" + b" " * (len(shape) - 11), shape + b"}"))
        refusal(tmp_path / "huge.npy")


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_header_that_names_a_file_elsewhere_is_told(suffix, tmp_path, capsys):
    """It may come from a stranger, and the file hold what is nobody's business."""
    (tmp_path / "a").mkdir()
    for voxels in (tmp_path / "secret", tmp_path / "a" / "v.raw", tmp_path / "a" / "größe.raw"):
        voxels.write_bytes(bytes(range(6)))
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 3 2 1\nencoding: raw\ndata file: {}\n\n"
    if suffix == ".mhd":
        header = "NDims = 3\nDimSize = 3 2 1\nElementType = MET_UCHAR\nBinaryData = True\nElementDataFile = {}\n"
    elsewhere = "../secret", str(tmp_path / "secret")
    for name, is_told in (("v.raw", False), ("größe.raw", False), *((name, True) for name in elsewhere)):
        path = tmp_path / "a" / f"h{suffix}"
        path.write_text(header.format(name), encoding="utf-8")
        assert read_volume(str(path)).array.size == 6
        assert ("outside its folder" in capsys.readouterr().err) == is_told


def test_files_that_a_volume_is_read_from(tmp_path):
    """The header, and what it names; slices; steps; never more than there is."""
    (tmp_path / "a.nhdr").write_bytes(plain_nrrd_header((4, 3, 2), "data file: deep/v.raw"))
    (tmp_path / "deep").mkdir()
    slanted((4, 3, 2)).tofile(tmp_path / "deep" / "v.raw")
    assert source_files(str(tmp_path / "a.nhdr")) == [str(tmp_path / "a.nhdr"), str(tmp_path / "deep" / "v.raw")]
    (tmp_path / "deep" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    assert source_files(str(tmp_path / "deep")) == [str(tmp_path / "deep"), str(tmp_path / "deep" / "1.dcm")]
    (tmp_path / "b.nhdr").write_bytes(plain_nrrd_header((4, 3, 2), "data file: "))
    assert source_files(str(tmp_path / "b.nhdr")) == [str(tmp_path / "b.nhdr")]
    assert "expected its voxels in one file, found data file: " in refusal(str(tmp_path / "b.nhdr"))
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_FLOAT\nElementDataFile = c.raw\n"
    (tmp_path / "c.mhd").write_text(meta)
    (tmp_path / "c.raw").touch()
    assert source_files(str(tmp_path / "*.mhd")) == [str(tmp_path / "c.mhd"), str(tmp_path / "c.raw")]


@pytest.mark.parametrize("shape", ["(True, 4, 16)", "-" * 3000 + "1,", "(4, 3, 2), b'x': 1, 'y': 2"])
def test_headers_that_numpy_fails_at_in_its_own_way(shape, tmp_path):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4 * 64)
    (tmp_path / "a.npy").write_bytes(data)
    assert "not a readable NumPy array" in refusal(tmp_path / "a.npy")


def test_a_cut_numpy_file_says_what_it_lacks(tmp_path):
    np.save(tmp_path / "a.npy", slanted((4, 3, 2)))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-5])
    assert "truncated: expected 96 bytes of voxels, found 91" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_numpy_file_stays_mapped_in_either_order(order, tmp_path):
    array = slanted((4, 3, 2))
    np.save(tmp_path / "a.npy", np.asarray(array, order=order))
    found = read_volume(str(tmp_path / "a.npy")).array
    np.testing.assert_array_equal(found, array)
    assert isinstance(found, np.memmap) and found.flags[f"{order}_CONTIGUOUS"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    assert "expected a file or a folder, found neither" in refusal(tmp_path / "a.npy")


def test_another_fill_value_than_the_declared_one_is_told(tmp_path, capsys):
    array, path = slanted((5, 4, 3)), str(tmp_path / "v.nc")
    array[0, 0, 0] = -7
    write_volume(path, Volume(array, Geometry.plain(3), np.float32(-7)))
    assert read_volume(path, fill=-7.0).fill == read_volume(path).fill == -7
    assert capsys.readouterr().err == ""
    assert np.isnan(read_volume(path, fill=np.nan).fill)
    assert "declares -7.0 as missing: with --fill nan it counts as a value" in capsys.readouterr().err
