"""Quantisation: errors as foretold, limits kept, compensation and training that pay."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import arrays, field_net, fit

import quantise
from fitting import Recipe
from net_coder import QuantisedLayer, round_step
from quantise import (
    MAX_STEPS,
    carry_matrix,
    choose_steps,
    derivatives,
    domain_points,
    kmeans,
    round_and_train,
    round_in_turn,
    round_layers,
    round_to_codebooks,
    round_to_error,
    sensitivities,
    window,
)
from samples import Field
from siren import FieldNet, linear_layers

SHAPE = (14, 12, 10)


def wave(shape: tuple[int, ...] = SHAPE) -> Field:
    """A smooth field in [-1, 1]."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = np.sin(4 * x + y) * np.cos(3 * y - 2 * z)
    return Field(values[..., None].astype(np.float32), torch.device("cpu"))


@pytest.fixture(scope="module")
def trained() -> FieldNet:
    """A network fitted to `wave`; to be copied before it is changed."""
    torch.set_num_threads(1)
    net = field_net(n_neurons=16)
    fit(net, wave(), optimizer="adam", n_passes=40, batch=128, lr=3e-3)
    return net


def dequantised(net: FieldNet, layers: list[QuantisedLayer]) -> FieldNet:
    """A copy of the network with what the layers stand for as its weights."""
    found = copy.deepcopy(net)
    with torch.no_grad():
        for layer, quantised in zip(linear_layers(found), layers, strict=True):
            for parameter, values in zip((layer.weight, layer.bias), quantised.dequantise(), strict=True):
                parameter.copy_(torch.from_numpy(values))
    return found


@torch.no_grad()
def mean_squared(net: FieldNet, other: FieldNet, x: torch.Tensor) -> float:
    return float((net(x) - other(x)).square().mean())


@torch.no_grad()
def field_error(net: FieldNet, field: Field) -> float:
    """Mean squared error over all voxels."""
    x, values = field.samples(torch.arange(field.n_voxels))
    return float((net(x) - values).square().mean())


# --- derivatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"is_residual": False}, {"d_out": 3, "d_in": 2}, {"n_layers": 1}])
def test_derivatives_by_finite_differences(fields):
    net = field_net(**fields).double()
    x = domain_points((5, 4, 3)[: net.config.d_in], 4).double()
    signs = torch.randint(0, 2, (4, net.config.d_out), generator=torch.Generator().manual_seed(7)) * 2 - 1

    @torch.no_grad()
    def output(parameter: torch.Tensor, at: tuple[int, ...], change: float) -> torch.Tensor:
        parameter[at] += change
        y = (net(x) * signs).sum(1)
        parameter[at] -= change
        return y

    for layer, (a, d) in zip(linear_layers(net), derivatives(net, x, seed=7), strict=True):
        assert a.shape == (4, layer.in_features + 1) and d.shape == (4, layer.out_features)
        jacobian = d[:, :, None] * a[:, None, :]
        for row, column in ((0, 0), (-1, -1)):
            for parameter, at, exact in (
                (layer.weight, (row, column), jacobian[:, row, :-1][:, column]),
                (layer.bias, (row,), jacobian[:, row, -1]),
            ):
                found = (output(parameter, at, 1e-6) - output(parameter, at, -1e-6)) / 2e-6
                torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-7)


