"""Masks as bytes: what is written of a mask is read again, by either coder, whatever the order of the axes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.damage import ball_of
from hypothesis import given, settings
from hypothesis import strategies as st

from field import blob, mask_coder, missing
from field.binary import ByteReader
from field.entropy_coder import StreamError
from field.mask_coder import decode_mask, encode_mask
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


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(0, 2**32)
)
def test_any_predicted_mask_comes_back(shape, noise, seed):
    """Smooth and rough ones."""
    rng = np.random.default_rng(seed)
    smooth = sum(np.ix_(*(rng.normal(size=2) @ [np.ones(n), np.linspace(-1, 1, n)] for n in shape))) > 0
    mask = np.where(rng.random(shape) < noise, rng.random(shape) < 0.5, smooth)
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), tuple(shape)), mask)


@pytest.mark.parametrize("shape", [(70, 3), (20, 30, 40), (3, 5, 17, 9), (3000,)])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_every_order_of_the_axes_comes_back(shape, noise, monkeypatch):
    mask = sum(np.ix_(*(np.linspace(-1, 1, n) ** 2 for n in shape))) > 0.6
    mask ^= np.random.default_rng(0).random(shape) < noise
    for order in range(2 * len(shape)):
        monkeypatch.setattr(mask_coder, "min", lambda found, key, order=order: [*found][order], raising=False)
        monkeypatch.setattr(mask_coder, "BYTES_A_LANE", 20)
        data = encode_mask(mask)
        assert data[0] // 2 == order
        np.testing.assert_array_equal(decode_mask(data, shape), mask)


def test_the_shorter_chunk_is_written(monkeypatch):
    """A smooth surface is predicted; what repeats is left to LZMA, and so are masks of many voxels."""
    ball = ball_of((40, 40, 40), np.nan)
    repeated = np.tile(np.random.default_rng(0).random((8, 8, 8)) < 0.5, (5, 5, 5))
    (kind,) = blob._encode_mask(ball)
    assert kind == "H" and len(blob._encode_mask(ball)["H"]) < 0.7 * len(missing.encode_missing(ball))
    assert [*blob._encode_mask(Mask.of((40, 40, 40), np.float32(0), repeated))] == ["M"]
    monkeypatch.setattr(blob, "MAX_VOXELS", 1000)
    assert [*blob._encode_mask(ball)] == ["M"]


@pytest.mark.parametrize("change", [b"", b"\0", b"\0\0", b"\x10", b"\0\0\0", b"\0\x01\x08"])
def test_damaged_streams_are_told_of(change):
    """An order beyond the last, no states, too many states; less than the head; a stream that is cut or longer."""
    data = encode_mask(np.indices((9, 8, 7)).sum(axis=0) % 5 < 2)
    with pytest.raises(StreamError):
        decode_mask(change, (9, 8, 7))
    for damaged in (change + data[len(change) :], data[:-2], data + bytes(2), data[:40] + bytes(2) + data[42:]):
        if damaged != data:
            with pytest.raises(StreamError):
                decode_mask(damaged, (9, 8, 7))


@pytest.mark.parametrize("n", [2, 2000, 30_000, 100_000])
def test_no_stream_is_longer_than_its_number_of_states_allows(n):
    """With few states, reading a long one would take minutes. Bits of even odds take the most bytes."""
    mask = np.random.default_rng(0).random(n) < 0.5
    data = encode_mask(mask)
    n_states = int.from_bytes(data[1:3], "little")
    assert len(data) < 0.8 * mask_coder.MOST_A_LANE * n_states
    too_long = data + bytes(mask_coder.MOST_A_LANE * n_states)
    with pytest.raises(StreamError, match=f"at most 1024 bytes for each of {n_states} states"):
        decode_mask(too_long, (n,))


def test_a_mask_of_too_many_voxels_is_refused():
    with pytest.raises(StreamError, match="at most"):
        decode_mask(bytes(100), (257, 256, 256))
