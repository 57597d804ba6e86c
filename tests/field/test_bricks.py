"""Fields that are cut into bricks: against a plain computation, position by position."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.cut_fields import (
    CLIPPED,
    cut_blob,
    cut_field,
    expected_slopes,
    expected_values,
    random_bricks,
)
from helpers.damage import mask_of
from helpers.networks import make_header
from hypothesis import given
from hypothesis import strategies as st

from field import blending
from field.bricks import Bricks, Cut, brick_boxes, cuts, held, reflected
from field.evaluation import CHUNK
from field.network_chunk import StoredNetworks
from field.neural_field import NeuralField
from field.pieces import boxes_of, pieces_of_grid, pieces_of_points
from utils import Grid, voxel_grid

# Shape, bricks along each axis, components.
CUTS = [((9, 7, 5), (2, 1, 2), 1), ((9, 7, 5), (8, 3, 4), 2), ((12,), (3,), 1), ((6, 8), (2, 7), 3),
        ((3, 6, 5, 4), (1, 2, 2, 1), 1), ((4, 6, 1, 4), (2, 2, 1, 3), 1)]  # fmt: skip


def voxels(shape: tuple[int, ...]) -> np.ndarray:
    """All of them, (n, axes)."""
    return np.indices(shape).reshape(len(shape), -1).T


def some_points(shape: tuple[int, ...], n: int = 100) -> np.ndarray:
    """Positions in voxels: anywhere, and at halves, where voxels and the ends of cut zones are."""
    points = np.random.default_rng(0).random((n, len(shape))) * (np.array(shape) - 1)
    points[: n // 2] = np.round(points[: n // 2] * 2) / 2
    return points


# --- where it is cut --------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.data())
def test_bricks_of_an_axis_are_about_equal(n, data):
    k = data.draw(st.integers(1, max(n - 1, 1)))
    (at,) = cuts((n,), (k,))
    assert at[0] == 0 and at[-1] == n - 1 and len(at) == k + 1
    lengths = np.diff(at)
    assert lengths.max() - lengths.min() <= 1 and (lengths.min() >= 1 or n == 1)


def test_neighbours_share_a_layer_of_voxels():
    count = np.zeros((9, 7), int)
    for box in brick_boxes((9, 7), (4, 2)):
        count[box] += 1
    np.testing.assert_array_equal(count, np.outer([1, 1, 2, 1, 2, 1, 2, 1, 1], [1, 1, 1, 2, 1, 1, 1]))


@given(st.integers(3, 50), st.data())
def test_one_side_of_a_mirror_is_held(n, data):
    """The larger one, with the voxel beside the mirror that is beyond it; every position has its image in it."""
    mirror = data.draw(st.integers(1, 2 * n - 3))
    ((first, last),) = held((n,), (mirror,))
    p = np.arange(2 * n - 1) / 2
    images, signs = reflected(p, n, mirror)
    assert 0 <= first < last <= n - 1 and first <= images.min() and images.max() <= last
    assert last - first >= (n - 1) / 2 and (np.diff(images) == signs[1:] / 2)[np.diff(signs) == 0].all()
    is_beyond = signs < 0
    np.testing.assert_array_equal(images, np.where(is_beyond, mirror - p, p))
    assert (is_beyond == ((2 * p > mirror) if mirror >= n - 1 else (2 * p < mirror))).all()


# --- weights ----------------------------------------------------------------------------------------


@st.composite
def places(draw):
    """Cuts of a few axes, and positions along each."""
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 12))
        k = draw(st.integers(1, max(n - 1, 1)))
        near = st.floats(0, n - 1) | st.integers(0, 2 * (n - 1)).map(lambda half: half / 2)
        axes.append((np.array(cuts((n,), (k,))[0]), np.array(draw(st.lists(near, min_size=1, max_size=8)))))
    return axes


def sums(pieces, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The sums of all weights at each position, and of their derivatives by each axis."""
    total, slopes, last = np.zeros(shape), None, (-1,)
    for piece in pieces:
        assert piece.brick > last
        last, d_in = piece.brick, len(piece.brick)
        slopes = np.zeros((d_in, *shape)) if slopes is None else slopes
        weight = 1.0 if piece.weight is None else piece.weight
        assert np.min(weight) >= 0 and np.max(weight) <= 1
        total[piece.index] += weight
        for axis in range(d_in):
            if piece.slope(axis) is not None:
                slopes[axis][piece.index] += piece.slope(axis)
    return total, slopes


