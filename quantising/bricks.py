"""Rounds the networks of all bricks, each in a process of its own, with one policy for the whole."""

from __future__ import annotations

import dataclasses
import math

import torch

from cli.progress import NoProgress, Progress
from field.blob import decode_field, encode_blob
from field.bricks import Bricks, brick_boxes
from field.network_chunk import QuantisedLayer
from field.neural_field import NeuralField
from quantising import work
from quantising.network import NetworkRounding
from quantising.policy import RoundingOptions, coarsest_exact, error_to_add
from siren import FieldNet, SirenConfig, count_parameters
from training.cutting import brick_volume, count_held, error_scale, passes_for, ready_to_cut, survey
from training.recipe import error_of, psnr_of
from training.workers import each_done
from utils import Geometry, Volume, VolumeHeader, header_of, shape_of

PASSES = 0.25  # over each brick while it is rounded / while it is trained, by default: more gain 0.2 dB at most
Rounded = list[tuple[dict, list[QuantisedLayer]]]


def quantise_bricks(
    options: RoundingOptions,
    bricks: Bricks,
    header: VolumeHeader,
    volume: Volume | None,
    psnr: float,
    is_exact: bool,
    device: torch.device,
    progress: Progress,
) -> Rounded:
    """The description and the layers in integers of every brick that has a network, in order.

    psnr: of the whole field, in dB; NaN if unknown. is_exact: whether the whole field decodes every integer of its
    volume exactly. The other arguments are as of NetworkRounding.
    """
    exact = is_exact and options.bits is None and _quantise_exactly(options, bricks, header, device, progress)
    if exact:
        return exact
    return _quantise_all(options, bricks, header, volume and ready_to_cut(volume), psnr, device, progress)


def _quantise_exactly(
    options: RoundingOptions, bricks: Bricks, header: VolumeHeader, device: torch.device, progress: Progress
) -> Rounded | None:
    """See `coarsest_exact`. The whole field is compared: where bricks meet, an integer depends on several of them."""

    def rounded(error: float) -> tuple[Rounded, NeuralField]:
        found = _quantise_all(options, bricks, header, None, psnr_of(error), device, progress)
        readable = decode_field(encode_blob(header, found, cut=bricks.cut), large=True)
        return found, NeuralField.of_bricks(*readable, device, options.n_threads)

    return coarsest_exact(NeuralField.of_bricks(header, bricks, device, options.n_threads), rounded)


def _quantise_all(
    options: RoundingOptions,
    bricks: Bricks,
    header: VolumeHeader,
    volume: Volume | None,
    psnr: float,
    device: torch.device,
    progress: Progress,
) -> Rounded:
    """As `quantise_bricks`, with steps that follow from the PSNR.

    One more bit for each weight of a network takes three quarters of what its rounding adds to the error. So for the
    least bytes, rounding adds to each brick a squared error in proportion to its weights, not to its voxels.
    """
    counts, low, high, mirrors = bricks.cut
    n_voxels, boxes = count_held(header, mirrors), brick_boxes(header.shape, counts, mirrors)
    n_processes = options.n_threads if device.type == "cpu" else 1
    options = _options_of_a_brick(options, bricks, header, volume, psnr, device)
    configs = {k: SirenConfig(**network[0]) for k, network in enumerate(bricks.networks) if network}
    sizes = {k: math.prod(shape_of(boxes[k])) for k in configs}
    shares = {k: work.of_training((options.n_passes or 0.0) * sizes[k], count_parameters(config))
              + work.of_factors(config, options.n_all) for k, config in configs.items()}  # fmt: skip
    progress.plan(sum(shares.values()))
    per_weight = math.nan  # squared error that rounding may add, for each weight
    if math.isfinite(psnr):
        per_weight = error_of(psnr) * n_voxels / max(bricks.n_parameters, 1)

    def arguments(k: int) -> tuple:
        if volume:
            brick = brick_volume(volume, header.values, boxes[k])
            own = dataclasses.replace(header_of(brick), low=low[k], high=high[k])
        else:
            shape = shape_of(boxes[k])
            brick, own = None, VolumeHeader(shape, low[k], high[k], Geometry.plain(len(shape)))
        error = per_weight * count_parameters(configs[k]) / sizes[k] / error_scale(low[k], high[k])
        part = dataclasses.replace(options, error=None if math.isnan(error) else error, seed=options.seed + k)
        return part, configs[k], bricks.networks[k][1], own, brick, device

    found, n_again = {}, 0
    tasks = ((k, arguments(k)) for k in sorted(shares, key=lambda k: (-shares[k], k)))
    for k, (layers, is_again) in each_done(_quantise_brick, tasks, min(n_processes, len(shares))):
        found[k], n_again = layers, n_again + is_again
        progress.advance(shares[k], bricks=f"{len(found)} of {len(shares)}")
    if n_again:
        what = "again " + "with finer steps, or " * (options.bits is None) + "without training"
        progress.say(f"rounding with training has cost too much in {n_again} of {len(found)} bricks: {what}")
    return [(dataclasses.asdict(configs[k]), found[k]) for k in sorted(found)]


def _options_of_a_brick(
    options: RoundingOptions,
    bricks: Bricks,
    header: VolumeHeader,
    volume: Volume | None,
    psnr: float,
    device: torch.device,
) -> RoundingOptions:
    """The options for every brick, but for its error and its seed. The arguments are as of `quantise_bricks`."""
    counts, _, _, mirrors = bricks.cut
    n_voxels, passes, added = count_held(header, mirrors), options.n_passes, None
    if volume and passes is None and options.quantizer == "uniform":
        n_images = header.n_present / n_voxels
        passes = PASSES * passes_for(n_voxels, bricks.n_parameters, len(bricks.networks), device.type, n_images)
    if volume and not math.isnan(psnr):
        boxes = brick_boxes(header.shape, counts, mirrors)
        with Progress("looking at the bricks") as looking:
            lead = psnr - psnr_of(survey(volume, header.values, boxes, looking).variance)
        added = error_to_add(lead, bricks.n_parameters)
    return dataclasses.replace(options, n_passes=passes, n_threads=1, added=added, n_all=bricks.n_parameters)


def _quantise_brick(
    options: RoundingOptions,
    config: SirenConfig,
    weights: dict,
    header: VolumeHeader,
    brick: Volume | None,
    device: torch.device,
) -> tuple[list[QuantisedLayer], bool]:
    """The layers of a brick in integers, and whether it was rounded more than once."""
    net = FieldNet(config)
    net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    progress = NoProgress()
    layers = NetworkRounding(options, net, header, brick, device, progress).layers(math.nan, False)
    return layers, progress.n_said > 0
