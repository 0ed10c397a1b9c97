"""Ways of writing the same text, exchanged: each swap undoes itself, whatever the bytes.

    line ends     CR LF               <-->  LF
    JSON          \\u043c              <-->  the character
    percent       %D0%BC%D0%B8...     <-->  % and the characters

What is written in the second way already comes to be written in the first, so nothing has to be
kept of the exceptions.  A compressor uses a swap where the first way is the usual one.

Source: FORMAT.md, "Swaps".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np

from archiver.types import UInt8Array

LF, CR = 0x0A, 0x0D
PART_BYTES = 1 << 16  # line ends are swapped in parts: each LF takes 60 bytes of memory

# Text is searched with bytes that are not UTF-8 as U+DC80 to U+DCFF, which stay as they are.
# Runs are matched without a way back ("++"), so that their length costs no memory.
NOT_ASCII = r"[\x80-\ud7ff\ue000-\U0010ffff]"


def swap_line_ends(text: bytes) -> bytes:
    """Return the text with a CR put before each LF without one, and the single CR before an LF
    taken away; two and more before an LF stay. At most twice as long."""
    parts = []
    begin = 0
    while begin < len(text):
        end = text.find(b"\n", begin + PART_BYTES) + 1 or len(text)
        parts.append(_swapped_line_ends(np.frombuffer(text[begin:end], np.uint8)))
        begin = end
    return b"".join(parts)


def _swapped_line_ends(lines: UInt8Array) -> bytes:
    """The swap of whole lines; the last one may have no end."""
    ends = np.flatnonzero(lines == LF)
    padded = np.concatenate((np.zeros(2, np.uint8), lines))  # [i] is two bytes before lines[i]
    after_one = padded[ends + 1] == CR
    single = after_one & (padded[ends] != CR)
    surplus = ends[single] - 1
    bare = ends[~after_one]
    without = np.delete(lines, surplus)
    return np.insert(without, bare - np.searchsorted(surplus, bare), CR).tobytes()


def swap_json_escapes(text: bytes, *, capitals: bool) -> bytes:
    """Return the text with characters beyond ASCII for their escapes, and escapes for these
    characters. At most three times as long.

    Args:
        capitals: escapes have the hexadecimal digits A to F, else a to f.
    """

    def swapped(match: re.Match[str]) -> str:
        run = match[0]
        if run[0] == "\\":
            return bytes.fromhex(run.replace("\\u", "")).decode("utf-16-be")
        digits = run.encode("utf-16-be").hex("-", 2)
        return "\\u" + (digits.upper() if capitals else digits).replace("-", "\\u")

    return _replaced(text, _json_runs(capitals), swapped)


def swap_percent_escapes(text: bytes, *, capitals: bool) -> bytes:
    """Return the text with "%" and characters beyond ASCII for their percent-encoding, and the
    reverse. At most three times as long.

    A run of such characters that is not wholly the one or the other stays.

    Args:
        capitals: escapes have the hexadecimal digits A to F, else a to f.
    """
    encoded, runs = _percent_runs(capitals)

    def swapped(match: re.Match[str]) -> str:
        run = match[0]
        if encoded.fullmatch(run):
            return "%" + bytes.fromhex(run.replace("%", "")).decode()
        if run[0] == "%" and "%" not in run[1:]:
            digits = run[1:].encode().hex("%")
            return "%" + (digits.upper() if capitals else digits)
        return run

    return _replaced(text, runs, swapped)


def _replaced(text: bytes, runs: re.Pattern[str], swapped: Callable[[re.Match[str]], str]) -> bytes:
    characters = text.decode("utf-8", "surrogateescape")
    return runs.sub(swapped, characters).encode("utf-8", "surrogateescape")


@cache
def _json_runs(capitals: bool) -> re.Pattern[str]:
    """Finds runs of escapes of characters beyond ASCII, as UTF-16 has them, or of these."""
    digit, d, high, low = (
        ("0-9A-F", "D", "89AB", "C-F") if capitals else ("0-9a-f", "d", "89ab", "c-f")
    )
    pair = rf"\\u{d}[{high}][{digit}]{{2}}\\u{d}[{low}][{digit}]{{2}}"
    single = rf"\\u(?!00[0-7]|{d}[{high}{low}])[{digit}]{{4}}"
    return re.compile(f"(?:{pair}|{single})++|{NOT_ASCII}++")


@cache
def _percent_runs(capitals: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Finds percent-encoded characters beyond ASCII, and runs of these with or without a "%"
    before them and such characters.

    What counts as encoded are the well-formed sequences of Unicode's table 3-7.
    """
    digit = "0-9A-F"
    tail = f"%[89AB][{digit}]"
    encoded = "|".join(
        (
            f"%(?:C[2-9A-F]|D[{digit}]){tail}",
            f"%(?:E0%[AB]|ED%[89]|E[1-9A-CEF]%[89AB])[{digit}]{tail}",
            f"%(?:F0%[9AB]|F4%8|F[1-3]%[89AB])[{digit}]{tail}{tail}",
        )
    )
    if not capitals:
        encoded = encoded.lower()
    return re.compile(f"(?:{encoded})++"), re.compile(f"(?:{encoded}|%?{NOT_ASCII})++")
