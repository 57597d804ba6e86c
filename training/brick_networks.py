"""Settles the network of each brick: its depth and its width, within a budget of parameters for all bricks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cli.progress import Progress
from field.layers import SirenConfig
from field.network_chunk import MAX_PARAMETERS
from siren import LEAST_NEURONS, MAX_NEURONS, neurons_for_budget
from training.brick_trainer import PILOT_PASSES, PILOT_STEPS, BrickTrainer
from training.cutting import MOST_SHARE
from training.recipe import Recipe, psnr_of
from training.shapes import HEAD_START
from utils import UserError

BRICK_DEPTHS, SAMPLE = (5, 3), 4  # layers that compete, the most first, and bricks in which they do
PILOT_SHARE = 1 / 8  # of the fit: pilots that compare depths are PILOT_STEPS long, but at most this


class BrickNetworks:
    """The network of each brick, and what settles it. `configs` is empty until `settle`.

    budget: the parameters that all networks may have together. fields: of the networks' SirenConfig, but the width.
    least: the parameters of all networks of the least width, by the depth, for each depth that is tried.
    Without the depth, the best of BRICK_DEPTHS that the budget allows is chosen in a few bricks with much detail.
    """

    def __init__(self, trainer: BrickTrainer, budget: float, fields: dict):
        self.trainer, self.survey, self.fields = trainer, trainer.survey, fields
        self.configs: list[SirenConfig | None] = []  # None for a brick that is constant
        self.n_networks = int(np.count_nonzero(~self.survey.is_constant))  # of all bricks that are not constant
        most_parameters = MOST_SHARE * float(self.survey.n_present[~self.survey.is_constant].sum())
        all_depths = [fields["n_layers"]] if "n_layers" in fields else BRICK_DEPTHS
        narrow = {depth: SirenConfig(LEAST_NEURONS, **fields | {"n_layers": depth}) for depth in all_depths}
        self.least = {depth: self.n_networks * config.n_parameters for depth, config in narrow.items()}
        self.budget = min(budget, max(most_parameters, *self.least.values()))
        self.depths = [depth for depth, n in self.least.items() if n <= self.budget] or all_depths[-1:]
        self.n_layers = self.depths[0]
        medium = self.survey.medium_size
        typical = self.config(width_for(self.budget / max(self.n_networks, 1), self._form))
        self.recipe = trainer.brick_recipe(medium, medium, typical)

    # --- brief fits: pilots ---

    def settle(self, progress: Progress) -> None:
        """Settle the network of each brick, unless it is settled: as wide as a brief fit shows that it needs to be.

        The error of a network of n parameters falls about as 1 / n. The sum of all errors, for so many parameters in
        all, is then least where every network has sqrt(error x n) parameters. With a time limit there are no brief
        fits: the detail alone tells what a brick needs, and the networks are as deep as the budget allows.
        """
        if self.configs:
            return
        need = np.where(self.survey.is_constant, 0.0, np.sqrt(self.survey.detail + 1e-12))
        if self.recipe.max_seconds is None:
            errors = self._choose_depth(need, progress) if len(self.depths) > 1 else {}
            pilots = {k: config for k, config in enumerate(self._shared_out(need)) if config}
            left = {k: config for k, config in pilots.items() if k not in errors}
            errors |= self.trainer.pilot_errors(left, progress)
            for k, error in errors.items():
                need[k] = math.sqrt((error + 1e-12) * pilots[k].n_parameters)
        self.configs = self._shared_out(need)

    def work_ahead(self) -> float:
        """About how much work the pilots and the fits of all bricks are."""
        n, medium, pilot = self.n_networks, self.survey.medium_size, {"batch": self.trainer.pilot_batch}

        def work(recipe: Recipe) -> float:
            return self.trainer.fit_work(recipe, medium, self.budget / max(n, 1))

        found = n * (work(self.recipe) + work(dataclasses.replace(self.recipe, n_passes=PILOT_PASSES, **pilot)))
        if len(self.depths) > 1:
            n_further = len(self.depths) - (self._depth_passes == PILOT_PASSES)  # see _choose_depth
            longer = dataclasses.replace(self.recipe, n_passes=self._depth_passes, **pilot)
            found += min(SAMPLE, n) * n_further * work(longer)
        return found

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
            found[depth] = self.trainer.pilot_errors({k: configs[k] for k in most}, progress, passes)

        def score(depth: int) -> float:  # a shallow network learns faster at first, see training/shapes.py
            return psnr_of(sum(found[depth].values())) - HEAD_START.get(depth, 0.0)

        self.n_layers = max(found, key=score)
        return found[self.n_layers] if passes == PILOT_PASSES else {}

    @property
    def _depth_passes(self) -> float:
        """The passes of the pilots that compare depths."""
        steps_per_pass = math.ceil(self.survey.medium_size / self.trainer.pilot_batch)
        return max(PILOT_PASSES, min(PILOT_STEPS / steps_per_pass, PILOT_SHARE * self.recipe.n_passes))

    # --- the networks ---

    def checked(self, n_layers: int, widths: list[int]) -> list[SirenConfig | None]:
        """The networks that a checkpoint says. widths: of each brick, 0 for none.

        Raises ValueError for impossible ones, and for others than those that are settled.
        """
        if n_layers not in self.least:
            raise ValueError("n_layers: expected one that is tried, found another number")
        form = self.fields | {"n_layers": n_layers}
        most = max(width_for(self.budget, form), LEAST_NEURONS)
        if [0 < width <= most for width in widths] != (~self.survey.is_constant).tolist():
            raise ValueError("expected a width for each brick that is not constant")
        configs = [SirenConfig(width, **form) if width else None for width in widths]
        if self.configs and configs != self.configs:
            raise ValueError("expected the networks that are settled, found others")
        return configs

    @property
    def widths(self) -> list[int]:
        """The width of each network, 0 for a brick without one."""
        return [config.n_neurons if config else 0 for config in self.configs]

    def config(self, width: int) -> SirenConfig:
        """The network of this width."""
        return SirenConfig(width, **self._form)

    @property
    def widest(self) -> SirenConfig:
        """The widest network that is settled."""
        found = [config for config in self.configs if config]
        return max(found, key=lambda config: config.n_neurons, default=self.config(LEAST_NEURONS))

    def _shared_out(self, need: np.ndarray) -> list[SirenConfig | None]:
        return shared_out(self.budget, need, self.survey.n_present, self._form)

    @property
    def _form(self) -> dict:
        """The fields of the networks' SirenConfig, but the width."""
        return self.fields | {"n_layers": self.n_layers}


