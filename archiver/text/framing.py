"""Any bytes as symbols: tokens where a token exists, runs of escaped bytes elsewhere.

bytes ─┬─ not UTF-8, or with a byte that has no token ─────────────── escape
       └─ text ── tokenizer ── compared with the text ── the same ─── tokens
                                                     └── differs ──── smaller pieces, at
                                                                      last longest match
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ESCAPE = -1
MAX_ESCAPE_BYTES = 65535

# A tokenizer's time and memory grow with the piece that it is given, a little faster than
# linearly where there is no space to cut at: 64 Ki characters without one take 0.04 s.
MAX_SEGMENT_CHARACTERS = 1 << 16
# How far back from the limit to look for a good place to cut.
_CUT_SEARCH_CHARACTERS = 1 << 12
# A segment that the tokenizer does not keep is cut in this many parts, down to this size.
_RETRY_PARTS = 8
_RETRY_CHARACTERS = 128
# Pieces up to this long are looked up before they are tokenized again: text in an 8-bit
# encoding falls into many short pieces between escapes.
_MEMO_CHARACTERS = 8


class VocabularyOrder(Protocol):
    """What framing needs of a vocabulary: in practice ``archiver.text.vocabulary.Vocabulary``."""

    @property
    def rank_of_id(self) -> NDArray[np.int32]:
        """int32[ids]: the rank of each of the tokenizer's ids, -1 where it is not coded."""
        ...

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """The bytes of each token by rank: sorted, unique, none empty."""
        ...


class Tokenizer(Protocol):
    """What framing needs of a tokenizer: in practice a TextTokenizer."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Symbols:
    """What the codec codes, in order.

    Attributes:
        ranks: int32[symbols], the rank of a token, or ESCAPE.
        escapes: for each ESCAPE its bytes, 1 to MAX_ESCAPE_BYTES of them.
    """

    ranks: NDArray[np.int32]
    escapes: list[bytes]

    def __post_init__(self) -> None:
        assert self.ranks.dtype == np.int32
        assert self.ranks.ndim == 1
        assert np.count_nonzero(self.ranks < 0) == len(self.escapes)
        assert not self.ranks.size or self.ranks.min() >= ESCAPE
        assert all(0 < len(run) <= MAX_ESCAPE_BYTES for run in self.escapes)


def symbols_of(content: bytes, vocabulary: VocabularyOrder, tokenizer: Tokenizer) -> Symbols:
    """Return symbols whose bytes are ``content``, whatever the tokenizer does.

    Args:
        content: any bytes.
        vocabulary: the package's tokens in byte order.
        tokenizer: the package's tokenizer.
    """
    # Bytes that are not UTF-8 become U+DC80 to U+DCFF, which no valid text contains.
    text = content.decode("utf-8", "surrogateescape")
    token_bytes = vocabulary.token_bytes
    builder = _Builder()
    pieces = _Pieces(token_bytes, vocabulary.rank_of_id, tokenizer)
    for index, piece in enumerate(_uncodable(token_bytes).split(text)):
        if index % 2:
            builder.escape(piece.encode("utf-8", "surrogateescape"))
        elif piece:
            pieces.add(piece, builder)
    return builder.symbols()


def bytes_of(symbols: Symbols, vocabulary: VocabularyOrder) -> bytes:
    """Return the bytes that the symbols stand for: the inverse of ``symbols_of``."""
    token_bytes = vocabulary.token_bytes
    ranks = symbols.ranks.tolist()
    if not symbols.escapes:
        return b"".join(map(token_bytes.__getitem__, ranks))
    runs = iter(symbols.escapes)
    return b"".join([next(runs) if rank < 0 else token_bytes[rank] for rank in ranks])


class _Builder:
    """Collects symbols; escapes that follow each other become one run."""

    def __init__(self) -> None:
        self._ranks = array("i")
        self._escapes: list[bytes] = []
        self._pending = bytearray()

    def tokens(self, ranks: array[int]) -> None:
        if self._pending:
            self._flush()
        self._ranks.extend(ranks)

    def escape(self, run: bytes) -> None:
        self._pending += run

    def symbols(self) -> Symbols:
        self._flush()
        return Symbols(ranks=np.array(self._ranks, dtype=np.int32), escapes=self._escapes)

    def _flush(self) -> None:
        run = bytes(self._pending)
        self._pending.clear()
        for start in range(0, len(run), MAX_ESCAPE_BYTES):
            self._escapes.append(run[start : start + MAX_ESCAPE_BYTES])
            self._ranks.append(ESCAPE)


class _Pieces:
    """Turns pieces of valid text into symbols; holds the tables that this needs."""

    def __init__(
        self, token_bytes: Sequence[bytes], rank_of_id: NDArray[np.int32], tokenizer: Tokenizer
    ) -> None:
        self._token_bytes = token_bytes
        self._rank_of_id: list[int] = rank_of_id.tolist()
        self._bytes_of_id = [token_bytes[rank] if rank >= 0 else b"" for rank in self._rank_of_id]
        self._tokenizer = tokenizer
        self._memo: dict[str, array[int]] = {}
        self._longest: _LongestMatch | None = None

    def add(self, piece: str, builder: _Builder) -> None:
        """Add the symbols of a piece of any length."""
        known = self._memo.get(piece)
        if known is not None:
            builder.tokens(known)
            return
        for segment in _segments(piece, MAX_SEGMENT_CHARACTERS):
            self._add_segment(segment, builder)

    def _add_segment(self, segment: str, builder: _Builder) -> None:
        ranks = self._checked_ranks(segment)
        if ranks is not None:
            if len(segment) <= _MEMO_CHARACTERS:
                self._memo[segment] = ranks
            builder.tokens(ranks)
        elif len(segment) > _RETRY_CHARACTERS:
            for part in _segments(segment, max(_RETRY_CHARACTERS, len(segment) // _RETRY_PARTS)):
                self._add_segment(part, builder)
        else:
            if self._longest is None:
                self._longest = _LongestMatch(self._token_bytes)
            self._longest.add(segment.encode(), builder)

    def _checked_ranks(self, segment: str) -> array[int] | None:
        """Return the ranks of the tokenizer's ids, or None when they are not the segment."""
        ids: list[int] = self._tokenizer.encode(segment).tolist()
        if not ids or max(ids) >= len(self._rank_of_id):
            return None
        if b"".join(map(self._bytes_of_id.__getitem__, ids)) != segment.encode():
            return None
        ranks = array("i", map(self._rank_of_id.__getitem__, ids))
        return None if min(ranks) < 0 else ranks


