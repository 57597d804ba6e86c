"""A decoder written from the docstring of field/blob.py alone: standard library and NumPy, nothing of the project."""

from __future__ import annotations

import io
import itertools
import json
import lzma
import math
import struct
import zlib
from bisect import bisect_right
from collections import defaultdict
from decimal import Decimal
from types import SimpleNamespace

import numpy as np

DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
POWERS = [round(Decimal(2) ** (30 - Decimal(2) ** -i)) for i in range(17)]


def unpack(stream: io.BytesIO, form: str) -> tuple:
    return struct.unpack("<" + form, stream.read(struct.calcsize("<" + form)))


def s(c: int) -> int:
    return c if c < 8 else (8 + c % 8) * 2 ** (c // 8 - 1)


def model(a: int, b: int, m: int) -> tuple[list[int], list[int], int]:
    """f(k) and start(k) of k = -M to M, and -M."""
    return table(s(a), s(b), s(m), -s(m))


def gaps(g: int) -> tuple[list[int], list[int], int]:
    """f(k) and start(k) of k = 0 to M, and 0."""
    return table(5 * 2**24 // max(s(g), 1), 0, s(g), 0)


def table(big_a: int, big_b: int, big_m: int, first: int) -> tuple[list[int], list[int], int]:
    assert big_m <= 30720
    k = np.arange(big_m + 1)  # all below 2^63
    e = np.minimum(big_a * k + np.minimum(big_b * k, 2**34) * k, 30 * 2**24)
    v = np.full(big_m + 1, 2**30)
    for i in range(1, 17):
        v = np.where(e >> (24 - i) & 1, v * POWERS[i] // 2**30, v)
    v = (v >> (e >> 24)).tolist()
    if first < 0:
        v = v[:0:-1] + v
    total = sum(v)
    f = [1 + value * (2**16 - (big_m - first + 1)) // total for value in v]
    f[-first] += 2**16 - sum(f)
    start = [0]
    for frequency in f[:-1]:
        start.append(start[-1] + frequency)
    return f, start, first


class Integers:
    """The integers of a stream, group by group."""

    def __init__(self, data: bytes, n_states: int):
        self.x = list(struct.unpack_from(f"<{n_states}I", data))
        self.words = iter(struct.unpack(f"<{(len(data) - 4 * n_states) // 2}H", data[4 * n_states :]))

    def one(self, i: int, table: tuple[list[int], list[int], int]) -> int:
        """Integer number i of a group."""
        x, (f, start, first) = self.x, table
        state = x[i % len(x)]
        place = bisect_right(start, state % 2**16) - 1
        state = f[place] * (state // 2**16) + state % 2**16 - start[place]
        x[i % len(x)] = state * 2**16 + next(self.words) if state < 2**16 else state
        return place + first

    def next(self, size: int, table: tuple[list[int], list[int], int]) -> np.ndarray:
        return np.array([self.one(i, table) for i in range(size)], int)

    def end(self) -> None:
        assert next(self.words, None) is None and set(self.x) == {2**16}


def states(n: int) -> int:
    """How many there are for n integers of a network."""
    return min(max(n // 8192, 1), 2048)


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def read_network(kind: bytes, stream: io.BytesIO, d_in: int, d_out: int) -> SimpleNamespace:
    flags, n_layers, n, omega_0 = unpack(stream, "BBHf")
    n_hidden = (n_layers - 1) * (2 if flags & 1 else 1)
    shapes = [(d_in, n), *[(n, n)] * n_hidden, (n, d_out)]
    layers = read_plain(stream, shapes, n, flags) if kind == b"N" else read_packed(stream, shapes, flags, kind == b"T")
    return SimpleNamespace(n_neurons=n, n_layers=n_layers, omega_0=omega_0, is_residual=bool(flags & 1), layers=layers)


def on_grids(integers: np.ndarray) -> np.ndarray:
    """2 k(i) + u(i)."""
    k, u = integers.ravel().tolist(), []
    for i in range(len(k)):
        before = [u[i - j] if i >= j else 0 for j in (1, 6)] + [k[i - j] if i >= j else 0 for j in (2, 4)]
        u.append(sum(before) % 2)
    return 2 * integers + np.reshape(u, integers.shape)


def read_packed(stream: io.BytesIO, shapes: list[tuple[int, int]], flags: int, has_trellis: bool) -> list[tuple]:
    assert flags < 2
    integers = Integers(stream.read(), states(sum((n_in + 1) * n_out + 4 for n_in, n_out in shapes)))
    numbers, layers = integers.next(4 * len(shapes), model(168, 0, 72)).reshape(-1, 4), []
    numbers = np.array([940, 130, 30, 25]) + np.cumsum(numbers, axis=0)
    for k, ((n_in, n_out), (t, r, m, g)) in enumerate(zip(shapes, numbers.tolist(), strict=True)):
        assert 1 <= t <= 2039 and 0 <= r <= 255
        matrix = integers.next(n_out * n_in, model(r, 0, m) if k == 0 else model(0, r, m)).reshape(n_out, n_in)
        is_sine = k < len(shapes) - 1
        if is_sine and (not flags & 1 or k == 0 or k % 2 == 1):
            bias = np.cumsum(integers.next(n_out, gaps(g)))
            assert bias[-1] <= 30720
        else:
            bias = integers.next(n_out, model(0, 0, g))
        step = np.float32(float_of(t << 20))
        weights = step / np.float32(2) * on_grids(matrix).astype(np.float32)
        if k == 0 or not has_trellis:
            weights = step * matrix.astype(np.float32)
        layers.append((weights, step * bias.astype(np.float32)))
    integers.end()
    return layers


def read_plain(stream: io.BytesIO, shapes: list[tuple[int, int]], n: int, flags: int) -> list[tuple]:
    assert flags < 4
    records = []
    for n_in, n_out in shapes:
        step, a, b, m, m_bias = unpack(stream, "HBBBB")
        codebook = None
        if flags & 2 and n_in == n_out == n:
            codebook = np.array(unpack(stream, f"{2 * s(m) + 1}f"), np.float32)
        records.append((n_in, n_out, float_of(step << 16), (a, b, m), m_bias, codebook))
    integers = Integers(stream.read(), states(sum((n_in + 1) * n_out for n_in, n_out in shapes)))
    layers = []
    for n_in, n_out, step, (*rates, m), m_bias, codebook in records:
        matrix = integers.next(n_out * n_in, model(*rates, m)).reshape(n_out, n_in)
        bias = integers.next(n_out, model(0, 0, m_bias))
        weights = np.float32(step) * matrix.astype(np.float32) if codebook is None else codebook[s(m) + matrix]
        layers.append((weights, np.float32(step) * bias.astype(np.float32)))
    integers.end()
    return layers


def read_missing(stream: io.BytesIO, shape: tuple[int, ...]) -> np.ndarray:
    (axis,) = unpack(stream, "B")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}])
    data, n = decoder.decompress(stream.read()), int(np.prod(shape))
    assert decoder.eof and not decoder.unused_data and len(data) == -(-n // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    assert not bits[n:].any()
    bits = bits[:n]
    if axis:
        s = int(np.prod(shape[axis:]))
        for i in range(s, n):
            bits[i] ^= bits[i - s]
    return bits.reshape(shape).astype(bool)


def read_predicted(stream: io.BytesIO, shape: tuple[int, ...]) -> np.ndarray:
    code, n_states = unpack(stream, "BH")
    order, d = code // 2, len(shape)
    assert order < 2 * d and 1 <= n_states <= 2048 and math.prod(shape) <= 2**24
    integers, mask, n = Integers(stream.read(), n_states), np.zeros(shape, bool), 0
    mask[(0,) * d] = code % 2
    r, last = [(size - 1).bit_length() for size in shape], order % d
    axes, after = [k for k in reversed(range(d)) if k != last], []
    if order < d:
        axes.append(last)
    else:
        after = [last] * r[last]
    steps = [k for number in range(max(r), 0, -1) for k in axes if r[k] >= number] + after
    strides, numbers = [2**power for power in r], defaultdict(lambda: [1, 2])  # a and b of a context, None of the flags

    def model_of(f: int) -> tuple[list[int], list[int], int]:
        return [2**16 - f, f], [0, 2**16 - f], 0

    def f_of(context: tuple | None) -> int:
        return 1 + numbers[context][0] * (2**16 - 2) // numbers[context][1]

    def beside(voxel: tuple[int, ...], j: int) -> list[tuple[int, ...]]:
        at = [voxel[j] - strides[j], voxel[j] + strides[j]]
        return [(*voxel[:j], i, *voxel[j + 1 :]) for i in at if 0 <= i < shape[j]]

    def context_of(voxel: tuple[int, ...], k: int, odd: int) -> tuple:
        others, two = [j for j in range(d) if j != k], (2 * beside(voxel, k))[:2]  # one alone counts twice
        around = [i for one in two for j in others for i in [*beside(one, j), one, one][:2]]
        evens = [i for j in others for i in (2 * beside(voxel, j))[:2]] if odd else []
        return k, *(sum(int(mask[i]) for i in voxels) for voxels in (two, around, evens)), odd

    for k in steps:
        strides[k] //= 2
        ranges = [range(0, size, h) for size, h in zip(shape, strides, strict=True)]
        ranges[k] = ranges[k][1::2]
        by_parity = [], []
        for voxel in itertools.product(*ranges):
            by_parity[sum(voxel[j] // strides[j] for j in range(d) if j != k) % 2].append(voxel)
        for odd, new in enumerate(by_parity):
            while new:
                size = max(8, n // 128)
                batch, new = new[:size], new[size:]
                contexts = [context_of(voxel, k, odd) for voxel in batch]
                f = [f_of(context) for context in contexts]
                sure = [i for i in range(len(batch)) if min(f[i], 2**16 - f[i]) < 128]
                flags = integers.next(-(-len(sure) // 64), model_of(f_of(None))).tolist()
                flag_of = {i: flags[place // 64] for place, i in enumerate(sure)}
                bits = [int(frequency > 2**15) for frequency in f]
                for number, i in enumerate(i for i in range(len(batch)) if flag_of.get(i, 1)):
                    frequency = min(max(f[i], 1024), 2**16 - 1024) if i in flag_of else f[i]
                    bits[i] = integers.one(number, model_of(frequency))
                for context, bit in [*zip(contexts, bits, strict=True), *[(None, flag) for flag in flags]]:
                    numbers[context][0] += 2 * bit
                    numbers[context][1] += 2
                for voxel, bit in zip(batch, bits, strict=True):
                    mask[voxel] = bit
                n += len(batch)
    integers.end()
    return mask


def read_blob(data: bytes) -> SimpleNamespace:
    """The field, and its networks in `networks`."""
    assert data[:5] == bytes.fromhex("934E564301")
    assert struct.unpack_from("<I", data, 5)[0] == zlib.crc32(data[9:])
    stream, field = io.BytesIO(data[9:]), SimpleNamespace(networks=[], attributes={}, missing=None, world=None)
    field.counts, field.mirrors = None, ()
    while stream.tell() < len(data) - 9:
        kind, length = unpack(stream, "cI")
        content = io.BytesIO(stream.read(length))
        assert len(content.getbuffer()) == length
        if kind == b"F":
            field.d_in, field.d_out, code = unpack(content, "BBB")
            field.dtype, field.shape = DTYPES[code], unpack(content, f"{field.d_in}I")
            limits = unpack(content, f"{2 * field.d_out}{'qqqqQQQQddd'[code]}")
            field.low, field.high = limits[::2], limits[1::2]
            field.spacing, field.origin = (1.0,) * field.d_in, (0.0,) * field.d_in
            field.direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        elif kind == b"G":
            field.spacing, field.origin = unpack(content, f"{field.d_in}d"), unpack(content, f"{field.d_in}d")
        elif kind == b"d":
            field.direction = unpack(content, "9d")
        elif kind == b"w":
            (field.world,) = unpack(content, "B")
        elif kind == b"q":
            field.version = unpack(content, "BB")
            field.psnr = unpack(content, "h")[0] if length == 4 else None
        elif kind in (b"M", b"H"):
            assert field.missing is None
            (field.fill,) = unpack(content, "qqqqQQQQddd"[DTYPES.index(field.dtype)])
            field.missing = (read_missing if kind == b"M" else read_predicted)(content, field.shape)
        elif kind == b"a":
            field.attributes = json.loads(content.read().decode("utf-8"))
        elif kind == b"S":
            assert not field.mirrors and field.counts is None
            field.mirrors = unpack(content, f"{field.d_in}Q")
        elif kind == b"B":
            assert field.counts is None and not field.networks
            field.counts = unpack(content, f"{field.d_in}H")
            ranges = [unpack(content, f"{2 * field.d_out}f") for _ in range(math.prod(field.counts))]
            field.brick_low, field.brick_high = np.split(np.array(ranges), 2, axis=1)
        elif kind in (b"N", b"P", b"T"):
            field.networks.append(read_network(kind, content, field.d_in, field.d_out))
        else:
            assert b"a" <= kind <= b"z", "a chunk that may not be skipped"
            continue
        assert not content.read()
    if field.counts is None:
        field.counts = (1,) * field.d_in
        field.brick_low, field.brick_high = (np.full((1, field.d_out), end) for end in (-1.0, 1.0))
    return field


def evaluate(field: SimpleNamespace) -> np.ndarray:
    """All values, (voxels, d_out), before rounding. A voxel at a cut is half of either brick."""
    networks, total = iter(field.networks), np.zeros((*field.shape, field.d_out))
    cuts, sources = [], []  # the voxel that each voxel has its value of
    for n, k, m in itertools.zip_longest(field.shape, field.counts, field.mirrors, fillvalue=0):
        first, last, source = 0, n - 1, np.arange(n)
        if m >= n - 1:
            last = (m + 1) // 2
            source = np.where(2 * source > m, m - source, source)
        elif m:
            first = m // 2
            source = np.where(2 * source < m, m - source, source)
        cuts.append([first + (2 * i * (last - first) + k) // (2 * k) for i in range(k + 1)])
        sources.append(source)
    for number, index in enumerate(itertools.product(*map(range, field.counts))):
        ends = [(at[i], at[i + 1]) for at, i in zip(cuts, index, strict=True)]
        shape, weight = [last - first + 1 for first, last in ends], np.ones(1)
        for n, i, k in zip(shape, index, field.counts, strict=True):
            along = np.ones(n)
            along[0] *= 0.5 if i > 0 else 1
            along[-1] *= 0.5 if i < k - 1 else 1
            weight = np.multiply.outer(weight, along)
        low, high = field.brick_low[number], field.brick_high[number]
        g = np.full((math.prod(shape), field.d_out), low)
        if (low < high).any():
            g = low + (np.clip(outputs(next(networks), shape), -1, 1) + 1) / 2 * (high - low)
        box = tuple(slice(first, last + 1) for first, last in ends)
        total[box] += weight[0][..., None] * g.reshape(*shape, -1)
    assert next(networks, None) is None
    low, high = np.array(field.low, float), np.array(field.high, float)
    total = total[np.ix_(*sources)]
    return (low + (np.clip(total, -1, 1) + 1) / 2 * (high - low)).reshape(-1, field.d_out)


def outputs(net: SimpleNamespace, shape: list[int]) -> np.ndarray:
    """What a network maps the voxels of its own field to, (voxels, d_out)."""
    longest = [max(*shape[-3:], 2)] * len(shape)
    if len(shape) == 4:
        longest[0] = max(shape[0], 2)
    axes = [(2 * np.arange(n) - (n - 1)) / (most - 1) for n, most in zip(shape, longest, strict=True)]
    h = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))

    def sine(x: np.ndarray, layer: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.sin(net.omega_0 * (x @ layer[0].T.astype(float) + layer[1]))

    first, *hidden, (weights, bias) = net.layers
    h = sine(h, first)
    for i in range(net.n_layers - 1):
        if net.is_residual:
            c, a = 1 if i == 0 else 1 / 2, 1 / 2 if i == net.n_layers - 2 else 1
            h = a * (h + sine(sine(c * h, hidden[2 * i]), hidden[2 * i + 1]))
        else:
            h = sine(h, hidden[i])
    return h @ weights.T.astype(float) + bias
