"""The optimisers. Each changes a weight tensor in place by its gradient tensor; `state` is its whole memory.

torch.optim has both optimisers. But it imports a compiler, which takes two seconds and is not needed here.

The learning rate and the number of a step are numbers, or scalar tensors on a GPU: a captured step then reads the
values of the day from the same memory. Of a stack of networks, the weights have one row for each network, and the
learning rate may be a tensor of one number for each.
"""

from __future__ import annotations

import math

import torch

from field.evaluation import TILE

# Once a gradient is exactly zero, the momentum fades away. Of numbers below 1e-19, float32 holds no squares: the norm
# of a matrix of them is zero, too. Divided by nearly nothing, the matrix would be infinite after a few products.
LEAST_NORM = 1e-16


def padded(size: int, tile: int = TILE) -> int:
    """The least multiple of `tile` that is at least `size`."""
    return math.ceil(size / tile) * tile


def along(rate: float | torch.Tensor, tensor: torch.Tensor) -> float | torch.Tensor:
    """A number, or one for each network, in the shape that multiplies `tensor` (networks, ...)."""
    if isinstance(rate, torch.Tensor) and rate.dim():
        return rate.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
    return rate


def share_of_latest(number: int | torch.Tensor, n_steps: float, dtype: torch.dtype) -> float | torch.Tensor:
    """The share of step `number`, from 1, in a running average over `n_steps` steps. The first averages cover fewer."""
    share = 10 / (9 + number)
    return share.to(dtype).clamp(min=1 / n_steps) if isinstance(share, torch.Tensor) else max(1 / n_steps, share)


class Adam:
    """Adam (Kingma and Ba, 2015)."""

    def __init__(self, weights: torch.Tensor, gradient: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999)):
        self.weights, self.gradient, self.betas = weights, gradient, betas
        self.state = {"mean": torch.zeros_like(weights), "square": torch.zeros_like(weights)}

    @torch.no_grad()
    def step(self, lr: float | torch.Tensor, number: int | torch.Tensor) -> None:
        """Update the weights by their gradient. number: the step's number, from 1."""
        mean = self.state["mean"].lerp_(self.gradient, 1 - self.betas[0])
        square = (
            self.state["square"].mul_(self.betas[1]).addcmul_(self.gradient, self.gradient, value=1 - self.betas[1])
        )
        scale = (square / (1 - self.betas[1] ** number)).sqrt_().add_(1e-8)
        self.weights.add_((mean * along(-lr / (1 - self.betas[0] ** number), mean)).div_(scale))


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
        self.scale = 0.125 * (math.sqrt(weights.shape[-1]) if widths is None else widths.sqrt())

    @torch.no_grad()
    def step(self, lr: float | torch.Tensor, number: int | torch.Tensor, products: torch.dtype | None = None) -> None:
        """Update the matrices by their gradients.

        number: the step's number, from 1. products: type of the matrices that are multiplied; None: their own.
        The direction of an update may be coarse: errors of 0.1 % in the products do no harm.
        """
        n, dtype = self.weights.shape[-1], self.weights.dtype
        share = share_of_latest(number, self.momentum_steps, dtype)
        velocity = self.state["velocity"].lerp_(self.gradient, share)
        x = torch.lerp(velocity, self.gradient, share).reshape(-1, n, n)  # Nesterov momentum
        x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + LEAST_NORM
        if self.size > n or (products or dtype) != dtype:
            whole = x.new_zeros(len(x), self.size, self.size, dtype=products or dtype)
            whole[:, :n, :n] = x
            x = whole
        for _ in range(5):  # Newton-Schulz iterations bring all singular values to about 1
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        x, rate = x[:, :n, :n].to(dtype).reshape(self.weights.shape), along(lr * self.scale, self.weights)
        if isinstance(rate, torch.Tensor):
            self.weights.sub_(x * rate)
        else:
            self.weights.sub_(x, alpha=rate)
