"""Character sets of East Asia, of one, two or four bytes a character: bytes to text and back.

    bytes ── units: a cell of two bytes, a single byte, four bytes of GB18030 ── characters

A table says which character each cell of two bytes has; none has two cells.  A byte 0x80 to 0xFF
that belongs to no character becomes the lone surrogate U+DC00 + byte, so that all bytes have a
text, and every text leads back to the bytes that it was made of.

Source: FORMAT.md, "Sets of two bytes".
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from archiver.types import UInt16Array

LEADS = range(0x81, 0xFF)
TRAILS = range(0x40, 0xFF)
NAMES = ("shift_jis", "gb18030", "euc_jp", "big5", "euc_kr")

STRAYS = 0xDC00  # a stray byte's surrogate less the byte
# Shift-JIS has the characters U+FF61 to U+FF9F in the single bytes 0xA1 to 0xDF.
HALF_WIDTH_BYTES, HALF_WIDTH = range(0xA1, 0xE0), 0xFF61 - 0xA1

# From here on, the first bytes of all sets are without gaps.
FULL_LEADS_MIN = 0xE0

# Below this, no byte is the second of two: where one is, a character begins after it.
SECOND_BYTE_MIN = 0x30
_IS_SECOND = bytes(byte >= SECOND_BYTE_MIN for byte in range(256))
# How far back to look for such a byte: a long paragraph of Chinese has none but at its end.
SEARCH_BYTES = 4096

# GB18030 has four bytes for what has no cell: numbers 0 to 39419 for the first plane, from
# 189000 on for the others.
HIGHER_PLANES = 189000
FOUR_BYTES = "[\x81-\xfe][0-9][\x81-\xfe][0-9]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleByteSet:
    """A character set.

    Attributes:
        units: finds each sequence of bytes beyond ASCII (as U+0000 to U+00FF) that is a
            character, or else a single byte.
        whole_units: matches ASCII and units, the last one only if it is complete.
        characters: the characters of a unit; codes: the bytes of a character's number.
    """

    units: re.Pattern[str]
    whole_units: re.Pattern[str]
    characters: Mapping[str, str]
    codes: Any  # a mapping from int to int or bytes, as charmap_encode takes it

    def to_utf8(self, content: bytes) -> bytes:
        """Return the content in UTF-8 with surrogates, at most three times as long."""
        characters = self.characters
        text = self.units.sub(lambda unit: characters[unit[0]], content.decode("latin-1"))
        return text.encode("utf-8", "surrogatepass")

    def from_utf8(self, text: bytes) -> bytes:
        """Return the content of a text, at most twice as long.

        Raises:
            UnicodeError: the text is not UTF-8 with surrogates, or has a character that the set
                lacks.
        """
        characters = text.decode("utf-8", "surrogatepass")
        return codecs.charmap_encode(characters, "strict", self.codes)[0]

    def boundary(self, content: bytes, at: int, begin: int = 0) -> int:
        """Return the last place at or before `at` where a character begins, as far as one can
        tell from what is shortly before.

        Args:
            at: 0 .. len(content).
            begin: where a character surely begins; what is returned is not before it.
        """
        if at <= begin:
            return begin
        sure = max(begin, at - SEARCH_BYTES)
        sure += content[sure:at].translate(_IS_SECOND).rfind(b"\0") + 1
        whole = self.whole_units.match(content[sure:at].decode("latin-1"))
        assert whole is not None
        return sure + whole.end()


@cache
def double_byte_set(name: str) -> DoubleByteSet:
    """Return the set of one of NAMES; its table is read when it is first asked for."""
    cells = table(name)
    places = np.argwhere(cells)
    places += (LEADS.start, TRAILS.start)
    cell_bytes = [bytes(place) for place in places.astype(np.uint8)]
    numbers = cells[cells != 0].tolist()
    codes: dict[int, int | bytes] = {number: number for number in range(0x80)}
    codes |= {STRAYS + byte: byte for byte in range(0x80, 0x100)}
    codes |= zip(numbers, cell_bytes, strict=True)
    characters = _Characters(
        (unit.decode("latin-1"), chr(number))
        for unit, number in zip(cell_bytes, numbers, strict=True)
    )
    incomplete = ""
    # Leads of no character are leads all the same, so that what follows is not read askew.
    leads = {*places[:, 0].tolist(), *range(FULL_LEADS_MIN, int(places[-1, 0]))}
    units_of_several = f"{_any_of(leads)}{_any_of(places[:, 1].tolist())}"
    if name == "shift_jis":
        codes |= {HALF_WIDTH + byte: byte for byte in HALF_WIDTH_BYTES}
        characters |= {chr(byte): chr(HALF_WIDTH + byte) for byte in HALF_WIDTH_BYTES}
    if name == "gb18030":
        others = _without_cell(cells)
        codes = _CodesOfGb18030(codes, others)
        characters = _CharactersOfGb18030(characters, others)
        incomplete = "(?:[0-9][\x81-\xfe]?)?"
        units_of_several = f"{FOUR_BYTES}|{units_of_several}"
    return DoubleByteSet(
        units=re.compile(f"{units_of_several}|[\x80-\xff]"),
        whole_units=re.compile(
            f"(?:[\0-\x7f]|{units_of_several}|[\x80-\xff](?!{incomplete}\\Z))*+"
        ),
        characters=characters,
        codes=codes,
    )


def table(name: str) -> UInt16Array:
    """Return uint16 [len(LEADS), len(TRAILS)]: the character of each cell, 0 for none."""
    stored = resources.files("archiver.text.tables").joinpath(f"{name}.zlib").read_bytes()
    low, high = np.frombuffer(zlib.decompress(stored), np.uint8).reshape(2, -1).astype(np.uint16)
    differences = low | high << 8
    sums = np.cumsum(differences, dtype=np.uint16)
    return np.where(differences == 0, 0, sums).astype(np.uint16).reshape(len(LEADS), len(TRAILS))


def packed(cells: UInt16Array) -> bytes:
    """Return a table as it is stored: each character's difference from the one before, modulo
    2^16, 0 for none; all low bytes, then all high bytes; by zlib."""
    differences = np.zeros(cells.size, np.uint16)
    differences[cells.ravel() != 0] = np.diff(cells[cells != 0], prepend=np.uint16(0))
    planes = differences.astype("<u2").view(np.uint8).reshape(-1, 2).T
    return zlib.compress(planes.tobytes(), 9)


def _any_of(numbers: Iterable[int]) -> str:
    return "[" + "".join(re.escape(chr(number)) for number in sorted(set(numbers))) + "]"


class _Characters(dict[str, str]):
    """Also of units that are no character: ASCII and stray bytes."""

    def __missing__(self, unit: str) -> str:
        return "".join(byte if byte < "\x80" else chr(STRAYS + ord(byte)) for byte in unit)


def _without_cell(cells: UInt16Array) -> UInt16Array:
    """The characters of the first plane, beyond ASCII, that have four bytes in GB18030."""
    numbers = np.arange(0x80, 0x10000)
    numbers = numbers[(numbers < 0xD800) | (numbers > 0xDFFF)]
    return np.setdiff1d(numbers, cells).astype(np.uint16)


class _CharactersOfGb18030(_Characters):
    def __init__(self, characters: dict[str, str], others: UInt16Array) -> None:
        super().__init__(characters)
        self._others = others.tolist()

    def __missing__(self, unit: str) -> str:
        if len(unit) == 4:
            first, second, third, fourth = unit.encode("latin-1")
            number = (first - 0x81) * 10 + second - 0x30
            number = (number * 126 + third - 0x81) * 10 + fourth - 0x30
            if number < len(self._others):
                return chr(self._others[number])
            if HIGHER_PLANES <= number < HIGHER_PLANES + 0x100000:
                return chr(number - HIGHER_PLANES + 0x10000)
        return super().__missing__(unit)


class _CodesOfGb18030(dict[int, int | bytes]):
    def __init__(self, codes: dict[int, int | bytes], others: UInt16Array) -> None:
        super().__init__(codes)
        self._numbers = {character: number for number, character in enumerate(others.tolist())}

    def __missing__(self, character: int) -> bytes:
        if character < 0x10000:
            number = self._numbers[character]
        else:
            number = HIGHER_PLANES + character - 0x10000
        number, fourth = divmod(number, 10)
        number, third = divmod(number, 126)
        first, second = divmod(number, 10)
        return bytes((0x81 + first, 0x30 + second, 0x81 + third, 0x30 + fourth))
