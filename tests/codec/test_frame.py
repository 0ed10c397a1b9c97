"""Frames through the real engine: any bytes come back, no setting of the machine matters."""

from __future__ import annotations

import base64
import contextlib
import json
import lzma
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.codec import FrameCodec, PayloadError, open_codec, settings_for, workers
from archiver.codec.encoder import TextEncoder, encode_text
from archiver.codec.streams import plan_streams
from archiver.container.layout import MixerSection, PredictorSection
from archiver.errors import LimitExceededError, UnsupportedVersionError
from archiver.levels import LEVELS, Chunking
from archiver.mixing.parameters import MIXER_VERSION, MixerParameters
from archiver.options import CompressOptions
from archiver.predict import team
from archiver.predict.engine import Engine
from archiver.predict.engine_base import ENGINE_VERSION
from archiver.predict.kernels.products import BACKEND_VARIABLE
from archiver.predict.package import ModelPackage
from archiver.predict.session import Session

TEXT = (
    "It was the best of times, it was the worst of times.\r\n<|im_start|>user\n1905, 2026\t"
    "\u0422\u043e\u043b\u0441\u0442\u043e\u0439 \U00040000 caf\u00e9\r\x00"
).encode()
HARD = {
    "one byte": b"x",
    "invalid UTF-8": b"\xff\xfe caf\xe9 \xed\xa0\x80",
    "every byte": bytes(range(256)) * 3,
    "NULs": bytes(100),
    "text": TEXT * 20,
    "one character": b"a" * 3000,
    "random": np.random.default_rng(1).bytes(700),
    "a long escape": b"\x04" * 70000,
    "UTF-16 from the middle of a unit": (TEXT * 8).decode().encode("utf-16-le")[1:],
    "Latin-1 and line ends": "déjà vu, élève\r\n".encode("latin-1") * 40,
    "escapes of JSON": json.dumps((TEXT * 8).decode()).encode(),
}


def make_codec(
    package: ModelPackage, *, threads: int | None = None, chunk: int | None = 50, window: int = 32
) -> FrameCodec:
    predictor = PredictorSection(
        engine_version=ENGINE_VERSION,
        package_fingerprint=package.fingerprint_bytes,
        window_tokens=window,
        local_window_tokens=window // 2,
        sink_tokens=4,
    )
    return open_codec(
        predictor,
        MixerSection(version=MIXER_VERSION, parameters=MixerParameters().encode()),
        package=package,
        threads=threads,
        chunking=LEVELS[5].chunking if chunk is None else Chunking(tokens_min=chunk, streams=1024),
    )


@pytest.mark.parametrize("name", HARD)
def test_hard_contents_come_back(tiny: ModelPackage, name: str) -> None:
    codec = make_codec(tiny)
    content = HARD[name]
    done: list[int] = []
    payload = codec.encode(content, done.append)
    assert sum(done) == len(content)
    done.clear()
    assert codec.decode(payload, len(content), done.append) == content
    assert sum(done) == len(content)


RUSSIAN = "Так говорила в июле 1805 года известная Анна Павловна Шерер, фрейлина.\r\n" * 40
ENGLISH = " ".join(f"the {number}th of {number**3 % 97} words" for number in range(500)).encode()
RANDOM = np.random.default_rng(3).bytes(1 << 16)


@pytest.mark.parametrize(
    "content",
    [
        b"a",
        ENGLISH,
        RUSSIAN.encode(),
        RUSSIAN.encode("cp1251"),
        RUSSIAN.encode("utf-16-le"),
        ENGLISH.decode().encode("utf-16-be"),
        base64.encodebytes(RANDOM),
        RANDOM + ENGLISH * 6,
    ],
    ids=["byte", "UTF-8", "Russian", "CP1251", "UTF-16", "wide ASCII", "Base64", "half random"],
)
def test_text_is_worth_trying(tiny: ModelPackage, content: bytes) -> None:
    assert make_codec(tiny).worth_trying(content)


@pytest.mark.parametrize(
    "content",
    [RANDOM, RANDOM[:1000], zlib.compress(ENGLISH * 4), lzma.compress(RUSSIAN.encode() + RANDOM)],
    ids=["random", "1000 random bytes", "zlib", "xz"],
)
def test_what_looks_random_is_not(tiny: ModelPackage, content: bytes) -> None:
    assert not make_codec(tiny).worth_trying(content)


@given(content=st.one_of(st.binary(min_size=1, max_size=300), st.text(min_size=1).map(str.encode)))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_content_comes_back(tiny: ModelPackage, content: bytes) -> None:
    codec = make_codec(tiny, chunk=20)
    assert codec.decode(codec.encode(content), len(content)) == content


