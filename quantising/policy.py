"""What net_compress.py chooses: how finely weights are rounded, with or without training, and what that may cost."""

from __future__ import annotations

import bisect
import copy
import dataclasses
import math
from collections.abc import Collection

import numpy as np
import torch

from cli import console
from field.blob import QuantisedLayer
from field.metrics import compare, measured_boxes
from field.neural_field import NeuralField
from quantising import codebooks, rounding
from quantising.compensation import CompensationFactor, CompensationFactors, compensated_sensitivities
from quantising.sensitivity import N_POINTS, choose_steps, quasirandom_points, sensitivities
from siren import FieldNet, count_parameters
from training.recipe import default_recipe, passes_for_min_steps, psnr_of
from training.streaming import make_sampler
from utils import Volume, VolumeHeader

MSE_ADDED_BY_ROUNDING = 0.02  # relative to the network's own mean squared error: it costs 0.1 dB
DEFAULT_BITS = 9  # of the values of a hidden matrix, where the network's quality does not say how many
MAX_HALVINGS = 64  # of the error, where integers are to come back as they are
# With training, the error that rounding is foretold to add. Steps of the first cost about as much quality as a smaller
# network of equal bytes. The text says what is tried next, where training has not made up for them.
TRIED_WITH_TRAINING = {0.4: "with finer steps", 0.1: "without training"}
TRIED_AT_GIVEN_STEPS = {1.0: "without training"}
MAX_DB_LOST = 2.0  # by rounding with training,
MAX_LEAD_LOST = 0.25  # and at most this part of the network's lead in dB over a constant,
ALWAYS_ALLOWED_DB = 0.1  # but always this loss: rounding without training costs as much
MAX_COMPENSATED = (
    1 << 19
)  # weights: compensation takes up to a minute and a gigabyte, a million are to take two seconds
TRAINED_VOXELS = 1.25e7  # seen by the training while rounding
MAX_PASSES_WHILE_ROUNDING = 48.0
RATE = 0.15  # learning rate of that training for a network of 30 dB, relative to train.py's
DB_PER_RATE_HALVING = 30.0  # a better network has less to make up for, and more to undo


@dataclasses.dataclass(frozen=True)
class RoundingOptions:
    """What the user asks for. bits, n_passes: None where it is left open. quantizer: "uniform" or "kmeans"."""

    bits: int | None = None
    quantizer: str = "uniform"
    n_passes: float | None = None
    seed: int = 0
    n_threads: int = 1


def quantise_network(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume | None,
    psnr: float,
    is_exact: bool,
    device: torch.device,
) -> list[QuantisedLayer]:
    """The layers of the network in integers, as the options ask for it.

    psnr: of the network in dB, before values are rounded to integers; NaN where it is not known. is_exact: whether the
    network gives back every integer of its volume.
    """
    if not header.values.extent.any():
        return rounding.zero_layers(net)
    error, decoded = None, math.nan
    if options.bits is not None:
        is_exact = False
    else:
        if volume:
            psnr = decoded = measured_psnr(options, net, header, volume, device)
            is_exact = holds_integers(header) and decoded == math.inf
        if volume and holds_integers(header):
            unrounded = measured_psnr(options, net, header, volume, device, as_float=True)
            psnr = unrounded if math.isfinite(unrounded) else decoded  # float64 does not tell large integers apart
        error = 4 * 10 ** (-psnr / 10) if math.isfinite(psnr) else None
    is_trained = volume is not None and options.n_passes != 0 and not is_exact
    factors = compensation_factors(options, copy.deepcopy(net).to(device), header.shape, is_trained)
    layers = None
    if is_exact:
        layers = round_exactly(options, net, header, factors, device)
    elif is_trained:
        layers = round_with_volume(options, net, header, volume, error, decoded, factors, device)
    return layers or round_without_volume(options, net, header.shape, error, factors)


