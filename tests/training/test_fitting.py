"""What a fit sees, what it minimises, and that every part of the recipe acts."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.networks import distance, field_net, fit, watched_samples
from helpers.volumes import slanted

from field.layers import SirenConfig
from siren import HIGHEST_WAVE, linear_layers
from training import recovery
from training.fitting import Fit, new_fit
from training.optimizers import Muon
from training.recipe import Recipe
from training.sampler import VoxelSampler
from training.starts import Start, new_networks
from training.step import loss_with_slopes
from training.weights import NORM_LIMIT
from utils import value_range

CPU = torch.device("cpu")


def sampler_of(array: np.ndarray) -> VoxelSampler:
    array = array if array.ndim == 4 else array[..., None]
    return VoxelSampler(value_range(array).normalise(array), CPU)


def slanted_sampler(shape=(5, 4, 3)) -> VoxelSampler:
    return sampler_of(slanted(shape))


def mean_squares(net, sampler):
    """Of each component, as it is decoded: clipped."""
    with torch.no_grad():
        y = net(sampler.samples(torch.arange(sampler.n_present))[0]).clamp(-1, 1)
        return (y - sampler.values).square().mean(dim=0)


@pytest.mark.parametrize("grad_lambda", [0.0, 0.1])
@pytest.mark.parametrize("batch", [5, 16, 59, 60, 1000])
def test_a_fit_sees_every_voxel_so_often(batch, grad_lambda):
    """With the gradient term, and with the original's schedule."""
    schedule = "power" if grad_lambda else "step"
    with watched_samples() as steps:
        fit(field_net(), slanted_sampler(), n_passes=3, batch=batch, grad_lambda=grad_lambda, schedule=schedule)
    assert len(steps) == 3 * math.ceil(60 / batch)
    assert max(map(len, steps)) <= batch
    for flat in torch.cat(steps).view(3, 60):
        assert flat.sort().values.tolist() == list(range(60))


def test_order_is_new_each_pass_and_the_seeds():
    def order(seed):
        with watched_samples() as steps:
            fit(field_net(), slanted_sampler(), seed, n_passes=2)
        return torch.cat(steps)

    first, second = order(1).view(2, 60)
    assert not torch.equal(first, second)
    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(2)[:60], first)


@pytest.mark.parametrize(("n_passes", "batch"), [(1.5, 16), (0.3, 7), (2.25, 1000), (1e-9, 16)])
def test_a_fit_of_a_fraction_of_a_pass(n_passes, batch):
    with watched_samples() as steps:
        fit(field_net(), slanted_sampler(), n_passes=n_passes, batch=batch, schedule="step")
    counts = torch.cat(steps).bincount(minlength=60)
    assert 0 <= counts.sum() - 60 * n_passes <= min(batch, 60)
    assert counts.max() - counts.min() <= 1


