"""`stepwise`: llmzip's speed against the same weights run token by token by transformers.

Token by token, with the key/value cache and the text's own next token as every input, is how
archivers around a language library decode (and most of them encode). Each side runs in a process
of its own, one after the other, on the same cores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    rate,
)
from benchmarks.runner import JobError, code_file, run_job, temporary_folder
from benchmarks.weights import find_weights

WARM_UP_TOKENS = 5
CONTEXTS = (0, 1000)  # tokens that lie before the first measured step


class StepwiseError(Exception):
    """The comparison cannot be made; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one way of running the model is.

    Attributes:
        name: which.
        tokens_per_s: measured; bytes_per_s: by the whole text's bytes a token.
        ratios: how many times the speed of each stepwise row, by its name.
    """

    name: str
    tokens_per_s: float
    bytes_per_s: float
    ratios: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepwise:
    """What a run came to: speeds, and all of it for JSON."""

    speeds: list[Speed]
    record: dict[str, Any]


def compare_with_stepwise(
    file: InputFile,
    settings: LlmzipSettings,
    *,
    limit_bytes: int | None,
    tokens: int,
    weights: Path | None,
    progress: Callable[[str], None],
) -> Stepwise:
    """Measure transformers stepwise and llmzip both ways on one text.

    Args:
        limit_bytes: how much of the file; None for all of it.
        tokens: how many steps to time at each context.
        weights: what the model was made from, where llmzip does not know.
        progress: told of each stage.

    Raises:
        StepwiseError: the archive did not decode, or transformers failed.
        WeightsError, ArchiverError: the weights cannot be had.
    """
    from archiver.options import DEFAULT_MODEL

    model = settings.model or DEFAULT_MODEL
    environment = describe_environment()
    with temporary_folder() as name:
        folder = Path(name)
        file = beginning(file, limit_bytes, folder)
        arguments = {
            "text_file": str(file.path),
            "model": model,
            "weights_file": str(find_weights(model, weights).resolve()),
            "threads": settings.threads or usable_cores(),
            "tokens": tokens,
            "contexts": list(CONTEXTS),
        }
        progress("transformers, token by token")
        try:
            report = run_job("benchmarks.stepwise:time_transformers", arguments, folder)
        except JobError as error:
            raise StepwiseError(f"transformers failed: {error}") from error
        progress("llmzip")
        result = code_file(file, Llmzip(), settings, folder)
    if isinstance(result.outcome, Failed):
        raise StepwiseError(f"llmzip failed: {result.outcome.reason}")
    file_tokens, steps = report.value["file_tokens"], report.value["steps"]
    speeds = speeds_of(file.content_bytes, file_tokens, steps, result.outcome)
    record = {
        "schema": SCHEMA_VERSION,
        "benchmark": "stepwise",
        **environment,
        "config": {
            "llmzip": dataclasses.asdict(settings),
            "transformers": {
                "dtype": "float32", "threads": arguments["threads"], "tokens": tokens,
                "warm_up_tokens": WARM_UP_TOKENS,
            },
        },
        "inputs": [input_record(file) | {"tokens": file_tokens}],
        "results": [result.as_dict()],
        "stepwise": {"steps": steps, "usage": dataclasses.asdict(report.usage)},
        "speeds": [dataclasses.asdict(speed) for speed in speeds],
    }  # fmt: skip
    return Stepwise(speeds=speeds, record=record)


def speeds_of(
    content_bytes: int, file_tokens: int, steps: Sequence[dict[str, Any]], measured: Measured
) -> list[Speed]:
    """Return the speed of every stepwise context, then of llmzip both ways.

    Args:
        content_bytes, file_tokens: of the whole text.
        steps: for each context "first_context", "last_context", "tokens" and "wall_s".
    """
    bytes_per_token = content_bytes / file_tokens
    speeds: list[Speed] = []
    stepwise: dict[str, float] = {}
    for step in steps:
        name = f"transformers, context {step['first_context']} to {step['last_context']}"
        stepwise[name] = rate(step["tokens"], step["wall_s"]) or 0.0
    rows = dict(stepwise)
    for name, usage in (("compress", measured.compress), ("decompress", measured.decompress)):
        rows[f"llmzip {name}"] = rate(file_tokens, usage.wall_s) or 0.0
    for name, tokens_per_s in rows.items():
        ratios = {} if name in stepwise else {
            other: tokens_per_s / speed for other, speed in stepwise.items() if speed
        }  # fmt: skip
        speeds.append(
            Speed(
                name=name,
                tokens_per_s=tokens_per_s,
                bytes_per_s=tokens_per_s * bytes_per_token,
                ratios=ratios,
            )
        )
    return speeds


def time_transformers(
    text_file: str,
    model: str,
    weights_file: str,
    threads: int,
    tokens: int,
    contexts: Sequence[int],
) -> dict[str, Any]:
    """Time steps of transformers after each context; called in the fresh process.

    Loading, tokenizing and the reading of the context are not timed.

    Returns:
        "file_tokens", and "steps" as `speeds_of` takes them; contexts that the text is too
        short for are left out.
    """
    import torch

    from archiver.predict import registry
    from archiver.text.framing import symbols_of
    from archiver.text.tokenizer import TextTokenizer
    from archiver.text.vocabulary import Vocabulary
    from benchmarks.weights import check_same_model, read_weights, transformers_model

    torch.set_num_threads(threads)
    package = registry.resolve(model)
    source = read_weights(model, Path(weights_file))
    check_same_model(source, package)
    tokenizer = TextTokenizer(package)
    content = Path(text_file).read_bytes()
    arrays = package.arrays
    vocabulary = Vocabulary.build(
        arrays["tokens.data"], arrays["tokens.offsets"], arrays["tokens.rank_of_id"]
    )
    file_tokens = len(symbols_of(content, vocabulary, tokenizer).ranks)
    reach = max(contexts) + WARM_UP_TOKENS + tokens
    # No token has more bytes than a few dozen: a beginning holds all the ids that are needed.
    text = content[: 64 * reach].decode("utf-8", "replace")
    ids = [source.start_token_id, *tokenizer.encode(text).tolist()]
    running = transformers_model(source)
    steps = []
    with torch.inference_mode():
        for context in contexts:
            count = min(tokens, len(ids) - context - WARM_UP_TOKENS)
            if count > 0:
                steps.append(_time_steps(running, ids, context, count))
    if not steps:
        raise ValueError("the text is too short")
    return {"file_tokens": file_tokens, "steps": steps}


def _time_steps(model: Any, ids: Sequence[int], context: int, count: int) -> dict[str, Any]:
    """Time `count` steps that follow `context` tokens and a warm-up, fed with the text."""
    import torch

    cache = None
    if context:
        cache = model(torch.tensor([ids[:context]]), use_cache=True).past_key_values
    first = context + WARM_UP_TOKENS
    started_s = 0.0
    for place in range(context, first + count):
        if place == first:
            started_s = time.perf_counter()
        output = model(
            torch.tensor([ids[place : place + 1]]), past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        output.logits[0, -1].argmax().item()  # what a greedy reader would take
    return {
        "first_context": first,
        "last_context": first + count,
        "tokens": count,
        "wall_s": time.perf_counter() - started_s,
    }
