"""Which integers stand for the weights of a network: step sizes by sensitivity, rounding, codebooks.

The output's sensitivity to a layer is the mean of its squared derivative by the layer's weights, over random points
of the domain: a layer to which the output is twice as sensitive gets steps half as large, so that each weight's
rounding costs the same (reverse water-filling; Cover and Thomas, "Elements of Information Theory", section 10.3).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from net_coder import QuantisedLayer, round_step
from siren import FieldNet, linear_layers

N_POINTS = 4096  # of the domain, to measure sensitivity at
MAX_LEVELS_BITS = 13  # steps on either side of zero: 2^13, within what the entropy coder takes
KMEANS_ITERATIONS = 50


def sensitivities(net: FieldNet, x: torch.Tensor) -> list[float]:
    """Mean squared derivative of the output by the weights and biases of each layer, over the points x (n, d_in)."""
    taps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def tap(_layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        taps.append((inputs[0].detach(), output))

    handles = [layer.register_forward_hook(tap) for layer in linear_layers(net)]
    try:
        y = net(x)
    finally:
        for handle in handles:
            handle.remove()
    slopes = torch.autograd.grad(y.sum(), [output for _, output in taps])
    # d y / d [W b] = slope (input, 1)^T
    return [
        float((inputs.square().sum(1, keepdim=True) + 1).mul(slope.square()).mean() / (inputs.shape[1] + 1))
        for (inputs, _), slope in zip(taps, slopes, strict=True)
    ]


def domain_points(shape: tuple[int, ...], n: int, seed: int = 0) -> torch.Tensor:
    """n random points (n, d_in) of the box that the normalised coordinates of a grid fill."""
    half = torch.tensor([(size - 1) / max(max(shape) - 1, 1) for size in shape])
    return (2 * torch.rand(n, len(shape), generator=torch.Generator().manual_seed(seed)) - 1) * half


def choose_steps(net: FieldNet, x: torch.Tensor, bits: int) -> list[np.float32]:
    """A step per layer, by sensitivity, the finest at which the hidden matrices have at most 2^bits steps each.

    Without hidden matrices, all count.
    """
    relative = [1 / math.sqrt(max(s, 1e-30)) for s in sensitivities(net, x)]
    largest = [float(layer.weight.detach().abs().max()) for layer in linear_layers(net)]
    counted = range(1, len(largest) - 1) if len(largest) > 2 else range(len(largest))
    scale = max(largest[i] / relative[i] for i in counted) / 2 ** min(bits - 1, MAX_LEVELS_BITS)
    # No layer has more than the coder takes.
    magnitude = [
        max(a, float(layer.bias.detach().abs().max())) for a, layer in zip(largest, linear_layers(net), strict=True)
    ]
    return [round_step(max(scale * r, m / 2**MAX_LEVELS_BITS)) for r, m in zip(relative, magnitude, strict=True)]


def quantise_uniform(net: FieldNet, x: torch.Tensor, bits: int) -> list[QuantisedLayer]:
    """Every weight and bias rounded to the nearest step of its layer."""
    layers = []
    for layer, step in zip(linear_layers(net), choose_steps(net, x, bits), strict=True):
        weights, biases = (
            np.rint(p.detach().cpu().numpy().astype(np.float64) / step) for p in (layer.weight, layer.bias)
        )
        layers.append(QuantisedLayer(weights.astype(np.int32), biases.astype(np.int32), step))
    return layers


def quantise_kmeans(net: FieldNet, x: torch.Tensor, bits: int) -> list[QuantisedLayer]:
    """A codebook of 2^bits values per hidden matrix, by k-means, as in the paper; the rest as finely as can be."""
    layers = quantise_uniform(net, x, 16)
    for i, layer in enumerate(linear_layers(net)):
        if tuple(layer.weight.shape) == (net.config.n_neurons,) * 2:
            values = layer.weight.detach().cpu().numpy()
            codebook = kmeans(values.ravel(), 2 ** min(bits, MAX_LEVELS_BITS))
            codebook = np.concatenate([codebook, codebook[-1:]]) if len(codebook) % 2 == 0 else codebook
            nearest = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, values)
            layers[i] = QuantisedLayer(
                nearest.astype(np.int32) - len(codebook) // 2, layers[i].biases, layers[i].step, codebook
            )
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
