"""Which integers stand for the weights of a network: steps by sensitivity, rounding, rounding with training, codebooks.

The output's sensitivity to a layer is the mean of its squared derivative by the layer's weights, over random points
of the domain. Steps inversely proportional to its root make every weight's rounding cost the same (reverse
water-filling; Cover and Thomas, "Elements of Information Theory", section 10.3), and the cost can be foretold: a
rounded weight is off by step^2 / 12 in the mean square.

With the volume at hand, the layers are rounded one after the other, first to last, and those after it trained on in
between: they make up for much of the error of those that are fixed. Each rounding error within a layer is
carried over to the weights of the layer not yet rounded (Hassibi and Stork, "Optimal Brain Surgeon", 1993; Frantar
et al., "GPTQ", 2023), in the metric of the output's squared derivatives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fitting import Fit, Recipe
from net_coder import QuantisedLayer, round_step
from samples import Field
from siren import FieldNet, linear_layers
from utils import axis_coordinates

N_POINTS = 6144  # of the domain, at which derivatives are taken
RAMP = 3.0  # with training in between: the first layer has 2^RAMP times the steps of the last, relative to sensitivity
MAX_STEPS = 1 << 13  # on either side of zero, within what the entropy coder takes
BLOCK = 3200  # weights of a layer that are rounded together
DAMPING = 0.03  # of the metric, relative to the mean of its diagonal
KMEANS_ITERATIONS = 50

Derivatives = list[tuple[torch.Tensor, torch.Tensor]]


def domain_points(shape: tuple[int, ...], n: int = N_POINTS, seed: int = 0) -> torch.Tensor:
    """n random points (n, d_in) of the box that the normalised coordinates of a grid fill."""
    half = torch.tensor([float(axis[-1]) for axis in axis_coordinates(shape)])
    return (2 * torch.rand(n, len(shape), generator=torch.Generator().manual_seed(seed)) - 1) * half


def derivatives(net: FieldNet, x: torch.Tensor, seed: int = 0) -> Derivatives:
    """Per linear layer (a, d): at point s of x the output's derivative by [W b] is the outer product of d[s] and a[s].

    a: (points, n_in + 1), the layer's input and 1; d: (points, n_out). Of several outputs a sum with random signs is
    taken, the mean square of whose derivative is the sum of theirs.
    """
    taps: Derivatives = []

    def tap(_layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        taps.append((functional.pad(inputs[0].detach(), (0, 1), value=1.0), output))

    handles = [layer.register_forward_hook(tap) for layer in linear_layers(net)]
    try:
        y = net(x)
    finally:
        for handle in handles:
            handle.remove()
    signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0
    slopes = torch.autograd.grad((y * signs.to(y.device)).sum(), [output for _, output in taps])
    return [(a, d) for (a, _), d in zip(taps, slopes, strict=True)]


def relative_steps(taps: Derivatives, ramp: float) -> tuple[list[float], float]:
    """Steps of the layers up to a common factor, and the mean squared error of the output that they would cause."""
    sensitivities = [float(a.square().mean() * d.square().mean()) for a, d in taps]
    sensitivities = [min(max(1e-30, s), 1e30) for s in sensitivities]  # in this order, NaN becomes 1e-30
    last = max(len(taps) - 1, 1)
    steps = [2.0 ** (ramp * (0.5 - i / last)) / math.sqrt(s) for i, s in enumerate(sensitivities)]
    sizes = [a.shape[1] * d.shape[1] for a, d in taps]
    error = sum(n * s * step**2 / 12 for n, s, step in zip(sizes, sensitivities, steps, strict=True))
    return steps, error / taps[-1][1].shape[1]


def choose_steps(
    net: FieldNet, x: torch.Tensor, *, bits: int | None = None, error: float | None = None, ramp: float = 0.0
) -> list[np.float32]:
    """A step per layer.

    With `bits` the finest at which no hidden matrix has more than 2^bits steps; with `error` those whose rounding would
    alone cause that mean squared error of the normalised output.
    """
    relative, unit_error = relative_steps(derivatives(net, x), ramp)
    layers = linear_layers(net)
    largest = [float(layer.weight.detach().abs().max()) for layer in layers]
    if error is not None:
        scale = math.sqrt(error / unit_error)
    else:
        counted = range(1, len(layers) - 1) if len(layers) > 2 else range(len(layers))
        scale = max(largest[i] / relative[i] for i in counted) / min(2 ** (bits - 1), MAX_STEPS)
    # The coder's limit holds for every layer.
    finest = [
        max(w, float(layer.bias.detach().abs().max())) / MAX_STEPS for w, layer in zip(largest, layers, strict=True)
    ]
    return [round_step(max(scale * r, f)) for r, f in zip(relative, finest, strict=True)]


def round_layers(net: FieldNet, steps: list[np.float32]) -> list[QuantisedLayer]:
    """Every weight and bias rounded to the nearest step of its layer."""
    layers = []
    for layer, step in zip(linear_layers(net), steps, strict=True):
        rounded = np.rint(_matrix(layer).numpy().astype(np.float64) / step).astype(np.int32)
        layers.append(QuantisedLayer(rounded[:, :-1], rounded[:, -1], step))
    return layers


def round_in_turn(
    net: FieldNet,
    shape: tuple[int, ...],
    steps: list[np.float32],
    seed: int = 0,
    train_rest: Callable[[int], None] = lambda first_layer: None,
) -> list[QuantisedLayer]:
    """Round the layers one after the other, each for the output that the rounded ones before it leave. Changes `net`.

    shape: grid of the field. `train_rest(i)` may train the layers from number i on, once those before it are rounded.
    """
    x = domain_points(shape, seed=seed).to(next(net.parameters()).device)
    layers = []
    for i, (layer, step) in enumerate(zip(linear_layers(net), steps, strict=True)):
        a, d = derivatives(net, x, seed)[i]
        rounded = round_compensated(_matrix(layer), a, d, float(step))
        layers.append(QuantisedLayer(rounded[:, :-1], rounded[:, -1], step))
        with torch.no_grad():
            for parameter, values in zip((layer.weight, layer.bias), layers[i].dequantise(), strict=True):
                parameter.copy_(torch.from_numpy(values))
        if i + 1 < len(steps):
            train_rest(i + 1)
    return layers


def round_and_train(
    net: FieldNet,
    field: Field,
    steps: list[np.float32],
    recipe: Recipe,
    seed: int,
    on_progress: Callable[[float, float], None] = lambda fraction, psnr: None,
    n_threads: int = 1,
) -> list[QuantisedLayer]:
    """`round_in_turn`, with training by `recipe`, in all, of the layers that are not rounded yet. Changes `net`.

    `on_progress(fraction, psnr)` is told how much is done, and the estimated PSNR in dB.
    """
    part = dataclasses.replace(recipe, n_passes=recipe.n_passes / max(len(steps) - 1, 1))

    def train_rest(first_layer: int) -> None:
        fit = Fit(net, field, part, seed + first_layer, first_layer, n_threads)
        fit.run()
        net.load_state_dict(fit.average.state_dict())
        on_progress(first_layer / len(steps), fit.psnr)

    return round_in_turn(net, field.shape, steps, seed, train_rest)


def _matrix(layer: nn.Linear) -> torch.Tensor:
    """[W b] of a layer, on the CPU."""
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1).cpu()


@torch.no_grad()
def round_compensated(matrix: torch.Tensor, a: torch.Tensor, d: torch.Tensor, step: float) -> np.ndarray:
    """Integers (n_out, n_in + 1) for [W b], in blocks of rows; a, d as `derivatives` gives them."""
    n_out, n_in = matrix.shape
    n_blocks = math.ceil(n_out / max(1, BLOCK // n_in))
    result = np.empty(matrix.shape, np.int32)
    for rows in torch.arange(n_out).tensor_split(n_blocks):
        metric = a.new_zeros(len(rows) * n_in, len(rows) * n_in)
        for inputs, slopes in zip(a.split(512), d[:, rows].split(512), strict=True):
            jacobian = (slopes[:, :, None] * inputs[:, None, :]).flatten(1)
            metric.addmm_(jacobian.T, jacobian)
        metric.diagonal().add_(DAMPING * metric.diagonal().mean() + 1e-30)
        result[rows.numpy()] = _round_block(matrix[rows].flatten(), metric.cpu(), step).reshape(len(rows), n_in)
    return result


def _round_block(weights: torch.Tensor, metric: torch.Tensor, step: float) -> np.ndarray:
    """Round in order; the best answer of the weights not yet rounded to each error is a row of a Cholesky factor."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric))
    factor = torch.linalg.cholesky(inverse, upper=True).numpy()
    weights, rounded = weights.numpy().copy(), np.empty(len(weights), np.int32)
    limit = MAX_STEPS * 3 // 2  # corrections may carry a weight beyond the largest one there was
    for start in range(0, len(weights), 128):  # later blocks are corrected once, by a product of matrices
        end = min(start + 128, len(weights))
        errors = np.empty(end - start, np.float32)
        for i in range(start, end):
            rounded[i] = min(max(round(float(weights[i]) / step), -limit), limit)
            errors[i - start] = (weights[i] - rounded[i] * step) / factor[i, i]
            weights[i + 1 : end] -= errors[i - start] * factor[i, i + 1 : end]
        weights[end:] -= errors @ factor[start:end, end:]
    return rounded


