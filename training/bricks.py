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

from cli.progress import Progress
from field.bricks import Bricks, brick_boxes
from field.layers import parameter_shapes
from field.neural_field import NeuralField
from siren import SirenConfig, count_parameters
from training import processes
from training.cutting import LEAST_NEURONS, brick_volume, error_scale, shared_out, survey, width_for
from training.fitting import Fit, new_fit
from training.network_files import brick_state
from training.recipe import BATCH, SAMPLE_OVERHEAD, Recipe, psnr_of
from training.shapes import MIDDLE_DEPTH
from training.streaming import make_sampler, unpacked
from training.workers import each_done
from utils import Volume, VolumeHeader, header_of

PASSES = 16.0  # over each brick, by default
PILOT_PASSES, PILOT_RATE = 1.0, 2.0  # of the brief fits that tell what a brick needs; rate / that of the fit
Trained = tuple[dict[str, np.ndarray], float]  # weights by name; mean squared error of the brick's normalised values
RecipeFor = Callable[[int, SirenConfig], Recipe]  # voxels, network -> recipe


def fit_brick(
    brick: Volume,
    config: SirenConfig,
    recipe: Recipe,
    seed: int,
    first_omega: float | None,
    target_psnr: float | None,
    device: torch.device,
) -> Trained:
    """The network of one brick. target_psnr: of the brick's normalised values, in dB, at which the fit ends."""
    sampler = make_sampler(brick.values, header_of(brick).values, device, recipe.grad_lambda > 0)
    fit = new_fit(config, sampler, recipe, seed, first_omega)

    def error() -> float:
        return float(sampler.squared_errors(fit.averaged_net).sum(dtype=torch.float64)) / sampler.n_voxels

    def is_reached(fit: Fit) -> bool:
        is_near = target_psnr is not None and fit.is_judged and fit.psnr >= target_psnr
        return is_near and psnr_of(error()) >= target_psnr

    with processes.apart():
        fit.run(is_reached)
    return {name: tensor.cpu().numpy().copy() for name, tensor in fit.averaged_net.state_dict().items()}, error()


