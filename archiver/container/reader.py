"""Reads an archive from a stream, front to back, without seeking.

The order of calls is that of the bytes: the header is read when the reader is made, `frames()`
yields each frame as it comes and reads the trailer after the last, `finish()` compares the
content's hash with the trailer's. Whatever is wrong is raised as the error that names the part.

Source: FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from archiver.container.diagnosis import DIAGNOSED_BYTES, name_damage, name_header_damage
from archiver.container.layout import (
    FRAME_HEADER_BYTES,
    HEADER_MAGIC,
    HEADER_START,
    LARGEST_HEADER_BYTES,
    MAGIC_BYTES,
    FrameCoding,
    FrameHeader,
    Header,
    coding_of,
    decode_frame_header,
    decode_header,
    frame_is_intact,
    hash64,
    header_bytes,
    header_is_intact,
)
from archiver.container.trailer import (
    LARGEST_FRAME_COUNT,
    TRAILER_MAGIC,
    Trailer,
    decode_trailer,
    encode_index_entry,
    trailer_bytes,
)
from archiver.errors import (
    DamagedArchiveError,
    FrameDamagedError,
    InputError,
    LimitExceededError,
    TrailerDamagedError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFrame:
    """One frame of an archive, its check verified, its payload not yet decoded.

    Attributes:
        number: counted from 1.
        coding: how the payload is turned into content.
        content_bytes: length of the content.
        content_hash: XXH3-64 of the content.
        content_offset: where the content begins in the whole content; None when frames before
            it are lost and their length is unknown.
        payload: the encoded content.
    """

    number: int
    coding: FrameCoding
    content_bytes: int
    content_hash: int
    content_offset: int | None
    payload: bytes

    def check_content(self, content: bytes) -> None:
        """Return when `content` is what was encoded.

        Raises:
            FrameDamagedError: its length or its hash is another.
        """
        if len(content) != self.content_bytes or hash64(content) != self.content_hash:
            raise FrameDamagedError(self.number, "what it decodes to has the wrong checksum")


def read_up_to(stream: BinaryIO, length: int) -> bytes:
    """Return the next `length` bytes of `stream`, fewer only where it ends.

    Raises:
        InputError: the operating system could not read.
    """
    parts = []
    try:
        while length > 0:
            part = stream.read(min(length, 1 << 20))
            if not part:
                break
            parts.append(part)
            length -= len(part)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}") from error
    return b"".join(parts)


def read_header(stream: BinaryIO) -> tuple[Header, bytes]:
    """Return the header that `stream` is at the start of, and its bytes.

    Raises:
        NotAnArchiveError, TruncatedArchiveError, HeaderDamagedError: it is not there, not
            complete, not intact.
        UnsupportedVersionError, LimitExceededError: see `decode_header`.
    """
    data = read_up_to(stream, HEADER_START.size)
    if len(data) == HEADER_START.size and data.startswith(HEADER_MAGIC):
        data += read_up_to(stream, header_bytes(data) - len(data))
        if len(data) == header_bytes(data[: HEADER_START.size]) and header_is_intact(data):
            return decode_header(data), data
    data += read_up_to(stream, LARGEST_HEADER_BYTES - len(data))
    at_end = len(data) < LARGEST_HEADER_BYTES
    raise name_header_damage(data, at_end)


def frame_of(
    fields: FrameHeader, payload: bytes, *, header: Header | None, number: int, offset: int | None
) -> EncodedFrame:
    """Return the record of a frame whose check is right.

    Raises:
        UnsupportedVersionError: its coding is unknown.
        FrameDamagedError: its coding needs a predictor and the header names none.
    """
    coding = coding_of(fields, number)
    model_less = header is None or header.predictor is None or header.mixer is None
    if coding is FrameCoding.PREDICTOR and model_less:
        raise FrameDamagedError(number, "the header that names its model has none or is lost")
    return EncodedFrame(
        number=number,
        coding=coding,
        content_bytes=fields.content_bytes,
        content_hash=fields.content_hash,
        content_offset=offset,
        payload=payload,
    )


class ArchiveReader:
    """Yields the frames of an archive as they come through a pipe.

    Memory holds one frame and the index, at most eight bytes a frame.

    Attributes:
        header: what the archive's header says.
        archive_bytes: how much has been read so far.
        trailer: what the trailer says; None before `frames()` has ended.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._index = bytearray()
        self._frame_count = 0
        self._content_bytes = 0
        self.trailer: Trailer | None = None
        self.header, data = read_header(stream)
        self.archive_bytes = len(data)

    def frames(self) -> Iterator[EncodedFrame]:
        """Yield every frame, its check verified; after the last, the trailer is verified too.

        Raises:
            FrameDamagedError, TrailerDamagedError, TruncatedArchiveError: by what is wrong.
            UnsupportedVersionError: a frame has a coding that is unknown.
            LimitExceededError: there are more frames than the format allows.
            InputError: the operating system could not read.
        """
        while (magic := self._read(MAGIC_BYTES)) != TRAILER_MAGIC:
            if self._frame_count == LARGEST_FRAME_COUNT:
                raise LimitExceededError(f"the archive has more than {LARGEST_FRAME_COUNT} frames")
            yield self._read_frame(magic)
        self.trailer = self._read_trailer()

    def finish(self, content_hash: int) -> None:
        """Return when `content_hash` (XXH3-64 of all content) is the one in the trailer.

        Raises:
            TrailerDamagedError: it is another.
        """
        assert self.trailer is not None, "frames() must have ended"
        if self.trailer.content_hash != content_hash:
            raise TrailerDamagedError(
                "the hash of the whole content is wrong: its frames are not the ones that were "
                "written, or not in that order"
            )

    def _read_frame(self, magic: bytes) -> EncodedFrame:
        number = self._frame_count + 1
        start = magic + self._read(FRAME_HEADER_BYTES - len(magic))
        if len(start) < FRAME_HEADER_BYTES:
            raise self._damage(start, "it is cut off")
        try:
            fields = decode_frame_header(start, number)
        except FrameDamagedError as error:
            raise self._damage(start, error.reason) from error
        payload = self._read(fields.payload_bytes)
        if len(payload) < fields.payload_bytes or not frame_is_intact(start, payload):
            raise self._damage(start + payload, "its checksum is wrong")
        offset = self._content_bytes
        self._index += encode_index_entry(fields.payload_bytes, fields.content_bytes)
        self._content_bytes += fields.content_bytes
        self._frame_count += 1
        return frame_of(fields, payload, header=self.header, number=number, offset=offset)

    def _read_trailer(self) -> Trailer:
        expected_bytes = trailer_bytes(self._frame_count, len(self._index))
        data = TRAILER_MAGIC + self._read(expected_bytes - MAGIC_BYTES)
        try:
            trailer = decode_trailer(data)
        except TrailerDamagedError as error:
            raise self._damage(data, "it is not where the index says") from error
        if self._encoded(trailer) != self._index:
            raise self._mismatch(trailer)
        following = self._read(len(HEADER_MAGIC))
        if following == HEADER_MAGIC:
            raise TrailerDamagedError(
                "another archive follows the trailer: archives cannot be joined end to end"
            )
        if following:
            raise TrailerDamagedError("bytes that do not belong to it follow the archive's trailer")
        return trailer

    def _damage(self, unit: bytes, reason: str) -> DamagedArchiveError:
        unit += self._read(DIAGNOSED_BYTES - len(unit))
        at_end = len(unit) < DIAGNOSED_BYTES
        if unit.startswith(TRAILER_MAGIC) and at_end:
            try:
                return self._mismatch(decode_trailer(unit))
            except TrailerDamagedError:
                pass
        return name_damage(
            unit,
            at_end=at_end,
            number=self._frame_count + 1,
            trailer_bytes=trailer_bytes(self._frame_count, len(self._index)),
            reason=reason,
        )

    def _mismatch(self, trailer: Trailer) -> FrameDamagedError:
        # The trailer is intact, so the frames before it are not the ones that were written.
        offset = 0
        for number, entry in enumerate(trailer.index, 1):
            encoded = encode_index_entry(entry.payload_bytes, entry.content_bytes)
            if self._index[offset : offset + len(encoded)] != encoded:
                return FrameDamagedError(number, "it is missing, or not the one that was written")
            offset += len(encoded)
        return FrameDamagedError(len(trailer.index) + 1, "the index has no such frame")

    @staticmethod
    def _encoded(trailer: Trailer) -> bytes:
        entries = (encode_index_entry(e.payload_bytes, e.content_bytes) for e in trailer.index)
        return b"".join(entries)

    def _read(self, length: int) -> bytes:
        data = read_up_to(self._stream, length)
        self.archive_bytes += len(data)
        return data
