"""Fit a network to the samples of a volume: recipes, schedules, the loop, checkpoints.

Source: Lu et al. 2021, section 3 (the loss with its gradient term).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from siren import HIGHEST_WAVE, OMEGA_0, FieldNet, SirenConfig, linear_layers, start_as_axis_waves
from training import processes
from training.gradient import LossGradient
from training.optimizers import Adam, Muon
from training.recovery import Action, Recovery
from training.sampler import VoxelSampler

BATCH = 2048  # samples a step; fewer make noisier steps that are no faster, more take more passes to the same quality
STEPS = 16_000  # steps of the default fit of a large volume
MIN_PASSES, MAX_PASSES = 5, 45  # passes of the default fit; small volumes gain little from more
MIN_STEPS = 1_500  # steps of the default fit of the smallest volumes, for which 45 passes are too few
WARM_UP_STEPS = 50
BRIEF = 0.03  # share of the steps that make a brief fit first: the rate falls to zero, the network is fair at its end
STARTS = 3  # initial networks that compete in the brief fit; the one with the lowest loss continues
TRIAL_STEPS = 200  # no competition if the brief fit has fewer steps
TRIED_NEURONS = 24  # no competition for wider networks; their result hardly depends on the start
CHECK_STEPS = 100  # steps between two looks at the loss, which wait for the device
AVERAGED_STEPS = 50  # steps over which the weights are averaged
NORM_LIMIT = 1.3  # of a hidden matrix, relative to its norm at initialisation
SHORTER_WAVES = 2, 4  # times the frequency: fine detail alone looks like noise to a network of long waves


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to fit.

    n_passes: samples / voxels. batch: samples a step. optimizer: "muon" (for the hidden matrices; Adam for the rest) or
    "adam". schedule: "power", lr (1 - progress)^2, after a brief fit of the same kind, or "step", lr times lr_decay
    every pass_decay passes, as in the original scripts. grad_lambda: weight of the gradient term. max_seconds: when
    given, progress is the part of that time gone by, and n_passes does not count.
    """

    n_passes: float
    batch: int
    lr: float
    optimizer: str = "muon"
    schedule: str = "power"
    pass_decay: float = 20.0
    lr_decay: float = 0.2
    grad_lambda: float = 0.0
    max_seconds: float | None = None

    def count_steps(self, n_voxels: int) -> tuple[int, int]:
        """Steps of the fit, and of the brief fit that it begins with: a multiple of CHECK_STEPS, 0 for a short fit."""
        n_steps = math.ceil(self.n_passes * math.ceil(n_voxels / self.batch))
        has_brief = self.schedule == "power" and self.max_seconds is None
        return n_steps, round(BRIEF * n_steps / CHECK_STEPS) * CHECK_STEPS if has_brief else 0

    @property
    def by_error(self) -> bool:
        """Whether voxels are drawn more often where the error is large."""
        return self.schedule == "power" and self.grad_lambda == 0


def default_recipe(
    n_voxels: int,
    config: SirenConfig,
    optimizer: str = "muon",
    n_passes: float | None = None,
    max_seconds: float | None = None,
) -> Recipe:
    """The recipe for a volume and a network, from what is known before the fit.

    By default so many passes as make STEPS steps, but 5 to 45, or MIN_STEPS steps where these are more. The rate is the
    highest that is safe: in a wider or deeper network the same change of every weight changes the output more. A fit
    that is short, or may be, takes half the batch: there, steps count for more than gradients of little noise do.
    """
    if n_passes is None:
        n_passes = min(max(round(STEPS * BATCH / n_voxels), MIN_PASSES), MAX_PASSES)
        n_passes = max(n_passes, least_passes(n_voxels))
    is_short = max_seconds is not None or n_passes * math.ceil(n_voxels / BATCH) < MIN_STEPS
    batch = BATCH // 2 if is_short else BATCH
    rate = (0.4 if optimizer == "muon" else 0.2) / (config.n_neurons * max(config.n_layers, 2))
    return Recipe(n_passes=n_passes, batch=batch, lr=rate, optimizer=optimizer, max_seconds=max_seconds)


def least_passes(n_voxels: int) -> int:
    """The number of passes that makes MIN_STEPS steps."""
    return math.ceil(MIN_STEPS / math.ceil(n_voxels / BATCH))


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error of normalised values, whose range is 2."""
    return 10 * math.log10(4 / error) if error else math.inf


def in_one_vector(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One vector of all values. The tensors become views of its parts, so a change of either changes both."""
    vector = torch.cat([tensor.detach().flatten() for tensor in tensors])
    parts = vector.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.data = part.view_as(tensor)
    return vector


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


