"""What is known of an experiment so far, on disk after every archive.

A rerun of the same experiment keeps every archive that was decoded and goes on with the others;
predictors may be added to it, and their steps changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.compare import warm_up
from benchmarks.competitors import Llmzip
from benchmarks.environment import coder_versions
from benchmarks.experiment_file import ExperimentError, Texts
from benchmarks.predictors.experiment import Experiment
from benchmarks.predictors.workbench import Workbench, is_known
from benchmarks.records import input_record
from benchmarks.resumable import Progress, ResumedRecord, record_path
from benchmarks.runner import JobError, code_file, temporary_folder
from benchmarks.weights import find_weights

BENCHMARK = "predictors"
KEPT_FOLDER = "predictors.kept"


def run_experiment(
    experiment: Experiment,
    *,
    folder: Path,
    output: Path,
    threads: int | None,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Make the predictors and the archives that the record lacks.

    Args:
        folder: where the texts are.
        output: where the record is, with a folder beside it for what is made.
        threads: llmzip's and the workshop's; None for their defaults.
        progress: told before each piece of work.

    Yields:
        the record as it is on disk: at the beginning, and after every archive.

    Raises:
        ExperimentError: a text or a base is missing, or the record is of another experiment.
        ArchiverError: a base cannot be had.
    """
    texts = Texts(experiment.common.texts, folder)
    path = record_path(output, BENCHMARK, experiment.common.name)
    for base in {predictor.base for predictor in experiment.predictors if is_known(predictor.base)}:
        find_weights(base, None)  # kept, or every step would fetch them
    with temporary_folder() as name:
        bench = Workbench(
            kept=output / KEPT_FOLDER, folder=Path(name), threads=threads,
            places={"here": experiment.here, "texts": folder.resolve()},
        )  # fmt: skip
        with bench.own_home():
            yield from _run(experiment, texts, path, bench, progress)


def _run(
    experiment: Experiment, texts: Texts, path: Path, bench: Workbench, progress: Progress
) -> Iterator[dict[str, Any]]:
    record = ResumedRecord(
        path, BENCHMARK, experiment.common.title, experiment.common.as_dict() | coder_versions()
    )
    _check_named(record, experiment)
    made_of = {predictor.name: bench.case(predictor) for predictor in experiment.predictors}
    cases = {
        predictor.name: {text.name: made_of[predictor.name] | {"text": text.name}
                         for text in experiment.common.texts}
        for predictor in experiment.predictors
    }  # fmt: skip
    record.content["predictors"] = [predictor.as_dict() for predictor in experiment.predictors]
    record.expect([case for by_text in cases.values() for case in by_text.values()])
    yield record.content
    if record.finished == record.total:
        record.write()  # predictors may be compared otherwise than before
        return
    record.begin_session(bench.threads)
    shared = dataclasses.replace(experiment.common.llmzip, threads=bench.threads)
    progress("warm-up", record.finished, record.total)
    model = bench.base_package(experiment.predictors[0].base).fingerprint
    problem = warm_up(dataclasses.replace(shared, model=model))
    if problem is not None:
        raise ExperimentError(f"llmzip's warm-up failed: {problem}")
    for predictor in experiment.predictors:

        def tell(what: str, name: str = predictor.name) -> None:
            progress(f"{name}: {what}", record.finished, record.total)

        lacking = {text: case for text, case in cases[predictor.name].items() if record.lacks(case)}
        if not lacking:
            continue
        try:
            made = bench.make(predictor, made_of[predictor.name], tell)
        except JobError as error:
            for case in lacking.values():
                record.put({"case": case, "verified": False, "failure": str(error)})
            yield record.content
            continue
        for text, case in lacking.items():
            tell(text)
            file = texts.file(texts.content(text), text, bench.folder)
            settings = dataclasses.replace(shared, model=made.model)
            result = code_file(file, Llmzip(), settings, bench.folder)
            file.path.unlink()
            row = {"case": case, "input": input_record(file), "predictor": made.facts}
            record.put(row | result.as_dict())
            yield record.content
        bench.put_away(predictor, made)


def _check_named(record: ResumedRecord, experiment: Experiment) -> None:
    """Return where every predictor with results is still one of the experiment's.

    Raises:
        ExperimentError: its results would be lost.
    """
    names = {predictor.name for predictor in experiment.predictors}
    for row in record.content["rows"]:
        name = row["case"]["predictor"]
        if row["verified"] and name not in names:
            raise ExperimentError(
                f"the record holds results of {name}, which the experiment does not name any more;"
                " name it, or rename the record to start anew"
            )
