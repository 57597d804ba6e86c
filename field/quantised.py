"""A network in integers."""

from __future__ import annotations

import dataclasses

import numpy as np

from field import trellis
from field.layers import SirenConfig, layer_table


@dataclasses.dataclass(frozen=True)
class QuantisedLayer:
    """A linear layer in integers."""

    weights: np.ndarray  # (n_out, n_in), of magnitude at most 30720
    biases: np.ndarray  # (n_out,), of magnitude at most 30720
    step: np.float32  # its lower 20 bits are zero, see `round_step`; in files of older programs 16
    codebook: np.ndarray | None = None  # float32 values of the weights -M to M, where M = len(codebook) // 2
    has_trellis: bool = False  # whether the weights lie on two grids, see `field.trellis`

    def dequantise(self) -> tuple[np.ndarray, np.ndarray]:
        """The float32 weights and biases of this layer, the same on every machine."""
        biases = self.step * self.biases.astype(np.float32)
        if self.codebook is not None:
            return self.codebook[self.weights + len(self.codebook) // 2], biases
        if self.has_trellis:
            return self.step / np.float32(2) * trellis.in_half_steps(self.weights).astype(np.float32), biases
        return self.step * self.weights.astype(np.float32), biases


def round_step(step: float, is_least: bool = False) -> np.float32:
    """The nearest float32 to a positive `step` that a file can hold: its lower 20 bits are zero.

    is_least: the least one that is at least `step`, up to the largest of all.
    """
    bits = int(np.float32(min(step, 3.19e38)).view(np.uint32))
    bits = min(max((bits + (0xFFFFF if is_least else 0x80000)) >> 20, 0x001), 0x7F7)
    return np.uint32(bits << 20).view(np.float32)


def are_in_order(config: SirenConfig) -> list[bool]:
    """Which linear layers of a network have biases that ascend from 0 or more.

    A writer orders the neurons so, see `quantising.order`. The second layer of a residual block has no order of its
    own: its neurons are added to those of the first layer of the network.
    """
    *sines, _ = layer_table(config)
    return [*(k == 0 or not config.is_residual or k % 2 == 1 for k in range(len(sines))), False]
