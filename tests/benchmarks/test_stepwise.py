"""Speeds and their ratios."""

from __future__ import annotations

import pytest

from benchmarks.records import Measured, Usage
from benchmarks.stepwise import Speed, speed_rows, speeds_of


def usage(wall_s: float) -> Usage:
    return Usage(wall_s=wall_s, cpu_s=wall_s, process_wall_s=wall_s + 1, peak_bytes=1)


MEASURED = Measured(
    compressed_bytes=1, parts=None, model_bytes=None, compress=usage(2.0), decompress=usage(4.0),
    details={},
)  # fmt: skip


def test_speeds() -> None:
    steps = [
        {"first_context": 5, "last_context": 205, "tokens": 200, "wall_s": 8.0},
        {"first_context": 1005, "last_context": 1105, "tokens": 100, "wall_s": 5.0},
    ]
    near, far = ("transformers, context 5 to 205", "transformers, context 1005 to 1105")
    assert speeds_of(4000, 1000, steps, MEASURED) == [
        Speed(name=near, tokens_per_s=25.0, bytes_per_s=100.0, ratios={}),
        Speed(name=far, tokens_per_s=20.0, bytes_per_s=80.0, ratios={}),
        Speed(
            name="llmzip compress", tokens_per_s=500.0, bytes_per_s=2000.0,
            ratios={near: 20.0, far: 25.0},
        ),
        Speed(
            name="llmzip decompress", tokens_per_s=250.0, bytes_per_s=1000.0,
            ratios={near: 10.0, far: 12.5},
        ),
    ]  # fmt: skip


def test_speeds_beside_whole_blocks() -> None:
    forced = {"tokens": 800, "block_tokens": 400, "wall_s": 4.0}
    step = {"first_context": 5, "last_context": 205, "tokens": 200, "wall_s": 8.0}
    speeds = speeds_of(4000, 1000, [step], MEASURED, forced)
    assert speeds[0] == Speed(
        name="transformers, teacher-forced", tokens_per_s=200.0, bytes_per_s=800.0, ratios={}
    )
    assert list(speeds[2].ratios.values()) == [2.5, 20.0]
    assert speed_rows(speeds) == [
        ("", "tokens/s", "bytes/s", "x teacher-forced", "x context 5 to 205"),
        ("transformers, teacher-forced", "200.0", "800", "", ""),
        ("transformers, context 5 to 205", "25.0", "100", "", ""),
        ("llmzip compress", "500.0", "2,000", "2.5", "20.0"),
        ("llmzip decompress", "250.0", "1,000", "1.2", "10.0"),
    ]
    # Where transformers was not to be had, llmzip's rows stand alone.
    alone = speed_rows(speeds_of(4000, 1000, [], MEASURED))
    assert alone == [
        ("", "tokens/s", "bytes/s"), ("llmzip compress", "500.0", "2,000"),
        ("llmzip decompress", "250.0", "1,000"),
    ]  # fmt: skip


def test_blocks_predict_every_token_once() -> None:
    pytest.importorskip("transformers")
    import torch

    from benchmarks.stepwise import WARM_UP_TOKENS, _time_blocks
    from benchmarks.weights import transformers_model
    from tests.benchmarks.test_float_llama import some_ids, tiny_source

    model = transformers_model(tiny_source())
    ids = some_ids(60).tolist()
    read: list[list[int]] = []

    def reading(tokens: torch.Tensor, **options: object) -> object:
        read.append(tokens[0].tolist())
        return model(tokens, **options)

    reading.forward = model.forward  # whose arguments say how the cache is called
    with torch.inference_mode():
        found = _time_blocks(reading, ids, 25)
    assert read[0] == ids[:WARM_UP_TOKENS]
    assert read[1:] == [ids[:25], ids[25:50], ids[50:59]]
    assert (found["tokens"], found["block_tokens"]) == (59, 25)
    assert found["wall_s"] > 0


def test_steps_are_fed_by_the_text_and_keep_their_cache() -> None:
    pytest.importorskip("transformers")
    import torch

    from benchmarks.stepwise import WARM_UP_TOKENS, _time_steps
    from benchmarks.weights import transformers_model
    from tests.benchmarks.test_float_llama import some_ids, tiny_source

    model = transformers_model(tiny_source())
    ids = some_ids(60).tolist()
    read: list[list[int]] = []

    def reading(tokens: torch.Tensor, **options: object) -> object:
        read.append(tokens[0].tolist())
        return model(tokens, **options)

    reading.forward = model.forward  # whose arguments say how the cache is called
    with torch.inference_mode():
        step = _time_steps(reading, ids, 20, 30)
    assert read[0] == ids[:20]
    assert read[1:] == [[token] for token in ids[20 : 20 + WARM_UP_TOKENS + 30]]
    assert step["tokens"] == 30
    assert step["wall_s"] > 0
