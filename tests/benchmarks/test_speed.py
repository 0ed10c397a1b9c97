"""Stages, floor, roofs and their ratios."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from archiver.codec.frame import FrameCodec
from archiver.predict.engine import Engine
from archiver.predict.kernels import layers
from archiver.predict.kernels.lanes import has_byte_dot_product
from archiver.predict.package import ModelPackage
from benchmarks.__main__ import main
from benchmarks.records import Measured, Usage
from benchmarks.runner import JobError
from benchmarks.speed import floor
from benchmarks.speed import record as speed_record
from benchmarks.speed.charts import draw
from benchmarks.speed.floor import (
    SHAPES,
    Products,
    step_ways,
    time_floor,
    time_products,
    time_roofs,
)
from benchmarks.speed.parts import time_parts
from benchmarks.speed.record import DIRECTIONS, directions_of
from benchmarks.speed.stages import ALTERNATIVE, CONTAINER, OTHER, StageClock
from benchmarks.speed.tables import excerpt, roof, tables
from tests.support.tiny_models import make_tiny_hf_folder

CONTENT = b"It was the best of times, it was the worst of times. " * 40


def usage(wall_s: float) -> Usage:
    return Usage(wall_s=wall_s, cpu_s=wall_s, process_wall_s=wall_s + 1, peak_bytes=1)


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory is measured with fits in a cache, and products have few rows."""
    monkeypatch.setattr(floor, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(floor, "ROOF_ROWS", (1, 3))


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Afterwards torch has as many threads as before."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# --- floor and roofs ----------------------------------------------------------------------------


def test_operations_and_bytes_of_products() -> None:
    found = Products(
        rows=16, groups=2, members=1, wall_s=0.5, shape_s={"qkv": 0.125, "head": 0.25},
        weight_bytes={"qkv": 1000, "head": 4000},
    )  # fmt: skip
    assert found.intensity == 32  # two operations a row for each byte of weights
    assert found.operations_per_s == 2 * 32 * 5000 / 0.5
    assert found.of_shape("qkv") == 2 * 32 * 1000 / 0.125
    assert found.as_dict() == {
        "rows": 16, "groups": 2, "members": 1, "us_per_token": 0.5e6 / 32, "intensity": 32,
        "operations_per_s": 640_000.0, "operations_per_token": 10_000,
        "shapes": [
            {"name": "qkv", "operations_per_token": 2000, "weight_bytes": 1000,
             "operations_per_s": 512_000.0},
            {"name": "head", "operations_per_token": 8000, "weight_bytes": 4000,
             "operations_per_s": 1_024_000.0},
        ],
    }  # fmt: skip


def test_all_weights_are_read_once_a_product(tiny: ModelPackage) -> None:
    engine = Engine(tiny, window=64, local_window=64, sinks=4)
    found = time_products(engine, rows=3, groups=2)
    assert tuple(found.weight_bytes) == SHAPES
    matrices = {
        name: array.size for name, array in tiny.arrays.items()
        if name.endswith(".codes") and name != "embed.codes"
    }  # fmt: skip
    assert sum(found.weight_bytes.values()) == sum(matrices.values())
    assert found.weight_bytes["head"] == matrices["head.codes"]
    assert found.weight_bytes["o"] == sum(
        size for name, size in matrices.items() if name.endswith(".o.codes")
    )
    assert all(0 < spent_s <= found.wall_s for spent_s in found.shape_s.values())


def test_rows_of_each_direction(tiny: ModelPackage) -> None:
    engine = Engine(tiny, window=64, local_window=64, sinks=4, matmul="float32")
    by_streams = {streams: time_floor(engine, 2, streams)["decompress"] for streams in (1, 4, 9)}
    assert {n: (found.rows, found.groups) for n, found in by_streams.items()} == {
        1: (1, 1), 4: (4, 1), 9: (5, 2),
    }  # fmt: skip
    compress = time_floor(engine, 2, 9)["compress"]
    assert (compress.rows, compress.groups) == (engine.block_tokens, 2)


@pytest.mark.skipif(not has_byte_dot_product(), reason="no products of our own here")
def test_rows_of_members_apart_and_together(tiny: ModelPackage) -> None:
    engine = Engine(tiny, window=64, local_window=64, sinks=4)
    assert step_ways(engine, 2, 1) == [(1, 1, 1), (1, 1, 2)]
    assert step_ways(engine, 2, 9) == [(5, 2, 1), (9, 1, 2)]
    for rows, groups, members in step_ways(engine, 2, 9):
        found = time_products(engine, rows, groups, members)
        assert (found.rows, found.groups, found.members) == (rows, groups, members)


@pytest.mark.usefixtures("few_bytes")
def test_no_product_lies_above_the_roofs(tiny: ModelPackage) -> None:
    engine = Engine(tiny, window=64, local_window=64, sinks=4)
    before = time_products(engine, rows=40, groups=2)
    roofs = time_roofs(engine, 2, [before])
    assert max(map(before.of_shape, SHAPES)) <= roofs["operations_per_s"]
    assert [found["rows"] for found in roofs["products"]] == [1, 3]
    assert 0 < roofs["summed_bytes_per_s"] <= roofs["read_bytes_per_s"]
    for found in roofs["products"]:
        assert found["operations_per_s"] <= roofs["operations_per_s"]
    first = roofs["products"][0]
    assert first["operations_per_s"] <= roof(roofs, first["intensity"]) * (1 + 1e-9)


def test_the_roofs() -> None:
    roofs = {"operations_per_s": 1000.0, "read_bytes_per_s": 10.0}
    assert [roof(roofs, intensity) for intensity in (2, 100, 256)] == [20.0, 1000.0, 1000.0]


def test_ratios_to_the_floor() -> None:
    measured = Measured(
        compressed_bytes=1, parts=None, model_bytes=None, compress=usage(3.0),
        decompress=usage(8.0), details={},
    )  # fmt: skip
    parts = {
        "tokens": 2000,
        "floor": {
            "compress": {"us_per_token": 500.0, "operations_per_token": 300},
            "decompress": {"us_per_token": 1000.0, "operations_per_token": 300},
        },
    }
    assert directions_of(parts, measured) == [
        {"name": "compress", "wall_s": 3.0, "floor_s": 1.0, "ratio": 3.0,
         "operations_per_s": 200_000.0},
        {"name": "decompress", "wall_s": 8.0, "floor_s": 2.0, "ratio": 4.0,
         "operations_per_s": 75_000.0},
    ]  # fmt: skip


# --- stages -------------------------------------------------------------------------------------


def test_a_call_within_another_counts_for_its_own_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([0.0, 1.0, 3.0, 10.0, 20.0, 25.0])  # outer, inner, inner, outer; alone
    monkeypatch.setattr("benchmarks.speed.stages.time.perf_counter", lambda: next(now_s))
    clock = StageClock()
    inner = clock.timed(lambda: "found", "inner")
    outer = clock.timed(lambda: inner(), "outer")
    assert outer() == "found"
    assert dict(clock.times_s) == {"inner": 2.0, "outer": 8.0}
    inner()
    assert dict(clock.times_s) == {"inner": 7.0, "outer": 8.0}


@pytest.mark.usefixtures("tiny", "few_bytes")
def test_every_stage_is_timed_and_nothing_stays_wrapped(tmp_path: Path) -> None:
    kept = layers.normalize, FrameCodec._join
    text = tmp_path / "text"
    text.write_bytes(CONTENT)
    settings = {"model": "tiny", "steering": "none"}
    parts = time_parts(str(text), settings, threads=2, stage_bytes=1000)
    assert (layers.normalize, FrameCodec._join) == kept
    assert parts["tokens"] > 100
    for name in DIRECTIONS:
        stages = parts["stages_us"][name]
        assert parts["floor"][name]["us_per_token"] > 0
        assert set(stages) == {
            "matrix products", "attention", "mixer and coder", OTHER, "tokenizer", CONTAINER,
            "head: weights and prefix sums", "norms, rotations, activations",
        } | ({ALTERNATIVE} if name == "compress" else set())  # fmt: skip
        assert all(us > 0 for us in stages.values())
        assert list(stages.values()) == sorted(stages.values(), reverse=True)
    text.write_bytes(b"")
    with pytest.raises(ValueError, match="the text is empty"):
        time_parts(str(text), settings, threads=2, stage_bytes=1000)


# --- the command --------------------------------------------------------------------------------


def run(folder: Path, *more: object) -> Result:
    (folder / "text").write_bytes(CONTENT)
    arguments = ["speed", folder / "text", "--model", "tiny", "--threads", 1, "--stage-bytes",
                 1000, "--tokens", 3, "--output", folder / "out", *more]  # fmt: skip
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("tiny", "in_process", "few_bytes", "torch_threads")
def test_a_run_with_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    weights = make_tiny_hf_folder(tmp_path / "weights", seed=1)
    found = run(tmp_path, "--gguf", weights)
    assert found.exit_code == 0, found.output
    (path,) = (tmp_path / "out").glob("speed-*.json")
    record = json.loads(path.read_text())
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in path.read_text()
    assert record["transformers"]["forced"]["tokens"] > 3
    assert {step["tokens"] for step in record["transformers"]["steps"]} == {3}
    first, *_, compress, decompress = record["speeds"]
    assert first["name"] == "transformers, teacher-forced"
    assert (compress["name"], decompress["name"]) == ("llmzip compress", "llmzip decompress")
    assert len(compress["ratios"]) == len(record["speeds"]) - 2
    assert tables(record) in found.stdout


@pytest.mark.usefixtures("tiny", "in_process", "few_bytes")
def test_a_run_without_weights(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.exit_code == 0, found.output
    assert found.stdout.endswith(
        "without transformers: say by --gguf what the model tiny was made from\n"
    )
    (path,) = (tmp_path / "out").glob("speed-*.json")
    assert [speed["ratios"] for speed in json.loads(path.read_text())["speeds"]] == [{}, {}]


@pytest.mark.usefixtures("tiny")
def test_a_part_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise JobError("killed by signal 9")

    monkeypatch.setattr(speed_record, "run_job", fail)
    refused = run(tmp_path)
    assert refused.exit_code == 1
    assert "Error: the stages failed: killed by signal 9" in refused.stderr
    assert not (tmp_path / "out").exists()


# --- table and chart ------------------------------------------------------------------------------

CURVE = {"rows": 1, "intensity": 2, "operations_per_s": 1e10}
FLOOR = {
    "rows": 128, "intensity": 256, "operations_per_s": 2e11, "operations_per_token": 3_000_000,
    "shapes": [
        {"name": "qkv", "operations_per_token": 1_000_000, "weight_bytes": 500_000,
         "operations_per_s": 2.5e11},
        {"name": "head", "operations_per_token": 2_000_000, "weight_bytes": 1_000_000,
         "operations_per_s": 1.5e11},
    ],
}  # fmt: skip
RECORD: dict[str, Any] = {
    "config": {"threads": 2},
    "inputs": [{"file": "t", "bytes": 4000, "tokens": 1000}],
    "parts": {
        "floor": {
            "compress": FLOOR,
            "decompress": FLOOR | {"rows": 16, "intensity": 32, "operations_per_s": 1e11},
        },
        "roofs": {
            "operations_per_s": 2.5e11, "read_bytes_per_s": 5e9, "summed_bytes_per_s": 4e9,
            "products": [CURVE, CURVE | {"rows": 128, "intensity": 256, "operations_per_s": 2e11}],
        },
        "stages_us": {
            "compress": {"matrix products": 30.0, "attention": 10.0},
            "decompress": {"attention": 60.0, "matrix products": 20.0},
        },
    },
    "directions": [
        {"name": "compress", "wall_s": 3.0, "floor_s": 1.5, "ratio": 2.0,
         "operations_per_s": 1e11},
        {"name": "decompress", "wall_s": 8.0, "floor_s": 2.0, "ratio": 4.0,
         "operations_per_s": 2.5e10},
    ],
    "transformers": {},
    "speeds": [
        {"name": "transformers, teacher-forced", "tokens_per_s": 200.0, "bytes_per_s": 800.0,
         "ratios": {}},
        {"name": "llmzip compress", "tokens_per_s": 500.0, "bytes_per_s": 2000.0,
         "ratios": {"transformers, teacher-forced": 2.5}},
    ],
}  # fmt: skip

TABLES = """\
t  4,000 bytes, 1,000 tokens, 2 threads

compress: 3.0 s, 2.00 times the floor of 1.5 s (128 rows a product)
                 us/token, one thread  of all
matrix products                  30.0  75.0 %
attention                        10.0  25.0 %

decompress: 8.0 s, 4.00 times the floor of 2.0 s (16 rows a product)
                 us/token, one thread  of all
attention                        60.0  75.0 %
matrix products                  20.0  25.0 %

int8 operations; roofs: 250.0 Gop/s, 5.0 GB/s read (4.0 GB/s of a buffer beyond the caches)
                          Mop/token  MB of weights  op/byte  Gop/s  of the roof
compress, qkv                   1.0            0.5      256  250.0      100.0 %
compress, head                  2.0            1.0      256  150.0       60.0 %
compress, all products          3.0            1.5      256  200.0       80.0 %
compress, everything            3.0            1.5      256  100.0       40.0 %
decompress, qkv                 1.0            0.5       32  250.0      156.2 %
decompress, head                2.0            1.0       32  150.0       93.8 %
decompress, all products        3.0            1.5       32  100.0       62.5 %
decompress, everything          3.0            1.5       32   25.0       15.6 %

                              tokens/s  bytes/s  x teacher-forced
transformers, teacher-forced     200.0      800
llmzip compress                  500.0    2,000               2.5"""


def test_the_excerpt() -> None:
    record = copy.deepcopy(RECORD) | {
        "date": "2026-11-23T10:00:00+00:00",
        "git": {"commit": "0123456789"},
        "hardware": {"cpu": "A processor", "cores": 2},
        "results": [
            {
                "file": "t",
                "compress": {"bytes_per_s": 1333.0, "peak_bytes": 750_000_000},
                "decompress": {"bytes_per_s": 500.0, "peak_bytes": 900_000_000},
            }
        ],
    }
    compress, decompress = RECORD["speeds"][1], {"name": "llmzip decompress", "ratios": {}}
    slow = {"transformers, context 5 to 9": 50.4, "transformers, context 105 to 109": 60.6}
    record["speeds"] = [compress | {"ratios": compress["ratios"] | slow}, decompress]
    assert excerpt([record]).split("\n") == [
        "A processor, 2 cores, 2026-11-23, commit 0123456, 2 threads.",
        "",
        "| file | direction | s | kB/s | tokens/s | times the floor | times stepwise "
        "| times teacher-forced | peak MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| t | compress | 3 | 1.33 | 333 | 2.00 | 50 to 61 | 2.5 | 750 |",
        "| t | decompress | 8 | 0.50 | 125 | 4.00 | - | - | 900 |",
        "",
        "| stage | t, compress | t, decompress |",
        "| --- | ---: | ---: |",
        "| matrix products | 75.0 % | 25.0 % |",
        "| attention | 25.0 % | 75.0 % |",
    ]


def test_tables() -> None:
    assert tables(RECORD) == TABLES
    without = copy.deepcopy(RECORD) | {"transformers": {"missing": "no weights"}}
    assert tables(without) == f"{TABLES}\n\nwithout transformers: no weights"


def test_the_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(RECORD, tmp_path / "r.png") == [tmp_path / "r.png"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
