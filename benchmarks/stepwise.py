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
FORCED = "transformers, teacher-forced"
FORCED_BLOCK_TOKENS = 2048  # that transformers reads at once, teacher-forced


class StepwiseError(Exception):
    """The comparison cannot be made; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one way of running the model is.

    Attributes:
        name: which.
        tokens_per_s: measured; bytes_per_s: by the whole text's bytes a token.
        ratios: how many times the speed of each of transformers' rows, by its name.
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
    content_bytes: int,
    file_tokens: int,
    steps: Sequence[dict[str, Any]],
    measured: Measured,
    forced: dict[str, Any] | None = None,
) -> list[Speed]:
    """Return the speed of every way to run transformers, then of llmzip both ways.

    Args:
        content_bytes, file_tokens: of the whole text.
        steps: for each context "first_context", "last_context", "tokens" and "wall_s".
        forced: what `time_teacher_forced` returns; None where that was not measured.
    """
    bytes_per_token = content_bytes / file_tokens
    speeds: list[Speed] = []
    others: dict[str, float] = {}
    if forced is not None:
        others[FORCED] = rate(forced["tokens"], forced["wall_s"]) or 0.0
    for step in steps:
        name = f"transformers, context {step['first_context']} to {step['last_context']}"
        others[name] = rate(step["tokens"], step["wall_s"]) or 0.0
    rows = dict(others)
    for name, usage in (("compress", measured.compress), ("decompress", measured.decompress)):
        rows[f"llmzip {name}"] = rate(file_tokens, usage.wall_s) or 0.0
    for name, tokens_per_s in rows.items():
        ratios = {} if name in others else {
            other: tokens_per_s / speed for other, speed in others.items() if speed
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


def speed_rows(speeds: Sequence[Speed]) -> list[tuple[str, ...]]:
    """Return a table of speeds: llmzip's as many times each of the others."""
    others = list(dict.fromkeys(name for speed in speeds for name in speed.ratios))
    columns = [f"x {name.removeprefix('transformers, ')}" for name in others]
    rows: list[tuple[str, ...]] = [("", "tokens/s", "bytes/s", *columns)]
    for speed in speeds:
        ratios = [f"{speed.ratios[name]:.1f}" if name in speed.ratios else "" for name in others]
        rows.append(
            (speed.name, f"{speed.tokens_per_s:,.1f}", f"{speed.bytes_per_s:,.0f}", *ratios)
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """transformers' model, ready, and the text's beginning for it.

    Attributes:
        file_tokens: of the whole text; ids: the start token, then those of its beginning.
    """

    file_tokens: int
    ids: list[int]
    running: Any


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

    reach = max(contexts) + WARM_UP_TOKENS + tokens
    prepared = _prepare(text_file, model, weights_file, threads, reach)
    steps = []
    with torch.inference_mode():
        for context in contexts:
            count = min(tokens, len(prepared.ids) - context - WARM_UP_TOKENS)
            if count > 0:
                steps.append(_time_steps(prepared.running, prepared.ids, context, count))
    if not steps:
        raise ValueError("the text is too short")
    return {"file_tokens": prepared.file_tokens, "steps": steps}


def time_teacher_forced(
    text_file: str, model: str, weights_file: str, threads: int, tokens: int
) -> dict[str, Any]:
    """Time transformers on whole blocks of the text; called in the fresh process.

    What a compressor would need at least: the probability of every token after those before it
    in its block. No archive is made. Loading, tokenizing and a warm-up are not timed.

    Args:
        tokens: how many of the text's beginning, at most.

    Returns:
        "tokens" that were predicted, "block_tokens", and "wall_s" of all.
    """
    import torch

    prepared = _prepare(text_file, model, weights_file, threads, tokens)
    with torch.inference_mode():
        return _time_blocks(prepared.running, prepared.ids[: tokens + 1], FORCED_BLOCK_TOKENS)


def _prepare(text_file: str, model: str, weights_file: str, threads: int, reach: int) -> _Prepared:
    """transformers on so many threads, and at least `reach` ids where the text has them."""
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
    # No token has more bytes than a few dozen: a beginning holds all the ids that are needed.
    text = content[: 64 * reach].decode("utf-8", "replace")
    return _Prepared(
        file_tokens=len(symbols_of(content, vocabulary, tokenizer).ranks),
        ids=[source.start_token_id, *tokenizer.encode(text).tolist()],
        running=transformers_model(source),
    )


def _time_blocks(model: Any, ids: Sequence[int], block_tokens: int) -> dict[str, Any]:
    """Time the probabilities of all ids but the first, block by block, after a warm-up."""
    import torch

    model(torch.tensor([ids[:WARM_UP_TOKENS]]), use_cache=False)
    started_s = time.perf_counter()
    for begin in range(0, len(ids) - 1, block_tokens):
        block = torch.tensor(ids[begin : begin + block_tokens + 1])
        logits = model(block[None, :-1], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits, block[1:]).item()
    return {
        "tokens": len(ids) - 1,
        "block_tokens": block_tokens,
        "wall_s": time.perf_counter() - started_s,
    }


def _time_steps(model: Any, ids: Sequence[int], context: int, count: int) -> dict[str, Any]:
    """Time `count` steps that follow `context` tokens and a warm-up, fed with the text."""
    import torch

    from archiver.predict.float_engine import cache_argument

    name, cache = cache_argument(model), None
    assert name is not None
    if context:
        cache = getattr(model(torch.tensor([ids[:context]]), use_cache=True), name)
    first = context + WARM_UP_TOKENS
    started_s = 0.0
    for place in range(context, first + count):
        if place == first:
            started_s = time.perf_counter()
        inputs = torch.tensor([ids[place : place + 1]])
        output = model(inputs, use_cache=True, **{name: cache})
        cache = getattr(output, name)
        output.logits[0, -1].argmax().item()  # what a greedy reader would take
    return {
        "first_context": first,
        "last_context": first + count,
        "tokens": count,
        "wall_s": time.perf_counter() - started_s,
    }
