"""Rounding in a trellis: what the integers stand for, and the way that is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.second_decoder import on_grids

from field import trellis
from quantising.search import LARGEST, Search

STEP = 0.125  # a power of two: exact in float32


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (1, 7), (3, 5), (64, 1), (5, 13), (40, 25)])
def test_integers_on_their_grids(shape):
    integers = np.random.default_rng(0).integers(-50, 50, shape, dtype=np.int32)
    np.testing.assert_array_equal(trellis.in_half_steps(integers), on_grids(integers))


def rounded(weights: np.ndarray, factor: np.ndarray, n_in: int, **how) -> np.ndarray:
    search = Search(STEP, n_in, **{"has_trellis": True, "ascends": False} | how)
    return search.round(weights.astype(np.float32), factor.astype(np.float32))


def error_of(integers: np.ndarray, weights: np.ndarray) -> float:
    """The squared error of one matrix without biases, in steps^2."""
    return float(np.square(trellis.in_half_steps(integers) / 2 - weights / STEP).sum())


def test_the_way_is_the_best_of_all():
    """Of all sequences of integers near the weights."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        weights = rng.normal(0, 1, 7).astype(np.float32)
        found = rounded(np.append(weights, 0), np.eye(8), 7)[:7]
        near = [(int(np.floor(w / STEP)) - 1 + np.arange(3)).tolist() for w in weights]
        best = min(error_of(np.array(integers), weights) for integers in itertools.product(*near))
        assert error_of(found, weights) == pytest.approx(best)


def test_the_error_is_a_quarter_less_than_that_of_one_grid():
    """The mean over so many weights hardly depends on luck: its deviation is 2 %."""
    weights = np.random.default_rng(0).uniform(-10, 10, 6 * 301)
    integers = rounded(weights, np.eye(len(weights)), 300).reshape(6, 301)
    matrix, biases = weights.reshape(6, 301)[:, :-1], weights.reshape(6, 301)[:, -1]
    assert 0.7 < 12 * error_of(integers[:, :-1], matrix) / matrix.size < 0.82
    assert np.abs(integers[:, -1] - biases / STEP).max() <= 0.5


def test_errors_are_compensated_as_told():
    """The weights after each one take its error, in the block and beyond it."""
    rng, n = np.random.default_rng(0), 300
    factor = np.triu(rng.uniform(-0.2, 0.2, (n, n)), 1) + np.diag(rng.uniform(0.5, 2, n))
    weights = rng.normal(0, 1, n)
    integers = rounded(weights, factor, n - 1, has_trellis=False)
    for i in range(n):
        assert integers[i] == pytest.approx(weights[i] / STEP, abs=0.5 + 1e-3)
        weights[i + 1 :] -= (weights[i] - integers[i] * STEP) / factor[i, i] * factor[i, i + 1 :]


def test_parts_are_one_chain():
    """A layer comes in several parts; the integers after the first part go on from it."""
    weights = np.random.default_rng(0).normal(0, 1, 256).astype(np.float32)
    search, parts = Search(STEP, 31, has_trellis=True, ascends=False), []
    for start in (0, 128):
        parts.append(search.round(weights[start : start + 128].copy(), np.eye(128, dtype=np.float32)))
    np.testing.assert_array_equal(np.concatenate(parts), rounded(weights, np.eye(256), 31))


@pytest.mark.parametrize("has_trellis", [False, True])
def test_biases_that_ascend(has_trellis):
    """Also where compensation has brought them out of order."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (30, 4))
    weights[:, -1] = np.sort(np.abs(weights[:, -1])) + rng.normal(0, 0.3, 30)
    integers = rounded(weights.ravel(), np.eye(120), 3, has_trellis=has_trellis, ascends=True).reshape(30, 4)
    assert (np.diff(integers[:, -1], prepend=0) >= 0).all() and integers[:, -1].max() > 0
    free = np.rint(weights[:, -1] / STEP)
    np.testing.assert_array_equal(integers[:, -1], np.maximum.accumulate(np.maximum(free, 0)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("has_trellis", [False, True])
def test_weights_of_a_diverged_network(value, has_trellis):
    weights = np.random.default_rng(0).normal(0, 1, 200)
    weights[[3, 150]] = value
    integers = rounded(weights, np.eye(200), 9, has_trellis=has_trellis)
    assert np.abs(integers).max() <= LARGEST + 1
