"""Arbitrary networks survive the blob; hostile files give clean errors, in bounded memory. See benchmarks/attack.py."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import lzma
import math
import os
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.damage import FREE, announced, assemble, blob_memory, memory_below, memory_traced, seeds
from helpers.networks import arrays, chunks_of, decode_blob, field_net, make_header, with_ascending_biases
from helpers.scripts import error_of
from helpers.vtk import vtk_read
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import net_decompress
from field import blob as blob_format
from field import plain_network
from field.blob import BlobError, decode_field, encode_blob
from field.layers import SirenConfig, layer_table
from field.mask_coder import encode_mask
from field.network_chunk import MAX_PARAMETERS, encode_network
from field.neural_field import NeuralField
from field.quantised import QuantisedLayer, round_step
from quantising.codebooks import round_to_codebooks
from quantising.order import in_order
from quantising.rounding import round_layers
from quantising.sensitivity import choose_steps, quasirandom_points, sensitivities
from utils import UserError

# --- arbitrary networks -----------------------------------------------------------------------------


@st.composite
def networks(draw):
    shape = {name: draw(st.integers(1, high)) for name, high in (("n_neurons", 5), ("n_layers", 3))}
    net = field_net(
        **shape, d_in=draw(st.integers(1, 4)), d_out=draw(st.integers(1, 3)), is_residual=draw(st.booleans())
    )
    scale = draw(st.sampled_from([0.0, 1e-42, 1e-30, 1e-3, 1.0, 1e3, 1e28]))
    elements = st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])
    for parameter in net.parameters():
        constant = draw(st.booleans())
        values = draw(elements) if constant else draw(hnp.arrays(np.float32, tuple(parameter.shape), elements=elements))
        parameter.data[:] = scale * torch.as_tensor(values)
    return in_order(net)


@settings(max_examples=40)
@given(networks(), st.integers(1, 16), st.booleans())
def test_arbitrary_networks(net, bits, kmeans):
    """Decoding gives exactly what the integers stand for, and each weight within half a step of the original."""
    steps = choose_steps(net, sensitivities(net, quasirandom_points((3,) * net.config.d_in, 32)), bits=bits)
    layers = round_to_codebooks(net, bits, steps) if kmeans else round_layers(net, steps)
    header = make_header((3,) * net.config.d_in, d_out=net.config.d_out)
    found, ((network, tensors),) = decode_blob(encode_blob(header, [(net.config, layers)]))
    assert found.shape == header.shape and network == net.config
    originals = arrays(net)
    expected = [array for layer in layers for array in layer.dequantise()]
    for i, (name, tensor) in enumerate(tensors.items()):
        np.testing.assert_array_equal(tensor, expected[i], err_msg=name)
        step = float(steps[i // 2])
        if layers[i // 2].codebook is None or name.endswith("bias"):
            off = np.abs(expected[i].astype(float) - originals[name])
            assert (off <= step / 2 + 1e-6 * np.abs(originals[name]) + 1e-45).all(), name


def read_within_bounds(read: Callable, data: bytes, n_parameters: int) -> object | None:
    """What `read` makes of `data`, None for a BlobError; fails when that took too much memory."""
    with memory_below(blob_memory(data, n_parameters)):
        try:
            return read(data)
        except BlobError as error:
            assert str(error) and len(str(error)) < 3000
            return None


# --- hostile by design ------------------------------------------------------------------------------


def replaced(blob: bytes, kind: bytes, at: int, form: str, *numbers: float) -> bytes:
    """The blob with numbers at a place of the first chunk of a type, its checksum right."""
    chunks = chunks_of(blob)
    i = [k for k, _ in chunks].index(kind)
    content = bytearray(chunks[i][1])
    struct.pack_into("<" + form, content, at, *numbers)
    return assemble([*chunks[:i], (kind, bytes(content)), *chunks[i + 1 :]])


SETTINGS = {  # of a network, in chunks N and P
    "flags 255": (0, "B", 255),
    "no layers": (1, "B", 0),
    "255 layers": (1, "B", 255),
    "no neurons": (2, "H", 0),
    "65535 neurons": (2, "H", 65535),
    "65535 neurons, 255 layers": (1, "BH", 255, 65535),
    "omega 0": (4, "f", 0.0),
    "omega negative": (4, "f", -30.0),
    "omega NaN": (4, "f", math.nan),
    "omega infinite": (4, "f", math.inf),
}
HOSTILE = {
    "d_in 0": (b"F", 0, "B", 0),
    "d_in 5": (b"F", 0, "B", 5),
    "d_out 0": (b"F", 1, "B", 0),
    "d_out 255": (b"F", 1, "B", 255),
    "dtype 11": (b"F", 2, "B", 11),
    "shape 0": (b"F", 3, "I", 0),
    "shape overflows": (b"F", 3, "III", *(2**32 - 1,) * 3),
    "shape product overflows": (b"F", 3, "III", 2**31, 2**31, 4),
    "low NaN": (b"F", 15, "d", math.nan),
    "high infinite": (b"F", 23, "d", math.inf),
    "high below low": (b"F", 23, "d", -1.0),
    "high no float32": (b"F", 23, "d", 1e39),
    "N, flags 4": (b"N", 0, "B", 4),
    "T, codebooks": (b"T", 0, "B", 2),
    **{f"{kind}, {what}": (kind.encode(), *SETTINGS[what]) for kind in "NT" for what in SETTINGS},
    "step 0": (b"N", 8, "H", 0),
    "step negative": (b"N", 8, "H", 0xBF80),
    "step infinite": (b"N", 8, "H", 0x7F80),
    "step NaN": (b"N", 8, "H", 0x7FC0),
    "M 255": (b"N", 12, "B", 255),
    "bias M 255": (b"N", 13, "B", 255),
    "M just too large": (b"N", 12, "B", 104),
    "all codes 255": (b"N", 10, "BBBB", 255, 255, 255, 255),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_numbers(what):
    with memory_traced():
        sound = seeds()[2 if HOSTILE[what][0] == b"N" else 0]
        assert read_within_bounds(decode_blob, replaced(sound, *HOSTILE[what]), 0) is None


def lzma2(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])


NAN = struct.pack("<d", math.nan)
HOSTILE_MASKS = {
    "nothing": b"",
    "half a fill value": NAN[:5],
    "no axis": NAN,
    "no stream": NAN + b"\0",
    "axis 4": NAN + b"\4" + lzma2(bytes(3)),
    "axis 255": NAN + b"\xff" + lzma2(bytes(3)),
    "fill value infinite": struct.pack("<d", math.inf) + b"\0" + lzma2(bytes(3)),
    "fill value no float32": struct.pack("<d", 0.1) + b"\0" + lzma2(bytes(3)),
    "fill value too large": struct.pack("<d", 1e39) + b"\0" + lzma2(bytes(3)),
    "too short": NAN + b"\0" + lzma2(bytes(2)),
    "too long": NAN + b"\0" + lzma2(bytes(4)),
    "truncated": NAN + b"\0" + lzma2(bytes(3))[:-1],
    "something behind": NAN + b"\0" + lzma2(bytes(3)) + b"x",
    "another format": NAN + b"\0" + lzma.compress(bytes(3)),
    "noise": NAN + b"\0" + bytes(range(1, 200)),
    "a bomb": NAN + b"\0" + lzma2(bytes(10**8)),
}


@pytest.mark.parametrize("what", HOSTILE_MASKS)
def test_hostile_masks(what):
    """Of a grid of 24 voxels, 3 bytes."""
    with memory_traced():
        assert (
            read_within_bounds(decode_blob, assemble([*chunks_of(seeds()[0]), (b"M", HOSTILE_MASKS[what])]), 0) is None
        )


HOSTILE_PREDICTIONS = {
    "nothing": b"",
    "no head": NAN,
    "half a head": NAN + b"\0\1",
    "no stream": NAN + b"\0\1\0",
    "order 6": NAN + b"\x0c\1\0" + bytes(4),
    "no states": NAN + b"\0\0\0" + bytes(4),
    "2049 states": NAN + b"\0\1\x08" + bytes(4 * 2049),
    "state 0": NAN + b"\0\1\0" + bytes(4),
    "few states for many bytes": NAN + b"\0\2\0" + bytes(2050),
    "fill value infinite": struct.pack("<d", math.inf) + b"\0\1\0\0\0\1\0",
    "noise": NAN + b"\0\2\0" + bytes(range(200)),
}


@pytest.mark.parametrize("what", HOSTILE_PREDICTIONS)
def test_hostile_predictions(what):
    """Of a grid of 24 voxels."""
    data = assemble([*chunks_of(seeds()[0]), (b"H", HOSTILE_PREDICTIONS[what])])
    with memory_traced():
        assert read_within_bounds(decode_blob, data, 0) is None


@pytest.mark.parametrize("shape", [(96, 96, 96), (1 << 20, 1, 1), (1, 1 << 10, 1 << 10)])
def test_memory_of_large_predictions(shape):
    """No voxel is missing, by a few bytes."""
    stream = (b"H", NAN + encode_mask(np.zeros(shape, bool)))
    data = assemble([*chunks_of(replaced(seeds()[0], b"F", 3, "III", *shape)), stream])
    assert len(data) < 1000
    with memory_traced():
        assert read_within_bounds(decode_blob, data, announced(data)) is not None


def test_a_prediction_of_too_many_voxels_is_refused():
    data = assemble([*chunks_of(replaced(seeds()[0], b"F", 3, "III", 257, 256, 256)), (b"H", NAN + bytes(100))])
    with memory_traced(), memory_below(FREE), pytest.raises(BlobError, match="at most 16777216 voxels"):
        decode_blob(data)


def test_masks_with_unused_bits():
    content = NAN + b"\0" + lzma2(bytes([0, 0, 1]))
    decode_blob(assemble([*chunks_of(seeds()[0]), (b"M", content)]))
    smaller = replaced(seeds()[0], b"F", 3, "III", 23, 1, 1)
    with pytest.raises(BlobError, match="unused bits"):
        decode_blob(assemble([*chunks_of(smaller), (b"M", content)]))
    for second in ((b"M", content), (b"H", NAN + encode_mask(np.zeros((4, 3, 2), bool)))):
        with pytest.raises(BlobError, match="at most one"):
            decode_blob(assemble([*chunks_of(seeds()[0]), (b"M", content), second]))


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_memory_of_large_masks(axis):
    """2^24 voxels missing or not by a few bytes; so many more that their bits are refused; bits that do not come."""
    stream = (b"M", NAN + bytes([axis]) + lzma2(bytes(1 << 21)))
    with memory_traced():
        for shape, is_read in (((256,) * 3, True), ((1 << 13,) * 3, False), ((1024, 1024, 1025), False)):
            data = assemble([*chunks_of(replaced(seeds()[0], b"F", 3, "III", *shape)), stream])
            read = functools.partial(decode_blob, large=True)
            assert (read_within_bounds(read, data, announced(data)) is not None) == is_read


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("omega", [1e-5, 30.0, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_weights_of_any_size(dtype, omega, is_residual):
    """Up to the limit, values are in the range; derivatives may overflow; none warns. Larger ones are refused."""
    config = SirenConfig(8, 3, omega_0=omega, is_residual=is_residual)
    rng, header = np.random.default_rng(0), make_header((4, 3, 5), high=200, dtype=dtype)

    def field_of(more: int) -> NeuralField:
        """Of the largest integers that the limit allows, and so many more."""
        layers = []
        for layer in layer_table(config):
            step = round_step(1e28 / layer.omega)
            largest = int(1e30 / layer.omega / float(step)) + more
            weights = rng.choice([-largest, largest], (layer.n_out, layer.n_in))
            layers.append(QuantisedLayer(weights, rng.choice([-largest, largest], layer.n_out), step))
        return NeuralField(*decode_field(encode_blob(header, [(config, with_ascending_biases(config, layers))])))

    field = field_of(0)
    values = field[...]
    assert ((values >= header.low) & (values <= header.high)).all()
    field.gradient_on_grid()
    with pytest.raises(BlobError, match="too large"):
        field_of(1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hostile_codebooks(value):
    """Each entry is checked, used or not."""
    blob = seeds()[2]
    at = 8 + 6 + 6  # head of the chunk, record of the first layer, of the second
    count = 2 * chunks_of(blob)[-1][1][at - 2] + 1
    assert 9 <= count <= 31
    for i in range(count):
        with pytest.raises(BlobError, match=r"codebook: .*finite"):
            decode_blob(replaced(blob, b"N", at + 4 * i, "f", value))


# --- bricks -----------------------------------------------------------------------------------------

CUT = b"B", 0, "HHH"
HOSTILE_BRICKS = {
    "none": (*CUT, 0, 1, 2),
    "more than voxels": (*CUT, 5, 1, 2),
    "all the numbers": (*CUT, 65535, 65535, 65535),
    "fewer": (*CUT, 2, 1, 1),
    "more": (*CUT, 4, 1, 2),
    "low NaN": (b"B", 6, "f", math.nan),
    "low below -1": (b"B", 6, "f", -1.1),
    "high infinite": (b"B", 10, "f", math.inf),
    "high below low": (b"B", 10, "f", -1.0),
    "one constant, with its network": (b"B", 6, "ff", 0.5, 0.5),
    "flags of a network": (b"T", 0, "B", 4),
    "no layers": (b"T", 1, "B", 0),
    "65535 neurons": (b"T", 2, "H", 65535),
    "omega NaN": (b"T", 4, "f", math.nan),
}


@pytest.mark.parametrize("what", HOSTILE_BRICKS)
def test_hostile_bricks(what):
    """Found when the blob is opened, before any network is decoded."""
    data = replaced(seeds()[-1], *HOSTILE_BRICKS[what])
    with memory_traced():
        for read in (decode_blob, decode_field):
            assert read_within_bounds(read, data, 0) is None


def test_chunks_of_bricks_out_of_place():
    field, cut, *networks = chunks_of(seeds()[-1])
    decode_field(assemble([field, cut, *networks]))
    few = struct.pack("<3Q", 0, 0, 3)
    assert decode_field(assemble([field, (b"S", few), cut, *networks]))[1].cut.mirrors == (0, 0, 3)
    for chunks in (
        [field, *networks],
        [field, *networks, cut],
        [field, networks[0], cut, *networks[1:]],
        [field, cut, cut, *networks],
        [field, cut, *networks[1:]],
        [field, cut, *networks, networks[0]],
        [cut, field, *networks],
        [field, cut],
        [field, (b"B", cut[1][:-1]), *networks],
        [field, (b"B", cut[1] + b"x"), *networks],
        [field, cut, (b"S", few), *networks],
        [field, (b"S", few), (b"S", few), cut, *networks],
        [field, (b"S", few), networks[0]],
        [field, (b"S", few[:-1]), cut, *networks],
        [field, (b"S", few + b"x"), cut, *networks],
        [field, (b"S", bytes(24)), cut, *networks],
        [field, (b"S", b"\xff" * 24), cut, *networks],
    ):
        with pytest.raises(BlobError):
            decode_field(assemble(chunks))


def test_memory_of_many_bricks():
    """Networks of a neuron each, no two of one description; constant bricks."""
    grid = replaced(seeds()[0], b"F", 3, "III", 1 << 15, 2, 2)
    field, n = chunks_of(grid)[0], 8_000
    network, cut = lazy_network(1, 1), struct.pack("<HHH", n, 1, 1)
    networks = [(b"N", network[:4] + struct.pack("<f", 1 + k / n) + network[8:]) for k in range(n)]
    many = assemble([field, (b"B", cut + struct.pack("<ff", -1, 1) * n), *networks])
    constant = assemble([field, (b"B", cut + bytes(8 * n))])
    with memory_traced():
        for data in (many, constant):
            header, bricks = read_within_bounds(decode_field, data, announced(data))
            assert len(bricks.networks) == n
    assert NeuralField(header, bricks)[::4096, 0, 0].tolist() == [0.5] * 8
    repeated = assemble([field, *[(b"G", b"")] * 200_000])
    with memory_traced():
        assert read_within_bounds(decode_field, repeated, 0) is None


@pytest.mark.parametrize("recon", ["r.npy", "r.vti", "r.mhd"])
def test_a_wrong_network_that_is_found_late(recon, tmp_path):
    """One line that names file and brick, and nothing is written; bricks elsewhere are read."""
    *others, (kind, last) = chunks_of(seeds()[-1])
    data = assemble([*others, (kind, last[:-2] + b"xx")])
    blob = tmp_path / "blob"
    blob.write_bytes(data)
    flags = ("--compressed", blob, "--recon", tmp_path / recon)
    assert f"{blob}: brick 3: the network's stream" in error_of(net_decompress.main, *flags)
    assert os.listdir(tmp_path) == ["blob"]
    field = NeuralField.open(blob)
    assert np.isfinite(field[:2, :, 0]).all()
    with pytest.raises(BlobError, match="brick 3"):
        field[...]
    with pytest.raises(BlobError):
        decode_blob(data)


def test_geometry_of_another_length():
    blob = seeds()[0]
    for content in (b"", bytes(47), bytes(49), struct.pack("<6d", 1, 1, 0, 0, 0, 0)):
        with pytest.raises(BlobError):
            decode_blob(assemble([*chunks_of(blob), (b"G", content)]))


@pytest.mark.parametrize(
    "what", [(), (0,) * 9, (1,) * 9, (1, 0, 0, 0, 1, 0, 0, 0, math.nan), (1e308,) * 9, (1, 0, 0) * 4]
)
def test_hostile_directions(what):
    with pytest.raises(BlobError):
        decode_blob(assemble([*chunks_of(seeds()[0]), (b"d", struct.pack(f"<{len(what)}d", *what))]))
    twice = [(b"d", struct.pack("<9d", 1, 0, 0, 0, 1, 0, 0, 0, 1))] * 2
    decode_blob(assemble([*chunks_of(seeds()[0]), *twice[:1]]))
    with pytest.raises(BlobError, match="at most one"):
        decode_blob(assemble([*chunks_of(seeds()[0]), *twice]))


def lazy_network(n_neurons: int, n_layers: int, code: int = 0) -> bytes:
    """Content of an N chunk, d_in = 3 and d_out = 1, not residual, all of whose integers are 0: next to no bytes."""
    count = 4 * n_neurons + (n_layers - 1) * n_neurons * (n_neurons + 1) + n_neurons + 1
    states = struct.pack("<I", 1 << 16) * min(max(count // 8192, 1), 2048)
    return (
        struct.pack("<BBHf", 0, n_layers, n_neurons, 30)
        + bytes([0x80, 0x3F, 0, 0, code, code]) * (n_layers + 1)
        + states
    )


def lazy_packed_network(n_neurons: int, n_layers: int) -> bytes:
    """The content of a chunk P or T of the same network."""
    config = SirenConfig(n_neurons, n_layers, 3, 1, 30.0, is_residual=False)
    sizes = [(layer.n_out, layer.n_in) for layer in layer_table(config)]
    zeros = [QuantisedLayer(np.zeros(size, np.int32), np.zeros(size[0], np.int32), np.float32(1)) for size in sizes]
    return encode_network(config, zeros)[1]


@pytest.mark.parametrize(("kind", "network"), [(b"N", lazy_network), (b"T", lazy_packed_network)])
def test_memory_of_a_large_network_in_a_small_file(kind, network):
    field = chunks_of(seeds()[0])[0]
    data = assemble([field, (kind, network(700, 3))])
    assert len(data) < 2000
    with memory_traced():
        _, ((_, tensors),) = read_within_bounds(decode_blob, data, announced(data))
    assert sum(map(np.size, tensors.values())) == announced(data) > 9e5 and not any(map(np.any, tensors.values()))


def unusual_blobs() -> tuple[bytes, bytes]:
    """A small file of more than 2^24 weights, and one of a mask of more than 2^30 voxels."""
    field, network = chunks_of(seeds()[0])
    mask = (b"M", NAN + b"\0" + lzma2(bytes(3)))
    grid = chunks_of(replaced(seeds()[0], b"F", 3, "III", 1 << 10, 1 << 10, (1 << 10) + 1))[0]
    return assemble([field, (b"N", lazy_network(4096, 2))]), assemble([grid, mask, network])


def test_what_is_unusual_is_refused_before_it_takes_memory():
    for data, found in zip(unusual_blobs(), (16801793, 1024**2 * 1025), strict=True):
        assert len(data) < 10_000
        with memory_traced(), pytest.raises(BlobError, match=f"holds {found} .* --large reads it"):
            decode_blob(data)
        with memory_traced():
            assert read_within_bounds(decode_blob, data, 0) is None


def test_large_reads_what_is_unusual(monkeypatch, tmp_path):
    """By the script and in Python."""
    monkeypatch.setattr(blob_format, "USUAL_PARAMETERS", 20)
    blob, recon = tmp_path / "blob", tmp_path / "r.npy"
    blob.write_bytes(seeds()[0])
    flags = ("--compressed", str(blob), "--recon", str(recon))
    assert f"{blob}: holds" in error_of(net_decompress.main, *flags) and not recon.exists()
    net_decompress.main([*flags, "--large"])
    np.testing.assert_array_equal(np.load(recon), NeuralField.open(blob, large=True)[...])
    with pytest.raises(BlobError, match="--large"):
        NeuralField.open(blob)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_open_waits_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="expected a regular file"):
            NeuralField.open(path)


def test_many_large_networks_are_refused():
    """The limit on parameters is one on all networks together."""
    field = chunks_of(seeds()[0])[0]
    data = assemble([field, (b"N", lazy_network(200, 3)), (b"N", lazy_network(11580, 2))])
    assert announced(data) > MAX_PARAMETERS
    with memory_traced(), pytest.raises(BlobError, match=r"at most .* parameters in all"):
        decode_blob(data)


def test_tables_of_many_layers(monkeypatch):
    """A file whose every byte is made to cost time: it makes one table for each model, and no more."""
    field = chunks_of(seeds()[0])[0]
    content = bytearray(lazy_network(1, 255))
    for i in range(256):
        content[8 + 6 * i : 14 + 6 * i] = bytes([0x80, 0x3F, i % 200, i // 2, 95, 95])  # no model twice
    data = assemble([field, (b"N", bytes(content) + bytes(1200))])
    made, table_of = [], plain_network.table_of
    monkeypatch.setattr(plain_network, "table_of", lambda model: made.append(model) or table_of(model))
    with pytest.raises(BlobError, match="does not end"):
        decode_blob(data)
    assert len(made) == 2 * 256


# --- texts ------------------------------------------------------------------------------------------


def test_messages_quote_no_more_than_a_line():
    with pytest.raises(BlobError) as caught:
        decode_blob(assemble([chunks_of(seeds()[0])[0]] * 1000))
    assert 20 < len(str(caught.value)) < 600


@pytest.mark.parametrize("suffix", [".npy", ".vti"])
@pytest.mark.parametrize("name", ["\0", "\ud800", "<&>\"'", "\n", "\x1b[2J", "", "x" * 70_000])
def test_hostile_names_and_units(name, suffix, tmp_path):
    """A name is text of the file's maker: it is written somehow, or refused."""
    net = field_net(n_neurons=2, n_layers=1)
    layers = round_layers(net, choose_steps(net, sensitivities(net, quasirandom_points((3, 2, 2), 32)), bits=4))
    blob = encode_blob(make_header(), [(net.config, layers)])
    data = assemble([*chunks_of(blob), (b"a", json.dumps({"name": name, "units": name}).encode())])
    (tmp_path / "blob").write_bytes(data)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(UserError):
        net_decompress.main(["--compressed", str(tmp_path / "blob"), "--recon", str(tmp_path / f"out{suffix}")])
    if name == "" and suffix == ".vti":
        assert vtk_read(tmp_path / "out.vti").name == "sf"
