"""The fields of transforms in a payload: known bytes, and what is refused."""

from __future__ import annotations

import pytest

from archiver.codec.transform_fields import decode_transforms, encode_transforms
from archiver.container.varint import MalformedError
from archiver.text.charsets import Charset
from archiver.text.transforms import Swap, Transforms
from tests.reference.container import MalformedError as ReferenceError
from tests.reference.transforms import read_fields

KNOWN = {
    "20 ac 02": (Transforms(swaps=Swap.LINE_ENDS), 300),
    "01 ac 02 01 03": (Transforms(charsets=(Charset.WINDOWS_1251,)), 300),
    "01 ac 02 02 07 0b c8 01": (
        Transforms(charsets=(Charset.SHIFT_JIS, Charset.EUC_KR), cuts=(200,)),
        300,
    ),
    "25 ac 02 03 01 00 04 c8 01 01": (
        Transforms(
            charsets=(Charset.UTF_16_LE, Charset.PLAIN, Charset.KOI8_R),
            cuts=(200, 201),
            swaps=Swap.LINE_ENDS | Swap.JSON_CAPITAL,
        ),
        300,
    ),
}


@pytest.mark.parametrize("digits", KNOWN)
def test_known_fields(digits: str) -> None:
    transforms, text_bytes = KNOWN[digits]
    fields = bytes.fromhex(digits)
    assert encode_transforms(transforms, text_bytes) == fields
    payload = b"\x07" + fields + b"rest"
    assert decode_transforms(payload, 1, 100) == (transforms, text_bytes, 1 + len(fields))


@pytest.mark.parametrize(
    ("digits", "message"),
    [
        ("", "its transforms are cut off"),
        ("20", "a variable-length integer is cut off"),
        ("20 80 00", "not in its shortest form"),
        ("00 05", "unknown transforms 0x00"),
        ("40 05", "unknown transforms 0x40"),
        ("a0 05", "unknown transforms 0xa0"),
        ("20 00", "a text of 0 bytes for a content of 10"),
        ("20 1f", "a text of 31 bytes for a content of 10"),
        ("01 05", "a variable-length integer is cut off"),
        ("01 05 00", "0 segments"),
        ("01 05 81 20", "4097 segments"),
        ("01 05 03 00 01", "its segments are cut off"),
        ("01 05 01 0c", "an unknown character set .12 is not a valid Charset"),
        ("01 05 02 00 01", "a variable-length integer is cut off"),
        ("01 05 02 00 01 80", "a variable-length integer is cut off"),
    ],
)
def test_malformed_fields_are_refused(digits: str, message: str) -> None:
    fields = bytes.fromhex(digits)
    with pytest.raises(MalformedError, match=message):
        decode_transforms(b"\x07" + fields, 1, 10)
    with pytest.raises(ReferenceError):
        read_fields(b"\x07" + fields, 1, 10)
