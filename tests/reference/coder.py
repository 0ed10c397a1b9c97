"""Binary decisions out of the range coder's bytes; tokens and escapes out of mixed decisions.

Source: FORMAT.md, "Predictor frame payload".
"""

from __future__ import annotations

import itertools
from bisect import bisect_left

import numpy as np

from tests.reference.container import MalformedError
from tests.reference.mixer import RUNS, TOKENS, Mixer, State, Stream
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


def decode_escape_flag(mixer: Mixer, stream: Stream, after_escape: bool) -> bool:
    """Whether the stream's next symbol is an escape."""
    return mixer.flag(stream, 9, 288 + after_escape) == 1


def decode_escape(mixer: Mixer, stream: Stream) -> bytes:
    """The bytes of an escape."""
    data = bytearray()
    while True:
        key = 1
        for place in range(8):
            key = 2 * key + mixer.decide(stream, RUNS, place, key, ONE // 2)
        data.append(key - 256)
        mixer.note(stream, key - 256)
        if len(data) == LARGEST_ESCAPE_BYTES or not mixer.flag(stream, 10, 290 + (len(data) > 1)):
            stream.end_symbol()
            stream.last_token = None
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

    def decode(
        self, weights: Integers, mixer: Mixer, stream: Stream, codes: Integers | None
    ) -> int:
        """The rank of the stream's next token.

        Args:
            codes: what the model's head is applied to; None if that is not known.
        """
        state = None
        if mixer.nearest:
            assert codes is not None
            signature = frozenset(np.flatnonzero(codes[:384] > 0).tolist())
            state = State(signature, min(len(codes), 384), int(np.argmax(weights)))
            mixer.nearest.look(state, stream.last_token)
        sums = [0, *np.cumsum(weights).tolist()]
        lo, hi = 0, len(self._tokens)
        number = 0
        known = 0  # bytes of the token that the stream's text has
        while hi - lo > 1:
            mid = self._first_one(number, lo, hi)
            if lo < mid < hi:
                a = sums[mid] - sums[lo]
                b = sums[hi] - sums[mid]
                quotient = f64(b) / f64(a + b)
                probability = min(max(int(quotient * f64(ONE)), 1), ONE - 1)
                index, place = divmod(number, 9)
                if mixer.tokens_mixed:
                    self._note(mixer, stream, lo, known, index + (place == 8))
                    known = index + (place == 8)
                if mixer.decide(
                    stream, TOKENS, place, self._key(number, lo), probability, (lo, mid, hi)
                ):
                    lo = mid
                else:
                    hi = mid
            number += 1
        self._note(mixer, stream, lo, known, len(self._tokens[lo]))
        stream.end_symbol()
        if mixer.nearest and state:
            mixer.nearest.note(state, stream.last_token, lo)
        stream.last_token = lo
        return lo

    def _note(self, mixer: Mixer, stream: Stream, rank: int, known: int, certain: int) -> None:
        for c in self._tokens[rank][known:certain]:
            mixer.note(stream, c)

    def _key(self, number: int, rank: int) -> int:
        """A decision's key; all tokens that are left agree with that of `rank`."""
        index, place = divmod(number, 9)
        if place == 8:
            return 256 + min(index + 1, 31)
        return (256 + self._tokens[rank][index]) >> (8 - place)

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
