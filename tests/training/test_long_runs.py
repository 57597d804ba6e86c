"""Checkpoints are checked field by field: a file of a stranger is continued as it is, or refused."""

from __future__ import annotations

import io
import math

import pytest
import torch
from helpers.networks import assert_refused, small_fit

from cli.progress import NoProgress
from training import long_runs
from training.long_runs import Checkpoint, run_fit, saved_network, target_of

OPTIONS = {"volume": "a.npy"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    """The checkpoint of a fit in its midst."""
    fit, path = small_fit(), tmp_path_factory.mktemp("saved") / "state"
    fit.run(lambda fit: fit.step == 33)
    Checkpoint(str(path), OPTIONS).save(fit)
    return path.read_bytes()


def test_the_bar_counts_the_trials(monkeypatch):
    """Those of a fit of 120 steps took as long as 40 of its steps, in 8 s."""
    begun, shown = [], []

    class Recorded(NoProgress):
        def __init__(self, *arguments):
            begun.append(arguments)
            super().__init__()

        def update(self, done, **figures):
            shown.append((done, self.total))

    monkeypatch.setattr(long_runs, "Progress", Recorded)
    fit = small_fit()
    fit.trial_steps, fit.seconds = 40.0, 8.0
    run_fit(fit, Checkpoint(None, OPTIONS), lambda psnr: False)
    assert begun == [("training", 160, 40, 8.0)]
    assert shown[0] == (41, 160) and shown[-1] == (160, 160)


def test_a_fit_without_errors_has_no_target(monkeypatch):
    """As of a mask: beyond the ends of the range, the network need not be exact."""
    fit = small_fit()
    monkeypatch.setattr(fit, "_judge", lambda: 0.0)
    history = run_fit(fit, Checkpoint(None, OPTIONS), target_of(None, lambda: pytest.fail("measured")))
    assert fit.progress == 1 and history[-1][1] == math.inf


def test_a_collapse_without_another_start_is_no_divergence(monkeypatch, capsys):
    monkeypatch.setattr("training.loop.CHECK_STEPS", 30)
    monkeypatch.setattr("training.recovery.COLLAPSE_STEPS", 60)
    fit = small_fit()
    monkeypatch.setattr(fit, "_judge", lambda: fit.sampler.variance)
    run_fit(fit, Checkpoint(None, OPTIONS), lambda psnr: fit.recovery.n_recoveries > 0)
    said = capsys.readouterr().err
    assert "back to step 0, at half the learning rate" in said and "diverged" not in said


def test_a_short_fit_is_compared_with_its_target_too():
    """It has 120 steps, and ended at step 100 at the earliest."""
    fit, estimates = small_fit(), []
    run_fit(fit, Checkpoint(None, OPTIONS), lambda psnr: estimates.append(psnr) or len(estimates) == 4)
    assert fit.step == 18 and len(set(estimates[1:])) == 3  # the first one is that of the trials: there were none


def test_a_trial_that_has_the_target_is_the_result():
    fit = small_fit()
    fit.trial_psnr = 30.0
    history = run_fit(fit, Checkpoint(None, OPTIONS), target_of(29.0, lambda: 30.0))
    assert fit.step == 0 and history == [(fit.seconds, 30.0)]


def test_a_fit_that_has_diverged_is_not_measured():
    assert not target_of(20.0, lambda: pytest.fail("measured"))(math.nan)


def endless() -> torch.Tensor:
    """A tensor of 2^50 numbers, in a file of one."""
    return torch.zeros(1).expand(1 << 50)


def test_a_fit_that_has_just_diverged_is_not_saved(tmp_path, monkeypatch):
    """Its checkpoint would be refused."""
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    fit, path = small_fit(), tmp_path / "state"
    checkpoint = Checkpoint(str(path), OPTIONS)
    kept = fit.trained.weights.clone()
    fit.trained.weights[3] = math.nan
    checkpoint.save_in_time(fit)
    assert not path.exists()
    fit.trained.weights.copy_(kept)
    checkpoint.save_in_time(fit)
    checkpoint.load(small_fit())


def deep(depth: int) -> list:
    """A list whose text is as long as 2^depth."""
    found: list = []
    for _ in range(depth):
        found = [found, found]
    return found


@pytest.mark.parametrize(
    "value", [torch.zeros(3), torch.tensor(2), endless(), [[]], deep(60), "x", None, 2.0, True], ids=range(9)
)
@pytest.mark.parametrize("key", ["n_layers", "shape", "lr"])
def test_an_identity_of_other_types(key, value, saved):
    content = torch.load(io.BytesIO(saved), weights_only=True)
    content["identity"][key] = [value, 3, 2] if key == "shape" else value
    fit = small_fit()
    assert_refused(content, fit, f"of another run: {key}")
    assert saved_network("state", [fit.net.config]) == fit.net.config


def test_the_identity_of_another_version(saved):
    """It may lack a part. A list may be empty, as that of mirrors is."""
    content = torch.load(io.BytesIO(saved), weights_only=True)
    content["identity"]["shape"] = []
    assert_refused(content, small_fit(), "state: is of another run: shape was empty, is 4,3,2: without --resume")
    del content["identity"]["shape"]
    assert_refused(content, small_fit(), "of another run: it says no shape, as one of another version")


DAMAGE = {
    "best_loss": [None, math.nan],
    "seconds": [None, math.nan],
    "n_halvings": [10**400, 5, True, "x"],
    "n_recoveries": [10**400, 5, -1],
    "n_short_wave_starts": [1, -1],
    "errors": [torch.zeros(1), torch.zeros(24).long(), torch.full((24,), math.nan), torch.full((24,), 1e29), endless()],
    "density": [torch.ones(1), torch.ones(23), torch.ones(24, 24), -torch.ones(24), torch.ones(24) / 0, endless(), "x"],
    **{state: [None, "x", {}] for state in ("now", "best", "start")},
}
DAMAGE_OF_STATES = {
    "loss": [-1.0, math.inf, math.nan, 0, None],
    "step": [10**400, True, 1.0, -1],
    "tensors": [[], [endless()] * 5, {}, [None] * 5],
}
CASES = [((key,), value) for key, values in DAMAGE.items() for value in values]
for state in ("now", "best", "start"):
    CASES += [((state, key), value) for key, values in DAMAGE_OF_STATES.items() for value in values]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{i}-{'-'.join(CASES[i][0])}")
def test_a_fit_of_other_types(case, saved):
    (*states, key), value = CASES[case]
    content = torch.load(io.BytesIO(saved), weights_only=True)
    place = content["fit"]
    for state in states:
        place = place[state]
    assert key in place
    place[key] = value
    assert_refused(content, small_fit())


ODD_TENSORS = {
    "one number in the place of many": lambda tensor: tensor.reshape(-1)[0],  # would be copied to all of them
    "complex": lambda tensor: tensor.to(torch.complex64),
    "NaN": lambda tensor: torch.full_like(tensor, math.nan),
}


@pytest.mark.parametrize(("what", "index"), [*((what, -1) for what in ODD_TENSORS), ("NaN", 0)])
@pytest.mark.parametrize("state", ["now", "best", "start"])
def test_weights_and_optimizers_of_other_shapes_and_types(state, index, what, saved):
    content = torch.load(io.BytesIO(saved), weights_only=True)
    tensors = content["fit"][state]["tensors"]
    tensors[index] = ODD_TENSORS[what](tensors[index])
    assert_refused(content, small_fit())


def test_a_state_of_parameters_is_one_of_tensors(saved, tmp_path):
    """They want gradients: every step would add to torch's record of them."""
    content = torch.load(io.BytesIO(saved), weights_only=True)
    for state in ("now", "best", "start"):
        content["fit"][state]["tensors"] = [torch.nn.Parameter(part) for part in content["fit"][state]["tensors"]]
    torch.save(content, tmp_path / "state")
    fit = small_fit()
    Checkpoint(str(tmp_path / "state"), OPTIONS).load(fit)
    assert not any(tensor.requires_grad for tensor in fit.trained.state)
    fit.run(lambda fit: fit.step == 35)
