"""Fit a network to the samples of a volume: the loop, its states, the starts that compete.

Source: Lu et al. 2021, section 3 (the loss with its gradient term).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from siren import HIGHEST_WAVE, OMEGA_0, FieldNet, SirenConfig, start_as_axis_waves
from training import processes
from training.gradient import LossGradient
from training.recipe import CHECK_STEPS, Recipe, psnr_of
from training.recovery import Action, Recovery
from training.sampler import VoxelSampler
from training.weights import TrainedWeights

STARTS = 3  # initial networks that compete in the brief fit; the one with the lowest loss continues
TRIAL_STEPS = 200  # no competition if the brief fit has fewer steps
TRIED_NEURONS = 24  # no competition for wider networks; their result hardly depends on the start
SHORTER_WAVES = 2, 4  # times the frequency: fine detail alone looks like noise to a network of long waves


def loss_with_gradient(
    net: FieldNet, x: torch.Tensor, values: torch.Tensor, gradients: torch.Tensor, grad_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(total, value) loss: value MSE + grad_lambda x MSE of the network's analytic gradient. Paper, section 3.

    x: (n, d_in); values: (n, d_out); gradients: (n, d_out, d_in), all normalised; NaN where there is none to learn.
    """
    x = x.requires_grad_()
    predicted = net(x)
    slopes = [torch.autograd.grad(predicted[:, c].sum(), x, create_graph=True)[0] for c in range(predicted.shape[1])]
    value_loss = functional.mse_loss(predicted, values)
    slopes = torch.stack(slopes, dim=1)
    gradients = torch.where(gradients.isnan(), slopes.detach(), gradients)
    return value_loss + grad_lambda * functional.mse_loss(slopes, gradients), value_loss


