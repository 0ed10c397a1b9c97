"""What the library's functions return: sizes, losses, and what an archive says of itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archiver.container import (
    Damage,
    IndexedArchive,
    MachineSection,
    MixerSection,
    PredictorSection,
)
from archiver.container.layout import FORMAT_VERSION, coding_of

if TYPE_CHECKING:
    from archiver.steering.sections import SteeringInfo


def bits_per_byte(archive_bytes: int, content_bytes: int) -> float:
    """Return 8 x archive bytes / content bytes; 0 for an empty content."""
    return 8 * archive_bytes / content_bytes if content_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSummary:
    """What a compression came to.

    Attributes:
        content_bytes: length of the input.
        archive_bytes: length of the archive.
        payload_bytes: length of all payloads; the rest of the archive is the container.
        frames: how many frames were coded "raw", by "zstd" and by the "predictor".
    """

    content_bytes: int
    archive_bytes: int
    payload_bytes: int
    frames: dict[str, int]

    @property
    def bpb(self) -> float:
        """Bits of the archive for each byte of the content; 0 for an empty one."""
        return bits_per_byte(self.archive_bytes, self.content_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSummary:
    """What a decompression came to.

    Attributes:
        content_bytes: length of what was decoded.
        archive_bytes: length of the archive.
        frame_count: how many frames were decoded.
        damages: what was lost; empty unless `keep_going` was asked for.
    """

    content_bytes: int
    archive_bytes: int
    frame_count: int
    damages: tuple[Damage, ...] = ()

    @property
    def bpb(self) -> float:
        """Bits of the archive for each byte of the content; 0 for an empty one."""
        return bits_per_byte(self.archive_bytes, self.content_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInfo:
    """Where one frame's content lies, and how it is coded."""

    number: int
    coding: str
    content_offset: int
    content_bytes: int
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """What an archive says of itself, without decoding.

    Attributes:
        format_version: of the container.
        archive_bytes: length of the archive.
        content_bytes: length of the content.
        header_bytes: length of the header, with all that the decoder must know.
        payload_bytes: length of all payloads.
        trailer_bytes: length of the trailer.
        content_hash: XXH3-64 of the content.
        predictor: model package and settings; None when no frame can need them.
        mixer: version and parameters; None when no frame can need them.
        steering: what stands before the text; None for nothing.
        machine: where alone a float engine's archive can be decoded; None for everywhere.
        frames: every frame, in order.
    """

    format_version: int
    archive_bytes: int
    content_bytes: int
    header_bytes: int
    payload_bytes: int
    trailer_bytes: int
    content_hash: int
    predictor: PredictorSection | None
    mixer: MixerSection | None
    steering: SteeringInfo | None
    machine: MachineSection | None
    frames: tuple[FrameInfo, ...]

    @property
    def bpb(self) -> float:
        """Bits of the archive for each byte of the content; 0 for an empty one."""
        return bits_per_byte(self.archive_bytes, self.content_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON has; bytes and hashes in hexadecimal."""
        fields: dict[str, Any] = _jsonable(dataclasses.asdict(self))
        fields["content_hash"] = f"{self.content_hash:016x}"
        return fields | {"bpb": self.bpb}


def describe(archive: IndexedArchive) -> ArchiveInfo:
    """Return what an open archive says of itself; only the frames' headers are read.

    Raises:
        FrameDamagedError: a frame's header is not what the index says.
        UnsupportedVersionError: a frame's coding is unknown.
        HeaderDamagedError, LimitExceededError: the steering section is malformed.
    """
    from archiver.steering.sections import describe_section

    frames = tuple(_frame_info(archive, number) for number in range(1, archive.frame_count + 1))
    steering = archive.header.steering
    return ArchiveInfo(
        format_version=FORMAT_VERSION,
        archive_bytes=archive.archive_bytes,
        content_bytes=archive.trailer.content_bytes,
        header_bytes=archive.header_bytes,
        payload_bytes=sum(frame.payload_bytes for frame in frames),
        trailer_bytes=archive.trailer_bytes,
        content_hash=archive.trailer.content_hash,
        predictor=archive.header.predictor,
        mixer=archive.header.mixer,
        steering=describe_section(steering) if steering else None,
        machine=archive.header.machine,
        frames=frames,
    )


def _frame_info(archive: IndexedArchive, number: int) -> FrameInfo:
    fields = archive.frame_header(number)
    return FrameInfo(
        number=number,
        coding=coding_of(fields, number).name.lower(),
        content_offset=archive.content_offsets[number - 1],
        content_bytes=fields.content_bytes,
        payload_bytes=fields.payload_bytes,
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value
