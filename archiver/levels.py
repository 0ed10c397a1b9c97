"""What a compression level stands for.

A lower level sees less context: the model looks back over fewer tokens, and the text is cut into
more streams that each start cold. That is faster, above all when decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How long the spans are that a frame's streams code from a cold start.

    Attributes:
        tokens_min: no stream is shorter, unless the frame is.
        streams: no frame has more, unless a stream would be too long for the format.
    """

    tokens_min: int
    streams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Settings that stand behind a level's number.

    Attributes:
        window_tokens: how many tokens back the model sees.
        local_window_tokens: how many its local heads see.
        chunking: how a frame is cut into streams.
    """

    window_tokens: int
    local_window_tokens: int
    chunking: Chunking


def _level(window_tokens: int, local_window_tokens: int, tokens_min: int, streams: int) -> Level:
    return Level(
        window_tokens=window_tokens,
        local_window_tokens=local_window_tokens,
        chunking=Chunking(tokens_min=tokens_min, streams=streams),
    )


LEVELS = MappingProxyType(
    {
        1: _level(256, 256, 512, 128),
        2: _level(512, 256, 1024, 64),
        3: _level(1024, 256, 1024, 64),
        4: _level(1024, 512, 2048, 32),
        5: _level(2048, 512, 2048, 32),
        6: _level(2048, 1024, 4096, 16),
        7: _level(4096, 1024, 4096, 16),
        8: _level(4096, 2048, 8192, 8),
        9: _level(8192, 8192, 16384, 4),
    }
)
DEFAULT_LEVEL = 5
SINK_TOKENS = 4  # first tokens of a stream that all later ones see, whatever the level
