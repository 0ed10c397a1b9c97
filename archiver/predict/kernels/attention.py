"""Causal attention over int8 keys and values: rolling window, sinks, integer probabilities.

Layout of the cache of one layer, for stream s, key/value head h, position c in tile of 16
positions (tile number = (c // 16) mod the head's tiles; the sinks have tiles of their own):

    keys    uint8, key + 128      [s][h][tile, quad of dimensions, position in tile, 4]
    values  int8                  [s][h][tile * 4 + quad of positions, dimension, 4]
    scales  float32               [s][h][tile * 16 + position in tile]

Heads have as many tiles as their window needs, so a stream's heads lie one after the other: head h
has the slots slots[h] to slots[h + 1], a slot being head_dim bytes of keys.

so that 16 positions' keys, or 16 dimensions' values, fill the lanes of one vector register.

Source: FORMAT.md, "Predictor" (attention).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.predict.kernels.elementary import bits_to_float, float_of_key
from archiver.predict.kernels.row_lanes import store_quads
from archiver.predict.kernels.vectors import (
    dot_keys_1,
    dot_keys_1_rows,
    dot_keys_1_wide,
    dot_keys_2,
    dot_keys_2_rows,
    dot_keys_2_wide,
    dot_keys_3,
    dot_keys_3_rows,
    dot_keys_3_wide,
    dot_values_1,
    dot_values_2,
    dot_values_3,
    dot_values_16,
    exponentiate,
    greatest_positive,
    scale_dots,
    sum_codes,
    weigh,
)

TOTAL_ONE = np.float32(131072.0)  # 2^17: weight of the best position in the integer total
WEIGHT_ONE = np.float32(65472.0)  # total of the integer probabilities; each stays below 2^16
TOGETHER = 4  # consecutive rows of a stream that share a pass over the keys


@compiled()
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
    store_quads(key, keys, base + lane * 4, head_dim >> 2)
    for d in range(head_dim):
        values[base + (lane >> 2) * 4 * head_dim + d * 4 + (lane & 3)] = value[d]
    key_scales[slot] = key_scale
    value_scales[slot] = value_scale


@compiled()
def _dot_row(keys, key_at, query, query_at, quads, group, dots, at, stride, tiles, ahead):
    """Dot products of 16 * tiles keys with the `group` queries of one row.

    Member m's go to dots[at + m * stride:]. What lies `ahead` bytes after the keys is fetched.
    """
    wide = tiles >> 2 << 2
    rest_at = key_at + wide * 64 * quads
    rest = tiles - wide
    member = 0
    while member < group:
        n = min(3, group - member)
        q = query_at + member * 4 * quads
        o = at + member * stride
        w = o + wide * 16
        if n == 3:
            dot_keys_3_wide(keys, key_at, query, q, 0, quads, dots, o, 0, stride, wide, ahead)
            dot_keys_3(keys, rest_at, query, q, 0, quads, dots, w, 0, stride, rest)
        elif n == 2:
            dot_keys_2_wide(keys, key_at, query, q, 0, quads, dots, o, 0, stride, wide, ahead)
            dot_keys_2(keys, rest_at, query, q, 0, quads, dots, w, 0, stride, rest)
        else:
            dot_keys_1_wide(keys, key_at, query, q, 0, quads, dots, o, 0, stride, wide, ahead)
            dot_keys_1(keys, rest_at, query, q, 0, quads, dots, w, 0, stride, rest)
        member += n


@compiled()
def _dot_rows(
    keys,
    key_at,
    query,
    query_at,
    row_items,
    quads,
    rows,
    group,
    dots,
    at,
    row_stride,
    stride,
    tiles,
    ahead,
):
    """`_dot_row` for `rows` rows whose queries lie `row_items` apart, results `row_stride`."""
    if rows != TOGETHER:
        for row in range(rows):
            q = query_at + row * row_items
            _dot_row(
                keys, key_at, query, q, quads, group, dots, at + row * row_stride, stride, tiles,
                ahead,
            )  # fmt: skip
        return
    even = tiles >> 1 << 1
    member = 0
    while member < group:
        n = min(3, group - member)
        q = query_at + member * 4 * quads
        o = at + member * stride
        if n == 3:
            dot_keys_3_rows(
                keys, key_at, query, q, row_items, quads, dots, o, row_stride, stride, even
            )
        elif n == 2:
            dot_keys_2_rows(
                keys, key_at, query, q, row_items, quads, dots, o, row_stride, stride, even
            )
        else:
            dot_keys_1_rows(
                keys, key_at, query, q, row_items, quads, dots, o, row_stride, stride, even
            )
        member += n
    if even < tiles:
        last = key_at + even * 64 * quads
        for row in range(rows):
            q = query_at + row * row_items
            o = at + row * row_stride + even * 16
            _dot_row(keys, last, query, q, quads, group, dots, o, stride, 1, ahead)


@compiled()
def _add_values(
    values, value_at, head_dim, group, high, low, at, stride, tiles, sums, fetched, ahead
):
    """sums += the values of 16 * tiles positions times their weights, for `group` queries.

    Member m's weights lie at high[at + m * stride:], its sums at sums[m * head_dim:]. Where
    head_dim is a multiple of 64, what lies `ahead` bytes after the first `fetched` tiles, at most
    `tiles`, is fetched.
    """
    row = head_dim * 4
    quads = tiles * 4
    if head_dim % 64 != 0:
        for member in range(group):
            w = at + member * stride
            for d in range(0, head_dim, 16):
                o = member * head_dim + d
                dot_values_16(values, value_at + d * 4, row, high, low, w, 0, quads, sums, o, 0)
        return
    fetched_quads = fetched * 4
    member = 0
    while member < group:
        n = min(3, group - member)
        w = at + member * stride
        for d in range(0, head_dim, 64):
            o = member * head_dim + d
            v = value_at + d * 4
            if n == 3:
                dot_values_3(
                    values, v, row, high, low, w, stride, quads, sums, o, head_dim,
                    fetched_quads, ahead,
                )  # fmt: skip
            elif n == 2:
                dot_values_2(
                    values, v, row, high, low, w, stride, quads, sums, o, head_dim,
                    fetched_quads, ahead,
                )  # fmt: skip
            else:
                dot_values_1(
                    values, v, row, high, low, w, stride, quads, sums, o, head_dim,
                    fetched_quads, ahead,
                )  # fmt: skip
        member += n


@compiled()
def visible_items(window, sinks):
    """Items of scratch that one row of `attend` needs for each of its queries, at most."""
    return ((sinks + 15) >> 4) * 16 + ((window + TOGETHER + 14) >> 4) * 16 + 16


@compiled()
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
    windows,
    slots,
    sinks,
    dots,
    scales,
    weights,
    out,
):
    """out[row] holds each head's attention over the positions that the row sees.

    Args:
        query: int8 [rows, heads, head_dim], rotated to the row's position; sink_query: the same
            rotated to min(position, window + sinks - 1), used for sinks outside the window.
        windows: int32 [kv_heads], positions that each key/value head sees, the row's own included;
            slots: int32 [kv_heads + 1], where in a stream's cache its slots begin, whole tiles.
        query_scale, sink_query_scale: float32 [rows, heads], log2(e)/sqrt(head_dim) folded in.
        keys .. value_scales: the layer's cache, [streams, ...] as in the module's docstring;
            sink_*: the same for the first `sinks` positions, [streams, kv_heads, ...].
        row_stream: int32 [rows]; row_position: int32 [rows], the row's own position.
        dots: int32 [4 * heads / kv_heads, items], scales: float32 [2, items],
            weights: uint8 [2, heads / kv_heads, items]: scratch, items from `visible_items`.
        out: float32 [rows, heads * head_dim].

    Tiles are worked on whole: positions of a tile that the row does not see get a logit so low
    that both of their integers round to 0 (2^-40 of the best position's).

    Why nothing overflows: a score is at most 64 * 255 * 128 < 2^31; the total is at most
    (window + sinks) * 2^17 < 2^31 for window + sinks < 2^14; the probabilities total at most
    65,472 * (1 + 2^-6) + 2^13 < 2^17, so their products with int8 stay below 2^24.
    """
    rows, heads, head_dim = query.shape
    kv_heads = windows.shape[0]
    group = heads // kv_heads
    quads = head_dim >> 2
    tile_bytes = 16 * head_dim
    row_items = heads * head_dim
    items = dots.shape[1]
    row_stride = group * items
    flat_dots = dots.reshape(-1)
    key_factors = scales[0]
    value_factors = scales[1]
    high = weights[0].reshape(-1)
    low = weights[1].reshape(-1)
    sums = np.empty(group * head_dim, np.int32)
    flat_query = query.reshape(-1)
    flat_sink_query = sink_query.reshape(-1)
    row = 0
    while row < rows:
        s = row_stream[row]
        together = 1
        if (
            row + TOGETHER <= rows
            and row_stream[row + TOGETHER - 1] == s
            and row_position[row + TOGETHER - 1] == row_position[row] + TOGETHER - 1
        ):
            together = TOGETHER
        last = row_position[row + together - 1]
        for kv in range(kv_heads):
            # What the rows see together: sinks in front, padded to whole tiles, then the window.
            window = windows[kv]
            first_tile = max(0, row_position[row] - window + 1) >> 4
            tiles = (last >> 4) - first_tile + 1
            sink_tiles = (min(sinks, max(0, last - window + 1)) + 15) >> 4
            lead = sink_tiles * 16
            ring_tiles = (slots[kv + 1] - slots[kv]) >> 4
            first_slot = first_tile % ring_tiles
            near_tiles = min(tiles, ring_tiles - first_slot)
            far_tiles = tiles - near_tiles  # these lie at the ring's begin again
            far_lead = lead + near_tiles * 16
            near_at = first_slot * tile_bytes
            k = keys[s, slots[kv] * head_dim :]
            v = values[s, slots[kv] * head_dim :]
            sink_v = sink_values[s, kv]
            near = slice(slots[kv] + first_slot * 16, slots[kv] + (first_slot + near_tiles) * 16)
            far = slice(slots[kv], slots[kv] + far_tiles * 16)
            end = far_lead + far_tiles * 16
            key_factors[:lead] = sink_key_scales[s, kv, :lead]
            key_factors[lead:far_lead] = key_scales[s, near]
            key_factors[far_lead:end] = key_scales[s, far]
            value_factors[:lead] = sink_value_scales[s, kv, :lead]
            value_factors[lead:far_lead] = value_scales[s, near]
            value_factors[far_lead:end] = value_scales[s, far]
            next_kv = kv + 1
            next_s = s
            if next_kv == kv_heads:
                next_kv = 0
                next_s = row_stream[min(row + 1, rows - 1)]
            next_keys = keys[next_s, slots[next_kv] * head_dim :]
            next_tile = max(0, row_position[row] - windows[next_kv] + 1) >> 4
            next_ring = (slots[next_kv + 1] - slots[next_kv]) >> 4
            next_slot = next_tile % next_ring
            next_tiles = min((last >> 4) - next_tile + 1, next_ring - next_slot)
            # Every stream's cache passes through once a step. While the keys are multiplied, memory
            # brings the values; while the values are added up, the next head's keys. (Asking for
            # them between the exponentials as well was no faster.)
            to_values = v.ctypes.data - k.ctypes.data
            to_next = next_keys.ctypes.data + next_slot * tile_bytes - v.ctypes.data - near_at
            to_next_tiles = next_tiles if together == 1 else 0
            at = (row * heads + kv * group) * head_dim
            _dot_rows(
                sink_keys[s, kv], 0, flat_sink_query, at, row_items, quads, together, group,
                flat_dots, 0, row_stride, items, sink_tiles, 0,
            )  # fmt: skip
            _dot_rows(
                k, near_at, flat_query, at, row_items, quads, together, group,
                flat_dots, lead, row_stride, items, near_tiles, to_values,
            )  # fmt: skip
            _dot_rows(
                k, 0, flat_query, at, row_items, quads, together, group,
                flat_dots, far_lead, row_stride, items, far_tiles, to_values,
            )  # fmt: skip
            for r in range(row, row + together):
                first = max(0, row_position[r] - window + 1)
                begin = first - first_tile * 16
                end = row_position[r] - first_tile * 16 + 1
                seen_sinks = min(sinks, first)
                greatest = max(
                    greatest_positive(value_factors, 0, sink_tiles, 0, seen_sinks),
                    greatest_positive(value_factors, lead, tiles, begin, end),
                )
                value_max = bits_to_float(greatest)
                for member in range(group):
                    head = kv * group + member
                    mine = (r - row) * row_stride + member * items
                    place = (r * heads + head) * head_dim
                    key = scale_dots(
                        flat_dots, mine, np.int32(128) * sum_codes(flat_sink_query, place, quads),
                        sink_query_scale[r, head], key_factors, 0, sink_tiles, 0, seen_sinks,
                    )  # fmt: skip
                    key = max(
                        key,
                        scale_dots(
                            flat_dots, mine + lead,
                            np.int32(128) * sum_codes(flat_query, place, quads),
                            query_scale[r, head], key_factors, lead, tiles, begin, end,
                        ),
                    )  # fmt: skip
                    top = float_of_key(key)
                    total = exponentiate(flat_dots, mine, sink_tiles + tiles, top, TOTAL_ONE)
                    share = ((WEIGHT_ONE * TOTAL_ONE) / np.float32(total)) / value_max
                    weigh(
                        flat_dots, mine, value_factors, 0, sink_tiles + tiles, share, high, low,
                        member * items,
                    )  # fmt: skip
                sums[:] = 0
                _add_values(sink_v, 0, head_dim, group, high, low, 0, items, sink_tiles, sums, 0, 0)
                near_next = min(near_tiles, to_next_tiles)
                _add_values(
                    v, near_at, head_dim, group, high, low, lead, items, near_tiles, sums,
                    near_next, to_next,
                )  # fmt: skip
                _add_values(
                    v, 0, head_dim, group, high, low, far_lead, items, far_tiles, sums,
                    min(far_tiles, to_next_tiles - near_next),
                    to_next + near_at + near_tiles * tile_bytes,
                )  # fmt: skip
                back = value_max / WEIGHT_ONE
                mine = kv * group * head_dim
                for d in range(group * head_dim):
                    out[r, mine + d] = np.float32(sums[d]) * back
        row += together
