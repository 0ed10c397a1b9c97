"""One step of a team: threads that each have streams of their own and share every product.

    own streams        all streams, own outputs
    normalize ──────┬─ qkv ─────┐
                    ┊           │
    attend ─────────┬─ o ───────┤    ┬ : all wait for each other
                    ┊           │
    add, normalize ─┬─ gate, up ┤
                    ┊           │
    gate and rotate ┬─ down ────┘

So a step reads the weights once, however many threads there are. It is what `session` does for a
model of the Llama family, with the same kernels; a row's result does not depend on who computes it.
Where a member fails, the others come to an end with numbers of no meaning.

A whole step is one call. Between calls threads take turns in the interpreter: on a busy machine
each turn can cost the rest of another program's time slice.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types

from archiver.compiled import compiled
from archiver.predict.kernels.attention import attend
from archiver.predict.kernels.byte_products import multiply_some
from archiver.predict.kernels.head import weigh_vocabulary
from archiver.predict.kernels.lanes import I8, LaneBuilder, on_lanes
from archiver.predict.kernels.layers import (
    add_product,
    gate_and_rotate,
    normalize,
    project_heads,
    quantize_rows,
)
from archiver.predict.kernels.meeting import meet

# Columns of a layer's addresses; four arrays each: matrices as qkv, o, up, down, caches as keys,
# values and their scales.
PACKED, WEIGHT_SCALES, CACHE, SINK_CACHE, ANGLES = 0, 4, 8, 12, 16
ADDRESSES = 18


@on_lanes(types.voidptr, types.int64)
def _pointer(t: LaneBuilder, address):
    return t.builder.inttoptr(address, I8.as_pointer())


@compiled()
def _bytes_at(address, count):
    """uint8 [count]."""
    return carray(_pointer(address), (count,), np.uint8)


@compiled()
def _floats_at(address, count):
    """float32 [count]."""
    return carray(_pointer(address), (count,), np.float32)


@compiled()
def _floats_by_two(address, rows, columns):
    """float32 [rows, columns]."""
    return carray(_pointer(address), (rows, columns), np.float32)


@compiled()
def _cache_at(addresses, streams, slots, head_dim):
    """A layer's keys, values and their scales for a number of slots in all."""
    return (
        carray(_pointer(addresses[0]), (streams, slots * head_dim), np.uint8),
        carray(_pointer(addresses[1]), (streams, slots * head_dim), np.int8),
        carray(_pointer(addresses[2]), (streams, slots), np.float32),
        carray(_pointer(addresses[3]), (streams, slots), np.float32),
    )


@compiled()
def _sink_cache_at(addresses, streams, kv_heads, slots, head_dim):
    """The same for the first positions, of each key/value head apart."""
    items = slots * head_dim
    return (
        carray(_pointer(addresses[0]), (streams, kv_heads, items), np.uint8),
        carray(_pointer(addresses[1]), (streams, kv_heads, items), np.int8),
        carray(_pointer(addresses[2]), (streams, kv_heads, slots), np.float32),
        carray(_pointer(addresses[3]), (streams, kv_heads, slots), np.float32),
    )


@compiled()
def _share_product(meeting, met, members, packed, codes, room, outputs, begin, end, shapes):
    """All members multiply all rows, each by its own outputs.

    Returns:
        the whole product, float32 [rows, outputs], at the beginning of `room`.
    """
    product = room[: codes.shape[0] * outputs].reshape(codes.shape[0], outputs)
    met[0] += members
    meet(meeting, met[0])
    multiply_some(packed, codes, product, begin, end, shapes)
    met[0] += members
    meet(meeting, met[0])
    return product


@compiled()
def _step_layer(
    meeting,
    met,
    members,
    first,
    last,
    x,
    attended,
    codes,
    scales,
    inner_scales,
    attended_codes,
    activated_codes,
    room,
    packed,
    weight_scales,
    own_outputs,
    shapes,
    angles,
    places,
    sinks,
    layer_sinks,
    queries,
    cache,
    sink_cache,
    scratch,
    epsilon,
    logit_unit,
    span,
):
    """x goes through a layer, the streams of all members at once.

    Args:
        meeting: of the members (see `meeting`); met: int64 [1], arrivals expected so far, the
            member's own count.
        first, last: the member's streams are first .. last - 1.
        x: float32 [own, hidden], the residual stream; attended: float32 [own, heads * head_dim].
        codes, attended_codes, activated_codes: int8 [streams, hidden], [streams, heads * head_dim],
            [streams, ffn]; scales, inner_scales: float32 [streams]; room: float32, for the largest
            product. All of these are shared.
        packed, weight_scales: of the matrices qkv, o, up and down: uint8 and float32 [outputs].
        own_outputs: int64 [4, 2], the outputs of each that the member computes, as `multiply_some`
            has them; shapes: as there.
        angles: cosines and sines; places: row_stream, row_position, windows, slots;
        queries, cache, sink_cache, scratch: as `attend` has them.
        sinks: of the model; layer_sinks: of this layer.
        epsilon, logit_unit, span: as `normalize`, `project_heads` and `gate_and_rotate` have them.
    """
    own_codes, own_scales = codes[first:last], scales[first:last]
    own_inner = inner_scales[first:last]
    qkv, o, up, down = packed
    qkv_scales, o_scales, up_scales, down_scales = weight_scales

    normalize(x, epsilon, own_codes, own_scales)
    product = _share_product(
        meeting, met, members, qkv, codes, room, qkv_scales.shape[0], own_outputs[0, 0],
        own_outputs[0, 1], shapes,
    )  # fmt: skip
    project_heads(
        product[first:last], own_scales, qkv_scales, *angles, *places, sinks, *queries, *cache,
        *sink_cache, logit_unit,
    )  # fmt: skip
    attend(*queries, *cache, *sink_cache, *places, layer_sinks, *scratch, attended)
    quantize_rows(attended, attended_codes[first:last], own_inner)
    product = _share_product(
        meeting, met, members, o, attended_codes, room, o_scales.shape[0], own_outputs[1, 0],
        own_outputs[1, 1], shapes,
    )  # fmt: skip
    add_product(x, product[first:last], own_inner, o_scales)
    normalize(x, epsilon, own_codes, own_scales)
    product = _share_product(
        meeting, met, members, up, codes, room, up_scales.shape[0], own_outputs[2, 0],
        own_outputs[2, 1], shapes,
    )  # fmt: skip
    gate_and_rotate(
        product[first:last], own_scales, up_scales, span, activated_codes[first:last], own_inner
    )
    product = _share_product(
        meeting, met, members, down, activated_codes, room, down_scales.shape[0],
        own_outputs[3, 0], own_outputs[3, 1], shapes,
    )  # fmt: skip
    add_product(x, product[first:last], own_inner, down_scales)


