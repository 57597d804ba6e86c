"""Quantisation: errors as foretold, limits kept, compensation and training that pay."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.networks import arrays, field_net, make_header
from helpers.scripts import stored_state
from helpers.volumes import wave

from field.layers import SirenConfig
from field.quantised import QuantisedLayer, round_step
from quantising import compensation
from quantising.codebooks import kmeans, round_to_codebooks
from quantising.compensation import (
    CompensationFactor,
    CompensationFactors,
    compensated_sensitivities,
    compensation_matrix,
    compensation_metric,
    jacobian,
)
from quantising.order import in_order
from quantising.rounding import round_and_train, round_layer_by_layer, round_layers, round_to_error
from quantising.sensitivity import (
    MAX_STEPS,
    choose_steps,
    derivatives,
    informative_points,
    quasirandom_points,
    sensitivities,
)
from siren import FieldNet, linear_layers
from training.fitting import Fit
from training.recipe import Recipe
from training.sampler import VoxelSampler
from utils import Mask, value_range

SHAPE = (14, 12, 10)
HEADER = make_header(SHAPE)


def wave_sampler() -> VoxelSampler:
    """What the stored network was fitted to."""
    volume = wave(SHAPE)[..., None]
    return VoxelSampler(value_range(volume).normalise(volume), torch.device("cpu"))


@pytest.fixture(scope="module")
def trained() -> FieldNet:
    """The stored network of `wave`, in order; to be copied before it is changed."""
    net = field_net(n_neurons=16)
    net.load_state_dict(stored_state("wave"))
    return in_order(net)


@pytest.fixture(scope="module")
def factors(trained) -> list[CompensationFactor]:
    """How its errors of rounding are carried over."""
    return list(CompensationFactors(trained, HEADER))


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
def sampler_error(net: FieldNet, sampler: VoxelSampler) -> float:
    """Mean squared error over all voxels."""
    x, values = sampler.samples(torch.arange(sampler.n_present))
    return float((net(x) - values).square().mean())


# --- derivatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"is_residual": False}, {"d_out": 3, "d_in": 2}, {"n_layers": 1}])
def test_derivatives_by_finite_differences(fields):
    net = field_net(**fields).double()
    x = quasirandom_points((5, 4, 3)[: net.config.d_in], 4).double()
    signs = torch.randint(0, 2, (4, net.config.d_out), generator=torch.Generator().manual_seed(0)) * 2 - 1

    @torch.no_grad()
    def output(parameter: torch.Tensor, at: tuple[int, ...], change: float) -> torch.Tensor:
        parameter[at] += change
        y = (net(x) * signs).sum(1)
        parameter[at] -= change
        return y

    for layer, (a, d) in zip(linear_layers(net), derivatives(net, x), strict=True):
        assert a.shape == (4, layer.in_features + 1) and d.shape == (4, layer.out_features)
        jacobian = d[:, :, None] * a[:, None, :]
        for row, column in ((0, 0), (-1, -1)):
            for parameter, at, exact in (
                (layer.weight, (row, column), jacobian[:, row, :-1][:, column]),
                (layer.bias, (row,), jacobian[:, row, -1]),
            ):
                found = (output(parameter, at, 1e-6) - output(parameter, at, -1e-6)) / 2e-6
                torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-7)
    assert not any(module._forward_hooks for module in net.modules())


def test_outputs_beyond_the_range_have_no_derivatives():
    """The bias is such that about half of the outputs are beyond it, and none is near the border."""
    net, x = field_net(), quasirandom_points(SHAPE, 100)
    with torch.no_grad():
        outputs = net(x)[:, 0].sort().values
        widest = 30 + int(outputs[30:70].diff().argmax())  # gap between two outputs
        net.net_layers[-1].bias += 1 - outputs[widest : widest + 2].mean()
        is_within = net(x)[:, 0] <= 1
        assert float((net(x) - 1).abs().min()) > 1e-4
    assert 20 < is_within.sum() < 80
    for _, d in derivatives(net, x):
        assert torch.equal((d != 0).any(1), is_within)


def test_domain_points_fill_the_box():
    x = quasirandom_points((9, 5, 1), 4000)
    assert x.shape == (4000, 3)
    torch.testing.assert_close(x.abs().amax(0), torch.tensor([1.0, 0.5, 0.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(x, quasirandom_points((9, 5, 1), 4000))
    assert (x != quasirandom_points((9, 5, 1), 4000, seed=1)).any()


def test_points_are_where_voxels_are_not_missing():
    """The nearest voxel counts. Where nearly all is missing, they are fewer; where all is, they are anywhere."""
    is_missing = np.ones((9, 5, 3), bool)
    is_missing[2:5, 1:3] = False
    mask = Mask.of((9, 5, 3), np.float32(np.nan), is_missing)
    x = quasirandom_points((9, 5, 3), 2000, missing=mask)
    assert 1800 < len(x) <= 2000
    assert ((x[:, 0] > (1.5 - 4) / 4) & (x[:, 0] < (4.5 - 4) / 4)).all()
    assert ((x[:, 1] > (0.5 - 2) / 4) & (x[:, 1] < (2.5 - 2) / 4)).all()
    assert x[:, 2].max() > 0.2 > -0.2 > x[:, 2].min()
    all_missing = Mask.of((9, 5, 3), np.float32(np.nan), np.ones((9, 5, 3), bool))
    assert len(quasirandom_points((9, 5, 3), 20, missing=all_missing)) > 0


# --- steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compensated", [False, True])
@pytest.mark.parametrize("error", [1e-5, 1e-6])
def test_the_error_is_as_foretold(trained, factors, error, is_compensated):
    """On average over several roundings: a single one of so small a network is a matter of luck."""
    unseen, ratios = quasirandom_points(SHAPE, 2000, seed=1), []
    sensitivity = sensitivities(trained, quasirandom_points(SHAPE, 2000))
    if is_compensated:
        sensitivity = compensated_sensitivities(trained, factors)
    for asked in error * np.linspace(0.5, 1.5, 12):
        steps = choose_steps(trained, sensitivity, error=asked)
        net = copy.deepcopy(trained)
        layers = round_layer_by_layer(net, steps, factors) if is_compensated else round_layers(net, steps)
        ratios.append(mean_squared(trained, dequantised(trained, layers), unseen) / asked)
    assert 0.75 < np.mean(ratios) < 1.25


def test_the_error_of_several_outputs_is_as_foretold():
    net = field_net(n_neurons=24, d_out=3, seed=3)
    x = quasirandom_points(SHAPE, 3000)
    found = mean_squared(
        net, dequantised(net, round_layers(net, choose_steps(net, sensitivities(net, x), error=1e-6))), x
    )
    assert 0.75e-6 < found < 1.25e-6


@pytest.mark.parametrize("bits", range(1, 16))
def test_bits_bound_the_levels(trained, bits):
    steps = choose_steps(trained, sensitivities(trained, quasirandom_points(SHAPE, 500)), bits=bits)
    layers = round_layers(trained, steps)
    largest = [int(np.abs(layer.weights).max()) for layer in layers[1:-1]]
    bound = 2 ** (bits - 1)
    assert max(largest) <= bound * 1.01 + 0.5
    if bits <= 11:  # beyond, another layer is at the coder's limit
        assert max(largest) >= bound * 0.88 - 0.5  # hardly coarser than asked for
    assert max(np.abs(layer.biases).max() for layer in layers) <= MAX_STEPS * 1.01


def test_steps_follow_the_sensitivity(trained, factors):
    """Every layer's rounding costs as much a weight; compensated less, most so in hidden layers, least in the last."""
    x = quasirandom_points(SHAPE, 2000)
    scales = [float(a.square().mean() * d.square().mean()) for a, d in derivatives(trained, x)]
    nearest, compensated = (
        np.log2(np.array(choose_steps(trained, sensitivity, error=1e-4), float) ** 2 * scales) / 2
        for sensitivity in (sensitivities(trained, x), compensated_sensitivities(trained, factors))
    )
    np.testing.assert_allclose(nearest, nearest[0], atol=0.2)  # steps are an eighth apart
    gains = compensated - nearest
    gains[1:] += np.log2(compensation.TRELLIS_ERROR) / 2
    assert gains[0] > gains[-1] + 0.2 and gains[1:-1].min() > gains[-1] + 0.5


