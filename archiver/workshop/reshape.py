"""Models with fewer layers, channels or heads, or with other weights: sources made from sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.predict.sources import SourceConfig, SourceModel
    from archiver.types import Float32Array, Int64Array


def with_weights(
    source: SourceModel,
    tensors: Mapping[str, Float32Array],
    step: str,
    config: SourceConfig | None = None,
) -> SourceModel:
    """A source with these tensors, its history one step longer."""
    return dataclasses.replace(
        source, config=config or source.config, tensors=dict(tensors),
        history=(*source.history, step),
    )  # fmt: skip


def keep_layers(source: SourceModel, kept: Sequence[int], step: str) -> SourceModel:
    """The model of these blocks alone, in this order.

    Raises:
        UsageError: there is no such block, or none is left.
    """
    if not kept or not all(0 <= layer < source.config.layers for layer in kept):
        raise UsageError(f"the model has layers 0 to {source.config.layers - 1}")
    tensors = {
        name: source.tensors[name] for name in source.tensors if not name.startswith("layers.")
    }
    for new, old in enumerate(kept):
        prefix = f"layers.{old}."
        tensors |= {
            f"layers.{new}.{name.removeprefix(prefix)}": source.tensors[name]
            for name in source.tensors
            if name.startswith(prefix)
        }
    local_heads = source.config.local_heads
    if local_heads is not None:
        local_heads = tuple(local_heads[layer] for layer in kept)
    config = dataclasses.replace(source.config, layers=len(kept), local_heads=local_heads)
    return with_weights(source, tensors, step, config)


def keep_channels(source: SourceModel, kept: Sequence[Int64Array], step: str) -> SourceModel:
    """The model with these channels of every feed-forward part alone, equally many of each.

    Args:
        kept: for each block the channels' indices.
    """

    def cut(kind: str, layer: int, weights: Float32Array) -> Float32Array:
        if kind in ("gate", "up"):
            return weights[kept[layer]]
        return weights[:, kept[layer]] if kind == "down" else weights

    config = dataclasses.replace(source.config, ffn=len(kept[0]))
    return with_weights(source, _mapped(source, cut), step, config)


def keep_heads(source: SourceModel, kept: Sequence[Int64Array], step: str) -> SourceModel:
    """The model with these query heads of every block alone.

    Args:
        kept: for each block the heads' indices, ascending, as many of every key/value head.
    """
    dim = source.config.head_dim

    def cut(kind: str, layer: int, weights: Float32Array) -> Float32Array:
        places: Int64Array = (kept[layer][:, None] * dim + np.arange(dim)).reshape(-1)
        if kind == "q":
            return weights[places]
        return weights[:, places] if kind == "o" else weights

    config = dataclasses.replace(source.config, heads=len(kept[0]))
    return with_weights(source, _mapped(source, cut), step, config)


def zero_smallest(
    source: SourceModel,
    scores: Callable[[str, Float32Array], Float32Array],
    share: float,
    step: str,
) -> SourceModel:
    """The model with that share of every row of every block's matrices set to zero.

    Args:
        scores: of a tensor's weights, by its name; the lowest of a row go.
    """

    def cut(kind: str, layer: int, weights: Float32Array) -> Float32Array:
        if kind in ("norm1", "norm2"):
            return weights
        removed = round(weights.shape[1] * share)
        if not removed:
            return weights
        order = np.argsort(scores(f"layers.{layer}.{kind}", weights), axis=1, kind="stable")
        np.put_along_axis(weights, order[:, :removed], np.float32(0), axis=1)
        return weights

    return with_weights(source, _mapped(source, cut), step)


def _mapped(
    source: SourceModel, cut: Callable[[str, int, Float32Array], Float32Array]
) -> dict[str, Float32Array]:
    tensors = {}
    for name in source.tensors:
        weights = np.array(source.tensors[name])
        if name.startswith("layers."):
            _, layer, kind = name.split(".")
            weights = np.ascontiguousarray(cut(kind, int(layer), weights))
        tensors[name] = weights
    return tensors
