"""One archive of an experiment: trained for, made, decoded in a fresh process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from archiver.options import STEERING_SUFFIX
from benchmarks.experiment_file import Texts
from benchmarks.records import InputFile, LlmzipSettings, input_record
from benchmarks.resumable import Row
from benchmarks.runner import JobError, code_file, run_job
from benchmarks.steering.plans import Case, Span, Training
from benchmarks.steering.programs import PROGRAMS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where cases are run.

    Attributes:
        model, threads: llmzip's; fingerprint: of the model's package.
        common: settings of every archive, where a case does not have its own.
        kept: a folder for trainings, which the next run may go on with.
        folder: one for everything else.
    """

    texts: Texts
    model: str
    fingerprint: str
    threads: int | None
    common: LlmzipSettings
    kept: Path
    folder: Path

    def run(self, case: Case, progress: Callable[[str], None]) -> Row:
        """Return what came of a case: its record, in types that JSON has."""
        where = f"{case.span.name}, {case.role}"
        file = self._file(case.span)
        row: Row = {"case": case.as_dict(), "input": input_record(file)}
        settings = self._settings(case)
        try:
            if case.training is not None:
                progress(f"{where}: training")
                path, made = self._train(case.training)
                row["training"] = made
                settings = dataclasses.replace(settings, steering=str(path))
            progress(where)
            result = code_file(file, PROGRAMS[case.program], settings, self.folder)
        except JobError as error:
            return row | {"verified": False, "failure": f"training: {error}"}
        finally:
            file.path.unlink()
        return row | result.as_dict()

    def _file(self, span: Span) -> InputFile:
        """A file that holds a part of a text."""
        content = self.texts.content(span.text)[span.begin : span.end]
        return self.texts.file(content, span.name, self.folder)

    def _settings(self, case: Case) -> LlmzipSettings:
        """The experiment's settings, then the case's, then those of this run."""
        own = {
            name: value
            for name, value in dataclasses.asdict(case.settings).items()
            if value is not None
        }
        merged = dataclasses.replace(self.common, **own)
        return dataclasses.replace(merged, model=self.model, threads=self.threads)

    def _train(self, training: Training) -> tuple[Path, Row]:
        """A steering file, and what its training came to.

        One checkpoint serves all ways to store what is trained.

        Raises:
            JobError: the training failed.
        """
        fields = dataclasses.asdict(training) | {"chunk_tokens": self.common.chunk_tokens}
        storing = {name: fields.pop(name) for name in ("prior", "bins")}
        source = self._file(training.span)
        trained = json.dumps([self.fingerprint, source.sha256, fields], sort_keys=True)
        digest = hashlib.sha256(trained.encode()).hexdigest()[:16]
        self.kept.mkdir(parents=True, exist_ok=True)
        target = self.kept / f"{digest}-{storing['prior']}-{storing['bins']}{STEERING_SUFFIX}"
        arguments = {
            "source": str(source.path),
            "target": str(target),
            "checkpoint": str(self.kept / f"{digest}.checkpoint"),
            "model": self.model,
            "threads": self.threads,
            **{name: value for name, value in fields.items() if name != "span"},
            **storing,
        }
        report = run_job("benchmarks.steering.programs:train", arguments, self.folder)
        source.path.unlink()
        made = report.value | {
            "input": input_record(source), "file_bytes": target.stat().st_size,
            "usage": dataclasses.asdict(report.usage),
        }  # fmt: skip
        return target, made
