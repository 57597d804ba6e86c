"""Chooses the shape of a network: several depths, each as wide as the budget of parameters allows, compete in trials.

The best depth is a property of the volume: 3 layers for smooth fields, 8 for rough ones, up to 5 dB apart. A trial is a
brief fit; its length and its learning rate are those of `Recipe.trial`. The best network continues from its trial.
For a volume that consists of plane waves, networks that start from these waves compete too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cli.progress import Progress
from field.layers import SirenConfig
from siren import LEAST_NEURONS, MIN_NEURONS, linear_layers, neurons_for_budget
from training import processes
from training.fitting import Fit, new_fit
from training.recipe import TRIAL_SHARE, Recipe, psnr_of
from training.recovery import COLLAPSED_FACTOR
from training.sampler import VoxelSampler
from training.spectrum import SURE_SHARE, TRIED_SHARE, waves_of
from training.starts import Start

DEPTHS = 3, 5, 8  # layers of the networks that compete
MIDDLE_DEPTH = 5  # layers of the network where no trials are worth the time
SHALLOW_DEPTHS, NARROW = (1, 2), 10  # layers of further ones, if the shallowest of the others is at most so wide
# Lead of a depth over 5 layers that the fit makes up for, dB, if the trial is FULL_GAIN better than a constant. With a
# smaller gain, it is less in proportion: of a rough field, a network learns little, in the whole fit too.
HEAD_START = {1: 2.0, 2: 1.3, 3: 0.7, 4: 0.5, 6: -0.1, 7: -0.3, 8: -0.4}
NARROW_HEAD_START = 1.3  # further lead of a shallower network, if it is at most TRIED_NEURONS wide, dB
FULL_GAIN = 10.0  # dB
DB_PER_OCTAVE = 4.5  # what twice the bytes of a file gain, about
LAYER_WEIGHTS = 10  # weights that take as many bytes as the record of a linear layer does in a file
LEAST_STEPS = 1_500  # steps of the shortest fit that begins with trials
TRIALS = 4  # of a fit, at least, besides those of plane waves: one of each network, then further starts of the best one
TRIAL_VOXELS = 1 << 16  # that judge a trial: with 4,096, its PSNR is off by up to 1.3 dB
TRIED_NEURONS = 24  # widest network that has several starts; the result of a wider one hardly depends on its start
WAVES_LEAD = 6.0  # by so much a trial that starts from plane waves must be better, dB; it is by 8 to 40 where they help


def networks_for_budget(n_parameters: float, depth: int | None, **fields) -> list[SirenConfig]:
    """The networks that compete for a budget of parameters: those of DEPTHS, or one of `depth`, at least 16 wide.

    The deepest network that the budget allows takes the place of deeper ones. Where all would be narrow, those of
    SHALLOW_DEPTHS compete too. fields: the other fields of SirenConfig.
    """
    if depth is None:
        smallest = {n: SirenConfig(LEAST_NEURONS, n, **fields).n_parameters for n in range(1, max(DEPTHS) + 1)}
        deepest = max((n for n, size in smallest.items() if size <= n_parameters), default=1)
        depths, least = {min(n, deepest) for n in DEPTHS}, LEAST_NEURONS
        if neurons_for_budget(n_parameters, least, n_layers=min(depths), **fields) <= NARROW:
            depths |= {n for n in SHALLOW_DEPTHS if n < deepest}
        depths = sorted(depths)
    else:
        depths, least = [depth], MIN_NEURONS
    widths = [neurons_for_budget(n_parameters, least, n_layers=n, **fields) for n in depths]
    return [SirenConfig(width, n, **fields) for width, n in zip(widths, depths, strict=True)]


def fit_after_trials(
    configs: Sequence[SirenConfig],
    recipe_for: Callable[[SirenConfig], Recipe],
    sampler: VoxelSampler,
    seed: int,
    first_omega: float | None = None,
    n_threads: int = 1,
) -> Fit:
    """The fit of the network, from the start that is best after a trial of each.

    recipe_for: gives the recipe for a network. first_omega: see `Start`. n_threads: see `Fit`.
    """

    def fit_of(start: Start, is_trial: bool = False) -> Fit:
        recipe = recipe_for(start.config).trial() if is_trial else recipe_for(start.config)
        return new_fit(start, sampler, recipe, n_threads)

    is_tried = is_worth_trials(recipe_for(configs[0]), sampler)
    waves = None
    if first_omega is None:
        widest = max(config.n_neurons for config in configs)
        waves = waves_of_sampler(sampler, widest, TRIED_SHARE if is_tried else SURE_SHARE)
    has_choice = len(configs) > 1 or configs[0].n_neurons <= TRIED_NEURONS or waves is not None
    if not (is_tried and has_choice):
        middle = min(configs, key=lambda config: abs(config.n_layers - MIDDLE_DEPTH))
        return fit_of(Start(middle, seed, first_omega, waves, from_mean=True))
    all_waves = [None] if waves is None else [None, waves]
    starts = [Start(config, seed, first_omega, each) for each in all_waves for config in configs]
    n_further = max(TRIALS - len(configs), 0)  # also beside plane waves: these may be no better
    (start, best), seconds = best_of_trials(starts, n_further, fit_of)
    fit = fit_of(start)
    if best.loss < COLLAPSED_FACTOR * sampler.variance:
        fit.continue_from(best)
        fit.trial_psnr = best.psnr
    fit.seconds = seconds
    fit.trial_steps = seconds * best.step / (best.seconds or 1.0)
    return fit


class Trial(NamedTuple):
    """The brief fit of a network from its start."""

    start: Start
    fit: Fit


def best_of_trials(starts: Sequence[Start], n_further: int, fit_of: Callable[..., Fit]) -> tuple[Trial, float]:
    """The best trial, and the seconds of all trials.

    n_further: starts that are tried after `starts`, with other random weights of the network that is the best by then;
    none if it is wider than TRIED_NEURONS. Only the best fit is kept in memory: each holds an error for every voxel.
    """
    best, seconds = None, 0.0

    def all_starts() -> Iterator[Start]:
        yield from starts
        if best.start.config.n_neurons <= TRIED_NEURONS:
            yield from (best.start._replace(number=number) for number in range(1, n_further + 1))

    n_trials = len(starts) + n_further
    with Progress("training", n_trials + 1 / TRIAL_SHARE, is_part=True) as progress:  # in trials
        for n_done, start in enumerate(all_starts()):
            fit = fit_of(start, is_trial=True)
            fit.run(lambda fit, n_done=n_done: progress.update(n_done + fit.progress))
            fit.judge_on(TRIAL_VOXELS)
            fit.loss, fit.seconds = map(processes.broadcast_first, (fit.loss, fit.seconds))
            seconds += fit.seconds
            best = max(best or Trial(start, fit), Trial(start, fit), key=score)
            del fit  # whose memory the next one needs, unless it is the best
    return best, seconds


def waves_of_sampler(sampler: VoxelSampler, n_neurons: int, share: float) -> np.ndarray | None:
    """See `waves_of`. None of a streamed volume."""
    if not isinstance(sampler, VoxelSampler):
        return None
    values = sampler.values.cpu().numpy().reshape(*sampler.shape, -1)
    return processes.gather(waves_of(values, n_neurons, share))[0]  # another machine may have other last bits


def is_worth_trials(recipe: Recipe, sampler: VoxelSampler) -> bool:
    """Whether trials come before a fit by this recipe. The trial of a short fit would tell nothing."""
    is_long = recipe.max_seconds is None and recipe.count_steps(sampler.n_present) >= LEAST_STEPS
    return is_long and recipe.schedule == "power" and sampler.variance > 0


def score(trial: Trial) -> float:
    """The PSNR of a trial, dB, without the lead of its depth and its waves, and without what its bytes are worth.

    The lowest number for a trial that diverged.
    """
    config, fit = trial.start.config, trial.fit
    if not math.isfinite(fit.loss):
        return -math.inf
    size = fit.config.n_parameters + LAYER_WEIGHTS * len(linear_layers(fit.net))
    lead = HEAD_START.get(config.n_layers, 0.0)
    if config.n_layers < MIDDLE_DEPTH and config.n_neurons <= TRIED_NEURONS:
        lead += NARROW_HEAD_START
    lead *= min(max((fit.psnr - psnr_of(fit.variance)) / FULL_GAIN, 0.0), 1.0)
    lead += 0.0 if trial.start.waves is None else WAVES_LEAD
    return fit.psnr - lead - DB_PER_OCTAVE * math.log2(size)
