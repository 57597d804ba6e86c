"""The optimisers. Each changes a weight tensor in place by its gradient tensor; `state` is its whole memory.

torch.optim has both optimisers. But it imports a compiler, which takes two seconds and is not needed here.

Only two `coefficients` of an optimiser change from step to step. `step` takes them as numbers, or on a GPU as scalar
tensors: a captured step then reads new values from the same memory. In a stack of networks, the weights have a row for
each network, and `rates` holds a factor of the learning rate for each.
"""

from __future__ import annotations

import math

import torch

from field.evaluation import TILE

# Once a gradient is exactly zero, the momentum fades away. The squares of numbers below 1e-19 are zero in float32. So
# the norm of a matrix of such numbers is zero, and the matrix divided by it would overflow after a few products.
LEAST_NORM = 1e-16


def padded(size: int, tile: int = TILE) -> int:
    """The least multiple of `tile` that is at least `size`."""
    return math.ceil(size / tile) * tile


def for_each_network(numbers: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """One number for each network, in the shape that multiplies `tensor` (networks, ...)."""
    return numbers.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))


def share_of_latest(number: int, n_steps: float) -> float:
    """The share of step `number`, from 1, in a running average over `n_steps` steps. The first averages cover fewer."""
    return max(1 / n_steps, 10 / (9 + number))


class Adam:
    """Adam (Kingma and Ba, 2015)."""

    def __init__(self, weights: torch.Tensor, gradient: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999)):
        self.weights, self.gradient, self.betas = weights, gradient, betas
        self.state = {"mean": torch.zeros_like(weights), "square": torch.zeros_like(weights)}

    def coefficients(self, rate: float, number: int) -> tuple[float, float]:
        """Those of step `number`, from 1: the size of the move; the sum of the weights in the mean square."""
        return -rate / (1 - self.betas[0] ** number), 1 - self.betas[1] ** number

    @torch.no_grad()
    def step(
        self, size: float | torch.Tensor, correction: float | torch.Tensor, rates: torch.Tensor | None = None
    ) -> None:
        """Update the weights by their gradient. size, correction: the `coefficients`."""
        mean = self.state["mean"].lerp_(self.gradient, 1 - self.betas[0])
        square = self.state["square"].mul_(self.betas[1])
        square.addcmul_(self.gradient, self.gradient, value=1 - self.betas[1])
        scale = (square / correction).sqrt_().add_(1e-8)
        size = size if rates is None else for_each_network(size * rates, mean)
        self.weights.add_((mean * size).div_(scale))


class Muon:
    """Muon (Jordan et al., 2024) on matrices (..., count, n, n): the momentum of each is orthogonalised.

    All singular values of an update are then near lr x sqrt(n) / 8. The weights move by lr / 8 in the root mean square,
    so Adam's learning rate suits Muon too. torch's Muon takes matrices one by one, which is several times as slow.
    momentum_steps: over which the momentum averages the gradients.
    tile: the products are those of matrices that are padded with zeros to a multiple of `tile`. widths: of the networks
    of a stack, (networks,), whose matrices are padded with zeros to n.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        momentum_steps: float,
        tile: int = 1,
        widths: torch.Tensor | None = None,
    ):
        self.weights, self.gradient, self.momentum_steps = weights, gradient, momentum_steps
        self.state = {"velocity": torch.zeros_like(weights)}
        self.size = padded(weights.shape[-1], tile)
        self.scale = 0.125 * math.sqrt(weights.shape[-1]) if widths is None else 0.125
        self.roots = None if widths is None else widths.sqrt()

    def coefficients(self, rate: float, number: int) -> tuple[float, float]:
        """Those of step `number`, from 1: the size of the move; the share of the gradient in the momentum."""
        return rate * self.scale, share_of_latest(number, self.momentum_steps)

    @torch.no_grad()
    def step(
        self,
        size: float | torch.Tensor,
        share: float | torch.Tensor,
        rates: torch.Tensor | None = None,
        products: torch.dtype | None = None,
    ) -> None:
        """Update the matrices by their gradients.

        size, share: the `coefficients`. products: type of the matrices that are multiplied; None: their own. The
        direction of an update may be coarse: errors of 0.1 % in the products do no harm.
        """
        n, dtype = self.weights.shape[-1], self.weights.dtype
        velocity = self.state["velocity"].lerp_(self.gradient, share)
        x = torch.lerp(velocity, self.gradient, share).reshape(-1, n, n)  # Nesterov momentum
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + LEAST_NORM
        if self.size > n or (products or dtype) != dtype:
            whole = x.new_zeros(len(x), self.size, self.size, dtype=products or dtype)
            torch.div(x, norms, out=whole[:, :n, :n])
            x = whole
        else:
            x /= norms
        for _ in range(5):  # Newton-Schulz iterations bring all singular values to about 1
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        x = x[:, :n, :n].to(dtype).reshape(self.weights.shape)
        if rates is not None:
            size = for_each_network(size * rates * self.roots, self.weights)
        if isinstance(size, torch.Tensor):
            self.weights.sub_(x * size)
        else:
            self.weights.sub_(x, alpha=size)
