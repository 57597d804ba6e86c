"""The step of a fit, written plainly, in float64 and with autograd. Every implementation is held to it."""

from __future__ import annotations

import copy
import math

import torch

from siren import FieldNet, linear_layers
from training.recipe import MOMENTUM_STEPS
from training.weights import AVERAGED_STEPS, NORM_LIMIT


def share_of_latest(number: int, n_steps: float) -> float:
    """The share of step `number` in a running average."""
    return max(1 / n_steps, 10 / (9 + number))


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix like this one, whose singular values are about 1: a polynomial of them, five times."""
    u, s, v = torch.linalg.svd(matrix / (matrix.norm() + 1e-30))
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


class ReferenceStep:
    """The steps of a fit of `net`, which stays as it is. net, averaged: the network of the latest step, the average."""

    def __init__(self, net: FieldNet, optimizer: str = "muon", first_trained_layer: int = 0, is_clipped: bool = False):
        self.net, self.optimizer, self.is_clipped = copy.deepcopy(net).double(), optimizer, is_clipped
        self.averaged = copy.deepcopy(self.net)
        layers = linear_layers(self.net)
        self.trained = [p for layer in layers[first_trained_layer:] for p in layer.parameters()]
        self.hidden = [layer.weight for layer in layers[max(first_trained_layer, 1) : -1]]
        initial = NORM_LIMIT * math.sqrt(2 * net.config.n_neurons) / net.config.omega_0
        self.limits = [max(initial, float(matrix.detach().norm())) for matrix in self.hidden]
        self.moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in self.trained}

    def loss(self, x: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, squared error of each sample)."""
        y, values = self.net(x.double()), values.double()
        is_right = ((values <= -1) & (y < values)) | ((values >= 1) & (y > values))
        squares = torch.where(is_right & self.is_clipped, 0.0, (y - values).square()).mean(1)
        return (squares * weights.double()).mean(), squares.detach()

    def gradients(self, x: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
        """The gradient by each trained parameter, in the order of the layers: weight, bias, weight, ..."""
        return list(torch.autograd.grad(self.loss(x, values, weights)[0], self.trained))

    def take(self, x: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, rate: float, number: int) -> None:
        """Take a step at the learning rate `rate`. number: of the step, from 1."""
        gradients = self.gradients(x, values, weights)
        with torch.no_grad():
            for p, gradient in zip(self.trained, gradients, strict=True):
                is_muons = self.optimizer == "muon" and any(p is matrix for matrix in self.hidden)
                p -= (self._muon if is_muons else self._adam)(p, gradient, rate, number)
            for matrix, limit in zip(self.hidden, self.limits, strict=True):
                matrix *= min(1.0, limit / float(matrix.norm()))
            for average, p in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                average += share_of_latest(number, AVERAGED_STEPS) * (p - average)

    def _adam(self, p: torch.Tensor, gradient: torch.Tensor, rate: float, number: int) -> torch.Tensor:
        betas = (0.9, 0.99) if self.optimizer == "muon" else (0.9, 0.999)
        mean, square = self.moments[p]
        mean += (1 - betas[0]) * (gradient - mean)
        square += (1 - betas[1]) * (gradient**2 - square)
        return rate * mean / (1 - betas[0] ** number) / ((square / (1 - betas[1] ** number)).sqrt() + 1e-8)

    def _muon(self, p: torch.Tensor, gradient: torch.Tensor, rate: float, number: int) -> torch.Tensor:
        velocity, _ = self.moments[p]
        share = share_of_latest(number, MOMENTUM_STEPS[0])
        velocity += share * (gradient - velocity)
        update = velocity + share * (gradient - velocity)
        return 0.125 * rate * math.sqrt(len(p)) * orthogonalised(update)
