"""Names the part of an archive that is damaged, from the bytes where reading went wrong.

A wrong byte shows where a checksum fails, which need not be the part that holds it: a wrong
length makes its part swallow what follows, a wrong magic makes a frame look like something
else. The functions here try the few explanations that a checksum can confirm, and fall back on
the plain reading.
"""

from __future__ import annotations

from archiver.container.layout import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    HEADER_MAGIC,
    HEADER_START,
    LARGEST_PAYLOAD_BYTES,
    MAGIC_BYTES,
    SMALLEST_HEADER_BYTES,
    decode_frame_header,
    frame_is_intact,
    header_bytes,
    header_is_intact,
)
from archiver.container.trailer import (
    SMALLEST_TRAILER_BYTES,
    TRAILER_END,
    TRAILER_MAGIC,
    Trailer,
    decode_trailer,
)
from archiver.errors import (
    ArchiverError,
    DamagedArchiveError,
    FrameDamagedError,
    HeaderDamagedError,
    NotAnArchiveError,
    TrailerDamagedError,
    TruncatedArchiveError,
)

# Enough to hold the largest frame with a small trailer behind it.
DIAGNOSED_BYTES = FRAME_HEADER_BYTES + LARGEST_PAYLOAD_BYTES + (1 << 16)
LARGEST_REPAIRED_HEADER_BYTES = 1024
LENGTH_POSITIONS = (8, 9)  # of body_bytes in the header
TEXT_MODE_MAGICS = (b"\x89LMZ\n", b"\x89LMZ\r\r\n", b"\tLMZ\r\n")


def trailer_at_end(data: bytes) -> Trailer | None:
    """Return the trailer that `data` ends with, or None when it does not end with one."""
    if len(data) < SMALLEST_TRAILER_BYTES:
        return None
    length: int = TRAILER_END.unpack(data[-TRAILER_END.size :])[1]
    if not SMALLEST_TRAILER_BYTES <= length <= len(data):
        return None
    try:
        return decode_trailer(data[-length:])
    except ArchiverError:
        return None


def intact_frame_bytes(data: bytes, number: int = 1) -> int | None:
    """Return how long the intact frame is that `data` begins with, or None without one."""
    if len(data) < FRAME_HEADER_BYTES:
        return None
    start = data[:FRAME_HEADER_BYTES]
    try:
        payload_bytes = decode_frame_header(start, number).payload_bytes
    except FrameDamagedError:
        return None
    end = FRAME_HEADER_BYTES + payload_bytes
    if end > len(data) or not frame_is_intact(start, data[FRAME_HEADER_BYTES:end]):
        return None
    return end


def name_header_damage(data: bytes, at_end: bool) -> ArchiverError:
    """Return the error for an archive whose header cannot be read.

    Args:
        data: the archive from its first byte, up to the longest possible header.
        at_end: whether `data` ends where the archive does.
    """
    if not data:
        return NotAnArchiveError("the input is empty, so it is not an llmzip archive")
    if len(data) < len(HEADER_MAGIC) and HEADER_MAGIC.startswith(data):
        return TruncatedArchiveError("the archive ends within its header")
    if data.startswith(TEXT_MODE_MAGICS):
        return HeaderDamagedError(
            "the header is damaged: the archive was changed as text is, in transfer"
        )
    if not data.startswith(HEADER_MAGIC):
        if repaired_header(data, positions=range(len(HEADER_MAGIC))) is not None:
            return HeaderDamagedError("the header is damaged: its magic number is wrong")
        return NotAnArchiveError("the input is not an llmzip archive")
    short = len(data) < HEADER_START.size or len(data) < header_bytes(data[: HEADER_START.size])
    if short and at_end and trailer_at_end(data) is None:
        return TruncatedArchiveError("the archive ends within its header")
    return HeaderDamagedError("the header is damaged: its checksum is wrong")


def repaired_header(data: bytes, positions: range | None = None) -> bytes | None:
    """Return the header that `data` begins with, one wrong byte set right, or None.

    A wrong repair passes the check with a chance of 2^-32 for each of some ten thousand
    candidates; what is decoded after it is still compared with the frames' hashes.

    Args:
        data: the archive from its first byte, at least as long as its header.
        positions: which bytes may be the wrong one; by default each of the header's.
    """
    if len(data) < SMALLEST_HEADER_BYTES:
        return None
    candidate = bytearray(data[:LARGEST_REPAIRED_HEADER_BYTES])
    length = header_bytes(data[: HEADER_START.size])
    for position in positions or range(min(length, len(candidate))):
        original = candidate[position]
        for value in range(256):
            candidate[position] = value
            if position in LENGTH_POSITIONS:
                length = header_bytes(bytes(candidate[: HEADER_START.size]))
            header = bytes(candidate[:length])
            whole = len(header) == length and header.startswith(HEADER_MAGIC)
            if whole and header_is_intact(header):
                return header
        candidate[position] = original
        length = header_bytes(data[: HEADER_START.size])
    return None


def name_damage(
    unit: bytes, *, at_end: bool, number: int, trailer_bytes: int, reason: str
) -> DamagedArchiveError:
    """Return the error for a frame or a trailer that cannot be read.

    Args:
        unit: the archive from the end of the last good frame, up to DIAGNOSED_BYTES.
        at_end: whether `unit` ends where the archive does.
        number: the number of the frame that should begin here, counted from 1.
        trailer_bytes: how long the trailer is if there are no more frames.
        reason: what to say of the frame when nothing better is found.
    """
    if at_end:
        if not unit:
            return TruncatedArchiveError(
                f"the archive ends after frame {number - 1}, before its trailer"
            )
        if any(magic.startswith(unit) for magic in (FRAME_MAGIC, TRAILER_MAGIC)):
            return _truncated(number)
        if _is_whole_trailer(TRAILER_MAGIC + unit[MAGIC_BYTES:]):
            return TrailerDamagedError("the trailer is damaged: its magic number is wrong")
    if intact_frame_bytes(FRAME_MAGIC + unit[MAGIC_BYTES:]) is not None:
        return FrameDamagedError(number, "its magic number is wrong")
    if at_end and trailer_at_end(unit) is not None:
        return FrameDamagedError(number, reason)
    if unit.startswith(TRAILER_MAGIC):
        if at_end and len(unit) < trailer_bytes:
            return TruncatedArchiveError("the archive ends within its trailer")
        return TrailerDamagedError("the trailer is damaged: its checksum is wrong")
    if at_end and unit.startswith(FRAME_MAGIC) and _is_short(unit, number):
        return _truncated(number)
    if at_end and len(unit) == trailer_bytes:
        return TrailerDamagedError("the trailer is damaged: it does not begin as one")
    return FrameDamagedError(number, reason)


def _truncated(number: int) -> TruncatedArchiveError:
    return TruncatedArchiveError(f"the archive ends after frame {number - 1}, before its trailer")


def _is_whole_trailer(data: bytes) -> bool:
    try:
        decode_trailer(data)
    except ArchiverError:
        return False
    return True


def _is_short(unit: bytes, number: int) -> bool:
    if len(unit) < FRAME_HEADER_BYTES:
        return True
    try:
        fields = decode_frame_header(unit[:FRAME_HEADER_BYTES], number)
    except FrameDamagedError:
        return False
    return len(unit) < FRAME_HEADER_BYTES + fields.payload_bytes