def test_voxels_are_drawn_by_their_latest_error(monkeypatch):
    """Of a network that does not move, the errors are exact, and every voxel is drawn as often as they say."""
    monkeypatch.setattr(recovery, "MAX_RECOVERIES", 0)
    sampler, net = slanted_sampler((9, 7, 5)), field_net()
    with watched_samples() as steps:
        done = fit(net, sampler, n_passes=60, batch=35, lr=1e-30)
    assert len(torch.cat(steps)) == 60 * 315
    with torch.no_grad():
        errors = (net(sampler.samples(torch.arange(315))[0]) - sampler.values)[:, 0].abs()
    density = 0.25 + 0.75 * errors / errors.mean()
    np.testing.assert_allclose(done.errors, errors**2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(done.density, density, rtol=1e-2)
    counts = torch.cat(steps[-90:]).bincount(minlength=315)  # of the latest ten passes
    assert float((counts / 10 - density).abs().max()) < 0.6


def test_a_step_weighs_its_samples_by_how_often_they_are_drawn():
    sampler, net = slanted_sampler((9, 7, 5)), field_net()
    with watched_samples() as steps:
        done = fit(net, sampler, n_passes=0.1, batch=40, lr=1e-30)
    found = done.trained.gradient.clone()
    weights = 1 / done.density[steps[0]]
    assert len(steps) == 1 and weights.std() > 0.1
    x, values = sampler.samples(steps[0])
    done.step_function.loss_gradient(x, values, weights)
    torch.testing.assert_close(found, done.trained.gradient, rtol=1e-5, atol=1e-9)


def test_drawing_by_error_leaves_the_mean_gradient():
    """Weighted by 1 / density, the gradients of a pass add up to that of all voxels."""
    sampler, net = slanted_sampler((30, 28, 26)), field_net()
    running = Fit(net, sampler, Recipe(n_passes=1, batch=sampler.n_present, lr=1e-3), seed=0)
    x, values = sampler.samples(torch.arange(sampler.n_present))
    running.step_function.loss_gradient(x, values)
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    density = sampler.density(running.errors)
    assert density.min() >= 0.25 and density.mean() == pytest.approx(1, rel=1e-5)
    flat = sampler.shuffled(0, 0, density)
    running.step_function.loss_gradient(x[flat], values[flat], 1 / density[flat])
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


@pytest.mark.slow
def test_drawing_by_error_finds_what_is_rare(monkeypatch):
    grid = np.zeros((24, 24, 24))
    grid[10:14, 10:14, 10:14] = np.random.default_rng(5).random((4, 4, 4))
    sampler, errors = sampler_of(grid), {}
    for by_error in (False, True):
        monkeypatch.setattr(Recipe, "draws_by_error", by_error)
        runs = [Fit(field_net(s, n_neurons=16), sampler, Recipe(n_passes=10, batch=128, lr=5e-3), s) for s in range(5)]
        for running in runs:
            running.run()
        errors[by_error] = np.median([float(mean_squares(running.averaged_net, sampler)) for running in runs])
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_fit_learns(optimizer):
    """A constant has about 11 dB."""
    sampler, net = slanted_sampler((9, 7, 5)), field_net(n_neurons=16)
    fit(net, sampler, n_passes=80, batch=32, optimizer=optimizer, lr=3e-3)
    assert 10 * math.log10(4 / mean_squares(net, sampler)) > 25


def test_a_fit_tells_its_psnr():
    """Of the averaged network. Here every voxel is among those that it is judged by."""
    sampler, net = slanted_sampler((9, 7, 5)), field_net(n_neurons=16)
    done = fit(net, sampler, n_passes=20, batch=32, optimizer="adam", lr=3e-3)
    assert done.psnr == pytest.approx(float(10 * torch.log10(4 / mean_squares(done.averaged_net, sampler))), abs=1e-3)
    assert done.progress == 1


def test_a_fit_is_judged_by_voxels_that_stand_for_all():
    """Of a network with errors where the values are rare, too."""
    grid = np.random.default_rng(0).standard_normal((20, 30, 25)) ** 5
    sampler, net = sampler_of(grid), field_net()
    assert Fit(net, sampler, Recipe(1, 64, 1e-3), 0)._judge() == pytest.approx(
        float(mean_squares(net, sampler)), rel=0.03
    )
    assert sampler.judging_voxels()[2].mean() == pytest.approx(1, rel=0.03)


def test_the_probe_follows_the_errors():
    """To eight voxels of 17,576 that stand out: most of them are not drawn at first, but all once they matter."""
    grid = slanted((26, 26, 26)) / 20.0
    hot = np.random.default_rng(1).choice(grid.size, 8, replace=False)
    grid.flat[hot] += 1.513  # no other voxel has their values
    sampler, net = sampler_of(grid), field_net(n_neurons=16)
    running = Fit(net, sampler, Recipe(n_passes=1, batch=1024, lr=1e-30), seed=0)

    def probed():
        return int((sampler.values[hot] == running.judging_voxels[1][:, None]).any(0).sum())

    assert probed() < 8
    running.errors.fill_(1e-6)[hot] = 1.0
    running.run(lambda fit: True)  # the density of a pass is settled at its beginning
    assert probed() == 8


def test_the_probe_is_drawn_for_judgements_alone(monkeypatch):
    """Not for the passes between them, of which a small volume has many."""
    monkeypatch.setattr("training.loop.CHECK_STEPS", 5)
    sampler, drawn = sampler_of(slanted((9, 7, 5))), []
    draw = sampler.judging_voxels
    monkeypatch.setattr(sampler, "judging_voxels", lambda density: drawn.append(density.clone()) or draw(density))
    running, judged = Fit(field_net(), sampler, Recipe(n_passes=20, batch=1000, lr=1e-3), seed=0), []
    running.run(lambda fit: judged.append(fit.density.clone()) if fit.is_judged else None)
    assert running.step == 20 and len(drawn) == len(judged) == 4
    assert all(map(torch.equal, drawn, judged))


def test_what_ends_a_fit_is_kept():
    """However bad it looks."""
    running = Fit(field_net(), slanted_sampler(), Recipe(n_passes=100, batch=16, lr=2e-3), seed=0)
    running.run(lambda fit: fit.step == 250 and fit.trained.averaged_weights.fill_(3.0) is not None)
    assert running.step == 250 and float(running.trained.averaged_weights.mean()) == 3.0


@pytest.mark.parametrize(("shape", "along"), [((9, 1, 8), {0, 2}), ((1, 1, 8), {2}), ((2, 9, 8), {0, 1, 2})])
def test_no_wave_lies_along_an_axis_of_one_voxel(shape, along):
    """There, it would be a constant, and a part of the first layer would do nothing."""
    sampler = sampler_of(np.random.default_rng(0).random((*shape, 1), np.float32))
    net, *shorter = new_networks(Start(SirenConfig(13, 2), 0), sampler)
    for each in (net, *shorter):
        is_wave = each.net_layers[0].linear.weight.detach().abs() > 0.01
        assert is_wave.any(dim=1).all()
        assert set(is_wave.nonzero()[:, 1].tolist()) == along


@torch.no_grad()
@pytest.mark.parametrize("waves", [None, np.ones((3, 3))], ids=["axes", "plane"])
def test_a_network_may_start_as_the_mean_of_the_values(waves):
    """Of each component, without missing voxels."""
    values = np.random.default_rng(0).random((4, 5, 6, 2), np.float32)
    values[0, 0] = np.nan
    sampler, start = VoxelSampler(values, CPU), Start(SirenConfig(13, 2, d_out=2), 0, None, waves, number=1)
    x = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = np.nanmean(values, (0, 1, 2))[None].repeat(9, 0)
    net, *_ = new_networks(start._replace(from_mean=True), sampler)
    np.testing.assert_allclose(net(x), expected, rtol=1e-5)
    for other in (start, start._replace(from_mean=True, first_omega=30.0)):
        for net in new_networks(other, sampler):
            assert float(net(x).std(dim=0).min()) > 1e-3


def test_a_fit_that_continues_has_the_same_networks_of_shorter_waves():
    """It is made from the configuration and the seed alone. The others are what the run may have begun with."""
    config, sampler = SirenConfig(13, 2), slanted_sampler()
    continued = new_networks(Start(config, 5), sampler)[1:]
    for start in (
        Start(config, 5, number=2),
        Start(config, 5, from_mean=True),
        Start(config, 5, waves=np.ones((3, 3))),
    ):
        for net, expected in zip(new_networks(start, sampler)[1:], continued, strict=True):
            assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in net.state_dict().items())


