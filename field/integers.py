"""Integers that are the same for a part and the whole, for any number of threads, on any machine.

They are the values of the network in `portable` arithmetic, rounded. That arithmetic is slow. Therefore the network is
evaluated in float32 first, and only the values that lie within a margin of the border between two integers are
evaluated again: in float64, and those that are still within its much smaller margin in portable arithmetic.

The margin is an estimate with ample room, not a proof. `error_estimates` follows every rounding error to the output by
the derivatives of the network: to first order, at a sample of the voxels. The margin is MARGIN times the largest of
these standard deviations. Bounds that hold for every position, by products of the norms of the layers, exceed the
range of the values for a trained network of 16 layers; the derivatives at every position would take longer than the
values. Float32 on a GPU is covered as long as its products are not rounded to TF32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from field.evaluation import OnProgress, Positions, coordinates_of, positions_at
from utils import ValueRange

if TYPE_CHECKING:
    from field.blending import Blend
    from field.one_network import OneNetwork

ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}  # largest relative error of a sum or a product
SINE = 4.0  # error of a library's sine, in roundoffs of 1
MARGIN = 16.0  # standard deviations. Of 59 networks, random and trained, the largest error was 1.3
MOST_ERROR = 1e-3  # largest margin, of values from -1 to 1, for which an estimate of first order is believed
MOST_AGAIN = 0.5  # largest share of the positions that a margin may leave to the next arithmetic
SAMPLE = 512  # voxels, at most
ACTIVATIONS = 1 << 20  # derivatives of a layer that are held at a time
POSITIONS = 1 << 20  # numbers of positions that are held at a time


def error_estimates(layers: list[np.ndarray], is_residual: bool, x: np.ndarray) -> np.ndarray:
    """The standard deviations of the errors of a network's outputs, in roundoffs: (d_out, n) at positions (d_in, n).

    layers: as of Network. The rounding errors of single operations count as independent.
    """
    first, *hidden, last = [layer.astype(np.float64) for layer in layers]
    sines = []  # of every sine layer: its matrix, the derivative of the sine, the variance of the phase's error

    def product(layer: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.vstack([h, np.ones_like(h[:1])])
        return layer @ rows, len(rows) * (layer**2 @ rows**2)

    def sine_layer(layer: np.ndarray, h: np.ndarray) -> np.ndarray:
        phase, variance = product(layer, h)
        sines.append((layer[:, :-1], np.cos(phase), variance))
        return np.sin(phase)

    h, sums = sine_layer(first, x), []
    if is_residual:
        for layer_1, layer_2 in zip(hidden[::2], hidden[1::2], strict=True):
            h = h + sine_layer(layer_2, sine_layer(layer_1, h))
            sums.append(h)
    else:
        for layer in hidden:
            h = sine_layer(layer, h)
    _, variance = product(last, h)
    slopes = np.repeat(last[:, :-1, None], x.shape[1], axis=2)  # of the outputs by h: (d_out, width, n)

    def back(slopes: np.ndarray) -> np.ndarray:
        nonlocal variance
        matrix, cosine, of_phase = sines.pop()
        by_phase = slopes * cosine
        variance = variance + (slopes**2).sum(axis=1) * SINE**2 + (by_phase**2 * of_phase).sum(axis=1)
        return matrix.T @ by_phase

    while len(sines) > 1:
        if is_residual:
            variance = variance + (slopes**2 * sums.pop() ** 2).sum(axis=1)
            slopes = slopes + back(back(slopes))
        else:
            slopes = back(slopes)
    back(slopes)
    return np.sqrt(variance)


def largest_error(
    layers: list[np.ndarray], is_residual: bool, shape: tuple[int, ...], n_sampled: int = SAMPLE
) -> np.ndarray:
    """The largest of the estimated errors at a sample of a grid's voxels, in roundoffs: (d_out,). NaN: it overflows.

    shape: of the grid.
    """
    n_voxels, n = math.prod(shape), min(math.prod(shape), n_sampled)
    voxels = np.arange(n) if n == n_voxels else np.random.default_rng(0).integers(n_voxels, size=n)
    coordinates = coordinates_of(np.stack(np.unravel_index(voxels, shape), axis=1), shape)
    d_out, width = len(layers[-1]), len(layers[0])
    step = max(1, ACTIVATIONS // (d_out * width))
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.max([error_estimates(layers, is_residual, coordinates(part)).max(axis=1) for part in parts], axis=0)


def margins(errors: np.ndarray, extent: np.ndarray) -> dict[str, np.ndarray]:
    """By precision, the margins (d_out, 1) of normalised values. A precision that decides too few values has none.

    errors: `largest_error`. extent: of the range, (d_out,).
    """
    found = {precision: MARGIN * errors[:, None] * roundoff for precision, roundoff in ROUNDOFF.items()}
    most = np.minimum(MOST_ERROR, MOST_AGAIN / np.maximum(extent[:, None], 1.0))
    return {precision: margin for precision, margin in found.items() if (margin <= most).all()}


def evaluate_integers(
    evaluator: OneNetwork | Blend, positions: Positions, values: ValueRange, result: np.ndarray, on_progress: OnProgress
) -> None:
    """Put the integers at all positions into `result` (positions, components).

    The first of the evaluator's precisions evaluates all positions; each of the others those that the one before left
    within its margin.
    """
    n, is_open = len(result), np.ones(len(result), bool)

    def store(part: slice | np.ndarray, y: np.ndarray, margin: np.ndarray) -> None:
        result[part] = values.denormalise(y.T)
        is_open[part] = is_close(y, values.extent, margin).any(axis=0)

    def store_chosen(part: slice | np.ndarray, y: np.ndarray, margin: np.ndarray) -> None:
        store(chosen[part], y, margin)

    first, *others = evaluator.precisions
    evaluator.evaluate(positions, store, first, "margins", on_progress)
    for precision in others:
        for start in range(0, n, POSITIONS):  # the numbers of all positions would take more memory than the values
            chosen = start + np.flatnonzero(is_open[start : start + POSITIONS])
            if len(chosen):
                left = positions_at(positions, chosen)
                evaluator.evaluate(left, store_chosen, precision, "margins", lambda fraction: on_progress(1.0))


def is_close(y: np.ndarray, extent: np.ndarray, margin: np.ndarray | float) -> np.ndarray:
    """Which normalised values (d_out, n) lie within a margin of the border between two integers.

    extent: of the range, (d_out,). margin: of normalised values, (d_out, 1).
    """
    extent = extent[:, None]
    offset = (np.clip(y, -1.0, 1.0) + 1.0) / 2.0 * extent
    return ~(np.abs(offset - np.floor(offset) - 0.5) > margin / 2.0 * extent)
