"""Matrix products and sines in float64 that come to the same bits on every machine.

Libraries sum the terms of a product in another order for every processor, and their sines differ in the last bit. Here
every step is one that IEEE 754 fixes: sums and products one by one, in one order, and an exact remainder. This takes
about 20 times as long as NumPy's products and sines in float32.
"""

from __future__ import annotations

import math

import numpy as np

TWO_PI = 2.0 * math.pi
HIGH = math.floor(TWO_PI * 2**30) / 2**30  # the first 33 bits of it; products with 20 bits are exact
LARGE = 2.0**20  # phases above it take the exact remainder first
# Taylor's coefficients of sin(a) / a by a^2, the highest first. Up to a = pi/2, what is left out is below 2e-18.
TAYLOR = [(-1) ** k / math.factorial(2 * k + 1) for k in range(10, -1, -1)]


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The product of the matrices a (m, k) and b (k, n), summed from the first of the k terms to the last."""
    out = np.multiply(a[:, :1], b[0], out=out)
    term = np.empty_like(out)
    for column, row in zip(a.T[1:], b[1:], strict=True):
        out += np.multiply(column[:, None], row, out=term)
    return out


def sin(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The sine of x. Its error is at most 0.4 roundoffs of x, from the remainder by 2 pi in float64, and a few of 1."""
    is_large = np.abs(x) > LARGE
    if is_large.any():
        x = np.where(is_large, np.fmod(x, TWO_PI), x)  # exact, and slow
    turns = np.rint(x / TWO_PI)
    turn = x - turns * HIGH
    turn -= turns * (TWO_PI - HIGH)  # -pi to pi
    a = np.abs(turn)
    a = np.minimum(a, math.pi - a)  # 0 to pi/2, of the same sine
    square, result = a * a, np.full_like(a, TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        result *= square
        result += coefficient
    return np.copysign(a * result, turn, out=out)
