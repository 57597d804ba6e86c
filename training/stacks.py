"""Which bricks of a volume make a stack: on a GPU, the networks of a stack take their steps together.

A step of one small network takes a GPU less time than its launches. A step of a stack has the same launches, each for
all of its networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from field.layers import SirenConfig, layer_table
from training.devices import memory_of
from training.optimizers import padded
from training.recipe import Recipe

# Samples a step of a whole stack. A GPU works on some 10^5 samples at a time: more keep it busier, up to about
# MOST_SAMPLES, from where on two stacks, one after the other, take as long as one. A stack of fewer than ENOUGH_SAMPLES
# waits for its launches, so it takes in narrower networks, too, though they are padded with more zeros.
MOST_SAMPLES, ENOUGH_SAMPLES = 1 << 20, 1 << 17
MOST_PADDING = 2.0  # the widest network of a stack / the narrowest one


def stack_width(configs: Sequence[SirenConfig]) -> int:
    """The width to which the networks of a stack are padded: with the ones for the biases, a multiple of TILE."""
    return max(padded(config.n_neurons + 1) for config in configs) - 1


def bytes_needed(n_voxels: int, config: SirenConfig, batch: int) -> int:
    """The memory that a brick takes in a stack.

    Each voxel has coordinates, values twice, an error, a density, and its place in the order of a pass, twice. Each
    sample and neuron has a sine and a cosine for every layer, and six more numbers at a time. The samples take this
    memory twice: in the first step, and in the CUDA graph.
    """
    a_voxel = 4 * config.d_in + 8 * config.d_out + 24
    a_sample = stack_width([config]) * (8 * len(layer_table(config)) + 24)
    return n_voxels * a_voxel + 2 * batch * a_sample


def memory_for_a_stack(device: torch.device) -> float:
    """The memory that a stack may take, in bytes: a quarter of a GPU's.

    What is free would change from run to run, and with it the stacks and the last digits of their results.
    """
    return memory_of(device) / 4


def stacks_of(
    configs: Mapping[int, SirenConfig], recipes: Mapping[int, Recipe], n_voxels: Mapping[int, int], memory: float
) -> list[list[int]]:
    """The numbers of the bricks of each stack, the widest networks first. memory: bytes that a stack may take.

    Bricks that are fitted alone are in none: those whose voxels are not drawn by their errors, and those too large.
    """
    widths = {k: padded(config.n_neurons + 1) for k, config in configs.items() if recipes[k].draws_by_error}
    needed = {k: bytes_needed(n_voxels[k], configs[k], recipes[k].batch) for k in widths}

    def takes(stack: list[int], k: int) -> bool:
        first, n_samples = stack[0], len(stack) * recipes[k].batch
        has_room = n_samples + recipes[k].batch <= MOST_SAMPLES and needed[first] * (len(stack) + 1) <= memory
        is_small = n_samples < ENOUGH_SAMPLES and widths[first] <= MOST_PADDING * widths[k]
        return has_room and (widths[k] == widths[first] or is_small)

    stacks: dict[Recipe, list[list[int]]] = {}
    for k in sorted(widths, key=lambda k: (-widths[k], k)):
        if needed[k] <= memory:
            found = stacks.setdefault(common_recipe(recipes[k]), [])
            if not found or not takes(found[-1], k):
                found.append([])
            found[-1].append(k)
    return [stack for found in stacks.values() for stack in found]


def common_recipe(recipe: Recipe) -> Recipe:
    """What the recipes of a stack have in common."""
    return dataclasses.replace(recipe, lr=1.0, max_seconds=None)
