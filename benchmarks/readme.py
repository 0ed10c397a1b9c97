"""The README's tables of results, made from records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.predictors.tables import excerpt
from benchmarks.table import NOTHING, markdown


class ReadmeError(Exception):
    """The README cannot be brought up to date; the message is for the user."""


def update_readme(readme: Path, record_path: Path) -> None:
    """The README holds the record's table between the two marks of its benchmark.

    Raises:
        ReadmeError: the README lacks a mark, or the benchmark has no table there.
    """
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        mark, text_of = _EXCERPTS[record["benchmark"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ReadmeError(f"{record_path}: no record of {' or '.join(_EXCERPTS)}") from error
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = readme.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ReadmeError(f"{readme.name} lacks {begin} or {end}")
    readme.write_text(f"{before}{begin}\n{text_of(record)}\n{end}{after}", encoding="utf-8")


def results_text(record: Mapping[str, Any]) -> str:
    """The record as Markdown: conditions, then bits a byte of every file and program."""
    results: Sequence[Mapping[str, Any]] = record["results"]
    programs = list(dict.fromkeys(result["program"] for result in results))
    sizes = {entry["file"]: entry["bytes"] for entry in record["inputs"]}
    rows = [["file", "bytes", *programs, "in kB/s", "out kB/s"]]
    for name, size in sizes.items():
        by_program = {r["program"]: r for r in results if r["file"] == name}
        cells = [_bpb(by_program.get(program)) for program in programs]
        own = by_program.get("llmzip")
        rows.append([name, f"{size:,}", *cells, *_speeds(own)])
    return f"{_conditions(record)}\n\n{markdown(rows)}"


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
        return NOTHING
    return f"{result['bpb']:.3f}"


def _speeds(result: Mapping[str, Any] | None) -> list[str]:
    if result is None or not result["verified"]:
        return [NOTHING, NOTHING]
    return [
        f"{result[direction]['bytes_per_s'] / 1000:.2f}" for direction in ("compress", "decompress")
    ]


_EXCERPTS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = MappingProxyType(
    {"files": ("results", results_text), "predictors": ("predictors", excerpt)}
)