def test_derivatives_leave_the_network_alone():
    net = field_net()
    before = copy.deepcopy(arrays(net))
    derivatives(net, domain_points(SHAPE, 8))
    assert all(p.grad is None for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    for name, array in arrays(net).items():
        np.testing.assert_array_equal(array, before[name])


def test_domain_points_fill_the_box():
    x = domain_points((9, 5, 1), 4000)
    assert x.shape == (4000, 3)
    torch.testing.assert_close(x.abs().amax(0), torch.tensor([1.0, 0.5, 0.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(x, domain_points((9, 5, 1), 4000))
    assert (x != domain_points((9, 5, 1), 4000, seed=1)).any()


# --- steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compensated", [False, True])
@pytest.mark.parametrize("error", [1e-5, 1e-6])
def test_the_error_is_as_foretold(trained, error, is_compensated):
    """On average over several roundings: a single one of so small a network is a matter of luck."""
    x, unseen, ratios = domain_points(SHAPE, 2000), domain_points(SHAPE, 2000, seed=1), []
    for asked in error * np.linspace(0.5, 1.5, 12):
        steps = choose_steps(trained, sensitivities(trained, x, is_compensated), error=asked)
        layers = round_in_turn(copy.deepcopy(trained), SHAPE, steps) if is_compensated else round_layers(trained, steps)
        ratios.append(mean_squared(trained, dequantised(trained, layers), unseen) / asked)
    assert 0.75 < np.mean(ratios) < 1.25


def test_the_error_of_several_outputs_is_as_foretold():
    net = field_net(n_neurons=24, d_out=3, seed=3)
    x = domain_points(SHAPE, 3000)
    found = mean_squared(
        net, dequantised(net, round_layers(net, choose_steps(net, sensitivities(net, x), error=1e-6))), x
    )
    assert 0.75e-6 < found < 1.25e-6


@pytest.mark.parametrize("bits", range(1, 17))
def test_bits_bound_the_levels(trained, bits):
    steps = choose_steps(trained, sensitivities(trained, domain_points(SHAPE, 500)), bits=bits)
    layers = round_layers(trained, steps)
    largest = [int(np.abs(layer.weights).max()) for layer in layers[1:-1]]
    bound = min(2 ** (bits - 1), MAX_STEPS)
    assert max(largest) <= bound * 1.01 + 0.5
    if bits <= 11:  # beyond, another layer is at the coder's limit
        assert max(largest) >= bound * 0.98 - 0.5  # no coarser than asked for
    assert max(np.abs(layer.biases).max() for layer in layers) <= MAX_STEPS * 1.01


def test_steps_follow_the_sensitivity(trained):
    """Every layer's rounding costs as much a weight; compensated it costs less, in the last layer least so."""
    x = domain_points(SHAPE, 2000)
    scales = [float(a.square().mean() * d.square().mean()) for a, d in derivatives(trained, x)]
    nearest, compensated = (
        np.log2(
            np.array(choose_steps(trained, sensitivities(trained, x, is_compensated), error=1e-4), float) ** 2 * scales
        )
        / 2
        for is_compensated in (False, True)
    )
    np.testing.assert_allclose(nearest, nearest[0], atol=0.02)
    gains = compensated - nearest
    assert gains.argmin() == len(gains) - 1 and gains[:-1].min() > gains[-1] + 0.4


def test_what_is_carried_is_the_best_answer():
    """Against the least-squares answer of the weights after the first, with the metric's damping."""
    net = field_net(n_neurons=5, n_layers=2).double()
    taps = derivatives(net, domain_points(SHAPE, 700).double())
    rows = [(1, slice(2, 5)), (2, slice(0, 5)), (3, slice(0, 1))]
    jacobian = torch.cat([(taps[k][1][:, cut, None] * taps[k][0][:, None, :]).flatten(1) for k, cut in rows], 1)
    metric = jacobian.T @ jacobian / len(jacobian)
    diagonal = metric.diagonal().clone()
    metric += torch.diag(quantise.DAMPING * (diagonal + 0.01 * diagonal.mean()))
    factor = carry_matrix(taps, rows)
    for i in (0, 7, 17):
        rest = slice(i + 1, None)
        best = -torch.linalg.solve(metric[rest, rest], metric[rest, i])
        torch.testing.assert_close(factor[i, rest] / factor[i, i], best, rtol=1e-8, atol=1e-12)
        cost = metric[i, i] + metric[i, rest] @ best
        torch.testing.assert_close(factor[i, i] ** -2, cost, rtol=1e-8, atol=0)


def test_windows_cover_every_row_once_and_reach_into_later_layers(monkeypatch):
    net = field_net(n_neurons=9, n_layers=3)
    taps = derivatives(net, domain_points(SHAPE, 8))
    monkeypatch.setattr(quantise, "BLOCK", 30)
    monkeypatch.setattr(quantise, "FREE", 95)
    assert window(taps, 1, 0) == [(1, slice(0, 3)), (1, slice(3, 9)), (2, slice(0, 3))]
    assert window(taps, 1, 6) == [(1, slice(6, 9)), (2, slice(0, 9))]
    assert window(taps, 4, 6) == [(4, slice(6, 9)), (5, slice(0, 1))]
    assert window(taps, 5, 0) == [(5, slice(0, 1))]
    monkeypatch.setattr(quantise, "BLOCK", 1)
    assert window(taps, 0, 8)[0] == (0, slice(8, 9))


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_steps_of_degenerate_networks(factor):
    net = field_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= factor
    for fineness, is_compensated in itertools.product(({"bits": 9}, {"error": 1e-4}, {"error": 0.0}), (False, True)):
        steps = choose_steps(net, sensitivities(net, domain_points(SHAPE, 16), is_compensated), **fineness)
        round_in_turn(copy.deepcopy(net), SHAPE, steps)
        assert all(np.isfinite(step) and step > 0 and step == round_step(step) for step in steps)
        for layer in round_layers(net, steps):
            assert max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) <= 1.01 * MAX_STEPS


# --- rounding ---------------------------------------------------------------------------------------


def test_hopeless_weights_are_rounded_to_the_limits():
    layer = linear_layers(net := field_net())[0]
    with torch.no_grad():
        layer.weight[:3, 0] = torch.tensor([math.inf, -math.inf, math.nan])
    n_out, n_in = layer.out_features, layer.in_features + 1
    factor = quantise.CarryFactor([(0, slice(0, n_out))], torch.eye(n_out * n_in))
    rounded = quantise.round_compensated(net, 0, [factor], 0.5)
    assert rounded[0, 0] == 1.5 * MAX_STEPS and rounded[1:, 0].min() == -1.5 * MAX_STEPS
    assert np.abs(rounded).max() == 1.5 * MAX_STEPS


def test_rounding_is_to_the_nearest(trained):
    steps = choose_steps(trained, sensitivities(trained, domain_points(SHAPE, 500)), bits=5)
    found = dequantised(trained, round_layers(trained, steps))
    for layer, rounded, step in zip(linear_layers(trained), linear_layers(found), steps, strict=True):
        for a, b in ((layer.weight, rounded.weight), (layer.bias, rounded.bias)):
            assert float((a - b).detach().abs().max()) <= float(step) / 2 * 1.0001


@pytest.mark.parametrize("error", [1e-4, 1e-6])
def test_rounding_to_an_error(trained, error):
    before = copy.deepcopy(arrays(trained))
    layers = round_to_error(trained, SHAPE, error)
    found = mean_squared(trained, dequantised(trained, layers), domain_points(SHAPE, 2000, seed=2))
    assert 0.6 * error < found < 1.5 * error
    for name, array in arrays(trained).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("block", "free", "least"), [(10_000, 1000, 3.5), (40, 1000, 3.5), (10_000, 0, 1.8), (40, 40, 1.8)]
)
def test_compensation_beats_the_nearest(trained, monkeypatch, block, free, least):
    """At equal steps, whether one block or many; most so where later layers take part."""
    monkeypatch.setattr(quantise, "BLOCK", block)
    monkeypatch.setattr(quantise, "FREE", free)
    unseen = domain_points(SHAPE, 2000, seed=1)
    steps = choose_steps(trained, sensitivities(trained, domain_points(SHAPE, 2000)), error=1e-5)
    nearest = mean_squared(trained, dequantised(trained, round_layers(trained, steps)), unseen)
    layers = round_in_turn(copy.deepcopy(trained), SHAPE, steps)
    assert mean_squared(trained, dequantised(trained, layers), unseen) < nearest / least


def test_rounding_with_training(trained):
    """Better than rounding alone at equal steps; the weights are multiples of the steps; equal seeds, equal bytes."""
    field = wave()
    points = domain_points(SHAPE, 2000)
    steps = choose_steps(trained, sensitivities(trained, points, True), error=0.4 * field_error(trained, field))
    recipe = Recipe(optimizer="adam", n_passes=12, batch=128, lr=1e-3)
    heard: list[tuple[float, float]] = []
    runs = []
    for seed in (0, 0, 1):
        net = copy.deepcopy(trained)
        layers = round_and_train(net, field, steps, recipe, seed, lambda *figures: heard.append(figures))
        runs.append(b"".join(layer.weights.tobytes() + layer.biases.tobytes() for layer in layers))
        found = dequantised(trained, layers)
        assert field_error(found, field) < 0.7 * field_error(dequantised(trained, round_layers(trained, steps)), field)
        for layer, quantised, step in zip(linear_layers(net), layers, steps, strict=True):
            assert quantised.step == step
            for parameter, integers in ((layer.weight, quantised.weights), (layer.bias, quantised.biases)):
                expected = step * integers.astype(np.float32)
                np.testing.assert_array_equal(parameter.detach().numpy(), expected)  # nothing trained it on
    assert runs[0] == runs[1] != runs[2]
    fractions = [fraction for fraction, _ in heard[: len(steps) - 1]]
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] < 1


# --- codebooks --------------------------------------------------------------------------------------


def test_kmeans_is_a_fixed_point():
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    centroids = kmeans(values, 8)
    nearest = np.abs(values[:, None] - centroids).argmin(1)
    means = [values[nearest == i].mean() for i in range(8)]
    np.testing.assert_allclose(centroids, means, rtol=0, atol=5e-3)
    spread = np.linspace(values.min(), values.max(), 8)
    assert np.square(values - centroids[nearest]).mean() < np.square(np.abs(values[:, None] - spread).min(1)).mean()


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0, 1.0], [3.0, -2.0], [0.0, 0.0, 0.0, 5.0]])
def test_kmeans_of_few_values_is_exact(values):
    found = kmeans(np.array(values, np.float32), 16)
    assert set(found) == set(values) and found.dtype == np.float32


@pytest.mark.parametrize("bits", [1, 2, 5, 9])
def test_codebooks(trained, bits):
    steps = choose_steps(trained, sensitivities(trained, domain_points(SHAPE, 500)), bits=9)
    layers = round_to_codebooks(trained, bits, steps)
    for layer, quantised in zip(linear_layers(trained)[1:-1], layers[1:-1], strict=True):
        values, _ = quantised.dequantise()
        original = layer.weight.detach().numpy()
        assert len(np.unique(values)) <= 2**bits and len(quantised.codebook) % 2 == 1
        nearest = np.abs(original[..., None] - quantised.codebook).min(-1)
        np.testing.assert_allclose(np.abs(values - original), nearest, rtol=0, atol=1e-6)
    assert layers[0].codebook is None and layers[-1].codebook is None