def test_threads_and_blocks_change_nothing(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = TEXT * 30
    payload = make_codec(tiny, threads=1).encode(content)
    for threads in (2, 3, 4):
        codec = make_codec(tiny, threads=threads)
        assert codec.encode(content) == payload
        assert codec.decode(payload, len(content)) == content
    for block, rows in ((1, 1), (7, 3), (64, 64)):
        monkeypatch.setattr(Engine, "block_tokens", block)
        monkeypatch.setattr(workers, "HEAD_ROWS", rows)
        codec = make_codec(tiny)
        assert codec.encode(content) == payload
        assert codec.decode(payload, len(content)) == content
        # Without products of our own, steps are made kernel by kernel.
        monkeypatch.setattr(team, "HEAD_ROWS", rows)
        monkeypatch.setenv(BACKEND_VARIABLE, "float32")
        assert make_codec(tiny, threads=3).decode(payload, len(content)) == content
        monkeypatch.delenv(BACKEND_VARIABLE)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sessions_bytes", [0, 1 << 40])
def test_spans_change_nothing(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch, threads: int, sessions_bytes: int
) -> None:
    """Streams read one after the other, or block by block while the first ones are coded."""
    content = TEXT * 20 + b"\xff" * 40
    expected = make_codec(tiny, threads=1, chunk=70).encode(content)
    monkeypatch.setattr(workers, "SESSIONS_BYTES_MAX", sessions_bytes)
    monkeypatch.setattr(Engine, "block_tokens", 16)
    codec = make_codec(tiny, threads=threads, chunk=70)
    plan = codec.plan(len(codec.ranks(content)))
    spans = -(-plan.steps // 16) if sessions_bytes else 1
    coded: list[range] = []
    code = TextEncoder.code

    def noting(self: TextEncoder, steps: range, *arguments: Any, **named: Any) -> None:
        coded.append(steps)
        code(self, steps, *arguments, **named)

    monkeypatch.setattr(TextEncoder, "code", noting)
    assert codec.encode(content) == expected
    assert len(coded) == spans
    assert [step for steps in coded for step in steps] == list(range(plan.steps))
    assert encode_text(codec.predict_text(content), MixerParameters(), codec.vocabulary) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_prices_add_up_to_the_payload(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    content = TEXT * 20 + b"\xff" * 40
    monkeypatch.setattr(Engine, "block_tokens", 16)
    codec = make_codec(tiny, threads=threads, chunk=70)
    done: list[int] = []
    payload, priced = codec.encode_priced(content, done.append)
    assert payload == codec.encode(content)
    assert sum(done) == len(content)
    assert np.array_equal(priced.ranks, codec.ranks(content))
    assert priced.bits.shape == priced.model_bits.shape == priced.ranks.shape
    assert (priced.bits > 0).all()
    assert (priced.model_bits > 0).all()
    for bits, mixed in ((priced.bits, True), (priced.model_bits, False)):
        text = codec.predict_text(content)
        whole = encode_text(text, MixerParameters(tokens_mixed=mixed), codec.vocabulary)
        assert 8 * len(whole) - 100 < bits.sum() < 8 * len(whole)


def test_an_error_in_a_stream_ends_all(tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = make_codec(tiny, threads=2, chunk=70)
    content = TEXT * 20
    expected = codec.encode(content)

    def fail(*arguments: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "advance", fail)
        with pytest.raises(MemoryError, match="no room"):
            codec.encode(content)
    assert codec.encode(content) == expected


def test_chunks_and_windows_are_settings_of_the_archive(tiny: ModelPackage) -> None:
    # Text that repeats would cost nothing, whatever the model predicts.
    content = np.random.default_rng(5).choice(list(TEXT[:100]), 3000).astype(np.uint8).tobytes()
    payloads = {
        make_codec(tiny, chunk=chunk, window=window).encode(content)
        for chunk in (30, 100)
        for window in (16, 64)
    }
    assert len(payloads) == 4


ENCODE = """
import hashlib, sys
from archiver.predict import registry
from tests.codec.test_frame import TEXT, make_codec
codec = make_codec(registry.resolve("tiny"))
payload = codec.encode(TEXT * 30)
assert codec.decode(payload, len(TEXT) * 30) == TEXT * 30
print(hashlib.sha256(payload).hexdigest())
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx2"},
        {"ATEN_CPU_CAPABILITY": "default", "LLMZIP_MATMUL": "float32"},
        {"NUMBA_CPU_NAME": "generic"},
        {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"},
    ],
    ids=lambda variables: " ".join(f"{k}={v}" for k, v in variables.items()),
)
def test_instruction_sets_change_nothing(
    tiny: ModelPackage, tmp_path: Path, variables: dict[str, str]
) -> None:
    payload = make_codec(tiny).encode(TEXT * 30)
    import hashlib

    environment = {**os.environ, **variables}
    if "NUMBA_CPU_NAME" in variables:
        environment["NUMBA_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", ENCODE], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split()[-1] == hashlib.sha256(payload).hexdigest()


def test_malformed_payloads_are_refused(tiny: ModelPackage) -> None:
    codec = make_codec(tiny)
    content = TEXT * 3
    payload = codec.encode(content)
    for broken, message in [
        (b"", "parameters are malformed"),
        (payload[:1], "parameters are malformed"),
        (b"\x80\x80", "parameters are malformed"),
        (b"\x00\x01\x00", "0 symbols cannot stand for"),
        (b"\xff\xff\x03\x01\x00", "65535 symbols cannot stand for"),
        (b"\x05\x06\x00", "6 streams for 5 symbols"),
        (b"\x05\x00\x00", "0 streams for 5 symbols"),
        (b"\x05\x01\x04", "unknown flags 0x04"),
        (b"\x05\x01\x02", "its transforms are cut off"),
        (b"\x05\x01\x02\x40\x05", "unknown transforms 0x40"),
        (b"\x7f\x01\x02\x20\x7e", "127 symbols cannot stand for 126 bytes"),
        (b"\x05\x01\x00\xff\xff\xff\xff", "outside the coder's range"),
    ]:
        with pytest.raises(PayloadError, match=message):
            codec.decode(broken, len(content))
    with pytest.raises(PayloadError, match="more bytes than the frame"):
        codec.decode(payload, len(content) - 1)
    with pytest.raises(PayloadError, match="fewer bytes than the frame"):
        codec.decode(payload, len(content) + 1)
    with pytest.raises(PayloadError, match="a stream of 65537 symbols"):
        codec.decode(b"\x81\x80\x04\x01\x00", 1 << 20)


@given(code=st.binary(max_size=60), symbols=st.integers(1, 60))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_payloads_end_in_an_error_or_a_content(
    tiny: ModelPackage, code: bytes, symbols: int
) -> None:
    codec = make_codec(tiny)
    for flags in (0, 1):
        with contextlib.suppress(PayloadError):
            assert len(codec.decode(bytes([symbols, 1, flags]) + code, 100)) == 100


def test_absurd_memory_is_refused(tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = make_codec(tiny)
    payload = codec.encode(TEXT)
    monkeypatch.setattr("archiver.codec.frame.CACHE_BYTES_MAX", 1000)
    with pytest.raises(LimitExceededError, match="to decode; the limit is"):
        codec.decode(payload, len(TEXT))


def test_other_versions_are_refused(tiny: ModelPackage) -> None:
    good = PredictorSection(
        engine_version=ENGINE_VERSION,
        package_fingerprint=tiny.fingerprint_bytes,
        window_tokens=32,
        local_window_tokens=16,
        sink_tokens=4,
    )
    newer = PredictorSection(
        engine_version=ENGINE_VERSION + 1,
        package_fingerprint=tiny.fingerprint_bytes,
        window_tokens=32,
        local_window_tokens=16,
        sink_tokens=4,
    )
    parameters = MixerParameters().encode()
    mixer = MixerSection(version=MIXER_VERSION, parameters=parameters)
    with pytest.raises(UnsupportedVersionError, match="needs engine version 3; this llmzip has 2"):
        open_codec(newer, mixer, package=tiny, threads=None, chunking=LEVELS[5].chunking)
    for other, message in (
        (MixerSection(version=9, parameters=parameters), "needs mixer version 9"),
        (
            MixerSection(version=MIXER_VERSION, parameters=parameters + b"x"),
            "parameters are malformed",
        ),
        (
            MixerSection(version=MIXER_VERSION, parameters=parameters[:-1] + b"\0"),
            "sets 0 .* out of range",
        ),
    ):
        with pytest.raises(UnsupportedVersionError, match=message):
            open_codec(good, other, package=tiny, threads=None, chunking=LEVELS[5].chunking)


@pytest.mark.parametrize("symbols", [1, 5, 49, 50, 51, 1000])
def test_streams_cover_all_symbols_evenly(symbols: int) -> None:
    plan = plan_streams(symbols, Chunking(tokens_min=50, streams=1024))
    lengths = np.diff(plan.starts)
    assert lengths.sum() == symbols
    assert lengths.max() == plan.steps <= 50
    assert lengths.max() - lengths.min() <= 1
    assert (np.diff(lengths) <= 0).all()
    for step in range(plan.steps):
        assert plan.active(step) == (lengths > step).sum()


@pytest.mark.parametrize("mixing", [True, False])
def test_the_header_says_whether_tokens_are_mixed(tiny: ModelPackage, mixing: bool) -> None:
    _, section = settings_for(tiny, CompressOptions(model="tiny", mixing=mixing))
    assert MixerParameters.decode(section.parameters).tokens_mixed is mixing
