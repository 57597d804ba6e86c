"""Trellis-coded quantisation: two grids for the weights of a matrix; the integers so far say which is the next one's.

Both grids have the step of the layer, and the second one lies half a step above the first. Of the ways through the
grids, the writer takes the one with the least error: see `quantising.search`. The error is a quarter less than that of
rounding on one grid, in as many bytes. Sources: Marcellin and Fischer, "Trellis coded quantization of memoryless and
Gauss-Markov sources", 1990; the code is one of Ungerboeck, "Channel coding with multilevel/phase signals", 1982.
"""

from __future__ import annotations

import numpy as np

# Let u(i) be 1 if integer k(i) is on the second grid, else 0. It is a sum of four bits modulo 2: u at each of the
# GRID_DELAYS before i, and k at each of the ODD_DELAYS before i. The same is in field/blob.py, chunk T.
GRID_DELAYS = 1, 6
ODD_DELAYS = 2, 4


def in_half_steps(integers: np.ndarray) -> np.ndarray:
    """What the integers of a matrix stand for, row by row, in half steps: twice the integer, 1 more on the second grid.

    An integer before the first one is 0, and on the first grid.
    """
    is_odd = integers.ravel() & 1 == 1
    is_second = _delayed(is_odd, ODD_DELAYS[0]) ^ _delayed(is_odd, ODD_DELAYS[1])
    # As polynomials of bits: divide by f(x) = 1 + x + x^6. This multiplies by f, f^2, f^4, ..., in all by f^(n - 1),
    # where n is a power of two. And f^n = f(x^n) is 1 as far as the integers reach.
    n = 1
    while n < len(is_second):
        is_second = is_second ^ _delayed(is_second, n * GRID_DELAYS[0]) ^ _delayed(is_second, n * GRID_DELAYS[1])
        n *= 2
    return 2 * integers + is_second.reshape(integers.shape)


def _delayed(bits: np.ndarray, n: int) -> np.ndarray:
    """The bits, n places later."""
    found = np.zeros_like(bits)
    found[n:] = bits[: max(len(bits) - n, 0)]
    return found
