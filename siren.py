"""The network: a sine-activated coordinate network (SIREN) with residual blocks.

Architecture and parameter names are those of the original neurcomp scripts, so that a state dict of
either side loads on the other. Sources: Lu, Jiang, Levine, Berger, "Compressive Neural Representations
of Volumetric Scalar Fields", 2021, section 3; Sitzmann et al., "Implicit Neural Representations with
Periodic Activation Functions", 2020, section 3.2 (initialisation).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence

import torch
from torch import nn

MIN_NEURONS = 16  # the original never goes below this width
MAX_NEURONS = 1 << 16
OMEGA_0 = 30.0  # the original evaluates every network with this factor
HIGHEST_WAVE = 9.0  # of `lay_waves`


@dataclasses.dataclass(frozen=True)
class SirenConfig:
    """What is needed to build a network and to evaluate it.

    n_neurons: width N of every hidden layer. n_layers: sine layers, the first one included; each of the
    others is a residual block of two N x N matrices, or one N x N layer when not ``is_residual``.
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


def count_parameters(config: SirenConfig) -> int:
    """Number of weights and biases of the network."""
    n, matrices = config.n_neurons, 2 if config.is_residual else 1
    hidden = (config.n_layers - 1) * matrices * (n * n + n)
    return config.d_in * n + n + hidden + n * config.d_out + config.d_out


def neurons_for_budget(n_parameters: float, **config) -> int:
    """Largest width whose network has fewer than `n_parameters` parameters, but never below 16 nor above 65536.

    `config` holds the other fields of SirenConfig. Same rule as the original scripts.
    """
    n = MIN_NEURONS
    while n < MAX_NEURONS and count_parameters(SirenConfig(n + 1, **config)) < n_parameters:
        n += 1
    return n


def linear_layers(net: nn.Module) -> list[nn.Linear]:
    """The linear layers of a network, from the coordinates to the values."""
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def weights_crc32(state: dict[str, torch.Tensor]) -> int:
    """Checksum of a state dict's values, by which a configuration knows its network."""
    crc = 0
    for tensor in state.values():
        crc = zlib.crc32(tensor.cpu().numpy().tobytes(), crc)
    return crc


class SineLayer(nn.Module):
    """x -> sin(omega_0 (W x + b))."""

    def __init__(self, n_in: int, n_out: int, omega_0: float):
        super().__init__()
        self.omega_0 = omega_0
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


class ResidualSineLayer(nn.Module):
    """x -> a (x + sin(omega_0 (W2 sin(omega_0 (W1 c x + b1)) + b2))).

    c is 1 for the first block and 1/2 for the others, whose input is a sum of two sines; a is 1/2 for the
    last block and 1 for the others. Paper, section 3.
    """

    def __init__(self, n: int, omega_0: float, is_first: bool, is_last: bool):
        super().__init__()
        self.omega_0 = omega_0
        self.scale_in = 1.0 if is_first else 0.5
        self.scale_out = 0.5 if is_last else 1.0
        self.linear_1 = nn.Linear(n, n)
        self.linear_2 = nn.Linear(n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.sin(self.omega_0 * self.linear_1(self.scale_in * x))
        return self.scale_out * (x + torch.sin(self.omega_0 * self.linear_2(inner)))


class FieldNet(nn.Module):
    """The network that is the field: (..., d_in) normalised coordinates -> (..., d_out) normalised values.

    `generator` (torch.Generator on the CPU) makes the initialisation reproducible.
    """

    def __init__(self, config: SirenConfig, generator: torch.Generator | None = None, first_omega: float = OMEGA_0):
        super().__init__()
        self.config = config
        n, n_layers, omega_0 = config.n_neurons, config.n_layers, config.omega_0
        layers: list[nn.Module] = [SineLayer(config.d_in, n, omega_0)]
        for i in range(1, n_layers):
            if config.is_residual:
                layers.append(ResidualSineLayer(n, omega_0, is_first=i == 1, is_last=i == n_layers - 1))
            else:
                layers.append(SineLayer(n, n, omega_0))
        layers.append(nn.Linear(n, config.d_out))
        self.net_layers = nn.ModuleList(layers)
        self.initialise(generator, first_omega)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None, first_omega: float) -> None:
        """SIREN initialisation; all phases alike, written in the smallest numbers.

        The first layer's frequency is only a scale of its weights, sin(w (Wx + b)) =
        sin(omega_0 (w / omega_0)(Wx + b)): `first_omega` is folded into them, and the stored
        network evaluates with omega_0 everywhere.

        Phases omega_0 b from -pi/2 to pi/2 stand for all others: sin(a + pi) = sin(-a), and weights of the other sign
        are as likely.
        """
        layers, omega_0 = linear_layers(self), self.config.omega_0
        for layer in layers:
            n_in = layer.in_features
            bound = first_omega / omega_0 / n_in if layer is layers[0] else math.sqrt(6 / n_in) / omega_0
            layer.weight.uniform_(-bound, bound, generator=generator)
            bound = 1 / math.sqrt(n_in) if layer is layers[-1] else math.pi / 2 / omega_0
            layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.net_layers:
            x = layer(x)
        return x


@torch.no_grad()
def start_as_axis_waves(net: FieldNet, mirrors: Sequence[float | None], highest: float = HIGHEST_WAVE) -> None:
    """Let the first layer start as waves along the axes: sines and cosines of equally spaced frequencies for each.

    highest: of these frequencies, in radians per unit of the normalised coordinates.
    mirrors: for each axis the normalised coordinate of a plane in which the field is its own mirror image, or None.
    Along an axis with such a plane all waves are cosines about it, and so whatever the network makes of them is as
    symmetric as the field: it has one half of it to learn.
    """
    layer, omega_0 = linear_layers(net)[0], net.config.omega_0
    layer.weight.zero_()
    for axis, mirror in enumerate(mirrors):
        bias = layer.bias[axis :: len(mirrors)]
        number = torch.arange(len(bias))
        phase = torch.full((len(bias),), math.pi / 2)
        if mirror is None:
            phase, number = phase * (number % 2), number // 2
        frequency = highest * (number + 1) / (number[-1] + 1)
        layer.weight[axis :: len(mirrors), axis] = frequency / omega_0
        bias.copy_((phase - frequency * (mirror or 0.0)) / omega_0)
