"""What is known of an experiment so far, on disk after every archive.

A rerun of the same experiment, with the same model, keeps every archive that was decoded and goes
on with the others; series and values may be added to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare import warm_up
from benchmarks.environment import busy_cores, model_identity
from benchmarks.experiment_file import ExperimentError, Texts
from benchmarks.records import InputFile, LlmzipSettings, input_record
from benchmarks.resumable import Progress, ResumedRecord, Row, key_of, record_path
from benchmarks.runner import JobError, code_file, run_job, temporary_folder
from benchmarks.sweep.experiment import BUSY, STREAMS, Experiment, name_of
from benchmarks.sweep.programs import SweptLlmzip, kept_busy

BENCHMARK = "sweep"


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
        output: where the record is.
        threads: of archives whose series does not go along threads; None for one a core.
        progress: told before each archive.

    Yields:
        the record as it is on disk: at the beginning, and after every archive.

    Raises:
        ExperimentError: a text is missing or too short, or the record is of another experiment.
        ModelError: the model cannot be had.
    """
    common = experiment.common
    texts = Texts(common.texts, folder)
    sizes = {text.name: len(texts.content(text.name)) for text in common.texts}
    series = [
        each.as_dict() | {"points": each.points(common.llmzip, sizes)} for each in experiment.series
    ]
    cases = {key_of(point["case"]): point["case"] for each in series for point in each["points"]}
    record = ResumedRecord(
        record_path(output, BENCHMARK, common.name), BENCHMARK, common.title,
        common.as_dict() | {"model": model_identity(model)},
    )  # fmt: skip
    _check_named(record, cases)
    record.content["series"] = series
    record.expect(list(cases.values()))
    yield record.content
    if record.finished == record.total:
        record.write()  # series may share archives otherwise than before
        return
    record.begin_session(threads)
    settings = dataclasses.replace(common.llmzip, model=model, threads=threads)
    progress("warm-up", record.finished, record.total)
    problem = warm_up(settings)
    if problem is not None:
        raise ExperimentError(f"llmzip's warm-up failed: {problem}")
    with temporary_folder() as name:
        for case in cases.values():
            if record.lacks(case):
                progress(name_of(case), record.finished, record.total)
                record.put(_row(case, texts, settings, Path(name)))
                yield record.content


def _row(case: dict[str, Any], texts: Texts, shared: LlmzipSettings, folder: Path) -> Row:
    """Return what came of a case: its record, in types that JSON has."""
    content = texts.content(case["text"])[: case["bytes"]]
    file = texts.file(content, f"{case['text']}[:{case['bytes']}]", folder)
    row: Row = {"case": case, "input": input_record(file), "busy_cores_before": busy_cores()}
    try:
        settings = _settings(case, shared, file, folder)
        with kept_busy(case["settings"].get(BUSY, 0)):
            result = code_file(file, SweptLlmzip(), settings, folder)
    except JobError as error:
        return row | {"verified": False, "failure": str(error)}
    finally:
        file.path.unlink()
    return row | result.as_dict()


def _settings(
    case: Mapping[str, Any], shared: LlmzipSettings, file: InputFile, folder: Path
) -> LlmzipSettings:
    """The settings of a case's archive.

    Raises:
        JobError: the text cannot be cut into the streams that the case asks for.
    """
    own = dict(case["settings"])
    own.pop(BUSY, None)
    streams = own.pop(STREAMS, None)
    settings = dataclasses.replace(shared, **own)
    if streams is None:
        return settings
    arguments = {
        "text_file": str(file.path),
        "streams": streams,
        "settings": dataclasses.asdict(settings),
    }
    chunk_tokens = run_job("benchmarks.sweep.programs:chunk_for", arguments, folder).value
    return dataclasses.replace(settings, chunk_tokens=chunk_tokens)


def _check_named(record: ResumedRecord, cases: Mapping[str, Any]) -> None:
    """Return where every archive of the record is still one of the experiment's.

    Raises:
        ExperimentError: its result would be lost.
    """
    for row in record.content["rows"]:
        if row["verified"] and key_of(row["case"]) not in cases:
            raise ExperimentError(
                f"the record holds a result of {name_of(row['case'])}, which the experiment does"
                " not ask for any more; ask for it, or rename the record to start anew"
            )
