"""The whole text both ways, beside its floor, the machine's roofs and transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from archiver.errors import ArchiverError
from benchmarks.competitors import Llmzip
from benchmarks.environment import describe_environment, usable_cores
from benchmarks.inputs import beginning
from benchmarks.records import (
    SCHEMA_VERSION,
    Failed,
    InputFile,
    LlmzipSettings,
    Measured,
    input_record,
    without_paths,
)
from benchmarks.runner import JobError, code_file, run_job, temporary_folder
from benchmarks.stepwise import CONTEXTS, speeds_of
from benchmarks.weights import WeightsError, find_weights

DIRECTIONS = ("compress", "decompress")
FORCED_TOKENS = 8192  # that transformers reads in blocks, teacher-forced


class SpeedError(Exception):
    """The speed cannot be measured; the message is for the user."""


def measure_speed(
    file: InputFile,
    settings: LlmzipSettings,
    *,
    limit_bytes: int | None,
    stage_bytes: int,
    tokens: int,
    weights: Path | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Time the stages, the floor, the whole text and transformers; return the record.

    Args:
        limit_bytes: how much of the file; None for all of it.
        stage_bytes: how much of that for the stages.
        tokens: how many steps of transformers to time at each context.
        weights: what the model was made from, where llmzip does not know.
        progress: told of each part.

    Raises:
        SpeedError: the archive did not decode, or a part failed.
    """
    environment = describe_environment()
    threads = settings.threads or usable_cores()
    with temporary_folder() as name:
        folder = Path(name)
        file = beginning(file, limit_bytes, folder)
        progress("stages and floor")
        arguments = {
            "text_file": str(file.path),
            "settings": dataclasses.asdict(settings),
            "threads": threads,
            "stage_bytes": stage_bytes,
        }
        try:
            parts = run_job("benchmarks.speed.parts:time_parts", arguments, folder).value
        except JobError as error:
            raise SpeedError(f"the stages failed: {error}") from error
        progress("the whole text")
        result = code_file(file, Llmzip(), settings, folder)
        if isinstance(result.outcome, Failed):
            raise SpeedError(f"llmzip failed: {result.outcome.reason}")
        progress("transformers")
        try:
            others = _time_transformers(file, settings, threads, tokens, weights, folder)
        except (ArchiverError, JobError, WeightsError) as error:
            others = {"missing": without_paths(str(error))}
    tokens_of_text = parts["tokens"]
    speeds = speeds_of(
        file.content_bytes, tokens_of_text, others.get("steps", []), result.outcome,
        others.get("forced"),
    )  # fmt: skip
    return {
        "schema": SCHEMA_VERSION,
        "benchmark": "speed",
        **environment,
        "config": {
            "llmzip": dataclasses.asdict(settings),
            "stage_bytes": stage_bytes,
            "threads": threads,
            "transformers": {"dtype": "float32", "tokens": tokens, "forced_tokens": FORCED_TOKENS},
        },
        "inputs": [input_record(file) | {"tokens": tokens_of_text}],
        "results": [result.as_dict()],
        "parts": parts,
        "directions": directions_of(parts, result.outcome),
        "transformers": others,
        "speeds": [dataclasses.asdict(speed) for speed in speeds],
    }


def directions_of(parts: Mapping[str, Any], measured: Measured) -> list[dict[str, Any]]:
    """Return both directions of a text beside their floor, in types that JSON has.

    Args:
        parts: what `time_parts` returns.

    Returns:
        "name"; "wall_s" of the whole text; "floor_s" of its bare products; "ratio" of the two;
        "operations_per_s" of the whole text's products in that time.
    """
    walls = (measured.compress.wall_s, measured.decompress.wall_s)
    found = []
    for name, wall_s in zip(DIRECTIONS, walls, strict=True):
        floor = parts["floor"][name]
        floor_s = floor["us_per_token"] * parts["tokens"] / 1e6
        found.append(
            {
                "name": name,
                "wall_s": wall_s,
                "floor_s": floor_s,
                "ratio": wall_s / floor_s,
                "operations_per_s": floor["operations_per_token"] * parts["tokens"] / wall_s,
            }
        )
    return found


def _time_transformers(
    file: InputFile,
    settings: LlmzipSettings,
    threads: int,
    tokens: int,
    weights: Path | None,
    folder: Path,
) -> dict[str, Any]:
    """What transformers takes for the same text's beginning, in float32.

    Returns:
        "forced" as `time_teacher_forced` returns it, "steps" as `time_transformers` does.

    Raises:
        WeightsError, ArchiverError: the weights cannot be had. JobError: transformers failed.
    """
    from archiver.options import DEFAULT_MODEL

    model = settings.model or DEFAULT_MODEL
    shared = {
        "text_file": str(file.path),
        "model": model,
        "weights_file": str(find_weights(model, weights).resolve()),
        "threads": threads,
    }
    forced = run_job(
        "benchmarks.stepwise:time_teacher_forced", shared | {"tokens": FORCED_TOKENS}, folder
    )
    stepwise = run_job(
        "benchmarks.stepwise:time_transformers",
        shared | {"tokens": tokens, "contexts": list(CONTEXTS)},
        folder,
    )
    return {"forced": forced.value, "steps": stepwise.value["steps"]}
