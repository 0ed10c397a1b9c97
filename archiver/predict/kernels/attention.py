"""Causal attention over int8 keys and values: rolling window, sinks, integer probabilities.

Layout of the cache of one layer, for stream s, key/value head h, position c in slot t = tile of
16 positions (tile number = (c // 16) mod tiles; the sinks have tiles of their own):

    keys    uint8, key + 128      [s, h, tile, quad of dimensions, position in tile, 4]
    values  int8                  [s, h, tile * 4 + quad of positions, dimension, 4]
    scales  float32               [s, h, tile * 16 + position in tile]

so that 16 positions' keys, or 16 dimensions' values, fill the lanes of one vector register.

Source: FORMAT.md, section "Attention".
"""

from __future__ import annotations

import numpy as np
from numba import njit

from archiver.predict.kernels.elementary import (
    KERNEL_OPTIONS,
    dot_keys,
    dot_values,
    dot_values_16,
    exp2_nonpositive,
    float_of_key,
    order_key,
    round_to_int,
)

TOTAL_ONE = np.float32(131072.0)  # 2^17: weight of the best position in the integer total
WEIGHT_ONE = np.float32(65472.0)  # total of the integer probabilities; each stays below 2^16


@njit(**KERNEL_OPTIONS)
def store_key_value(
    key, value, key_scale, value_scale, keys, values, key_scales, value_scales, slot
):  # type: ignore[no-untyped-def]
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
def _sum(codes):  # type: ignore[no-untyped-def]
    """The int32 sum of int8 codes."""
    total = np.int32(0)
    for i in range(codes.shape[0]):
        total += np.int32(codes[i])
    return total


@njit(**KERNEL_OPTIONS)
def _greatest(scales):  # type: ignore[no-untyped-def]
    """The order key of the greatest of some positive scales, 0 for none."""
    best = np.int32(0)
    for i in range(scales.shape[0]):
        best = max(best, order_key(scales[i]))
    return best


@njit(**KERNEL_OPTIONS)
def _scale_dots(dots, bias, query_scale, key_scales, logits):  # type: ignore[no-untyped-def]
    """logits[i] is the logit, in bits, of dots[i] - bias; returns the greatest's order key."""
    best = np.int32(-(2**31))
    for i in range(logits.shape[0]):
        z = np.float32(dots[i] - bias) * (query_scale * key_scales[i])
        logits[i] = z
        best = max(best, order_key(z))
    return best


@njit(**KERNEL_OPTIONS)
def _exponentiate(logits, top):  # type: ignore[no-untyped-def]
    """logits[i] becomes 2^(logits[i] - top); returns their integer total."""
    total = np.int32(0)
    for i in range(logits.shape[0]):
        e = exp2_nonpositive(logits[i] - top)
        logits[i] = e
        total += round_to_int(e * TOTAL_ONE)
    return total


