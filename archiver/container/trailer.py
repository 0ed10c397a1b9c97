"""What the bytes of an archive's trailer mean: the index of all frames and the content's hash.

The trailer is wholly determined by the frames before it. A streaming reader therefore knows its
length before it reads it; a seeking reader finds its start from the length at its end.

Source: FORMAT.md, "Trailer".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from archiver.container.layout import (
    CHECK,
    FRAME_HEADER_BYTES,
    LARGEST_CONTENT_BYTES,
    LARGEST_EXPANSION_BYTES,
    MAGIC_BYTES,
    check32,
)
from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.errors import LimitExceededError, TrailerDamagedError

TRAILER_MAGIC = b"LZTR"
TRAILER_END = struct.Struct("<QII")  # content_hash, trailer_bytes, check
SMALLEST_TRAILER_BYTES = MAGIC_BYTES + 1 + TRAILER_END.size

LARGEST_FRAME_COUNT = 1 << 20
# A count takes at most 3 bytes, each of an entry's two lengths (below 2^28) at most 4.
LARGEST_TRAILER_BYTES = SMALLEST_TRAILER_BYTES + 2 + 8 * LARGEST_FRAME_COUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """The two lengths of one frame, as the trailer lists them."""

    payload_bytes: int
    content_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """The index of all frames, and the XXH3-64 of the whole content."""

    index: tuple[IndexEntry, ...]
    content_hash: int

    @property
    def content_bytes(self) -> int:
        """Length of the whole content."""
        return sum(entry.content_bytes for entry in self.index)

    @property
    def frames_bytes(self) -> int:
        """Length of all frames in the archive, their headers included."""
        payloads = sum(entry.payload_bytes for entry in self.index)
        return payloads + FRAME_HEADER_BYTES * len(self.index)


def encode_index_entry(payload_bytes: int, content_bytes: int) -> bytes:
    """Return the two lengths of a frame as the trailer's index holds them."""
    return encode_varint(payload_bytes) + encode_varint(content_bytes)


def trailer_bytes(frame_count: int, index_bytes: int) -> int:
    """Return how long a trailer with these many frames and bytes of index entries is."""
    return MAGIC_BYTES + len(encode_varint(frame_count)) + index_bytes + TRAILER_END.size


def encode_trailer(frame_count: int, encoded_index: bytes | bytearray, content_hash: int) -> bytes:
    """Return the trailer's bytes; `encoded_index` is the concatenation of its entries."""
    length = trailer_bytes(frame_count, len(encoded_index))
    start = TRAILER_MAGIC + encode_varint(frame_count) + encoded_index
    checked = start + TRAILER_END.pack(content_hash, length, 0)[: -CHECK.size]
    return checked + CHECK.pack(check32(checked))


def decode_trailer(data: bytes) -> Trailer:
    """Return what the trailer in `data` says; `data` is the whole trailer and nothing else.

    Raises:
        TrailerDamagedError: the magic, the length, the check or the form is wrong.
        LimitExceededError: the check is right, but a count or a length is beyond its limit.
    """
    if len(data) < SMALLEST_TRAILER_BYTES or not data.startswith(TRAILER_MAGIC):
        raise TrailerDamagedError("the trailer is damaged: it does not begin as one")
    content_hash, length, check = TRAILER_END.unpack(data[-TRAILER_END.size :])
    if check32(data[: -CHECK.size]) != check or length != len(data):
        raise TrailerDamagedError("the trailer is damaged: its checksum is wrong")
    try:
        index = _decode_index(data[MAGIC_BYTES : -TRAILER_END.size])
    except MalformedError as error:
        raise TrailerDamagedError(f"the trailer is damaged: {error}") from error
    return Trailer(index=index, content_hash=content_hash)


def _decode_index(data: bytes) -> tuple[IndexEntry, ...]:
    frame_count, offset = decode_varint(data, 0)
    if frame_count > LARGEST_FRAME_COUNT:
        raise LimitExceededError(f"{frame_count} frames are more than {LARGEST_FRAME_COUNT}")
    entries = []
    for _ in range(frame_count):
        payload_bytes, offset = decode_varint(data, offset)
        content_bytes, offset = decode_varint(data, offset)
        if not 1 <= content_bytes <= LARGEST_CONTENT_BYTES:
            raise LimitExceededError(f"the index lists a frame of {content_bytes} bytes")
        if payload_bytes > content_bytes + LARGEST_EXPANSION_BYTES:
            raise LimitExceededError(f"the index lists a payload of {payload_bytes} bytes")
        entries.append(IndexEntry(payload_bytes=payload_bytes, content_bytes=content_bytes))
    if offset != len(data):
        raise MalformedError("its index has the wrong length")
    return tuple(entries)
