"""The fit of one brick, which another process can do: `Task` is what it takes, `FittedBrick` what comes of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from siren import FieldNet
from training import processes
from training.fitting import Fit, new_fit
from training.recipe import Recipe, psnr_of
from training.starts import Start
from training.streaming import make_sampler
from training.workers import Report
from utils import ValueRange


class Task(NamedTuple):
    """The fit of one brick.

    brick: values (grid..., components), normalised by the range of the volume, NaN where missing. value_range: that of
    the brick; the fit normalises the values once more, by this range. target_psnr: the fit ends at this PSNR, in dB,
    over the range of the brick.
    """

    brick: np.ndarray
    value_range: ValueRange
    start: Start
    recipe: Recipe
    target_psnr: float | None = None


class FittedBrick(NamedTuple):
    """The network of a brick. weights: by name. error: mean squared error of the brick's normalised values.

    n_recoveries: of its fit, see training/recovery.py; 0 where an earlier run did it.
    """

    weights: dict[str, np.ndarray]
    error: float
    n_recoveries: int = 0


def fit_brick(task: Task, device: torch.device, report: Report) -> FittedBrick:
    """The network of one brick."""
    target = task.target_psnr
    with processes.apart():
        sampler = make_sampler(task.brick, task.value_range, device, task.recipe.grad_lambda > 0)
        fit = new_fit(task.start, sampler, task.recipe)

        def is_reached(psnr: float) -> bool:
            return psnr >= target and psnr_of(sampler.mean_squared_error(fit.averaged_net)) >= target

        def on_step(fit: Fit) -> bool:
            report(fit.progress)
            return target is not None and fit.has_reached(is_reached)

        fit.run(on_step)
        error = sampler.mean_squared_error(fit.averaged_net)
        return FittedBrick(arrays_of(fit.averaged_net), error, fit.recovery.n_recoveries)


def arrays_of(net: FieldNet) -> dict[str, np.ndarray]:
    """A copy of the weights of a network, by name."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in net.state_dict().items()}
