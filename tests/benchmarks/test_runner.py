"""Files through programs and back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.competitors import COMPETITORS, Competitor
from benchmarks.environment import REPOSITORY
from benchmarks.inputs import read_input
from benchmarks.records import Failed, InputFile, LlmzipSettings, Measured
from benchmarks.runner import JobError, code_file, run_job
from tests.benchmarks import fakes
from tests.support.signals import default_signals

TEXT = b"It was the best of times, it was the worst of times. \r\n\x00\xff" * 50


@pytest.fixture
def text(tmp_path: Path) -> InputFile:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return read_input(path, "text")


def test_a_decoded_archive_is_measured(text: InputFile, tmp_path: Path) -> None:
    result = code_file(text, fakes.Honest(), LlmzipSettings(window_tokens=64), tmp_path)
    assert isinstance(result.outcome, Measured)
    assert result.outcome.compressed_bytes == (tmp_path / "archive").stat().st_size
    assert result.bpb == 8 * result.outcome.compressed_bytes / len(TEXT)
    assert result.outcome.parts is not None
    assert result.outcome.parts.container_bytes == 4
    assert result.outcome.model_bytes == 1000
    assert result.outcome.details == {"window": 64}
    for usage in (result.outcome.compress, result.outcome.decompress):
        assert 0 < usage.wall_s < usage.process_wall_s
        assert usage.cpu_s >= 0
        assert 1 << 20 < usage.peak_bytes < 1 << 30


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (fakes.Liar(), "compare: the decoded bytes are not those of the file"),
        (fakes.Refuser(), "compress: ValueError: cannot read text"),
        (fakes.Dying(), "decompress: killed by signal 9"),
        (fakes.Forgetful(), "compare: [Errno 2] No such file or directory: 'decoded'"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_failure_is_reported_as_what_it_is(
    program: Competitor, reason: str, text: InputFile, tmp_path: Path
) -> None:
    result = code_file(text, program, LlmzipSettings(), tmp_path)
    assert result.outcome == Failed(reason=reason)
    assert result.bpb is None
    assert result.as_dict() == {
        "file": "text",
        "program": program.name,
        "setting": "level 9",
        "verified": False,
        "failure": reason,
    }


def test_an_earlier_archive_is_not_taken_for_a_new_one(text: InputFile, tmp_path: Path) -> None:
    code_file(text, fakes.Honest(), LlmzipSettings(), tmp_path)
    assert code_file(text, fakes.Refuser(), LlmzipSettings(), tmp_path).measured is None
    assert not (tmp_path / "archive").exists()


def test_a_job_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="ModuleNotFoundError"):
        run_job("benchmarks.nothing:at_all", {}, tmp_path)


_RUN_A_JOB = """
import sys
from pathlib import Path
from archiver.signals import Killed, raise_when_killed
from benchmarks.runner import run_job, temporary_folder
raise_when_killed()
try:
    with temporary_folder() as folder:
        run_job("tests.benchmarks.fakes:tell_and_wait", {"file": sys.argv[1]}, Path(folder))
except Killed as killed:
    sys.exit(killed.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_a_job_ends_with_the_benchmark(
    number: signal.Signals, exit_code: int, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    folders = tmp_path / "folders"
    folders.mkdir()
    benchmark = subprocess.Popen(
        [sys.executable, "-c", _RUN_A_JOB, told], preexec_fn=default_signals,
        cwd=REPOSITORY, env={**os.environ, "TMPDIR": str(folders)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 60
        while not (told.is_file() and told.read_text(encoding="ascii").endswith("\n")):
            assert benchmark.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        benchmark.send_signal(number)
        assert benchmark.wait(60) == exit_code
    finally:
        benchmark.kill()
        benchmark.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text(encoding="ascii")), 0)
    assert not any(folders.iterdir())


@pytest.mark.parametrize(
    "program", [program for program in COMPETITORS if program.name not in ("llmzip", "zpaq")],
    ids=lambda program: program.name,
)  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"a", TEXT, bytes(range(256)) * 300])
def test_programs_bring_back_any_bytes(program: Competitor, content: bytes, tmp_path: Path) -> None:
    reason = program.missing()
    if reason is not None:
        pytest.skip(reason)
    source, archive, decoded = (tmp_path / name for name in ("source", "archive", "decoded"))
    source.write_bytes(content)
    program.compress(source, archive, LlmzipSettings())
    program.decompress(archive, decoded, LlmzipSettings())
    assert decoded.read_bytes() == content
