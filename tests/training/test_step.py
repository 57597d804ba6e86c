"""A step of a fit is that of the reference: on a CPU, in the arithmetic for a GPU, on a GPU, in every precision."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import field_net
from helpers.reference import ReferenceStep
from helpers.volumes import slanted

import training
from field.evaluation import TILE
from siren import FieldNet, linear_layers
from training import unfused
from training.devices import check_kernels, kernels_for
from training.fitting import Fit
from training.optimizers import Muon, padded
from training.padded_gradient import PaddedGradient
from training.recipe import Recipe
from training.replay import Replay
from training.sampler import VoxelSampler
from training.step import HALF_PSNR, MOST_BEHIND, StepFunction
from training.weights import TrainedWeights
from utils import value_range

# The largest part of a move, or of a gradient, that may differ from the reference's, by the type of the products.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 0.1}
NETWORKS = [
    {"n_layers": 1},
    {"n_layers": 3, "d_in": 2, "d_out": 3},
    {"n_layers": 4},
    {"n_layers": 4, "is_residual": False},
]
PLACES = ["cpu", "padded", pytest.param("cuda", marks=pytest.mark.gpu)]


def samples(net: FieldNet, n: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coordinates, values at and between the ends of the range, and weights."""
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.rand(n, net.config.d_in, generator=generator) - 1
    values = (3 * torch.rand(n, net.config.d_out, generator=generator) - 1.5).clamp(-1, 1)
    return x, values, 2 * torch.rand(n, generator=generator)