class Fit:
    """The fit of a network to the samples of a volume, on one device.

    The fit trains `net` in place, but for the linear layers before `first_trained_layer`. Its result, at any time, is
    `averaged_net`: the network of weights averaged over the latest steps. It is better than the latest network by
    decibels while the learning rate is high, and the same at the end.

    seed: of the order of the samples. n_threads: of the CPU; the result does not depend on it. other_starts: further
    initial networks; the brief fit is run from each, and the best of them goes on. short_wave_starts: initial networks
    of shorter waves, tried one after the other when the fit collapses to a constant. errors: (voxels,) the squared
    error of each voxel when it was last seen, updated in place; None for those of a constant.
    """

    def __init__(
        self,
        net: FieldNet,
        sampler: VoxelSampler,
        recipe: Recipe,
        seed: int,
        first_trained_layer: int = 0,
        n_threads: int = 1,
        other_starts: Sequence[FieldNet] = (),
        short_wave_starts: Sequence[FieldNet] = (),
        errors: torch.Tensor | None = None,
    ):
        self.net, self.sampler, self.recipe, self.seed = net, sampler, recipe, seed
        self.steps_per_pass = math.ceil(sampler.n_voxels / recipe.batch)
        self.n_steps, self.n_brief = recipe.count_steps(sampler.n_voxels)
        self.trained = TrainedWeights(net, recipe.optimizer, first_trained_layer)
        self.averaged_net = self.trained.averaged_net
        batch = math.ceil(sampler.n_voxels / self.steps_per_pass)
        self.loss_gradient = LossGradient(
            net, batch, first_trained_layer, n_threads, is_clipped=recipe.schedule == "power"
        )

        # By which voxels are drawn; a streamed field has no room for that.
        self.errors: torch.Tensor | None = None
        if recipe.by_error and isinstance(sampler, VoxelSampler):
            self.errors = sampler.deviations() if errors is None else errors
        self.density: torch.Tensor | None = None
        self.judging_voxels = sampler.judging_voxels()  # the voxels that `average` is judged by
        self.step, self.seconds = 0, 0.0
        self.loss = sampler.variance  # of `average`, as last judged; at first that of a constant
        self.start = self._capture()
        self.best = self.start  # of the states judged
        self.other_starts, self.short_wave_starts = (
            [net.state_dict() for net in nets] for nets in (other_starts, short_wave_starts)
        )
        # In steps the rate falls so low that a fit stalls long before it is good.
        can_collapse = recipe.schedule == "power"
        self.recovery = Recovery(
            sampler.variance, self.n_brief, len(other_starts), len(short_wave_starts), can_collapse
        )

    # --- what happens at every step ---

    def run(self, on_step: Callable[[Fit], bool | None] = lambda fit: None) -> None:
        """Fit to the end. `on_step(self)` is told of every step done; it ends the fit by returning True.

        A fit that goes wrong in spite of all recoveries, or is interrupted when it does, ends in its best state.
        """
        is_ended = False
        try:
            is_ended = self._run(on_step)
        finally:
            if not is_ended:
                self.loss = self._judge()
                if self.recovery.has_diverged(self.loss):
                    self._restore(self.best)

    def _run(self, on_step: Callable[[Fit], bool | None]) -> bool:
        """As `run`; whether `on_step` ended the fit."""
        started = time.monotonic() - self.seconds
        while self.progress < 1:
            index, first = divmod(self.step, self.steps_per_pass)
            if first == 0 and self.errors is not None:
                self._set_density(self.sampler.density(self.errors))
            for batch in self.sampler.batches(self.seed, index, self.steps_per_pass, first, self.density):
                self._take_step(batch)
                self.seconds = time.monotonic() - started
                if self.recipe.max_seconds is not None:
                    self.seconds = processes.broadcast_first(self.seconds)
                went_back = self.is_judged and self._recover_if_needed()
                if on_step(self):
                    return True
                if went_back or self.progress >= 1:
                    break
        return False

    @property
    def progress(self) -> float:
        """The part of the fit that is done, 0 to 1."""
        if self.recipe.max_seconds is not None:
            return min(self.seconds / self.recipe.max_seconds, 1.0)
        return self.step / self.n_steps

    @property
    def is_judged(self) -> bool:
        """Whether `loss` is of this very step."""
        return self.step % CHECK_STEPS == 0

    @property
    def psnr(self) -> float:
        """PSNR of `average` in dB, as last judged, every CHECK_STEPS steps, by some thousand voxels."""
        return psnr_of(self.loss)

    def _rate(self) -> float:
        return self.recipe.rate(self.step, self.sampler.n_voxels, self.progress) * 0.5**self.recovery.n_halvings

    def _take_step(self, batch: torch.Tensor) -> None:
        rate = self._rate()
        flat = processes.split_batch(batch)
        x, values = self.sampler.samples(flat)
        if self.density is not None:
            self.loss_gradient(x, values, 1 / self.density[flat].to(x.device))
            squares = processes.gather_batch(self.loss_gradient.squares, len(batch)).to(self.errors.device)
            self.errors[batch] = torch.lerp(self.errors[batch], squares.nan_to_num(4.0).clamp_(max=4.0), 0.5)
        elif self.recipe.grad_lambda == 0:
            self.loss_gradient(x, values)
        else:
            self.trained.gradient.zero_()
            loss_with_gradient(self.net, x, values, self.sampler.slopes(flat), self.recipe.grad_lambda)[0].backward()
        processes.average_over_processes(self.trained.gradient, weight=len(flat))
        self.step += 1
        self.trained.take_step(rate, self.step)

    # --- recovery and checkpoints ---

    @torch.no_grad()
    def _judge(self) -> float:
        """Mean squared error of `average`, within the values' range: an estimate that no luck of a batch disturbs."""
        x, values, weights = self.judging_voxels
        return float(((self.averaged_net(x).clamp_(-1, 1) - values).square().mean(1) * weights).mean())

    def _set_density(self, density: torch.Tensor) -> None:
        self.density, self.judging_voxels = density, self.sampler.judging_voxels(density)

    def _recover_if_needed(self) -> bool:
        """Judge the averaged network, and do what `recovery` says; whether that is to restore an earlier state."""
        before, self.loss = self.loss, processes.broadcast_first(self._judge())
        if self.loss < self.recovery.best_loss:
            self.best = self._capture()
        action = self.recovery.judge(before, self.loss, self.step, self.progress)
        if action in (Action.START, Action.SHORTER_WAVES):
            self.best = self.start
        if action is Action.NEXT_START:
            self._start_from(self.other_starts[-1 - self.recovery.n_other_starts])
        elif action is Action.SHORTER_WAVES:
            self._start_from(self.short_wave_starts[-1 - self.recovery.n_short_wave_starts])
        elif action is not Action.GO_ON:
            self._restore(self.best)
        return action is not Action.GO_ON

    def _start_from(self, network: dict) -> None:
        self._restore(self.start | {"network": network, "average": network})

    def _capture(self) -> dict:
        return copy.deepcopy(
            {
                "step": self.step,
                "network": self.net.state_dict(),
                "average": self.averaged_net.state_dict(),
                "optimizers": [optimizer.state for optimizer in self.trained.optimizers],
                "loss": self.loss,
            }
        )

    def _restore(self, state: dict) -> None:
        state = copy.deepcopy(state)
        self.step = state["step"]
        self.net.load_state_dict(state["network"])
        self.averaged_net.load_state_dict(state["average"])
        for optimizer, saved in zip(self.trained.optimizers, state["optimizers"], strict=True):
            for name, tensor in optimizer.state.items():
                tensor.copy_(saved[name])
        self.loss = state["loss"]

    def state_dict(self) -> dict:
        """Everything from which `load_state_dict` continues to the same result."""
        return {
            "now": self._capture(),
            "best": self.best,
            **self.recovery.state_dict(),
            "seconds": self.seconds,
            "errors": self.errors,
            "density": self.density,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict` of a fit of the same network, field, recipe and seed."""
        self.best, self.seconds = state["best"], state["seconds"]
        self.recovery.load_state_dict(state)
        if self.errors is not None:
            self.errors.copy_(state["errors"])
        if state["density"] is not None:
            self._set_density(state["density"].to(self.errors))
        self._restore(state["now"])


def new_fit(
    config: SirenConfig,
    sampler: VoxelSampler,
    recipe: Recipe,
    seed: int,
    first_omega: float | None = None,
    n_threads: int = 1,
) -> Fit:
    """The fit of a new network, drawn by `seed`, to a field; of the best of several where that is worth its time.

    first_omega: frequency of a first layer drawn at random, as in the original; without it, `lay_waves`, which is
    better by 0.1 to 10 dB on most fields, and at worst half a decibel worse.
    """
    generator, mirrors = torch.Generator().manual_seed(seed), sampler.mirrors()
    is_tried = config.n_neurons <= TRIED_NEURONS and recipe.count_steps(sampler.n_voxels)[1] >= TRIAL_STEPS

    def drawn(highest_wave: float) -> FieldNet:
        net = FieldNet(config, generator, first_omega or OMEGA_0)
        if first_omega is None:
            start_as_axis_waves(net, mirrors, highest_wave)
        return net.to(sampler.device)

    net, *other_starts = [drawn(HIGHEST_WAVE) for _ in range(STARTS if is_tried else 1)]
    short_wave_starts = [] if first_omega else [drawn(factor * HIGHEST_WAVE) for factor in SHORTER_WAVES]
    return Fit(
        net, sampler, recipe, seed, n_threads=n_threads, other_starts=other_starts, short_wave_starts=short_wave_starts
    )
