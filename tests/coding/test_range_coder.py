"""The range coder: known bytes, round trips, cost close to the ideal, bounded reading."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.coding import range_coder
from archiver.coding.range_coder import PROBABILITY_ONE, code_bit


def encode(decisions: list[tuple[int, int]]) -> bytes:
    """The code of (probability, bit) pairs."""
    buffer = np.zeros(3 * len(decisions) + 8, np.uint8)
    state = range_coder.new_encoder()
    for probability, bit in decisions:
        code_bit(state, buffer, probability, bit)
    return range_coder.finish(state, buffer)


def decode(code: bytes, probabilities: list[int]) -> list[int]:
    buffer = np.frombuffer(code, np.uint8).copy()
    state = range_coder.new_decoder(buffer)
    return [int(code_bit(state, buffer, p, 0)) for p in probabilities]


probability = st.one_of(
    st.integers(1, PROBABILITY_ONE - 1),
    st.sampled_from([1, 2, PROBABILITY_ONE // 2, PROBABILITY_ONE - 2, PROBABILITY_ONE - 1]),
)


@given(st.lists(st.tuples(probability, st.integers(0, 1)), max_size=400))
@settings(deadline=None, max_examples=200)
def test_decoding_gives_the_bits_that_were_encoded(decisions: list[tuple[int, int]]) -> None:
    code = encode(decisions)
    assert decode(code, [p for p, _ in decisions]) == [bit for _, bit in decisions]


@pytest.mark.parametrize("bit", [0, 1])
def test_long_runs_of_the_least_probable_outcome(bit: int) -> None:
    """Every decision costs 22 bits, the most there is."""
    p = 1 if bit else PROBABILITY_ONE - 1
    decisions = [(p, bit)] * 3000 + [(PROBABILITY_ONE // 2, 0)]
    code = encode(decisions)
    assert decode(code, [p for p, _ in decisions]) == [outcome for _, outcome in decisions]
    assert abs(len(code) - 3000 * 22 / 8) < 40


def test_carry_ripples_through_bytes_of_255() -> None:
    """Ones narrow the range at its lower end, zeros push the end up: all orders of both."""
    generator = np.random.default_rng(7)
    bits = generator.integers(0, 2, 20_000).tolist()
    probabilities = np.where(generator.random(20_000) < 0.5, 5, PROBABILITY_ONE - 5).tolist()
    decisions = list(zip(probabilities, bits, strict=True))
    assert decode(encode(decisions), probabilities) == bits


def test_the_cost_is_within_a_few_bytes_of_the_ideal() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.integers(1, PROBABILITY_ONE, 50_000).tolist()
    bits = [int(generator.random() < p / PROBABILITY_ONE) for p in probabilities]
    ideal = -sum(
        math.log2(p / PROBABILITY_ONE if bit else 1 - p / PROBABILITY_ONE)
        for p, bit in zip(probabilities, bits, strict=True)
    )
    size = 8 * len(encode(list(zip(probabilities, bits, strict=True))))
    assert 0 <= size - ideal < 0.0001 * ideal + 16


def test_known_bytes() -> None:
    half = PROBABILITY_ONE // 2
    assert encode([]) == b""
    assert encode([(half, 1)] * 8) == b""  # the lowest interval: nothing but zeros
    assert encode([(half, 0)] * 8) == b"\xff"
    assert encode([(half, b) for b in (0, 1, 0, 1, 1, 1, 1, 1)]) == b"\xa0"
    assert encode([(PROBABILITY_ONE // 4, 0), (PROBABILITY_ONE // 4, 1)]) == b"\x40"


def test_a_decoder_reads_zeros_past_the_end() -> None:
    """However short the code, decoding ends: the number of decisions bounds it."""
    assert decode(b"", [PROBABILITY_ONE // 2] * 100) == [1] * 100
