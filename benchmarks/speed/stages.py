"""Seconds by stage: every kernel's calls are timed while one thread codes a text."""

from __future__ import annotations

import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import zstandard

from archiver.container import ArchiveReader, ArchiveWriter, FrameCoding, Header
from archiver.frames import ZSTD_LEVEL

if TYPE_CHECKING:
    from archiver.codec import FrameCodec
    from archiver.container.reader import EncodedFrame
    from archiver.predict.kernels.products import Product

OTHER = "everything else"
CONTAINER = "container"
ALTERNATIVE = "zstd, tried beside"


class StageClock:
    """Adds up the seconds of calls, stage by stage.

    Attributes:
        times_s: by stage; a timed call within another one counts for its own stage only.
    """

    def __init__(self) -> None:
        self.times_s: dict[str, float] = defaultdict(float)
        self._thread = threading.local()

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return a function that does the same, and is timed."""

        def call(*arguments: Any) -> Any:
            outer_s, self._thread.inner_s = getattr(self._thread, "inner_s", 0.0), 0.0
            started_s = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent_s = time.perf_counter() - started_s
                self.times_s[stage] += spent_s - self._thread.inner_s
                self._thread.inner_s = outer_s + spent_s

        return call


def time_stages(
    codec: FrameCodec, backend: type[Product], header: Header, content: bytes
) -> dict[str, dict[str, float]]:
    """Return microseconds a token, by direction and by stage, the longest first.

    Args:
        codec: with one thread; backend: of its products.
        header: of the archive; content: of its only frame.
    """
    symbols = len(codec.ranks(content))
    archive = _archive_of(header, content, codec.encode(content))
    codec.decode(_frame_of(archive).payload, len(content))  # all is compiled now
    runs: dict[str, Callable[[StageClock], None]] = {
        "compress": lambda clock: _compress(codec, header, content, clock),
        "decompress": lambda clock: _decompress(codec, archive, clock),
    }
    found = {}
    for name, run in runs.items():
        clock = StageClock()
        with _kernels_timed(clock, backend), _kernels_called_one_by_one():
            started_s = time.perf_counter()
            run(clock)
            wall_s = time.perf_counter() - started_s
        times_s = clock.times_s | {OTHER: wall_s - sum(clock.times_s.values())}
        by_time = sorted(times_s.items(), key=lambda item: -item[1])
        found[name] = {stage: spent_s / symbols * 1e6 for stage, spent_s in by_time}
    return found


def _compress(codec: FrameCodec, header: Header, content: bytes, clock: StageClock) -> None:
    """What `api.compress` does with a frame."""
    clock.timed(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress, ALTERNATIVE)(content)
    clock.timed(_archive_of, CONTAINER)(header, content, codec.encode(content))


def _decompress(codec: FrameCodec, archive: bytes, clock: StageClock) -> None:
    """What `api.decompress` does with a frame."""
    frame: EncodedFrame = clock.timed(_frame_of, CONTAINER)(archive)
    content = codec.decode(frame.payload, frame.content_bytes)
    clock.timed(frame.check_content, CONTAINER)(content)


def _archive_of(header: Header, content: bytes, payload: bytes) -> bytes:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, header)
    writer.add_frame(FrameCoding.PREDICTOR, content, payload)
    writer.finish()
    return stream.getvalue()


def _frame_of(archive: bytes) -> EncodedFrame:
    (frame,) = ArchiveReader(io.BytesIO(archive)).frames()
    return frame


@contextmanager
def _kernels_called_one_by_one() -> Iterator[None]:
    """Within, steps are not made of kernels that call others, which would hide these."""
    from archiver.predict.engine import Engine
    from archiver.predict.engine_base import EngineBase

    kept = Engine.team
    setattr(Engine, "team", EngineBase.team)  # noqa: B010 (mypy knows methods as constants)
    try:
        yield
    finally:
        setattr(Engine, "team", kept)  # noqa: B010


@contextmanager
def _kernels_timed(clock: StageClock, backend: type[Product]) -> Iterator[None]:
    """Within, the time of every kernel adds to its stage."""
    from archiver.codec import frame, symbols
    from archiver.predict import team
    from archiver.predict.kernels import attention, head, layers, tiled_attention

    places: list[tuple[Any, str, str]] = [
        (backend, "__call__", "matrix products"),
        (attention, "attend", "attention"),
        (tiled_attention, "attend_by_tiles", "attention"),
        (head, "path_probabilities", "head: weights and prefix sums"),
        (team, "weigh_vocabulary", "head: weights and prefix sums"),
        (symbols, "encode_symbols", "mixer and coder"),
        (symbols, "decode_step", "mixer and coder"),
        (frame, "charset_spans", "tokenizer"),
        (frame, "transform", "tokenizer"),
        (frame, "symbols_of", "tokenizer"),
        (frame.FrameCodec, "_join", "tokenizer"),
        *(
            (layers, name, "norms, rotations, activations")
            for name in (
                "embed", "normalize", "project_heads", "quantize_rows", "add_product",
                "gate_and_rotate",
            )
        ),
    ]  # fmt: skip
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for (owner, name, function), (_, _, stage) in zip(kept, places, strict=True):
            setattr(owner, name, clock.timed(function, stage))
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
