"""What a fit sees, what it minimises, and that every part of the recipe acts."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.networks import field_net, fit, watched_samples
from helpers.scripts import ROOT
from helpers.volumes import slanted

import fitting
from fitting import NORM_LIMIT, SPIKE, Fit, Recipe, default_recipe, loss_with_gradient, new_fit
from optimizers import Adam, Muon
from samples import Field
from siren import SirenConfig
from utils import value_range

CPU = torch.device("cpu")


def field_of(array: np.ndarray) -> Field:
    array = array if array.ndim == 4 else array[..., None]
    return Field(value_range(array).normalise(array), CPU)


def slanted_field(shape=(5, 4, 3)) -> Field:
    return field_of(slanted(shape))


def fitted(field, net=None, **fields):
    """The state dict after a fit, from the same start unless `net` says otherwise."""
    net = copy.deepcopy(net or field_net())
    fit(net, field, **fields)
    return net.state_dict()


def mean_squares(net, field):
    """Of each component, as it is decoded: clipped."""
    with torch.no_grad():
        y = net(field.samples(torch.arange(field.n_voxels))[0]).clamp(-1, 1)
        return (y - field.values).square().mean(dim=0)


def distance(a, b) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize("grad_lambda", [0.0, 0.1])
@pytest.mark.parametrize("batch", [5, 16, 59, 60, 1000])
def test_a_fit_sees_every_voxel_so_often(batch, grad_lambda):
    """With the gradient term, and with the original's schedule."""
    schedule = "power" if grad_lambda else "step"
    with watched_samples() as steps:
        fit(field_net(), slanted_field(), n_passes=3, batch=batch, grad_lambda=grad_lambda, schedule=schedule)
    assert len(steps) == 3 * math.ceil(60 / batch)
    assert max(map(len, steps)) <= batch
    for flat in torch.cat(steps).view(3, 60):
        assert flat.sort().values.tolist() == list(range(60))


def test_order_is_new_each_pass_and_the_seeds():
    def order(seed):
        with watched_samples() as steps:
            fit(field_net(), slanted_field(), seed, n_passes=2)
        return torch.cat(steps)

    first, second = order(1).view(2, 60)
    assert not torch.equal(first, second)
    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(2)[:60], first)


@pytest.mark.parametrize(("n_passes", "batch"), [(1.5, 16), (0.3, 7), (2.25, 1000), (1e-9, 16)])
def test_a_fit_of_a_fraction_of_a_pass(n_passes, batch):
    with watched_samples() as steps:
        fit(field_net(), slanted_field(), n_passes=n_passes, batch=batch, schedule="step")
    counts = torch.cat(steps).bincount(minlength=60)
    assert 0 <= counts.sum() - 60 * n_passes <= min(batch, 60)
    assert counts.max() - counts.min() <= 1


