"""FORMAT.md says what the program does: tables, constants and the example."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest

import archiver.errors
from archiver.codec.transform_fields import HAS_SEGMENTS
from archiver.container import ArchiveReader, ArchiveWriter, layout, trailer
from archiver.container.layout import (
    FrameCoding,
    Header,
    MachineSection,
    MixerSection,
    PredictorSection,
    SectionTag,
    SteeringKind,
    SteeringSection,
)
from archiver.predict.float_models import FLOAT_ENGINE_VERSION
from archiver.predict.machine import this_machine
from archiver.steering import files
from archiver.steering.priors import PriorKind, ScalesPrior
from archiver.text import transforms
from archiver.text.charsets import DOUBLE_BYTE, UPPER_HALVES, Charset
from archiver.text.double_byte import table
from archiver.text.transforms import Swap

TEXT = (Path(layout.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
TABLE_HASH = "SHA-256 of the table"
UPPER_HALF_HASH = "SHA-256 of the upper half"
MODULES = (layout, trailer, transforms)
STRUCT_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


def section(title: str) -> str:
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert match, f"FORMAT.md has no section {title}"
    return match[1]


def tables(title: str) -> list[list[dict[str, str]]]:
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in block.split("\n")
        ]
        names, _, *lines = [row for row in rows if row != [""]]
        found.append([dict(zip(names, line, strict=True)) for line in lines])
    return found


def struct_of(rows: list[dict[str, str]]) -> struct.Struct:
    """The fixed fields of a table; offsets and lengths are checked on the way."""
    form = "<"
    for row in rows:
        if row["offset"] != "-":
            assert int(row["offset"]) == struct.calcsize(form), row
        if row["type"] == "bytes":
            form += f"{row['bytes']}s"
        else:
            form += STRUCT_CODES[row["type"]]
            assert int(row["bytes"]) == struct.calcsize("<" + STRUCT_CODES[row["type"]]), row
    return struct.Struct(form)


def test_constants_agree() -> None:
    [rows] = tables("Constants")
    for row in rows:
        name, value = row["name"], row["value"]
        [expected] = {vars(module)[name] for module in MODULES if name in vars(module)}
        if isinstance(expected, bytes):
            assert bytes.fromhex(value) == expected, name
        else:
            assert int(value, 0) == expected, name


def test_every_constant_of_the_format_is_in_the_table() -> None:
    [rows] = tables("Constants")
    listed = {row["name"] for row in rows}
    pattern = re.compile(r"(LARGEST|FIRST|MUST|FORMAT)_[A-Z_]+|[A-Z]+_MAGIC")
    derived = {f"LARGEST_{part}_BYTES" for part in ("BODY", "HEADER", "PAYLOAD", "TRAILER")}
    defined = {name for module in MODULES for name in vars(module) if pattern.fullmatch(name)}
    assert defined - derived == listed


def test_header_fields_agree() -> None:
    rows = tables("Header")[0]
    assert [row["field"] for row in rows] == [
        "magic", "format_version", "flags", "body_bytes", "body", "check",
    ]  # fmt: skip
    assert struct_of(rows[:4]).format == layout.HEADER_START.format
    assert int(rows[4]["offset"]) == layout.HEADER_START.size
    assert struct_of(rows[5:]).format == layout.CHECK.format


def test_section_tags_and_fields_agree() -> None:
    tags = tables("Header")[2]
    assert {row["section"]: int(row["tag"]) for row in tags} == {t.name: t for t in SectionTag}
    for title, record in (
        ("PREDICTOR", PredictorSection),
        ("MIXER", MixerSection),
        ("STEERING", SteeringSection),
        ("MACHINE", MachineSection),
    ):
        rows = tables(f"Section {title}")[0]
        assert [row["field"] for row in rows] == [f.name for f in dataclasses.fields(record)]
    rows = tables("Section PREDICTOR")[0]
    assert int(rows[1]["bytes"]) == layout.FINGERPRINT_BYTES
    assert int(rows[2]["offset"]) == 1 + layout.FINGERPRINT_BYTES


def test_the_float_engine_s_version_and_facts_agree() -> None:
    text = " ".join(section("Float engine").split())
    assert f"This is engine version {FLOAT_ENGINE_VERSION}." in text
    places = [text.index(name) for name, _ in this_machine(1).facts if name != "build of torch"]
    assert places == sorted(places)
    assert '"build of torch"' in text


def test_frame_fields_and_codings_agree() -> None:
    fields, codings = tables("Frame")
    assert struct_of(fields[:6]).format == layout.FRAME_HEADER.format
    names = [f.name for f in dataclasses.fields(layout.FrameHeader)]
    assert {row["field"] for row in fields[1:6]} == set(names)
    assert int(fields[6]["offset"]) == layout.FRAME_HEADER_BYTES
    assert int(fields[5]["offset"]) == layout.FRAME_CHECKED_BYTES
    assert {row["name"]: int(row["coding"]) for row in codings} == {c.name: c for c in FrameCoding}


def test_trailer_fields_agree() -> None:
    fields, entry = tables("Trailer")
    assert struct_of(fields[3:]).format == trailer.TRAILER_END.format
    assert int(fields[1]["offset"]) == len(trailer.TRAILER_MAGIC) == layout.MAGIC_BYTES
    assert [row["field"] for row in entry] == [
        f.name for f in dataclasses.fields(trailer.IndexEntry)
    ]


def test_steering_agrees() -> None:
    kinds = tables("Section STEERING")[1]
    assert {row["name"]: int(row["kind"]) for row in kinds} == {k.name: k for k in SteeringKind}
    body, names, fields, *_ = tables("Steering vectors")
    assert {row["name"]: int(row["prior"]) for row in names} == {k.name: k for k in PriorKind}
    assert [row["field"] for row in body][:3] == ["vectors", "prior", "scale"]
    own = {field.name for field in dataclasses.fields(ScalesPrior)}
    assert own <= {row["field"] for row in fields} | {"ranks"}
    fields, built_in = tables("Steering files")
    assert struct_of(fields[:4]).format == files.FILE_START.format
    assert bytes.fromhex(fields[0]["value"]) == files.FILE_MAGIC
    assert int(fields[1]["value"]) == files.FILE_VERSION
    listed = {row["name"]: (int(row["number"]), int(row["fingerprint"], 16)) for row in built_in}
    assert listed == dict(files.BUILT_IN)


def test_errors_named_there_exist() -> None:
    [rows] = tables("What a decoder must reject")
    for row in rows:
        assert issubclass(getattr(archiver.errors, row["error"]), archiver.errors.ArchiverError)


def test_versions_agree() -> None:
    [rows] = tables("Version history")
    assert int(rows[-1]["version"]) == layout.FORMAT_VERSION
    assert f"version {layout.FORMAT_VERSION}" in TEXT.splitlines()[0]


def test_the_example_is_what_is_written_and_read() -> None:
    digits = "".join(re.findall(r"^    ((?:[0-9A-F]{2} ?)+)$", section("Example"), re.MULTILINE))
    example = bytes.fromhex(digits)
    header = Header(
        predictor=PredictorSection(
            engine_version=2,
            package_fingerprint=bytes(range(8)),
            window_tokens=2048,
            local_window_tokens=512,
            sink_tokens=4,
        ),
        mixer=MixerSection(version=1, parameters=b"\x07"),
    )
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, header)
    for content in (b"hello,", b" hello"):
        writer.add_frame(FrameCoding.RAW, content, content)
    writer.finish()
    assert stream.getvalue() == example
    assert f"has {len(example)} bytes" in section("Example")
    reader = ArchiveReader(io.BytesIO(example))
    assert reader.header == header
    assert b"".join(frame.payload for frame in reader.frames()) == b"hello, hello"
    reader.finish(layout.hash64(b"hello, hello"))


def test_transforms_agree() -> None:
    numbers = {row["transform"]: int(row["number"]) for row in tables("Transforms")[2]}
    assert numbers == {"SEGMENTS": HAS_SEGMENTS, **{swap.name: swap.value for swap in Swap}}
    for swap in Swap:
        assert re.search(rf"^\*\*[A-Z_, ]*\b{swap.name}\b", section("Swaps"), re.MULTILINE)


def test_character_sets_agree() -> None:
    [rows] = tables("Character sets")
    sets = {row["character set"]: (int(row["number"]), row[UPPER_HALF_HASH]) for row in rows}
    expected = dict.fromkeys(Charset, "")
    for charset, upper_half in UPPER_HALVES.items():
        expected[charset] = hashlib.sha256(upper_half.encode()).hexdigest()
    assert sets == {charset.name: (charset, digest) for charset, digest in expected.items()}


def test_tables_of_sets_of_two_bytes_agree() -> None:
    [rows] = tables("Sets of two bytes")
    found = {row["character set"]: (int(row["cells"]), row[TABLE_HASH]) for row in rows}
    expected = {}
    for charset, name in DOUBLE_BYTE.items():
        digest = hashlib.sha256(table(name).astype("<u2").tobytes()).hexdigest()
        expected[charset.name] = (np.count_nonzero(table(name)), digest)
    assert found == expected


@pytest.mark.parametrize("title", ["Predictor", "Predictor frame payload"])
def test_the_predictor_has_its_sections(title: str) -> None:
    assert section(title).strip()
