"""Records of experiments as text: for a terminal, and for the README."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks.resumable import Row
from benchmarks.table import NOTHING, aligned, markdown

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One table: what stands before it ("" for nothing), its cells, headings first, and notes."""

    name: str = ""
    cells: Sequence[Cells]
    notes: Sequence[str] = ()

    def for_terminal(self) -> str:
        """Return it as aligned lines."""
        return "\n".join([*filter(None, [self.name]), *aligned(self.cells), *self.notes])

    def for_readme(self) -> str:
        """Return it as Markdown."""
        return "\n\n".join([*filter(None, [self.name]), markdown(self.cells), *self.notes])


def tables(record: Mapping[str, Any]) -> str:
    """Return what is known so far: tables, and a line for each archive that failed."""
    blocks = [block.for_terminal() for block in _blocks(record)] or ["nothing was measured yet"]
    rows: Sequence[Row] = record["rows"]
    failures = [
        f"FAILED  {row['case']['span']['text']}, {row['case']['role']}: {row['failure']}"
        for row in rows
        if not row["verified"]
    ]
    return "\n\n".join([*blocks, *failures])


def excerpt(record: Mapping[str, Any]) -> str:
    """Return the record as Markdown: its title and tables."""
    blocks = [block.for_readme() for block in _blocks(record)]
    return "\n\n".join([f"**{record['title']}**", *blocks])


def _blocks(record: Mapping[str, Any]) -> list[Block]:
    good = [row for row in record["rows"] if row["verified"]]
    return _TABLES[record["experiment"]["kind"]](good) if good else []


def by_text(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each text, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["case"]["span"]["text"], []).append(row)
    return groups