def round_to_codebooks(net: FieldNet, bits: int, steps: list[np.float32]) -> list[QuantisedLayer]:
    """A codebook of at most 2^bits values per hidden matrix, by k-means, as in the paper; the rest by `steps`."""
    layers = round_layers(net, steps)
    for i, layer in enumerate(linear_layers(net)):
        if tuple(layer.weight.shape) == (net.config.n_neurons,) * 2:
            values = layer.weight.detach().cpu().numpy()
            codebook = kmeans(values.ravel(), min(2**bits, 2 * MAX_STEPS))
            if len(codebook) % 2 == 0:  # the format counts from the middle one
                codebook = np.append(codebook, codebook[-1])
            nearest = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, values).astype(np.int32)
            layers[i] = dataclasses.replace(layers[i], weights=nearest - len(codebook) // 2, codebook=codebook)
    return layers


def kmeans(values: np.ndarray, k: int) -> np.ndarray:
    """At most k ascending float32 centroids of one-dimensional values, by Lloyd's algorithm from their quantiles."""
    values = np.sort(values.astype(np.float64))
    centroids = np.unique(np.quantile(values, (np.arange(k) + 0.5) / k))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(KMEANS_ITERATIONS):
        edges = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.unique(np.concatenate([[0], edges, [len(values)]]))
        moved = np.diff(sums[edges]) / np.diff(edges)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return np.unique(centroids.astype(np.float32))
