"""Reads any frame of an archive without the ones before it, through the trailer's index.

Source: FORMAT.md, "Trailer".
"""

from __future__ import annotations

import os
from typing import BinaryIO

from archiver.container.diagnosis import trailer_at_end
from archiver.container.layout import (
    FRAME_HEADER_BYTES,
    FrameHeader,
    decode_frame_header,
    frame_is_intact,
)
from archiver.container.reader import ArchiveReader, EncodedFrame, frame_of, read_header, read_up_to
from archiver.container.trailer import (
    LARGEST_TRAILER_BYTES,
    SMALLEST_TRAILER_BYTES,
    TRAILER_END,
    Trailer,
)
from archiver.errors import FrameDamagedError, TrailerDamagedError


def read_trailer(stream: BinaryIO) -> tuple[Trailer, int] | None:
    """Return the trailer at the end of a seekable `stream`, and where it begins.

    Returns None when the stream does not end with an intact one. No more is read than the
    trailer's length field says, and that is bounded by the format and the stream.
    """
    size = stream.seek(0, os.SEEK_END)
    if size < SMALLEST_TRAILER_BYTES:
        return None
    stream.seek(size - TRAILER_END.size)
    length = TRAILER_END.unpack(read_up_to(stream, TRAILER_END.size))[1]
    if not SMALLEST_TRAILER_BYTES <= length <= min(size, LARGEST_TRAILER_BYTES):
        return None
    stream.seek(size - length)
    trailer = trailer_at_end(read_up_to(stream, length))
    return None if trailer is None else (trailer, size - length)


class IndexedArchive:
    """An archive in a seekable stream, whose frames can be read in any order.

    Attributes:
        header: what the archive's header says.
        header_bytes: the header's length.
        trailer: what the trailer says.
        trailer_bytes: the trailer's length.
        archive_bytes: length of the whole archive.
        content_offsets: where each frame's content begins, and at the end the content's length.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Read header and trailer of the archive that fills `stream`.

        Raises:
            ArchiverError: the one that reading the archive front to back raises.
        """
        self._stream = stream
        stream.seek(0)
        self.header, header_data = read_header(stream)
        self.header_bytes = len(header_data)
        found = read_trailer(stream)
        self.archive_bytes = stream.seek(0, os.SEEK_END)
        if found is None or self.header_bytes + found[0].frames_bytes != found[1]:
            self._raise_by_reading_through()
        assert found is not None
        self.trailer, trailer_offset = found
        self.trailer_bytes = self.archive_bytes - trailer_offset
        self._archive_offsets = [self.header_bytes]
        self.content_offsets = [0]
        for entry in self.trailer.index:
            frame_bytes = FRAME_HEADER_BYTES + entry.payload_bytes
            self._archive_offsets.append(self._archive_offsets[-1] + frame_bytes)
            self.content_offsets.append(self.content_offsets[-1] + entry.content_bytes)

    @property
    def frame_count(self) -> int:
        """How many frames the archive has."""
        return len(self.trailer.index)

    def frame_header(self, number: int) -> FrameHeader:
        """Return the header of a frame, counted from 1; its payload is not read.

        Raises:
            FrameDamagedError: it is not what the index says.
        """
        self._stream.seek(self._archive_offsets[number - 1])
        start = read_up_to(self._stream, FRAME_HEADER_BYTES)
        fields = decode_frame_header(start, number)
        entry = self.trailer.index[number - 1]
        if (fields.payload_bytes, fields.content_bytes) != (
            entry.payload_bytes,
            entry.content_bytes,
        ):
            raise FrameDamagedError(number, "its lengths are not those in the index")
        return fields

    def frame(self, number: int) -> EncodedFrame:
        """Return a frame, counted from 1, its check verified.

        Raises:
            FrameDamagedError: its header or its check is wrong.
            UnsupportedVersionError: its coding is unknown.
        """
        fields = self.frame_header(number)
        self._stream.seek(self._archive_offsets[number - 1])
        data = read_up_to(self._stream, FRAME_HEADER_BYTES + fields.payload_bytes)
        start, payload = data[:FRAME_HEADER_BYTES], data[FRAME_HEADER_BYTES:]
        if not frame_is_intact(start, payload):
            raise FrameDamagedError(number, "its checksum is wrong")
        offset = self.content_offsets[number - 1]
        return frame_of(fields, payload, header=self.header, number=number, offset=offset)

    def _raise_by_reading_through(self) -> None:
        self._stream.seek(0)
        for _ in ArchiveReader(self._stream).frames():
            pass
        raise TrailerDamagedError("the trailer is damaged: its index does not fit the archive")
