"""An archive as a read-only file of its content, that can be sought in."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from archiver.container import IndexedArchive
from archiver.files import SourceLike, open_source, seekable
from archiver.frames import FrameDecoder, ModelProgress


class ContentFile(io.RawIOBase):
    """Reads the decoded content; only the frames that are read get decoded, one is kept."""

    def __init__(
        self,
        source: SourceLike,
        threads: int | None,
        steering: Path | None,
        model_progress: ModelProgress | None,
        device: str,
    ) -> None:
        super().__init__()
        self._resources = ExitStack()
        self._position = 0
        self._frame_number = 0  # of the frame in self._content; 0 for none
        self._content = b""
        with ExitStack() as stack:
            opened = stack.enter_context(open_source(source))
            stream: BinaryIO = stack.enter_context(seekable(opened.stream))
            self._archive = IndexedArchive(stream)
            self._decoder = FrameDecoder(
                self._archive.header, threads, model_progress, steering, device
            )
            self._resources = stack.pop_all()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the content, in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position in the content; return it."""
        self._check_open()
        base = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self._archive.content_offsets[-1],
        }
        if whence not in base:
            raise ValueError(f"whence {whence} is none of 0, 1, 2")
        if base[whence] + offset < 0:
            raise ValueError("a position before the content's start")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill `buffer` up to the end of a frame; return how many bytes, 0 at the end.

        Raises:
            ArchiverError: the frame at the position is damaged, or its model cannot be had.
        """
        self._check_open()
        offsets = self._archive.content_offsets
        if self._position >= offsets[-1] or len(buffer) == 0:
            return 0
        number = bisect_right(offsets, self._position)
        if number != self._frame_number:
            self._content = self._decoder.decode(self._archive.frame(number))
            self._frame_number = number
        start = self._position - offsets[number - 1]
        part = self._content[start : start + len(buffer)]
        memoryview(buffer)[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        """Close the archive's file, if it was opened here."""
        self._resources.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")
