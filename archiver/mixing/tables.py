"""Constants of the mixer made by exact arithmetic: the stretched domain, where maps start.

stretch(p) = ln(p / (1 - p)) in units of 2^-12, squash its inverse. Nothing here calls libm: series
are summed in integers of 96 fractional bits, whose errors stay far below what rounding to the
tables' units could tell. Tests pin the SHA-256 of the tables.

Source: FORMAT.md, "Mixer" (stretch and squash; adaptive probabilities).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from archiver.coding.range_coder import PROBABILITY_BITS, PROBABILITY_ONE
from archiver.mixing.layout import EXPECTATIONS, HISTORIES, MAP_POINTS, VOTES
from archiver.types import Int32Array, Int64Array, UInt32Array

STRETCH_BITS = 12  # fraction of the stretched domain, which is in nats
STRETCH_MAX = (1 << 16) - 32  # 15.99 nats; stretch(1 - 2^-22) is 15.25
SQUASH_BITS = 30  # fraction of squash's table

# stretch has four levels of 512 points each: 1, 16, 256 and 4096 units of 2^-22 apart.
LEVEL_BITS = 9
LEVEL_SHIFTS = (0, 4, 8, 12)

# An adaptive probability holds a probability above a count of how often it was adapted.
COUNT_BITS = 10
COUNT_MAX = 255
START_COUNT = 6  # of probabilities that start with a good guess

_FIXED_BITS = 96
_ONE = 1 << _FIXED_BITS


def _two_atanh(numerator: int, denominator: int) -> int:
    """2 atanh(n / d) = ln((d + n) / (d - n)) for 0 <= n / d <= 1/3, in units of 2^-96."""
    power = (numerator << _FIXED_BITS) // denominator
    square = power * power >> _FIXED_BITS
    total, divisor = 0, 1
    while power:
        total += power // divisor
        power = power * square >> _FIXED_BITS
        divisor += 2
    return 2 * total


def _rounded(value: int, bits: int) -> int:
    """`value`, in units of 2^-96, in units of 2^-bits, to the nearest."""
    shift = _FIXED_BITS - bits
    return (value + (1 << (shift - 1))) >> shift


@cache
def stretch_table() -> Int32Array:
    """stretch of p = i * 2^(shift - 22) for the 513 points i of each level: int32 [4, 513].

    The entry of p = 0 is that of p = 2^-22; p goes to 1/2.
    """
    logarithms = [0, 0]  # ln(i)
    for i in range(2, (1 << LEVEL_BITS) + 1):
        logarithms.append(logarithms[-1] + _two_atanh(1, 2 * i - 1))
    table = np.empty((len(LEVEL_SHIFTS), (1 << LEVEL_BITS) + 1), np.int32)
    for level, shift in enumerate(LEVEL_SHIFTS):
        below = PROBABILITY_BITS - shift
        for i in range((1 << LEVEL_BITS) + 1):
            point, bits = (i, below) if i or not shift else (1, PROBABILITY_BITS)
            point = max(point, 1)
            ln_p = logarithms[point] - bits * logarithms[2]
            ln_rest = -_two_atanh(point, (2 << bits) - point)  # ln(1 - p)
            table[level, i] = _rounded(ln_p - ln_rest, STRETCH_BITS)
    return table


@cache
def squash_table() -> Int32Array:
    """1 / (1 + e^-x) for x = -16, -16 + 1/32, .. 16, in units of 2^-30: int32 [1025]."""
    step, term, n = _ONE, _ONE, 0  # e^(-1/32), by its series
    while term:
        n += 1
        term = -(abs(term) // (32 * n)) if n % 2 else abs(term) // (32 * n)
        step += term
    falling = _ONE
    table = np.empty(1025, np.int32)
    for i in range(513):
        high = (_ONE << _FIXED_BITS) // (_ONE + falling)
        table[512 + i] = _rounded(high, SQUASH_BITS)
        table[512 - i] = _rounded(_ONE - high, SQUASH_BITS)
        falling = falling * step >> _FIXED_BITS
    return table


@cache
def reciprocal_table() -> Int64Array:
    """1 / (n + 3/2) in units of 2^-16, rounded down, n = 0 .. COUNT_MAX: int64 [256]."""
    return np.array([(2 << 16) // (2 * n + 3) for n in range(COUNT_MAX + 1)], np.int64)


def _adaptive(probabilities: list[int], count: int) -> UInt32Array:
    return np.array([p << COUNT_BITS | count for p in probabilities], np.uint32)


@cache
def history_map_start() -> UInt32Array:
    """What each state of a slot's history predicts at first: uint32 [HISTORIES].

    Each bit seen counts 0.9 times as much as the one after it; before the first, 0.4 of each kind
    were seen.
    """
    half = HISTORIES // 2
    found = [PROBABILITY_ONE // 2]
    for state in range(1, half):
        history = state if state < 128 else 128 + state % 128
        seen = [26214, 26214]
        for place in range(history.bit_length() - 2, -1, -1):
            seen = [weight * 58982 >> 16 for weight in seen]
            seen[history >> place & 1] += 1 << 16
        found.append(seen[1] * PROBABILITY_ONE // sum(seen))
    return _adaptive(found * 2, START_COUNT)


@cache
def match_map_start() -> UInt32Array:
    """How sure a match model is at first, by what it expects: uint32 [EXPECTATIONS]."""
    found = []
    for number in range(EXPECTATIONS):
        length, misses = number >> 4, number & 7
        doubt = 4 if misses else length + 3
        found.append(PROBABILITY_ONE - PROBABILITY_ONE // doubt)
    return _adaptive(found, 0)


@cache
def vote_map_start() -> UInt32Array:
    """How sure the nearest states are at first, by how much they agree: uint32 [VOTES]."""
    agreement = [number >> 3 & 7 for number in range(VOTES)]
    return _adaptive([PROBABILITY_ONE - PROBABILITY_ONE // (a + 2) for a in agreement], 0)


@cache
def vote_table(bits: int) -> Int64Array:
    """2^(16 - 64 d / bits), rounded down, for signatures that differ in d of their bits.

    The exponent is taken in steps of 1/64, rounded towards the larger power.

    Returns:
        int64 [bits + 1].
    """
    powers = []  # 2^(40 - f / 64), rounded down: six square roots of 2^(64 * 40 - f)
    for f in range(64):
        root = 1 << (64 * 40 - f)
        for _ in range(6):
            root = math.isqrt(root)
        powers.append(root)
    falls = [4096 * distance // bits for distance in range(bits + 1)]
    return np.array([powers[fall & 63] >> (24 + (fall >> 6)) for fall in falls], np.int64)


@cache
def adaptive_map_start() -> UInt32Array:
    """squash of -16, -15, .. 16 nats, the points of an adaptive map's row: uint32 [MAP_POINTS]."""
    points = squash_table()[:: 1024 // (MAP_POINTS - 1)].tolist()
    shift = SQUASH_BITS - PROBABILITY_BITS
    found = [min(max(p >> shift, 1), PROBABILITY_ONE - 1) for p in points]
    return _adaptive(found, START_COUNT)