class _LongestMatch:
    """Cuts bytes into the longest tokens from left to right; escapes a byte that starts none."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._rank_of = {token: rank for rank, token in enumerate(token_bytes)}
        lengths: dict[bytes, set[int]] = {}
        for token in token_bytes:
            lengths.setdefault(token[:2], set()).add(len(token))
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def add(self, run: bytes, builder: _Builder) -> None:
        """Add the symbols of ``run``."""
        position = 0
        while position < len(run):
            start = run[position : position + 2]
            for length in (*self._lengths.get(start, ()), 1):
                # Near the end the slice may be shorter than `length`; what is found then is
                # another token, taken at its own length.
                token = run[position : position + length]
                rank = self._rank_of.get(token)
                if rank is not None:
                    builder.tokens(array("i", (rank,)))
                    position += len(token)
                    break
            else:
                builder.escape(run[position : position + 1])
                position += 1


def _segments(text: str, limit: int) -> Iterator[str]:
    """Yield the text in parts of at most ``limit`` characters, none empty.

    A cut falls before the first of some white space where there is one near: no piece that the
    usual pre-tokenizers make reaches across that place, so that the tokens stay the same.
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        lowest = max(start + 1, end - min(_CUT_SEARCH_CHARACTERS, limit // 2))
        for place in range(end, lowest - 1, -1):
            if text[place].isspace() and not text[place - 1].isspace():
                end = place
                break
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _uncodable(token_bytes: Sequence[bytes]) -> re.Pattern[str]:
    """Return a pattern that finds the runs of characters which no tokens can carry.

    Those are stand-ins for bytes that are not UTF-8, and characters whose first byte has no
    token of its own.  The pattern has one group, so that splitting keeps the runs.
    """
    singles = {token[0] for token in token_bytes if len(token) == 1}
    ranges = ["\udc80-\udcff"]
    for first in range(0xF5):
        if first in singles or 0x80 <= first < 0xC2:
            continue
        lowest, highest = _characters_starting_with(first)
        ranges.append(f"{re.escape(chr(lowest))}-{re.escape(chr(highest))}")
    return re.compile(f"([{''.join(ranges)}]+)")


def _characters_starting_with(first: int) -> tuple[int, int]:
    """Return the lowest and highest code point whose UTF-8 starts with the byte ``first``."""
    if first < 0x80:
        return first, first
    if first < 0xE0:
        lowest = (first & 0x1F) << 6
        return lowest, lowest | 0x3F
    if first < 0xF0:
        lowest = (first & 0x0F) << 12
        return max(lowest, 0x800), lowest | 0xFFF
    lowest = (first & 0x07) << 18
    return max(lowest, 0x10000), min(lowest | 0x3FFFF, 0x10FFFF)
