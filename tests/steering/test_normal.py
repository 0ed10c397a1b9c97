"""The normal distribution in integers: known values, symmetry, and the whole table pinned."""

from __future__ import annotations

import hashlib
import math

from hypothesis import given
from hypothesis import strategies as st

from archiver.steering.normal import (
    ONE_BITS,
    SIGMA_MAX,
    cumulative_normal,
    frequencies,
    normal_table,
)

ONE = 1 << ONE_BITS


def test_the_table_is_the_normal_distribution() -> None:
    table = normal_table()
    assert table[0] == ONE // 2
    assert table[-1] == ONE
    for i in range(513):
        phi = 0.5 * math.erfc(-i / 64 / math.sqrt(2))
        assert abs(int(table[i]) - phi * ONE) < 0.501


def test_the_table_is_the_one_that_archives_are_made_with() -> None:
    digest = hashlib.sha256(normal_table().astype("<i8").tobytes()).hexdigest()
    assert digest == "cd039d133e9dfaf7c5fcb942306d80044fcf5eefd436c3dc3a2a45897082616a"


@given(twice=st.integers(-600, 600), sigma=st.integers(1, SIGMA_MAX))
def test_it_is_symmetric_and_near_the_real_one(twice: int, sigma: int) -> None:
    mass = cumulative_normal(twice, sigma)
    assert mass + cumulative_normal(-twice, sigma) == ONE
    phi = 0.5 * math.erfc(-twice / 2 * 64 / sigma / math.sqrt(2))
    assert abs(mass / ONE - phi) < 2e-5


@given(
    low=st.integers(-127, 127),
    width=st.integers(0, 254),
    sigma=st.integers(1, SIGMA_MAX),
)
def test_frequencies_are_positive_and_their_total_bounded(low: int, width: int, sigma: int) -> None:
    high = min(low + width, 127)
    counts = frequencies(low, high, sigma)
    assert len(counts) == high - low + 1
    assert min(counts) >= 1
    assert sum(counts) <= (1 << 22) + len(counts)


def test_a_tiny_sigma_leaves_nothing_beside_zero() -> None:
    assert frequencies(-2, 2, 4) == [1, 1, (1 << 22) + 1, 1, 1]
