"""The README's table of sizes is made from several records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme

HASHES = {"folder/c": "c", "other/b": "another b"}


def record(
    benchmark: str, level: int | None, *results: dict[str, Any], model: str | None = None
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "date": "2026-11-22T10:00:00+00:00" if level is None else "2026-11-23T10:00:00+00:00",
        "git": {"commit": "abcdef0123" if level is None else "0123456789"},
        "hardware": {"cpu": "A processor", "cores": 2},
        "config": {"llmzip": {"level": level, "model": model}},
        "inputs": [
            {"file": name, "bytes": 2000, "sha256": HASHES.get(name, name)}
            for name in {r["file"] for r in results}
        ],
        "results": list(results),
    }


def result(file: str, program: str, bpb: float, *, verified: bool = True) -> dict[str, Any]:
    return {
        "file": file, "program": program, "bpb": bpb, "verified": verified,
        "compressed_bytes": round(250 * bpb),
    }  # fmt: skip


FILES = record(
    "files", None, result("b", "llmzip", 1.0), result("b", "xz", 3.0),
    result("c", "llmzip", 9.0), result("c", "xz", 2.5, verified=False),
)  # fmt: skip
FASTER = record("files", 1, result("folder/c", "llmzip", 1.5))
ANOTHER = record("files", None, result("a", "llmzip", 1.25))


def test_records_make_one_table() -> None:
    lines = readme.results_text([FILES, FASTER, ANOTHER]).splitlines()
    assert "A processor, 2 cores, 2026-11-22 to 2026-11-23, commits 0123456, abcdef0." in lines[0]
    assert lines[2:7] == [
        "| file | bytes | llmzip | xz |",
        "| --- | ---: | ---: | ---: |",
        "| a | 2,000 | 1.250 | - |",
        "| b | 2,000 | 1.000 | 3.000 |",
        "| c (level 1) | 2,000 | 1.500 | - |",
    ]


def test_files_of_the_same_name_keep_their_folders() -> None:
    other = record("files", None, result("other/b", "llmzip", 2.0))
    lines = readme.results_text([FILES, other]).splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| b", "| c", "| other/b"]
    assert lines[6] == "| other/b | 2,000 | 2.000 | - |"


def test_other_models_have_a_table_of_their_own() -> None:
    untuned = record(
        "files", None, result("b", "llmzip", 1.25), result("c", "llmzip", 1.0), model="untuned"
    )
    large = record("files", 1, result("folder/c", "llmzip", 1.2), model="large")
    text = readme.results_text([FILES, FASTER, untuned, large])
    lines = text.splitlines()
    assert lines[4:6] == ["| b | 2,000 | 1.000 | 3.000 |", "| c (level 1) | 2,000 | 1.500 | - |"]
    assert lines[7:] == [
        "Archive bytes with other models.",
        "",
        "| file | default | `untuned` | default against it | `large` | default against it |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| b | 250 | 312 | -19.87 % | - | - |",
        "| c | 2,250 | 250 | +800.00 % | - | - |",
        "| c (level 1) | 375 | - | - | 300 | +25.00 % |",
        "",
        "The default against `untuned`: +344.84 % of all bytes, +390.06 % in the mean of 2 files. "
        "The default against `large`: +25.00 % of all bytes, +25.00 % in the mean of 1 files.",
    ]
    failed = record("files", None, result("b", "llmzip", 0.0, verified=False), model="untuned")
    assert "| b | 250 | - | - |" in readme.results_text([FILES, failed])
    assert "other models" not in readme.results_text([FILES, large])


def test_conditions_are_those_of_the_records() -> None:
    assert "2 cores, 2026-11-22, commits abcdef0." in readme.results_text([FILES])


def test_records_of_different_tables_do_not_mix(tmp_path: Path) -> None:
    paths = []
    for found in (FILES, {"benchmark": "predictors"}):
        paths.append(tmp_path / f"{len(paths)}.json")
        paths[-1].write_text(json.dumps(found))
    with pytest.raises(readme.ReadmeError, match="no table together"):
        readme.update_readme(tmp_path / "README.md", paths)