def shared_out(n_parameters: float, need: np.ndarray, n_voxels: np.ndarray, fields: dict) -> list[SirenConfig | None]:
    """The network of each brick. All of them together have about `n_parameters`; a brick that needs 0 has none.

    need: what each brick needs of them, in any unit. n_voxels: of each brick. fields: of SirenConfig, but the width.
    Raises UserError for more parameters than a file can hold.
    """
    least = SirenConfig(LEAST_NEURONS, **fields).n_parameters
    most = np.maximum(MOST_SHARE * n_voxels, least)
    low, high = 0.0, n_parameters / max(need[need > 0].min(initial=math.inf), 1e-300)
    for _ in range(100):  # the share of each need that uses up the parameters
        share = (low + high) / 2
        sizes = np.where(need > 0, np.clip(share * need, least, most), 0.0)
        low, high = (share, high) if sizes.sum() < n_parameters else (low, share)
    configs = [SirenConfig(width_for(size, fields), **fields) if size else None for size in sizes]
    n_all = sum(config.n_parameters for config in configs if config)
    if n_all > MAX_PARAMETERS:
        way_out = "a larger --compression_ratio or fewer --bricks give fewer"
        raise UserError(f"bricks of {n_all} parameters in all, a file can hold at most {MAX_PARAMETERS}: {way_out}")
    return configs


def width_for(n_parameters: float, fields: dict) -> int:
    """The width, LEAST_NEURONS to MAX_NEURONS, whose number of parameters is the nearest to `n_parameters`."""
    width = neurons_for_budget(n_parameters, LEAST_NEURONS, **fields)
    below, above = (SirenConfig(width + more, **fields).n_parameters for more in (0, 1))
    return width + 1 if below + above < 2 * n_parameters and width < MAX_NEURONS else width
