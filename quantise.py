"""Which integers stand for the weights of a network: steps by sensitivity, rounding, rounding with training, codebooks.

A weight's sensitivity is the mean of the output's squared derivative by it, over random points of the domain. Steps
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
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fitting import Fit, Recipe
from net_coder import QuantisedLayer, round_step
from samples import Field
from siren import FieldNet, count_parameters, linear_layers
from utils import axis_coordinates

N_POINTS = 6144  # of the domain, at which derivatives are taken
MAX_STEPS = 1 << 13  # on either side of zero, within what the entropy coder takes
BLOCK = 1500  # weights of a layer that are rounded together
FREE = 1000  # weights after them that take up their errors
DAMPING = 0.03  # of the metric, relative to its diagonal
KMEANS_ITERATIONS = 50
MAX_TRIES = 8

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


def sensitivities(net: FieldNet, x: torch.Tensor, is_compensated: bool = False) -> list[float]:
    """Of each layer, the mean over its weights; compensated as `round_in_turn` does it, or rounded to the nearest.

    x: (points, d_in), see `domain_points`.
    """
    taps = derivatives(net, x)
    if is_compensated:  # of a layer of several windows, the first one stands for all
        return [_compensated_sensitivity(next(carry_factors(taps, i))) for i in range(len(taps))]
    return [_bounded(float(a.square().mean() * d.square().mean())) for a, d in taps]


def _compensated_sensitivity(factor: CarryFactor) -> float:
    return _bounded(float(factor.matrix.diagonal().double().square().reciprocal().mean()))


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
    shape: tuple[int, ...],
    steps: list[np.float32],
    seed: int = 0,
    train_rest: Callable[[int], None] = lambda first_layer: None,
    factors: list[list[CarryFactor]] | None = None,
) -> list[QuantisedLayer]:
    """Round the layers one after the other, those after it making up for the errors of each. Changes `net`.

    shape: grid of the field. `train_rest(i)` may train the layers from number i on, once those before it are rounded.
    factors: of every layer, where the network changes too little for new ones.
    """
    x = domain_points(shape, seed=seed).to(next(net.parameters()).device)
    layers = []
    for i, step in enumerate(steps):
        carried = factors[i] if factors else carry_factors(derivatives(net, x, seed), i)
        rounded = round_compensated(net, i, carried, float(step))
        layers.append(QuantisedLayer(rounded[:, :-1], rounded[:, -1], step))
        _load_layer(linear_layers(net)[i], layers[i])
        if i + 1 < len(steps):
            train_rest(i + 1)
    return layers


def round_to_error(
    net: FieldNet,
    shape: tuple[int, ...],
    error: float,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> list[QuantisedLayer]:
    """`round_in_turn` by steps at which the output differs by about the mean squared `error`, of normalised values.

    What is foretold can be many times too little: it is measured, and the steps chosen anew until it fits, or else the
    best of these tries is taken.
    """
    taps = derivatives(net, domain_points(shape))
    factors = []
    for i in range(len(taps)):
        factors.append(list(carry_factors(taps, i)))
        on_progress((i + 1) / (len(taps) + 1))
    sensitivity = [_compensated_sensitivity(windows[0]) for windows in factors]
    x = domain_points(shape, seed=1)
    foretold = error / 2
    best, best_score = None, -math.inf
    for _ in range(MAX_TRIES):
        rounded = copy.deepcopy(net)
        layers = round_in_turn(rounded, shape, choose_steps(net, sensitivity, error=foretold), factors=factors)
        with torch.no_grad():
            found = float((rounded(x) - net(x)).square().mean())
        score = found if found <= 1.15 * error else -found  # the most that fits, or else the least that does not
        if not best or score > best_score:
            best, best_score = layers, score
        if score >= 0.7 * error:
            break
        foretold *= min(max(error / max(found, 1e-30), 0.05), 4.0)
    return best


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


def window(taps: Derivatives, i: int, start: int) -> list[tuple[int, slice]]:
    """Rows of layer i, from row `start` on, that are rounded together, then those after them that take up their errors.

    As (layer, rows); what follows is the rest of the layer, then the next layers.
    """
    shapes = [(d.shape[1], a.shape[1]) for a, d in taps]
    stop = min(shapes[i][0], start + max(1, BLOCK // shapes[i][1]))
    rows, room = [(i, slice(start, stop))], FREE
    for k, (n_out, n_in) in enumerate(shapes[i:], i):
        first = stop if k == i else 0
        last = min(n_out, first + room // n_in)
        rows += [(k, slice(first, last))] if last > first else []
        room -= (last - first) * n_in
        if last < n_out:
            break
    return rows


@dataclasses.dataclass(frozen=True)
class CarryFactor:
    """How errors are carried over within a `window`: `rows` as it says, `matrix` U (rounded weights, all weights).

    The weights [W b] of the rows are taken row by row. When they are rounded in order, the best answer to a change e
    of weight i is to add e U[i, j] / U[i, i] to each weight j after it; what remains costs e^2 / U[i, i]^2.
    """

    rows: list[tuple[int, slice]]
    matrix: torch.Tensor


def carry_factors(taps: Derivatives, i: int) -> Iterator[CarryFactor]:
    """Those of layer i, window by window."""
    start = 0
    while start < taps[i][1].shape[1]:
        rows = window(taps, i, start)
        start = rows[0][1].stop
        yield CarryFactor(rows, carry_matrix(taps, rows))


@torch.no_grad()
def carry_matrix(taps: Derivatives, rows: list[tuple[int, slice]]) -> torch.Tensor:
    """`CarryFactor.matrix`, on the CPU: the first rows of the upper Cholesky factor of the metric's inverse."""
    sizes = [taps[k][0].shape[1] * (cut.stop - cut.start) for k, cut in rows]
    metric = taps[0][0].new_zeros(sum(sizes), sum(sizes))
    n_points = len(taps[0][0])
    for part in (slice(start, start + 512) for start in range(0, n_points, 512)):
        columns = [(taps[k][1][part, cut, None] * taps[k][0][part, None, :]).flatten(1) for k, cut in rows]
        jacobian = torch.cat(columns, 1).nan_to_num_(0.0).clamp_(-1e9, 1e9)  # hopeless networks are rounded too
        metric.addmm_(jacobian.T, jacobian, alpha=1 / n_points)
    scale = (metric.diagonal() + 0.01 * metric.diagonal().mean() + 1e-30).rsqrt()
    metric *= scale * scale[:, None]
    metric.diagonal().add_(DAMPING)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric))
    return (torch.linalg.cholesky(inverse, upper=True) * scale)[: sizes[0]].cpu()


