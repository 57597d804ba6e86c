"""Rounds the networks of all bricks, each in a process of its own, with one policy for the whole."""

from __future__ import annotations

import dataclasses
import math

import torch

from cli.progress import NoProgress, Progress
from field.bricks import Bricks, brick_boxes
from field.network_chunk import QuantisedLayer
from quantising import work
from quantising.policy import RoundingOptions, error_to_add, quantise_network
from siren import FieldNet, SirenConfig, count_parameters
from training.cutting import brick_volume, count_held, error_scale, passes_for, survey
from training.recipe import psnr_of
from training.workers import each_done
from utils import Geometry, Volume, VolumeHeader, header_of, shape_of

PASSES = 0.25  # over each brick while it is rounded / while it is trained, by default: more gain 0.2 dB at most


def quantise_bricks(
    options: RoundingOptions,
    bricks: Bricks,
    header: VolumeHeader,
    volume: Volume | None,
    psnr: float,
    device: torch.device,
    progress: Progress,
) -> list[tuple[dict, list[QuantisedLayer]]]:
    """The description and the layers in integers of every brick that has a network, in order.

    psnr: of the whole field, in dB; NaN if unknown. The other arguments are as of `quantise_network`.

    One more bit for each weight of a network takes three quarters of what its rounding adds to the error. So for the
    least bytes, rounding adds to each brick a squared error in proportion to its weights, not to its voxels.
    """
    passes, (counts, low, high, mirrors) = options.n_passes, bricks.cut
    n_voxels = count_held(header, mirrors)
    if volume and passes is None and options.quantizer == "uniform":
        n_images = header.n_present / n_voxels
        passes = PASSES * passes_for(n_voxels, bricks.n_parameters, len(bricks.networks), device.type, n_images)
    n_processes = options.n_threads if device.type == "cpu" else 1
    boxes = brick_boxes(header.shape, counts, mirrors)
    lead = psnr - psnr_of(survey(volume, header.values, boxes, NoProgress()).variance) if volume else math.nan
    options = dataclasses.replace(
        options,
        n_passes=passes,
        n_threads=1,
        added=None if math.isnan(lead) else error_to_add(lead, bricks.n_parameters),
        n_all=bricks.n_parameters,
    )
    configs = {k: SirenConfig(**network[0]) for k, network in enumerate(bricks.networks) if network}
    sizes = {k: math.prod(shape_of(boxes[k])) for k in configs}
    shares = {k: work.of_training((passes or 0.0) * sizes[k], count_parameters(config))
              + work.of_factors(config, options.n_all) for k, config in configs.items()}  # fmt: skip
    progress.plan(sum(shares.values()))
    per_weight = math.nan  # squared error that rounding may add, for each weight
    if math.isfinite(psnr):
        per_weight = 4 * 10 ** (-psnr / 10) * n_voxels / max(bricks.n_parameters, 1)

    def arguments(k: int) -> tuple:
        if volume:
            brick = brick_volume(volume, header.values, boxes[k])
            own = header_of(brick)
        else:
            shape = shape_of(boxes[k])
            brick, own = None, VolumeHeader(shape, low[k], high[k], Geometry.plain(len(shape)))
        error = per_weight * count_parameters(configs[k]) / sizes[k] / error_scale(low[k], high[k])
        part = dataclasses.replace(options, error=None if math.isnan(error) else error, seed=options.seed + k)
        return part, configs[k], bricks.networks[k][1], own, brick, device

    found = {}
    tasks = ((k, arguments(k)) for k in sorted(shares, key=lambda k: (-shares[k], k)))
    for k, layers in each_done(_quantise_brick, tasks, n_processes):
        found[k] = layers
        progress.advance(shares[k], bricks=f"{len(found)} of {len(shares)}")
    return [(dataclasses.asdict(configs[k]), found[k]) for k in sorted(found)]


def _quantise_brick(
    options: RoundingOptions,
    config: SirenConfig,
    weights: dict,
    header: VolumeHeader,
    brick: Volume | None,
    device: torch.device,
) -> list[QuantisedLayer]:
    net = FieldNet(config)
    net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    return quantise_network(options, net, header, brick, math.nan, False, device, NoProgress())
