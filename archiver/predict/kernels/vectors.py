"""Inner loops of attention and of matrix products, 16 lanes at a time.

All counts are in tiles of 16; all offsets in items of their array.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from archiver.predict.kernels.lanes import (
    ARRAY,
    BYTES,
    FLOATS,
    I8,
    I32,
    I64,
    INDEX,
    INTS,
    LANES,
    LaneBuilder,
    has_byte_dot_product,
    on_lanes,
)

UNSEEN = -(2.0**100)  # a logit whose weight is exactly 0


def _dot_keys(rows: int, members: int, step: int, native: bool, fetch: bool = False) -> Any:
    """Dot products of `rows` * `members` queries with `step` tiles of keys at a time.

    With `fetch` there is one argument more, `ahead`: for each line of keys, the line so many bytes
    after it is asked for.
    """
    kinds = [ARRAY, INDEX, ARRAY, INDEX, INDEX, INDEX, ARRAY, INDEX, INDEX, INDEX, INDEX]
    if fetch:
        kinds.append(INDEX)

    @on_lanes(types.void, *kinds)
    def dot_keys(
        v: LaneBuilder, keys, key_at, query, query_at, row_items, quads, out, out_at, row_stride,
        stride, tiles, ahead=None,
    ):  # fmt: skip
        b = v.builder
        key_rows = v.pointer(keys, key_at, INTS)
        queries, targets = [], []
        for row in range(rows):
            for member in range(members):
                place = b.add(query_at, b.mul(row_items, I64(row)))
                place = b.add(place, b.mul(quads, I64(4 * member)))
                queries.append(v.pointer(query, place, I32))
                place = b.add(out_at, b.mul(row_stride, I64(row)))
                place = b.add(place, b.mul(stride, I64(member)))
                targets.append(v.pointer(out, place, INTS))
        sums = [[v.cell(INTS, v.ints(0)) for _ in range(step)] for _ in queries]
        with cgutils.for_range(b, b.sdiv(tiles, I64(step))) as group:
            first = b.mul(group.index, I64(step))
            for cells in sums:
                for cell in cells:
                    b.store(v.ints(0), cell)
            places = [
                b.gep(key_rows, [b.mul(b.add(first, I64(tile)), quads)]) for tile in range(step)
            ]
            with cgutils.for_range(b, quads) as loop:
                tile_keys = [v.load(place, loop.index) for place in places]
                for place in places if fetch else ():
                    v.fetch(b.gep(place, [loop.index]), ahead)
                for pointer, cells in zip(queries, sums, strict=True):
                    quad = v.splat(v.load(pointer, loop.index), INTS)
                    for key, cell in zip(tile_keys, cells, strict=True):
                        b.store(v.add_quad_products(b.load(cell), key, quad, native), cell)
            for target, cells in zip(targets, sums, strict=True):
                for tile, cell in enumerate(cells):
                    v.store(b.load(cell), target, b.add(first, I64(tile)))

    return dot_keys


def _dot_values(members: int, groups: int, native: bool, fetch: bool = False) -> Any:
    """Values weighed for `members` queries, 16 * `groups` dimensions at once.

    With `fetch` there are two arguments more, `fetched` and `ahead`: for each line of the first
    `fetched` quads, the line so many bytes after it is asked for.
    """
    kinds = [ARRAY, INDEX, INDEX, ARRAY, ARRAY, INDEX, INDEX, INDEX, ARRAY, INDEX, INDEX]
    if fetch:
        kinds += [INDEX, INDEX]

    @on_lanes(types.void, *kinds)
    def dot_values(
        v: LaneBuilder, values, value_at, row_bytes, high, low, weight_at, weight_stride, quads,
        out, out_at, out_stride, fetched=None, ahead=None,
    ):  # fmt: skip
        b = v.builder
        rows = v.pointer(values, value_at, I8)
        parts, sums = [], []
        for member in range(members):
            place = b.add(weight_at, b.mul(weight_stride, I64(member)))
            for part in (high, low):
                parts.append(v.pointer(part, place, I32))
                sums.append([v.cell(INTS, v.ints(0)) for _ in range(groups)])

        def add_quad(quad: Any, and_fetch: bool) -> None:
            row = b.gep(rows, [b.mul(quad, row_bytes)])
            row = b.bitcast(row, INTS.as_pointer())
            tile_values = [v.load(row, I64(group)) for group in range(groups)]
            for group in range(groups) if and_fetch else ():
                v.fetch(b.gep(row, [I64(group)]), ahead)
            for part, cells in zip(parts, sums, strict=True):
                weight = v.splat(v.load(part, quad), INTS)
                for value, cell in zip(tile_values, cells, strict=True):
                    b.store(v.add_quad_products(b.load(cell), weight, value, native), cell)

        if fetch:
            with cgutils.for_range(b, fetched) as loop:
                add_quad(loop.index, and_fetch=True)
        with cgutils.for_range(b, quads, start=fetched) as loop:
            add_quad(loop.index, and_fetch=False)
        for member in range(members):
            place = b.add(out_at, b.mul(out_stride, I64(member)))
            target = v.pointer(out, place, INTS)
            for group in range(groups):
                upper, lower = (b.load(sums[2 * member + part][group]) for part in range(2))
                total = b.add(b.shl(upper, v.ints(8)), lower)
                v.store(b.add(v.load(target, I64(group)), total), target, I64(group))

    return dot_values


def _multiply_tiles(rows: int, tiles: int, native: bool) -> Any:
    """Products of `rows` vectors of codes with `tiles` tiles of 16 weight rows, in registers."""

    @on_lanes(types.void, ARRAY, INDEX, ARRAY, INDEX, INDEX, ARRAY, INDEX, INDEX)
    def multiply_tiles(
        v: LaneBuilder, weights, weight_at, codes, code_at, quads, out, out_at, out_stride
    ):
        b = v.builder
        code_rows = v.pointer(codes, code_at, I32)
        weight_tiles = [
            v.pointer(weights, b.add(weight_at, b.mul(quads, I64(64 * tile))), INTS)
            for tile in range(tiles)
        ]
        sums = [[v.cell(INTS, v.ints(0)) for _ in range(tiles)] for _ in range(rows)]
        with cgutils.for_range(b, quads) as loop:
            weight = [v.load(tile, loop.index) for tile in weight_tiles]
            for row in range(rows):
                place = b.add(b.mul(quads, I64(row)), loop.index)
                quad = v.splat(v.load(code_rows, place), INTS)
                for tile in range(tiles):
                    cell = sums[row][tile]
                    total = v.add_quad_products(b.load(cell), weight[tile], quad, native)
                    b.store(total, cell)
        for row in range(rows):
            place = b.add(out_at, b.mul(out_stride, I64(row)))
            target = v.pointer(out, place, INTS)
            for tile in range(tiles):
                v.store(b.load(sums[row][tile]), target, I64(tile))

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

dot_values_1, dot_values_2, dot_values_3 = (
    _dot_values(n, 4, _NATIVE, fetch=True) for n in range(1, 4)
)
dot_values_16 = _dot_values(1, 1, _NATIVE)
"""dot_values_N(values i8[], value_at, row_bytes, high u8[], low u8[], weight_at, weight_stride,
quads, out i32[], out_at, out_stride, fetched, ahead): N members, 64 dimensions; begin to fetch what
lies `ahead` bytes after the first `fetched` quads, at most `quads`. `dot_values_16`, of one member
and 16 dimensions, fetches nothing and lacks the last two arguments.