def compensation_factors(
    options: RoundingOptions, net: FieldNet, shape: tuple[int, ...], is_trained: bool
) -> Collection[CompensationFactor]:
    """The compensation factors of a network; none where each weight is rounded by itself."""
    if options.quantizer == "kmeans" or not (is_trained or _is_narrow(net)):
        return []
    factors = CompensationFactors(net, shape)
    if not _is_narrow(net):
        return factors
    with console.Progress("rounding") as progress:
        return list(progress.each(factors))


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

    error: the network's mean squared error, of normalised values; None where the steps do not follow from it.
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
    """The layers, rounded about as coarsely as leaves every decoded integer as it is. None if no rounding does.

    The error that rounding may add is halved until that is so. Of a large volume, `measured_boxes` are compared.
    """
    chosen = measured_boxes(np.broadcast_to(header.low, (*header.shape, net.config.d_out)))
    before = NeuralField.of(net, header, device, options.n_threads).lazy()
    tried = {}

    def is_fine_enough(halvings: int) -> bool:
        rounded = copy.deepcopy(net)
        tried[halvings] = round_without_volume(
            options, rounded, header.shape, 0.5**halvings / MSE_ADDED_BY_ROUNDING, factors
        )
        rounding.load(rounded, tried[halvings])
        after = NeuralField.of(rounded, header, device, options.n_threads).lazy()
        return all(np.array_equal(before[box], after[box]) for box in chosen)

    return tried.get(bisect.bisect_left(range(MAX_HALVINGS), True, key=is_fine_enough))


def measured_psnr(
    options: RoundingOptions,
    net: FieldNet,
    header: VolumeHeader,
    volume: Volume,
    device: torch.device,
    as_float: bool = False,
) -> float:
    """PSNR of a network in dB, over the range of the header; see NeuralField.on_grid for `as_float`."""
    chosen = measured_boxes(volume.values)
    decoded = NeuralField.of(net, header, device, options.n_threads).lazy(as_float=as_float)
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
) -> list[QuantisedLayer] | None:
    """The layers in integers, with training in between.

    error: the network's mean squared error; None with --cluster_bits, which gives the steps. expected: PSNR in dB of
    what the network decodes to, where `error` is given. Tries coarse steps, then finer ones. Returns None if both lose
    too much quality; the caller then rounds without training. At given steps, the better of rounding with and without
    training is returned.
    """
    n_voxels = header.n_present
    n_passes = options.n_passes
    if n_passes is None:
        n_passes = max(min(MAX_PASSES_WHILE_ROUNDING, TRAINED_VOXELS / n_voxels), passes_for_min_steps(n_voxels))
    default = default_recipe(n_voxels, net.config)
    sampler = make_sampler(volume.values, header.values, device)
    sensitivity = compensated_sensitivities(net, factors)
    alone, tries = None, TRIED_WITH_TRAINING
    if error is None:
        rounded, tries = copy.deepcopy(net), TRIED_AT_GIVEN_STEPS
        alone = round_without_volume(options, rounded, header.shape, error, factors)
        rounding.load(rounded, alone)
        expected = measured_psnr(options, rounded, header, volume, device)
    rate = RATE * 0.5 ** (max(0.0, expected) / DB_PER_RATE_HALVING - 1)  # in this order, NaN becomes 0.0
    recipe = dataclasses.replace(default, n_passes=n_passes, lr=rate * default.lr)
    lead = expected - psnr_of(sampler.variance)
    most_lost = 0.0 if alone else max(ALWAYS_ALLOWED_DB, min(MAX_DB_LOST, MAX_LEAD_LOST * lead))
    with console.Progress("rounding") as progress:

        def on_progress(fraction: float, psnr: float) -> None:
            progress.update(fraction, PSNR=f"{psnr:.1f} dB")

        for added, otherwise in tries.items():
            fineness = {"bits": options.bits or DEFAULT_BITS} if error is None else {"error": added * error}
            steps = choose_steps(net, sensitivity, **fineness)
            rounded = copy.deepcopy(net).to(device)
            layers = rounding.round_and_train(
                rounded, sampler, steps, factors, recipe, options.seed, on_progress, options.n_threads
            )
            found = measured_psnr(options, rounded, header, volume, device)
            if found >= expected - most_lost:
                return layers
            progress.say(f"rounding with training has cost {expected - found:.1f} dB: again {otherwise}")
            progress.start(0.0)
    return alone


def holds_integers(header: VolumeHeader) -> bool:
    """Whether the field's values are integers."""
    return header.low.dtype.kind in "iu"
