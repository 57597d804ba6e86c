"""What follows from the losses of a fit. The losses are given here; no network is trained."""

from __future__ import annotations

import math

import pytest

from training import recovery
from training.recovery import Action, Recovery

CONSTANT = 0.5  # loss of a constant
CHECK = 100  # steps between two losses


def actions_of(losses, n_steps=1000, **fields) -> tuple[list[Action], Recovery]:
    """What a fit of `n_steps` is told that has these losses, one every CHECK steps. It never really goes back."""
    seen, found, before = Recovery(CONSTANT, **fields), [], CONSTANT
    for step, loss in enumerate(losses, 1):
        found.append(seen.decide(before, loss, step * CHECK, step * CHECK / n_steps))
        before = loss
    return found, seen


def test_a_fit_that_gets_better_goes_on():
    found, seen = actions_of([0.5, 0.1, 0.05, 0.01, 1e-3, 1e-4])
    assert set(found) == {Action.GO_ON}
    assert (seen.best_loss, seen.n_recoveries, seen.n_halvings) == (1e-4, 0, 0)


@pytest.mark.parametrize("loss", [31e-3, 1e30, math.inf, math.nan])
def test_a_loss_of_many_times_the_best_one_is_a_divergence(loss):
    """The fit is back at its best state, at half the rate."""
    found, seen = actions_of([0.1, 1e-3, loss, 1e-3])
    assert found == [Action.GO_ON, Action.GO_ON, Action.BEST, Action.GO_ON]
    assert (seen.best_loss, seen.n_recoveries, seen.n_halvings) == (1e-3, 1, 1)


def test_a_loss_of_some_times_the_best_one_passes_by_itself():
    found, seen = actions_of([0.1, 1e-3, 29e-3, 1e-3])
    assert set(found) == {Action.GO_ON} and seen.n_halvings == 0


@pytest.mark.parametrize(("loss", "expected"), [(1.1e-6, Action.GO_ON), (1.3e-6, Action.BEST)])
def test_what_is_still_excellent_is_no_divergence(loss, expected):
    """Up to 30 times the loss of 80 dB, however small the best one was."""
    found, _ = actions_of([1e-12, loss])
    assert found[-1] is expected


def test_a_fit_that_stays_at_a_constant_collapsed():
    """Once a quarter of it is done, and 300 steps. It is back at the start, at half the rate, and later again."""
    found, seen = actions_of([0.5] * 8)
    assert found == [Action.GO_ON] * 2 + [Action.START] * 4 + [Action.GO_ON] * 2
    assert seen.n_recoveries == seen.n_halvings == recovery.MAX_RECOVERIES == 4
    assert seen.best_loss == 0.5  # of what came after the last start


def test_a_fit_that_stays_at_a_constant_tries_shorter_waves_first():
    found, seen = actions_of([0.5] * 6, n_short_wave_starts=2)
    assert found[2:] == [Action.SHORTER_WAVES] * 2 + [Action.START] * 2
    assert (seen.n_recoveries, seen.n_halvings, seen.n_short_wave_starts) == (4, 2, 0)


@pytest.mark.parametrize(
    ("losses", "n_steps"),
    [
        ([0.5, 0.5, 0.44, 0.44, 0.44], 1000),  # below nine tenths of a constant's loss
        ([0.9, 0.85, 0.8, 0.75, 0.7], 1000),  # worse than a constant, but on its way
        ([0.5] * 10, 5000),  # not a quarter is done
        ([0.5] * 2, 200),  # merely short
    ],
)
def test_a_fit_that_may_still_learn_has_not_collapsed(losses, n_steps):
    found, seen = actions_of(losses, n_steps)
    assert set(found) == {Action.GO_ON} and seen.n_recoveries == 0


def test_a_fit_that_was_good_has_diverged_not_collapsed():
    """One that comes from 0.01 to a constant goes back to what it was, not to the start."""
    found, seen = actions_of([0.1, 0.1, 0.01, 0.5, 0.5], n_short_wave_starts=2)
    assert found == [Action.GO_ON] * 3 + [Action.BEST] * 2
    assert (seen.n_short_wave_starts, seen.n_halvings, seen.best_loss) == (2, 2, 0.01)


def test_a_schedule_of_steps_may_stall():
    found, _ = actions_of([0.5] * 8, can_collapse=False)
    assert set(found) == {Action.GO_ON}
    found, _ = actions_of([1e-3, 0.5], can_collapse=False)
    assert found[-1] is Action.BEST  # a divergence remains one


def test_after_the_last_recovery_a_fit_goes_on_whatever_happens():
    found, seen = actions_of([1e-3] + [math.nan] * 6)
    assert found == [Action.GO_ON] + [Action.BEST] * 4 + [Action.GO_ON] * 2
    assert seen.n_halvings == 4


def test_a_state_continues_to_the_same_decisions():
    losses = [0.4, 0.5, 0.5, 1e-3, 0.5, 0.5, 0.5, 1e-6, 1.0]
    whole, _ = actions_of(losses, n_short_wave_starts=1)
    for cut in range(1, len(losses)):
        _, first = actions_of(losses[:cut], n_short_wave_starts=1)
        second = Recovery(CONSTANT, n_short_wave_starts=1)
        second.load_state_dict(first.state_dict() | {"other": 1})
        rest = [
            second.decide(losses[i - 1], losses[i], (i + 1) * CHECK, (i + 1) * CHECK / 1000)
            for i in range(cut, len(losses))
        ]
        assert rest == whole[cut:]
