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

from typing import Any, NamedTuple

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
from archiver.types import Float32Array, Int8Array, Int32Array, Int64Array, UInt8Array

QKV, OUT, UP, DOWN, HEAD = range(5)  # the matrices

# Columns of a layer's addresses; four arrays each: matrices as qkv, o, up, down, caches as keys,
# values and their scales.
PACKED, WEIGHT_SCALES, CACHE, SINK_CACHE, ANGLES = 0, 4, 8, 12, 16
ADDRESSES = 18


class Part(NamedTuple):
    """A member's part of a step.

    Attributes:
        meeting: of the members that share products (see `meeting`); members: how many they are;
            met: int64 [1], arrivals there that this one has expected so far.
        first, last: its streams are first .. last - 1 of those whose rows are multiplied.
        outputs: int64 [5, 2], its outputs of each matrix, as `multiply_some` has them.
    """

    meeting: Int64Array
    met: Int64Array
    members: int
    first: int
    last: int
    outputs: Int64Array


class Rows(NamedTuple):
    """A row of each stream, shared by the members.

    Attributes:
        codes, attended_codes, activated_codes: int8 [streams, hidden], [streams, heads *
            head_dim], [streams, ffn]; scales, inner_scales: float32 [streams].
        room: float32, for the largest product.
        weights: int32 [streams, vocabulary], of the next tokens; cumulative: int64 [streams,
            tiles + 1].
    """

    codes: Int8Array
    scales: Float32Array
    inner_scales: Float32Array
    attended_codes: Int8Array
    activated_codes: Int8Array
    room: Float32Array
    weights: Int32Array
    cumulative: Int64Array


class Own(NamedTuple):
    """What a member needs for its own streams.

    Attributes:
        x: float32 [own, hidden], the residual stream; attended: float32 [own, heads * head_dim].
        queries, scratch: as `attend` has them.
        addresses: int64 [layers, 18], of each layer's arrays.
    """

    x: Float32Array
    attended: Float32Array
    queries: tuple[Any, ...]
    scratch: tuple[Any, ...]
    addresses: Int64Array


class Model(NamedTuple):
    """What all members know.

    Attributes:
        outputs, packed_bytes: int64 [4], of each matrix of a layer.
        positions: that there are angles for.
        windows: int32 [layers, kv_heads]; slots: int32 [layers, kv_heads + 1]; sinks: of the model;
            sink_slots: of each head; layer_sinks: int32 [layers].
        epsilon, logit_unit, span: as `normalize`, `project_heads` and `gate_and_rotate` have them.
        head_packed: uint8, head_scales: float32 [vocabulary].
        group, shapes: as `multiply_some` has them.
    """

    outputs: Int64Array
    packed_bytes: Int64Array
    positions: int
    windows: Int32Array
    slots: Int32Array
    sinks: int
    sink_slots: int
    layer_sinks: Int32Array
    epsilon: float
    logit_unit: np.float32
    span: int
    head_packed: UInt8Array
    head_scales: Float32Array
    group: int
    shapes: Any


class Layer(NamedTuple):
    """A layer, for one member.

    Attributes:
        packed, weight_scales: of the matrices qkv, o, up and down, uint8 and float32 [outputs].
        angles: cosines and sines; cache, sink_cache, places (row_stream, row_position, windows,
            slots): as `attend` has them; sinks: of this layer.
    """

    packed: tuple[Any, ...]
    weight_scales: tuple[Any, ...]
    angles: tuple[Any, ...]
    cache: tuple[Any, ...]
    sink_cache: tuple[Any, ...]
    places: tuple[Any, ...]
    sinks: int


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
def _layer_of(model, own, number, places):
    """A layer's arrays, from their addresses."""
    at = own.addresses[number]
    streams = own.x.shape[0]
    head_dim = own.queries[0].shape[2]
    kv_heads = model.windows.shape[1]
    return Layer(
        (
            _bytes_at(at[PACKED + QKV], model.packed_bytes[QKV]),
            _bytes_at(at[PACKED + OUT], model.packed_bytes[OUT]),
            _bytes_at(at[PACKED + UP], model.packed_bytes[UP]),
            _bytes_at(at[PACKED + DOWN], model.packed_bytes[DOWN]),
        ),
        (
            _floats_at(at[WEIGHT_SCALES + QKV], model.outputs[QKV]),
            _floats_at(at[WEIGHT_SCALES + OUT], model.outputs[OUT]),
            _floats_at(at[WEIGHT_SCALES + UP], model.outputs[UP]),
            _floats_at(at[WEIGHT_SCALES + DOWN], model.outputs[DOWN]),
        ),
        (
            _floats_by_two(at[ANGLES], model.positions, head_dim >> 1),
            _floats_by_two(at[ANGLES + 1], model.positions, head_dim >> 1),
        ),
        _cache_at(at[CACHE : CACHE + 4], streams, model.slots[number, kv_heads], head_dim),
        _sink_cache_at(
            at[SINK_CACHE : SINK_CACHE + 4], streams, kv_heads, model.sink_slots, head_dim
        ),
        (*places, model.windows[number], model.slots[number]),
        model.layer_sinks[number],
    )


