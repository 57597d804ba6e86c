"""Small integers <-> bytes by a range coder (rANS) with a parametric model per group. Coding uses integers only.

The docstring of field/blob.py specifies the format, under "The stream of integers". Sources: Duda, "Asymmetric numeral
systems", 2013 (the coder); Giesen, "Interleaved entropy coders", 2014 (several states in turn, here as one array).
"""

from __future__ import annotations

import array
import bisect
from collections.abc import Sequence

import numpy as np

TABLE_BITS = 16  # the frequencies of a table sum to 2^16
MAX_MAGNITUDE = 15 << 11  # largest magnitude of an integer: the largest small float below 2^15
MAX_LANES = 2048  # most rANS states of a stream
SYMBOLS_A_LANE = 8192  # least symbols per state; with fewer, the 4 bytes of a state cost more than the time it saves
FEW_LANES = 16  # most states of a stream that is decoded symbol by symbol
FIXED_POINT = 24  # fraction bits of the two rates of a model
# 2^30 x 2^-(2^-i) for i = 1 to 16, rounded: 2^-fraction is the product of the factors of the fraction's 1 bits
POWERS = (759250125, 902905651, 984625594, 1028218693, 1050733751, 1062175491, 1067942999, 1070838486,
          1072289173, 1073015252, 1073378477, 1073560135, 1073650976, 1073696399, 1073719111, 1073730468)  # fmt: skip

Model = tuple[int, int, int]


class StreamError(ValueError):
    """The bytes are not a stream of the expected integers."""


