"""The network: names, sizes, initialisation, forward pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.networks import field_net
from helpers.original import original_coordinates, original_forward

import siren
from field.layers import SirenConfig
from siren import FieldNet, neurons_for_budget, weights_crc32


def original_shapes(n, n_layers, d_in, d_out, is_residual):
    """Name and shape of the tensors in the original's state dict, in its order."""
    shapes = {"net_layers.0.linear.weight": (n, d_in), "net_layers.0.linear.bias": (n,)}
    for i in range(1, n_layers):
        for part in ("linear_1", "linear_2") if is_residual else ("linear",):
            shapes[f"net_layers.{i}.{part}.weight"] = (n, n)
            shapes[f"net_layers.{i}.{part}.bias"] = (n,)
    shapes[f"net_layers.{n_layers}.weight"] = (d_out, n)
    shapes[f"net_layers.{n_layers}.bias"] = (d_out,)
    return shapes


ARCHITECTURES = [(5, 8, 3, 1, True), (5, 8, 3, 1, False), (4, 2, 2, 3, True), (7, 1, 1, 2, True), (3, 1, 4, 1, False)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_state_dict_is_the_originals(architecture):
    state = FieldNet(SirenConfig(*architecture[:4], is_residual=architecture[4])).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == original_shapes(*architecture)
    assert list(state) == list(original_shapes(*architecture))
    assert all(t.dtype == torch.float32 for t in state.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_n_parameters(architecture):
    expected = sum(math.prod(shape) for shape in original_shapes(*architecture).values())
    config = SirenConfig(*architecture[:4], is_residual=architecture[4])
    assert config.n_parameters == expected


def test_neurons_for_budget_is_the_originals():
    assert neurons_for_budget(48 * 40 * 36 / 6) == 28  # what the original made of that volume
    assert neurons_for_budget(11510) == 28
    assert neurons_for_budget(11509) == 27  # the count stays below the budget
    assert neurons_for_budget(1) == 16
    assert neurons_for_budget(1000, n_layers=1, d_in=2, d_out=3, is_residual=False) == 166  # 6 n + 3 < 1000


@pytest.mark.parametrize(
    "fields",
    [{"n_neurons": 0}, {"n_layers": 0}, {"d_in": -1}, {"d_out": 1.0}, {"n_layers": True}, {"n_neurons": "8"},
     {"omega_0": 0.0}, {"omega_0": math.nan}, {"omega_0": math.inf}],
)  # fmt: skip
def test_impossible_networks(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SirenConfig(**{"n_neurons": 4, **fields})


@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3, 8])
def test_forward_is_the_originals(n_layers, is_residual):
    net = field_net(seed=3, n_neurons=9, n_layers=n_layers, d_out=2, is_residual=is_residual)
    x = original_coordinates((5, 4, 3))
    with torch.no_grad():
        found = net.double()(torch.from_numpy(x)).numpy()
    expected = original_forward(net.state_dict(), n_layers, is_residual, x)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_forward_keeps_leading_axes():
    net = field_net(d_in=2, d_out=3)
    assert net(torch.zeros(4, 5, 2)).shape == (4, 5, 3)


def test_omega_0_scales_every_sine():
    """A network of another omega_0 is one of 30 with its sine layers' weights and biases scaled."""
    net, other = field_net(omega_0=12.0), field_net()
    scaled = {k: v * (1 if k.startswith("net_layers.3") else 12 / 30) for k, v in net.state_dict().items()}
    other.load_state_dict(scaled)
    x = torch.rand(20, 3)
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=1e-4)


def test_initialisation_bounds():
    """Uniform within the bounds of Sitzmann et al., the first layer's scaled by its own frequency."""
    config = SirenConfig(64, n_layers=3)
    net = FieldNet(config, torch.Generator().manual_seed(0), first_omega=15.0)
    bounds = {
        "net_layers.0.linear.weight": 15 / 30 / 3,
        "net_layers.1.linear_1.weight": math.sqrt(6 / 64) / 30,
        "net_layers.2.linear_2.weight": math.sqrt(6 / 64) / 30,
    }
    found = {name: net.state_dict()[name] for name in bounds}
    bounds["phases"] = math.pi / 2 / 30
    found["phases"] = torch.cat([layer.bias.detach() for layer in siren.linear_layers(net)[:-1]])
    for name, bound in bounds.items():
        w = found[name]
        assert 0.9 * bound < w.abs().max() <= bound, name
        assert w.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        assert abs(w.mean()) < 0.15 * bound, name


