"""Archives with steering are as exact as those without: threads, blocks, reference decoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import archiver
from archiver.codec import FrameCodec, workers
from archiver.codec.streams import StreamPlan
from archiver.container import SteeringKind, SteeringSection
from archiver.errors import LimitExceededError, SteeringError, UsageError
from archiver.levels import Chunking
from archiver.options import CompressOptions
from archiver.predict.engine import Engine
from archiver.predict.package import ModelPackage
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering import choice, files, quantizers
from archiver.steering.bodies import decode_body, encode_body
from archiver.steering.choice import best_built_in, extract_of
from archiver.steering.files import SteeringFile
from archiver.steering.sections import describe_section
from archiver.types import Int32Array
from tests.codec.test_frame import make_codec
from tests.reference.decoder import decode
from tests.reference.steering import built_in_names as reference_names

FORMAT = Path(archiver.__file__).parent / "container" / "FORMAT.md"
CHUNKING = Chunking(tokens_min=50, streams=1024)
TEXT = """\
The quick brown fox jumps over the lazy dog. It was the best of times.
Der Wind weht über das Land; les élèves étaient là. Мы были там вчера.
A program that compresses text predicts the next word, then the next bit.
""".encode()
LONG = np.random.default_rng(6).bytes(20_000)


def prompt_of(package: ModelPackage) -> SoftPrompt:
    values = np.random.default_rng(5).normal(0, 0.2, (6, 48)).astype(np.float32)
    quantized = quantizers.gaussian(values, 31)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, package)
    return decode_body(body, package)


def test_threads_blocks_and_streams_change_nothing(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = TEXT * 6
    prompt = prompt_of(tiny)

    def codec(threads: int) -> FrameCodec:
        return make_codec(tiny, threads=threads).steered(prompt, CHUNKING)

    payload = codec(1).encode(content)
    assert payload != make_codec(tiny).encode(content)
    for threads in (1, 2, 4):
        assert codec(threads).encode(content) == payload
        assert codec(threads).decode(payload, len(content)) == content
    for block, rows in ((1, 1), (7, 3), (64, 64)):
        monkeypatch.setattr(Engine, "block_tokens", block)
        monkeypatch.setattr(workers, "HEAD_ROWS", rows)
        assert codec(1).encode(content) == payload


def steering_file(package: ModelPackage, path: Path, seed: int = 5, count: int = 3) -> Path:
    values = np.random.default_rng(seed).normal(0, 0.2, (count, 48)).astype(np.float32)
    quantized = quantizers.scales(values, 0.1)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, package)
    file = SteeringFile(package_fingerprint=package.fingerprint_bytes, body=body)
    path.write_bytes(file.encode())
    return path


def options(steering: str, embed: bool = False) -> CompressOptions:
    return CompressOptions(
        model="tiny", steering=steering, embed_steering=embed, window_tokens=32, chunk_tokens=60
    )


@pytest.mark.parametrize(
    ("steering", "embed"),
    [
        ("fixed:The best of times", False),
        ("random:5", False),
        ("random:3:99", False),
        ("FILE", False),
        ("FILE", True),
    ],
)
def test_the_reference_decodes_archives(
    tiny: ModelPackage, tmp_path: Path, steering: str, embed: bool
) -> None:
    path = steering_file(tiny, tmp_path / "some.steer")
    if steering == "FILE":
        steering = str(path)
    archive = archiver.compress(TEXT, options=options(steering, embed))
    assert archive != archiver.compress(TEXT, options=options("none"))
    assert decode(archive, tiny.path, path.read_bytes()) == TEXT
    given = None if embed else path
    assert archiver.decompress(archive, steering=given) == TEXT
    with archiver.open(archive, steering=given) as file:
        assert file.read() == TEXT
    assert archiver.verify(archive, steering=given).content_bytes == len(TEXT)


def test_built_in_files_are_those_that_the_format_lists() -> None:
    files.built_in_file.cache_clear()
    listed = FORMAT.read_text(encoding="utf-8")
    for name, (number, fingerprint) in files.BUILT_IN.items():
        assert files.built_in_file(name).fingerprint == fingerprint
        assert re.search(rf"^\| {number} +\| {name} +\| {fingerprint:016X} \|$", listed, re.M)
    assert reference_names() == {number: name for name, (number, _) in files.BUILT_IN.items()}
    found = sorted(path.name for path in files.FOLDER.glob("*.steer"))
    assert found == sorted(f"{name}.steer" for name in files.BUILT_IN)


def test_built_in_vectors_by_number(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = steering_file(tiny, tmp_path / "mine.steer")
    file = files.read_file(path)
    for name in ("BUILT_IN", "FOLDER"):
        value = {"mine": (200, file.fingerprint)} if name == "BUILT_IN" else tmp_path
        monkeypatch.setattr(files, name, value)
    files.built_in_file.cache_clear()
    archive = archiver.compress(TEXT, options=options("mine"))
    embedded = archiver.compress(TEXT, options=options(str(path), embed=True))
    assert archiver.decompress(archive) == TEXT
    named, held = archiver.info(archive).steering, archiver.info(embedded).steering
    assert named is not None
    assert held is not None
    assert (named.name, named.vectors, named.prior) == ("mine", 3, "scales")
    assert (named.side_information_bytes, held.side_information_bytes) == (2, 1 + len(file.body))
    # Its payload is that of the embedded vectors: they are the same.
    assert archiver.info(archive).payload_bytes == archiver.info(embedded).payload_bytes
    path.write_bytes(steering_file(tiny, tmp_path / "other.steer", seed=6).read_bytes())
    files.built_in_file.cache_clear()
    with pytest.raises(SteeringError, match="'mine' are not those of this llmzip"):
        archiver.decompress(archive)
    files.built_in_file.cache_clear()


def test_the_best_built_in_vectors_are_found(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of vectors without sense, some suit better than others, and none may suit best."""
    names = {f"v{number}": number for number in range(1, 7)}
    table = {}
    for name, number in names.items():
        path = steering_file(tiny, tmp_path / f"{name}.steer", seed=number)
        table[name] = (number, files.read_file(path).fingerprint)
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    monkeypatch.setattr(files, "BUILT_IN", table)
    monkeypatch.setattr(choice, "extract_of", lambda sample, trials: sample)
    files.built_in_file.cache_clear()
    sizes = {
        name: archiver.info(archiver.compress(TEXT, options=options(name))).payload_bytes
        for name in ("none", *names)
    }
    chosen = archiver.info(archiver.compress(TEXT, options=options("auto")))
    best = min(sizes.values())
    found = chosen.steering.name if chosen.steering else "none"
    # The trial codes the text in streams of another length; naming vectors costs bytes, too.
    assert sizes[str(found)] <= best + 8
    files.built_in_file.cache_clear()


