"""Small integers <-> bytes by a range coder (rANS) with a parametric model per group. Coding uses integers only.

The docstring of field/blob.py specifies the format, under "The stream of integers". Sources: Duda, "Asymmetric numeral
systems", 2013 (the coder); Giesen, "Interleaved entropy coders", 2014 (several states in turn, here as one array).
"""

from __future__ import annotations

import array
import bisect
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

TABLE_BITS = 16  # the frequencies of a table sum to 2^16
MAX_MAGNITUDE = 15 << 11  # largest magnitude of an integer: the largest small float below 2^15
MAX_LANES = 2048  # most rANS states of a stream
SYMBOLS_A_LANE = 8192  # least symbols per state; with fewer, the 4 bytes of a state cost more than the time it saves
FEW_LANES = 16  # most states of a stream that is decoded symbol by symbol
FIXED_POINT = 24  # fraction bits of the two rates of a model
# 2^30 x 2^-(2^-i) for i = 1 to 16, rounded
POWERS = (759250125, 902905651, 984625594, 1028218693, 1050733751, 1062175491, 1067942999, 1070838486,
          1072289173, 1073015252, 1073378477, 1073560135, 1073650976, 1073696399, 1073719111, 1073730468)  # fmt: skip

Model = tuple[int, int, int]


class Table(NamedTuple):
    """How often, in 2^16 symbols, integers are expected. frequencies: of `least`, `least` + 1, ...; each at least 1."""

    frequencies: np.ndarray
    least: int


class StreamError(ValueError):
    """The bytes are not a stream of the expected integers."""


