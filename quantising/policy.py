"""The choices of net_compress.py: how coarse the steps are, how the network is trained meanwhile, what it may lose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from field.layers import SirenConfig
from field.metrics import measured_boxes
from field.neural_field import NeuralField
from quantising.doubling import gain_of_doubling
from training.recipe import BATCH, Recipe, default_recipe, error_of, passes_for_min_steps, psnr_of
from utils import Grid, ValueRange, Volume, is_missing, wide_float

MSE_ADDED_BY_ROUNDING = 0.05  # relative to the network's own mean squared error; 0.05 costs 0.2 dB
DEFAULT_BITS = 9  # bits for a value of a hidden matrix, with codebooks or if the PSNR of the network is unknown
MAX_HALVINGS = 64  # halvings of the error that `coarsest_exact` tries, at most
# Limits of the squared error that rounding with training adds, relative to the network's own: see `error_to_add`.
LEAST_ADDED, MOST_ADDED = 0.05, 0.4
ADDED_PER_DB = 0.07  # this error for each dB that a doubling of the network would gain
FINER = 4.0  # a second try, if training does not make up for the error, adds less by this factor
MAX_DB_LOST = 2.0  # most that rounding with training may lose, dB
MAX_LEAD_LOST = 0.25  # most that rounding with training may lose, as a part of the network's lead in dB over a constant
ALWAYS_ALLOWED_DB = 0.2  # loss that is always allowed, dB: rounding without training costs as much
WORTH_DB = 1.0  # what the smaller file of rounding with training is worth at least, against rounding alone, dB
COARSE = 16  # most positions along an axis of the grid that tells what rounding has cost
FINE = 64  # the same for integers, of which a few may be wrong
MOST_ERROR = 4.0  # most that `Part.error` may be, relative to the network's own
TRAINED_VOXELS = 1.25e7  # samples that training while rounding uses by default
MAX_PASSES_WHILE_ROUNDING = 48.0  # most passes that training while rounding uses by default
RATE = 0.15  # learning rate while rounding a network of 30 dB, relative to train.py's
DB_PER_RATE_HALVING = 30.0  # gain in PSNR that halves RATE, dB: a better network has less to make up for, more to undo

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class RoundingOptions:
    """The options of the user.

    bits, n_passes: None if left open. quantizer: "uniform", or "kmeans", which needs bits and 0 passes. seed: of the
    order of samples. n_threads: CPU threads.
    """

    bits: int | None = None
    quantizer: str = "uniform"
    n_passes: float | None = None
    seed: int = 0
    n_threads: int = 1


class Part(NamedTuple):
    """What the whole field settles for a network that holds a part of it. Nothing if the network holds all of it.

    error: the mean squared error, of normalised values, that sets the steps in place of the network's own. added: as
    `error_to_add` gives it for the whole field. n_all: the number of weights of all parts.
    """

    error: float | None = None
    added: float | None = None
    n_all: int | None = None


WHOLE = Part()  # of a network that holds the whole field


def error_for_steps(psnr: float, of_part: float | None) -> float | None:
    """The mean squared error, of normalised values, that sets the steps; None if it is unknown.

    It is the network's own, or `Part.error` if given, but at most MOST_ERROR times the network's own. psnr: of the
    network, dB.
    """
    own = error_of(psnr) if math.isfinite(psnr) else None
    if of_part is None:
        return own
    return min(of_part, MOST_ERROR * own) if own else of_part


def error_to_add(volume: Volume, value_range: ValueRange, psnr: float) -> float:
    """The squared error that the steps may add, relative to the network's own, for the best quality at equal bytes.

    The arguments are as of `gain_of_doubling`. Steps that add twice the error make the file a tenth smaller, and
    training makes up for half of what they add. The less a larger network would gain, the less these bytes are worth.
    """
    return min(max(ADDED_PER_DB * gain_of_doubling(volume, value_range, psnr), LEAST_ADDED), MOST_ADDED)


def allowed_loss(lead: float, expected: float, error: float, added: float | None) -> float:
    """The most that rounding with training may cost, dB.

    lead: of the network, in dB over a constant. expected: its PSNR, dB. error: the squared error that set the steps.
    added: of `Part`.
    """
    found = max(ALWAYS_ALLOWED_DB, min(MAX_DB_LOST, MAX_LEAD_LOST * lead))
    if added is not None and error:  # steps of a part that are coarser than its own error gives cost more
        own = error_of(expected)
        found += max(0.0, psnr_of(own * (1 + added)) - psnr_of(own + added * error))
    return found


def recipe_while_rounding(n_passes: float | None, config: SirenConfig, n_voxels: int, is_gpu: bool) -> Recipe:
    """The recipe of training while rounding, with the learning rate of train.py. n_passes: None for the default."""
    default = default_recipe(n_voxels, config, n_passes=n_passes if is_gpu else None, is_gpu=is_gpu)
    if n_passes is None:  # as many steps on a GPU as on a CPU, of larger batches
        n_passes = max(min(MAX_PASSES_WHILE_ROUNDING, TRAINED_VOXELS / n_voxels), passes_for_min_steps(n_voxels))
        n_passes *= default.batch / BATCH
    return dataclasses.replace(default, n_passes=n_passes)


def relative_rate(psnr: float) -> float:
    """The learning rate while rounding, relative to train.py's. psnr: of the network, dB; NaN counts as 0."""
    return RATE * 0.5 ** (max(0.0, psnr) / DB_PER_RATE_HALVING - 1)  # max() in this order turns NaN into 0.0


