"""The README's tables of results, made from records.

Records of `files` give one table of sizes together, of whatever files and programs they have, and
one of the files that other models than the default compressed too. Those of other benchmarks have
tables of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from benchmarks import mixer
from benchmarks.predictors import tables as predictors
from benchmarks.speed import tables as speed
from benchmarks.steering import tables as steering
from benchmarks.sweep import tables as sweep
from benchmarks.table import NOTHING, change, markdown

Record: TypeAlias = Mapping[str, Any]
_Setting: TypeAlias = tuple[str | None, int | None]  # model and level, None: the default

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
    """Records as Markdown: conditions and sizes, then the models that were compared.

    Of a file that two records have, the later record's results count.
    """
    sizes: dict[str, int] = {}
    found: dict[str, dict[str, Record]] = {}
    levels: dict[str, str] = {}
    models: dict[str, dict[_Setting, Record]] = {}
    names_of = _names(records)
    for record in records:
        known = {entry["file"]: names_of[entry["sha256"]] for entry in record["inputs"]}
        own = record["config"]["llmzip"]
        sizes |= {known[entry["file"]]: entry["bytes"] for entry in record["inputs"]}
        for result in record["results"]:
            name, program = known[result["file"]], result["program"]
            if program == _OWN:
                models.setdefault(name, {})[own.get("model"), own["level"]] = result
                if own.get("model") is not None:
                    continue
                levels[name] = _level(own["level"])
            found.setdefault(name, {})[program] = result
    names = dict.fromkeys(program for results in found.values() for program in results)
    programs = sorted(names, key=lambda program: program != _OWN)  # the rest in their order
    rows = [["file", "bytes", *programs]]
    in_order = sorted(sizes, key=lambda name: (sizes[name], name))
    for name in in_order:
        cells = [_bpb(found.get(name, {}).get(program)) for program in programs]
        rows.append([f"{name}{levels.get(name, '')}", f"{sizes[name]:,}", *cells])
    blocks = [_conditions(records), markdown(rows)]
    blocks += _models({name: models[name] for name in in_order if name in models})
    return "\n\n".join(blocks)


def _level(level: int | None) -> str:
    return "" if level is None else f" (level {level})"


def _models(results: Mapping[str, Mapping[_Setting, Record]]) -> list[str]:
    """What other models make of the files, beside the default at the same level."""
    others = dict.fromkeys(
        model for by_setting in results.values() for model, _ in by_setting if model is not None
    )
    headings = (heading for model in others for heading in (f"`{model}`", "default against it"))
    rows = [["file", "default", *headings]]
    pairs: dict[str | None, list[tuple[int, int]]] = {model: [] for model in others}
    for name, by_setting in results.items():
        for level in dict.fromkeys(level for model, level in by_setting if model is not None):
            default = by_setting.get((None, level))
            if default is None or not default["verified"]:
                continue
            cells = []
            for model in others:
                result = by_setting.get((model, level))
                if result is None or not result["verified"]:
                    cells += [NOTHING, NOTHING]
                else:
                    own_bytes, bytes_ = default["compressed_bytes"], result["compressed_bytes"]
                    pairs[model].append((own_bytes, bytes_))
                    cells += [f"{bytes_:,}", change(own_bytes, bytes_)]
            rows.append([f"{name}{_level(level)}", f"{default['compressed_bytes']:,}", *cells])
    if len(rows) == 1:
        return []
    means = [_mean_change(f"`{model}`", pairs[model]) for model in others if pairs[model]]
    return [f"Archive bytes with other models.\n\n{markdown(rows)}", " ".join(means)]


def _mean_change(name: str, pairs: Sequence[tuple[int, int]]) -> str:
    own, other = (sum(sizes) for sizes in zip(*pairs, strict=True))
    mean = sum(own_bytes / bytes_ for own_bytes, bytes_ in pairs) / len(pairs)
    return (
        f"The default against {name}: {change(own, other)} of all bytes, {change(mean, 1)} in the "
        f"mean of {len(pairs)} files."
    )


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


_EXCERPTS: Mapping[str, tuple[str, Callable[[Sequence[Record]], str]]] = MappingProxyType(
    {
        "files": ("results", results_text),
        "speed": ("speed", speed.excerpt),
        "predictors": ("predictors", lambda records: predictors.excerpt(records[-1])),
        "mixer": ("mixer", mixer.excerpt),
        "steering": ("steering", lambda records: "\n\n".join(map(steering.excerpt, records))),
        "sweep": ("sweep", lambda records: "\n\n".join(map(sweep.excerpt, records))),
    }
)
