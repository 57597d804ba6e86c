"""Evaluating a blob: values and derivatives on grids and at points, against the network in float64 and by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers.cut_fields import cut_field
from helpers.networks import arrays, field_net, make_header
from helpers.original import original_forward

from field import blending
from field.blob import BlobError
from field.bricks import Bricks
from field.evaluation import CHUNK
from field.layers import SirenConfig, parameter_shapes
from field.neural_field import NeuralField
from utils import DTYPES, Grid, voxel_grid

GEOMETRY = {"spacing": (0.5, 2.0, 1.25), "origin": (10.0, -4.0, 0.25)}


def neural_field(shape=(9, 7, 5), low=-2.0, high=3.0, dtype="float32", n_threads=1, geometry=GEOMETRY, **network):
    """A field held by a network of random weights."""
    net = field_net(d_in=len(shape), **network)
    header = make_header(shape, low, high, dtype, net.config.d_out, **geometry)
    return NeuralField.of(net, header, n_threads=n_threads)


def linear_field(slopes=(0.02, -0.03, 0.04), shape=(9, 7, 5), low=0.0, high=10.0, dtype="float32", **fields):
    """A field that is all but linear in the normalised coordinates: a network of one sine layer and small weights.

    slopes: by each axis, or rows of those of several components.
    """
    slopes = np.atleast_2d(slopes)
    n, d_in = slopes.shape
    config = SirenConfig(n, 1, d_in, n, omega_0=1.0, is_residual=False)
    weights = [slopes * 1e-3, np.zeros(n), np.eye(n) * 1e3, np.zeros(n)]
    names = parameter_shapes(config)
    header = make_header(shape, low, high, dtype, n, **{**GEOMETRY, **fields})
    weights = {name: array.astype(np.float32) for name, array in zip(names, weights, strict=True)}
    return NeuralField(header, Bricks.whole(config, weights))


def positions(field: NeuralField, index: np.ndarray) -> np.ndarray:
    """Physical positions of voxel indices (n, axes)."""
    return index * np.array(field.header.geometry.spacing) + field.header.geometry.origin


# --- on a GPU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("counts", [None, (2, 2, 1)])
def test_what_a_gpu_computes_is_what_a_cpu_computes(counts, n_layers, is_residual, dtype, monkeypatch):
    """Its arithmetic here runs on the CPU. The grid takes several chunks. counts: of bricks."""
    shape, how = (21, 17, 13), {"n_layers": n_layers, "is_residual": is_residual, "d_out": 2}
    if counts:
        field = cut_field(shape, counts, 0, 200, dtype, geometry=GEOMETRY, constant=(1,), **how)
    else:
        field = neural_field(shape, 0, 200, dtype, **how)
    points = positions(field, np.random.default_rng(0).random((1500, 3)) * 12)

    def found() -> list[np.ndarray]:
        return [field.on_grid(), field.gradient_on_grid(), field.at(points), field.gradient_at(points)]

    here, matmul, seen = found(), torch.matmul, []
    monkeypatch.setattr("field.evaluation.uses_torch", lambda device: True)
    monkeypatch.setattr(torch, "matmul", lambda *a, **b: seen.append(len(a)) or matmul(*a, **b))
    for expected, values in zip(here, found(), strict=True):
        assert values.dtype == expected.dtype and values.shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=2e-4)
    assert seen and CHUNK["cpu"] < len(points)


def test_a_gpu_rounds_no_products_to_tf32_whatever_the_process_asks_for(monkeypatch):
    products, matmul, seen, field = torch.backends.cuda.matmul, torch.matmul, set(), neural_field()
    monkeypatch.setattr("field.evaluation.uses_torch", lambda device: True)
    monkeypatch.setattr(torch, "matmul", lambda *a, **b: seen.add(products.fp32_precision) or matmul(*a, **b))
    torch.set_float32_matmul_precision("high")
    try:
        field.on_grid()
        assert seen == {"ieee"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3, 5])
def test_values_are_those_of_the_network_in_float64(n_layers, is_residual):
    field_shape = (9, 7, 5)
    net = field_net(n_layers=n_layers, is_residual=is_residual, d_out=2)
    field = NeuralField.of(net, make_header(field_shape, -2.0, 3.0, d_out=2))
    x, y, z = (np.arange(n) * 2.0 - (n - 1) for n in field_shape)
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3) / 8
    expected = original_forward(arrays(net), n_layers, is_residual, grid)
    expected = (np.clip(expected, -1, 1) + 1) / 2 * 5 - 2
    found = field.on_grid()
    assert found.shape == (*field_shape, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(-1, 2), expected, rtol=0, atol=5e-6)


def test_a_box_is_that_part_of_the_whole():
    shape = (40, 23, 31)
    field = neural_field(shape, n_neurons=18)
    whole = field.on_grid()
    for box in (np.s_[3:20, :, 30:31], np.s_[39:40, 0:1, 0:1], np.s_[:, 5:6, :]):
        np.testing.assert_allclose(field.on_grid(voxel_grid(shape, box)), whole[box], rtol=0, atol=5e-6)  # of 5


def test_threads_do_not_change_the_values():
    shape = (30, 30, 30)
    assert np.prod(shape) > 3 * CHUNK["cpu"]
    np.testing.assert_array_equal(neural_field(shape, n_threads=3).on_grid(), neural_field(shape).on_grid())


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("counts", [None, (2, 2, 1)])
def test_the_parts_that_are_stored_do_not_change_the_values(counts, dtype, monkeypatch):
    shape = (21, 17, 13)
    field = cut_field(shape, counts, 0, 200, dtype) if counts else neural_field(shape, 0, 200, dtype, d_out=2)
    expected = field.on_grid(), field.gradient_on_grid()
    monkeypatch.setattr("field.evaluation.STORED", 100)
    assert CHUNK["cpu"] > 1000
    np.testing.assert_array_equal(field.on_grid(), expected[0])
    np.testing.assert_array_equal(field.gradient_on_grid(), expected[1])


def test_finer_and_coarser_grids_agree_with_points():
    field = neural_field()
    for grid in (voxel_grid(field.shape, None, (17, 4, 1)), voxel_grid(field.shape, np.s_[2:5, 1:7, 0:5], (5, 6, 9))):
        geometry = grid.geometry(field.header.geometry)
        index = np.indices(grid.shape).reshape(3, -1).T
        expected = field.at(index * np.array(geometry.spacing) + geometry.origin)
        np.testing.assert_allclose(field.on_grid(grid).ravel(), expected, rtol=0, atol=5e-6)


def test_points_outside_are_nan():
    field = neural_field()
    index = np.array([[0, 0, 0], [-0.01, 0, 0], [8, 6, 4.01], [8, 6, 4], [np.nan, 0, 0], [np.inf, 0, 0]])
    points = positions(field, index)
    expected = [False, True, True, False, True, True]
    assert np.isnan(field.at(points)).tolist() == expected
    assert np.isnan(field.gradient_at(points)).any(axis=1).tolist() == expected
    assert field.contains(points).tolist() == [not outside for outside in expected]


def test_points_of_float32_on_the_boundary_are_inside():
    """As those of VTK's meshes. Turned axes and a far origin move some of them outwards by more than 1e-6 voxels."""
    turn = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    field = neural_field(geometry={"spacing": (0.1, 0.2, 0.3), "origin": (700.1, -30.3, 0.7), "direction": turn})
    geometry = field.header.geometry
    index = np.indices((9, 7, 5)).reshape(3, -1).T
    points = (index * geometry.spacing) @ geometry.axis_directions.T + geometry.origin
    assert field.contains(points.astype(np.float32)).all()
    assert not field.contains(points.astype(np.float32).astype(np.float64)).all()
    beyond = ((index[-1] + 0.01) * geometry.spacing) @ geometry.axis_directions.T + geometry.origin
    assert not field.contains(beyond.astype(np.float32))
    assert not field.contains(np.array([[np.inf] * 3, [np.nan] * 3, [3e38] * 3], np.float32)).any()
    with np.errstate(over="raise"):
        small = neural_field(geometry={"spacing": (1e-9,) * 3})
        assert not small.contains(np.array([[np.inf] * 3, [1e38] * 3], np.float32)).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_masked_positions_give_nan(dtype):
    """What lies under a mask of NumPy's is no position. It is enough that one coordinate is masked."""
    field = linear_field()
    points = positions(field, np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]])).astype(dtype)
    masked = np.ma.array(points, mask=[[False, False, False], [False, True, False], [True, True, True]])
    assert field.contains(masked).tolist() == [True, False, False]
    for evaluate in (field.at, field.gradient_at):
        values = evaluate(masked)
        assert np.isnan(values[1:]).all() and not np.ma.isMaskedArray(values)
        np.testing.assert_allclose(values[0], evaluate(points)[0], rtol=0, atol=5e-6)


