"""The loss of a network over a batch and its gradient on a CPU, against those of the reference."""

from __future__ import annotations

import concurrent.futures

import pytest
import torch
from helpers.networks import field_net
from helpers.reference import ReferenceStep

from training.gradient import LossGradient, count_parts


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(("n_parts", "n_threads"), [(1, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize(("n_layers", "d_in", "d_out"), [(1, 3, 1), (2, 3, 1), (3, 2, 3), (8, 3, 1)])
def test_squared_error_has_the_gradient_of_the_reference(
    n_layers, d_in, d_out, is_residual, n_parts, n_threads, is_weighted, monkeypatch
):
    monkeypatch.setattr("training.gradient.count_parts", lambda width, max_batch: n_parts)
    net = field_net(seed=2, n_neurons=7, n_layers=n_layers, d_in=d_in, d_out=d_out, is_residual=is_residual).double()
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.rand(11, d_in, generator=generator, dtype=torch.float64) - 1
    values = torch.rand(11, d_out, generator=generator, dtype=torch.float64)
    sample_weights = 2 * torch.rand(11, generator=generator, dtype=torch.float64) if is_weighted else None
    reference, weights = ReferenceStep(net), torch.ones(11) if sample_weights is None else sample_weights
    squares = reference.loss(x, values, weights)[1]
    gradients = reference.gradients(x, values, weights)
    loss_gradient = LossGradient(net, 20, n_threads=n_threads)
    for _ in range(2):  # the buffers of the first call do not show in the second
        loss_gradient(x, values, sample_weights)
        torch.testing.assert_close(loss_gradient.squares, squares, rtol=1e-9, atol=1e-12)
        for (name, p), gradient in zip(net.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)
        loss_gradient(-x[:5], values[:5])


def test_the_error_is_that_of_the_clipped_output():
    """Beyond an end of the range an output is right where that end is the value, and as wrong as far elsewhere."""
    net = field_net(seed=2, n_neurons=7, n_layers=3, d_out=2).double()
    with torch.no_grad():
        net.net_layers[-1].weight *= 60
    x = 2 * torch.rand(400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    values = torch.tensor([-1.0, 1.0, 0.5, -0.9], dtype=torch.float64).repeat(200).view(400, 2)
    y = net(x)
    is_right = ((values == -1) & (y < -1)) | ((values == 1) & (y > 1))
    assert is_right.sum() > 50 and ((y.abs() > 1) & ~is_right).sum() > 50 and (y.abs() < 1).sum() > 50
    squares = torch.where(is_right, 0.0, (y - values).square()).mean(1)
    gradients = torch.autograd.grad(squares.mean(), list(net.parameters()))
    loss_gradient = LossGradient(net, 500, is_clipped=True)
    loss_gradient(x, values)
    torch.testing.assert_close(loss_gradient.squares, squares, rtol=1e-9, atol=1e-12)
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)


def test_the_gradient_does_not_depend_on_the_number_of_threads(monkeypatch):
    torch.set_num_threads(1)  # of its own in each: see cli.resolve_device
    assert count_parts(40, 4096) == 4
    x, values = torch.rand(4096, 3) * 2 - 1, torch.rand(4096, 1)
    gradients, pools, pool = [], [], concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(
        concurrent.futures, "ThreadPoolExecutor", lambda n, **keywords: pools.append(n) or pool(n, **keywords)
    )
    for n_threads in (1, 2, 4, 16):
        net = field_net(seed=2, n_neurons=40, n_layers=4)
        LossGradient(net, 4096, n_threads=n_threads)(x, values)
        gradients.append([p.grad for p in net.parameters()])
    assert pools == [2, 4, 4]  # no more threads than parts
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize(
    ("width", "batch", "expected"),
    [(18, 2048, 1), (64, 2048, 2), (150, 2048, 4), (18, 16384, 8), (256, 1 << 20, 16), (1, 1, 1)],
)
def test_parts_of_a_batch(width, batch, expected):
    assert count_parts(width, batch) == expected
