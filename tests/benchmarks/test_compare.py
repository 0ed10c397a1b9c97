"""Tables, records and charts of a comparison, and its command."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import competitors, environment
from benchmarks.chart import draw_chart
from benchmarks.records import (
    Failed,
    FileResult,
    InputFile,
    Measured,
    Parts,
    Usage,
)
from benchmarks.table import comparison
from tests.benchmarks import fakes


def result(name: str, program: str, compressed_bytes: int, content_bytes: int = 4000) -> FileResult:
    usage = Usage(wall_s=0.5, cpu_s=0.75, process_wall_s=0.6, peak_bytes=50 << 20)
    file = InputFile(name=name, path=Path(name), content_bytes=content_bytes, sha256="00")
    outcome = Measured(
        compressed_bytes=compressed_bytes,
        parts=Parts(
            payload_bytes=compressed_bytes - 82, side_information_bytes=0, container_bytes=82
        ),
        model_bytes=1234567,
        compress=usage,
        decompress=usage,
        details={},
    )
    return FileResult(file=file, program=program, setting="best", outcome=outcome)


def test_table() -> None:
    expected = """\
a  4,000 bytes
program  bytes    bpb  comp s  CPU s  kB/s  dec s  CPU s  kB/s  comp MiB  dec MiB
one      1,000  2.000    0.50   0.75   8.0   0.50   0.75   8.0        50       50
one: payload 918 + side information 0 + container 82 bytes; model, not counted, 1,234,567"""
    assert comparison([result("a", "one", 1000)]) == expected


def test_totals_leave_out_files_that_a_program_lost() -> None:
    lost = dataclasses.replace(result("c", "one", 9), outcome=Failed(reason="compress: no"))
    assert "all programs brought back 0 of 2 files" in comparison(
        [lost, dataclasses.replace(lost, file=result("d", "one", 9).file)]
    )
    both = [result("a", "one", 1000), result("b", "one", 500)]
    assert "all programs brought back 2 of 3 files, 8,000 bytes" in comparison([*both, lost])
    lines = comparison(both).splitlines()
    assert lines[-3:] == [
        "all programs brought back 2 of 2 files, 8,000 bytes",
        "program  bytes    bpb",
        "one      1,500  1.500",
    ]


def test_an_empty_file_has_no_bpb() -> None:
    (line,) = (line for line in comparison([result("e", "one", 90, 0)]).splitlines()
               if line.startswith("one "))  # fmt: skip
    assert line.split()[1:3] == ["90", "-"]


def test_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_chart([result("a", "one", 1000), result("b", "two", 900)], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_SAMPLE_S", 0.05)
    chosen = (fakes.Honest(), fakes.Liar(), fakes.Absent())
    monkeypatch.setattr(competitors, "COMPETITORS", chosen)


def run_files(*arguments: str) -> Any:
    return CliRunner().invoke(command.main, ["files", *arguments])


@pytest.mark.usefixtures("programs")
def test_command_prints_and_records(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("one " * 500)
    (folder / "deep" / "two.txt").write_text("two " * 500)
    output = tmp_path / "out"
    done = run_files(str(folder), "--output", str(output), "--window", "64")
    assert done.exit_code == 1  # the liar
    assert "texts/deep/two.txt  2,000 bytes" in done.stdout
    assert "liar  FAILED  compare: the decoded bytes are not those of the file" in done.stdout
    assert "without absent: not here" in done.stderr

    (path,) = output.glob("files-*.json")
    text = path.read_text()
    assert str(tmp_path) not in text
    assert not re.search(r'"/', text)
    record = json.loads(text)
    assert set(record) == {
        "schema", "benchmark", "date", "git", "versions", "hardware", "busy_cores_before", "config",
        "inputs", "results",
    }  # fmt: skip
    assert record["benchmark"] == "files"
    assert set(record["git"]) == {"commit", "dirty"}
    assert {"python", "llmzip", "torch", "numba", "numpy"} <= set(record["versions"])
    assert {"cpu", "cores", "memory_bytes"} <= set(record["hardware"])
    assert record["config"] == {
        "programs": {"honest": "level 9", "liar": "level 9"},
        "skipped": {"absent": "not here"},
        "llmzip": {
            "model": None,
            "threads": None,
            "level": None,
            "window_tokens": 64,
            "mixing": None,
            "steering": None,
            "embed_steering": None,
            "chunk_tokens": None,
            "frame_bytes": None,
        },
    }
    assert [entry["file"] for entry in record["inputs"]] == [
        "texts/deep/two.txt", "texts/one.txt",
    ]  # fmt: skip
    assert all(len(entry["sha256"]) == 64 and entry["bytes"] == 2000 for entry in record["inputs"])
    assert [(entry["program"], entry["verified"]) for entry in record["results"]] == [
        ("honest", True), ("liar", False), ("honest", True), ("liar", False),
    ]  # fmt: skip
    honest = record["results"][0]
    assert honest["bpb"] == 8 * honest["compressed_bytes"] / 2000
    assert honest["parts"]["container_bytes"] == 4
    assert set(honest["compress"]) == {
        "wall_s", "cpu_s", "process_wall_s", "peak_bytes", "bytes_per_s",
    }  # fmt: skip


@pytest.mark.usefixtures("programs")
def test_command_takes_the_programs_asked_for(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    arguments = (str(tmp_path / "one.txt"), "--output", str(tmp_path / "out"))
    assert run_files(*arguments, "--competitors", "honest").exit_code == 0
    refused = run_files(*arguments, "--competitors", "honest,unheard")
    assert refused.exit_code == 2
    assert "no program 'unheard'" in refused.stderr