def test_points_of_another_form_are_refused():
    for points in (5.0, np.zeros(2), np.zeros((4, 2)), np.zeros((3, 4))):
        with pytest.raises(ValueError, match=r"\(\.\.\., 3\)"):
            neural_field().at(points)


def test_the_values_have_the_shape_of_the_positions():
    """A single position has a single value."""
    field, vectors = neural_field(), neural_field(d_out=2)
    points = positions(field, np.random.default_rng(0).random((4, 5, 3)) * [8, 6, 4])
    assert [f.at(points).shape for f in (field, vectors)] == [(4, 5), (4, 5, 2)]
    assert [f.gradient_at(points).shape for f in (field, vectors)] == [(4, 5, 3), (4, 5, 2, 3)]
    np.testing.assert_array_equal(field.at(points).ravel(), field.at(points.reshape(-1, 3)))
    assert field.contains(points).shape == (4, 5) and field.contains([9999, 0, 0]) == False  # noqa: E712
    one = list(points[1, 2])
    assert np.isscalar(field.at(one)) and field.at(one) == pytest.approx(field.at(points)[1, 2], abs=5e-6)
    assert vectors.at(one).shape == (2,) and field.gradient_at(one).shape == (3,)


def test_a_line_of_samples():
    """Evenly from one end to the other, both included, by the distance in space."""
    field = linear_field()
    a, b = positions(field, np.array([[1.0, 1, 1], [7, 5, 3]]))
    distances, values = field.sample_line(a, b, 5)
    np.testing.assert_allclose(distances, np.linspace(0, np.linalg.norm(b - a), 5))
    np.testing.assert_array_equal(values, field.at(a + (b - a) * np.linspace(0, 1, 5)[:, None]))
    series = linear_field((0.1, 0.02, -0.03, 0.04), (3, 9, 7, 5), **SERIES)
    distances, values = series.sample_line([3.0, *a], [3.2, *b], 5)
    assert distances[-1] == pytest.approx(np.linalg.norm(b - a)) and np.isfinite(values).all()
    assert np.isnan(field.sample_line(a, [1e9, 0, 0])[1]).tolist() == [False] + [True] * 99
    lines = field.sample_line([a, b], [b, b], 5)
    for k, (start, end) in enumerate(((a, b), (b, b))):
        for several, one in zip(lines, field.sample_line(start, end, 5), strict=True):
            np.testing.assert_allclose(several[:, k], one, rtol=0, atol=5e-6)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"n: expected a whole number of positions, at least 1, found {n}"):
            field.sample_line(a, b, n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_derivatives_at_points_are_of_one_type(dtype):
    """float32, or float64 where float32 does not hold all values of the field's type."""
    field = linear_field(low=0, high=100, dtype=dtype)
    point = positions(field, np.array([[2.5, 1.25, 3.75]]))
    np.testing.assert_allclose(field.at(point), 50 + 50 * (-1.5 * 0.02 + 1.75 * 0.03 + 1.75 * 0.04) / 4, rtol=1e-6)
    is_wide = dtype in ("float64", "int32", "uint32", "int64", "uint64")
    expected = np.float64 if is_wide else np.float32
    assert field.at(point).dtype == field.gradient_at(point).dtype == field.gradient_on_grid().dtype == expected


# --- derivatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_gradient_is_that_of_autograd(n_layers, is_residual):
    net = field_net(n_layers=n_layers, is_residual=is_residual, d_out=2).double()
    field = NeuralField.of(net, make_header((9, 7, 5), -2.0, 3.0, d_out=2, **GEOMETRY))
    index = np.random.default_rng(0).random((50, 3)) * [8, 6, 4]
    x = torch.tensor((2 * index - [8, 6, 4]) / 8, requires_grad=True)
    y = net(x)
    slopes = [torch.autograd.grad(y[:, c].sum(), x, retain_graph=True)[0] for c in range(2)]
    is_free = (y.abs() <= 1).numpy()[..., None]
    expected = torch.stack(slopes, dim=1).numpy() * is_free * 2.5 * 0.25 / np.array(GEOMETRY["spacing"])
    found = field.gradient_at(positions(field, index))
    assert found.shape == (50, 2, 3) and is_free.any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_gradient_on_a_grid_is_that_at_its_points():
    field = neural_field()
    grid = voxel_grid(field.shape, np.s_[2:9, 0:3, 1:4])
    index = np.indices(field.shape)[(slice(None), *np.s_[2:9, 0:3, 1:4])].reshape(3, -1).T
    expected = field.gradient_at(positions(field, index))
    np.testing.assert_allclose(field.gradient_on_grid(grid).reshape(-1, 3), expected, rtol=1e-4, atol=1e-5)


def test_gradient_is_zero_along_an_axis_of_one_voxel_and_where_values_are_clipped():
    assert (neural_field((9, 1, 5)).gradient_on_grid()[..., 1] == 0).all()
    field = linear_field(slopes=(3.0, 0.0, 0.0))
    gradient = field.gradient_on_grid()[..., 0]
    is_clipped = (field.on_grid() == 0) | (field.on_grid() == 10)
    assert is_clipped.any() and (gradient[is_clipped] == 0).all() and (gradient[~is_clipped] > 7).all()


def test_jacobian_of_a_linear_vector_field():
    """Component by component, as VTK orders the gradient of a vector."""
    slopes = np.array([[0.02, -0.03, 0.04], [0.05, 0.01, -0.02]])
    field = linear_field(slopes)
    expected = 5 * slopes / 4 / GEOMETRY["spacing"]
    found = field.gradient_on_grid()
    assert found.shape == (9, 7, 5, 2, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)
    np.testing.assert_allclose(field.gradient_at(positions(field, np.ones((1, 3)))), expected[None], rtol=1e-5)


SERIES = {"spacing": (0.1, 0.5, 2.0, 1.25), "origin": (3.0, 10.0, -4.0, 0.25)}


def test_a_time_series_has_a_scale_of_its_own():
    """Values and derivatives by time and space; space is turned, time is not."""
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    field = linear_field((0.1, 0.02, -0.03, 0.04), (3, 9, 7, 5), **SERIES, direction=tuple(turn.ravel()))
    t, i, j, k = np.indices((3, 9, 7, 5))
    expected = 5 + 5 * (0.1 * (t - 1) + 0.02 * (i - 4) / 4 - 0.03 * (j - 3) / 4 + 0.04 * (k - 2) / 4)
    np.testing.assert_allclose(field.on_grid(), expected, rtol=0, atol=1e-6)
    slopes = np.array([0.02, -0.03, 0.04]) / 4 / SERIES["spacing"][1:]
    gradient = 5 * np.array([0.1 / 0.1, *(turn @ slopes)])
    np.testing.assert_allclose(
        field.gradient_on_grid(), np.broadcast_to(gradient, (3, 9, 7, 5, 4)), rtol=2e-5, atol=1e-6
    )
    index = np.array([[0.5, 2.25, 3.0, 4.0], [2.0, 8.0, 6.0, 0.0]])
    points = np.column_stack([index[:, 0] * 0.1, index[:, 1:] * SERIES["spacing"][1:] @ turn.T]) + SERIES["origin"]
    values = 5 + 5 * ((index - [1, 4, 3, 2]) @ [0.1, 0.02 / 4, -0.03 / 4, 0.04 / 4])
    np.testing.assert_allclose(field.at(points), values, rtol=0, atol=1e-6)
    origin = field.grid(np.s_[2:, 3:, 1:], time=1.5).geometry(field.header.geometry).origin
    np.testing.assert_allclose(origin, [3.15, 10 - 3 * 2.0, -4 + 2 * 0.5, 0.25 + 1.25])


@pytest.mark.parametrize("device", ["foo", "", "cpux", "cpu:0", "cuda:-1", "cuda:x"])
def test_devices_that_are_none(device):
    with pytest.raises(ValueError, match=f"device: expected cpu or cuda, found {device}"):
        NeuralField.of(field_net(), make_header((9, 7, 5)), device)


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, None])
def test_numbers_of_threads_that_are_none(n_threads):
    with pytest.raises(ValueError, match=f"n_threads: expected a whole number, at least 1, found {n_threads}"):
        NeuralField.of(field_net(), make_header((9, 7, 5)), n_threads=n_threads)


