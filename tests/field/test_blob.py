"""The blob: round trips, damage, and the blobs of the original scripts."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from helpers.damage import seal
from helpers.networks import decode_blob, field_net, make_blob, make_header
from helpers.original import original_blob, original_coordinates, original_forward
from helpers.scripts import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from field.blob import BlobError, QuantisedLayer, encode_blob, is_blob
from field.header_chunks import check_header
from field.layers import SirenConfig, layer_table
from field.original_blob import decode_either, decode_original
from field.quantised import round_step
from siren import FieldNet
from utils import DTYPES, Geometry, VolumeHeader

# --- round trips ------------------------------------------------------------------------------------


def range_strategy(dtype: str, d_out: int):
    if np.dtype(dtype).kind == "f":
        one = st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False, allow_infinity=False)
    else:
        one = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return st.lists(st.tuples(one, one).map(sorted), min_size=d_out, max_size=d_out)


@st.composite
def headers(draw):
    d_in, d_out = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    longest = (2**32 - 1, 2**20, 10321, 1024)[d_in - 1]
    shape = tuple(draw(st.lists(st.integers(1, longest), min_size=d_in, max_size=d_in)))
    dtype = draw(st.sampled_from(DTYPES))
    low, high = (np.array(end, dtype) for end in zip(*draw(range_strategy(dtype, d_out)), strict=True))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    spacing = draw(st.tuples(*[st.floats(5e-324, 1e308)] * d_in))
    origin = draw(st.tuples(*[finite] * d_in))
    signs = draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3))
    direction = np.diag(signs)
    direction = direction[list(draw(st.permutations(range(3))))] if d_in > 2 else direction
    name, units = draw(st.text(max_size=20)), draw(st.text(max_size=5))
    space = draw(st.sampled_from(("", "LPS")))
    geometry = Geometry(spacing, origin, tuple(direction.ravel().tolist()), name, units, space)
    return VolumeHeader(shape, low, high, geometry)


@settings(max_examples=30)
@given(headers())
def test_header_round_trip(header):
    config = SirenConfig(1, 1, len(header.shape), len(header.low), is_residual=False)
    layers = [
        QuantisedLayer(np.ones((layer.n_out, layer.n_in), np.int32), np.zeros(layer.n_out, np.int32), round_step(0.1))
        for layer in layer_table(config)
    ]
    found, _ = decode_blob(encode_blob(header, [(config, layers)]))
    assert (found.shape, found.geometry, found.dtype) == (header.shape, header.geometry, header.dtype)
    np.testing.assert_array_equal([found.low, found.high], [header.low, header.high])


@pytest.mark.parametrize(
    "header",
    [
        make_header((4, 3)),
        make_header((0, 3, 2)),
        make_header((2**32, 1, 1)),
        make_header((2**20, 2**20, 2)),
        make_header(spacing=(1.0, 0.0, 1.0)),
        make_header(spacing=(1.0, -1.0, 1.0)),
        make_header(spacing=(1.0, math.inf, 1.0)),
        make_header(spacing=(1.0, 1.0)),
        make_header(origin=(0.0, math.nan, 0.0)),
        make_header(direction=(1.0,) * 9),
        make_header(direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.1)),
        make_header(direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)),
        make_header(direction=(math.nan,) * 9),
        make_header(units="\ud800"),
        make_header(space="RAS"),
        make_header(low=2.0, high=1.0),
        make_header(high=math.nan),
        make_header(high=math.inf),
        make_header(d_out=2),
        make_header(dtype="complex64"),
        make_header(dtype="bool"),
    ],
)
def test_impossible_headers_are_not_written(header):
    with pytest.raises(BlobError):
        make_blob(header, field_net())


# --- damage -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_blob() -> bytes:
    return make_blob(make_header(spacing=(0.5, 1.0, 2.0), name="p"), field_net(n_neurons=2, n_layers=2))


def test_every_corruption_of_one_byte(small_blob):
    for at in range(len(small_blob)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(small_blob)
            damaged[at] ^= flip
            with pytest.raises(BlobError):
                decode_blob(bytes(damaged))


def test_damage_beneath_a_right_checksum(small_blob):
    """A hostile writer puts the checksum right: whatever is read then is valid, or a BlobError, and nothing else."""
    _, networks = decode_blob(small_blob)
    expected = {name: tensor.shape for name, tensor in networks[0][1].items()}
    refused = 0
    for at in range(9, len(small_blob)):
        for damage in (0, 1, 127, 255, small_blob[at] ^ 1, small_blob[at] ^ 0x20):
            damaged = bytearray(small_blob)
            damaged[at] = damage
            try:
                found, (network, *_) = decode_blob(seal(bytes(damaged)))
            except BlobError:
                refused += 1
                continue
            check_header(found, network[0].d_in, network[0].d_out)
            assert {name: tensor.shape for name, tensor in network[1].items()} == expected
            assert all(np.isfinite(tensor).all() for tensor in network[1].values())
    assert refused > len(small_blob)


def test_truncated_or_extended(small_blob):
    """Beneath a right checksum, too."""
    changed = [small_blob[:length] for length in range(len(small_blob))]
    changed += [small_blob + extra for extra in (b"\0", b"\0\0", b"abcde", small_blob)]
    for data in (*changed, *(seal(data) for data in changed if len(data) >= 9)):
        with pytest.raises(BlobError):
            decode_blob(data)


def test_version(small_blob):
    with pytest.raises(BlobError, match=r"version \d+, found version 99"):
        decode_blob(small_blob[:4] + b"\x63" + small_blob[5:])


@pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMPY\x01\x00v\x00{}", b"<?xml version='1.0'?>", bytes(500)])
def test_foreign(data):
    assert not is_blob(data)
    for reader in (decode_blob, decode_original):
        with pytest.raises(BlobError):
            reader(data)


# --- the original scripts' blobs --------------------------------------------------------------------


@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("bits", [4, 6, 7, 8, 9, 12])
def test_original_blob_is_read_exactly(bits, is_residual):
    rng = np.random.default_rng(bits)
    # 25 indices of 4, 6, 7, 9 or 12 bits end within a byte, 64 at a byte's end
    for n, n_layers, d_in, d_out in ((5, 3, 3, 1), (8, 2, 2, 3), (1, 2, 3, 1), (3, 1, 3, 1)):
        data, expected = original_blob(rng, bits, n, n_layers, is_residual, d_in, d_out)
        assert not is_blob(data)
        config, tensors = decode_original(data)
        assert config == SirenConfig(n, n_layers, d_in, d_out, 30.0, is_residual)
        assert list(tensors) == list(FieldNet(config).state_dict())
        for name, tensor in tensors.items():
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 17, 32])
def test_original_bits_that_its_own_reader_garbles(bits):
    data, _ = original_blob(np.random.default_rng(0), min(bits, 8) or 1, 5, 3, True)
    at = 4 + 3 * 4
    with pytest.raises(BlobError, match=f"bits: .*found {bits}"):
        decode_original(data[:at] + bytes([bits]) + data[at + 1 :])


@pytest.mark.parametrize("bits", [8, 9])
def test_original_truncated_or_extended(bits):
    data, _ = original_blob(np.random.default_rng(0), bits, 3, 2, True)
    for length in range(len(data)):
        with pytest.raises(BlobError):
            decode_original(data[:length])
    with pytest.raises(BlobError, match="1 unexpected byte"):
        decode_original(data + b"\0")


def test_nothing_is_no_original_blob():
    with pytest.raises(BlobError, match="is empty"):
        decode_either(b"")


def test_original_with_impossible_content():
    data, _ = original_blob(np.random.default_rng(0), 9, 3, 2, True)
    bias = 4 + 2 * 4 + 1 + 4 * 9  # the first layer's
    for change in (
        data[:3] + b"\2" + data[4:],  # is_residual
        b"\0" + data[1:],  # n_layers
        data[:4] + b"\4" + data[5:],  # unequal widths
        data[:bias] + struct.pack("<f", math.nan) + data[bias + 4 :],
    ):
        with pytest.raises(BlobError):
            decode_original(change)
    index = bias + 4 * 3 + 4 * 512 + (9 * 9 + 7) // 8  # the last index of the first matrix, again
    for value in (512, 2**32 - 1):
        with pytest.raises(BlobError, match="index"):
            decode_original(data[:index] + struct.pack("<I", value) + data[index + 4 :])


# What the original's own net_decompress.py makes of original_8bit.bin on its grid of 48 x 40 x 36, in [-1, 1].
GOLDEN = {
    (0, 0, 0): -0.07805664837360382,
    (47, 0, 0): -0.016182631254196167,
    (0, 39, 0): -0.15197496116161346,
    (0, 0, 35): -0.1707231104373932,
    (47, 39, 35): -0.008936665952205658,
    (24, 20, 18): 0.006650920957326889,
    (10, 30, 5): -0.17938332259655,
    (33, 7, 29): -0.12825460731983185,
    (40, 21, 2): -0.10926972329616547,
}
GOLDEN_SHAPE = (48, 40, 36)


def test_a_blob_that_the_original_wrote():
    """Ours evaluates it to what the original does, within 1e-5 of the range."""
    config, tensors = decode_original((DATA / "original_8bit.bin").read_bytes())
    assert config == SirenConfig(28, 8)
    net = FieldNet(config)
    net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    flat = np.ravel_multi_index(np.array(list(GOLDEN)).T, GOLDEN_SHAPE)
    x = original_coordinates(GOLDEN_SHAPE)[flat]
    with torch.no_grad():
        found = net(torch.from_numpy(x).float()).numpy().ravel()
    np.testing.assert_allclose(found, list(GOLDEN.values()), rtol=0, atol=1e-5)
    anew = original_forward(tensors, 8, True, x).ravel()
    np.testing.assert_allclose(anew, list(GOLDEN.values()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("d_in", [1, 2])
def test_directions_that_leave_the_dimensions_of_a_field(d_in):
    turned = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
    with pytest.raises(BlobError, match="within the first dimensions"):
        make_blob(make_header((4, 3)[:d_in], direction=turned), field_net(d_in=d_in))
