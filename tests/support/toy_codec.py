"""A codec without a model, to test everything around the real one."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

from archiver import frames
from archiver.container import Header, MixerSection, PredictorSection
from archiver.errors import ModelMissingError
from archiver.options import CompressOptions

FINGERPRINT = bytes.fromhex("7465737420746f79")
HIDDEN = 0x55  # payloads must not look like what they hold
KNOWN = b" of a text that goes on and on\nline "  # what its "model" predicts
SLOW = b"slow"  # content that starts so takes its time


class ToyPayloadError(Exception):
    """The payload is malformed."""


class ToyCodec:
    """Codes by zlib, better than zstd on the text of tests; "slow" content takes its time."""

    def encode(self, content: bytes, progress: Callable[[int], None] | None = None) -> bytes:
        if content.startswith(SLOW):
            time.sleep(30)
        if progress:
            progress(len(content) // 2)
            progress(len(content))  # too much, on purpose
        predicted = content.replace(b"\xff", b"\xff\x01").replace(KNOWN, b"\xff\x00")
        return bytes(byte ^ HIDDEN for byte in zlib.compress(predicted, 9)[2:-4])

    def decode(
        self, payload: bytes, content_bytes: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        try:
            decoder = zlib.decompressobj(-15)
            data = bytes(byte ^ HIDDEN for byte in payload)
            predicted = decoder.decompress(data, 2 * content_bytes)
            return predicted.replace(b"\xff\x00", KNOWN).replace(b"\xff\x01", b"\xff")
        except zlib.error as error:
            raise ToyPayloadError(f"toy: {error}") from error

    def worth_trying(self, content: bytes) -> bool:
        return len(set(content)) < 200


def header_for(options: CompressOptions) -> Header:
    predictor = PredictorSection(
        engine_version=1,
        package_fingerprint=FINGERPRINT,
        window_tokens=options.window_tokens,
        sink_tokens=4,
    )
    return Header(predictor=predictor, mixer=MixerSection(version=1, parameters=b""))


def codec_for_writing(options: CompressOptions, model_progress: Any) -> tuple[ToyCodec, Header]:
    if options.model == "missing":
        raise ModelMissingError("no model 'missing'")
    if model_progress:
        model_progress("reading", 0, 10)
        model_progress("reading", 10, 10)
    return ToyCodec(), header_for(options)


def codec_for_reading(header: Header, threads: int | None, model_progress: Any) -> ToyCodec:
    assert header.predictor is not None
    if header.predictor.package_fingerprint != FINGERPRINT:
        raise ModelMissingError("no model with that fingerprint")
    return ToyCodec()


def install(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put the toy in the place of the real codec."""
    replace(frames, "codec_for_writing", codec_for_writing)
    replace(frames, "codec_for_reading", codec_for_reading)
    replace(frames, "payload_errors", lambda: (ToyPayloadError,))
