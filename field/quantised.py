"""A network in integers, and the order of its neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from field.layers import SirenConfig, layer_table


@dataclasses.dataclass(frozen=True)
class QuantisedLayer:
    """A linear layer in integers."""

    weights: np.ndarray  # (n_out, n_in), of magnitude at most 30720
    biases: np.ndarray  # (n_out,), of magnitude at most 30720
    step: np.float32  # its lower 20 bits are zero, see `round_step`; in files of older programs 16
    codebook: np.ndarray | None = None  # float32 values of the weights -M to M, where M = len(codebook) // 2

    def dequantise(self) -> tuple[np.ndarray, np.ndarray]:
        """The float32 weights and biases of this layer, the same on every machine."""
        biases = self.step * self.biases.astype(np.float32)
        if self.codebook is not None:
            return self.codebook[self.weights + len(self.codebook) // 2], biases
        return self.step * self.weights.astype(np.float32), biases


def round_step(step: float, is_least: bool = False) -> np.float32:
    """The nearest float32 to a positive `step` that a file can hold: its lower 20 bits are zero.

    is_least: the least one that is at least `step`, up to the largest of all.
    """
    bits = int(np.float32(min(step, 3e38)).view(np.uint32))
    bits = min(max((bits + (0xFFFFF if is_least else 0x80000)) >> 20, 0x001), 0x7F7)
    return np.uint32(bits << 20).view(np.float32)


def are_in_order(config: SirenConfig) -> list[bool]:
    """Which linear layers of a network have biases that ascend from 0 or more, once the neurons are `in_order`.

    The second layer of a residual block has not: its neurons are added to those of the first layer of the network.
    """
    *sines, _ = layer_table(config)
    return [*(k == 0 or not config.is_residual or k % 2 == 1 for k in range(len(sines))), False]


def in_order(config: SirenConfig, layers: Sequence[QuantisedLayer]) -> list[QuantisedLayer]:
    """The same network with its neurons in the order of their biases, as far as `are_in_order` says.

    The order of neurons changes nothing of what a network computes. Nor do their signs, because a sine is odd: where a
    bias is negative, the neuron's weights change their sign, and those that take its output. No layer has a codebook.
    """
    layers, last = list(layers), len(layers) - 1
    for k, is_free in enumerate(are_in_order(config)):
        if not is_free:
            continue
        is_stream = k == 0 and config.is_residual  # all blocks take its neurons and add to them
        giving, taking = ([*range(0, last, 2)], [*range(1, last, 2), last]) if is_stream else ([k], [k + 1])
        signs = np.where(layers[k].biases < 0, -1, 1).astype(np.int32)
        order = np.argsort(np.abs(layers[k].biases), kind="stable")
        for i in giving:
            weights, biases = (signs[:, None] * layers[i].weights)[order], (signs * layers[i].biases)[order]
            layers[i] = dataclasses.replace(layers[i], weights=weights, biases=biases)
        for i in taking:
            layers[i] = dataclasses.replace(layers[i], weights=(signs * layers[i].weights)[:, order])
    return layers
