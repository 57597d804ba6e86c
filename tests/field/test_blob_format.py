"""The format: helpers/second_decoder.py agrees with field/blob.py, and old files stay readable.

`python tests/field/test_blob_format.py` writes the golden files anew: for a new version of the format, by new names.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.cut_fields import cut_blob
from helpers.damage import assemble, ball_of
from helpers.networks import chunks_of, decode_blob, field_net, make_header, with_ascending_biases, with_trellis
from helpers.scripts import DATA
from helpers.second_decoder import DTYPES, evaluate, gaps, model, read_blob
from helpers.volumes import TURNED

from field import blob as blob_format
from field.blob import BlobError, QuantisedLayer
from field.bricks import Cut
from field.entropy_coder import table_of, table_of_gaps
from field.header_chunks import Written
from field.layers import SirenConfig, layer_table
from field.missing import encode_missing
from field.neural_field import NeuralField
from field.quantised import round_step
from quantising.codebooks import round_to_codebooks
from quantising.rounding import round_layers
from quantising.sensitivity import choose_steps, quasirandom_points, sensitivities
from utils import IDENTITY, Geometry, Mask, VolumeHeader


def with_chunk(blob: bytes, kind: bytes, *contents: bytes) -> bytes:
    """The blob with chunks of one type at its end, its checksum right."""
    return assemble([*chunks_of(blob), *((kind, content) for content in contents)])


def random_network(seed: int, largest: int, kind: str = "T", **config) -> tuple[SirenConfig, list[QuantisedLayer]]:
    """A network of random integers of magnitudes up to `largest`. kind: of its chunk."""
    rng = np.random.default_rng(seed)
    network = SirenConfig(**{"n_neurons": 5, "n_layers": 3} | config)

    def integers(*shape: int) -> np.ndarray:
        found = np.rint(rng.laplace(0, largest / 4, shape)).clip(-largest, largest).astype(np.int32)
        found.flat[0] = rng.choice([-largest, largest])
        return found

    layers = []
    for _, n_out, n_in, *_ in layer_table(network):
        has_codebook = kind == "N" and n_out == n_in == network.n_neurons
        codebook = np.sort(rng.standard_normal(2 * largest + 1)).astype(np.float32) if has_codebook else None
        layers.append(
            QuantisedLayer(integers(n_out, n_in), integers(n_out), round_step(rng.uniform(1e-6, 2)), codebook)
        )
    layers = with_ascending_biases(network, layers)
    return network, with_trellis(layers) if kind == "T" else layers


def assert_same(blob: bytes) -> None:
    """Both decoders find the same in a blob, bit for bit."""
    ours, (header, networks) = read_blob(blob), decode_blob(blob)
    assert ours.shape == header.shape and ours.dtype == header.low.dtype.name
    assert list(ours.low) == header.low.tolist() and list(ours.high) == header.high.tolist()
    assert ours.spacing == header.geometry.spacing
    assert (ours.world is None) == (header.geometry.space == "")
    signs = np.array((1, 1, 1) if ours.world != 2 else (-1, -1, 1))
    assert (np.reshape(ours.direction, (3, 3)) * signs[:, None] == np.reshape(header.geometry.direction, (3, 3))).all()
    assert (ours.origin[-3:] * signs[: ours.d_in] == header.geometry.origin[-3:]).all()
    assert ours.attributes.get("name", "sf") == header.geometry.name
    assert ours.attributes.get("units", "") == header.geometry.units
    said = {key: text for key, text in ours.attributes.items() if key[:6] == "units_" or key == "calendar"}
    assert said == header.geometry.axis_attributes
    assert (ours.missing is None) == (header.missing is None)
    if header.missing:
        np.testing.assert_array_equal(ours.missing, header.missing.at(np.ix_(*map(range, ours.shape))))
        assert header.missing.fill.tobytes() == np.array(ours.fill).astype(ours.dtype).tobytes()
    if any(kind == b"B" for kind, _ in chunks_of(blob)):
        _, bricks = blob_format.decode_field(blob)
        assert (ours.counts, ours.mirrors) == (bricks.cut.counts, bricks.cut.mirrors)
        np.testing.assert_array_equal([ours.brick_low, ours.brick_high], [bricks.cut.low, bricks.cut.high])
    for net, (network, tensors) in zip(ours.networks, networks, strict=True):
        assert network == SirenConfig(net.n_neurons, net.n_layers, ours.d_in, ours.d_out, net.omega_0, net.is_residual)
        mine = [array for layer in net.layers for array in layer]
        for array, (name, tensor) in zip(mine, tensors.items(), strict=True):
            assert array.dtype == tensor.dtype == np.float32 and array.shape == tensor.shape, name
            assert array.tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("kind", ["N", "P", "T"])
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize(
    ("n_layers", "d_in", "d_out", "largest"),
    [(1, 3, 1, 7), (2, 2, 3, 0), (3, 3, 3, 1), (4, 2, 1, 255), (12, 3, 1, 100), (2, 3, 1, 30720), (2, 1, 2, 2000)],
)
def test_decoders_agree(n_layers, d_in, d_out, largest, is_residual, kind):
    config = {"n_layers": n_layers, "d_in": d_in, "d_out": d_out, "is_residual": is_residual, "omega_0": 12.5}
    header = make_header((7, 5, 3)[:d_in], d_out=d_out, spacing=(0.1,) * d_in, origin=(-1e300,) * d_in, name="ü\n=\0")
    network = random_network(n_layers, largest, kind, **config)
    blob = blob_format.encode_blob(header, [network])
    assert_same(blob)
    assert decode_blob(blob)[1][0][0] == network[0]


@pytest.mark.parametrize("name", ["sf", "T"])
@pytest.mark.parametrize("units", ["", "K", "µm/s²"])
@pytest.mark.parametrize("direction", [IDENTITY, TURNED, (1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, -1.0, 0.0)])
@pytest.mark.parametrize("said", [{}, {"units_t": "days since 2001-1-1", "calendar": "noleap", "units_y": "°N"}])
def test_direction_and_units(said, direction, units, name):
    network = random_network(0, 5, n_layers=1)
    geometry = {"name": name, "direction": direction, "units": units, "axis_attributes": said}
    blob = blob_format.encode_blob(make_header(**geometry), [network])
    assert_same(blob)
    header, _ = decode_blob(blob)
    assert (header.geometry.direction, header.geometry.units, header.geometry.name) == (direction, units, name)
    plain = blob_format.encode_blob(make_header(), [network])
    more = 77 * (direction != IDENTITY)
    attributes = ({"name": name} if name != "sf" else {}) | ({"units": units} if units else {}) | said
    more += 5 + len(json.dumps(attributes, separators=(",", ":"))) if attributes else 0
    assert len(blob) == len(plain) + more


LAID_DOWN = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # x and y of the other world


@pytest.mark.parametrize(("direction", "more"), [(IDENTITY, 6), (LAID_DOWN, 6), (TURNED, 83)])
@pytest.mark.parametrize("d_in", [3, 4])
def test_world_axes(d_in, direction, more):
    """They take 6 bytes, and save the direction of a scan whose axes are those of either world."""
    network = random_network(0, 5, n_layers=1, d_in=d_in)
    header = make_header((3,) * d_in, origin=(1.5, -2.0, 3.0, 7.0)[:d_in])
    placed = dataclasses.replace(header.geometry, direction=direction, space="LPS")
    blob = blob_format.encode_blob(dataclasses.replace(header, geometry=placed), [network])
    assert_same(blob)
    assert decode_blob(blob)[0].geometry == placed
    assert len(blob) == len(blob_format.encode_blob(header, [network])) + more


def test_blobs_that_say_where_left_is():
    """Positions of chunk w = 2 come out with x and y reversed; without the chunk they are as written."""
    blob = blob_format.encode_blob(make_header(origin=(1.0, 2.0, 3.0)), [random_network(0, 5, n_layers=1)])
    for extra, origin, space in ((b"", (1, 2, 3), ""), (b"\1", (1, 2, 3), "LPS"), (b"\2", (-1, -2, 3), "LPS")):
        found = decode_blob(with_chunk(blob, b"w", extra) if extra else blob)[0].geometry
        assert (found.origin, found.space) == (origin, space)
    for wrong in (b"", b"\0", b"\3", b"\1\1", b"LPS"):
        with pytest.raises(BlobError):
            decode_blob(with_chunk(blob, b"w", wrong))
    with pytest.raises(BlobError, match="at most one"):
        decode_blob(with_chunk(blob, b"w", b"\1", b"\1"))


MASKS = {
    "one": lambda x: x[0] + x[-1] == 0,
    "all but one": lambda x: x[0] + x[-1] != 0,
    "half": lambda x: x[-1] * 2 < x[-1].max() + 1,
    "the same along x": lambda x: x[-1] % 3 == 1,
    "a ball": lambda x: sum((axis - axis.mean()) ** 2 for axis in x) < x[0].max() ** 2 / 5,
    "noise": lambda x: np.random.default_rng(0).random(x[0].shape) < 0.3,
}


@pytest.mark.parametrize("what", MASKS)
@pytest.mark.parametrize("shape", [(8,), (13, 5), (7, 5, 3), (1, 1, 9), (3, 4, 5, 6), (30, 31, 29)])
def test_missing_voxels(shape, what):
    mask = MASKS[what](np.indices(shape))
    missing = Mask.of(shape, np.float32(-9999), mask)
    blob = blob_format.encode_blob(
        make_header(shape, missing=missing), [random_network(0, 5, n_layers=1, d_in=len(shape))]
    )
    assert_same(blob)
    header, _ = decode_blob(blob)
    np.testing.assert_array_equal(header.missing.at(np.ix_(*map(range, shape))), mask)
    assert header.missing.count == missing.count == mask.sum()
    assert header.missing.bits.nbytes == -(-mask.size // 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranges_and_fill_values_of_every_dtype(dtype):
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    low, high = np.array([limits.min, 0], dtype), np.array([limits.max, 1], dtype)
    header = VolumeHeader((3, 2, 4), low, high, Geometry((1.0, 2.0, 5e-324), (0.0, 0.0, -3.0), name="p"))
    assert_same(blob_format.encode_blob(header, [random_network(0, 5, d_out=2)]))
    for fill in (limits.min, limits.max, *([np.nan] if dtype.startswith("float") else [])):
        missing = Mask.of((4, 3, 2), np.array(fill, dtype)[()], np.arange(24) % 5 == 0)
        blob = blob_format.encode_blob(make_header(dtype=dtype, missing=missing), [random_network(0, 5, n_layers=1)])
        assert_same(blob)
        np.testing.assert_equal(decode_blob(blob)[0].fill, np.array(fill, dtype)[()])


def test_a_mask_that_repeats_costs_little():
    """Whatever the number of voxels of a plane or step: 45 x 45 x 45 is odd."""
    step = np.random.default_rng(0).random((45, 45, 45)) < 0.5
    one, many = (Mask.of((n, 45, 45, 45), np.float32(0), np.array([step] * n)) for n in (1, 40))
    assert len(encode_missing(many)) < len(encode_missing(one)) + 300


@pytest.mark.parametrize("m", [0, 9, 40, 95])
def test_tables_agree(m):
    for a, b in itertools.product((0, 1, 100, 150, 200, 254, 255), repeat=2):
        assert table_of((a, b, m)).frequencies.tolist() == model(a, b, m)[0]
    assert table_of_gaps(m).frequencies.tolist() == gaps(m)[0]


@pytest.mark.parametrize("bits", [1, 2, 5, 9, 15, 16])
def test_decoders_agree_on_rounded_networks(bits):
    net = field_net(n_neurons=7, d_in=2)
    steps = choose_steps(net, sensitivities(net, quasirandom_points((5, 4), 64)), bits=bits)
    nearest = round_layers(net, steps)
    for layers in (nearest, with_trellis(nearest), round_to_codebooks(net, bits, steps)):
        assert_same(blob_format.encode_blob(make_header((5, 4)), [(net.config, layers)]))


@pytest.mark.parametrize(("n_neurons", "n_layers", "kind"), [(94, 2, "P"), (100, 4, "N"), (128, 2, "T")])
def test_decoders_agree_with_several_states(n_neurons, n_layers, kind):
    network = random_network(0, 30, kind, n_neurons=n_neurons, n_layers=n_layers)
    assert sum(layer.weights.size for layer in network[1]) > 2 * 8192
    assert_same(blob_format.encode_blob(make_header(), [network]))


@pytest.mark.parametrize("n_neurons", [1, 3])
def test_codebooks_where_outer_matrices_are_square_too(n_neurons):
    """A first or last matrix of n_neurons x n_neurons has a codebook as well."""
    config = {"n_neurons": n_neurons, "d_out": n_neurons, "n_layers": 2}
    assert_same(blob_format.encode_blob(make_header(d_out=n_neurons), [random_network(0, 4, "N", **config)]))


def test_several_networks():
    networks = [random_network(i, 9, "TNP"[i], n_neurons=3 + i, is_residual=i < 2, omega_0=0.1 + i) for i in range(3)]
    cut = Cut((3, 1, 1), *(np.full((3, 1), end, np.float32) for end in (-1, 1)))
    blob = blob_format.encode_blob(make_header(), networks, cut=cut)
    assert_same(blob)
    assert len(decode_blob(blob)[1]) == 3


@pytest.mark.parametrize(
    ("psnr", "hundredths", "back"),
    [(40.601, 4060, 40.6), (-3.217, -322, -3.22), (math.inf, 32767, math.inf), (1e9, 32766, 327.66),
     (math.nan, None, None)],
)  # fmt: skip
def test_the_writer_and_its_quality(psnr, hundredths, back):
    """They take 9 bytes; unknown quality none of them."""
    network = random_network(0, 5, n_layers=1)
    plain = blob_format.encode_blob(make_header(), [network])
    blob = blob_format.encode_blob(make_header(), [network], Written((1, 7), psnr))
    assert (read_blob(blob).version, read_blob(blob).psnr) == ((1, 7), hundredths)
    assert_same(blob)
    found = blob_format.written_by(blob)
    assert found.version == (1, 7) and (math.isnan(found.psnr) if back is None else found.psnr == back)
    assert len(blob) - len(plain) == (7 if back is None else 9)
    assert blob_format.written_by(plain) is None
    for wrong in (b"", b"\1", b"\1\0\0", b"\1\0\0\0\0"):
        with pytest.raises(BlobError):
            decode_blob(with_chunk(plain, b"q", wrong))
    with pytest.raises(BlobError, match="at most one"):
        decode_blob(with_chunk(blob, b"q", b"\1\0"))


def test_unknown_chunks():
    blob = blob_format.encode_blob(make_header(), [random_network(0, 5, n_layers=1)])
    for kind in (b"b", b"x", b"z", b"n"):
        extended = with_chunk(blob, kind, b"anything")
        assert_same(extended)
        assert decode_blob(extended)[1][0][1].keys() == decode_blob(blob)[1][0][1].keys()
    for kind in (b"A", b"Q", b"Z", b"\0", b"1", b"\xaa", b"\xe4"):  # the last two: lower-case letters in Latin-1
        with pytest.raises(BlobError, match="unknown type"):
            decode_blob(with_chunk(blob, kind, b"anything"))
        with pytest.raises(AssertionError):
            read_blob(with_chunk(blob, kind, b"anything"))


@pytest.mark.parametrize("text", [b"{}", b'{"time": "0.25", "units": "K"}', b'{"name":"\xc3\xbc","x":"\\u00e4"}'])
def test_attributes(text):
    blob = with_chunk(blob_format.encode_blob(make_header(), [random_network(0, 5, n_layers=1)]), b"a", text)
    assert_same(blob)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"name": 1}', b"\xff", '{"name":"x"}'.encode("utf-16"), b"[" * 100_000]
)
def test_attributes_of_another_form(text):
    with pytest.raises(BlobError, match="attributes"):
        decode_blob(with_chunk(blob_format.encode_blob(make_header(), [random_network(0, 5, n_layers=1)]), b"a", text))


@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "d_out", "n_layers"),
    [((9, 6, 1), 1, 5), ((5, 8), 3, 2), ((1, 1, 1), 1, 1), ((7, 3, 4, 2), 2, 3), ((1, 2, 3, 1), 1, 2), ((12,), 1, 2)],
)
def test_values_are_those_specified(shape, d_out, n_layers, is_residual):
    net = field_net(n_layers=n_layers, d_in=len(shape), d_out=d_out, is_residual=is_residual, omega_0=20.0)
    layers = round_layers(net, choose_steps(net, sensitivities(net, quasirandom_points(shape, 64)), bits=9))
    blob = blob_format.encode_blob(make_header(shape, -3.0, 5.0, d_out=d_out), [(net.config, layers)])
    np.testing.assert_allclose(values_of(blob), evaluate(read_blob(blob)), rtol=0, atol=8e-5)


@pytest.mark.parametrize(
    ("shape", "counts", "d_out"),
    [((9, 7, 5), (3, 1, 2), 1), ((5, 8), (4, 7), 2), ((3, 6, 4, 5), (1, 2, 1, 2), 1), ((4, 4, 4, 4), (2, 1, 2, 1), 1)],
)
def test_values_of_bricks_are_those_specified(shape, counts, d_out):
    blob = cut_blob(shape, counts, constant=(1,), d_out=d_out, bits=9)
    assert_same(blob)
    np.testing.assert_allclose(values_of(blob), evaluate(read_blob(blob)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "counts", "mirrors"),
    [
        ((9, 7, 5), (1, 1, 1), (8, 6, 4)),
        ((9, 7, 5), (2, 1, 2), (7, 0, 5)),
        ((9, 8), (3, 4), (9, 6)),
        ((3, 6, 4, 5), (1, 2, 1, 2), (0, 6, 3, 0)),
    ],
)
def test_values_between_mirrors_are_those_specified(shape, counts, mirrors):
    blob = cut_blob(shape, counts, mirrors=mirrors, bits=9)
    assert_same(blob)
    np.testing.assert_allclose(values_of(blob), evaluate(read_blob(blob)), rtol=0, atol=1e-5)
    values = values_of(blob).reshape(shape)
    for axis, mirror in enumerate(mirrors):
        both = np.moveaxis(values, axis, 0)[max(mirror - shape[axis] + 1, 0) : mirror + 1]
        np.testing.assert_allclose(both, both[::-1] if mirror else both, rtol=0, atol=1e-5)


def test_every_brick_may_be_constant():
    blob = cut_blob((5, 4, 3), (2, 1, 1), constant=(0, 1))
    assert_same(blob)
    assert read_blob(blob).networks == [] and len(np.unique(values_of(blob))) == 3


@pytest.mark.parametrize(
    ("cut", "match"),
    [
        (Cut((3, 1, 1), np.zeros((3, 1)), np.ones((3, 1))), "expected 3 networks"),
        (Cut((2, 1, 1), np.zeros((2, 1)), np.zeros((2, 1))), "expected 0 networks"),
        (Cut((4, 1, 1), np.zeros((4, 1)), np.ones((4, 1))), r"expected 1 to \[3, 2, 1\]"),
        (Cut((0, 1, 1), np.zeros((0, 1)), np.ones((0, 1))), "expected 1 to"),
        (Cut((2, 1), np.zeros((2, 1)), np.ones((2, 1))), "expected 1 to"),
        (Cut((2, 1, 1), np.zeros((3, 1)), np.ones((3, 1))), "ranges of 2 bricks"),
        (Cut((2, 1, 1), np.zeros((2, 2)), np.ones((2, 2))), "of 1 components"),
        (Cut((2, 1, 1), np.ones((2, 1)), np.zeros((2, 1))), "the lower first"),
        (Cut((2, 1, 1), np.zeros((2, 1)), np.full((2, 1), 1.1)), "-1 to 1"),
        (Cut((2, 1, 1), np.full((2, 1), np.nan), np.ones((2, 1))), "-1 to 1"),
        (Cut((2, 1, 1), np.zeros((2, 1)), np.ones((2, 1)), (0, 0, 0)), "not all of them 0"),
        (Cut((2, 1, 1), np.zeros((2, 1)), np.ones((2, 1)), (2, 0)), r"expected 0 to \[5, 3, 1\]"),
        (Cut((2, 1, 1), np.zeros((2, 1)), np.ones((2, 1)), (6, 0, 0)), r"expected 0 to \[5, 3, 1\]"),
        (Cut((2, 1, 1), np.zeros((2, 1)), np.ones((2, 1)), (-1, 0, 0)), r"expected 0 to \[5, 3, 1\]"),
        (Cut((3, 1, 1), np.zeros((3, 1)), np.ones((3, 1)), (3, 0, 0)), r"expected 1 to \[2, 2, 1\]"),
    ],
)
def test_impossible_bricks_are_not_written(cut, match):
    networks = [random_network(k, 5, n_layers=1) for k in range(2)]
    with pytest.raises(BlobError, match=match):
        blob_format.encode_blob(make_header(), networks, cut=cut)


def test_bricks_of_other_axes_or_components_are_not_written():
    cut = Cut((2, 1, 1), np.zeros((2, 1)), np.ones((2, 1)))
    for fields in ({"d_in": 2}, {"d_out": 2}):
        networks = [random_network(0, 5, n_layers=1), random_network(1, 5, n_layers=1, **fields)]
        with pytest.raises(BlobError, match="same d_in and d_out"):
            blob_format.encode_blob(make_header(), networks, cut=cut)


def values_of(blob: bytes) -> np.ndarray:
    """What the project decodes a blob to, (voxels, d_out)."""
    header, bricks = blob_format.decode_field(blob)
    return NeuralField(header, bricks).on_grid().reshape(-1, header.n_components)


# --- golden files -----------------------------------------------------------------------------------


def fingerprint(blob: bytes) -> dict:
    """What a blob must decode to for ever: the header, the weights' CRC-32, and every 11th value."""
    header, networks = decode_blob(blob)
    missing = {"missing": [header.missing.count, zlib.crc32(header.missing.bits)]} if header.missing else {}
    tensors = [tensor for _, weights in networks for tensor in weights.values()]
    _, bricks = blob_format.decode_field(blob)
    counts, low, high, mirrors = bricks.cut
    ranges = {} if bricks.is_whole else {"bricks": [counts, low.tolist(), high.tolist()]}
    ranges |= {"mirrors": mirrors} if mirrors else {}
    return (
        missing
        | ranges
        | {
            "header": [header.shape, header.low.dtype.name, header.low.tolist(), header.high.tolist()],
            "geometry": [header.geometry.spacing, header.geometry.origin, header.geometry.name],
            "network": dataclasses.asdict(networks[0][0]),
            "crc32": zlib.crc32(b"".join(tensor.astype("<f4").tobytes() for tensor in tensors)),
            "values": values_of(blob)[::11].astype(float).tolist(),
        }
    )


