"""What the bytes of an archive's header and frame headers mean.

    Archive := Header Frame* Trailer            (the trailer is in `trailer`)

Every function here is pure: bytes to records and back. Reading from streams is in `reader`,
writing in `writer`. FORMAT.md is the normative text; a test compares its tables with this
module.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.errors import (
    FrameDamagedError,
    HeaderDamagedError,
    LimitExceededError,
    UnsupportedVersionError,
)

FORMAT_VERSION = 1
HEADER_MAGIC = b"\x89LMZ\r\n"
FRAME_MAGIC = b"LZFR"
MAGIC_BYTES = len(FRAME_MAGIC)  # of the trailer too; the header's magic has six

MUST_UNDERSTAND_FLAGS = 0x0F
FIRST_SKIPPABLE_TAG = 128

HEADER_START = struct.Struct("<6sBBH")  # magic, format_version, flags, body_bytes
CHECK = struct.Struct("<I")
FRAME_HEADER = struct.Struct("<4sBIIQI")

SMALLEST_HEADER_BYTES = HEADER_START.size + CHECK.size
LARGEST_BODY_BYTES = 0xFFFF
LARGEST_HEADER_BYTES = SMALLEST_HEADER_BYTES + LARGEST_BODY_BYTES
FRAME_HEADER_BYTES = FRAME_HEADER.size
FRAME_CHECKED_BYTES = FRAME_HEADER_BYTES - CHECK.size  # of the header, before the payload

FINGERPRINT_BYTES = 8
LARGEST_MIXER_BYTES = 256
LARGEST_MACHINE_BYTES = 4096
FIRST_FLOAT_ENGINE = 128
LARGEST_WINDOW_TOKENS = 12288
LARGEST_SINK_TOKENS = 4095
LARGEST_STREAMS = 1024
LARGEST_STREAM_TOKENS = 65536
LARGEST_CONTENT_BYTES = 1 << 24
LARGEST_EXPANSION_BYTES = 1024
LARGEST_STEERING_VECTORS = 256
LARGEST_STEERING_BYTES = 1 << 20
LARGEST_PAYLOAD_BYTES = LARGEST_CONTENT_BYTES + LARGEST_EXPANSION_BYTES


class SectionTag(IntEnum):
    """Which section of the header's body."""

    PREDICTOR = 1
    MIXER = 2
    STEERING = 3
    MACHINE = 4


class SteeringKind(IntEnum):
    """Where the predictor's steering vectors come from."""

    BUILT_IN = 1
    TOKENS = 2
    RANDOM = 3
    EMBEDDED = 4
    FILE = 5


class FrameCoding(IntEnum):
    """How a frame's payload is turned into its content."""

    RAW = 0
    ZSTD = 1
    PREDICTOR = 2


def hash64(data: bytes | bytearray | memoryview) -> int:
    """Return the XXH3-64 (seed 0) of `data`."""
    return xxhash.xxh3_64_intdigest(data)


