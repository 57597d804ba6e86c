"""Rounds the weights of one network: without a change of its integers, with training on the volume, or without it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

from cli.progress import Progress
from field.metrics import compare, measured_boxes
from field.neural_field import NeuralField
from field.quantised import QuantisedLayer
from quantising import codebooks, policy, rounding, work
from quantising.compensation import CompensationFactor, CompensationFactors, compensated_sensitivities, layer_sizes
from quantising.order import in_order
from quantising.policy import WHOLE, Part, RoundingOptions
from quantising.sensitivity import N_POINTS, choose_steps, quasirandom_points, sensitivities
from siren import FieldNet
from training.recipe import Recipe, psnr_of
from training.sampler import VoxelSampler
from training.streaming import make_sampler
from training.survey import ready_to_cut
from utils import Volume, VolumeHeader

MAX_COMPENSATED = 1 << 19  # most weights to compensate without training: a gigabyte of factors, a minute a rounding


class NetworkRounding:
    """The rounding of one network to integers, as the options ask.

    volume: None for rounding without training. device: that trains and decodes. progress: is told of the work. part: of
    a field in bricks.
    """

    def __init__(
        self,
        options: RoundingOptions,
        net: FieldNet,
        header: VolumeHeader,
        volume: Volume | None,
        device: torch.device,
        progress: Progress,
        part: Part = WHOLE,
    ):
        self.options, self.net, self.header, self.volume = options, in_order(net), header, volume
        self.device, self.progress, self.part = device, progress, part
        self.bits = options.bits or policy.DEFAULT_BITS  # that give the steps where no error does
        self.is_trained = volume is not None and options.n_passes != 0
        # Whether the weights are compensated also without training: else each is rounded to the nearest.
        self.is_compensated = options.quantizer == "uniform" and net.config.n_parameters <= MAX_COMPENSATED
        self.factors: Iterable[CompensationFactor] = []

    def layers(self, psnr: float, is_exact: bool) -> list[QuantisedLayer]:
        """The layers in integers.

        psnr: of the network in dB, before values are rounded to integers; NaN if unknown. is_exact: whether the network
        decodes every integer of its volume exactly. With a volume, both are measured, unless bits give the steps.
        """
        if self.header.value_range.is_constant:
            return rounding.zero_layers(self.net)
        self._plan_work()
        by_bits, decoded = self.options.bits is not None, math.nan
        if self.volume and not by_bits:
            decoded, psnr = self._measured_psnrs()
            is_exact = self.header.value_range.is_integer and decoded == math.inf
        is_exact = is_exact and not by_bits
        error = None if by_bits else policy.error_for_steps(psnr, self.part.error)
        # A brick without errors, as of a mask, is not trained: its learning rate would be 0, see `relative_rate`.
        has_no_errors = error is not None and decoded == math.inf
        is_trained = self.is_trained and not (is_exact or has_no_errors)
        self.factors = self._compensation_factors(is_trained)
        if is_trained:
            if error is not None:
                self.volume = ready_to_cut(self.volume)  # it is read in blocks: see `gain_of_doubling`
            sampler = make_sampler(self.volume.values, self.header.value_range, self.device)
            return self._by_bits(sampler) if error is None else self._by_error(sampler, error, decoded)
        return (is_exact and self._exactly()) or self._without_training(error)

    # --- the ways to round ---

    def _exactly(self) -> list[QuantisedLayer] | None:
        """The layers without a change of any decoded integer; None if impossible. See `policy.coarsest_exact`."""

        def rounded(error: float) -> tuple[list[QuantisedLayer], NeuralField]:
            layers = self._without_training(error)
            return layers, self._field(self._loaded(layers))

        return policy.coarsest_exact(self._field(self.net), rounded)

    def _by_bits(self, sampler: VoxelSampler) -> list[QuantisedLayer]:
        """The layers by steps that bits give: with training between the roundings, unless they are better without."""
        alone = self._without_training(None)
        self.progress.plan(self._measuring_work)
        expected = self._measured_psnr(self._loaded(alone))
        if expected == math.inf:  # there is no error to make up for: the learning rate would be 0
            return alone
        layers, found = self._training(sampler, expected)(bits=self.bits)
        if found >= expected:
            return layers
        self.progress.say(f"rounding with training is {expected - found:.1f} dB worse than without: it is left out")
        return alone

    def _by_error(self, sampler: VoxelSampler, error: float, expected: float) -> list[QuantisedLayer]:
        """The layers by steps that follow from an error, with training between the roundings.

        Coarse steps are tried first, then finer ones. If both lose too much quality, the layers are rounded without
        training, unless that gains at most WORTH_DB. error: the network's mean squared error, of normalised values.
        expected: PSNR in dB of what the network decodes to.
        """
        round_by, lead = self._training(sampler, expected), expected - psnr_of(sampler.variance)
        added = self.part.added
        if added is None:
            added = policy.error_to_add(self.volume, self.header.value_range, expected)
        least = expected - policy.allowed_loss(lead, expected, error, self.part.added)
        layers, found = round_by(error=added * error)
        if not found >= least:  # true for NaN
            self.progress.say(f"rounding with training has cost {expected - found:.1f} dB: again with finer steps")
            self.progress.plan(self.training_work + self._measuring_work)
            layers, found = round_by(error=added / policy.FINER * error)
        if found >= least:
            return layers
        self.progress.say(f"rounding with training has cost {expected - found:.1f} dB: again without training")
        alone = self._without_training(error)
        self.progress.plan(self._measuring_work)
        cost = expected - self._measured_psnr(self._loaded(alone))
        if not found >= expected - cost - policy.WORTH_DB:
            return alone
        self.progress.say(f"rounding without training costs {cost:.1f} dB, in a larger file: with training after all")
        return layers

    def _training(self, sampler: VoxelSampler, expected: float) -> Callable[..., tuple[list[QuantisedLayer], float]]:
        """A function that rounds with training. It takes bits or error, as `choose_steps`. It gives layers and PSNR.

        expected: PSNR in dB, from which the learning rate follows.
        """
        recipe = self._recipe()
        recipe = dataclasses.replace(recipe, lr=policy.relative_rate(expected) * recipe.lr)
        sensitivity, on_step = compensated_sensitivities(self.net, self.factors), work.step_reporter(self.progress)

        def round_by(**fineness: float) -> tuple[list[QuantisedLayer], float]:
            rounded, options = copy.deepcopy(self.net).to(self.device), self.options
            steps = choose_steps(self.net, sensitivity, **fineness)
            layers = rounding.round_and_train(
                rounded, sampler, steps, self.factors, recipe, options.seed, on_step, options.n_threads
            )
            return layers, self._measured_psnr(rounded)

        return round_by

    def _without_training(self, error: float | None) -> list[QuantisedLayer]:
        """The layers, without training. error: as of `_by_error`; None: bits give the steps."""
        net, options, header = self.net, self.options, self.header
        fineness = {"bits": self.bits} if error is None else {"error": policy.MSE_ADDED_BY_ROUNDING * error}
        if self.is_compensated and error is not None:
            return rounding.round_to_error(net, header, self.factors, fineness["error"])
        if self.is_compensated:
            steps = choose_steps(net, compensated_sensitivities(net, self.factors), **fineness)
            return rounding.round_layer_by_layer(copy.deepcopy(net), steps, self.factors)
        points = quasirandom_points(header.shape, N_POINTS, missing=header.missing)
        steps = choose_steps(net, sensitivities(net, points), **fineness)
        if options.quantizer == "kmeans":
            return codebooks.round_to_codebooks(net, self.bits, steps)
        return rounding.round_layers(net, steps)

    # --- what they need ---

    def _loaded(self, layers: list[QuantisedLayer]) -> FieldNet:
        """The network with the weights that the integers represent."""
        net = copy.deepcopy(self.net)
        rounding.load(net, layers)
        return net

    def _field(self, net: FieldNet) -> NeuralField:
        return NeuralField.of(net, self.header, self.device, self.options.n_threads)

    def _measured_psnr(self, net: FieldNet, as_float: bool = False) -> float:
        """PSNR of a network in dB, over the range of the header. as_float: see `NeuralField.on_grid`."""
        chosen, decoded = measured_boxes(self.volume.values), self._field(net).lazy(as_float=as_float)
        chosen = self.progress.each(chosen, self._measuring_work)
        return compare(self.volume.array, decoded, self.header.value_range, chosen).psnr

    def _measured_psnrs(self) -> tuple[float, float]:
        """PSNR in dB of what the network decodes to, and of its values before they are rounded to integers."""
        decoded = self._measured_psnr(self.net)
        if not self.header.value_range.is_integer:
            return decoded, decoded
        return decoded, self._measured_psnr(self.net, as_float=self.header.value_range.has_fractions)

    def _compensation_factors(self, is_trained: bool) -> Iterable[CompensationFactor]:
        if not (is_trained or self.is_compensated):
            return []

        def on_products(n: float) -> None:
            self.progress.advance(work.PER_PRODUCT * n)

        net = copy.deepcopy(self.net).to(self.device)
        factors = CompensationFactors(net, self.header, on_products, self.part.n_all)
        return list(factors) if self.is_compensated else factors

    def _recipe(self) -> Recipe:
        config, is_gpu = self.net.config, self.device.type == "cuda"
        return policy.recipe_while_rounding(self.options.n_passes, config, self.header.n_present, is_gpu)

    # --- how much work it is ---

    def _plan_work(self) -> None:
        """Add the work that rounding will probably be to the progress."""
        if self.volume and self.options.bits is None:
            self.progress.plan((1 + self.header.value_range.is_integer) * self._measuring_work)
        if self.is_trained or self.is_compensated:
            n_passes = 1 if self.is_compensated else 2
            self.progress.plan(n_passes * work.of_factors(self.net.config, self.part.n_all))
        if self.is_trained:
            self.progress.plan(self.training_work + self._measuring_work)

    @property
    def _measuring_work(self) -> float:
        return work.of_comparison(self.net.config.n_parameters, self.volume)

    @property
    def training_work(self) -> float:
        """The work of training once while the layers are rounded."""
        sizes = np.array(layer_sizes(self.net))
        left = [1 - done / sizes.sum() for done in np.cumsum(sizes)[:-1]]  # to train, after each layer that is rounded
        n_samples = self._recipe().n_passes * self.header.n_present
        return work.of_training(n_samples, self.net.config.n_parameters, float(np.mean(left)) if left else 1.0)