def test_voxels_are_drawn_by_their_latest_error(monkeypatch):
    """Of a network that does not move, the errors are exact, and every voxel is drawn as often as they say."""
    monkeypatch.setattr(fitting, "MAX_RECOVERIES", 0)
    field, net = slanted_field((9, 7, 5)), field_net()
    with watched_samples() as steps:
        done = fit(net, field, n_passes=60, batch=35, lr=1e-30)
    assert len(torch.cat(steps)) == 60 * 315
    with torch.no_grad():
        errors = (net(field.samples(torch.arange(315))[0]) - field.values)[:, 0].abs()
    density = 0.25 + 0.75 * errors / errors.mean()
    np.testing.assert_allclose(done.errors, errors**2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(done.density, density, rtol=1e-2)
    counts = torch.cat(steps[-90:]).bincount(minlength=315)  # of the latest ten passes
    assert float((counts / 10 - density).abs().max()) < 0.6


def test_drawing_by_error_leaves_the_mean_gradient():
    """Weighted by 1 / density, the gradients of a pass add up to that of all voxels."""
    field, net = slanted_field((30, 28, 26)), field_net()
    running = Fit(net, field, Recipe(n_passes=1, batch=field.n_voxels, lr=1e-3), seed=0)
    x, values = field.samples(torch.arange(field.n_voxels))
    running.squared_error(x, values)
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    density = field.density(running.errors)
    assert density.min() >= 0.25 and density.mean() == pytest.approx(1, rel=1e-5)
    flat = field.shuffled(0, 0, density)
    running.squared_error(x[flat], values[flat], 1 / density[flat])
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


def test_drawing_by_error_finds_what_is_rare(monkeypatch):
    grid = np.zeros((24, 24, 24))
    grid[10:14, 10:14, 10:14] = np.random.default_rng(5).random((4, 4, 4))
    field, errors = field_of(grid), {}
    for by_error in (False, True):
        monkeypatch.setattr(Recipe, "by_error", by_error)
        net = field_net(n_neurons=16)
        running = Fit(net, field, Recipe(n_passes=10, batch=128, lr=5e-3), seed=0)
        running.run()
        errors[by_error] = float(mean_squares(running.average, field))
    assert errors[True] < 0.3 * errors[False]


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_fit_learns(optimizer):
    field, net = slanted_field((9, 7, 5)), field_net(n_neurons=16)
    fit(net, field, n_passes=80, batch=32, optimizer=optimizer, lr=3e-3)
    assert 10 * math.log10(4 / mean_squares(net, field)) > 35


def test_a_fit_tells_its_psnr():
    field, net = slanted_field((9, 7, 5)), field_net(n_neurons=16)
    done = fit(net, field, n_passes=80, batch=32, optimizer="adam", lr=3e-3)
    assert done.psnr == pytest.approx(float(10 * torch.log10(4 / mean_squares(net, field))), abs=1.5)
    assert done.progress == 1


def test_several_components_are_learned_each_in_its_place():
    base = slanted((6, 5, 4))
    field, net = field_of(np.stack([base, -2 * base, np.ones_like(base)], axis=-1)), field_net(n_neurons=16, d_out=3)
    fit(net, field, n_passes=80, batch=24, optimizer="adam", lr=3e-3)
    assert mean_squares(net, field).max() < 1e-3


def test_a_fit_is_judged_by_voxels_that_stand_for_all():
    """Of a network with errors where the values are rare, too."""
    grid = np.random.default_rng(0).standard_normal((20, 30, 25)) ** 5
    field, net = field_of(grid), field_net()
    assert Fit(net, field, Recipe(1, 64, 1e-3), 0)._judge() == pytest.approx(float(mean_squares(net, field)), rel=0.03)
    assert field.probe()[2].mean() == pytest.approx(1, rel=0.03)


def test_the_probe_follows_the_errors():
    """To eight voxels of 17,576 that stand out: most of them are not drawn at first, but all once they matter."""
    grid = slanted((26, 26, 26)) / 20.0
    hot = np.random.default_rng(1).choice(grid.size, 8, replace=False)
    grid.flat[hot] += 1.5
    field, net = field_of(grid), field_net(n_neurons=16)
    running = Fit(net, field, Recipe(n_passes=25, batch=1024, lr=5e-3), seed=0)
    running.run()
    assert running.loss == pytest.approx(float(mean_squares(running.average, field)), rel=0.1)
    assert (field.values[hot] == running.probe[1][:, None]).any(0).all()


def test_what_ends_a_fit_is_kept():
    """However bad it looks."""
    running = Fit(field_net(), slanted_field(), Recipe(n_passes=100, batch=16, lr=2e-3), seed=0)
    running.run(lambda fit: fit.step == 250 and fit.averaged.fill_(3.0) is not None)
    assert running.step == 250 and float(running.averaged.mean()) == 3.0


@pytest.mark.parametrize(("side", "n_passes"), [(8, 1500), (32, 94), (40, 47), (64, 45), (128, 16), (512, 5)])
def test_default_passes(side, n_passes):
    recipe = default_recipe(side**3, field_net().config)
    assert recipe.n_passes == n_passes
    assert n_passes * math.ceil(side**3 / recipe.batch) >= 1500 and recipe.batch == 2048


def test_a_short_fit_takes_half_the_batch():
    config = field_net().config
    assert [default_recipe(64**3, config, n_passes=n).batch for n in (11, 12)] == [1024, 2048]
    assert default_recipe(64**3, config, n_passes=11).n_passes == 11
    assert default_recipe(64**3, config, max_seconds=1e6).batch == 1024


def test_the_seed_decides():
    field = slanted_field()
    assert distance(fitted(field, seed=1), fitted(field, seed=1)) == 0
    assert distance(fitted(field, seed=1), fitted(field, seed=2)) > 0


def test_lr_is_the_size_of_adams_first_step():
    """Adam's first step moves a weight by lr, whatever its gradient."""
    field, net = slanted_field(), field_net(n_neurons=16)
    for lr in (1e-4, 1e-3):
        after = fitted(field, net, batch=60, lr=lr, optimizer="adam", schedule="step")
        moved = torch.cat([(after[k] - v).abs().flatten() for k, v in net.state_dict().items()])
        assert moved.max() == pytest.approx(lr, rel=0.01) and moved.median() == pytest.approx(lr, rel=0.05)


def test_step_schedule():
    """The second pass does nothing when the rate falls to nothing after the first, and much when it does not."""
    field = slanted_field()
    recipe = {"schedule": "step", "optimizer": "adam"}
    one = fitted(field, n_passes=1, **recipe)
    fallen = fitted(field, n_passes=2, **recipe, pass_decay=1.0, lr_decay=1e-9)
    slower = fitted(field, n_passes=2, **recipe, pass_decay=1.0, lr_decay=0.1)
    steady = fitted(field, n_passes=2, **recipe, pass_decay=2.0, lr_decay=1e-9)
    assert distance(one, fallen) < 1e-6
    assert 1e-5 < distance(one, slower) < 0.5 * distance(one, steady)


def test_power_schedule_ends_at_nothing():
    """Of many steps the last hardly moves a weight; with the rate held, every step does."""
    field = slanted_field()
    last = {}
    for schedule in ("power", "step"):
        recipe = {"n_passes": 40, "batch": 60, "optimizer": "adam", "schedule": schedule}
        states = []

        def keep(done, states=states):
            states.append({k: v.clone() for k, v in done.net.state_dict().items()})

        fit(field_net(), field, on_step=keep, **recipe)
        assert len(states) == 40
        last[schedule] = distance(states[-1], states[-2])
    assert last["power"] < 0.02 * last["step"]


def test_optimizers_differ():
    assert distance(fitted(slanted_field(), optimizer="adam"), fitted(slanted_field(), optimizer="muon")) > 1e-5


def test_on_step_ends_the_fit():
    with watched_samples() as steps:
        done = fit(field_net(), slanted_field(), n_passes=5, batch=16, on_step=lambda done: done.step == 7)
    assert len(steps) == done.step == 7


@pytest.mark.parametrize("at", [4, 7])  # between two passes, and within one
def test_a_checkpoint_continues_to_the_same_result(at):
    field, states = slanted_field(), []
    whole, part, rest = field_net(), field_net(), field_net(seed=9)
    recipe = {"n_passes": 4, "batch": 16}
    fit(whole, field, **recipe)
    fit(part, field, **recipe, on_step=lambda done: done.step == at and not states.append(done.state_dict()))
    fit(rest, field, **recipe, start=states[0])
    assert distance(whole.state_dict(), rest.state_dict()) == 0
    assert distance(whole.state_dict(), part.state_dict()) > 0


@pytest.mark.parametrize("at", [7, 15, 19, 24, 31])  # of the first, second or last trial, or after them
def test_a_checkpoint_of_a_trial_continues_to_the_same_result(at, monkeypatch):
    monkeypatch.setattr("fitting.CHECK_STEPS", 5)
    monkeypatch.setattr("fitting.BRIEF", 0.25)
    field, states = slanted_field(), []

    def begun():
        nets = [field_net(seed=seed) for seed in range(3)]
        return Fit(nets[0], field, Recipe(n_passes=8, batch=16, lr=2e-3), seed=0, rivals=nets[1:])

    calls = itertools.count(1)

    def on_step(fit):
        return next(calls) == at and not states.append(copy.deepcopy(fit.state_dict()))

    whole, rest = begun(), begun()
    whole.run()
    begun().run(on_step)
    rest.load_state_dict(states[0])
    rest.run()
    assert distance(whole.average.state_dict(), rest.average.state_dict()) == 0


def test_max_seconds():
    with watched_samples() as steps:
        done = fit(field_net(), slanted_field(), max_seconds=0.3)
    assert 0.3 <= done.seconds < 1.5 and len(steps) > 4


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
    total, first = loss_with_gradient(net, x.clone(), values, gradients, 0.7)
    assert first.item() == pytest.approx(value_loss.item(), rel=1e-10)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradient_term_reaches_the_weights():
    """Its derivative by a weight, against a difference of the loss."""
    net = field_net(seed=5).double()
    x = torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    values, gradients = torch.zeros(12, 1, dtype=torch.float64), torch.ones(12, 1, 3, dtype=torch.float64)

    def loss():
        return loss_with_gradient(net, x.clone(), values, gradients, 0.5)[0]

    loss().backward()
    for name, p in net.named_parameters():
        if name.endswith("weight"):
            h, kept = 1e-6, p.data[0, 0].item()
            p.data[0, 0] = kept + h
            above = loss().item()
            p.data[0, 0] = kept - h
            below = loss().item()
            p.data[0, 0] = kept
            assert p.grad[0, 0].item() == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-6), name


