"""Masks as bytes: what `encode_missing` writes is read again, whatever the axis, in time linear in the bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from field import missing
from field.binary import ByteReader
from utils import Mask


@settings(max_examples=200)
@given(st.integers(1, 400), st.integers(1, 450), st.integers(0, 2**32))
def test_what_was_stored_xor_an_earlier_bit_comes_back(n_bits, distance, seed):
    bits = np.random.default_rng(seed).integers(0, 2, n_bits, np.uint8)
    stored = bits.copy()
    stored[distance:] ^= bits[:-distance]
    found = missing._undo_xor(np.packbits(stored), distance)
    np.testing.assert_array_equal(np.unpackbits(found)[:n_bits], bits)


@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 8, 16), (7, 1, 1), (1, 1, 1)])
def test_every_axis_round_trips(shape, monkeypatch):
    mask = Mask.of(shape, np.float32(np.nan), np.random.default_rng(0).random(shape) < 0.3)
    for axis in range(len(shape) + 1):
        monkeypatch.setattr(missing, "min", lambda streams, key, axis=axis: streams[axis], raising=False)
        content = ByteReader(missing.encode_missing(mask), "mask")
        found = missing.decode_missing(content, mask.fill.dtype, shape)
        np.testing.assert_array_equal(found.bits, mask.bits)
