"""Whole numbers around zero, coded by the range coder with models that follow their size.

A number is coded as the length of its magnitude in bits (0 for zero), by yes-or-no decisions,
then the bits below the leading one, then its sign.  The decisions' probabilities depend on the
average magnitude of the numbers just before it in its vector; those of the first two bits below
the leading one on the length and each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archiver.coding.range_coder import (
    POSITION,
    PROBABILITY_ONE,
    code_bit,
    finish,
    new_decoder,
    new_encoder,
)
from archiver.compiled import compiled
from archiver.types import Int32Array, Int64Array, UInt8Array

MAX_LENGTH = 20  # magnitudes are below 2^20
SIZES = 24  # classes of the running average
_AVERAGE_BITS = 4
_RATE_BITS = 6
_HALF = PROBABILITY_ONE >> 1
_LEAST = 1 << 10  # a decision costs at most log2(2^22 / 2^10) = 12 bits
_NUMBER_BYTES = 2 * MAX_LENGTH * 12 // 8  # a number has at most 2 x MAX_LENGTH decisions
_SPARE_BYTES = 16


@compiled()
def _code_modelled(state, buffer, models, place, bit):
    """Code a bit with the adaptive probability models[place], which learns from it."""
    p = models[place]
    bit = code_bit(state, buffer, p, bit)
    if bit:
        models[place] = p + ((PROBABILITY_ONE - _LEAST - p) >> _RATE_BITS)
    else:
        models[place] = p - ((p - _LEAST) >> _RATE_BITS)
    return bit


@compiled()
def _code_vector(state, buffer, lengths, digits, values):
    """Code a vector, or read it into `values`.

    Args:
        lengths: int64 [SIZES * (MAX_LENGTH + 1)], digits: int64 [(MAX_LENGTH + 1) * 4], models.
    """
    average = np.int64(1) << _AVERAGE_BITS
    for i in range(values.shape[0]):
        value = np.int64(values[i])
        magnitude = abs(value)
        size = np.int64(0)
        rest = average * average
        while rest > 1 and size < SIZES - 1:
            rest >>= 1
            size += 1
        length = np.int64(0)
        rest = magnitude
        while rest:
            rest >>= 1
            length += 1
        coded = np.int64(0)
        while coded < MAX_LENGTH:
            more = _code_modelled(
                state, buffer, lengths, size * (MAX_LENGTH + 1) + coded, np.int64(length > coded)
            )
            if not more:
                break
            coded += 1
        found = np.int64(1) if coded else np.int64(0)
        node = np.int64(1)
        for place in range(coded - 2, -1, -1):
            digit = (magnitude >> place) & 1
            if place >= coded - 3:
                digit = _code_modelled(state, buffer, digits, coded * 4 + node, digit)
                node = 2 * node + digit
            else:
                digit = code_bit(state, buffer, _HALF, digit)
            found = 2 * found + digit
        if coded and code_bit(state, buffer, _HALF, np.int64(value < 0)):
            values[i] = -found
        else:
            values[i] = found
        average += ((found << (_AVERAGE_BITS + 2)) - (average << 2) + 31) >> 5


def _models() -> tuple[Int64Array, Int64Array]:
    return (
        np.full(SIZES * (MAX_LENGTH + 1), _HALF, np.int64),
        np.full((MAX_LENGTH + 1) * 4, _HALF, np.int64),
    )


def encode_vectors(vectors: Sequence[Int32Array]) -> bytes:
    """The coded vectors; their lengths are not in it.

    Args:
        vectors: int32, magnitudes below 2^20.
    """
    assert all(np.abs(vector).max(initial=0) < 1 << MAX_LENGTH for vector in vectors)
    count = sum(len(vector) for vector in vectors)
    state, buffer = new_encoder(), np.zeros(count + _SPARE_BYTES, np.uint8)
    lengths, digits = _models()
    for vector in vectors:
        most = _NUMBER_BYTES * len(vector) + _SPARE_BYTES
        if int(state[POSITION]) + most > len(buffer):
            buffer = np.concatenate([buffer, np.zeros(most, np.uint8)])
        _code_vector(state, buffer, lengths, digits, vector.copy())
    return finish(state, buffer)


def decode_vectors(coded: UInt8Array, lengths: Sequence[int]) -> list[Int32Array]:
    """The vectors of these lengths: the inverse of ``encode_vectors``."""
    buffer = np.array(coded)  # compiled for both directions, so it has to be writable
    state = new_decoder(buffer)
    models = _models()
    vectors = []
    for length in lengths:
        vector = np.zeros(length, np.int32)
        _code_vector(state, buffer, *models, vector)
        vectors.append(vector)
    return vectors