@pytest.mark.parametrize("products", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("first_trained_layer", [0, 1, 3, 4])
@pytest.mark.parametrize("fields", NETWORKS)
def test_the_padded_gradient_is_that_of_the_reference(fields, first_trained_layer, products):
    net = field_net(seed=2, n_neurons=18, **fields)
    if first_trained_layer >= len(linear_layers(net)):
        pytest.skip("there are fewer layers")
    with torch.no_grad():
        linear_layers(net)[-1].weight *= 60  # some outputs are beyond the range
    x, values, weights = samples(net)
    reference = ReferenceStep(net, first_trained_layer=first_trained_layer, is_clipped=True)
    squares = reference.loss(x, values, weights)[1]
    if products == torch.float64:
        net, x, values, weights = net.double(), x.double(), values.double(), weights.double()
    trained = TrainedWeights(net, "muon", first_trained_layer, TILE)
    gradient = PaddedGradient(trained, first_trained_layer, is_clipped=True)
    for batch in (slice(0, 7), slice(None)):  # what the first call leaves does not show in the second
        gradient(x[batch], values[batch], weights[batch], products)
    tolerance = TOLERANCE[products]
    torch.testing.assert_close(gradient.squares.double(), squares, rtol=0, atol=tolerance * float(squares.max()))
    assert 0 < (squares == 0).sum() < len(squares) or net.config.d_out > 1
    pairs = zip(reference.trained, reference.gradients(x, values, weights), strict=True)
    names = {p: name for name, p in reference.net.named_parameters()}
    parameters = dict(net.named_parameters())
    for p, expected in pairs:
        difference = (parameters[names[p]].grad.double() - expected).norm()
        assert difference <= tolerance * expected.norm(), names[p]


# --- kernels of Triton ------------------------------------------------------------------------------


@contextlib.contextmanager
def interpreted() -> Iterator[ModuleType]:
    """The module of Triton's kernels, run by its interpreter. It is nowhere afterwards, as a GPU compiles its own."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.delitem(sys.modules, "training.fused", raising=False)
        patch.delattr(training, "fused", raising=False)
        yield importlib.import_module("training.fused")
        del sys.modules["training.fused"], training.fused


@pytest.fixture
def fused():
    with interpreted() as module:
        yield module


def test_a_gpu_never_gets_the_kernels_of_the_interpreter():
    with interpreted() as module:
        pass
    from training import fused

    assert fused is not module
    assert type(fused._sines) is not type(module._sines)


def assert_same(found: tuple, expected: tuple) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            tolerance = {torch.float16: 2e-3, torch.float32: 1e-6, torch.float64: 1e-12}[a.dtype]
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("is_sum", [False, True])
def test_the_kernels_for_sines_compute_the_same(is_sum, dtype, fused):
    type_of_sums = torch.promote_types(dtype, torch.float32)
    numbers = 9 * torch.randn(3, 2, 70, 33, generator=torch.Generator().manual_seed(0), dtype=type_of_sums)
    before, (phase, total, cosines) = numbers.clone(), numbers
    added = total if is_sum else None
    assert_same(fused.sines(phase, added, dtype), unfused.sines(phase, added, dtype))
    for of_cosines, of_result in ((dtype, dtype), (dtype, type_of_sums)):
        of_phase = phase, added, cosines.to(of_cosines), of_result
        assert_same(fused.slopes(*of_phase), unfused.slopes(*of_phase))
    assert torch.equal(numbers, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "d_out"), [((300,), 1), ((2, 150), 3), ((7,), 17)])
@pytest.mark.parametrize("is_clipped", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_kernel_for_the_loss_computes_the_same(is_weighted, is_clipped, shape, d_out, dtype, fused):
    generator, like = torch.Generator().manual_seed(0), {"dtype": torch.promote_types(dtype, torch.float32)}
    outputs = 2 * torch.randn(*shape, padded(d_out), generator=generator, **like)
    values = torch.randn(*shape, d_out, generator=generator, **like).clamp(-1, 1)
    weights = torch.rand(*shape, generator=generator, **like) if is_weighted else None
    given = outputs, values, weights, 0.25, is_clipped, dtype
    assert_same(fused.loss(*given), unfused.loss(*given))


@pytest.mark.gpu
@pytest.mark.parametrize("products", [torch.float32, torch.float16])
def test_a_gpus_gradient_of_a_wide_network_is_that_of_the_reference(products):
    """By the kernels that are compiled for it, where Triton is there."""
    net = field_net(seed=2, n_neurons=64, n_layers=4)
    x, values, weights = samples(net)
    reference = ReferenceStep(net).gradients(x, values, weights)
    device = torch.device("cuda", 0)
    gradient = PaddedGradient(TrainedWeights(net.to(device), "muon", 0, TILE))
    gradient.kernels = kernels_for(device)
    gradient(x.to(device), values.to(device), weights.to(device), products)
    for p, expected in zip(net.parameters(), reference, strict=True):
        assert (p.grad.cpu().double() - expected).norm() <= TOLERANCE[products] * expected.norm()


@pytest.mark.parametrize("products", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("fields", [{"n_layers": 4}, {"n_layers": 2, "d_out": 2, "is_residual": False}])
def test_the_gradient_by_the_kernels_is_that_of_the_reference(fields, products, fused):
    net = field_net(seed=2, n_neurons=18, **fields)
    given, reference = samples(net), ReferenceStep(net, is_clipped=True)
    if products == torch.float64:
        net, given = net.double(), [tensor.double() for tensor in given]
    gradient = PaddedGradient(TrainedWeights(net, "muon", 0, TILE), is_clipped=True)
    check_kernels(fused, torch.device("cpu"))
    gradient.kernels = fused
    gradient(*given, products)
    for p, expected in zip(net.parameters(), reference.gradients(*given), strict=True):
        assert (p.grad.double() - expected).norm() <= TOLERANCE[products] * expected.norm()


def test_the_kernels_that_a_fit_takes_are_checked():
    """And so compiled before its first step: each type of arguments, and each setting, has a kernel of its own."""
    net = field_net(n_neurons=18, n_layers=3)
    gradient = PaddedGradient(TrainedWeights(net, "muon", 0, TILE), is_clipped=True)

    def kinds(work) -> set[tuple]:
        found = set()

        def recorded(name: str):
            def call(*given) -> tuple:
                columns = [tensor.shape[-1] for tensor in given[:2]] if name == "loss" else []
                kinds = [x.dtype if isinstance(x, torch.Tensor) else x for x in given if not isinstance(x, float)]
                found.add((name, *columns, *kinds))
                return getattr(unfused, name)(*given)

            return call

        work(SimpleNamespace(**{name: recorded(name) for name in ("sines", "slopes", "loss")}))
        return found

    def steps(kernels: SimpleNamespace) -> None:
        gradient.kernels = kernels
        gradient(*samples(net), torch.float16)
        gradient(*samples(net))

    assert kinds(steps) == kinds(lambda kernels: check_kernels(kernels, torch.device("cpu")))


# --- steps ------------------------------------------------------------------------------------------


def begun(place: str, products: torch.dtype, net: FieldNet, monkeypatch, **fields) -> tuple[StepFunction, VoxelSampler]:
    """The step of a fit at a place: a CPU, a CPU in the arithmetic for a GPU, a GPU. The density is even less so."""
    monkeypatch.setattr("training.step.is_for_gpu", lambda device: place != "cpu")
    device = torch.device("cuda" if place == "cuda" else "cpu")
    grid = np.stack([slanted((9, 7, 5)) * k for k in range(1, net.config.d_out + 1)], axis=-1)
    sampler = VoxelSampler(value_range(grid).normalise(grid), device)
    net.to(device)
    if products == torch.float64:
        net.double()
        sampler.values, sampler.axes = sampler.values.double(), [axis.double() for axis in sampler.axes]
    first = fields.pop("first_trained_layer", 0)
    recipe = Recipe(n_passes=1, batch=100, lr=1e-3, **fields)
    step = StepFunction(net, sampler, recipe, first, 1, sampler.deviations())
    step.set_density(sampler.density(step.errors))
    step.has_half = products == torch.float16
    if place == "padded":  # scalars are tensors, as in a graph
        step.coefficients = step.trained.weights.new_zeros(len(step.trained.coefficients(1.0, 1))).unbind()
        step.replay = lambda function, *tensors, **settings: function(*tensors, **settings)
    return step, sampler


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("products", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam"}, {"first_trained_layer": 2}])
@pytest.mark.parametrize("is_residual", [True, False])
def test_steps_are_those_of_the_reference(is_residual, fields, products, place, monkeypatch):
    if place == "cpu" and products == torch.float16:
        pytest.skip("a CPU multiplies in float32")
    net = field_net(seed=1, n_neurons=18, n_layers=3, is_residual=is_residual)
    optimizer, first = fields.get("optimizer", "muon"), fields.get("first_trained_layer", 0)
    reference = ReferenceStep(net, optimizer, first, is_clipped=True)
    start = {name: tensor.double() for name, tensor in net.state_dict().items()}
    step, sampler = begun(place, products, net, monkeypatch, **fields)
    errors = step.errors.clone().double().cpu()
    batches = [batch for index in (0, 1) for batch in sampler.batches(5, index, 4, 0, step.density)]
    for number, batch in enumerate(batches, 1):
        x, values = (tensor.cpu() for tensor in sampler.samples(batch))
        weights = 1 / step.density[batch].cpu()
        batch = batch.cpu()
        squares = reference.loss(x, values, weights)[1]
        errors[batch] = (errors[batch] + squares.clamp(max=4.0)) / 2
        reference.take(x, values, weights, 1e-3 / number, number)
        step(batch.to(step.errors.device), 1e-3 / number, number, HALF_PSNR - 1)
    tolerance = TOLERANCE[products]
    np.testing.assert_allclose(step.errors.cpu(), errors, rtol=0, atol=tolerance)
    for found, expected in ((net, reference.net), (step.trained.averaged_net, reference.averaged)):
        for (name, p), q in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
            moved = (q - start[name]).norm()
            assert (p.cpu().double() - q).norm() <= tolerance * moved, name


@pytest.mark.parametrize("place", PLACES)
def test_a_checkpoint_continues_to_the_same_result(place, monkeypatch):
    """In float16, and through a recovery; within a pass, and between two."""
    monkeypatch.setattr("training.step.is_for_gpu", lambda device: place != "cpu")
    monkeypatch.setattr("training.step.has_half_products", lambda device: place != "cpu")
    monkeypatch.setattr("training.loop.CHECK_STEPS", 5)
    device, grid, states = torch.device("cuda" if place == "cuda" else "cpu"), slanted((9, 7, 5))[..., None], []
    sampler = VoxelSampler(value_range(grid).normalise(grid), device)

    def judged_badly_at_15(fit: Fit, judge=Fit._judge) -> float:
        return 100.0 if fit.step == 15 and fit.recovery.n_recoveries == 0 else judge(fit)

    monkeypatch.setattr(Fit, "_judge", judged_badly_at_15)

    def fitted(on_step=lambda fit: None, start: dict | None = None) -> Fit:
        fit = Fit(field_net(n_neurons=18).to(device), sampler, Recipe(n_passes=4, batch=50, lr=1e-3), seed=0)
        if start:
            fit.load_state_dict(start)
        fit.run(on_step)
        return fit

    def keep(fit: Fit) -> None:
        if fit.recovery.n_recoveries == 1 and fit.step in (17, 21):
            states.append(copy.deepcopy(fit.state_dict()))

    whole = fitted(keep)
    assert whole.recovery.n_recoveries == 1 and len(states) == 2
    for rest in (fitted(start=state) for state in states):
        assert whole.step == rest.step == 28
        assert torch.equal(whole.trained.averaged_weights, rest.trained.averaged_weights)


@pytest.mark.gpu
@pytest.mark.parametrize("psnr", [HALF_PSNR - 1, HALF_PSNR])
def test_the_same_steps_give_the_same_bits(psnr):
    """Of as many samples as a fit has, where many write the error of one voxel. Before, in and after the capture."""
    device, peaks = torch.device("cuda", 0), np.random.default_rng(0).random((32, 32, 32, 1), np.float32) ** 20

    def taken() -> list[torch.Tensor]:
        sampler, net = VoxelSampler(peaks, device), field_net(n_neurons=64, n_layers=2).to(device)
        step = StepFunction(net, sampler, Recipe(n_passes=1, batch=1 << 14, lr=1e-3), 0, 1, sampler.deviations())
        step.set_density(sampler.density(step.errors))
        for number, batch in enumerate(2 * list(sampler.batches(0, 0, 2, 0, step.density)), 1):
            assert len(batch.unique()) < 0.8 * len(batch)
            step(batch, 1e-3, number, psnr)
        return [*step.trained.state, step.errors]

    assert all(torch.equal(a, b) for a, b in zip(taken(), taken(), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("max_seconds", [None, 9.0])
def test_with_a_time_limit_a_gpu_is_few_steps_behind(max_seconds, monkeypatch):
    """Else the time limit would pass while steps are launched, of which each takes far longer."""
    waited_for, n_steps = [], MOST_BEHIND + 3

    class Event(torch.cuda.Event):
        def synchronize(self) -> None:
            waited_for.append(self)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    step, sampler = begun("cuda", torch.float32, field_net(n_neurons=18), monkeypatch, max_seconds=max_seconds)
    for number in range(1, n_steps + 1):
        step(sampler.batches(0, 0, 4, 0, step.density)[0], 1e-3, number, 0.0)
    assert len(waited_for) == (0 if max_seconds is None else n_steps - MOST_BEHIND)


@pytest.mark.parametrize("n_networks", [None, 2])
def test_a_step_waits_for_nothing(n_networks, monkeypatch):
    """Tensors of the device "meta" have no values: whatever asked for one would fail. Of one network; of two."""
    net = field_net(n_neurons=18, n_layers=3)
    step, sampler = begun("padded", torch.float16, net, monkeypatch)
    batch = sampler.batches(0, 0, 4, 0)[0]
    sampler.values, sampler.axes = sampler.values.to("meta"), [axis.to("meta") for axis in sampler.axes]
    sampler.device = torch.device("meta")
    net, widths = net.to("meta"), torch.ones(n_networks, device="meta") if n_networks else None
    batch = batch.repeat(n_networks, 1) if n_networks else batch
    nets = [net] * n_networks if n_networks else net
    there = StepFunction(nets, sampler, Recipe(1, 100, 1e-3), 0, 1, step.errors.to("meta"), widths)
    there.set_density(step.density.to("meta"))
    there.coefficients = torch.zeros(5, device="meta").unbind()
    for products in (None, torch.float16):
        there._take(batch.to("meta"), coefficients=there.coefficients, products=products)


def test_half_products_are_for_what_bears_them(monkeypatch):
    used = []
    step, sampler = begun("padded", torch.float16, field_net(n_neurons=18), monkeypatch)
    step.replay = lambda function, *tensors, products: used.append(products)
    for psnr in (10.0, HALF_PSNR - 0.1, HALF_PSNR, float("inf"), float("nan")):
        step(sampler.batches(0, 0, 4, 0)[0], 1e-3, 1, psnr)
    assert used == [torch.float16] * 2 + [None] * 3


@pytest.mark.parametrize(("n", "products"), [(7, None), (16, torch.float16), (18, torch.float16)])
def test_muon_on_padded_matrices_moves_alike(n, products):
    generator = torch.Generator().manual_seed(0)
    weights, gradient = torch.zeros(2, 3, n, n), torch.randn(3, n, n, generator=generator)
    here, there = Muon(weights[0], gradient, 20), Muon(weights[1], gradient, 20, TILE)
    here.step(*here.coefficients(0.01, 1000))
    there.step(*torch.tensor(there.coefficients(0.01, 1000)).unbind(), products=products)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-2 * float(weights[0].abs().max()))


def test_muon_bears_gradients_that_vanish():
    """As over a background that is learned exactly. The momentum then fades to the smallest numbers there are."""
    gradient = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))
    for exponent in range(-45, 20):
        weights = torch.zeros(1, 6, 6)
        muon = Muon(weights, gradient * 10.0**exponent, 20)
        muon.step(*muon.coefficients(1.0, 1000))
        assert weights.norm() < 2, exponent  # all singular values are about sqrt(6) / 8 at most


# --- the CUDA graph ---------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch):
    """A torch.cuda that captures what it can without a GPU: the graphs, each with how often it was replayed."""

    @dataclasses.dataclass
    class Graph:
        n_replays: int = 0

        def replay(self) -> None:
            self.n_replays += 1

    class Stream:
        def __init__(self, device: torch.device):
            self.device = device

        def wait_stream(self, other: object) -> None:
            pass

    graphs = []

    @contextlib.contextmanager
    def capture(graph, pool, stream):
        graphs.append(graph)
        yield

    fakes = {"Stream": Stream, "CUDAGraph": Graph, "graph": capture, "stream": contextlib.nullcontext}
    fakes |= {"current_stream": Stream, "graph_pool_handle": lambda: None}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return graphs


def test_every_kind_of_call_has_a_graph_of_its_own(cuda):
    """The first call is made as it is, the second is captured; the graph reads the values of the latest."""
    replays, calls = Replay(torch.device("cpu")), []

    def function(tensor: torch.Tensor, products: str) -> None:
        calls.append((tensor, products))

    for k in range(4):
        for n, products in ((3, "a"), (2, "a"), (3, "b")):
            replays(function, torch.full((n,), float(k)), products=products)
    assert [graph.n_replays for graph in cuda] == [3, 3, 3]
    assert [(len(tensor), products) for tensor, products in calls[3:]] == [(3, "a"), (2, "a"), (3, "b")]
    assert all((tensor == 3).all() for tensor, _ in calls[3:])


def test_without_a_graph_every_call_is_made_and_one_line_says_so(cuda, monkeypatch, capsys):
    tried = []

    @contextlib.contextmanager
    def capture(graph, pool, stream):
        tried.append(graph)
        raise RuntimeError("operation not permitted\nwhen capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", capture)
    calls = []
    for replays in (Replay(torch.device("cpu")), Replay(torch.device("cpu"))):  # one of a fit, one of the next
        for k in range(4):
            replays(lambda tensor: calls.append(float(tensor)), torch.tensor(float(k)))
    assert calls == [0.0, 1.0, 2.0, 3.0] * 2 and len(tried) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_line_says_why_a_capture_has_failed_and_not_only_that_it_has(cuda, monkeypatch, capsys):
    @contextlib.contextmanager
    def capture(graph, pool, stream):
        try:
            yield
        finally:
            raise RuntimeError("a previous error during capture")

    def function(tensor: torch.Tensor) -> None:
        if calls:
            raise RuntimeError("the cause")
        calls.append(tensor)

    monkeypatch.setattr(torch.cuda, "graph", capture)
    replays, calls = Replay(torch.device("cpu")), []
    replays(function, torch.ones(1))
    with pytest.raises(RuntimeError, match="the cause"):  # of the call without a graph, which fails alike here
        replays(function, torch.ones(1))
    assert "no CUDA graph: the cause" in capsys.readouterr().err