def test_what_is_carried_is_the_best_answer():
    """Against the least-squares answer of the weights after the first, with the metric's damping."""
    net = field_net(n_neurons=5, n_layers=2).double()
    taps = derivatives(net, quasirandom_points(SHAPE, 700).double())
    whole = torch.cat([(d[:, :, None] * a[:, None, :]).flatten(1) for a, d in taps], 1)
    chosen, start = slice(27, 86), 27  # from the middle of a row of one layer to the end of the last
    torch.testing.assert_close(jacobian(taps, chosen), whole[:, chosen], rtol=0, atol=0)
    metric = whole[:, chosen].T @ whole[:, chosen] / len(whole)
    torch.testing.assert_close(compensation_metric(taps, chosen, slice(30, 40)), metric[:, 30 - start : 40 - start])
    factor = compensation_matrix(metric, 20)
    diagonal = metric.diagonal().clone()
    metric = metric + torch.diag(compensation.DAMPING * (diagonal + 0.01 * diagonal.mean()))
    for i in (0, 7, 19):
        rest = slice(i + 1, None)
        best = -torch.linalg.solve(metric[rest, rest], metric[rest, i])
        torch.testing.assert_close(factor[i, rest] / factor[i, i], best, rtol=1e-8, atol=1e-12)
        cost = metric[i, i] + metric[i, rest] @ best
        torch.testing.assert_close(factor[i, i] ** -2, cost, rtol=1e-8, atol=0)


