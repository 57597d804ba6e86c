"""The settings of a network, and its linear layers as one table: names, shapes, factors.

Gradient, blob and decoder use this table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

OMEGA_0 = 30.0  # frequency factor of every sine, as in the original scripts


@dataclasses.dataclass(frozen=True)
class SirenConfig:
    """The settings that define a network.

    n_neurons: width N of every hidden layer. n_layers: number of sine layers, the first one included. Each
    further layer is a residual block of two N x N matrices, or one N x N matrix if not ``is_residual``.
    d_in, d_out: number of coordinates and of values. omega_0: frequency factor inside every sine.

    Raises ValueError for a network that cannot exist.
    """

    n_neurons: int
    n_layers: int = 8
    d_in: int = 3
    d_out: int = 1
    omega_0: float = OMEGA_0
    is_residual: bool = True

    def __post_init__(self) -> None:
        for name in ("n_neurons", "n_layers", "d_in", "d_out"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, found {value!r}")
        if not (isinstance(self.omega_0, int | float) and math.isfinite(self.omega_0) and self.omega_0 > 0):
            raise ValueError(f"omega_0 must be positive and finite, found {self.omega_0!r}")
        if not isinstance(self.is_residual, bool):
            raise ValueError(f"is_residual must be true or false, found {self.is_residual!r}")

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        n, matrices = self.n_neurons, 2 if self.is_residual else 1
        hidden = (self.n_layers - 1) * matrices * (n * n + n)
        return self.d_in * n + n + hidden + n * self.d_out + self.d_out


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


def layer_table(config: SirenConfig) -> list[LinearLayer]:
    """The layers of a network, in the order of its state dict.

    Layer 0 is a sine layer. Each of the other n_layers - 1 is one sine layer, or a residual block of two sine layers.
    The last layer has no sine.
    """
    n, omega_0, is_residual = config.n_neurons, config.omega_0, config.is_residual
    layers = [LinearLayer("net_layers.0.linear", n, config.d_in, omega_0, 1.0)]
    for i in range(1, config.n_layers):
        is_of_sum = is_residual and i > 1
        for part in ("linear_1", "linear_2") if is_residual else ("linear",):
            scale = 0.5 if is_of_sum and part == "linear_1" else 1.0
            layers.append(LinearLayer(f"net_layers.{i}.{part}", n, n, omega_0, scale))
    last_scale = 0.5 if is_residual and config.n_layers > 1 else 1.0
    return [*layers, LinearLayer(f"net_layers.{config.n_layers}", config.d_out, n, 1.0, last_scale)]


def block_ends(layers: Sequence[LinearLayer]) -> set[int]:
    """The numbers of the layers that end a residual block: the next one takes a sum, of their sines and others."""
    return {k for k, above in enumerate(layers[1:]) if above.scale != 1.0}


def parameter_shapes(config: SirenConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter tensor by its name, in the order of the network's state dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layer_table(config):
        shapes[f"{layer.name}.weight"] = (layer.n_out, layer.n_in)
        shapes[f"{layer.name}.bias"] = (layer.n_out,)
    return shapes
