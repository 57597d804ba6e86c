"""The network: a sine-activated coordinate network (SIREN) with residual blocks.

Architecture and parameter names are equal to those of the original neurcomp scripts, so each side can load
the state dicts of the other. Sources: Lu, Jiang, Levine, Berger, "Compressive Neural Representations
of Volumetric Scalar Fields", 2021, section 3; Sitzmann et al., "Implicit Neural Representations with
Periodic Activation Functions", 2020, section 3.2 (initialisation).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from field.layers import OMEGA_0, SirenConfig

MIN_NEURONS = 16  # least width of a network of a given depth, as in the original scripts
LEAST_NEURONS = 4  # least width where the depth is chosen, and in bricks
MAX_NEURONS = (1 << 16) - 1  # greatest width of a network that a blob holds
# If an axis has fewer waves, they are the lowest of so many: of high waves alone, nothing smooth is learned.
FEWEST_WAVES = 2
HIGHEST_WAVE = 9.0  # highest frequency of `start_as_axis_waves`, radians per unit of the normalised coordinates


def neurons_for_budget(n_parameters: float, least: int = MIN_NEURONS, **config) -> int:
    """The largest width whose network has fewer than `n_parameters` parameters, from `least` to 65535.

    config: the other fields of SirenConfig. The rule is that of the original scripts.
    """
    n = least
    while n < MAX_NEURONS and SirenConfig(n + 1, **config).n_parameters < n_parameters:
        n += 1
    return n


def linear_layers(net: nn.Module) -> list[nn.Linear]:
    """The linear layers of a network, from the first one, which takes coordinates, to the last one."""
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def weights_crc32(state: dict[str, torch.Tensor]) -> int:
    """CRC-32 of the values of a state dict. A configuration stores it to identify its network."""
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

    c is 1 for the first block. For the others, c is 1/2, because their input is a sum of two sines.
    a is 1/2 for the last block and 1 for the others. Source: Lu et al., section 3.
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
    """The compressed field as a network: (..., d_in) normalised coordinates -> (..., d_out) normalised values.

    generator: a torch.Generator on the CPU, which makes the initialisation reproducible. first_omega: the frequency of
    the first layer in the initialisation, see `initialise`.
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
        """SIREN initialisation, with all phases equally likely and the smallest biases for this.

        The frequency of the first layer only scales its weights: sin(w (Wx + b)) =
        sin(omega_0 (w / omega_0)(Wx + b)). So the weights include `first_omega`, and the stored
        network is evaluated with omega_0 everywhere.

        Phases omega_0 b from -pi/2 to pi/2 represent all phases, because sin(a + pi) = sin(-a), and weights of either
        sign are equally likely.
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


def net_of(config: SirenConfig, weights: dict[str, np.ndarray]) -> FieldNet:
    """The network with these weights by name."""
    net = FieldNet(config)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return net


@torch.no_grad()
def start_as_axis_waves(net: FieldNet, planes: Mapping[int, float | None], highest: float = HIGHEST_WAVE) -> None:
    """Set the first layer to waves along the axes: sines and cosines of equally spaced frequencies for each axis.

    planes: for each axis that gets waves, the normalised coordinate of a plane of mirror symmetry of the volume, or
    None. Along an axis with such a plane, all waves are cosines about the plane. Every output of the network is then as
    symmetric as the volume, so the network has to learn only one half of it. highest: the highest frequency, radians
    per unit of the normalised coordinates.
    """
    layer, omega_0 = linear_layers(net)[0], net.config.omega_0
    layer.weight.zero_()
    for first, (axis, plane) in enumerate(planes.items()):
        every = slice(first, None, len(planes))
        bias = layer.bias[every]
        number = torch.arange(len(bias))
        phase = torch.full((len(bias),), math.pi / 2)
        if plane is None:
            phase, number = phase * (number % 2), number // 2
        frequency = highest * (number + 1) / max(number[-1] + 1, FEWEST_WAVES)
        layer.weight[every, axis] = frequency / omega_0
        bias.copy_((phase - frequency * (plane or 0.0)) / omega_0)


@torch.no_grad()
def start_as_constant(net: FieldNet, values: torch.Tensor) -> None:
    """Set the last layer so that the output is constant. values: (d_out,), normalised."""
    last = linear_layers(net)[-1]
    last.weight.zero_()
    last.bias.copy_(values)


@torch.no_grad()
def start_as_plane_waves(net: FieldNet, frequencies: np.ndarray) -> None:
    """Set the first layer to the sine and the cosine of each of these plane waves, over and over if they are too few.

    frequencies: (waves, d_in), radians per unit of the normalised coordinates.
    """
    layer, omega_0 = linear_layers(net)[0], net.config.omega_0
    number = np.arange(len(layer.bias))
    layer.weight.copy_(torch.from_numpy(frequencies[number // 2 % len(frequencies)] / omega_0))
    layer.bias.copy_(torch.from_numpy(math.pi / 2 * (number % 2) / omega_0))
