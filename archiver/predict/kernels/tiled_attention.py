"""`attention.attend` by tile registers, for many rows of a stream at a time.

The caches are laid out as there; what is added up are integers, so the results are the same.
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.predict.kernels.attention import TOTAL_ONE, WEIGHT_ONE
from archiver.predict.kernels.elementary import bits_to_float, float_of_key
from archiver.predict.kernels.tiles import (
    add_value_tiles,
    release_tiles,
    store_sums,
    tile_dots,
    use_tiles,
    zero_sums,
)
from archiver.predict.kernels.vectors import (
    exponentiate,
    greatest_positive,
    scale_dots,
    sum_codes,
    weigh,
)

TILED_ROWS = 16  # of a stream, that `attend_by_tiles` works on together
TILED_POSITIONS = 64  # to which its caches and its scratch are padded


@compiled()
def tiled_items(window, sinks):
    """Items of scratch that one row of `attend_by_tiles` needs, at most."""
    spans = ((sinks + 63) >> 6) + ((window + TILED_ROWS + 62) >> 6) + 1
    return spans * TILED_POSITIONS


@compiled()
def attend_by_tiles(
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
    shapes,
    out,
):
    """`attend` by the processor's tile registers, where many rows follow one another in a stream.

    Args: as for `attend`, but head_dim and the caches' slots are multiples of 64, and of scratch:
        dots: int32 [16, items], scales: float32 [2, items], weights: uint8 [2, 16, items], items
        from `tiled_items`; shapes: `tiles.ROW_SHAPES`.
    """
    rows, heads, head_dim = query.shape
    kv_heads = windows.shape[0]
    group = heads // kv_heads
    quads = head_dim >> 2
    row_items = heads * head_dim
    items = dots.shape[1]
    flat_dots = dots.reshape(-1)
    key_factors = scales[0]
    value_factors = scales[1]
    high = weights[0].reshape(-1)
    low = weights[1].reshape(-1)
    sums = np.empty(4 * 256, np.int32)
    value_max = np.empty(TILED_ROWS, np.float32)
    flat_query = query.reshape(-1)
    flat_sink_query = sink_query.reshape(-1)
    flat_out = out.reshape(-1)
    row = 0
    while row < rows:
        s = row_stream[row]
        together = 1
        while (
            together < TILED_ROWS
            and row + together < rows
            and row_stream[row + together] == s
            and row_position[row + together] == row_position[row] + together
        ):
            together += 1
        use_tiles(shapes[together])
        last = row_position[row + together - 1]
        for kv in range(kv_heads):
            # What the rows see together, in spans of 64 positions: sinks in front, then the window.
            window = windows[kv]
            first_span = max(0, row_position[row] - window + 1) >> 6
            spans = (last >> 6) - first_span + 1
            sink_spans = (min(sinks, max(0, last - window + 1)) + 63) >> 6
            lead = sink_spans * 64
            ring_spans = (slots[kv + 1] - slots[kv]) >> 6
            first_slot = first_span % ring_spans
            near_spans = min(spans, ring_spans - first_slot)
            far_spans = spans - near_spans  # these lie at the ring's begin again
            far_lead = lead + near_spans * 64
            end_item = lead + spans * 64
            near_at = first_slot * 64 * head_dim
            near = slice(slots[kv] + first_slot * 64, slots[kv] + (first_slot + near_spans) * 64)
            far = slice(slots[kv], slots[kv] + far_spans * 64)
            k = keys[s, slots[kv] * head_dim :]
            v = values[s, slots[kv] * head_dim :]
            sink_k = sink_keys[s, kv]
            sink_v = sink_values[s, kv]
            key_factors[:lead] = sink_key_scales[s, kv, :lead]
            key_factors[lead:far_lead] = key_scales[s, near]
            key_factors[far_lead:end_item] = key_scales[s, far]
            value_factors[:lead] = sink_value_scales[s, kv, :lead]
            value_factors[lead:far_lead] = value_scales[s, near]
            value_factors[far_lead:end_item] = value_scales[s, far]
            for member in range(group):
                head = kv * group + member
                at = (row * heads + head) * head_dim
                tile_dots(
                    sink_k, 0, flat_sink_query, at, row_items, head_dim >> 6, flat_dots, 0, items,
                    sink_spans * 4,
                )  # fmt: skip
                tile_dots(
                    k, near_at, flat_query, at, row_items, head_dim >> 6, flat_dots, lead, items,
                    near_spans * 4,
                )  # fmt: skip
                tile_dots(
                    k, 0, flat_query, at, row_items, head_dim >> 6, flat_dots, far_lead, items,
                    far_spans * 4,
                )  # fmt: skip
                for r in range(together):
                    p = row_position[row + r]
                    first = max(0, p - window + 1)
                    seen_sinks = min(sinks, first)
                    sink_tiles = (seen_sinks + 15) >> 4
                    begin_tile = (first >> 4) - first_span * 4  # of those after the sinks
                    tiles = (p >> 4) - (first >> 4) + 1
                    from_item = lead + begin_tile * 16
                    begin = first & 15
                    end = p - (first >> 4 << 4) + 1
                    if member == 0:
                        greatest = max(
                            greatest_positive(value_factors, 0, sink_tiles, 0, seen_sinks),
                            greatest_positive(value_factors, from_item, tiles, begin, end),
                        )
                        value_max[r] = bits_to_float(greatest)
                    mine = r * items
                    place = at + r * row_items
                    key = scale_dots(
                        flat_dots, mine, np.int32(128) * sum_codes(flat_sink_query, place, quads),
                        sink_query_scale[row + r, head], key_factors, 0, sink_tiles, 0, seen_sinks,
                    )  # fmt: skip
                    key = max(
                        key,
                        scale_dots(
                            flat_dots, mine + from_item,
                            np.int32(128) * sum_codes(flat_query, place, quads),
                            query_scale[row + r, head], key_factors, from_item, tiles, begin, end,
                        ),
                    )  # fmt: skip
                    top = float_of_key(key)
                    total = exponentiate(flat_dots, mine, sink_tiles, top, TOTAL_ONE, v, 0, 0)
                    total += exponentiate(
                        flat_dots, mine + from_item, tiles, top, TOTAL_ONE, v, 0, 0
                    )
                    share = ((WEIGHT_ONE * TOTAL_ONE) / np.float32(total)) / value_max[r]
                    weigh(flat_dots, mine, value_factors, 0, sink_tiles, share, high, low, mine)
                    weigh(
                        flat_dots, mine + from_item, value_factors, from_item, tiles, share, high,
                        low, mine + from_item,
                    )  # fmt: skip
                    # Whole spans are multiplied: what the row does not see weighs nothing.
                    for a, b in (
                        (mine + sink_tiles * 16, mine + from_item),
                        (mine + from_item + tiles * 16, mine + end_item),
                    ):
                        high[a:b] = 0
                        low[a:b] = 0
                for d in range(0, head_dim, 32):
                    zero_sums()
                    row_bytes = head_dim * 4
                    add_value_tiles(sink_v, d * 4, row_bytes, high, low, 0, items, sink_spans)
                    add_value_tiles(
                        v, near_at + d * 4, row_bytes, high, low, lead, items, near_spans
                    )
                    add_value_tiles(v, d * 4, row_bytes, high, low, far_lead, items, far_spans)
                    store_sums(sums)
                    for r in range(together):
                        back = value_max[r] / WEIGHT_ONE
                        place = at + r * row_items + d
                        for half in range(2):
                            source = half * 256 + r * 16
                            for j in range(16):
                                whole = (sums[source + j] << 8) + sums[source + 512 + j]
                                flat_out[place + half * 16 + j] = np.float32(whole) * back
        row += together
    release_tiles()