def write_golden() -> None:
    """Write the golden files of this version of the program, and what they must decode to."""
    expected = json.loads((DATA / "golden_expected.json").read_text())
    plain = {"low": np.int16([-9, 0, 5]), "high": np.int16([9, 7, 5])}
    place = Geometry((0.25, 0.5, 3.0), (-1.0, 0.0, 1e6), name="velocity µ")
    fields = {
        "trellis": (make_header((6, 5, 4), -1.5, 40.0), field_net(n_neurons=24, n_layers=4)),
        "trellis_plain": (
            VolumeHeader((4, 7, 3), **plain, geometry=place),
            field_net(n_neurons=40, n_layers=3, d_out=3, is_residual=False, omega_0=22.5, seed=1),
        ),
    }
    blobs = {}
    for name, (header, net) in fields.items():
        steps = choose_steps(net, sensitivities(net, quasirandom_points(header.shape, 256)), bits=9)
        blobs[name] = blob_format.encode_blob(header, [(net.config, with_trellis(round_layers(net, steps)))])
    header = make_header((12, 9, 7), -300, 700, "int16")
    blobs["trellis_bricks"] = cut_blob(
        (12, 9, 7), (2, 1, 2), 5, (2,), header, 7, n_neurons=10, gain=6, mirrors=(12, 7, 0)
    )
    header, net = make_header((11, 9, 14), missing=ball_of((11, 9, 14), -9.0)), field_net(n_neurons=5, n_layers=2)
    steps = choose_steps(net, sensitivities(net, quasirandom_points(header.shape, 256)), bits=9)
    blobs["predicted"] = blob_format.encode_blob(header, [(net.config, with_trellis(round_layers(net, steps)))])
    for name, blob in blobs.items():
        (DATA / f"golden_{name}.blob").write_bytes(blob)
        expected[name] = fingerprint(blob)
    (DATA / "golden_expected.json").write_text(json.dumps(expected, indent=1) + "\n")


GOLDEN_NAMES = [
    *("residual", "plain", "missing", "bricks", "mirrors"),  # of older programs: chunk N without codebooks
    *("codebooks", "packed", "packed_plain", "packed_bricks", "trellis", "trellis_plain", "trellis_bricks"),
    "predicted",
]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden(name):
    blob = (DATA / f"golden_{name}.blob").read_bytes()
    expected = json.loads((DATA / "golden_expected.json").read_text())[name]
    found = json.loads(json.dumps(fingerprint(blob)))
    values, wanted = found.pop("values"), expected.pop("values")
    assert found == expected
    atol = 1 if "int" in expected["header"][1] else 1e-3  # an integer may round to either side
    np.testing.assert_allclose(values, wanted, rtol=0, atol=atol)
    assert_same(blob)


if __name__ == "__main__":
    write_golden()
