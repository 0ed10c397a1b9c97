"""Passes over a row of floats, 16 lanes at a time; `layers` composes them.

As in `vectors`: LLVM vectors without fast-math flags, offsets in items, counts in tiles of 16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from archiver.predict.kernels.vectors import LANES, LaneBuilder, codegen

LOG2_E = float.fromhex("0x1.715476p+0")  # rounded to binary32

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_CODES = ir.VectorType(_I8, LANES)


@intrinsic
def greatest_key(typingctx, x, tiles):
    """The greatest `magnitude_key` of 16 * tiles binary32, 0 of none."""

    def body(v: LaneBuilder, kinds: Any, x: Any, tiles: Any) -> Any:
        b = v.builder
        place = v.pointer(kinds[0], x, _I64(0), _INTS)
        best = v.cell(_INTS, v.ints(0))
        with cgutils.for_range(b, tiles) as loop:
            key = b.and_(v.load(place, loop.index), v.ints(0x7FFFFFFF))
            b.store(v.greater(key, b.load(best)), best)
        return v.reduce(b.load(best), "smax")

    return types.int32(x, types.int64), codegen(LaneBuilder, body)


@intrinsic
def round_to_codes(typingctx, x, to_code, codes, tiles):
    """codes = round(x * to_code), int8, of 16 * tiles binary32."""

    def body(v: LaneBuilder, kinds: Any, x: Any, to_code: Any, codes: Any, tiles: Any) -> None:
        b = v.builder
        source = v.pointer(kinds[0], x, _I64(0), _FLOATS)
        target = v.pointer(kinds[2], codes, _I64(0), _CODES)
        factor = v.splat(to_code, _FLOATS)
        with cgutils.for_range(b, tiles) as loop:
            whole = v.round(b.fmul(v.load(source, loop.index), factor))
            v.store(b.trunc(b.fptosi(whole, _INTS), _CODES), target, loop.index)

    signature = types.void(x, types.float32, codes, types.int64)
    return signature, codegen(LaneBuilder, body)


@intrinsic
def turn(typingctx, y, y_at, cosines, sines, out, tiles):
    """out = y[y_at:] with its pairs (d, d + 16 tiles) turned by the angles."""

    def body(
        v: LaneBuilder,
        kinds: Any,
        y: Any,
        y_at: Any,
        cosines: Any,
        sines: Any,
        out: Any,
        tiles: Any,
    ) -> None:
        b = v.builder
        firsts = v.pointer(kinds[0], y, y_at, _FLOATS)
        cosine_tiles = v.pointer(kinds[2], cosines, _I64(0), _FLOATS)
        sine_tiles = v.pointer(kinds[3], sines, _I64(0), _FLOATS)
        target = v.pointer(kinds[4], out, _I64(0), _FLOATS)
        with cgutils.for_range(b, tiles) as loop:
            other = b.add(loop.index, tiles)
            first, second = v.load(firsts, loop.index), v.load(firsts, other)
            cosine, sine = v.load(cosine_tiles, loop.index), v.load(sine_tiles, loop.index)
            v.store(b.fsub(b.fmul(first, cosine), b.fmul(second, sine)), target, loop.index)
            v.store(b.fadd(b.fmul(second, cosine), b.fmul(first, sine)), target, other)

    i = types.int64
    return types.void(y, i, cosines, sines, out, i), codegen(LaneBuilder, body)


@intrinsic
def gate(typingctx, product, scale, weight_scales, gated, tiles):
    """gated = silu(gate) * up for 16 * tiles channels; the product, binary32, holds gates and then
    ups, each to be multiplied by scale * weight_scales."""

    def body(
        v: LaneBuilder,
        kinds: Any,
        product: Any,
        scale: Any,
        weight_scales: Any,
        gated: Any,
        tiles: Any,
    ) -> None:
        b = v.builder
        source = v.pointer(kinds[0], product, _I64(0), _FLOATS)
        factors = v.pointer(kinds[2], weight_scales, _I64(0), _FLOATS)
        target = v.pointer(kinds[3], gated, _I64(0), _FLOATS)
        row = v.splat(scale, _FLOATS)

        def value(index: Any) -> Any:
            return b.fmul(v.load(source, index), b.fmul(row, v.load(factors, index)))

        with cgutils.for_range(b, tiles) as loop:
            gate, up = value(loop.index), value(b.add(loop.index, tiles))
            power = b.bitcast(b.fmul(gate, v.floats(LOG2_E)), _INTS)
            power = b.bitcast(b.or_(power, v.ints(-(2**31))), _FLOATS)  # -|gate| log2(e)
            e = v.exp2(power)
            one = v.floats(1.0)
            one_or_e = b.select(b.fcmp_ordered(">=", gate, v.floats(0.0)), one, e)
            share = b.fdiv(one_or_e, b.fadd(one, e))
            v.store(b.fmul(b.fmul(gate, share), up), target, loop.index)

    signature = types.void(product, types.float32, weight_scales, gated, types.int64)
    return signature, codegen(LaneBuilder, body)


@intrinsic
def two_butterflies(typingctx, x, step, fours):
    """The butterflies (a, b) -> (a + b, a - b) of 64 * fours binary32 at a distance of 16 * step,
    then those at 32 * step; step divides fours."""

    def body(v: LaneBuilder, kinds: Any, x: Any, step: Any, fours: Any) -> None:
        b = v.builder
        place = v.pointer(kinds[0], x, _I64(0), _FLOATS)
        with cgutils.for_range(b, fours) as loop:
            runs, inside = b.sdiv(loop.index, step), b.srem(loop.index, step)
            first = b.add(b.mul(runs, b.mul(step, _I64(4))), inside)
            places = [b.add(first, b.mul(step, _I64(k))) for k in range(4)]
            p, q, r, s = (v.load(place, index) for index in places)
            p, q, r, s = b.fadd(p, q), b.fsub(p, q), b.fadd(r, s), b.fsub(r, s)
            results = b.fadd(p, r), b.fadd(q, s), b.fsub(p, r), b.fsub(q, s)
            for result, index in zip(results, places, strict=True):
                v.store(result, place, index)

    return types.void(x, types.int64, types.int64), codegen(LaneBuilder, body)


@intrinsic
def store_quads(typingctx, key, keys, at, quads):
    """keys[at + 64 q + j] = key[4 q + j] + 128 for q < quads, j < 4; key int8, keys uint8."""

    def body(v: LaneBuilder, kinds: Any, key: Any, keys: Any, at: Any, quads: Any) -> None:
        b = v.builder
        source = v.pointer(kinds[0], key, _I64(0), _I32)
        target = v.pointer(kinds[1], keys, at, _I32)
        with cgutils.for_range(b, quads) as loop:
            # Of an int8's bits, adding 128 turns the sign.
            quad = b.xor(v.load(source, loop.index), _I32(-0x7F7F7F80))
            v.store(quad, target, b.mul(loop.index, _I64(LANES)))

    i = types.int64
    return types.void(key, keys, i, i), codegen(LaneBuilder, body)