def test_grad_lambda_brings_the_slopes_nearer():
    field = slanted_field((6, 5, 4))
    x = field.samples(torch.arange(field.n_voxels))[0]

    def slope_error(grad_lambda):
        net = field_net(n_neurons=16)
        fit(net, field, n_passes=60, batch=60, optimizer="adam", lr=3e-3, grad_lambda=grad_lambda)
        total, first = loss_with_gradient(net, x.clone(), field.values, field.gradients, 1.0)
        return (total - first).item()

    assert slope_error(0.05) < 0.5 * slope_error(0.0)


# --- the optimiser, and what keeps a fit from going wrong ---------------------------------------------


def test_muon_moves_matrices_as_torchs_own():
    """One step after another of torch.optim.Muon, which computes in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    ours, gradient = torch.randn(3, 6, 6, generator=generator), torch.empty(3, 6, 6)
    torchs = [torch.nn.Parameter(matrix) for matrix in ours.clone()]
    start, lr = ours.clone(), 0.01
    muon = Muon(ours, gradient)
    reference = torch.optim.Muon(torchs, lr=0.125 * lr * math.sqrt(6), weight_decay=0.0, momentum=0.95)
    for _ in range(4):
        gradient.copy_(torch.randn(3, 6, 6, generator=generator))
        for matrix, its_gradient in zip(torchs, gradient, strict=True):
            matrix.grad = its_gradient.clone()
        muon.step(lr)
        reference.step()
    for a, b, s in zip(ours, torchs, start, strict=True):
        moved = a - s
        assert float((a - b).detach().norm()) < 0.05 * float(moved.norm())
        assert 0.5 * 4 * 0.125 * lr < float(moved.square().mean().sqrt()) < 1.5 * 4 * 0.125 * lr


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99)])
def test_adam_moves_weights_as_torchs_own(betas):
    generator = torch.Generator().manual_seed(0)
    ours, gradient = torch.randn(50, generator=generator), torch.empty(50)
    torchs = torch.nn.Parameter(ours.clone())
    adam, reference = Adam(ours, gradient, betas), torch.optim.Adam([torchs], lr=0.01, betas=betas)
    for k in range(20):
        gradient.copy_(torch.randn(50, generator=generator) * 10.0 ** (k % 3 - 5))
        torchs.grad = gradient.clone()
        adam.step(0.01)
        reference.step()
    np.testing.assert_allclose(ours, torchs.detach(), rtol=1e-5, atol=1e-6)


FIT = """
import sys, numpy, torch, fitting, samples, siren
field = samples.Field(numpy.eye(8, dtype="f").reshape(4, 4, 4, 1), torch.device("cpu"))
fitting.new_fit(siren.SirenConfig(6), field, fitting.Recipe(2, 8, 1e-3), 0).run()
assert "torch._dynamo" not in sys.modules
"""


def test_no_compiler_is_imported():
    """It takes seconds."""
    subprocess.run([sys.executable, "-c", FIT], cwd=ROOT, check=True)


def test_hidden_matrices_keep_within_their_norm():
    net = field_net()
    before = [float(p.detach().norm()) for p in net.parameters() if p.shape == (net.config.n_neurons,) * 2]
    fit(net, field_of(np.random.default_rng(0).standard_normal((6, 5, 4))), n_passes=50, lr=0.3)
    limit = NORM_LIMIT * math.sqrt(2 * net.config.n_neurons) / net.config.omega_0
    after = [float(p.detach().norm()) for p in net.parameters() if p.shape == (net.config.n_neurons,) * 2]
    assert before and all(a <= max(limit, b) * (1 + 1e-5) for a, b in zip(after, before, strict=True))


def poisoned(fit_, at, how):
    """Run a fit whose weights are spoilt once, after step `at`; the recoveries seen."""
    done = []

    def on_step(running):
        if running.step == at and not done:
            done.append(at)
            with torch.no_grad():
                for p in running.net.parameters():
                    how(p)

    fit_.run(on_step)
    assert done
    return fit_.n_recoveries


@pytest.mark.parametrize("how", [lambda p: p.fill_(math.nan), lambda p: p.mul_(100.0)], ids=["nan", "wild"])
def test_a_fit_that_diverges_goes_back(how):
    field, recipe = slanted_field(), Recipe(n_passes=150, batch=16, lr=2e-3)
    whole, spoilt = field_net(), field_net()
    Fit(whole, field, recipe, seed=0).run()
    assert poisoned(Fit(spoilt, field, recipe, seed=0), at=250, how=how) >= 1
    assert float(mean_squares(spoilt, field)) < 10 * float(mean_squares(whole, field)) + 1e-4


def test_a_fit_that_stays_at_a_constant_starts_again():
    """A rate so high that the network fits but a constant is halved until it does better, or given up."""
    net, field = field_net(), slanted_field((7, 6, 5))
    running = Fit(net, field, Recipe(n_passes=110, batch=16, lr=5.0, optimizer="adam"), seed=0)
    running.run()
    assert running.n_recoveries >= 1
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_the_best_of_several_starts_goes_on(monkeypatch):
    monkeypatch.setattr("fitting.CHECK_STEPS", 5)
    monkeypatch.setattr("fitting.BRIEF", 0.04)
    ended_trial, judged, seen = Fit._ended_trial, [], []
    monkeypatch.setattr(Fit, "_ended_trial", lambda fit: judged.append(fit.loss) or ended_trial(fit))
    nets = [field_net(seed=seed, n_neurons=16) for seed in range(3)]
    running = Fit(nets[0], slanted_field(), Recipe(n_passes=60, batch=16, lr=2e-3), seed=0, rivals=nets[1:])
    running.run(lambda fit: seen.append((fit.step, fit.loss)) or fit.step == 12)
    assert [step for step, _ in seen] == [*range(1, 10), 0, *range(1, 10), 0, *range(1, 10), 10, 11, 12]
    assert len(set(judged)) == 3 and seen[-3] == (10, min(judged))


def test_a_long_fit_is_tried_from_several_starts_and_another_is_not():
    field, config = slanted_field((9, 8, 7)), field_net().config
    recipe = Recipe(n_passes=5000, batch=504, lr=2e-3)
    assert len(new_fit(config, field, recipe, seed=0).rivals) == 2
    for change in ({"n_passes": 4999}, {"schedule": "step"}, {"max_seconds": 60.0}):
        assert not new_fit(config, field, dataclasses.replace(recipe, **change), seed=0).rivals
    assert not new_fit(SirenConfig(25), field, recipe, seed=0).rivals
    fits = [new_fit(config, field, recipe, seed=seed) for seed in (0, 0, 1)]
    drawn = [[fit.net.state_dict(), *fit.rivals] for fit in fits]
    assert all(distance(a, b) == 0 for a, b in zip(*drawn[:2], strict=True))
    assert all(distance(a, b) > 0.01 for a, b in itertools.combinations([*drawn[0], *drawn[2]], 2))


def test_a_fit_begins_with_a_brief_one():
    """At its end the network is better than for long after it; and that it is worse then is no divergence."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    field, config = field_of(np.sin(3 * x + y) * np.cos(2 * z)), SirenConfig(16, 4)
    recipe = Recipe(n_passes=3300, batch=2048, lr=6e-3)
    assert [dataclasses.replace(recipe, n_passes=n).count_steps(4096) for n in (800, 900)] == [(1600, 0), (1800, 100)]
    running, losses = Fit(new_fit(config, field, recipe, seed=0).net, field, recipe, seed=0), {}
    assert (running.n_steps, running.n_brief) == (6600, 200)
    running.run(lambda fit: losses.setdefault(fit.step, fit.loss) and fit.step == 500)
    assert losses[200] < 0.1 * min(losses[step] for step in (100, 300, 400, 500))
    assert losses[300] > SPIKE * losses[200] and running.n_recoveries == 0


