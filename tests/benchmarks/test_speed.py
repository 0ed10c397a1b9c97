"""Stages, floor and their ratio."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.predict.kernels import layers
from archiver.predict.package import ModelPackage
from benchmarks.records import Measured, Usage
from benchmarks.speed import DIRECTIONS, OTHER, directions_of, time_parts


def usage(wall_s: float) -> Usage:
    return Usage(wall_s=wall_s, cpu_s=wall_s, process_wall_s=wall_s + 1, peak_bytes=1)


def test_ratios_to_the_floor() -> None:
    measured = Measured(
        compressed_bytes=1, parts=None, model_bytes=None, compress=usage(3.0),
        decompress=usage(8.0), details={},
    )  # fmt: skip
    parts = {
        "tokens": 2000,
        "floor": {
            "compress": {"rows": 128, "us_per_token": 500.0},
            "decompress": {"rows": 16, "us_per_token": 1000.0},
        },
        "stages_us": {"compress": {"attention": 1.0}, "decompress": {"attention": 2.0}},
    }
    compress, decompress = directions_of(parts, measured)
    assert (compress.floor_s, compress.ratio, compress.rows) == (1.0, 3.0, 128)
    assert (decompress.floor_s, decompress.ratio, decompress.rows) == (2.0, 4.0, 16)


@pytest.mark.usefixtures("tiny")
def test_every_stage_is_timed_and_nothing_stays_wrapped(tiny: ModelPackage, tmp_path: Path) -> None:
    normalize = layers.normalize
    text = tmp_path / "text"
    text.write_bytes(b"It was the best of times, it was the worst of times. " * 40)
    parts = time_parts(str(text), "tiny", level=5, threads=2, stage_bytes=1000)
    assert layers.normalize is normalize
    assert parts["tokens"] > 100
    for name in DIRECTIONS:
        stages = parts["stages_us"][name]
        assert parts["floor"][name]["us_per_token"] > 0
        assert {
            "matrix products", "attention", "mixer and coder", OTHER,
            "head: weights and prefix sums", "norms, rotations, activations",
        } <= set(stages)  # fmt: skip
        assert all(us > 0 for us in stages.values())
    assert "tokenizer" in parts["stages_us"]["compress"]
