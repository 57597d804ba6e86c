"""Coordinates, grids, values, metrics: against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from field.metrics import combine_metrics, compare, file_ratios
from utils import ValueRange, axis_coordinates, value_range, voxel_size


def range_of(low, high, dtype) -> ValueRange:
    return ValueRange(np.array([low], dtype), np.array([high], dtype))


# --- coordinates ------------------------------------------------------------------------------------


def test_axis_coordinates_by_hand():
    x, y, z = axis_coordinates((5, 3, 2))
    np.testing.assert_allclose(x, [-1, -0.5, 0, 0.5, 1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(y, [-0.5, 0, 0.5], rtol=0, atol=1e-15)
    np.testing.assert_allclose(z, [-0.25, 0.25], rtol=0, atol=1e-15)
    assert voxel_size((5, 3, 2), 1) == 0.5


def test_axes_of_one_voxel_are_at_zero():
    x, y, z = axis_coordinates((1, 3, 1))
    assert x.tolist() == [0.0] and z.tolist() == [0.0] and y.tolist() == [-1.0, 0.0, 1.0]
    assert [axis.tolist() for axis in axis_coordinates((1, 1, 1))] == [[0.0]] * 3


def test_time_spans_its_own_interval():
    shape = (3, 5, 3, 2)
    t, *space = axis_coordinates(shape)
    assert t.tolist() == [-1.0, 0.0, 1.0]
    assert [a.tolist() for a in space] == [a.tolist() for a in axis_coordinates(shape[1:])]
    assert [voxel_size(shape, axis) for axis in range(4)] == [1.0, 0.5, 0.5, 0.5]
    assert [a.tolist() for a in axis_coordinates((1, 2, 1, 1))] == [[0.0], [-1.0, 1.0], [0.0], [0.0]]
    assert axis_coordinates((100, 2, 2, 2))[1].tolist() == [-1.0, 1.0]


# --- values -----------------------------------------------------------------------------------------


def test_values_and_normalised_ones_by_hand():
    values, normalised = np.float32([[10.0], [15.0], [20.0], [12.5]]), np.float32([[-1.0], [0.0], [1.0], [-0.5]])
    limits = range_of(10, 20, np.float32)
    for found, expected in ((limits.normalise(values), normalised), (limits.denormalise(normalised), values)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_each_component_has_its_own_range():
    values = value_range(np.array([[[0.0, 5.0]], [[4.0, 5.0]], [[1.0, 5.0]]]))
    assert values.low.tolist() == [0, 5] and values.high.tolist() == [4, 5] and values.extent.tolist() == [4, 0]
    normalised = values.normalise(np.array([[1.0, 5.0]]))
    np.testing.assert_array_equal(normalised, [[-0.5, 0.0]])
    np.testing.assert_array_equal(values.denormalise(np.array([[-0.5, 0.7]])), [[1.0, 5.0]])


def test_denormalise_clips_to_the_range():
    for dtype in (np.float32, np.int16):
        found = range_of(-3, 7, dtype).denormalise(np.array([[-1.5], [1.0001], [-50.0]]))
        assert found.ravel().tolist() == [-3, 7, -3]


def test_integers_are_rounded_to_the_nearest():
    normalised = np.array([[-1 + 2 * v / 10] for v in (0.4, 0.6, 4.4, 4.6, 9.6)])
    found = range_of(0, 10, np.uint8).denormalise(normalised)
    assert found.dtype == np.uint8 and found.ravel().tolist() == [0, 1, 4, 5, 10]
    found = range_of(-10, 0, np.int8).denormalise(normalised)
    assert found.dtype == np.int8 and found.ravel().tolist() == [-10, -9, -6, -5, 0]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "float32"), ("int16", "float32"), ("int32", "float64"), ("int64", "float64"), ("float16", "float16"),
     ("float32", "float32"), ("float64", "float64")],
)  # fmt: skip
def test_as_float_leaves_integers_unrounded(dtype, expected):
    found = range_of(0, 10, dtype).denormalise(np.array([[-0.9], [0.05]]), as_float=True)
    assert found.dtype == np.dtype(expected)
    np.testing.assert_allclose(found.ravel(), [0.5, 5.25], rtol=1e-6 if expected != "float16" else 1e-3)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_the_ends_of_every_integer_range_come_back(dtype):
    info = np.iinfo(dtype)
    for low, high in ((info.min, info.max), (0, info.max), (info.max - 1, info.max), (info.min, info.min + 1)):
        values = range_of(low, high, dtype)
        ends = np.array([[low], [high]], dtype)
        np.testing.assert_array_equal(values.normalise(ends).ravel(), [-1, 1])
        np.testing.assert_array_equal(values.denormalise(np.array([[-1.0], [1.0]])), ends)


def test_small_range_at_a_large_offset():
    low = 2**60 + 1
    values = range_of(low, low + 4, np.int64)
    inside = np.arange(low, low + 5, dtype=np.int64)[:, None]
    np.testing.assert_array_equal(values.normalise(inside).ravel(), [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_array_equal(values.denormalise(values.normalise(inside)), inside)


@pytest.mark.parametrize("value", [0, 7, -3.25, 2**60 + 1, 1e300, 5e-324])
def test_constant_is_exact_whatever_the_network_says(value):
    dtype = np.int64 if isinstance(value, int) else np.float64
    values = value_range(np.full((2, 2, 2, 1), value, dtype))
    assert values.normalise(np.full((3, 1), value, dtype)).tolist() == [[0.0]] * 3
    found = values.denormalise(np.array([[-2.0], [0.3], [1.0]]))
    assert found.dtype == dtype and (found == np.array(value, dtype)).all()


def test_wide_floats_do_not_overflow():
    values = range_of(-8e307, 8e307, np.float64)
    np.testing.assert_array_equal(values.normalise(np.array([[-8e307], [0.0], [8e307]])).ravel(), [-1, 0, 1])
    np.testing.assert_array_equal(values.denormalise(np.array([[-1.0], [0.0], [1.0]])).ravel(), [-8e307, 0, 8e307])
    half = range_of(-65504, 65504, np.float16)
    np.testing.assert_array_equal(half.denormalise(np.array([[-1.0], [1.0]])).ravel(), [-65504, 65504])


# --- metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "decoded", "rmse", "max_error", "psnr"),
    [
        ([0.0, 10.0, 5.0, 5.0], [1.0, 9.0, 6.0, 4.0], 1, 1, 20.0),  # 20 log10(10 / 1)
        (np.uint8([2, 6, 4, 4]), np.uint8([2, 6, 4, 8]), 2, 4, 6.020599913),  # the original's range, not decoded's
        (np.uint8([0, 255]), np.uint8([1, 254]), 1, 1, 48.130803609),  # unsigned differences do not wrap
        (np.array([2**60, 2**60 + 8]), np.array([2**60 + 1, 2**60 + 9]), 1, 1, 18.061799740),  # of integers, exact
        ([1.0, 2.0], [1.0, 2.0], 0, 0, math.inf),
        ([1.0, 1.0, 1.0], [3.0, 3.0, 3.0], 2, 2, -math.inf),
        ([0.0, 1e-299], [1e-300, 9e-300], 1e-300, 1e-300, 20.0),
        ([0.0, 1e301], [1e300, 9e300], 1e300, 1e300, 20.0),
    ],
)
def test_psnr_by_hand(original, decoded, rmse, max_error, psnr):
    metrics = compare(np.array(original), np.array(decoded))
    assert metrics.rmse == pytest.approx(rmse, rel=1e-12, abs=0) and metrics.psnr == pytest.approx(psnr, abs=1e-8)
    assert metrics.max_error == pytest.approx(max_error, rel=1e-12, abs=0)


def test_metrics_across_blocks():
    """Larger than the piece that is compared at a time."""
    original = np.zeros(3_000_000, np.uint8)
    original[-1] = 10
    decoded = original.copy()
    decoded[5], decoded[-2] = 3, 4
    metrics = compare(original, decoded)
    assert metrics.max_error == pytest.approx(4.0) and metrics.rmse == pytest.approx(math.sqrt(25 / 3e6))
    assert (metrics.n_voxels, metrics.n_differing) == (3_000_000, 2)


def test_components_are_measured_over_their_own_ranges():
    original = np.array([[0.0, 1000.0], [10.0, 3000.0]])
    metrics = compare(original, original + np.array([1.0, 20.0]), value_range(original))
    assert metrics.psnrs == pytest.approx((20.0, 40.0), abs=1e-12)
    assert metrics.psnr == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2), abs=1e-12)
    assert metrics.rmse == pytest.approx(math.sqrt((1 + 400) / 2)) and metrics.max_error == pytest.approx(20.0)
    assert list(metrics.report()) == ["psnr", "psnr_0", "psnr_1"] and metrics.report()["psnr_1"] == "40.000"
    # A part is measured over the range of the whole; a constant component counts when it is met.
    assert compare(original[:1], original[:1] + np.array([1.0, 20.0]), value_range(original)).psnrs == metrics.psnrs
    original[:, 1] = 7
    metrics = compare(original, original + np.array([1.0, 0.0]), value_range(original))
    assert metrics.psnrs == pytest.approx((20.0, math.inf)) and metrics.psnr == pytest.approx(20 + 10 * math.log10(2))
    assert compare(original, original + np.array([0.0, 1.0]), value_range(original)).psnr == -math.inf


def test_metrics_of_parts_together():
    original = np.random.default_rng(0).random((4, 30, 2))
    decoded = original + np.random.default_rng(1).random((4, 30, 2)) * np.arange(4)[:, None, None]
    values = value_range(original)
    expected = compare(original, decoded, values)
    found = combine_metrics([compare(a, b, values) for a, b in zip(original, decoded, strict=True)])
    assert found.psnr == pytest.approx(expected.psnr) and found.psnrs == pytest.approx(expected.psnrs)
    assert found.rmse == pytest.approx(expected.rmse) and found.max_error == expected.max_error
    assert (found.n_voxels, found.n_differing) == (expected.n_voxels, expected.n_differing) == (120, 90)
    assert combine_metrics([compare(original, original, values)]).psnr == math.inf
    steps = np.arange(40).reshape(4, 10)  # few values in each part, too many for labels in all
    for array, are_labels in ((steps, False), (steps % 10, True)):
        assert (combine_metrics([compare(part, part) for part in array]).labels is not None) == are_labels
    constant = value_range(np.ones((3, 1)))
    assert combine_metrics([compare(np.ones(3), np.ones(3) * 3, constant)] * 2).psnr == -math.inf


def test_file_ratios():
    assert file_ratios(1000, np.dtype("float32"), 400) == {"file_ratio": "10.00"}
    assert file_ratios(1000, np.dtype("uint8"), 400) == {"file_ratio": "10.00", "source_ratio": "2.50"}


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_a_value_that_is_no_number_becomes_the_least(dtype):
    """A network of finite, but huge weights gives NaN."""
    values = ValueRange(np.array([3], dtype), np.array([9], dtype))
    found = values.denormalise(np.float32([[np.nan], [np.inf], [-np.inf]]))
    assert found.dtype == dtype and found.ravel().tolist() == [3, 9, 3]


def test_labels_are_few_in_the_whole_volume(monkeypatch):
    """Not in each of the parts in which it is read."""
    monkeypatch.setattr("utils.BOX_VALUES", 64)
    layers = np.repeat(np.arange(40, dtype=np.uint16), 64).reshape(40, 8, 8)
    for array, are_labels in ((layers, False), (layers % 12, True), ((layers % 12).astype(np.float32), False)):
        assert (compare(array, array).labels is not None) == are_labels
        assert ("differing" in compare(array, array).report()) == are_labels
