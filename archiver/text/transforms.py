"""A frame's content as text that the tokenizer knows, and back.

    content ── segments, each to UTF-8 ── swaps, in order ── text
    text ── the same swaps, last first ── segments, each to its character set ── content

Source: FORMAT.md, "Transforms".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import partial

from archiver.text.charsets import Charset, UnmappableError, from_utf8, to_utf8
from archiver.text.swaps import swap_json_escapes, swap_line_ends, swap_percent_escapes

# Nothing on the way from content to text, or back, may be longer than this many times the
# content: a byte of an 8-bit character set has at most three in UTF-8.
LARGEST_TEXT_FACTOR = 3
LARGEST_SEGMENTS = 4096


class Swap(IntFlag):
    """Swaps in the order in which a compressor applies them; the numbers are the format's."""

    NONE = 0
    JSON_SMALL = 2
    JSON_CAPITAL = 4
    PERCENT_SMALL = 8
    PERCENT_CAPITAL = 16
    LINE_ENDS = 32


SWAPS: dict[Swap, Callable[[bytes], bytes]] = {
    Swap.JSON_SMALL: partial(swap_json_escapes, capitals=False),
    Swap.JSON_CAPITAL: partial(swap_json_escapes, capitals=True),
    Swap.PERCENT_SMALL: partial(swap_percent_escapes, capitals=False),
    Swap.PERCENT_CAPITAL: partial(swap_percent_escapes, capitals=True),
    Swap.LINE_ENDS: swap_line_ends,
}
ALL_SWAPS = Swap(sum(SWAPS))
# Of each family a compressor uses one at most; without the mark a text does not get shorter.
FAMILIES = (
    (b"\\u", (Swap.JSON_SMALL, Swap.JSON_CAPITAL)),
    (b"%", (Swap.PERCENT_SMALL, Swap.PERCENT_CAPITAL)),
    (b"\r\n", (Swap.LINE_ENDS,)),
)
# The fields of transforms have at least this many bytes.
SAVING_BYTES_MIN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive bytes of a content that are in one character set.

    Attributes:
        content_bytes: how many; even for UTF-16.
    """

    charset: Charset
    content_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """What made a text of a content.

    Attributes:
        charsets: that of each segment, in order; 1 to LARGEST_SEGMENTS.
        cuts: where each segment but the first begins in UTF-8, before any swap; ascending.
        swaps: those that were applied after that.
    """

    charsets: tuple[Charset, ...] = (Charset.PLAIN,)
    cuts: tuple[int, ...] = ()
    swaps: Swap = Swap.NONE

    def __post_init__(self) -> None:
        assert 1 <= len(self.charsets) <= LARGEST_SEGMENTS
        assert len(self.cuts) == len(self.charsets) - 1
        assert all(a <= b for a, b in itertools.pairwise((0, *self.cuts)))

    def undo(self, text: bytes, content_bytes: int) -> bytes:
        """Return the content that these transforms made the text of.

        Memory is bounded by the limit on each step's result, and by three times that within one.

        Raises:
            UnmappableError: there is no such content of this length.
        """
        for swap in reversed(Swap):
            if swap in self.swaps:
                text = _limited(SWAPS[swap](text), content_bytes)
        edges = (0, *self.cuts, len(text))
        if edges[-2] > edges[-1]:
            raise UnmappableError("its text ends before its last segment")
        pieces = [
            from_utf8(charset, text[begin:end])
            for charset, (begin, end) in zip(self.charsets, itertools.pairwise(edges), strict=True)
        ]
        content = b"".join(pieces)
        if len(content) != content_bytes:
            raise UnmappableError(f"its text stands for {len(content)} bytes, not {content_bytes}")
        return content


NONE = Transforms()


def transform(
    content: bytes, spans: Sequence[Span], allowed: Swap = ALL_SWAPS
) -> tuple[bytes, Transforms]:
    """Return the content as text: its spans in UTF-8, and with the swaps that make it shorter.

    Args:
        allowed: swaps to try.

    Returns:
        the text, and the transforms that `undo` it: none where they would not.
    """
    pieces = []
    begin = 0
    for span in spans:
        pieces.append(to_utf8(span.charset, content[begin : begin + span.content_bytes]))
        begin += span.content_bytes
    assert begin == len(content)
    text = b"".join(pieces)
    swaps = Swap.NONE
    for mark, family in FAMILIES:
        tried = [swap for swap in family if swap in allowed]
        if tried and mark in text:
            swapped, swap = min(
                ((SWAPS[swap](text), swap) for swap in tried), key=lambda pair: len(pair[0])
            )
            if len(swapped) <= len(text) - SAVING_BYTES_MIN:
                text, swaps = swapped, swaps | swap
    transforms = Transforms(
        charsets=tuple(span.charset for span in spans),
        cuts=tuple(itertools.accumulate(map(len, pieces)))[:-1],
        swaps=swaps,
    )
    try:
        undone = transforms.undo(text, len(content))
    except UnmappableError:
        undone = None
    return (text, transforms) if undone == content else (content, NONE)


def _limited(text: bytes, content_bytes: int) -> bytes:
    if len(text) > LARGEST_TEXT_FACTOR * content_bytes:
        raise UnmappableError(
            f"its text grows to more than {LARGEST_TEXT_FACTOR} times the content"
        )
    return text
