"""Real-world ranges, through the scripts: tiny ones far from zero, of 64 bits and more, and with outliers."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from helpers.networks import chunks_of, watched_samples
from helpers.scripts import ROOT, WELL, compared_round_trip, compress, error_of, round_trip, train
from helpers.volumes import SHAPE, psnr_of, range_without, slanted

import net_compress
import train as train_script
from cli.arguments import to_number
from field.blob import written_by
from formats.reading import read_volume
from training import outliers
from utils import ValueRange, is_missing, value_range

UNIT = (slanted(SHAPE).astype(float) - slanted(SHAPE).min()) / np.ptp(slanted(SHAPE))  # 0 to 1


# --- tiny and huge ranges ---------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-1e5, 1e9])
def test_a_tiny_range_far_from_zero_keeps_its_detail(offset, tmp_path):
    """1e5 +- 1e-3 in float64 is as good as the same around zero: the network sees the same samples."""
    arrays = [shift + 1e-3 * (2 * UNIT - 1)[..., None] for shift in (0.0, offset)]
    near, far = (value_range(array).normalise(array) for array in arrays)
    np.testing.assert_allclose(far, near, rtol=0, atol=2e3 * np.spacing(abs(offset)) + 1e-6)
    array = arrays[1][..., 0]
    decoded, printed = compared_round_trip(array, tmp_path)
    assert decoded.dtype == np.float64 and np.ptp(decoded) > 1.9e-3
    exact = psnr_of(array, decoded)
    assert [float(stage["psnr"]) for stage in printed[1:]] == pytest.approx([exact] * 2, abs=1e-3)
    assert exact > 30


def test_a_tiny_range_of_float32_is_as_good_as_float32_can_hold(tmp_path):
    """Its values lie on a grid of 0.0078, to the nearest of which float64's are rounded."""
    array = (1e5 + 2 * UNIT - 1).astype(np.float32)
    decoded, printed = compared_round_trip(array, tmp_path)
    assert decoded.dtype == np.float32
    assert float(printed[2]["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)
    assert psnr_of(array, decoded) > 30
    values = value_range(array[..., None])
    as_float64 = ValueRange(values.low.astype(float), values.high.astype(float))
    y = np.linspace(-1, 1, 1001, dtype=np.float32)[:, None]
    exact, found = as_float64.denormalise(y), values.denormalise(y)
    assert np.abs(found - exact).max() <= 2**-8 and np.abs(values.normalise(exact) - y).max() < 1e-6


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_ranges_at_the_ends_of_float64(scale, tmp_path, recwarn):
    decoded, printed = compared_round_trip(scale * UNIT, tmp_path)
    assert float(printed[2]["psnr"]) == pytest.approx(psnr_of(UNIT, decoded / scale), abs=1e-3) and np.ptp(decoded) > 0
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


@pytest.mark.parametrize(("low", "dtype"), [(2**60 - 5, "int64"), (-(2**60) - 5, "int64"), (2**63 + 7, "uint64")])
def test_small_differences_of_64_bit_integers_are_exact(low, dtype, tmp_path):
    """float64 holds one in 256 of the integers there."""
    array = np.array([low], dtype) + np.rint(40 * UNIT).astype(dtype)
    decoded, printed = compared_round_trip(array, tmp_path)
    assert decoded.dtype == dtype and len(np.unique(decoded)) > 30
    assert int(decoded.min()) >= low and int(decoded.max()) <= low + 40
    for stage in printed[1:]:
        assert float(stage["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)
    assert psnr_of(array, decoded) > 35


def test_components_on_both_sides_of_what_int64_holds(tmp_path):
    """NumPy makes floats of a list of 0 and 2^64 - 1, if no type is given."""
    array = np.array([[0, 2**63 + 1], [3, 2**64 - 1]], np.uint64).reshape(2, 1, 1, 2)
    decoded = round_trip(array, tmp_path, "--d_out", 2, "--n_passes", 1)
    assert decoded.dtype == np.uint64 and decoded.shape == array.shape
    assert (decoded[..., 0] <= 3).all() and (decoded[..., 1] >= 2**63 + 1).all()


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
    assert error == f"{tmp_path / 'v.npy'}: warning: 7 values of {array.dtype} rounded to float64\n"
    np.testing.assert_array_equal(volume.array, array.astype(np.float64))


# --- outliers ---------------------------------------------------------------------------------------

N_OUTLIERS = 6


def spiked(low: float = -300.0, high: float = 1e6, dtype: str = "float32") -> np.ndarray:
    """A smooth field from 0 to 1 (of integers, to 100) of 16^3 voxels, with three outliers on either side."""
    wave = np.sin(np.indices((16, 16, 16)).sum(axis=0) / 6)
    array = ((wave - wave.min()) / np.ptp(wave) * (100 if np.dtype(dtype).kind in "iu" else 1)).astype(dtype)
    array.flat[[5, 1000, 4000]], array.flat[[17, 2222, 3333]] = low, high
    return array


def test_outliers_are_warned_of_with_the_numbers(tmp_path, capsys):
    np.save(tmp_path / "v.npy", spiked())
    train(tmp_path / "v.npy", tmp_path)
    warnings = capsys.readouterr().err.splitlines()
    assert warnings[0] == (
        f"train.py: warning: {tmp_path / 'v.npy'}: 6 of 4096 values lie far from all others, and make the range, "
        "-300.0 to 1e+06, 1000300 times as wide as these take: consider --clip 0.0,1.0"
    )
    train(tmp_path / "v.npy", tmp_path, "--clip", "0.0,1.0")  # as it was proposed
    assert "--clip" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [
        ("int32", -90_000, 90_000, "6 of 4096 .* -90000 to 90000, 1800 times .* --clip 0,100"),
        ("uint16", 0, 60_000, "3 of 4096 .* 0 to 60000, 600 times .* --clip 0,100"),
        ("int64", 2**60, -(2**62), f"6 of 4096 .* {-(2**62)} to {2**60}, 5.764608e\\+16 times .* --clip 0,100"),
        ("float64", -300, 1.7e308, r"6 of 4096 .* -300.0 to 1.7e\+308, 1.7e\+308 times .* --clip 0.0,1.0"),
    ],
)
def test_outliers_are_counted_in_few_digits(dtype, low, high, expected, tmp_path, capsys):
    train(spiked(low, high, dtype), tmp_path)
    assert re.search(expected, capsys.readouterr().err)


def test_outliers_of_one_component_and_far_from_zero(tmp_path, capsys):
    plain, spikes = (1e5 + 1e-3 * spiked(0.5, high, "float64") for high in (0.5, 1e3))
    train(np.stack([plain, spikes], axis=-1), tmp_path, "--d_in", 3)
    error = capsys.readouterr().err
    others = np.sort(spikes.ravel())[:-3]
    assert "component 1: 3 of 4096 values lie far" in error
    assert f"--clip {others[0]},{others[-1]}, or --fill {spikes.max()} if" in error


def test_the_logarithm_is_named_for_positive_values_of_many_decades():
    """--clip alone would cut off the densest places of a density."""
    normal = np.random.default_rng(0).standard_normal((20, 20, 20, 1))
    for array, is_named in ((10**normal, True), (10**normal - 1e-3, False), (10 ** (normal / 2), False)):
        array[3, 4, 5] = 1e7
        warning = outliers.find_outliers(array, value_range(array)).warning()
        assert ("consider the logarithm, NumPy's log10(array), if small values count, or --clip" in warning) == is_named
        assert ("consider --clip" in warning) != is_named


@pytest.mark.parametrize("n_metal", [1, 10])
@pytest.mark.parametrize("component", [0, 1])
def test_outliers_beside_padding_are_warned_of(component, n_metal):
    """The padding of a scan alone is no outlier, but it would hide the metal: the range is only 9 times as wide."""
    scan = np.rint(500 + 10 * slanted((24, 24, 24)).clip(0)).astype(np.int16)
    scan[:4] = -2000
    metal, high = scan.copy(), scan.max()
    metal[-1, -1, -10:] = 30_000 - np.arange(10) % n_metal
    plain, array = (np.stack([scan, other][: component + 1], axis=-1) for other in (scan, metal))
    array = array if component else metal[..., None]
    assert outliers.find_outliers(plain, value_range(plain)) is None
    warning = outliers.find_outliers(array, value_range(array)).warning()
    assert "10 of 13824 values lie far from all others, and with -2000 make the range, -2000 to 30000," in warning
    assert warning.endswith(f"--clip -2000,{high}, or --fill -2000 if this marks missing voxels")
    rest = outliers.find_outliers(array, range_without(array, np.int16(-2000)))
    assert f"--clip {scan[scan > -2000].min()},{high}" in rest.warning()


def sparse(shape=(16, 16, 16)) -> np.ndarray:
    """An object of three voxels in an even background."""
    array = np.zeros(shape, np.uint8)
    array[8, 8, 7:10] = 100, 255, 100
    return array


def labelled() -> np.ndarray:
    """Labels of which one is far from the others."""
    array = (np.arange(16**3) // 64 % 4).astype(np.uint8).reshape(16, 16, 16)
    array[0, 0, 0] = 200
    return array


@pytest.mark.parametrize(
    "array",
    [
        sparse(),
        slanted(SHAPE),
        np.ones((4, 3, 2)),
        np.random.default_rng(0).standard_normal((20, 20, 20)),
        np.random.default_rng(0).exponential(size=(20, 20, 20)),
        np.random.default_rng(0).lognormal(size=(20, 20, 20)),
        np.where(np.indices((16, 16, 16)).sum(0) < 8, 255, 0).astype(np.uint8),
        labelled(),
        np.load(ROOT / "volumes" / "test_vol.npy"),
    ],
    ids=["sparse", "slope", "constant", "normal", "exponential", "lognormal", "a corner", "labels", "ours"],
)
def test_other_volumes_are_not_warned_of(array):
    values = value_range(array[..., None])
    assert outliers.find_outliers(array[..., None], values) is None


def test_voxels_of_another_label_are_counted(tmp_path):
    decoded, printed = compared_round_trip(labelled()[:, :8, :8], tmp_path, "--n_passes", 2)
    assert all("differing" in stage for stage in printed)
    assert int(printed[2]["differing"]) == np.count_nonzero(decoded != labelled()[:, :8, :8]) > 0
    _, printed = compared_round_trip(spiked(-300, 1000, "int32"), tmp_path, "--n_passes", 2)
    assert not any("differing" in stage for stage in printed)


def test_missing_voxels_are_no_outliers(tmp_path):
    array = spiked(0.5, 1e30)[..., None]
    fill = np.float32(1e30)
    assert outliers.find_outliers(array, range_without(array, fill)) is None
    assert outliers.find_outliers(array, value_range(array)) is not None


@pytest.mark.parametrize(("dtype", "clip"), [("float32", "-0.5,1.5"), ("float64", "0,1"), ("int32", "0,100")])
def test_clip_spends_the_range_on_the_others(dtype, clip, tmp_path, capsys):
    array = spiked(-300, 1e6, dtype)
    low, high = map(float, clip.split(","))
    decoded, printed = compared_round_trip(array, tmp_path, "--clip", clip, "--n_passes", 10)
    assert decoded.dtype == array.dtype and decoded.min() >= low and decoded.max() <= high
    settings = json.loads((tmp_path / "thenet.json").read_text())
    clipped = array.clip(low, high)
    assert settings["value_range"] == [[clipped.min(), clipped.max()]]
    assert settings["clipped_from"] == [[array.min(), array.max()]]
    assert settings["psnr"] == pytest.approx(float(printed[0]["psnr"]), abs=1e-3)
    assert settings["psnr_clipped"] == pytest.approx(float(printed[0]["psnr_clipped"]), abs=1e-3)
    assert printed[0]["clipped"] == str(N_OUTLIERS)
    # Every script compares with the file as it is, and with what it was clipped to too.
    for stage in printed[1:]:
        assert float(stage["psnr"]) == pytest.approx(psnr_of(array, decoded), abs=1e-3)
        assert float(stage["psnr_clipped"]) == pytest.approx(psnr_of(clipped, decoded), abs=1e-3)
    # The blob has the range that it was clipped to, and the PSNR over this range.
    stored = written_by((tmp_path / "blob").read_bytes()).psnr
    assert stored == pytest.approx(psnr_of(clipped, decoded), abs=0.01)
    assert psnr_of(clipped, decoded) > 25  # a constant has 10, and the outliers leave 34
    error = capsys.readouterr().err
    assert error.count("warning") == 1
    assert f"has another range than {tmp_path / 'blob'}, which may be clipped" in error


def test_clip_beyond_the_range_changes_nothing(tmp_path):
    np.save(tmp_path / "v.npy", slanted(SHAPE))
    plain = train(tmp_path / "v.npy", tmp_path)
    for clip in ("-1e9,1e9", f"{slanted(SHAPE).min()},1e9"):
        other = train(tmp_path / "v.npy", tmp_path, "--clip", clip)
        assert all((plain.state[name] == other.state[name]).all() for name in plain.state)
        assert other.settings["value_range"] == plain.settings["value_range"]


def test_the_fineness_of_rounding_goes_by_the_clipped_values(tmp_path):
    """Over the whole range, of a million, any network seems perfect: the same one is rounded to the same."""
    found = []
    for array, flags in ((spiked(), ("--clip", "0,1")), (spiked().clip(0, 1), ())):
        chunks = chunks_of(compress(train(array, tmp_path, *flags), tmp_path / "blob"))
        found.append([content for kind, content in chunks if kind == b"T"])
    assert found[0] == found[1] and len(found[0]) == 1


def test_target_psnr_is_of_the_clipped_values(tmp_path):
    """Training ends long before its last pass."""
    np.save(tmp_path / "v.npy", spiked())
    flags = (*WELL, "--clip", "0,1", "--target_psnr", 33, "--n_passes", 1000)
    with watched_samples() as steps:
        settings = train(tmp_path / "v.npy", tmp_path, *flags).settings
    assert settings["psnr"] < 31.4  # what clipping alone leaves: 10 log10(4096 / 3)
    assert settings["psnr_clipped"] >= 33 and sum(map(len, steps)) < 500 * spiked().size


def test_clip_and_fill_and_components(tmp_path):
    array = np.stack([spiked(), 100 * spiked()], axis=-1)
    array[3, 3] = np.nan
    flags = ("--d_in", 3, "--clip", "0,100", "--fill", "nan", "--n_passes", 5)
    decoded, printed = compared_round_trip(array, tmp_path, *flags)
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(array))
    assert json.loads((tmp_path / "thenet.json").read_text())["value_range"] == [[0, 100], [0, 100]]
    assert int(printed[0]["clipped"]) == ((array < 0) | (array > 100)).sum()


@pytest.mark.parametrize("clip", ["1", "1,2,3", "2,1", "1,1", "nan,1", "0,inf", "a,b", ",", ""])
def test_clip_is_an_interval(clip):
    message = error_of(train_script.main, "--volume", "v.npy", f"--clip={clip}")
    assert message.startswith(f"argument --clip: expected two numbers LO,HI, the lower first, found {clip!r}")


@pytest.mark.parametrize(
    ("dtype", "clip", "expected"),
    [
        ("float32", "2e6,3e6", "leaves no range of the values, which are from -300.0 to 1000000.0"),
        ("float32", "1e6,3e6", "leaves no range of the values"),
        ("int32", "0.5,50", "expected whole numbers, the values are of int32"),
    ],
)
def test_clip_that_leaves_nothing(dtype, clip, expected, tmp_path):
    np.save(tmp_path / "v.npy", spiked(-300, 1e6, dtype))
    message = error_of(train_script.main, "--volume", tmp_path / "v.npy", "--clip", clip)
    shown = ",".join(str(to_number(end)) for end in clip.split(","))
    assert message.startswith(f"--clip {shown}: {tmp_path / 'v.npy'}: ")
    assert expected in message and not (tmp_path / "thenet.pth").exists()


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("clip", ["0,50", "-4,0"])
def test_nothing_is_clipped_to_the_fill_value(dtype, clip, tmp_path):
    """It would count as missing."""
    np.save(tmp_path / "v.npy", np.arange(-5, 95).reshape(5, 5, 4).astype(dtype))
    argv = ("--volume", tmp_path / "v.npy", f"--clip={clip}", "--fill")
    expected = f"expected ends other than {np.dtype(dtype).type(0)!s}, which marks missing voxels"
    assert error_of(train_script.main, *argv, 0) == f"--clip {clip}: {tmp_path / 'v.npy'}: {expected}"
    for low, high in ((1, 50), (-4, -1), (-4, 50), (-9, 99)):
        values = range_without(np.arange(-5, 95).astype(dtype)[:, None], np.dtype(dtype).type(0)).clipped(low, high)
        assert not is_missing(values.denormalise(np.float32([[-1], [1]])), values.fill).any()


@pytest.fixture(scope="module")
def clipped(tmp_path_factory):
    """A network of `spiked` from 0.25 to 0.75, and the volume."""
    folder = tmp_path_factory.mktemp("clipped")
    np.save(folder / "v.npy", spiked())
    trained = train(folder / "v.npy", folder, "--clip", "0.25,0.75")
    trained.volume = folder / "v.npy"
    return trained


def test_compress_refuses_another_volume_than_the_clipped_one(clipped, tmp_path):
    for other in (spiked().clip(0.5, 0.6), spiked() + 10, spiked().clip(0.3, 1)):
        np.save(tmp_path / "other.npy", other)
        argv = ("--net", clipped.network, "--config", clipped.config, "--compressed", tmp_path / "blob")
        message = error_of(net_compress.main, *argv, "--volume", tmp_path / "other.npy")
        assert "is not the volume of" in message


def test_compress_doubts_a_volume_of_the_same_range(clipped, tmp_path, capsys):
    np.save(tmp_path / "other.npy", spiked()[::-1])
    flags = "--n_passes", 0, "--volume"
    compress(clipped, tmp_path / "blob", *flags, clipped.volume)
    assert "warning" not in capsys.readouterr().err
    for bits in (), ("--cluster_bits", 12), ("--quantizer", "kmeans"):
        compress(clipped, tmp_path / "blob", *bits, *flags, tmp_path / "other.npy")
        assert "is it the volume that it was trained on?" in (said := capsys.readouterr().err)
        assert ("more --cluster_bits" in said) == bool(bits)


@pytest.mark.parametrize("found", [0, "01", [1], [[1, 0]], [[-300, 1e7]], {"a": 1}, True, [[math.nan, 1]]])
def test_hostile_ranges_in_a_configuration(found, clipped, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps({**clipped.settings, "clipped_from": found}))
    argv = ("--net", clipped.network, "--config", tmp_path / "odd.json", "--compressed", tmp_path / "blob")
    message = error_of(net_compress.main, *argv, "--volume", clipped.volume)
    assert "is not the volume of" in message or "odd.json: does not describe a volume: clipped_from" in message