def rates(recipe: Recipe, steps) -> list[float]:
    """The learning rate of a fit of 60 voxels at these steps."""
    running = Fit(field_net(), slanted_sampler(), recipe, seed=0)
    found = []
    for running.step in steps:
        found.append(running._rate())
    return found


def test_step_schedule():
    """15 steps a pass: every two passes the rate falls to a tenth."""
    recipe = Recipe(n_passes=100, batch=4, lr=0.5, schedule="step", pass_decay=2.0, lr_decay=0.1)
    expected = [0.5, 0.5, 0.05, 0.05, 0.005]
    assert rates(recipe, (0, 29, 30, 59, 60)) == pytest.approx(expected, rel=1e-12)


def test_power_schedule():
    """It warms up over 50 steps and falls as (1 - progress)^2 to nothing."""
    recipe = Recipe(n_passes=100, batch=60, lr=0.5)
    assert rates(recipe, (0, 50, 99)) == pytest.approx([0.5 / 20, 0.5 * 0.5**2, 0.5 * 0.01**2], rel=1e-12)
    recipe = dataclasses.replace(recipe, n_passes=1000)
    assert rates(recipe, (0, 24, 500, 999)) == pytest.approx(
        [0.5 / 50, 0.25 * 0.976**2, 0.5 * 0.5**2, 0.5e-6], rel=1e-12
    )