def roles(rows: Iterable[Row]) -> dict[str, Row]:
    """Return rows by their role; of several, the first."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["case"]["role"], row)
    return found


def change(row: Row, plain: Row, part: str | None = None) -> float:
    """Return how much longer one archive is than the other, as a part; of one of their parts."""
    if part is None:
        return float(row["compressed_bytes"] / plain["compressed_bytes"] - 1)
    return float(row["parts"][part] / plain["parts"][part] - 1)


def pays_from(gains: Mapping[int, float]) -> float | None:
    """Return the length from which on steering pays; None if it does not at the greatest.

    Args:
        gains: by the text's length, what part of the archive is saved, negative for a loss.

    Returns:
        where the gain passes 0 for the last time, on a line over the logarithm of the length
        between two that were measured; the smallest length if all gain.
    """
    places = sorted(gains)
    if not places or gains[places[-1]] <= 0:
        return None
    above = places[-1]
    for below in reversed(places[:-1]):
        if gains[below] <= 0:
            part = gains[below] / (gains[below] - gains[above])
            return math.exp(math.log(below) + part * (math.log(above) - math.log(below)))
        above = below
    return float(above)


def _percent(part: float | None) -> str:
    return NOTHING if part is None else f"{100 * part:+.2f} %"


def _seconds(row: Row) -> Cells:
    return (f"{row['compress']['wall_s']:.1f}", f"{row['decompress']['wall_s']:.1f}")


def _headed(rows: Sequence[Row], cells: Sequence[Cells]) -> Block:
    span = rows[0]["case"]["span"]
    return Block(name=f"{span['text']}, {rows[0]['input']['bytes']:,} bytes", cells=cells)


def _chunks(rows: Sequence[Row]) -> list[Block]:
    blocks = []
    for group in by_text(rows).values():
        table: list[Cells] = [
            ("", "text bytes", "of the text", "all bytes", "bpb", "comp s", "dec s")
        ]
        for row in group:
            payload = row["parts"]["payload_bytes"]
            table.append(
                (
                    row["case"]["role"], f"{payload:,}", f"{payload / row['input']['bytes']:.4f}",
                    f"{row['compressed_bytes']:,}", f"{row['bpb']:.4f}", *_seconds(row),
                )
            )  # fmt: skip
        blocks.append(_headed(group, table))
    return blocks


def _kinds(rows: Sequence[Row]) -> list[Block]:
    blocks = []
    for group in by_text(rows).values():
        plain = roles(group).get("none")
        table: list[Cells] = [
            ("steering", "chosen", "vectors", "side bytes", "text bytes", "change", "all bytes",
             "change", "comp s", "dec s"),
        ]  # fmt: skip
        for row in group:
            parts, steering = row["parts"], row["details"].get("steering") or {}
            table.append(
                (
                    row["case"]["role"], steering.get("name") or steering.get("kind") or NOTHING,
                    str(steering.get("vectors") or NOTHING),
                    f"{parts['side_information_bytes']:,}", f"{parts['payload_bytes']:,}",
                    _percent(change(row, plain, "payload_bytes") if plain else None),
                    f"{row['compressed_bytes']:,}", _percent(change(row, plain) if plain else None),
                    *_seconds(row),
                )
            )  # fmt: skip
        blocks.append(_headed(group, table))
    return blocks


def _priors(rows: Sequence[Row]) -> list[Block]:
    blocks = []
    for group in by_text(rows).values():
        plain = roles(group).get("none")
        table: list[Cells] = [
            ("prior", "vector bits", "a coordinate", "entropy", "in all", "MSE", "float32 /",
             "text bits", "change", "all bytes", "change"),
        ]  # fmt: skip
        for row in group:
            facts = row["details"].get("vectors")
            vector: Cells = (NOTHING,) * 6
            if facts:
                entropy, error = facts["entropy_bits"], row.get("training", {}).get("square_error")
                vector = (
                    f"{8 * facts['bytes']:,}", f"{8 * facts['bytes'] / facts['coordinates']:.4f}",
                    f"{entropy:.4f}", f"{entropy * facts['coordinates']:,.0f}",
                    NOTHING if error is None else f"{error:.2e}", f"{facts['compression']:.1f}",
                )  # fmt: skip
            table.append(
                (
                    row["case"]["role"], *vector, f"{8 * row['parts']['payload_bytes']:,}",
                    _percent(change(row, plain, "payload_bytes") if plain else None),
                    f"{row['compressed_bytes']:,}", _percent(change(row, plain) if plain else None),
                )
            )  # fmt: skip
        blocks.append(_headed(group, table))
    return blocks


def gains(group: Iterable[Row]) -> dict[str, dict[int, float]]:
    """Return, by number of vectors and the text's length, what part of the archive they save."""
    plain: dict[int, Row] = {}
    found: dict[str, dict[int, float]] = {}
    for row in group:
        size, role = row["input"]["bytes"], row["case"]["role"]
        if role == "none":
            plain[size] = row
        elif size in plain:
            found.setdefault(role, {})[size] = -change(row, plain[size])
    return found


def _growth(rows: Sequence[Row]) -> list[Block]:
    blocks = []
    for name, group in by_text(rows).items():
        table: list[Cells] = [
            ("bytes", "vectors", "side bytes", "text bytes", "change", "all bytes", "change",
             "comp s", "dec s"),
        ]  # fmt: skip
        plain: dict[int, Row] = {}
        for row in group:
            size, role, parts = row["input"]["bytes"], row["case"]["role"], row["parts"]
            if role == "none":
                plain[size] = row
            without = plain.get(size)
            table.append(
                (
                    f"{size:,}", role, f"{parts['side_information_bytes']:,}",
                    f"{parts['payload_bytes']:,}",
                    _percent(change(row, without, "payload_bytes") if without else None),
                    f"{row['compressed_bytes']:,}",
                    _percent(change(row, without) if without else None), *_seconds(row),
                )
            )  # fmt: skip
        notes = []
        for vectors, by_size in gains(group).items():
            size_bytes = pays_from(by_size)
            if size_bytes is None:
                notes.append(f"k = {vectors}: does not pay up to {max(by_size):,} bytes")
            else:
                at_most = " or fewer" if size_bytes <= min(by_size) else ""
                notes.append(f"k = {vectors}: pays from {size_bytes:,.0f} bytes{at_most}")
        blocks.append(Block(name=name, cells=table, notes=notes))
    return blocks


