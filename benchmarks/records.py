"""What a benchmark writes down."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1

_ABSOLUTE_PATH = re.compile(r"(?<![\w.~])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"]+)+[/\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmzipSettings:
    """How llmzip is run: fields of `CompressOptions`; None leaves one at llmzip's default."""

    model: str | None = None
    threads: int | None = None
    level: int | None = None
    window_tokens: int | None = None
    mixing: bool | None = None
    steering: str | None = None
    embed_steering: bool | None = None
    chunk_tokens: int | None = None
    frame_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file to measure.

    Attributes:
        name: relative, for tables and records.
        path: where it is; never written down.
        content_bytes: its length.
        sha256: in hexadecimal.
    """

    name: str
    path: Path
    content_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one job took.

    Attributes:
        wall_s: time of the call that reads the input, codes it and writes the output, with the
            loading of libraries and of the model.
        cpu_s: processor time of that call: all threads, and programs that it started.
        process_wall_s: time from the process's start to its exit.
        peak_bytes: the most resident memory of the whole process, or of a program it started.
    """

    wall_s: float
    cpu_s: float
    process_wall_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where an archive's bytes go: what the coder wrote, what the decoder is told, the rest."""

    payload_bytes: int
    side_information_bytes: int
    container_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A file that a program compressed and, in a fresh process, decompressed to the same bytes.

    Attributes:
        compressed_bytes: length of the archive.
        parts: of the archive, where the program tells them apart.
        model_bytes: what the decoder must have besides the archive; None for nothing.
        compress, decompress: what each took.
        details: what else the program says.
    """

    compressed_bytes: int
    parts: Parts | None
    model_bytes: int | None
    compress: Usage
    decompress: Usage
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A file that a program did not bring back.

    Attributes:
        reason: which step failed, and how.
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """What came of one file and one program."""

    file: InputFile
    program: str
    setting: str
    outcome: Measured | Failed

    @property
    def measured(self) -> Measured | None:
        """The figures, where the archive was decoded."""
        return self.outcome if isinstance(self.outcome, Measured) else None

    @property
    def bpb(self) -> float | None:
        """Bits of the archive for each byte of the file; None without both."""
        if self.measured is None or not self.file.content_bytes:
            return None
        return 8 * self.measured.compressed_bytes / self.file.content_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the record in types that JSON has."""
        record: dict[str, Any] = {
            "file": self.file.name,
            "program": self.program,
            "setting": self.setting,
            "verified": self.measured is not None,
        }
        if isinstance(self.outcome, Failed):
            return record | {"failure": self.outcome.reason}
        fields = dataclasses.asdict(self.outcome)
        for direction in ("compress", "decompress"):
            wall_s = fields[direction]["wall_s"]
            fields[direction]["bytes_per_s"] = rate(self.file.content_bytes, wall_s)
        return record | {"bpb": self.bpb} | fields


def rate(count: float, wall_s: float) -> float | None:
    """Return `count` a second; None where no time was measured."""
    return count / wall_s if wall_s > 0 else None


def input_record(file: InputFile) -> dict[str, Any]:
    """Return a file's record, without the place where it lies."""
    return {"file": file.name, "bytes": file.content_bytes, "sha256": file.sha256}


def without_paths(text: str) -> str:
    """Return a message in which each absolute path is reduced to its last part."""
    return _ABSOLUTE_PATH.sub("", text)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
