"""What is known of an experiment so far, on disk after every archive.

A rerun of the same experiment, with the same model, keeps every archive that was decoded and goes
on with the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.compare import warm_up
from benchmarks.environment import describe_environment
from benchmarks.records import SCHEMA_VERSION, LlmzipSettings, write_json
from benchmarks.runner import temporary_folder
from benchmarks.steering.cases import Bench, Row, key_of
from benchmarks.steering.experiment import Experiment, ExperimentError, Texts
from benchmarks.steering.programs import model_identity

KEPT_SUFFIX = ".kept"


def run_experiment(
    experiment: Experiment,
    *,
    folder: Path,
    output: Path,
    model: str,
    threads: int | None,
    progress: Callable[[str, int, int], None],
) -> Iterator[dict[str, Any]]:
    """Make the archives that the record lacks.

    Args:
        folder: where the texts are.
        output: where the record is, with a folder beside it for trainings.
        progress: told, before each archive, what comes next, how many are done and of how many.

    Yields:
        the record as it is on disk: at the beginning, and after every archive.

    Raises:
        ExperimentError: a text is missing, or the record is of another experiment.
        ModelError: the model cannot be had.
    """
    texts = Texts(experiment, folder)
    cases = [
        case
        for text in experiment.texts
        for case in experiment.plan.cases(text.name, texts.content_bytes(text.name))
    ]
    path = record_path(output, experiment)
    with temporary_folder() as name:
        identity = model_identity(model)
        record = _begun(path, experiment.title, experiment.as_dict() | {"model": identity})
        known = {key_of(row["case"]): row for row in record["rows"] if row["verified"]}
        keys = [key_of(case.as_dict()) for case in cases]
        record["rows"] = [known[key] for key in keys if key in known]
        yield record
        if len(record["rows"]) == len(cases):
            return
        record["sessions"].append(describe_environment() | {"threads": threads})
        progress("warm-up", len(record["rows"]), len(cases))
        problem = warm_up(LlmzipSettings(model=model, threads=threads))
        if problem is not None:
            raise ExperimentError(f"llmzip's warm-up failed: {problem}")
        bench = Bench(
            texts=texts, model=model, fingerprint=identity["package_fingerprint"],
            threads=threads, common=experiment.llmzip,
            kept=path.with_suffix(KEPT_SUFFIX), folder=Path(name),
        )  # fmt: skip
        rows: dict[str, Row] = dict(known)
        for key, case in zip(keys, cases, strict=True):
            if key in rows:
                continue

            def tell(what: str) -> None:
                progress(what, len(rows), len(cases))

            row = bench.run(case, tell)
            rows[key] = row | {"session": len(record["sessions"]) - 1}
            record["rows"] = [rows[key] for key in keys if key in rows]
            write_json(path, record)
            yield record


def record_path(output: Path, experiment: Experiment) -> Path:
    """Return where an experiment's record is."""
    return output / f"steering-{experiment.name}.json"


def read_record(path: Path) -> dict[str, Any]:
    """Return the record at a path.

    Raises:
        ExperimentError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: no record there: {error}") from error
    if not isinstance(found, dict) or found.get("benchmark") != "steering":
        raise ExperimentError(f"{path}: not a record of an experiment on steering")
    return found


def _begun(path: Path, title: str, experiment: dict[str, Any]) -> dict[str, Any]:
    """Return the record at a path, or an empty one."""
    fresh: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "benchmark": "steering",
        "title": title,
        "experiment": experiment,
        "sessions": [],
        "rows": [],
    }
    if not path.is_file():
        return fresh
    found = read_record(path)
    # As JSON has it: tuples are lists.
    if found.get("experiment") != json.loads(json.dumps(experiment)):
        raise ExperimentError(
            f"{path.name} is the record of another experiment or model; rename it to start anew"
        )
    return fresh | {"sessions": found["sessions"], "rows": found["rows"]}