@compiled()
def _weigh_streams(
    meeting,
    met,
    members,
    first,
    last,
    x,
    codes,
    scales,
    room,
    packed,
    weight_scales,
    begin,
    end,
    shapes,
    epsilon,
    weights,
    cumulative,
):
    """weights and cumulative are those of every own stream's next token.

    Args:
        As for `_step_layer`; packed, weight_scales, begin, end: the head's.
        weights: int32 [streams, vocabulary]; cumulative: int64 [streams, tiles + 1].
    """
    normalize(x, epsilon, codes[first:last], scales[first:last])
    product = _share_product(
        meeting, met, members, packed, codes, room, weight_scales.shape[0], begin, end, shapes
    )
    logits = np.empty(weight_scales.shape[0], np.float32)
    for stream in range(first, last):
        weigh_vocabulary(
            product[stream], scales[stream], weight_scales, logits, weights[stream],
            cumulative[stream],
        )  # fmt: skip


@compiled()
def step(
    meeting,
    met,
    members,
    first,
    last,
    x,
    attended,
    codes,
    scales,
    inner_scales,
    attended_codes,
    activated_codes,
    room,
    addresses,
    outputs,
    packed_bytes,
    own_outputs,
    shapes,
    position,
    positions,
    windows,
    slots,
    sink_slots,
    sinks,
    layer_sinks,
    queries,
    scratch,
    epsilon,
    logit_unit,
    span,
    head_packed,
    head_scales,
    head_begin,
    head_end,
    weights,
    cumulative,
):
    """A member's part of a step: x, its streams' embeddings, goes through all layers and the head.

    Args:
        As for `_step_layer` and `_weigh_streams`, and
        addresses: int64 [layers, 18], of each layer's arrays; outputs, packed_bytes: int64 [4], of
            each matrix.
        position: of the tokens in their streams; positions: that the angles are for.
        windows: int32 [layers, kv_heads]; slots: int32 [layers, kv_heads + 1]; sink_slots: of each
            head; layer_sinks: int32 [layers].
    """
    own = last - first
    head_dim = queries[0].shape[2]
    kv_heads = windows.shape[1]
    row_stream = np.arange(own).astype(np.int32)
    row_position = np.full(own, position, np.int32)
    for layer in range(addresses.shape[0]):
        at = addresses[layer]
        packed = (
            _bytes_at(at[PACKED], packed_bytes[0]),
            _bytes_at(at[PACKED + 1], packed_bytes[1]),
            _bytes_at(at[PACKED + 2], packed_bytes[2]),
            _bytes_at(at[PACKED + 3], packed_bytes[3]),
        )
        weight_scales = (
            _floats_at(at[WEIGHT_SCALES], outputs[0]),
            _floats_at(at[WEIGHT_SCALES + 1], outputs[1]),
            _floats_at(at[WEIGHT_SCALES + 2], outputs[2]),
            _floats_at(at[WEIGHT_SCALES + 3], outputs[3]),
        )
        angles = (
            _floats_by_two(at[ANGLES], positions, head_dim >> 1),
            _floats_by_two(at[ANGLES + 1], positions, head_dim >> 1),
        )
        cache = _cache_at(at[CACHE : CACHE + 4], own, slots[layer, kv_heads], head_dim)
        sink_cache = _sink_cache_at(
            at[SINK_CACHE : SINK_CACHE + 4], own, kv_heads, sink_slots, head_dim
        )
        places = (row_stream, row_position, windows[layer], slots[layer])
        _step_layer(
            meeting, met, members, first, last, x, attended, codes, scales, inner_scales,
            attended_codes, activated_codes, room, packed, weight_scales, own_outputs, shapes,
            angles, places, sinks, layer_sinks[layer], queries, cache, sink_cache, scratch,
            epsilon, logit_unit, span,
        )  # fmt: skip
    _weigh_streams(
        meeting, met, members, first, last, x, codes, scales, room, head_packed, head_scales,
        head_begin, head_end, shapes, epsilon, weights, cumulative,
    )  # fmt: skip
