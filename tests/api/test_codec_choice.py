"""The real codec is opened from the registry's package, and kept for the next file."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import archiver
from archiver import frames
from archiver.container import Header
from archiver.options import CompressOptions
from tests.support import toy_codec


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for `archiver.codec` and the registry; the codecs that were opened."""
    calls: list[dict[str, Any]] = []

    def open_codec(predictor: Any, mixer: Any, **settings: Any) -> toy_codec.ToyCodec:
        calls.append({"predictor": predictor, "mixer": mixer} | settings)
        return toy_codec.ToyCodec()

    def header_for(package: Any, options: CompressOptions) -> Header:
        return toy_codec.header_for(options)

    def resolve(name: Any, progress: Any = None) -> SimpleNamespace:
        assert name in ("a", "b", toy_codec.FINGERPRINT)
        return SimpleNamespace(fingerprint=f"{name}", fingerprint_bytes=b"")

    codec = SimpleNamespace(open_codec=open_codec, header_for=header_for)
    first_use = SimpleNamespace(compile_all=lambda package, report: None)
    registry = SimpleNamespace(resolve=resolve, resolve_fingerprint=resolve)
    import archiver.predict

    monkeypatch.setitem(sys.modules, "archiver.codec", codec)
    monkeypatch.setitem(sys.modules, "archiver.codec.first_use", first_use)
    monkeypatch.setattr(archiver, "codec", codec, raising=False)
    monkeypatch.setitem(sys.modules, "archiver.predict.registry", registry)
    monkeypatch.setattr(archiver.predict, "registry", registry, raising=False)
    monkeypatch.setattr(frames, "_kept", threading.local())
    return calls


def test_one_codec_serves_many_files(opened: list[dict[str, Any]]) -> None:
    options = CompressOptions(model="a", threads=3, chunk_tokens=50, window_tokens=99)
    archives = [archiver.compress(toy_codec.text(lines), options=options) for lines in (60, 70)]
    [call] = opened
    assert call["predictor"].window_tokens == 99
    assert (call["threads"], call["chunking"].tokens_min) == (3, 50)
    for archive, lines in zip(archives, (60, 70), strict=True):
        assert archiver.decompress(archive, threads=2) == toy_codec.text(lines)
    assert len(opened) == 2
    assert opened[1]["threads"] == 2
    assert opened[1]["predictor"] == call["predictor"]


def test_another_model_or_thread_gets_another_codec(opened: list[dict[str, Any]]) -> None:
    def compress(model: str) -> None:
        archiver.compress(toy_codec.text(60), options=CompressOptions(model=model))

    compress("a")
    compress("b")
    assert len(opened) == 2
    thread = threading.Thread(target=compress, args=("b",))
    thread.start()
    thread.join()
    assert len(opened) == 3
