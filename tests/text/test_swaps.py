"""Swaps: each exchanges what it says, and undoes itself on any bytes."""

from __future__ import annotations

import json
import random
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archiver.text.swaps import PART_BYTES, swap_line_ends
from archiver.text.transforms import SWAPS, Swap
from tests.reference import transforms as reference

# What swaps look for, whole and in parts.
FRAGMENTS = st.sampled_from(
    [
        b"\r", b"\n", b"\r\n", b"a", b"%", b"%D0", b"%B4", b"%d0%b4", b"%D0%B4", b"%E2%82%AC",
        b"%F0%9F%98%80", b"%C0%80", b"%ED%A0%80", b"%F4%90%80%80", "д".encode(), "€".encode(),
        "\U0001f600".encode(), b"\xd0", b"\xb4", b"\xed\xa0\x80", b"\\", b"\\u", b"\\u0434",
        b"\\u00e9", b"\\u00E9", b"\\u0041", b"\\ud83d", b"\\ude00", b"\\UDE00", b"\\uD83D\\uDE00",
        b"d83d",
    ]
)  # fmt: skip
CONTENTS = st.one_of(
    st.lists(FRAGMENTS, max_size=12).map(b"".join),
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
)

RUSSIAN = "Война и мир"
PAIRS = {
    Swap.LINE_ENDS: [
        (b"a\r\nb\r\n", b"a\nb\n"),
        (b"\r\r\n\r", b"\r\r\n\r"),
        (b"\n\r\n", b"\r\n\n"),
    ],
    Swap.JSON_SMALL: [
        (json.dumps(RUSSIAN).encode(), f'"{RUSSIAN}"'.encode()),
        (b"\\u00e9\\u00E9", "é\\u00E9".encode()),
        (b"\\ud83d\\ude00", "\U0001f600".encode()),
        (b"\\ud83d\\ud83d\\ude00\\ude00", "\\ud83d\U0001f600\\ude00".encode()),
        (b"\\u007f\\u0080\\ud7ff\\ud800", "\\u007f\x80\ud7ff\\ud800".encode()),
        (b"\\\\u00e9 \xd0\xed\xa0\x80", b"\\\xc3\xa9 \xd0\xed\xa0\x80"),
    ],
    Swap.JSON_CAPITAL: [(b"\\u00e9\\u00E9\\uD83D\\uDE00", "\\u00e9é\U0001f600".encode())],
    Swap.PERCENT_CAPITAL: [
        (quote(RUSSIAN).encode(), "%Война%20%и%20%мир".encode()),
        (b"100%\xd0\xb4", b"100%D0%B4"),
        (b"%D0%B4\xd0\xb4 %\xd0\xb4%\xd0\xb4 %d0%b4", b"%D0%B4\xd0\xb4 %\xd0\xb4%\xd0\xb4 %d0%b4"),
        (b"%%E2%82%AC%E2%82", "%%€%E2%82".encode()),
    ],
    Swap.PERCENT_SMALL: [(b"%d0%b4%D0%B4", b"%\xd0\xb4%D0%B4")],
}
REFERENCES = {
    Swap.LINE_ENDS: reference.swap_line_ends,
    Swap.JSON_SMALL: lambda data: reference.swap_json(data, "0123456789abcdef"),
    Swap.JSON_CAPITAL: lambda data: reference.swap_json(data, "0123456789ABCDEF"),
    Swap.PERCENT_SMALL: lambda data: reference.swap_percent(data, "0123456789abcdef"),
    Swap.PERCENT_CAPITAL: lambda data: reference.swap_percent(data, "0123456789ABCDEF"),
}


@pytest.mark.parametrize(
    ("swap", "first", "second"),
    [(swap, *pair) for swap, pairs in PAIRS.items() for pair in pairs],
)
def test_known_pairs(swap: Swap, first: bytes, second: bytes) -> None:
    assert SWAPS[swap](first) == second
    assert SWAPS[swap](second) == first


@pytest.mark.parametrize("swap", Swap)
@given(content=CONTENTS)
@example(content=b"")
@settings(max_examples=300)
def test_a_swap_undoes_itself_and_is_the_reference(swap: Swap, content: bytes) -> None:
    swapped = SWAPS[swap](content)
    assert swapped == REFERENCES[swap](content)
    assert SWAPS[swap](swapped) == content
    assert len(swapped) <= 3 * len(content)


def test_line_ends_of_a_long_text_are_swapped_everywhere() -> None:
    chance = random.Random(1)
    content = b"".join(
        chance.choice([b"word", b"\r", b"\n", b"\r\n", b"\r\r\n"]) for _ in range(200_000)
    )
    assert len(content) > 4 * PART_BYTES
    swapped = swap_line_ends(content)
    assert swapped == reference.swap_line_ends(content)
    assert swap_line_ends(swapped) == content
    assert swap_line_ends(b"a" * (2 * PART_BYTES)) == b"a" * (2 * PART_BYTES)