class Encoder:
    """A codec that does nothing but have payloads of known lengths: without vectors, with them."""

    def __init__(self, sizes: tuple[int, int], streams: int, steered: bool = False) -> None:
        self._sizes, self._streams, self._steered = sizes, streams, steered

    def steered(self, prompt: SoftPrompt | None, chunking: Chunking) -> Encoder:
        return Encoder(self._sizes, 4, prompt is not None)

    def worth_trying(self, content: bytes) -> bool:
        return True

    def ranks(self, content: bytes) -> Int32Array:
        return np.zeros(len(content), np.int32)

    def plan(self, symbols: int) -> StreamPlan:
        return StreamPlan(symbols=symbols, streams=self._streams)

    def encode(self, content: bytes) -> bytes:
        return bytes(self._sizes[self._steered])


@pytest.mark.parametrize(
    ("saved", "streams", "content", "taken"),
    # The trial has four streams; naming built-in vectors takes 4 bytes, and what they cost far
    # into a stream is a 2,000th of what zstd makes: nothing much of TEXT, 10 bytes of LONG.
    # One byte of 100 is chance.
    [(0, 100, TEXT, False), (1, 100, TEXT, False), (2, 8, TEXT, False), (2, 9, TEXT, True),
     (4, 4, TEXT, False),
     (5, 4, TEXT, True), (16, 1, TEXT, False), (17, 1, TEXT, True), (14, 4, LONG, False),
     (15, 4, LONG, True)],
)  # fmt: skip
def test_built_in_vectors_have_to_pay(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int, streams: int,
    content: bytes, taken: bool,
) -> None:  # fmt: skip
    file = files.read_file(steering_file(tiny, tmp_path / "mine.steer"))
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    monkeypatch.setattr(files, "BUILT_IN", {"mine": (200, file.fingerprint)})
    monkeypatch.setattr(choice, "extract_of", lambda sample, trials: sample)
    files.built_in_file.cache_clear()
    encoder = cast(FrameCodec, Encoder((100, 100 - saved), streams))
    assert (best_built_in(tiny, encoder, content) is not None) == taken
    files.built_in_file.cache_clear()


