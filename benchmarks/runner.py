"""Files through programs and back: each way in a fresh process, compared by SHA-256."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.competitors import Competitor
from benchmarks.environment import REPOSITORY
from benchmarks.inputs import sha256_of
from benchmarks.records import (
    Failed,
    FileResult,
    InputFile,
    LlmzipSettings,
    Measured,
    Parts,
    Usage,
    without_paths,
)

_MESSAGE_CHARACTERS = 300


class JobError(Exception):
    """A job did not return; the message says how it ended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What a job returned, in types that JSON has, and what it took."""

    value: Any
    usage: Usage


def run_job(target: str, arguments: Mapping[str, Any], folder: Path) -> JobReport:
    """Call `target` ("module:function") in a fresh process.

    Args:
        arguments: by name, in types that JSON has.
        folder: where files to and from the process may lie.

    Raises:
        JobError: it raised, was killed or ended early.
    """
    arguments_file, report_file = folder / "job.json", folder / "report.json"
    arguments_file.write_text(json.dumps(arguments), encoding="utf-8")
    report_file.unlink(missing_ok=True)
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.job", target, str(arguments_file), str(report_file)],
        stdin=subprocess.DEVNULL, capture_output=True, cwd=folder, env=environment, check=False,
    )  # fmt: skip
    process_wall_s = time.perf_counter() - started_s
    if not report_file.is_file():
        raise JobError(_ending(done.returncode, done.stderr.decode(errors="replace")))
    report = json.loads(report_file.read_text(encoding="utf-8"))
    if "error" in report:
        raise JobError(_shortened(report["error"]))
    usage = Usage(
        wall_s=report["wall_s"],
        cpu_s=report["cpu_s"],
        process_wall_s=process_wall_s,
        peak_bytes=report["peak_bytes"],
    )
    return JobReport(value=report["value"], usage=usage)


def _ending(code: int, stderr: str) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    lines = stderr.strip().splitlines()
    return _shortened(f"{how}: {lines[-1]}" if lines else how)


def _shortened(message: str) -> str:
    return without_paths(" ".join(message.split()))[:_MESSAGE_CHARACTERS]


def code_file(
    file: InputFile, competitor: Competitor, settings: LlmzipSettings, folder: Path
) -> FileResult:
    """Compress and decompress a file; whatever goes wrong is in the result.

    Args:
        folder: where the archive ("archive") is left, for as long as the caller wants.
    """
    outcome: Measured | Failed
    step = "compress"
    archive, decoded = folder / "archive", folder / "decoded"
    try:
        for leftover in (archive, decoded):
            leftover.unlink(missing_ok=True)
        forwards = _run_direction(step, competitor, file.path, archive, settings, folder)
        step = "decompress"
        backwards = _run_direction(step, competitor, archive, decoded, settings, folder)
        step = "compare"
        if sha256_of(decoded) != file.sha256:
            raise JobError("the decoded bytes are not those of the file")
        outcome = _measured(archive.stat().st_size, forwards, backwards)
    except (JobError, OSError) as error:
        outcome = Failed(reason=f"{step}: {_shortened(str(error))}")
    finally:
        decoded.unlink(missing_ok=True)
    return FileResult(
        file=file, program=competitor.name, setting=competitor.setting, outcome=outcome
    )


def _run_direction(
    direction: str,
    competitor: Competitor,
    source: Path,
    target: Path,
    settings: LlmzipSettings,
    folder: Path,
) -> JobReport:
    arguments = {
        "direction": direction,
        "competitor": f"{type(competitor).__module__}:{type(competitor).__qualname__}",
        "source": str(source),
        "target": str(target),
        "settings": dataclasses.asdict(settings),
    }
    return run_job("benchmarks.runner:code", arguments, folder)


def code(
    direction: str, competitor: str, source: str, target: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Run one direction of a program; called in the fresh process.

    Returns:
        what the program says of the archive; nothing for "decompress".
    """
    module, _, name = competitor.partition(":")
    program: Competitor = getattr(import_module(module), name)()
    run = {"compress": program.compress, "decompress": program.decompress}[direction]
    return run(Path(source), Path(target), LlmzipSettings(**settings))


def _measured(compressed_bytes: int, forwards: JobReport, backwards: JobReport) -> Measured:
    said = dict(forwards.value)
    parts = said.pop("parts", None)
    return Measured(
        compressed_bytes=compressed_bytes,
        parts=None if parts is None else Parts(**parts),
        model_bytes=said.pop("model_bytes", None),
        compress=forwards.usage,
        decompress=backwards.usage,
        details=said,
    )


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a fresh folder for jobs, gone when the `with` statement ends."""
    return tempfile.TemporaryDirectory(prefix="llmzip-benchmark-")
