"""The cumulative normal distribution in integers, the same on every machine.

Source: FORMAT.md, "Steering vectors" (normal distribution).
"""

from __future__ import annotations

import functools
import itertools
from math import isqrt

import numpy as np

from archiver.types import Int64Array

STEPS_A_UNIT = 64  # of the table: one entry each 1/64 of a standard deviation
REACH = 8  # standard deviations that the table reaches
ONE_BITS = 30  # the table's unit is 2^-30
SIGMA_UNIT = 64  # a sigma is given in 1/64 of a quantization step
SIGMA_MAX = 1 << 14

_BITS = 192  # of the fixed-point numbers below


def _pi(one: int) -> int:
    """Pi times `one`, by Machin's formula."""

    def arctangent_of_inverse(n: int) -> int:
        power = total = one // n
        k, sign = 1, 1
        while power:
            power //= n * n
            k, sign = k + 2, -sign
            total += sign * (power // k)
        return total

    return 4 * (4 * arctangent_of_inverse(5) - arctangent_of_inverse(239))


@functools.cache
def normal_table() -> Int64Array:
    """Phi(i / 64) for i = 0 .. 512 in units of 2^-30, rounded to nearest.

    Phi(x) = 1/2 + (sum of (-1)^n x^(2n+1) / (2^n n! (2n+1))) / sqrt(2 pi). The greatest term is
    below e^32 < 2^47 and there are fewer than 300, so with 192 fractional bits the error is far
    below one unit; a test compares with the tails.
    """
    one = 1 << _BITS
    root = isqrt(2 * _pi(one) * one)
    table = np.empty(REACH * STEPS_A_UNIT + 1, np.int64)
    for i in range(len(table)):
        x = i * one // STEPS_A_UNIT
        square = x * x >> _BITS
        power = total = x  # power = x^(2n+1) / (2^n n!)
        n = 0
        while power:
            n += 1
            power = (power * square >> _BITS) // (2 * n)
            total += -(power // (2 * n + 1)) if n % 2 else power // (2 * n + 1)
        value = one // 2 + total * one // root
        table[i] = (value + (1 << (_BITS - ONE_BITS - 1))) >> (_BITS - ONE_BITS)
    return table


def cumulative_normal(twice: int, sigma: int) -> int:
    """The normal distribution's mass below twice / 2 quantization steps, in units of 2^-30.

    Args:
        twice: an edge between two codes, doubled to be an integer.
        sigma: the standard deviation in 1/64 of a step, 1 .. SIGMA_MAX.
    """
    table = normal_table()
    place = min((abs(twice) << 21) // sigma, REACH * STEPS_A_UNIT << 10)
    i, rest = place >> 10, place & 1023
    mass = int(table[i])
    if rest:
        mass += ((int(table[i + 1]) - mass) * rest) >> 10
    return mass if twice >= 0 else (1 << ONE_BITS) - mass


def frequencies(low: int, high: int, sigma: int) -> list[int]:
    """How often each code from `low` to `high` occurs under N(0, sigma^2), each at least 1.

    The total is below 2^22 + 256.
    """
    edges = [cumulative_normal(2 * code - 1, sigma) for code in range(low, high + 2)]
    return [((b - a) >> 8) + 1 for a, b in itertools.pairwise(edges)]
