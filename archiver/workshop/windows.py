"""What heads see: the last so many tokens, and the first few of their stream.

A key that lies within the window of a query meets it where both stand.  A sink that the window has
left behind meets the query as if that stood at position window + sinks - 1: the sinks then stand
just before the window.  Rotation is by differences, so a query is turned back by what it stands
beyond that position.

Source: FORMAT.md, "Predictor"; `benchmarks/float_llama.py` is the same, position by position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812, torch's own name for it

from archiver.levels import DEFAULT_LEVEL, LEVELS, SINK_TOKENS

if TYPE_CHECKING:
    from archiver.predict.sources import SourceConfig

# Queries at a time: with fewer, more of the pairs that are computed are seen; with more, products
# are larger.  With a window of 512, 128 queries compute a quarter more pairs than they see.
WINDOWED_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How many tokens heads see; by default those of the default level.

    Attributes:
        window_tokens: that a position sees, itself included; local_window_tokens: in local heads.
        sink_tokens: first tokens of a stream that all later ones see.
    """

    window_tokens: int = LEVELS[DEFAULT_LEVEL].window_tokens
    local_window_tokens: int = LEVELS[DEFAULT_LEVEL].local_window_tokens
    sink_tokens: int = SINK_TOKENS

    def of_layer(self, config: SourceConfig, layer: int) -> tuple[int, ...]:
        """The window of each key/value head."""
        local = config.local_heads[layer] if config.local_heads else (0,) * config.kv_heads
        sizes = (self.window_tokens, self.local_window_tokens)
        return tuple(sizes[mark] for mark in local)


def heads_by_window(windows: Sequence[int], steps: int) -> dict[int, list[int]]:
    """The key/value heads of each window; a window that no stream fills is `steps`."""
    found: dict[int, list[int]] = {}
    for head, window in enumerate(windows):
        found.setdefault(min(window, steps), []).append(head)
    return found


def blocks(steps: int, window: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Queries at a time and what they see: the first query, the one after the last, the first key.

    Args:
        rows: queries at a time while all that came before is seen.
    """
    for start, stop, size in ((0, min(window, steps), rows), (window, steps, WINDOWED_ROWS)):
        for first in range(start, stop, size):
            yield first, min(first + size, stop), max(0, first - window + 1)


def near_mask(queries: int, window: int) -> torch.Tensor:
    """What is added to scores of queries that stand at least `window` deep in their stream.

    Returns:
        float32 [queries, window + queries - 1]: 0 where a key is seen, -inf elsewhere; the first
        key is the first that the first query sees.
    """
    ahead = torch.arange(window + queries - 1) - torch.arange(queries)[:, None]
    return torch.zeros(ahead.shape).masked_fill_((ahead < 0) | (ahead >= window), -torch.inf)


def sink_mask(queries: int, sinks: int) -> torch.Tensor:
    """The same for the sinks outside the window, float32 [queries, sinks].

    Args:
        queries: those from position `window` on, all of them.
    """
    left_behind = torch.arange(queries)[:, None] >= torch.arange(sinks)
    return torch.zeros(left_behind.shape).masked_fill_(~left_behind, -torch.inf)


def turns(
    cosines: torch.Tensor, sines: torch.Tensor, window: int, sinks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """By what queries from position `window` on are turned back when they meet the sinks.

    Args:
        cosines, sines: float32 [steps, dim / 2] of all positions.

    Returns:
        float32 [steps - window, dim / 2] each.
    """
    beyond = (torch.arange(len(cosines) - window) - (sinks - 1)).clamp(min=0)
    return cosines[beyond], sines[beyond]


def rotated(vectors: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Vectors [..., steps, dim], rotated by an angle a step; with -sines, back."""
    first, second = vectors.chunk(2, dim=-1)
    parts = [first * cosines - second * sines, second * cosines + first * sines]
    return torch.cat(parts, dim=-1).to(vectors.dtype)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    sinks: int,
    angles: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Attention of each stream with itself, by torch's operations.

    Args:
        query: [streams, kv_heads, group, steps, dim]; key, value: [streams, kv_heads, 1, steps,
            dim]; query and key rotated to their positions.
        angles: cosines and sines of the positions, float32 [steps, dim / 2].

    Returns:
        [streams, kv_heads, group, steps, dim].
    """
    group, steps, dim = query.shape[-3:]
    asking, answering, giving = (part.flatten(0, 1) for part in (query, key, value))
    start = slice(0, min(window, steps))
    found = [
        F.scaled_dot_product_attention(
            asking[:, :, start], answering[:, :, start].expand(-1, group, -1, -1),
            giving[:, :, start].expand(-1, group, -1, -1), is_causal=True,
        )
    ]  # fmt: skip
    if window < steps:
        asking = asking * dim**-0.5
        cosines, sines = turns(*angles, window, sinks)
        far = rotated(asking[:, :, window:], cosines, -sines)
        answering, giving = answering[:, 0], giving[:, 0]
        far_mask = sink_mask(steps - window, min(sinks, steps)).repeat(group, 1, 1).to(query)
    for first, last, lowest in blocks(steps, window, steps):
        if not lowest:
            continue  # that is the start
        size, deep, seen = last - first, slice(first - window, last - window), slice(lowest, last)
        mask = near_mask(size, window).repeat(group, 1).to(query)
        near = torch.baddbmm(
            mask, asking[:, :, first:last].flatten(1, 2), answering[:, seen].transpose(1, 2)
        )
        beyond = torch.baddbmm(
            far_mask[:, deep].flatten(0, 1), far[:, :, deep].flatten(1, 2),
            answering[:, :sinks].transpose(1, 2),
        )  # fmt: skip
        shares = torch.softmax(torch.cat([beyond, near], dim=-1), dim=-1)
        block = shares @ torch.cat([giving[:, :sinks], giving[:, seen]], dim=1)
        found.append(block.view(-1, group, size, dim))
    return torch.cat(found, dim=2).view(query.shape)
