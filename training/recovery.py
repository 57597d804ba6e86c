"""Whether a fit goes on, or back: decided from its losses alone.

A fit is judged every so many steps. This module holds what has been seen of the losses and says what follows; the fit
does it. Nothing here knows a network, so that each decision can be tested with numbers.

    at the end of the brief fit, from each start in turn    NEXT_START; after the last one BEST, of all of them
    diverged: the loss is DIVERGED_FACTOR times the best one          BEST, at half the rate
    collapsed: the network is no better than a constant     SHORTER_WAVES while there are such starts,
                                                            then START, at half the rate
"""

from __future__ import annotations

import dataclasses
import enum
import math

DIVERGED_FACTOR = 30.0  # a fit whose loss is that many times the best one has diverged; 10 times passes by itself
EXCELLENT = 4e-8  # mean squared error of 80 dB: a best loss below it counts as this one
# A fit has collapsed to a constant when all of these hold:
COLLAPSED_FACTOR = 0.9  # its best loss is above this part of a constant's loss
STALLED_FACTOR = 0.99  # its loss is above this part of what it was when judged before
COLLAPSE_PROGRESS = 0.25  # this part of the fit is done
COLLAPSE_STEPS = 300  # that many steps are done: a fit that is merely short has not collapsed
MAX_RECOVERIES = 4
CHANGING = ("best_loss", "n_recoveries", "n_halvings", "n_other_starts", "n_short_wave_starts", "is_on_trial")


class Action(enum.Enum):
    """What a fit does after it was judged."""

    GO_ON = enum.auto()
    BEST = enum.auto()  # back to the best state
    START = enum.auto()  # back to the start
    NEXT_START = enum.auto()  # back to the start, with the next of the other networks
    SHORTER_WAVES = enum.auto()  # back to the start, with the next of the networks of shorter waves


@dataclasses.dataclass
class Recovery:
    """What has been seen of a fit's losses (mean squared errors), and what follows from the next one.

    constant_loss: the loss of a constant. brief_steps: length of the brief fit, 0 without one. n_other_starts: networks
    of other starts that are left. n_short_wave_starts: the same of shorter waves. can_collapse: False where a fit may
    stall for long and be well. best_loss: of the states that may be gone back to.
    """

    constant_loss: float
    brief_steps: int = 0
    n_other_starts: int = 0
    n_short_wave_starts: int = 0
    can_collapse: bool = True
    best_loss: float = math.inf
    n_recoveries: int = 0
    n_halvings: int = 0  # of the learning rate
    is_on_trial: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.is_on_trial = self.n_other_starts > 0

    def has_diverged(self, loss: float) -> bool:
        """Whether a loss, or NaN, is far above the best one."""
        return not loss <= DIVERGED_FACTOR * max(self.best_loss, EXCELLENT)

    def has_collapsed(self, before: float, loss: float, step: int, progress: float) -> bool:
        """Whether a fit is stuck at a constant: no state was better than one, and the loss no longer falls."""
        return (
            self.can_collapse
            and self.best_loss > COLLAPSED_FACTOR * self.constant_loss
            and not loss < STALLED_FACTOR * before
            and progress > COLLAPSE_PROGRESS
            and step >= COLLAPSE_STEPS
        )

    def judge(self, before: float, loss: float, step: int, progress: float) -> Action:
        """What a fit does next. before: the loss when judged last; progress: the part of the fit that is done, 0 to 1.

        A fit keeps each state whose loss is below `best_loss`, before it asks.
        """
        if loss < self.best_loss:
            self.best_loss = loss
        if step == self.brief_steps:
            return self._end_brief_fit()
        if self.is_on_trial:
            return Action.GO_ON
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

    def _end_brief_fit(self) -> Action:
        if self.n_other_starts:
            self.n_other_starts -= 1
            return Action.NEXT_START
        was_on_trial, self.is_on_trial = self.is_on_trial, False
        self.best_loss = math.inf  # at a high rate again, the fit is worse for a while, and has not diverged
        return Action.BEST if was_on_trial else Action.GO_ON

    def state_dict(self) -> dict[str, float | int | bool]:
        """What changes in the course of a fit."""
        return {name: getattr(self, name) for name in CHANGING}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`, whose other entries are left alone."""
        for name in CHANGING:
            setattr(self, name, state[name])
