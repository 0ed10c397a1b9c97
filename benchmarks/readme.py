"""The README's tables of results, made from records.

Records of `files` and `stepwise` give one table of sizes together, of whatever files and programs
they have, and those of `stepwise`, which are timed with nothing else running, one of speeds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from benchmarks.predictors.tables import excerpt
from benchmarks.table import NOTHING, markdown

Record: TypeAlias = Mapping[str, Any]

_OWN = "llmzip"


class ReadmeError(Exception):
    """The README cannot be brought up to date; the message is for the user."""


def update_readme(readme: Path, record_paths: Sequence[Path]) -> None:
    """The README holds the records' tables between the two marks of their benchmark.

    Raises:
        ReadmeError: the README lacks a mark, or the records have no table there.
    """
    records, excerpts = [], []
    for path in record_paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            excerpts.append(_EXCERPTS[record["benchmark"]])
        except (ValueError, KeyError, TypeError) as error:
            raise ReadmeError(f"{path}: no record of {', '.join(_EXCERPTS)}") from error
        records.append(record)
    if len(set(excerpts)) != 1:
        raise ReadmeError("these records have no table together")
    mark, text_of = excerpts[0]
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = readme.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ReadmeError(f"{readme.name} lacks {begin} or {end}")
    readme.write_text(f"{before}{begin}\n{text_of(records)}\n{end}{after}", encoding="utf-8")


def results_text(records: Sequence[Record]) -> str:
    """Records as Markdown: conditions and sizes, then speeds if any was measured.

    Of a file that two records have, the later record's results count.
    """
    sizes: dict[str, int] = {}
    found: dict[str, dict[str, Record]] = {}
    levels: dict[str, str] = {}
    names_of = _names(records)
    for record in records:
        known = {entry["file"]: names_of[entry["sha256"]] for entry in record["inputs"]}
        sizes |= {known[entry["file"]]: entry["bytes"] for entry in record["inputs"]}
        for result in record["results"]:
            name = known[result["file"]]
            found.setdefault(name, {})[result["program"]] = result
            if result["program"] == _OWN:
                level = record["config"]["llmzip"]["level"]
                levels[name] = "" if level is None else f" (level {level})"
    names = dict.fromkeys(program for results in found.values() for program in results)
    programs = sorted(names, key=lambda program: program != _OWN)  # the rest in their order
    rows = [["file", "bytes", *programs]]
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        cells = [_bpb(found.get(name, {}).get(program)) for program in programs]
        rows.append([f"{name}{levels.get(name, '')}", f"{sizes[name]:,}", *cells])
    blocks = [_conditions(records), markdown(rows)]
    speeds = [record for record in records if record["benchmark"] == "stepwise"]
    if speeds:
        blocks.append(_speeds(speeds))
    return "\n\n".join(blocks)


def _names(records: Sequence[Record]) -> dict[str, str]:
    """What to call each file, by its hash: records name it as it was found, in a folder or not.

    A folder is left out unless another file would have the same name.
    """
    paths = {entry["sha256"]: entry["file"] for record in records for entry in record["inputs"]}
    names = {hashed: path.rpartition("/")[2] for hashed, path in paths.items()}
    taken = Counter(names.values())
    return {hashed: name if taken[name] == 1 else paths[hashed] for hashed, name in names.items()}


def _conditions(records: Sequence[Record]) -> str:
    hardware = records[-1]["hardware"]
    dates = sorted({record["date"][:10] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    commits = sorted({record["git"]["commit"][:7] for record in records})
    return (
        "Bits a byte (8 x archive / file), each archive decoded in a fresh process and compared. "
        f"{hardware['cpu']}, {hardware['cores']} cores, {when}, commits {', '.join(commits)}. "
        "The model, 165 MB, is not counted."
    )


def _bpb(result: Record | None) -> str:
    if result is None or not result["verified"]:
        return NOTHING
    return f"{result['bpb']:.3f}"


def _speeds(records: Sequence[Record]) -> str:
    """Both directions, and how they compare with transformers token by token in the same run."""
    rows = [["file", "direction", "s", "kB/s", "tokens/s", "times transformers", "peak MB"]]
    for record in records:
        (result,) = record["results"]
        for direction in ("compress", "decompress"):
            usage = result[direction]
            (speed,) = (s for s in record["speeds"] if s["name"] == f"{_OWN} {direction}")
            ratios = sorted(speed["ratios"].values())
            times = f"{ratios[0]:.0f} to {ratios[-1]:.0f}" if ratios else NOTHING
            rows.append(
                [
                    result["file"], direction, f"{usage['wall_s']:.0f}",
                    f"{usage['bytes_per_s'] / 1000:.2f}", f"{speed['tokens_per_s']:,.0f}", times,
                    f"{usage['peak_bytes'] / 1e6:,.0f}",
                ]
            )  # fmt: skip
    return (
        "Speeds with start-up, nothing else running; transformers token by token with its "
        f"key/value cache, float32, in the same run.\n\n{markdown(rows)}"
    )


_EXCERPTS: Mapping[str, tuple[str, Callable[[Sequence[Record]], str]]] = MappingProxyType(
    {
        "files": ("results", results_text),
        "stepwise": ("results", results_text),
        "predictors": ("predictors", lambda records: excerpt(records[-1])),
    }
)
