"""The trained weights of a network in one vector, and their update: a step then takes few operations."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from siren import FieldNet, linear_layers
from training.optimizers import Adam, Muon, for_each_network, share_of_latest

AVERAGED_STEPS = 50.0  # time constant of the running average of the weights, steps
NORM_LIMIT = 1.3  # largest Frobenius norm of a hidden matrix, relative to the norm at initialisation


def in_one_vector(tensors: list[torch.Tensor], n_rows: int | None) -> torch.Tensor:
    """One vector of the values of all tensors. The tensors become views of it: a change of one changes both.

    n_rows: if given, a matrix of so many rows like this vector; the tensors are views of the first one.
    """
    vector = torch.cat([tensor.detach().flatten() for tensor in tensors])
    whole = vector if n_rows is None else vector.repeat(n_rows, 1)
    parts = (whole if n_rows is None else whole[0]).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.data = part.view_as(tensor)
    return whole


def hidden_matrices(net: FieldNet, first_trained_layer: int) -> list[nn.Parameter]:
    """The matrices (n, n) of the trained layers: of all but the first and the last layer of the network."""
    return [layer.weight for layer in linear_layers(net)[max(first_trained_layer, 1) : -1]]


def trained_parameters(net: FieldNet, first_trained_layer: int) -> list[nn.Parameter]:
    """The parameters of the layers from `first_trained_layer` on, hidden matrices first."""
    hidden = hidden_matrices(net, first_trained_layer)
    chosen = {id(p) for p in hidden}
    trained = linear_layers(net)[first_trained_layer:]
    return hidden + [p for layer in trained for p in layer.parameters() if id(p) not in chosen]


def vector_of(net: FieldNet) -> torch.Tensor:
    """All weights of a network, in the order of TrainedWeights."""
    return torch.cat([parameter.detach().flatten() for parameter in trained_parameters(net, 0)])


class TrainedWeights:
    """The weights of `net` from linear layer `first_trained_layer` on, their gradient, and their average.

    weights, gradient, averaged_weights: vectors. The trained parameters of `net`, their `.grad`, and the parameters of
    `averaged_net` are views of them. The average runs over the latest steps (Polyak averaging; Polyak and Juditsky,
    1992). hidden, biases: the trained hidden matrices (count, n, n) and their biases (count, n), views too.

    optimizer: "muon" (Muon for the hidden matrices, Adam for the rest) or "adam". momentum_steps, tile: see `Muon`.

    net: a network, or a stack of networks. The weights of a stack have a row for each network: all tensors then have an
    axis of networks in front, and the parameters of `net` are views of the first row. widths: (networks,) neurons of
    each network; its further neurons have weights of zero. These stay zero, as their gradients are. rates: (networks,)
    factors of the learning rate.
    """

    def __init__(
        self,
        net: FieldNet | Sequence[FieldNet],
        optimizer: str,
        first_trained_layer: int,
        tile: int,
        widths: torch.Tensor | None = None,
        momentum_steps: float = 20.0,
    ):
        nets = None if isinstance(net, FieldNet) else net
        self.net = net = nets[0] if nets else net
        self.averaged_net = copy.deepcopy(net)
        parameters = trained_parameters(net, first_trained_layer)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        n_rows = len(nets) if nets else None
        self.weights = in_one_vector(parameters, n_rows)
        self.gradient = in_one_vector([parameter.grad for parameter in parameters], n_rows)
        self.averaged_weights = in_one_vector(trained_parameters(self.averaged_net, first_trained_layer), n_rows)
        for k, other in enumerate(nets or ()):
            self.weights[k] = self.averaged_weights[k] = vector_of(other)
        self.rates = None if widths is None else torch.ones_like(widths)

        n, lead = net.config.n_neurons, self.weights.shape[:-1]
        n_hidden = len(hidden_matrices(net, first_trained_layer))
        size = n_hidden * n * n
        first = 0 if first_trained_layer else n * (net.config.d_in + 1)
        last = self.weights.shape[-1] - size - first - n_hidden * n

        def views(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """The hidden matrices and their biases in a vector. The first layer is between them, the last one after."""
            matrices, _, biases, _ = vector.split([size, first, n_hidden * n, last], dim=-1)
            return matrices.view(*lead, n_hidden, n, n), biases.view(*lead, n_hidden, n)

        self.hidden, self.biases = views(self.weights)
        self.hidden_gradient, self.biases_gradient = views(self.gradient)
        if optimizer == "adam":
            self.optimizers = [Adam(self.weights, self.gradient)]
        else:
            muon = [Muon(self.hidden, self.hidden_gradient, momentum_steps, tile, widths)] if n_hidden else []
            self.optimizers = [Adam(self.weights[..., size:], self.gradient[..., size:], (0.9, 0.99)), *muon]
        # Limits of the Frobenius norms. A matrix that starts with a larger norm may keep this norm.
        initial = math.sqrt(2 * n) if widths is None else for_each_network((2 * widths).sqrt(), self.hidden)
        norms = torch.linalg.vector_norm(self.hidden, dim=(-2, -1), keepdim=True)
        self.norm_limits = norms.clamp_(NORM_LIMIT * (initial / net.config.omega_0))

    @property
    def state(self) -> list[torch.Tensor]:
        """All that a step changes: the weights, their average, what the optimisers remember."""
        moments = (tensor for optimizer in self.optimizers for tensor in optimizer.state.values())
        return [self.weights, self.averaged_weights, *moments]

    def of_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same parameter, or its gradient, of all networks of a stack. tensor: that of `net` or `averaged_net`."""
        if self.weights.dim() == 1:
            return tensor
        shape, stride = (len(self.weights), *tensor.shape), (self.weights.stride(0), *tensor.stride())
        return tensor.as_strided(shape, stride)

    def coefficients(self, rate: float, number: int) -> list[float]:
        """The coefficients of a step: two of each optimiser, then the share of the weights in their average.

        rate: the learning rate. number: the step's number, from 1.
        """
        of_optimizers = [optimizer.coefficients(rate, number) for optimizer in self.optimizers]
        return [*itertools.chain(*of_optimizers), share_of_latest(number, AVERAGED_STEPS)]

    def take_step(self, coefficients: Sequence[float | torch.Tensor], products: torch.dtype | None) -> None:
        """Move the weights, then average them. products: see `Muon.step`."""
        for k, optimizer in enumerate(self.optimizers):
            more = [products] if isinstance(optimizer, Muon) else []
            optimizer.step(*coefficients[2 * k : 2 * k + 2], self.rates, *more)
        self._limit_norms()
        self.averaged_weights.lerp_(self.weights, coefficients[-1])

    def _limit_norms(self) -> None:
        """Scale hidden matrices back to their norm limits.

        Gradient noise makes the matrices grow, until the phases are scrambled and the network can only fit a constant.
        This is the collapse of sine networks at high learning rates. The limits prevent it.
        """
        norms = torch.linalg.vector_norm(self.hidden, dim=(-2, -1), keepdim=True)
        self.hidden.mul_((self.norm_limits / norms).clamp_(max=1.0))
