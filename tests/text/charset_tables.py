"""Makes the tables of the character sets of two bytes, from the codecs of Python.

    python -m tests.text.charset_tables

The tables are part of the format: they never change.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archiver.text import double_byte
from archiver.text.double_byte import LEADS, TRAILS, packed

Cell = Callable[[int, int], bytes]


def _as_it_is(lead: int, trail: int) -> bytes:
    return bytes((lead, trail))


def _shift_jis(lead: int, trail: int) -> bytes:
    """Nothing for the rows in which NEC repeats characters of IBM that Windows writes."""
    return b"" if lead in (0xED, 0xEE) else bytes((lead, trail))


def _euc_jp(lead: int, trail: int) -> bytes:
    """The same place of the 94 times 94 of JIS X 0208 in Shift-JIS, or half-width katakana."""
    if lead == 0x8E and 0xA1 <= trail <= 0xDF:
        return bytes((trail,))
    if lead < 0xA1 or trail < 0xA1:
        return b""
    first, second = divmod((lead - 0xA1) * 94 + trail - 0xA1, 188)
    return bytes((first + (0x81 if first < 0x1F else 0xC1), second + 0x40 + (second >= 0x3F)))


# The codec for each set, and the bytes that a cell has in it.
SOURCES: dict[str, tuple[str, Cell]] = {
    "shift_jis": ("cp932", _shift_jis),
    "gb18030": ("gb18030", _as_it_is),
    "euc_jp": ("cp932", _euc_jp),
    "big5": ("cp950", _as_it_is),
    "euc_kr": ("cp949", _as_it_is),
}


def make_table(name: str) -> NDArray[np.uint16]:
    """The table of a set: what its codec has in each cell, a character in the first of several."""
    codec, cell = SOURCES[name]
    found = np.zeros((len(LEADS), len(TRAILS)), np.uint16)
    seen = set()
    for row, lead in enumerate(LEADS):
        for column, trail in enumerate(TRAILS):
            character = _character(cell(lead, trail), codec)
            if character is None or character in seen:
                continue
            seen.add(character)
            found[row, column] = ord(character)
    return found


def _character(code: bytes, codec: str) -> str | None:
    """The only character of these bytes."""
    try:
        text = code.decode(codec)
    except UnicodeDecodeError:
        return None
    return text if len(text) == 1 else None


def main() -> None:
    folder = Path(double_byte.__file__).parent / "tables"
    for name in SOURCES:
        (folder / f"{name}.zlib").write_bytes(packed(make_table(name)))


if __name__ == "__main__":
    main()
