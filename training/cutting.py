"""Into how many bricks a volume is cut, and how many passes a fit makes over each."""

from __future__ import annotations

import math

from field.bricks import held_shape
from training.recipe import BATCH, MIN_STEPS, default_passes, passes_for_min_steps, training_work
from utils import VolumeHeader

PARAMETERS = 10_000  # of a brick's network, in the mean. Of 5,000 and 12,000 the larger is as fast, and has fewer seams
MOST_SHARE = 0.25  # most parameters of a brick's network / its voxels
# In units of `training_work`, of which one core does 1e12 in 3 minutes; on a CPU, and on a GPU:
ONE_NETWORK_WORK = 2e12, 4e14  # `--bricks auto` cuts a volume whose single network would be more
BRICKS_WORK = 4e12, 4e14  # most work of all bricks together, by default
LEAST_PASSES = 8.0  # over each brick, by default
MOST_PASSES = 90.0, 45.0  # the same; on a CPU, and on a GPU


def counts_for(shape: tuple[int, ...], n_parameters: float, passes: float | None, is_gpu: bool) -> tuple[int, ...]:
    """The number of bricks along each axis by `--bricks auto`: 1 each where one network takes minutes.

    n_parameters: of all networks. passes: over the volume, None for the default.
    """
    n_voxels = math.prod(shape)
    n_samples = n_voxels * (passes or default_passes(n_voxels, is_gpu))
    is_enough = training_work(n_samples, n_parameters) <= ONE_NETWORK_WORK[is_gpu]
    return (1,) * len(shape) if is_enough else counts_of_bricks(shape, n_parameters)


def counts_of_bricks(shape: tuple[int, ...], n_parameters: float) -> tuple[int, ...]:
    """The number of bricks along each axis that have about PARAMETERS each. n_parameters: of all of them."""
    n_voxels, space = math.prod(shape), shape[-3:]
    n_bricks, left = max(min(n_parameters, MOST_SHARE * n_voxels) / PARAMETERS, 1.0), sorted(space)
    side = (math.prod(left) / n_bricks) ** (1 / len(left))
    while left[0] < side:  # a thin axis is not cut, and the others so much the more
        left.pop(0)
        side = (math.prod(left) / n_bricks) ** (1 / len(left))
    counts = tuple(max(1, min(round((n - 1) / side), n - 1)) for n in space)
    return (1,) * (len(shape) - len(space)) + counts


def passes_for(n_voxels: int, n_parameters: float, n_bricks: int, is_gpu: bool, n_images: float = 1.0) -> float:
    """The number of passes over each brick by default: as many as BRICKS_WORK allows, within limits.

    The limits are LEAST_PASSES and MOST_PASSES, or what MIN_STEPS steps take. n_voxels: that bricks hold. n_parameters:
    of all networks. n_images: voxels of the volume for each voxel that is held; a pass over it then counts as many.
    """
    allowed = BRICKS_WORK[is_gpu] / training_work(n_voxels, n_parameters / n_bricks)
    most = max(n_images * MOST_PASSES[is_gpu], passes_for_min_steps(math.ceil(n_voxels / n_bricks)))
    return round(min(max(allowed, LEAST_PASSES), most), 1)


def passes_over(n_passes: float, n_present: int, n_voxels: int) -> float:
    """The passes over a brick of which only `n_present` voxels are not missing: `n_passes` or more.

    They are at least as many steps as a whole brick of `n_voxels` gets, but at most MIN_STEPS for this.
    """
    steps = min(n_passes * math.ceil(n_voxels / BATCH), MIN_STEPS)
    return max(n_passes, steps / math.ceil(max(n_present, 1) / BATCH))


def count_held(header: VolumeHeader, mirrors: tuple[int, ...]) -> int:
    """The number of voxels that bricks hold and that are not missing. No voxel of a volume with mirrors is missing."""
    return math.prod(held_shape(header.shape, mirrors)) if mirrors else header.n_present
