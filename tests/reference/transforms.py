"""A frame's text to its content: the fields of transforms, character sets, swaps.

Slow and literal, a byte or a character at a time.

Source: FORMAT.md, "Transforms".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.reference.container import MalformedError, read_varint

LARGEST_TEXT_FACTOR = 3
LARGEST_SEGMENTS = 4096

SEGMENTS = 1
JSON_SMALL, JSON_CAPITAL, PERCENT_SMALL, PERCENT_CAPITAL, LINE_ENDS = 2, 4, 8, 16, 32
ALL = SEGMENTS | JSON_SMALL | JSON_CAPITAL | PERCENT_SMALL | PERCENT_CAPITAL | LINE_ENDS

PLAIN, UTF_16_LE, UTF_16_BE = 0, 1, 2
EIGHT_BIT_CODECS = {3: "cp1251", 4: "koi8_r", 5: "cp866", 6: "cp1252"}
SHIFT_JIS, GB18030, EUC_JP, BIG5, EUC_KR = 7, 8, 9, 10, 11
TWO_BYTE_CODECS = {GB18030: "gb18030", BIG5: "cp950", EUC_KR: "cp949"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields.

    Attributes:
        segments: character set and length of each, None for that of the last.
        end: the offset after them.
    """

    transforms: int
    text_bytes: int
    segments: list[tuple[int, int | None]]
    end: int


def read_fields(payload: bytes, offset: int, content_bytes: int) -> Fields:
    """The fields at `offset`, and where they end.

    Raises:
        MalformedError: one is missing, or not in its limits.
    """
    if offset == len(payload):
        raise MalformedError("no transforms")
    transforms = payload[offset]
    if transforms == 0 or transforms | ALL != ALL:
        raise MalformedError(f"transforms {transforms}")
    text_bytes, offset = read_varint(payload, offset + 1)
    if not 1 <= text_bytes <= LARGEST_TEXT_FACTOR * content_bytes:
        raise MalformedError(f"{text_bytes} bytes of text")
    segments: list[tuple[int, int | None]] = []
    if transforms & SEGMENTS:
        count, offset = read_varint(payload, offset)
        if not 1 <= count <= LARGEST_SEGMENTS or offset + count > len(payload):
            raise MalformedError(f"{count} segments")
        charsets = payload[offset : offset + count]
        if max(charsets) > EUC_KR:
            raise MalformedError("a character set is unknown")
        offset += count
        for charset in charsets[:-1]:
            length, offset = read_varint(payload, offset)
            segments.append((charset, length))
        segments.append((charsets[-1], None))
    return Fields(transforms=transforms, text_bytes=text_bytes, segments=segments, end=offset)


def undo(fields: Fields, text: bytes, content_bytes: int) -> bytes:
    """The content of which this is the text.

    Raises:
        MalformedError: there is none.
    """
    for number, swap in (
        (LINE_ENDS, swap_line_ends),
        (PERCENT_CAPITAL, lambda data: swap_percent(data, "0123456789ABCDEF")),
        (PERCENT_SMALL, lambda data: swap_percent(data, "0123456789abcdef")),
        (JSON_CAPITAL, lambda data: swap_json(data, "0123456789ABCDEF")),
        (JSON_SMALL, lambda data: swap_json(data, "0123456789abcdef")),
    ):
        if fields.transforms & number:
            text = swap(text)
            if len(text) > LARGEST_TEXT_FACTOR * content_bytes:
                raise MalformedError("a swap makes too many bytes")
    if not fields.segments:
        return text
    content = b""
    for charset, length in fields.segments:
        if length is None:
            length = len(text)
        if length > len(text):
            raise MalformedError("the segments are longer than the text")
        content += _in_charset(charset, text[:length])
        text = text[length:]
    return content


# Character sets


