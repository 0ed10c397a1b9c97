"""Signed numbers in the range coder: what goes in comes out, in little more than its entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.coding.signed import MAX_LENGTH, decode_vectors, encode_vectors

GREATEST = (1 << MAX_LENGTH) - 1


def decoded(coded: bytes, lengths: list[int]) -> list[np.ndarray]:
    return decode_vectors(np.frombuffer(coded, np.uint8), lengths)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.lists(st.integers(-GREATEST, GREATEST), max_size=40), max_size=8))
def test_vectors_come_back(vectors):
    arrays = [np.array(vector, np.int32) for vector in vectors]
    found = decoded(encode_vectors(arrays), [len(vector) for vector in vectors])
    assert [array.tolist() for array in found] == vectors


def test_the_worst_numbers_fit_the_buffer():
    numbers = np.array([0, GREATEST] * 4000, np.int32)
    (found,) = decoded(encode_vectors([numbers]), [len(numbers)])
    assert (found == numbers).all()


@pytest.mark.parametrize("spread", [0.4, 2.0, 30.0])
def test_normal_numbers_take_little_more_than_their_entropy(spread):
    generator = np.random.default_rng(1)
    vectors = [np.rint(generator.normal(0, spread, 2000)).astype(np.int32) for _ in range(20)]
    counts = np.unique(np.concatenate(vectors), return_counts=True)[1]
    shares = counts / counts.sum()
    entropy_bits = -(shares * np.log2(shares)).sum() * counts.sum()
    assert len(encode_vectors(vectors)) * 8 < entropy_bits * 1.03 + 64


def test_known_bytes():
    vectors = [np.array([0, 1, -1, 2, -3, 100], np.int32), np.array([-70000], np.int32)]
    assert encode_vectors(vectors).hex() == "b4738159c2d8bc060d"
