"""How a frame's symbols are split into streams.

Source: FORMAT.md, "Predictor frame payload" (streams).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archiver.container.layout import LARGEST_STREAM_TOKENS, LARGEST_STREAMS
from archiver.levels import Chunking
from archiver.types import Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """How a frame's symbols are split: `streams` contiguous chunks, the first ones longest.

    Attributes:
        symbols: of the frame, at least 1; streams: 1 .. symbols.
    """

    symbols: int
    streams: int

    @property
    def starts(self) -> Int64Array:
        """int64 [streams + 1]: the first symbol of each chunk, and the end."""
        short, longer = divmod(self.symbols, self.streams)
        numbers = np.arange(self.streams + 1, dtype=np.int64)
        return numbers * short + np.minimum(numbers, longer)

    @property
    def steps(self) -> int:
        """Symbols of the longest chunk."""
        return -(-self.symbols // self.streams)

    def active(self, step: int) -> int:
        """How many streams, always the first ones, have a symbol at `step`."""
        return self.streams if step < self.symbols // self.streams else self.symbols % self.streams


def plan_streams(
    symbols: int, chunking: Chunking, largest: int = LARGEST_STREAM_TOKENS
) -> StreamPlan:
    """The streams of a frame: as many as the chunking allows, within the format's limits.

    Args:
        largest: symbols that a stream may have.
    """
    chunk_tokens = max(chunking.tokens_min, -(-symbols // chunking.streams))
    chunk_tokens = min(chunk_tokens, largest)
    return StreamPlan(symbols=symbols, streams=min(-(-symbols // chunk_tokens), LARGEST_STREAMS))