def test_a_slow_fit_of_a_rare_voxel_is_left_alone():
    """It is worse than a constant for long, but on its way; and a batch with the voxel has many times the loss."""
    grid = np.zeros((24, 24, 24))
    grid[5, 14, 9] = 1.0
    recipe = Recipe(n_passes=120, batch=4096, lr=2e-4, optimizer="adam", schedule="step")
    running, losses = Fit(field_net(), field_of(grid), recipe, seed=0), []
    running.run(lambda fit: losses.append(fit.loss) if fit.step % 100 == 0 else None)
    assert running.n_recoveries == 0 and running.step == 480
    assert losses == sorted(losses, reverse=True) and losses[-1] > running.field.variance


def test_an_interrupted_fit_ends_in_its_best_state():
    running = Fit(field_net(), slanted_field(), Recipe(n_passes=100, batch=16, lr=2e-3), seed=0)

    def on_step(fit):
        if fit.step == 250:
            fit.averaged.fill_(math.nan)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running.run(on_step)
    assert running.step == 200 and running.loss == running.best_loss
    assert float(mean_squares(running.average, running.field)) == pytest.approx(running.loss, rel=0.2)


def test_a_fit_of_fine_waves_starts_again_with_shorter_ones():
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 20)] * 3, indexing="ij")
    field = field_of(np.sin(26 * x + 2 * y) * np.sin(24 * y + 1) * np.cos(25 * z + 3 * x))
    running = new_fit(SirenConfig(16, 4), field, Recipe(n_passes=150, batch=1000, lr=6e-3), seed=0)
    running.run()
    assert 1 <= running.n_recoveries <= 2 and running.n_halvings == 0
    assert float(mean_squares(running.average, field)) < 0.3 * field.variance
    kept = new_fit(SirenConfig(16, 4), field, Recipe(n_passes=150, batch=1000, lr=6e-3), seed=0, first_omega=30.0)
    assert not kept.fallbacks