def small_float(code: int) -> int:
    """The integer that a byte stands for: 0 to 15 exactly, above with 4 significant bits, up to 15 x 2^30."""
    return code if code < 8 else (8 + code % 8) << (code // 8 - 1)


def small_float_code(value: int) -> int:
    """The least byte that stands for at least `value`."""
    return next(code for code in range(256) if small_float(code) >= value)


def frequencies(model: Model) -> np.ndarray:
    """How often, in 2^16 symbols, a model expects each integer from -M to M: int64, each at least 1.

    Raises StreamError for a model whose M is too large.
    """
    linear, square, largest = (small_float(code) for code in model)
    if largest > MAX_MAGNITUDE:
        raise StreamError(f"expected integers of magnitude at most {MAX_MAGNITUDE}, found {largest}")
    k = np.arange(largest + 1, dtype=np.int64)
    exponent = np.minimum(linear * k + np.minimum(square * k, 1 << 34) * k, 30 << FIXED_POINT)
    value = np.full(largest + 1, 1 << 30, np.int64)
    for i, factor in enumerate(POWERS, 1):
        value = np.where(exponent >> (FIXED_POINT - i) & 1, value * factor >> 30, value)
    value >>= exponent >> FIXED_POINT
    value = np.concatenate([value[:0:-1], value])
    table = 1 + value * ((1 << TABLE_BITS) - len(value)) // value.sum()
    table[largest] += (1 << TABLE_BITS) - table.sum()
    return table


def fit_model(integers: np.ndarray) -> Model:
    """The model that codes these integers in nearly the fewest bits. A local search finds its first two bytes."""
    largest = int(np.abs(integers).max(initial=0))
    code = small_float_code(largest)
    counts = np.bincount(np.abs(integers).ravel(), minlength=small_float(code) + 1)

    def bits(rates: tuple[int, int]) -> float:
        return float(counts @ (TABLE_BITS - np.log2(frequencies((*rates, code))[small_float(code) :])))

    variance = max(float(np.square(integers, dtype=np.float64).mean()), 0.02)
    gauss = small_float_code(int(0.7213 / variance * 2**FIXED_POINT))
    laplace = small_float_code(int(2.04 / variance**0.5 * 2**FIXED_POINT))
    starts = [(0, gauss), (laplace, 0), (max(laplace - 8, 0), max(gauss - 8, 0)), (0, 0)]
    best = min((bits(rates), rates) for rates in starts)
    for step in (8, 4, 2, 1, 1):
        a, b = best[1]
        around = [(a + i * step, b + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = min([best, *((bits(rates), rates) for rates in around if min(rates) >= 0 and max(rates) < 240)])
    return *best[1], code


def _count_lanes(n_symbols: int) -> int:
    return max(1, min(MAX_LANES, n_symbols // SYMBOLS_A_LANE))


def encode(groups: Sequence[np.ndarray], models: Sequence[Model]) -> bytes:
    """The stream of flat arrays of integers. Each array is coded by its own model."""
    lanes = _count_lanes(sum(len(group) for group in groups))
    state = np.full(lanes, 1 << 16, np.uint64)
    words: list[np.ndarray] = []
    for group, model in zip(reversed(groups), reversed(models), strict=True):
        table = frequencies(model)
        starts = np.cumsum(table) - table
        symbols = group.astype(np.int64) + len(table) // 2
        frequency, start = table[symbols].astype(np.uint64), starts[symbols].astype(np.uint64)
        for i in range((len(group) - 1) // lanes * lanes, -1, -lanes):
            f, c = frequency[i : i + lanes], start[i : i + lanes]
            x = state[: len(f)]
            is_full = x >= f << np.uint64(16)
            words.append(x[is_full].astype("<u2"))
            x = np.where(is_full, x >> np.uint64(16), x)
            state[: len(f)] = (x // f << np.uint64(TABLE_BITS)) + x % f + c
    return state.astype("<u4").tobytes() + np.concatenate([np.empty(0, "<u2"), *words[::-1]]).tobytes()


def decode(data: bytes, sizes: Sequence[int], models: Sequence[Model]) -> list[np.ndarray]:
    """The int32 arrays, of the given sizes, that `encode` turned into a stream.

    Raises StreamError unless the stream holds exactly these integers.
    """
    lanes = _count_lanes(sum(sizes))
    if len(data) < 4 * lanes or len(data) % 2:
        raise StreamError(f"expected at least {4 * lanes} bytes, an even number, found {len(data)}")
    states, words = np.frombuffer(data, "<u4", lanes), np.frombuffer(data, "<u2", offset=4 * lanes)
    return (_decode_few if lanes <= FEW_LANES else _decode_many)(states, words, sizes, models)


def _decode_many(
    states: np.ndarray, words: np.ndarray, sizes: Sequence[int], models: Sequence[Model]
) -> list[np.ndarray]:
    """As `decode`: a symbol of each state at a time."""
    state, words, lanes = states.astype(np.int64), words.astype(np.int64), len(states)
    position = 0
    groups = []
    for size, model in zip(sizes, models, strict=True):
        table = frequencies(model)
        starts = np.cumsum(table) - table
        symbol_of = np.repeat(np.arange(len(table), dtype=np.int32), table)
        group = np.empty(size, np.int32)
        for i in range(0, size, lanes):
            x = state[: min(lanes, size - i)]
            low = x & 0xFFFF
            symbol = symbol_of[low]
            group[i : i + len(x)] = symbol
            x = table[symbol] * (x >> TABLE_BITS) + low - starts[symbol]
            needy = np.flatnonzero(x < 1 << 16)
            if position + len(needy) > len(words):
                raise StreamError(f"ends after {sum(map(len, groups)) + i} of {sum(sizes)} integers")
            x[needy] = x[needy] << 16 | words[position : position + len(needy)]
            position += len(needy)
            state[: len(x)] = x
        groups.append(group - len(table) // 2)
    if position != len(words) or (state != 1 << 16).any():
        raise StreamError("does not end where its last integer does")
    return groups


def _decode_few(
    states: np.ndarray, words: np.ndarray, sizes: Sequence[int], models: Sequence[Model]
) -> list[np.ndarray]:
    """As `decode`: symbol by symbol, in Python's integers. With few states, NumPy's calls would take longer."""
    state, words, lanes = states.tolist(), memoryview(words.astype(np.uint16)), len(states)
    position = 0
    groups = []
    for size, model in zip(sizes, models, strict=True):
        table = frequencies(model)
        starts, table = (np.cumsum(table) - table).tolist(), table.tolist()
        group, half = array.array("i"), len(table) // 2
        for i in range(size):
            x = state[i % lanes]
            low = x & 0xFFFF
            symbol = bisect.bisect_right(starts, low) - 1
            group.append(symbol - half)
            x = table[symbol] * (x >> TABLE_BITS) + low - starts[symbol]
            if x < 1 << 16:
                if position == len(words):
                    raise StreamError(f"ends after {sum(map(len, groups)) + i} of {sum(sizes)} integers")
                x = x << 16 | words[position]
                position += 1
            state[i % lanes] = x
        groups.append(np.array(group, np.int32))
    if position != len(words) or any(x != 1 << 16 for x in state):
        raise StreamError("does not end where its last integer does")
    return groups
