"""A field that one network holds: its normalised values at any positions."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from field.evaluation import (
    Network,
    OnProgress,
    Positions,
    Store,
    count_positions,
    evaluate,
    no_progress,
    scaled_layers,
)
from field.integers import largest_error, margins
from field.layers import SirenConfig


class OneNetwork:
    """Evaluates a network over a whole field. See field/blending.py for a field that is cut into bricks.

    shape: voxels of the field. extent: of the range of the values, (d_out,). device, n_threads: as of NeuralField.
    """

    def __init__(
        self,
        config: SirenConfig,
        weights: dict[str, np.ndarray],
        shape: tuple[int, ...],
        extent: np.ndarray,
        device: str,
        n_threads: int,
    ):
        self.layers, self.is_residual = scaled_layers(config, weights), config.is_residual
        self.shape, self.extent, self.device, self.n_threads = shape, extent, device, n_threads

    def network(self, precision: str, n: int | None = None) -> Network:
        """The network on the device, ready to be evaluated. n: the number of positions, as of Network."""
        return Network(self.layers, self.is_residual, self.device, precision, n)

    @cached_property
    def margins(self) -> dict[str, np.ndarray]:
        """By precision, the margins of the normalised values within which integers are not decided."""
        return margins(largest_error(self.layers, self.is_residual, self.shape), self.extent)

    @property
    def precisions(self) -> list[str]:
        """The precisions in which integers are evaluated, the fastest first."""
        return [*self.margins, "portable"]

    def evaluate(
        self,
        positions: Positions,
        store: Store,
        precision: str = "float32",
        also: str = "",
        on_progress: OnProgress = no_progress,
    ) -> None:
        """Evaluate the field at the positions of a grid, or at some (n, d_in) in voxels: `store(part, y, more)`.

        part: numbers of positions, a slice or an array. y: their normalised values, (d_out, positions). also: what
        `more` is. "slopes": the derivatives by the normalised coordinates, (d_in, d_out, positions). "margins": see
        integers.margins. Else it is None.
        """
        # A GPU's chunk is 2^18 positions, often far more than n. On a CPU, the last bits depend on the size of a chunk.
        n = None if self.device == "cpu" else count_positions(positions)
        margin = self.margins.get(precision, 0.0) if also == "margins" else None

        def keep(part: slice, y: np.ndarray, slopes: np.ndarray | None) -> None:
            store(part, y, slopes if margin is None else margin)

        network, with_slopes = self.network(precision, n), also == "slopes"
        evaluate(network, positions, self.shape, keep, self.n_threads, with_slopes, on_progress)
