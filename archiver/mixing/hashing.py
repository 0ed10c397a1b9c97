"""Hashes of 64 bits, whose products wrap around.

Source: FORMAT.md, "Mixer" (hashes).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled

FACTOR = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(29)


@compiled(inline="always")
def join(a, b):
    """One number of 64 bits that stands for the pair; a and b are uint64."""
    product = (a + b + np.uint64(1)) * FACTOR
    return product ^ (product >> SHIFT)