@compiled()
def _share_product(part, room, matrix, packed, codes, outputs, group, shapes):
    """All members multiply all rows, each by its own outputs.

    Returns:
        the whole product, float32 [rows, outputs], at the beginning of `room`.
    """
    product = room[: codes.shape[0] * outputs].reshape(codes.shape[0], outputs)
    part.met[0] += part.members
    meet(part.meeting, part.met[0])
    begin, end = part.outputs[matrix, 0], part.outputs[matrix, 1]
    multiply_some(packed, codes, product, begin, end, group, shapes)
    part.met[0] += part.members
    meet(part.meeting, part.met[0])
    return product


@compiled()
def _step_layer(part, rows, own, model, layer):
    """own.x goes through a layer, the streams of all members at once."""
    mine = slice(part.first, part.last)
    codes, scales, inner_scales = rows.codes[mine], rows.scales[mine], rows.inner_scales[mine]
    qkv, o, up, down = layer.packed
    qkv_scales, o_scales, up_scales, down_scales = layer.weight_scales

    normalize(own.x, model.epsilon, codes, scales)
    product = _share_product(
        part, rows.room, QKV, qkv, rows.codes, qkv_scales.shape[0], model.group, model.shapes
    )
    project_heads(
        product[mine], scales, qkv_scales, *layer.angles, *layer.places, model.sinks,
        *own.queries, *layer.cache, *layer.sink_cache, model.logit_unit,
    )  # fmt: skip
    attend(
        *own.queries, *layer.cache, *layer.sink_cache, *layer.places, layer.sinks, *own.scratch,
        own.attended,
    )  # fmt: skip
    quantize_rows(own.attended, rows.attended_codes[mine], inner_scales)
    product = _share_product(
        part, rows.room, OUT, o, rows.attended_codes, o_scales.shape[0], model.group, model.shapes
    )
    add_product(own.x, product[mine], inner_scales, o_scales)
    normalize(own.x, model.epsilon, codes, scales)
    product = _share_product(
        part, rows.room, UP, up, rows.codes, up_scales.shape[0], model.group, model.shapes
    )
    gate_and_rotate(
        product[mine], scales, up_scales, model.span, rows.activated_codes[mine], inner_scales
    )
    product = _share_product(
        part,
        rows.room,
        DOWN,
        down,
        rows.activated_codes,
        down_scales.shape[0],
        model.group,
        model.shapes,
    )
    add_product(own.x, product[mine], inner_scales, down_scales)


@compiled()
def _weigh_streams(part, rows, own, model):
    """rows.weights and rows.cumulative are those of every own stream's next token."""
    mine = slice(part.first, part.last)
    normalize(own.x, model.epsilon, rows.codes[mine], rows.scales[mine])
    product = _share_product(
        part, rows.room, HEAD, model.head_packed, rows.codes, model.head_scales.shape[0],
        model.group, model.shapes,
    )  # fmt: skip
    logits = np.empty(model.head_scales.shape[0], np.float32)
    for stream in range(part.first, part.last):
        weigh_vocabulary(
            product[stream], rows.scales[stream], model.head_scales, logits, rows.weights[stream],
            rows.cumulative[stream],
        )  # fmt: skip


@compiled()
def step(part, rows, own, model, position):
    """A member's part of a step: own.x, its streams' embeddings, goes through layers and head.

    Args:
        part: Part; rows: Rows; own: Own; model: Model; position: of the tokens in their streams.
    """
    streams = own.x.shape[0]
    places = (np.arange(streams).astype(np.int32), np.full(streams, position, np.int32))
    for number in range(own.addresses.shape[0]):
        _step_layer(part, rows, own, model, _layer_of(model, own, number, places))
    _weigh_streams(part, rows, own, model)