@pytest.mark.parametrize("block", [1000, 60, 7])
def test_blocks_cover_every_weight_once_and_reach_over_the_next(monkeypatch, block):
    net = field_net(n_neurons=5, n_layers=3).double()
    monkeypatch.setattr(compensation, "BLOCK", block)
    monkeypatch.setattr(compensation, "WIDE_BLOCK", min(block, 40))
    monkeypatch.setattr(compensation, "MIN_BLOCK", 1)
    monkeypatch.setattr("quantising.sensitivity.quasirandom_points", lambda *args: quasirandom_points(*args).double())
    factors, n = CompensationFactors(net, HEADER), net.config.n_parameters
    size = 1000 if block == 1000 else min(block, 40)
    assert [factor.start for factor in factors] == list(range(0, n, size))
    taps = [(a, d * factors.weights.sqrt()[:, None]) for a, d in derivatives(net, factors.x)]
    for factor in factors:
        reached = slice(factor.start, min(factor.start + 2 * size, n))
        own = min(size, n - factor.start)
        torch.testing.assert_close(factor.matrix, compensation_matrix(compensation_metric(taps, reached, reached), own))


def test_the_largest_networks_have_smaller_blocks(monkeypatch):
    net = field_net(n_neurons=16, n_layers=6)
    n = net.config.n_parameters
    for block, kept, size in ((n, 1 << 28, n), (n // 2 - 1, 1 << 28, 2048), (500, 200 * n, 100), (500, 10 * n, 64)):
        monkeypatch.setattr(compensation, "BLOCK", block)
        monkeypatch.setattr(compensation, "MAX_METRIC_NUMBERS", kept)
        blocks = CompensationFactors(net, HEADER).blocks
        assert blocks[0] == slice(0, size) and blocks[-1].stop == n


def test_points_are_drawn_where_the_weights_matter():
    """More often than evenly drawn ones are; weighted, the mean over them is that over the domain."""
    net = FieldNet(SirenConfig(n_neurons=4, n_layers=1))
    first, last = linear_layers(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        first.weight[0] = 0.1
        last.weight[0, 0] = 1.0
    x, weights = informative_points(net, HEADER, 3000)
    even = quasirandom_points(SHAPE, 30_000, seed=5)
    taps = derivatives(net, even)
    size = sum(a.square().sum(1) * d.square().sum(1) for a, d in taps).sqrt()
    drawn = sum(a.square().sum(1) * d.square().sum(1) for a, d in derivatives(net, x)).sqrt()
    assert len(x) == len(weights) == 3000 and weights.max() <= 2
    assert float(drawn.mean()) > 1.02 * float(size.mean())
    torch.testing.assert_close((drawn.square() * weights).mean(), size.square().mean(), rtol=0.02, atol=0)
    torch.testing.assert_close((x[:, 0] * weights).mean(), torch.tensor(0.0), rtol=0, atol=0.01)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_steps_of_degenerate_networks(factor):
    net = field_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= factor
    factors = list(CompensationFactors(net, HEADER))
    both = sensitivities(net, quasirandom_points(SHAPE, 16)), compensated_sensitivities(net, factors)
    for fineness, sensitivity in itertools.product(({"bits": 9}, {"error": 1e-4}, {"error": 0.0}), both):
        steps = choose_steps(net, sensitivity, **fineness)
        round_layer_by_layer(copy.deepcopy(net), steps, factors)
        assert all(np.isfinite(step) and step > 0 and step == round_step(step) for step in steps)
        for layer in round_layers(net, steps):
            assert max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) <= MAX_STEPS


# --- rounding ---------------------------------------------------------------------------------------


def test_hopeless_weights_are_rounded_to_the_limits():
    net = FieldNet(SirenConfig(n_neurons=3, n_layers=1))
    with torch.no_grad():
        linear_layers(net)[0].weight[:, 0] = torch.tensor([math.inf, -math.inf, math.nan])
    factors = [CompensationFactor(0, torch.eye(16))]
    rounded = round_layer_by_layer(net, [round_step(0.5)] * 2, factors)[0].weights
    assert rounded[0, 0] == 1.5 * MAX_STEPS and rounded[1:, 0].min() == -1.5 * MAX_STEPS
    assert np.abs(rounded).max() == 1.5 * MAX_STEPS


@pytest.mark.parametrize("value", [1e38, -1e38])
def test_a_hopeless_network_is_rounded_to_some_integers(value):
    net = field_net()
    with torch.no_grad():
        linear_layers(net)[-1].weight[0, 0] = value
        linear_layers(net)[0].weight[0, 0] = value
    layers = round_to_error(net, HEADER, list(CompensationFactors(net, HEADER)), 1e-4)
    assert [layer.weights.shape for layer in layers] == [layer.weight.shape for layer in linear_layers(net)]


@pytest.mark.parametrize("error", [1e-4, 1e-6])
@pytest.mark.parametrize(("foretold", "least"), [(1.0, 0.6), (0.05, 0.6), (20.0, 0.6), (1e-7, 0.0)])
def test_rounding_to_an_error(trained, factors, monkeypatch, error, foretold, least):
    """Though so many times the error may be foretold: it is measured, and the steps are chosen anew.

    Where all weights are zero by the first steps, finer ones may change nothing at first.
    """
    told = [foretold * sensitivity for sensitivity in compensated_sensitivities(trained, factors)]
    monkeypatch.setattr("quantising.rounding.compensated_sensitivities", lambda *_: told)
    before = copy.deepcopy(arrays(trained))
    layers = round_to_error(trained, HEADER, factors, error)
    found = mean_squared(trained, dequantised(trained, layers), quasirandom_points(SHAPE, 2000, seed=2))
    assert least * error < found < 1.5 * error
    for name, array in arrays(trained).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_network_that_is_beyond_the_range_everywhere_stays_there():
    """As one that has learnt nothing of a volume with a single bright voxel: all is clipped to the least value."""
    net, x = field_net(), quasirandom_points(SHAPE, 1000)
    with torch.no_grad():
        net.net_layers[-1].bias -= 5
    rounded = dequantised(net, round_to_error(net, HEADER, list(CompensationFactors(net, HEADER)), 1e-5))
    assert net(x).max() < -1
    assert rounded(x).max() <= -1


@pytest.mark.parametrize(("block", "least"), [(4096, 3.5), (500, 3.5), (40, 1.5)])
def test_compensation_beats_the_nearest(trained, monkeypatch, block, least):
    """At equal steps, whether one block or many; most so where later layers take part. The median of five roundings."""
    monkeypatch.setattr(compensation, "BLOCK", block)
    monkeypatch.setattr(compensation, "WIDE_BLOCK", block)
    monkeypatch.setattr(compensation, "MIN_BLOCK", block)
    unseen, ratios = quasirandom_points(SHAPE, 2000, seed=1), []
    sensitivity, factors = (
        sensitivities(trained, quasirandom_points(SHAPE, 2000)),
        list(CompensationFactors(trained, HEADER)),
    )
    for error in (5e-6, 7e-6, 1e-5, 1.4e-5, 2e-5):
        steps = choose_steps(trained, sensitivity, error=error)
        both = round_layers(trained, steps), round_layer_by_layer(copy.deepcopy(trained), steps, factors)
        nearest, compensated = (mean_squared(trained, dequantised(trained, layers), unseen) for layers in both)
        ratios.append(nearest / compensated)
    assert np.median(ratios) > least


def test_rounding_with_training(trained, factors):
    """Better than rounding alone at equal steps; the weights are multiples of the steps; equal seeds, equal bytes."""
    sampler = wave_sampler()
    steps = choose_steps(
        trained, compensated_sensitivities(trained, factors), error=0.4 * sampler_error(trained, sampler)
    )
    recipe = Recipe(optimizer="adam", n_passes=12, batch=128, lr=1e-3)
    heard: list[Fit] = []
    runs = []
    for seed in (0, 0, 1):
        net = copy.deepcopy(trained)
        layers = round_and_train(net, sampler, steps, factors, recipe, seed, heard.append)
        runs.append(b"".join(layer.weights.tobytes() + layer.biases.tobytes() for layer in layers))
        found = dequantised(trained, layers)
        assert sampler_error(found, sampler) < 0.8 * sampler_error(
            dequantised(trained, round_layers(trained, steps)), sampler
        )
        for layer, quantised, step in zip(linear_layers(net), layers, steps, strict=True):
            assert quantised.step == step
            for parameter, expected in zip((layer.weight, layer.bias), quantised.dequantise(), strict=True):
                np.testing.assert_array_equal(parameter.detach().numpy(), expected)  # nothing trained it on
    assert runs[0] == runs[1] != runs[2]
    assert len(set(heard)) == 3 * (len(steps) - 1) and len(heard) == sum(fit.n_steps for fit in set(heard))


def test_training_while_rounding_draws_voxels_by_their_errors(trained, factors, monkeypatch):
    """At first as the network left them, then as the layers before left them."""
    began, ended, run = [], [], Fit.run

    def watched(fit, *arguments):
        began.append(fit.errors.clone())
        run(fit, *arguments)
        ended.append(fit.errors.clone())

    monkeypatch.setattr(Fit, "run", watched)
    net, sampler = copy.deepcopy(trained), wave_sampler()
    steps = choose_steps(trained, compensated_sensitivities(trained, factors), error=1e-4)
    recipe = Recipe(n_passes=0.5 * (len(steps) - 1), batch=128, lr=1e-3)
    round_and_train(net, sampler, steps, factors, recipe, 0)
    assert len(began) == len(steps) - 1
    torch.testing.assert_close(began[0], sampler.squared_errors(trained))
    assert all(torch.equal(a, b) for a, b in zip(began[1:], ended[:-1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(began, ended, strict=True))


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
    steps = choose_steps(trained, sensitivities(trained, quasirandom_points(SHAPE, 500)), bits=9)
    layers = round_to_codebooks(trained, bits, steps)
    for layer, quantised in zip(linear_layers(trained)[1:-1], layers[1:-1], strict=True):
        values, _ = quantised.dequantise()
        original = layer.weight.detach().numpy()
        assert len(np.unique(values)) <= 2**bits and len(quantised.codebook) % 2 == 1
        nearest = np.abs(original[..., None] - quantised.codebook).min(-1)
        np.testing.assert_allclose(np.abs(values - original), nearest, rtol=0, atol=1e-6)
    assert layers[0].codebook is None and layers[-1].codebook is None