@pytest.mark.parametrize("schedule", ["power", "step"])
def test_a_recovery_halves_the_rate(schedule):
    recipe = Recipe(n_passes=100, batch=60, lr=0.5, schedule=schedule)
    running = Fit(field_net(), slanted_sampler(), recipe, seed=0)
    running.step = 50
    whole, running.recovery.n_halvings = running._rate(), 2
    assert running._rate() == pytest.approx(whole / 4, rel=1e-12)


def test_what_recovery_is_told_of_a_fit():
    sampler, nets = slanted_sampler(), [field_net(seed=seed) for seed in range(4)]
    for schedule in ("power", "step"):
        recipe = Recipe(n_passes=10_000, batch=60, lr=1e-3, schedule=schedule)
        found = Fit(nets[0], sampler, recipe, seed=0, short_wave_starts=nets[1:]).recovery
        assert found.constant_loss == pytest.approx(float(sampler.values.var(correction=0)), rel=1e-5)
        assert found.n_short_wave_starts == 3 and found.can_collapse == (schedule == "power")


def test_muon_moves_hidden_matrices_and_adam_the_rest():
    """The first step: Adam moves a weight by lr, Muon a matrix by about lr / 8 in the root mean square."""
    net, lr = field_net(n_neurons=16), 1e-4
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fit(net, slanted_sampler(), batch=60, lr=lr, optimizer="muon", schedule="step")
    for name, tensor in net.state_dict().items():
        moved = (tensor - before[name]).abs()
        if tensor.shape == (16, 16):
            assert 0.4 < float(moved.square().mean().sqrt()) / (lr / 8) < 1.3, name
        else:
            assert float(moved.max()) == pytest.approx(lr, rel=0.05), name


# --- the gradient term ------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_in", "d_out"), [(3, 1), (3, 2), (2, 3)])
def test_gradient_term_is_that_of_finite_differences(d_in, d_out):
    net = field_net(seed=5, d_in=d_in, d_out=d_out).double()
    x = torch.rand(12, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    values = torch.rand(12, d_out, dtype=torch.float64)
    gradients = 4 * torch.rand(12, d_out, d_in, dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        shifts = h * torch.eye(d_in, dtype=torch.float64)
        slopes = torch.stack([(net(x + s) - net(x - s)) / (2 * h) for s in shifts], dim=-1)
        value_loss = (net(x) - values).square().mean()
    expected = value_loss + 0.7 * (slopes - gradients).square().mean()
    assert loss_with_slopes(net, x.clone(), values, gradients, 0.7).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_fit_follows_the_gradient_term():
    """Its gradient is that of the loss with the term; without grad_lambda it is not."""
    sampler, net = slanted_sampler((6, 5, 4)), field_net()
    x, _ = sampler.samples(torch.arange(sampler.n_present))
    loss_with_slopes(net, x, sampler.values, sampler.all_slopes, 0.5).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    for grad_lambda, is_equal in ((0.5, True), (0.0, False)):
        done = fit(net, sampler, batch=sampler.n_present, lr=1e-30, grad_lambda=grad_lambda, schedule="step")
        found = [p.grad for p in done.net.parameters()]
        difference = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True)))
        assert (difference < 1e-4 * math.sqrt(sum(float(a.square().sum()) for a in expected))) == is_equal


