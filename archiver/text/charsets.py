"""Character sets other than UTF-8: bytes to UTF-8 and back.

Every mapping is total and one to one, so that no byte of a frame forbids it: a byte without a
character of its own stands for the control character of its number, or for a lone surrogate in
the sets of two bytes; a surrogate without its partner is written in UTF-8 as if it were a
character (WTF-8).

Source: FORMAT.md, "Character sets"; WHATWG Encoding Standard, indexes of single-byte encodings.
"""

# ruff: noqa: RUF001 -- the tables hold characters that look like others

from __future__ import annotations

import codecs
from enum import IntEnum
from functools import cache
from typing import Any

from archiver.text.double_byte import double_byte_set


class UnmappableError(ValueError):
    """A text is not what a transform makes of any bytes; the message says why."""


class Charset(IntEnum):
    """What the bytes of a segment are; the numbers are those of the format."""

    PLAIN = 0  # taken as they are
    UTF_16_LE = 1
    UTF_16_BE = 2
    WINDOWS_1251 = 3
    KOI8_R = 4
    IBM_866 = 5
    WINDOWS_1252 = 6
    SHIFT_JIS = 7
    GB18030 = 8
    EUC_JP = 9
    BIG5 = 10
    EUC_KR = 11

    @property
    def label(self) -> str:
        """The name that the Encoding Standard gives it."""
        return self.name.lower().replace("_", "-")


UTF_16 = {Charset.UTF_16_LE: "utf-16-le", Charset.UTF_16_BE: "utf-16-be"}
DOUBLE_BYTE = {
    Charset.SHIFT_JIS: "shift_jis",
    Charset.GB18030: "gb18030",
    Charset.EUC_JP: "euc_jp",
    Charset.BIG5: "big5",
    Charset.EUC_KR: "euc_kr",
}

_CYRILLIC = "".join(map(chr, range(0x410, 0x450)))  # capitals, then small letters
_KOI8_LETTERS = "юабцдефгхийклмнопярстужвьызшэщчъ"

# Characters of the bytes 0x80 to 0xFF; those below are ASCII in all sets.
UPPER_HALVES = {
    Charset.WINDOWS_1251: (
        "ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\x98™љ›њќћџ"
        "\xa0ЎўЈ¤Ґ¦§Ё©Є«¬\xad®Ї°±Ііґµ¶·ё№є»јЅѕї"
        f"{_CYRILLIC}"
    ),
    Charset.KOI8_R: (
        "─│┌┐└┘├┤┬┴┼▀▄█▌▐░▒▓⌠■∙√≈≤≥\xa0⌡°²·÷"
        "═║╒ё╓╔╕╖╗╘╙╚╛╜╝╞╟╠╡Ё╢╣╤╥╦╧╨╩╪╫╬©"
        f"{_KOI8_LETTERS}{_KOI8_LETTERS.upper()}"
    ),
    Charset.IBM_866: (
        f"{_CYRILLIC[:48]}"
        "░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀"
        f"{_CYRILLIC[48:]}ЁёЄєЇїЎў°∙·√№¤■\xa0"
    ),
    Charset.WINDOWS_1252: (
        "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ"
        + "".join(map(chr, range(0xA0, 0x100)))
    ),
}  # fmt: skip


def to_utf8(charset: Charset, content: bytes) -> bytes:
    """Return the content in UTF-8, at most three times as long.

    Args:
        content: any bytes; an even number of them for UTF-16.
    """
    if charset is Charset.PLAIN:
        return content
    if charset in UTF_16:
        assert len(content) % 2 == 0
        text = content.decode(UTF_16[charset], "surrogatepass")
        return text.encode("utf-8", "surrogatepass")
    if charset in DOUBLE_BYTE:
        return double_byte_set(DOUBLE_BYTE[charset]).to_utf8(content)
    return codecs.charmap_decode(content, "strict", _characters(charset))[0].encode()


def from_utf8(charset: Charset, text: bytes) -> bytes:
    """Return the content of which `to_utf8` makes the text, at most twice as long.

    Raises:
        UnmappableError: the text is not UTF-8, or has a character that the set lacks.
    """
    if charset is Charset.PLAIN:
        return text
    try:
        if charset in UTF_16:
            characters = text.decode("utf-8", "surrogatepass")
            return characters.encode(UTF_16[charset], "surrogatepass")
        if charset in DOUBLE_BYTE:
            return double_byte_set(DOUBLE_BYTE[charset]).from_utf8(text)
        return codecs.charmap_encode(text.decode(), "strict", _bytes_of_characters(charset))[0]
    except UnicodeError as error:
        raise UnmappableError(f"its text cannot be that of {charset.label}") from error


@cache
def _characters(charset: Charset) -> str:
    """The characters of the 256 bytes."""
    return "".join(map(chr, range(0x80))) + UPPER_HALVES[charset]


@cache
def _bytes_of_characters(charset: Charset) -> Any:
    return codecs.charmap_build(_characters(charset))
