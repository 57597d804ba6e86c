"""Trains the networks of bricks: in processes, one a core; on a GPU in stacks. `bricked_fit` says which, and when."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from cli.progress import Parts, Progress
from field.bricks import brick_boxes
from field.layers import SirenConfig
from training import processes
from training.cutting import passes_over
from training.devices import is_for_gpu
from training.one_brick import FittedBrick, Task, fit_brick
from training.recipe import BATCH, Recipe, fit_work, training_work
from training.spectrum import SURE_SHARE, waves_of
from training.stacked_fit import StackedFit
from training.stacks import memory_for_a_stack, stacks_of
from training.starts import Start
from training.streaming import normalised, read_ahead
from training.survey import brick_volume, error_factor, ready_to_cut, survey
from training.workers import Workers, most_work_first
from utils import ValueRange, Volume, VolumeHeader, shape_of

PILOT_PASSES, PILOT_RATE = 1.0, 2.0  # of a pilot, a brief fit; its learning rate / that of the fit
# Steps of a pass of a pilot: where a brick has fewer, each takes fewer samples. After a few steps, all are alike.
PILOT_STEPS, LEAST_PILOT_BATCH = 150, 256
BrickRecipe = Callable[[int, int, SirenConfig], Recipe]  # voxels not missing, voxels in all, network -> recipe


class BrickTrainer:
    """The bricks of a volume, and how the network of each is trained.

    header: of the volume, with the range after --clip. counts: the number of bricks along each axis. brick_recipe:
    gives the recipe of a brick. first_omega: see `Start`. target_psnr: over the range of the volume, in dB; each fit
    ends at it. n_processes: their number does not change the result. mirrors: see field.bricks.Cut.
    """

    def __init__(
        self,
        volume: Volume,
        header: VolumeHeader,
        counts: tuple[int, ...],
        brick_recipe: BrickRecipe,
        seed: int,
        first_omega: float | None = None,
        target_psnr: float | None = None,
        n_processes: int = 1,
        device: torch.device | None = None,
        mirrors: tuple[int, ...] = (),
    ):
        self.volume, self.header, self.counts, self.mirrors = ready_to_cut(volume), header, counts, mirrors
        self.boxes = brick_boxes(header.shape, counts, mirrors)
        self.brick_recipe, self.seed, self.first_omega, self.target_psnr = brick_recipe, seed, first_omega, target_psnr
        self.device = device or torch.device("cpu")
        self.has_stacks = is_for_gpu(self.device)
        self.workers = Workers(1 if self.has_stacks else n_processes)
        with Progress("looking at the bricks") as progress:
            self.survey = survey(self.volume, header.value_range, self.boxes, progress)
        self.error_factors = error_factor(self.survey.low, self.survey.high)
        # Plane waves are looked for in the brick with the most detail first: without any there, in no other brick.
        most = brick_volume(self.volume, header.value_range, self.boxes[int(self.survey.detail.argmax())])
        self.has_waves = first_omega is None and waves_of(most.values, 0, SURE_SHARE) is not None

    def pass_work(self, number: int, config: SirenConfig) -> float:
        """The work of one pass over a brick, see `training_work`."""
        return training_work(float(self.survey.n_present[number]), config.n_parameters)

    def work_of(self, configs: Mapping[int, SirenConfig], recipes: Mapping[int, Recipe]) -> dict[int, float]:
        """The work of the fit of each brick; with a time limit that of one pass, by which the time is shared out."""
        return {
            k: self.pass_work(k, config)
            if recipes[k].max_seconds is not None
            else self.fit_work(recipes[k], int(self.survey.n_present[k]), config.n_parameters)
            for k, config in configs.items()
        }

    def fit_work(self, recipe: Recipe, n_voxels: int, n_parameters: float) -> float:
        """The work of a fit. What it takes beside its samples is not counted for a stack, whose bricks share it."""
        whole = training_work(recipe.n_passes * n_voxels, n_parameters)
        return whole if self.has_stacks else fit_work(recipe, n_voxels, n_parameters)

    def _recipe(self, number: int, config: SirenConfig) -> Recipe:
        """The recipe of a brick, without regard to the time that has passed."""
        return self.brick_recipe(int(self.survey.n_present[number]), self._size(number), config)

    def _size(self, number: int) -> int:
        """The voxels of a brick, those that are missing too."""
        return math.prod(shape_of(self.boxes[number]))

    def recipes(self, configs: Mapping[int, SirenConfig], seconds: float) -> dict[int, Recipe]:
        """The recipe of each brick. seconds: that have passed.

        A time limit is shared out by the work, so that the last worker ends in time. Where no time is left, each brick
        takes a step.
        """
        found = {k: self._recipe(k, config) for k, config in configs.items()}
        work = {k: self.pass_work(k, config) for k, config in configs.items()}
        longest = self._longest(work)
        for k, recipe in found.items():
            if recipe.max_seconds is not None:
                left = max(recipe.max_seconds - seconds, 1e-6)
                found[k] = dataclasses.replace(recipe, max_seconds=left * work[k] / longest)
        return found

    @property
    def pilot_batch(self) -> int:
        """The samples a step of pilots. It follows from the mean brick, as the bricks of a stack have one batch."""
        batch, n_voxels = BATCH // 2, self.survey.medium_size
        while not self.has_stacks and batch > LEAST_PILOT_BATCH and n_voxels / batch < PILOT_STEPS:
            batch //= 2
        return batch

    def _longest(self, work: Mapping[int, float]) -> float:
        """The work of the worker that has the most, of all processes of the run. work: of each brick."""
        longest, order = 0.0, most_work_first(work)
        for process in range(processes.count()):
            loads = [0.0] * self.workers.most
            for k in order[process :: processes.count()]:
                heapq.heapreplace(loads, loads[0] + work[k])  # it goes to the worker that is free first
            longest = max(longest, *loads)
        return longest

    def pilot_errors(
        self, configs: Mapping[int, SirenConfig], progress: Progress, passes: float = PILOT_PASSES
    ) -> dict[int, float]:
        """The squared error of a brief fit of each brick, summed over its voxels, in the volume's normalised values."""
        brief = {"batch": self.pilot_batch, "max_seconds": None}
        recipes = {}
        for k, config in configs.items():
            recipe, own = self._recipe(k, config), passes
            if not self.has_stacks:
                own = passes_over(passes, int(self.survey.n_present[k]), self._size(k))
            n_passes = min(own, recipe.n_passes)
            recipes[k] = dataclasses.replace(recipe, lr=PILOT_RATE * recipe.lr, n_passes=n_passes, **brief)
        found = self.train_bricks(configs, recipes, progress)
        return {k: each.error * float(self.survey.n_present[k]) * self.error_factors[k] for k, each in found.items()}

    def train_bricks(
        self,
        configs: Mapping[int, SirenConfig],
        recipes: Mapping[int, Recipe],
        progress: Progress,
        on_done: Callable[[int, FittedBrick], dict[str, str]] = lambda number, fitted: {},
    ) -> dict[int, FittedBrick]:
        """The networks of these bricks by number. Each process of the run fits a share, the most work first.

        on_done: called with each brick of this process's share; it returns what to show.
        """
        work = self.work_of(configs, recipes)
        own = processes.split_items(most_work_first(work))
        found, parts = {}, Parts(progress, work)
        for number, fitted in self._each_done(own, configs, recipes, parts):
            found[number] = fitted
            parts.update(number, 1.0, **on_done(number, fitted))
        return {number: fitted for part in processes.gather(found) for number, fitted in part.items()}

    def _each_done(
        self,
        own: Sequence[int],
        configs: Mapping[int, SirenConfig],
        recipes: Mapping[int, Recipe],
        parts: Parts,
    ) -> Iterator[tuple[int, FittedBrick]]:
        """The number and the network of each brick of `own`, as soon as it is done. parts: is told of the progress."""
        stacks = []
        if self.has_stacks:
            sizes = {k: self._size(k) for k in own}
            stacks = stacks_of({k: configs[k] for k in own}, recipes, sizes, memory_for_a_stack(self.device))

        def read(stack: list[int]) -> tuple[list[Task], list[np.ndarray]]:
            """The tasks of a stack and their normalised values, while the GPU works on the stack before."""
            tasks = [self._task(k, configs[k], recipes[k]) for k in stack]
            return tasks, [normalised(task.brick, task.value_range) for task in tasks]

        for stack, (tasks, values) in zip(stacks, read_ahead(read, stacks), strict=True):
            with processes.apart():
                fit = StackedFit(tasks, values, self.device)
                fit.run(lambda fit, stack=stack: parts.update_all(stack, fit.progress) if fit.is_judged else None)
                found = [(k, fit.result(i)) for i, k in enumerate(stack)]
            del fit  # whose memory the next one needs
            yield from found
        stacked = {k for stack in stacks for k in stack}
        left = [k for k in own if k not in stacked]
        tasks = ((k, (self._task(k, configs[k], recipes[k]), self.device)) for k in left)
        is_timed = any(recipes[k].max_seconds is not None for k in left)  # as many workers as share the time
        work = math.inf if is_timed else sum(parts.work[k] for k in left)
        yield from self.workers.each_done(fit_brick, tasks, work, parts.update)

    def _task(self, number: int, config: SirenConfig, recipe: Recipe) -> Task:
        """The fit of a brick."""
        brick = brick_volume(self.volume, self.header.value_range, self.boxes[number])
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        target = self.target_psnr and self.target_psnr + 10 * math.log10(self.error_factors[number])
        value_range = ValueRange(self.survey.low[number], self.survey.high[number], brick.fill)
        waves = waves_of(brick.values, config.n_neurons, SURE_SHARE) if self.has_waves else None
        start = Start(config, seed, self.first_omega, waves, from_mean=True)
        return Task(brick.values, value_range, start, recipe, target)
