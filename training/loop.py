"""The loop of a fit: step after step, pass after pass, with a judgement every CHECK_STEPS steps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import torch

from training import processes
from training.recipe import CHECK_STEPS, Recipe
from training.step import StepFunction


class Loop:
    """The steps of a fit: of one network, `Fit`, or of the networks of a stack, `StackedFit`.

    These have: `_recover_if_needed()`, which judges the averaged weights, recovers what has failed, and returns whether
    the fit is at another step now; `_settle()`, which makes the best of a fit that ends or is interrupted; and `psnr`,
    the latest estimate, in dB. seed: fixes the order of the samples; of a stack, one for each network.
    """

    def __init__(self, step_function: StepFunction, recipe: Recipe, seed: int | Sequence[int]):
        self.step_function, self.recipe, self.seed = step_function, recipe, seed
        self.sampler, self.trained, self.errors = step_function.sampler, step_function.trained, step_function.errors
        self.steps_per_pass = recipe.steps_per_pass(self.sampler.n_present)
        self.n_steps = recipe.count_steps(self.sampler.n_present)
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: Callable[[Loop], bool | None] = lambda fit: None) -> None:
        """Train to the end. `on_step(self)` is called after every step; it ends the fit by returning True."""
        started = time.monotonic() - self.seconds
        is_ended = False
        try:
            while self.progress < 1 and not is_ended:
                index, first = divmod(self.step, self.steps_per_pass)
                if first == 0 and self.errors is not None:
                    self._set_density(self.sampler.density(self.errors))
                for batch in self.sampler.batches(self.seed, index, self.steps_per_pass, first, self.density):
                    self._take_step(batch)
                    self.seconds = time.monotonic() - started
                    if self.recipe.max_seconds is not None:
                        self.seconds = processes.broadcast_first(self.seconds)
                    went_back = self.is_judged and self._recover_if_needed()
                    is_ended = on_step(self)
                    if is_ended or went_back or self.progress >= 1:
                        break
        finally:
            if not is_ended:
                self._settle()

    @property
    def progress(self) -> float:
        """The fraction of the fit that is done, 0 to 1."""
        return self.recipe.progress(self.step, self.n_steps, self.seconds)

    @property
    def is_judged(self) -> bool:
        """Whether the fit was judged at the current step."""
        return self.step % CHECK_STEPS == 0

    def _rate(self) -> float:
        """The learning rate of this step."""
        return self.recipe.rate(self.step, self.sampler.n_present, self.progress)

    def _take_step(self, batch: torch.Tensor) -> None:
        rate = self._rate()
        self.step += 1
        self.step_function(batch, rate, self.step, self.psnr)

    @property
    def density(self) -> torch.Tensor | None:
        """The density (voxels,) by which the current pass draws voxels, or None."""
        return self.step_function.density

    def _set_density(self, density: torch.Tensor) -> None:
        self.step_function.set_density(density)
        vars(self).pop("judging_voxels", None)

    @functools.cached_property
    def judging_voxels(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The voxels that judge the averaged weights, drawn as those of the current pass.

        They are drawn when they are asked for: a small volume has several passes from one judgement to the next.
        """
        return self.sampler.judging_voxels(self.density)
