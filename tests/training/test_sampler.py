"""Training samples: coordinates, order, finite differences, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.original import original_coordinates

from training.sampler import SLAB, VoxelSampler, draw_by_density, flat_coordinates
from utils import axis_coordinates

CPU = torch.device("cpu")


def test_coordinates_are_the_originals():
    shape = (7, 4, 5)
    axes = [torch.from_numpy(axis) for axis in axis_coordinates(shape)]
    found = flat_coordinates(axes, torch.arange(math.prod(shape)))
    np.testing.assert_allclose(found, original_coordinates(shape), rtol=0, atol=1e-15)


def test_field_values_belong_to_their_coordinates():
    """A flat index is in C order."""
    grid = np.arange(30, dtype=np.float32).reshape(5, 3, 2, 1)
    sampler = VoxelSampler(grid, CPU)
    assert sampler.shape == (5, 3, 2) and sampler.n_present == 30
    x, found = sampler.samples(flat := torch.tensor([1, 2, 6, 29]))
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x, original_coordinates((5, 3, 2))[flat], rtol=0, atol=1e-7)
    assert found[:, 0].tolist() == [grid[0, 0, 1], grid[0, 1, 0], grid[1, 0, 0], grid[4, 2, 1]]


def test_squared_errors_are_those_of_what_is_decoded(monkeypatch):
    monkeypatch.setitem(SLAB, "cpu", 7)
    grid = np.linspace(-1, 1, 60, dtype=np.float32).reshape(5, 3, 2, 2)
    grid[2, 1] = np.nan
    found = VoxelSampler(grid, CPU).squared_errors(lambda x: 2 * x[:, :2])
    y = (2 * original_coordinates((5, 3, 2))[:, :2]).clip(-1, 1)
    expected = np.nan_to_num(((y - grid.reshape(30, 2)) ** 2).mean(axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[14] == found[15] == 0  # missing


def test_shuffled_depends_on_seed_and_pass_alone():
    sampler = VoxelSampler(np.zeros((5, 4, 3, 1), np.float32), CPU)
    orders = [sampler.shuffled(seed, index).tolist() for seed in (0, 1, 2**63 - 1) for index in (0, 1, 2)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    torch.manual_seed(5)
    assert sampler.shuffled(0, 0).tolist() == orders[0]


def test_shuffled_by_density_is_every_voxel_so_often():
    """Rounded up or down in every pass, and in the mean over many exactly."""
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(6 * 5 * 4, generator=generator) ** 4
    density[50:60] = 0
    for missing in (False, True):
        grid = np.zeros((6, 5, 4, 1), np.float32)
        grid.reshape(-1)[:30] = np.nan if missing else 0
        sampler = VoxelSampler(grid, CPU)
        expected = density.clone()
        expected[: 30 * missing] = 0
        expected *= sampler.n_present / expected.sum()
        orders = [sampler.shuffled(3, index, expected) for index in range(400)]
        counts = torch.stack([order.bincount(minlength=120) for order in orders]).double()
        assert all(len(order) == sampler.n_present for order in orders)
        assert float((counts - expected).abs().max()) < 1 + 1e-4
        assert float((counts.mean(0) - expected).abs().max()) < 0.1
        assert not torch.equal(orders[0].sort().values, orders[0])


# --- finite differences -----------------------------------------------------------------------------


def coordinate_grids(shape):
    return np.meshgrid(*axis_coordinates(shape), indexing="ij")


def test_every_draw_by_density_is_a_voxel():
    """With so many draws, the last one comes within 3e-8 of the end."""
    for n_voxels in range(6661, 6691):
        chosen, weights = draw_by_density(torch.ones(n_voxels), 6660)
        assert chosen.min() >= 0 and chosen.max() == n_voxels - 1
        assert (weights == 1).all()


def test_gradient_of_a_linear_field_is_exact_everywhere():
    x, y, z = coordinate_grids((9, 7, 5))
    gradients = VoxelSampler((0.4 * x - 0.3 * y + 0.2 * z)[..., None].astype(np.float32), CPU).all_slopes
    assert gradients.shape == (9 * 7 * 5, 1, 3) and gradients.dtype == torch.float32
    np.testing.assert_allclose(gradients[:, 0], np.broadcast_to([0.4, -0.3, 0.2], (315, 3)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradient_is_central_inside_and_one_sided_at_the_faces(axis):
    """Of a square: 2 x inside; at a face the slope half a voxel inwards."""
    shape = (9, 7, 5)
    h = 2 / 8
    x = coordinate_grids(shape)[axis]
    gradients = VoxelSampler((x**2)[..., None].astype(np.float32), CPU).all_slopes.numpy().reshape(*shape, 3)
    expected = 2 * x
    first, last = ([slice(None)] * 3 for _ in range(2))
    first[axis], last[axis] = 0, -1
    expected[tuple(first)] += h
    expected[tuple(last)] -= h
    np.testing.assert_allclose(gradients[..., axis], expected, rtol=0, atol=2e-6)
    assert np.abs(np.delete(gradients, axis, axis=-1)).max() == 0


def test_gradient_of_components_and_one_voxel_axes():
    x, _, z = coordinate_grids((4, 1, 3))
    gradients = VoxelSampler(np.stack([x, -2 * z], axis=-1).astype(np.float32), CPU).all_slopes
    assert gradients.shape == (12, 2, 3)
    np.testing.assert_allclose(gradients[:, 0], np.broadcast_to([1, 0, 0], (12, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradients[:, 1], np.broadcast_to([0, 0, -2], (12, 3)), rtol=0, atol=1e-6)


def test_mirrors():
    """Planes near the middle, of voxels or between them, in which the field is its own mirror image."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (20, 25, 16)), indexing="ij")
    grid = np.cos((x - 9.5) ** 2 / 50) + np.cos((y - 11) / 3) * np.exp(-z / 9)
    grid[2, 3, 4] = np.nan  # missing
    found = VoxelSampler(grid[..., None] / 2, CPU).mirror_planes
    assert found == [0.0, pytest.approx(11 / 12 - 1, abs=1e-6), None]
    off_centre = np.cos((x - 9) ** 2 / 50) * np.exp(-(y + z) / 20)  # along an axis that is not the longest
    assert VoxelSampler(off_centre[..., None], CPU).mirror_planes == [pytest.approx(-1 / 24, abs=1e-6), None, None]
    both = np.stack([grid, z], axis=-1)  # a component that is symmetric in x and y, too
    assert VoxelSampler(both / 20, CPU).mirror_planes[:2] == found[:2]
    assert VoxelSampler(np.stack([grid, x], axis=-1) / 20, CPU).mirror_planes[0] is None
    noise = np.random.default_rng(0).random((20, 25, 3, 1), np.float32)
    assert VoxelSampler(noise, CPU).mirror_planes == [None] * 3
    assert VoxelSampler(np.zeros((8, 8, 1, 1), np.float32), CPU).mirror_planes == [None] * 3


@pytest.mark.parametrize("n_voxels", [1, 5, 40])
def test_few_voxels_are_not_symmetric_unseen(n_voxels):
    grid = np.zeros((48, 48, 48), np.float32)
    grid[10, 11, 12] = 1.0
    grid.flat[np.random.default_rng(0).choice(grid.size, n_voxels - 1, replace=False)] = 1.0
    assert VoxelSampler(grid[..., None], CPU).mirror_planes == [None] * 3
    both = np.maximum(grid, grid[::-1])
    assert VoxelSampler(both[..., None], CPU).mirror_planes == [0.0, None, None]
