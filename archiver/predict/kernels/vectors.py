"""Loops over 16 lanes at a time, written in the compiler's own language.

Numba's loop vectorizer picks 256-bit registers and cannot see byte dot products, so the inner
loops of attention are built here as LLVM vectors of 16 lanes. LLVM splits them on processors with
narrower registers. No instruction carries a fast-math flag: every float operation is the IEEE
operation of its lane, and integer sums have one value whatever the order.

All counts are in tiles of 16; all offsets in items of their array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from archiver.predict.kernels.elementary import (
    EXP2_C1,
    EXP2_C2,
    EXP2_C3,
    EXP2_C4,
    EXP2_C5,
    EXP2_FLOOR,
    ROUNDING_MAGIC,
)

LANES = 16
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
UNSEEN = -(2.0**100)  # a logit whose weight is exactly 0
_BYTES = ir.VectorType(_I8, LANES)
_INTS = ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(_F32, LANES)


def has_byte_dot_product() -> bool:
    """Whether kernels are compiled for a processor with AVX-512 VNNI.

    Follows what numba compiles for (`NUMBA_CPU_NAME`, `NUMBA_CPU_FEATURES`), by which it also
    keys its cache, so a cached kernel and this answer always agree.
    """
    if config.CPU_FEATURES is not None:
        return "+avx512vnni" in config.CPU_FEATURES
    if config.CPU_NAME not in (None, "", "host"):
        return False
    return bool(llvm.get_host_cpu_features().get("avx512vnni"))


class LaneBuilder:
    """A builder of operations on 16 lanes."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def pointer(self, kind: Any, array: Any, offset: Any, pointee: Any) -> Any:
        """Address of an array's item `offset`, as a pointer to `pointee`."""
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        return self.builder.bitcast(self.builder.gep(data, [offset]), pointee.as_pointer())

    def load(self, pointer: Any, index: Any) -> Any:
        return self.builder.load(self.builder.gep(pointer, [index]), align=1)

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        self.builder.store(value, self.builder.gep(pointer, [index]), align=1)

    def ints(self, value: int) -> Any:
        return ir.Constant(_INTS, [value] * LANES)

    def floats(self, value: SupportsFloat) -> Any:
        return ir.Constant(_FLOATS, [float(value)] * LANES)

    def splat(self, scalar: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        vector = self.builder.insert_element(undefined, scalar, _I32(0))
        return self.builder.shuffle_vector(vector, undefined, self.ints(0))

    def fetch(self, pointer: Any, ahead: Any) -> None:
        """The processor begins to bring the line `ahead` bytes after the pointer into its
        second-level cache; an address where nothing lies does no harm."""
        b = self.builder
        line = b.gep(b.bitcast(pointer, _I8.as_pointer()), [ahead])
        signature = ir.FunctionType(ir.VoidType(), [line.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(b.module, signature, "llvm.prefetch.p0")
        b.call(function, [line, _I32(0), _I32(2), _I32(1)])  # to read, second level, data

    def cell(self, kind: Any, value: Any) -> Any:
        """A variable that lives across iterations; LLVM keeps it in a register."""
        place = cgutils.alloca_once(self.builder, kind)
        self.builder.store(value, place)
        return place

    def reduce(self, vector: Any, operation: str) -> Any:
        """All lanes of an integer vector joined by `operation`: add or smax."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(_I32, [_INTS]),
            f"llvm.vector.reduce.{operation}.v16i32",
        )
        return self.builder.call(function, [vector])

    def inside(self, tile: Any, begin: Any, end: Any) -> Any:
        """Which lanes of a tile hold items `begin` to `end - 1`."""
        b = self.builder
        lanes = ir.Constant(_INTS, list(range(LANES)))
        first = b.trunc(b.mul(tile, _I64(LANES)), _I32)
        number = b.add(lanes, self.splat(first, _INTS))
        low, high = (self.splat(b.trunc(x, _I32), _INTS) for x in (begin, end))
        return b.and_(b.icmp_signed(">=", number, low), b.icmp_signed("<", number, high))

    def greater(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    def order_keys(self, floats: Any) -> Any:
        """Integers that order as the floats do (see `elementary.order_key`)."""
        b = self.builder
        bits = b.bitcast(floats, _INTS)
        flip = b.and_(b.ashr(bits, self.ints(31)), self.ints(0x7FFFFFFF))
        return b.xor(bits, flip)

    def round(self, x: Any) -> Any:
        """Nearest integers, still floats, for |x| < 2^22."""
        magic = self.floats(ROUNDING_MAGIC)
        return self.builder.fsub(self.builder.fadd(x, magic), magic)

    def exp2(self, x: Any) -> Any:
        """`elementary.exp2_nonpositive`, the same operations in the same order."""
        b = self.builder
        floor = self.floats(EXP2_FLOOR)
        x = b.select(b.fcmp_ordered(">", x, floor), x, floor)
        whole = self.round(x)
        f = b.fsub(x, whole)
        p = b.fadd(b.fmul(self.floats(EXP2_C5), f), self.floats(EXP2_C4))
        for coefficient in (EXP2_C3, EXP2_C2, EXP2_C1, 1.0):
            p = b.fadd(b.fmul(p, f), self.floats(coefficient))
        exponent = b.add(b.fptosi(whole, _INTS), self.ints(127))
        return b.fmul(p, b.bitcast(b.shl(exponent, self.ints(23)), _FLOATS))

    def add_quad_products(self, acc: Any, unsigned: Any, signed: Any, native: bool) -> Any:
        """acc[i] + sum over j < 4 of u8(unsigned[i], j) * s8(signed[i], j)."""
        b = self.builder
        if native:
            # Declared as LLVM 7 to 20 do; later versions upgrade the declaration as they read it.
            signature = ir.FunctionType(_INTS, [_INTS, _INTS, _INTS])
            instruction = cgutils.get_or_insert_function(
                b.module, signature, "llvm.x86.avx512.vpdpbusd.512"
            )
            return b.call(instruction, [acc, unsigned, signed])
        for j in range(4):
            u = b.and_(b.lshr(unsigned, self.ints(8 * j)), self.ints(255))
            s = b.ashr(b.shl(signed, self.ints(24 - 8 * j)), self.ints(24))
            acc = b.add(acc, b.mul(u, s))
        return acc


def codegen(builder: type[LaneBuilder], body: Callable[..., Any]) -> Any:
    """Code generation that hands `body` the builder, the argument types and values."""

    def generate(context: Any, llvm_builder: Any, signature: Any, args: Any) -> Any:
        result = body(builder(context, llvm_builder), signature.args, *args)
        return context.get_dummy_value() if result is None else result

    return generate


def _codegen(body: Callable[..., Any]) -> Any:
    return codegen(LaneBuilder, body)


def _dot_keys(rows: int, members: int, step: int, native: bool, fetch: bool = False) -> Any:
    """Dot products of `rows` * `members` queries with `step` tiles of keys at a time.

    With `fetch` there is one argument more, `ahead`: for each line of keys, the line so many bytes
    after it is asked for.
    """

    def body(
        v: LaneBuilder,
        kinds: Any,
        keys: Any,
        key_at: Any,
        query: Any,
        query_at: Any,
        row_items: Any,
        quads: Any,
        out: Any,
        out_at: Any,
        row_stride: Any,
        stride: Any,
        tiles: Any,
        *ahead: Any,
    ) -> None:
        b = v.builder
        key_rows = v.pointer(kinds[0], keys, key_at, _INTS)
        queries, targets = [], []
        for row in range(rows):
            for member in range(members):
                place = b.add(query_at, b.mul(row_items, _I64(row)))
                place = b.add(place, b.mul(quads, _I64(4 * member)))
                queries.append(v.pointer(kinds[2], query, place, _I32))
                place = b.add(out_at, b.mul(row_stride, _I64(row)))
                place = b.add(place, b.mul(stride, _I64(member)))
                targets.append(v.pointer(kinds[6], out, place, _INTS))
        sums = [[v.cell(_INTS, v.ints(0)) for _ in range(step)] for _ in queries]
        with cgutils.for_range(b, b.sdiv(tiles, _I64(step))) as group:
            first = b.mul(group.index, _I64(step))
            for cells in sums:
                for cell in cells:
                    b.store(v.ints(0), cell)
            places = [
                b.gep(key_rows, [b.mul(b.add(first, _I64(tile)), quads)]) for tile in range(step)
            ]
            with cgutils.for_range(b, quads) as loop:
                tile_keys = [v.load(place, loop.index) for place in places]
                for place in places if fetch else ():
                    v.fetch(b.gep(place, [loop.index]), *ahead)
                for pointer, cells in zip(queries, sums, strict=True):
                    quad = v.splat(v.load(pointer, loop.index), _INTS)
                    for key, cell in zip(tile_keys, cells, strict=True):
                        b.store(v.add_quad_products(b.load(cell), key, quad, native), cell)
            for target, cells in zip(targets, sums, strict=True):
                for tile, cell in enumerate(cells):
                    v.store(b.load(cell), target, b.add(first, _I64(tile)))

    @intrinsic
    def dot_keys_fetching(
        typingctx,
        keys,
        key_at,
        query,
        query_at,
        row_items,
        quads,
        out,
        out_at,
        row_stride,
        stride,
        tiles,
        ahead,
    ):
        i = types.int64
        return types.void(keys, i, query, i, i, i, out, i, i, i, i, i), _codegen(body)

    @intrinsic
    def dot_keys(
        typingctx,
        keys,
        key_at,
        query,
        query_at,
        row_items,
        quads,
        out,
        out_at,
        row_stride,
        stride,
        tiles,
    ):
        i = types.int64
        return types.void(keys, i, query, i, i, i, out, i, i, i, i), _codegen(body)

    return dot_keys_fetching if fetch else dot_keys


def _dot_values(members: int, groups: int, native: bool, fetch: bool = False) -> Any:
    """Values weighed for `members` queries, 16 * `groups` dimensions at once; `fetch` as above."""

    def body(
        v: LaneBuilder,
        kinds: Any,
        values: Any,
        value_at: Any,
        row_bytes: Any,
        high: Any,
        low: Any,
        weight_at: Any,
        weight_stride: Any,
        quads: Any,
        out: Any,
        out_at: Any,
        out_stride: Any,
        *ahead: Any,
    ) -> None:
        b = v.builder
        rows = v.pointer(kinds[0], values, value_at, _I8)
        parts, sums = [], []
        for member in range(members):
            place = b.add(weight_at, b.mul(weight_stride, _I64(member)))
            for kind, part in ((kinds[3], high), (kinds[4], low)):
                parts.append(v.pointer(kind, part, place, _I32))
                sums.append([v.cell(_INTS, v.ints(0)) for _ in range(groups)])
        with cgutils.for_range(b, quads) as loop:
            row = b.gep(rows, [b.mul(loop.index, row_bytes)])
            row = b.bitcast(row, _INTS.as_pointer())
            tile_values = [v.load(row, _I64(group)) for group in range(groups)]
            for group in range(groups) if fetch else ():
                v.fetch(b.gep(row, [_I64(group)]), *ahead)
            for part, cells in zip(parts, sums, strict=True):
                weight = v.splat(v.load(part, loop.index), _INTS)
                for value, cell in zip(tile_values, cells, strict=True):
                    b.store(v.add_quad_products(b.load(cell), weight, value, native), cell)
        for member in range(members):
            place = b.add(out_at, b.mul(out_stride, _I64(member)))
            target = v.pointer(kinds[8], out, place, _INTS)
            for group in range(groups):
                upper, lower = (b.load(sums[2 * member + part][group]) for part in range(2))
                total = b.add(b.shl(upper, v.ints(8)), lower)
                v.store(b.add(v.load(target, _I64(group)), total), target, _I64(group))

    @intrinsic
    def dot_values_fetching(
        typingctx,
        values,
        value_at,
        row_bytes,
        high,
        low,
        weight_at,
        weight_stride,
        quads,
        out,
        out_at,
        out_stride,
        ahead,
    ):
        i = types.int64
        return types.void(values, i, i, high, low, i, i, i, out, i, i, i), _codegen(body)

    @intrinsic
    def dot_values(
        typingctx,
        values,
        value_at,
        row_bytes,
        high,
        low,
        weight_at,
        weight_stride,
        quads,
        out,
        out_at,
        out_stride,
    ):
        i = types.int64
        return types.void(values, i, i, high, low, i, i, i, out, i, i), _codegen(body)

    return dot_values_fetching if fetch else dot_values


def _multiply_tiles(rows: int, tiles: int, native: bool) -> Any:
    """Products of `rows` vectors of codes with `tiles` tiles of 16 weight rows, in registers."""

    def body(
        v: LaneBuilder,
        kinds: Any,
        weights: Any,
        weight_at: Any,
        codes: Any,
        code_at: Any,
        quads: Any,
        out: Any,
        out_at: Any,
        out_stride: Any,
    ) -> None:
        b = v.builder
        code_rows = v.pointer(kinds[2], codes, code_at, _I32)
        weight_tiles = [
            v.pointer(
                kinds[0],
                weights,
                b.add(weight_at, b.mul(quads, _I64(64 * tile))),
                _INTS,
            )
            for tile in range(tiles)
        ]
        sums = [[v.cell(_INTS, v.ints(0)) for _ in range(tiles)] for _ in range(rows)]
        with cgutils.for_range(b, quads) as loop:
            weight = [v.load(tile, loop.index) for tile in weight_tiles]
            for row in range(rows):
                place = b.add(b.mul(quads, _I64(row)), loop.index)
                quad = v.splat(v.load(code_rows, place), _INTS)
                for tile in range(tiles):
                    cell = sums[row][tile]
                    total = v.add_quad_products(b.load(cell), weight[tile], quad, native)
                    b.store(total, cell)
        for row in range(rows):
            place = b.add(out_at, b.mul(out_stride, _I64(row)))
            target = v.pointer(kinds[5], out, place, _INTS)
            for tile in range(tiles):
                v.store(b.load(sums[row][tile]), target, _I64(tile))

    @intrinsic
    def multiply_tiles(
        typingctx, weights, weight_at, codes, code_at, quads, out, out_at, out_stride
    ):
        i = types.int64
        return types.void(weights, i, codes, i, i, out, i, i), _codegen(body)

    return multiply_tiles


_NATIVE = has_byte_dot_product()

multiply_1, multiply_2, multiply_3, multiply_4, multiply_5, multiply_6 = (
    _multiply_tiles(rows, 4, _NATIVE) for rows in range(1, 7)
)
"""multiply_N(weights u8[], weight_at, codes i8[], code_at, quads, out i32[], out_at, out_stride).

For row r < N, tile t < 4 and 16 lanes: out[out_at + out_stride r + 16 t + lane] = sum over quad, j
of weights[weight_at + 64 (quads t + quad) + 4 lane + j] * codes[code_at + 4 quads r + 4 quad + j].
|sum| <= 255 * 127 * 4 quads < 2^31 for 4 quads <= 66,311.
"""

dot_keys_1, dot_keys_2, dot_keys_3 = (_dot_keys(1, n, 1, _NATIVE) for n in range(1, 4))
dot_keys_1_wide, dot_keys_2_wide, dot_keys_3_wide = (
    _dot_keys(1, n, 4, _NATIVE, fetch=True) for n in range(1, 4)
)
dot_keys_1_rows, dot_keys_2_rows, dot_keys_3_rows = (
    _dot_keys(4, n, 2, _NATIVE) for n in range(1, 4)
)
"""dot_keys_N(keys u8[], key_at, query i8[], query_at, row_items, quads, out i32[], out_at,
row_stride, stride, tiles): N members of one row; `_wide` for tiles in fours; `_rows` for four rows
and tiles in twos. `_wide` ones take `ahead` as well, and begin to fetch what lies so many bytes
after the keys.

For row r, member m < N, tile t and 16 lanes: out[out_at + r row_stride + m stride + 16 t + lane] =
sum over quad, j of keys[key_at + 64 (quads t + quad) + 4 lane + j] *
query[query_at + r row_items + 4 quads m + 4 quad + j]. |sum| <= 255 * 128 * 4 quads < 2^31 for
quads <= 16,384.
"""

dot_values_1, dot_values_2, dot_values_3 = (_dot_values(n, 4, _NATIVE) for n in range(1, 4))
dot_values_1_fetching, dot_values_2_fetching, dot_values_3_fetching = (
    _dot_values(n, 4, _NATIVE, fetch=True) for n in range(1, 4)
)
dot_values_16 = _dot_values(1, 1, _NATIVE)
"""dot_values_N(values i8[], value_at, row_bytes, high u8[], low u8[], weight_at, weight_stride,
quads, out i32[], out_at, out_stride): N members, 64 dimensions; `_fetching` with `ahead`, as above;
`dot_values_16`: one member, 16.

For member m and dimension i: out[out_at + m out_stride + i] += sum over quad, j of
(256 high + low)[weight_at + m weight_stride + 4 quad + j] * values[value_at + row_bytes quad + 4 i
+ j]. The caller bounds the weights' total.
"""

dot_keys_portable, dot_values_portable = _dot_keys(1, 1, 1, False), _dot_values(1, 4, False)
"""`dot_keys_1` and `dot_values_1` without the processor's dot-product instruction."""


@intrinsic
def scale_dots(typingctx, dots, dots_at, bias, scale, scales, scales_at, tiles, begin, end):
    """(dots[i] - bias) * (scale * scales[i]) replaces dots[i] as a binary32 with its bits, UNSEEN
    outside begin <= i < end; returns the greatest order key (see `elementary.order_key`)."""

    def body(
        v: LaneBuilder,
        kinds: Any,
        dots: Any,
        dots_at: Any,
        bias: Any,
        scale: Any,
        scales: Any,
        scales_at: Any,
        tiles: Any,
        begin: Any,
        end: Any,
    ) -> Any:
        b = v.builder
        source = v.pointer(kinds[0], dots, dots_at, _INTS)
        factors = v.pointer(kinds[4], scales, scales_at, _FLOATS)
        all_bias, all_scale = v.splat(bias, _INTS), v.splat(scale, _FLOATS)
        best = v.cell(_INTS, v.ints(-(2**31)))
        with cgutils.for_range(b, tiles) as loop:
            value = b.sitofp(b.sub(v.load(source, loop.index), all_bias), _FLOATS)
            logit = b.fmul(value, b.fmul(all_scale, v.load(factors, loop.index)))
            logit = b.select(v.inside(loop.index, begin, end), logit, v.floats(UNSEEN))
            v.store(b.bitcast(logit, _INTS), source, loop.index)
            b.store(v.greater(b.load(best), v.order_keys(logit)), best)
        return v.reduce(b.load(best), "smax")

    i = types.int64
    signature = types.int32(dots, i, types.int32, types.float32, scales, i, i, i, i)
    return signature, _codegen(body)


@intrinsic
def greatest_positive(typingctx, x, at, tiles, begin, end):
    """The bits of the greatest of some positive binary32, x[at + i] for begin <= i < end; 0 where
    there are none. Positive floats order as their bits do."""

    def body(v: LaneBuilder, kinds: Any, x: Any, at: Any, tiles: Any, begin: Any, end: Any) -> Any:
        b = v.builder
        source = v.pointer(kinds[0], x, at, _INTS)
        best = v.cell(_INTS, v.ints(0))
        with cgutils.for_range(b, tiles) as loop:
            inside = v.inside(loop.index, begin, end)
            bits = b.select(inside, v.load(source, loop.index), v.ints(0))
            b.store(v.greater(b.load(best), bits), best)
        return v.reduce(b.load(best), "smax")

    i = types.int64
    return types.int32(x, i, i, i, i), _codegen(body)


@intrinsic
def sum_codes(typingctx, codes, at, quads):
    """The int32 sum of 4 * quads int8 codes, quads a multiple of 4."""

    def body(v: LaneBuilder, kinds: Any, codes: Any, at: Any, quads: Any) -> Any:
        b = v.builder
        source = v.pointer(kinds[0], codes, at, _BYTES)
        total = v.cell(_INTS, v.ints(0))
        with cgutils.for_range(b, b.sdiv(quads, _I64(4))) as loop:
            b.store(b.add(b.load(total), b.sext(v.load(source, loop.index), _INTS)), total)
        return v.reduce(b.load(total), "add")

    i = types.int64
    return types.int32(codes, i, i), _codegen(body)


@intrinsic
def exponentiate(typingctx, logits, at, tiles, top, one):
    """logits[i] becomes e = 2^(logits[i] - top); returns the int32 sum of round(e * one)."""

    def body(
        v: LaneBuilder, kinds: Any, logits: Any, at: Any, tiles: Any, top: Any, one: Any
    ) -> Any:
        b = v.builder
        source = v.pointer(kinds[0], logits, at, _FLOATS)
        all_top, all_one = v.splat(top, _FLOATS), v.splat(one, _FLOATS)
        total = v.cell(_INTS, v.ints(0))
        with cgutils.for_range(b, tiles) as loop:
            e = v.exp2(b.fsub(v.load(source, loop.index), all_top))
            v.store(e, source, loop.index)
            part = b.fptosi(v.round(b.fmul(e, all_one)), _INTS)
            b.store(b.add(b.load(total), part), total)
        return v.reduce(b.load(total), "add")

    f, i = types.float32, types.int64
    return types.int32(logits, i, i, f, f), _codegen(body)


@intrinsic
def weigh(typingctx, exponentials, at, scales, scales_at, tiles, share, high, low, weights_at):
    """round(exponentials[i] * (scales[i] * share)), its two bytes in `high` and `low`."""

    def body(
        v: LaneBuilder,
        kinds: Any,
        exponentials: Any,
        at: Any,
        scales: Any,
        scales_at: Any,
        tiles: Any,
        share: Any,
        high: Any,
        low: Any,
        weights_at: Any,
    ) -> None:
        b = v.builder
        source = v.pointer(kinds[0], exponentials, at, _FLOATS)
        factors = v.pointer(kinds[2], scales, scales_at, _FLOATS)
        high_bytes = v.pointer(kinds[6], high, weights_at, _BYTES)
        low_bytes = v.pointer(kinds[7], low, weights_at, _BYTES)
        all_share = v.splat(share, _FLOATS)
        with cgutils.for_range(b, tiles) as loop:
            factor = b.fmul(v.load(factors, loop.index), all_share)
            weight = b.fptosi(v.round(b.fmul(v.load(source, loop.index), factor)), _INTS)
            v.store(b.trunc(b.lshr(weight, v.ints(8)), _BYTES), high_bytes, loop.index)
            v.store(b.trunc(weight, _BYTES), low_bytes, loop.index)

    f, i = types.float32, types.int64
    return types.void(exponentials, i, scales, i, i, f, high, low, i), _codegen(body)


@intrinsic
def transform_tiles(typingctx, x, tiles):
    """Every 16 binary32 of x become their Walsh-Hadamard transform, steps 1, 2, 4 and 8."""

    def body(v: LaneBuilder, kinds: Any, x: Any, tiles: Any) -> None:
        b = v.builder
        place = v.pointer(kinds[0], x, _I64(0), _FLOATS)
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        with cgutils.for_range(b, tiles) as loop:
            value = v.load(place, loop.index)
            for step in (1, 2, 4, 8):
                partner = b.shuffle_vector(
                    value, undefined, ir.Constant(_INTS, [lane ^ step for lane in range(LANES)])
                )
                # a + b in the lower lane, a - b (as a + -b, the same rounding) in the upper one.
                signs = [-1.0 if lane & step else 1.0 for lane in range(LANES)]
                value = b.fadd(partner, b.fmul(value, ir.Constant(_FLOATS, signs)))
            v.store(value, place, loop.index)

    return types.void(x, types.int64), _codegen(body)
