"""Finds what is left of a damaged archive: the intact frames, and a record of each loss.

Frames are found by the trailer's index when that is intact and fits the archive's length; their
numbers and offsets are then known, whatever else is damaged. Without it the archive is scanned
for frames whose checksum is right. A header with one wrong byte is repaired; with more, frames
that need no model can still be had.

Source: FORMAT.md, "Reading a damaged archive".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from archiver.container.diagnosis import (
    DIAGNOSED_BYTES,
    intact_frame_bytes,
    name_damage,
    repaired_header,
    trailer_at_end,
)
from archiver.container.index import read_trailer
from archiver.container.layout import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    LARGEST_HEADER_BYTES,
    LARGEST_PAYLOAD_BYTES,
    SMALLEST_HEADER_BYTES,
    Header,
    decode_frame_header,
    decode_header,
)
from archiver.container.reader import EncodedFrame, frame_of, read_header, read_up_to
from archiver.container.trailer import TRAILER_MAGIC, IndexEntry, Trailer
from archiver.errors import (
    DamagedArchiveError,
    FrameDamagedError,
    NotAnArchiveError,
    TrailerDamagedError,
)

_SCANNED_AT_ONCE_BYTES = 1 << 16
# Bytes that may be read in search of frames, beyond 64 times the archive: a bound on the time
# that an archive full of false starts of frames can take.
_SCAN_ALLOWANCE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One part of an archive that was lost.

    Attributes:
        part: which part.
        reason: what is wrong with it, as a sentence for the user.
        frame_number: of a frame, counted from 1 (counted without the lost ones once the number
            of those is unknown).
        content_offset: where its content began in the whole content; None when unknown.
        content_bytes: how long its content was; None when unknown.
    """

    part: Literal["header", "frame", "trailer"]
    reason: str
    frame_number: int | None = None
    content_offset: int | None = None
    content_bytes: int | None = None

    @classmethod
    def of_frame(cls, frame: EncodedFrame, error: DamagedArchiveError) -> Damage:
        """Return the loss of a frame that was found, but could not be decoded."""
        return cls(
            part="frame",
            reason=str(error),
            frame_number=frame.number,
            content_offset=frame.content_offset,
            content_bytes=frame.content_bytes,
        )

    def __str__(self) -> str:
        if self.part != "frame":
            return self.reason
        length = "an unknown number of" if self.content_bytes is None else f"{self.content_bytes}"
        place = "unknown offset" if self.content_offset is None else f"offset {self.content_offset}"
        return f"{self.reason}: lost {length} bytes at {place}"


def contents_differ() -> Damage:
    """Return the loss of an archive whose frames are intact but not the ones it had."""
    reason = "the hash of the whole content is wrong: frames were exchanged"
    return Damage(part="trailer", reason=reason)


