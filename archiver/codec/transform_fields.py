"""The fields of a payload that say how its text becomes the content.

Source: FORMAT.md, "Transforms".
"""

from __future__ import annotations

import itertools

from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.text.charsets import Charset
from archiver.text.transforms import (
    LARGEST_SEGMENTS,
    LARGEST_TEXT_FACTOR,
    NONE,
    Swap,
    Transforms,
)

HAS_SEGMENTS = 1  # bit of the field `transforms`, beside those of the swaps
KNOWN = HAS_SEGMENTS | sum(Swap)


def encode_transforms(transforms: Transforms, text_bytes: int) -> bytes:
    """Return the fields, from `transforms` to the last segment."""
    has_segments = transforms.charsets != NONE.charsets
    fields = bytearray([transforms.swaps | (HAS_SEGMENTS if has_segments else 0)])
    fields += encode_varint(text_bytes)
    if has_segments:
        fields += encode_varint(len(transforms.charsets))
        fields += bytes(transforms.charsets)
        for begin, end in itertools.pairwise((0, *transforms.cuts)):
            fields += encode_varint(end - begin)
    return bytes(fields)


def decode_transforms(payload: bytes, at: int, content_bytes: int) -> tuple[Transforms, int, int]:
    """Return the transforms whose fields begin at `at`, the text's length, and where they end.

    Raises:
        MalformedError: they cannot be what an encoder wrote.
    """
    if at >= len(payload):
        raise MalformedError("its transforms are cut off")
    known = payload[at]
    text_bytes, at = decode_varint(payload, at + 1)
    if not known or known & ~KNOWN:
        raise MalformedError(f"unknown transforms {known:#04x}")
    if not 1 <= text_bytes <= LARGEST_TEXT_FACTOR * content_bytes:
        raise MalformedError(f"a text of {text_bytes} bytes for a content of {content_bytes}")
    charsets, cuts = NONE.charsets, NONE.cuts
    if known & HAS_SEGMENTS:
        count, at = decode_varint(payload, at)
        if not 1 <= count <= LARGEST_SEGMENTS:
            raise MalformedError(f"{count} segments")
        charsets, at = _charsets(payload, at, count), at + count
        lengths = []
        for _ in range(count - 1):
            length, at = decode_varint(payload, at)
            lengths.append(length)
        cuts = tuple(itertools.accumulate(lengths))
    swaps = Swap(known & ~HAS_SEGMENTS)
    return Transforms(charsets=charsets, cuts=cuts, swaps=swaps), text_bytes, at


def _charsets(payload: bytes, at: int, count: int) -> tuple[Charset, ...]:
    numbers = payload[at : at + count]
    if len(numbers) < count:
        raise MalformedError("its segments are cut off")
    try:
        return tuple(map(Charset, numbers))
    except ValueError as error:
        raise MalformedError(f"an unknown character set ({error})") from error
