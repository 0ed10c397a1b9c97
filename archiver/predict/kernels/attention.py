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
    EXPONENTIATED,
    FETCHED_BY_FOUR,
    FETCHED_BY_QUAD,
    copy_tiles,
    dot_high_values,
    dot_high_values_16,
    dot_keys_1,
    dot_keys_1_rows,
    dot_keys_2,
    dot_keys_2_rows,
    dot_keys_3,
    dot_keys_3_rows,
    dot_values_1,
    dot_values_2,
    dot_values_3,
    dot_values_6,
    dot_values_16,
    exponentiate,
    fetch_lines,
    greatest_positive,
    scale_dots,
    scale_sums,
    sum_codes,
    weigh,
)

TOTAL_ONE = np.float32(131072.0)  # 2^17: weight of the best position in the integer total
WEIGHT_ONE = np.float32(65472.0)  # total of the integer probabilities; each stays below 2^16
TOGETHER = 4  # consecutive rows of a stream that share a pass over the keys
VALUE_ROWS = 2  # of these, that share a pass over the values
PAGE_LINES = 64  # of 64 bytes, in the smallest pages


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
def _dot_row(keys, key_at, query, query_at, quads, group, dots, at, stride, tiles):
    """Dot products of 16 * tiles keys with the `group` queries of one row.

    Member m's go to dots[at + m * stride:].
    """
    member = 0
    while member < group:
        n = min(3, group - member)
        q = query_at + member * 4 * quads
        o = at + member * stride
        if n == 3:
            dot_keys_3(keys, key_at, query, q, 0, quads, dots, o, 0, stride, tiles)
        elif n == 2:
            dot_keys_2(keys, key_at, query, q, 0, quads, dots, o, 0, stride, tiles)
        else:
            dot_keys_1(keys, key_at, query, q, 0, quads, dots, o, 0, stride, tiles)
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
):
    """`_dot_row` for `rows` rows whose queries lie `row_items` apart, results `row_stride`."""
    if rows != TOGETHER:
        for row in range(rows):
            q = query_at + row * row_items
            _dot_row(
                keys, key_at, query, q, quads, group, dots, at + row * row_stride, stride, tiles
            )
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
            _dot_row(keys, last, query, q, quads, group, dots, o, stride, 1)


@compiled()
def _add_values(
    values,
    value_at,
    head_dim,
    queries,
    high,
    low,
    at,
    stride,
    tiles,
    sums,
    ahead,
    ahead_at,
    fetched,
):
    """sums += the values of 16 * tiles positions times their weights, for `queries` queries.

    Query q's weights are 256 * high + low, at at + q * stride; its sums lie at
    sums[q * head_dim:]. The high bytes are 0 for nine in ten positions or more, so these are left
    out. Meanwhile lines of `ahead` are asked for, FETCHED_BY_QUAD with each of the first `fetched`
    quads of positions.
    """
    row = head_dim * 4
    quads = tiles * 4
    if head_dim % 64 != 0:
        for query in range(queries):
            w = at + query * stride
            for d in range(0, head_dim, 16):
                o = query * head_dim + d
                v = value_at + d * 4
                dot_values_16(values, v, row, low, w, 0, quads, sums, o, 0)
                dot_high_values_16(values, v, row, high, w, quads, sums, o)
        return
    query = 0
    while query < queries:
        n = 6 if queries - query >= 6 else min(3, queries - query)
        w = at + query * stride
        for d in range(0, head_dim, 64):
            o = query * head_dim + d
            v = value_at + d * 4
            if n == 6:
                dot_values_6(
                    values, v, row, low, w, stride, quads, sums, o, head_dim, ahead, ahead_at,
                    fetched,
                )  # fmt: skip
            elif n == 3:
                dot_values_3(
                    values, v, row, low, w, stride, quads, sums, o, head_dim, ahead, ahead_at,
                    fetched,
                )  # fmt: skip
            elif n == 2:
                dot_values_2(
                    values, v, row, low, w, stride, quads, sums, o, head_dim, ahead, ahead_at,
                    fetched,
                )  # fmt: skip
            else:
                dot_values_1(
                    values, v, row, low, w, stride, quads, sums, o, head_dim, ahead, ahead_at,
                    fetched,
                )  # fmt: skip
            for m in range(n):
                dot_high_values(values, v, row, high, w + m * stride, quads, sums, o + m * head_dim)
        query += n


@compiled()
def _next_head(kv, row, row_stream, row_position, windows, slots):
    """Which keys are read after those of a row and a head: their stream, their first slot, and how
    many tiles of them lie there in order."""
    stream = row_stream[row]
    kv += 1
    if kv == windows.shape[0]:
        kv = 0
        stream = row_stream[min(row + 1, row_stream.shape[0] - 1)]
    first_tile = max(0, row_position[row] - windows[kv] + 1) >> 4
    ring_tiles = (slots[kv + 1] - slots[kv]) >> 4
    begin = first_tile % ring_tiles
    tiles = min((row_position[row] >> 4) - first_tile + 1, ring_tiles - begin)
    return stream, slots[kv] + begin * 16, tiles


