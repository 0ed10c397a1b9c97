"""Exact operations on weights: rotations, means, products with a vector, rounding to 8 bits.

Whatever adds more than one term adds integers, in binary64 below 2^53 or in int64, so that no order
of summation can matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from archiver.errors import InvalidModelError
from archiver.predict.package import SCALE_MIN
from archiver.types import Float32Array, Float64Array, Int8Array, Int64Array

SHIFT_MAX = 8  # of the powers of two that go from keys to queries
WEIGHT_MAX = 2.0**14  # folded weights beyond this are refused, not clipped
BLOCK_ROWS = 4096


def _greatest(weights: Float64Array) -> float:
    """The greatest magnitude of a weight.

    Raises:
        InvalidModelError: a weight is not finite, or absurdly large.
    """
    greatest = max(float(weights.max(initial=0.0)), -float(weights.min(initial=0.0)))
    if not math.isfinite(greatest) or greatest > WEIGHT_MAX:
        raise InvalidModelError("a weight is not finite, or absurdly large")
    return greatest


def _integer_exponent(weights: Float64Array, terms: int) -> int:
    """The power of two by which weights become integers whose sums of `terms` are exact.

    |integer| <= 2^(52 - ceil(log2 terms)), so a sum of `terms` of them stays below 2^53.
    """
    greatest = _greatest(weights)
    bits = 52 - max(terms - 1, 0).bit_length()
    return bits - math.frexp(greatest)[1] if greatest > 0 else 0


def _blocks(rows: int) -> Iterator[slice]:
    """Rows in runs of BLOCK_ROWS, so that what is made on the way takes little memory."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, rows, BLOCK_ROWS))


def rotate_right(weights: Float64Array, signs: Int8Array, terms: int) -> Float64Array:
    """weights @ signs / sqrt(terms), exact up to one rounding before and two after the sums.

    Args:
        weights: float64 [rows, n]; signs: int8 [n, n] with `terms` nonzero entries a column.
    """
    exponent = _integer_exponent(weights, terms)
    unit, factors = math.ldexp(1.0, -exponent), signs.astype(np.float64)
    rotated = np.empty(weights.shape)
    for rows in _blocks(len(weights)):
        sums = np.rint(np.ldexp(weights[rows], exponent)) @ factors
        rotated[rows] = (sums * unit) / math.sqrt(terms)
    return rotated


def centred(weights: Float64Array) -> Float64Array:
    """Weights less the mean of their row; exact up to one rounding before the sums, two after."""
    exponent = _integer_exponent(weights, weights.shape[1])
    integers = np.rint(np.ldexp(weights, exponent))
    means = (integers.sum(axis=1) * math.ldexp(1.0, -exponent)) / weights.shape[1]
    result: Float64Array = weights - means[:, None]
    return result


def product_with(weights: Float64Array, vector: Float64Array) -> Float64Array:
    """weights @ vector, both rounded to integers whose products' sums stay below 2^63."""
    bits = (62 - len(vector).bit_length()) // 2

    def integers(values: Float64Array) -> tuple[Int64Array, int]:
        greatest = _greatest(values)
        exponent = bits - math.frexp(greatest)[1] if greatest > 0 else 0
        return np.rint(np.ldexp(values, exponent)).astype(np.int64), -exponent

    rows, row_exponent = integers(weights)
    column, column_exponent = integers(vector)
    sums = (rows @ column).astype(np.float64)
    result: Float64Array = np.ldexp(sums, row_exponent + column_exponent)
    return result


def turned_first(head_dim: int, rotary_dims: int) -> Int64Array:
    """Where the engine's dimensions of a head come from: the first of its pairs turn.

    In the source the first `rotary_dims` turn, of which pairs lie half of that apart; in the engine
    pairs lie half of head_dim apart.
    """
    turned, rest = np.split(np.arange(head_dim), [rotary_dims])
    halves = zip(np.split(turned, 2), np.split(rest, 2), strict=True)
    return np.concatenate([np.concatenate(half) for half in halves])


def balancing_factors(
    queries: Float64Array, keys: Float64Array, groups: int, head_dim: int
) -> tuple[Float64Array, Float64Array]:
    """Factors of the rows of queries and of keys that leave every score as it is.

    Where a bias makes one dimension of the keys much greater than all others, codes of 8 bits leave
    little for these. A power of two moves half of what a pair of dimensions has too much from the
    keys to the queries, or back; the two dimensions that turn together have the same.

    Args:
        queries: float64 [heads * head_dim], how great each entry may be; keys: float64
            [groups * head_dim], likewise, of as many heads as share queries.

    Returns:
        factors of the queries and of the keys, of the same shapes.
    """
    _, query_exponents = np.frexp(queries.reshape(groups, -1, 2, head_dim // 2).max(axis=(1, 2)))
    _, key_exponents = np.frexp(keys.reshape(groups, 2, head_dim // 2).max(axis=1))
    halves = (key_exponents - query_exponents) // 2  # [groups, head_dim / 2]
    shifts = np.clip(halves, -SHIFT_MAX, SHIFT_MAX)
    pairs = np.tile(np.ldexp(1.0, shifts), 2)  # [groups, head_dim]
    members = len(queries) // (groups * head_dim)
    return np.repeat(pairs, members, axis=0).reshape(-1), (1 / pairs).reshape(-1)


def quantize_rows(weights: Float64Array) -> tuple[Int8Array, Float32Array]:
    """Codes in -127 .. 127 and one scale a row: weights = codes * scale, rounded to nearest."""
    magnitude = np.maximum(weights.max(axis=1), -weights.min(axis=1))
    scale = (np.maximum(magnitude, 127 * SCALE_MIN) / 127.0).astype(np.float32)
    codes = np.empty(weights.shape, np.int8)
    for rows in _blocks(len(weights)):
        units = np.rint(weights[rows] / scale[rows].astype(np.float64)[:, None])
        codes[rows] = np.clip(units, -127, 127)
    return codes, scale
