"""The trained weights of a network in one vector, and their update: a step then takes few operations."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from siren import FieldNet, linear_layers
from training.optimizers import Adam, Muon

AVERAGED_STEPS = 50  # time constant of the running average of the weights, steps
NORM_LIMIT = 1.3  # largest Frobenius norm of a hidden matrix, relative to the norm at initialisation


def in_one_vector(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One vector of the values of all tensors. The tensors become views of it: a change of one changes both."""
    vector = torch.cat([tensor.detach().flatten() for tensor in tensors])
    parts = vector.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.data = part.view_as(tensor)
    return vector


def trained_parameters(net: FieldNet, first_trained_layer: int) -> tuple[list[nn.Parameter], int]:
    """(parameters of the layers from `first_trained_layer` on, hidden matrices first; number of hidden matrices)."""
    live = linear_layers(net)[first_trained_layer:]
    hidden = [layer.weight for layer in (live if first_trained_layer else live[1:])[:-1]]
    chosen = {id(p) for p in hidden}
    return hidden + [p for layer in live for p in layer.parameters() if id(p) not in chosen], len(hidden)


class TrainedWeights:
    """The weights of `net` from linear layer `first_trained_layer` on, their gradient, and their average.

    weights, gradient, averaged_weights: vectors. The trained parameters of `net`, their `.grad`, and the parameters of
    `averaged_net` are views of them. The average runs over the latest steps (Polyak averaging; Polyak and Juditsky,
    1992). hidden, biases: the trained hidden matrices (count, n, n) and their biases (count, n), views too.

    optimizer: "muon" (Muon for the hidden matrices, Adam for the rest) or "adam". tile: see `Muon`.
    """

    def __init__(self, net: FieldNet, optimizer: str, first_trained_layer: int = 0, tile: int = 1):
        self.averaged_net = copy.deepcopy(net)
        parameters, n_hidden = trained_parameters(net, first_trained_layer)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.weights = in_one_vector(parameters)
        self.gradient = in_one_vector([parameter.grad for parameter in parameters])
        self.averaged_weights = in_one_vector(trained_parameters(self.averaged_net, first_trained_layer)[0])

        n = net.config.n_neurons
        size = n_hidden * n * n
        vectors = self.weights, self.gradient
        self.hidden, self.hidden_gradient = (v[:size].view(n_hidden, n, n) for v in vectors)
        start = size + (0 if first_trained_layer else n * (net.config.d_in + 1))
        self.biases, self.biases_gradient = (v[start : start + n_hidden * n].view(n_hidden, n) for v in vectors)
        if optimizer == "adam":
            self.optimizers = [Adam(self.weights, self.gradient)]
        else:
            muon = [Muon(self.hidden, self.hidden_gradient, tile=tile)] if n_hidden else []
            self.optimizers = [Adam(self.weights[size:], self.gradient[size:], (0.9, 0.99)), *muon]
        # Limits of the Frobenius norms. A matrix that starts with a larger norm may keep this norm.
        initial = math.sqrt(2 * n) / net.config.omega_0
        self.norm_limits = torch.linalg.vector_norm(self.hidden, dim=(1, 2), keepdim=True).clamp_(NORM_LIMIT * initial)

    def take_step(
        self, rate: float | torch.Tensor, number: int | torch.Tensor, products: torch.dtype | None = None
    ) -> None:
        """Move the weights at the learning rate `rate`, then average them.

        number: the step's number, from 1. products: see `Muon.step`.
        """
        for optimizer in self.optimizers:
            optimizer.step(rate, number if isinstance(optimizer, Adam) else products)
        self._limit_norms()
        share = 10 / (9 + number)  # the first averages cover fewer steps
        if isinstance(share, torch.Tensor):
            share = share.clamp(min=1 / AVERAGED_STEPS).to(self.weights.dtype)
        else:
            share = max(1 / AVERAGED_STEPS, share)
        self.averaged_weights.lerp_(self.weights, share)

    def _limit_norms(self) -> None:
        """Scale hidden matrices back to their norm limits.

        Gradient noise makes the matrices grow, until the phases are scrambled and the network can only fit a constant.
        This is the collapse of sine networks at high learning rates. The limits prevent it.
        """
        norms = torch.linalg.vector_norm(self.hidden, dim=(1, 2), keepdim=True)
        self.hidden.mul_((self.norm_limits / norms).clamp_(max=1.0))
