"""How the errors of rounded weights are carried over to the weights after them.

Compensated rounding takes the layers one after the other, first to last. The error of each weight is made up for by
those after it (Hassibi and Stork, "Optimal Brain Surgeon", 1993; Frantar et al., "GPTQ", 2023), in the metric of the
output's squared derivatives. Sensitive is then what the later weights cannot make up for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

import torch

from quantising.sensitivity import Derivatives, bounded, derivatives, informative_points
from siren import FieldNet, count_parameters, linear_layers

POINTS_PER_WEIGHT = 4  # points of the domain for each weight of a metric; with fewer, the metric fits the points
MIN_METRIC = 1024  # weights; a smaller metric has points for so many
BLOCK = 4096  # weights in a block; the errors of a block are taken up by itself and by the next one
WIDE_BLOCK = 2048  # weights in a block of a network that has more than two blocks
MIN_BLOCK = 64  # weights
MAX_METRIC_NUMBERS = 1 << 28  # in all metrics together; the blocks of larger networks are smaller accordingly
DAMPING = 0.02  # of the metric, relative to its diagonal


@dataclasses.dataclass(frozen=True)
class CompensationFactor:
    """How the errors of the weights of one block are carried over to the weights after them.

    start: number of the block's first weight. matrix: U (weights of the block, weights of the block and the next), on
    the CPU. The best answer to a change e of weight i is to add e U[i, j] / U[i, i] to each weight j after it. The
    error of the output that remains is e^2 / U[i, i]^2.
    """

    start: int
    matrix: torch.Tensor


class CompensationFactors:
    """Iterates over the compensation factors of all weights of a network, one block at a time.

    shape: of the field's grid, voxels. Each pass computes the factors anew. `list()` keeps them: two blocks of numbers
    for each weight.
    """

    def __init__(self, net: FieldNet, shape: tuple[int, ...]):
        self.net = net
        n = count_parameters(net.config)
        size = BLOCK if n <= 2 * BLOCK else max(MIN_BLOCK, min(WIDE_BLOCK, MAX_METRIC_NUMBERS // (2 * n)))
        self.blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        self.x, self.weights = informative_points(net, shape, POINTS_PER_WEIGHT * max(min(n, 2 * size), MIN_METRIC))

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[CompensationFactor]:
        taps = [(a, d * self.weights.sqrt()[:, None]) for a, d in derivatives(self.net, self.x)]
        own = compensation_metric(taps, self.blocks[0], self.blocks[0])
        for block, after in itertools.zip_longest(self.blocks, self.blocks[1:]):
            metric = own
            if after:
                side, own = compensation_metric(taps, block, after), compensation_metric(taps, after, after)
                metric = torch.cat([torch.cat([metric, side], 1), torch.cat([side.T, own], 1)])
            yield CompensationFactor(block.start, compensation_matrix(metric, block.stop - block.start).cpu())


def compensated_sensitivities(net: FieldNet, factors: Iterable[CompensationFactor]) -> list[float]:
    """The sensitivity of each layer where later weights compensate each error; see `round_layer_by_layer`."""
    costs = torch.cat([factor.matrix.diagonal().double() ** -2 for factor in factors])
    return [bounded(float(part.mean())) for part in costs.split(layer_sizes(net))]


def compensation_metric(taps: Derivatives, rows: slice, columns: slice) -> torch.Tensor:
    """The mean product of the output's derivatives by two weights, (rows, columns) of all pairs of weights."""
    n_points = len(taps[0][0])
    metric = taps[0][0].new_zeros(rows.stop - rows.start, columns.stop - columns.start)
    for start in range(0, n_points, 1024):
        part = [(a[start : start + 1024], d[start : start + 1024]) for a, d in taps]
        left = jacobian(part, rows)
        right = left if columns == rows else jacobian(part, columns)
        metric.addmm_(left.T, right, alpha=1 / n_points)
    return metric


def jacobian(taps: Derivatives, chosen: slice) -> torch.Tensor:
    """The output's derivatives by the weights number `chosen`: (points, weights)."""
    columns, start = [], 0
    for a, d in taps:
        n_in, size = a.shape[1], d.shape[1] * a.shape[1]
        first, stop = max(chosen.start - start, 0), min(chosen.stop - start, size)
        if first < stop:
            rows = slice(first // n_in, math.ceil(stop / n_in))
            layer = (d[:, rows, None] * a[:, None, :]).flatten(1)
            columns.append(layer[:, first - rows.start * n_in : stop - rows.start * n_in])
        start += size
    return torch.cat(columns, 1).nan_to_num_(0.0).clamp_(-1e9, 1e9)  # hopeless networks are rounded too


def compensation_matrix(metric: torch.Tensor, n: int) -> torch.Tensor:
    """`CompensationFactor.matrix` of the first n weights of a metric.

    These are rows of the upper Cholesky factor of the metric's inverse.
    """
    scale = (metric.diagonal() + 0.01 * metric.diagonal().mean() + 1e-30).rsqrt()
    metric = metric * scale * scale[:, None]
    metric.diagonal().add_(DAMPING)
    # With the weights in reverse order, the factor is the inverse of the metric's own.
    upper = torch.linalg.cholesky(metric.flip(0, 1)).flip(0, 1)
    first = torch.eye(n, len(metric), dtype=metric.dtype, device=metric.device)
    return torch.linalg.solve_triangular(upper, first, upper=True, left=False) * scale


def layer_sizes(net: FieldNet) -> list[int]:
    """How many weights and biases each layer has."""
    return [layer.weight.numel() + layer.bias.numel() for layer in linear_layers(net)]
