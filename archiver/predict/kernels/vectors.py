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
    ROUNDING_BITS,
    LaneBuilder,
    has_byte_dot_product,
    on_lanes,
)

UNSEEN = -(2.0**100)  # a logit whose weight is exactly 0
EXPONENTIATED = 4  # tiles at a time
# Lines asked for with every four exponentials' tiles, and with every quad of values.
FETCHED_BY_FOUR, FETCHED_BY_QUAD = 8, 2


def _dot_keys(rows: int, members: int, step: int, native: bool) -> Any:
    """Dot products of `rows` * `members` queries with `step` tiles of keys at a time."""
    kinds = [ARRAY, INDEX, ARRAY, INDEX, INDEX, INDEX, ARRAY, INDEX, INDEX, INDEX, INDEX]

    @on_lanes(types.void, *kinds)
    def dot_keys(
        v: LaneBuilder, keys, key_at, query, query_at, row_items, quads, out, out_at, row_stride,
        stride, tiles,
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
                for pointer, cells in zip(queries, sums, strict=True):
                    quad = v.splat(v.load(pointer, loop.index), INTS)
                    for key, cell in zip(tile_keys, cells, strict=True):
                        b.store(v.add_quad_products(b.load(cell), key, quad, native), cell)
            for target, cells in zip(targets, sums, strict=True):
                for tile, cell in enumerate(cells):
                    v.store(b.load(cell), target, b.add(first, I64(tile)))

    return dot_keys


def _dot_values(queries: int, groups: int, native: bool, fetch: int = 0) -> Any:
    """Values weighed by one byte each for `queries` queries, 16 * `groups` dimensions at once.

    With `fetch` there are three arguments more: for each of the first `fetched` quads so many lines
    of `ahead` are asked for, one after the other from `ahead_at` on.
    """
    kinds = [ARRAY, INDEX, INDEX, ARRAY, INDEX, INDEX, INDEX, ARRAY, INDEX, INDEX]
    if fetch:
        kinds += [ARRAY, INDEX, INDEX]

    @on_lanes(types.void, *kinds)
    def dot_values(
        v: LaneBuilder, values, value_at, row_bytes, weights, weight_at, weight_stride, quads,
        out, out_at, out_stride, ahead=None, ahead_at=None, fetched=None,
    ):  # fmt: skip
        b = v.builder
        rows = v.pointer(values, value_at, I8)
        places = [b.add(weight_at, b.mul(weight_stride, I64(query))) for query in range(queries)]
        weight_quads = [v.pointer(weights, place, I32) for place in places]
        sums = [[v.cell(INTS, v.ints(0)) for _ in range(groups)] for _ in range(queries)]

        def add_quad(quad: Any) -> None:
            row = b.gep(rows, [b.mul(quad, row_bytes)])
            row = b.bitcast(row, INTS.as_pointer())
            tile_values = [v.load(row, I64(group)) for group in range(groups)]
            for pointer, cells in zip(weight_quads, sums, strict=True):
                weight = v.splat(v.load(pointer, quad), INTS)
                for value, cell in zip(tile_values, cells, strict=True):
                    b.store(v.add_quad_products(b.load(cell), weight, value, native), cell)

        if fetch:
            lines = v.pointer(ahead, ahead_at, INTS)
            with cgutils.for_range(b, fetched) as loop:
                for line in range(fetch):
                    v.fetch(lines, b.add(b.mul(loop.index, I64(fetch)), I64(line)))
                add_quad(loop.index)
        with cgutils.for_range(b, quads, start=fetched) as loop:
            add_quad(loop.index)
        for query, cells in enumerate(sums):
            target = v.pointer(out, b.add(out_at, b.mul(out_stride, I64(query))), INTS)
            for group, cell in enumerate(cells):
                v.store(b.add(v.load(target, I64(group)), b.load(cell)), target, I64(group))

    return dot_values


def _dot_high_values(groups: int, native: bool) -> Any:
    """Values weighed by the few high bytes that are not 0, 16 * `groups` dimensions at once."""

    @on_lanes(types.void, ARRAY, INDEX, INDEX, ARRAY, INDEX, INDEX, ARRAY, INDEX)
    def dot_high_values(
        v: LaneBuilder, values, value_at, row_bytes, weights, weight_at, quads, out, out_at
    ):
        b = v.builder
        rows = v.pointer(values, value_at, I8)
        weight_quads = v.pointer(weights, weight_at, I32)
        sixteen_quads = v.pointer(weights, weight_at, INTS)
        sums = [v.cell(INTS, v.ints(0)) for _ in range(groups)]
        left = cgutils.alloca_once(b, I32)
        with cgutils.for_range(b, b.sdiv(b.add(quads, I64(LANES - 1)), I64(LANES))) as loop:
            first = b.mul(loop.index, I64(LANES))
            some = b.icmp_signed("!=", v.load(sixteen_quads, loop.index), v.ints(0))
            rest = v.splat(b.trunc(b.sub(quads, first), I32), INTS)
            lanes = ir.Constant(INTS, list(range(LANES)))
            some = b.and_(some, b.icmp_signed("<", lanes, rest))
            b.store(b.zext(b.bitcast(some, ir.IntType(LANES)), I32), left)
            head, body, end = (b.append_basic_block(name) for name in ("some", "one", "none"))
            b.branch(head)
            b.position_at_end(head)
            b.cbranch(b.icmp_signed("!=", b.load(left), I32(0)), body, end)
            b.position_at_end(body)
            mask = b.load(left)
            quad = b.add(first, b.zext(b.cttz(mask, ir.Constant(ir.IntType(1), 1)), I64))
            b.store(b.and_(mask, b.sub(mask, I32(1))), left)
            row = b.bitcast(b.gep(rows, [b.mul(quad, row_bytes)]), INTS.as_pointer())
            weight = v.splat(v.load(weight_quads, quad), INTS)
            for group, cell in enumerate(sums):
                value = v.load(row, I64(group))
                b.store(v.add_quad_products(b.load(cell), weight, value, native), cell)
            b.branch(head)
            b.position_at_end(end)
        target = v.pointer(out, out_at, INTS)
        for group, cell in enumerate(sums):
            total = b.shl(b.load(cell), v.ints(8))
            v.store(b.add(v.load(target, I64(group)), total), target, I64(group))

    return dot_high_values


def _multiply_tiles(rows: int, tiles: int, native: bool, fetch: int = 0) -> Any:
    """Products of `rows` vectors of codes with `tiles` tiles of 16 weight rows, in registers.

    With `fetch` there is one argument more, `ahead_at`: so many tiles from there on are asked for.
    """
    kinds = [ARRAY, INDEX, INDEX, INDEX, ARRAY, INDEX, INDEX, ARRAY, INDEX, INDEX]
    if fetch:
        kinds.append(INDEX)

    @on_lanes(types.void, *kinds)
    def multiply_tiles(
        v: LaneBuilder, weights, weight_at, tile_lines, quad_lines, codes, code_at, quads, out,
        out_at, out_stride, ahead_at=None,
    ):  # fmt: skip
        b = v.builder
        code_rows = v.pointer(codes, code_at, I32)
        starts = [b.mul(tile_lines, I64(tile)) for tile in range(tiles)]
        first = v.pointer(weights, weight_at, INTS)
        weight_tiles = [b.gep(first, [start]) for start in starts]
        ahead = v.pointer(weights, ahead_at, INTS) if fetch else None
        fetched = [b.gep(ahead, [start]) for start in starts[:fetch]]
        sums = [[v.cell(INTS, v.ints(0)) for _ in range(tiles)] for _ in range(rows)]
        with cgutils.for_range(b, quads) as loop:
            line = b.mul(loop.index, quad_lines)
            weight = [v.load(tile, line) for tile in weight_tiles]
            for tile in fetched:
                v.fetch(tile, line)
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
multiply_6_fetching = _multiply_tiles(6, 4, _NATIVE, fetch=2)
"""multiply_N(weights u8[], weight_at, tile_lines, quad_lines, codes i8[], code_at, quads,
out i32[], out_at, out_stride).

For row r < N, tile t < 4 and 16 lanes: out[out_at + out_stride r + 16 t + lane] = sum over quad, j
of weights[weight_at + 64 (tile_lines t + quad_lines quad) + 4 lane + j] * codes[code_at + 4 quads r
+ 4 quad + j]. |sum| <= 255 * 127 * 4 quads < 2^31 for 4 quads <= 66,311. `multiply_6_fetching` has
one argument more, `ahead_at`, and asks for the weights of two tiles from there on.
"""

dot_keys_1, dot_keys_2, dot_keys_3 = (_dot_keys(1, n, 1, _NATIVE) for n in range(1, 4))
dot_keys_1_rows, dot_keys_2_rows, dot_keys_3_rows = (
    _dot_keys(4, n, 2, _NATIVE) for n in range(1, 4)
)
"""dot_keys_N(keys u8[], key_at, query i8[], query_at, row_items, quads, out i32[], out_at,
row_stride, stride, tiles): N members of one row; `_rows` for four rows and tiles in twos.

Keys of one row are read strictly in order: memory then brings them before they are asked for, at
28 GB/s on a Zen 4 core; four tiles side by side came at 12.

For row r, member m < N, tile t and 16 lanes: out[out_at + r row_stride + m stride + 16 t + lane] =
sum over quad, j of keys[key_at + 64 (quads t + quad) + 4 lane + j] *
query[query_at + r row_items + 4 quads m + 4 quad + j]. |sum| <= 255 * 128 * 4 quads < 2^31 for
quads <= 16,384.
"""

dot_values_1, dot_values_2, dot_values_3, dot_values_6 = (
    _dot_values(n, 4, _NATIVE, FETCHED_BY_QUAD) for n in (1, 2, 3, 6)
)
dot_values_16 = _dot_values(1, 1, _NATIVE)
"""dot_values_N(values i8[], value_at, row_bytes, weights u8[], weight_at, weight_stride, quads,
out i32[], out_at, out_stride): N queries, 64 dimensions; `dot_values_16` of one query and 16.

For query q and dimension i: out[out_at + q out_stride + i] += sum over quad, j of
weights[weight_at + q weight_stride + 4 quad + j] * values[value_at + row_bytes quad + 4 i + j]. The
caller bounds the weights' total.
"""

dot_high_values, dot_high_values_16 = (_dot_high_values(n, _NATIVE) for n in (4, 1))
"""dot_high_values(values i8[], value_at, row_bytes, weights u8[], weight_at, quads, out i32[],
out_at): the same of one query, 256 times; quicker where most quads of weights are 0. 64 dimensions,
or 16. Up to 60 weights after the last quad are read, and not used.
"""

dot_keys_portable, dot_values_portable = _dot_keys(1, 1, 1, False), _dot_values(1, 4, False)
dot_high_values_portable = _dot_high_values(4, False)
"""`dot_keys_1`, `dot_values_1` and `dot_high_values` without the processor's dot-product
instruction."""


def _for_edges(v: LaneBuilder, tiles: Any, begin: Any, end: Any, body: Any) -> None:
    """body(tile, inside) for every tile; `inside` are the lanes that hold items `begin` to
    `end - 1`, None where they all do."""
    b = v.builder

    def within(x: Any, low: Any, high: Any) -> Any:
        x = b.select(b.icmp_signed("<", x, low), low, x)
        return b.select(b.icmp_signed(">", x, high), high, x)

    whole_begin = within(b.ashr(b.add(begin, I64(LANES - 1)), I64(4)), I64(0), tiles)
    whole_end = within(b.ashr(end, I64(4)), whole_begin, tiles)
    for first, last, whole in (
        (I64(0), whole_begin, False), (whole_begin, whole_end, True), (whole_end, tiles, False),
    ):  # fmt: skip
        with cgutils.for_range(b, last, start=first) as loop:
            body(loop.index, None if whole else v.inside(loop.index, begin, end))


@on_lanes(types.int32, ARRAY, INDEX, types.int32, types.float32, ARRAY, INDEX, INDEX, INDEX, INDEX)
def scale_dots(v: LaneBuilder, dots, dots_at, bias, scale, scales, scales_at, tiles, begin, end):
    """(dots[i] - bias) * (scale * scales[i]) replaces dots[i] as a binary32 with its bits, UNSEEN
    outside begin <= i < end; returns an order key (see `elementary.order_key`), the greatest one or
    UNSEEN's. Of two zeros, either may count as the greater."""
    b = v.builder
    source = v.pointer(dots, dots_at, INTS)
    factors = v.pointer(scales, scales_at, FLOATS)
    all_bias, all_scale = v.splat(bias, INTS), v.splat(scale, FLOATS)
    best = v.cell(FLOATS, v.floats(UNSEEN))

    def scale_tile(tile: Any, inside: Any) -> None:
        value = b.sitofp(b.sub(v.load(source, tile), all_bias), FLOATS)
        logit = b.fmul(value, b.fmul(all_scale, v.load(factors, tile)))
        if inside is not None:
            logit = b.select(inside, logit, v.floats(UNSEEN))
        v.store(b.bitcast(logit, INTS), source, tile)
        greatest = b.load(best)
        b.store(b.select(b.fcmp_ordered(">", logit, greatest), logit, greatest), best)

    _for_edges(v, tiles, begin, end, scale_tile)
    return v.reduce(v.order_keys(b.load(best)), "smax")


@on_lanes(types.int32, ARRAY, INDEX, INDEX, INDEX, INDEX)
def greatest_positive(v: LaneBuilder, x, at, tiles, begin, end):
    """The bits of the greatest of some positive binary32, x[at + i] for begin <= i < end; 0 where
    there are none. Positive floats order as their bits do."""
    b = v.builder
    source = v.pointer(x, at, INTS)
    best = v.cell(INTS, v.ints(0))

    def see_tile(tile: Any, inside: Any) -> None:
        bits = v.load(source, tile)
        if inside is not None:
            bits = b.select(inside, bits, v.ints(0))
        b.store(v.greater(b.load(best), bits), best)

    _for_edges(v, tiles, begin, end, see_tile)
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


@on_lanes(
    types.int32, ARRAY, INDEX, INDEX, types.float32, types.float32, ARRAY, INDEX, INDEX
)  # fmt: skip
def exponentiate(v: LaneBuilder, logits, at, tiles, top, one, ahead, ahead_at, fetched):
    """logits[i] becomes e = 2^(logits[i] - top); returns the int32 sum of round(e * one).

    With each of the first `fetched` fours of tiles FETCHED_BY_FOUR lines of `ahead` are asked for,
    one after the other from `ahead_at` on.
    """
    b = v.builder
    source = v.pointer(logits, at, FLOATS)
    lines = v.pointer(ahead, ahead_at, INTS)
    all_top, all_one = v.splat(top, FLOATS), v.splat(one, FLOATS)
    total = v.cell(INTS, v.ints(0))

    def exponentiate_tiles(first: Any, count: int) -> None:
        numbers = [b.add(first, I64(number)) for number in range(count)]
        powers = v.exp2(*(b.fsub(v.load(source, number), all_top) for number in numbers))
        for number, e in zip(numbers, powers, strict=True):
            v.store(e, source, number)
        for e in powers:
            part = b.sub(v.round_bits(b.fmul(e, all_one)), v.ints(ROUNDING_BITS))
            b.store(b.add(b.load(total), part), total)

    groups = b.sdiv(tiles, I64(EXPONENTIATED))
    with cgutils.for_range(b, fetched) as loop:
        for line in range(FETCHED_BY_FOUR):
            v.fetch(lines, b.add(b.mul(loop.index, I64(FETCHED_BY_FOUR)), I64(line)))
        exponentiate_tiles(b.mul(loop.index, I64(EXPONENTIATED)), EXPONENTIATED)
    with cgutils.for_range(b, groups, start=fetched) as loop:
        exponentiate_tiles(b.mul(loop.index, I64(EXPONENTIATED)), EXPONENTIATED)
    with cgutils.for_range(b, tiles, start=b.mul(groups, I64(EXPONENTIATED))) as loop:
        exponentiate_tiles(loop.index, 1)
    return v.reduce(b.load(total), "add")


@on_lanes(types.void, ARRAY, INDEX, INDEX, INDEX)
def fetch_lines(v: LaneBuilder, ahead, ahead_at, lines, step):
    """So many lines of `ahead` are asked for, every `step` lines from `ahead_at` on."""
    b = v.builder
    place = v.pointer(ahead, ahead_at, INTS)
    with cgutils.for_range(b, lines) as loop:
        v.fetch(place, b.mul(loop.index, step))


@on_lanes(types.void, ARRAY, INDEX, ARRAY, INDEX, INDEX, types.float32, ARRAY, ARRAY, INDEX)
def weigh(v: LaneBuilder, exponentials, at, scales, scales_at, tiles, share, high, low, weights_at):
    """round(exponentials[i] * (scales[i] * share)), below 2^16, its two bytes in `high` and
    `low`."""
    b = v.builder
    source = v.pointer(exponentials, at, FLOATS)
    factors = v.pointer(scales, scales_at, FLOATS)
    high_bytes = v.pointer(high, weights_at, BYTES)
    low_bytes = v.pointer(low, weights_at, BYTES)
    all_share = v.splat(share, FLOATS)
    with cgutils.for_range(b, tiles) as loop:
        factor = b.fmul(v.load(factors, loop.index), all_share)
        # The low 16 bits are the integer's.
        weight = v.round_bits(b.fmul(v.load(source, loop.index), factor))
        v.store(b.trunc(b.lshr(weight, v.ints(8)), BYTES), high_bytes, loop.index)
        v.store(b.trunc(weight, BYTES), low_bytes, loop.index)


@on_lanes(types.void, ARRAY, INDEX, ARRAY, INDEX, INDEX)
def copy_tiles(v: LaneBuilder, source, source_at, target, target_at, tiles):
    """target[target_at:] = 16 * tiles items of source, of 4 bytes each."""
    reader, writer = v.pointer(source, source_at, INTS), v.pointer(target, target_at, INTS)
    with cgutils.for_range(v.builder, tiles) as loop:
        v.store(v.load(reader, loop.index), writer, loop.index)


@on_lanes(types.void, ARRAY, INDEX, types.float32, ARRAY, INDEX, INDEX)
def scale_sums(v: LaneBuilder, sums, at, factor, out, out_at, tiles):
    """out[i] = float32(sums[i]) * factor for 16 * tiles items; sums i32[], below 2^24."""
    b = v.builder
    source, target = v.pointer(sums, at, INTS), v.pointer(out, out_at, FLOATS)
    all_factor = v.splat(factor, FLOATS)
    with cgutils.for_range(b, tiles) as loop:
        value = b.fmul(b.sitofp(v.load(source, loop.index), FLOATS), all_factor)
        v.store(value, target, loop.index)


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
