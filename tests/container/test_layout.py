"""Records to bytes and back, and what is refused on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.container import layout, trailer
from archiver.container.layout import Header, MachineSection, MixerSection, PredictorSection
from archiver.container.varint import MalformedError, VarintError, decode_varint, encode_varint
from archiver.errors import (
    ArchiverError,
    FrameDamagedError,
    HeaderDamagedError,
    LimitExceededError,
    TrailerDamagedError,
    UnsupportedVersionError,
)

windows = st.integers(1, layout.LARGEST_WINDOW_TOKENS)
predictors = st.tuples(windows, windows).flatmap(
    lambda pair: st.builds(
        PredictorSection,
        engine_version=st.integers(0, layout.FIRST_FLOAT_ENGINE - 1),
        package_fingerprint=st.binary(min_size=8, max_size=8),
        window_tokens=st.just(max(pair)),
        local_window_tokens=st.just(min(pair)),
        sink_tokens=st.integers(0, layout.LARGEST_SINK_TOKENS),
    )
)
mixers = st.builds(MixerSection, version=st.integers(0, 255), parameters=st.binary(max_size=256))
machines = st.builds(
    MachineSection,
    facts=st.lists(
        st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=8
    ).map(tuple),
)
tied_headers = st.builds(
    Header,
    predictor=st.builds(
        dataclasses.replace, predictors, engine_version=st.integers(layout.FIRST_FLOAT_ENGINE, 255)
    ),
    mixer=mixers,
    machine=machines,
)
headers = tied_headers | st.builds(
    Header, predictor=st.none() | predictors, mixer=st.none() | mixers
)
lengths = st.integers(1, layout.LARGEST_CONTENT_BYTES).flatmap(
    lambda content: st.tuples(
        st.integers(0, content + layout.LARGEST_EXPANSION_BYTES), st.just(content)
    )
)


EXACT = b"\x01\x0c" + b"\x02" + bytes(8) + b"\x01\x01\x00"
TIED = b"\x01\x0c" + b"\x80" + bytes(8) + b"\x01\x01\x00"
MACHINE = b"\x04\x04\x01a\x01b"


def header_with(body: bytes, *, version: int = 1, flags: int = 0) -> bytes:
    start = layout.HEADER_START.pack(layout.HEADER_MAGIC, version, flags, len(body)) + body
    return start + layout.CHECK.pack(layout.check32(start))


@given(st.integers(0, 2**64 - 1))
def test_varints_round_trip_in_their_only_form(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(b"\xff" + encoded, 1, bits=64) == (value, 1 + len(encoded))
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


@given(st.binary(max_size=12), st.sampled_from([32, 64]))
def test_what_decodes_as_a_varint_encodes_to_the_same_bytes(data: bytes, bits: int) -> None:
    try:
        value, end = decode_varint(data, 0, bits=bits)
    except VarintError:
        return
    assert value < 1 << bits
    assert encode_varint(value) == data[:end]


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x00", b"\xff\xff\xff\xff\x10", b"\xff\xff\xff\xff\xff\x01"]
)
def test_malformed_varints_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_varint(data, 0)


@given(headers)
def test_headers_round_trip(header: Header) -> None:
    data = layout.encode_header(header)
    assert layout.decode_header(data) == header
    assert layout.header_bytes(data[: layout.HEADER_START.size]) == len(data)


def test_the_smallest_header_has_14_bytes() -> None:
    assert len(layout.encode_header(Header())) == 14 == layout.SMALLEST_HEADER_BYTES


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 255))
def test_any_body_is_read_or_refused_by_name(body: bytes, version: int, flags: int) -> None:
    try:
        header = layout.decode_header(header_with(body, version=version, flags=flags))
    except ArchiverError:
        return
    assert version == 1
    assert not flags & layout.MUST_UNDERSTAND_FLAGS
    assert isinstance(header, Header)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (header_with(b"", version=2), UnsupportedVersionError, "format version 2"),
        (header_with(b"", version=0), UnsupportedVersionError, "format version 0"),
        (header_with(b"", flags=1), UnsupportedVersionError, "flags 0x01"),
        (header_with(b"\x05\x00"), UnsupportedVersionError, "section 5"),
        (header_with(b"\x04\x00"), HeaderDamagedError, "not of names and values"),
        (header_with(b"\x04\x02\x01a"), HeaderDamagedError, "not of names and values"),
        (header_with(b"\x04\x03\x03ab"), HeaderDamagedError, "machine section is cut off"),
        (header_with(b"\x04\x02\x01\xff"), HeaderDamagedError, "not UTF-8"),
        (header_with(b"\x04\x81\x20" + bytes(4097)), LimitExceededError, "4097 bytes about"),
        (header_with(b"\x04\x03\x01a\x00"), HeaderDamagedError, "belong together"),
        (header_with(EXACT + MACHINE), HeaderDamagedError, "belong together"),
        (header_with(TIED), HeaderDamagedError, "belong together"),
        (
            header_with(TIED + b"\x03\x01\x01" + MACHINE),
            HeaderDamagedError,
            "float engine has no steering",
        ),
        (header_with(b"\x03\x00"), HeaderDamagedError, "steering section is empty"),
        (header_with(b"\x03\x01\x00"), UnsupportedVersionError, "vectors of kind 0"),
        (header_with(b"\x03\x01\x06"), UnsupportedVersionError, "vectors of kind 6"),
        (header_with(b"\x02\x01\x00\x01\x00"), HeaderDamagedError, "ascending"),
        (header_with(b"\x02\x01\x00\x02\x01\x00"), HeaderDamagedError, "ascending"),
        (header_with(b"\x02\x05\x00"), HeaderDamagedError, "over the end"),
        (header_with(b"\x02"), HeaderDamagedError, "cut off"),
        (header_with(b"\x02\x00"), HeaderDamagedError, "mixer section is empty"),
        (header_with(b"\x01\x0d" + bytes(9) + b"\x01\x01\x00\x00"), HeaderDamagedError, "length"),
        (header_with(b"\x01\x0c" + bytes(12)), LimitExceededError, "window_tokens 0"),
        (
            header_with(b"\x01\x0c" + bytes(9) + b"\x10\x11\x04"),
            LimitExceededError,
            "local_window_tokens 17 is not in 1 to 16",
        ),
        (header_with(b"\x02\x82\x02" + bytes(258)), LimitExceededError, "257 bytes"),
        (header_with(b"")[:-1] + b"\x00", HeaderDamagedError, "checksum"),
    ],
)
def test_headers_are_refused_by_name(data: bytes, error: type[ArchiverError], message: str) -> None:
    with pytest.raises(error, match=message):
        layout.decode_header(data)


def test_a_header_holds_no_more_than_its_length_can_say() -> None:
    def header(count: int) -> layout.Header:
        section = layout.SteeringSection(kind=layout.SteeringKind.EMBEDDED, fields=bytes(count))
        return Header(steering=section)

    most = header(0xFFFF - 5)  # tag, three bytes of length, kind
    assert layout.decode_header(layout.encode_header(most)) == most
    with pytest.raises(LimitExceededError, match="header of 65536 bytes"):
        layout.encode_header(header(0xFFFF - 4))


def test_a_machine_has_no_more_facts_than_fit() -> None:
    most = MachineSection(facts=(("a", "b" * 4092),))
    header = Header(predictor=layout.decode_header(header_with(EXACT)).predictor)
    assert header.predictor is not None
    tied = dataclasses.replace(header.predictor, engine_version=layout.FIRST_FLOAT_ENGINE)
    header = Header(predictor=tied, machine=most)
    assert layout.decode_header(layout.encode_header(header)) == header
    with pytest.raises(LimitExceededError, match="4097 bytes about the machine"):
        MachineSection(facts=(("a", "b" * 4093),))


def test_sections_that_may_be_skipped_are_skipped() -> None:
    header = Header(mixer=MixerSection(version=9, parameters=b"x"))
    body = layout.encode_header(header)[10:-4] + b"\x80\x03abc" + b"\xff\x00"
    assert layout.decode_header(header_with(body, flags=0xF0)) == header


@given(
    st.sampled_from(layout.FrameCoding), st.binary(min_size=1, max_size=300), st.binary(max_size=90)
)
def test_frame_headers_round_trip(
    coding: layout.FrameCoding, content: bytes, payload: bytes
) -> None:
    payload = content if coding is layout.FrameCoding.RAW else payload
    start = layout.encode_frame_header(coding, content, payload)
    fields = layout.decode_frame_header(start, 1)
    assert len(start) == 25
    assert (fields.coding, fields.content_bytes) == (coding, len(content))
    assert (fields.payload_bytes, fields.content_hash) == (len(payload), layout.hash64(content))
    assert layout.frame_is_intact(start, payload)
    assert not layout.frame_is_intact(start, payload + b"\x00")


@pytest.mark.parametrize(
    ("coding", "content_bytes", "payload_bytes", "message"),
    [
        (1, 0, 0, "content length 0"),
        (1, (1 << 24) + 1, 10, "content length 16777217"),
        (2, 10, 1035, "payload length 1035"),
        (1, 1 << 24, 2**32 - 1, "payload length 4294967295"),
        (0, 10, 9, "lengths differ"),
    ],
)
def test_frame_lengths_are_bounded(
    coding: int, content_bytes: int, payload_bytes: int, message: str
) -> None:
    data = struct.pack("<4sBIIQI", b"LZFR", coding, content_bytes, payload_bytes, 0, 0)
    with pytest.raises(FrameDamagedError, match=message) as caught:
        layout.decode_frame_header(data, 7)
    assert caught.value.frame_number == 7


@given(st.lists(lengths, max_size=20), st.integers(0, 2**64 - 1))
def test_trailers_round_trip(entries: list[tuple[int, int]], content_hash: int) -> None:
    index = b"".join(trailer.encode_index_entry(*entry) for entry in entries)
    data = trailer.encode_trailer(len(entries), index, content_hash)
    decoded = trailer.decode_trailer(data)
    assert [(entry.payload_bytes, entry.content_bytes) for entry in decoded.index] == entries
    assert decoded.content_hash == content_hash
    assert decoded.content_bytes == sum(content for _, content in entries)
    assert len(data) == trailer.trailer_bytes(len(entries), len(index))


def resealed(index: bytes) -> bytes:
    start = b"LZTR" + index
    start += struct.pack("<QI", 0, len(start) + 16)
    return start + struct.pack("<I", layout.check32(start))


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (b"\x01", TrailerDamagedError),
        (b"\x01\x05\x05\x05", TrailerDamagedError),
        (b"\x80\x00", TrailerDamagedError),
        (encode_varint((1 << 20) + 1), LimitExceededError),
        (b"\x01\x05\x00", LimitExceededError),
        (b"\x01" + encode_varint(1030) + b"\x05", LimitExceededError),
        (b"\x01\x05" + encode_varint((1 << 24) + 1), LimitExceededError),
    ],
)
def test_trailers_are_refused_by_name(index: bytes, error: type[ArchiverError]) -> None:
    with pytest.raises(error):
        trailer.decode_trailer(resealed(index))


@given(st.binary(max_size=60), st.booleans())
def test_any_trailer_is_read_or_refused_by_name(data: bytes, seal: bool) -> None:
    with contextlib.suppress(TrailerDamagedError, LimitExceededError):
        trailer.decode_trailer(resealed(data) if seal else b"LZTR" + data)
