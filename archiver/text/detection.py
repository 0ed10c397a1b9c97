"""Which character sets a content is in: the cut into segments that has the fewest symbols.

    samples of each block, by every set in question ── symbols ── costs ── cheapest path

Only the compressor asks, and whatever it finds can be undone: a wrong guess costs bytes, no more.
"""

from __future__ import annotations

import itertools
import re
from itertools import pairwise

import numpy as np

from archiver.text.charsets import DOUBLE_BYTE, UPPER_HALVES, UTF_16, Charset, to_utf8
from archiver.text.double_byte import SECOND_BYTE_MIN, double_byte_set
from archiver.text.framing import Tokenizer, VocabularyOrder, symbols_of
from archiver.text.transforms import LARGEST_SEGMENTS, Span
from archiver.types import Int64Array

# Text falls into blocks, of which only the beginnings are tokenized: for each set in question all
# of a short content, a quarter of a longer one, a sixteenth of 1 MiB. The right set has a quarter
# fewer symbols.
BLOCKS_MAX = LARGEST_SEGMENTS // 8
BLOCK_BYTES_MIN = 512
SAMPLE_BYTES = 128
SHORT_BYTES = 8192

# A new segment costs three or four bytes, and the model its footing: about what 16 symbols cost.
SWITCH_SYMBOLS = 16
# Text in UTF-16 has a zero byte in each space, digit and line end, all at odd or all at even
# places; parts of a content may differ in that.
ZERO_SHARE_MIN = 64
PLACE_SHARE_MIN = 4

# Text in a set of two bytes has hardly any bytes that belong to no character; other text has them
# wherever an odd number of bytes beyond ASCII stands between two of ASCII.
STRAY_SHARE_MAX = 1 / 16
STRAY = re.compile(rb"\xed[\xb2\xb3][\x80-\xbf]")
ASCII = bytes(range(0x80))
# Bytes at the beginning of a content that may be read askew.
SURE_BYTES = 32
# Korean is nearly all syllables of these two bytes.  A model whose tokenizer lacks them spends
# three symbols on each, but two of these are easy to predict: they cost about as much as two.
SYLLABLE = re.compile(rb"[\xb0-\xc8][\xa1-\xfe]")
SYLLABLE_SHARE_MIN = 7 / 8
SYLLABLE_SYMBOLS = 2

# A set, and where it begins: UTF-16 at an even or an odd byte of the content; also a set of two
# bytes may begin after the second byte of a character.
State = tuple[Charset, int]
PLAIN: State = (Charset.PLAIN, 0)