@given(places())
def test_weights_are_a_partition_of_unity(axes):
    """At points and on grids of positions in any order; and what is seen of a brick lies in it, or half a voxel out."""
    at, along = [at for at, _ in axes], tuple(p for _, p in axes)
    grid = Grid(along)
    points = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, len(axes))
    for pieces, shape in ((pieces_of_grid(grid, at), grid.shape), (pieces_of_points(points, at), (len(points),))):
        pieces = list(pieces)
        total, slopes = sums(pieces, shape)
        np.testing.assert_allclose(total, 1.0, rtol=1e-15)
        np.testing.assert_allclose(slopes, 0.0, atol=1e-14)
        for piece in pieces:
            local = piece.local.axes if isinstance(piece.local, Grid) else piece.local.T
            for p, edges, i in zip(local, at, piece.brick, strict=True):
                assert p.min() >= -0.5 and p.max() <= edges[i + 1] - edges[i] + 0.5


def test_boxes_cover_a_grid_once():
    shape, at = (40, 30, 20), [np.array(at) for at in cuts((40, 30, 20), (4, 3, 1))]
    count = np.zeros(shape, int)
    for box in boxes_of(voxel_grid(shape), at, 1500):
        assert count[box].size <= 1500
        count[box] += 1
    assert (count == 1).all()


# --- values and derivatives -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "counts", "d_out"), CUTS)
def test_values_are_those_specified(shape, counts, d_out):
    field = cut_field(shape, counts, d_out=d_out, constant=(1,))
    for found, index in ((field.on_grid(), voxels(shape)), (field.at(some_points(shape)), some_points(shape))):
        np.testing.assert_allclose(found.reshape(-1, d_out), expected_values(field, index), rtol=0, atol=2e-6)


@pytest.mark.parametrize("network", [{}, CLIPPED], ids=["free", "clipped"])
@pytest.mark.parametrize(("shape", "counts", "d_out"), CUTS)
def test_derivatives_are_those_of_the_values(shape, counts, d_out, network):
    """Of those specified, by central differences; at the middle of a zone the weights change fastest."""
    field, axes = cut_field(shape, counts, d_out=d_out, constant=(1,), **network), np.array(shape) > 1
    points = np.clip(some_points(shape, 60), 1e-5, np.maximum(np.array(shape) - 1 - 1e-5, 0))
    found = field.gradient_at(points).reshape(len(points), d_out, -1)
    is_smooth = np.abs(found - expected_slopes(field, points)) < 1e-4 * np.abs(found).max()
    least = 0.9 if network else 0.999  # a step over the edge of the clipped range may not be
    assert (is_smooth.mean(axis=(0, 1))[axes] > least).all()
    np.testing.assert_allclose(
        field.gradient_on_grid().reshape(-1, len(shape)),
        field.gradient_at(voxels(shape)).reshape(-1, len(shape)), rtol=1e-4, atol=1e-5 * np.abs(found).max(),
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "counts", "mirrors"), [((9, 7, 5), (2, 1, 2), (8, 5, 0)), ((8, 6), (1, 3), (0, 6))])
def test_between_mirrors(shape, counts, mirrors):
    """Values on grids and at points, derivatives, integers: of a mirror image those of the other side."""
    field = cut_field(shape, counts, mirrors=mirrors)
    for found, index in ((field.on_grid(), voxels(shape)), (field.at(some_points(shape)), some_points(shape))):
        np.testing.assert_allclose(found.reshape(-1, 1), expected_values(field, index), rtol=0, atol=2e-6)
    points = np.clip(some_points(shape, 60)[30:], 1e-3, np.array(shape) - 1.001)
    found = field.gradient_at(points)
    np.testing.assert_allclose(found, expected_slopes(field, points)[:, 0], rtol=0, atol=1e-4 * np.abs(found).max())
    np.testing.assert_allclose(
        field.gradient_on_grid().reshape(-1, len(shape)), field.gradient_at(voxels(shape)),
        rtol=1e-4, atol=1e-5 * np.abs(found).max(),
    )  # fmt: skip
    integers = cut_field(shape, counts, mirrors=mirrors, low=0, high=60_000, dtype="uint16")
    expected = expected_values(integers, voxels(shape))
    assert (np.abs(integers.on_grid().reshape(-1, 1) - expected) < 0.5 + 1e-6).all()


