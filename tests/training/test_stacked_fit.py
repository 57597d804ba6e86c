"""Networks of a stack take the steps that each would take alone, each over its own brick."""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
import pytest
import torch
from helpers.bricked_fits import small_fit
from helpers.networks import field_net
from helpers.reference import ReferenceStep
from helpers.volumes import slanted, waves

from cli.progress import NoProgress
from field.evaluation import TILE
from field.layers import SirenConfig
from training import brick_trainer, loop
from training.brick_trainer import BrickTrainer
from training.one_brick import Task
from training.padded_gradient import PaddedGradient
from training.recipe import Recipe, psnr_of
from training.sampler import VoxelSampler
from training.stacked_fit import StackedFit, StackedSampler, widened
from training.stacks import stack_width
from training.starts import Start
from training.step import StepFunction
from training.weights import TrainedWeights
from utils import Geometry, ValueRange, Volume, header_of, value_range

CPU = torch.device("cpu")
# The largest part of a move, or of a gradient, that may differ from the reference's, by the type of the products.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 0.2}
WIDTHS = 9, 18, 12
PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = (9, 7, 5), (8, 7, 5), (9, 6, 6)


def normalised(array: np.ndarray) -> np.ndarray:
    array = array[..., None]
    return value_range(array).normalise(array)


def bricks() -> list[np.ndarray]:
    """Three bricks of different sizes. The second has missing voxels."""
    found = [normalised(np.sin(slanted(shape) / (k + 12))) for k, shape in enumerate(SHAPES)]
    found[1][2:5, :, 3] = np.nan
    return found


def nets_of(**fields) -> list:
    nets = [field_net(seed=k, n_neurons=width, **fields) for k, width in enumerate(WIDTHS)]
    for net in nets:
        for p in net.parameters():
            p.data *= 1 + 0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(1))
    return nets


def among_zeros(nets: list) -> list:
    width = stack_width([net.config for net in nets])
    return [widened(net, width) for net in nets]


