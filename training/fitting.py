"""Fits a network to the samples of a volume: what is judged and recovered in the loop, and the saved states.

Source: Lu et al. 2021, section 3 (the loss with its gradient term).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from field.bricks import Bricks
from siren import FieldNet
from training import processes
from training.checkpoint_checks import check_state_dict
from training.loop import Loop
from training.recipe import CHECK_STEPS, Recipe, psnr_of
from training.recovery import Action, Recovery
from training.sampler import VoxelSampler
from training.starts import Start, new_networks
from training.step import StepFunction
from training.weights import vector_of

COMPARED = 20  # times that a short fit with a target is compared with it


class Fit(Loop):
    """The fit of a network to the samples of a volume, on one device. `run` trains it.

    The fit trains `net` in place, except for the linear layers before `first_trained_layer`. The result, at any time,
    is `averaged_net`: its weights are the average over the latest steps (Polyak averaging). While the learning rate is
    high, `averaged_net` is several dB better than `net`. At the end, both are equally good.

    seed: see `Loop`. n_threads: CPU threads; their number does not change the result.
    short_wave_starts: initial networks of shorter waves; each collapse to a constant uses up one. errors: (voxels,)
    running mean of each voxel's squared error, updated in place; None starts with the errors of a constant.

    variance: the mean squared error of a constant, of normalised values.
    """

    def __init__(
        self,
        net: FieldNet,
        sampler: VoxelSampler,
        recipe: Recipe,
        seed: int,
        first_trained_layer: int = 0,
        n_threads: int = 1,
        short_wave_starts: Sequence[FieldNet] = (),
        errors: torch.Tensor | None = None,
    ):
        # Importance sampling draws voxels by these errors. A streamed volume has no memory for one error per voxel.
        if not (recipe.draws_by_error and isinstance(sampler, VoxelSampler)):
            errors = None
        elif errors is None:
            errors = sampler.deviations()
        super().__init__(StepFunction(net, sampler, recipe, first_trained_layer, n_threads, errors), recipe, seed)
        self.net, self.averaged_net = net, self.trained.averaged_net
        self.config, self.variance = net.config, sampler.variance
        self.trial_steps = 0.0  # steps that take as long as the trials before the fit took
        self.trial_psnr = -math.inf  # PSNR of the network that goes on from a trial, dB
        self.loss = self.variance  # MSE of `averaged_net` when last judged; at first the MSE of a constant
        self.start = self._capture()
        self.best = self.start  # the best state that was judged
        self.short_wave_starts = short_wave_starts
        # With schedule "step", the learning rate falls so low that a fit can stall without a collapse.
        self.recovery = Recovery(self.variance, len(short_wave_starts), can_collapse=recipe.schedule == "power")

    @property
    def psnr(self) -> float:
        """PSNR of `averaged_net` in dB, estimated every CHECK_STEPS steps from a few thousand voxels."""
        return psnr_of(self.loss)

    def has_reached(self, is_reached: Callable[[float], bool]) -> bool:
        """Whether a target is reached, as `is_reached(estimated PSNR in dB)` tells.

        It is asked at the steps that are judged, and COMPARED times in a short fit.
        """
        if self.is_judged:
            return is_reached(self.psnr)
        is_short = self.recipe.max_seconds is None and self.n_steps < COMPARED * CHECK_STEPS
        is_asked = is_short and self.step % math.ceil(self.n_steps / COMPARED) == 0
        return is_asked and is_reached(psnr_of(processes.broadcast_first(self._judge())))

    def _rate(self) -> float:
        """The learning rate of this step: that of the recipe, halved for each halving by a recovery."""
        return super()._rate() * 0.5**self.recovery.n_halvings

    def continue_from(self, trial: Fit) -> None:
        """Start with the averaged network of another fit to the same volume, and with its errors."""
        self._start_with(trial.trained.averaged_weights)
        self.start = self.best = self._capture()
        if self.errors is not None:
            self.errors.copy_(trial.errors)

    # --- the result so far: BrickedFit has the same properties and methods ---

    @property
    def n_passes(self) -> float:
        """The passes over the volume so far."""
        return self.step / self.steps_per_pass

    def bricks(self) -> Bricks:
        """The network so far, the one brick."""
        return Bricks.of(self.averaged_net)

    # --- recovery and checkpoints ---

    @property
    def is_finite(self) -> bool:
        """Whether all weights are finite: a fit that has just diverged is not."""
        return bool(torch.isfinite(self.trained.weights).all())

    def identity(self) -> dict:
        """What must be equal when the fit continues: volume, network, recipe and seed."""
        volume = {"shape": list(self.sampler.shape), "values_crc32": self.sampler.crc32}
        return volume | dataclasses.asdict(self.net.config) | dataclasses.asdict(self.recipe) | {"seed": self.seed}

    def judge_on(self, n_voxels: int) -> None:
        """Set `loss` to the MSE at so many voxels: with more voxels it has less noise."""
        density = None if self.errors is None else self.sampler.density(self.errors)
        self.judging_voxels = self.sampler.judging_voxels(density, n_voxels)
        self.loss = self._judge()

    @torch.no_grad()
    def _judge(self) -> float:
        """MSE of the clipped output of `averaged_net` at the judging voxels, free of the noise of single batches."""
        x, values, weights = self.judging_voxels
        return float(((self.averaged_net(x).clamp_(-1, 1) - values).square().mean(1) * weights).mean())

    def _recover_if_needed(self) -> bool:
        """Judge the averaged network and do what `recovery` decides."""
        before, self.loss = self.loss, processes.broadcast_first(self._judge())
        if self.loss < self.recovery.best_loss:
            self.best = self._capture()
        action = self.recovery.decide(before, self.loss, self.step, self.progress)
        if action in (Action.START, Action.SHORTER_WAVES):
            self.best = self.start
        if action is Action.SHORTER_WAVES:
            self._start_with(vector_of(self.short_wave_starts[-1 - self.recovery.n_short_wave_starts]))
        elif action is not Action.GO_ON:
            self._restore(self.best)
        return action is not Action.GO_ON

    def _settle(self) -> None:
        """Return to the best state if the fit has diverged."""
        self.loss = self._judge()
        if self.recovery.has_diverged(self.loss):
            self._restore(self.best)

    def _capture(self) -> dict:
        tensors = [tensor.clone() for tensor in self.trained.state]
        return {"step": self.step, "loss": self.loss, "tensors": tensors}

    @torch.no_grad()  # a tensor of a file may want a gradient
    def _restore(self, state: dict) -> None:
        self.step, self.loss = state["step"], state["loss"]
        for own, saved in zip(self.trained.state, state["tensors"], strict=True):
            own.copy_(saved)

    def _start_with(self, weights: torch.Tensor) -> None:
        """Go back to the start, but with these weights."""
        self._restore(self.start)
        self.trained.weights.copy_(weights)
        self.trained.averaged_weights.copy_(weights)

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to continue to the same result."""
        return {
            "now": self._capture(),
            "best": self.best,
            "start": self.start,
            **self.recovery.state_dict(),
            "seconds": self.seconds,
            "errors": self.errors,
            "density": self.density,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from the `state_dict` of a fit with the same network, volume, recipe and seed."""
        check_state_dict(self, state)
        self.start, self.best, self.seconds = state["start"], state["best"], state["seconds"]
        self.recovery.load_state_dict(state)
        for found in (self.start, self.best):
            self._restore(found)  # so that a damaged one is noticed now
        if self.errors is not None:
            self.errors.copy_(state["errors"])
        if state["density"] is not None:
            self._set_density(state["density"].to(self.errors, copy=True))
        self._restore(state["now"])


def new_fit(start: Start, sampler: VoxelSampler, recipe: Recipe, n_threads: int = 1) -> Fit:
    """The fit of a new network to the volume of `sampler`."""
    net, *short_wave_starts = [net.to(sampler.device) for net in new_networks(start, sampler)]
    return Fit(net, sampler, recipe, start.seed, n_threads=n_threads, short_wave_starts=short_wave_starts)
