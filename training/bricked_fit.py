"""Fits a large volume brick by brick. Each brick is a volume of its own, with a small network of its own.

One network costs voxels x parameters, and both grow with the volume. Bricks of equal numbers of parameters make the
cost linear. Neighbouring bricks share one layer of voxels. How a field joins its bricks is defined in field/blob.py.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from cli import console
from cli.progress import Progress
from field.bricks import Bricks, Cut, StoredNetwork
from field.layers import SirenConfig, parameter_shapes
from training import processes
from training.brick_networks import BrickNetworks
from training.checkpoint_checks import check_seconds, is_like
from training.one_brick import FittedBrick
from training.recipe import psnr_of


class BrickedFit:
    """The fit of a volume in bricks. `run` trains what is not `done` yet; `bricks` is the result so far."""

    def __init__(self, networks: BrickNetworks):
        self.networks, self.trainer, self.survey = networks, networks.trainer, networks.survey
        self.recipe, self.variance = networks.recipe, self.survey.variance  # the recipe of a brick of medium size
        self.done: dict[int, FittedBrick] = {}
        self.seconds = 0.0

    # --- the training ---

    def run(self, on_done: Callable[[BrickedFit], None] = lambda fit: None) -> None:
        """Train all bricks that are not done. `on_done(self)` is called after each."""
        before, limit = self.seconds, self.recipe.max_seconds
        started = time.monotonic() - before
        with self.trainer.workers, Progress("training", self.networks.work_ahead() / processes.count()) as progress:
            self.networks.settle(progress)
            left = {k: config for k, config in enumerate(self.networks.configs) if config and k not in self.done}
            if limit is not None:
                self.trainer.workers.start(len(left))  # within the time
                progress.advance(0.0)  # the speed is that from now on
            self.seconds = time.monotonic() - started
            spent, ahead = self.seconds - before, (limit or math.inf) - self.seconds
            if left and spent > ahead:
                what = f"{spent:.1f} s went by before the training, {max(ahead, 0.0):.1f} s are left for it"
                way_out = "more of them, or --num_workers 1, which starts no processes, may help"
                console.warn("train.py", f"of --max_seconds {limit:g}, {what}: {way_out}")
            n_own = len(self.done) + len(processes.split_items([*left]))  # of several processes, each shows its share
            recipes = self.trainer.recipes(left, self.seconds)
            progress.total = progress.done + sum(self.trainer.work_of(left, recipes).values()) / processes.count()

            def keep(number: int, fitted: FittedBrick) -> dict[str, str]:
                self.done[number] = fitted
                self.seconds = time.monotonic() - started
                on_done(self)
                return {"bricks": f"{len(self.done)} of {n_own}", "PSNR": f"{self.psnr:.1f} dB"}

            self.done |= self.trainer.train_bricks(left, recipes, progress, keep)  # with those of other processes
        self.seconds = time.monotonic() - started

    # --- how far it is, and what there is ---

    @property
    def psnr(self) -> float:
        """PSNR in dB of the bricks that are done, over the range of the whole volume."""
        if not self.done:
            return math.nan
        errors, numbers = np.array([fitted.error for fitted in self.done.values()]), list(self.done)
        return psnr_of(np.average(errors * self.trainer.error_factors[numbers], weights=self.survey.n_present[numbers]))

    @property
    def progress(self) -> float:
        """The fraction of the training that is done, 0 to 1."""
        work = {k: self.trainer.pass_work(k, config) for k, config in enumerate(self.networks.configs) if config}
        return sum(work[k] for k in self.done) / max(sum(work.values()), 1.0)

    @property
    def n_passes(self) -> float:
        """The passes over the volume so far."""
        return self.progress * self.recipe.n_passes

    @property
    def config(self) -> SirenConfig:
        """The settings of the widest network."""
        return self.networks.widest

    def bricks(self) -> Bricks:
        """The networks so far. A brick that is not done is constant: its mean."""
        numbers = range(len(self.survey.low))
        is_known = self.survey.is_constant[:, None] | np.array([[number in self.done] for number in numbers])
        ends = [np.where(is_known, end, self.survey.mean) for end in (self.survey.low, self.survey.high)]
        done = self.done
        nets = [StoredNetwork(self.networks.configs[k], done[k].weights) if k in done else None for k in numbers]
        return Bricks(Cut(self.trainer.counts, *ends, self.trainer.mirrors), nets)

    # --- checkpoints ---

    def identity(self) -> dict:
        """What must be equal when the fit continues, beside the options of the run."""
        volume = {"shape": list(self.trainer.header.shape), "values_crc32": self.survey.crc32}
        volume |= {"counts": list(self.trainer.counts), "mirrors": list(self.trainer.mirrors)}
        volume |= {"target_psnr": self.trainer.target_psnr}  # at which a brick that is done has ended
        volume |= self.networks.fields | dataclasses.asdict(self.recipe) | {"seed": self.trainer.seed}
        return volume | ({"networks": [self.networks.n_layers, *self.networks.widths]} if self.networks.configs else {})

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to continue to the same result."""
        done = {k: (torch.from_numpy(as_vector(fitted.weights)), fitted.error) for k, fitted in self.done.items()}
        n_layers, widths = self.networks.n_layers, self.networks.widths
        return {"n_layers": n_layers, "widths": widths, "done": done, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        """Add what is done in the `state_dict` of a fit with the same identity. Raises ValueError for a damaged one."""
        widths, done, seconds, n_layers = (state[name] for name in ("widths", "done", "seconds", "n_layers"))
        check_seconds(seconds)
        configs = self.networks.checked(n_layers, widths)
        for number, (weights, error) in done.items():
            is_sound = number in range(len(configs)) and type(error) is float and 0 <= error < math.inf
            if not (is_sound and is_like(torch.empty(configs[number].n_parameters), weights)):
                raise ValueError("expected the finite weights of a brick and its error")
        self.networks.n_layers, self.networks.configs = n_layers, configs
        self.seconds = max(seconds, self.seconds)
        for number, (weights, error) in done.items():
            self.done[number] = FittedBrick(from_vector(weights.numpy(), configs[number]), error)


def as_vector(weights: dict[str, np.ndarray]) -> np.ndarray:
    """The weights of a network in one vector: a file of many bricks has far fewer arrays then."""
    return np.concatenate([part.ravel() for part in weights.values()])


def from_vector(vector: np.ndarray, config: SirenConfig) -> dict[str, np.ndarray]:
    """The weights of a network that are `as_vector`."""
    shapes = parameter_shapes(config)
    parts = np.split(vector, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
