"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's preconditioner.

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, algorithm 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Soap(torch.optim.Optimizer):
    """SOAP on the matrix [W b] of every linear layer; layers of equal shape are updated as one batch of matrices.

    lr: size of a step, as in Adam. beta: decay of all moving averages. refresh: steps between two turns of the bases.
    """

    def __init__(self, layers: Iterable[nn.Linear], lr: float, beta: float = 0.95, refresh: int = 10):
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for layer in layers:
            by_shape.setdefault(layer.weight.shape, []).extend([layer.weight, layer.bias])
        groups = [{"params": parameters, "step": 0} for parameters in by_shape.values()]
        super().__init__(groups, {"lr": lr, "beta": beta, "refresh": refresh})

    @torch.no_grad()
    def step(self) -> None:
        """Update every layer by its `.grad`."""
        for group in self.param_groups:
            weights, biases = group["params"][::2], group["params"][1::2]
            grad = torch.stack([torch.cat([w.grad, b.grad[:, None]], 1) for w, b in zip(weights, biases, strict=True)])
            update = self._update(group, self.state[weights[0]], grad)
            for w, b, u in zip(weights, biases, update, strict=True):
                w.sub_(u[:, :-1], alpha=group["lr"])
                b.sub_(u[:, -1], alpha=group["lr"])

    @staticmethod
    def _update(group: dict, state: dict[str, torch.Tensor], grad: torch.Tensor) -> torch.Tensor:
        """The step's direction for a batch of gradients (layers, n_out, n_in + 1)."""
        group["step"] += 1
        fresh = 1 - group["beta"]
        if not state:
            n_out, n_in = grad.shape[1:]
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
            state["left"], state["right"] = (
                grad.new_zeros(len(grad), n_out, n_out),
                grad.new_zeros(len(grad), n_in, n_in),
            )
        state["left"].lerp_(grad @ grad.mT, fresh)
        state["right"].lerp_(grad.mT @ grad, fresh)
        if "left_basis" not in state:
            state["left_basis"], state["right_basis"] = _eigenbasis(state["left"]), _eigenbasis(state["right"])
        left, right = state["left_basis"], state["right_basis"]

        rotated = left.mT @ grad @ right
        state["mean"].lerp_(grad, fresh)
        state["square"].mul_(group["beta"]).addcmul_(rotated, rotated, value=fresh)
        unbias = 1 - group["beta"] ** group["step"]
        update = (left.mT @ state["mean"] @ right) / unbias / ((state["square"] / unbias).sqrt_() + 1e-12)
        update = left @ update @ right.mT

        if group["step"] % group["refresh"] == 0:
            state["left_basis"], order = _turn(state["left"], left)
            square = state["square"].gather(1, order[:, :, None].expand_as(grad))
            state["right_basis"], order = _turn(state["right"], right)
            state["square"] = square.gather(2, order[:, None, :].expand_as(grad))
        return update


def _eigenbasis(factors: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of each of the symmetric matrices (k, n, n)."""
    size = factors.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-30
    return torch.linalg.eigh(factors / size + 1e-9 * torch.eye(factors.shape[-1], device=factors.device))[1]


def _turn(factors: torch.Tensor, bases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of orthogonal iteration towards the eigenvectors, and the order it puts the old vectors in."""
    image = factors @ bases
    order = (bases * image).sum(1).argsort(1, descending=True)
    image = image.gather(2, order[:, None, :].expand_as(image))
    return torch.linalg.qr(image / (image.norm(dim=1, keepdim=True) + 1e-30))[0], order
