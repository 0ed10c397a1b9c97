"""Fixtures for tests of experiments."""

from __future__ import annotations

import contextlib
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, environment, runner
from benchmarks.predictors import workbench
from benchmarks.records import Usage
from benchmarks.runner import JobError, JobReport
from benchmarks.speed import record as speed_record
from benchmarks.steering import cases
from benchmarks.sweep import record as sweep_record


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs without processes of their own, which take seconds to start; no second for others."""

    def run_here(target: str, arguments: dict[str, Any], folder: Path) -> JobReport:
        module, _, name = target.partition(":")
        began_s = time.perf_counter()
        try:
            with contextlib.chdir(folder):
                value = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))
        except Exception as error:
            raise JobError(f"{type(error).__name__}: {error}") from error
        wall_s = time.perf_counter() - began_s
        usage = Usage(wall_s=wall_s, cpu_s=wall_s, process_wall_s=wall_s, peak_bytes=1)
        return JobReport(value=json.loads(json.dumps(value)), usage=usage)

    for module in (runner, cases, compare, speed_record, sweep_record, workbench):
        monkeypatch.setattr(module, "run_job", run_here)
    monkeypatch.setattr(environment, "_SAMPLE_S", 0.05)
