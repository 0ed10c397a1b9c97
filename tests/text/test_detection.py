"""Which character sets are found, with a tokenizer that knows the letters of two languages."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from archiver.text.charsets import DOUBLE_BYTE, UTF_16, Charset
from archiver.text.detection import SWITCH_SYMBOLS, _cheapest_path, charset_spans
from archiver.text.framing import symbols_of
from archiver.text.transforms import LARGEST_SEGMENTS, Span, transform
from tests.support.tiny_vocabulary import plain_vocabulary

RUSSIAN = (
    "Так говорила в июле 1805 года известная Анна Павловна Шерер, фрейлина и приближенная "
    "императрицы Марии Феодоровны, встречая важного и чиновного князя Василия, первого "
    "приехавшего на вечер. Анна Павловна кашляла несколько дней, это был грипп, как она "
    "говорила (грипп был тогда новое слово, употреблявшееся только редкими).\r\n"
)
GERMAN = (
    "Im äußeren Hof standen die Bäume noch kahl, während über den Dächern schon die ersten "
    "Schwalben kreisten; für die Gäste hatte man Stühle an die südliche Mauer gerückt.\r\n"
)
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で"
    "ニャーニャー泣いていた事だけは記憶している。<b>吾輩</b>はここで始めて人間というものを見た。\r\n"
)
CHINESE = (
    "宝玉听了不觉心中一动便说道这个妹妹我曾见过的。贾母笑道可又是胡说你又何曾见过他。"
    "我们今天在<b>北京</b>召开会议讨论经济发展和技术创新的问题。\r\n"
)
TAIWANESE = (
    "寶玉聽了不覺心中一動便說道這個妹妹我曾見過的。賈母笑道可又是胡說你又何曾見過他。"
    "我們今天在<b>台北</b>召開會議討論經濟發展和技術創新的問題。\r\n"
)
KOREAN = (
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 "
    "이성과 <b>양심</b>을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.\r\n"
)
ENGLISH = "It was the best of times, it was the worst of times; all 1905 of them.\r\n"

_SMALL = [chr(letter) for letter in range(0x430, 0x450)]
_PAIRS = ["".join(pair) for pair in itertools.product(_SMALL, _SMALL)]
_WORDS = [f" {word}" for word in (ENGLISH + GERMAN).split()]
# Korean is not among them: each of its syllables is three symbols.
_FREQUENT = sorted({*JAPANESE, *CHINESE, *TAIWANESE} - set(map(chr, range(128))))
TOKENS = [
    *(bytes([byte]) for byte in range(256) if byte not in (0xC0, 0xC1, *range(0xF5, 0x100))),
    *(token.encode() for token in (*_PAIRS, *_WORDS, *"äöüßé", *_FREQUENT)),
]
IDS = {token: number for number, token in enumerate(TOKENS)}
LONGEST = max(map(len, TOKENS))
VOCABULARY = plain_vocabulary(TOKENS)


class LongestTokens:
    """Takes the longest token at each place."""

    def encode(self, text: str) -> NDArray[np.int32]:
        data, at = text.encode(), 0
        found = []
        while at < len(data):
            token = next(
                data[at : at + size]
                for size in range(LONGEST, 0, -1)
                if data[at : at + size] in IDS
            )
            found.append(IDS[token])
            at += len(token)
        return np.array(found, np.int32)


class NoTokenizer:
    """Must not be asked."""

    def encode(self, text: str) -> NDArray[np.int32]:
        raise AssertionError(text)


def spans_of(content: bytes) -> list[tuple[Charset, int]]:
    found = charset_spans(content, VOCABULARY, LongestTokens())
    return [(span.charset, span.content_bytes) for span in found]


@pytest.mark.parametrize(
    ("text", "codec", "charset"),
    [
        (RUSSIAN, "cp1251", Charset.WINDOWS_1251),
        (RUSSIAN, "koi8-r", Charset.KOI8_R),
        (RUSSIAN, "cp866", Charset.IBM_866),
        (RUSSIAN, "utf-16-le", Charset.UTF_16_LE),
        (RUSSIAN, "utf-16-be", Charset.UTF_16_BE),
        (RUSSIAN, "utf-16", Charset.UTF_16_LE),
        (GERMAN, "latin-1", Charset.WINDOWS_1252),
        (GERMAN, "cp1252", Charset.WINDOWS_1252),
        (GERMAN, "utf-16-le", Charset.UTF_16_LE),
        (ENGLISH, "utf-16-be", Charset.UTF_16_BE),
        (JAPANESE, "cp932", Charset.SHIFT_JIS),
        (JAPANESE, "euc_jp", Charset.EUC_JP),
        (CHINESE, "gb18030", Charset.GB18030),
        (TAIWANESE, "cp950", Charset.BIG5),
        (KOREAN, "cp949", Charset.EUC_KR),
    ],
)
@pytest.mark.parametrize("count", [2, 9])
def test_the_right_set_is_found(text: str, codec: str, charset: Charset, count: int) -> None:
    content = (text * count).encode(codec)
    assert spans_of(content) == [(charset, len(content))]


@pytest.mark.parametrize("content", [b"a", ENGLISH.encode(), (RUSSIAN * 40).encode(), b"\xff" * 9])
def test_utf_8_needs_no_tokenizer(content: bytes) -> None:
    found = charset_spans(content, VOCABULARY, NoTokenizer())
    assert found == [Span(charset=Charset.PLAIN, content_bytes=len(content))]


@pytest.mark.parametrize(
    ("codec", "charset"), [("utf-16-le", Charset.UTF_16_LE), ("utf-16-be", Charset.UTF_16_BE)]
)
def test_utf_16_may_begin_and_end_in_the_middle_of_a_unit(codec: str, charset: Charset) -> None:
    content = ("\n" + RUSSIAN * 3 + "\n").encode(codec)
    units = (len(content) - 2) // 2 * 2
    assert spans_of(content[1:]) == [(Charset.PLAIN, 1), (charset, units)]
    assert spans_of(content[:-1]) == [(charset, units), (Charset.PLAIN, 1)]
    assert spans_of(content[1:-1]) == [
        (Charset.PLAIN, 1), (charset, units - 2), (Charset.PLAIN, 1),
    ]  # fmt: skip


DOUBLE_BYTE_TEXTS = [
    (JAPANESE, "cp932", Charset.SHIFT_JIS),
    (JAPANESE, "euc_jp", Charset.EUC_JP),
    (CHINESE, "gb18030", Charset.GB18030),
    (TAIWANESE, "cp950", Charset.BIG5),
    (KOREAN, "cp949", Charset.EUC_KR),
]


@pytest.mark.parametrize(("text", "codec", "charset"), DOUBLE_BYTE_TEXTS)
@pytest.mark.parametrize("cut", [1, 20, 37])
def test_text_of_two_bytes_shrinks_to_what_utf_8_takes(
    text: str, codec: str, charset: Charset, cut: int
) -> None:
    """Also from the second byte of a character, if that is where the frame was cut."""
    content = (text * 4).encode(codec)[cut:-1]
    found = charset_spans(content, VOCABULARY, LongestTokens())
    transformed, transforms = transform(content, found)
    assert transforms.undo(transformed, len(content)) == content
    symbols = symbols_of(transformed, VOCABULARY, LongestTokens())
    expected = symbols_of((text * 4).replace("\r\n", "\n").encode(), VOCABULARY, LongestTokens())
    assert sum(map(len, symbols.escapes)) <= 8
    assert len(symbols.ranks) <= len(expected.ranks) + 2 * SWITCH_SYMBOLS


@pytest.mark.parametrize(("text", "codec", "charset"), DOUBLE_BYTE_TEXTS[1:3])
@pytest.mark.parametrize("begin", [0, 1])
def test_text_without_ascii_may_begin_in_the_middle_of_a_character(
    text: str, codec: str, charset: Charset, begin: int
) -> None:
    letters = "".join(letter for letter in text if letter > "\x7f") * 9
    content = letters.encode(codec)[begin:]
    expected = [(Charset.PLAIN, 1)] * begin + [(charset, len(content) - begin)]
    assert spans_of(content) == expected


def test_a_part_in_a_set_of_two_bytes_ends_with_a_character() -> None:
    parts = [
        (Charset.WINDOWS_1251, (RUSSIAN * 8).encode("cp1251")),
        (Charset.GB18030, (CHINESE * 19).encode("gb18030")),
        (Charset.UTF_16_LE, (RUSSIAN * 8).encode("utf-16-le")),
        (Charset.SHIFT_JIS, (JAPANESE * 19).encode("cp932")),
    ]
    content = b"".join(part for _, part in parts)
    found = charset_spans(content, VOCABULARY, LongestTokens())
    long = [span.charset for span in found if span.content_bytes > 512]
    assert long == [charset for charset, _ in parts]
    transformed, transforms = transform(content, found)
    assert transforms.undo(transformed, len(content)) == content


@pytest.mark.parametrize("text", [RUSSIAN, GERMAN, RUSSIAN.upper(), RUSSIAN.replace(" ", "")])
@pytest.mark.parametrize("codec", ["cp1251", "koi8-r", "cp866", "cp1252"])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_other_text_is_not_taken_for_east_asian(text: str, codec: str, count: int) -> None:
    content = (text * count).encode(codec, "ignore")
    assert not {charset for charset, _ in spans_of(content)} & set(DOUBLE_BYTE)


def test_parts_of_a_content_have_sets_of_their_own() -> None:
    parts = [
        (Charset.WINDOWS_1251, (RUSSIAN * 8).encode("cp1251")),
        (Charset.KOI8_R, (RUSSIAN * 9).encode("koi8-r")),
        (Charset.PLAIN, (RUSSIAN * 8).encode()),
        (Charset.UTF_16_LE, (RUSSIAN * 8).encode("utf-16-le")),
        (Charset.WINDOWS_1251, (RUSSIAN * 8).encode("cp1251")),
    ]
    found = spans_of(b"".join(part for _, part in parts))
    # A block in which two parts meet may be a segment of its own.
    assert [charset for charset, count in found if count > 512] == [charset for charset, _ in parts]
    edges = list(itertools.accumulate(count for _, count in found))
    for end in itertools.accumulate(len(part) for _, part in parts):
        assert min(abs(edge - end) for edge in edges) < 512


def test_bytes_that_are_not_text_do_not_hide_the_set_of_the_rest() -> None:
    text = (RUSSIAN * 10).encode("cp1251")
    found = spans_of(text + random.Random(1).randbytes(3000) + text)
    for first in (found[0], found[-1]):
        assert first[0] is Charset.WINDOWS_1251
        assert first[1] > len(text) - 512


@given(content=st.binary(min_size=1, max_size=2000), zeros=st.integers(0, 600))
@settings(max_examples=40, deadline=None)
def test_any_content_is_covered_and_comes_back(content: bytes, zeros: int) -> None:
    content = bytes(zeros) + content
    found = charset_spans(content, VOCABULARY, LongestTokens())
    assert sum(span.content_bytes for span in found) == len(content)
    assert all(span.content_bytes % 2 == 0 for span in found if span.charset in UTF_16)
    assert all(a.charset is not b.charset for a, b in itertools.pairwise(found))
    text, transforms = transform(content, found)
    assert transforms.undo(text, len(content)) == content


def test_a_long_content_has_few_segments() -> None:
    chance = random.Random(2)
    parts = [RUSSIAN.encode(chance.choice(["cp1251", "koi8-r"])) * 9 for _ in range(60)]
    found = spans_of(b"".join(parts))
    assert 20 < len(found) <= LARGEST_SEGMENTS // 4


@given(
    costs=st.lists(
        st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=5
    ).map(np.array)
)
def test_the_path_is_the_cheapest(costs: NDArray[np.int64]) -> None:
    def cost(path: tuple[int, ...]) -> int:
        switches = sum(a != b for a, b in itertools.pairwise(path))
        return int(costs[range(len(path)), path].sum()) + SWITCH_SYMBOLS * switches

    path = tuple(_cheapest_path(costs))
    assert cost(path) == min(map(cost, itertools.product(range(3), repeat=len(costs))))
