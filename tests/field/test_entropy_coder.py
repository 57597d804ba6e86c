"""The entropy coder: round trips, near the entropy, and streams that are none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from field import entropy_coder
from field.entropy_coder import (
    MAX_LANES,
    MAX_MAGNITUDE,
    Decoder,
    Model,
    StreamError,
    encode,
    fit_model,
    small_float,
    small_float_code,
    table_of,
    table_of_gaps,
)


def gaussian(n: int, deviation: float, seed: int = 0) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).normal(0, deviation, n)).astype(np.int32)


def frequencies(model: Model) -> np.ndarray:
    return table_of(model).frequencies


def bits(group: np.ndarray, model: Model) -> float:
    """How many a group takes by a model, about."""
    return float(np.sum(16 - np.log2(frequencies(model)[group + small_float(model[2])])))


def decode(stream: bytes, sizes: list[int], models: list[Model]) -> list[np.ndarray]:
    """The groups of a whole stream."""
    decoder = Decoder(stream, sum(sizes))
    found = [decoder.take(size, table_of(model)) for size, model in zip(sizes, models, strict=True)]
    decoder.end()
    return found


def coded(groups: list[np.ndarray]) -> tuple[bytes, list[int], list[Model]]:
    """The stream of groups by their best models, their sizes and the models."""
    models = [fit_model(group) for group in groups]
    return encode(groups, [*map(table_of, models)]), [len(group) for group in groups], models


def assert_round_trip(groups: list[np.ndarray]) -> bytes:
    stream, sizes, models = coded(groups)
    found = decode(stream, sizes, models)
    for group, back in zip(groups, found, strict=True):
        assert back.dtype == np.int32
        np.testing.assert_array_equal(back, group)
    return stream


# --- bytes that stand for integers, and models ------------------------------------------------------


def test_small_floats_ascend():
    values = [small_float(code) for code in range(256)]
    assert values[:17] == list(range(17)) and values == sorted(set(values)) and values[-1] == 15 << 30
    assert all(b <= a * 9 / 8 for a, b in itertools.pairwise(values[8:]))
    assert [small_float_code(value) for value in values] == list(range(256))


@given(st.integers(0, 15 << 30))
def test_small_float_code_is_the_least(value):
    code = small_float_code(value)
    assert small_float(code) >= value and (code == 0 or small_float(code - 1) < value)


def check_table(model: Model) -> None:
    table, least = table_of(model)
    assert least == -small_float(model[2])
    assert table.dtype == np.int64 and len(table) == 2 * small_float(model[2]) + 1
    assert table.sum() == 1 << 16 and table.min() >= 1
    np.testing.assert_array_equal(table, table[::-1])
    assert (np.diff(table[: len(table) // 2 + 1]) >= 0).all()  # most frequent at zero


def test_every_model_is_valid():
    largest = small_float_code(MAX_MAGNITUDE)
    assert small_float(largest) == MAX_MAGNITUDE
    for m in (0, 1, 5, 40, largest):
        for a in (0, 1, 100, 200, 254, 255):
            for b in (0, 1, 100, 200, 254, 255):
                check_table((a, b, m))
    for a in range(256):
        check_table((a, 255 - a, 9))
        check_table((0, a, 20))


def test_too_large_a_model():
    for code in range(small_float_code(MAX_MAGNITUDE) + 1, 256):
        for table in (lambda code=code: table_of((0, 0, code)), lambda code=code: table_of_gaps(code)):
            with pytest.raises(StreamError, match="30720"):
                table()


def test_powers():
    assert [round(2 ** (30 - 2.0**-i)) for i in range(1, 17)] == list(entropy_coder.POWERS)


def test_frequencies_follow_the_model():
    """f(k) is proportional to 2^-(A k + B k^2) / 2^24, but for the 1 that each has at least."""
    for a, b, m in ((0, 0, 30), (150, 0, 30), (0, 140, 30), (140, 120, 30)):
        k = np.abs(np.arange(-small_float(m), small_float(m) + 1))
        ideal = 2.0 ** -((small_float(a) * k + small_float(b) * k**2) / 2**24)
        expected = 1 + ideal / ideal.sum() * (2**16 - len(k))
        np.testing.assert_allclose(frequencies((a, b, m)), expected, rtol=1e-3, atol=len(k))


# --- round trips ------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.lists(
        st.integers(0, MAX_MAGNITUDE).flatmap(
            lambda largest: hnp.arrays(np.int32, st.integers(1, 40), elements=st.integers(-largest, largest))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_arbitrary_groups(groups):
    assert_round_trip(groups)


@pytest.mark.parametrize("n", [2, 3, 8191, 16383, 16384, 16385, 40_000])
def test_any_number_of_states(n):
    assert_round_trip([gaussian(n // 2, 4), gaussian(1, 1000), gaussian(n - n // 2, 60, seed=1)])


def test_most_states():
    n = MAX_LANES * entropy_coder.SYMBOLS_A_LANE // 4
    assert entropy_coder.count_lanes(4 * n) == entropy_coder.count_lanes(40 * n) == MAX_LANES
    assert_round_trip([gaussian(200_000, 3), gaussian(5, 3)])


@pytest.mark.parametrize("n", [1, 100, 20_000])
def test_constants_cost_little(n):
    for value in (0, 1, -MAX_MAGNITUDE):
        constant = np.full(n, value, np.int32)
        if value == 0:
            assert len(assert_round_trip([constant])) == 4 * max(1, n // 8192)
        else:
            assert_round_trip([constant])


def test_models_that_expect_otherwise():
    """Any model codes any integers that it holds, at a price."""
    group = np.array([15, -15, 15, 0, 7], np.int32)
    for model in ((255, 255, 15), (0, 0, 15), (200, 0, 95)):
        np.testing.assert_array_equal(decode(encode([group], [table_of(model)]), [5], [model])[0], group)


@pytest.mark.parametrize("code", range(small_float_code(MAX_MAGNITUDE) + 1))
def test_tables_of_gaps(code):
    """From 0 to M, the smaller the more frequent: 2^5 times from one end to the other."""
    table, least = table_of_gaps(code)
    assert least == 0 and len(table) == small_float(code) + 1
    assert table.sum() == 1 << 16 and table.min() >= 1 and (np.diff(table) <= 0).all()
    ideal = 2.0 ** -(5 * np.arange(len(table)) / max(len(table) - 1, 1))
    expected = 1 + ideal / ideal.sum() * (2**16 - len(table))
    np.testing.assert_allclose(table, expected, rtol=1e-3, atol=len(table))


def test_gaps_and_others_in_one_stream():
    groups, tables = [np.arange(40, dtype=np.int32), gaussian(9, 3)], [table_of_gaps(40), table_of((0, 0, 40))]
    decoder = Decoder(encode(groups, tables), 49)
    for group, table in zip(groups, tables, strict=True):
        np.testing.assert_array_equal(decoder.take(len(group), table), group)
    decoder.end()


@pytest.mark.parametrize("is_linear", [False, True])
def test_a_model_of_one_rate(is_linear):
    """The rate that is asked for is near the best, the other one 0."""
    for group in (gaussian(3000, 5), np.rint(np.random.default_rng(0).laplace(0, 9, 500)).astype(np.int32)):
        a, b, m = fit_model(group, is_linear)
        models = [(rate, 0, m) if is_linear else (0, rate, m) for rate in range(240)]
        assert (a, b, m) in models and bits(group, (a, b, m)) <= 1.01 * min(bits(group, model) for model in models)


# --- size -------------------------------------------------------------------------------------------


def entropy_bytes(group: np.ndarray) -> float:
    counts = np.unique(group, return_counts=True)[1]
    return float(counts @ np.log2(counts.sum() / counts)) / 8


@pytest.mark.parametrize(
    ("law", "size", "spread"),  # spread: 2 to the entropy of the law of size 1
    [*(("normal", size, np.sqrt(2 * np.pi * np.e)) for size in (0.3, 0.7, 2.0, 10.0, 60.0)),
     *(("laplace", size, 2 * np.e) for size in (0.4, 3.0, 40.0))],
)  # fmt: skip
def test_integers_near_their_entropy(law, size, spread):
    group = np.rint(getattr(np.random.default_rng(0), law)(0, size, 5000)).astype(np.int32)
    source = 5000 / 8 * np.log2(spread * size) if size > 1 else 0  # bytes, if it is fine
    assert len(coded([group])[0]) <= 1.03 * max(entropy_bytes(group), source) + 20


def test_the_fit_is_near_the_best():
    """No other two bytes cost 1 % less."""
    for group in (gaussian(3000, 5), np.append(gaussian(3000, 2), 100).astype(np.int32)):
        model = fit_model(group)
        best = min(bits(group, (a, b, model[2])) for a in range(0, 240, 6) for b in range(0, 240, 6))
        assert bits(group, model) <= 1.01 * best


# --- streams that are none --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound():
    return coded([gaussian(300, 9), gaussian(20, 2)])


def test_a_changed_bit_is_noticed_or_gives_other_integers(sound):
    stream, sizes, models = sound
    expected = np.concatenate(decode(stream, sizes, models))
    refused = 0
    for at in range(0, len(stream)):
        damaged = bytearray(stream)
        damaged[at] ^= 1 << at % 8
        try:
            found = np.concatenate(decode(bytes(damaged), sizes, models))
        except StreamError:
            refused += 1
        else:
            assert (found != expected).any()
    assert refused > 0.95 * len(stream)


def test_truncated_and_extended(sound):
    stream, sizes, models = sound
    extended = [stream + extra for extra in (b"\0", b"\0\0", b"\1\0\0\0", stream)]
    for wrong in (*(stream[:length] for length in range(len(stream))), *extended):
        with pytest.raises(StreamError):
            decode(wrong, sizes, models)


@pytest.mark.parametrize("state", [0, 1, 0xFFFF, 0x10001, 2**31, 2**32 - 1])
def test_other_states(sound, state):
    stream, sizes, models = sound
    with pytest.raises(StreamError):
        decode(state.to_bytes(4, "little") + stream[4:], sizes, models)


def test_other_sizes_and_models(sound):
    stream, (n, m), (first, second) = sound
    for sizes in ([n + 1, m], [n, m - 1], [n + m]):
        with pytest.raises(StreamError):
            decode(stream, sizes, [first, second][: len(sizes)])
    with pytest.raises(StreamError):
        decode(stream, [n, m], [second, first])