@compiled()
def visible_items(window, sinks):
    """Items of scratch that one row of `attend` needs for each of its queries, at most."""
    return ((sinks + 15) >> 4) * 16 + ((window + TOGETHER + 14) >> 4) * 16 + 64


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
            weights: uint8 [2, 2 * heads / kv_heads, items]: scratch, items from `visible_items`.
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
    sums = np.empty(VALUE_ROWS * group * head_dim, np.int32)
    value_max = np.empty(VALUE_ROWS, np.float32)
    flat_query = query.reshape(-1)
    flat_sink_query = sink_query.reshape(-1)
    flat_out = out.reshape(-1)
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
            near_slot = slots[kv] + first_slot * 16
            copy_tiles(sink_key_scales[s, kv], 0, key_factors, 0, sink_tiles)
            copy_tiles(key_scales[s], near_slot, key_factors, lead, near_tiles)
            copy_tiles(key_scales[s], slots[kv], key_factors, far_lead, far_tiles)
            copy_tiles(sink_value_scales[s, kv], 0, value_factors, 0, sink_tiles)
            copy_tiles(value_scales[s], near_slot, value_factors, lead, near_tiles)
            copy_tiles(value_scales[s], slots[kv], value_factors, far_lead, far_tiles)
            # A single row's keys and values have been displaced from the caches by those of other
            # streams. They are read in order, which the processor foresees but for the beginning.
            # So that is asked for while exponentials leave memory idle, and the next head's
            # beginning with the values. A line of each page, long before, has its address ready.
            next_s, next_slot, next_tiles = _next_head(
                kv, row, row_stream, row_position, windows, slots
            )
            next_at = next_slot * head_dim
            next_quads = 0
            lines = 0
            if together == 1:
                next_quads = min(near_tiles * 4, next_tiles * quads // FETCHED_BY_QUAD)
                lines = near_tiles * quads
                pages = next_tiles * quads // PAGE_LINES
                fetch_lines(keys[next_s], next_at, pages, PAGE_LINES)
                fetch_lines(values[next_s], next_at, pages, PAGE_LINES)
                fetch_lines(key_scales[next_s], next_slot, next_tiles, 1)
                fetch_lines(value_scales[next_s], next_slot, next_tiles, 1)
            at = (row * heads + kv * group) * head_dim
            _dot_rows(
                sink_keys[s, kv], 0, flat_sink_query, at, row_items, quads, together, group,
                flat_dots, 0, row_stride, items, sink_tiles,
            )  # fmt: skip
            _dot_rows(
                k, near_at, flat_query, at, row_items, quads, together, group,
                flat_dots, lead, row_stride, items, near_tiles,
            )  # fmt: skip
            _dot_rows(
                k, 0, flat_query, at, row_items, quads, together, group,
                flat_dots, far_lead, row_stride, items, far_tiles,
            )  # fmt: skip
            for begin_row in range(row, row + together, VALUE_ROWS):
                end_row = min(begin_row + VALUE_ROWS, row + together)
                for r in range(begin_row, end_row):
                    first = max(0, row_position[r] - window + 1)
                    begin = first - first_tile * 16
                    end = row_position[r] - first_tile * 16 + 1
                    seen_sinks = min(sinks, first)
                    greatest = max(
                        greatest_positive(value_factors, 0, sink_tiles, 0, seen_sinks),
                        greatest_positive(value_factors, lead, tiles, begin, end),
                    )
                    value_max[r - begin_row] = bits_to_float(greatest)
                    for member in range(group):
                        head = kv * group + member
                        mine = (r - row) * row_stride + member * items
                        place = (r * heads + head) * head_dim
                        key = scale_dots(
                            flat_dots, mine,
                            np.int32(128) * sum_codes(flat_sink_query, place, quads),
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
                        fetched = (sink_tiles + tiles) // EXPONENTIATED
                        begin_line = member * fetched * FETCHED_BY_FOUR
                        fetched = min(fetched, max(0, lines - begin_line) // FETCHED_BY_FOUR)
                        total = exponentiate(
                            flat_dots, mine, sink_tiles + tiles, top, TOTAL_ONE,
                            v, near_at + begin_line * 64, fetched,
                        )  # fmt: skip
                        share = (WEIGHT_ONE * TOTAL_ONE) / np.float32(total)
                        weigh(
                            flat_dots, mine, value_factors, 0, sink_tiles + tiles,
                            share / value_max[r - begin_row], high, low,
                            ((r - begin_row) * group + member) * items,
                        )  # fmt: skip
                sums[:] = 0
                queries = (end_row - begin_row) * group
                _add_values(
                    sink_v, 0, head_dim, queries, high, low, 0, items, sink_tiles, sums, v, 0, 0
                )
                _add_values(
                    v, near_at, head_dim, queries, high, low, lead, items, near_tiles, sums,
                    keys[next_s], next_at, next_quads,
                )  # fmt: skip
                _add_values(
                    v, 0, head_dim, queries, high, low, far_lead, items, far_tiles, sums, v, 0, 0
                )
                for r in range(begin_row, end_row):
                    back = value_max[r - begin_row] / WEIGHT_ONE
                    scale_sums(
                        sums, (r - begin_row) * group * head_dim, back,
                        flat_out, (r * heads + kv * group) * head_dim, (group * head_dim) >> 4,
                    )  # fmt: skip
        row += together
