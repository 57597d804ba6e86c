"""What a variable stores as values, by the CF conventions: scales, offsets, missing values, valid ranges."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.variables import KINDS, SHAPE, grid, set_attribute, write
from helpers.volume_files import refusal
from helpers.volumes import slanted, whole

from formats.reading import read_volume
from utils import header_of, is_missing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mark", [-99.0, np.nan])
def test_a_declared_fill_value_marks_missing_voxels(tmp_path, kind, mark):
    array = slanted(SHAPE)
    array[1, 2, 3] = array[0, 0, 0] = np.nan
    path = write(tmp_path, kind, grid(array), {"v": {"_FillValue": np.float32(mark)}})
    volume = read_volume(path)
    np.testing.assert_equal(volume.fill, np.float32(mark))
    np.testing.assert_array_equal(whole(volume.array), np.where(np.isnan(array), np.float32(mark), array))
    assert read_volume(path, fill=5).fill == 5 if mark == mark else "2 NaN" in refusal(path, fill="none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marks", [(None, -999.0), (-999.0, None), (None, np.nan), (-999.0, -9999.0)])
def test_the_fill_values_of_a_series(tmp_path, kind, marks):
    """That of one file counts for all, and --fill for any."""
    array = slanted((2, *SHAPE))
    array[1, 1, 2, 3] = array[1, 0, 0, 0] = -999.0
    for t, mark in enumerate(marks):
        (tmp_path / str(t)).mkdir()
        if mark is not None and np.isnan(mark):
            array[t][array[t] == -999] = np.nan
        write(tmp_path / str(t), kind, grid(array[t]), {"v": {"_FillValue": mark and np.float32(mark)}})
    pattern, given = str(tmp_path / "?" / "a.*"), [mark for mark in marks if mark is not None]
    if len(given) > 1:
        assert "1/a." in (message := refusal(pattern)) and "0/a." in message and "--fill" in message
    else:
        header = header_of(read_volume(pattern))
        is_gone = is_missing(array[..., None], np.float32(given[0]))
        assert (header.low[0], header.high[0]) == (array[~is_gone].min(), array[~is_gone].max())
        np.testing.assert_array_equal(header.missing.at(np.indices(array.shape)), is_gone)
    if np.isfinite(given).all():
        assert read_volume(pattern, fill=-999).fill == -999 and read_volume(pattern, fill=5).fill == 5
        assert read_volume(pattern, fill="none").fill is None


@pytest.mark.parametrize("kind", KINDS)
def test_packed_values(tmp_path, kind):
    array = np.round(slanted(SHAPE).astype(np.float64), 1)
    array[3, 3, 3] = np.nan
    packing = {"dtype": "int16", "scale_factor": 0.1, "add_offset": 20.0, "_FillValue": np.int16(-999)}
    volume = read_volume(write(tmp_path, kind, grid(array), {"v": packing}))
    assert volume.array.dtype == np.float32 and np.isnan(volume.fill)
    np.testing.assert_allclose(whole(volume.array), array, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "text"),
    [("add_offset", "20.0"), ("missing_value", "-999"), ("valid_range", "0, 30"), ("valid_max", "30"),
     ("_FillValue", "-9")],
)  # fmt: skip
def test_numbers_that_are_told_by_text(tmp_path, kind, name, text):
    """The values would be those that are stored, missing ones among them."""
    path = write(tmp_path, kind, grid(slanted(SHAPE), attributes={} if name == "_FillValue" else {name: text}))
    if name == "_FillValue":  # xarray writes it as a number
        set_attribute(path, name, text)
    message = refusal(path)
    assert f"{path}: v: expected a number as {name}, found the text {text!r}: " in message and "attrs" in message


def test_a_text_with_nothing_in_it_tells_no_number(tmp_path):
    path = write(tmp_path, "nc4", grid(slanted(SHAPE), attributes={"missing_value": ""}))
    np.testing.assert_array_equal(whole(read_volume(path).array), slanted(SHAPE))


def test_several_marks_become_one(tmp_path):
    array = slanted(SHAPE).astype(np.int16)
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = -1, -2, -3
    marks = {"_FillValue": np.int16(-1), "missing_value": np.array([-2, -3], np.int16)}
    for kind in ("nc3", "nc4 chunks"):
        (tmp_path / kind).mkdir()
        volume = read_volume(write(tmp_path / kind, kind, grid(array, attributes=marks)))
        assert volume.fill == -1 and np.count_nonzero(whole(volume.array) == -1) == 3


@pytest.mark.parametrize("mark", [None, -7])
@pytest.mark.parametrize(
    ("dtype", "limits", "low", "high"),
    [
        ("int16", {"valid_range": np.array([2, 30], np.int16)}, 2, 30),
        ("uint8", {"valid_max": np.uint8(30)}, -1e9, 30),
        ("float32", {"valid_min": 20.5}, 20.5, 1e9),
        ("int32", {"valid_min": 20.5, "valid_max": 25.5}, 20.5, 25.5),
        ("float64", {"valid_range": [np.nan, 30.0]}, -1e9, 30),
        ("int16", {"valid_range": np.array([20, 300], np.int16), "scale_factor": 0.1, "add_offset": 0.0}, 2, 30),
        ("int16", {"valid_range": [2.0, 30.0], "scale_factor": -0.1, "add_offset": 40.0}, 2, 30),  # of unpacked values
        ("int16", {"valid_range": np.float32([20.1, 30.1]), "scale_factor": 0.1, "add_offset": 0.0}, 20.1, 30.1),
    ],
)
def test_values_beyond_the_valid_range_are_missing(tmp_path, dtype, limits, low, high, mark):
    """Where no fill value is declared, too. It may lie beyond the range itself."""
    stored = np.rint(10 * slanted(SHAPE) if "scale_factor" in limits else slanted(SHAPE)).astype(dtype)
    attributes = limits | ({} if mark is None or dtype == "uint8" else {"missing_value": np.dtype(dtype).type(mark)})
    if "missing_value" in attributes:
        stored[0, 0, 0] = mark
    volume = read_volume(write(tmp_path, "nc3" if dtype == "int16" else "nc4", grid(stored, attributes=attributes)))
    exact = stored.astype(float) * limits.get("scale_factor", 1) + limits.get("add_offset", 0)
    is_gone = (exact < low - 1e-6) | (exact > high + 1e-6)
    is_gone[0, 0, 0] |= "missing_value" in attributes
    found = whole(volume.array)
    assert 0 < is_gone.sum() < is_gone.size
    np.testing.assert_array_equal(is_missing(found[..., None], volume.fill), is_gone)
    np.testing.assert_allclose(found[~is_gone], exact[~is_gone], rtol=1e-6)


@pytest.mark.parametrize("kind", ["nc3", "nc4 chunks", "zarr3"])
@pytest.mark.parametrize("fill", ["none", -5])
@pytest.mark.parametrize(
    "said",
    [
        {"valid_range": np.array([20, 30], np.int16)},
        {"_FillValue": np.int16(21), "missing_value": np.array([22, 23], np.int16)},
        {"valid_max": np.int16(30), "scale_factor": 0.5, "add_offset": 1.0},
    ],
)
def test_values_that_the_user_takes_for_values_are_as_stored(tmp_path, kind, fill, said, capsys):
    stored = np.rint(slanted(SHAPE)).astype(np.int16)
    volume = read_volume(write(tmp_path, kind, grid(stored, attributes=said)), fill=fill)
    np.testing.assert_array_equal(whole(volume.array), stored * said.get("scale_factor", 1) + said.get("add_offset", 0))
    assert volume.fill == (None if fill == "none" else fill)
    assert ("with --fill -5 it counts as a value" in capsys.readouterr().err) == (fill == -5)


@pytest.mark.parametrize("says", ["false", "False", "true", "TRUE"])
@pytest.mark.parametrize("kind", ["nc3", "nc4"])
def test_bytes_are_signed_or_not_as_the_file_says(tmp_path, kind, says):
    """NetCDF-3 has no unsigned bytes, and OPeNDAP no signed ones."""
    is_signed = says.lower() == "false"
    exact = np.arange(210).reshape(SHAPE).astype(np.uint8 if not is_signed else np.int8)
    stored = exact.view(np.int8 if kind == "nc3" else np.uint8)
    attributes = {"_Unsigned": says, "missing_value": stored[6, 5, 4], "valid_max": stored[3, 2, 1]}
    volume = read_volume(write(tmp_path, kind, grid(stored, attributes=attributes)))
    is_gone = (exact > exact[3, 2, 1]) | (exact == exact[6, 5, 4])
    assert volume.array.dtype == exact.dtype and volume.fill == exact[6, 5, 4]
    np.testing.assert_array_equal(whole(volume.array), np.where(is_gone, volume.fill, exact))


@pytest.mark.parametrize(("mark", "dtype"), [(np.int16(-9999), np.uint8), (np.int32(65535), np.int16)])
def test_a_mark_that_the_type_has_not_marks_nothing(tmp_path, mark, dtype):
    """Nor a number of the same bits."""
    stored = np.arange(-100, 110).reshape(SHAPE).astype(dtype)
    volume = read_volume(write(tmp_path, "nc4", grid(stored, attributes={"missing_value": mark})))
    assert volume.fill is None and np.array_equal(whole(volume.array), stored)
