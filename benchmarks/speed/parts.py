"""Stages and floor of a text, timed in a fresh process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.competitors import options_of
from benchmarks.records import LlmzipSettings
from benchmarks.speed.floor import time_floor, time_roofs
from benchmarks.speed.stages import time_stages


def time_parts(
    text_file: str, settings: dict[str, Any], threads: int, stage_bytes: int
) -> dict[str, Any]:
    """Time stages, floor and roofs; called in the fresh process.

    Args:
        settings: fields of `LlmzipSettings`; threads: of floor and roofs.

    Returns:
        "tokens": of the whole text; "streams": of its first frame; "open_s": how long the codec
        took to open; "floor" and "stages_us": by direction; "roofs" as `time_roofs` gives them.
    """
    from archiver.codec import header_for, open_codec, settings_for
    from archiver.frames import cut_frames
    from archiver.predict import registry
    from archiver.predict.engine import Engine

    options = options_of(LlmzipSettings(**settings))
    package = registry.resolve(options.model)
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
    with Path(text_file).open("rb") as stream:
        counts = [len(codec.ranks(frame)) for frame in cut_frames(stream, options.frame_bytes)]
    if not counts:
        raise ValueError("the text is empty")
    streams = codec.plan(counts[0]).streams
    with Path(text_file).open("rb") as stream:
        content = stream.read(stage_bytes)
    floor = time_floor(engine, threads, streams)
    return {
        "tokens": sum(counts),
        "streams": streams,
        "open_s": open_s,
        "floor": {name: found.as_dict() for name, found in floor.items()},
        "roofs": time_roofs(engine, threads, floor.values()),
        "stages_us": time_stages(codec, engine.backend, header_for(package, options), content),
    }
