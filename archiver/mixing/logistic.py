"""The stretched domain, in which probabilities are mixed, and probabilities that adapt.

Probabilities are in units of 2^-22, stretched ones in units of 2^-12 nats. All is int64.

Source: FORMAT.md, "Mixer" (stretch and squash; adaptive probabilities).
"""

from __future__ import annotations

import numpy as np

from archiver.coding.range_coder import PROBABILITY_BITS, PROBABILITY_ONE
from archiver.compiled import compiled
from archiver.mixing.tables import (
    COUNT_BITS,
    SQUASH_BITS,
    STRETCH_MAX,
    stretch_table,
)
from archiver.types import Int32Array

COUNT_MASK = (1 << COUNT_BITS) - 1
ADAPTIVE_MIN = 16  # an adaptive probability stays this far from 0 and 1
SQUASH_STEP_BITS = 7  # of the stretched domain between two entries of squash's table
SQUASH_SHIFT = SQUASH_BITS - PROBABILITY_BITS


@compiled()
def stretch(table, probability):
    """The stretched probability; in -62,461 .. 62,461 for 1 .. 2^22 - 1.

    Between two points of the level's table the line through them is taken. Its entries differ by
    less than 2^12 and the fraction is below 2^12, so the product is below 2^24.
    """
    low = min(probability, PROBABILITY_ONE - probability)
    if low < 1 << 13:
        level, shift = (0, 0) if low < 1 << 9 else (1, 4)
    else:
        level, shift = (2, 8) if low < 1 << 17 else (3, 12)
    point = low >> shift
    here = np.int64(table[level, point])
    fraction = low & ((1 << shift) - 1)
    if fraction:  # after 1/2, the last point, there is none
        rise = np.int64(table[level, point + 1]) - here
        here += (rise * fraction) >> shift
    return here if probability <= PROBABILITY_ONE // 2 else -here


@compiled()
def clamp(stretched):
    """The nearest number that squash takes."""
    return min(max(stretched, -STRETCH_MAX), STRETCH_MAX)


@compiled()
def squash(table, stretched):
    """The probability of a stretched one in -STRETCH_MAX .. STRETCH_MAX, in 1 .. 2^22 - 1.

    Entries differ by less than 2^23 and the fraction is below 2^7: no product reaches 2^30.
    """
    offset = stretched + (16 << 12)
    point = offset >> SQUASH_STEP_BITS
    here = np.int64(table[point])
    rise = np.int64(table[point + 1]) - here
    here += (rise * (offset & ((1 << SQUASH_STEP_BITS) - 1))) >> SQUASH_STEP_BITS
    probability = (here + (1 << (SQUASH_SHIFT - 1))) >> SQUASH_SHIFT
    return min(max(probability, 1), PROBABILITY_ONE - 1)


@compiled()
def adapted(reciprocals, entry, bit, limit):
    """An adaptive probability after one more bit: the n-th moves it by 1 / (n + 1/2) of the way.

    Args:
        limit: n does not grow beyond it, at most COUNT_MAX.
    """
    count = entry & COUNT_MASK
    probability = entry >> COUNT_BITS
    probability += (((bit << PROBABILITY_BITS) - probability) * reciprocals[count]) >> 16
    probability = min(max(probability, ADAPTIVE_MIN), PROBABILITY_ONE - ADAPTIVE_MIN)
    return (probability << COUNT_BITS) | min(count + 1, limit)


@compiled()
def _stretch_frequencies(table, result):
    for frequency in range(result.shape[0]):
        result[frequency] = stretch(table, np.int64((frequency << 10) + 512))


def frequency_stretch_table() -> Int32Array:
    """stretch of (i + 1/2) / 4096: int32 [4096]."""
    result = np.empty(4096, np.int32)
    _stretch_frequencies(stretch_table(), result)
    return result
