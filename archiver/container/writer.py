"""Writes an archive to a stream, front to back, without seeking.

Source: FORMAT.md.
"""

from __future__ import annotations

from typing import Protocol

import xxhash

from archiver.container.layout import FrameCoding, Header, encode_frame_header, encode_header
from archiver.container.trailer import LARGEST_FRAME_COUNT, encode_index_entry, encode_trailer
from archiver.errors import LimitExceededError


class ByteSink(Protocol):
    """Something that takes all the bytes it is given."""

    def write(self, data: bytes, /) -> int:
        """Write all of `data`."""


class ArchiveWriter:
    """Writes the header when made, then frames, then the trailer.

    Memory holds the index only: at most eight bytes a frame.

    Attributes:
        archive_bytes: how much has been written so far.
        content_bytes: length of the content of all frames so far.
        payload_bytes: length of the payloads of all frames so far.
        frame_count: how many frames have been written.
    """

    def __init__(self, stream: ByteSink, header: Header) -> None:
        self._stream = stream
        self._index = bytearray()
        self._content_hash = xxhash.xxh3_64()
        self.archive_bytes = 0
        self.content_bytes = 0
        self.payload_bytes = 0
        self.frame_count = 0
        self._write(encode_header(header))

    def add_frame(self, coding: FrameCoding, content: bytes, payload: bytes) -> None:
        """Write one frame; `payload` is what `coding` made of `content`.

        Raises:
            LimitExceededError: the archive holds as many frames as the format allows.
        """
        if self.frame_count == LARGEST_FRAME_COUNT:
            raise LimitExceededError(
                f"an archive holds at most {LARGEST_FRAME_COUNT} frames: use larger frames"
            )
        self._write(encode_frame_header(coding, content, payload))
        self._write(payload)
        self._index += encode_index_entry(len(payload), len(content))
        self._content_hash.update(content)
        self.frame_count += 1
        self.content_bytes += len(content)
        self.payload_bytes += len(payload)

    def finish(self) -> None:
        """Write the trailer; nothing may be written after it."""
        content_hash = self._content_hash.intdigest()
        self._write(encode_trailer(self.frame_count, self._index, content_hash))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.archive_bytes += len(data)
