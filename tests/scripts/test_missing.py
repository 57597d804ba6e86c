"""Missing voxels: fill values and NaN, from the file through training and the blob and back."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import chunks_of, watched_samples
from helpers.scripts import WELL, compared_round_trip, compress, decompress, error_of, results, train
from helpers.volumes import SHAPE, psnr_of, range_without, slanted

import net_compress
import train as train_script
from field.layers import SirenConfig
from field.metrics import combine_metrics, compare
from field.neural_field import NeuralField
from formats.common import VolumeError
from formats.reading import read_volume
from siren import FieldNet
from training.sampler import VoxelSampler
from training.step import loss_with_slopes
from utils import ValueRange, header_of, is_missing

CPU = torch.device("cpu")
NAN = np.float32(np.nan)


def holed(shape=(9, 7, 5), fill=np.nan, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """`slanted`, with a box, a corner and the first slab along z missing; and the mask."""
    array, mask = slanted(shape).astype(dtype), np.zeros(shape, bool)
    mask[2:5, 1:4, 2:] = mask[-1, -1, -1] = mask[:, :, 0] = True
    array[mask] = fill
    return array, mask


def sampler_of(array: np.ndarray, fill=NAN) -> VoxelSampler:
    return VoxelSampler(range_without(array, fill).normalise(array), CPU)


# --- which voxels are missing -----------------------------------------------------------------------


def test_missing_by_hand():
    values = np.array([[1.0, 2.0], [np.nan, 2.0], [1.0, -9.0], [-9.0, np.nan]])
    assert is_missing(values, np.float64(np.nan)).tolist() == [False, True, False, True]
    assert is_missing(values, np.float64(-9)).tolist() == [False, False, True, True]
    assert is_missing(values, None).tolist() == [False] * 4


@pytest.mark.parametrize("fill", [2**63 - 1, -(2**63)])
def test_a_fill_value_of_64_bits_is_exact(fill, tmp_path):
    array = np.array([fill, abs(fill) - 2, 3], np.int64).reshape(3, 1, 1)
    np.save(tmp_path / "v.npy", array)
    volume = read_volume(str(tmp_path / "v.npy"), fill=fill)
    assert is_missing(volume.array[..., None], volume.fill).ravel().tolist() == [True, False, False]
    header = header_of(volume)
    assert (header.low.tolist(), header.high.tolist()) == ([3], [abs(fill) - 2])


@pytest.mark.parametrize("dtype", [">f4", "float16", "float64", "longdouble", "int16", ">u8"])
def test_fill_is_in_the_type_of_the_volume(dtype, tmp_path):
    array, mask = holed(fill=999.9 if np.dtype(dtype).kind == "f" else 999, dtype=dtype)
    np.save(tmp_path / "v.npy", array)
    volume = read_volume(str(tmp_path / "v.npy"), fill=999.9 if np.dtype(dtype).kind == "f" else 999)
    assert volume.fill.dtype == volume.array.dtype
    np.testing.assert_array_equal(is_missing(volume.array[..., None], volume.fill), mask)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("uint8", -1), ("uint8", 256), ("int16", 0.5), ("int32", math.nan), ("uint64", 2**64), ("float32", 1e39),
     ("float16", -70000.0), ("int64", 1e300), ("int64", math.inf), ("uint8", -math.inf), ("float64", math.inf)],
)  # fmt: skip
def test_fill_values_that_the_type_has_not(dtype, fill, tmp_path):
    np.save(tmp_path / "v.npy", np.ones((3, 2, 2), dtype))
    with pytest.raises(VolumeError, match=f"v.npy: expected a fill value of its type, {dtype}, found "):
        read_volume(str(tmp_path / "v.npy"), fill=fill)


def test_only_missing_voxels_may_be_nan(tmp_path):
    array, _ = holed(fill=-9)
    array[1, 2, 3], array[8, 0, 1] = np.nan, np.inf
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(VolumeError, match=r"expected finite values, found 2 .* the first at \(1, 2, 3\)"):
        read_volume(str(tmp_path / "v.npy"), fill=-9)
    with pytest.raises(VolumeError, match=r"expected finite values, found 1 .* the first at \(8, 0, 1\)"):
        read_volume(str(tmp_path / "v.npy"), fill=math.nan)


@pytest.mark.parametrize("fill", [math.nan, 7])
def test_a_volume_without_any_value(fill, tmp_path):
    np.save(tmp_path / "v.npy", np.full((3, 2, 2), float(fill)))
    with pytest.raises(VolumeError, match=r"v.npy: every voxel is missing"):
        read_volume(str(tmp_path / "v.npy"), fill=fill)


# --- range and metrics ------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [math.nan, -1e30, 25.25])
def test_range_and_normalised_values_without_the_missing_voxels(fill):
    fill = np.float32(fill)
    array, mask = holed(fill=fill)
    values = range_without(array[..., None], fill)
    present = array[~mask]
    assert values.low == present.min() and values.high == present.max()
    normalised = values.normalise(array[..., None])[..., 0]
    assert np.isnan(normalised[mask]).all()
    np.testing.assert_array_equal(
        normalised[~mask], ValueRange(values.low, values.high).normalise(present[:, None])[:, 0]
    )


def test_a_voxel_is_missing_where_any_component_is():
    array = np.stack([slanted((4, 3, 2)), -slanted((4, 3, 2))], axis=-1)
    array[0, 0, 0] = np.nan, 1e6
    array[3, 2, 1] = -1e6, np.nan
    values = range_without(array, NAN)
    assert values.high.max() < 100 and values.low.min() > -100
    assert np.isnan(values.normalise(array)).sum() == 4
    assert compare(array, array, values).psnr == math.inf
    assert compare(array, array + 1, values).psnrs == pytest.approx([20 * math.log10(e) for e in values.extent])
    assert sampler_of(array).n_present == 22


@pytest.mark.parametrize("fill", [NAN, np.float32(-1e30)])
def test_metrics_without_the_missing_voxels(fill):
    array, mask = holed(fill=fill)
    decoded = np.where(mask, fill, array + np.float32(0.5))
    values = range_without(array[..., None], fill)
    metrics = compare(array, decoded, values)
    extent = float(np.ptp(array[~mask]))
    assert metrics.rmse == pytest.approx(0.5, rel=1e-12) and metrics.max_error == 0.5
    assert metrics.psnr == pytest.approx(20 * math.log10(extent / 0.5))
    # A voxel that only the decoded volume lacks is left out too; without any, there is nothing to say.
    decoded[0] = fill
    part = compare(array, decoded, values)
    assert part.rmse == pytest.approx(0.5, rel=1e-12) and part.n_voxels == metrics.n_voxels - (~mask[0]).sum()
    nothing = compare(array, np.full_like(array, fill), values)
    assert math.isnan(nothing.psnr) and nothing.n_voxels == 0 and math.isnan(combine_metrics([nothing, nothing]).psnr)
    assert combine_metrics([nothing, part, part]).psnr == pytest.approx(part.psnr)
    assert compare(array[:1], decoded[1:2], values).psnr < metrics.psnr


def test_metrics_of_integers_decoded_as_floats():
    array, mask = holed(fill=-999, dtype=np.int16)
    decoded = np.where(mask, np.nan, array + 0.25)
    assert compare(array, decoded, range_without(array[..., None], np.int16(-999))).max_error == 0.25


# --- training ---------------------------------------------------------------------------------------


def test_every_present_voxel_is_drawn_once_a_pass():
    array, mask = holed()
    sampler = sampler_of(array[..., None])
    assert sampler.n_present == (~mask).sum()
    expected = np.flatnonzero(~mask).tolist()
    for index in range(3):
        order = sampler.shuffled(0, index)
        assert order.tolist() != expected and order.sort().values.tolist() == expected
        assert sampler.samples(order)[1].isfinite().all()
    assert math.isclose(sampler.variance, sampler.values[~mask.ravel()].double().var(correction=0), rel_tol=1e-5)


def test_gradients_beside_missing_voxels_are_one_sided():
    array, mask = holed()
    gradients = sampler_of(array[..., None]).all_slopes.numpy().reshape(9, 7, 5, 3)
    extent = np.ptp(array[~mask])
    expected = np.broadcast_to(np.array([3, -2, 1]) * 2 / extent * 4, (9, 7, 5, 3))  # a voxel is 2 / 8 wide
    known = ~np.isnan(gradients)
    np.testing.assert_allclose(gradients[known & ~mask[..., None]], expected[known & ~mask[..., None]], rtol=1e-5)
    unknown = ~known & ~mask[..., None]
    # Between the missing box and the missing slab, and between the box and the face.
    assert unknown[2:5, 1:4, 1, 2].all() and unknown[2:5, 0, 2:, 1].all() and unknown.sum() == 18


def test_unknown_gradients_teach_nothing():
    net = FieldNet(SirenConfig(4, 2, 2, 1), torch.Generator().manual_seed(0))
    x, values, gradients = torch.rand(8, 2), torch.zeros(8, 1), torch.zeros(8, 1, 2)
    gradients[3:] = math.nan
    total = loss_with_slopes(net, x, values, gradients, 1.0)
    known = loss_with_slopes(net, x[:3], values[:3], gradients[:3], 1.0)
    of_gradient, of_known = ((loss - net(some).square().mean()).item() for loss, some in ((total, x), (known, x[:3])))
    assert of_gradient == pytest.approx(3 / 8 * of_known, rel=1e-5)
    total.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# --- through the scripts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("float64", 25.5), ("float16", math.nan), ("int16", -999), ("uint8", 0)],
)  # fmt: skip
def test_missing_voxels_come_back_as_they_were(dtype, fill, tmp_path):
    array, mask = holed(fill=fill, dtype=dtype)
    decoded, printed = compared_round_trip(array, tmp_path, "--fill", fill)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded[mask], array[mask])
    is_fill = np.isnan(decoded) if fill != fill else decoded == fill
    np.testing.assert_array_equal(is_fill, mask)
    present, psnr = array[~mask], psnr_of(array[~mask], decoded[~mask])
    assert psnr > 35 and [float(stage["psnr"]) for stage in printed[1:]] == pytest.approx([psnr] * 2, abs=2e-3)
    values = printed[0] | printed[1] | printed[2]
    assert int(values["missing"]) == mask.sum()
    settings = json.loads((tmp_path / "thenet.json").read_text())
    assert settings["value_range"] == [[present.min(), present.max()]]
    assert float(values["compression_ratio"]) == pytest.approx(array.size / settings["n_parameters"], abs=5e-3)
    assert float(values["file_ratio"]) == pytest.approx(4 * array.size / int(values["bytes"]), abs=5e-3)


@pytest.mark.parametrize("grad_lambda", [0.0, 0.01])
def test_the_network_is_that_of_the_present_voxels_whatever_marks_the_others(grad_lambda, tmp_path):
    networks = []
    for fill in (math.nan, -9999.0, 1e30, 20.25):
        array, _ = holed(fill=fill)
        networks.append(train(array, tmp_path, "--fill", fill, "--grad_lambda", grad_lambda).state)
    for other in networks[1:]:
        assert all(torch.equal(networks[0][name], other[name]) for name in other)


def test_fill_without_missing_voxels_changes_nothing_but_warns(tmp_path, capsys):
    np.save(tmp_path / "v.npy", slanted(SHAPE))
    blobs = []
    for flags in ((), ("--fill", "nan"), ("--fill", "-1e30")):
        blobs.append(compress(train(tmp_path / "v.npy", tmp_path, "--n_layers", 1, *flags), tmp_path / "blob"))
        error = capsys.readouterr().err
        assert error.count(f"no voxel of {tmp_path / 'v.npy'} has this value") == bool(flags)
    assert blobs[0] == blobs[1] == blobs[2] and not {b"M", b"H"} & {kind for kind, _ in chunks_of(blobs[0])}


def test_values_lost_beside_missing_ones_are_told_of(tmp_path, capsys):
    array, mask = holed()
    lost = int(mask.sum())
    for other, expected in ((slanted(SHAPE), lost), (np.where(mask, np.nan, 3.0).astype(np.float32), 0)):
        train(np.stack([array, other], axis=-1), tmp_path, "--d_out", 2, "--fill", "nan")
        line = f"--fill nan: {lost} values are left out as another component of their voxel is missing"
        assert capsys.readouterr().err.count(line) == bool(expected)


def test_rounding_with_training_leaves_missing_voxels_out(tmp_path, capsys):
    array, mask = holed()
    np.save(tmp_path / "v.npy", array)
    trained = train(tmp_path / "v.npy", tmp_path, "--fill", "nan", *WELL)
    with watched_samples() as steps:
        compress(trained, tmp_path / "blob", "--volume", tmp_path / "v.npy", "--n_passes", 24)
    drawn = torch.cat(steps).unique().tolist()
    assert drawn == np.flatnonzero(~mask).tolist()
    assert float(results(capsys.readouterr().out)["psnr"]) > 35


# --- elsewhere than at the voxels -------------------------------------------------------------------


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Fields of the same hole and network, by dtype: float32 (NaN) and int16 (-999)."""
    found = {}
    for dtype, fill in (("float32", math.nan), ("int16", -999)):
        folder = tmp_path_factory.mktemp(dtype)
        array, mask = holed(fill=fill, dtype=dtype)
        compared_round_trip(array, folder, "--fill", fill)
        names = {"blob": "blob", "network": "thenet.pth", "config": "thenet.json"}
        files = {key: folder / name for key, name in names.items()}
        found[dtype] = SimpleNamespace(field=NeuralField.open(files["blob"]), mask=mask, **files)
    return found


