"""Fields that are cut into bricks: against a plain computation, position by position."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.cut_fields import cut_blob, cut_field, expected_values
from helpers.scripts import decompress

from field.neural_field import NeuralField

CUTS = [((9, 7, 5), (2, 1, 2), 1), ((9, 7, 5), (8, 3, 4), 2), ((12,), (3,), 1), ((6, 8), (2, 7), 3),
        ((3, 6, 5, 4), (1, 2, 2, 1), 1), ((4, 6, 1, 4), (2, 2, 1, 3), 1)]  # fmt: skip


@pytest.mark.parametrize(("shape", "counts", "d_out"), CUTS)
def test_values_are_those_specified(shape, counts, d_out):
    field = cut_field(shape, counts, d_out=d_out, constant=(1,))
    index = np.indices(shape).reshape(len(shape), -1).T
    expected = expected_values(field, index).reshape(*shape, d_out)
    np.testing.assert_allclose(field.on_grid().reshape(expected.shape), expected, rtol=0, atol=2e-6)
    points = np.random.default_rng(0).random((200, len(shape))) * (np.array(shape) - 1)
    points[:100] = np.round(points[:100] * 2) / 2
    np.testing.assert_allclose(field.at(points).reshape(-1, d_out), expected_values(field, points), rtol=0, atol=2e-6)


def test_a_blob_of_bricks_is_decoded(tmp_path):
    (tmp_path / "blob").write_bytes(cut_blob((9, 7, 5), (2, 1, 3), constant=(4,)))
    field = NeuralField.open(tmp_path / "blob")
    np.testing.assert_array_equal(decompress(tmp_path / "blob", tmp_path / "r.npy"), field[...])
    index = np.indices((9, 7, 5)).reshape(3, -1).T
    np.testing.assert_allclose(field.on_grid().reshape(-1, 1), expected_values(field, index), rtol=0, atol=2e-6)
