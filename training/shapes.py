"""Chooses the shape of a network: several depths, each as wide as the budget of parameters allows, compete in trials.

The best depth is a property of the volume: 3 layers for smooth fields, 8 for rough ones, up to 5 dB apart. A trial is a
brief fit; its length and its learning rate are those of `Recipe.trial`. The best network continues from its trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cli.progress import Progress
from siren import LEAST_NEURONS, MIN_NEURONS, SirenConfig, count_parameters, linear_layers, neurons_for_budget
from training import processes
from training.fitting import Fit, new_fit
from training.recipe import TRIAL_SHARE, Recipe
from training.recovery import COLLAPSED_FACTOR
from training.sampler import VoxelSampler

DEPTHS = 3, 5, 8  # layers of the networks that compete
MIDDLE_DEPTH = 5  # layers of the network where no trials are worth the time
HEAD_START = {3: 1.0, 4: 0.5, 6: -0.1, 7: -0.3, 8: -0.4}  # lead of a depth over 5 layers that the fit makes up for, dB
DB_PER_OCTAVE = 4.5  # what twice the bytes of a file gain, about
LAYER_WEIGHTS = 10  # weights that take as many bytes as the record of a linear layer does in a file
LEAST_STEPS = 1_500  # steps of the shortest fit that begins with trials
TRIALS = 4  # of a fit: one of each network that competes, then further random starts of the best one
TRIED_NEURONS = 24  # widest network that has several starts; the result of a wider one hardly depends on its start


def networks_for_budget(n_parameters: float, depth: int | None, **fields) -> list[SirenConfig]:
    """The networks that compete for a budget of parameters: those of DEPTHS, or one of `depth`, at least 16 wide.

    The deepest network that the budget allows takes the place of deeper ones. fields: the other fields of SirenConfig.
    """
    if depth is None:
        smallest = {n: count_parameters(SirenConfig(LEAST_NEURONS, n, **fields)) for n in range(1, max(DEPTHS) + 1)}
        deepest = max((n for n, size in smallest.items() if size <= n_parameters), default=1)
        depths, least = sorted({min(n, deepest) for n in DEPTHS}), LEAST_NEURONS
    else:
        depths, least = [depth], MIN_NEURONS
    widths = [neurons_for_budget(n_parameters, least, n_layers=n, **fields) for n in depths]
    return [SirenConfig(width, n, **fields) for width, n in zip(widths, depths, strict=True)]


def chosen_fit(
    configs: Sequence[SirenConfig],
    recipe_for: Callable[[SirenConfig], Recipe],
    sampler: VoxelSampler,
    seed: int,
    first_omega: float | None = None,
    n_threads: int = 1,
    has_trials: bool = True,
) -> Fit:
    """The fit of the network, from the start that is best after a trial of each.

    recipe_for: gives the recipe for a network. first_omega, n_threads: see `new_fit`. has_trials: False for a fit that
    takes its state from a checkpoint.
    """

    def fit_of(start: tuple[SirenConfig, int], is_trial: bool = False) -> Fit:
        config, number = start
        recipe = recipe_for(config).trial() if is_trial else recipe_for(config)
        return new_fit(config, sampler, recipe, seed, first_omega, n_threads, number)

    starts = [(config, 0) for config in configs]
    has_one = len(configs) == 1 and configs[0].n_neurons > TRIED_NEURONS
    if has_one or not (has_trials and is_worth_trials(recipe_for(configs[0]), sampler)):
        return fit_of(min(starts, key=lambda start: abs(start[0].n_layers - MIDDLE_DEPTH)))
    best, n_done, seconds = starts[0], 0, 0.0
    best_trial = None  # the others are forgotten: each holds an error for every voxel
    with Progress("training", TRIALS + 1 / TRIAL_SHARE, is_part=True) as progress:  # in trials
        while starts:
            start = starts.pop(0)
            trial = fit_of(start, is_trial=True)
            trial.run(lambda fit, n_done=n_done: progress.update(n_done + fit.progress))
            trial.loss, trial.seconds = map(processes.broadcast_first, (trial.loss, trial.seconds))
            n_done, seconds = n_done + 1, seconds + trial.seconds
            if best_trial is None or score(trial) > score(best_trial):
                best, best_trial = start, trial
            if n_done == len(configs) and best[0].n_neurons <= TRIED_NEURONS:
                starts = [(best[0], number) for number in range(1, TRIALS - n_done + 1)]
    fit = fit_of(best)
    if best_trial.loss < COLLAPSED_FACTOR * sampler.variance:
        fit.continue_from(best_trial)
    fit.seconds = seconds
    fit.trial_steps = seconds * best_trial.step / (best_trial.seconds or 1.0)
    return fit


def is_worth_trials(recipe: Recipe, sampler: VoxelSampler) -> bool:
    """Whether trials come before a fit by this recipe. The trial of a short fit would tell nothing."""
    is_long = recipe.max_seconds is None and recipe.count_steps(sampler.n_voxels) >= LEAST_STEPS
    return is_long and recipe.schedule == "power" and sampler.variance > 0


def score(trial: Fit) -> float:
    """The PSNR of a trial, dB, without the head start of its depth and without what its bytes are worth.

    The lowest number for a trial that diverged.
    """
    config = trial.net.config
    size = count_parameters(config) + LAYER_WEIGHTS * len(linear_layers(trial.net))
    worth = HEAD_START.get(config.n_layers, 0.0) + DB_PER_OCTAVE * math.log2(size)
    return trial.psnr - worth if math.isfinite(trial.loss) else -math.inf
