"""Character sets: total, one to one, and those that others mean by these names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.text.charsets import UTF_16, Charset, UnmappableError, from_utf8, to_utf8

PYTHON_NAMES = {
    Charset.WINDOWS_1251: "cp1251",
    Charset.KOI8_R: "koi8_r",
    Charset.IBM_866: "cp866",
    Charset.WINDOWS_1252: "cp1252",
}
# Bytes that the tables of Python, which are Unicode's, leave without a character.
UNDEFINED = {
    Charset.WINDOWS_1251: b"\x98",
    Charset.WINDOWS_1252: b"\x81\x8d\x8f\x90\x9d",
}
RUSSIAN = "Мы знаем: счастливые семьи похожи друг на друга — каждая по-своему.\r\n"


@pytest.mark.parametrize("charset", PYTHON_NAMES)
def test_8_bit_sets_are_those_of_python(charset: Charset) -> None:
    codec, undefined = PYTHON_NAMES[charset], UNDEFINED.get(charset, b"")
    for number in range(256):
        byte = bytes([number])
        if byte in undefined:
            with pytest.raises(UnicodeDecodeError):
                byte.decode(codec)
            expected = chr(number)
        else:
            expected = byte.decode(codec)
        assert to_utf8(charset, byte).decode() == expected


def test_latin_1_differs_from_windows_1252_in_controls_only() -> None:
    others = bytes([*range(0x80), *range(0xA0, 0x100)])
    assert to_utf8(Charset.WINDOWS_1252, others).decode() == others.decode("latin-1")


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        *PYTHON_NAMES.items(),
        (Charset.UTF_16_LE, "utf-16-le"),
        (Charset.UTF_16_BE, "utf-16-be"),
        (Charset.SHIFT_JIS, "cp932"),
        (Charset.GB18030, "gb18030"),
        (Charset.EUC_JP, "euc_jp"),
        (Charset.EUC_KR, "cp949"),
    ],
)
def test_text_comes_out_in_utf_8(charset: Charset, codec: str) -> None:
    text = "déjà vu, fünf Ärzte\r\n" if charset is Charset.WINDOWS_1252 else RUSSIAN
    text = text if charset in (Charset.WINDOWS_1251, *UTF_16) else text.replace("—", "-")
    assert to_utf8(charset, text.encode(codec)) == text.encode()
    assert from_utf8(charset, text.encode()) == text.encode(codec)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xff\xfeA\x00", "\ufeffA".encode()),
        (b"\x3d\xd8\x00\xde", "\U0001f600".encode()),
        (b"\x3d\xd8", b"\xed\xa0\xbd"),
        (b"\x00\xde\x3d\xd8", b"\xed\xb8\x80\xed\xa0\xbd"),
        (b"\x3d\xd8\x3d\xd8\x00\xde", b"\xed\xa0\xbd" + "\U0001f600".encode()),
    ],
    ids=["mark", "pair", "high alone", "wrong order", "high before a pair"],
)
def test_surrogates(content: bytes, text: bytes) -> None:
    swapped = b"".join(content[i : i + 2][::-1] for i in range(0, len(content), 2))
    for charset, form in ((Charset.UTF_16_LE, content), (Charset.UTF_16_BE, swapped)):
        assert to_utf8(charset, form) == text
        assert from_utf8(charset, text) == form


@pytest.mark.parametrize("charset", Charset)
@given(content=st.binary(max_size=40))
def test_any_bytes_come_back(charset: Charset, content: bytes) -> None:
    if charset in UTF_16:
        content += content
    text = to_utf8(charset, content)
    assert len(text) <= 3 * len(content)
    assert from_utf8(charset, text) == content


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        (Charset.WINDOWS_1251, "é"),
        (Charset.WINDOWS_1252, "€ \x80"),
        (Charset.KOI8_R, "—"),
        (Charset.IBM_866, "\U0001f600"),
        (Charset.WINDOWS_1251, b"\x98"),
        (Charset.WINDOWS_1251, b"\xd0"),
        (Charset.WINDOWS_1251, b"\xed\xa0\x80"),
        (Charset.SHIFT_JIS, "é"),
        (Charset.SHIFT_JIS, "\U0001f600"),
        (Charset.EUC_JP, "\ue000"),
        (Charset.BIG5, "あ\udc7f"),
        (Charset.EUC_KR, b"\xed\xa0\x80"),
        (Charset.GB18030, b"\xed\xb4\x80"),
        (Charset.GB18030, b"\xed\xa0\x80\xed\xb2\x80"),
        (Charset.GB18030, b"\x81"),
        (Charset.UTF_16_LE, b"\xd0"),
        (Charset.UTF_16_BE, b"\xc0\x80"),
        (Charset.UTF_16_BE, b"\xf4\x90\x80\x80"),
    ],
)
def test_what_is_not_in_a_set_is_refused(charset: Charset, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with pytest.raises(UnmappableError, match=f"its text cannot be that of {charset.label}"):
        from_utf8(charset, data)