def test_values_and_derivatives_are_continuous():
    """Across the ends of zones and across faces, along every axis."""
    field = cut_field((9, 9, 9), (2, 2, 2), omega_0=3.0, dtype="float64")
    for axis, edge in itertools.product(range(3), (3.5, 4.0, 4.5)):
        points = np.random.default_rng(0).random((50, 3)) * 8
        points[:, axis] = edge - 1e-6
        after = points + 2e-6 * np.eye(3)[axis]
        np.testing.assert_allclose(field.at(after), field.at(points), rtol=0, atol=2e-5)
        np.testing.assert_allclose(field.gradient_at(after), field.gradient_at(points), rtol=0, atol=2e-4)


def test_one_brick_of_the_whole_range_is_the_field_itself():
    bricks = random_bricks((9, 7, 5), (1, 1, 1))
    header, ones = make_header((9, 7, 5)), np.ones((1, 1), np.float32)
    whole = NeuralField(header, Bricks(Cut((1, 1, 1), -ones, ones), bricks.networks))
    np.testing.assert_array_equal(whole.on_grid(), NeuralField(header, Bricks.whole(*bricks.networks[0])).on_grid())
    inner = NeuralField(header, Bricks(Cut((1, 1, 1), -ones, ones / 2), bricks.networks))
    np.testing.assert_allclose(inner.on_grid(), whole.on_grid() * 0.75, rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_clipped", [False, True])
def test_constant_bricks(is_clipped):
    """They have no slope but where they are blended; nor has one whose network leaves the range everywhere."""
    bricks = random_bricks((9, 5, 5), (2, 1, 1), constant=() if is_clipped else (0, 1))
    if is_clipped:
        for _, weights in bricks.networks:
            weights["net_layers.3.bias"] += 5
    field, ends = NeuralField(make_header((9, 5, 5)), bricks), (bricks.cut.high[:, 0] + 1) / 2
    np.testing.assert_allclose(field[0:4], ends[0], rtol=1e-6)
    np.testing.assert_allclose(field[5:], ends[1], rtol=1e-6)
    np.testing.assert_allclose(field[4], ends.mean(), rtol=1e-6)
    slopes = field.gradient_on_grid()
    np.testing.assert_allclose(slopes[4], np.broadcast_to([1.5 * (ends[1] - ends[0]), 0, 0], (5, 5, 3)), rtol=1e-5)
    assert not slopes[:4].any() and not slopes[5:].any()


# --- parts and the whole ----------------------------------------------------------------------------


def test_a_part_is_that_part_of_the_whole(monkeypatch):
    """For other boxes, chunks and threads too. That of integers, exactly: see test_integers.py."""
    shape, how = (20, 16, 12), {"constant": (3,), "n_neurons": 8, "gain": 2.0, "low": 0, "high": 1}
    whole = cut_field(shape, (3, 2, 2), **how).on_grid()
    monkeypatch.setitem(CHUNK, "cpu", 333)
    monkeypatch.setattr(blending, "MAX_VALUES", 700)
    field = cut_field(shape, (3, 2, 2), n_threads=2, **how)
    np.testing.assert_allclose(field.on_grid(), whole, rtol=0, atol=2e-6)
    for box in (np.s_[3:17, 2:16, 5:9], np.s_[:, 7:8, 1:12], np.s_[6:7, 8:9, 5:6], np.s_[::-1, 1::3, ::-2]):
        np.testing.assert_allclose(field[box], whole[box], rtol=0, atol=2e-6)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    """Of float32, the last bits depend on the boxes: the PSNR in thenet.json did, and with it the steps of rounding."""
    monkeypatch.setattr(blending, "MIN_POSITIONS", 100)
    fields = [cut_field((20, 16, 12), (2, 2, 1), n_neurons=16, n_threads=n) for n in (1, 2, 3)]
    for found in fields[1:]:
        np.testing.assert_array_equal(found.on_grid(), fields[0].on_grid())


def test_integers_are_the_nearest_to_those_specified():
    field = cut_field((9, 7, 5), (2, 1, 2), low=0, high=60_000, dtype="uint16")
    found, expected = field.on_grid().reshape(-1, 1), expected_values(field, voxels((9, 7, 5)))
    assert (np.abs(found - expected) < 0.5 + 1e-6).all()
    floats = field.on_grid(as_float=True)
    np.testing.assert_allclose(floats.reshape(-1, 1), expected, rtol=0, atol=0.02)


def test_halves_are_rounded_as_in_float64():
    """Where bricks meet. Float32 rounds a few of so many to the other side."""
    n = 3000
    low = np.random.default_rng(0).uniform(-1, 1, (n, 1)).astype(np.float32)
    bricks = Bricks(Cut((n,), low, low), [None] * n)
    field = NeuralField(make_header((2 * n + 1,), 0, 500_000, "int32"), bricks)
    g = low.astype(float).ravel()
    between = ((g[:-1] + g[1:]) / 2 + 1) / 2 * 500_000
    np.testing.assert_array_equal(field[2:-1:2], np.rint(between))


def test_few_integers_are_evaluated_again():
    """Those near a border, of an ordinary network; of a type too wide for float32 none twice."""
    for dtype, high, most in (("uint8", 255, 1.05), ("uint16", 60_000, 1.5), ("int32", 2**31 - 1, 1.05)):
        field, n = cut_field((20, 16, 12), (2, 2, 2), low=0, high=high, dtype=dtype), []
        evaluate = field.evaluator.evaluate
        field.evaluator.evaluate = lambda positions, store, *more, evaluate=evaluate, n=n, **named: evaluate(
            positions, lambda part, *values: (n.append(len(part)), store(part, *values)), *more, **named
        )
        field.on_grid()
        assert 20 * 16 * 12 <= sum(n) < most * 20 * 16 * 12


# --- what a field is --------------------------------------------------------------------------------


def test_missing_voxels_stay_missing():
    shape = (9, 7, 5)
    header = make_header(shape, 0, 200, "uint8", missing=mask_of(shape, 255, "uint8"))
    field, is_missing = cut_field(shape, (2, 2, 1), header=header), np.arange(9 * 7 * 5).reshape(shape) % 3 == 0
    values = field.on_grid()
    np.testing.assert_array_equal(values == 255, is_missing)
    np.testing.assert_array_equal(np.isnan(field.gradient_on_grid()).all(axis=-1), is_missing)


def test_networks_are_decoded_when_they_are_needed(tmp_path, monkeypatch):
    """And once each, but for a brick that another thread decodes meanwhile."""
    (tmp_path / "blob").write_bytes(cut_blob((33, 33, 9), (4, 4, 1), constant=(1,)))
    asked, decode = [], StoredNetworks.__getitem__
    monkeypatch.setattr(StoredNetworks, "__getitem__", lambda self, k: asked.append(k) or decode(self, k))
    field = NeuralField.open(tmp_path / "blob")
    assert not asked and "33 x 33 x 9" in repr(field)
    assert field[0:7, 0:7].shape == (7, 7, 9) and asked == [0]
    field[8, 12]
    assert asked == [0, 1, 5]
    field.on_grid()
    assert sorted(asked) == list(range(16))


def test_it_can_be_pickled_and_used_from_threads(tmp_path):
    (tmp_path / "blob").write_bytes(cut_blob((20, 20, 20), (2, 2, 2)))
    field = NeuralField.open(tmp_path / "blob")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: field.on_grid(), range(8)))
    for found in (*results[1:], pickle.loads(pickle.dumps(field)).on_grid()):
        np.testing.assert_array_equal(found, results[0])