def decibels_lost(before: NeuralField, after: NeuralField, psnr: float, is_exact: bool) -> float:
    """About how much PSNR rounding has cost, in dB, by what the field was before and after it on a coarse grid.

    psnr: of the field before, in dB. is_exact: whether it decodes every integer of its volume exactly; its error then
    counts as that of rounding to integers. NaN if the PSNR is unknown, or if all is missing there.
    """
    own = float(np.square(1 / _extent(before)).mean()) / 12 if is_exact else 10 ** (-psnr / 10)
    as_float = not is_exact and before.header.value_range.has_fractions
    added = _mean_square(before, after, COARSE, as_float)
    return 10 * math.log10(1 + added / own) if own > 0 and not math.isnan(added) else math.nan


def integers_lost(before: NeuralField, after: NeuralField, psnr: float) -> float:
    """At least how much PSNR rounding has cost the integers that a field decodes to, in dB, by those on a grid.

    psnr: of the integers before, in dB. The weights of a mask may hardly change its values and yet move many of them
    across the border between 0 and 1. The RMSE after is at least the RMS of the difference minus the RMSE before.
    0 if the PSNR is unknown, or infinite.
    """
    ratio = math.sqrt(_mean_square(before, after, FINE, as_float=False) / (10 ** (-psnr / 10) or math.inf))
    return 20 * math.log10(ratio - 1) if ratio > 2 else 0.0


def _extent(field: NeuralField) -> np.ndarray:
    """The extent of each component's range, 1 where that is 0."""
    return np.where(field.values.extent > 0, field.values.extent, 1.0)


def _mean_square(before: NeuralField, after: NeuralField, most: int, as_float: bool) -> float:
    """The mean square of the difference of two fields, of values whose range is 1, without missing voxels.

    most: positions along an axis of the grid that is compared. as_float: before values are rounded to integers. NaN if
    all is missing there.
    """
    grid, extent = Grid(tuple(np.linspace(0, n - 1, min(n, most)) for n in before.header.shape)), _extent(before)
    a, b = (field.on_grid(grid, as_float=as_float).reshape(-1, len(extent)) for field in (before, after))
    squares = np.square((np.subtract(a, b, dtype=wide_float(a.dtype)) / extent).astype(np.float64))
    squares = squares[np.isfinite(squares) & ~is_missing(a, before.header.fill)[:, None]]
    return float(squares.mean()) if len(squares) else math.nan


def coarsest_exact(field: NeuralField, rounded: Callable[[float], tuple[Result, NeuralField]]) -> Result | None:
    """The coarsest rounding without a change of any integer that the field decodes to; None if there is none.

    rounded: the rounding for a mean squared error of the network, and what it decodes to. The error is halved until no
    integer changes. In a large volume, only `measured_boxes` count.
    """
    chosen = measured_boxes(np.broadcast_to(field.header.low, (*field.header.shape, field.header.n_components)))
    before, best = field.lazy(), None
    fewest, most = 0, MAX_HALVINGS  # bisection: between them lie the fewest halvings that change no integer
    while fewest < most:
        halvings = (fewest + most) // 2
        found, after = rounded(0.5**halvings / MSE_ADDED_BY_ROUNDING)
        after = after.lazy()
        if all(np.array_equal(before[box], after[box]) for box in chosen):
            best, most = found, halvings
        else:
            fewest = halvings + 1
    return best