def trained_parameters(net: FieldNet, first_layer: int) -> tuple[list[nn.Parameter], int]:
    """The parameters of the linear layers from number `first_layer` on, hidden matrices first; the number of these."""
    live = linear_layers(net)[first_layer:]
    hidden = [layer.weight for layer in (live if first_layer else live[1:])[:-1]]
    chosen = {id(p) for p in hidden}
    return hidden + [p for layer in live for p in layer.parameters() if id(p) not in chosen], len(hidden)


class Fit:
    """The fit of a network to the samples of a volume, on one device.

    The fit trains `net` in place, but for the linear layers before `first_layer`. Its result is `average`, at any time:
    the network of weights averaged over the latest steps (Polyak averaging; Polyak and Juditsky, 1992). It is better
    than the latest network by decibels while the learning rate is high, and the same at the end.

    seed: of the order of the samples. n_threads: of the CPU; the result does not depend on it. rivals: other initial
    networks; the brief fit is run from each, and the best of them goes on. fallbacks: initial networks of shorter
    waves, tried one after the other when the fit collapses to a constant. errors: (voxels,) the squared error of each
    voxel when it was last seen, updated in place; None for those of a constant.
    """

    def __init__(
        self,
        net: FieldNet,
        sampler: VoxelSampler,
        recipe: Recipe,
        seed: int,
        first_layer: int = 0,
        n_threads: int = 1,
        rivals: Sequence[FieldNet] = (),
        fallbacks: Sequence[FieldNet] = (),
        errors: torch.Tensor | None = None,
    ):
        self.net, self.sampler, self.recipe, self.seed = net, sampler, recipe, seed
        self.steps_per_pass = math.ceil(sampler.n_voxels / recipe.batch)
        self.n_steps, self.n_brief = recipe.count_steps(sampler.n_voxels)
        self.average = copy.deepcopy(net)
        self._join_parameters(first_layer)
        batch = math.ceil(sampler.n_voxels / self.steps_per_pass)
        self.squared_error = LossGradient(net, batch, first_layer, n_threads, is_clipped=recipe.schedule == "power")
        config = net.config
        # Limits of the Frobenius norm; a network that comes with larger matrices keeps them.
        initial = math.sqrt(2 * config.n_neurons) / config.omega_0
        self.norm_limits = torch.linalg.vector_norm(self.hidden, dim=(1, 2), keepdim=True).clamp_(NORM_LIMIT * initial)

        # By which voxels are drawn; a streamed field has no room for that.
        self.errors: torch.Tensor | None = None
        if recipe.by_error and isinstance(sampler, VoxelSampler):
            self.errors = sampler.deviations() if errors is None else errors
        self.density: torch.Tensor | None = None
        self.probe = sampler.probe()  # the voxels that `average` is judged by
        self.step, self.seconds = 0, 0.0
        self.loss = sampler.variance  # of `average`, as last judged; at first that of a constant
        self.start = self._capture()
        self.best = self.start  # of the states judged
        self.rivals, self.fallbacks = ([net.state_dict() for net in nets] for nets in (rivals, fallbacks))
        # In steps the rate falls so low that a fit stalls long before it is good.
        can_collapse = recipe.schedule == "power"
        self.recovery = Recovery(sampler.variance, self.n_brief, len(rivals), len(fallbacks), can_collapse)

    def _join_parameters(self, first_layer: int) -> None:
        """Lay the parameters out in one vector, likewise their gradients and averages: a step takes few operations."""
        parameters, n_hidden = trained_parameters(self.net, first_layer)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.weights = in_one_vector(parameters)
        self.gradient = in_one_vector([parameter.grad for parameter in parameters])
        self.averaged = in_one_vector(trained_parameters(self.average, first_layer)[0])

        n = self.net.config.n_neurons
        size = n_hidden * n * n
        self.hidden, hidden_gradient = (v[:size].view(n_hidden, n, n) for v in (self.weights, self.gradient))
        if self.recipe.optimizer == "adam":
            self.optimizers = [Adam(self.weights, self.gradient)]
        else:
            muon = [Muon(self.hidden, hidden_gradient)] if n_hidden else []
            self.optimizers = [Adam(self.weights[size:], self.gradient[size:], (0.9, 0.99)), *muon]

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
                    self.seconds = processes.of_first(self.seconds)
                went_back = self.step % CHECK_STEPS == 0 and self._went_back()
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
    def psnr(self) -> float:
        """PSNR of `average` in dB, as last judged, every CHECK_STEPS steps, by some thousand voxels."""
        return psnr_of(self.loss)

    def _rate(self) -> float:
        recipe, progress = self.recipe, self.progress
        halvings = 0.5**self.recovery.n_halvings
        if recipe.schedule == "step":
            n_passes = self.step / self.steps_per_pass
            return recipe.lr * recipe.lr_decay ** (n_passes // recipe.pass_decay) * halvings
        warm_up = WARM_UP_STEPS if recipe.max_seconds else min(WARM_UP_STEPS, max(self.n_steps / 5, 1.0))
        step = self.step - self.n_brief
        if step < 0:
            step, progress = self.step, self.step / self.n_brief
        return recipe.lr * min(1.0, (step + 1) / warm_up) * (1.0 - progress) ** 2 * halvings

    def _take_step(self, batch: torch.Tensor) -> None:
        rate = self._rate()
        flat = processes.share(batch)
        x, values = self.sampler.samples(flat)
        if self.density is not None:
            self.squared_error(x, values, 1 / self.density[flat].to(x.device))
            squares = processes.together(self.squared_error.squares, len(batch)).to(self.errors.device)
            self.errors[batch] = torch.lerp(self.errors[batch], squares.nan_to_num(4.0).clamp_(max=4.0), 0.5)
        elif self.recipe.grad_lambda == 0:
            self.squared_error(x, values)
        else:
            self.gradient.zero_()
            loss_with_gradient(self.net, x, values, self.sampler.slopes(flat), self.recipe.grad_lambda)[0].backward()
        processes.average(self.gradient, weight=len(flat))
        for optimizer in self.optimizers:
            optimizer.step(rate)
        self._limit_norms()
        self.step += 1
        self.averaged.lerp_(self.weights, max(1 / AVERAGED_STEPS, 10 / (9 + self.step)))  # at first over fewer

    def _limit_norms(self) -> None:
        """Scale hidden matrices back to their limits.

        Noise in the gradients makes them grow, until the phases are scrambled and the network can fit but a constant:
        the collapse of sine networks at high learning rates. Held back, they never get there.
        """
        norms = torch.linalg.vector_norm(self.hidden, dim=(1, 2), keepdim=True)
        self.hidden.mul_((self.norm_limits / norms).clamp_(max=1.0))

    # --- recovery and checkpoints ---

    @torch.no_grad()
    def _judge(self) -> float:
        """Mean squared error of `average`, within the values' range: an estimate that no luck of a batch disturbs."""
        x, values, weights = self.probe
        return float(((self.average(x).clamp_(-1, 1) - values).square().mean(1) * weights).mean())

    def _set_density(self, density: torch.Tensor) -> None:
        self.density, self.probe = density, self.sampler.probe(density)

    def _went_back(self) -> bool:
        """Judge the averaged network, and do what `recovery` says; whether that is to restore an earlier state."""
        before, self.loss = self.loss, processes.of_first(self._judge())
        if self.loss < self.recovery.best_loss:
            self.best = self._capture()
        action = self.recovery.judge(before, self.loss, self.step, self.progress)
        if action in (Action.START, Action.SHORTER_WAVES):
            self.best = self.start
        if action is Action.NEXT_START:
            self._start_from(self.rivals[-1 - self.recovery.n_rivals])
        elif action is Action.SHORTER_WAVES:
            self._start_from(self.fallbacks[-1 - self.recovery.n_fallbacks])
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
                "average": self.average.state_dict(),
                "optimizers": [optimizer.state for optimizer in self.optimizers],
                "loss": self.loss,
            }
        )

    def _restore(self, state: dict) -> None:
        state = copy.deepcopy(state)
        self.step = state["step"]
        self.net.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
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

    net, *rivals = [drawn(HIGHEST_WAVE) for _ in range(STARTS if is_tried else 1)]
    fallbacks = [] if first_omega else [drawn(factor * HIGHEST_WAVE) for factor in SHORTER_WAVES]
    return Fit(net, sampler, recipe, seed, n_threads=n_threads, rivals=rivals, fallbacks=fallbacks)
