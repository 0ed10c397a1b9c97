"""The decision tree against its definition: walk the bits of every token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.errors import InvalidModelError
from archiver.text.vocabulary import Vocabulary, sort_tokens


def build(tokens: list[bytes]) -> Vocabulary:
    data, offsets, rank_of_id = sort_tokens(list(tokens))
    return Vocabulary.build(data, offsets, rank_of_id)


def decisions_of(token: bytes) -> list[int]:
    """The decisions of a token by the definition: eight bits a byte, then "does it go on"."""
    result = []
    for number, byte in enumerate(token):
        result += [(byte >> place) & 1 for place in range(7, -1, -1)]
        result.append(int(number + 1 < len(token)))
    return result


def path_by_definition(tokens: list[bytes], token: bytes) -> list[tuple[int, int]]:
    """(first rank of the branch 1, outcome) of each decision that has two possible outcomes."""
    ranks = list(range(len(tokens)))
    path = []
    for place, outcome in enumerate(decisions_of(token)):
        ones = [r for r in ranks if decisions_of(tokens[r])[place] == 1]
        if 0 < len(ones) < len(ranks):
            path.append((ones[0], outcome))
        ranks = [r for r in ranks if decisions_of(tokens[r])[place] == outcome]
    assert len(ranks) == 1
    return path


def path_in_tree(vocabulary: Vocabulary, rank: int) -> list[tuple[int, int]]:
    node, path = 0, []
    while node >= 0:
        split = int(vocabulary.splits[node])
        outcome = int(rank >= split)
        path.append((split, outcome))
        node = int(vocabulary.right[node] if outcome else vocabulary.left[node])
    return path


@given(st.sets(st.binary(min_size=1, max_size=4), min_size=2, max_size=30))
@settings(deadline=None)
def test_paths_are_those_of_the_definition(tokens: set[bytes]) -> None:
    vocabulary = build(list(tokens))
    ordered = sorted(tokens)
    assert vocabulary.token_bytes == ordered
    for rank, token in enumerate(ordered):
        path = path_in_tree(vocabulary, rank)
        assert path == path_by_definition(ordered, token)
        assert len(path) <= vocabulary.deepest
    assert max(len(path_in_tree(vocabulary, r)) for r in range(len(ordered))) == vocabulary.deepest


def test_places_tell_byte_and_bit() -> None:
    vocabulary = build([b"a", b"ab", b"b"])  # 0x61, 0x61 0x62, 0x62
    assert vocabulary.splits.tolist() == [2, 1]
    assert vocabulary.places.tolist() == [6, 8]  # bits 6 of byte 0, and whether "a" goes on


def test_the_lowest_of_equal_ids_is_coded() -> None:
    data, offsets, rank_of_id = sort_tokens([b"b", None, b"a", b"b", b""])
    assert Vocabulary.build(data, offsets, rank_of_id).token_bytes == [b"a", b"b"]
    assert rank_of_id.tolist() == [1, -1, 0, -1, -1]


@pytest.mark.parametrize(
    ("data", "offsets", "message"),
    [
        (b"ba", [0, 1, 2], "not in ascending byte order"),
        (b"aa", [0, 1, 2], "not in ascending byte order"),
        (b"ab", [0, 0, 2], "malformed"),
        (b"ab", [0, 1, 3], "malformed"),
        (b"a", [0, 1], "malformed"),
    ],
)
def test_malformed_tables_are_refused(data: bytes, offsets: list[int], message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        Vocabulary.build(
            np.frombuffer(data, np.uint8), np.array(offsets, np.int64), np.zeros(0, np.int32)
        )
