"""Sound blobs and configurations, and what damages them: bytes, numbers, chunks, values."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import struct
import tracemalloc
import zlib

import numpy as np

from field.blob import encode_blob
from field.mask_coder import MAX_VOXELS
from field.network_chunk import MAX_PARAMETERS
from helpers.cut_fields import cut_blob
from helpers.networks import chunks_of, field_net, make_header, with_trellis
from quantising.codebooks import round_to_codebooks
from quantising.rounding import round_layers
from quantising.sensitivity import choose_steps, quasirandom_points, sensitivities
from utils import BLOB_MAGIC, Geometry, Mask, VolumeHeader

FREE = 4 << 20  # bytes that decoding may take whatever the file: tables of the entropy coder
NUMBERS = {
    "B": (0, 1, 2, 3, 4, 5, 10, 11, 127, 128, 200, 240, 255),
    "H": (0, 1, 255, 256, 0x3F80, 0x7F7F, 0x7F80, 0x7FC0, 0x8000, 65535),
    "I": (0, 1, 2, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1),
    "f": (0.0, -0.0, -1.0, 1e-45, 1e-20, 1e20, 3.4e38, math.nan, math.inf, -math.inf),
    "d": (0.0, -1.0, 5e-324, 1e39, 1.7e308, math.nan, math.inf, -math.inf),
    "q": (-(2**63), -1, 0, 2**53 + 1, 2**63 - 1),
}


def assemble(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The blob of these chunks, its checksum right."""
    return seal(bytes(9) + b"".join(kind + struct.pack("<I", len(content)) + content for kind, content in chunks))


def seal(data: bytes) -> bytes:
    """`data` with magic, version and checksum put right."""
    return BLOB_MAGIC + b"\1" + struct.pack("<I", zlib.crc32(data[9:])) + data[9:]


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """`data` with one thing changed somewhere."""
    at = int(rng.integers(len(data) + 1)) if rng.random() < 0.5 else int(rng.integers(min(len(data), 80) + 1))
    change, some = rng.integers(7), rng.bytes(int(rng.integers(1, 9)))
    if change == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    if change == 1:
        return data[:at] + some[:1] + data[at + 1 :]
    if change == 2:
        return data[:at]
    if change == 3:
        return data[:at] + some + data[at:]
    if change == 4:
        return data[:at] + data[at + len(some) :]
    form = str(rng.choice(list(NUMBERS)))
    number = struct.pack("<" + form, NUMBERS[form][int(rng.integers(len(NUMBERS[form])))])
    return data[:at] + number + data[at + len(number) :]


def mutate_blob(rng: np.random.Generator, blob: bytes) -> bytes:
    """A blob with a few things changed, mostly within its chunks, lengths and checksum put right or not."""
    if rng.random() < 0.1:
        return mutate(rng, blob)
    if rng.random() < 0.2:  # beneath the checksum, the lengths of the chunks left to themselves
        return seal(mutate(rng, blob))
    chunks = chunks_of(blob)
    for _ in range(int(rng.integers(1, 4))):
        i = int(rng.integers(len(chunks)))
        change = rng.integers(12)
        if change == 0:
            chunks.insert(int(rng.integers(len(chunks) + 1)), chunks[i])
        elif change == 1:
            chunks[i] = (bytes([int(rng.choice([*b"FGadwqMHSBNPTxQ", 0, 170]))]), chunks[i][1])
        elif change == 2:
            chunks[i], chunks[-1] = chunks[-1], chunks[i]
        else:
            chunks[i] = (chunks[i][0], mutate(rng, chunks[i][1]))
    return assemble(chunks)


def announced(data: bytes) -> int:
    """Parameters of all networks that a blob announces, those of networks beyond the limit not counted."""
    with contextlib.suppress(struct.error, IndexError, ValueError):
        chunks, total = chunks_of(data), 0
        d_in, d_out = chunks[0][1][:2]
        for kind, content in chunks:
            if kind in (b"N", b"P", b"T") and len(content) >= 8:
                flags, n_layers, n = struct.unpack_from("<BBH", content)
                count = (d_in + 1) * n + (n_layers - 1) * (1 + flags % 2) * n * (n + 1) + d_out * (n + 1)
                total += count if 0 < count <= MAX_PARAMETERS else 0
        return total
    return 0


