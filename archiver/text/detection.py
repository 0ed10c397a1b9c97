"""Which character sets a content is in: the cut into segments that has the fewest symbols.

    samples of each block, by every set in question ── symbols ── costs ── cheapest path

Only the compressor asks, and whatever it finds can be undone: a wrong guess costs bytes, no more.
"""

from __future__ import annotations

import itertools

import numpy as np

from archiver.text.charsets import UPPER_HALVES, UTF_16, Charset, to_utf8
from archiver.text.framing import Tokenizer, VocabularyOrder, symbols_of
from archiver.text.transforms import LARGEST_SEGMENTS, Span
from archiver.types import Int64Array

# Text falls into blocks, of which only the beginnings are tokenized: a quarter of a short content
# for each set in question, a sixteenth of 1 MiB. The right set has a quarter fewer symbols.
BLOCKS_MAX = LARGEST_SEGMENTS // 8
BLOCK_BYTES_MIN = 512
SAMPLE_BYTES = 128

# A new segment costs three or four bytes, and the model its footing: about what 16 symbols cost.
SWITCH_SYMBOLS = 16
# Text in UTF-16 has a zero byte in each space, digit and line end, all at odd or all at even
# places; parts of a content may differ in that.
ZERO_SHARE_MIN = 64
PLACE_SHARE_MIN = 4

# A set, and where it begins: UTF-16 at an even or an odd byte of the content.
State = tuple[Charset, int]
PLAIN: State = (Charset.PLAIN, 0)


def charset_spans(content: bytes, vocabulary: VocabularyOrder, tokenizer: Tokenizer) -> list[Span]:
    """Return consecutive spans that cover the content, at most LARGEST_SEGMENTS.

    Args:
        content: at least one byte.
        vocabulary, tokenizer: as for `symbols_of`.
    """
    states = _states_in_question(content)
    block_bytes = 2 * max(BLOCK_BYTES_MIN // 2, -(-len(content) // (2 * BLOCKS_MAX)))
    begins = list(range(0, len(content), block_bytes))
    path = [0] * len(begins)
    if len(states) > 1:
        costs = _costs(content, states, begins, vocabulary, tokenizer)
        costs[0] += [SWITCH_SYMBOLS * ((charset, at) != PLAIN) * (1 + at) for charset, at in states]
        path = _cheapest_path(costs)
    return _spans([states[number] for number in path], begins, len(content))


def _states_in_question(content: bytes) -> list[State]:
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
    return states


def _costs(
    content: bytes,
    states: list[State],
    begins: list[int],
    vocabulary: VocabularyOrder,
    tokenizer: Tokenizer,
) -> Int64Array:
    """int64 [blocks, states]: symbols and escaped bytes of each block, if in that set."""
    pieces = []
    for charset, offset in states:
        for begin in begins:
            first = abs(begin - offset)  # at an odd place: the same letters between zeros
            sample = content[first : first + SAMPLE_BYTES]
            if charset in UTF_16:
                sample = sample[: len(sample) // 2 * 2]
            pieces.append(to_utf8(charset, sample) + b"\n")
    symbols = symbols_of(b"".join(pieces), vocabulary, tokenizer)
    token_bytes = np.array([len(token) for token in vocabulary.token_bytes])
    escapes = symbols.ranks < 0
    escaped_bytes = np.zeros(len(symbols.ranks), np.int64)
    escaped_bytes[escapes] = [len(run) for run in symbols.escapes]
    ends = np.cumsum(np.where(escapes, escaped_bytes, token_bytes[symbols.ranks]))
    costs = np.concatenate(([0], np.cumsum(1 + escaped_bytes)))
    edges = np.searchsorted(ends, np.cumsum([len(piece) for piece in pieces]), side="right")
    of_samples = np.diff(costs[edges], prepend=0).reshape(len(states), len(begins)).T
    block_bytes = np.diff(begins, append=len(content))[:, None]
    return of_samples * block_bytes // np.minimum(block_bytes, SAMPLE_BYTES)


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


def _spans(states: list[State], begins: list[int], content_bytes: int) -> list[Span]:
    """Blocks as spans; a byte that a span of UTF-16 cannot have at its edge is plain."""
    parts: list[tuple[Charset, int]] = []
    covered = 0
    for (charset, offset), blocks in itertools.groupby(
        zip(states, itertools.pairwise([*begins, content_bytes]), strict=True), lambda pair: pair[0]
    ):
        edges = [edge for _, block in blocks for edge in block]
        begin, end = min(edges[0] + offset, edges[-1]), edges[-1]
        if charset in UTF_16:
            end -= (end - begin) % 2
        parts += [(Charset.PLAIN, begin - covered), (charset, end - begin)]
        covered = end
    parts.append((Charset.PLAIN, content_bytes - covered))
    return [
        Span(charset=charset, content_bytes=sum(length for _, length in same))
        for charset, same in itertools.groupby(
            (part for part in parts if part[1]), lambda part: part[0]
        )
    ]
