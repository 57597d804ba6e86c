"""Files without a header: by flags, by their name."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.volume_files import refusal
from helpers.volumes import slanted

from formats.raw import RawLayout, raw_layout
from formats.reading import read_volume
from utils import DTYPES, Geometry

SHAPE = (4, 3, 2)


def test_flags_go_before_the_name(tmp_path):
    array = slanted((2, 3, 4))
    path = tmp_path / "a_4x3x2_float32.raw"
    path.write_bytes(array.astype(">f4").tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(path), layout=RawLayout((2, 3, 4), "float32", "big")).array, array)


@pytest.mark.parametrize("given", [(None, None, "big"), (SHAPE, None, "big"), (None, "float32", "big")])
def test_the_name_says_what_the_flags_do_not(given, tmp_path):
    path = tmp_path / "a_4x3x2_float32.raw"
    path.write_bytes(slanted(SHAPE).astype(">f4").tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(path), layout=raw_layout(*given)).array, slanted(SHAPE))


@pytest.mark.parametrize(
    "name", ["a.raw", "a_4x3_uint8.raw", "a_4x3x2_complex64.raw", "a_4x3x2_uint8.dat", "4x3x2_uint8"]
)
def test_raw_of_no_known_layout(name, tmp_path):
    (tmp_path / name).write_bytes(bytes(24))
    message = refusal(tmp_path / name)
    assert re.search(r"--shape and --dtype( \(and --endian, little unless given\),)? or a name like", message)
    assert read_volume(str(tmp_path / name), layout=RawLayout((4, 3, 2), "uint8")).array.shape == (4, 3, 2)


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_by_its_layout(tmp_path, dtype, endian):
    """x is fastest."""
    array = slanted((4, 3, 2)).astype(dtype)
    stored = array.astype(np.dtype(dtype).newbyteorder("<" if endian == "little" else ">"))
    (tmp_path / "a.raw").write_bytes(b"".join(stored[:, y, z].tobytes() for z in range(2) for y in range(3)))
    volume = read_volume(str(tmp_path / "a.raw"), layout=RawLayout((4, 3, 2), dtype, endian))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.dtype(dtype)
    assert isinstance(volume.array, np.memmap) == (np.dtype(dtype).itemsize == 1 or endian == "little")
    assert volume.geometry == Geometry.plain(3)


@pytest.mark.parametrize("n_bytes", [0, 95, 97, 960])
def test_raw_of_another_length(tmp_path, n_bytes):
    (tmp_path / "a.raw").write_bytes(bytes(n_bytes))
    message = refusal(tmp_path / "a.raw", layout=RawLayout((4, 3, 2), "float32"))
    assert f"a.raw: expected 96 bytes for 4 x 3 x 2 of float32, found {n_bytes}" in message
    assert (f"'byte skip: {n_bytes - 96}' and 'data file: a.raw'" in message) == (n_bytes > 96)


def test_numbers_that_bytes_of_the_other_order_give(tmp_path):
    array = slanted((4, 3, 2))
    array[0, 0, 0] = np.nan
    (tmp_path / "a.raw").write_bytes(array.tobytes("F"))
    said = refusal(tmp_path / "a.raw", layout=RawLayout((4, 3, 2), "float32", "little"))
    assert "--endian big reads bytes in the other order" in said


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_record_of_fortran(tmp_path, order):
    """The way out of the message leads to the values: there are marks on both sides of them."""
    array = slanted((4, 3, 2)).astype(np.dtype("f4").newbyteorder("<" if order == "little" else ">"))
    mark = array.nbytes.to_bytes(4, order)
    (tmp_path / "a.dat").write_bytes(mark + array.tobytes("F") + mark)
    message = refusal(tmp_path / "a.dat", layout=RawLayout((4, 3, 2), "float32", order))
    assert "'byte skip: 4' and 'data file: a.dat'" in message and "Fortran" in message
    header = f"NRRD0004\ntype: float\ndimension: 3\nsizes: 4 3 2\nendian: {order}\nencoding: raw\nbyte skip: 4\n"
    (tmp_path / "a.nhdr").write_text(header + "data file: a.dat\n")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nhdr")).array, array)
