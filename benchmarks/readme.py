"""The README's table of results, made from a record of `files`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def update_readme(readme: Path, record_path: Path) -> None:
    """The README holds the record's table between its two marks.

    Raises:
        ValueError: the README lacks a mark.
    """
    record = json.loads(record_path.read_text(encoding="utf-8"))
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme.name} lacks {BEGIN} or {END}")
    readme.write_text(f"{before}{BEGIN}\n{results_text(record)}\n{END}{after}", encoding="utf-8")


def results_text(record: Mapping[str, Any]) -> str:
    """The record as Markdown: conditions, then bits a byte of every file and program."""
    results: Sequence[Mapping[str, Any]] = record["results"]
    programs = list(dict.fromkeys(result["program"] for result in results))
    sizes = {entry["file"]: entry["bytes"] for entry in record["inputs"]}
    lines = [_conditions(record), "", _row(["file", "bytes", *programs, "in kB/s", "out kB/s"])]
    lines.append(_row(["---"] + ["---:"] * (len(programs) + 3)))
    for name, size in sizes.items():
        by_program = {r["program"]: r for r in results if r["file"] == name}
        cells = [_bpb(by_program.get(program)) for program in programs]
        own = by_program.get("llmzip")
        lines.append(_row([name, f"{size:,}", *cells, *_speeds(own)]))
    return "\n".join(lines)


def _conditions(record: Mapping[str, Any]) -> str:
    hardware = record["hardware"]
    return (
        "Bits a byte (8 x archive / file), each archive decoded in a fresh process and compared; "
        f"llmzip's speeds both ways with start-up. {hardware['cpu']}, "
        f"{hardware['cores']} cores, {record['date'][:10]}. The model, "
        "165 MB, is not counted."
    )


def _bpb(result: Mapping[str, Any] | None) -> str:
    if result is None or not result["verified"]:
        return "-"
    return f"{result['bpb']:.3f}"


def _speeds(result: Mapping[str, Any] | None) -> list[str]:
    if result is None or not result["verified"]:
        return ["-", "-"]
    return [
        f"{result[direction]['bytes_per_s'] / 1000:.2f}" for direction in ("compress", "decompress")
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