def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match=r"device: expected one of \d+ GPUs of torch, found cuda:99"):
        NeuralField.of(field_net(), make_header((9, 7, 5)), "cuda:99")


def test_grids_that_are_none():
    """What is no box of voxels is refused, not taken for one; counts may be of any kind of sequence."""
    field = NeuralField.of(field_net(), make_header((9, 7, 5)))
    for roi, found in (
        (np.s_[::2, :, :], "slice(None, None, 2)"),
        (np.s_[3.0, :, :], "3.0"),
        (np.s_[3:5, ..., :], "Ellipsis"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"expected a slice of step 1, found {found}")):
            field.grid(roi=roi)
    with pytest.raises(ValueError, match="roi: expected slices"):
        field.grid("0:5,:,:")
    for index in (9, -1):
        with pytest.raises(ValueError, match=f"axis 0: expected a range within 0:9 that is not empty, found {index}"):
            field.grid(np.s_[index, :, :])
    of_other_axes = [{"roi": np.s_[3:5, ...]}, {"roi": np.s_[3:5]}, {"roi": 3}, {"roi": ()}]
    for wrong in (*of_other_axes, {"resolution": 5}, {"resolution": ()}):
        with pytest.raises(ValueError, match="expected 3 axes, found"):
            field.grid(**wrong)
    for wrong in ({"resolution": (np.nan, 1, 1)}, {"resolution": (1.5, 1, 1)}, {"roi": np.s_[0.5:3, :, :]}):
        with pytest.raises(ValueError, match="axis 0: expected a whole number of points, at least 1, found"):
            field.grid(**wrong)
    for counts in ([3, 1, 4], np.array([3, 1, 4])):
        assert field.grid(resolution=counts).shape == (3, 1, 4)


