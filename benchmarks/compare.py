"""`files`: every program on every file, in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.competitors import Competitor
from benchmarks.environment import describe_environment
from benchmarks.records import (
    SCHEMA_VERSION,
    FileResult,
    InputFile,
    LlmzipSettings,
    input_record,
    without_paths,
)
from benchmarks.runner import JobError, code_file, run_job, temporary_folder

# One of its sentences is coded by the model: what is compiled once, is compiled then.
_WARM_UP = "The first run compiles kernels and may have to fetch the model. " * 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a run of `files` came to.

    Attributes:
        results: file by file, within a file program by program.
        skipped: why programs could not be run, by name.
        record: all of it for JSON.
    """

    results: list[FileResult]
    skipped: dict[str, str]
    record: dict[str, Any]


def split_by_presence(
    competitors: Sequence[Competitor],
) -> tuple[list[Competitor], dict[str, str]]:
    """Return the programs that can be run here, and why the others cannot, by name."""
    present, skipped = [], {}
    for competitor in competitors:
        reason = competitor.missing()
        if reason is None:
            present.append(competitor)
        else:
            skipped[competitor.name] = reason
    return present, skipped


def compare(
    files: Sequence[InputFile],
    competitors: Sequence[Competitor],
    settings: LlmzipSettings,
    progress: Callable[[str, int], None],
) -> Iterator[Comparison]:
    """Measure every program that is there on every file.

    Args:
        progress: told, before each job, what comes next and how many are done.

    Yields:
        after each file what the run has come to, so that hours of work can be kept.
    """
    environment = describe_environment()
    present, skipped = split_by_presence(competitors)
    results: list[FileResult] = []
    with temporary_folder() as name:
        folder = Path(name)
        for number, file in enumerate(files, 1):
            for competitor in present:
                progress(f"{competitor.name}, {file.name}", len(results))
                results.append(code_file(file, competitor, settings, folder))
            record = {
                "schema": SCHEMA_VERSION,
                "benchmark": "files",
                **environment,
                "config": {
                    "programs": {competitor.name: competitor.setting for competitor in present},
                    "skipped": skipped,
                    "llmzip": dataclasses.asdict(settings),
                },
                "inputs": [input_record(measured) for measured in files[:number]],
                "results": [result.as_dict() for result in results],
            }
            yield Comparison(results=list(results), skipped=skipped, record=record)


def warm_up(settings: LlmzipSettings) -> str | None:
    """Let llmzip fetch its model and compile its kernels, so that no timing holds either.

    Returns:
        what went wrong; None if nothing did.
    """
    with temporary_folder() as name:
        arguments = {"text": _WARM_UP, "settings": dataclasses.asdict(settings)}
        try:
            run_job("benchmarks.compare:code_once", arguments, Path(name))
        except JobError as error:
            return without_paths(str(error))
    return None


def code_once(text: str, settings: dict[str, Any]) -> None:
    """Compress and decompress a text; called in the fresh process."""
    from benchmarks.competitors import Llmzip

    llmzip, chosen = Llmzip(), LlmzipSettings(**settings)
    source, archive, decoded = (Path(part) for part in ("text", "archive", "decoded"))
    source.write_text(text, encoding="utf-8")
    llmzip.compress(source, archive, chosen)
    llmzip.decompress(archive, decoded, chosen)