def mask_memory(data: bytes) -> int:
    """Most bytes that reading the mask of a blob may take: by its shape, and by what its stream can hold."""
    with contextlib.suppress(struct.error, IndexError, ValueError):
        chunks = chunks_of(data)
        n_bytes = math.prod(struct.unpack_from(f"<{chunks[0][1][0]}I", chunks[0][1], 3)) // 8
        most = {b"M": 4 * n_bytes, b"H": 80 * n_bytes if 8 * n_bytes <= MAX_VOXELS else 0}
        limits = {b"M": 32000, b"H": 1 << 27}
        return max(
            (min(most[kind], limits[kind] * len(content)) for kind, content in chunks if kind in most), default=0
        )
    return 0


def blob_memory(data: bytes, n_parameters: int) -> int:
    """Most bytes that decoding a blob may take. n_parameters: those that it announces."""
    return FREE + 16 * len(data) + 16 * n_parameters + mask_memory(data)


@contextlib.contextmanager
def memory_traced():
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def memory_below(limit: int):
    """Fails when the block takes more than `limit` bytes, within `memory_traced`."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < limit, f"{peak} bytes of memory, at most {limit} were expected"


def ball_of(shape: tuple[int, ...], fill: float, dtype: str = "float32") -> Mask:
    """The voxels outside a ball missing, which does not lie in the middle."""
    squares = [np.linspace(-1, 0.8 - axis / 5, n) ** 2 for axis, n in enumerate(shape)]
    return Mask.of(shape, np.array(fill, dtype)[()], sum(np.ix_(*squares)) > 0.7)


def mask_of(shape: tuple[int, ...], fill: float, dtype: str = "float32") -> Mask:
    """Every third voxel missing."""
    return Mask.of(shape, np.array(fill, dtype)[()], np.arange(math.prod(shape)) % 3 == 0)


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Sound blobs, small so that many variants can be read."""
    blobs, turned = [], (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    geometry = Geometry((1.0, 0.5, 2.0), (0.0, -1.0, 3.0), turned, "density", "kg", "LPS", {"units_x": "km"})
    header = VolumeHeader((4, 3, 2), np.int16([-3]), np.int16([9]), geometry)
    for fields, head, bits, kmeans in (
        ({"n_neurons": 3, "n_layers": 2}, make_header(), 5, False),
        ({"n_neurons": 4, "n_layers": 2, "d_out": 3, "is_residual": False}, make_header(d_out=3, name="v"), 9, False),
        ({"n_neurons": 4, "n_layers": 3, "is_residual": False}, header, 4, True),
        ({"n_neurons": 2, "n_layers": 1, "d_in": 2}, make_header((3, 5), 0, 9, "uint64"), 16, False),
        ({"n_neurons": 2, "n_layers": 1}, make_header(missing=mask_of((4, 3, 2), np.nan)), 4, False),
        ({"n_neurons": 2, "n_layers": 1}, make_header((9, 8, 7), missing=ball_of((9, 8, 7), -1.0)), 4, False),
    ):
        net = field_net(**fields)
        steps = choose_steps(net, sensitivities(net, quasirandom_points(head.shape, 32)), bits=bits)
        layers = round_to_codebooks(net, bits, steps) if kmeans else round_layers(net, steps)
        layers = layers if kmeans or bits == 9 else with_trellis(layers)
        blobs.append(encode_blob(head, [(net.config, layers)]))
    cuts = {"mirrors": (4, 0, 3)}, {"constant": (1,)}
    return (*blobs, *(cut_blob((5, 4, 3), (2, 1, 2), **how) for how in cuts))


ODD_VALUES = (
    None, True, False, 0, 1, -1, 2, 255, 256, 65535, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e-50, 1e39, 1e308,
    -5000.0, math.nan, math.inf, -math.inf, "", "float32", "object", "f4,f4", "(1 2)i4", "\ud800", "\0", "x" * 5000,
    [], [[]], {}, {"a": 1}, [1, 2], [1, 2, 3], [[0, 1]], [[1, 0]], [[0, 10**400]], [["0", "1"]], [24] * 9,
)  # fmt: skip


def mutate_json(rng: np.random.Generator, settings: dict) -> str:
    """A configuration with a value replaced, missing or nested, or its text damaged."""
    if rng.random() < 0.2:
        return mutate(rng, json.dumps(settings).encode()).decode("latin-1")
    settings = json.loads(json.dumps(settings))
    for _ in range(int(rng.integers(1, 3))):
        key = str(rng.choice(list(settings)))
        odd = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
        if isinstance(settings[key], list) and settings[key] and rng.random() < 0.5:
            settings[key][int(rng.integers(len(settings[key])))] = odd
        elif rng.random() < 0.1 and len(settings) > 1:
            del settings[key]
        else:
            settings[key] = odd
    return json.dumps(settings)
