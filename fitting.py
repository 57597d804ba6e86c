"""Fit a network to a field: losses, optimisers, schedules.

Sources: Lu et al. 2021, section 3 (loss with gradient term); Jordan et al., "Muon", 2024, as in torch.optim.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from siren import FieldNet
from utils import Field, count_steps, shuffled_batches

FIRST_OMEGA = 8.0  # frequency of the first layer
REPORT_SECONDS = 0.5  # reading the loss waits for the device, so it is read only so often


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to fit.

    n_passes: over the voxels. batch: samples a step. optimizer: "muon" (for the hidden matrices, Adam for the
    rest) or "adam". schedule: "cosine", from lr to 0, or "step": times lr_decay every pass_decay passes.
    grad_lambda: weight of the gradient term.
    """

    n_passes: float
    batch: int
    lr: float
    optimizer: str = "muon"
    schedule: str = "cosine"
    pass_decay: float = 20.0
    lr_decay: float = 0.2
    grad_lambda: float = 0.0


def make_optimizers(net: FieldNet, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimisers of the recipe over all parameters of `net`."""
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(net.parameters(), lr=recipe.lr)]
    hidden = [p for name, p in net.named_parameters() if p.ndim == 2 and ".linear" in name and ".0." not in name]
    chosen = {id(p) for p in hidden}
    rest = [p for p in net.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=recipe.lr)]
    if hidden:
        optimizers.append(torch.optim.Muon(hidden, lr=recipe.lr, weight_decay=0.0))
    return optimizers


def rate_factor(recipe: Recipe, progress: float) -> float:
    """The learning rate as a fraction of its start, `progress` (0 to 1) through the fit."""
    if recipe.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return recipe.lr_decay ** (progress * recipe.n_passes // recipe.pass_decay)


def loss_with_gradient(
    net: FieldNet, x: torch.Tensor, values: torch.Tensor, gradients: torch.Tensor, grad_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(total loss, value loss): value MSE + grad_lambda x MSE of the analytic gradient. Paper, section 3.

    x: (n, d_in); values: (n, d_out); gradients: (n, d_out, d_in), all normalised.
    """
    x = x.requires_grad_()
    predicted = net(x)
    slopes = [torch.autograd.grad(predicted[:, c].sum(), x, create_graph=True)[0] for c in range(predicted.shape[1])]
    value_loss = functional.mse_loss(predicted, values)
    return value_loss + grad_lambda * functional.mse_loss(torch.stack(slopes, dim=1), gradients), value_loss


def fit(
    net: FieldNet,
    field: Field,
    recipe: Recipe,
    generator: torch.Generator,
    on_step: Callable[[int, float | None], None] = lambda n, psnr: None,
) -> None:
    """Fit `net`, in place, to `field`; both on the device of `generator`, which shuffles the voxels.

    `on_step(n, psnr)` is told of every n samples seen, with an estimate of the PSNR in dB now and then.
    """
    n_steps = count_steps(field.n_voxels, recipe.batch, recipe.n_passes)
    optimizers = make_optimizers(net, recipe)
    start_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    gradients = field.gradients() if recipe.grad_lambda > 0 else None
    running_loss = torch.zeros((), device=field.device)
    last_report = time.monotonic()
    batches = shuffled_batches(field.n_voxels, recipe.batch, recipe.n_passes, generator)
    for step, flat in enumerate(batches):
        factor = rate_factor(recipe, step / n_steps)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, start_rates, strict=True):
            group["lr"] = rate * factor
        x, values = field.coordinates(flat), field.values[flat]
        if gradients is None:
            loss = value_loss = functional.mse_loss(net(x), values)
        else:
            loss, value_loss = loss_with_gradient(net, x, values, gradients[flat], recipe.grad_lambda)
        net.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        running_loss.lerp_(value_loss.detach(), max(0.02, 1 / (step + 1)))
        estimate = None
        if time.monotonic() - last_report > REPORT_SECONDS:
            last_report = time.monotonic()
            estimate = 10 * math.log10(4 / max(running_loss.item(), 1e-30))
        on_step(len(flat), estimate)