For member m and dimension i: out[out_at + m out_stride + i] += sum over quad, j of
(256 high + low)[weight_at + m weight_stride + 4 quad + j] * values[value_at + row_bytes quad + 4 i
+ j]. The caller bounds the weights' total.
"""

dot_keys_portable, dot_values_portable = _dot_keys(1, 1, 1, False), _dot_values(1, 4, False)
"""`dot_keys_1` and `dot_values_1` without the processor's dot-product instruction; they fetch
nothing."""


@on_lanes(types.int32, ARRAY, INDEX, types.int32, types.float32, ARRAY, INDEX, INDEX, INDEX, INDEX)
def scale_dots(v: LaneBuilder, dots, dots_at, bias, scale, scales, scales_at, tiles, begin, end):
    """(dots[i] - bias) * (scale * scales[i]) replaces dots[i] as a binary32 with its bits, UNSEEN
    outside begin <= i < end; returns the greatest order key (see `elementary.order_key`)."""
    b = v.builder
    source = v.pointer(dots, dots_at, INTS)
    factors = v.pointer(scales, scales_at, FLOATS)
    all_bias, all_scale = v.splat(bias, INTS), v.splat(scale, FLOATS)
    best = v.cell(INTS, v.ints(-(2**31)))
    with cgutils.for_range(b, tiles) as loop:
        value = b.sitofp(b.sub(v.load(source, loop.index), all_bias), FLOATS)
        logit = b.fmul(value, b.fmul(all_scale, v.load(factors, loop.index)))
        logit = b.select(v.inside(loop.index, begin, end), logit, v.floats(UNSEEN))
        v.store(b.bitcast(logit, INTS), source, loop.index)
        b.store(v.greater(b.load(best), v.order_keys(logit)), best)
    return v.reduce(b.load(best), "smax")


@on_lanes(types.int32, ARRAY, INDEX, INDEX, INDEX, INDEX)
def greatest_positive(v: LaneBuilder, x, at, tiles, begin, end):
    """The bits of the greatest of some positive binary32, x[at + i] for begin <= i < end; 0 where
    there are none. Positive floats order as their bits do."""
    b = v.builder
    source = v.pointer(x, at, INTS)
    best = v.cell(INTS, v.ints(0))
    with cgutils.for_range(b, tiles) as loop:
        inside = v.inside(loop.index, begin, end)
        bits = b.select(inside, v.load(source, loop.index), v.ints(0))
        b.store(v.greater(b.load(best), bits), best)
    return v.reduce(b.load(best), "smax")


@on_lanes(types.int32, ARRAY, INDEX, INDEX)
def sum_codes(v: LaneBuilder, codes, at, quads):
    """The int32 sum of 4 * quads int8 codes, quads a multiple of 4."""
    b = v.builder
    source = v.pointer(codes, at, BYTES)
    total = v.cell(INTS, v.ints(0))
    with cgutils.for_range(b, b.sdiv(quads, I64(4))) as loop:
        b.store(b.add(b.load(total), b.sext(v.load(source, loop.index), INTS)), total)
    return v.reduce(b.load(total), "add")


@on_lanes(types.int32, ARRAY, INDEX, INDEX, types.float32, types.float32)
def exponentiate(v: LaneBuilder, logits, at, tiles, top, one):
    """logits[i] becomes e = 2^(logits[i] - top); returns the int32 sum of round(e * one)."""
    b = v.builder
    source = v.pointer(logits, at, FLOATS)
    all_top, all_one = v.splat(top, FLOATS), v.splat(one, FLOATS)
    total = v.cell(INTS, v.ints(0))
    with cgutils.for_range(b, tiles) as loop:
        e = v.exp2(b.fsub(v.load(source, loop.index), all_top))
        v.store(e, source, loop.index)
        part = b.fptosi(v.round(b.fmul(e, all_one)), INTS)
        b.store(b.add(b.load(total), part), total)
    return v.reduce(b.load(total), "add")


@on_lanes(types.void, ARRAY, INDEX, ARRAY, INDEX, INDEX, types.float32, ARRAY, ARRAY, INDEX)
def weigh(v: LaneBuilder, exponentials, at, scales, scales_at, tiles, share, high, low, weights_at):
    """round(exponentials[i] * (scales[i] * share)), its two bytes in `high` and `low`."""
    b = v.builder
    source = v.pointer(exponentials, at, FLOATS)
    factors = v.pointer(scales, scales_at, FLOATS)
    high_bytes = v.pointer(high, weights_at, BYTES)
    low_bytes = v.pointer(low, weights_at, BYTES)
    all_share = v.splat(share, FLOATS)
    with cgutils.for_range(b, tiles) as loop:
        factor = b.fmul(v.load(factors, loop.index), all_share)
        weight = b.fptosi(v.round(b.fmul(v.load(source, loop.index), factor)), INTS)
        v.store(b.trunc(b.lshr(weight, v.ints(8)), BYTES), high_bytes, loop.index)
        v.store(b.trunc(weight, BYTES), low_bytes, loop.index)


@on_lanes(types.void, ARRAY, INDEX)
def transform_tiles(v: LaneBuilder, x, tiles):
    """Every 16 binary32 of x become their Walsh-Hadamard transform, steps 1, 2, 4 and 8."""
    b = v.builder
    place = v.pointer(x, I64(0), FLOATS)
    undefined = ir.Constant(FLOATS, ir.Undefined)
    with cgutils.for_range(b, tiles) as loop:
        value = v.load(place, loop.index)
        for step in (1, 2, 4, 8):
            partner = b.shuffle_vector(
                value, undefined, ir.Constant(INTS, [lane ^ step for lane in range(LANES)])
            )
            # a + b in the lower lane, a - b (as a + -b, the same rounding) in the upper one.
            signs = [-1.0 if lane & step else 1.0 for lane in range(LANES)]
            value = b.fadd(partner, b.fmul(value, ir.Constant(FLOATS, signs)))
        v.store(value, place, loop.index)
