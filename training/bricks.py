"""Fits a large volume brick by brick. Each brick is a volume of its own, with a small network of its own.

One network costs voxels x parameters, and both grow with the volume. Bricks of equal numbers of parameters make the
cost linear. Neighbouring bricks share one layer of voxels. How a field joins its bricks is defined in field/blob.py.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from cli.progress import Progress
from field.bricks import Bricks, Cut
from field.layers import parameter_shapes
from field.neural_field import NeuralField
from siren import LEAST_NEURONS, SirenConfig, count_parameters
from training import processes
from training.brick_fits import PILOT_PASSES, BrickFits, Trained
from training.cutting import MOST_SHARE, shared_out, width_for
from training.fitting import is_like
from training.network_files import brick_state
from training.recipe import BATCH, psnr_of, training_work
from training.shapes import HEAD_START
from utils import VolumeHeader

BRICK_DEPTHS, SAMPLE = (5, 3), 4  # layers that compete, the most first, and bricks in which they do
# Steps of the pilots that compare depths, but at most a part of the fit: after a few steps, all networks are alike.
PILOT_STEPS, PILOT_SHARE = 150, 1 / 8


class BrickedFit:
    """The fit of a volume in bricks. `run` trains what is not `done` yet; `bricks` is the result so far.

    budget: the parameters that all networks may have together. fields: of the networks' SirenConfig, but the width.
    Without the depth, the best of BRICK_DEPTHS that the budget allows is chosen in a few bricks with much detail.
    """

    def __init__(self, fits: BrickFits, budget: float, fields: dict):
        self.fits, self.survey, self.fields = fits, fits.survey, fields
        self.configs: list[SirenConfig | None] = []
        self.done: dict[int, Trained] = {}
        self.n_voxels_done, self.error_done = 0, 0.0  # voxels and squared error of these bricks, summed
        self.seconds = 0.0
        self.n_trained = int(np.count_nonzero(~self.survey.is_constant))  # bricks that are not constant
        self.budget = min(budget, max(self.most_parameters, self._least_parameters(self._all_depths[0])))
        self.depths = [k for k in self._all_depths if self._least_parameters(k) <= self.budget] or self._all_depths[-1:]
        self.n_layers = self.depths[0]
        typical = self._config(width_for(self.budget / max(self.n_trained, 1), self._form))
        self.recipe = fits.recipe_for(int(self.survey.n_voxels.mean()), typical)  # of a brick in the middle

    # --- the training ---

    def run(self, on_done: Callable[[BrickedFit], None] = lambda fit: None) -> None:
        """Train all bricks that are not done. `on_done(self)` is called after each."""
        started = time.monotonic() - self.seconds
        with Progress("training", self._work_ahead()) as progress:
            self.plan(progress)
            self.seconds = time.monotonic() - started
            left = {k: config for k, config in enumerate(self.configs) if config and k not in self.done}
            recipes = self.fits.recipes(left, self.seconds)
            progress.total = progress.done + sum(self.fits.work_of(left, recipes).values()) / processes.count()

            def keep(number: int, trained: Trained) -> dict[str, str]:
                self._add(number, trained)
                self.seconds = time.monotonic() - started
                on_done(self)
                return {"bricks": f"{len(self.done)} of {self.n_trained}", "PSNR": f"{self.psnr:.1f} dB"}

            for number, trained in self.fits.train_bricks(left, recipes, progress, keep).items():
                self._add(number, trained)  # those of other processes, too
        self.seconds = time.monotonic() - started

    def _add(self, number: int, trained: Trained) -> None:
        """Take a brick as done."""
        if number not in self.done:
            n_voxels = int(self.survey.n_voxels[number])
            self.n_voxels_done += n_voxels
            self.error_done += trained.error * self.fits.scale(number) * n_voxels
        self.done[number] = trained

    def _work_ahead(self) -> float:
        """About how much work the brief fits and the training are, for each process of the run."""
        n_trained, n_voxels = max(self.n_trained, 1), self.survey.n_voxels[~self.survey.is_constant].sum()
        passes = self.recipe.n_passes + PILOT_PASSES + self._depth_passes * SAMPLE / n_trained
        return training_work(passes * n_voxels, self.budget / n_trained) / processes.count()

    def plan(self, progress: Progress) -> None:
        """Settle the network of each brick, unless it is settled: as wide as a brief fit shows that it needs to be.

        The error of a network of n parameters falls about as 1 / n. The sum of all errors, for so many parameters in
        all, is then least where every network has sqrt(error x n) parameters. With a time limit there are no brief
        fits: the detail alone tells what a brick needs, and the networks are as deep as the budget allows.
        """
        if self.configs:
            return
        need = np.where(self.survey.is_constant, 0.0, np.sqrt(self.survey.detail + 1e-12))
        if self.recipe.max_seconds is None:
            errors = {} if "n_layers" in self.fields else self._choose_depth(need, progress)
            pilots = {k: config for k, config in enumerate(self._shared_out(need)) if config}
            left = {k: config for k, config in pilots.items() if k not in errors}
            errors |= self.fits.pilot_errors(left, progress)
            for k, error in errors.items():
                need[k] = math.sqrt((error + 1e-12) * count_parameters(pilots[k]))
        self.configs = self._shared_out(need)

    def _choose_depth(self, need: np.ndarray, progress: Progress) -> dict[int, float]:
        """Settle the depth: the best in the bricks with the most detail. Returns their `pilot_errors`.

        Returns none if their pilots were longer than those that share out the parameters: the longer a pilot, the more
        its error depends on luck.
        """
        found, passes = {}, self._depth_passes
        for depth in self.depths:
            self.n_layers = depth
            configs = self._shared_out(need)
            most = [k for k in np.argsort(-need, kind="stable")[:SAMPLE].tolist() if configs[k]]
            found[depth] = self.fits.pilot_errors({k: configs[k] for k in most}, progress, passes)

        def score(depth: int) -> float:  # a shallow network learns faster at first, see training/shapes.py
            return psnr_of(sum(found[depth].values())) - HEAD_START.get(depth, 0.0)

        self.n_layers = max(found, key=score)
        return found[self.n_layers] if passes == PILOT_PASSES else {}

    @property
    def _depth_passes(self) -> float:
        """The passes of the pilots that compare depths."""
        steps_per_pass = math.ceil(int(self.survey.n_voxels.mean()) / (BATCH // 2))
        return max(PILOT_PASSES, min(PILOT_STEPS / steps_per_pass, PILOT_SHARE * self.recipe.n_passes))

    def _shared_out(self, need: np.ndarray) -> list[SirenConfig | None]:
        return shared_out(self.budget, need, self.survey.n_voxels, self._form)

    @property
    def _form(self) -> dict:
        """The fields of the networks' SirenConfig, but the width."""
        return self.fields | {"n_layers": self.n_layers}

    def _config(self, width: int) -> SirenConfig:
        return SirenConfig(width, **self._form)

    # --- how far it is, and what there is ---

    @property
    def psnr(self) -> float:
        """PSNR in dB of the bricks that are done, over the range of the whole volume."""
        return psnr_of(self.error_done / self.n_voxels_done) if self.done else math.nan

    @property
    def progress(self) -> float:
        """The fraction of the training that is done, 0 to 1."""
        work = {number: self.fits.work(number, config) for number, config in enumerate(self.configs) if config}
        return sum(work[number] for number in self.done) / max(sum(work.values()), 1.0)

    @property
    def least_parameters(self) -> int:
        """The number of parameters of all networks where each has the least width and the least depth."""
        return self._least_parameters(self._all_depths[-1])

    @property
    def most_parameters(self) -> float:
        """The number of parameters that all networks may have together, about."""
        return MOST_SHARE * float(self.survey.n_voxels[~self.survey.is_constant].sum())

    @property
    def _all_depths(self) -> Sequence[int]:
        """The depths that the networks may have, the most layers first."""
        return [self.fields["n_layers"]] if "n_layers" in self.fields else BRICK_DEPTHS

    def _least_parameters(self, depth: int) -> int:
        smallest = SirenConfig(LEAST_NEURONS, **self.fields | {"n_layers": depth})
        return self.n_trained * count_parameters(smallest)

    @property
    def n_passes(self) -> float:
        """The passes over the volume so far."""
        return self.progress * self.recipe.n_passes

    @property
    def variance(self) -> float:
        """The mean squared error of a constant, of normalised values."""
        return self.survey.variance

    @property
    def config(self) -> SirenConfig:
        """The settings of the widest network."""
        found = [config for config in self.configs if config]
        return max(found, key=lambda config: config.n_neurons, default=self._config(LEAST_NEURONS))

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases of the networks so far."""
        return sum(count_parameters(self.configs[number]) for number in self.done)

    def bricks(self) -> Bricks:
        """The networks so far. A brick that is not done is constant: its mean."""
        numbers = range(len(self.survey.low))
        is_known = self.survey.is_constant[:, None] | np.array([[number in self.done] for number in numbers])
        ends = [np.where(is_known, end, self.survey.mean) for end in (self.survey.low, self.survey.high)]
        done = self.done
        nets = [(dataclasses.asdict(self.configs[k]), done[k].weights) if k in done else None for k in numbers]
        return Bricks(Cut(self.fits.counts, *ends, self.fits.mirrors), nets)

    def weights(self) -> dict[str, torch.Tensor]:
        """The result so far, as thenet.pth holds it."""
        return brick_state(self.bricks())

    def field(self, header: VolumeHeader, device: torch.device, n_threads: int) -> NeuralField:
        """The result so far as a compressed field. header: of the volume."""
        return NeuralField.of_bricks(header, self.bricks(), device, n_threads)

    # --- checkpoints ---

    @property
    def is_finite(self) -> bool:
        """Whether no weight has just diverged: what is done has not."""
        return True

    def identity(self) -> dict:
        """What must be equal when the fit continues, beside the options of the run."""
        volume = {"shape": list(self.fits.header.shape), "values_crc32": self.survey.crc32}
        volume |= {"counts": list(self.fits.counts), "mirrors": list(self.fits.mirrors)}
        volume |= {"target_psnr": self.fits.target_psnr}  # at which a brick that is done has ended
        return volume | self.fields | dataclasses.asdict(self.recipe) | {"seed": self.fits.seed}

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to continue to the same result."""
        done = {k: (torch.from_numpy(in_one(trained.weights)), trained.error) for k, trained in self.done.items()}
        widths = [config.n_neurons if config else 0 for config in self.configs]
        return {"n_layers": self.n_layers, "widths": widths, "done": done, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        """Add what is done in the `state_dict` of a fit with the same identity. Raises ValueError for a damaged one."""
        widths, done, seconds, n_layers = (state[name] for name in ("widths", "done", "seconds", "n_layers"))
        if n_layers not in self._all_depths:
            raise ValueError("n_layers: expected one that is tried, found another number")
        if not (isinstance(seconds, float) and 0 <= seconds < math.inf):
            raise ValueError("seconds: expected a finite number, found another value")
        self.n_layers = n_layers
        most = max(width_for(self.budget, self._form), LEAST_NEURONS)
        if [0 < width <= most for width in widths] != (~self.survey.is_constant).tolist():
            raise ValueError("expected a width for each brick that is not constant")
        configs = [self._config(width) if width else None for width in widths]
        for number, (weights, error) in done.items():
            if not (is_like(torch.empty(count_parameters(configs[number])), weights) and 0 <= error < math.inf):
                raise ValueError("expected the finite weights of a brick and its error")
        self.configs, self.seconds = configs, max(seconds, self.seconds)
        for number, (weights, error) in done.items():
            self._add(number, Trained(by_name(weights.numpy(), configs[number]), error))


def in_one(weights: dict[str, np.ndarray]) -> np.ndarray:
    """The weights of a network in one vector: a file of many bricks has far fewer arrays then."""
    return np.concatenate([part.ravel() for part in weights.values()])


def by_name(vector: np.ndarray, config: SirenConfig) -> dict[str, np.ndarray]:
    """The weights of a network that are `in_one` vector."""
    shapes = parameter_shapes(**dataclasses.asdict(config))
    parts = np.split(vector, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
