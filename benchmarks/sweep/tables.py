"""Records of sweeps as text for a terminal: a table a series and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from archiver.levels import DEFAULT_LEVEL
from benchmarks.environment import BUSY_CORES_MAX
from benchmarks.records import rate
from benchmarks.resumable import Row, key_of
from benchmarks.sweep.experiment import AXES, BUSY, BYTES, name_of
from benchmarks.table import NOTHING, aligned, change, markdown

DIRECTIONS = ("compress", "decompress")
MB = 1_000_000

# The value that others are compared with, by axis.
REFERENCES: Mapping[str, int] = MappingProxyType(
    {BYTES: MB, "threads": 1, "level": DEFAULT_LEVEL, BUSY: 0}
)

_HEADINGS = (
    "archive", "bpb", "streams", "comp s", "dec s", "comp tok/s", "dec tok/s", "comp B/s",
    "dec B/s", "comp MB", "dec MB",
)  # fmt: skip
_SPENT = ("comp s", "dec s", "comp MB", "dec MB")
_MORE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        BYTES: ("comp s/MB", "of 1 MB's", "dec s/MB", "of 1 MB's"),
        "threads": ("comp speed-up", "dec speed-up"),
        BUSY: ("comp speed", "dec speed"),
        "level": (f"bytes to {DEFAULT_LEVEL}", f"comp s to {DEFAULT_LEVEL}",
                  f"dec s to {DEFAULT_LEVEL}"),
    }
)  # fmt: skip
_BUSY = "*"
_BUSY_NOTE = f"{_BUSY} other programs kept more than {BUSY_CORES_MAX} cores busy just before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The decoded archives of one series and one text, by value, in the series' order."""

    series: Mapping[str, Any]
    text: str
    rows: dict[int, Row]

    @property
    def reference(self) -> Row | None:
        """What the others are compared with, where it is there."""
        return self.rows.get(REFERENCES.get(self.series["axis"], -1))

    @property
    def name(self) -> str:
        """What tables call it."""
        limit = self.series["limit_bytes"]
        settings = [f"{name} {value}" for name, value in self.series["llmzip"].items()]
        parts = [self.text, *([] if limit is None else [f"{limit:,} bytes"]), *settings]
        return f"{self.series['name']}: {', '.join(parts)}"


def lines_of(record: Mapping[str, Any]) -> list[Line]:
    """Return what was measured, series by series and text by text; nothing empty."""
    row_of = {key_of(row["case"]): row for row in record["rows"] if row["verified"]}
    found = []
    for series in record["series"]:
        for text in series["texts"]:
            rows = {
                point["value"]: row_of[key_of(point["case"])]
                for point in series["points"]
                if point["text"] == text and key_of(point["case"]) in row_of
            }
            if rows:
                found.append(Line(series=series, text=text, rows=rows))
    return found


def tables(record: Mapping[str, Any]) -> str:
    """Return what is known so far: tables, and a line for each archive that failed."""
    blocks = [_table(line) for line in lines_of(record)] or ["nothing was measured yet"]
    failures = [
        f"FAILED  {name_of(row['case'])}: {row['failure']}"
        for row in record["rows"]
        if not row["verified"]
    ]
    return "\n\n".join([*blocks, *failures])


def wall_s(row: Row, direction: str) -> float:
    """Return the seconds of one direction."""
    return float(row[direction]["wall_s"])


def s_per_mb(row: Row, direction: str) -> float:
    """Return the seconds that a million bytes of the text took, one way."""
    return float(wall_s(row, direction) / row["input"]["bytes"] * MB)


def was_busy(row: Row) -> bool:
    """Return whether other programs kept cores busy when the archive was begun."""
    return (row["busy_cores_before"] or 0.0) > BUSY_CORES_MAX


def _table(line: Line) -> str:
    axis = line.series["axis"]
    table: list[tuple[str, ...]] = [(AXES[axis], *_HEADINGS, *_MORE.get(axis, ()))]
    for value, row in line.rows.items():
        table.append((f"{value:,}", *_cells(row), *_compared(axis, row, line.reference)))
    return "\n".join([line.name, *aligned(table), *_notes(line)])


def _notes(line: Line) -> list[str]:
    return [_BUSY_NOTE] if any(map(was_busy, line.rows.values())) else []


def _seconds(row: Row) -> list[str]:
    return [f"{wall_s(row, direction):.1f}{_BUSY * was_busy(row)}" for direction in DIRECTIONS]


def _peaks(row: Row) -> list[str]:
    return [f"{row[direction]['peak_bytes'] / 1e6:,.0f}" for direction in DIRECTIONS]


def _cells(row: Row) -> tuple[str, ...]:
    details = row["details"]
    speeds = [
        NOTHING if speed is None else f"{speed:,.0f}"
        for count in (details["tokens"] or None, row["input"]["bytes"])
        for direction in DIRECTIONS
        for speed in [None if count is None else rate(count, wall_s(row, direction))]
    ]
    return (
        f"{row['compressed_bytes']:,}",
        f"{row['bpb']:.4f}",
        str(max(details["streams"], default=NOTHING)),
        *_seconds(row),
        *speeds,
        *_peaks(row),
    )


def _compared(axis: str, row: Row, reference: Row | None) -> Sequence[str]:
    """The cells of an axis' own columns."""
    if axis == BYTES:
        cells = []
        for direction in DIRECTIONS:
            spent = s_per_mb(row, direction)
            part = None if reference is None else spent / s_per_mb(reference, direction)
            cells += [f"{spent:.1f}", NOTHING if part is None else f"{part:.3f}"]
        return cells
    if axis not in _MORE:
        return ()
    if reference is None:
        return (NOTHING,) * len(_MORE[axis])
    times = [(wall_s(row, direction), wall_s(reference, direction)) for direction in DIRECTIONS]
    if axis in ("threads", BUSY):
        return [f"{other / own:.2f}" for own, other in times]
    archives = change(row["compressed_bytes"], reference["compressed_bytes"])
    return [archives, *(change(own, other) for own, other in times)]


def excerpt(record: Mapping[str, Any]) -> str:
    """Return the record as Markdown: a table a series and text, with less than `tables` has.

    What has one row only compares nothing, and is left out.
    """
    blocks = []
    for line in lines_of(record):
        if len(line.rows) == 1:
            continue
        axis = line.series["axis"]
        rows = [(AXES[axis], "archive", "bpb", *_SPENT, *_MORE.get(axis, ()))]
        for value, row in line.rows.items():
            size = (f"{value:,}", f"{row['compressed_bytes']:,}", f"{row['bpb']:.3f}")
            compared = _compared(axis, row, line.reference)
            rows.append((*size, *_seconds(row), *_peaks(row), *compared))
        blocks += [line.name, markdown(rows), *_notes(line)]
    return "\n\n".join(blocks)
