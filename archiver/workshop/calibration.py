"""The text that pruning and quantization are calibrated on.

calibration.txt, the default: public-domain prose (Dickens, Tolstoy in English, the King James
Bible), a reference work, C++ and German law, and JavaScript under the MIT licence (brotli's
decoder), in pieces of 8 to 30 kB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import InputError
from archiver.workshop.corpus import Tokens

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.types import Int64Array

DEFAULT_TEXT = Path(__file__).with_name("calibration.txt")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Windows of a text, or of several, evenly spaced in each.

    Attributes:
        windows: int64 [windows, steps].
        byte_count: bytes of all windows.
        sha256: of the whole text, or of the texts' hashes.
    """

    windows: Int64Array
    byte_count: int
    sha256: str

    def describe(self) -> str:
        """For the history of what is made with it."""
        count, steps = self.windows.shape
        return f"calibrated on {count} x {steps} tokens of {self.sha256[:16]}"

    @classmethod
    def joined(cls, parts: Sequence[Calibration]) -> Calibration:
        """Those of several texts, with windows of one length."""
        if len(parts) == 1:
            return parts[0]
        hashes = "".join(part.sha256 for part in parts)
        return cls(
            windows=np.concatenate([part.windows for part in parts]),
            byte_count=sum(part.byte_count for part in parts),
            sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        )


def read_calibration(
    source: SourceModel, path: Path | None, *, windows: int, steps: int
) -> Calibration:
    """Windows of a calibration text, fewer where it is too short for so many.

    Args:
        path: the text; None for the default one.

    Raises:
        InputError: it cannot be read, or is shorter than one window.
    """
    path = path or DEFAULT_TEXT
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    tokens = Tokens(source)
    ids = tokens.encode(text)
    count = min(windows, len(ids) // steps)
    if not count:
        raise InputError(f"{path}: shorter than one window of {steps} tokens")
    starts = np.linspace(0, len(ids) - steps, count).astype(np.int64)
    chosen = np.stack([ids[start : start + steps] for start in starts]).astype(np.int64)
    return Calibration(
        windows=chosen,
        byte_count=int(tokens.byte_counts[chosen].sum()),
        sha256=hashlib.sha256(text).hexdigest(),
    )
