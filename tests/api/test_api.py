"""The library's functions, with the toy codec: round trips, sizes, losses, what they refuse."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import archiver
from archiver import frames, options
from archiver.container import ArchiveWriter, FrameCoding, Header, IndexedArchive
from archiver.errors import (
    ArchiverError,
    DamagedArchiveError,
    FrameDamagedError,
    InputError,
    ModelMissingError,
    OutputError,
    TrailerDamagedError,
    UsageError,
)
from archiver.options import CompressOptions
from tests.support import toy_codec

pytestmark = pytest.mark.usefixtures("toy")

SMALL_FRAMES = CompressOptions(frame_bytes=options.SMALLEST_FRAME_BYTES)
TEXT = toy_codec.text(500)

HARD_CASES = {
    "empty": b"",
    "one byte": b"x",
    "one NUL": b"\0",
    "all bytes": bytes(range(256)),
    "text": TEXT,
    "repeated": b"a" * 100_000,
    "line ends": b"\r\n\r\r\n\n\r" * 3000,
    "one long line": "ä€𝄞 ".encode() * 3000,
    "invalid UTF-8": b"\xff\xfe\xc3(\xe2\x82" * 4000,
    "random": random.Random(7).randbytes(50_000),
    "an archive": b"\x89LMZ\r\n\x01\x00LZFRLZTR" * 900,
}


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("settings", [CompressOptions(), SMALL_FRAMES], ids=["1M", "4K"])
def test_round_trip(case: str, settings: CompressOptions) -> None:
    content = HARD_CASES[case]
    archive = archiver.compress(content, options=settings)
    assert archiver.decompress(archive) == content
    assert archiver.verify(archive).content_bytes == len(content)
    with archiver.open(archive) as file:
        assert file.read() == content


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=20_000), st.integers(4096, 8000))
def test_any_bytes_round_trip(content: bytes, frame_bytes: int) -> None:
    archive = archiver.compress(content, options=CompressOptions(frame_bytes=frame_bytes))
    assert archiver.decompress(archive) == content


@pytest.mark.parametrize("length", [0, 1, 127, 128, 5000, 16_383, 16_384, 70_000, 3 << 20])
def test_nothing_grows_by_more_than_64_bytes_and_a_thousandth(length: int) -> None:
    content = random.Random(length).randbytes(length)
    for frame_bytes in (1 << 16, 1 << 20, 1 << 24):
        archive = archiver.compress(content, options=CompressOptions(frame_bytes=frame_bytes))
        assert len(archive) <= length + 64 + length // 1000


def test_each_frame_gets_its_shortest_coding() -> None:
    cycle = bytes(range(256)) * 32  # the toy does not try it, zstd shortens it
    content = b"".join([TEXT[:8000], cycle, random.Random(1).randbytes(8192)])
    info = archiver.info(archiver.compress(content, options=SMALL_FRAMES))
    assert {frame.coding for frame in info.frames} == {"predictor", "zstd", "raw"}
    assert info.predictor is not None
    assert info.predictor.package_fingerprint == toy_codec.FINGERPRINT


def test_a_single_frame_without_a_model_has_an_empty_header() -> None:
    info = archiver.info(archiver.compress(random.Random(1).randbytes(3000)))
    assert (info.predictor, info.mixer, info.header_bytes) == (None, None, 14)


def test_an_archive_without_predictor_frames_needs_no_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = random.Random(1).randbytes(10_000)
    archive = archiver.compress(content, options=SMALL_FRAMES)

    def fail(*_: object) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr(frames, "codec_for_reading", fail)
    assert archiver.decompress(archive) == content


class Endless(io.RawIOBase):
    """A stream of incompressible bytes that has nothing to seek."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length
        self._random = random.Random(3)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = min(len(buffer), self._left, 5000)
        buffer[:count] = self._random.randbytes(count)
        self._left -= count
        return count