@pytest.mark.parametrize("n_passes", [1, 3, 40])
def test_a_short_fit_is_left_alone(n_passes):
    running = Fit(field_net(), slanted_field(), Recipe(n_passes=n_passes, batch=8, lr=2e-3), seed=0)
    running.run()
    assert running.n_recoveries == 0


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@pytest.mark.parametrize("n_passes", [2, 200])
def test_a_hopeless_rate_leaves_a_finite_network(optimizer, n_passes):
    net = field_net()
    running = Fit(net, slanted_field(), Recipe(n_passes=n_passes, batch=16, lr=1e30, optimizer=optimizer), seed=0)
    running.run()
    assert all(torch.isfinite(p).all() for p in running.average.parameters())


def test_the_average_is_better_than_the_latest_network_while_the_rate_is_high():
    ratios = []
    for seed in range(6):
        field = field_of(np.random.default_rng(seed).standard_normal((12, 11, 10)).cumsum(0).cumsum(1))
        net = field_net()
        running = Fit(net, field, Recipe(n_passes=60, batch=32, lr=1e-2), seed=0)
        running.run(lambda fit: fit.progress > 0.3)
        ratios.append(float(mean_squares(running.average, field)) / float(mean_squares(net, field)))
    assert np.mean(ratios) < 0.95
