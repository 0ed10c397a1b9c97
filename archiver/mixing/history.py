"""The bytes that each stream has coded, and where its symbols ended.

A position names one byte of one stream. Since nobody knows beforehand how long a stream's text
will be, it grows in blocks of 256 bytes from a common pool, chained in both directions; position
= 256 * block + place in the block. Block 0 is nobody's, so position 0 means "none". An entry of
the text is the byte, ENDS if a symbol ended with it, or NOT_WRITTEN.

Source: FORMAT.md, "Mixer" (history).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.mixing.layout import BLOCK_BITS, BLOCK_MASK

BYTE = 0xFF
ENDS = 0x100
NOT_WRITTEN = 0xFFFF
NEXT, PREVIOUS = 0, 1  # columns of `chain`


@compiled()
def following(chain, position):
    """The stream's next position, or 0 where its text does not reach that far."""
    if (position + 1) & BLOCK_MASK:
        return position + 1
    return np.int64(chain[position >> BLOCK_BITS, NEXT]) << BLOCK_BITS


@compiled()
def preceding(chain, position):
    """The stream's position before, or 0 at its beginning."""
    if position & BLOCK_MASK:
        return position - 1
    block = np.int64(chain[position >> BLOCK_BITS, PREVIOUS])
    return (block << BLOCK_BITS) + BLOCK_MASK if block else np.int64(0)


@compiled()
def open_streams(state):
    """Give every stream its first block."""
    count = state.streams.shape[0]
    for number in range(count):
        position = np.int64(number + 1) << BLOCK_BITS
        state.streams[number].position = position
        state.streams[number].line_start = position
    state.frame[0].blocks = count + 1


@compiled()
def write(frame, stream, text, chain, byte):
    """Append a byte to a stream, whose `position` moves on to that of the next."""
    position = stream.position
    text[position] = byte
    stream.position = position + 1
    if (position + 1) & BLOCK_MASK == 0:
        block = frame.blocks
        frame.blocks = block + 1
        chain[position >> BLOCK_BITS, NEXT] = block
        chain[block, PREVIOUS] = position >> BLOCK_BITS
        stream.position = block << BLOCK_BITS