class Counter(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return min(len(data), 4096)  # as a pipe may


def test_memory_does_not_grow_with_the_input() -> None:
    peaks = []
    for length in (1 << 20, 8 << 20):
        tracemalloc.start()
        archiver.compress(Endless(length), Counter(), options=CompressOptions(frame_bytes=1 << 16))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_frames_are_cut_after_lines_or_between_characters() -> None:
    lines = b"x" * 50 + b"\n"
    cut = list(frames.cut_frames(io.BytesIO(lines * 400), 4096))
    assert b"".join(cut) == lines * 400
    assert all(frame.endswith(b"\n") and len(frame) <= 4096 for frame in cut)
    characters = "a€𝄞".encode() * 2000
    cut = list(frames.cut_frames(io.BytesIO(characters), 4099))
    assert b"".join(cut) == characters
    assert all(frame.decode() for frame in cut)
    assert all(len(frame) >= 4096 for frame in cut[:-1])
    assert [len(f) for f in frames.cut_frames(io.BytesIO(b"\x80" * 8192), 4096)] == [4096, 4096]


def test_progress_adds_up_to_the_content() -> None:
    done: list[int] = []
    archive = archiver.compress(TEXT, options=SMALL_FRAMES, progress=done.append)
    assert sum(done) == len(TEXT)
    assert len(done) > 5
    done.clear()
    archiver.verify(archive, progress=done.append)
    assert sum(done) == len(TEXT)


def test_every_flipped_byte_is_an_error_and_never_wrong_content() -> None:
    archive = archiver.compress(TEXT[:9000], options=SMALL_FRAMES)
    for offset in range(len(archive)):
        changed = bytearray(archive)
        changed[offset] ^= 0x12
        output = io.BytesIO()
        with pytest.raises(DamagedArchiveError):
            archiver.decompress(bytes(changed), output)
        assert TEXT.startswith(output.getvalue())


def test_every_truncation_is_an_error() -> None:
    archive = archiver.compress(TEXT[:9000], options=SMALL_FRAMES)
    for length in range(len(archive)):
        with pytest.raises(ArchiverError):
            archiver.decompress(archive[:length])


def test_keep_going_leaves_out_what_is_damaged() -> None:
    archive = archiver.compress(TEXT, options=SMALL_FRAMES)
    index = IndexedArchive(io.BytesIO(archive))
    third = index.frame(3)
    changed = bytearray(archive)
    changed[archive.index(third.payload) + 5] ^= 1
    output = io.BytesIO()
    summary = archiver.decompress(bytes(changed), output, keep_going=True)
    start, end = index.content_offsets[2:4]
    assert output.getvalue() == TEXT[:start] + TEXT[end:]
    [damage] = summary.damages
    assert (damage.frame_number, damage.content_offset) == (3, start)
    assert damage.content_bytes == end - start
    assert summary.content_bytes == len(TEXT) - (end - start)
    assert archiver.verify(bytes(changed), keep_going=True).damages == (damage,)


def test_keep_going_reads_pipes_and_needs_a_target() -> None:
    archive = archiver.compress(TEXT, options=SMALL_FRAMES)
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writing:
        writing.write(archive)
    output = io.BytesIO()
    with os.fdopen(read_end, "rb") as reading:
        assert not archiver.decompress(reading, output, keep_going=True).damages
    assert output.getvalue() == TEXT
    with pytest.raises(UsageError, match="target"):
        archiver.decompress(archive, keep_going=True)


def forged(coding: FrameCoding, content: bytes, payload: bytes) -> bytes:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, toy_codec.header_for(CompressOptions()))
    writer.add_frame(coding, content, payload)
    writer.finish()
    return stream.getvalue()


def test_payloads_that_no_encoder_makes_are_refused() -> None:
    import zstandard

    whole = zstandard.ZstdCompressor().compress(TEXT)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    cases = [
        (FrameCoding.PREDICTOR, b"\x00\x01\x02"),
        (FrameCoding.PREDICTOR, toy_codec.ToyCodec().encode(TEXT + b"x")),
        (FrameCoding.PREDICTOR, toy_codec.ToyCodec().encode(TEXT[:-1] + b"x")),
        (FrameCoding.ZSTD, b""),
        (FrameCoding.ZSTD, b"not zstd at all"),
        (FrameCoding.ZSTD, whole[:-3]),
        (FrameCoding.ZSTD, whole + b"x"),
        (FrameCoding.ZSTD, whole + whole),
        (FrameCoding.ZSTD, b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + whole),
        (FrameCoding.ZSTD, unsized),
        (FrameCoding.ZSTD, bomb[: len(TEXT)]),
        (FrameCoding.RAW, TEXT[:-1] + b"x"),
    ]
    for coding, payload in cases:
        with pytest.raises(FrameDamagedError, match="frame 1"):
            archiver.decompress(forged(coding, TEXT, payload))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([FrameCoding.ZSTD, FrameCoding.PREDICTOR]), st.binary(max_size=200))
def test_any_payload_is_decoded_or_refused(coding: FrameCoding, payload: bytes) -> None:
    if coding is FrameCoding.ZSTD:
        payload = b"\x28\xb5\x2f\xfd" + payload
    with pytest.raises(FrameDamagedError):
        archiver.decompress(forged(coding, b"some content that is hashed" * 20, payload))


def test_the_largest_frame_is_read_whatever_its_coding() -> None:
    settings = CompressOptions(frame_bytes=1 << 24)
    for content in (bytes(1 << 24), random.Random(5).randbytes(1 << 24)):
        archive = archiver.compress(content, options=settings)
        assert len(archiver.info(archive).frames) == 1
        assert archiver.decompress(archive) == content


