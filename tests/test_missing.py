"""Missing voxels: fill values and NaN, from the file through training and the blob and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import fit, slanted

from fitting import loss_with_gradient
from samples import Field
from siren import FieldNet, SirenConfig
from utils import ValueRange, compare, constant_psnr, describe, overall, value_range
from volume import VolumeError, is_missing
from volume_io import read_volume

CPU = torch.device("cpu")
NAN = np.float32(np.nan)


def holed(shape=(9, 7, 5), fill=np.nan, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """`slanted`, with a box, a corner and the first slab along z missing; and the mask."""
    array, mask = slanted(shape).astype(dtype), np.zeros(shape, bool)
    mask[2:5, 1:4, 2:] = mask[-1, -1, -1] = mask[:, :, 0] = True
    array[mask] = fill
    return array, mask


def field_of(array: np.ndarray, fill=NAN) -> Field:
    return Field(value_range(array, fill).normalise(array), CPU)


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
    header = describe(volume, 3)
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
     ("float16", -70000.0), ("int64", 1e300)],
)  # fmt: skip
def test_fill_values_that_the_type_has_not(dtype, fill, tmp_path):
    np.save(tmp_path / "v.npy", np.ones((3, 2, 2), dtype))
    with pytest.raises(VolumeError, match=f"v.npy: the fill value .* is none of its type, {dtype}"):
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
    values = value_range(array[..., None], fill)
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
    values = value_range(array, NAN)
    assert values.high.max() < 100 and values.low.min() > -100
    assert np.isnan(values.normalise(array)).sum() == 4
    assert compare(array, array, values).psnr == math.inf
    assert compare(array, array + 1, values).psnrs == pytest.approx([20 * math.log10(e) for e in values.extent])
    assert field_of(array).n_voxels == 22


@pytest.mark.parametrize("fill", [NAN, np.float32(-1e30)])
def test_metrics_without_the_missing_voxels(fill):
    array, mask = holed(fill=fill)
    decoded = np.where(mask, fill, array + np.float32(0.5))
    values = value_range(array[..., None], fill)
    metrics = compare(array, decoded, values)
    extent = float(np.ptp(array[~mask]))
    assert metrics.rmse == pytest.approx(0.5, rel=1e-12) and metrics.max_error == 0.5
    assert metrics.psnr == pytest.approx(20 * math.log10(extent / 0.5))
    present = array[~mask][:, None]
    assert constant_psnr(array[..., None], fill) == constant_psnr(present)
    # A voxel that only the decoded volume lacks is left out too; without any, there is nothing to say.
    decoded[0] = fill
    part = compare(array, decoded, values)
    assert part.rmse == pytest.approx(0.5, rel=1e-12) and part.n_voxels == metrics.n_voxels - (~mask[0]).sum()
    nothing = compare(array, np.full_like(array, fill), values)
    assert math.isnan(nothing.psnr) and nothing.n_voxels == 0
    assert compare(array[:1], decoded[1:2], values).psnr < metrics.psnr


def test_metrics_of_integers_decoded_as_floats():
    array, mask = holed(fill=-999, dtype=np.int16)
    decoded = np.where(mask, np.nan, array + 0.25)
    assert compare(array, decoded, value_range(array[..., None], np.int16(-999))).max_error == 0.25


def test_metrics_of_all_from_those_of_parts():
    """Parts of unequal numbers of voxels, one of which has none."""
    array, _ = holed()
    decoded = array + np.linspace(0, 1, array.size, dtype=np.float32).reshape(array.shape)
    values = value_range(array[..., None], NAN)
    expected = compare(array, decoded, values)
    decoded_parts = [compare(array[k], decoded[k], values) for k in range(len(array))]
    assert len({part.n_voxels for part in decoded_parts}) > 1
    empty = compare(np.full_like(array, np.nan), decoded, values)
    found = overall([empty, *decoded_parts])
    assert found.psnr == pytest.approx(expected.psnr) and found.rmse == pytest.approx(expected.rmse)
    assert found.max_error == expected.max_error and found.n_voxels == expected.n_voxels
    assert math.isnan(overall([empty, empty]).psnr)


# --- training ---------------------------------------------------------------------------------------


def test_every_present_voxel_is_drawn_once_a_pass():
    array, mask = holed()
    field = field_of(array[..., None])
    assert field.n_voxels == (~mask).sum()
    expected = np.flatnonzero(~mask).tolist()
    for index in range(3):
        order = field.shuffled(0, index)
        assert order.tolist() != expected and order.sort().values.tolist() == expected
        assert field.samples(order)[1].isfinite().all()
    assert math.isclose(field.variance, field.values[~mask.ravel()].double().var(correction=0), rel_tol=1e-5)


def test_gradients_beside_missing_voxels_are_one_sided():
    array, mask = holed()
    gradients = field_of(array[..., None]).gradients().numpy().reshape(9, 7, 5, 3)
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
    total, value_loss = loss_with_gradient(net, x, values, gradients, 1.0)
    known, _ = loss_with_gradient(net, x[:3], values[:3], gradients[:3], 1.0)
    known = known - (net(x[:3]) - values[:3]).square().mean()
    assert (total - value_loss).item() == pytest.approx(3 / 8 * known.item(), rel=1e-5)
    total.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("grad_lambda", [0.0, 0.01])
def test_a_fit_does_not_see_the_missing_voxels(grad_lambda):
    """Whatever stands there, the fitted network is the same."""
    results = []
    for fill in (math.nan, 1e6, 20.25):
        array, _ = holed(fill=fill)
        net = FieldNet(SirenConfig(8, 2, 3, 1), torch.Generator().manual_seed(0))
        fit(net, field_of(array[..., None], np.float32(fill)), n_passes=2, grad_lambda=grad_lambda)
        results.append([p.tolist() for p in net.parameters()])
    assert results[0] == results[1] == results[2]
