"""Causal attention over int8 keys and values: rolling window, sinks, integer probabilities.

Layout of the cache of one layer, for stream s, key/value head h, position c in slot t = tile of
16 positions (tile number = (c // 16) mod tiles; the sinks have tiles of their own):

    keys    uint8, key + 128      [s, h, tile, quad of dimensions, position in tile, 4]
    values  int8                  [s, h, tile * 4 + quad of positions, dimension, 4]
    scales  float32               [s, h, tile * 16 + position in tile]

so that 16 positions' keys, or 16 dimensions' values, fill the lanes of one vector register.

Source: FORMAT.md, "Predictor" (attention).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from archiver.predict.kernels.elementary import KERNEL_OPTIONS, float_of_key, order_key
from archiver.predict.kernels.vectors import (
    dot_keys_1,
    dot_keys_2,
    dot_keys_3,
    dot_keys_4,
    dot_values_16,
    dot_values_64,
    exponentiate,
    greatest_key,
    scale_dots,
    weigh,
)

TOTAL_ONE = np.float32(131072.0)  # 2^17: weight of the best position in the integer total
UNSEEN = np.int32(np.float32(-1e30).view(np.int32))  # a logit whose weight is exactly 0
WEIGHT_ONE = np.float32(65472.0)  # total of the integer probabilities; each stays below 2^16


@njit(**KERNEL_OPTIONS)
def store_key_value(
    key, value, key_scale, value_scale, keys, values, key_scales, value_scales, slot
):
    """The key and value of one position lie in the cache of one stream and head, at `slot`.

    Args:
        key, value: int8 [head_dim].
        key_scale, value_scale: float32.
        keys: uint8 [tiles * 16 * head_dim]; values: int8, likewise; scales: float32 [tiles * 16].
        slot: position in the cache, tile * 16 + position in tile.
    """
    head_dim = key.shape[0]
    tile = slot >> 4
    lane = slot & 15
    base = tile * 16 * head_dim
    for d in range(head_dim):
        keys[base + (d >> 2) * 64 + lane * 4 + (d & 3)] = np.uint8(np.int32(key[d]) + 128)
        values[base + (lane >> 2) * 4 * head_dim + d * 4 + (lane & 3)] = value[d]
    key_scales[slot] = key_scale
    value_scales[slot] = value_scale


@njit(**KERNEL_OPTIONS)
def _sum(codes):
    """The int32 sum of int8 codes."""
    total = np.int32(0)
    for i in range(codes.shape[0]):
        total += np.int32(codes[i])
    return total


@njit(**KERNEL_OPTIONS)
def _greatest(scales):
    """The order key of the greatest of some positive scales, 0 for none."""
    best = np.int32(0)
    for i in range(scales.shape[0]):
        best = max(best, order_key(scales[i]))
    return best


@njit(**KERNEL_OPTIONS)
def _dot_group(keys, key_at, query, query_at, quads, group, dots, at, stride, tiles):
    """Dot products of 16 * tiles keys with `group` queries that lie one after the other."""
    rest = group
    while rest >= 4:
        dot_keys_4(keys, key_at, query, query_at, quads, dots, at, stride, tiles)
        query_at += 16 * quads
        at += 4 * stride
        rest -= 4
    if rest == 3:
        dot_keys_3(keys, key_at, query, query_at, quads, dots, at, stride, tiles)
    elif rest == 2:
        dot_keys_2(keys, key_at, query, query_at, quads, dots, at, stride, tiles)
    elif rest == 1:
        dot_keys_1(keys, key_at, query, query_at, quads, dots, at, stride, tiles)


@njit(**KERNEL_OPTIONS)
def _add_values(values, value_at, head_dim, high, low, at, tiles, sums):
    """sums += the values of 16 * tiles positions times their weights."""
    if head_dim % 64 == 0:
        for d in range(0, head_dim, 64):
            dot_values_64(values, value_at + d * 4, head_dim * 4, high, low, at, tiles * 4, sums, d)
    else:
        for d in range(0, head_dim, 16):
            dot_values_16(values, value_at + d * 4, head_dim * 4, high, low, at, tiles * 4, sums, d)


@njit(**KERNEL_OPTIONS)
def attend(
    query,
    query_scale,
    sink_query,
    sink_query_scale,
    keys,
    values,
    key_scales,
    value_scales,
    sink_keys,
    sink_values,
    sink_key_scales,
    sink_value_scales,
    row_stream,
    row_position,
    window,
    sinks,
    out,
):
    """out[row] holds each head's attention over the positions that the row sees.

    Args:
        query: int8 [rows, heads, head_dim], rotated to the row's position; sink_query: the same
            rotated to min(position, window + sinks - 1), used for sinks outside the window.
        query_scale, sink_query_scale: float32 [rows, heads], log2(e)/sqrt(head_dim) folded in.
        keys .. value_scales: the layer's cache, [streams, kv_heads, ...] as in the module's
            docstring; sink_*: the same for the first `sinks` positions.
        row_stream: int32 [rows]; row_position: int32 [rows], the row's own position.
        out: float32 [rows, heads * head_dim].

    Tiles are worked on whole: positions of a tile that the row does not see get a logit so low
    that both of their integers round to 0 (2^-40 of the best position's).

    Why nothing overflows: a score is at most 64 * 255 * 128 < 2^31; the total is at most
    (window + sinks) * 2^17 < 2^31 for window + sinks < 2^14; the probabilities total at most
    65,472 * (1 + 2^-6) + 2^13 < 2^17, so their products with int8 stay below 2^24.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    quads = head_dim >> 2
    tile_bytes = 16 * head_dim
    ring = key_scales.shape[2]
    ring_tiles = ring >> 4
    sink_tiles = (sinks + 15) >> 4
    capacity = (sink_tiles * 16) + min(ring, ((window + 15) >> 4) * 16 + 16)
    dots = np.empty(group * capacity, np.int32)  # logits later on, in the same place
    high = np.empty(capacity, np.uint8)
    low = np.empty(capacity, np.uint8)
    sums = np.empty(head_dim, np.int32)
    flat_query = query.reshape(-1)
    flat_sink_query = sink_query.reshape(-1)
    for kv in range(kv_heads):
        for row in range(rows):
            s = row_stream[row]
            p = row_position[row]
            first = max(0, p - window + 1)
            first_tile = first >> 4
            tiles = (p >> 4) - first_tile + 1
            seen_sinks = min(sinks, first)
            lead = ((seen_sinks + 15) >> 4) * 16  # sinks lie in front, padded to whole tiles
            begin = lead + (first - first_tile * 16)
            end = lead + (p - first_tile * 16) + 1
            first_slot = first_tile % ring_tiles
            before_wrap = min(tiles, ring_tiles - first_slot)
            far_tiles = tiles - before_wrap
            far_lead = lead + before_wrap * 16  # from here on slots start again at 0
            seam = min(end, far_lead)
            slot = first_slot * 16 + (begin - lead)
            k = keys[s, kv]
            v = values[s, kv]
            ks = key_scales[s, kv]
            vs = value_scales[s, kv]
            sk = sink_keys[s, kv]
            sv = sink_values[s, kv]
            sink_ks = sink_key_scales[s, kv]
            sink_vs = sink_value_scales[s, kv]
            value_max = float_of_key(
                max(
                    _greatest(sink_vs[:seen_sinks]),
                    max(_greatest(vs[slot : slot + seam - begin]), _greatest(vs[: end - seam])),
                )
            )
            at = (row * heads + kv * group) * head_dim
            _dot_group(sk, 0, flat_sink_query, at, quads, group, dots, 0, capacity, lead >> 4)
            _dot_group(
                k,
                first_slot * tile_bytes,
                flat_query,
                at,
                quads,
                group,
                dots,
                lead,
                capacity,
                before_wrap,
            )
            _dot_group(k, 0, flat_query, at, quads, group, dots, far_lead, capacity, far_tiles)

            for member in range(group):
                head = kv * group + member
                mine = member * capacity
                logits = dots[mine : mine + capacity]
                if lead > 0:
                    bias = np.int32(128) * _sum(sink_query[row, head])
                    scale_dots(logits, 0, bias, sink_query_scale[row, head], sink_ks, 0, lead >> 4)
                bias = np.int32(128) * _sum(query[row, head])
                scale = query_scale[row, head]
                scale_dots(logits, lead, bias, scale, ks, first_slot * 16, before_wrap)
                scale_dots(logits, far_lead, bias, scale, ks, 0, far_tiles)
                logits[seen_sinks:begin] = UNSEEN
                logits[end : lead + tiles * 16] = UNSEEN
                all_tiles = (lead >> 4) + tiles
                top = float_of_key(greatest_key(logits, 0, all_tiles))
                total = exponentiate(logits, 0, all_tiles, top, TOTAL_ONE)
                share = ((WEIGHT_ONE * TOTAL_ONE) / np.float32(total)) / value_max
                weigh(logits, 0, sink_vs, 0, lead >> 4, share, high, low)
                weigh(logits, lead, vs, first_slot * 16, before_wrap, share, high, low)
                weigh(logits, far_lead, vs, 0, far_tiles, share, high, low)

                sums[:] = 0
                _add_values(sv, 0, head_dim, high, low, 0, lead >> 4, sums)
                _add_values(
                    v, first_slot * tile_bytes, head_dim, high, low, lead, before_wrap, sums
                )
                _add_values(v, 0, head_dim, high, low, far_lead, far_tiles, sums)
                back = value_max / WEIGHT_ONE
                for d in range(head_dim):
                    out[row, head * head_dim + d] = np.float32(sums[d]) * back
