"""Reading front to back and by the index: every wrong byte is found, and named."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.container import ArchiveReader, ArchiveWriter, FrameCoding, Header, IndexedArchive
from archiver.container import writer as writer_module
from archiver.container.layout import HEADER_MAGIC, hash64
from archiver.errors import (
    ArchiverError,
    DamagedArchiveError,
    FrameDamagedError,
    HeaderDamagedError,
    LimitExceededError,
    NotAnArchiveError,
    TrailerDamagedError,
    TruncatedArchiveError,
    UnsupportedVersionError,
)
from tests.container.conftest import Sample


class Pipe(io.RawIOBase):
    """Gives a few bytes a time and cannot seek, as a pipe does."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._inner.read(min(len(buffer), 7))
        buffer[: len(part)] = part
        return len(part)


def read_through(data: bytes) -> bytes:
    """The payloads, which for this file's archives are enough to tell contents apart."""
    reader = ArchiveReader(Pipe(data))
    payloads = [frame.payload for frame in reader.frames()]
    assert reader.archive_bytes == len(data)
    return b"|".join(payloads)


def archive_of(*contents: bytes) -> bytes:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, Header())
    for content in contents:
        writer.add_frame(FrameCoding.RAW, content, content)
    writer.finish()
    assert writer.archive_bytes == len(stream.getvalue())
    return stream.getvalue()


def error_of(data: bytes) -> ArchiverError:
    with pytest.raises(ArchiverError) as caught:
        read_through(data)
    return caught.value


def test_frames_come_as_they_were_written(sample: Sample) -> None:
    reader = ArchiveReader(Pipe(sample.data))
    frames = list(reader.frames())
    assert [frame.number for frame in frames] == [1, 2, 3, 4]
    assert [frame.content_bytes for frame in frames] == [len(c) for c in sample.contents]
    assert [frame.content_hash for frame in frames] == [hash64(c) for c in sample.contents]
    assert [frame.content_offset for frame in frames] == [0, 56, 89, 152]
    reader.finish(hash64(b"".join(sample.contents)))
    with pytest.raises(TrailerDamagedError, match="whole content"):
        reader.finish(0)


def test_the_smallest_archives() -> None:
    assert len(archive_of()) == 14 + 21
    assert len(archive_of(b"x")) == 1 + 62
    assert len(archive_of(bytes(1000))) == 1000 + 64


@pytest.mark.parametrize("flipped", [0x01, 0x12, 0x80, 0xFF])
def test_every_flipped_byte_is_named_after_its_part(sample: Sample, flipped: int) -> None:
    for offset in range(len(sample.data)):
        data = bytearray(sample.data)
        data[offset] ^= flipped
        part = sample.part_at(offset)
        error = error_of(bytes(data))
        if part == 0:
            assert type(error) is HeaderDamagedError, (offset, error)
        elif part == len(sample.frame_offsets):
            assert type(error) is TrailerDamagedError, (offset, error)
        else:
            assert isinstance(error, FrameDamagedError), (offset, error)
            assert error.frame_number == part, (offset, error)


def test_every_truncation_is_named(sample: Sample) -> None:
    assert type(error_of(b"")) is NotAnArchiveError
    for length in range(1, len(sample.data)):
        assert type(error_of(sample.data[:length])) is TruncatedArchiveError, length


def test_the_index_finds_every_frame(sample: Sample) -> None:
    archive = IndexedArchive(io.BytesIO(sample.data))
    in_order = list(ArchiveReader(io.BytesIO(sample.data)).frames())
    assert [archive.frame(number) for number in (4, 1, 3, 2)] == [in_order[i] for i in (3, 0, 2, 1)]


def test_the_index_names_damage_as_reading_through_does(sample: Sample) -> None:
    for offset in range(len(sample.data)):
        data = bytearray(sample.data)
        data[offset] ^= 0x12
        part = sample.part_at(offset)
        if 0 < part < len(sample.frame_offsets):
            with pytest.raises(FrameDamagedError) as caught:
                IndexedArchive(io.BytesIO(bytes(data))).frame(part)
            assert caught.value.frame_number == part, offset
        else:
            with pytest.raises(type(error_of(bytes(data)))):
                IndexedArchive(io.BytesIO(bytes(data)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"hello, this is not an archive at all", NotAnArchiveError, "not an llmzip archive"),
        (b"PK\x03\x04", NotAnArchiveError, "not an llmzip archive"),
        (b"\x89LMZ\n\x01\x00", HeaderDamagedError, "as text"),
        (b"\x89LMZ\r\r\n\x01\x00", HeaderDamagedError, "as text"),
        (archive_of(b"abc") + b"x", TrailerDamagedError, "follow"),
        (archive_of(b"abc") + bytes(100_000), TrailerDamagedError, "follow"),
        (archive_of(b"abc") * 2, TrailerDamagedError, "joined"),
        (archive_of() * 2, TrailerDamagedError, "joined"),
    ],
)
def test_other_inputs_are_named(data: bytes, error: type[ArchiverError], message: str) -> None:
    with pytest.raises(error, match=message):
        read_through(data)


