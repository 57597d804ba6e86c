"""Real-world ranges, through the scripts: tiny ones far from zero, of 64 bits and more, and with outliers."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import SHAPE, WELL, compress, decompress, results, slanted, train

from volume_io import read_volume

UNIT = (slanted(SHAPE).astype(float) - slanted(SHAPE).min()) / np.ptp(slanted(SHAPE))  # 0 to 1


def chain(array: np.ndarray, folder: Path, *flags: object) -> tuple[np.ndarray, list[dict[str, str]]]:
    """What the three scripts make of an array, each given it to compare with, and what each of them prints."""
    path = folder / "v.npy"
    np.save(path, array)
    printed = [io.StringIO() for _ in range(3)]
    with contextlib.redirect_stdout(printed[0]):
        trained = train(path, folder, *WELL, *flags)
    with contextlib.redirect_stdout(printed[1]):
        compress(trained, folder / "blob", "--volume", path, "--n_passes", 8)
    with contextlib.redirect_stdout(printed[2]):
        decoded = decompress(folder / "blob", folder / "out.npy", "--volume", path)
    return decoded, [results(text.getvalue()) for text in printed]


def psnr_of(array: np.ndarray, decoded: np.ndarray) -> float:
    """By hand, in Python's exact integers where the values are integers."""
    pairs = list(zip(array.ravel().tolist(), decoded.ravel().tolist(), strict=True))
    extent = max(a for a, _ in pairs) - min(a for a, _ in pairs)
    squares = sum(float(a - b) ** 2 for a, b in pairs)
    return 20 * math.log10(extent / math.sqrt(squares / len(pairs))) if squares else math.inf


# --- tiny and huge ranges ---------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1e5, -1e5, 1e9])
def test_a_tiny_range_far_from_zero_keeps_its_detail(offset, tmp_path):
    """1e5 +- 1e-3 in float64 is as good as the same around zero."""
    psnrs = []
    for shift in (0.0, offset):
        array = shift + 1e-3 * (2 * UNIT - 1)
        decoded, printed = chain(array, tmp_path)
        assert decoded.dtype == np.float64 and np.ptp(decoded) > 1.9e-3
        exact = psnr_of(array, decoded)
        assert [float(stage["psnr"]) for stage in printed[1:]] == pytest.approx([exact] * 2, abs=1e-3)
        psnrs.append([float(stage["psnr"]) for stage in printed])
    assert np.subtract(*psnrs).max() < 2 and min(psnrs[0]) > 45  # the fits differ by the last bits of their samples


def test_a_tiny_range_of_float32_is_as_good_as_float32_can_hold(tmp_path):
    """Its values lie on a grid of 0.0078: what the network adds to that is little."""
    array = (1e5 + 2 * UNIT - 1).astype(np.float32)
    decoded, printed = chain(array, tmp_path)
    assert decoded.dtype == np.float32
    assert float(printed[2]["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)
    plain, _ = chain(2 * UNIT - 1, tmp_path)
    added = 20 * math.log10(2 / (2**-7 * math.sqrt(1 / 6)))  # both roundings, each of ulp^2 / 12
    expected = -10 * math.log10(10 ** (-psnr_of(2 * UNIT - 1, plain) / 10) + 10 ** (-added / 10))
    assert psnr_of(array, decoded) > expected - 1


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_ranges_at_the_ends_of_float64(scale, tmp_path):
    decoded, printed = chain(scale * UNIT, tmp_path)
    assert float(printed[2]["psnr"]) == pytest.approx(psnr_of(UNIT, decoded / scale), abs=1e-3) and np.ptp(decoded) > 0


@pytest.mark.parametrize(("low", "dtype"), [(2**60 - 5, "int64"), (-(2**60) - 5, "int64"), (2**63 + 7, "uint64")])
def test_small_differences_of_64_bit_integers_are_exact(low, dtype, tmp_path):
    """float64 holds one in 256 of the integers there."""
    array = np.array([low], dtype) + np.rint(40 * UNIT).astype(dtype)
    decoded, printed = chain(array, tmp_path)
    assert decoded.dtype == dtype and len(np.unique(decoded)) > 30
    assert int(decoded.min()) >= low and int(decoded.max()) <= low + 40
    for stage in printed[1:]:
        assert float(stage["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)
    assert psnr_of(array, decoded) > 35


def test_the_whole_range_of_64_bit_integers(tmp_path):
    array = (UNIT * (2.0**64 - 2**12)).astype(np.uint64)
    array[0, 0, 0], array[-1, -1, -1] = 0, 2**64 - 1
    decoded, printed = chain(array, tmp_path)
    assert float(printed[2]["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is float64 here")
def test_long_double_that_float64_does_not_hold_is_warned_of(tmp_path, capsys):
    array = np.ones((4, 3, 2), np.longdouble)
    array[0, 0, 0] = array[1, 0, 0] = np.nan
    np.save(tmp_path / "v.npy", array)
    read_volume(str(tmp_path / "v.npy"), fill=math.nan)
    assert capsys.readouterr().err == ""
    array[1, 2, 1] += np.finfo(np.longdouble).eps
    array[2] = np.longdouble(1) / 3
    np.save(tmp_path / "v.npy", array)
    volume = read_volume(str(tmp_path / "v.npy"), fill=math.nan)
    error = capsys.readouterr().err
    assert error == f"warning: {tmp_path / 'v.npy'}: 7 values of {array.dtype} rounded to float64\n"
    np.testing.assert_array_equal(volume.array, array.astype(np.float64))
