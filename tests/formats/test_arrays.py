"""Arrays that are computed on demand: they are indexed as NumPy's are, and compute no more than is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from formats.arrays import LazyArray

KEYS = [
    np.s_[...],
    np.s_[2:5],
    np.s_[1, 2, 3],
    np.s_[-1, :, -2],
    np.s_[::3, ::-2, 1:],
    np.s_[..., 0],
    np.s_[3, ...],
    np.s_[:, np.int64(2)],
    np.s_[7:3],
    np.s_[50:],
    np.s_[-3:-1, 4:1:-1],
]


def lazy(array: np.ndarray, d_in: int) -> tuple[LazyArray, list[int]]:
    """The array, and how many voxels each evaluation has been asked for."""
    asked = []

    def evaluate(box: tuple[slice, ...]) -> np.ndarray:
        assert len(box) == d_in
        asked.append(math.prod(array[box].shape[:d_in]))
        return array[box]

    return LazyArray(array.shape, array.dtype, evaluate, d_in), asked


@pytest.mark.parametrize("shape", [(9, 6, 5), (9, 6, 5, 3)])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_keys_mean_what_they_mean_to_numpy(shape, key):
    """And only the chosen voxels are evaluated, at once; none for an empty result."""
    array = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    found, asked = lazy(array, 3)
    values, expected = found[key], array[key]
    np.testing.assert_array_equal(values, expected)
    assert type(values) is type(expected) and values.dtype == array.dtype
    n_voxels = np.empty(shape[:3])[key if len(shape) == 3 or key != np.s_[..., 0] else ...].size
    assert asked == ([n_voxels] if expected.size else [])


def test_components_are_chosen_of_the_evaluated_voxels():
    array = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    found, asked = lazy(array, 3)
    for key in (np.s_[1, 2, 3, 0], np.s_[..., 1], np.s_[0, :, :, ::-1]):
        np.testing.assert_array_equal(found[key], array[key])
    assert asked == [1, 24, 12]


def test_an_integer_alone_evaluates_nothing_yet():
    """A step of a series may be larger than memory."""
    array = np.arange(2 * 3 * 4 * 5 * 2).reshape(2, 3, 4, 5, 2)
    found, asked = lazy(array, 4)
    step = found[-1]
    assert asked == [] and step.shape == (3, 4, 5, 2) and step.ndim == 4 and len(step) == 3
    np.testing.assert_array_equal(step[:, 1:3, ::2], array[-1, :, 1:3, ::2])
    np.testing.assert_array_equal(found[1][2][3][4], array[1, 2, 3, 4])
    assert asked == [18, 1]


def test_it_can_be_calculated_with():
    values = np.arange(24.0).reshape(2, 3, 4)
    array, _ = lazy(values, 3)
    np.testing.assert_array_equal(2 * array + array, 3 * values)
    np.testing.assert_array_equal(np.sqrt(array), np.sqrt(values))
    assert (array == values).all()


def test_nothing_can_be_written_to_it():
    array, _ = lazy(np.arange(24.0).reshape(2, 3, 4), 3)
    with pytest.raises(TypeError, match="expected an array in memory"):
        array += 1
    with pytest.raises(TypeError, match="expected an array in memory"):
        np.add(1, 2, out=array)
    with pytest.raises(TypeError, match="expected an array in memory"):
        np.add.at(array, (0, 0, 0), 1)  # a copy would get it
    values = np.zeros(array.shape)
    values += array
    np.testing.assert_array_equal(values, np.add(array, 0, out=np.zeros(array.shape)))


def test_numpy_takes_it_for_an_array():
    array = np.arange(24.0).reshape(2, 3, 4)
    found, _ = lazy(array, 3)
    np.testing.assert_array_equal(np.asarray(found), array)
    assert np.asarray(found, np.float32).dtype == np.float32
    assert repr(found) == "LazyArray(shape=(2, 3, 4), dtype=dtype('float64'), d_in=3)"
    assert np.mean(found) == array.mean() and np.shape(found) == array.shape and found.size == 24
    np.testing.assert_array_equal([part[0, 0] for part in found], array[:, 0, 0])
    with pytest.raises(ValueError, match="copy"):
        found.__array__(copy=False)


@pytest.mark.parametrize("key", [9, (0, -7), (0, 0, 5), "x", (0, 1.0), np.s_[0, 0, 0, 0], None, True, [1, 2],
                                 (..., ...), np.ones(9, bool)], ids=str)  # fmt: skip
def test_keys_that_are_none(key):
    with pytest.raises(IndexError, match="expected"):
        lazy(np.zeros((9, 6, 5)), 3)[0][key]


def test_an_array_as_a_key_is_not_printed():
    array = np.zeros((9, 6, 5))
    with pytest.raises(IndexError, match="found ndarray: ") as caught:
        lazy(array, 3)[0][array > 0]
    assert "\n" not in str(caught.value)
