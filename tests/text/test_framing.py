"""Framing: any bytes as symbols and back, whatever the tokenizer loses."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from archiver.text.byte_level import token_bytes_of
from archiver.text.framing import (
    ESCAPE,
    MAX_ESCAPE_BYTES,
    MAX_SEGMENT_CHARACTERS,
    Symbols,
    Tokenizer,
    _segments,
    bytes_of,
    symbols_of,
)
from archiver.text.tokenizer import TextTokenizer
from archiver.text.vocabulary import Vocabulary, sort_tokens
from tests.support.tiny_models import MISSING_BYTES, tiny_tokenizer
from tests.support.tiny_vocabulary import PlainVocabulary, plain_vocabulary


@dataclass
class Owner:
    """Stands for a package."""

    text: str

    def read_tokenizer(self) -> str:
        return self.text


TEXT = json.dumps(tiny_tokenizer(400))
TOKENIZER = TextTokenizer(Owner(TEXT))
TOKEN_BYTES = token_bytes_of(TEXT, 400)
VOCABULARY = plain_vocabulary(TOKEN_BYTES)


def _round_trip(
    content: bytes,
    tokenizer: Tokenizer = TOKENIZER,
    vocabulary: PlainVocabulary = VOCABULARY,
) -> Symbols:
    symbols = symbols_of(content, vocabulary, tokenizer)
    assert bytes_of(symbols, vocabulary) == content
    assert (np.diff(np.flatnonzero(symbols.ranks == ESCAPE)) > 1).all() or any(
        len(run) == MAX_ESCAPE_BYTES for run in symbols.escapes
    )
    return symbols


def _tokens(symbols: Symbols) -> list[bytes | int]:
    return [VOCABULARY.token_bytes[rank] if rank >= 0 else -1 for rank in symbols.ranks.tolist()]


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x00")
@example(bytes(range(256)))
@example(b"\xed\xa0\x80\xed\xb2\x80")
@example(b"\xf4\x90\x80\x80\xf8\x88\x80\x80\x80")
@example(b"\xc0\x80\xe0\x80\x80\xf0\x80\x80\x80")
@example("\udc80".encode("utf-8", "surrogatepass"))
def test_any_bytes_come_back(content: bytes) -> None:
    _round_trip(content)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_comes_back(text: str) -> None:
    _round_trip(text.encode())


@given(
    st.lists(
        st.sampled_from(
            ["the ", "<|im_start|>", "1905", "\r\n", "\r", "\n", "\x04", "\U00040000", "é", "  "]
        ).map(str.encode)
        | st.binary(min_size=1, max_size=3),
        max_size=40,
    )
)
def test_mixtures_come_back(parts: list[bytes]) -> None:
    _round_trip(b"".join(parts))


def test_text_is_what_the_tokenizer_makes_of_it() -> None:
    text = 'The quick brown fox: "the traveller said 1905".\r\n\r\nand\rthen <|im_end|>'
    symbols = _round_trip(text.encode())
    assert symbols.escapes == []
    assert np.array_equal(symbols.ranks, VOCABULARY.rank_of_id[TOKENIZER.encode(text)])


def test_nothing_is_no_symbol() -> None:
    symbols = _round_trip(b"")
    assert symbols.ranks.size == 0
    assert symbols.ranks.dtype == np.int32


def test_only_what_has_no_token_is_escaped() -> None:
    for byte in range(0x80):
        symbols = _round_trip(b"a" + bytes([byte]) + b"b")
        assert symbols.escapes == ([bytes([byte])] if byte in MISSING_BYTES else [])
    for content, escapes in {
        b"a\xed\xa0\x80b": [b"\xed\xa0\x80"],
        b"a\x04\x06\xff\xfeb\x04": [b"\x04\x06\xff\xfe", b"\x04"],
        "a\U00040000\U000bffffb".encode(): ["\U00040000\U000bffff".encode()],
        "a\U0003ffff\U000c0000b".encode(): [],
        "déjà".encode("latin-1"): [b"\xe9", b"\xe0"],
        b"\xe2\x82": [b"\xe2\x82"],
    }.items():
        assert _round_trip(content).escapes == escapes
    assert _tokens(_round_trip(b"a\x04b")) == [b"a", -1, b"b"]


def test_long_runs_of_escapes_are_cut() -> None:
    symbols = _round_trip(b"\xff" * (2 * MAX_ESCAPE_BYTES + 1))
    assert [len(run) for run in symbols.escapes] == [MAX_ESCAPE_BYTES, MAX_ESCAPE_BYTES, 1]
    assert symbols.ranks.tolist() == [ESCAPE] * 3


@pytest.mark.parametrize("unit", ["ab", " ", "é", "\n", "\r", "0", "x\x04", "word "])
def test_long_lines_come_back(unit: str) -> None:
    _round_trip((unit * (300_000 // len(unit))).encode())


def test_cuts_between_segments_leave_the_tokens_as_they_were() -> None:
    text = "The quick brown fox\njumps over  the lazy dog in 1905. " * 4000
    assert len(text) > 3 * MAX_SEGMENT_CHARACTERS
    symbols = _round_trip(text.encode())
    assert np.array_equal(symbols.ranks, VOCABULARY.rank_of_id[TOKENIZER.encode(text)])


@given(st.text("ab \n", max_size=60), st.integers(1, 20))
def test_segments_join_to_the_text_and_keep_the_limit(text: str, limit: int) -> None:
    segments = list(_segments(text, limit))
    assert "".join(segments) == text
    assert all(0 < len(segment) <= limit for segment in segments)


# Tokenizers that lose something: each is repaired.


class Lowering:
    """Loses capitals."""

    def encode(self, text: str) -> NDArray[np.int32]:
        return TOKENIZER.encode(text.lower())


class Silent:
    """Loses everything."""

    def encode(self, text: str) -> NDArray[np.int32]:
        return np.empty(0, dtype=np.int32)


class Special:
    """Puts in an id that is not coded, or that the vocabulary does not have."""

    def __init__(self, index: int) -> None:
        self.index = index

    def encode(self, text: str) -> NDArray[np.int32]:
        return np.array([self.index, *TOKENIZER.encode(text)], dtype=np.int32)


LOSSY: list[Tokenizer] = [Lowering(), Silent(), Special(0), Special(400), Special(10**9)]


@pytest.mark.parametrize("tokenizer", LOSSY, ids=lambda item: type(item).__name__)
@settings(max_examples=40)
@given(content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_a_lossy_tokenizer_loses_nothing(tokenizer: Tokenizer, content: bytes) -> None:
    _round_trip(content.replace(b"\xed", b"e"), tokenizer)


def test_only_the_part_that_the_tokenizer_loses_is_cut_otherwise() -> None:
    text = "the quick brown fox " * 2000 + "Capital" + " jumps over the lazy dog" * 2000
    lossless = _round_trip(text.encode())
    symbols = _round_trip(text.encode(), Lowering())
    assert symbols.escapes == []
    assert abs(len(symbols.ranks) - len(lossless.ranks)) < 40
    assert _tokens(symbols)[:1000] == _tokens(lossless)[:1000]


def test_the_longest_token_is_taken_where_the_tokenizer_fails() -> None:
    symbols = _round_trip(b"the the weather\x00", Silent())
    best = _tokens(symbols)
    assert best[-1] == b"\x00"
    assert len(best) <= 7
    assert symbols.escapes == []


def test_a_vocabulary_without_single_bytes_still_carries_everything() -> None:
    vocabulary = plain_vocabulary([b"ab", b"abc", b"\xa9"])
    symbols = _round_trip("abcabxé©ab".encode(), Silent(), vocabulary)
    assert symbols.escapes
    symbols = _round_trip(b"abcab", Silent(), plain_vocabulary([b"a", b"ab", b"abc", b"b", b"c"]))
    assert symbols.ranks.tolist() == [2, 1]


def test_the_codecs_vocabulary_serves_as_well() -> None:
    vocabulary = Vocabulary.build(*sort_tokens(TOKEN_BYTES))
    content = "The quick\x04 brown fox über \xff".encode("latin-1") + "Москва".encode()
    symbols = symbols_of(content, vocabulary, TOKENIZER)
    assert bytes_of(symbols, vocabulary) == content
    assert np.array_equal(symbols.ranks, symbols_of(content, VOCABULARY, TOKENIZER).ranks)
