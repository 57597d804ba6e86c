"""Rounds the weights of a layer to integers, in their order, on the way through the trellis that has the least error.

Source: Viterbi, 1967. See `field.trellis`.
"""

from __future__ import annotations

import numpy as np

from field.trellis import GRID_DELAYS, ODD_DELAYS
from quantising.sensitivity import MAX_STEPS

BLOCK = 128  # weights after which a way is chosen. One matrix product then corrects all weights after them
LARGEST = MAX_STEPS * 3 // 2  # greatest magnitude of an integer. An odd one may be 1 more
MOST_COST = 1e300  # of an error, so that a sum is finite, also of errors that are infinite or NaN


class Search:
    """The rounding of one layer: [W b], row by row.

    step: of the layer. n_in: the weights in a row of W. has_trellis: whether weights lie on two grids; otherwise they
    lie on the first grid, as biases always do. ascends: whether the biases must ascend from 0 or more.

    A state holds what the integers so far say about the grids of the next ones. Bit 0 is about the next integer, bit 1
    about the one after it, and so on.
    """

    def __init__(self, step: float, n_in: int, has_trellis: bool, ascends: bool):
        self.step, self.n_in, self.ascends = step, n_in, ascends
        n_states = 1 << max(GRID_DELAYS) if has_trellis else 1
        state, odd = np.arange(n_states)[:, None], np.arange(2)
        self.grid = state & 1  # (states, 1)
        after = state >> 1 ^ self.grid * _bits(GRID_DELAYS) ^ odd * _bits(ODD_DELAYS)  # (states, even or odd integer)
        # The branches to each state. A single state stays as it is.
        self.arriving = np.argsort((after % n_states).ravel(), kind="stable").reshape(n_states, 2)
        self.state, self.n_done, self.bias = 0, 0, 0 if ascends else -LARGEST

    @np.errstate(all="ignore")  # the weights of a diverged network may overflow
    def round(self, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Round the next `len(factor)` weights, and compensate each error in the weights after it, in place.

        weights: the next ones and those that compensate. factor: of a CompensationFactor. Returns the integers, int32.
        """
        n, integers = len(factor), []
        for start in range(0, n, BLOCK):
            end = min(start + BLOCK, n)
            found, errors = self._best_way(weights[start:end], factor[start:end, start:end])
            weights[end:] -= errors @ factor[start:end, end:]
            integers.append(found)
        return np.concatenate(integers)

    def _best_way(self, weights: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The integers of a block, and the errors / the factor's diagonal. The best way to each state is kept."""
        n_states = len(self.grid)
        left = np.repeat(weights[None], n_states, axis=0)  # for each way, the weights that are not yet rounded
        costs, biases = np.full(n_states, np.inf), np.full(n_states, self.bias)
        costs[self.state] = 0
        steps = []
        for i, row in enumerate(factor):
            self.n_done += 1
            if self.n_done % (self.n_in + 1):
                found = self._branches(left[:, :1])
                errors = (left[:, :1] - (found + self.grid / 2) * self.step) / row[i]
                sums = costs[:, None] + _cost(errors)
                best = sums.ravel()[self.arriving].argmin(axis=1)
                branch = np.take_along_axis(self.arriving, best[:, None], axis=1)[:, 0]
                costs, integers, errors = (part.ravel()[branch] for part in (sums, found, errors))
                before = branch >> 1
                left, biases = left[before], biases[before]
            else:
                integers = np.rint(np.fmin(np.fmax(left[:, 0] / self.step, biases), LARGEST))
                before = np.arange(n_states)  # a bias says nothing of grids
                errors = (left[:, 0] - integers * self.step) / row[i]
                costs = costs + _cost(errors)
                biases = integers if self.ascends else biases
            errors = errors.astype(np.float32)
            left = left[:, 1:] - errors[:, None] * row[i + 1 :]
            steps.append((integers, errors, before))
        way = self.state = int(costs.argmin())
        self.bias = biases[way]
        chosen = []
        for integers, errors, before in reversed(steps):
            chosen.append((integers[way], errors[way]))
            way = before[way]
        integers, errors = zip(*reversed(chosen), strict=True)
        return np.array(integers, np.int32), np.array(errors, np.float32)

    def _branches(self, weights: np.ndarray) -> np.ndarray:
        """The nearest even integer and the nearest odd one (states, 2) to weights (states, 1), on each state's grid."""
        place = np.fmin(np.fmax(weights / self.step, -LARGEST), LARGEST) - self.grid / 2  # NaN becomes -LARGEST
        odd = np.arange(2)
        return 2 * np.rint((place - odd) / 2) + odd


def _bits(delays: tuple[int, ...]) -> int:
    """The bits of a state that an integer changes."""
    return sum(1 << delay - 1 for delay in delays)


def _cost(errors: np.ndarray) -> np.ndarray:
    return np.fmin(np.square(errors, dtype=np.float64), MOST_COST)
