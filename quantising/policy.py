"""The choices of net_compress.py: the rounding steps, rounding with or without training, and the loss it allows."""

from __future__ import annotations

import bisect
import copy
import dataclasses
import math
from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np
import torch

from cli.progress import Progress
from field.bricks import Bricks
from field.metrics import compare, measured_boxes
from field.network_chunk import QuantisedLayer
from field.neural_field import NeuralField
from quantising import codebooks, rounding, work
from quantising.compensation import CompensationFactor, CompensationFactors, compensated_sensitivities, layer_sizes
from quantising.sensitivity import N_POINTS, choose_steps, quasirandom_points, sensitivities
from siren import FieldNet, count_parameters
from training.fitting import Fit
from training.recipe import BATCH, CHECK_STEPS, Recipe, default_recipe, error_of, passes_for_min_steps, psnr_of
from training.streaming import make_sampler
from utils import Volume, VolumeHeader, shape_of

MSE_ADDED_BY_ROUNDING = 0.05  # relative to the network's own mean squared error; 0.05 costs 0.2 dB
DEFAULT_BITS = 9  # bits for a value of a hidden matrix if the network's PSNR is unknown
MAX_HALVINGS = 64  # halvings of the error that `coarsest_exact` tries, at most
# Limits of the error that rounding with training adds, relative to the network's own: see `error_to_add`.
LEAST_ADDED, MOST_ADDED = 0.05, 0.4
ADDED_PER_DB = 0.14  # of it for each decibel that a doubling of the network has gained
FINER = 4.0  # if training does not make up for the error, a second try adds less by this factor
MAX_DB_LOST = 2.0  # most that rounding with training may lose, dB
MAX_LEAD_LOST = 0.25  # most that rounding with training may lose, as a part of the network's lead in dB over a constant
ALWAYS_ALLOWED_DB = 0.2  # loss that is always allowed, dB: rounding without training costs as much
MOST_ERROR = 4.0  # most that RoundingOptions.error may be, relative to the network's own
MAX_COMPENSATED = 1 << 19  # most weights to compensate without training: they take up to a minute and a gigabyte
TRAINED_VOXELS = 1.25e7  # samples that training while rounding uses by default
MAX_PASSES_WHILE_ROUNDING = 48.0  # most passes that training while rounding uses by default
RATE = 0.15  # learning rate while rounding a network of 30 dB, relative to train.py's
DB_PER_RATE_HALVING = 30.0  # gain in PSNR that halves RATE, dB: a better network has less to make up for, more to undo

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class RoundingOptions:
    """The options for rounding. bits, n_passes: None if left open. quantizer: "uniform" or "kmeans".

    Of a part of a field: error, the mean squared error, of normalised values, that sets the steps in place of the
    network's own; added, see `error_to_add`, of all parts together; n_all, the number of their weights.
    """

    bits: int | None = None
    quantizer: str = "uniform"
    n_passes: float | None = None
    seed: int = 0
    n_threads: int = 1
    error: float | None = None
    added: float | None = None
    n_all: int | None = None


def quantise_network(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume | None,
    psnr: float,
    is_exact: bool,
    device: torch.device,
    progress: Progress,
) -> list[QuantisedLayer]:
    """The layers of the network in integers, rounded as the options ask. `progress` is told of the work.

    volume: None for rounding without training. psnr: of the network in dB, before values are rounded to integers; NaN
    if unknown. is_exact: whether the network decodes every integer of its volume exactly.
    """
    if not header.values.extent.any():
        return rounding.zero_layers(net)
    plan_work(options, net, header, volume, device, progress)
    error, decoded = None, math.nan
    if options.bits is not None:
        is_exact = False
    else:
        if volume:
            decoded, psnr = measured_psnrs(options, net, header, volume, device, progress)
            is_exact = holds_integers(header) and decoded == math.inf
        error = error_for_steps(options, psnr)
    is_trained = volume is not None and options.n_passes != 0 and not is_exact
    factors = compensation_factors(options, copy.deepcopy(net).to(device), header.shape, is_trained, progress)
    layers = None
    if is_exact:
        layers = round_exactly(options, net, header, factors, device)
    elif is_trained:
        layers = round_with_volume(options, net, header, volume, error, decoded, factors, device, progress)
    return layers or round_without_volume(options, net, header.shape, error, factors)


