"""Golden archives decode, and are made again, byte for byte; damaged ones fail by name.

The program and the reference decoder must agree on all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import zstandard

import archiver
from archiver.errors import (
    ArchiverError,
    FrameDamagedError,
    HeaderDamagedError,
    LimitExceededError,
    ModelMissingError,
    NotAnArchiveError,
    SteeringError,
    TrailerDamagedError,
    TruncatedArchiveError,
    UnsupportedVersionError,
)
from archiver.predict.package import ModelPackage
from tests.golden.make import FINGERPRINT, FOLDER, GOLDENS, STEERING, STEERING_FILE, Golden
from tests.reference.container import FRAME_HEADER_BYTES, hash32, read_frames, read_header
from tests.reference.decoder import decode

LARGEST_GOLDEN_BYTES = 2048
ZSTD_OF_GOLDENS = (1, 5, 7)  # another version of zstd may find another payload

BY_NAME = {golden.name: golden for golden in GOLDENS}
each_golden = pytest.mark.parametrize("golden", GOLDENS, ids=list(BY_NAME))


def program(archive: bytes) -> bytes:
    """The content by llmzip; a model this small gains nothing by a second thread."""
    return archiver.decompress(archive, threads=1, steering=STEERING_FILE)


def test_the_goldens_are_those_listed() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.llmz")) == sorted(BY_NAME)


def test_the_steering_files_are_those_listed(tiny: ModelPackage) -> None:
    assert sorted(FOLDER.glob("*.steer")) == sorted(FOLDER / f"{name}.steer" for name in STEERING)
    for name, steering_file in STEERING.items():
        assert (FOLDER / f"{name}.steer").read_bytes() == steering_file(tiny)


def test_the_model_is_the_one_of_the_goldens(tiny: ModelPackage) -> None:
    assert tiny.fingerprint == FINGERPRINT


@each_golden
def test_the_program_decodes_it(golden: Golden, tiny: ModelPackage) -> None:
    archive = golden.path.read_bytes()
    assert len(archive) <= LARGEST_GOLDEN_BYTES
    assert program(archive) == golden.content


@each_golden
def test_the_reference_decodes_it(golden: Golden, tiny: ModelPackage) -> None:
    archive = golden.path.read_bytes()
    frames, _ = read_frames(archive, read_header(archive).archive_bytes)
    assert tuple(frame.coding for frame in frames) == golden.codings
    assert decode(archive, tiny.path, STEERING_FILE.read_bytes()) == golden.content


@each_golden
def test_compressing_gives_the_same_bytes(golden: Golden, tiny: ModelPackage) -> None:
    if 1 in golden.codings and zstandard.ZSTD_VERSION != ZSTD_OF_GOLDENS:
        pytest.skip("made with another version of zstd")
    assert golden.compress() == golden.path.read_bytes()


# What must be rejected, and what must be skipped


class Parts:
    """A golden archive in parts, each without the check that `archive` puts there."""

    def __init__(self, name: str) -> None:
        archive = BY_NAME[name].path.read_bytes()
        end = read_header(archive).archive_bytes
        frames, trailer_offset = read_frames(archive, end)
        self.header = bytearray(archive[: end - 4])
        self.frames: list[tuple[bytearray, bytearray]] = []
        for frame in frames:
            payload_offset = end + FRAME_HEADER_BYTES
            end = payload_offset + len(frame.payload)
            fields = bytearray(archive[payload_offset - FRAME_HEADER_BYTES : payload_offset - 4])
            self.frames.append((fields, bytearray(archive[payload_offset:end])))
        self.trailer = bytearray(archive[trailer_offset:-4])

    def set_body(self, body: bytes) -> None:
        """The header has this body."""
        self.header[8:] = len(body).to_bytes(2, "little") + body

    def archive(self) -> bytes:
        """The archive of these parts, all checks right."""
        parts = [_checked(self.header)]
        for fields, payload in self.frames:
            check = hash32(bytes(fields + payload)).to_bytes(4, "little")
            parts.append(bytes(fields) + check + bytes(payload))
        return b"".join([*parts, _checked(self.trailer)])


def _checked(part: bytes | bytearray) -> bytes:
    return bytes(part) + hash32(bytes(part)).to_bytes(4, "little")


Change = Callable[[Parts], None]


def header_byte(offset: int, value: int) -> Change:
    def change(parts: Parts) -> None:
        parts.header[offset] = value

    return change


def body_with(before: str = "", after: str = "") -> Change:
    """The header has another section, in hexadecimal, before or after its own."""

    def change(parts: Parts) -> None:
        body = bytes(parts.header[10:])
        parts.set_body(bytes.fromhex(before) + body + bytes.fromhex(after))

    return change


def sections_cut(count: int) -> Change:
    def change(parts: Parts) -> None:
        parts.set_body(bytes(parts.header[10 : len(parts.header) - count]))

    return change


def most_sinks_and_vectors(parts: Parts) -> None:
    """4,095 sinks and 256 random vectors beside the window."""
    predictor, mixer = bytes(parts.header[12:-12]), bytes(parts.header[-12:])
    body = bytes([1, len(predictor) + 1]) + predictor[:-1] + b"\xff\x1f" + mixer
    parts.set_body(body + bytes.fromhex("03 04 03 80 02 00"))


def frame_field(number: int, offset: int, data: str) -> Change:
    def change(parts: Parts) -> None:
        value = bytes.fromhex(data)
        parts.frames[number - 1][0][offset : offset + len(value)] = value

    return change


def payload_bytes(number: int, offset: int, data: str) -> Change:
    def change(parts: Parts) -> None:
        value = bytes.fromhex(data)
        parts.frames[number - 1][1][offset : offset + len(value)] = value

    return change


def payload_extended(number: int, data: str) -> Change:
    def change(parts: Parts) -> None:
        fields, payload = parts.frames[number - 1]
        payload += bytes.fromhex(data)
        fields[9:13] = len(payload).to_bytes(4, "little")

    return change


def frames_in_order(*numbers: int) -> Change:
    def change(parts: Parts) -> None:
        parts.frames = [parts.frames[number - 1] for number in numbers]

    return change


def trailer_field(offset: int, data: str) -> Change:
    def change(parts: Parts) -> None:
        value = bytes.fromhex(data)
        start = offset % len(parts.trailer)
        parts.trailer[start : start + len(value)] = value

    return change


def trailer_index(data: str) -> Change:
    """frame_count and index are these bytes, and trailer_bytes is right again."""

    def change(parts: Parts) -> None:
        content_hash = parts.trailer[-12:-4]
        start = parts.trailer[:4] + bytes.fromhex(data) + content_hash
        parts.trailer = start + (len(start) + 8).to_bytes(4, "little")

    return change


FRAME_1, FRAME_2 = (1,), (2,)

# name of the golden, what is changed before all checks are made right again, the error
MALFORMED: dict[str, tuple[str, Change, type[ArchiverError], tuple[int, ...]]] = {
    "a newer version": ("raw", header_byte(6, 2), UnsupportedVersionError, ()),
    "a flag that must be understood": ("raw", header_byte(7, 1), UnsupportedVersionError, ()),
    "the last such flag": ("raw", header_byte(7, 0x88), UnsupportedVersionError, ()),
    "another engine": ("text", header_byte(12, 9), UnsupportedVersionError, ()),
    "another mixer": ("text", header_byte(26, 9), UnsupportedVersionError, ()),
    "another model": ("text", header_byte(13, 0), ModelMissingError, ()),
    "no window": ("text", header_byte(21, 0), LimitExceededError, ()),
    "no local window": ("text", header_byte(22, 0), LimitExceededError, ()),
    "a local window beyond the window": ("text", header_byte(22, 33), LimitExceededError, ()),
    "a section without its fields": ("text", header_byte(25, 0), HeaderDamagedError, ()),
    "a section over the body": ("text", header_byte(25, 9), HeaderDamagedError, ()),
    "a section twice": ("text", body_with(after="02 01 01"), HeaderDamagedError, ()),
    "an unknown section": ("text", body_with(after="05 00"), UnsupportedVersionError, ()),
    "no kind of steering": ("text", body_with(after="03 00"), HeaderDamagedError, ()),
    "another kind of steering": ("text", body_with(after="03 01 06"), UnsupportedVersionError, ()),
    "unknown built-in vectors": ("text", body_with(after="03 02 01 FF"), UnsupportedVersionError,
                                 ()),
    "two built-in numbers": ("text", body_with(after="03 03 01 01 01"), HeaderDamagedError, ()),
    "no tokens": ("text", body_with(after="03 02 02 00"), HeaderDamagedError, ()),
    "too many tokens": ("text", body_with(after="03 03 02 81 02"), LimitExceededError, ()),
    "absurdly many tokens": ("text", body_with(after="03 06 02 FF FF FF FF 0F"),
                             LimitExceededError, ()),
    "fewer tokens than said": ("text", body_with(after="03 03 02 02 01"), HeaderDamagedError, ()),
    "more tokens than said": ("text", body_with(after="03 04 02 01 01 01"), HeaderDamagedError,
                              ()),
    "no such token": ("text", body_with(after="03 04 02 01 FF 7F"), HeaderDamagedError, ()),
    "too many random vectors": ("text", body_with(after="03 04 03 81 02 00"), LimitExceededError,
                                ()),
    "no seed": ("text", body_with(after="03 02 03 01"), HeaderDamagedError, ()),
    "bytes after a seed": ("text", body_with(after="03 04 03 01 05 05"), HeaderDamagedError, ()),
    "an empty body": ("text", body_with(after="03 01 04"), HeaderDamagedError, ()),
    "too many embedded vectors": ("text", body_with(after="03 03 04 81 02"), LimitExceededError,
                                  ()),
    "an unknown prior": ("text", body_with(after="03 05 04 01 09 00 3F"), HeaderDamagedError, ()),
    "a code beyond the range": ("text", body_with(
        after="03 0C 04 01 01 00 3F 40 00 01 FF FF FF FF"), HeaderDamagedError, ()),
    "no steering file": ("text", body_with(after="03 09 05" + 8 * "00"), SteeringError, ()),
    "half a fingerprint": ("text", body_with(after="03 05 05" + 4 * "00"), HeaderDamagedError, ()),
    "more seen than can be": ("widest", most_sinks_and_vectors, LimitExceededError, ()),
    "the last such section": ("text", body_with(after="7F 01 05"), UnsupportedVersionError, ()),
    "a section out of order": ("text", body_with(before="80 00"), HeaderDamagedError, ()),
    "a section of a long varint": ("text", body_with(after="80 81 00"), HeaderDamagedError, ()),
    "no section MIXER": ("text", sections_cut(12), FrameDamagedError, FRAME_1),
    "no sections": ("text", sections_cut(26), FrameDamagedError, FRAME_1),
    "an unknown coding": ("raw", frame_field(1, 4, "03"), UnsupportedVersionError, ()),
    "no content": ("raw", frame_field(1, 5, "00 00"), FrameDamagedError, FRAME_1),
    "too much content": ("text", frame_field(1, 5, "01 00 00 01"), FrameDamagedError, FRAME_1),
    "two lengths of RAW": ("raw", frame_field(1, 5, "2B"), FrameDamagedError, FRAME_1),
    "too long a payload": ("text", frame_field(1, 9, "FF FF"), FrameDamagedError, FRAME_1),
    "RAW as ZSTD": ("raw", frame_field(1, 4, "01"), FrameDamagedError, FRAME_1),
    "RAW as PREDICTOR": ("raw", frame_field(1, 4, "02"), FrameDamagedError, FRAME_1),
    "a wrong hash": ("text", frame_field(1, 13, "00"), FrameDamagedError, FRAME_1),
    "another content": ("raw", payload_bytes(1, 7, "00"), FrameDamagedError, FRAME_1),
    "another zstd content": ("zstd", payload_bytes(1, 20, "00"), FrameDamagedError, FRAME_1),
    "bytes after zstd": ("zstd", payload_extended(1, "00"), FrameDamagedError, FRAME_1),
    "a skippable zstd frame": ("zstd", payload_bytes(1, 0, "50 2A 4D 18"), FrameDamagedError,
                               FRAME_1),
    "another code": ("text", payload_bytes(1, 40, "00"), FrameDamagedError, FRAME_1),
    "no symbols": ("text", payload_bytes(1, 0, "00"), FrameDamagedError, FRAME_1),
    "too many symbols": ("text", payload_bytes(1, 0, "FF 7F"), FrameDamagedError, FRAME_1),
    "fewer symbols": ("text", payload_bytes(1, 0, "68"), FrameDamagedError, FRAME_1),
    "more symbols": ("text", payload_bytes(1, 0, "7F"), FrameDamagedError, FRAME_1),
    "a long varint of symbols": ("streams", payload_bytes(1, 0, "85 80 00"), FrameDamagedError,
                                 FRAME_1),
    "no streams": ("text", payload_bytes(1, 1, "00"), FrameDamagedError, FRAME_1),
    "more streams than symbols": ("text", payload_bytes(1, 1, "6A"), FrameDamagedError, FRAME_1),
    "an unknown flag of the payload": ("text", payload_bytes(1, 2, "04"), FrameDamagedError,
                                       FRAME_1),
    "unknown transforms": ("koi8", payload_bytes(1, 4, "40"), FrameDamagedError, FRAME_1),
    "no transforms": ("koi8", payload_bytes(1, 4, "00"), FrameDamagedError, FRAME_1),
    "too long a text": ("koi8", payload_bytes(1, 5, "FF 7F"), FrameDamagedError, FRAME_1),
    "a longer text": ("koi8", payload_bytes(1, 5, "9B 07"), FrameDamagedError, FRAME_1),
    "no segments": ("koi8", payload_bytes(1, 7, "00"), FrameDamagedError, FRAME_1),
    "too many segments": ("koi8", payload_bytes(1, 7, "81 20"), FrameDamagedError, FRAME_1),
    "an unknown character set": ("koi8", payload_bytes(1, 8, "0C"), FrameDamagedError, FRAME_1),
    "Shift-JIS instead": ("gb18030", payload_bytes(1, 8, "07"), FrameDamagedError, FRAME_1),
    "EUC-KR instead": ("big5", payload_bytes(1, 8, "0B"), FrameDamagedError, FRAME_1),
    "stray bytes in windows-1251": ("shift_jis", payload_bytes(1, 8, "03"), FrameDamagedError,
                                    FRAME_1),
    "another character set": ("koi8", payload_bytes(1, 8, "06"), FrameDamagedError, FRAME_1),
    "UTF-16 instead": ("koi8", payload_bytes(1, 8, "01"), FrameDamagedError, FRAME_1),
    "a swap less": ("utf_16", payload_bytes(1, 4, "01"), FrameDamagedError, FRAME_1),
    "a longer segment": ("utf_16", payload_bytes(1, 11, "02"), FrameDamagedError, FRAME_1),
    "too long a segment": ("utf_16", payload_bytes(1, 12, "EB 7F"), FrameDamagedError, FRAME_1),
    "a frame lost": ("frames", frames_in_order(1, 3), FrameDamagedError, FRAME_2),
    "a frame twice": ("frames", frames_in_order(1, 1, 2, 3), FrameDamagedError, FRAME_2),
    "frames changed over": ("frames", frames_in_order(2, 1, 3), FrameDamagedError, FRAME_1),
    "a wrong hash of all": ("raw", trailer_field(-5, "FF"), TrailerDamagedError, ()),
    "a wrong trailer_bytes": ("raw", trailer_field(-1, "01"), TrailerDamagedError, ()),
    "too many frames": ("raw", trailer_index("81 80 40"), LimitExceededError, ()),
    "too long a content": ("raw", trailer_index("01 00 81 80 80 08"), LimitExceededError, ()),
    "a long varint in the index": ("raw", trailer_index("01 AC 82 00 AC 02"), TrailerDamagedError,
                                   ()),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_archives_fail_by_name(case: str, tiny: ModelPackage) -> None:
    name, change, error, frame_number = MALFORMED[case]
    parts = Parts(name)
    change(parts)
    expect(parts.archive(), tiny, error, *frame_number)


SKIPPED: dict[str, tuple[str, Change]] = {
    "flags that may be ignored": ("streams", header_byte(7, 0xF0)),
    "a section that may be skipped": ("streams", body_with(after="80 02 01 02 FF 00")),
    "sections that no frame needs": ("raw", body_with(after="FE 00 FF 00")),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_what_may_be_skipped_is(case: str, tiny: ModelPackage) -> None:
    name, change = SKIPPED[case]
    parts = Parts(name)
    change(parts)
    assert program(parts.archive()) == BY_NAME[name].content
    assert decode(parts.archive(), tiny.path, STEERING_FILE.read_bytes()) == BY_NAME[name].content


def at(offset: int, data: str) -> Callable[[bytes], bytes]:
    """The bytes at an offset are others; the checks stay."""

    def change(archive: bytes) -> bytes:
        value = bytes.fromhex(data)
        start = offset % len(archive)
        return archive[:start] + value + archive[start + len(value) :]

    return change


Damage = Callable[[bytes], bytes]
DAMAGED: dict[str, tuple[str, Damage, type[ArchiverError], tuple[int, ...]]] = {
    "nothing left": ("raw", lambda archive: b"", NotAnArchiveError, ()),
    "no archive": ("raw", lambda archive: archive[10:], NotAnArchiveError, ()),
    "the header": ("text", at(15, "00"), HeaderDamagedError, ()),
    "the header's magic": ("text", at(3, "00"), HeaderDamagedError, ()),
    "a header ever so long": ("text", at(9, "FF"), HeaderDamagedError, ()),
    "a frame's magic": ("text", at(40, "00"), FrameDamagedError, FRAME_1),
    "a frame's coding": ("text", at(44, "07"), FrameDamagedError, FRAME_1),
    "a frame's content": ("raw", at(-60, "00 00"), FrameDamagedError, FRAME_1),
    "the trailer": ("raw", at(-12, "00 00 00"), TrailerDamagedError, ()),
    "the trailer's check": ("raw", at(-1, "00"), TrailerDamagedError, ()),
    "a byte after": ("empty", lambda archive: archive + b"\n", TrailerDamagedError, ()),
    "archives joined": ("one_byte", lambda archive: archive * 2, TrailerDamagedError, ()),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives_fail_by_name(case: str, tiny: ModelPackage) -> None:
    name, damage, error, frame_number = DAMAGED[case]
    expect(damage(BY_NAME[name].path.read_bytes()), tiny, error, *frame_number)


@pytest.mark.parametrize("name", ["empty", "raw"])
def test_archives_cut_anywhere_are_truncated(name: str, tiny: ModelPackage) -> None:
    archive = BY_NAME[name].path.read_bytes()
    for end in range(1, len(archive)):
        expect(archive[:end], tiny, TruncatedArchiveError)


def expect(
    archive: bytes, tiny: ModelPackage, error: type[ArchiverError], frame_number: int | None = None
) -> None:
    """The program and the reference both reject the archive, with this error."""
    for reject in (program, lambda data: decode(data, tiny.path, STEERING_FILE.read_bytes())):
        with pytest.raises(error) as caught:
            reject(archive)
        assert type(caught.value) is error
        assert getattr(caught.value, "frame_number", None) == frame_number