@njit(**KERNEL_OPTIONS)
def _weigh(exponentials, value_scales, share, high, low):  # type: ignore[no-untyped-def]
    """high and low hold the two bytes of each position's integer weight."""
    for i in range(exponentials.shape[0]):
        weight = round_to_int(exponentials[i] * (value_scales[i] * share))
        high[i] = np.uint8(weight >> 8)
        low[i] = np.uint8(weight)


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
):  # type: ignore[no-untyped-def]
    """out[row] holds each head's attention over the positions that the row sees.

    Args:
        query: int8 [rows, heads, head_dim], rotated to the row's position; sink_query: the same
            rotated to min(position, window + sinks - 1), used for sinks outside the window.
        query_scale, sink_query_scale: float32 [rows, heads], log2(e)/sqrt(head_dim) folded in.
        keys .. value_scales: the layer's cache, [streams, kv_heads, ...] as in the module's
            docstring; sink_*: the same for the first `sinks` positions.
        row_stream: int32 [rows]; row_position: int32 [rows], the row's own position.
        out: float32 [rows, heads * head_dim].

    Why nothing overflows: a score is at most 64 * 255 * 128 < 2^31; the total is at most
    (window + sinks) * 2^17 < 2^31 for window + sinks < 2^14; the probabilities total at most
    65,472 * (1 + 2^-6) + 2^13 < 2^17, so their products with int8 stay below 2^24.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    quads = head_dim >> 2
    ring = key_scales.shape[2]
    ring_tiles = ring >> 4
    sink_tiles = (sinks + 15) >> 4
    capacity = (sink_tiles * 16) + min(ring, ((window + 15) >> 4) * 16 + 16)
    dots = np.empty(capacity, np.int32)
    logits = np.empty(capacity, np.float32)
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
            seam = min(end, lead + before_wrap * 16)  # from here on slots start again at 0
            slot = first_slot * 16 + (begin - lead)
            near = seam - begin  # positions before the seam
            far = end - seam  # and after it
            k = keys[s, kv]
            v = values[s, kv]
            sk = sink_keys[s, kv]
            sv = sink_values[s, kv]
            near_ks = key_scales[s, kv, slot : slot + near]
            near_vs = value_scales[s, kv, slot : slot + near]
            far_ks = key_scales[s, kv, :far]
            far_vs = value_scales[s, kv, :far]
            sink_ks = sink_key_scales[s, kv, :seen_sinks]
            sink_vs = sink_value_scales[s, kv, :seen_sinks]
            value_max = float_of_key(
                max(_greatest(sink_vs), max(_greatest(near_vs), _greatest(far_vs)))
            )
            high[seen_sinks:begin] = 0
            low[seen_sinks:begin] = 0
            high[end : lead + tiles * 16] = 0
            low[end : lead + tiles * 16] = 0

            for member in range(group):
                head = kv * group + member
                at = (row * heads + head) * head_dim
                best = np.int32(-(2**31))
                if seen_sinks > 0:
                    bias = np.int32(128) * _sum(sink_query[row, head])
                    for tile in range(lead >> 4):
                        dot_keys(sk, tile * 64 * quads, flat_sink_query, at, quads, dots, tile * 16)
                    best = _scale_dots(
                        dots, bias, sink_query_scale[row, head], sink_ks, logits[:seen_sinks]
                    )
                for tile in range(tiles):
                    source = first_slot + tile
                    if source >= ring_tiles:
                        source -= ring_tiles
                    dot_keys(k, source * 64 * quads, flat_query, at, quads, dots, lead + tile * 16)
                bias = np.int32(128) * _sum(query[row, head])
                scale = query_scale[row, head]
                best = max(
                    best, _scale_dots(dots[begin:seam], bias, scale, near_ks, logits[begin:seam])
                )
                best = max(best, _scale_dots(dots[seam:end], bias, scale, far_ks, logits[seam:end]))
                top = float_of_key(best)
                total = _exponentiate(logits[:seen_sinks], top)
                total += _exponentiate(logits[begin:end], top)
                share = ((WEIGHT_ONE * TOTAL_ONE) / np.float32(total)) / value_max
                _weigh(logits[:seen_sinks], sink_vs, share, high, low)
                _weigh(logits[begin:seam], near_vs, share, high[begin:], low[begin:])
                _weigh(logits[seam:end], far_vs, share, high[seam:], low[seam:])

                for d in range(head_dim):
                    sums[d] = 0
                if head_dim % 64 == 0:
                    for d in range(0, head_dim, 64):
                        if lead > 0:
                            dot_values(sv, d * 4, head_dim * 4, high, low, 0, lead >> 2, sums, d)
                        dot_values(
                            v,
                            first_slot * 16 * head_dim + d * 4,
                            head_dim * 4,
                            high,
                            low,
                            lead,
                            before_wrap * 4,
                            sums,
                            d,
                        )
                        if tiles > before_wrap:
                            dot_values(
                                v,
                                d * 4,
                                head_dim * 4,
                                high,
                                low,
                                lead + before_wrap * 16,
                                (tiles - before_wrap) * 4,
                                sums,
                                d,
                            )
                else:
                    for d in range(0, head_dim, 16):
                        if lead > 0:
                            dot_values_16(sv, d * 4, head_dim * 4, high, low, 0, lead >> 2, sums, d)
                        dot_values_16(
                            v,
                            first_slot * 16 * head_dim + d * 4,
                            head_dim * 4,
                            high,
                            low,
                            lead,
                            before_wrap * 4,
                            sums,
                            d,
                        )
                        if tiles > before_wrap:
                            dot_values_16(
                                v,
                                d * 4,
                                head_dim * 4,
                                high,
                                low,
                                lead + before_wrap * 16,
                                (tiles - before_wrap) * 4,
                                sums,
                                d,
                            )
                back = value_max / WEIGHT_ONE
                for d in range(head_dim):
                    out[row, head * head_dim + d] = np.float32(sums[d]) * back
