"""Soft prompts: what the exact engine is steered by.

Source: FORMAT.md, "Steering vectors".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.types import Float32Array, Int8Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftPrompt:
    """Vectors that stand before every stream, coded like embeddings: codes * scales.

    Attributes:
        codes: int8 [vectors, hidden], in the package's rotated basis.
        scales: float32 [vectors], SCALE_MIN to SCALE_MAX.
    """

    codes: Int8Array
    scales: Float32Array

    def __post_init__(self) -> None:
        assert self.codes.dtype == np.int8
        assert self.codes.ndim == 2
        assert self.scales.dtype == np.float32
        assert self.scales.shape == self.codes.shape[:1]
        assert ((self.scales >= SCALE_MIN) & (self.scales <= SCALE_MAX)).all()
