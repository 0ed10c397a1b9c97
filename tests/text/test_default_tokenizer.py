"""The default model's tokenizer and its traps (needs the model)."""

from __future__ import annotations

import _pydecimal
import time
from pathlib import Path

import numpy as np
import pytest

from archiver.predict.known import DEFAULT_MODEL
from archiver.predict.package import ModelPackage
from archiver.predict.registry import resolve
from archiver.text.charsets import Charset
from archiver.text.detection import charset_spans
from archiver.text.framing import bytes_of, symbols_of
from archiver.text.tokenizer import TextTokenizer
from archiver.text.transforms import Span
from archiver.text.vocabulary import Vocabulary
from tests.text.test_detection import (
    CHINESE,
    GERMAN,
    JAPANESE,
    KOREAN,
    RUSSIAN,
    TAIWANESE,
)

pytestmark = pytest.mark.slow

MISSING = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 256)])


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return resolve(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def tokenizer(package: ModelPackage) -> TextTokenizer:
    return TextTokenizer(package)


@pytest.fixture(scope="module")
def vocabulary(package: ModelPackage) -> Vocabulary:
    arrays = package.arrays
    return Vocabulary.build(
        arrays["tokens.data"], arrays["tokens.offsets"], arrays["tokens.rank_of_id"]
    )


def test_twenty_one_bytes_have_no_token(vocabulary: Vocabulary) -> None:
    singles = {token[0] for token in vocabulary.token_bytes if len(token) == 1}
    assert bytes(sorted(set(range(256)) - singles)) == MISSING
    assert vocabulary.size == 49_135


def test_text_is_cut_as_in_the_training(vocabulary: Vocabulary, tokenizer: TextTokenizer) -> None:
    """Digits stand alone, also after a space or a line break; names of specials are text."""
    ids = tokenizer.encode("In 1905,\n42")
    assert [vocabulary.bytes_of(rank) for rank in vocabulary.rank_of_id[ids]] == [
        b"In", b" ", b"1", b"9", b"0", b"5", b",", b"\n", b"4", b"2",
    ]  # fmt: skip
    assert ids.tolist() == [788, 216, 33, 41, 32, 37, 28, 198, 36, 34]
    assert tokenizer.encode("<|im_start|>").min() > 16


@pytest.mark.parametrize(
    ("content", "escapes"),
    [
        (b"a\x04\x06b\x13", [b"\x04\x06", b"\x13"]),
        ("a\U00040000b\U000bffff".encode(), ["\U00040000".encode(), "\U000bffff".encode()]),
        ("a\U0003ffff\U000c0000".encode(), []),
        (b"\xed\xa0\x80", [b"\xed\xa0\x80"]),
        (b"<|endoftext|><|im_start|>\r\n\r<repo_name>\x00", []),
        (b"", []),
    ],
)
def test_what_the_tokenizer_cannot_carry_is_escaped(
    content: bytes, escapes: list[bytes], vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> None:
    symbols = symbols_of(content, vocabulary, tokenizer)
    assert symbols.escapes == escapes
    assert bytes_of(symbols, vocabulary) == content


def test_a_mebibyte_is_framed_in_two_seconds_of_one_core(
    vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> None:
    assert _pydecimal.__file__ is not None
    source = Path(_pydecimal.__file__).read_bytes()
    content = (source * (-(-(1 << 20) // len(source))))[: 1 << 20]
    before = time.process_time()
    symbols = symbols_of(content, vocabulary, tokenizer)
    assert time.process_time() - before < 2.0
    assert symbols.escapes == []
    assert bytes_of(symbols, vocabulary) == content


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(5).bytes(1 << 18),
        b"ab3" * 350_000,
        b" " * (10 << 20),
        bytes(range(256)) * 400,
        b"word\r\n\r" * 40_000,
    ],
    ids=["random", "no spaces", "spaces", "all bytes", "line ends"],
)
def test_hard_contents_come_back(
    content: bytes, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> None:
    assert bytes_of(symbols_of(content, vocabulary, tokenizer), vocabulary) == content


@pytest.mark.parametrize(
    ("text", "codec", "charset"),
    [
        (RUSSIAN, "cp1251", Charset.WINDOWS_1251),
        (RUSSIAN, "koi8-r", Charset.KOI8_R),
        (RUSSIAN, "cp866", Charset.IBM_866),
        (RUSSIAN, "utf-16", Charset.UTF_16_LE),
        (GERMAN, "utf-16-be", Charset.UTF_16_BE),
        (GERMAN * 2, "latin-1", Charset.WINDOWS_1252),
        (JAPANESE, "cp932", Charset.SHIFT_JIS),
        (JAPANESE, "euc_jp", Charset.EUC_JP),
        (CHINESE, "gb18030", Charset.GB18030),
        (TAIWANESE, "cp950", Charset.BIG5),
        (KOREAN, "cp949", Charset.EUC_KR),
    ],
)
def test_character_sets_are_found(
    text: str, codec: str, charset: Charset, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> None:
    content = text.encode(codec)
    expected = [Span(charset=charset, content_bytes=len(content))]
    assert charset_spans(content, vocabulary, tokenizer) == expected
