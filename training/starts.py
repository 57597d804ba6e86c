"""The networks from which a fit starts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from field.layers import OMEGA_0, SirenConfig
from siren import HIGHEST_WAVE, FieldNet, start_as_axis_waves, start_as_constant, start_as_plane_waves
from training.sampler import VoxelSampler

SHORTER_WAVES = 2, 4  # factors of HIGHEST_WAVE after a collapse: fine detail is like noise to long waves


class Start(NamedTuple):
    """A network before its training.

    first_omega: frequency of a random first layer, as in the original scripts. None: the first layer starts as waves
    along the axes, which is 0.1 to 10 dB better for most volumes and at most 0.5 dB worse. waves: frequencies (waves,
    d_in) of plane waves that take the place of those along the axes, see siren.start_as_plane_waves. number: which of
    the random networks of this seed, from 0.

    from_mean: whether the output starts as the mean of the values, unless `first_omega` is given. Random weights of the
    last layer are noise that the fit first has to unlearn. A short fit loses 0.3 dB by them, a long one nothing.
    """

    config: SirenConfig
    seed: int
    first_omega: float | None = None
    waves: np.ndarray | None = None
    number: int = 0
    from_mean: bool = False


def new_networks(start: Start, sampler: VoxelSampler) -> list[FieldNet]:
    """A new network, and the networks of shorter waves that may take its place."""

    def next_network(generator: torch.Generator, factor: float = 1) -> FieldNet:
        """The next random network. factor: its highest wave / HIGHEST_WAVE."""
        net = FieldNet(start.config, generator, start.first_omega or OMEGA_0)
        if start.first_omega is None:  # along an axis of one voxel, a wave would be a constant
            planes = {axis: plane for axis, plane in enumerate(sampler.mirror_planes) if sampler.shape[axis] > 1}
            start_as_axis_waves(net, planes, factor * HIGHEST_WAVE)
        return net

    generator = torch.Generator().manual_seed(start.seed)
    for _ in range(start.number + 1):
        net = next_network(generator)  # at the end, the one with this number
    if start.waves is not None:
        start_as_plane_waves(net, start.waves)
    if start.first_omega is not None:
        return [net]
    if start.from_mean:
        start_as_constant(net, sampler.mean)
    # A fit that continues from a checkpoint knows neither the number nor `from_mean`. So the shorter waves come after
    # network 0, and have a random last layer.
    generator = torch.Generator().manual_seed(start.seed)
    next_network(generator)
    return [net, *(next_network(generator, factor) for factor in SHORTER_WAVES)]
