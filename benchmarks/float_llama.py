"""A Llama in plain float32 with llmzip's rolling window and sinks, whole blocks at once.

What a position sees: itself and the window - 1 positions before it, and the first `sinks`
positions of its stream. Keys are rotated at their own positions once; a sink that the window has
left behind meets the query rotated to position window + sinks - 1, as if the sinks stood just
before a window that begins after them. Local heads have a window of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from archiver.predict.sources import SourceConfig
from archiver.types import Float32Array

BLOCK_TOKENS = 256


@dataclass(slots=True)
class _Cache:
    """Rotated keys and values of one layer, [kv_heads, positions, head_dim].

    Attributes:
        first: the position of the first key that is still held.
        keys, values: of the window; sink_keys, sink_values: of the stream's first positions.
    """

    first: int
    keys: Tensor
    values: Tensor
    sink_keys: Tensor
    sink_values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Masks:
    """Which keys the queries of a block see, bool [kv_heads, 1, queries, keys]."""

    near: Tensor
    sinks: Tensor


class FloatLlama:
    """Weights in float32, and the forward pass over one stream."""

    def __init__(
        self,
        config: SourceConfig,
        tensors: Mapping[str, Float32Array],
        *,
        window: int,
        local_window: int,
        sinks: int,
    ) -> None:
        """Args: tensors by canonical name, as `archiver.predict.sources` has them."""
        self.config = config
        self.window, self.sinks = window, sinks
        local = torch.tensor(config.local_heads or [[0] * config.kv_heads] * config.layers)
        self._windows = torch.where(local > 0, local_window, window)  # [layers, kv_heads]
        self._tensors = {name: torch.from_numpy(tensors[name]) for name in tensors}
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self._frequencies = 1.0 / config.rope_theta**exponents

    def blocks(self, inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the normalized last hidden states of a stream, block by block.

        Args:
            inputs: int64 [tokens], the ids that the model reads, from its cold start on.

        Yields:
            where in the stream, and float32 [tokens of the block, hidden].
        """
        config = self.config
        nothing = torch.empty(config.kv_heads, 0, config.head_dim)
        caches = [_Cache(0, nothing, nothing, nothing, nothing) for _ in range(config.layers)]
        for start in range(0, len(inputs), BLOCK_TOKENS):
            block = slice(start, min(start + BLOCK_TOKENS, len(inputs)))
            x = self._tensors["embed"][inputs[block]]
            for layer, cache in enumerate(caches):
                x = x + self._attention(layer, self._norm(x, f"layers.{layer}.norm1"), cache, start)
                x = x + self._feed_forward(layer, self._norm(x, f"layers.{layer}.norm2"))
            yield block, self._norm(x, "norm")

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 [rows, vocabulary] from normalized states [rows, hidden]."""
        return functional.linear(states, self._tensors.get("head", self._tensors["embed"]))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return self._tensors[name] * (x * scale)

    def _product(self, layer: int, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self._tensors[f"layers.{layer}.{name}"])

    def _feed_forward(self, layer: int, x: Tensor) -> Tensor:
        gate = functional.silu(self._product(layer, "gate", x))
        return self._product(layer, "down", gate * self._product(layer, "up", x))

    def _heads(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Return [heads, tokens, head_dim] of a product [tokens, heads * head_dim]."""
        product = self._product(layer, name, x)
        return product.view(len(x), -1, self.config.head_dim).transpose(0, 1)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return x [heads, tokens, head_dim] rotated to positions int64 [tokens]."""
        angles = positions.float()[:, None] * self._frequencies
        angles = torch.cat([angles, angles], -1)
        low, high = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-high, low], -1) * angles.sin()

    def _attention(self, layer: int, x: Tensor, cache: _Cache, start: int) -> Tensor:
        config = self.config
        tokens, group = len(x), config.heads // config.kv_heads
        positions = torch.arange(start, start + tokens)
        query = self._heads(layer, "q", x)
        self._remember(
            cache, self._rotate(self._heads(layer, "k", x), positions), self._heads(layer, "v", x)
        )
        near = self._rotate(query, positions)
        windows = self._windows[layer]
        far = torch.cat(
            [
                self._rotate(heads, positions.clamp(max=int(kv_window) + self.sinks - 1))
                for heads, kv_window in zip(
                    query.view(-1, group, *query.shape[1:]), windows, strict=True
                )
            ]
        )
        masks = self._masks(positions, cache, windows)
        scores = torch.cat(
            [
                self._scores(far, cache.sink_keys, masks.sinks),
                self._scores(near, cache.keys, masks.near),
            ],
            -1,
        )  # [kv_heads, group, tokens, sinks + keys]
        shares = torch.softmax(scores, -1).flatten(1, 2)
        seen = shares @ torch.cat([cache.sink_values, cache.values], 1)
        seen = seen.view(config.kv_heads * group, tokens, config.head_dim)
        self._forget(cache)
        return self._product(layer, "o", seen.transpose(0, 1).flatten(1))

    def _remember(self, cache: _Cache, keys: Tensor, values: Tensor) -> None:
        cache.keys = torch.cat([cache.keys, keys], 1)
        cache.values = torch.cat([cache.values, values], 1)
        if cache.first == 0:  # nothing is forgotten yet, so the first keys are the stream's
            cache.sink_keys = cache.keys[:, : self.sinks].clone()
            cache.sink_values = cache.values[:, : self.sinks].clone()

    def _forget(self, cache: _Cache) -> None:
        """Drop the keys that the next position's window does not reach."""
        excess = max(0, cache.keys.shape[1] - (self.window - 1))
        if excess:
            cache.keys, cache.values = cache.keys[:, excess:], cache.values[:, excess:]
            cache.first += excess

    def _masks(self, positions: Tensor, cache: _Cache, windows: Tensor) -> _Masks:
        queries = positions[:, None]
        windows = windows[:, None, None, None]
        keys = torch.arange(cache.first, cache.first + cache.keys.shape[1])
        sinks = torch.arange(cache.sink_keys.shape[1])
        return _Masks(
            near=(keys <= queries) & (keys > queries - windows),
            sinks=sinks <= queries - windows,
        )

    def _scores(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return [kv_heads, group, tokens, keys], -inf where the mask is false."""
        kv_heads, positions, head_dim = keys.shape
        tokens = query.shape[1]
        grouped = query.reshape(kv_heads, -1, head_dim)  # the heads of a group lie together
        scores = grouped @ keys.transpose(1, 2) / float(np.sqrt(head_dim))
        group = len(query) // kv_heads
        return scores.view(kv_heads, group, tokens, positions).masked_fill(~mask, -torch.inf)
