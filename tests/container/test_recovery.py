"""What is left of a damaged archive is found, and what is lost is said."""

from __future__ import annotations

import io
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.container import (
    ArchiveReader,
    ArchiveWriter,
    Damage,
    DamagedArchive,
    EncodedFrame,
    FrameCoding,
    Header,
)
from archiver.errors import ArchiverError, NotAnArchiveError, UnsupportedVersionError
from tests.container.conftest import Sample


def recovered(data: bytes) -> tuple[list[EncodedFrame], list[Damage]]:
    parts = list(DamagedArchive(io.BytesIO(data)).parts())
    frames = [part for part in parts if isinstance(part, EncodedFrame)]
    return frames, [part for part in parts if isinstance(part, Damage)]


def written(data: bytes) -> list[EncodedFrame]:
    return list(ArchiveReader(io.BytesIO(data)).frames())


def archive_of(*contents: bytes) -> bytes:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, Header())
    for content in contents:
        writer.add_frame(FrameCoding.RAW, content, content)
    writer.finish()
    return stream.getvalue()


def test_an_intact_archive_has_no_losses(sample: Sample) -> None:
    assert recovered(sample.data) == (written(sample.data), [])


@pytest.mark.parametrize("flipped", [0x01, 0x12, 0xFF])
def test_a_flipped_byte_costs_its_part_only(sample: Sample, flipped: int) -> None:
    originals = written(sample.data)
    for offset in range(len(sample.data)):
        data = bytearray(sample.data)
        data[offset] ^= flipped
        part = sample.part_at(offset)
        frames, [damage] = recovered(bytes(data))
        if part == 0:
            assert frames == originals, offset
            assert damage.part == "header"
            assert "repaired" in str(damage)
        elif part == len(sample.frame_offsets):
            assert frames == originals, offset
            assert damage.part == "trailer"
        else:
            lost = originals[part - 1]
            assert frames == [frame for frame in originals if frame is not lost], offset
            assert damage.frame_number == part
            assert damage.content_offset == lost.content_offset
            assert damage.content_bytes == lost.content_bytes
            assert f"lost {lost.content_bytes} bytes at offset {lost.content_offset}" in str(damage)


def test_a_truncated_archive_gives_the_frames_before_the_cut(sample: Sample) -> None:
    originals = written(sample.data)
    for length in range(len(sample.data)):
        whole = sum(end <= length for end in sample.frame_offsets[1:])
        try:
            frames, damages = recovered(sample.data[:length])
        except ArchiverError:
            assert length < sample.frame_offsets[0], length
            continue
        assert frames == originals[:whole], length
        assert len(damages) == 1, length


def test_damage_in_frame_and_trailer_is_scanned_around(sample: Sample) -> None:
    originals = written(sample.data)
    data = bytearray(sample.data)
    data[sample.frame_offsets[1] + 30] ^= 1
    data[-1] ^= 1
    frames, damages = recovered(bytes(data))
    assert [frame.payload for frame in frames] == [
        originals[0].payload, originals[2].payload, originals[3].payload,
    ]  # fmt: skip
    assert [damage.part for damage in damages] == ["frame", "trailer"]
    assert damages[0].content_offset == originals[1].content_offset
    assert "unknown number of bytes" in str(damages[0])
    assert frames[1].content_offset is None


def test_bytes_that_were_inserted_or_deleted_cost_their_frame(sample: Sample) -> None:
    originals = written(sample.data)
    middle = sample.frame_offsets[2] + 28
    for data in (
        sample.data[:middle] + b"inserted" + sample.data[middle:],
        sample.data[:middle] + sample.data[middle + 3 :],
    ):
        frames, damages = recovered(data)
        assert [frame.payload for frame in frames] == [
            frame.payload for frame in originals if frame.number != 3
        ]
        assert damages[0].frame_number == 3


def test_a_lost_frame_is_missed(sample: Sample) -> None:
    starts = sample.frame_offsets
    frames, damages = recovered(sample.data[: starts[1]] + sample.data[starts[2] :])
    assert len(frames) == 3
    assert "index lists 4 frames" in str(damages[-1])


def test_without_a_header_only_frames_that_need_no_model_are_left(sample: Sample) -> None:
    lost_header = bytes(sample.frame_offsets[0]) + sample.data[sample.frame_offsets[0] :]
    for data in (lost_header, lost_header[:-1]):
        frames, damages = recovered(data)
        assert [frame.payload for frame in frames] == [
            frame.payload for frame in written(sample.data)[1:]
        ]
        assert damages[0].part == "header"
        assert damages[1].frame_number == 1


def test_what_follows_the_trailer_is_reported(sample: Sample) -> None:
    frames, damages = recovered(sample.data + b"garbage")
    assert frames == written(sample.data)
    assert [damage.part for damage in damages] == ["trailer"]


def test_no_frames_are_taken_out_of_a_damaged_frame() -> None:
    inner = archive_of(b"inner one", b"inner two")
    data = bytearray(archive_of(b"one", inner, b"three"))
    data[data.index(inner) + 3] ^= 1  # not in an inner frame
    frames, _ = recovered(bytes(data[:-1]))  # without a trailer
    assert [frame.payload for frame in frames] == [b"one", b"three"]


def test_nothing_to_recover_is_an_error() -> None:
    with pytest.raises(NotAnArchiveError):
        recovered(b"no archive")
    with pytest.raises(NotAnArchiveError):
        recovered(random.Random(1).randbytes(100_000))
    newer = bytearray(archive_of(b"abc"))
    newer[6] = 2
    from archiver.container.layout import CHECK, check32

    newer[10:14] = CHECK.pack(check32(bytes(newer[:10])))
    with pytest.raises(UnsupportedVersionError):
        recovered(bytes(newer))


def test_false_starts_of_frames_take_bounded_time() -> None:
    # Each candidate claims a payload of almost all that follows.
    false_start = b"LZFR\x01" + (1 << 24).to_bytes(4, "little") + (1 << 20).to_bytes(4, "little")
    data = archive_of(b"abc")[:-5] + (false_start + bytes(12)) * 80_000
    start_s = time.monotonic()
    frames, damages = recovered(data)
    assert [frame.payload for frame in frames] == [b"abc"]
    assert damages
    assert time.monotonic() - start_s < 20


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_only_frames_that_were_written_come_out(sample: Sample, data: st.DataObject) -> None:
    changed = bytearray(sample.data)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        end = data.draw(st.integers(start, min(start + 40, len(changed))))
        changed[start:end] = data.draw(st.binary(max_size=40))
    if bytes(changed) == sample.data:
        return
    try:
        frames, damages = recovered(bytes(changed))
    except ArchiverError:
        return
    assert damages
    payloads = [frame.payload for frame in written(sample.data)]
    found = iter(payloads)
    assert all(frame.payload in found for frame in frames)  # a subsequence