def check32(*parts: bytes | bytearray | memoryview) -> int:
    """Return the low 32 bits of the XXH3-64 (seed 0) of the concatenated `parts`."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest() & 0xFFFF_FFFF


# --- header ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSection:
    """Which predictor made the archive, and the settings that change its integers.

    Attributes:
        engine_version: version of the engine's arithmetic, 0 to 255; from FIRST_FLOAT_ENGINE on
            the archive is tied to the machine that its section MACHINE describes.
        package_fingerprint: first 8 bytes of the model package's SHA-256, or of the model's files.
        window_tokens: tokens that a query sees, 1 to 2^20.
        local_window_tokens: those that one of a local head sees, 1 to window_tokens.
        sink_tokens: attention sinks before the window, 0 to 2^12.
    """

    engine_version: int
    package_fingerprint: bytes
    window_tokens: int
    local_window_tokens: int
    sink_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.engine_version <= 0xFF:
            raise LimitExceededError(f"engine_version {self.engine_version} is not in 0 to 255")
        if len(self.package_fingerprint) != FINGERPRINT_BYTES:
            raise LimitExceededError(f"package_fingerprint must have {FINGERPRINT_BYTES} bytes")
        if not 1 <= self.window_tokens <= LARGEST_WINDOW_TOKENS:
            raise LimitExceededError(
                f"window_tokens {self.window_tokens} is not in 1 to {LARGEST_WINDOW_TOKENS}"
            )
        if not 1 <= self.local_window_tokens <= self.window_tokens:
            raise LimitExceededError(
                f"local_window_tokens {self.local_window_tokens} is not in 1 to "
                f"{self.window_tokens}"
            )
        if not 0 <= self.sink_tokens <= LARGEST_SINK_TOKENS:
            raise LimitExceededError(
                f"sink_tokens {self.sink_tokens} is not in 0 to {LARGEST_SINK_TOKENS}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerSection:
    """Which mixer made the archive, and its parameters (at most 256 bytes, opaque here)."""

    version: int
    parameters: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.version <= 0xFF:
            raise LimitExceededError(f"mixer version {self.version} is not in 0 to 255")
        if len(self.parameters) > LARGEST_MIXER_BYTES:
            raise LimitExceededError(
                f"{len(self.parameters)} bytes of mixer parameters are more than "
                f"{LARGEST_MIXER_BYTES}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringSection:
    """Which vectors stand before every stream, and what names or holds them (by kind)."""

    kind: SteeringKind
    fields: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSection:
    """What a float engine's integers depend on beside the model: names and values, in order."""

    facts: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        size = len(_encode_machine(self))
        if size > LARGEST_MACHINE_BYTES:
            raise LimitExceededError(
                f"{size} bytes about the machine are more than {LARGEST_MACHINE_BYTES}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a decoder must know before the first frame; empty for frames that need no model."""

    predictor: PredictorSection | None = None
    mixer: MixerSection | None = None
    steering: SteeringSection | None = None
    machine: MachineSection | None = None


def encode_header(header: Header) -> bytes:
    """Return the header's bytes, its check included.

    Raises:
        LimitExceededError: the steering vectors in it are too many bytes.
    """
    body = b""
    if header.predictor is not None:
        body += _section(SectionTag.PREDICTOR, _encode_predictor(header.predictor))
    if header.mixer is not None:
        fields = bytes([header.mixer.version]) + header.mixer.parameters
        body += _section(SectionTag.MIXER, fields)
    if header.steering is not None:
        fields = bytes([header.steering.kind]) + header.steering.fields
        body += _section(SectionTag.STEERING, fields)
    if header.machine is not None:
        body += _section(SectionTag.MACHINE, _encode_machine(header.machine))
    if len(body) > LARGEST_BODY_BYTES:
        raise LimitExceededError(f"a header of {len(body)} bytes is too long")
    start = HEADER_START.pack(HEADER_MAGIC, FORMAT_VERSION, 0, len(body)) + body
    return start + CHECK.pack(check32(start))


def header_bytes(start: bytes) -> int:
    """Return how long the header is that begins with `start` (HEADER_START.size bytes)."""
    body_bytes: int = HEADER_START.unpack(start)[3]
    return SMALLEST_HEADER_BYTES + body_bytes


def header_is_intact(data: bytes) -> bool:
    """Return whether `data`, a whole header, has the check that its bytes call for."""
    check: int = CHECK.unpack(data[-CHECK.size :])[0]
    return check32(data[: -CHECK.size]) == check


def decode_header(data: bytes) -> Header:
    """Return what a header says; `data` is the whole header and begins with the magic.

    Raises:
        HeaderDamagedError: the check or the form of the body is wrong.
        UnsupportedVersionError: a newer version, a flag or a section that must be understood.
        LimitExceededError: a value is beyond the format's limits.
    """
    if not header_is_intact(data):
        raise HeaderDamagedError("the header is damaged: its checksum is wrong")
    _, version, flags, _ = HEADER_START.unpack_from(data)
    if version != FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"the archive has format version {version}; this llmzip reads version {FORMAT_VERSION}"
        )
    if flags & MUST_UNDERSTAND_FLAGS:
        raise UnsupportedVersionError(
            f"the archive needs a feature that this llmzip lacks (flags 0x{flags:02x})"
        )
    try:
        return _decode_body(data[HEADER_START.size : -CHECK.size])
    except MalformedError as error:
        raise HeaderDamagedError(f"the header is damaged: {error}") from error


def _section(tag: SectionTag, fields: bytes) -> bytes:
    return bytes([tag]) + encode_varint(len(fields)) + fields


def _decode_body(body: bytes) -> Header:
    predictor: PredictorSection | None = None
    mixer: MixerSection | None = None
    steering: SteeringSection | None = None
    machine: MachineSection | None = None
    offset, previous_tag = 0, -1
    while offset < len(body):
        tag = body[offset]
        if tag <= previous_tag:
            raise MalformedError("its sections are not in ascending order")
        length, start = decode_varint(body, offset + 1)
        offset, previous_tag = start + length, tag
        if offset > len(body):
            raise MalformedError(f"section {tag} runs over the end")
        if tag == SectionTag.PREDICTOR:
            predictor = _decode_predictor(body[start:offset])
        elif tag == SectionTag.MIXER:
            mixer = _decode_mixer(body[start:offset])
        elif tag == SectionTag.STEERING:
            steering = _decode_steering(body[start:offset])
        elif tag == SectionTag.MACHINE:
            machine = _decode_machine(body[start:offset])
        elif tag < FIRST_SKIPPABLE_TAG:
            raise UnsupportedVersionError(
                f"the archive needs a feature that this llmzip lacks (header section {tag})"
            )
    tied = predictor is not None and predictor.engine_version >= FIRST_FLOAT_ENGINE
    if tied != (machine is not None):
        raise MalformedError("a float engine and a machine section belong together")
    if tied and steering is not None:
        raise MalformedError("a float engine has no steering section")
    return Header(predictor=predictor, mixer=mixer, steering=steering, machine=machine)


def _encode_predictor(section: PredictorSection) -> bytes:
    return (
        bytes([section.engine_version])
        + section.package_fingerprint
        + encode_varint(section.window_tokens)
        + encode_varint(section.local_window_tokens)
        + encode_varint(section.sink_tokens)
    )


