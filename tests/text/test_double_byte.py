"""Sets of two bytes: Python's characters, stray bytes, boundaries; tables read when needed."""

from __future__ import annotations

import subprocess
import sys
import zlib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.text.charsets import DOUBLE_BYTE, Charset, UnmappableError, from_utf8, to_utf8
from archiver.text.double_byte import NAMES, double_byte_set, packed, table
from tests.reference import transforms as reference
from tests.reference.container import MalformedError
from tests.text.charset_tables import make_table

LARGEST_TABLE_BYTES = 30_000

# Bytes that begin, continue or break characters, whole characters of several sets, and ASCII.
FRAGMENTS = st.sampled_from(
    [
        b"a", b" ", b"0", b"9", b"\n", b"@", b"~", b"\x7f", b"\x80", b"\x81", b"\x8e", b"\x8f",
        b"\xa0", b"\xa1", b"\xdf", b"\xe0", b"\xed@", b"\xf0@", b"\xfd", b"\xfe", b"\xff",
        b"\x810\x81", b"\x810\x810", b"\x841\xa49", b"\x840\x810", b"\xe32\x9a5", b"\xe32\x9a6",
        b"\x900\x810", "猫あ".encode("cp932"), "猫あ".encode("euc_jp"), "觉得".encode("gb18030"),
        "寶玉".encode("cp950"), "인간똠".encode("cp949"), "ﾃｽ".encode("cp932"),
    ]
)  # fmt: skip
CONTENTS = st.one_of(
    st.lists(FRAGMENTS, max_size=12).map(b"".join),
    st.binary(max_size=40),
)
# Characters with cells, with four bytes, with none; stray bytes and what they are not.
TEXTS = st.lists(
    st.sampled_from(
        [*"a\x80é°я猫觉寶간똠ﾃ。あ①髙\ue000\ue7c7\U0001f600\udc80\udcff\udc7f\udd00\ud83d"]
    )
    | st.characters(),
    max_size=8,
).map(lambda characters: "".join(characters).encode("utf-8", "surrogatepass"))

each_set = pytest.mark.parametrize("charset", DOUBLE_BYTE)


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_those_of_python(name: str) -> None:
    cells = table(name)
    assert np.array_equal(cells, make_table(name))
    found = cells[cells != 0]
    assert len(np.unique(found)) == len(found)
    assert found.min() >= 0x80
    assert not np.any((found >= 0xD800) & (found < 0xE000))


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_small_in_the_repository(name: str) -> None:
    assert len(packed(table(name))) <= LARGEST_TABLE_BYTES
    stored = resources.files("archiver.text.tables").joinpath(f"{name}.zlib").read_bytes()
    assert zlib.decompress(packed(table(name))) == zlib.decompress(stored)


def test_gb18030_has_all_characters_where_python_has_them() -> None:
    text = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    content = text.encode("gb18030")
    assert to_utf8(Charset.GB18030, content) == text.encode()
    assert from_utf8(Charset.GB18030, text.encode()) == content


@pytest.mark.parametrize(
    ("charset", "content", "text"),
    [
        (Charset.SHIFT_JIS, b"\x94\x4c\xc3\x5c\xf0\x40", "猫ﾃ\\\ue000"),
        (Charset.SHIFT_JIS, b"\x87\x40\xfb\xfc\x81\xca", "①髙\uffe2"),
        (
            Charset.SHIFT_JIS,
            b"\xee\xe0\xed\x40a\x80\xa0\xfd",
            "\udcee\udce0\udced@a\udc80\udca0\udcfd",
        ),
        (Charset.SHIFT_JIS, b"\x82 \x82", "\udc82 \udc82"),
        (Charset.GB18030, b"\xbe\xf5\xa2\xe3\x81\x30\x84\x36", "觉€\xa5"),
        (Charset.GB18030, b"\x94\x39\xfc\x36\x84\x31\xa4\x39", "\U0001f600\uffff"),
        (Charset.GB18030, b"\x84\x31\xa5\x30\xff", "\udc841\udca50\udcff"),
        (Charset.GB18030, b"\xe3\x32\x9a\x35\xe3\x32\x9a\x36", "\U0010ffff\udce32\udc9a6"),
        (Charset.EUC_JP, b"\xc7\xad\x8e\xc3\xad\xa1\xfc\xe2", "猫ﾃ①髙"),
        (Charset.EUC_JP, b"\x8f\xb0\xa1", "\udc8f亜"),
        (Charset.BIG5, b"\xc4\x5f\xf9\xf9\xa2\xa4", "寶\udcf9\udcf9\u2550"),
        (Charset.EUC_KR, b"\xb0\xa3\x8c\x63\xc9\xfe", "간똠\udcc9\udcfe"),
    ],
)
def test_known_characters(charset: Charset, content: bytes, text: str) -> None:
    assert to_utf8(charset, content) == text.encode("utf-8", "surrogatepass")
    assert from_utf8(charset, text.encode("utf-8", "surrogatepass")) == content


@each_set
@given(content=CONTENTS)
def test_any_bytes_come_back(charset: Charset, content: bytes) -> None:
    text = to_utf8(charset, content)
    assert len(text) <= 3 * len(content)
    assert from_utf8(charset, text) == content
    assert reference._in_charset(charset, text) == content


@each_set
@given(text=TEXTS)
def test_the_reference_refuses_the_same_texts(charset: Charset, text: bytes) -> None:
    try:
        content = from_utf8(charset, text)
    except UnmappableError:
        with pytest.raises(MalformedError):
            reference._in_charset(charset, text)
        return
    assert len(content) <= 2 * len(text)
    assert reference._in_charset(charset, text) == content


@each_set
@given(
    text=st.text(st.sampled_from("a0 \n猫あ①觉得간인寶玉鿿é\U0001f600"), min_size=1, max_size=30),
    begin=st.integers(0, 3),
)
def test_boundaries_are_those_of_characters(charset: Charset, text: str, begin: int) -> None:
    codes = double_byte_set(DOUBLE_BYTE[charset])
    known = [character for character in text if ord(character) in codes.codes or charset == 8]
    parts = [b"\xa0" * begin, *(from_utf8(charset, character.encode()) for character in known)]
    content = b"".join(parts)
    starts = [sum(map(len, parts[:count])) for count in range(1, len(parts) + 1)]
    for at in range(len(content) + 1):
        expected = max((start for start in starts if start <= at), default=begin)
        assert codes.boundary(content, at, begin) == expected


def test_tables_are_read_when_they_are_needed() -> None:
    code = (
        "import sys, cli; assert 'archiver.text.double_byte' not in sys.modules\n"
        "from archiver.text import charsets, double_byte\n"
        "assert charsets.to_utf8(charsets.Charset.KOI8_R, b'a') == b'a'\n"
        "assert double_byte.double_byte_set.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