@torch.no_grad()
def round_compensated(net: FieldNet, i: int, factors: Iterable[CarryFactor], step: float) -> np.ndarray:
    """Integers (n_out, n_in + 1) for [W b] of layer i; the errors are carried over to the later layers of `net`."""
    matrices = [_matrix(layer) for layer in linear_layers(net)]
    result = np.empty(matrices[i].shape, np.int32)
    for factor in factors:
        own = factor.rows[0][1]
        weights = torch.cat([matrices[k][cut].flatten() for k, cut in factor.rows])
        result[own] = _round_first(weights.numpy(), factor.matrix.numpy(), step).reshape(result[own].shape)
        pieces = weights.split([matrices[k][cut].numel() for k, cut in factor.rows])
        for (k, cut), piece in zip(factor.rows, pieces, strict=True):
            matrices[k][cut] = piece.view_as(matrices[k][cut])
    for layer, matrix in zip(linear_layers(net)[i + 1 :], matrices[i + 1 :], strict=True):
        layer.weight.copy_(matrix[:, :-1])
        layer.bias.copy_(matrix[:, -1])
    return result


@np.errstate(all="ignore")  # of hopeless networks
def _round_first(weights: np.ndarray, factor: np.ndarray, step: float) -> np.ndarray:
    """Round the first weights, `len(factor)`, in order; every error is carried over to those after it, in place."""
    n = len(factor)
    rounded = np.empty(n, np.int32)
    limit = MAX_STEPS * 3 // 2  # corrections may carry a weight beyond the largest one there was
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
