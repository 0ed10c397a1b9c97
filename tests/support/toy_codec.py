"""A codec without a model, to test everything around the real one."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archiver import frames
from archiver.container import Header, MixerSection, PredictorSection
from archiver.errors import ModelMissingError
from archiver.options import CompressOptions
from archiver.predict.engine_base import ENGINE_VERSION

FINGERPRINT = bytes.fromhex("7465737420746f79")
HIDDEN = 0x55  # payloads must not look like what they hold
WORDS = ["archive", "because", "compress", "decode", "entropy", "frame", "language", "model"]
SLOW = b"slow"  # content that starts so takes its time


def text(line_count: int) -> bytes:
    """Return lines of words that the toy codes better than zstd."""
    chance = random.Random(line_count)
    lines = (" ".join(chance.choices(WORDS, k=5)) + " \n" for _ in range(line_count))
    return "".join(lines).encode()


class ToyPayloadError(Exception):
    """The payload is malformed."""


class ToyCodec:
    """Codes by its words, and zlib; content that starts with "slow" takes its time."""

    def encode(self, content: bytes, progress: Callable[[int], None] | None = None) -> bytes:
        if content.startswith(SLOW):
            time.sleep(30)
        if progress:
            progress(len(content) // 2)
            progress(len(content))  # too much, on purpose
        if content.isascii():
            for code, word in enumerate(WORDS, 0x80):
                content = content.replace(word.encode() + b" ", bytes([code]))
        else:
            content = b"\xff" + content
        return bytes(byte ^ HIDDEN for byte in zlib.compress(content, 9)[2:-4])

    def decode(
        self, payload: bytes, content_bytes: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        try:
            decoder = zlib.decompressobj(-15)
            data = bytes(byte ^ HIDDEN for byte in payload)
            content = decoder.decompress(data, content_bytes + 1)
        except zlib.error as error:
            raise ToyPayloadError(f"toy: {error}") from error
        if content.startswith(b"\xff"):
            return content[1:]
        for code, word in enumerate(WORDS, 0x80):
            content = content.replace(bytes([code]), word.encode() + b" ")
        return content

    def worth_trying(self, content: bytes) -> bool:
        return len(set(content)) < 200


def header_for(options: CompressOptions) -> Header:
    predictor = PredictorSection(
        engine_version=ENGINE_VERSION,
        package_fingerprint=FINGERPRINT,
        window_tokens=options.window,
        local_window_tokens=options.local_window,
        sink_tokens=4,
    )
    return Header(predictor=predictor, mixer=MixerSection(version=1, parameters=b""))


def codec_for_writing(
    options: CompressOptions, model_progress: Any, sample: bytes
) -> tuple[ToyCodec, Header]:
    if options.model == "missing":
        raise ModelMissingError("no model 'missing'")
    if model_progress:
        model_progress("reading", 0, 10)
        model_progress("reading", 10, 10)
    return ToyCodec(), header_for(options)


def codec_for_reading(
    header: Header,
    threads: int | None,
    model_progress: Any,
    steering_file: Path | None,
    device: str,
) -> ToyCodec:
    assert header.predictor is not None
    if header.predictor.package_fingerprint != FINGERPRINT:
        raise ModelMissingError("no model with that fingerprint")
    return ToyCodec()


def install(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put the toy in the place of the real codec."""
    replace(frames, "codec_for_writing", codec_for_writing)
    replace(frames, "codec_for_reading", codec_for_reading)
    replace(frames, "payload_errors", lambda: (ToyPayloadError,))
