"""Moves weights by a millionth of themselves: less than what another processor's rounding makes of them in a fit.

A test that passes with and without asserts what holds on every machine; see `--perturb` and portability.py.
"""

from __future__ import annotations

import torch

from siren import FieldNet, start_as_axis_waves
from training import starts

SIZE = 1e-6  # of each weight
_seed: int | None = None


def switch_on(seed: int) -> None:
    """From now on, every network starts from weights that are moved, always by the same factors."""
    global _seed
    _seed = seed
    initialise = FieldNet.initialise

    def initialised(net: FieldNet, *arguments, **keywords) -> None:
        initialise(net, *arguments, **keywords)
        move(net.state_dict())

    def laid(net: FieldNet, *arguments, **keywords) -> None:
        start_as_axis_waves(net, *arguments, **keywords)
        move(net.net_layers[0].state_dict())

    FieldNet.initialise, starts.start_as_axis_waves = initialised, laid


def move(state: dict[str, torch.Tensor]) -> None:
    """Move the weights in place, where it is switched on: by up to SIZE of each."""
    if _seed is None:
        return
    generator = torch.Generator().manual_seed(_seed)
    for tensor in state.values():
        tensor *= 1 + SIZE * (2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1).to(tensor)
