"""Text that a model writes itself, to learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812, torch's own name for it

from archiver.workshop.windows import heads_by_window, rotated

if TYPE_CHECKING:
    from archiver.types import Int64Array
    from archiver.workshop.llama import FloatLlama


@torch.no_grad()
def write_text(
    model: FloatLlama,
    opening: Int64Array,
    steps: int,
    *,
    start_token_id: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Int64Array:
    """Texts that begin with the openings and go on as the model's distribution has it.

    Every next token is drawn from the whole distribution at temperature 1, so the texts are what
    the model believes text to be.

    Args:
        opening: int64 [texts, tokens], at least one token each.
        steps: length of the texts in tokens, the opening included.

    Returns:
        int64 [texts, steps].
    """
    generator = torch.Generator().manual_seed(seed)
    texts, given = opening.shape
    tokens = torch.empty(texts, steps, dtype=torch.int64)
    tokens[:, :given] = torch.from_numpy(opening)
    cache = Cache(model, texts, steps)
    last = torch.full((texts,), start_token_id)
    for step in range(steps):
        hidden = cache.advance(last, step)
        if step >= given:
            chances = F.softmax((hidden @ model.head.T).float(), dim=-1)
            tokens[:, step] = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        last = tokens[:, step]
        progress(step + 1, steps)
    written: Int64Array = tokens.numpy()
    return written


class Cache:
    """Keys and values of what was written so far; one position of every text at a time."""

    def __init__(self, model: FloatLlama, texts: int, steps: int) -> None:
        config = model.config
        shape = (config.layers, 2, texts, config.kv_heads, steps, config.head_dim)
        self._kept = torch.zeros(shape, dtype=model.dtype)
        self._model = model
        self._cosines, self._sines = model.rotary(steps)

    def advance(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        """What the head reads after these tokens, [texts, hidden]."""
        model, config = self._model, self._model.config
        stream, addend = model.enter(tokens)
        here = slice(step, step + 1)
        heads = (config.heads, config.kv_heads, config.kv_heads)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            parts = qkv.view(len(tokens), 1, sum(heads), config.head_dim).transpose(1, 2)
            query, key, value = parts.split(heads, dim=1)
            keys, values = self._kept[layer]
            keys[:, :, here] = rotated(key, self._cosines[here], self._sines[here])
            values[:, :, here] = value
            query = rotated(query, self._cosines[here], self._sines[here])
            query = query.view(len(tokens), config.kv_heads, -1, config.head_dim)
            mixed = torch.empty_like(query)
            windows = model.windows.of_layer(config, layer)
            for window, chosen in heads_by_window(windows, step + 1).items():
                mixed[:, chosen] = F.scaled_dot_product_attention(
                    query[:, chosen], *self._seen(keys[:, chosen], values[:, chosen], step, window)
                )
            return mixed.view(len(tokens), -1)

        for layer in range(config.layers):
            stream, addend = model.block(layer, stream, addend, len(tokens), attend=attend)
        return model.leave(stream, addend)

    def _seen(
        self, keys: torch.Tensor, values: torch.Tensor, step: int, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values that the last position sees, sinks outside its window included."""
        lowest = step + 1 - window
        near = slice(lowest, step + 1)
        count = min(lowest, self._model.windows.sink_tokens)
        if not count:
            return keys[:, :, near], values[:, :, near]
        # Instead of the query turned back, the keys turned on.
        beyond = max(0, lowest - self._model.windows.sink_tokens)
        sinks = rotated(keys[:, :, :count], self._cosines[beyond], self._sines[beyond])
        return (
            torch.cat([sinks, keys[:, :, near]], dim=2),
            torch.cat([values[:, :, :count], values[:, :, near]], dim=2),
        )
