"""SentencePiece BPE: segmentations by score, user-defined tokens, bytes of every id."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archiver.errors import InvalidModelError
from archiver.text.bpe_json import TokenType
from archiver.text.framing import bytes_of, symbols_of
from archiver.text.pieces import token_bytes_of_pieces, tokenizer_json_from_pieces
from archiver.text.tokenizer import TextTokenizer
from archiver.text.vocabulary import Vocabulary, sort_tokens
from tests.support.tiny_pieces import CONTROL, USER_DEFINED, tiny_pieces
from tests.text.test_tokenizer import Owner

TOKENS, TYPES, SCORES = tiny_pieces(440)
TOKEN_BYTES = token_bytes_of_pieces(TOKENS, TYPES)
VOCABULARY = Vocabulary.build(*sort_tokens(TOKEN_BYTES))
TOKENIZER = TextTokenizer(Owner(tokenizer_json_from_pieces(TOKENS, TYPES, SCORES)))

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _with_bytes(
    pieces: dict[str, float], user_defined: tuple[str, ...] = (), control: tuple[str, ...] = ()
) -> tuple[list[str], list[int], list[float]]:
    """Lists of these tokens, bytes first, and characters after them."""
    characters = sorted({character for piece in pieces for character in piece} - set(pieces))
    tokens = [*BYTES, *user_defined, *control, *pieces, *characters]
    types = [TokenType.BYTE] * 256 + [TokenType.USER_DEFINED] * len(user_defined)
    types += [TokenType.CONTROL] * len(control)
    types += [TokenType.NORMAL] * (len(pieces) + len(characters))
    scores = [0.0] * (256 + len(user_defined) + len(control)) + [*pieces.values()]
    scores += [-100.0 - place for place in range(len(characters))]
    return tokens, [int(kind) for kind in types], scores


def _cut(text: str, lists: tuple[list[str], list[int], list[float]]) -> list[str]:
    tokenizer = TextTokenizer(Owner(tokenizer_json_from_pieces(*lists)))
    return [lists[0][index] for index in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        # The best score first, wherever it stands; not the longest, not from the left.
        ({"bc": -1.0, "ab": -2.0, "cd": -3.0}, "abcd", ["a", "bc", "d"]),
        ({"ab": -1.0, "bc": -2.0, "cd": -3.0}, "abcd", ["ab", "cd"]),
        ({"ab": -1.0, "abcd": -2.0, "cd": -3.0}, "abcd", ["abcd"]),
        # From the left where scores are equal.
        ({"aa": -1.0}, "aaaaa", ["aa", "aa", "a"]),
        # A piece that no two pieces make is never reached.
        ({"abc": -1.0}, "abc", ["a", "b", "c"]),
        # Spaces belong to the word after them, and are not put where there are none.
        ({"▁a": -1.0, "ab": -2.0}, "ab ab", ["ab", "▁a", "b"]),
        # A character that is no piece falls into its bytes, alone.
        ({"ab": -1.0}, "abéab\0", ["ab", "<0xC3>", "<0xA9>", "ab", "<0x00>"]),
        # What looks like a byte's token is text.
        ({"ab": -1.0, "<0": -2.0}, "<0x", ["<0", "<0x78>"]),
    ],
)
def test_known_segmentations(pieces: dict[str, float], text: str, expected: list[str]) -> None:
    assert _cut(text, _with_bytes(pieces)) == expected


def test_tokens_of_the_user_are_cut_out_first_and_control_tokens_never() -> None:
    lists = _with_bytes(
        {"ab": -1.0, "a<": -2.0, "▁b": -3.0, ">": -4.0},
        user_defined=("<b", "<b>", "▁▁", "\n", "\n\n"),
        control=("<a>", "ba"),
    )
    assert _cut("a<b>ab", lists) == ["a", "<b>", "ab"]
    assert _cut("a  b   b\n\n\nb", lists) == ["a", "▁▁", "b", "▁▁", "▁b", "\n\n", "\n", "b"]
    assert _cut("<a>baba", lists) == ["<", "a", ">", "b", "ab", "a"]


def test_what_each_id_stands_for() -> None:
    lists = _with_bytes(
        {"▁a": -1.0, "a a": -2.0, "é": -3.0}, user_defined=("▁▁", "  b", "<i>"), control=("<a>",)
    )
    found = dict(zip(lists[0], token_bytes_of_pieces(*lists[:2]), strict=True))
    assert found["<0xFF>"] == b"\xff"
    assert found["▁▁"] == b"  "
    assert found["  b"] == b"  b"
    assert found["<i>"] == b"<i>"
    assert found["▁a"] == b" a"
    assert found["é"] == "é".encode()
    assert found["<a>"] is None
    # Never made from text: a piece with a space, and bytes that are pieces.
    assert found["a a"] is None
    assert found["a"] == b"a"
    assert found["<0x61>"] is None
    assert found["▁"] == b" "
    assert found["<0x20>"] is None


def test_of_the_same_text_the_token_of_the_user_counts() -> None:
    tokens, types = ["▁b", "▁▁", *BYTES], [1, 1, *[6] * 256]
    assert token_bytes_of_pieces([*tokens, "  "], [*types, 4])[1] is None
    assert token_bytes_of_pieces([*tokens, "  "], [*types, 4])[-1] == b"  "


def test_every_byte_has_one_token_and_control_tokens_have_no_bytes() -> None:
    contents = [content for content in TOKEN_BYTES if content is not None]
    assert len(set(contents)) == len(contents)
    assert {content[0] for content in contents if len(content) == 1} == set(range(256))
    for content, kind in zip(TOKEN_BYTES, TYPES, strict=True):
        if kind == TokenType.CONTROL:
            assert content is None


def _merged_by_score(text: str) -> list[str]:
    """The definition: again and again the best pair of neighbours, the first of equal ones."""
    scores = {
        token: score
        for token, kind, score in zip(TOKENS, TYPES, SCORES, strict=True)
        if kind == TokenType.NORMAL
    }
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (-scores[left + right], place)
            for place, (left, right) in enumerate(itertools.pairwise(parts))
            if left + right in scores
        ]
        if not pairs:
            return parts
        place = min(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]


WORDS = st.sampled_from(
    ["the", " the", "quick", " was", "of", " times", "ing", "ther", " un", "happy", "?", " x"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=12).map("".join))
@example("It was the best of times, it was the worst of times.")
def test_segmentations_are_those_of_the_definition(text: str) -> None:
    found = [TOKENS[index] for index in TOKENIZER.encode(text)]
    assert found == _merged_by_score(text)


TRAPS = st.sampled_from(
    [
        *CONTROL,
        *USER_DEFINED,
        "▁",
        "▁▁the",
        "<unused3>",
        "<0x41>",
        "\r\n",
        "\0",
        "日本",
        "\U000e0041",
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(TRAPS.map(str.encode), st.binary(max_size=8), WORDS.map(str.encode)), max_size=30
    ).map(b"".join)
)
@example("a ▁ b▁c".encode())
@example(b"\xff\xfe text \xed\xa0\x80")
def test_any_bytes_come_back(content: bytes) -> None:
    symbols = symbols_of(content, VOCABULARY, TOKENIZER)
    assert bytes_of(symbols, VOCABULARY) == content
    text = content.decode("utf-8", "surrogateescape")
    lost = any("\udc80" <= character <= "\udcff" for character in text)
    assert bool(symbols.escapes) == lost  # every byte has a token, so only what is not UTF-8


def test_text_without_the_mark_of_spaces_is_kept_by_the_tokenizer_itself() -> None:
    text = "The quick  brown\n\n\tfox é <b> <bos> 日本 \r\n"
    content = b"".join(TOKEN_BYTES[index] or b"?" for index in TOKENIZER.encode(text))
    assert content == text.encode()
    ranks = VOCABULARY.rank_of_id[TOKENIZER.encode(text)]
    assert np.array_equal(symbols_of(text.encode(), VOCABULARY, TOKENIZER).ranks, ranks)


def _dropped(byte: int) -> tuple[list[str], list[int], list[float]]:
    return tuple(column[:byte] + column[byte + 1 :] for column in _with_bytes({"ab": -1.0}))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ((["a"], [1], []), "differ in number"),
        ((["a"], [], [0.0]), "differ in number"),
        ((["a", "a"], [1, 1], [0.0, 0.0]), "occurs twice"),
        ((["  ", "▁▁"], [1, 4], [0.0, 0.0]), "occurs twice"),
        ((["a"], [1], [math.nan]), "score is not a number"),
        ((["a"], [1], [math.inf]), "score is not a number"),
        ((["a"], [1], [0.0]), "not lossless: no token for the byte 0x00"),
        (_dropped(0xC3), "not lossless: no token for the byte 0xC3"),
        ((["<0x1>"], [6], [0.0]), "'<0x1>' is said to be a byte's"),
        ((["<0x0a>"], [6], [0.0]), "'<0x0a>' is said to be a byte's"),
    ],
)
def test_lists_that_are_no_tokenizer_are_refused(
    lists: tuple[list[str], list[int], list[float]], reason: str
) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        tokenizer_json_from_pieces(*lists)


def test_tokens_of_absurd_length_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="5000 bytes long"):
        token_bytes_of_pieces(["a" * 5000], [1])


def test_the_json_is_canonical() -> None:
    text = tokenizer_json_from_pieces(TOKENS, TYPES, SCORES)
    assert text == tokenizer_json_from_pieces(TOKENS, TYPES, SCORES)
    data = json.loads(text)
    assert data["model"]["byte_fallback"] is True
    assert data["model"]["unk_token"] is None
    assert data["pre_tokenizer"] is data["post_processor"] is None
