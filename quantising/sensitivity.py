"""How much the rounding of each layer costs, and the rounding steps that follow from these costs.

The sensitivity of a weight is the output's squared derivative with respect to this weight, averaged over points of the
domain. Steps inversely proportional to the root of the sensitivity make the rounding of every weight cost the same
(reverse water-filling; Cover and Thomas, "Elements of Information Theory", section 10.3). The cost can be predicted:
the mean squared error of a rounded weight is step^2 / 12.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from field.quantised import round_step
from siren import FieldNet, linear_layers
from training.sampler import density_of, draw_by_density
from utils import Mask, VolumeHeader, normalised_coordinates, voxel_size

CANDIDATES = 8  # candidate points for each point that `informative_points` draws
N_POINTS = 8192  # points for a mean over the domain
MOST_REJECTED = 64  # most points that are tried for each point whose voxel is not missing
MAX_BITS = 15  # for a value of a matrix
# Steps on either side of zero. Compensation may add half as many, which the coder still takes.
MAX_STEPS = 1 << (MAX_BITS - 1)

# For each linear layer: the inputs and a 1 (points, n_in + 1), and the output's derivatives (points, n_out).
Derivatives = list[tuple[torch.Tensor, torch.Tensor]]


def quasirandom_points(shape: tuple[int, ...], n: int, seed: int = 0, missing: Mask | None = None) -> torch.Tensor:
    """n points (n, d_in) that fill the box of a grid's normalised coordinates evenly, shifted at random by `seed`.

    missing: if given, the nearest voxel of each point is not missing. There may then be slightly fewer points than
    n, and far fewer where nearly all is missing. Where all is missing, they lie anywhere.

    Point k is k times the inverse powers of the root of x^(d + 1) = x + 1, modulo 1 (Roberts, "The unreasonable
    effectiveness of quasirandom sequences", 2018).
    """
    ends = [float(normalised_coordinates(size - 1, shape, axis)) for axis, size in enumerate(shape)]
    half = torch.tensor(ends, dtype=torch.float64)
    root = 1.0
    for _ in range(60):
        root = (1 + root) ** (1 / (len(shape) + 1))
    stride = root ** -torch.arange(1.0, len(shape) + 1, dtype=torch.float64)
    start = torch.rand(len(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    n_tried = n
    if missing:
        share = max(math.prod(shape) - missing.count, 1) / math.prod(shape)
        n_tried = math.ceil(n * min(1 / share, MOST_REJECTED))
    points = ((2 * ((start + torch.arange(n_tried)[:, None] * stride) % 1) - 1) * half).float()
    if missing:
        nearest = [
            np.rint(points[:, axis].double().numpy() / voxel_size(shape, axis) + (size - 1) / 2).astype(int)
            for axis, size in enumerate(shape)
        ]
        is_present = torch.from_numpy(~missing.at(tuple(nearest)))
        points = points[is_present] if is_present.any() else points
    return points[:n]


def derivatives(net: FieldNet, x: torch.Tensor) -> Derivatives:
    """(a, d) for each linear layer: d[s] x a[s], an outer product, is the output's derivative by [W b] at point s.

    x: (points, d_in). a: (points, n_in + 1), the layer's input and a 1. d: (points, n_out). The output is clipped as in
    decoding, so its derivatives are zero beyond the range. But outputs that are all beyond it are not clipped: else no
    weight would count. Several outputs are summed with random signs: the mean square of the sum's derivative is the sum
    of the mean squares of the outputs' derivatives.
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
    signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    clipped = y.clamp(-1, 1) if (y.abs() <= 1).any() else y
    slopes = torch.autograd.grad((clipped * signs.to(y.device)).sum(), [output for _, output in taps])
    return [(a, d) for (a, _), d in zip(taps, slopes, strict=True)]


def informative_points(net: FieldNet, header: VolumeHeader, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """n points of a field, half even and half drawn by how much the output depends on the weights; their weights.

    The weighted mean of a quantity over the points estimates its mean over the domain. Even points alone say little
    about a field that is empty except in a small part, because its derivatives are zero in the empty part. The points
    are fewer than n where nearly all is missing.
    """
    x = quasirandom_points(header.shape, CANDIDATES * n, seed, header.missing).to(next(net.parameters()).device)
    squares = [
        sum(a.square().sum(1) * d.square().sum(1) for a, d in derivatives(net, part)) for part in x.split(1 << 14)
    ]
    density = density_of(torch.cat(squares).nan_to_num_(0.0).clamp_(max=1e18), len(x), by_error=0.5)
    chosen, weights = draw_by_density(density, n)
    return x[chosen], weights


def sensitivities(net: FieldNet, x: torch.Tensor) -> list[float]:
    """The sensitivity of each layer for rounding to the nearest: about the mean over its weights. x: (points, d_in).

    A sensitivity is the mean squared error of the output per squared error of one weight. The mean of a product is
    taken as the product of the means: of the layer's inputs, and of the derivatives by its outputs.
    """
    return [bounded(float(a.square().mean() * d.square().mean())) for a, d in derivatives(net, x)]


def bounded(sensitivity: float) -> float:
    return min(max(1e-30, sensitivity), 1e30)  # max() in this order turns NaN into 1e-30


def choose_steps(
    net: FieldNet, sensitivity: list[float], *, bits: int | None = None, error: float | None = None
) -> list[np.float32]:
    """The rounding step of each layer, inversely proportional to the root of its sensitivity.

    bits: 1 to MAX_BITS; use the finest steps at which no hidden matrix has more than 2^bits steps. A network without
    a hidden matrix counts the first and the last one. error: use the steps whose rounding alone adds this mean squared
    error to the normalised output. One of the two must be given. No layer has more than MAX_STEPS steps on either side
    of zero.
    """
    relative = [1 / math.sqrt(s) for s in sensitivity]
    layers = linear_layers(net)
    largest = [float(layer.weight.detach().abs().max()) for layer in layers]
    if error is not None:
        scale = math.sqrt(12 * error * net.config.d_out / net.config.n_parameters)
    else:
        counted = range(1, len(layers) - 1) if len(layers) > 2 else range(len(layers))
        scale = max(largest[i] / relative[i] for i in counted) / 2 ** (bits - 1)
    finest = [
        max(w, float(layer.bias.detach().abs().max())) / MAX_STEPS for w, layer in zip(largest, layers, strict=True)
    ]
    found = [round_step(scale * r, is_least=bits is not None) for r in relative]
    return [max(step, round_step(f, is_least=True)) for step, f in zip(found, finest, strict=True)]
