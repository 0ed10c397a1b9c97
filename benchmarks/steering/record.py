"""What is known of an experiment so far, on disk after every archive.

A rerun of the same experiment, with the same model, keeps every archive that was decoded and goes
on with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.compare import warm_up
from benchmarks.environment import model_identity
from benchmarks.experiment_file import ExperimentError, Texts
from benchmarks.records import LlmzipSettings
from benchmarks.resumable import Progress, ResumedRecord, record_path
from benchmarks.runner import temporary_folder
from benchmarks.steering.cases import Bench
from benchmarks.steering.experiment import Experiment

BENCHMARK = "steering"
KEPT_SUFFIX = ".kept"


def run_experiment(
    experiment: Experiment,
    *,
    folder: Path,
    output: Path,
    model: str,
    threads: int | None,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Make the archives that the record lacks.

    Args:
        folder: where the texts are.
        output: where the record is, with a folder beside it for trainings.
        progress: told before each archive.

    Yields:
        the record as it is on disk: at the beginning, and after every archive.

    Raises:
        ExperimentError: a text is missing, or the record is of another experiment.
        ModelError: the model cannot be had.
    """
    texts = Texts(experiment.common.texts, folder)
    cases = [
        case
        for text in experiment.common.texts
        for case in experiment.plan.cases(text.name, len(texts.content(text.name)))
    ]
    path = record_path(output, BENCHMARK, experiment.common.name)
    with temporary_folder() as name:
        identity = model_identity(model)
        record = ResumedRecord(
            path, BENCHMARK, experiment.common.title, experiment.as_dict() | {"model": identity}
        )
        record.expect([case.as_dict() for case in cases])
        yield record.content
        if record.finished == record.total:
            return
        record.begin_session(threads)

        def tell(what: str) -> None:
            progress(what, record.finished, record.total)

        tell("warm-up")
        problem = warm_up(LlmzipSettings(model=model, threads=threads))
        if problem is not None:
            raise ExperimentError(f"llmzip's warm-up failed: {problem}")
        bench = Bench(
            texts=texts, model=model, fingerprint=identity["package_fingerprint"],
            threads=threads, common=experiment.common.llmzip,
            kept=path.with_suffix(KEPT_SUFFIX), folder=Path(name),
        )  # fmt: skip
        for case in cases:
            if record.lacks(case.as_dict()):
                record.put(bench.run(case, tell))
                yield record.content
