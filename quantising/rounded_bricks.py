"""Rounds the networks of all bricks, each in a process of its own, with one policy for the whole."""

from __future__ import annotations

import dataclasses
import math

import torch

from cli.progress import NoProgress, Parts, Progress
from field.blob import decode_field, encode_blob
from field.bricks import Bricks, StoredNetwork, brick_boxes
from field.layers import SirenConfig
from field.neural_field import NeuralField
from field.quantised import QuantisedLayer
from quantising import work
from quantising.network import NetworkRounding
from quantising.policy import Part, RoundingOptions, coarsest_exact, error_to_add
from siren import net_of
from training.cutting import count_held, passes_for, passes_over
from training.devices import kernels_for, memory_of
from training.recipe import error_of, psnr_of
from training.survey import brick_volume, error_factor, missing_in, ready_to_cut
from training.workers import Report, Workers, most_work_first
from utils import Geometry, Volume, VolumeHeader, find_missing, shape_of

GPU_PROCESS_BYTES = 4 << 30  # memory of a GPU for each process that rounds on it
PASSES = 0.25  # over each brick while it is rounded / while it is trained, by default: more gain 0.2 dB at most
Rounded = list[tuple[SirenConfig, list[QuantisedLayer]]]  # the settings and the layers of each brick that has a network


class BricksRounding:
    """The rounding of all networks of a field in bricks to integers. The arguments are as of NetworkRounding."""

    def __init__(
        self,
        options: RoundingOptions,
        bricks: Bricks,
        header: VolumeHeader,
        volume: Volume | None,
        device: torch.device,
        progress: Progress,
    ):
        self.options, self.bricks, self.header, self.volume = options, bricks, header, volume
        self.device, self.progress = device, progress
        self.workers = Workers(most_processes(options.n_threads, device))
        self.boxes = brick_boxes(header.shape, bricks.cut.counts, bricks.cut.mirrors)
        self.n_held = count_held(header, bricks.cut.mirrors)
        self.configs = {k: network.config for k, network in enumerate(bricks.networks) if network}

    def layers(self, psnr: float, is_exact: bool) -> Rounded:
        """The networks in integers, in the order of their bricks.

        psnr: of the whole field, in dB; NaN if unknown. is_exact: whether the whole field decodes every integer of its
        volume exactly.
        """
        by_bits = self.options.bits is not None
        volume = None if by_bits and self.options.n_passes == 0 else self.volume  # then it tells nothing
        if volume:
            kernels_for(self.device)  # here first: compiled once, and one warning if that is impossible
        with self.workers:
            exact = is_exact and not by_bits and self._exactly()
            return exact or self._all(psnr, volume and ready_to_cut(volume))

    def _exactly(self) -> Rounded | None:
        """See `coarsest_exact`. The whole field is compared: where bricks meet, an integer depends on several."""
        n_threads = self.options.n_threads

        def rounded(error: float) -> tuple[Rounded, NeuralField]:
            found = self._all(psnr_of(error), None)
            readable = decode_field(encode_blob(self.header, found, cut=self.bricks.cut), large=True)
            return found, NeuralField(*readable, self.device, n_threads)

        return coarsest_exact(NeuralField(self.header, self.bricks, self.device, n_threads), rounded)

    def _all(self, psnr: float, volume: Volume | None) -> Rounded:
        """As `layers`, with steps that follow from the PSNR. volume: ready to be cut; None for no training.

        One more bit for a weight halves its step: the squared error that it adds falls to a quarter. Bytes are spent
        best where each bit gains the same. So each weight, of whatever brick, adds the same squared error, summed over
        the voxels: a brick with twice the weights may add twice the error, also if it has fewer voxels.
        """
        n_passes, n_all, shares = self._passes(volume), self.bricks.n_parameters, {}
        part = Part(added=self._error_to_add(psnr, volume) if volume and n_passes else None, n_all=n_all)
        for k, config in self.configs.items():
            n_samples = (n_passes or 0.0) * math.prod(shape_of(self.boxes[k]))
            shares[k] = work.of_training(n_samples, config.n_parameters) + work.of_factors(config, n_all)
        self.progress.plan(sum(shares.values()))
        per_weight = math.nan  # squared error that rounding may add, for each weight
        if math.isfinite(psnr):
            per_weight = error_of(psnr) * self.n_held / max(n_all, 1)

        found, n_again = {}, 0
        tasks = ((k, self._task(k, n_passes, part, per_weight, volume)) for k in most_work_first(shares))
        parts = Parts(self.progress, shares)
        for k, (layers, is_again) in self.workers.each_done(_round_brick, tasks, sum(shares.values()), parts.update):
            found[k], n_again = layers, n_again + is_again
            parts.update(k, 1.0, bricks=f"{len(found)} of {len(shares)}")
        if n_again:
            what = "again " + "with finer steps, or " * (self.options.bits is None) + "without training"
            self.progress.say(f"rounding with training has cost too much in {n_again} of {len(found)} bricks: {what}")
        return [(self.configs[k], found[k]) for k in sorted(found)]

    def _passes(self, volume: Volume | None) -> float | None:
        """The passes over a brick that misses no voxel; None if neither the options nor a volume tell."""
        if self.options.n_passes is not None or not volume:
            return self.options.n_passes
        n_all, n_images = self.bricks.n_parameters, self.header.n_present / self.n_held
        return PASSES * passes_for(self.n_held, n_all, len(self.boxes), self.device.type == "cuda", n_images)

    def _error_to_add(self, psnr: float, volume: Volume) -> float | None:
        """See `error_to_add`. None where the steps do not follow from an error."""
        if self.options.bits is not None or math.isnan(psnr):
            return None
        return error_to_add(volume, self.header.value_range, psnr)

    def _task(self, k: int, n_passes: float | None, part: Part, per_weight: float, volume: Volume | None) -> tuple:
        """What `_round_brick` takes for a brick. part: without its error. per_weight: squared error, see `_all`."""
        box, low, high = self.boxes[k], self.bricks.cut.low[k], self.bricks.cut.high[k]
        brick = brick_volume(volume, self.header.value_range, box) if volume else None
        missing = find_missing(brick.values, brick.fill) if brick else missing_in(self.header, box)
        header = VolumeHeader(shape_of(box), low, high, Geometry.plain(len(box)), missing)
        error = per_weight * self.configs[k].n_parameters / max(header.n_present, 1) / error_factor(low, high)
        part = part._replace(error=None if math.isnan(error) else error)
        if n_passes and self.options.n_passes is None:
            n_passes = passes_over(n_passes, header.n_present, header.n_voxels)
        options = dataclasses.replace(self.options, n_passes=n_passes, seed=self.options.seed + k, n_threads=1)
        return options, part, self.bricks.networks[k], header, brick, self.device


def most_processes(n_threads: int, device: torch.device) -> int:
    """The most processes that round bricks at a time: one a core, on a GPU within GPU_PROCESS_BYTES.

    Most of the rounding is the search for integers, on the CPU, so one process would leave a GPU idle.
    """
    return max(int(min(n_threads, memory_of(device) / GPU_PROCESS_BYTES)), 1)


def _round_brick(
    options: RoundingOptions,
    part: Part,
    network: StoredNetwork,
    header: VolumeHeader,
    brick: Volume | None,
    device: torch.device,
    report: Report,
) -> tuple[list[QuantisedLayer], bool]:
    """The layers of a brick in integers, and whether it was rounded more than once."""
    progress = NoProgress(report)
    rounding = NetworkRounding(options, net_of(*network), header, brick, device, progress, part)
    return rounding.layers(math.nan, False), progress.n_said > 0
