"""Stretch, squash and adaptive probabilities: in range, monotone, each other's inverse."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.mixing.logistic import ADAPTIVE_MIN, adapted, clamp, squash, stretch
from archiver.mixing.tables import (
    COUNT_BITS,
    COUNT_MAX,
    STRETCH_MAX,
    reciprocal_table,
    squash_table,
    stretch_table,
)

ONE = 1 << 22
probabilities = st.integers(1, ONE - 1) | st.integers(1, 9000) | st.integers(ONE - 9000, ONE - 1)


def stretched(probability: int) -> int:
    return int(stretch(stretch_table(), probability))


def squashed(x: int) -> int:
    return int(squash(squash_table(), x))


@given(probabilities)
@settings(deadline=None)
def test_squash_undoes_stretch(p: int) -> None:
    back = squashed(stretched(p))
    # Two linear pieces and a rounding, each off by at most 1.3e-4 of the smaller of p and 1 - p.
    assert abs(back - p) <= 1 + 4e-4 * min(p, ONE - p)


@given(probabilities)
@settings(deadline=None)
def test_stretch_is_near_the_logarithm_and_odd(p: int) -> None:
    assert abs(stretched(p) - 4096 * math.log(p / (ONE - p))) < 1.6
    assert stretched(ONE - p) == -stretched(p)


def test_stretch_is_monotone_at_the_edges_of_its_levels() -> None:
    for edge in (1 << 9, 1 << 13, 1 << 17, 1 << 21):
        found = [stretched(p) for p in range(edge - 40, edge + 41)]
        assert found == sorted(found)
    assert stretched(1) == -62461
    assert stretched(ONE // 2) == 0
    assert stretched(ONE - 1) == 62461


@given(st.integers(-STRETCH_MAX, STRETCH_MAX - 1))
@settings(deadline=None)
def test_squash_is_monotone_and_in_range(x: int) -> None:
    assert 1 <= squashed(x) <= squashed(x + 1) <= ONE - 1
    assert abs(squashed(x) / ONE - 1 / (1 + math.exp(-x / 4096))) < 2e-5


def test_extremes() -> None:
    assert squashed(STRETCH_MAX) == ONE - 1
    assert squashed(-STRETCH_MAX) == 1
    assert clamp(1 << 40) == STRETCH_MAX
    assert clamp(-(1 << 40)) == -STRETCH_MAX
    assert clamp(-5) == -5


@given(st.integers(ADAPTIVE_MIN, ONE - ADAPTIVE_MIN), st.integers(0, COUNT_MAX),
       st.integers(0, 1))  # fmt: skip
@settings(deadline=None)
def test_adapting_moves_towards_the_bit_and_stays_in_range(p: int, count: int, bit: int) -> None:
    entry = int(adapted(reciprocal_table(), np.int64(p << COUNT_BITS | count), bit, COUNT_MAX))
    moved, more = entry >> COUNT_BITS, entry & 1023
    assert ADAPTIVE_MIN <= moved <= ONE - ADAPTIVE_MIN
    assert moved >= p if bit else moved <= p
    assert abs(moved - p) <= abs(bit * ONE - p) / (count + 1.5) + 1
    assert more == min(count + 1, COUNT_MAX)
    assert entry < 1 << 32


def test_the_first_bits_count_fully() -> None:
    entry = np.int64((ONE // 2) << COUNT_BITS)
    shares = []
    for bit in (1, 1, 0):
        entry = adapted(reciprocal_table(), entry, bit, COUNT_MAX)
        shares.append(round(int(entry >> COUNT_BITS) / ONE, 3))
    assert shares == [0.833, 0.9, 0.643]