# --- the optimiser, and what keeps a fit from going wrong ---------------------------------------------


@pytest.mark.parametrize("n_steps", [20, 50])
def test_muon_moves_matrices_as_torchs_own(n_steps):
    """One step after another of torch.optim.Muon, which computes in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    ours, gradient = torch.randn(3, 6, 6, generator=generator), torch.empty(3, 6, 6)
    torchs = [torch.nn.Parameter(matrix) for matrix in ours.clone()]
    start, lr = ours.clone(), 0.01
    muon = Muon(ours, gradient, n_steps)
    reference = torch.optim.Muon(torchs, lr=0.125 * lr * math.sqrt(6), weight_decay=0.0, momentum=1 - 1 / n_steps)
    for _ in range(4):
        gradient.copy_(torch.randn(3, 6, 6, generator=generator))
        for matrix, its_gradient in zip(torchs, gradient, strict=True):
            matrix.grad = its_gradient.clone()
        muon.step(*muon.coefficients(lr, 1000))
        reference.step()
    for a, b, s in zip(ours, torchs, start, strict=True):
        moved = a - s
        assert float((a - b).detach().norm()) < 0.05 * float(moved.norm())
        assert 0.5 * 4 * 0.125 * lr < float(moved.square().mean().sqrt()) < 1.5 * 4 * 0.125 * lr


def test_hidden_matrices_keep_within_their_norm():
    net = field_net()
    before = [float(p.detach().norm()) for p in net.parameters() if p.shape == (net.config.n_neurons,) * 2]
    fit(net, sampler_of(np.random.default_rng(0).standard_normal((6, 5, 4))), n_passes=50, lr=0.3)
    limit = NORM_LIMIT * math.sqrt(2 * net.config.n_neurons) / net.config.omega_0
    after = [float(p.detach().norm()) for p in net.parameters() if p.shape == (net.config.n_neurons,) * 2]
    assert before and all(a <= max(limit, b) * (1 + 1e-5) for a, b in zip(after, before, strict=True))


def judged(monkeypatch, losses) -> None:
    """Every fit from now on is judged every 5 steps, and found to have these losses, the last one for ever."""
    monkeypatch.setattr("training.loop.CHECK_STEPS", 5)
    monkeypatch.setattr("training.recipe.CHECK_STEPS", 5)
    remaining = itertools.chain(losses, itertools.repeat(losses[-1]))
    monkeypatch.setattr(Fit, "_judge", lambda fit: next(remaining))


def states_of(running: Fit, until: int) -> list[tuple[int, int, dict, float]]:
    """(step, halvings of the rate, averaged weights, sum of the optimisers' states), at first and after each step."""

    def now():
        weights = {name: tensor.clone() for name, tensor in running.averaged_net.state_dict().items()}
        moments = sum(float(tensor.abs().sum()) for tensor in running.trained.state[2:])
        return running.step, running.recovery.n_halvings, weights, moments

    states = [now()]
    running.run(lambda _: states.append(now()) or len(states) > until)
    return states


def test_a_fit_that_diverges_goes_back_to_its_best_state(monkeypatch):
    judged(monkeypatch, [0.1, 0.01, 0.02, math.nan, 0.01])
    states = states_of(Fit(field_net(), slanted_sampler(), Recipe(n_passes=20, batch=16, lr=2e-3), seed=0), until=22)
    steps, halvings, weights, moments = zip(*states, strict=True)
    assert steps == (*range(20), 10, 11, 12) and halvings == (0,) * 20 + (1,) * 3
    assert distance(weights[10], weights[20]) == 0 and distance(weights[11], weights[21]) > 0
    assert moments[20] == moments[10] > 0


def test_a_fit_that_collapses_starts_again(monkeypatch):
    """First from the networks of shorter waves, then from its own start at half the rate."""
    monkeypatch.setattr(recovery, "COLLAPSE_STEPS", 5)
    monkeypatch.setattr(recovery, "COLLAPSE_PROGRESS", 0.0)
    judged(monkeypatch, [10.0] * 4 + [0.01])
    nets = [field_net(seed=seed) for seed in range(3)]
    starts = [copy.deepcopy(net.state_dict()) for net in nets]
    recipe = Recipe(n_passes=20, batch=16, lr=2e-3)
    states = states_of(Fit(nets[0], slanted_sampler(), recipe, seed=0, short_wave_starts=nets[1:]), until=16)
    steps, halvings, weights, moments = zip(*states, strict=True)
    assert steps == (*range(5), *range(5), *range(5), 0, 1) and halvings == (0,) * 15 + (1,) * 2
    for index, start in zip((0, 5, 10, 15), (*starts, starts[0]), strict=True):
        assert distance(weights[index], start) == 0 and moments[index] == 0


@pytest.mark.slow
def test_a_slow_fit_of_a_rare_voxel_is_left_alone():
    """It is worse than a constant for long, but on its way; and a batch with the voxel has many times the loss."""
    grid = np.zeros((24, 24, 24))
    grid[5, 14, 9] = 1.0
    recipe = Recipe(n_passes=120, batch=4096, lr=2e-4, optimizer="adam", schedule="step")
    runs = [Fit(field_net(seed), sampler_of(grid), recipe, seed) for seed in range(5)]
    for running in runs:
        running.run()
    assert np.median([running.recovery.n_recoveries for running in runs]) == 0


def test_an_interrupted_fit_ends_in_its_best_state(monkeypatch):
    judged(monkeypatch, [0.1, 0.01, 0.02, math.nan])
    running, weights = Fit(field_net(), slanted_sampler(), Recipe(n_passes=20, batch=16, lr=2e-3), seed=0), {}

    def on_step(fit):
        weights[fit.step] = fit.trained.averaged_weights.clone()
        if fit.step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running.run(on_step)
    assert running.step == 10 and running.loss == 0.01
    assert torch.equal(running.trained.averaged_weights, weights[10])


def test_the_number_of_a_start_and_the_seed_decide_its_network():
    sampler, recipe = slanted_sampler((7, 6, 5)), Recipe(n_passes=3, batch=60, lr=1e-3)
    starts = [(0, 0), (0, 1), (0, 2), (1, 0)]
    drawn = [new_fit(Start(SirenConfig(16, 4), seed, number=n), sampler, recipe).net.state_dict() for seed, n in starts]
    assert all(distance(a, b) > 0.01 for a, b in itertools.combinations(drawn, 2))
    again = new_fit(Start(SirenConfig(16, 4), 0, number=2), sampler, recipe)
    assert distance(again.net.state_dict(), drawn[2]) == 0
    resumed = new_fit(Start(SirenConfig(16, 4), 0), sampler, recipe)  # does not know the number, and may still collapse
    again, resumed = ([net.state_dict() for net in fit.short_wave_starts] for fit in (again, resumed))
    assert all(distance(a, b) == 0 for a, b in zip(again, resumed, strict=True)) and distance(*again) > 0.01


def test_a_fit_continues_from_another():
    """From its averaged network and its errors, with optimisers that remember nothing; a collapse leads back there."""
    sampler, recipe = slanted_sampler(), Recipe(n_passes=20, batch=16, lr=2e-3)
    trial = fit(field_net(), sampler, n_passes=5)
    running = Fit(field_net(seed=1), sampler, recipe, seed=0)
    running.continue_from(trial)
    for state in (running.net.state_dict(), running.averaged_net.state_dict()):
        assert distance(state, trial.averaged_net.state_dict()) == 0
    assert torch.equal(running.start["tensors"][0], trial.trained.averaged_weights)
    assert torch.equal(running.errors, trial.errors) and running.step == 0
    running.run()
    resumed = Fit(field_net(seed=2), sampler, recipe, seed=0)
    resumed.load_state_dict(running.state_dict())
    assert torch.equal(resumed.start["tensors"][0], trial.trained.averaged_weights)
    assert distance(running.net.state_dict(), trial.averaged_net.state_dict()) > 0


def test_a_new_fit_has_networks_of_shorter_waves_to_fall_back_on():
    """Of twice and four times the frequency; none where the first layer is drawn at random."""
    sampler, recipe = slanted_sampler((7, 6, 5)), Recipe(n_passes=3, batch=60, lr=1e-3)
    running = new_fit(Start(SirenConfig(16, 4), 0), sampler, recipe)
    networks = [running.net, *running.short_wave_starts]
    highest = [30 * float(linear_layers(net)[0].weight.detach().abs().max()) for net in networks]
    assert highest == pytest.approx([HIGHEST_WAVE, 2 * HIGHEST_WAVE, 4 * HIGHEST_WAVE], rel=1e-4)
    assert not new_fit(Start(SirenConfig(16, 4), 0, 30.0), sampler, recipe).short_wave_starts


@pytest.mark.slow
def test_a_fit_of_fine_waves_is_better_than_a_constant():
    """Which looks like noise to a network of long waves."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 20)] * 3, indexing="ij")
    sampler = sampler_of(np.sin(26 * x + 2 * y) * np.sin(24 * y + 1) * np.cos(25 * z + 3 * x))
    recipe = Recipe(n_passes=150, batch=1000, lr=6e-3)
    runs = [new_fit(Start(SirenConfig(16, 4), seed), sampler, recipe) for seed in range(5)]
    for running in runs:
        running.run()
    assert np.median([float(mean_squares(running.averaged_net, sampler)) for running in runs]) < 0.8 * sampler.variance


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@pytest.mark.parametrize("n_passes", [2, 200])
def test_a_hopeless_rate_leaves_a_finite_network(optimizer, n_passes):
    net = field_net()
    running = Fit(net, slanted_sampler(), Recipe(n_passes=n_passes, batch=16, lr=1e30, optimizer=optimizer), seed=0)
    running.run()
    assert all(torch.isfinite(p).all() for p in running.averaged_net.parameters())


def test_the_average_is_over_the_latest_50_steps():
    """At first over fewer, about a tenth of all so far."""
    running, expected = Fit(field_net(), slanted_sampler(), Recipe(n_passes=200, batch=16, lr=1e-2), seed=0), []

    def on_step(fit):
        part = max(1 / 50, 10 / (9 + fit.step))
        latest = fit.trained.weights.double()
        expected[:] = [(1 - part) * expected[0] + part * latest] if expected else [latest]
        if fit.step in (30, 800):
            torch.testing.assert_close(fit.trained.averaged_weights.double(), expected[0], rtol=1e-4, atol=1e-5)

    running.run(on_step)
    assert running.step == 800


@pytest.mark.slow
def test_the_average_is_better_than_the_latest_network_while_the_rate_is_high():
    ratios = []
    for seed in range(9):
        sampler = sampler_of(np.random.default_rng(seed).standard_normal((12, 11, 10)).cumsum(0).cumsum(1))
        net = field_net(seed)
        running = Fit(net, sampler, Recipe(n_passes=60, batch=32, lr=1e-2), seed=seed)
        running.run(lambda fit: fit.progress > 0.3)
        ratios.append(float(mean_squares(running.averaged_net, sampler)) / float(mean_squares(net, sampler)))
    assert np.median(ratios) < 1