def small_float(code: int) -> int:
    """The integer that a byte stands for: 0 to 15 exactly, above with 4 significant bits, up to 15 x 2^30."""
    return code if code < 8 else (8 + code % 8) << (code // 8 - 1)


def small_float_code(value: int) -> int:
    """The least byte that stands for at least `value`."""
    return next(code for code in range(256) if small_float(code) >= value)


def table_of(model: Model) -> Table:
    """The table of the integers from -M to M that a model expects. Raises StreamError where M is too large."""
    linear, square, largest = (small_float(code) for code in model)
    values = _values(linear, square, largest)
    return _table(np.concatenate([values[:0:-1], values]), -largest)


def table_of_gaps(code: int) -> Table:
    """The table of the integers from 0 to M, the small float of this code: of gaps between random numbers in order.

    Raises StreamError where M is too large.
    """
    largest = small_float(code)
    return _table(_values((5 << FIXED_POINT) // max(largest, 1), 0, largest), 0)


def _values(linear: int, square: int, largest: int) -> np.ndarray:
    """2^30 x 2^-(linear k + square k^2), the rates in fixed point, for k = 0 to `largest`."""
    if largest > MAX_MAGNITUDE:
        raise StreamError(f"expected integers of magnitude at most {MAX_MAGNITUDE}, found {largest}")
    k = np.arange(largest + 1, dtype=np.int64)
    exponent = np.minimum(linear * k + np.minimum(square * k, 1 << 34) * k, 30 << FIXED_POINT)
    fraction = exponent >> (FIXED_POINT - len(POWERS)) & 0xFFFF
    return _fractional_powers()[fraction] >> (exponent >> FIXED_POINT)


@functools.cache
def _fractional_powers() -> np.ndarray:
    """2^30 x 2^-(i / 2^16) for i = 0 to 2^16 - 1: the products of the POWERS of the 1 bits, from the highest bit on."""
    values = np.array([1 << 30], np.int64)
    for factor in POWERS:
        values = np.stack([values, values * factor >> 30], axis=1).ravel()
    return values


def _table(values: np.ndarray, least: int) -> Table:
    """The table whose frequencies are about proportional to `values`."""
    table = 1 + values * ((1 << TABLE_BITS) - len(values)) // values.sum()
    table[-least] += (1 << TABLE_BITS) - table.sum()
    return Table(table, least)


def fit_model(integers: np.ndarray, is_linear: bool | None = None) -> Model:
    """The model that codes these integers in nearly the fewest bits. A local search finds its first two bytes.

    is_linear: if given, only the first byte is sought and the second one is 0, or the other way round.
    """
    largest = int(np.abs(integers).max(initial=0))
    code = small_float_code(largest)
    counts = np.bincount(np.abs(integers).ravel(), minlength=small_float(code) + 1)

    def bits(rates: tuple[int, int]) -> float:
        return float(counts @ (TABLE_BITS - np.log2(table_of((*rates, code)).frequencies[small_float(code) :])))

    def is_open(rates: tuple[int, int]) -> bool:
        linear, square = rates
        return is_linear is None or (square if is_linear else linear) == 0

    variance = max(float(np.square(integers, dtype=np.float64).mean()), 0.02)
    gauss = small_float_code(int(0.7213 / variance * 2**FIXED_POINT))
    laplace = small_float_code(int(2.04 / variance**0.5 * 2**FIXED_POINT))
    starts = [(0, gauss), (laplace, 0), (max(laplace - 8, 0), max(gauss - 8, 0)), (0, 0)]
    best = min((bits(rates), rates) for rates in filter(is_open, starts))
    for step in (8, 4, 2, 1, 1):
        a, b = best[1]
        around = [(a + i * step, b + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        found = [rates for rates in filter(is_open, around) if min(rates) >= 0 and max(rates) < 240]
        best = min([best, *((bits(rates), rates) for rates in found)])
    return *best[1], code


def count_lanes(n_symbols: int) -> int:
    return max(1, min(MAX_LANES, n_symbols // SYMBOLS_A_LANE))


def encode(groups: Sequence[np.ndarray], tables: Sequence[Table]) -> bytes:
    """The stream of flat arrays of integers. Each array is coded by its own table."""
    lanes = count_lanes(sum(len(group) for group in groups))
    return encode_intervals(map(_intervals, reversed(groups), reversed(tables)), lanes)


def _intervals(group: np.ndarray, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The start and the frequency of each integer of an array."""
    symbols = group.astype(np.int64) - table.least
    return (np.cumsum(table.frequencies) - table.frequencies)[symbols], table.frequencies[symbols]


def encode_intervals(groups: Iterable[tuple[np.ndarray, np.ndarray]], lanes: int) -> bytes:
    """The stream of groups of symbols, the last group first. A group: the start and the frequency of each symbol."""
    state = np.full(lanes, 1 << 16, np.uint64)
    words: list[np.ndarray] = []
    for group in groups:
        start, frequency = (part.astype(np.uint64) for part in group)
        for i in range((len(start) - 1) // lanes * lanes, -1, -lanes):
            f, c = frequency[i : i + lanes], start[i : i + lanes]
            x = state[: len(f)]
            is_full = x >= f << np.uint64(16)
            words.append(x[is_full].astype("<u2"))
            x = np.where(is_full, x >> np.uint64(16), x)
            state[: len(f)] = (x // f << np.uint64(TABLE_BITS)) + x % f + c
    return state.astype("<u4").tobytes() + np.concatenate([np.empty(0, "<u2"), *words[::-1]]).tobytes()


class Decoder:
    """Takes the arrays, one after another, out of a stream of `encode`. n: the number of integers of all arrays.

    Raises StreamError unless the stream holds exactly these integers.
    """

    def __init__(self, data: bytes, n: int, lanes: int = 0):
        self.lanes, self.n, self.n_taken = lanes or count_lanes(n), n, 0
        if len(data) < 4 * self.lanes or len(data) % 2:
            raise StreamError(f"expected at least {4 * self.lanes} bytes, an even number, found {len(data)}")
        self.state = np.frombuffer(data, "<u4", self.lanes).astype(np.int64)
        self.words = np.frombuffer(data, "<u2", offset=4 * self.lanes).astype(np.uint16)
        self.position = 0  # of the next word

    def take(self, size: int, table: Table) -> np.ndarray:
        """The next array: int32, of this size, coded by this table."""
        group = (self._take_few if self.lanes <= FEW_LANES else self._take_many)(size, table.frequencies)
        self.n_taken += size
        return group + np.int32(table.least)

    def take_bits(self, ones: np.ndarray) -> np.ndarray:
        """The next bits, as booleans. ones: how often, of 2^16 times, each is 1, from 1 to 2^16 - 1; int64."""
        if self.lanes <= FEW_LANES:
            return self._take_few_bits(ones)
        bits, zeros = np.empty(len(ones), bool), (1 << TABLE_BITS) - ones
        for i in range(0, len(ones), self.lanes):
            f0, f1 = zeros[i : i + self.lanes], ones[i : i + self.lanes]
            x = self.state[: len(f0)]
            high, low = x >> TABLE_BITS, x & 0xFFFF
            bits[i : i + len(x)] = is_one = low >= f0
            self._put(np.where(is_one, f1 * high + low - f0, f0 * high + low), i)
        self.n_taken += len(ones)
        return bits

    def end(self) -> None:
        """Raise StreamError unless the stream ends here."""
        if self.position != len(self.words) or (self.state != 1 << 16).any():
            raise StreamError("does not end where its last integer does")

    def _ended(self, i: int) -> StreamError:
        return StreamError(f"ends after {self.n_taken + i} of {self.n} integers")

    def _take_many(self, size: int, table: np.ndarray) -> np.ndarray:
        """A symbol of each state at a time."""
        starts = np.cumsum(table) - table
        symbol_of = np.repeat(np.arange(len(table), dtype=np.int32), table)
        group = np.empty(size, np.int32)
        for i in range(0, size, self.lanes):
            x = self.state[: min(self.lanes, size - i)]
            low = x & 0xFFFF
            symbol = symbol_of[low]
            group[i : i + len(x)] = symbol
            self._put(table[symbol] * (x >> TABLE_BITS) + low - starts[symbol], i)
        return group

    def _put(self, x: np.ndarray, i: int) -> None:
        """The new states of the first lanes after symbol i, with the words that they need."""
        needy = np.flatnonzero(x < 1 << 16)
        words = self.words[self.position : self.position + len(needy)]
        if len(words) < len(needy):
            raise self._ended(i)
        x[needy] = x[needy] << 16 | words
        self.position += len(needy)
        self.state[: len(x)] = x

    def _take_few(self, size: int, table: np.ndarray) -> np.ndarray:
        """Symbol by symbol, in Python's integers. With few states, NumPy's calls would take longer."""
        state, words, lanes, position = self.state.tolist(), memoryview(self.words), self.lanes, self.position
        in_python = np.ndarray.tolist if size > len(table) else memoryview  # a long list for few integers takes longer
        starts, table = in_python(np.cumsum(table) - table), in_python(table)
        group = array.array("i")
        for i in range(size):
            x = state[i % lanes]
            low = x & 0xFFFF
            symbol = bisect.bisect_right(starts, low) - 1
            group.append(symbol)
            x = table[symbol] * (x >> TABLE_BITS) + low - starts[symbol]
            if x < 1 << 16:
                if position == len(words):
                    raise self._ended(i)
                x = x << 16 | words[position]
                position += 1
            state[i % lanes] = x
        self.state[:], self.position = state, position
        return np.array(group, np.int32)

    def _take_few_bits(self, ones: np.ndarray) -> np.ndarray:
        """Bit by bit, as `_take_few`."""
        state, lanes, bits = self.state.tolist(), self.lanes, bytearray(len(ones))
        for i, f1 in enumerate(memoryview(ones)):
            x = state[i % lanes]
            high, low, f0 = x >> TABLE_BITS, x & 0xFFFF, (1 << TABLE_BITS) - f1
            bits[i] = is_one = low >= f0
            x = f1 * high + low - f0 if is_one else f0 * high + low
            if x < 1 << 16:
                if self.position == len(self.words):
                    raise self._ended(i)
                x = x << 16 | int(self.words[self.position])
                self.position += 1
            state[i % lanes] = x
        self.state[:] = state
        self.n_taken += len(ones)
        return np.frombuffer(bits, bool)