@pytest.mark.parametrize("shape", [(9, 8, 5), (9, 7), (3, 9, 7, 5)])
def test_a_grid_of_another_field_is_refused(shape):
    """Beyond its volume a network gives anything."""
    field, grid = neural_field(shape=(9, 7, 5)), neural_field(shape=shape).grid()
    for evaluate in (field.on_grid, field.gradient_on_grid, field.lazy, field.to_xarray, field.to_vtk):
        with pytest.raises(ValueError, match=r"grid: expected positions within the voxels \(9, 7, 5\)"):
            evaluate(grid)


@pytest.mark.parametrize("counts", [None, (2, 2, 1)])
def test_a_grid_may_end_a_rounding_beyond_the_field(counts):
    """50 steps of 1.1 voxels are a little more than 55."""
    shape, steps = (56, 7, 5), 1.1 * np.arange(51)
    assert steps[-1] > 55
    field = cut_field(shape, counts) if counts else neural_field(shape=shape)
    others = field.grid().axes[1:]
    values, expected = (field.on_grid(Grid((axis, *others))) for axis in (steps, np.minimum(steps, 55)))
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("index", [2, np.int64(2)])
def test_an_index_is_a_slice_of_one_voxel(index):
    """As in --roi."""
    field = linear_field(shape=(9, 7, 3))
    grid = field.grid(np.s_[3:5, :, index])
    assert grid.shape == (2, 7, 1)
    np.testing.assert_array_equal(field.on_grid(grid), field.on_grid(field.grid(np.s_[3:5, :, 2:3])))


