"""The trained weights of a network in one vector, and what moves them: a step then takes few operations."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from siren import FieldNet, linear_layers
from training.optimizers import Adam, Muon

AVERAGED_STEPS = 50  # steps over which the weights are averaged
NORM_LIMIT = 1.3  # of a hidden matrix, relative to its norm at initialisation


def in_one_vector(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One vector of all values. The tensors become views of its parts, so a change of either changes both."""
    vector = torch.cat([tensor.detach().flatten() for tensor in tensors])
    parts = vector.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.data = part.view_as(tensor)
    return vector


def trained_parameters(net: FieldNet, first_trained_layer: int) -> tuple[list[nn.Parameter], int]:
    """The parameters of the linear layers from `first_trained_layer` on, hidden matrices first; the number of these."""
    live = linear_layers(net)[first_trained_layer:]
    hidden = [layer.weight for layer in (live if first_trained_layer else live[1:])[:-1]]
    chosen = {id(p) for p in hidden}
    return hidden + [p for layer in live for p in layer.parameters() if id(p) not in chosen], len(hidden)


class TrainedWeights:
    """The weights of `net` from linear layer `first_trained_layer` on, their gradient, and their average.

    weights, gradient, averaged_weights: vectors, of which the tensors of `net`, their `.grad`, and those of
    `averaged_net` are parts. The average is over the latest steps (Polyak averaging; Polyak and Juditsky, 1992).
    optimizer: "muon" (for the hidden matrices; Adam for the rest) or "adam".
    """

    def __init__(self, net: FieldNet, optimizer: str, first_trained_layer: int = 0):
        self.averaged_net = copy.deepcopy(net)
        parameters, n_hidden = trained_parameters(net, first_trained_layer)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.weights = in_one_vector(parameters)
        self.gradient = in_one_vector([parameter.grad for parameter in parameters])
        self.averaged_weights = in_one_vector(trained_parameters(self.averaged_net, first_trained_layer)[0])

        n = net.config.n_neurons
        size = n_hidden * n * n
        self.hidden, hidden_gradient = (v[:size].view(n_hidden, n, n) for v in (self.weights, self.gradient))
        if optimizer == "adam":
            self.optimizers = [Adam(self.weights, self.gradient)]
        else:
            muon = [Muon(self.hidden, hidden_gradient)] if n_hidden else []
            self.optimizers = [Adam(self.weights[size:], self.gradient[size:], (0.9, 0.99)), *muon]
        # Limits of the Frobenius norm; a network that comes with larger matrices keeps them.
        initial = math.sqrt(2 * n) / net.config.omega_0
        self.norm_limits = torch.linalg.vector_norm(self.hidden, dim=(1, 2), keepdim=True).clamp_(NORM_LIMIT * initial)

    def take_step(self, rate: float, number: int) -> None:
        """Move the weights by their gradient, at a learning rate, and average them. number: of the step, from 1."""
        for optimizer in self.optimizers:
            optimizer.step(rate)
        self._limit_norms()
        # At first over fewer steps.
        self.averaged_weights.lerp_(self.weights, max(1 / AVERAGED_STEPS, 10 / (9 + number)))

    def _limit_norms(self) -> None:
        """Scale hidden matrices back to their limits.

        Noise in the gradients makes them grow, until the phases are scrambled and the network can fit but a constant:
        the collapse of sine networks at high learning rates. Held back, they never get there.
        """
        norms = torch.linalg.vector_norm(self.hidden, dim=(1, 2), keepdim=True)
        self.hidden.mul_((self.norm_limits / norms).clamp_(max=1.0))
