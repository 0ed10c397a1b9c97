"""What a stream knows of its own text, and the contexts that follow from it.

`note_byte` and `note_end` keep a stream's columns up to date; `find_contexts` makes of them one
number of 64 bits for each context, in which decisions that may behave alike look alike.

Source: FORMAT.md, "Mixer" (contexts).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.mixing.hashing import join
from archiver.mixing.history import BYTE, ENDS, following, preceding, write
from archiver.mixing.layout import COLUMNS, MATCHES
from archiver.mixing.matching import follow

LEAST_MATCH_BYTES = (12, 5)
LINE_FEED = 10
DELIMITERS = np.zeros(256, np.bool_)
DELIMITERS[list(b' \t,;:="[]()/')] = True


@compiled()
def _note_line(stream, text, chain, byte):
    """Keep up with column and line, after `byte` was written."""
    if byte == LINE_FEED:
        stream.above = stream.line_start
        stream.line_start = stream.position
        stream.column = 0
        return
    stream.column += 1
    above = stream.above
    if above and text[above] & BYTE != LINE_FEED:
        stream.above = following(chain, above)


@compiled()
def _note_text(stream, byte):
    """Keep up with the last bytes, word, field and symbol."""
    text = np.uint64(byte)
    stream.last_16 = (stream.last_16 << np.uint64(8)) | (stream.last_8 >> np.uint64(56))
    stream.last_8 = (stream.last_8 << np.uint64(8)) | text
    lower = byte | 0x20 if 65 <= byte <= 90 else byte
    if 97 <= lower <= 122 or byte >= 128:
        stream.word = join(stream.word, np.uint64(lower))
    elif stream.word != 0:
        stream.word_2 = stream.word_1
        stream.word_1 = stream.word
        stream.word = 0
    if byte == LINE_FEED:
        stream.field = 0
        stream.field_1 = 0
    elif DELIMITERS[byte]:
        stream.field_1 = stream.field
        stream.field = text
    else:
        stream.field = join(stream.field, text)
    stream.symbol = join(stream.symbol, text)
    stream.symbol_bytes += 1


@compiled()
def note_byte(state, number, byte):
    """One more byte of a stream is known."""
    frame = state.frame[0]
    stream = state.streams[number]
    text = state.text
    chain = state.chain
    write(frame, stream, text, chain, byte)
    _note_line(stream, text, chain, byte)
    _note_text(stream, byte)
    for model in range(MATCHES):
        if frame.matches[model]:
            table = state.match_table[model]
            follower = stream.followers[model]
            least = LEAST_MATCH_BYTES[model]
            follow(stream, follower, text, chain, table, frame.match_shift, byte, least)
    frame.group = -1


@compiled()
def note_end(state, number):
    """A stream's symbol ends with its last byte."""
    stream = state.streams[number]
    state.text[preceding(state.chain, stream.position)] |= ENDS
    stream.symbol_3 = stream.symbol_2
    stream.symbol_2 = stream.symbol_1
    stream.symbol_1 = stream.symbol
    stream.symbol = 0
    stream.symbol_bytes = 0


@compiled()
def _expected_byte(stream, text):
    """What the first match model that has a pointer expects, with how sure it is; 0 for none."""
    for model in range(MATCHES):
        pointer = stream.followers[model].pointer
        if pointer:
            length = min(stream.followers[model].matched >> 2, 7)
            return 1 + np.int64(text[pointer] & BYTE) + 256 * length
    return np.int64(0)


@compiled()
def _bytes_above(stream, text, chain):
    """The byte as far along in the line before, and 256 times the one after it."""
    if stream.above == 0:
        return np.int64(0)
    byte = np.int64(text[stream.above] & BYTE)
    if byte == LINE_FEED:
        return byte
    return byte + 256 * np.int64(text[following(chain, stream.above)] & BYTE)


@compiled()
def find_contexts(keys, stream, text, chain):
    """keys[i] stands for context i of the stream's next byte: uint64 [CONTEXTS]."""
    last = stream.last_8
    byte = last & np.uint64(0xFF)
    symbol = stream.symbol
    symbol_1 = join(symbol, stream.symbol_1)
    symbol_2 = join(symbol_1, stream.symbol_2)
    lines = np.uint64(_bytes_above(stream, text, chain))
    column = np.uint64(min(stream.column, COLUMNS - 1))
    keys[0] = 0
    keys[1] = byte
    keys[2] = last & np.uint64(0xFFFF)
    keys[3] = last & np.uint64(0xFFFFFF)
    keys[4] = last & np.uint64(0xFFFFFFFF)
    keys[5] = last & np.uint64(0xFFFFFFFFFFFF)
    keys[6] = last & np.uint64(0xFF00FF00)
    keys[7] = join(stream.word, byte)
    keys[8] = join(join(stream.word, stream.word_1), byte)
    keys[9] = join(join(stream.word, stream.word_2), byte)
    keys[10] = symbol
    keys[11] = symbol_1
    keys[12] = symbol_2
    keys[13] = join(symbol_2, stream.symbol_3)
    keys[14] = (lines & np.uint64(0xFF)) | (column << np.uint64(8))
    keys[15] = lines | (byte << np.uint64(16))
    keys[16] = join(stream.field, stream.field_1)
    keys[17] = np.uint64(_expected_byte(stream, text)) | (byte << np.uint64(16))
    for number in range(keys.shape[0]):
        keys[number] = join(keys[number], np.uint64(number) << np.uint64(56))
