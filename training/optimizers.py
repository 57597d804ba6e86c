"""The optimisers. Each changes a weight tensor in place by its gradient tensor; `state` is its whole memory.

torch.optim has both optimisers. But it imports a compiler, which takes two seconds and is not needed here.
"""

from __future__ import annotations

import math

import torch


class Adam:
    """Adam (Kingma and Ba, 2015)."""

    def __init__(self, weights: torch.Tensor, gradient: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999)):
        self.weights, self.gradient, self.betas = weights, gradient, betas
        mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
        self.state = {"n_steps": torch.zeros((), dtype=torch.int64), "mean": mean, "square": square}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the weights by their gradient."""
        n_steps = int(self.state["n_steps"].add_(1))
        mean = self.state["mean"].lerp_(self.gradient, 1 - self.betas[0])
        square = (
            self.state["square"].mul_(self.betas[1]).addcmul_(self.gradient, self.gradient, value=1 - self.betas[1])
        )
        scale = (square / (1 - self.betas[1] ** n_steps)).sqrt_().add_(1e-8)
        self.weights.addcdiv_(mean, scale, value=-lr / (1 - self.betas[0] ** n_steps))


class Muon:
    """Muon (Jordan et al., 2024) on a stack of matrices (count, n, n): the momentum of each is orthogonalised.

    All singular values of an update are then near lr x sqrt(n) / 8. The weights move by lr / 8 in the root mean square,
    so Adam's learning rate suits Muon too. torch's Muon takes matrices one by one, which is several times as slow.
    """

    def __init__(self, weights: torch.Tensor, gradient: torch.Tensor, momentum: float = 0.95):
        self.weights, self.gradient, self.momentum = weights, gradient, momentum
        self.state = {"velocity": torch.zeros_like(weights)}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the matrices by their gradients."""
        velocity = self.state["velocity"].lerp_(self.gradient, 1 - self.momentum)
        x = torch.lerp(self.gradient, velocity, self.momentum)  # Nesterov momentum
        x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-30
        for _ in range(5):  # Newton-Schulz iterations bring all singular values to about 1
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        self.weights.sub_(x, alpha=0.125 * lr * math.sqrt(x.shape[-1]))