def test_missing_doubled_and_exchanged_frames_are_named(sample: Sample) -> None:
    starts = sample.frame_offsets
    parts = [sample.data[: starts[0]]]
    parts += [sample.data[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    header, one, two, three, four, trailer = parts
    cases = [
        (header + one + three + four + trailer, 2),
        (header + two + three + four + trailer, 1),
        (header + one + two + three + trailer, 4),
        (header + one + one + two + three + four + trailer, 2),
        (header + one + two + three + four + four + trailer, 5),
        (header + one + three + two + four + trailer, 2),
        (header + trailer, 1),
    ]
    for data, number in cases:
        error = error_of(data)
        assert isinstance(error, FrameDamagedError)
        assert error.frame_number == number


def test_exchanged_frames_of_equal_lengths_fail_the_whole_content() -> None:
    data = bytearray(archive_of(b"aaaa", b"bbbb"))
    data[14:43], data[43:72] = data[43:72], data[14:43]
    reader = ArchiveReader(io.BytesIO(bytes(data)))
    content = b"".join(frame.payload for frame in reader.frames())
    with pytest.raises(TrailerDamagedError, match="whole content"):
        reader.finish(hash64(content))


def test_a_predictor_frame_needs_a_header_that_says_so() -> None:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, Header())
    writer.add_frame(FrameCoding.PREDICTOR, b"abc", b"x")
    writer.finish()
    with pytest.raises(FrameDamagedError, match="names its model"):
        read_through(stream.getvalue())


def test_an_unknown_coding_needs_a_newer_version() -> None:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, Header())
    writer.add_frame(9, b"abc", b"x")  # type: ignore[arg-type]
    writer.finish()
    with pytest.raises(UnsupportedVersionError, match="coding 9"):
        read_through(stream.getvalue())


def test_the_number_of_frames_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LARGEST_FRAME_COUNT", 2)
    with pytest.raises(LimitExceededError, match="larger frames"):
        archive_of(b"a", b"b", b"c")


def test_an_archive_within_an_archive_keeps_its_frames_to_itself() -> None:
    inner = archive_of(b"inner one", b"inner two")
    outer = archive_of(inner, b"outer two")
    assert read_through(outer) == inner + b"|outer two"
    assert isinstance(error_of(outer[:-3]), DamagedArchiveError)
    cut_after_inner = outer[: outer.index(inner) + len(inner)]
    assert isinstance(error_of(cut_after_inner), DamagedArchiveError)
    with pytest.raises(DamagedArchiveError):
        IndexedArchive(io.BytesIO(cut_after_inner))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_is_found(sample: Sample, data: st.DataObject) -> None:
    changed = bytearray(sample.data)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        end = data.draw(st.integers(start, min(start + 40, len(changed))))
        changed[start:end] = data.draw(st.binary(max_size=40))
    if bytes(changed) == sample.data:
        return
    with pytest.raises(ArchiverError):
        read_through(bytes(changed))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_by_name(data: bytes, as_archive: bool) -> None:
    with pytest.raises(ArchiverError):
        read_through((HEADER_MAGIC if as_archive else b"") + data)


def test_absurd_lengths_allocate_nothing(sample: Sample) -> None:
    import tracemalloc

    data = bytearray(sample.data)
    start = sample.frame_offsets[0]
    data[start + 5 : start + 13] = b"\xff\xff\xff\x00\xff\xff\xff\x00"
    tracemalloc.start()
    error_of(bytes(data))
    data[-8:-4] = b"\xff\xff\xff\xff"
    error_of(bytes(data))
    with pytest.raises(DamagedArchiveError):
        IndexedArchive(io.BytesIO(bytes(data)))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
