"""A content to its text and back: what is chosen, what is refused."""

from __future__ import annotations

import contextlib
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.text import transforms as module
from archiver.text.charsets import UTF_16, Charset, UnmappableError
from archiver.text.transforms import NONE, Span, Swap, Transforms, transform
from tests.text.test_swaps import CONTENTS

RUSSIAN = "Мы были там вчера.\n"


def whole(content: bytes, charset: Charset = Charset.PLAIN) -> list[Span]:
    return [Span(charset=charset, content_bytes=len(content))]


@pytest.mark.parametrize(
    ("content", "text", "swaps"),
    [
        ("a\r\nb\r\nc\r\nd\r\n", "a\nb\nc\nd\n", Swap.LINE_ENDS),
        ("a\r\nb\nc\nd\n" * 9, "", Swap.NONE),
        ("a\r\nb\r\nc\n" * 9, "a\nb\nc\r\n" * 9, Swap.LINE_ENDS),
        ("a\r\nb\r\n", "", Swap.NONE),
        (json.dumps(RUSSIAN), json.dumps(RUSSIAN, ensure_ascii=False), Swap.JSON_SMALL),
        ("\\u00E9\\u0411\\u00EF", "éБï", Swap.JSON_CAPITAL),
        ("\\u0411, Б, Б", "", Swap.NONE),
        (quote("мир") * 2, "%мирмир", Swap.PERCENT_CAPITAL),
        (quote("мир").lower(), "%мир", Swap.PERCENT_SMALL),
        (
            quote("мир") + "\r\n" * 9 + "\\u0411",
            "%мир" + "\n" * 9 + "Б",
            Swap.PERCENT_CAPITAL | Swap.LINE_ENDS | Swap.JSON_SMALL,
        ),
    ],
)
def test_swaps_that_shorten_are_applied(content: str, text: str, swaps: Swap) -> None:
    assert transform(content.encode(), whole(content.encode())) == (
        (text or content).encode(),
        Transforms(swaps=swaps),
    )


def test_character_sets_and_line_ends_compose() -> None:
    text = RUSSIAN.replace("\n", "\r\n") * 3
    content = b"\xff\xfe" + text.encode("utf-16-le") + b"\x00" + text.encode("koi8-r")
    spans = [
        Span(charset=Charset.UTF_16_LE, content_bytes=2 + 2 * len(text)),
        Span(charset=Charset.PLAIN, content_bytes=1),
        Span(charset=Charset.KOI8_R, content_bytes=len(text)),
    ]
    transformed, transforms = transform(content, spans)
    assert transformed.decode() == "\ufeff" + RUSSIAN * 3 + "\x00" + RUSSIAN * 3
    first = 3 + len(text.encode())
    assert transforms == Transforms(
        charsets=(Charset.UTF_16_LE, Charset.PLAIN, Charset.KOI8_R),
        cuts=(first, first + 1),
        swaps=Swap.LINE_ENDS,
    )
    assert transforms.undo(transformed, len(content)) == content


@given(
    parts=st.lists(st.tuples(st.sampled_from(Charset), st.one_of(CONTENTS, st.binary(max_size=30))))
)
def test_any_content_comes_back_from_any_spans(parts: list[tuple[Charset, bytes]]) -> None:
    parts = [(charset, part * (1 + (charset in UTF_16))) for charset, part in parts]
    content = b"a" + b"".join(part for _, part in parts)
    spans = [
        *whole(b"a"),
        *(Span(charset=charset, content_bytes=len(part)) for charset, part in parts),
    ]
    text, transforms = transform(content, spans)
    assert len(text) <= 3 * len(content)
    assert transforms.undo(text, len(content)) == content


@given(text=CONTENTS, number=st.integers(0, 31), content_bytes=st.integers(0, 60))
def test_any_text_is_undone_or_refused(text: bytes, number: int, content_bytes: int) -> None:
    transforms = Transforms(
        charsets=(Charset.PLAIN, Charset.UTF_16_BE, Charset.IBM_866),
        cuts=(3, 9),
        swaps=Swap(2 * number),
    )
    with contextlib.suppress(UnmappableError):
        assert len(transforms.undo(text, content_bytes)) == content_bytes


@pytest.mark.parametrize("line_end", [b"\n", b"\t\r"])
def test_what_cannot_be_undone_is_not_done(
    monkeypatch: pytest.MonkeyPatch, line_end: bytes
) -> None:
    content = b"a\r\n" * 9
    broken = {b"\r\n": b"\n", b"\n": line_end}
    monkeypatch.setitem(
        module.SWAPS,
        Swap.LINE_ENDS,
        lambda text: text.replace(*next(p for p in broken.items() if p[0] in text)),
    )
    assert transform(content, whole(content)) == (content, NONE)


@pytest.mark.parametrize(
    ("transforms", "text", "content_bytes", "message"),
    [
        (NONE, b"abc", 4, "its text stands for 3 bytes, not 4"),
        (Transforms(swaps=Swap.LINE_ENDS), b"\n" * 7, 4, "grows to more than 3 times the content"),
        (Transforms(swaps=Swap.JSON_SMALL), "é".encode() * 3, 5, "grows to more than 3 times"),
        (Transforms(swaps=Swap.LINE_ENDS), b"\n" * 6, 4, "its text stands for 12 bytes, not 4"),
        (
            Transforms(charsets=(Charset.PLAIN, Charset.UTF_16_LE), cuts=(4,)),
            b"abc",
            3,
            "its text ends before its last segment",
        ),
        (
            Transforms(charsets=(Charset.PLAIN, Charset.UTF_16_LE), cuts=(1,)),
            "é".encode(),
            3,
            "its text cannot be that of utf-16-le",
        ),
        (Transforms(charsets=(Charset.KOI8_R,)), "é".encode(), 1, "cannot be that of koi8-r"),
    ],
)
def test_impossible_texts_are_refused(
    transforms: Transforms, text: bytes, content_bytes: int, message: str
) -> None:
    with pytest.raises(UnmappableError, match=message):
        transforms.undo(text, content_bytes)
