"""The loop over coordinates: symbols of known frequencies through the range coder, both ways.

Source: FORMAT.md, "Steering vectors" (coordinates).
"""

from __future__ import annotations

import numpy as np

from archiver.coding.range_coder import PROBABILITY_BITS, PROBABILITY_ONE, code_bit
from archiver.compiled import compiled


@compiled()
def code_symbols(state, buffer, cumulative, numbers, symbols):
    """Code every symbol as the path of a binary search over its table.

    Args:
        state, buffer: the range coder's; in encoding the buffer has three bytes a decision.
        cumulative: int64 [tables, symbols + 1], strictly ascending, the last at most 2^24, so
            that a sum times 2^22 stays below 2^63.
        numbers: uint8 [coordinates], the table of each.
        symbols: uint8 [coordinates]; in decoding, filled.
    """
    for i in range(numbers.shape[0]):
        sums = cumulative[numbers[i]]
        low = np.int64(0)
        high = np.int64(sums.shape[0] - 1)
        while high - low > 1:
            middle = (low + high) >> 1
            above = sums[high] - sums[middle]
            p = (above << PROBABILITY_BITS) // (sums[high] - sums[low])
            p = min(max(p, np.int64(1)), np.int64(PROBABILITY_ONE - 1))
            if code_bit(state, buffer, p, np.int64(symbols[i] >= middle)):
                low = middle
            else:
                high = middle
        symbols[i] = np.uint8(low)
