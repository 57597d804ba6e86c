"""Which integers stand for the weights of a network: steps by sensitivity, rounding, rounding with training, codebooks.

A weight's sensitivity is the mean of the output's squared derivative by it, over points of the domain. Steps
inversely proportional to its root make every weight's rounding cost the same (reverse water-filling; Cover and Thomas,
"Elements of Information Theory", section 10.3), and the cost can be foretold: a rounded weight is off by step^2 / 12 in
the mean square.

Compensated rounding takes the layers one after the other, first to last, and carries the error of every weight over to
those after it (Hassibi and Stork, "Optimal Brain Surgeon", 1993; Frantar et al., "GPTQ", 2023), in the metric of the
output's squared derivatives. Sensitive is then what the later weights cannot make up for. With the volume at hand, the
layers that are not rounded yet are trained on in between.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fitting import Fit, Recipe
from net_coder import QuantisedLayer, round_step
from samples import Field, density_of, drawn_by
from siren import FieldNet, count_parameters, linear_layers
from utils import axis_coordinates

POINTS = 4  # of the domain, at which derivatives are taken, for each weight of a metric; with fewer it fits the points
CANDIDATES = 8  # for each point drawn by the derivatives
N_POINTS = 8192  # of the domain, for a mean over it
MAX_STEPS = 1 << 14  # on either side of zero: corrections may add half as many, and the coder takes that
BLOCK = 4096  # weights that have a metric together with as many after them, which take up their errors
WIDE_BLOCK = 2048  # the same, in a network of more than two such blocks
KEPT = 1 << 28  # numbers in all metrics together: the blocks of larger networks are as small as that takes,
LEAST_BLOCK = 64  # but no smaller
LEAST_METRIC = 1024  # weights that a metric has points for, however few it has
DAMPING = 0.02  # of the metric, relative to its diagonal
KMEANS_ITERATIONS = 50
MAX_TRIES = 8

Derivatives = list[tuple[torch.Tensor, torch.Tensor]]


def domain_points(shape: tuple[int, ...], n: int, seed: int = 0) -> torch.Tensor:
    """n points (n, d_in) that fill the box of a grid's normalised coordinates evenly, moved by `seed`.

    Multiples of the inverse powers of the root of x^(d + 1) = x + 1, modulo 1 (Roberts, "The unreasonable effectiveness
    of quasirandom sequences", 2018).
    """
    half = torch.tensor([float(axis[-1]) for axis in axis_coordinates(shape)], dtype=torch.float64)
    root = 1.0
    for _ in range(60):
        root = (1 + root) ** (1 / (len(shape) + 1))
    stride = root ** -torch.arange(1.0, len(shape) + 1, dtype=torch.float64)
    start = torch.rand(len(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((2 * ((start + torch.arange(n)[:, None] * stride) % 1) - 1) * half).float()


def derivatives(net: FieldNet, x: torch.Tensor, seed: int = 0) -> Derivatives:
    """Per linear layer (a, d): at point s of x the output's derivative by [W b] is the outer product of d[s] and a[s].

    a: (points, n_in + 1), the layer's input and 1; d: (points, n_out). The output is clipped as it is decoded: beyond
    the range its derivatives are zero. Of several outputs a sum with random signs is taken, the mean square of whose
    derivative is the sum of theirs.
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
    slopes = torch.autograd.grad((y.clamp(-1, 1) * signs.to(y.device)).sum(), [output for _, output in taps])
    return [(a, d) for (a, _), d in zip(taps, slopes, strict=True)]


def telling_points(net: FieldNet, shape: tuple[int, ...], n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """n points of the domain, drawn half evenly and half by how much the output there depends on the weights; weights.

    The weighted mean over them, of any figure, is about that over the domain. Where a field is empty but for a small
    part, so are the derivatives, and evenly drawn points say little of them.
    """
    x = domain_points(shape, CANDIDATES * n, seed).to(next(net.parameters()).device)
    squares = [
        sum(a.square().sum(1) * d.square().sum(1) for a, d in derivatives(net, part)) for part in x.split(1 << 14)
    ]
    density = density_of(torch.cat(squares).nan_to_num_(0.0).clamp_(max=1e18), len(x), by_error=0.5)
    chosen, weights = drawn_by(density, n)
    return x[chosen], weights


def sensitivities(net: FieldNet, x: torch.Tensor) -> list[float]:
    """Of each layer, the mean over its weights, where they are rounded to the nearest. x: (points, d_in)."""
    return [_bounded(float(a.square().mean() * d.square().mean())) for a, d in derivatives(net, x)]


def compensated_sensitivities(net: FieldNet, factors: Iterable[CarryFactor]) -> list[float]:
    """As `sensitivities`, where they are rounded by `round_in_turn`."""
    costs = torch.cat([factor.matrix.diagonal().double() ** -2 for factor in factors])
    return [_bounded(float(part.mean())) for part in costs.split(_sizes(net))]


def _bounded(sensitivity: float) -> float:
    return min(max(1e-30, sensitivity), 1e30)  # in this order, NaN becomes 1e-30


def choose_steps(
    net: FieldNet, sensitivity: list[float], *, bits: int | None = None, error: float | None = None
) -> list[np.float32]:
    """A step per layer, by its sensitivity.

    With `bits` the finest at which no hidden matrix has more than 2^bits steps; with `error` those whose rounding would
    alone cause that mean squared error of the normalised output.
    """
    relative = [1 / math.sqrt(s) for s in sensitivity]
    layers = linear_layers(net)
    largest = [float(layer.weight.detach().abs().max()) for layer in layers]
    if error is not None:
        scale = math.sqrt(12 * error * net.config.d_out / count_parameters(net.config))
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


def zero_layers(net: FieldNet) -> list[QuantisedLayer]:
    """Zeros, which take the fewest bytes: for a constant field, whose range says it all."""
    return [
        QuantisedLayer(np.zeros(layer.weight.shape, np.int32), np.zeros(layer.out_features, np.int32), round_step(1.0))
        for layer in linear_layers(net)
    ]


def load(net: FieldNet, layers: list[QuantisedLayer]) -> None:
    """Give a network the values that the integers stand for."""
    for layer, rounded in zip(linear_layers(net), layers, strict=True):
        _load_layer(layer, rounded)


@torch.no_grad()
def _load_layer(layer: nn.Linear, rounded: QuantisedLayer) -> None:
    for parameter, values in zip((layer.weight, layer.bias), rounded.dequantise(), strict=True):
        parameter.copy_(torch.from_numpy(values))


def round_in_turn(
    net: FieldNet,
    steps: list[np.float32],
    factors: Iterable[CarryFactor],
    train_rest: Callable[[int], None] = lambda first_layer: None,
) -> list[QuantisedLayer]:
    """Round the layers one after the other, those after it making up for the errors of each. Changes `net`.

    `train_rest(i)` may train the layers from number i on, once those before it are rounded.
    """
    layers, factors = [], iter(factors)
    factor = next(factors)
    start = 0
    for i, (layer, size, step) in enumerate(zip(linear_layers(net), _sizes(net), steps, strict=True)):
        weights = _weights(net)
        rounded = np.empty(size, np.int32)
        done = 0
        while done < size:  # as many as belong to one factor
            first = start + done - factor.start
            if first == len(factor.matrix):
                factor = next(factors)
                continue
            rows = factor.matrix[first : first + size - done, first:].numpy()
            reached = weights[start + done : factor.start + factor.matrix.shape[1]]
            rounded[done : done + len(rows)] = _round_first(reached, rows, float(step))
            done += len(rows)
        start += size
        rounded = rounded.reshape(layer.out_features, -1)
        layers.append(QuantisedLayer(rounded[:, :-1], rounded[:, -1], step))
        _load_weights(net, weights)
        _load_layer(layer, layers[i])
        if i + 1 < len(steps):
            train_rest(i + 1)
    return layers


def round_to_error(
    net: FieldNet, shape: tuple[int, ...], factors: list[CarryFactor], error: float
) -> list[QuantisedLayer]:
    """`round_in_turn` by steps at which the output differs by about the mean squared `error`, of normalised values.

    What is foretold can be many times too little: it is measured, and the steps chosen anew until it fits, or else the
    best of these tries is taken.
    """
    sensitivity = compensated_sensitivities(net, factors)
    x, weights = telling_points(net, shape, N_POINTS, seed=1)
    with torch.no_grad():
        output = net(x).clamp_(-1, 1)
    foretold = error
    best, most, least = None, -1.0, math.inf  # most: of the errors found, so far, that fit; least: of those that do not
    for _ in range(MAX_TRIES):
        rounded = copy.deepcopy(net)
        layers = round_in_turn(rounded, choose_steps(net, sensitivity, error=foretold), factors)
        with torch.no_grad():
            squares = (rounded(x).clamp_(-1, 1) - output).square().mean(1)
        found = float((squares * weights).mean().nan_to_num(math.inf))
        if found <= 1.1 * error:
            if found > most:
                best, most = layers, found
            if found >= 0.9 * error:
                break
        elif most < 0:
            if found > 0.9 * least:
                break  # a layer is as fine as the coder takes it, and finer steps of the others hardly help
            best, least = layers, found
        foretold *= min(max(error / max(found, 1e-30), 0.05), 4.0)
    return best


def round_and_train(
    net: FieldNet,
    field: Field,
    steps: list[np.float32],
    factors: Iterable[CarryFactor],
    recipe: Recipe,
    seed: int,
    on_progress: Callable[[float, float], None] = lambda fraction, psnr: None,
    n_threads: int = 1,
) -> list[QuantisedLayer]:
    """`round_in_turn`, with training by `recipe`, in all, of the layers that are not rounded yet. Changes `net`.

    `on_progress(fraction, psnr)` is told how much is done, and the estimated PSNR in dB.
    """
    part = dataclasses.replace(recipe, n_passes=recipe.n_passes / max(len(steps) - 1, 1))
    errors = field.squared_errors(net) if isinstance(field, Field) else None

    def train_rest(first_layer: int) -> None:
        fit = Fit(net, field, part, seed + first_layer, first_layer, n_threads, errors=errors)
        fit.run()
        net.load_state_dict(fit.average.state_dict())
        on_progress(first_layer / len(steps), fit.psnr)

    return round_in_turn(net, steps, factors, train_rest)


def _matrix(layer: nn.Linear) -> torch.Tensor:
    """[W b] of a layer, on the CPU."""
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1).cpu()


def _sizes(net: FieldNet) -> list[int]:
    """How many weights and biases each layer has."""
    return [layer.weight.numel() + layer.bias.numel() for layer in linear_layers(net)]


def _weights(net: FieldNet) -> np.ndarray:
    """All weights of a network: [W b] row by row, layer after layer."""
    return torch.cat([_matrix(layer).flatten() for layer in linear_layers(net)]).numpy()


@torch.no_grad()
def _load_weights(net: FieldNet, weights: np.ndarray) -> None:
    parts = torch.from_numpy(weights).split(_sizes(net))
    for layer, part in zip(linear_layers(net), parts, strict=True):
        matrix = part.view(layer.out_features, -1)
        layer.weight.copy_(matrix[:, :-1])
        layer.bias.copy_(matrix[:, -1])


@dataclasses.dataclass(frozen=True)
class CarryFactor:
    """How the errors of some weights, from number `start` on, are carried over to those after them.

    matrix: U (these weights, these and those after them), on the CPU. When weights are rounded in order, the best
    answer to a change e of weight i is to add e U[i, j] / U[i, i] to each weight j after it; what remains costs
    e^2 / U[i, i]^2.
    """

    start: int
    matrix: torch.Tensor


class CarryFactors:
    """Those of all weights of a network, block by block, for a field on a grid of this shape.

    Computed whenever they are gone through; a list of them has two blocks of numbers a weight.
    """

    def __init__(self, net: FieldNet, shape: tuple[int, ...]):
        self.net = net
        n = count_parameters(net.config)
        size = BLOCK if n <= 2 * BLOCK else max(LEAST_BLOCK, min(WIDE_BLOCK, KEPT // (2 * n)))
        self.blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        self.x, self.weights = telling_points(net, shape, POINTS * max(min(n, 2 * size), LEAST_METRIC))

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[CarryFactor]:
        taps = [(a, d * self.weights.sqrt()[:, None]) for a, d in derivatives(self.net, self.x)]
        own = carry_metric(taps, self.blocks[0], self.blocks[0])
        for block, after in itertools.zip_longest(self.blocks, self.blocks[1:]):
            metric = own
            if after:
                side, own = carry_metric(taps, block, after), carry_metric(taps, after, after)
                metric = torch.cat([torch.cat([metric, side], 1), torch.cat([side.T, own], 1)])
            yield CarryFactor(block.start, carry_matrix(metric, block.stop - block.start).cpu())


def carry_metric(taps: Derivatives, rows: slice, columns: slice) -> torch.Tensor:
    """(rows, columns) of the mean product of the output's derivatives by two weights."""
    n_points = len(taps[0][0])
    metric = taps[0][0].new_zeros(rows.stop - rows.start, columns.stop - columns.start)
    for start in range(0, n_points, 1024):
        part = [(a[start : start + 1024], d[start : start + 1024]) for a, d in taps]
        left = jacobian(part, rows)
        right = left if columns == rows else jacobian(part, columns)
        metric.addmm_(left.T, right, alpha=1 / n_points)
    return metric


def jacobian(taps: Derivatives, chosen: slice) -> torch.Tensor:
    """(points, weights) the output's derivatives by the weights number `chosen`."""
    columns, start = [], 0
    for a, d in taps:
        n_in, size = a.shape[1], d.shape[1] * a.shape[1]
        first, stop = max(chosen.start - start, 0), min(chosen.stop - start, size)
        if first < stop:
            rows = slice(first // n_in, math.ceil(stop / n_in))
            layer = (d[:, rows, None] * a[:, None, :]).flatten(1)
            columns.append(layer[:, first - rows.start * n_in : stop - rows.start * n_in])
        start += size
    return torch.cat(columns, 1).nan_to_num_(0.0).clamp_(-1e9, 1e9)  # hopeless networks are rounded too


def carry_matrix(metric: torch.Tensor, n: int) -> torch.Tensor:
    """`CarryFactor.matrix` of the first n weights: rows of the upper Cholesky factor of the inverse of a metric."""
    scale = (metric.diagonal() + 0.01 * metric.diagonal().mean() + 1e-30).rsqrt()
    metric = metric * scale * scale[:, None]
    metric.diagonal().add_(DAMPING)
    # With the weights in reverse order, the factor is the inverse of the metric's own.
    upper = torch.linalg.cholesky(metric.flip(0, 1)).flip(0, 1)
    first = torch.eye(n, len(metric), dtype=metric.dtype, device=metric.device)
    return torch.linalg.solve_triangular(upper, first, upper=True, left=False) * scale


@np.errstate(all="ignore")  # of hopeless networks
def _round_first(weights: np.ndarray, factor: np.ndarray, step: float) -> np.ndarray:
    """Round the first weights, `len(factor)`, in order; every error is carried over to those after it, in place."""
    n = len(factor)
    rounded = np.empty(n, np.int32)
    limit = MAX_STEPS * 3 // 2
    for start in range(0, n, 128):  # later blocks are corrected once, by a product of matrices
        end = min(start + 128, n)
        errors = np.empty(end - start, np.float32)
        for i in range(start, end):
            rounded[i] = round(min(limit, max(-limit, float(weights[i]) / step)))  # in this order, for NaN too
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