def _decode_predictor(fields: bytes) -> PredictorSection:
    window_tokens, offset = decode_varint(fields, 1 + FINGERPRINT_BYTES)
    local_window_tokens, offset = decode_varint(fields, offset)
    sink_tokens, offset = decode_varint(fields, offset)
    if offset != len(fields):
        raise MalformedError("the predictor section has the wrong length")
    return PredictorSection(
        engine_version=fields[0],
        package_fingerprint=fields[1 : 1 + FINGERPRINT_BYTES],
        window_tokens=window_tokens,
        local_window_tokens=local_window_tokens,
        sink_tokens=sink_tokens,
    )


def _decode_mixer(fields: bytes) -> MixerSection:
    if not fields:
        raise MalformedError("the mixer section is empty")
    return MixerSection(version=fields[0], parameters=fields[1:])


def _decode_steering(fields: bytes) -> SteeringSection:
    if not fields:
        raise MalformedError("the steering section is empty")
    try:
        kind = SteeringKind(fields[0])
    except ValueError:
        raise UnsupportedVersionError(
            f"the archive needs steering vectors of kind {fields[0]}, which this llmzip lacks"
        ) from None
    return SteeringSection(kind=kind, fields=fields[1:])


def _encode_machine(section: MachineSection) -> bytes:
    encoded = [text.encode() for fact in section.facts for text in fact]
    return b"".join(encode_varint(len(text)) + text for text in encoded)


def _decode_machine(fields: bytes) -> MachineSection:
    if len(fields) > LARGEST_MACHINE_BYTES:
        raise LimitExceededError(
            f"{len(fields)} bytes about the machine are more than {LARGEST_MACHINE_BYTES}"
        )
    texts, offset = [], 0
    while offset < len(fields):
        length, start = decode_varint(fields, offset)
        offset = start + length
        if offset > len(fields):
            raise MalformedError("the machine section is cut off")
        try:
            texts.append(fields[start:offset].decode())
        except UnicodeDecodeError as error:
            raise MalformedError("the machine section is not UTF-8") from error
    if not texts or len(texts) % 2:
        raise MalformedError("the machine section is not of names and values")
    return MachineSection(facts=tuple(zip(texts[::2], texts[1::2], strict=True)))


# --- frame ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """The fixed fields before a frame's payload.

    Attributes:
        coding: the coding byte; one that `FrameCoding` lacks needs a newer llmzip.
        content_bytes: length of the frame's content, 1 to 2^24.
        payload_bytes: length of the payload, at most content_bytes + 1024.
        content_hash: XXH3-64 of the content.
        check: XXH3-32 of the header's other fields and the payload.
    """

    coding: int
    content_bytes: int
    payload_bytes: int
    content_hash: int
    check: int


def encode_frame_header(coding: FrameCoding, content: bytes, payload: bytes) -> bytes:
    """Return the 25 bytes that go before `payload`."""
    assert 1 <= len(content) <= LARGEST_CONTENT_BYTES
    assert len(payload) <= len(content) + LARGEST_EXPANSION_BYTES
    fields = (FRAME_MAGIC, coding, len(content), len(payload), hash64(content))
    checked = FRAME_HEADER.pack(*fields, 0)[:FRAME_CHECKED_BYTES]
    return checked + CHECK.pack(check32(checked, payload))


def decode_frame_header(data: bytes, number: int) -> FrameHeader:
    """Return the fields of the frame header in `data` (25 bytes), lengths within the limits.

    Raises:
        FrameDamagedError: the magic is wrong or a length is beyond its limit.
    """
    magic, coding, content_bytes, payload_bytes, content_hash, check = FRAME_HEADER.unpack(data)
    if magic != FRAME_MAGIC:
        raise FrameDamagedError(number, "no frame begins where it should")
    if not 1 <= content_bytes <= LARGEST_CONTENT_BYTES:
        raise FrameDamagedError(number, f"its content length {content_bytes} is out of limits")
    if payload_bytes > content_bytes + LARGEST_EXPANSION_BYTES:
        raise FrameDamagedError(number, f"its payload length {payload_bytes} is out of limits")
    if coding == FrameCoding.RAW and payload_bytes != content_bytes:
        raise FrameDamagedError(number, "it is stored raw but its two lengths differ")
    return FrameHeader(
        coding=coding,
        content_bytes=content_bytes,
        payload_bytes=payload_bytes,
        content_hash=content_hash,
        check=check,
    )


def coding_of(fields: FrameHeader, number: int) -> FrameCoding:
    """Return how frame `number` is coded.

    Raises:
        UnsupportedVersionError: the coding is unknown.
    """
    try:
        return FrameCoding(fields.coding)
    except ValueError:
        raise UnsupportedVersionError(
            f"frame {number} has coding {fields.coding}, which needs a newer llmzip"
        ) from None


def frame_is_intact(start: bytes, payload: bytes) -> bool:
    """Return whether a frame's 25 bytes `start` hold the check that they and `payload` have."""
    expected: int = FRAME_HEADER.unpack(start)[5]
    return check32(start[:FRAME_CHECKED_BYTES], payload) == expected
