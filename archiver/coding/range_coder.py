"""A binary range coder: 32-bit range, probabilities of 22 bits, carries propagated into the output.

One function, `code_bit`, serves both directions: it narrows the range by the same product whether
it writes the bit or finds it. The coder's state is an int64 vector, so that compiled loops can
pass it around; its fields are named by the constants below.

    encode                                        decode
    bound = range * p1 >> 22                      bound = range * p1 >> 22
    bit 1: range = bound                          code < bound: bit 1, range = bound
    bit 0: low += bound, range -= bound           else: bit 0, code -= bound, range -= bound
    while range < 2^24: a byte goes out           while range < 2^24: a byte comes in

Why it is safe: range stays in 2^24 .. 2^32 - 1 and p1 in 1 .. 2^22 - 1, so bound is in
4 .. range - 1 and neither part is ever empty. low + range never exceeds the value of the bytes
already written by more than one carry, which always finds a byte below 255 to stop at.

Source: FORMAT.md, "Predictor frame payload" (range coder); the carry handling follows
G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message"
(1979).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.types import Int64Array, UInt8Array

PROBABILITY_BITS = 22
PROBABILITY_ONE = 1 << PROBABILITY_BITS
RANGE_MIN = 1 << 24
RANGE_INITIAL = (1 << 32) - 1
WORD = 1 << 32

# Fields of a coder's state.
DECODING = 0  # 0 while encoding, 1 while decoding
LOW = 1  # encoding: the interval's lower end; decoding: the code's distance from it
RANGE = 2
POSITION = 3  # next byte of the buffer
FIELDS = 4


@compiled()
def _next_byte(state, buffer):
    """The next payload byte; past the end zeros, which the encoder leaves out."""
    position = state[POSITION]
    state[POSITION] = position + 1
    return np.int64(buffer[position]) if position < buffer.shape[0] else np.int64(0)


@compiled()
def _carry(state, buffer):
    """Add one to the number that the bytes written so far stand for."""
    i = state[POSITION] - 1
    while buffer[i] == 255:
        buffer[i] = 0
        i -= 1
    buffer[i] += np.uint8(1)


@compiled()
def code_bit(state, buffer, probability, bit):
    """Code one bit; returns it, which in decoding is news.

    Args:
        state: int64 [FIELDS]. buffer: uint8, written or read at state[POSITION]; in encoding it
            must have room for three more bytes.
        probability: of a 1, in units of 2^-22, 1 .. 2^22 - 1.
        bit: 0 or 1; ignored in decoding.
    """
    bound = (state[RANGE] * np.int64(probability)) >> PROBABILITY_BITS
    if state[DECODING]:
        bit = np.int64(1) if state[LOW] < bound else np.int64(0)
        if bit:
            state[RANGE] = bound
        else:
            state[LOW] -= bound
            state[RANGE] -= bound
        while state[RANGE] < RANGE_MIN:
            state[RANGE] <<= 8
            state[LOW] = (state[LOW] << 8) | _next_byte(state, buffer)
        return bit
    if bit:
        state[RANGE] = bound
    else:
        state[LOW] += bound
        state[RANGE] -= bound
        if state[LOW] >= WORD:
            state[LOW] -= WORD
            _carry(state, buffer)
    while state[RANGE] < RANGE_MIN:
        buffer[state[POSITION]] = np.uint8(state[LOW] >> 24)
        state[POSITION] += 1
        state[LOW] = (state[LOW] << 8) & (WORD - 1)
        state[RANGE] <<= 8
    return np.int64(bit)


def new_encoder() -> Int64Array:
    """State of an encoder that has written nothing."""
    state = np.zeros(FIELDS, np.int64)
    state[RANGE] = RANGE_INITIAL
    return state


def new_decoder(buffer: UInt8Array) -> Int64Array:
    """State of a decoder that has read the first four bytes of `buffer`."""
    state = np.zeros(FIELDS, np.int64)
    state[DECODING] = 1
    state[RANGE] = RANGE_INITIAL
    for _ in range(4):
        state[LOW] = (state[LOW] << 8) | _next_byte(state, buffer)
    return state


def finish(state: Int64Array, buffer: UInt8Array) -> bytes:
    """The encoder's output, closed by the fewest bytes that still name its interval.

    A decoder reads zeros past the end, so trailing zero bytes are left out.
    """
    low, width = int(state[LOW]), int(state[RANGE])
    for kept in range(5):
        unit = 1 << (32 - 8 * kept)
        value = -(-low // unit) * unit
        if value < low + width:
            break
    if value >= WORD:
        value -= WORD
        _carry(state, buffer)
    written = buffer[: state[POSITION]].tobytes() + value.to_bytes(4, "big")[:kept]
    return written.rstrip(b"\0")
