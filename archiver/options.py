"""What the user may choose when an archive is made."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.container.layout import LARGEST_WINDOW_TOKENS
from archiver.errors import UsageError
from archiver.levels import DEFAULT_LEVEL, LEVELS, Chunking

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_FRAME_BYTES = 1 << 20

# A frame costs 32 bytes of container: frames from 64 KiB up keep that under 0.1 %.
SMALLEST_FRAME_BYTES = 1 << 12
LARGEST_FRAME_BYTES = 1 << 24
LARGEST_STREAMS = 1 << 10
SMALLEST_WINDOW_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions:
    """Settings of a compression; those that a decoder needs are stored in the archive.

    Attributes:
        model: name, alias or fingerprint prefix of the model package.
        threads: how many threads may work; None for one a core. Never changes the archive.
        level: 1, the fastest, to 9, the smallest; sets the window and the chunks.
        window_tokens: how many tokens back the model sees; None for the level's.
        frame_bytes: how long a frame's content may be. Each frame decodes alone.
        chunk_tokens: span of text that one stream codes from a cold start; None chooses by the
            level and the frame's length.
    """

    model: str = DEFAULT_MODEL
    threads: int | None = None
    level: int = DEFAULT_LEVEL
    window_tokens: int | None = None
    frame_bytes: int = DEFAULT_FRAME_BYTES
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("the model's name is empty")
        check_threads(self.threads)
        _check("level", self.level, min(LEVELS), max(LEVELS))
        _check("window", self.window, SMALLEST_WINDOW_TOKENS, LARGEST_WINDOW_TOKENS)
        _check("frame size", self.frame_bytes, SMALLEST_FRAME_BYTES, LARGEST_FRAME_BYTES)
        if self.chunk_tokens is not None:
            _check("chunk", self.chunk_tokens, 1, LARGEST_FRAME_BYTES)

    @property
    def window(self) -> int:
        """How many tokens back the model sees."""
        return (
            LEVELS[self.level].window_tokens if self.window_tokens is None else self.window_tokens
        )

    @property
    def chunking(self) -> Chunking:
        """How frames are cut into streams."""
        if self.chunk_tokens is None:
            return LEVELS[self.level].chunking
        return Chunking(tokens_min=self.chunk_tokens, streams=LARGEST_STREAMS)


def check_threads(threads: int | None) -> None:
    """Return when `threads` is None or at least 1.

    Raises:
        UsageError: it is smaller.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")


def _check(what: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise UsageError(f"the {what} must be {smallest} to {largest}, not {value}")