class BrickedFit:
    """The fit of a volume in bricks. `run` trains what is not `done` yet; `bricks` is the result so far.

    header: of the volume, with the range after --clip. counts: bricks along each axis. recipe_for: the recipe of a
    brick. fields: of the networks' SirenConfig, but the width. n_processes: they do not change the result.
    """

    def __init__(
        self,
        volume: Volume,
        header: VolumeHeader,
        counts: tuple[int, ...],
        recipe_for: RecipeFor,
        n_parameters: float,
        fields: dict,
        seed: int,
        first_omega: float | None = None,
        target_psnr: float | None = None,
        n_processes: int = 1,
        device: torch.device | None = None,
    ):
        if math.prod(getattr(volume.values, "chunks", ())) > 1:
            volume = Volume(unpacked(volume.values), volume.geometry, volume.fill)
        self.volume, self.header, self.counts, self.boxes = volume, header, counts, brick_boxes(header.shape, counts)
        self.recipe_for, self.seed, self.first_omega, self.target_psnr = recipe_for, seed, first_omega, target_psnr
        self.n_parameters, self.fields = n_parameters, {"n_layers": MIDDLE_DEPTH} | fields
        self.device = device or torch.device("cpu")
        self.n_processes = n_processes if self.device.type == "cpu" else 1
        self.done: dict[int, Trained] = {}
        self.configs: list[SirenConfig | None] = []
        self.seconds = 0.0
        with Progress("looking at the bricks") as progress:
            self.survey = survey(volume, header.values, self.boxes, progress)
        n_trained = max(np.count_nonzero(~self.survey.is_constant), 1)
        typical = SirenConfig(width_for(n_parameters / n_trained, self.fields), **self.fields)
        self.recipe = recipe_for(int(self.survey.n_voxels.mean()), typical)  # of a brick in the middle

    def plan(self) -> None:
        """Settle the network of each brick, unless it is settled: as wide as a brief fit shows that it needs to be.

        The error of a network of n parameters falls about as 1 / n. The sum of all errors, for so many parameters in
        all, is then least where every network has sqrt(error x n) parameters.
        """
        if self.configs:
            return
        need = np.where(self.survey.is_constant, 0.0, np.sqrt(self.survey.detail + 1e-12))
        pilots = self._shared_out(need)
        recipes = [config and self._pilot(number, config) for number, config in enumerate(pilots)]
        for number, (_, error) in self._fitted(pilots, recipes, "what each brick needs").items():
            error *= self.survey.n_voxels[number] * self._scale(number)
            need[number] = math.sqrt((error + 1e-12) * count_parameters(pilots[number]))
        self.configs = self._shared_out(need)

    def run(self, on_done: Callable[[BrickedFit], None] = lambda fit: None) -> None:
        """Train all bricks that are not done. `on_done(self)` is called after each."""
        started = time.monotonic() - self.seconds
        self.plan()
        recipes = [config and self._recipe(number, config) for number, config in enumerate(self.configs)]

        def keep(number: int, trained: Trained) -> None:
            self.done[number], self.seconds = trained, time.monotonic() - started
            on_done(self)

        self.done |= self._fitted(self.configs, recipes, "training", keep)
        self.seconds = time.monotonic() - started

    @property
    def psnr(self) -> float:
        """PSNR in dB of the bricks that are done, over the range of the whole volume."""
        if not self.done:
            return math.nan
        errors = [error * self._scale(number) for number, (_, error) in self.done.items()]
        return psnr_of(float(np.average(errors, weights=self.survey.n_voxels[[*self.done]])))

    @property
    def progress(self) -> float:
        """The fraction of the training that is done, 0 to 1."""
        work = {number: self._work(number, config) for number, config in enumerate(self.configs) if config}
        return sum(work[number] for number in self.done) / max(sum(work.values()), 1.0)

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
        return max(found, key=lambda config: config.n_neurons, default=SirenConfig(LEAST_NEURONS, **self.fields))

    @property
    def is_finite(self) -> bool:
        """What is done is finite."""
        return True

    def weights(self) -> dict[str, torch.Tensor]:
        """The result so far, as thenet.pth holds it."""
        return brick_state(self.bricks())

    def field(self, header: VolumeHeader, device: torch.device, n_threads: int) -> NeuralField:
        """The result so far as a compressed field. header: of the volume."""
        return NeuralField.of_bricks(header, self.bricks(), device, n_threads)

    def bricks(self) -> Bricks:
        """The networks so far. A brick that is not done is constant: its mean."""
        is_done = np.array([[number in self.done] for number in range(len(self.boxes))])
        low, high = (np.where(is_done, end, self.survey.mean) for end in (self.survey.low, self.survey.high))
        constant = self.survey.is_constant[:, None]
        low, high = (np.where(constant, self.survey.low, end) for end in (low, high))
        nets = [(dataclasses.asdict(self.configs[k]), self.done[k][0]) if k in self.done else None
                for k in range(len(self.boxes))]  # fmt: skip
        return Bricks(self.counts, low, high, nets)

    # --- how ---

    def _fitted(
        self,
        configs: list[SirenConfig | None],
        recipes: list[Recipe | None],
        what: str,
        on_done: Callable[[int, Trained], None] = lambda number, trained: None,
    ) -> dict[int, Trained]:
        """Fit the bricks that have a network and are not done, the most work first: each process of the run a share."""
        work = {k: self._work(k, config) for k, config in enumerate(configs) if config and k not in self.done}
        own = processes.split_items(sorted(work, key=lambda k: (-work[k], k)))
        found = {}
        with Progress(what, sum(work[k] for k in own)) as progress:
            tasks = ((k, self._arguments(k, configs[k], recipes[k])) for k in own)
            for number, trained in each_done(fit_brick, tasks, self.n_processes):
                found[number] = trained
                on_done(number, trained)
                shown = {"PSNR": f"{self.psnr:.1f} dB"} if number in self.done else {}
                progress.advance(work[number], bricks=f"{len(found)} of {len(own)}", **shown)
        return {number: trained for part in processes.gather(found) for number, trained in part.items()}

    def _arguments(self, number: int, config: SirenConfig, recipe: Recipe) -> tuple:
        """The arguments of `fit_brick`."""
        brick = brick_volume(self.volume, self.header.values, self.boxes[number])
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        target = self.target_psnr and self.target_psnr + 10 * math.log10(self._scale(number))
        return brick, config, recipe, seed, self.first_omega, target, self.device

    def _recipe(self, number: int, config: SirenConfig) -> Recipe:
        """The recipe of a brick. A time limit is shared out by the work."""
        recipe = self.recipe_for(int(self.survey.n_voxels[number]), config)
        if recipe.max_seconds is None:
            return recipe
        work = sum(self._work(k, c) for k, c in enumerate(self.configs) if c)
        seconds = max(recipe.max_seconds - self.seconds, 0.0) * self.n_processes * processes.count()
        return dataclasses.replace(recipe, max_seconds=seconds * self._work(number, config) / work)

    def _pilot(self, number: int, config: SirenConfig) -> Recipe:
        """The recipe of a brief fit."""
        recipe = self.recipe_for(int(self.survey.n_voxels[number]), config)
        brief = {"n_passes": min(PILOT_PASSES, recipe.n_passes), "batch": BATCH // 2, "max_seconds": None}
        return dataclasses.replace(recipe, lr=PILOT_RATE * recipe.lr, **brief)

    def _work(self, number: int, config: SirenConfig) -> float:
        return float(self.survey.n_voxels[number]) * (count_parameters(config) + SAMPLE_OVERHEAD)

    def _shared_out(self, need: np.ndarray) -> list[SirenConfig | None]:
        return shared_out(self.n_parameters, need, self.survey.n_voxels, self.fields)

    def _scale(self, number: int) -> float:
        return error_scale(self.survey.low[number], self.survey.high[number])

    # --- checkpoints ---

    def identity(self) -> dict:
        """What must be equal when the fit continues, beside the options of the run."""
        volume = {"shape": list(self.header.shape), "values_crc32": self.survey.crc32, "counts": list(self.counts)}
        return volume | self.fields | dataclasses.asdict(self.recipe) | {"seed": self.seed}

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to continue to the same result."""
        done = {k: ({name: torch.from_numpy(w) for name, w in net.items()}, e) for k, (net, e) in self.done.items()}
        return {"widths": [config.n_neurons if config else 0 for config in self.configs], "done": done,
                "seconds": self.seconds}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Add what is done in the `state_dict` of a fit with the same identity. Raises ValueError for a damaged one."""
        widths, done, seconds = state["widths"], state["done"], state["seconds"]
        if not (isinstance(seconds, float) and 0 <= seconds < math.inf):
            raise ValueError("seconds: expected a finite number, found another value")
        most = max(width_for(self.n_parameters, self.fields), LEAST_NEURONS)
        if [0 < width <= most for width in widths] != (~self.survey.is_constant).tolist():
            raise ValueError("expected a width for each brick that is not constant")
        configs = [SirenConfig(width, **self.fields) if width else None for width in widths]
        for number, (net, error) in done.items():
            shapes = parameter_shapes(**dataclasses.asdict(configs[number]))
            if {name: tuple(w.shape) for name, w in net.items()} != shapes or not 0 <= error < math.inf:
                raise ValueError("expected the weights of a brick")
            if not all(w.dtype == torch.float32 and torch.isfinite(w).all() for w in net.values()):
                raise ValueError("expected finite weights")
        self.configs, self.seconds = configs, max(seconds, self.seconds)
        self.done |= {k: ({name: w.numpy() for name, w in net.items()}, error) for k, (net, error) in done.items()}
