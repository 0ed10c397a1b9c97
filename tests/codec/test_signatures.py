"""Signatures of states are the signs of their first entries."""

from __future__ import annotations

import numpy as np
import pytest

from archiver.codec.signatures import SIGNATURE_BITS_MAX, signature_bits, signatures_of


@pytest.mark.parametrize("entries", [0, 1, 63, 64, 65, 384, 385, 1000])
def test_signatures_are_the_signs_of_the_first_entries(entries: int) -> None:
    states = np.random.default_rng(entries).integers(-2, 3, (3, entries)).astype(np.int8)
    bits = min(entries, SIGNATURE_BITS_MAX)
    assert signature_bits(entries) == bits
    found = signatures_of(states)
    assert (found.shape, found.dtype) == ((3, -(-bits // 64)), np.uint64)
    for row, words in zip(states, found.tolist(), strict=True):
        joined = sum(word << (64 * place) for place, word in enumerate(words))
        assert joined == sum(int(row[i] > 0) << i for i in range(bits))