def test_grid_of_a_time_series():
    field = linear_field((0.1, 0.02, -0.03, 0.04), (5, 9, 7, 3), **SERIES)
    whole = field.on_grid()
    np.testing.assert_array_equal(field.on_grid(field.grid()), whole)
    np.testing.assert_array_equal(field.on_grid(field.grid(time=2)), whole[2:3])
    np.testing.assert_array_equal(
        field.on_grid(field.grid(np.s_[2:5, :, 1:], time=slice(1, 4))), whole[1:4, 2:5, :, 1:]
    )
    between = field.on_grid(field.grid(time=2.25))
    np.testing.assert_allclose(between, 0.75 * whole[2:3] + 0.25 * whole[3:4], rtol=0, atol=1e-6)
    assert field.grid(resolution=(4, 5, 6)).shape == (5, 4, 5, 6)
    for time in (-1.0, 4.5, slice(2, 2), slice(0, 6)):
        with pytest.raises(ValueError, match="expected"):
            field.grid(time=time)
    with pytest.raises(ValueError, match="time"):
        linear_field().grid(time=1.0)


# --- the object -------------------------------------------------------------------------------------


def test_open_refuses_what_is_no_blob(tmp_path):
    path = tmp_path / "blob"
    with pytest.raises(FileNotFoundError):
        NeuralField.open(path)
    path.write_bytes(b"something else")
    with pytest.raises(BlobError):
        NeuralField.open(path)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("is_cut", [False, True])
def test_progress_is_told_and_can_end_the_evaluation(is_cut, n_threads, monkeypatch):
    monkeypatch.setattr(blending, "MIN_POSITIONS", 2000)
    shape, told = (30, 30, 30), []
    field = cut_field(shape, (2, 1, 2), n_threads=n_threads) if is_cut else neural_field(shape, n_threads=n_threads)
    field.on_grid(on_progress=told.append)
    assert told == sorted(told) and told[-1] == 1
    assert (is_cut and n_threads > 1) or 0 < told[0] < 0.5  # a thread that helps may do the first boxes of bricks

    def stop(fraction: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        field.on_grid(on_progress=stop)
