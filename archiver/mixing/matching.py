"""Match models: what followed when the stream's last bytes occurred before, in any stream.

A model follows one pointer into the history. While fewer bytes have matched than it asks for, it
looks for a better pointer by a hash of the last bytes; a candidate counts after its bytes were
compared. A pointer is kept over bytes that differ, so that a line of a log follows the line before
beyond a number that changed.

Source: FORMAT.md, "Mixer" (match models).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.mixing.hashing import join
from archiver.mixing.history import BYTE, ENDS, NOT_WRITTEN, following, preceding

COMPARED_MAX = 32
MATCHED_MAX = 65_535
ALL_MISSED = 0xFF


@compiled()
def length_class(length):
    """0 to 14 for how many bytes have matched."""
    if length < 16:
        return length if length < 8 else 8 + ((length - 8) >> 2)
    if length < 64:
        return 10 + ((length - 16) >> 3) if length < 32 else np.int64(12)
    return np.int64(13) if length < 256 else np.int64(14)


@compiled()
def miss_class(misses):
    """0 to 7 for which of the last eight bytes were not as expected."""
    return (
        np.int64((misses & 0x01) != 0)
        + 2 * np.int64((misses & 0x06) != 0)
        + 4 * np.int64((misses & 0xF8) != 0)
    )


@compiled()
def _common_bytes(text, chain, a, b):
    """How many bytes before the positions a and b are the same, up to COMPARED_MAX."""
    common = np.int64(0)
    while common < COMPARED_MAX:
        a = preceding(chain, a)
        b = preceding(chain, b)
        if a == 0 or b == 0 or (text[a] ^ text[b]) & BYTE:
            break
        common += 1
    return common


@compiled()
def _hash_of_last(stream, count):
    """Of a stream's last `count` bytes, 1 to 16; of zeros before its beginning."""
    if count <= 8:
        return join(np.uint64(count), stream.last_8 << np.uint64(8 * (8 - count)))
    nearer = join(np.uint64(count), stream.last_8)
    return join(nearer, stream.last_16 << np.uint64(8 * (16 - count)))


@compiled()
def follow(stream, follower, text, chain, table, shift, byte, least):
    """Move a stream's match model on, after `byte` was written.

    Args:
        table: uint32 [buckets], of the model; shift: uint64, 64 - log2 of its length.
        least: how many bytes a new match must have in common.
    """
    pointer = follower.pointer
    matched = follower.matched
    if pointer:
        passed = np.int64(text[pointer])
        missed = np.int64(passed & BYTE != byte)
        matched = np.int64(0) if missed else min(matched + 1, MATCHED_MAX)
        follower.misses = ((follower.misses << 1) | missed) & ALL_MISSED
        follower.ended = np.int64(passed & ENDS != 0)
        pointer = following(chain, pointer)
        if follower.misses == ALL_MISSED or text[pointer] == NOT_WRITTEN:
            pointer = np.int64(0)
            matched = np.int64(0)
    bucket = np.int64(_hash_of_last(stream, least) >> shift)
    if pointer == 0 or matched < least:
        candidate = np.int64(table[bucket])
        if text[candidate] != NOT_WRITTEN:
            common = _common_bytes(text, chain, candidate, stream.position)
            if common >= least and common > matched:
                pointer = candidate
                matched = common
                follower.misses = 0
                follower.ended = np.int64(text[preceding(chain, candidate)] & ENDS != 0)
    table[bucket] = stream.position
    follower.pointer = pointer
    follower.matched = matched