def test_steering_files_that_do_not_suit_are_refused(tiny: ModelPackage, tmp_path: Path) -> None:
    path = steering_file(tiny, tmp_path / "a.steer")
    other = steering_file(tiny, tmp_path / "b.steer", seed=6)
    archive = archiver.compress(TEXT, options=options(str(path)))
    wanted = f"{files.read_file(path).fingerprint:016x}"
    with pytest.raises(SteeringError, match=rf"needs the steering file {wanted} \(--steer names"):
        archiver.decompress(archive)
    with pytest.raises(SteeringError, match=rf"needs the steering file {wanted}, but .*b.steer is"):
        archiver.decompress(archive, steering=other)
    with pytest.raises(SteeringError, match=r"cannot read .*c.steer: No such file"):
        archiver.decompress(archive, steering=tmp_path / "c.steer")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(SteeringError, match=r"a.steer is damaged"):
        archiver.decompress(archive, steering=path)

    foreign = SteeringFile(package_fingerprint=bytes(8), body=b"\x01\x01\x00\x3f\x40\x00\x00")
    path.write_bytes(foreign.encode())
    with pytest.raises(SteeringError, match=r"are for the model 0000000000000000, not for"):
        archiver.compress(TEXT, options=options(str(path)))
    malformed = SteeringFile(package_fingerprint=tiny.fingerprint_bytes, body=b"\x00")
    path.write_bytes(malformed.encode())
    with pytest.raises(SteeringError, match="the steering file is malformed: no vectors"):
        archiver.compress(TEXT, options=options(str(path)))
    absurd = SteeringFile(package_fingerprint=tiny.fingerprint_bytes, body=b"\xff\xff\xff\xff\x0f")
    path.write_bytes(absurd.encode())
    with pytest.raises(LimitExceededError, match="4294967295 steering vectors"):
        archiver.compress(TEXT, options=options(str(path)))


def test_what_is_no_steering_file_is_refused(tmp_path: Path) -> None:
    good = SteeringFile(package_fingerprint=bytes(8), body=b"body").encode()
    for data, message in (
        (b"", "is not a steering file"),
        (b"text, not vectors " * 3, "is not a steering file"),
        (good[:18], "is not a steering file"),
        (good[:6] + b"\x02" + good[7:], "has version 2; this llmzip reads version 1"),
        (good[:-1], "is damaged"),
        (good + b"\0", "is damaged"),
        (good[:10] + b"\1" + good[11:], "is damaged"),
        (good + bytes(1 << 20), "is longer than a steering file can be"),
    ):
        path = tmp_path / "x.steer"
        path.write_bytes(data)
        with pytest.raises(SteeringError, match=message):
            files.read_file(path)
    path.write_bytes(good)
    assert files.read_file(path) == files.decode_file(good, "x")
    assert files.read_file(path).body == b"body"


def test_texts_that_cannot_be_prompts_are_refused(tiny: ModelPackage) -> None:
    with pytest.raises(UsageError, match="no tokens for some bytes"):
        archiver.compress(TEXT, options=options("fixed:\x04"))
    with pytest.raises(UsageError, match=r"\d+ tokens, more than 256"):
        archiver.compress(TEXT, options=options("fixed:" + "xyz " * 200))
    with pytest.raises(UsageError, match="no built-in steering vectors 'poetry'; there are: "):
        archiver.compress(TEXT, options=options("poetry"))


def test_frames_without_the_model_need_no_steering_file(tmp_path: Path, tiny: ModelPackage) -> None:
    path = steering_file(tiny, tmp_path / "a.steer")
    noise = np.random.default_rng(0).bytes(5000)
    settings = CompressOptions(model="tiny", steering=str(path), frame_bytes=4096)
    archive = archiver.compress(noise, options=settings)
    assert archiver.decompress(archive) == noise
    info = archiver.info(archive)
    assert info.steering is None or info.steering.kind == "file"


def test_descriptions_say_what_is_stored(tiny: ModelPackage, tmp_path: Path) -> None:
    path = steering_file(tiny, tmp_path / "a.steer")
    fingerprint = f"{files.read_file(path).fingerprint:016x}"
    for steering, embed, line in (
        ("fixed:The best", False, r"tokens, 3 vectors, \d+ bytes of side information"),
        ("random:1:300", False, "random, 1 vector, 4 bytes of side information"),
        (str(path), False, f"file {fingerprint}, 9 bytes of side information"),
        (
            str(path),
            True,
            r"embedded, 3 vectors, prior scales, \d\.\d{3} bits a coordinate, \d+ bytes of",
        ),
    ):
        info = archiver.info(archiver.compress(TEXT, options=options(steering, embed)))
        assert info.steering is not None
        assert re.match(line, info.steering.describe(48)), info.steering.describe(48)
        assert info.as_dict()["steering"]["kind"] == info.steering.kind
    unknown = describe_section(SteeringSection(kind=SteeringKind.BUILT_IN, fields=b"\xfe"))
    assert unknown.describe(None) == "built in 254, 2 bytes of side information"


@given(text=st.text(max_size=3000), repeats=st.integers(1, 200), trials=st.integers(1, 7))
def test_extracts_are_small_and_whole_characters(text: str, repeats: int, trials: int) -> None:
    sample = (text * repeats).encode()
    extract = extract_of(sample, trials)
    extract.decode()
    assert len(extract) <= len(sample) // (32 * trials)
    assert bool(extract) == (len(sample) >= 32 * trials * 512)


def test_extracts_of_bytes_that_are_no_text() -> None:
    for sample in (b"\xff" * 40_000, b"\x80" * 40_000, bytes(range(256)) * 160):
        assert len(extract_of(sample, 2)) >= 256
