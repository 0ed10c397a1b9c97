"""`speed`: where llmzip's time goes, against the matrix products that nothing can do without.

The floor is the time of the bare int8 matrix products for the text's tokens, at the row counts
that each direction has and with as many threads: what an engine without any other work would
take. Stages are timed on one thread over the text's beginning, each kernel by its own calls; the
whole text is then compressed and decompressed in fresh processes.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
)
from benchmarks.runner import JobError, code_file, run_job, temporary_folder

if TYPE_CHECKING:
    from archiver.predict.engine import Engine

FLOOR_ROUNDS = 5
DIRECTIONS = ("compress", "decompress")
OTHER = "everything else"


class SpeedError(Exception):
    """The speed cannot be measured; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """How long one direction took beside its floor.

    Attributes:
        name: compress or decompress; rows: of each matrix product, on each thread.
        wall_s: the whole text's; floor_s: its matrix products alone.
        stages_us: microseconds a token on one thread, by stage, over the text's beginning.
    """

    name: str
    rows: int
    wall_s: float
    floor_s: float
    stages_us: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times its floor it took."""
        return self.wall_s / self.floor_s


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRun:
    """What a run came to: both directions, and all of it for JSON."""

    directions: list[Direction]
    record: dict[str, Any]


def measure_speed(
    file: InputFile,
    settings: LlmzipSettings,
    *,
    limit_bytes: int | None,
    stage_bytes: int,
    progress: Callable[[str], None],
) -> SpeedRun:
    """Time the stages, the floor and the whole text.

    Args:
        limit_bytes: how much of the file; None for all of it.
        stage_bytes: how much of that for the stages.
        progress: told of each part.

    Raises:
        SpeedError: the archive did not decode, or a part failed.
    """
    from archiver.levels import DEFAULT_LEVEL
    from archiver.options import DEFAULT_MODEL

    environment = describe_environment()
    with temporary_folder() as name:
        folder = Path(name)
        file = beginning(file, limit_bytes, folder)
        arguments = {
            "text_file": str(file.path),
            "model": settings.model or DEFAULT_MODEL,
            "level": settings.level or DEFAULT_LEVEL,
            "threads": settings.threads or usable_cores(),
            "stage_bytes": stage_bytes,
        }
        progress("stages and floor")
        try:
            parts = run_job("benchmarks.speed:time_parts", arguments, folder).value
        except JobError as error:
            raise SpeedError(f"the stages failed: {error}") from error
        progress("the whole text")
        result = code_file(file, Llmzip(), settings, folder)
    if isinstance(result.outcome, Failed):
        raise SpeedError(f"llmzip failed: {result.outcome.reason}")
    directions = directions_of(parts, result.outcome)
    record = {
        "schema": SCHEMA_VERSION,
        "benchmark": "speed",
        **environment,
        "config": {"llmzip": dataclasses.asdict(settings), "stage_bytes": stage_bytes},
        "inputs": [input_record(file) | {"tokens": parts["tokens"]}],
        "results": [result.as_dict()],
        "parts": parts,
        "directions": [dataclasses.asdict(d) | {"ratio": d.ratio} for d in directions],
    }
    return SpeedRun(directions=directions, record=record)


def directions_of(parts: dict[str, Any], measured: Measured) -> list[Direction]:
    """Return both directions of a text.

    Args:
        parts: what `time_parts` returns.
    """
    walls = (measured.compress.wall_s, measured.decompress.wall_s)
    return [
        Direction(
            name=name,
            rows=parts["floor"][name]["rows"],
            wall_s=wall_s,
            floor_s=parts["floor"][name]["us_per_token"] * parts["tokens"] / 1e6,
            stages_us=parts["stages_us"][name],
        )
        for name, wall_s in zip(DIRECTIONS, walls, strict=True)
    ]


def time_parts(
    text_file: str, model: str, level: int, threads: int, stage_bytes: int
) -> dict[str, Any]:
    """Time stages and floor; called in a fresh process.

    Returns:
        "tokens": of the whole text; "streams": of its first frame; "open_s": how long the codec
        took to open; "floor" and "stages_us": by direction.
    """
    from archiver.codec import open_codec, settings_for
    from archiver.codec.frame import plan_streams
    from archiver.frames import cut_frames
    from archiver.options import CompressOptions
    from archiver.predict import registry
    from archiver.predict.engine import Engine
    from archiver.text.framing import symbols_of
    from archiver.text.tokenizer import TextTokenizer

    options = CompressOptions(model=model, level=level, threads=1)
    package = registry.resolve(model)
    predictor, mixer = settings_for(package, options)
    started_s = time.perf_counter()
    codec = open_codec(predictor, mixer, package=package, threads=1, chunking=options.chunking)
    open_s = time.perf_counter() - started_s
    engine = Engine(
        package,
        window=predictor.window_tokens,
        local_window=predictor.local_window_tokens,
        sinks=predictor.sink_tokens,
    )
    tokenizer = TextTokenizer(package)
    with Path(text_file).open("rb") as stream:
        counts = [
            len(symbols_of(frame, engine.vocabulary, tokenizer).ranks)
            for frame in cut_frames(stream, options.frame_bytes)
        ]
    streams = plan_streams(counts[0], options.chunking).streams
    with Path(text_file).open("rb") as stream:
        content = stream.read(stage_bytes)

    stages_us: dict[str, dict[str, float]] = {}
    payload = codec.encode(content)  # compiles what is not compiled yet
    symbols = len(symbols_of(content, engine.vocabulary, tokenizer).ranks)
    runs: dict[str, Callable[[], bytes]] = {
        "compress": lambda: codec.encode(content),
        "decompress": lambda: codec.decode(payload, len(content)),
    }
    for name, run in runs.items():
        with _stages_timed(engine) as times_s:
            started_s = time.perf_counter()
            run()
            times_s[OTHER] = time.perf_counter() - started_s - sum(times_s.values())
        stages_us[name] = {stage: s / symbols * 1e6 for stage, s in _by_time(times_s)}
    return {
        "tokens": sum(counts),
        "streams": streams,
        "open_s": open_s,
        "floor": time_floor(engine, threads, streams),
        "stages_us": stages_us,
    }


def _by_time(times_s: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(times_s.items(), key=lambda item: -item[1])


def time_floor(engine: Engine, threads: int, streams: int) -> dict[str, dict[str, float]]:
    """Time all matrix products of one block and of one step, `threads` at a time.

    Returns:
        by direction, "rows" of each product and "us_per_token" of all threads together.
    """
    from archiver.codec.workers import BLOCK_TOKENS, GROUP_STREAMS_MIN

    groups = max(1, min(threads, streams // GROUP_STREAMS_MIN))
    shapes = {"compress": (BLOCK_TOKENS, threads), "decompress": (-(-streams // groups), groups)}
    found = {}
    for name, (rows, workers) in shapes.items():
        with ThreadPoolExecutor(workers) as pool:
            times_s = []
            for _ in range(FLOOR_ROUNDS):
                started_s = time.perf_counter()
                for job in [pool.submit(_multiply_all, engine, rows) for _ in range(workers)]:
                    job.result()
                times_s.append(time.perf_counter() - started_s)
        found[name] = {"rows": rows, "us_per_token": min(times_s) / (rows * workers) * 1e6}
    return found


def _multiply_all(engine: Engine, rows: int) -> None:
    """All products that `rows` tokens need, on codes of no meaning."""
    hidden, attended, gated = (
        np.ones((rows, width), np.int8)
        for width in (engine.hidden, engine.heads * engine.head_dim, engine.ffn)
    )
    scales = np.ones(rows, np.float32)
    room = np.empty(rows * engine.vocabulary.size, np.float32)
    for layer in engine.layers:
        layer.qkv(hidden, scales, room)
        layer.o(attended, scales, room)
        layer.up(hidden, scales, room)
        layer.down(gated, scales, room)
    engine.head(hidden, scales, room)


@contextmanager
def _stages_timed(engine: Engine) -> Iterator[dict[str, float]]:
    """Within, the time of every kernel adds to its stage, in seconds."""
    from archiver.codec import frame, symbols
    from archiver.predict.kernels import attention, head, layers

    times_s: dict[str, float] = defaultdict(float)
    places: list[tuple[Any, str, str]] = [
        (engine.backend, "__call__", "matrix products"),
        (attention, "attend", "attention"),
        (attention, "attend_by_tiles", "attention"),
        (head, "path_probabilities", "head: weights and prefix sums"),
        (head, "weigh_vocabulary", "head: weights and prefix sums"),
        (symbols, "encode_symbols", "mixer and coder"),
        (symbols, "decode_step", "mixer and coder"),
        (frame, "symbols_of", "tokenizer"),
        (frame, "charset_spans", "tokenizer"),
        *(
            (layers, name, "norms, rotations, activations")
            for name in (
                "embed", "normalize", "project_heads", "quantize_rows", "add_product",
                "gate_and_rotate",
            )
        ),
    ]  # fmt: skip
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]

    def timed(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started_s = time.perf_counter()
            result = function(*arguments)
            times_s[stage] += time.perf_counter() - started_s
            return result

        return call

    try:
        for (owner, name, function), (_, _, stage) in zip(kept, places, strict=True):
            setattr(owner, name, timed(function, stage))
        yield times_s
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
