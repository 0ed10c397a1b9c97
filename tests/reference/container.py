"""The parts of an archive, taken from front to back.

Source: FORMAT.md, "Conventions" to "Trailer" and "What a decoder must reject".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
import zstandard

from archiver.errors import (
    FrameDamagedError,
    HeaderDamagedError,
    LimitExceededError,
    NotAnArchiveError,
    TrailerDamagedError,
    TruncatedArchiveError,
    UnsupportedVersionError,
)

FORMAT_VERSION = 1
HEADER_MAGIC = bytes.fromhex("89 4C 4D 5A 0D 0A")
FRAME_MAGIC = bytes.fromhex("4C 5A 46 52")
TRAILER_MAGIC = bytes.fromhex("4C 5A 54 52")
MUST_UNDERSTAND_FLAGS = 0x0F
FIRST_SKIPPABLE_TAG = 128
LARGEST_MIXER_BYTES = 256
LARGEST_WINDOW_TOKENS = 12288
LARGEST_SINK_TOKENS = 4095
LARGEST_CONTENT_BYTES = 16777216
LARGEST_EXPANSION_BYTES = 1024
LARGEST_FRAME_COUNT = 1048576

RAW, ZSTD, PREDICTOR = 0, 1, 2
FRAME_HEADER_BYTES = 25
LARGEST_ZSTD_WINDOW_BYTES = 16 << 20
ZSTD_MAGIC = bytes.fromhex("28 B5 2F FD")


class MalformedError(Exception):
    """Some bytes have not the form that they must have; the caller knows whose they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSection:
    """The fields of section PREDICTOR."""

    engine_version: int
    package_fingerprint: bytes
    window_tokens: int
    local_window_tokens: int
    sink_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerSection:
    """The fields of section MIXER."""

    version: int
    parameters: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringSection:
    """The fields of section STEERING."""

    kind: int
    fields: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header's sections say; None where a section is absent."""

    predictor: PredictorSection | None
    mixer: MixerSection | None
    steering: SteeringSection | None
    archive_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame whose lengths and check are right, and whose coding is known."""

    number: int
    coding: int
    content_bytes: int
    content_hash: int
    payload: bytes


def hash64(data: bytes) -> int:
    """XXH3-64."""
    return xxhash.xxh3_64_intdigest(data)


def hash32(data: bytes) -> int:
    """XXH3-32."""
    return hash64(data) & 0xFFFFFFFF


def read_uint(data: bytes, offset: int, size: int) -> int:
    """An unsigned little-endian integer of `size` bytes."""
    return int.from_bytes(data[offset : offset + size], "little")


def read_varint(data: bytes, offset: int, bits: int = 32) -> tuple[int, int]:
    """A varint below 2^32 (or 2^64) at `offset`, and the offset after it.

    Raises:
        MalformedError: it is not the shortest form, too large, or ends with the data.
    """
    value = 0
    for group in range(5 if bits == 32 else 10):
        if offset + group >= len(data):
            raise MalformedError("a varint ends too early")
        byte = data[offset + group]
        value |= (byte & 0x7F) << (7 * group)
        if byte < 0x80:
            if (byte == 0 and group > 0) or value >= 1 << bits:
                raise MalformedError("a varint is too long")
            return value, offset + group + 1
    raise MalformedError("a varint is too long")


# Header


def read_header(archive: bytes) -> Header:
    """The header, checked."""
    if not archive:
        raise NotAnArchiveError("the archive is empty")
    if archive[:6] != HEADER_MAGIC:
        if HEADER_MAGIC.startswith(archive):
            raise TruncatedArchiveError("the archive ends within the magic")
        if _header_is_intact(HEADER_MAGIC + archive[6:]):
            raise HeaderDamagedError("only the magic is wrong")
        raise NotAnArchiveError("the archive does not begin with HEADER_MAGIC")
    if len(archive) < 10 or len(archive) < 14 + read_uint(archive, 8, 2):
        if _trailer_at_the_end(archive) is not None:
            raise HeaderDamagedError("body_bytes is wrong: an intact trailer ends the archive")
        raise TruncatedArchiveError("the archive ends within the header")
    if not _header_is_intact(archive):
        raise HeaderDamagedError("the check is wrong")
    if archive[6] != FORMAT_VERSION:
        raise UnsupportedVersionError(f"format version {archive[6]}")
    if archive[7] & MUST_UNDERSTAND_FLAGS:
        raise UnsupportedVersionError(f"flags {archive[7]:#x}")
    end = 10 + read_uint(archive, 8, 2)
    predictor = mixer = steering = None
    try:
        for tag, fields in _read_sections(archive[10:end]):
            if tag == 1:
                predictor = _read_predictor_section(fields)
            elif tag == 2:
                mixer = _read_mixer_section(fields)
            elif tag == 3:
                steering = _read_steering_section(fields)
            elif tag < FIRST_SKIPPABLE_TAG:
                raise UnsupportedVersionError(f"section {tag} is unknown")
    except MalformedError as error:
        raise HeaderDamagedError(str(error)) from error
    return Header(predictor=predictor, mixer=mixer, steering=steering, archive_bytes=end + 4)


def _header_is_intact(archive: bytes) -> bool:
    if len(archive) < 14:
        return False
    end = 10 + read_uint(archive, 8, 2)
    return len(archive) >= end + 4 and read_uint(archive, end, 4) == hash32(archive[:end])


def _read_sections(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset, previous_tag = 0, -1
    while offset < len(body):
        tag = body[offset]
        section_bytes, start = read_varint(body, offset + 1)
        offset = start + section_bytes
        if offset > len(body):
            raise MalformedError("a section runs over the body")
        if tag <= previous_tag:
            raise MalformedError("the sections are out of order")
        previous_tag = tag
        yield tag, body[start:offset]


def _read_predictor_section(fields: bytes) -> PredictorSection:
    window_tokens, offset = read_varint(fields, 9)
    local_window_tokens, offset = read_varint(fields, offset)
    sink_tokens, offset = read_varint(fields, offset)
    if offset != len(fields):
        raise MalformedError("section PREDICTOR has the wrong length")
    if not 1 <= window_tokens <= LARGEST_WINDOW_TOKENS or sink_tokens > LARGEST_SINK_TOKENS:
        raise LimitExceededError(f"window {window_tokens}, sinks {sink_tokens}")
    if not 1 <= local_window_tokens <= window_tokens:
        raise LimitExceededError(f"local window {local_window_tokens}")
    return PredictorSection(
        engine_version=fields[0],
        package_fingerprint=fields[1:9],
        window_tokens=window_tokens,
        local_window_tokens=local_window_tokens,
        sink_tokens=sink_tokens,
    )


def _read_mixer_section(fields: bytes) -> MixerSection:
    if not fields:
        raise MalformedError("section MIXER is empty")
    if len(fields) - 1 > LARGEST_MIXER_BYTES:
        raise LimitExceededError("the mixer has too many parameters")
    return MixerSection(version=fields[0], parameters=fields[1:])


def _read_steering_section(fields: bytes) -> SteeringSection:
    if not fields:
        raise MalformedError("section STEERING is empty")
    if not 1 <= fields[0] <= 5:
        raise UnsupportedVersionError(f"steering vectors of kind {fields[0]}")
    return SteeringSection(kind=fields[0], fields=fields[1:])


# Frames


def read_frames(archive: bytes, offset: int) -> tuple[list[Frame], int]:
    """Every frame from `offset` on, and the offset of the trailer."""
    frames: list[Frame] = []
    while archive[offset : offset + 4] != TRAILER_MAGIC:
        frame = _read_frame(archive, offset, len(frames) + 1)
        frames.append(frame)
        offset += FRAME_HEADER_BYTES + len(frame.payload)
    return frames, offset


def _read_frame(archive: bytes, offset: int, number: int) -> Frame:
    magic = archive[offset : offset + 4]
    if magic != FRAME_MAGIC:
        if len(magic) < 4 and (FRAME_MAGIC.startswith(magic) or TRAILER_MAGIC.startswith(magic)):
            raise TruncatedArchiveError("the archive ends before the trailer")
        if _trailer_is_intact(TRAILER_MAGIC + archive[offset + 4 :]):
            raise TrailerDamagedError("only the magic is wrong")
        raise FrameDamagedError(number, "neither a frame nor the trailer begins here")
    if len(archive) < offset + FRAME_HEADER_BYTES:
        raise TruncatedArchiveError("the archive ends within a frame")
    content_bytes = read_uint(archive, offset + 5, 4)
    payload_bytes = read_uint(archive, offset + 9, 4)
    if not 1 <= content_bytes <= LARGEST_CONTENT_BYTES:
        raise FrameDamagedError(number, "content_bytes is beyond its limit")
    if payload_bytes > content_bytes + LARGEST_EXPANSION_BYTES:
        raise FrameDamagedError(number, "payload_bytes is beyond its limit")
    coding = archive[offset + 4]
    if coding == RAW and content_bytes != payload_bytes:
        raise FrameDamagedError(number, "a frame of coding RAW has two different lengths")
    start = offset + FRAME_HEADER_BYTES
    payload = archive[start : start + payload_bytes]
    if len(payload) < payload_bytes:
        if _trailer_at_the_end(archive) is not None:
            raise FrameDamagedError(number, "payload_bytes leads past an intact trailer")
        raise TruncatedArchiveError("the archive ends within a payload")
    if read_uint(archive, offset + 21, 4) != hash32(archive[offset : offset + 21] + payload):
        raise FrameDamagedError(number, "the check is wrong")
    if coding > PREDICTOR:
        raise UnsupportedVersionError(f"coding {coding} is unknown")
    return Frame(
        number=number,
        coding=coding,
        content_bytes=content_bytes,
        content_hash=read_uint(archive, offset + 13, 8),
        payload=payload,
    )


def decode_zstd(payload: bytes, content_bytes: int) -> bytes:
    """The content of a payload of coding ZSTD.

    Raises:
        MalformedError: it is not one zstd frame as FORMAT.md wants it.
    """
    if payload[:4] != ZSTD_MAGIC:
        raise MalformedError("the payload is not a zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(payload)
        if parameters.dict_id != 0 or parameters.content_size != content_bytes:
            raise MalformedError("the zstd frame has a dictionary or another size")
        if parameters.window_size > LARGEST_ZSTD_WINDOW_BYTES:
            raise MalformedError("the zstd frame has too large a window")
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        content = decompressor.decompress(payload)
    except zstandard.ZstdError as error:
        raise MalformedError(str(error)) from error
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedError("the payload is not exactly one zstd frame")
    return content


# Trailer


def check_trailer(archive: bytes, offset: int, frames: list[Frame]) -> None:
    """Return when the trailer at `offset` is intact, ends the archive and tells of `frames`."""
    index = [(len(frame.payload), frame.content_bytes) for frame in frames]
    trailer_bytes = 4 + _varint_bytes(len(index)) + 8 + 4 + 4
    trailer_bytes += sum(_varint_bytes(length) for entry in index for length in entry)
    rest = archive[offset:]
    if _trailer_is_intact(rest[:trailer_bytes]):
        if len(rest) > trailer_bytes:
            raise TrailerDamagedError("bytes follow the trailer")
    elif not _trailer_is_intact(rest):
        if len(rest) < trailer_bytes:
            raise TruncatedArchiveError("the archive ends within the trailer")
        raise TrailerDamagedError("the check or the length is wrong")
    try:
        found = _read_index(rest)
    except MalformedError as error:
        raise TrailerDamagedError(str(error)) from error
    if found != index:
        same = sum(1 for _ in _common(found, index))
        raise FrameDamagedError(same + 1, "the index is not that of the frames")


def check_whole(archive: bytes, content: bytes) -> None:
    """Return when content_hash, in the intact trailer that ends the archive, is right."""
    if read_uint(archive, len(archive) - 16, 8) != hash64(content):
        raise TrailerDamagedError("the whole content's hash is wrong")


def _common(found: list[tuple[int, int]], index: list[tuple[int, int]]) -> list[tuple[int, int]]:
    common: list[tuple[int, int]] = []
    for entry, expected in zip(found, index, strict=False):
        if entry != expected:
            break
        common.append(entry)
    return common


def _read_index(trailer: bytes) -> list[tuple[int, int]]:
    body = trailer[:-16]
    frame_count, offset = read_varint(body, 4)
    if frame_count > LARGEST_FRAME_COUNT:
        raise LimitExceededError(f"{frame_count} frames")
    index = []
    for _ in range(frame_count):
        payload_bytes, offset = read_varint(body, offset)
        content_bytes, offset = read_varint(body, offset)
        if not 1 <= content_bytes <= LARGEST_CONTENT_BYTES:
            raise LimitExceededError(f"content_bytes is {content_bytes}")
        if payload_bytes > content_bytes + LARGEST_EXPANSION_BYTES:
            raise LimitExceededError(f"payload_bytes is {payload_bytes}")
        index.append((payload_bytes, content_bytes))
    if offset != len(body):
        raise MalformedError("the index has another length")
    return index


def _trailer_is_intact(trailer: bytes) -> bool:
    """Whether the bytes, all of them, have the magic, length and check of a trailer."""
    size = len(trailer)
    return (
        size >= 21
        and trailer[:4] == TRAILER_MAGIC
        and read_uint(trailer, size - 8, 4) == size
        and read_uint(trailer, size - 4, 4) == hash32(trailer[:-4])
    )


def _trailer_at_the_end(archive: bytes) -> int | None:
    """The offset of an intact trailer that ends the archive; None when there is none."""
    if len(archive) < 21:
        return None
    offset = len(archive) - read_uint(archive, len(archive) - 8, 4)
    return offset if offset >= 0 and _trailer_is_intact(archive[offset:]) else None


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
