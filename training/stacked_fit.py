"""Fits the networks of a stack, each to its brick, in steps that they take together.

A network has samples of its own brick alone, and its own density, rate and recovery.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional

from siren import FieldNet
from training.loop import Loop
from training.one_brick import FittedBrick, Task, arrays_of
from training.recipe import psnr_of
from training.recovery import Action, Recovery
from training.sampler import VoxelSampler, all_coordinates
from training.stacks import common_recipe, stack_width
from training.starts import new_networks
from training.step import StepFunction
from training.survey import error_factor
from training.weights import vector_of


def widened(net: FieldNet, width: int) -> FieldNet:
    """The same network among zeros: as wide as `width`."""
    wide = FieldNet(dataclasses.replace(net.config, n_neurons=width))
    with torch.no_grad():
        for large, small in zip(wide.parameters(), net.parameters(), strict=True):
            large.zero_()[tuple(map(slice, small.shape))] = small
    return wide


class StackedSampler:
    """The samples of all bricks of a stack, on the device. A voxel's number counts on from brick to brick."""

    is_resident = True

    def __init__(self, bricks: Sequence[VoxelSampler]):
        self.bricks, self.device = bricks, bricks[0].device
        self.sizes = [len(brick.values) for brick in bricks]
        self.starts = np.cumsum([0, *self.sizes[:-1]]).tolist()
        self.n_present = max(brick.n_present for brick in bricks)  # of the largest: it sets the number of steps
        self.values = torch.cat([brick.values.to(self.device) for brick in bricks])
        self.coordinates = torch.cat([all_coordinates(brick.axes).to(self.device) for brick in bricks])

    def deviations(self) -> torch.Tensor:
        """As `VoxelSampler.deviations`."""
        return torch.cat([brick.deviations().to(self.device) for brick in self.bricks])

    def density(self, errors: torch.Tensor) -> torch.Tensor:
        """As `VoxelSampler.density`, 1 in the mean over each brick."""
        parts = zip(self.bricks, errors.split(self.sizes), strict=True)
        return torch.cat([brick.density(part) for brick, part in parts])

    def batches(
        self, seeds: Sequence[int], index: int, n_batches: int, first: int, density: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Pass number `index` over all bricks, in batches (bricks, samples), from batch `first` on.

        All bricks have as many samples: one with fewer voxels begins its pass again.
        """
        n, rows = n_batches * math.ceil(self.n_present / n_batches), []
        for brick, seed, part, start in zip(self.bricks, seeds, density.split(self.sizes), self.starts, strict=True):
            order = brick.shuffled(seed, index, part.to(brick.values.device)).to(self.device) + start
            rows.append(order.repeat(math.ceil(n / len(order)))[:n])
        return torch.stack(rows).chunk(n_batches, dim=1)[first:]

    def samples(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (..., d_in) and values (..., components) of the voxels `flat` (...)."""
        return self.coordinates[flat], self.values[flat]

    def judging_voxels(self, density: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `VoxelSampler.judging_voxels`, for each brick, in stacks. The weighted sum over a brick is its mean."""
        parts = zip(self.bricks, density.split(self.sizes), strict=True)
        found = [brick.judging_voxels(part.to(brick.values.device)) for brick, part in parts]
        most = max(len(weights) for _, _, weights in found)
        columns = []
        for x, values, weights in found:
            more = most - len(weights)
            rows = (x, values, weights[:, None] / len(weights))
            columns.append([functional.pad(row, (0, 0, 0, more)) for row in rows])
        x, values, weights = (torch.stack(column) for column in zip(*columns, strict=True))
        return x, values, weights[..., 0]


class StackedFit(Loop):
    """The fits of the networks of a stack, each to its brick. See `Fit`, which fits one network.

    The passes, the batch and the schedule are common; each network has its own learning rate. A network that diverges
    goes back to its best state, while the others go on. So it has fewer steps left than one that is fitted alone.

    normalised: the values of each task, (grid..., components), normalised by the range of the brick.
    """

    def __init__(self, tasks: Sequence[Task], normalised: Sequence[np.ndarray], device: torch.device):
        self.tasks, configs = tasks, [task.start.config for task in tasks]
        bricks, limits = [VoxelSampler(values, device) for values in normalised], [t.recipe.max_seconds for t in tasks]
        recipe = dataclasses.replace(
            common_recipe(tasks[0].recipe), max_seconds=None if None in limits else math.fsum(limits)
        )
        starts, width = [], stack_width(configs)
        for task, brick in zip(tasks, bricks, strict=True):
            starts.append([widened(net, width) for net in new_networks(task.start, brick)])
        nets, *further = zip(*starts, strict=True)
        self.short_wave_starts = [torch.stack([vector_of(net) for net in row]).to(device) for row in further]
        widths = torch.tensor([float(config.n_neurons) for config in configs], device=device)
        nets[0].to(device)
        sampler = StackedSampler(bricks)
        step_function = StepFunction(nets, sampler, recipe, 0, 1, sampler.deviations(), widths)
        super().__init__(step_function, recipe, [task.start.seed for task in tasks])
        of_all, averaged_net = self.trained.of_all, self.trained.averaged_net
        self.averages = {name: of_all(p.detach()) for name, p in averaged_net.named_parameters()}
        self.start, self.best = ([tensor.clone() for tensor in self.trained.state] for _ in range(2))
        self.recoveries = [Recovery(brick.variance, len(further)) for brick in bricks]
        self.losses = [brick.variance for brick in bricks]
        self.error_factors = [error_factor(task.value_range.low, task.value_range.high) for task in tasks]
        self.psnr = self._joint_psnr()
        self.reached: dict[int, torch.Tensor] = {}  # averaged weights of the networks that have their target PSNR
        self._set_rates()

    @property
    def progress(self) -> float:
        """As `Loop.progress`; 1 as soon as every network has its target."""
        are_all_done = len(self.reached) == len(self.tasks)
        return 1.0 if are_all_done else super().progress

    def _joint_psnr(self) -> float:
        """The PSNR of all networks together, in dB, by which the type of their products is chosen.

        What float16 costs a network of few errors does not show beside the errors of the others.
        """
        both = zip(self.losses, self.error_factors, strict=True)
        known = [(loss, factor) for loss, factor in both if math.isfinite(loss)]
        return psnr_of(sum(loss * factor for loss, factor in known) / max(sum(factor for _, factor in known), 1e-300))

    @torch.no_grad()
    def _judge(self) -> list[float]:
        """The loss of each network, as `Fit._judge` says."""
        x, values, weights = self.judging_voxels
        net = self.trained.averaged_net
        outputs = torch.vmap(lambda parameters, x: functional_call(net, parameters, (x,)))(self.averages, x)
        return ((outputs.clamp(-1, 1) - values).square().mean(-1) * weights).sum(-1).tolist()

    def _recover_if_needed(self) -> bool:
        """Judge all networks, and do what the recovery of each decides. All stay at their common step."""
        before, self.losses = self.losses, self._judge()
        self.psnr = self._joint_psnr()
        improved = [k for k, recovery in enumerate(self.recoveries) if self.losses[k] < recovery.best_loss]
        _copy_rows(self.best, self.trained.state, improved)
        for k, recovery in enumerate(self.recoveries):
            action = recovery.decide(before[k], self.losses[k], self.step, self.progress)
            if action in (Action.START, Action.SHORTER_WAVES):
                _copy_rows(self.best, self.start, [k])
            if action is Action.SHORTER_WAVES:
                network = self.short_wave_starts[-1 - recovery.n_short_wave_starts][k]
                self.best[0][k] = self.best[1][k] = network
            if action is not Action.GO_ON:
                _copy_rows(self.trained.state, self.best, [k])
                self._set_rates()
        self._keep_reached()
        return False

    def _settle(self) -> None:
        """Return to the best state of each network that has diverged, and to what had reached its target."""
        if self.step:  # else there is nothing to judge by
            diverged = [k for k, loss in enumerate(self._judge()) if self.recoveries[k].has_diverged(loss)]
            _copy_rows(self.trained.state, self.best, diverged)
        for k, weights in self.reached.items():
            self.trained.averaged_weights[k] = weights

    def _set_rates(self) -> None:
        rates = [task.recipe.lr * 0.5**r.n_halvings for task, r in zip(self.tasks, self.recoveries, strict=True)]
        self.trained.rates.copy_(torch.tensor(rates))

    def _keep_reached(self) -> None:
        """Keep the networks that have their target PSNR. They train on with the others; these steps are not used."""
        for k, task in enumerate(self.tasks):
            is_near = task.target_psnr is not None and psnr_of(self.losses[k]) >= task.target_psnr
            if is_near and k not in self.reached and psnr_of(self.error(k)) >= task.target_psnr:
                self.reached[k] = self.trained.averaged_weights[k].clone()

    def result(self, k: int) -> FittedBrick:
        """What has come of brick number k of the stack."""
        return FittedBrick(arrays_of(self.network(k)), self.error(k), self.recoveries[k].n_recoveries)

    def network(self, k: int) -> FieldNet:
        """The averaged network of brick number k, without the zeros."""
        net = FieldNet(self.tasks[k].start.config)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(self.averages[name][k][tuple(map(slice, parameter.shape))])
        return net.to(self.sampler.device)

    def error(self, k: int) -> float:
        """The mean squared error of brick number k, of its normalised values."""
        return self.sampler.bricks[k].mean_squared_error(self.network(k))


def _copy_rows(target: list[torch.Tensor], source: list[torch.Tensor], networks: list[int]) -> None:
    """Copy the rows of these networks from one state to another."""
    if networks:
        rows = torch.tensor(networks, device=source[0].device)
        for to, of in zip(target, source, strict=True):
            to[rows] = of[rows]