def _in_charset(charset: int, segment: bytes) -> bytes:
    if charset == PLAIN:
        return segment
    if charset in (UTF_16_LE, UTF_16_BE):
        order = "little" if charset == UTF_16_LE else "big"
        units = [unit for number in _with_surrogates(segment) for unit in _utf_16(number)]
        return b"".join(unit.to_bytes(2, order) for unit in units)
    if charset >= SHIFT_JIS:
        return b"".join(_bytes_of(charset, number) for number in _with_surrogates(segment))
    table = {_character(EIGHT_BIT_CODECS[charset], byte): byte for byte in range(256)}
    assert len(table) == 256
    try:
        return bytes(table[character] for character in segment.decode())
    except (UnicodeDecodeError, KeyError) as error:
        raise MalformedError(f"a segment is not of character set {charset}") from error


def _character(codec: str, byte: int) -> str:
    try:
        return bytes([byte]).decode(codec)
    except UnicodeDecodeError:
        return chr(byte)


def _bytes_of(charset: int, number: int) -> bytes:
    """A character, or a stray byte, in a set of two bytes."""
    if number < 0x80:
        return bytes([number])
    if 0xDC80 <= number <= 0xDCFF:
        return bytes([number - 0xDC00])
    if charset == SHIFT_JIS and 0xFF61 <= number <= 0xFF9F:
        return bytes([number - 0xFF61 + 0xA1])
    cells = _cells(charset)
    if number in cells:
        return cells[number]
    if charset != GB18030 or 0xD800 <= number <= 0xDFFF:
        raise MalformedError(f"a segment is not of character set {charset}")
    n = number - 0x10000 + 189000 if number >= 0x10000 else _without_cell()[number]
    return bytes([n // 12600 + 0x81, n // 1260 % 10 + 0x30, n // 10 % 126 + 0x81, n % 10 + 0x30])


@cache
def _cells(charset: int) -> dict[int, bytes]:
    """The cell of each character that has one."""
    cells: dict[int, bytes] = {}
    for first in range(0x81, 0xFF):
        for second in range(0x40, 0xFF):
            cell = bytes([first, second])
            try:
                if charset == SHIFT_JIS:
                    text = "" if first in (0xED, 0xEE) else cell.decode("cp932")
                elif charset == EUC_JP:
                    text = _of_euc_jp(first, second)
                else:
                    text = cell.decode(
                        {GB18030: "gb18030", BIG5: "cp950", EUC_KR: "cp949"}[charset]
                    )
            except UnicodeDecodeError:
                continue
            if len(text) == 1:
                cells.setdefault(ord(text), cell)
    return cells


def _of_euc_jp(first: int, second: int) -> str:
    if first == 0x8E and 0xA1 <= second <= 0xDF:
        return bytes([second]).decode("cp932")
    if first < 0xA1 or second < 0xA1:
        return ""
    p = 94 * (first - 0xA1) + second - 0xA1
    high = p // 188 + (0x81 if p // 188 < 31 else 0xC1)
    low = p % 188 + (0x40 if p % 188 < 63 else 0x41)
    return bytes([high, low]).decode("cp932")


@cache
def _without_cell() -> dict[int, int]:
    """The number of each character below U+10000 that has four bytes in GB18030."""
    surrogates = range(0xD800, 0xE000)
    cells = _cells(GB18030)
    others = [n for n in range(0x80, 0x10000) if n not in cells and n not in surrogates]
    return {character: index for index, character in enumerate(others)}


def _with_surrogates(segment: bytes) -> Iterator[int]:
    """The code points of UTF-8 that may have surrogates."""
    at = 0
    while at < len(segment):
        for size in (1, 2, 3, 4):
            part = segment[at : at + size]
            if part[0] == 0xED and len(part) == 3 and 0xA0 <= part[1] < 0xC0 and part[2] >> 6 == 2:
                yield 0xD000 | (part[1] & 0x3F) << 6 | part[2] & 0x3F
                break
            if _is_character(part):
                yield ord(part.decode())
                break
        else:
            raise MalformedError("a segment is not UTF-8")
        at += size


def _utf_16(number: int) -> list[int]:
    if number < 0x10000:
        return [number]
    return [0xD800 + (number - 0x10000) // 0x400, 0xDC00 + number % 0x400]


# Swaps


def swap_line_ends(data: bytes) -> bytes:
    """LF for CR LF, and the reverse."""
    lines = data.split(b"\n")
    for index, line in enumerate(lines[:-1]):
        if not line.endswith(b"\r"):
            lines[index] = line + b"\r"
        elif not line.endswith(b"\r\r"):
            lines[index] = line[:-1]
    return b"\n".join(lines)


def swap_json(data: bytes, digits: str) -> bytes:
    """Characters for their escapes, and the reverse."""
    swapped = b""
    at = 0
    while at < len(data):
        character = _character_at(data, at)
        if character:
            swapped += b"".join(
                b"\\u" + _hex(unit >> 8, digits) + _hex(unit & 255, digits)
                for unit in _utf_16(ord(character))
            )
            at += len(character.encode())
            continue
        high = _unit_at(data, at, digits)
        low = _unit_at(data, at + 6, digits)
        if high is not None and high >= 0x80 and not 0xD800 <= high < 0xE000:
            swapped += chr(high).encode()
            at += 6
        elif high is not None and low is not None and high >> 10 == 0x36 and low >> 10 == 0x37:
            swapped += chr(0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00).encode()
            at += 12
        else:
            swapped += data[at : at + 1]
            at += 1
    return swapped


def _unit_at(data: bytes, at: int, digits: str) -> int | None:
    escape = data[at : at + 6].decode("latin-1")
    if len(escape) == 6 and escape.startswith("\\u") and all(d in digits for d in escape[2:]):
        return int(escape[2:], 16)
    return None


def swap_percent(data: bytes, digits: str) -> bytes:
    """A "%" and characters for their encodings, and the reverse."""
    swapped = b""
    at = 0
    while at < len(data):
        # A run: "e" for an encoding, "m" for a marked character, "c" for a character.
        kinds, characters, end = "", "", at
        while end < len(data):
            encoded = _encoding_at(data, end, digits)
            marked = _character_at(data, end + 1) if data[end] == ord("%") else ""
            bare = _character_at(data, end)
            found = encoded or marked or bare
            if not found:
                break
            kinds += "e" if encoded else "m" if marked else "c"
            characters += found
            end += len(found.encode()) * (3 if encoded else 1) + (not encoded and bool(marked))
        if not kinds:
            swapped += data[at : at + 1]
            at += 1
            continue
        if set(kinds) == {"e"}:
            swapped += b"%" + characters.encode()
        elif kinds[0] == "m" and set(kinds[1:]) <= {"c"}:
            swapped += b"".join(b"%" + _hex(byte, digits) for byte in characters.encode())
        else:
            swapped += data[at:end]
        at = end
    return swapped


def _encoding_at(data: bytes, at: int, digits: str) -> str:
    """The character that is encoded there; empty when there is none."""
    found = b""
    for start in range(at, at + 12, 3):
        part = data[start : start + 3].decode("latin-1")
        if len(part) < 3 or part[0] != "%" or part[1] not in digits or part[2] not in digits:
            break
        found += bytes([int(part[1:], 16)])
        if len(found) > 1 and _is_character(found):
            return found.decode()
    return ""


def _character_at(data: bytes, at: int) -> str:
    """The character beyond ASCII there; empty when there is none."""
    for size in (2, 3, 4):
        if _is_character(data[at : at + size]) and len(data[at : at + size]) == size:
            return data[at : at + size].decode()
    return ""


def _is_character(part: bytes) -> bool:
    try:
        return len(part.decode()) == 1
    except UnicodeDecodeError:
        return False


def _hex(byte: int, digits: str) -> bytes:
    return (digits[byte >> 4] + digits[byte & 15]).encode()
