"""Binary decisions out of the range coder's bytes; tokens and escapes out of decisions.

Source: FORMAT.md, "Predictor frame payload".
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Hashable

import numpy as np

from tests.reference.container import MalformedError
from tests.reference.numbers import Integers, f64

ONE = 1 << 22  # a probability of 1
LARGEST_ESCAPE_BYTES = 65535


class RangeDecoder:
    """The state of the range coder: integers of any size, as Python has them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0
        self._range = (1 << 32) - 1
        self._code = 0
        for _ in range(4):
            self._code = self._code * 256 + self._next_byte()
        if self._code >= self._range:
            raise MalformedError("the code is beyond the range")

    def decide(self, probability: int) -> int:
        """The next decision, which is 1 with `probability` (1 to 2^22 - 1) in units of 2^-22."""
        assert 1 <= probability < ONE
        bound = self._range * probability // ONE
        if self._code < bound:
            decision = 1
            self._range = bound
        else:
            decision = 0
            self._code -= bound
            self._range -= bound
        while self._range < 1 << 24:
            self._range *= 256
            self._code = self._code * 256 + self._next_byte()
        return decision

    def _next_byte(self) -> int:
        byte = self._data[self._offset] if self._offset < len(self._data) else 0
        self._offset += 1
        return byte


class Contexts:
    """The adaptive decisions of a frame: a probability for each context."""

    def __init__(self, decoder: RangeDecoder) -> None:
        self._decoder = decoder
        self._probabilities: dict[Hashable, int] = {("escape", False): 1 << 16}

    def decide(self, context: Hashable) -> int:
        """The next decision, in a context of any name."""
        probability = self._probabilities.get(context, 1 << 21)
        decision = self._decoder.decide(probability)
        if decision:
            probability += (ONE - probability) // 32
        else:
            probability -= probability // 32
        self._probabilities[context] = probability
        return decision

    def is_escape(self, after_escape: bool) -> bool:
        """Whether the next symbol is an escape."""
        return self.decide(("escape", after_escape)) == 1

    def escape(self) -> bytes:
        """The bytes of an escape."""
        data = bytearray()
        while True:
            before = data[-1] if data else 0
            bits: tuple[int, ...] = ()
            for _ in range(8):
                bits += (self.decide(("byte", before, bits)),)
            data.append(int("".join(map(str, bits)), 2))
            if len(data) == LARGEST_ESCAPE_BYTES or not self.decide(("more", len(data) == 1)):
                return bytes(data)


class TokenTree:
    """The decisions that tell one token from the others.

    Args:
        tokens: byte strings in ascending order.
    """

    def __init__(self, tokens: list[bytes]) -> None:
        assert all(tokens)
        assert all(a < b for a, b in itertools.pairwise(tokens))
        self._tokens = tokens

    def decode(self, weights: Integers, decoder: RangeDecoder) -> int:
        """The rank of the next token."""
        sums = [0, *np.cumsum(weights).tolist()]
        lo, hi = 0, len(self._tokens)
        number = 0
        while hi - lo > 1:
            mid = self._first_one(number, lo, hi)
            if lo < mid < hi:
                a = sums[mid] - sums[lo]
                b = sums[hi] - sums[mid]
                quotient = f64(b) / f64(a + b)
                probability = min(max(int(quotient * f64(ONE)), 1), ONE - 1)
                if decoder.decide(probability):
                    lo = mid
                else:
                    hi = mid
            number += 1
        return lo

    def _first_one(self, number: int, lo: int, hi: int) -> int:
        """The first rank from lo to hi - 1 whose decision is 1; hi when there is none."""
        return bisect_left(range(hi), 1, lo, key=lambda rank: self._decision(number, rank))

    def _decision(self, number: int, rank: int) -> int:
        """A token's decision of that number: nine for each byte, eight bits and "goes on"."""
        token = self._tokens[rank]
        index, bit = divmod(number, 9)
        if bit == 8:
            return int(index + 1 < len(token))
        return token[index] >> (7 - bit) & 1