class DamagedArchive:
    """What can be had of the archive that fills a seekable stream.

    Attributes:
        header: the header, repaired if need be; None when it is lost.
        trailer: the trailer; None when it is lost or does not fit.
        archive_bytes: length of the archive.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Read header and trailer as far as they can be read.

        Raises:
            UnsupportedVersionError, LimitExceededError: the header is intact but not usable.
            NotAnArchiveError, DamagedArchiveError: there is neither a header nor a frame.
        """
        self._stream = stream
        self.archive_bytes = stream.seek(0, os.SEEK_END)
        self._scan_budget_bytes = 64 * self.archive_bytes + _SCAN_ALLOWANCE_BYTES
        self._header_damage: Damage | None = None
        self.header, self._frames_offset = self._find_header()
        self.trailer = self._find_trailer()

    def parts(self) -> Iterator[EncodedFrame | Damage]:
        """Yield intact frames (their checks verified) and losses, in the archive's order."""
        if self._header_damage is not None:
            yield self._header_damage
        if self.trailer is not None:
            yield from self._indexed_parts(self.trailer)
        else:
            yield from self._scanned_parts()

    def matches(self, content_hash: int) -> bool:
        """Return whether the content has this hash, as far as the trailer is there to tell."""
        return self.trailer is None or self.trailer.content_hash == content_hash

    def _find_header(self) -> tuple[Header | None, int]:
        self._stream.seek(0)
        try:
            header, data = read_header(self._stream)
            return header, len(data)
        except (NotAnArchiveError, DamagedArchiveError) as error:
            data = self._read(0, LARGEST_HEADER_BYTES)
            if (repaired := repaired_header(data)) is not None:
                reason = f"{error}; it was repaired"
                self._header_damage = Damage(part="header", reason=reason)
                return decode_header(repaired), len(repaired)
            self._header_damage = Damage(part="header", reason=f"the header is lost: {error}")
            first_frame = self._next_frame(0)
            if first_frame is None and read_trailer(self._stream) is None:
                raise
            return None, first_frame or 0

    def _find_trailer(self) -> Trailer | None:
        found = read_trailer(self._stream)
        if found is None:
            return None
        trailer, trailer_offset = found
        frames_offset = trailer_offset - trailer.frames_bytes
        if self.header is None:
            if not SMALLEST_HEADER_BYTES <= frames_offset <= LARGEST_HEADER_BYTES:
                return None
            self._frames_offset = frames_offset
        return trailer if frames_offset == self._frames_offset else None

    # --- by the index ---

    def _indexed_parts(self, trailer: Trailer) -> Iterator[EncodedFrame | Damage]:
        archive_offset, content_offset = self._frames_offset, 0
        for number, entry in enumerate(trailer.index, 1):
            try:
                yield self._indexed_frame(entry, number, archive_offset, content_offset)
            except FrameDamagedError as error:
                yield Damage(
                    part="frame",
                    reason=str(error),
                    frame_number=number,
                    content_offset=content_offset,
                    content_bytes=entry.content_bytes,
                )
            archive_offset += FRAME_HEADER_BYTES + entry.payload_bytes
            content_offset += entry.content_bytes

    def _indexed_frame(
        self, entry: IndexEntry, number: int, archive_offset: int, content_offset: int
    ) -> EncodedFrame:
        data = self._read(archive_offset, FRAME_HEADER_BYTES + entry.payload_bytes)
        if intact_frame_bytes(data) != len(data):
            raise FrameDamagedError(number, "its checksum is wrong")
        frame = self._frame(data, number, content_offset)
        if frame.content_bytes != entry.content_bytes:
            raise FrameDamagedError(number, "its lengths are not those in the index")
        return frame

    def _frame(self, data: bytes, number: int, content_offset: int | None) -> EncodedFrame:
        fields = decode_frame_header(data[:FRAME_HEADER_BYTES], number)
        payload = data[FRAME_HEADER_BYTES:]
        return frame_of(fields, payload, header=self.header, number=number, offset=content_offset)

    # --- by scanning ---

    def _scanned_parts(self) -> Iterator[EncodedFrame | Damage]:
        archive_offset, number = self._frames_offset, 1
        content_offset: int | None = 0
        while True:
            data = self._frame_data(archive_offset)
            if data is None:
                following = self._frame_after_damage(archive_offset)
                if following is None:
                    break
                yield Damage(
                    part="frame",
                    reason=str(FrameDamagedError(number, "it is damaged or missing"))
                    + f" (bytes {archive_offset} to {following} of the archive)",
                    frame_number=number,
                    content_offset=content_offset,
                )
                content_offset = None
                archive_offset = following
            else:
                content_bytes = decode_frame_header(data[:FRAME_HEADER_BYTES], number).content_bytes
                try:
                    yield self._frame(data, number, content_offset)
                except FrameDamagedError as error:
                    yield Damage(
                        part="frame",
                        reason=str(error),
                        frame_number=number,
                        content_offset=content_offset,
                        content_bytes=content_bytes,
                    )
                archive_offset += len(data)
                if content_offset is not None:
                    content_offset += content_bytes
            number += 1
        yield self._damage_at_end(archive_offset, number, content_offset)

    def _frame_data(self, archive_offset: int) -> bytes | None:
        start = self._read(archive_offset, FRAME_HEADER_BYTES)
        if len(start) < FRAME_HEADER_BYTES or self._scan_budget_bytes < 0:
            return None
        try:
            payload_bytes = decode_frame_header(start, 1).payload_bytes
        except FrameDamagedError:
            return None
        data = start + self._read(archive_offset + FRAME_HEADER_BYTES, payload_bytes)
        self._scan_budget_bytes -= len(data)
        return data if intact_frame_bytes(data) == len(data) else None

    def _frame_after_damage(self, archive_offset: int) -> int | None:
        # Trust the damaged frame's length first, where an intact frame follows it: what looks
        # like a frame inside a payload (an archive within the archive) is then passed over.
        start = self._read(archive_offset, FRAME_HEADER_BYTES)
        if len(start) == FRAME_HEADER_BYTES:
            payload_bytes = int.from_bytes(start[9:13], "little")
            following = archive_offset + FRAME_HEADER_BYTES + payload_bytes
            if payload_bytes <= LARGEST_PAYLOAD_BYTES and self._frame_data(following) is not None:
                return following
        return self._next_frame(archive_offset + 1)

    def _next_frame(self, archive_offset: int) -> int | None:
        overlap = len(FRAME_MAGIC) - 1
        while archive_offset < self.archive_bytes:
            data = self._read(archive_offset, _SCANNED_AT_ONCE_BYTES)
            self._scan_budget_bytes -= len(data)
            found = data.find(FRAME_MAGIC)
            while found >= 0:
                if self._frame_data(archive_offset + found) is not None:
                    return archive_offset + found
                found = data.find(FRAME_MAGIC, found + 1)
            archive_offset += max(len(data) - overlap, 1)
        return None

    def _damage_at_end(
        self, archive_offset: int, number: int, content_offset: int | None
    ) -> Damage:
        # No frame is found from here on, and if there is a trailer it does not fit the archive.
        unit = self._read(archive_offset, DIAGNOSED_BYTES)
        at_end = archive_offset + len(unit) == self.archive_bytes
        trailer = trailer_at_end(unit) if at_end and unit.startswith(TRAILER_MAGIC) else None
        if trailer is not None:
            reason = f"the index lists {len(trailer.index)} frames; they are not the ones found"
            return Damage(part="trailer", reason=reason)
        error = name_damage(
            unit, at_end=at_end, number=number, trailer_bytes=-1, reason="it is lost, with the rest"
        )
        if isinstance(error, TrailerDamagedError) or not unit or unit.startswith(TRAILER_MAGIC):
            return Damage(part="trailer", reason=str(error))
        return Damage(
            part="frame", reason=str(error), frame_number=number, content_offset=content_offset
        )

    def _read(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        return read_up_to(self._stream, length)