def cut_out(trained: TrainedWeights, name: str, k: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """A parameter of network number k, its gradient or its average; all that is beyond its width has to be zero."""
    net = trained.averaged_net if kind == "average" else trained.net
    p = dict(net.named_parameters())[name]
    whole = trained.of_all(p.grad if kind == "gradient" else p.detach())[k].clone()
    inside = tuple(map(slice, shape))
    found = whole[inside].clone()
    whole[inside] = 0
    assert not whole.any(), name
    return found.cpu().double()


@pytest.mark.parametrize("products", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "fields", [{"n_layers": 1}, {"n_layers": 3, "d_in": 2, "d_out": 3}, {"n_layers": 3, "is_residual": False}]
)
def test_the_gradient_of_each_network_is_that_of_the_reference(fields, products):
    nets, generator = nets_of(**fields), torch.Generator().manual_seed(3)
    config, shape = nets[0].config, (len(nets), 200)
    x = 2 * torch.rand(*shape, config.d_in, generator=generator) - 1
    values = (3 * torch.rand(*shape, config.d_out, generator=generator) - 1.5).clamp(-1, 1)
    weights = 2 * torch.rand(*shape, generator=generator)
    dtype = torch.float64 if products == torch.float64 else torch.float32
    wide = [net.to(dtype) for net in among_zeros(nets)]
    trained = TrainedWeights(wide, "muon", 0, TILE, torch.tensor([float(n) for n in WIDTHS]))
    gradient = PaddedGradient(trained, is_clipped=True)
    gradient(x.to(dtype), values.to(dtype), weights.to(dtype), products)
    for k, net in enumerate(nets):
        reference = ReferenceStep(net, is_clipped=True)
        squares = reference.loss(x[k], values[k], weights[k])[1]
        tolerance = TOLERANCE[products] * float(squares.max())
        torch.testing.assert_close(gradient.squares[k].double(), squares, rtol=0, atol=tolerance)
        expected = reference.gradients(x[k], values[k], weights[k])
        for (name, p), of_p in zip(net.named_parameters(), expected, strict=True):
            found = cut_out(trained, name, k, p.shape, "gradient")
            assert (found - of_p).norm() <= TOLERANCE[products] * of_p.norm(), name


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("products", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_steps_of_each_network_are_those_of_the_reference(optimizer, products, place):
    device, nets = torch.device(place), nets_of(n_layers=3)
    sampler = StackedSampler([VoxelSampler(brick, device) for brick in bricks()])
    wide, rates = among_zeros(nets), [2e-3, 1e-3, 5e-4]
    if products == torch.float64:
        wide = [net.double() for net in wide]
        sampler.values, sampler.coordinates = sampler.values.double(), sampler.coordinates.double()
    wide[0].to(device)
    widths = torch.tensor([float(n) for n in WIDTHS], dtype=torch.float64, device=device)
    step = StepFunction(
        wide, sampler, Recipe(1, 100, 1.0, optimizer), 0, 1, sampler.deviations().to(sampler.values), widths
    )
    step.has_half = products == torch.float16
    if place == "cpu":  # scalars are tensors, as in a graph
        step.coefficients = step.trained.weights.new_zeros(len(step.trained.coefficients(1.0, 1))).unbind()
        step.replay = lambda function, *tensors, **settings: function(*tensors, **settings)
    step.trained.rates.copy_(torch.tensor(rates, dtype=torch.float64))
    step.set_density(sampler.density(step.errors))
    errors, references = step.errors.double().cpu(), [ReferenceStep(net, optimizer, is_clipped=True) for net in nets]
    for number, batch in enumerate(sampler.batches([1, 2, 3], 0, 5, 0, step.density), 1):
        x, values = (tensor.cpu() for tensor in sampler.samples(batch))
        weights = 1 / step.density[batch].cpu()
        for k, reference in enumerate(references):
            squares = reference.loss(x[k], values[k], weights[k])[1]
            drawn = batch[k].cpu()
            before = errors[drawn].clone()
            errors[drawn] = (before + squares.clamp(max=4.0)) / 2
            reference.take(x[k], values[k], weights[k], rates[k] / number, number)
        step(batch, 1 / number, number, 0.0)
    np.testing.assert_allclose(step.errors.cpu(), errors, rtol=0, atol=TOLERANCE[products])
    for k, (net, reference) in enumerate(zip(nets, references, strict=True)):
        for kind, expected in (("now", reference.net), ("average", reference.averaged)):
            for (name, start), q in zip(net.named_parameters(), expected.parameters(), strict=True):
                moved = (q - start.double()).norm()
                assert (cut_out(step.trained, name, k, q.shape, kind) - q).norm() <= TOLERANCE[products] * moved, name


# --- the fit of a stack -----------------------------------------------------------------------------

RECIPE = Recipe(n_passes=3, batch=80, lr=2e-3)


def value_limits(most: float = 1.0) -> ValueRange:
    """The range -most to most."""
    return ValueRange(np.float32([-most]), np.float32([most]))


def tasks(values: list[np.ndarray] | None = None, **fields) -> list[Task]:
    recipe = dataclasses.replace(RECIPE, **fields)
    found = enumerate(zip(values or bricks(), WIDTHS, strict=True))
    return [Task(brick, value_limits(), Start(SirenConfig(width, 3), k), recipe) for k, (brick, width) in found]


def stack(found: list[Task], place: str = "cpu") -> StackedFit:
    return StackedFit(found, [task.value_range.normalise(task.brick) for task in found], torch.device(place))


def results(fit: StackedFit) -> list[bytes]:
    return [b"".join(p.cpu().numpy().tobytes() for p in fit.network(k).state_dict().values()) for k in range(3)]


@pytest.fixture(autouse=True)
def judged_often(monkeypatch):
    monkeypatch.setattr(loop, "CHECK_STEPS", 4)


def test_every_network_sees_its_own_brick_alone_and_no_missing_voxel():
    sampler = StackedSampler([VoxelSampler(brick, CPU) for brick in bricks()])
    density = sampler.density(sampler.deviations() + 1)
    batches = sampler.batches([1, 2, 3], 0, 4, 0, density)
    assert len(batches) == 4 and len({batch.shape for batch in batches}) == 1
    drawn = torch.cat(batches, dim=1)
    x, values = sampler.samples(drawn)
    assert values.isfinite().all()
    for k, (brick, flat) in enumerate(zip(sampler.bricks, drawn - torch.tensor(sampler.starts)[:, None], strict=True)):
        own_x, own_values = brick.samples(flat)  # fails for voxels beyond its end
        assert flat.min() >= 0 and torch.equal(x[k], own_x) and torch.equal(values[k], own_values)
        assert len(flat.unique()) > 0.7 * brick.n_present
    _, values, weights = sampler.judging_voxels(density)
    assert values.isfinite().all()
    torch.testing.assert_close((weights * 0.5).sum(1), torch.full((3,), 0.5), rtol=0.2, atol=0)


@pytest.mark.parametrize("place", PLACES)
def test_the_same_seed_gives_the_same_bytes_and_networks_that_have_learned(place):
    found = []
    for _ in range(2):
        fit = stack(tasks(n_passes=8), place)
        before = [fit.error(k) for k in range(3)]
        fit.run()
        found.append(results(fit))
    assert found[0] == found[1] and fit.progress == 1
    assert all(fit.error(k) < error for k, error in enumerate(before))


@pytest.mark.parametrize("at", [5, 15])  # the last step is number 15
def test_a_network_of_nan_leaves_the_others_alone_and_goes_back(at):
    def fitted(is_hurt: bool) -> StackedFit:
        fit = stack(tasks())
        take = fit.step_function._take

        def hurt(*arguments, **settings) -> None:
            take(*arguments, **settings)
            if is_hurt and fit.step == at:
                fit.trained.weights[1] = math.nan
                fit.trained.averaged_weights[1] = math.nan

        fit.step_function._take = hurt
        fit.run()
        return fit

    fit, sound = fitted(True), fitted(False)
    found, expected = results(fit), results(sound)
    assert found[0] == expected[0] and found[2] == expected[2] and found[1] != expected[1]
    assert all(tensor.isfinite().all() for tensor in fit.trained.state)
    assert fit.error(1) < 3 * fit.sampler.bricks[1].variance
    assert [recovery.n_halvings for recovery in fit.recoveries] == [0, int(at < 15), 0]


def test_a_collapsed_network_starts_again_with_shorter_waves_and_the_others_go_on(monkeypatch):
    fit = stack(tasks())
    fit.recoveries[1].best_loss, fit.best[0][1] = 0.005, 0.0
    others = fit.trained.weights[1:].clone()
    monkeypatch.setattr("training.recovery.COLLAPSE_STEPS", 8)
    monkeypatch.setattr(fit, "_judge", lambda: [fit.losses[0], 0.01, 0.01])  # the first stays at a constant
    fit.step, fit.n_steps = 11, 12
    fit.judging_voxels = fit.sampler.judging_voxels(fit.sampler.density(fit.step_function.errors))
    fit._recover_if_needed()
    assert [recovery.n_short_wave_starts for recovery in fit.recoveries] == [1, 2, 2]
    assert torch.equal(fit.trained.weights[0], fit.short_wave_starts[0][0])
    assert torch.equal(fit.trained.weights[1:], others)


def test_a_constant_brick_harms_nothing():
    values = bricks()
    values[0] = np.ones_like(values[0])
    fit, other = stack(tasks(values)), stack(tasks())
    fit.run()
    other.run()
    assert all(tensor.isfinite().all() for tensor in fit.trained.state)
    assert fit.sampler.n_present == other.sampler.n_present and results(fit)[1:] == results(other)[1:]


def test_a_network_that_has_its_target_is_kept_as_it_was():
    wanted = [task._replace(target_psnr=0.0 if k == 1 else 300.0) for k, task in enumerate(tasks())]
    fit = stack(wanted)
    fit.run()
    assert list(fit.reached) == [1] and torch.equal(fit.trained.averaged_weights[1], fit.reached[1])
    fit = stack([task._replace(target_psnr=0.0) for task in wanted])
    fit.run()
    assert fit.step == 4 < fit.n_steps


def test_an_interruption_is_told_as_it_is():
    """Also before the first step, when there is nothing to judge yet."""

    def interrupted(*_):
        raise KeyboardInterrupt

    for at in ("density", "batches"):
        fit = stack(tasks())
        setattr(fit.sampler, at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit.run()
        assert fit.step == 0
    with pytest.raises(KeyboardInterrupt):
        stack(tasks()).run(interrupted)


def test_products_are_those_that_the_networks_need_that_matter():
    factors = 1.0, 1e-9, 1.0
    ranges = [value_limits(math.sqrt(factor)) for factor in factors]
    fit = stack([task._replace(value_range=own) for task, own in zip(tasks(), ranges, strict=True)])
    for losses, expected in (([1e-3, 1e-9, 1e-3], 1e-3), ([1e-6, 1.0, 1e-6], 1e-6), ([1e-4, math.nan, math.nan], 1e-4)):
        fit._judge = lambda losses=losses: losses
        fit._recover_if_needed()
        assert fit.psnr == pytest.approx(psnr_of(expected), abs=0.01)


def test_a_time_limit_is_that_of_all_together():
    fit = stack(tasks(max_seconds=0.05))
    assert fit.recipe.max_seconds == pytest.approx(0.15)
    fit.run()
    assert fit.progress == 1 and fit.step > 0


@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, grad_lambda=0.01)])
def test_a_volume_in_bricks_is_fitted_by_stacks_where_it_can_be(recipe, monkeypatch):
    volume, judged = Volume(waves((13, 9, 5)), Geometry.plain(3)), []
    trainer = BrickTrainer(volume, header_of(volume), (2, 2, 1), lambda n_voxels, config: recipe, 0)
    trainer.has_stacks = True
    recover = StackedFit._recover_if_needed
    monkeypatch.setattr(StackedFit, "_recover_if_needed", lambda fit: judged.append(len(fit.tasks)) or recover(fit))
    configs = {k: SirenConfig(width, 3) for k, width in enumerate((4, 20, 8, 6))}
    done: list[int] = []
    recipes = dict.fromkeys(configs, recipe)
    found = trainer.train_bricks(configs, recipes, NoProgress(), lambda k, trained: done.append(k) or {})
    assert sorted(done) == [0, 1, 2, 3] and set(judged) == ({4} if recipe.draws_by_error else set())
    for k, (weights, error, _) in found.items():
        assert weights["net_layers.3.weight"].shape == (1, configs[k].n_neurons)
        assert 0 < error < 4


def test_values_are_normalised_while_the_stack_before_is_fitted(monkeypatch):
    """By the thread that reads ahead: a GPU does not wait for it."""
    threads = []

    def watched(*arguments, normalise=brick_trainer.normalised):
        threads.append(threading.current_thread())
        return normalise(*arguments)

    monkeypatch.setattr(brick_trainer, "normalised", watched)
    fit = small_fit()
    fit.trainer.has_stacks = True
    fit.run()
    assert len(threads) >= 4 and threading.main_thread() not in threads
