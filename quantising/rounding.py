"""Rounds the weights of a network to integers: to the nearest, with error compensation, or with training in between."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from field.quantised import QuantisedLayer, are_in_order, round_step
from quantising.compensation import CompensationFactor, compensated_sensitivities, layer_sizes
from quantising.search import Search
from quantising.sensitivity import MAX_STEPS, N_POINTS, choose_steps, informative_points
from siren import FieldNet, linear_layers
from training.fitting import Fit
from training.recipe import Recipe
from training.sampler import VoxelSampler
from utils import VolumeHeader

MAX_TRIES = 8  # roundings that `round_to_error` tries, at most
TOLERANCE = 0.1  # deviation from the wanted error that `round_to_error` accepts, relative to this error


def round_layers(net: FieldNet, steps: list[np.float32]) -> list[QuantisedLayer]:
    """The layers in integers: every weight and bias is rounded to the nearest step of its layer."""
    layers = []
    for layer, step in zip(linear_layers(net), steps, strict=True):
        rounded = np.rint(_matrix(layer).numpy().astype(np.float64) / step).astype(np.int32)
        layers.append(QuantisedLayer(rounded[:, :-1], rounded[:, -1], step))
    return layers


def zero_layers(net: FieldNet) -> list[QuantisedLayer]:
    """The layers as zeros, which take the fewest bytes. The range alone describes a constant volume."""
    return [
        QuantisedLayer(np.zeros(layer.weight.shape, np.int32), np.zeros(layer.out_features, np.int32), round_step(1.0))
        for layer in linear_layers(net)
    ]


def load(net: FieldNet, layers: list[QuantisedLayer]) -> None:
    """Set the weights of a network to the values that the integers represent."""
    for layer, rounded in zip(linear_layers(net), layers, strict=True):
        _load_layer(layer, rounded)


@torch.no_grad()
def _load_layer(layer: nn.Linear, rounded: QuantisedLayer) -> None:
    for parameter, values in zip((layer.weight, layer.bias), rounded.dequantise(), strict=True):
        parameter.copy_(torch.from_numpy(values))


def round_layer_by_layer(
    net: FieldNet,
    steps: list[np.float32],
    factors: Iterable[CompensationFactor],
    train_rest: Callable[[int], None] = lambda first_layer: None,
) -> list[QuantisedLayer]:
    """The layers in integers, rounded from first to last; later weights compensate each error. Changes `net`.

    net: with its neurons `in_order`. All matrices but the first have a trellis.
    train_rest: `train_rest(i)` is called when the layers before layer i are rounded; it may train the other layers.
    """
    layers, sizes, ascends = [], layer_sizes(net), are_in_order(net.config)
    parts = _split_by_layer(factors, sizes)
    for i, (layer, size, step) in enumerate(zip(linear_layers(net), sizes, steps, strict=True)):
        weights = _weights(net)  # read anew for each layer, as `train_rest` changes them
        search = Search(float(step), layer.in_features, has_trellis=i > 0, ascends=ascends[i])
        rounded = np.empty(0, np.int32)
        while len(rounded) < size:
            part = next(parts)
            compensated = weights[part.start : part.start + part.matrix.shape[1]]
            rounded = np.append(rounded, search.round(compensated, part.matrix.numpy()))
        rounded = rounded.reshape(layer.out_features, -1)
        layers.append(QuantisedLayer(rounded[:, :-1], rounded[:, -1], step, has_trellis=i > 0))
        _load_weights(net, weights)
        _load_layer(layer, layers[i])
        if i + 1 < len(steps):
            train_rest(i + 1)
    return layers


def _split_by_layer(factors: Iterable[CompensationFactor], sizes: list[int]) -> Iterator[CompensationFactor]:
    """The factors, each split where a layer ends: a part has weights of one layer only. sizes: weights of each layer.

    The weights that compensate are those of the whole factor, from the part's first weight on.
    """
    layer_ends = [*itertools.accumulate(sizes)]
    for factor in factors:
        stop = factor.start + len(factor.matrix)
        inside = [end for end in layer_ends if factor.start < end < stop]
        for first, last in itertools.pairwise([factor.start, *inside, stop]):
            rows = slice(first - factor.start, last - factor.start)
            yield CompensationFactor(first, factor.matrix[rows, rows.start :])


def round_to_error(
    net: FieldNet, header: VolumeHeader, factors: list[CompensationFactor], error: float
) -> list[QuantisedLayer]:
    """The layers in integers, with steps that change the normalised output by a mean squared error of about `error`.

    The error that the sensitivities predict can be many times too small. So the error is measured, and new steps are
    chosen until it fits. If no try fits, the best try is returned. header: of the field, whose missing voxels do not
    count.
    """
    sensitivity = compensated_sensitivities(net, factors)
    x, weights = informative_points(net, header, N_POINTS, seed=1)
    with torch.no_grad():
        output = net(x).clamp_(-1, 1)

    @torch.no_grad()
    def tried(predicted: float) -> tuple[list[QuantisedLayer], float]:
        """The layers by steps for a predicted error, and the error that is measured."""
        rounded = copy.deepcopy(net)
        layers = round_layer_by_layer(rounded, choose_steps(net, sensitivity, error=predicted), factors)
        squares = (rounded(x).clamp_(-1, 1) - output).square().mean(1)
        return layers, float((squares * weights).mean().nan_to_num(math.inf))

    predicted = error
    best, most, least = None, -1.0, math.inf  # most: largest error that fits; least: smallest that does not
    for _ in range(MAX_TRIES):
        layers, found = tried(predicted)
        if found <= (1 + TOLERANCE) * error:
            if found > most:
                best, most = layers, found
            if found >= (1 - TOLERANCE) * error:
                break
        elif most < 0:
            if found > 0.9 * least and any(map(_is_finest, layers)):
                break  # finer steps of the other layers hardly help
            if best is None or found < least:
                best, least = layers, found
        predicted *= min(max(error / max(found, 1e-30), 0.05), 4.0)
    return best


def _is_finest(layer: QuantisedLayer) -> bool:
    """Whether the layer has about the finest step that the coder takes."""
    return max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) > 0.8 * MAX_STEPS


def round_and_train(
    net: FieldNet,
    sampler: VoxelSampler,
    steps: list[np.float32],
    factors: Iterable[CompensationFactor],
    recipe: Recipe,
    seed: int,
    on_step: Callable[[Fit], None] = lambda fit: None,
    n_threads: int = 1,
) -> list[QuantisedLayer]:
    """The layers in integers. After each layer is rounded, the remaining layers are trained further. Changes `net`.

    recipe: of all the training together. on_step: called with the fit of the remaining layers, after each of its steps.
    """
    part = dataclasses.replace(recipe, n_passes=recipe.n_passes / max(len(steps) - 1, 1))
    # A streamed volume has no memory for one error per voxel, see `Fit`.
    errors = sampler.squared_errors(net) if isinstance(sampler, VoxelSampler) else None

    def train_rest(first_layer: int) -> None:
        fit = Fit(net, sampler, part, seed + first_layer, first_layer, n_threads, errors=errors)
        fit.run(on_step)
        net.load_state_dict(fit.averaged_net.state_dict())

    return round_layer_by_layer(net, steps, factors, train_rest)


def _matrix(layer: nn.Linear) -> torch.Tensor:
    """The matrix [W b] of a layer, on the CPU."""
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1).cpu()


def _weights(net: FieldNet) -> np.ndarray:
    """All weights of a network: [W b] row by row, layer after layer."""
    return torch.cat([_matrix(layer).flatten() for layer in linear_layers(net)]).numpy()


@torch.no_grad()
def _load_weights(net: FieldNet, weights: np.ndarray) -> None:
    parts = torch.from_numpy(weights).split(layer_sizes(net))
    for layer, part in zip(linear_layers(net), parts, strict=True):
        matrix = part.view(layer.out_features, -1)
        layer.weight.copy_(matrix[:, :-1])
        layer.bias.copy_(matrix[:, -1])
