"""The linear layers of a network as one table: names, shapes, factors. Gradient, blob and decoder use this table."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple


class LinearLayer(NamedTuple):
    """One linear layer. Its output is y = W (scale x) + b. Each layer but the last is followed by sin(omega y).

    name: the name in the state dict. n_out, n_in: the shape of W. omega: omega_0; 1 for the last layer. scale: 1/2
    where x is the sum of two sines, the output of a residual block; 1 elsewhere.
    """

    name: str
    n_out: int
    n_in: int
    omega: float
    scale: float


def layer_table(
    n_neurons: int, n_layers: int, d_in: int, d_out: int, is_residual: bool, omega_0: float
) -> list[LinearLayer]:
    """The layers of a network, in the order of its state dict. The arguments are fields of SirenConfig.

    Layer 0 is a sine layer. Each of the other n_layers - 1 is one sine layer, or a residual block of two sine layers.
    The last layer has no sine.
    """
    layers = [LinearLayer("net_layers.0.linear", n_neurons, d_in, omega_0, 1.0)]
    for i in range(1, n_layers):
        is_of_sum = is_residual and i > 1
        for part in ("linear_1", "linear_2") if is_residual else ("linear",):
            scale = 0.5 if is_of_sum and part == "linear_1" else 1.0
            layers.append(LinearLayer(f"net_layers.{i}.{part}", n_neurons, n_neurons, omega_0, scale))
    last_scale = 0.5 if is_residual and n_layers > 1 else 1.0
    return [*layers, LinearLayer(f"net_layers.{n_layers}", d_out, n_neurons, 1.0, last_scale)]


def block_ends(layers: Sequence[LinearLayer]) -> set[int]:
    """The numbers of the layers that end a residual block: the next one takes a sum, of their sines and others."""
    return {k for k, above in enumerate(layers[1:]) if above.scale != 1.0}


@functools.lru_cache(64)  # the networks of bricks are often alike, and many
def count_parameters(**network) -> int:
    """The number of weights and biases of a network."""
    return sum((layer.n_in + 1) * layer.n_out for layer in layer_table(**network))


def parameter_shapes(**network) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter tensor by its name, in the order of the network's state dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layer_table(**network):
        shapes[f"{layer.name}.weight"] = (layer.n_out, layer.n_in)
        shapes[f"{layer.name}.bias"] = (layer.n_out,)
    return shapes
