"""A small archive of every kind of part, and where its parts lie."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
import zstandard

from archiver.container import ArchiveWriter, FrameCoding
from archiver.options import CompressOptions
from tests.support import toy_codec

CONTENTS = (
    b"the first frame is coded by the predictor, the predictor",
    b"the second one is stored as it is",
    b"zstd zstd zstd zstd zstd zstd zstd zstd zstd zstd has the third",
    bytes(range(256)),
)


@dataclass(frozen=True)
class Sample:
    data: bytes
    contents: tuple[bytes, ...]
    frame_offsets: tuple[int, ...]  # of each frame, then of the trailer

    def part_at(self, offset: int) -> int:
        """0 for the header, n for frame n, one more than frames for the trailer."""
        return sum(offset >= start for start in self.frame_offsets)


@pytest.fixture(scope="session")
def sample() -> Sample:
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, toy_codec.header_for(CompressOptions()))
    payloads = [
        (FrameCoding.PREDICTOR, toy_codec.ToyCodec().encode(CONTENTS[0])),
        (FrameCoding.RAW, CONTENTS[1]),
        (FrameCoding.ZSTD, zstandard.ZstdCompressor().compress(CONTENTS[2])),
        (FrameCoding.RAW, CONTENTS[3]),
    ]
    offsets = [writer.archive_bytes]
    for (coding, payload), content in zip(payloads, CONTENTS, strict=True):
        writer.add_frame(coding, content, payload)
        offsets.append(writer.archive_bytes)
    writer.finish()
    return Sample(stream.getvalue(), CONTENTS, tuple(offsets))