def charset_spans(content: bytes, vocabulary: VocabularyOrder, tokenizer: Tokenizer) -> list[Span]:
    """Return consecutive spans that cover the content, at most LARGEST_SEGMENTS.

    Args:
        content: at least one byte.
        vocabulary, tokenizer: as for `symbols_of`.
    """
    block_bytes = 2 * max(BLOCK_BYTES_MIN // 2, -(-len(content) // (2 * BLOCKS_MAX)))
    begins = list(range(0, len(content), block_bytes))
    states = _states_in_question(content, begins)
    path = [0] * len(begins)
    if len(states) > 1:
        costs = _costs(content, states, begins, vocabulary, tokenizer)
        costs[0] += [SWITCH_SYMBOLS * ((charset, at) != PLAIN) * (1 + at) for charset, at in states]
        path = _cheapest_path(costs)
    return _spans([states[number] for number in path], begins, content)


def _states_in_question(content: bytes, begins: list[int]) -> list[State]:
    """PLAIN, and the sets that this content may have parts in."""
    states = [PLAIN]
    zeros = content.count(0)
    if zeros * ZERO_SHARE_MIN >= len(content):
        sets = [Charset.UTF_16_BE, Charset.UTF_16_LE]
        for place in (0, 1):
            if content[place::2].count(0) * PLACE_SHARE_MIN >= zeros:
                states += [(sets[place], 0), (sets[1 - place], 1)]
    if len(content) - len(content.decode("utf-8", "ignore").encode()) >= SWITCH_SYMBOLS:
        states += [(charset, 0) for charset in UPPER_HALVES]
        # Where nothing shows soon how the first bytes belong together, both ways are tried.
        offsets = (0,) if min(content[:SURE_BYTES]) < SECOND_BYTE_MIN else (0, 1)
        states += [
            (charset, offset)
            for charset in DOUBLE_BYTE
            for offset in offsets
            if _has_few_strays(content, (charset, offset), begins)
        ]
    return states


def _has_few_strays(content: bytes, state: State, begins: list[int]) -> bool:
    """Whether some of the blocks may be in that set of two bytes."""
    found = 0
    for begin in begins:
        sample = _sample(content, state, begin)
        beyond_ascii = len(sample.translate(None, ASCII))
        strays = len(STRAY.findall(to_utf8(state[0], sample)))
        if strays <= beyond_ascii * STRAY_SHARE_MAX:
            found += beyond_ascii
    return found >= SWITCH_SYMBOLS


def _sample(content: bytes, state: State, begin: int) -> bytes:
    """Whole characters from the beginning of a block, if it is in that set."""
    charset, offset = state
    sample_bytes = _sample_bytes(content)
    if charset in DOUBLE_BYTE:
        boundary = double_byte_set(DOUBLE_BYTE[charset]).boundary
        end = min(begin + sample_bytes, len(content))
        return content[boundary(content, begin, offset) : boundary(content, end, offset)]
    first = abs(begin - offset)  # at an odd place: the same letters between zeros
    sample = content[first : first + sample_bytes]
    return sample[: len(sample) // 2 * 2] if charset in UTF_16 else sample


def _sample_bytes(content: bytes) -> int:
    return SAMPLE_BYTES if len(content) > SHORT_BYTES else BLOCK_BYTES_MIN


def _costs(
    content: bytes,
    states: list[State],
    begins: list[int],
    vocabulary: VocabularyOrder,
    tokenizer: Tokenizer,
) -> Int64Array:
    """int64 [blocks, states]: symbols and escaped bytes of each block, if in that set."""
    samples = [(state[0], _sample(content, state, begin)) for state in states for begin in begins]
    of_samples = _costs_of(samples, vocabulary, tokenizer)
    korean = [
        index
        for index, (charset, sample) in enumerate(samples)
        if charset is Charset.EUC_KR and _is_korean(sample)
    ]
    if korean:
        rest = [(Charset.EUC_KR, SYLLABLE.sub(b"", samples[index][1])) for index in korean]
        syllables = [
            (len(samples[index][1]) - len(bare)) // 2
            for index, (_, bare) in zip(korean, rest, strict=True)
        ]
        less = _costs_of(rest, vocabulary, tokenizer) + SYLLABLE_SYMBOLS * np.array(syllables)
        of_samples[korean] = np.minimum(of_samples[korean], less)
    block_bytes = np.diff(begins, append=len(content))[:, None]
    of_blocks = of_samples.reshape(len(states), len(begins)).T
    return of_blocks * block_bytes // np.minimum(block_bytes, _sample_bytes(content))


def _costs_of(
    samples: list[tuple[Charset, bytes]], vocabulary: VocabularyOrder, tokenizer: Tokenizer
) -> Int64Array:
    """int64 [samples]: symbols and escaped bytes of each, about."""
    pieces = [to_utf8(charset, sample) + b"\n" for charset, sample in samples]
    symbols = symbols_of(b"".join(pieces), vocabulary, tokenizer)
    token_bytes = np.array([len(token) for token in vocabulary.token_bytes])
    escapes = symbols.ranks < 0
    escaped_bytes = np.zeros(len(symbols.ranks), np.int64)
    escaped_bytes[escapes] = [len(run) for run in symbols.escapes]
    ends = np.cumsum(np.where(escapes, escaped_bytes, token_bytes[symbols.ranks]))
    costs = np.concatenate(([0], np.cumsum(1 + escaped_bytes)))
    edges = np.searchsorted(ends, np.cumsum([len(piece) for piece in pieces]), side="right")
    return np.diff(costs[edges], prepend=0)


def _is_korean(sample: bytes) -> bool:
    syllable_bytes = 2 * len(SYLLABLE.findall(sample))
    beyond_ascii = len(sample.translate(None, ASCII))
    return syllable_bytes > 0 and syllable_bytes >= SYLLABLE_SHARE_MIN * beyond_ascii


def _cheapest_path(costs: Int64Array) -> list[int]:
    """The state of each block, for the smallest sum of costs and switches."""
    total = costs[0]
    before = []
    for row in costs[1:]:
        best = int(total.argmin())
        stays = total <= total[best] + SWITCH_SYMBOLS
        before.append(np.where(stays, np.arange(len(total)), best))
        total = np.where(stays, total, total[best] + SWITCH_SYMBOLS) + row
    path = [int(total.argmin())]
    for states in reversed(before):
        path.append(int(states[path[-1]]))
    return path[::-1]


def _spans(states: list[State], begins: list[int], content: bytes) -> list[Span]:
    """Blocks as spans; a byte that a span of UTF-16 cannot have at its edge is plain."""
    runs = [
        (state, next(blocks)[1])
        for state, blocks in itertools.groupby(
            zip(states, begins, strict=True), lambda block: block[0]
        )
    ]
    cuts = [_cut(content, before, after, at) for (before, _), (after, at) in pairwise(runs)]
    parts: list[tuple[Charset, int]] = []
    covered = 0
    for ((charset, offset), _), (begin, end) in zip(
        runs, pairwise((0, *cuts, len(content))), strict=True
    ):
        if charset in UTF_16 or not begin:
            begin = min(begin + (offset - begin) % 2, end)
        if charset in UTF_16:
            end -= (end - begin) % 2
        parts += [(Charset.PLAIN, begin - covered), (charset, end - begin)]
        covered = end
    parts.append((Charset.PLAIN, len(content) - covered))
    return [
        Span(charset=charset, content_bytes=sum(length for _, length in same))
        for charset, same in itertools.groupby(
            (part for part in parts if part[1]), lambda part: part[0]
        )
    ]


def _cut(content: bytes, before: State, after: State, at: int) -> int:
    """Where a character begins, near the place at which one set ends and another begins."""
    for charset, offset in (after, before):
        if charset in DOUBLE_BYTE:
            return double_byte_set(DOUBLE_BYTE[charset]).boundary(content, at, offset)
    return at