def test_waves_along_the_axes():
    """Sines and cosines of equally spaced frequencies; cosines about the mirror of an axis that has one."""
    net = FieldNet(SirenConfig(18, n_layers=3), torch.Generator().manual_seed(0))
    others = {name: tensor.clone() for name, tensor in net.state_dict().items() if "layers.0" not in name}
    siren.start_as_axis_waves(net, {0: None, 1: 0.25, 2: None})
    points = torch.tensor([[0.1, 0.4, -0.7], [0.9, -0.3, 0.2]])
    found = net.net_layers[0](points).T
    for axis, third in ((0, 9.0 / 3), (2, 9.0 / 3)):
        x = points[:, axis]
        waves = [wave(third * k * x) for k in (1, 2, 3) for wave in (torch.sin, torch.cos)]
        torch.testing.assert_close(found[axis::3], torch.stack(waves), rtol=0, atol=1e-5)
    waves = [torch.cos(9.0 / 6 * k * (points[:, 1] - 0.25)) for k in range(1, 7)]
    torch.testing.assert_close(found[1::3], torch.stack(waves), rtol=0, atol=1e-5)
    for name, tensor in others.items():
        assert torch.equal(net.state_dict()[name], tensor)
    mirrored = torch.rand(50, 3)
    mirrored[:, 1] = 0.5 - mirrored[:, 1]
    x = torch.stack([mirrored[:, 0], 0.5 - mirrored[:, 1], mirrored[:, 2]], 1)
    torch.testing.assert_close(net(mirrored), net(x), rtol=0, atol=1e-5)  # the whole network is symmetric


def test_a_narrow_network_has_no_highest_waves_alone():
    """One wave along each axis has half the highest frequency; two have both halves, as more have their parts."""
    for width, expected in ((3, {4.5}), (6, {4.5}), (12, {4.5, 9.0})):
        net = FieldNet(SirenConfig(width, n_layers=3), torch.Generator().manual_seed(0))
        siren.start_as_axis_waves(net, dict.fromkeys(range(3)))
        weight = siren.linear_layers(net)[0].weight.detach() * siren.OMEGA_0
        assert set(weight[weight > 0].round(decimals=4).tolist()) == expected


def test_plane_waves():
    """A sine and a cosine of each, over and over."""
    net = FieldNet(SirenConfig(7, n_layers=2), torch.Generator().manual_seed(0))
    others = {name: tensor.clone() for name, tensor in net.state_dict().items() if "layers.0" not in name}
    frequencies = np.array([[20.0, 0.0, -3.0], [5.0, 7.0, 11.0]])
    siren.start_as_plane_waves(net, frequencies)
    points = torch.rand(10, 3)
    a, b = (points.double() @ torch.from_numpy(frequencies).T).T
    expected = torch.stack([a.sin(), a.cos(), b.sin(), b.cos(), a.sin(), a.cos(), b.sin()], 1).float()
    torch.testing.assert_close(net.net_layers[0](points), expected, rtol=0, atol=1e-4)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in others.items())


@pytest.mark.parametrize("name", ["0.linear", "1.linear_1", "1.linear_2", "2.linear_2"])
def test_a_phase_beyond_a_quarter_turn_is_the_opposite_weights_with_a_smaller_one(name):
    net = field_net(n_neurons=8, n_layers=3).double()
    x = torch.rand(20, 3, dtype=torch.float64)
    layer = net.get_submodule(f"net_layers.{name}")
    with torch.no_grad():
        layer.bias[2] += math.pi / 30
        expected = net(x)
        layer.bias[2] = math.pi / 30 - layer.bias[2]
        layer.weight[2] *= -1
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_initialisation_follows_the_generator():
    first, same, other = (field_net(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_crc_depends_on_every_tensor():
    state = field_net().state_dict()
    crc = weights_crc32(state)
    for name in state:
        changed = {k: v.clone() for k, v in state.items()}
        changed[name].view(-1)[-1] += 0.5
        assert weights_crc32(changed) != crc, name
    assert weights_crc32({k: v.clone() for k, v in state.items()}) == crc