def _halves(rows: Sequence[Row]) -> list[Block]:
    table: list[Cells] = [
        ("second half of", "bytes", "none", "auto", "change", "file", "change", "file's bytes")
    ]
    for name, group in by_text(rows).items():
        ways = roles(group)
        plain = ways.get("none")
        cells = [name, f"{group[0]['input']['bytes']:,}",
                 f"{plain['compressed_bytes']:,}" if plain else NOTHING]  # fmt: skip
        for role in ("auto", "file"):
            row = ways.get(role)
            cells.append(f"{row['compressed_bytes']:,}" if row else NOTHING)
            cells.append(_percent(change(row, plain) if row and plain else None))
        file = ways.get("file")
        cells.append(f"{file['training']['file_bytes']:,}" if file else NOTHING)
        table.append(tuple(cells))
    note = "The file's own bytes are not counted: it serves any number of archives."
    return [Block(cells=table, notes=[note])]


def pairs(rows: Iterable[Row]) -> dict[str, dict[str, tuple[Row, Row]]]:
    """Return, by chunks and by text, the archives without steering and with llmzip's choice."""
    found: dict[str, dict[str, tuple[Row, Row]]] = {}
    plain: dict[tuple[str, str], Row] = {}
    for row in rows:
        tokens = row["case"]["settings"].get("chunk_tokens")
        chunks = "default" if tokens is None else f"{tokens:,} tokens"
        text = row["case"]["span"]["text"]
        if row["case"]["role"] == "none":
            plain[chunks, text] = row
        elif (chunks, text) in plain:
            found.setdefault(chunks, {})[text] = (plain[chunks, text], row)
    return found


def _choice(rows: Sequence[Row]) -> list[Block]:
    blocks = []
    for chunks, by_name in pairs(rows).items():
        table: list[Cells] = [
            ("text", "bytes", "none", "auto", "change", "chosen", "choosing s", "of comp s",
             "comp s", "without"),
        ]  # fmt: skip
        for name, (plain, row) in by_name.items():
            steering = row["details"].get("steering") or {}
            choosing_s, wall_s = row["details"]["choosing_s"], row["compress"]["wall_s"]
            table.append(
                (
                    name, f"{row['input']['bytes']:,}", f"{plain['compressed_bytes']:,}",
                    f"{row['compressed_bytes']:,}", _percent(change(row, plain)),
                    steering.get("name") or NOTHING, f"{choosing_s:.2f}",
                    f"{100 * choosing_s / wall_s:.1f} %", f"{wall_s:.1f}",
                    f"{plain['compress']['wall_s']:.1f}",
                )
            )  # fmt: skip
        changes = [change(row, plain) for plain, row in by_name.values()]
        choosing_s = sum(row["details"]["choosing_s"] for _, row in by_name.values())
        wall_s = sum(row["compress"]["wall_s"] for _, row in by_name.values())
        note = (
            f"mean change {_percent(sum(changes) / len(changes))}, "
            f"larger {sum(part > 0 for part in changes)} of {len(changes)}, "
            f"choosing {100 * choosing_s / wall_s:.1f} % of compress time in all"
        )
        blocks.append(Block(name=f"chunks: {chunks}", cells=table, notes=[note]))
    return blocks


_TABLES: Mapping[str, Callable[[Sequence[Row]], list[Block]]] = MappingProxyType(
    {
        "chunks": _chunks,
        "kinds": _kinds,
        "priors": _priors,
        "growth": _growth,
        "halves": _halves,
        "choice": _choice,
    }
)