@pytest.mark.parametrize("roi", [None, (slice(1, 8), slice(0, 7), slice(2, 5))])
@pytest.mark.parametrize("resolution", [None, (4, 3, 2), (17, 13, 9), (1, 7, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_other_grids_are_missing_where_the_nearest_voxel_is(dtype, resolution, roi, fields):
    field, mask = fields[dtype].field, fields[dtype].mask
    grid = field.grid(roi, resolution)
    nearest = [[min(int(x + 0.5), n - 1) for x in axis] for axis, n in zip(grid.axes, mask.shape, strict=True)]
    expected = mask[np.ix_(*nearest)]
    found = field.on_grid(grid)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.isnan(found) if dtype == "float32" else found == -999, expected)
    np.testing.assert_array_equal(np.isnan(field.on_grid(grid, as_float=True)), expected)
    gradient = field.gradient_on_grid(grid)
    np.testing.assert_array_equal(np.isnan(gradient), np.broadcast_to(expected[..., None], gradient.shape))
    points = np.stack(np.meshgrid(*grid.axes, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(np.isnan(field.at(points)), expected.ravel())
    np.testing.assert_array_equal(np.isnan(field.gradient_at(points)).all(axis=1), expected.ravel())


def test_points_report_the_missing_ones(fields, tmp_path, capsys):
    np.save(tmp_path / "points.npy", [[0.0, 0, 0], [1, 2, 3], [3, 2, 2.4], [99, 0, 0]])
    flags = ("--points", tmp_path / "points.npy", "--outside", "nan")
    found = decompress(fields["float32"].blob, tmp_path / "out.npy", *flags)
    assert np.isnan(found).tolist() == [True, False, True, True]
    values = results(capsys.readouterr().out)
    assert (values["points"], values["outside"], values["missing"]) == ("4", "1", "2")


def test_a_value_is_never_the_fill_value():
    """It would be taken for missing: a neighbour of it stands in its place."""
    values = ValueRange(np.int16([0]), np.int16([10]), np.int16(5))
    assert values.denormalise(np.linspace(-1, 1, 11)[:, None])[:, 0].tolist() == [0, 1, 2, 3, 4, 4, 6, 7, 8, 9, 10]
    values = ValueRange(np.float32([-1, 0]), np.float32([1, 2]), np.float32(0))
    assert values.denormalise(np.zeros((1, 2))).tolist() == [[-float(np.float32(1e-45)), 1.0]]
    unsigned = ValueRange(np.uint64([1]), np.uint64([2**64 - 1]), np.uint64(2**63))
    assert unsigned.denormalise(np.zeros((1, 1)))[0, 0] in (2**63 - 1, 2**63 + 1)


# --- what is refused, and what is warned of ---------------------------------------------------------


@pytest.mark.parametrize("value", ["inf", "x", "", "1,2", "1e999"])
def test_fill_is_a_number(value):
    message = error_of(train_script.main, "--volume", "v.npy", "--fill", value)
    assert message.startswith("argument --fill: expected a finite number, nan or none, found")
    assert repr(value) in message


def test_nan_without_fill_says_what_to_do(tmp_path):
    array, _ = holed()
    np.save(tmp_path / "v.npy", array)
    message = error_of(train_script.main, "--volume", tmp_path / "v.npy")
    assert "found 91 NaN or infinite ones" in message and message.endswith("train.py --fill nan takes NaN as missing")
    array[0, 0, 1] = np.inf
    np.save(tmp_path / "v.npy", array)
    message = error_of(train_script.main, "--volume", tmp_path / "v.npy")
    assert "found 92 NaN or infinite ones" in message
    array[~np.isfinite(array)] = np.nan  # as the message says
    assert message.endswith("array[~np.isfinite(array)] = np.nan makes them missing, with train.py --fill nan")
    np.save(tmp_path / "v.npy", array)
    train(tmp_path / "v.npy", tmp_path, "--fill", "nan", "--n_passes", 0.1)


def test_compress_refuses_a_volume_in_which_others_are_missing(fields, tmp_path):
    array, _ = holed()
    trained = fields["float32"]
    array[4, 6, 3] = np.nan
    np.save(tmp_path / "other.npy", array)
    argv = ("--net", trained.network, "--config", trained.config, "--compressed", tmp_path / "blob")
    message = error_of(net_compress.main, *argv, "--volume", tmp_path / "other.npy")
    assert message == f"{tmp_path / 'other.npy'}: is not the volume of {trained.config}: other voxels are missing"
    assert not (tmp_path / "blob").exists()


def test_decompress_tells_why_a_region_has_no_psnr(fields, tmp_path, capsys):
    np.save(tmp_path / "v.npy", holed()[0])
    region = ("--volume", tmp_path / "v.npy", "--roi")
    decompress(fields["float32"].blob, tmp_path / "out.npy", *region, ":,:,0")
    out, error = capsys.readouterr()
    assert results(out)["psnr"] == "nan" and error.count("v.npy: psnr is nan where all voxels are missing") == 1
    decompress(fields["float32"].blob, tmp_path / "out.npy", *region, ":,:,:2")
    assert capsys.readouterr().err == ""


def test_decompress_warns_where_others_are_missing(fields, tmp_path, capsys):
    array, _ = holed()
    array[4, 6, 3] = np.nan
    array[2, 1, 2] = 25
    np.save(tmp_path / "other.npy", array)
    decompress(fields["float32"].blob, tmp_path / "out.npy", "--volume", tmp_path / "other.npy")
    output = capsys.readouterr()
    assert output.err == (f"net_decompress.py: warning: {tmp_path / 'other.npy'}: other voxels are missing than in "
                          f"{fields['float32'].blob}, left out in either\n")  # fmt: skip
    assert float(results(output.out)["psnr"]) > 35
    np.save(tmp_path / "whole.npy", slanted(SHAPE))
    decompress(fields["float32"].blob, tmp_path / "out.npy", "--volume", tmp_path / "whole.npy")
    assert float(results(capsys.readouterr().out)["psnr"]) > 35


@pytest.mark.parametrize("missing", [0, "", "AAAA", "ä", [], "x" * 50, "AAAAAAAAAAAA", {}])
def test_hostile_masks_in_a_configuration(missing, fields, tmp_path):
    trained = fields["float32"]
    (tmp_path / "odd.json").write_text(json.dumps(json.loads(trained.config.read_text()) | {"missing": missing}))
    argv = ("--net", trained.network, "--config", tmp_path / "odd.json", "--compressed", tmp_path / "blob")
    assert "does not describe a field: " in error_of(net_compress.main, *argv)


@pytest.mark.parametrize(("fill", "share"), [(1e20, 0.01), (-9999.0, 0.7), (250.0, 0.19)])
def test_a_fill_value_that_nobody_named_stops_the_training(fill, share, tmp_path, capsys):
    """As in files of CMIP: it would take the whole range, and the PSNR would say that all is well."""
    rng = np.random.default_rng(0)
    array = (10 + rng.random((20, 10, 10))).astype(np.float32)
    array.ravel()[rng.permutation(array.size)[: int(share * array.size)]] = fill
    np.save(tmp_path / "v.npy", array)
    argv = ("--volume", tmp_path / "v.npy", "--n_passes", 1)
    said = error_of(train_script.main, *argv)
    value = str(np.float32(fill))
    assert f"the value {value} stands in {int(share * array.size)} voxels" in said and f"--fill {value} if" in said
    assert not (tmp_path / "thenet.pth").exists()
    for text, n_missing in ((value, str(int(share * array.size))), ("none", None)):
        train_script.main([str(a) for a in (*argv, "--fill", text)])
        assert results(capsys.readouterr().out).get("missing") == n_missing


@pytest.mark.parametrize("fill", ["1e20", "nan", "5"])
def test_a_second_fill_value_stops_the_training_too(fill, tmp_path):
    """Also where the value that is named stands nowhere."""
    array = (10 + np.random.default_rng(0).random((20, 10, 10))).astype(np.float32)
    array[0], array[1] = np.float32(fill) if fill != "5" else -9999.0, -9999.0
    np.save(tmp_path / "v.npy", array)
    said = error_of(train_script.main, "--volume", tmp_path / "v.npy", "--fill", fill)
    assert "the value -9999.0 stands in" in said
    written = {"1e20": "array[array < 10.0", "nan": "] = np.nan if this marks missing", "5": "--fill -9999.0 if"}
    assert written[fill] in said


@pytest.mark.parametrize("codes", [(-9999, -9998), (-9999, 9999), (-1e30, -9999, 1e20)])
def test_several_fill_values_stop_it_together(codes, tmp_path, capsys):
    """As NumPy's statement in the message makes them one, the training runs."""
    array = (10 + np.random.default_rng(0).random((20, 10, 10))).astype(np.float32)
    array[: len(codes)] = np.reshape(codes, (-1, 1, 1))
    np.save(tmp_path / "v.npy", array)
    argv = ("--volume", tmp_path / "v.npy", "--n_passes", 1)
    said = error_of(train_script.main, *argv)
    named = " and ".join(", ".join(str(np.float32(code)) for code in sorted(codes)).rsplit(", ", 1))
    assert f"the values {named} stand in {100 * len(codes)} voxels" in said
    statement, fill = re.search(r"NumPy's (array\[.*\] = .*), and --fill (\S+) if", said).groups()
    exec(statement, {}, {"array": array})
    np.save(tmp_path / "v.npy", array)
    train_script.main([str(a) for a in (*argv, "--fill", fill)])
    assert results(capsys.readouterr().out)["missing"] == str(100 * len(codes))


@pytest.mark.parametrize("n", [1, 4])
def test_few_voxels_of_one_far_value_are_warned_of_with_both_ways_out(n, tmp_path, capsys):
    array = (10 + np.random.default_rng(0).random((20, 10, 10))).astype(np.float32)
    array.ravel()[:n] = -9999
    train(array, tmp_path, "--n_passes", 1)
    expected = rf"{n} of 2000 values lie far .* --clip 10\.\d+,10\.\d+, or --fill -9999.0 if this marks"
    assert re.search(expected, capsys.readouterr().err)


@pytest.mark.parametrize(
    "array",
    [
        np.where(slanted((9, 8, 7)) > 25, np.float32(100), np.float32(0)),  # a mask
        np.maximum(slanted((9, 8, 7)) - 25, 0),  # an object before a background
        np.where(np.arange(504).reshape(9, 8, 7) == 5, np.float32(1e6), slanted((9, 8, 7))),  # an outlier
        np.where(slanted((9, 8, 7)) > 25, slanted((9, 8, 7)) + 40, np.float32(0)),  # a scan of something dense
    ],
)
def test_what_is_no_fill_value_does_not_stop_it(array, tmp_path):
    assert train(array, tmp_path, "--n_passes", 1).network.exists()
