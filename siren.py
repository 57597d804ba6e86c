"""The network: a sine-activated coordinate network (SIREN) with residual blocks.

Architecture and parameter names are those of the original neurcomp scripts, so that a state dict of
either side loads on the other. Sources: Lu, Jiang, Levine, Berger, "Compressive Neural Representations
of Volumetric Scalar Fields", 2021, section 3; Sitzmann et al., "Implicit Neural Representations with
Periodic Activation Functions", 2020, section 3.2 (initialisation).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import nn

MIN_NEURONS = 16  # the original never goes below this width
MAX_NEURONS = 1 << 16
OMEGA_0 = 30.0  # the original evaluates every network with this factor
HIGHEST_WAVE = 9.0  # of `lay_waves`
PART = 36_000, 512  # neurons x samples, and samples, that a part of a batch has at least
SMALL_PRODUCT = 1_000_000  # multiplications up to which NumPy's OpenBLAS is faster at a product than torch's MKL


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
def lay_waves(net: FieldNet, mirrors: Sequence[float | None], highest: float = HIGHEST_WAVE) -> None:
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


class SquaredError:
    """Mean squared error of a network over a batch, and its gradient, left in every parameter's `.grad`.

    Backpropagation written out, the cosine of each phase kept from the forward pass: activations live in buffers that
    every step uses again, and nothing is recorded. Samples lie along the last axis; a row of ones below them takes the
    biases into the matrices. A CPU takes a batch in parts, each in a thread of `n_threads`; the parts, and so the
    result, do not depend on their number.

    is_clipped: where the value is an end of the range, -1 or 1, an output beyond it is right, as it is clipped when it
    is decoded. A flat background, cut off sharply, is then easy to learn.
    """

    def __init__(
        self, net: FieldNet, max_batch: int, first_layer: int = 0, n_threads: int = 1, is_clipped: bool = False
    ):
        self.is_clipped = is_clipped
        config, layers = net.config, linear_layers(net)
        self.first_layer = first_layer  # the linear layers before it are left without a gradient
        self.is_residual = config.is_residual and config.n_layers > 1
        like = layers[0].weight.detach()
        self.xp = arithmetic(like.device)
        # What the weights and the biases are multiplied with: 1/2 where the input is a sum of two sines.
        halved = [self.is_residual and k > 1 and (k % 2 == 1 or k == len(layers) - 1) for k in range(len(layers))]
        omegas = [config.omega_0] * (len(layers) - 1) + [1.0]
        self.factors = [(omega * (0.5 if half else 1.0), omega) for omega, half in zip(omegas, halved, strict=True)]
        for parameter in (p for layer in layers[first_layer:] for p in layer.parameters()):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.parameters = [(self._array(layer.weight), self._array(layer.bias)) for layer in layers]
        self.gradients = [(self._array(w.grad), self._array(b.grad)) for w, b in
                          ((layer.weight, layer.bias) for layer in layers[first_layer:])]  # fmt: skip

        def empty(*shape: int) -> object:
            return self._array(like.new_ones(shape))

        self.matrices = [empty(*weight.shape[:1], weight.shape[1] + 1) for weight, _ in self.parameters]
        n_parts = count_parts(config.n_neurons, max_batch) if self.xp is np else 1
        size = unaligned(math.ceil(max_batch / n_parts))
        self.parts = [_Part(self, config, size, empty) for _ in range(n_parts)]
        is_small = config.n_neurons * (config.n_neurons + 1) * size <= SMALL_PRODUCT
        self.matmul = self.xp.matmul if is_small or self.xp is torch else torch_matmul
        n_threads = min(n_threads, n_parts)
        self.map = map
        if n_threads > 1:  # none of which is to start threads in turn, as torch would in every new one
            pool = concurrent.futures.ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
            self.map = pool.map

    def _array(self, tensor: torch.Tensor) -> object:
        """The same memory as NumPy or torch, whichever computes."""
        return tensor.detach().numpy() if self.xp is np else tensor.detach()

    @torch.no_grad()
    def __call__(
        self, x: torch.Tensor, values: torch.Tensor, sample_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x: (n, d_in) coordinates, values: (n, d_out), n at most `max_batch`. Returns the error, a scalar tensor.

        `sample_weights` (n,) weighs the samples in the mean. Each sample's squared error is left in `squares` (n,).
        """
        xp, n, n_parts = self.xp, len(x), len(self.parts)
        for matrix, parameters, factors in zip(self.matrices, self.parameters, self.factors, strict=True):
            xp.multiply(parameters[0], factors[0], out=matrix[:, :-1])
            xp.multiply(parameters[1], factors[1], out=matrix[:, -1])
        x, values = self._array(x).T, self._array(values).T
        weights = None if sample_weights is None else self._array(sample_weights)

        def work(i: int) -> tuple[object, object]:
            cut = slice(n * i // n_parts, n * (i + 1) // n_parts)
            return self.parts[i](x[:, cut], values[:, cut], None if weights is None else weights[cut], n)

        losses, squares = zip(*self.map(work, range(n_parts)), strict=True)
        self.squares = torch.as_tensor(squares[0] if n_parts == 1 else xp.concatenate(squares))
        for k, gradients in enumerate(self.gradients, self.first_layer):
            joint = sum((part.gradients[k] for part in self.parts[1:]), start=self.parts[0].gradients[k])
            for part, gradient, factor in zip((joint[:, :-1], joint[:, -1]), gradients, self.factors[k], strict=True):
                xp.multiply(part, factor, out=gradient)
        return torch.as_tensor(sum(losses))


def arithmetic(device: torch.device) -> ModuleType:
    """What computes on a device: on a CPU NumPy, whose sines take a third of the time of torch's."""
    return np if device.type == "cpu" else torch


def count_parts(n_neurons: int, max_batch: int) -> int:
    """In how many parts a CPU takes a batch: a power of two, up to 16.

    Smaller parts stay in the cache and keep more cores busy; the smallest would be all overhead.
    """
    least, fewest_samples = PART
    n_parts = min(n_neurons * max_batch / least, max_batch / fewest_samples, 16)
    return 1 << int(math.log2(max(n_parts, 1)))


def unaligned(n_samples: int) -> int:
    """So many columns for them that the rows of a matrix do not all start in the same few sets of the cache."""
    return math.ceil(n_samples / 64) * 64 + 48


def torch_matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """np.matmul of matrices, by torch."""
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


class _Part:
    """The buffers of a part of a batch, and what is computed in them.

    All columns are computed; those beyond the batch have no error, and so no gradient.
    """

    def __init__(self, whole: SquaredError, config: SirenConfig, size: int, empty: Callable[..., object]):
        self.whole = whole
        n_layers = len(whole.matrices)
        self.gradients = [empty(*matrix.shape) for matrix in whole.matrices]  # by the products' matrices
        self.inputs = empty(config.d_in + 1, size)
        self.outputs = empty(n_layers - 1, config.n_neurons + 1, size)
        self.cosines = empty(n_layers - 1, config.n_neurons, size)
        self.scratch = empty(3, config.n_neurons, size)
        self.error = empty(config.d_out, size)

    def _ends_block(self, k: int) -> bool:
        return self.whole.is_residual and k % 2 == 0 and k > 0

    @np.errstate(all="ignore")  # a fit that diverges is noticed by its loss
    def __call__(self, x: object, values: object, weights: object | None, n: int) -> tuple[object, object]:
        """x: (d_in, samples), values: (d_out, samples) of a batch of n. Its part of the loss; the squared errors."""
        xp, matmul, first_layer, size = self.whole.xp, self.whole.matmul, self.whole.first_layer, x.shape[1]
        inputs, outputs, cosines, error = self.inputs, self.outputs, self.cosines, self.error
        phase, grad, skipped = self.scratch
        *sines, last = self.whole.matrices

        inputs[:-1, :size] = x
        h = inputs
        for k, matrix in enumerate(sines):
            matmul(matrix, h, out=phase)
            h = outputs[k]
            xp.cos(phase, out=cosines[k])
            xp.sin(phase, out=h[:-1])
            if self._ends_block(k):
                h[:-1] += outputs[k - 2, :-1]
        matmul(last, h, out=error)
        error[:, :size] -= values
        if self.whole.is_clipped:
            error[:, :size] *= (xp.abs(values) < 1) | (error[:, :size] * values < 0)
        error[:, size:] = 0
        squares = xp.square(error[:, :size]).mean(0)
        loss = (squares if weights is None else squares * weights).sum() / n
        if weights is not None:
            error[:, :size] *= weights
        error *= 2 / (n * len(error))

        matmul(error, h.T, out=self.gradients[-1])
        if first_layer < len(sines):
            matmul(last[:, :-1].T, error, out=grad)
        for k in reversed(range(first_layer, len(sines))):
            xp.multiply(grad, cosines[k], out=phase)
            if self._ends_block(k):
                skipped, grad = grad, skipped
            matmul(phase, (outputs[k - 1] if k else inputs).T, out=self.gradients[k])
            if k > first_layer:
                matmul(sines[k][:, :-1].T, phase, out=grad)
                if self.whole.is_residual and k % 2 == 1:
                    grad += skipped
        return loss, squares