def test_open_reads_at_random() -> None:
    archive = archiver.compress(TEXT, options=SMALL_FRAMES)
    chance = random.Random(11)
    with archiver.open(archive) as file:
        assert file.seekable()
        assert file.seek(0, os.SEEK_END) == len(TEXT)
        assert file.read(5) == b""
        for _ in range(200):
            position, length = chance.randrange(len(TEXT)), chance.randrange(9000)
            assert file.seek(position) == position
            assert file.read(length) == TEXT[position : position + length]
            assert file.tell() == min(position + length, len(TEXT))
        file.seek(0)
        assert list(file) == TEXT.splitlines(keepends=True)
        with pytest.raises(ValueError, match=r"position|negative"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_open_decodes_only_what_is_read(tmp_path: Path) -> None:
    archive = bytearray(archiver.compress(TEXT, options=SMALL_FRAMES))
    index = IndexedArchive(io.BytesIO(bytes(archive)))
    archive[bytes(archive).index(index.frame(2).payload)] ^= 1
    path = tmp_path / "damaged.llmz"
    path.write_bytes(archive)
    with archiver.open(path) as file:
        start = index.content_offsets[2]
        file.seek(start)
        assert file.read(100) == TEXT[start : start + 100]
        file.seek(start - 10)
        with pytest.raises(FrameDamagedError, match="frame 2"):
            file.read(100)


def test_info_says_what_is_inside() -> None:
    archive = archiver.compress(TEXT, options=SMALL_FRAMES)
    info = archiver.info(io.BytesIO(archive))
    assert info.content_bytes == len(TEXT)
    assert info.archive_bytes == len(archive)
    assert sum(frame.content_bytes for frame in info.frames) == len(TEXT)
    container_bytes = info.header_bytes + info.trailer_bytes + 25 * len(info.frames)
    assert container_bytes + info.payload_bytes == len(archive)
    assert info.bpb == 8 * len(archive) / len(TEXT)
    fields = json.loads(json.dumps(info.as_dict()))
    assert fields["predictor"]["package_fingerprint"] == toy_codec.FINGERPRINT.hex()
    assert fields["frames"][1]["number"] == 2
    assert fields["bpb"] == info.bpb


def test_info_names_damage() -> None:
    archive = archiver.compress(TEXT, options=SMALL_FRAMES)
    with pytest.raises(TrailerDamagedError):
        archiver.info(archive[:-1] + bytes([archive[-1] ^ 1]))


def test_files_and_streams_are_sources_and_targets(tmp_path: Path) -> None:
    source, archive, copy = tmp_path / "a.txt", tmp_path / "a.llmz", tmp_path / "copy"
    source.write_bytes(TEXT)
    summary = archiver.compress(source, archive, options=SMALL_FRAMES)
    assert isinstance(summary, archiver.ArchiveSummary)
    assert summary.archive_bytes == archive.stat().st_size
    assert summary.payload_bytes < summary.archive_bytes
    assert sum(summary.frames.values()) == len(archiver.info(archive).frames)
    assert archiver.decompress(str(archive), str(copy)).content_bytes == len(TEXT)
    assert copy.read_bytes() == TEXT
    with archive.open("rb") as stream:
        stream.seek(0)
        assert archiver.decompress(stream) == TEXT
        assert not stream.closed
    with pytest.raises(OutputError, match="exists"):
        archiver.compress(source, archive)
    archiver.compress(source, archive, overwrite=True)


def test_a_stream_is_read_from_where_it_stands() -> None:
    stream = io.BytesIO(b"before" + archiver.compress(TEXT, options=SMALL_FRAMES))
    stream.seek(6)
    with archiver.open(stream) as file:
        assert file.read() == TEXT


@pytest.mark.parametrize(
    "wrong",
    [
        {"frame_bytes": 4095}, {"frame_bytes": (1 << 24) + 1}, {"window_tokens": 15},
        {"threads": 0}, {"chunk_tokens": 0}, {"model": ""},
    ],
)  # fmt: skip
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CompressOptions(**wrong)  # type: ignore[arg-type]


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        archiver.compress(tmp_path / "absent")
    with pytest.raises(InputError):
        archiver.compress(tmp_path)
    with pytest.raises(ModelMissingError):
        archiver.compress(TEXT, options=CompressOptions(model="missing"))
    with pytest.raises(UsageError):
        archiver.verify(b"", threads=0)


def test_the_default_model_is_the_registrys() -> None:
    from archiver.predict import known

    assert options.DEFAULT_MODEL == known.DEFAULT_MODEL


def test_what_is_exported_exists() -> None:
    for name in archiver.__all__:
        assert getattr(archiver, name) is not None
        assert name in dir(archiver)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        archiver.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from archiver import nothing  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize("module", ["archiver", "archiver.api", "cli"])
def test_imports_load_nothing_heavy(module: str) -> None:
    heavy = ("torch", "numba", "transformers", "numpy", "tokenizers")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(autouse=True)
def _only_named_errors(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert not recwarn.list


def test_archives_of_the_empty_header_are_small() -> None:
    assert len(archiver.compress(b"")) == 35
    assert archiver.info(archiver.compress(b"")).bpb == 0
    assert Header() == Header(predictor=None, mixer=None)
