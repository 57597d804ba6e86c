"""Fields that are cut into bricks of random networks, and what they come to, computed plainly."""

from __future__ import annotations

import itertools
import math

import numpy as np

from field.blob import encode_blob
from field.bricks import Bricks, Cut, StoredNetwork, cuts
from field.neural_field import NeuralField
from helpers.networks import arrays, field_net, make_header, with_trellis
from helpers.original import original_forward
from quantising.rounding import round_layers
from quantising.sensitivity import choose_steps, quasirandom_points, sensitivities
from siren import net_of

CLIPPED = {"gain": 8.0}  # networks whose values leave -1 to 1


def random_bricks(shape, counts, seed=0, d_out=1, constant=(), gain=1.0, mirrors=(), **network) -> Bricks:
    """Random networks, each over a range of its own. constant: numbers of the constant bricks. gain: of the values."""
    rng, n = np.random.default_rng(seed), math.prod(counts)
    ends = np.sort(rng.uniform(-1, 1, (2, n, d_out)), axis=0).astype(np.float32)
    nets = [field_net(seed=1000 * seed + k, d_in=len(shape), d_out=d_out, **network) for k in range(n)]
    networks = [StoredNetwork(net.config, arrays(net)) for net in nets]
    for network, weights in networks:
        weights[f"net_layers.{network.n_layers}.weight"] *= np.float32(gain)
    for k in constant:
        ends[1, k], networks[k] = ends[0, k], None
    return Bricks(Cut(tuple(counts), *ends, tuple(mirrors)), networks)


def cut_field(shape, counts, low=-2.0, high=3.0, dtype="float32", n_threads=1, header=None, **how) -> NeuralField:
    """A field of random bricks. how: of random_bricks, and `geometry`."""
    geometry = how.pop("geometry", {})
    bricks = random_bricks(shape, counts, **how)
    header = header or make_header(shape, low, high, dtype, bricks.cut.low.shape[1], **geometry)
    return NeuralField(header, bricks, n_threads=n_threads)


def cut_blob(shape, counts, seed=0, constant=(), header=None, bits=6, **network) -> bytes:
    """A blob of rounded random networks, each over a range of its own."""
    bricks = random_bricks(shape, counts, seed, constant=constant, **{"n_neurons": 3, "n_layers": 2} | network)
    networks = []
    for found in filter(None, bricks.networks):
        net = net_of(*found)
        steps = choose_steps(net, sensitivities(net, quasirandom_points(shape, 32)), bits=bits)
        networks.append((found.config, with_trellis(round_layers(net, steps))))
    header = header or make_header(shape, d_out=bricks.cut.low.shape[1])
    return encode_blob(header, networks, cut=bricks.cut)


def weights_along(p: float, at: list[int]) -> list[float]:
    """The weight of each brick of an axis at position p. at: where it is cut."""
    weights = [0.0] * (len(at) - 1)
    for i, c in enumerate(at[1:-1]):
        if c - 0.5 < p < c + 0.5:
            t = p - c + 0.5
            weights[i], weights[i + 1] = 1 - t * t * (3 - 2 * t), t * t * (3 - 2 * t)
            return weights
    weights[sum(p >= c + 0.5 for c in at[1:-1])] = 1.0
    return weights


def expected_at(shape, bricks: Bricks, p: np.ndarray) -> np.ndarray:
    """The normalised values at one position in voxels, by the specification, in float64."""
    counts, lows, highs, mirrors = bricks.cut
    along = itertools.zip_longest(p, shape, mirrors, fillvalue=0)
    p = [m - x if m and (2 * x > m if m >= n - 1 else 2 * x < m) else x for x, n, m in along]
    at = cuts(shape, counts, mirrors)
    along = [weights_along(x, axis) for x, axis in zip(p, at, strict=True)]
    total = np.zeros(lows.shape[1])
    for number, index in enumerate(itertools.product(*map(range, counts))):
        weight = math.prod(axis[i] for axis, i in zip(along, index, strict=True))
        if not weight:
            continue
        low, high = lows[number].astype(float), highs[number].astype(float)
        y = np.zeros(len(total))
        if bricks.networks[number]:
            edges = [axis[i : i + 2] for axis, i in zip(at, index, strict=True)]
            sizes = [b - a + 1 for a, b in edges]
            scales = [max(max(sizes[-3:]) - 1, 1)] * len(sizes)
            scales[0] = max(sizes[0] - 1, 1) if len(sizes) == 4 else scales[0]
            x = [(2 * (q - a) - (m - 1)) / s for q, (a, _), m, s in zip(p, edges, sizes, scales, strict=True)]
            network, weights = bricks.networks[number]
            y = original_forward(weights, network.n_layers, network.is_residual, np.array([x]))[0]
        total += weight * (low + (np.clip(y, -1, 1) + 1) / 2 * (high - low))
    return total


def expected_values(field: NeuralField, index: np.ndarray) -> np.ndarray:
    """The values (n, components), before rounding, at positions (n, axes) in voxels."""
    low, high = field.header.low.astype(float), field.header.high.astype(float)
    g = np.array([expected_at(field.header.shape, field.evaluator.bricks, p) for p in index])
    return low + (np.clip(g, -1, 1) + 1) / 2 * (high - low)


def expected_slopes(field: NeuralField, index: np.ndarray) -> np.ndarray:
    """The derivatives (n, components, axes) of `expected_values` by positions in voxels: central differences."""
    steps = 1e-5 * np.eye(index.shape[1])
    differences = [expected_values(field, index + step) - expected_values(field, index - step) for step in steps]
    return np.stack(differences, axis=-1) / 2e-5