def error_for_steps(options: RoundingOptions, psnr: float) -> float | None:
    """The mean squared error, of normalised values, that sets the steps; None if it is unknown.

    That of the network. Of a part of a field: RoundingOptions.error, within MOST_ERROR. psnr: of the network, dB.
    """
    own = error_of(psnr) if math.isfinite(psnr) else None
    if options.error is None:
        return own
    return min(options.error, MOST_ERROR * own) if own else options.error


def plan_work(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """Add the work that rounding will probably be to `progress`."""
    is_trained = volume is not None and options.n_passes != 0
    if volume and options.bits is None:
        progress.plan((1 + holds_integers(header)) * measuring_work(net, volume))
    if options.quantizer != "kmeans" and (is_trained or _is_narrow(net)):
        progress.plan((1 if _is_narrow(net) else 2) * work.of_factors(net.config))
    if is_trained:
        progress.plan(work_while_rounding(options, net, header, device) + measuring_work(net, volume))


def measuring_work(networks: FieldNet | Bricks, volume: Volume) -> float:
    """The work of one comparison with the volume."""
    n_voxels = sum(math.prod(shape_of(box)) for box in measured_boxes(volume.values))
    n_bricks = len(networks.networks) if isinstance(networks, Bricks) else 1
    return work.of_measuring(n_voxels, networks.n_parameters / n_bricks)


def work_while_rounding(options: RoundingOptions, net: FieldNet, header: VolumeHeader, device: torch.device) -> float:
    """The work of training once while the layers are rounded."""
    n_passes = recipe_while_rounding(options, net, header, device).n_passes
    sizes = np.array(layer_sizes(net))
    trained = [1 - done / sizes.sum() for done in np.cumsum(sizes)[:-1]]  # after each layer that is rounded
    return work.of_training(n_passes * header.n_present, net.n_parameters, float(np.mean(trained)) if trained else 1.0)


def recipe_while_rounding(
    options: RoundingOptions, net: FieldNet, header: VolumeHeader, device: torch.device
) -> Recipe:
    """The recipe of training while rounding, with the learning rate of train.py."""
    n_voxels, n_passes, is_gpu = header.n_present, options.n_passes, device.type == "cuda"
    default = default_recipe(n_voxels, net.config, n_passes=n_passes if is_gpu else None, is_gpu=is_gpu)
    if n_passes is None:  # as many steps on a GPU as on a CPU, of larger batches
        n_passes = max(min(MAX_PASSES_WHILE_ROUNDING, TRAINED_VOXELS / n_voxels), passes_for_min_steps(n_voxels))
        n_passes *= default.batch / BATCH
    return dataclasses.replace(default, n_passes=n_passes)


def compensation_factors(
    options: RoundingOptions, net: FieldNet, shape: tuple[int, ...], is_trained: bool, progress: Progress
) -> Collection[CompensationFactor]:
    """The compensation factors of a network; none if each weight is rounded to the nearest."""
    if options.quantizer == "kmeans" or not (is_trained or _is_narrow(net)):
        return []

    def on_products(n: int) -> None:
        progress.advance(work.PER_PRODUCT * n)

    factors = CompensationFactors(net, shape, on_products, options.n_all)
    return list(factors) if _is_narrow(net) else factors


def _is_narrow(net: FieldNet) -> bool:
    return count_parameters(net.config) <= MAX_COMPENSATED


def round_without_volume(
    options: RoundingOptions,
    net: FieldNet,
    shape: tuple[int, ...],
    error: float | None,
    factors: Collection[CompensationFactor],
) -> list[QuantisedLayer]:
    """The layers in integers, without training.

    error: the network's mean squared error, of normalised values; None if a number of bits gives the steps.
    """
    is_compensated = len(factors) > 0 and _is_narrow(net)
    if is_compensated and error is not None:
        return rounding.round_to_error(net, shape, factors, MSE_ADDED_BY_ROUNDING * error)
    if is_compensated:
        sensitivity = compensated_sensitivities(net, factors)
    else:
        sensitivity = sensitivities(net, quasirandom_points(shape, N_POINTS))
    fineness = {"bits": options.bits or DEFAULT_BITS} if error is None else {"error": MSE_ADDED_BY_ROUNDING * error}
    steps = choose_steps(net, sensitivity, **fineness)
    if options.quantizer == "kmeans":
        return codebooks.round_to_codebooks(net, options.bits, steps)
    return rounding.round_layer_by_layer(net, steps, factors) if is_compensated else rounding.round_layers(net, steps)


def round_exactly(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    factors: Collection[CompensationFactor],
    device: torch.device,
) -> list[QuantisedLayer] | None:
    """The layers in integers without a change of any decoded integer; None if impossible. See `coarsest_exact`."""

    def rounded(error: float) -> tuple[list[QuantisedLayer], NeuralField]:
        rounded = copy.deepcopy(net)
        layers = round_without_volume(options, rounded, header.shape, error, factors)
        rounding.load(rounded, layers)
        return layers, NeuralField.of(rounded, header, device, options.n_threads)

    return coarsest_exact(NeuralField.of(net, header, device, options.n_threads), rounded)


def coarsest_exact(field: NeuralField, rounded: Callable[[float], tuple[Result, NeuralField]]) -> Result | None:
    """The coarsest rounding without a change of any integer that the field decodes to; None if there is none.

    rounded: the rounding for a mean squared error of the network, and what it decodes to. The error is halved until no
    integer changes. In a large volume, only `measured_boxes` count.
    """
    chosen = measured_boxes(np.broadcast_to(field.header.low, (*field.header.shape, field.header.n_components)))
    before, tried = field.lazy(), {}

    def is_fine_enough(halvings: int) -> bool:
        tried[halvings], after = rounded(0.5**halvings / MSE_ADDED_BY_ROUNDING)
        after = after.lazy()
        return all(np.array_equal(before[box], after[box]) for box in chosen)

    return tried.get(bisect.bisect_left(range(MAX_HALVINGS), True, key=is_fine_enough))


def measured_psnrs(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume,
    device: torch.device,
    progress: Progress,
) -> tuple[float, float]:
    """PSNR in dB of what a network decodes to, and of its values before they are rounded to integers."""
    decoded = measured_psnr(options, net, header, volume, device, progress)
    if not holds_integers(header):
        return decoded, decoded
    unrounded = measured_psnr(options, net, header, volume, device, progress, as_float=True)
    return decoded, unrounded if math.isfinite(unrounded) else decoded  # inf: float64 cannot tell large integers apart


def measured_psnr(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume,
    device: torch.device,
    progress: Progress,
    as_float: bool = False,
) -> float:
    """PSNR of a network in dB, over the range of the header. as_float: see `NeuralField.on_grid`."""
    chosen = measured_boxes(volume.values)
    decoded = NeuralField.of(net, header, device, options.n_threads).lazy(as_float=as_float)
    chosen = progress.each(chosen, measuring_work(net, volume))
    return compare(volume.array, decoded, header.values, chosen).psnr


def round_with_volume(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume,
    error: float | None,
    expected: float,
    factors: Collection[CompensationFactor],
    device: torch.device,
    progress: Progress,
) -> list[QuantisedLayer] | None:
    """The layers in integers, with training between the roundings of the layers.

    error: the network's mean squared error; None if --cluster_bits gives the steps. expected: PSNR in dB of what the
    network decodes to; needed if `error` is given. With `error`, coarse steps are tried first, then finer ones. The
    result is None if both lose too much quality; the caller then rounds without training. With --cluster_bits, the
    result is the better one of rounding with and without training.
    """
    sampler = make_sampler(volume.values, header.values, device)
    sensitivity = compensated_sensitivities(net, factors)
    alone = None
    if error is None:
        rounded = copy.deepcopy(net)
        alone = round_without_volume(options, rounded, header.shape, error, factors)
        rounding.load(rounded, alone)
        progress.plan(measuring_work(net, volume))
        expected = measured_psnr(options, rounded, header, volume, device, progress)
    recipe = recipe_while_rounding(options, net, header, device)
    recipe = dataclasses.replace(recipe, lr=relative_rate(expected) * recipe.lr)
    lead = expected - psnr_of(sampler.variance)
    most_lost = 0.0 if alone else allowed_loss(lead)
    if options.error is not None and error:  # steps of a part that are coarser than its own error gives cost more
        most_lost += expected - psnr_of(error_of(expected) + error)
    on_step = step_reporter(progress)
    finenesses = [{"bits": options.bits or DEFAULT_BITS}]
    if error is not None:
        added = error_to_add(lead, net.n_parameters) if options.added is None else options.added
        finenesses = [{"error": added * error}, {"error": added / FINER * error}]
    for n_left, fineness in zip(reversed(range(len(finenesses))), finenesses, strict=True):
        steps = choose_steps(net, sensitivity, **fineness)
        rounded = copy.deepcopy(net).to(device)
        layers = rounding.round_and_train(
            rounded, sampler, steps, factors, recipe, options.seed, on_step, options.n_threads
        )
        found = measured_psnr(options, rounded, header, volume, device, progress)
        if found >= expected - most_lost:
            return layers
        otherwise = "with finer steps" if n_left else "without training"
        progress.say(f"rounding with training has cost {expected - found:.1f} dB: again {otherwise}")
        if n_left:
            progress.plan(work_while_rounding(options, net, header, device) + measuring_work(net, volume))
    return alone


def relative_rate(psnr: float) -> float:
    """The learning rate while rounding, relative to train.py's. psnr: of the network, dB; NaN counts as 0."""
    return RATE * 0.5 ** (max(0.0, psnr) / DB_PER_RATE_HALVING - 1)  # max() in this order turns NaN into 0.0


def allowed_loss(lead: float) -> float:
    """The most that rounding with training may cost, dB. lead: of the network, in dB over a constant."""
    return max(ALWAYS_ALLOWED_DB, min(MAX_DB_LOST, MAX_LEAD_LOST * lead))


def error_to_add(lead: float, n_weights: int) -> float:
    """The squared error that the steps may add, relative to the network's own, for the best quality at equal bytes.

    lead: of the network, in dB over a constant. Steps that add twice the error make the file a tenth smaller. The less
    a larger network would gain, the less these bytes are worth. What its next doubling would gain is not known, but
    every doubling so far has gained lead / log2(n_weights) in the mean; and the next one 1.1 to 2.3 times as much, on
    seven volumes.
    """
    return min(max(ADDED_PER_DB * lead / math.log2(max(n_weights, 2)), LEAST_ADDED), MOST_ADDED)


def step_reporter(progress: Progress) -> Callable[[Fit], None]:
    """What tells `progress` of a step of training. Steps that a recovery takes back are further work."""
    latest = 0

    def on_step(fit: Fit) -> None:
        nonlocal latest
        trained = fit.trained.weights.numel() / fit.net.n_parameters
        step_work = work.of_training(fit.recipe.batch, fit.net.n_parameters, trained)
        if fit.step != 1:  # a new fit begins with step 1; a recovery goes back to one that was judged
            progress.plan((latest + 1 - fit.step) * step_work)
        figures = {"PSNR": f"{fit.psnr:.1f} dB"} if fit.step >= CHECK_STEPS else {}  # it has been judged
        progress.advance(step_work, **figures)
        latest = fit.step

    return on_step


def holds_integers(header: VolumeHeader) -> bool:
    """Whether the volume's values are integers."""
    return header.low.dtype.kind in "iu"
