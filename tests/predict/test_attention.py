"""The attention kernel against plain numpy, one row and head at a time."""

from __future__ import annotations

import numpy as np
import pytest

from archiver.predict.kernels import attention, tiled_attention
from archiver.predict.kernels.memory import aligned_zeros
from archiver.predict.kernels.tiles import ROW_SHAPES, has_tile_registers
from tests.reference.numbers import exp2, rounded

STREAMS = 2


def plain_attention(
    query: np.ndarray, scale: np.ndarray, keys: np.ndarray, values: np.ndarray,
    key_scales: np.ndarray, value_scales: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """One query's attention, float32 [head_dim]; query int8 and scale may differ by position:
    int8 [positions, head_dim], float32 [positions]; keys, values int8 [positions, head_dim]."""
    dots = (query.astype(np.int64) * keys).sum(axis=1)
    logits = dots.astype(np.float32) * (scale * key_scales)
    e = exp2(logits - logits.max())
    total = rounded(e * np.float32(131072.0)).sum()
    greatest = value_scales.max()
    share = (np.float32(65472.0 * 131072.0) / np.float32(total)) / greatest
    weights = rounded(e * (value_scales * share)).astype(np.int64)
    sums = weights @ values.astype(np.int64)
    back: np.ndarray = sums.astype(np.float32) * (greatest / np.float32(65472.0))
    return back


@pytest.mark.parametrize("first", [0, 37, 150])
@pytest.mark.parametrize("steps", [1, 9, 37])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(1, 1, 16), (3, 3, 64), (4, 2, 64), (3, 1, 128), (9, 3, 64), (8, 1, 32), (5, 1, 64)],
)
def test_attention(heads: int, kv_heads: int, head_dim: int, steps: int, first: int) -> None:
    sinks, group = 3, heads // kv_heads
    windows = np.array([50, 7, 20], np.int32)[:kv_heads]
    rings = np.array([128, 192, 128], np.int32)[:kv_heads]
    slots = np.concatenate([[0], np.cumsum(rings)]).astype(np.int32)
    generator = np.random.default_rng(heads * 1000 + head_dim + first)

    def codes(*shape: int) -> np.ndarray:
        return generator.integers(-127, 128, shape).astype(np.int8)

    def scales(*shape: int) -> np.ndarray:
        return (generator.uniform(0.5, 1.5, shape) * 0.02).astype(np.float32)

    last = first + steps
    keys, values = (codes(STREAMS, kv_heads, last, head_dim) for _ in range(2))
    key_scales, value_scales = (scales(STREAMS, kv_heads, last) for _ in range(2))

    def caches(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return (
            aligned_zeros((*shape[:-1], shape[-1] * head_dim), np.uint8),
            aligned_zeros((*shape[:-1], shape[-1] * head_dim), np.int8),
            aligned_zeros(shape, np.float32), aligned_zeros(shape, np.float32),
        )  # fmt: skip

    cache, sink_cache = caches(STREAMS, slots[-1]), caches(STREAMS, kv_heads, 64)
    for s in range(STREAMS):
        for h in range(kv_heads):
            for p in range(last):
                entry = (
                    keys[s, h, p], values[s, h, p], key_scales[s, h, p], value_scales[s, h, p],
                )  # fmt: skip
                slot = slots[h] + p % rings[h]
                attention.store_key_value(*entry, *(part[s] for part in cache), slot)
                if p < sinks:
                    attention.store_key_value(*entry, *(part[s, h] for part in sink_cache), p)

    rows = STREAMS * steps
    row_stream = np.repeat(np.arange(STREAMS, dtype=np.int32), steps)
    row_position = np.tile(np.arange(first, last, dtype=np.int32), STREAMS)
    query, sink_query = (codes(rows, heads, head_dim) for _ in range(2))
    query_scale, sink_query_scale = (scales(rows, heads) for _ in range(2))
    out = np.zeros((rows, heads * head_dim), np.float32)
    inputs = (
        query, query_scale, sink_query, sink_query_scale, *cache, *sink_cache, row_stream,
        row_position, windows, slots, sinks,
    )  # fmt: skip
    items = attention.visible_items(50, sinks)
    attention.attend(
        *inputs, aligned_zeros((attention.TOGETHER * group, items), np.int32),
        aligned_zeros((2, items), np.float32),
        aligned_zeros((2, attention.VALUE_ROWS * group, items), np.uint8), out,
    )  # fmt: skip
    results = [out]
    if has_tile_registers() and head_dim % 64 == 0:
        items = tiled_attention.tiled_items(50, sinks)
        results.append(np.zeros_like(out))
        tiled_attention.attend_by_tiles(
            *inputs, aligned_zeros((tiled_attention.TILED_ROWS, items), np.int32),
            aligned_zeros((2, items), np.float32),
            aligned_zeros((2, tiled_attention.TILED_ROWS, items), np.uint8), ROW_SHAPES, results[1],
        )  # fmt: skip

    for row in range(rows):
        s, p = row_stream[row], row_position[row]
        for head in range(heads):
            h = head // group
            begin = max(0, p - windows[h] + 1)
            seen_sinks = min(sinks, begin)
            seen = np.r_[0:seen_sinks, begin : p + 1]
            from_window = (np.arange(len(seen)) >= seen_sinks)[:, None]
            expected = plain_attention(
                np.where(from_window, query[row, head], sink_query[row, head]),
                np.where(from_window[:, 0], query_scale[row, head], sink_query_scale[row, head]),
                keys[s, h, seen], values[s, h, seen], key_scales[s, h, seen],
                value_scales[s, h, seen],
            )  # fmt: skip
            for result in results:
                got = result[row, head * head_dim : (head + 1) * head_dim]
                assert np.array_equal(got, expected), (row, head)
