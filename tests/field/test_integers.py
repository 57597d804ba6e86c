"""Integers are the same for a part and the whole, for other chunks and threads, and under other arithmetic."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.damage import memory_below
from helpers.networks import field_net, make_header
from helpers.scripts import ROOT
from helpers.steep import RANGES, SHAPE, checksums, steep_cut_field, steep_field
from portability import settings

from field import blending, portable
from field.blending import Blend
from field.evaluation import CHUNK, coordinates_of
from field.integers import ROUNDOFF, error_estimates
from field.neural_field import NeuralField
from utils import Grid, voxel_grid

# What `checksums` returns on every machine.
EXPECTED = ["a6578222", "9f864b48", "498ff5fd", "2fdb461e"]


def test_the_integers_are_those_of_every_machine():
    assert checksums() == EXPECTED


def test_the_integers_are_those_of_the_plainest_instruction_set():
    """In a process of its own, with other products and sines."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]}\nfrom helpers.steep import checksums\n"
    environment = os.environ | settings()["all of the plainest"][0]
    command = [sys.executable, "-c", f"{code}print(*checksums())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == EXPECTED


@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("dtype", RANGES)
def test_parts_chunks_and_threads(dtype, is_residual, monkeypatch):
    whole = steep_field(dtype, is_residual=is_residual).on_grid()
    assert whole.dtype == dtype and len(np.unique(whole)) > 50
    monkeypatch.setitem(CHUNK, "cpu", 333)
    field = steep_field(dtype, is_residual=is_residual, n_threads=2)
    np.testing.assert_array_equal(field.on_grid(), whole)
    for box in (np.s_[3:17, 2:16, 5:9], np.s_[:, 7:8, 1:12]):
        np.testing.assert_array_equal(field.on_grid(voxel_grid(SHAPE, box)), whole[box])


@pytest.mark.parametrize("dtype", RANGES)
def test_integers_of_bricks_are_those_of_portable_arithmetic(dtype, monkeypatch):
    """For a part, other chunks and threads too."""
    whole = steep_cut_field(dtype).on_grid()
    monkeypatch.setitem(CHUNK, "cpu", 333)
    monkeypatch.setattr(blending, "MAX_VALUES", 200)
    found = steep_cut_field(dtype, n_threads=2)
    np.testing.assert_array_equal(found.on_grid(), whole)
    np.testing.assert_array_equal(found[3:9, ::-1, 2:5], whole[3:9, ::-1, 2:5])
    monkeypatch.setattr(Blend, "precisions", ["portable"])
    np.testing.assert_array_equal(steep_cut_field(dtype).on_grid(), whole)


def test_a_long_axis_costs_no_memory():
    """The voxels by which errors are estimated are drawn without the coordinates of all others."""
    header = make_header((1 << 30, 2), low=0, high=200, dtype="uint8")
    field = NeuralField.of(field_net(d_in=2), header)
    with memory_below(1 << 22):
        values = field.on_grid(Grid((np.array([0.0, 2.0**30 - 1]), np.array([1.0]))))
    assert values.shape == (2, 1) and values.dtype == np.uint8


def test_few_values_are_evaluated_again(monkeypatch):
    """Of an ordinary network: those near a border, in float64."""
    field, n = steep_field("uint8", gain=0.7), []
    monkeypatch.setattr(portable, "matmul", lambda *_, **__: pytest.fail("portable arithmetic"))
    evaluate = field.values.denormalise
    monkeypatch.setattr(type(field.values), "denormalise", lambda _, y, *a: n.append(len(y)) or evaluate(y, *a))
    field.on_grid()
    assert math.prod(SHAPE) < sum(n) < 1.05 * math.prod(SHAPE)


@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("gain", [0.5, 0.8, 1.0])
def test_errors_are_about_as_large_as_estimated(gain, is_residual):
    """The largest gain amplifies errors a thousand times as much as the least."""
    field = steep_field("uint8", gain, is_residual)
    x = coordinates_of(field.grid(), SHAPE)(slice(0, math.prod(SHAPE)))[:, ::5]
    estimate = error_estimates(field.evaluator.layers, is_residual, x)
    float32, float64 = (field.evaluator.network(precision)(x, False)()[0] for precision in ROUNDOFF)
    error = np.abs(float32 - float64) / ROUNDOFF["float32"]
    assert 0.05 < np.quantile(error, 0.9) / np.quantile(estimate, 0.9) < 1.0
    assert (error < 8 * estimate).all()


@pytest.mark.parametrize("size", [1.0, 100.0, 2.0**20, 1e9])
def test_portable_sine(size):
    x = np.linspace(-size, size, 1001)
    found = portable.sin(x, np.empty_like(x))
    expected = np.array([math.sin(value) for value in x])
    assert (np.abs(found - expected) <= (0.5 * np.abs(x) + 5) * 2.0**-53).all()
