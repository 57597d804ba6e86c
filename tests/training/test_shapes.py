"""Which networks compete, which one goes on, and from where. The trials' losses are given where they decide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.volumes import slanted

from field.layers import OMEGA_0, SirenConfig
from siren import linear_layers
from training import shapes
from training.fitting import Fit, new_fit
from training.recipe import Recipe
from training.sampler import VoxelSampler
from training.shapes import fit_after_trials, is_worth_trials, networks_for_budget
from training.starts import Start
from utils import value_range

RECIPE = Recipe(n_passes=375, batch=16, lr=1e-3)  # 1,500 steps of 60 voxels


def lattice() -> np.ndarray:
    """A sum of waves along the axes, of a radian a voxel."""
    return np.sin(np.indices((24, 24, 24))).sum(0).astype(np.float32)


def sampler(array=None) -> VoxelSampler:
    array = (slanted((5, 4, 3)) if array is None else array)[..., None]
    return VoxelSampler(value_range(array).normalise(array), torch.device("cpu"))


@pytest.fixture
def given(monkeypatch):
    """Trials of one step; `given(losses)` sets their losses, in the order of their runs. Returns who ran."""

    def set_losses(losses):
        remaining, ran = iter(losses), []

        def run(fit, on_step=None):
            fit._take_step(torch.arange(10))
            fit.seconds = 2.0
            ran.append(fit)

        def judge_on(fit, n_voxels):
            fit.loss = next(remaining)

        monkeypatch.setattr(Fit, "run", run)
        monkeypatch.setattr(Fit, "judge_on", judge_on)
        return ran

    return set_losses


@pytest.mark.parametrize(
    ("n_parameters", "depths"),
    [
        (50_000, [3, 5, 8]),
        (585, [3, 5, 8]),  # 3 layers are 11 wide
        (584, [1, 2, 3, 5, 8]),
        (301, [1, 2, 3, 5, 8]),
        (300, [1, 2, 3, 5, 7]),
        (150, [1, 2, 3, 4]),
        (110, [1, 2, 3]),
        (70, [1, 2]),
        (5, [1]),
    ],
)
def test_all_that_compete_are_within_the_budget(n_parameters, depths):
    configs = networks_for_budget(n_parameters, None, d_in=3)
    assert [config.n_layers for config in configs] == depths
    assert all(config.n_parameters <= max(n_parameters, 21) for config in configs)
    wider = [dataclasses.replace(config, n_neurons=config.n_neurons + 1) for config in configs]
    assert all(config.n_parameters >= n_parameters for config in wider)


def test_a_given_depth_has_no_other_beside_it():
    assert [config.n_layers for config in networks_for_budget(50_000, 4, d_in=3)] == [4]
    assert [config.n_layers for config in networks_for_budget(10, 4, d_in=3)] == [4]


def mse_of(psnr: float) -> float:
    return 4 * 10 ** (-psnr / 10)


@pytest.mark.parametrize(
    ("psnrs", "chosen"),
    [
        ((40, 38.5, 38), 5),  # 3 layers lead by less than so narrow ones do at first in any case
        ((40.1, 37.8, 37.4), 3),
        ((40, 39, 38.9), 8),
        ((40, 45, 41), 5),
        ((float("nan"), 20, 19), 5),
    ],
)
def test_the_best_of_the_trials_goes_on_from_there(psnrs, chosen, given):
    configs = [SirenConfig(width, depth) for width, depth in ((16, 3), (11, 5), (8, 8))]  # as many bytes each
    for last, is_last in ((10, False), (60, True)):  # of another start of the best depth
        ran = given(mse_of(psnr) for psnr in (*psnrs, last))
        fit = fit_after_trials(configs, lambda config: RECIPE, sampler(), seed=0)
        assert [trial.net.config.n_layers for trial in ran] == [3, 5, 8, chosen]
        best = ran[-1] if is_last else next(trial for trial in ran if trial.net.config.n_layers == chosen)
        assert fit.net.config == best.net.config and fit.recipe == RECIPE and fit.step == 0
        assert fit.seconds == 8.0 and fit.trial_steps == 4  # each trial took 2 s for a step
        weights = best.averaged_net.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in fit.net.state_dict().items())


def test_a_narrow_network_of_few_layers_leads_by_more_at_first(given):
    for widths, chosen in (((20, 14), 5), ((40, 28), 3)):
        given(mse_of(psnr) for psnr in (40, 38.7, 10, 10))
        configs = [SirenConfig(width, depth) for width, depth in zip(widths, (3, 5), strict=True)]
        assert fit_after_trials(configs, lambda config: RECIPE, sampler(), seed=0).net.config.n_layers == chosen


def test_of_a_rough_field_a_shallow_network_leads_by_less_at_first(given):
    """The less is gained over a constant, here 12.3 dB, the less there is to make up for."""
    configs = [SirenConfig(16, 3), SirenConfig(11, 5)]
    for psnr, chosen in ((40, 5), (14, 3)):
        given(mse_of(psnr - lost) for lost in (0, 0.6, 10, 10))
        assert fit_after_trials(configs, lambda config: RECIPE, sampler(), seed=0).net.config.n_layers == chosen


def test_of_two_networks_that_are_as_good_the_smaller_one_is_taken(given):
    """A wider network has to be better by what its bytes are worth: 4.5 dB for twice as many."""
    for gain, width in ((4.0, 16), (5.0, 23)):
        given(mse_of(psnr) for psnr in (40, 40 + gain, 10, 10))
        fit = fit_after_trials([SirenConfig(16, 3), SirenConfig(23, 3)], lambda config: RECIPE, sampler(), seed=0)
        assert fit.net.config.n_neurons == width


def test_a_wide_network_has_one_start(given):
    ran = given([0.1] * 3)
    fit_after_trials([SirenConfig(25, depth) for depth in (1, 2, 3)], lambda config: RECIPE, sampler(), seed=0)
    assert [trial.net.config.n_layers for trial in ran] == [1, 2, 3]


@pytest.mark.parametrize("width", [6, 25, 70])
@pytest.mark.parametrize(("lead", "is_chosen"), [(7.0, True), (5.0, False)])
def test_of_plane_waves_networks_start_from_these_waves_too(width, lead, is_chosen, given):
    """They have to be better by far. Further random starts are of the best one."""
    of_waves, recipe = sampler(lattice()), dataclasses.replace(RECIPE, n_passes=2)
    for depths, others in (((3, 5, 8), [20.0]), ((5,), [])):
        psnrs = [*others, 40.0, *others, *others, 40.0 + lead, *others]
        further = [10.0] * (4 - len(depths)) * (width == 6)
        ran = given(mse_of(psnr) for psnr in (*psnrs, *further))
        fit = fit_after_trials([SirenConfig(width, depth) for depth in depths], lambda config: recipe, of_waves, seed=0)
        assert [trial.net.config.n_layers for trial in ran] == [*depths, *depths, *[5] * len(further)]
        best = ran[psnrs.index(40.0 + lead if is_chosen else 40.0)]
        weights = best.averaged_net.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in fit.net.state_dict().items())
        start = Start(best.net.config, 0, waves=shapes.waves_of_sampler(of_waves, width, 0.45))
        expected = new_fit(start, of_waves, recipe)
        frequencies = OMEGA_0 * linear_layers(expected.net)[0].weight.detach()
        of_volume = frequencies[: 2 * 3].abs()  # one for each axis
        assert sorted(of_volume.argmax(1).tolist()) == [0, 0, 1, 1, 2, 2]
        assert of_volume.max(1).values.tolist() == pytest.approx([23 / 2] * 6, abs=0.2)
        for trial in ran[len(depths) : len(psnrs)] + (ran[len(psnrs) :] if is_chosen else []):
            assert (frequencies - OMEGA_0 * linear_layers(trial.net)[0].weight).abs().max() < 0.1  # one step later


def test_with_a_frequency_of_its_own_a_network_does_not_start_from_plane_waves(given):
    of_waves, recipe = sampler(lattice()), dataclasses.replace(RECIPE, n_passes=2)
    ran = given([0.1] * 4)
    fit_after_trials([SirenConfig(6, 3)], lambda config: recipe, of_waves, 0, first_omega=30.0)
    drawn = [OMEGA_0 * linear_layers(trial.net)[0].weight.detach().abs() for trial in ran]
    assert len(ran) == 4 and all((weight > 0.01).all() for weight in drawn)  # no wave along an axis


def test_a_trial_is_a_brief_fit_at_a_higher_rate(given):
    ran = given([0.1] * 4)
    fit_after_trials([SirenConfig(6, 3)], lambda config: RECIPE, sampler(), seed=0)
    assert [trial.n_steps for trial in ran] == [60] * 4  # a twenty-fifth
    assert [trial.recipe.lr for trial in ran] == [2e-3] * 4


def test_a_given_depth_has_four_starts_unless_the_network_is_wide(given):
    ran = given([0.1, 0.001, 0.2, 0.3])
    fit = fit_after_trials([SirenConfig(6, 3)], lambda config: RECIPE, sampler(), seed=0)
    weights = ran[1].averaged_net.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in fit.net.state_dict().items())
    expected = new_fit(Start(SirenConfig(25, 3), 0, from_mean=True), sampler(), RECIPE).net.state_dict()
    fit = fit_after_trials([SirenConfig(25, 3)], lambda config: RECIPE, sampler(), seed=0)
    assert len(ran) == 4 and fit.seconds == 0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fit.net.state_dict().items())


def test_a_trial_is_judged_on_many_voxels(monkeypatch):
    """A few would mistake which one is better."""
    found = []
    judge = Fit.judge_on

    def judge_on(fit, n_voxels):
        judge(fit, n_voxels)
        found.append((fit.loss, fit.sampler.mean_squared_error(fit.averaged_net)))

    monkeypatch.setattr(Fit, "judge_on", judge_on)
    monkeypatch.setattr(shapes, "LEAST_STEPS", 1)
    array = slanted((20, 20, 20))[..., None]
    many = VoxelSampler(value_range(array).normalise(array), torch.device("cpu"))
    fit_after_trials([SirenConfig(6, 3)], lambda config: dataclasses.replace(RECIPE, n_passes=1), many, seed=0)
    assert len(found) == 4 and all(loss == pytest.approx(exact, rel=1e-5) for loss, exact in found)


def test_trials_that_learned_nothing_are_forgotten(given):
    """The fit begins from a network that was never trained."""
    given([0.95 * sampler().variance] * 4)
    fit = fit_after_trials([SirenConfig(6, 3)], lambda config: RECIPE, sampler(), seed=0)
    expected = new_fit(Start(SirenConfig(6, 3), 0), sampler(), RECIPE).net.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fit.net.state_dict().items())


@pytest.mark.parametrize("change", [{"n_passes": 374}, {"schedule": "step"}, {"max_seconds": 60.0}])
def test_without_trials_the_middle_depth_is_taken(change, given):
    ran = given([])
    recipe = dataclasses.replace(RECIPE, **change)
    assert is_worth_trials(RECIPE, sampler()) and not is_worth_trials(recipe, sampler())
    configs = [SirenConfig(6, depth) for depth in (3, 5, 8)]
    found = [fit_after_trials(some, lambda config: recipe, sampler(), seed=0) for some in (configs, configs[:1])]
    assert [fit.net.config.n_layers for fit in found] == [shapes.MIDDLE_DEPTH, 3] and not ran
    assert not any(fit.net.net_layers[-1].weight.any() for fit in found)  # they start from the mean of the values


@pytest.mark.parametrize(("noise", "are_taken"), [(0.0, True), (0.5, False)])
def test_without_trials_a_network_starts_from_plane_waves_that_are_nearly_all(noise, are_taken, given):
    """The noise has a fifth of the variance."""
    ran, recipe = given([]), dataclasses.replace(RECIPE, max_seconds=60.0)
    array = lattice() + noise * np.sqrt(1.5) * np.random.default_rng(0).standard_normal((24, 24, 24))
    of_waves, config = sampler(array.astype(np.float32)), SirenConfig(6, 3)
    assert shapes.waves_of_sampler(of_waves, 6, 0.45) is not None
    fit = fit_after_trials([config], lambda config: recipe, of_waves, 0)
    waves = shapes.waves_of_sampler(of_waves, 6, 0.9)
    expected = new_fit(Start(config, 0, waves=waves, from_mean=True), of_waves, recipe).net.state_dict()
    assert (waves is not None) == are_taken and not ran
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fit.net.state_dict().items())


def test_a_constant_volume_has_no_trials():
    constant = VoxelSampler(torch.zeros(4, 4, 4, 1).numpy(), torch.device("cpu"))
    assert not is_worth_trials(Recipe(n_passes=1e6, batch=16, lr=1e-3), constant)
