"""Error compensation (GPTQ): later weights make up for the rounding errors of earlier weights.

The layers are rounded from first to last. The weights after each weight compensate its error (Hassibi and Stork,
"Optimal Brain Surgeon", 1993; Frantar et al., "GPTQ", 2023). The metric of all errors is the mean product of the
output's derivatives. The sensitivity of a weight then counts only the error that later weights cannot make up for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch

from quantising.sensitivity import Derivatives, bounded, derivatives, informative_points
from siren import FieldNet, linear_layers
from utils import VolumeHeader

POINTS_PER_WEIGHT = 4  # points of the domain for each weight of a metric; with fewer, the metric overfits the points
MIN_METRIC = 1024  # a metric has points for at least this many weights
BLOCK = 4096  # weights in a block; the block itself and the next block compensate its errors
WIDE_BLOCK = 2048  # weights in a block if the network has more than 2 BLOCK weights
MIN_BLOCK = 64  # least weights in a block of a single network
MIN_BLOCK_OF_MANY = 512  # the same of one of many networks, rounded one by one. Smaller ones make larger files
STRIP = 512  # columns of a symmetric metric that are computed at once, without most of what is below the diagonal
MAX_METRIC_NUMBERS = 1 << 28  # numbers in all metrics of a network; larger networks have smaller blocks
TRELLIS_ERROR = 0.77  # squared error of rounding in a trellis, relative to that of rounding on one grid
DAMPING = 0.02  # added to the diagonal of a metric, relative to this diagonal
OnProducts = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class CompensationFactor:
    """How the weights after each weight of one block compensate its error.

    start: index of the block's first weight. matrix: U (weights of the block, weights of the block and the next block),
    on the CPU. The best compensation for a change e of weight i adds e U[i, j] / U[i, i] to each weight j after i.
    The squared error of the output that remains is e^2 / U[i, i]^2.
    """

    start: int
    matrix: torch.Tensor


class CompensationFactors:
    """Iterates over the compensation factors of all weights of a network, one block at a time.

    header: of the field that the network holds. on_products: `on_products(n)` is told of n further products of two
    numbers; they are most of the work. n_all: the number of weights of all networks that are rounded together; None if
    this is the only one. Each pass recomputes the factors. `list()` keeps the factors, which takes 2 x block size
    numbers for each weight.
    """

    def __init__(
        self,
        net: FieldNet,
        header: VolumeHeader,
        on_products: OnProducts = lambda n: None,
        n_all: int | None = None,
    ):
        self.net, self.on_products = net, on_products
        self.blocks, n_points = metric_blocks(net.config.n_parameters, n_all)
        self.x, self.weights = informative_points(net, header, n_points)

    def __iter__(self) -> Iterator[CompensationFactor]:
        taps = [(a, d * self.weights.sqrt()[:, None]) for a, d in derivatives(self.net, self.x)]
        own = compensation_metric(taps, self.blocks[0], self.blocks[0], self.on_products)
        for block, after in itertools.zip_longest(self.blocks, self.blocks[1:]):
            metric = own
            if after:
                side = compensation_metric(taps, block, after, self.on_products)
                own = compensation_metric(taps, after, after, self.on_products)
                metric = torch.cat([torch.cat([metric, side], 1), torch.cat([side.T, own], 1)])
            n = block.stop - block.start
            factor = CompensationFactor(block.start, compensation_matrix(metric, n).cpu())
            self.on_products(products_of_matrix(n, len(metric)))
            yield factor


def compensated_sensitivities(net: FieldNet, factors: Iterable[CompensationFactor]) -> list[float]:
    """The sensitivity of each layer in `round_layer_by_layer`: later weights compensate, a trellis saves error, too."""
    costs = torch.cat([factor.matrix.diagonal().double() ** -2 for factor in factors])
    means = [float(part.mean()) for part in costs.split(layer_sizes(net))]
    return [bounded(mean * (TRELLIS_ERROR if k > 0 else 1.0)) for k, mean in enumerate(means)]


def metric_blocks(n: int, n_all: int | None) -> tuple[list[slice], int]:
    """The blocks of the n weights of a network, and the number of points of their metrics.

    n_all: as of CompensationFactors.
    """
    least, n_all = (MIN_BLOCK, n) if n_all is None else (MIN_BLOCK_OF_MANY, n_all)
    size = BLOCK if n_all <= 2 * BLOCK else max(least, min(WIDE_BLOCK, MAX_METRIC_NUMBERS // (2 * n_all)))
    blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    return blocks, POINTS_PER_WEIGHT * max(min(n, 2 * size), MIN_METRIC)


def compensation_metric(
    taps: Derivatives, rows: slice, columns: slice, on_products: OnProducts = lambda n: None
) -> torch.Tensor:
    """The mean product of the output's derivatives for each pair of weights (rows, columns), a part of the metric."""
    n_points, is_symmetric = len(taps[0][0]), rows == columns
    metric = taps[0][0].new_zeros(rows.stop - rows.start, columns.stop - columns.start)
    for start in range(0, n_points, 1024):
        part = [(a[start : start + 1024], d[start : start + 1024]) for a, d in taps]
        left = jacobian(part, rows)
        right = left if is_symmetric else jacobian(part, columns)
        for first in range(0, len(metric.T), STRIP):
            strip = slice(first, first + STRIP)
            above = slice(0, first + STRIP if is_symmetric else None)
            metric[above, strip].addmm_(left[:, above].T, right[:, strip], alpha=1 / n_points)
        on_products(len(left) * metric.numel() / (2 if is_symmetric else 1))
    return metric.triu() + metric.triu(1).T if is_symmetric else metric


def jacobian(taps: Derivatives, chosen: slice) -> torch.Tensor:
    """The output's derivatives (points, weights) with respect to the weights with indices `chosen`."""
    columns, start = [], 0
    for a, d in taps:
        n_in, size = a.shape[1], d.shape[1] * a.shape[1]
        first, stop = max(chosen.start - start, 0), min(chosen.stop - start, size)
        if first < stop:
            rows = slice(first // n_in, math.ceil(stop / n_in))
            layer = (d[:, rows, None] * a[:, None, :]).flatten(1)
            columns.append(layer[:, first - rows.start * n_in : stop - rows.start * n_in])
        start += size
    return torch.cat(columns, 1).nan_to_num_(0.0).clamp_(-1e9, 1e9)  # so that a diverged network can be rounded, too


def compensation_matrix(metric: torch.Tensor, n: int) -> torch.Tensor:
    """The `CompensationFactor.matrix` of the first n weights of a metric.

    Its rows are rows of the upper Cholesky factor of the metric's inverse.
    """
    scale = (metric.diagonal() + 0.01 * metric.diagonal().mean() + 1e-30).rsqrt()
    metric = metric * scale * scale[:, None]
    metric.diagonal().add_(DAMPING)
    # In reverse order of the weights, this factor is the inverse of the metric's own Cholesky factor.
    upper = torch.linalg.cholesky(metric.flip(0, 1)).flip(0, 1)
    first = torch.eye(n, len(metric), dtype=metric.dtype, device=metric.device)
    return torch.linalg.solve_triangular(upper, first, upper=True, left=False) * scale


def products_of_matrix(n: int, size: int) -> int:
    """The products of two numbers that `compensation_matrix` takes for the first n weights of a metric of `size`."""
    return size**3 // 3 + n * size**2


def layer_sizes(net: FieldNet) -> list[int]:
    """The number of weights and biases of each layer."""
    return [layer.weight.numel() + layer.bias.numel() for layer in linear_layers(net)]
