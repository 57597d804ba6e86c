"""Decides, from the losses of a fit alone, whether the fit continues or returns to an earlier state.

A fit is judged every CHECK_STEPS steps. This module remembers the losses and decides; `Fit` carries the decision out.
No code here knows a network, so tests can check each decision with plain numbers.

    diverged: the loss is DIVERGED_FACTOR times the best     BEST, at half the learning rate
    collapsed: the network is no better than a constant      SHORTER_WAVES; if no such start is left,
                                                             START, at half the learning rate
"""

from __future__ import annotations

import dataclasses
import enum
import math

DIVERGED_FACTOR = 30.0  # a fit has diverged if its loss is this many times the best loss; 10 times passes by itself
EXCELLENT = 4e-8  # the mean squared error of 80 dB: the test for divergence raises a lower best loss to this
# A fit has collapsed to a constant when all of these hold:
COLLAPSED_FACTOR = 0.9  # its best loss is above this fraction of a constant's loss
STALLED_FACTOR = 0.99  # its loss is above this fraction of the loss at the previous judgement
COLLAPSE_PROGRESS = 0.25  # more than this fraction of the fit is done
COLLAPSE_STEPS = 300  # at least this many steps are done, because a fit may be merely short
MAX_RECOVERIES = 4
CHANGING = ("best_loss", "n_recoveries", "n_halvings", "n_short_wave_starts")


class Action(enum.Enum):
    """What a fit does after a judgement."""

    GO_ON = enum.auto()
    BEST = enum.auto()  # back to the best state
    START = enum.auto()  # back to the start
    SHORTER_WAVES = enum.auto()  # back to the start, with the next of `Fit.short_wave_starts`


@dataclasses.dataclass
class Recovery:
    """The memory of a fit's losses (mean squared errors), and the decision that follows from the next loss.

    constant_loss: the loss of a constant. n_short_wave_starts: starts of shorter waves that are left to try.
    can_collapse: False if a healthy fit may stall for long. best_loss: the lowest loss of the states that the fit can
    return to.
    """

    constant_loss: float
    n_short_wave_starts: int = 0
    can_collapse: bool = True
    best_loss: float = math.inf
    n_recoveries: int = 0
    n_halvings: int = 0  # of the learning rate

    def has_diverged(self, loss: float) -> bool:
        """Whether a loss is far above the best one, or NaN."""
        return not loss <= DIVERGED_FACTOR * max(self.best_loss, EXCELLENT)

    def has_collapsed(self, before: float, loss: float, step: int, progress: float) -> bool:
        """Whether a fit is stuck at a constant: no state was better than a constant, and the loss no longer falls."""
        return (
            self.can_collapse
            and self.best_loss > COLLAPSED_FACTOR * self.constant_loss
            and not loss < STALLED_FACTOR * before
            and progress > COLLAPSE_PROGRESS
            and step >= COLLAPSE_STEPS
        )

    def decide(self, before: float, loss: float, step: int, progress: float) -> Action:
        """What a fit does next. before: loss at the previous judgement; progress: fraction of the fit done, 0 to 1.

        Before this call, the fit must save its state if `loss` is below `best_loss`.
        """
        if loss < self.best_loss:
            self.best_loss = loss
        has_collapsed = self.has_collapsed(before, loss, step, progress)
        if not (has_collapsed or self.has_diverged(loss)) or self.n_recoveries == MAX_RECOVERIES:
            return Action.GO_ON
        self.n_recoveries += 1
        if has_collapsed:
            self.best_loss = math.inf
            if self.n_short_wave_starts:
                self.n_short_wave_starts -= 1
                return Action.SHORTER_WAVES
        self.n_halvings += 1
        return Action.START if has_collapsed else Action.BEST

    def state_dict(self) -> dict[str, float | int]:
        """The attributes that change during a fit."""
        return {name: getattr(self, name) for name in CHANGING}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`. Other entries of `state` are ignored."""
        most = math.inf, MAX_RECOVERIES, MAX_RECOVERIES, self.n_short_wave_starts
        for name, limit in zip(CHANGING, most, strict=True):
            value, kind = state[name], type(getattr(self, name))
            if type(value) is not kind or not 0 <= value <= limit:
                raise ValueError(f"{name}: expected a {kind.__name__} from 0 to {limit}, found another value")
            setattr(self, name, value)
