"""The README says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from archiver.levels import LEVELS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_of_levels_is_the_program_s() -> None:
    rows = re.findall(r"^\| (\d) " + r"+\| ([\d,]+) " * 4 + r"+\|$", README, re.MULTILINE)
    listed = {
        int(level): tuple(int(cell.replace(",", "")) for cell in cells) for level, *cells in rows
    }
    assert listed == {
        number: (
            level.window_tokens,
            level.local_window_tokens,
            level.chunking.streams,
            level.chunking.tokens_min,
        )
        for number, level in LEVELS.items()
    }
