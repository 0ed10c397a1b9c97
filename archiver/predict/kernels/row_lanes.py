"""Passes over a row of floats, 16 lanes at a time; `layers` composes them.

Offsets are in items, counts in tiles of 16.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils

from archiver.predict.kernels.lanes import (
    ARRAY,
    BYTES,
    FLOATS,
    I32,
    I64,
    INDEX,
    INTS,
    LANES,
    LaneBuilder,
    on_lanes,
)

LOG2_E = float.fromhex("0x1.715476p+0")  # rounded to binary32


@on_lanes(types.int32, ARRAY, INDEX)
def greatest_key(v: LaneBuilder, x, tiles):
    """The greatest `magnitude_key` of 16 * tiles binary32, 0 of none."""
    b = v.builder
    place = v.pointer(x, I64(0), INTS)
    best = v.cell(INTS, v.ints(0))
    with cgutils.for_range(b, tiles) as loop:
        key = b.and_(v.load(place, loop.index), v.ints(0x7FFFFFFF))
        b.store(v.greater(key, b.load(best)), best)
    return v.reduce(b.load(best), "smax")


@on_lanes(types.void, ARRAY, types.float32, ARRAY, INDEX)
def round_to_codes(v: LaneBuilder, x, to_code, codes, tiles):
    """codes = round(x * to_code), int8, of 16 * tiles binary32."""
    b = v.builder
    source = v.pointer(x, I64(0), FLOATS)
    target = v.pointer(codes, I64(0), BYTES)
    factor = v.splat(to_code, FLOATS)
    with cgutils.for_range(b, tiles) as loop:
        whole = v.round(b.fmul(v.load(source, loop.index), factor))
        v.store(b.trunc(b.fptosi(whole, INTS), BYTES), target, loop.index)


@on_lanes(types.void, ARRAY, INDEX, ARRAY, ARRAY, ARRAY, INDEX)
def turn(v: LaneBuilder, y, y_at, cosines, sines, out, tiles):
    """out = y[y_at:] with its pairs (d, d + 16 tiles) turned by the angles."""
    b = v.builder
    firsts = v.pointer(y, y_at, FLOATS)
    cosine_tiles = v.pointer(cosines, I64(0), FLOATS)
    sine_tiles = v.pointer(sines, I64(0), FLOATS)
    target = v.pointer(out, I64(0), FLOATS)
    with cgutils.for_range(b, tiles) as loop:
        other = b.add(loop.index, tiles)
        first, second = v.load(firsts, loop.index), v.load(firsts, other)
        cosine, sine = v.load(cosine_tiles, loop.index), v.load(sine_tiles, loop.index)
        v.store(b.fsub(b.fmul(first, cosine), b.fmul(second, sine)), target, loop.index)
        v.store(b.fadd(b.fmul(second, cosine), b.fmul(first, sine)), target, other)


@on_lanes(types.void, ARRAY, types.float32, ARRAY, ARRAY, INDEX)
def gate(v: LaneBuilder, product, scale, weight_scales, gated, tiles):
    """gated = silu(gate) * up for 16 * tiles channels; the product, binary32, holds gates and then
    ups, each to be multiplied by scale * weight_scales."""
    b = v.builder
    source = v.pointer(product, I64(0), FLOATS)
    factors = v.pointer(weight_scales, I64(0), FLOATS)
    target = v.pointer(gated, I64(0), FLOATS)
    row = v.splat(scale, FLOATS)

    def value(index: Any) -> Any:
        return b.fmul(v.load(source, index), b.fmul(row, v.load(factors, index)))

    with cgutils.for_range(b, tiles) as loop:
        gate, up = value(loop.index), value(b.add(loop.index, tiles))
        power = b.bitcast(b.fmul(gate, v.floats(LOG2_E)), INTS)
        power = b.bitcast(b.or_(power, v.ints(-(2**31))), FLOATS)  # -|gate| log2(e)
        (e,) = v.exp2(power)
        one = v.floats(1.0)
        one_or_e = b.select(b.fcmp_ordered(">=", gate, v.floats(0.0)), one, e)
        share = b.fdiv(one_or_e, b.fadd(one, e))
        v.store(b.fmul(b.fmul(gate, share), up), target, loop.index)


@on_lanes(types.void, ARRAY, INDEX, INDEX)
def two_butterflies(v: LaneBuilder, x, step, fours):
    """The butterflies (a, b) -> (a + b, a - b) of 64 * fours binary32 at a distance of 16 * step,
    then those at 32 * step; step divides fours."""
    b = v.builder
    place = v.pointer(x, I64(0), FLOATS)
    with cgutils.for_range(b, fours) as loop:
        runs, inside = b.sdiv(loop.index, step), b.srem(loop.index, step)
        first = b.add(b.mul(runs, b.mul(step, I64(4))), inside)
        places = [b.add(first, b.mul(step, I64(k))) for k in range(4)]
        p, q, r, s = (v.load(place, index) for index in places)
        p, q, r, s = b.fadd(p, q), b.fsub(p, q), b.fadd(r, s), b.fsub(r, s)
        results = b.fadd(p, r), b.fadd(q, s), b.fsub(p, r), b.fsub(q, s)
        for result, index in zip(results, places, strict=True):
            v.store(result, place, index)


@on_lanes(types.void, ARRAY, ARRAY, INDEX, INDEX)
def store_quads(v: LaneBuilder, key, keys, at, quads):
    """keys[at + 64 q + j] = key[4 q + j] + 128 for q < quads, j < 4; key int8, keys uint8."""
    b = v.builder
    source = v.pointer(key, I64(0), I32)
    target = v.pointer(keys, at, I32)
    with cgutils.for_range(b, quads) as loop:
        # Of an int8's bits, adding 128 turns the sign.
        quad = b.xor(v.load(source, loop.index), I32(-0x7F7F7F80))
        v.store(quad, target, b.mul(loop.index, I64(LANES)))
