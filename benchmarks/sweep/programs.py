"""llmzip as the archives of a sweep are made by it, and what runs beside it; in fresh processes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.competitors import Llmzip, options_of
from benchmarks.records import LlmzipSettings


class SweptLlmzip(Llmzip):
    """Says also what the model's frames were cut into.

    Details: "tokens" of all such frames together, escapes included; "streams" of each.
    """

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        return super().compress(source, target, settings) | cuts_of(target)


@contextmanager
def kept_busy(cores: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within, so many processes compute without a pause."""
    processes = []
    with ExitStack() as stack:
        for _ in range(cores):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.enter_context(process)  # at the end waits for it
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def cuts_of(archive: Path) -> dict[str, Any]:
    """Return what the payloads of an archive begin with, of frames that the model coded.

    Returns:
        "tokens" and "streams", as `SweptLlmzip` says them.

    Source: FORMAT.md, "Predictor frame payload".
    """
    from archiver.container import FrameCoding, IndexedArchive
    from archiver.container.varint import decode_varint

    tokens, streams = 0, []
    with archive.open("rb") as stream:
        indexed = IndexedArchive(stream)
        for number in range(1, indexed.frame_count + 1):
            frame = indexed.frame(number)
            if frame.coding is FrameCoding.PREDICTOR:
                symbols, at = decode_varint(frame.payload, 0)
                tokens += symbols
                streams.append(decode_varint(frame.payload, at)[0])
    return {"tokens": tokens, "streams": streams}


def chunk_for(text_file: str, streams: int, settings: dict[str, Any]) -> int:
    """Return the chunk, in tokens, by which a text of one frame is cut into so many streams.

    Raises:
        ValueError: no chunk does that: there are too few tokens, or too many for a stream.
        ArchiverError: the model cannot be had.
    """
    from archiver.codec import open_codec, settings_for
    from archiver.codec.streams import plan_streams
    from archiver.predict import registry

    options = options_of(LlmzipSettings(**settings))
    package = registry.resolve(options.model)
    predictor, mixer = settings_for(package, options)
    codec = open_codec(predictor, mixer, package=package, threads=1, chunking=options.chunking)
    symbols = len(codec.ranks(Path(text_file).read_bytes()))
    chunk_tokens = -(-symbols // streams)
    chunking = dataclasses.replace(options, chunk_tokens=chunk_tokens).chunking
    found = plan_streams(symbols, chunking).streams
    if found != streams:
        raise ValueError(f"{symbols:,} tokens cannot be cut into {streams} streams, only {found}")
    return chunk_tokens
