"""Signatures of the model's states: the signs of what its head multiplies.

Source: FORMAT.md, "Mixer" (nearest states).
"""

from __future__ import annotations

import numpy as np

from archiver.predict.kernels.head import sign_bits
from archiver.types import Int8Array, UInt64Array

SIGNATURE_BITS_MAX = 384


def signature_bits(entries: int) -> int:
    """How many of a state's entries its signature is of, the first ones."""
    return min(entries, SIGNATURE_BITS_MAX)


def signatures_of(states: Int8Array) -> UInt64Array:
    """The signatures of states, int8 [rows, entries]: uint64 [rows, ceil(bits / 64)]."""
    rows, entries = states.shape
    found = np.empty((rows, -(-signature_bits(entries) // 64)), np.uint64)
    sign_bits(states, found)
    return found
