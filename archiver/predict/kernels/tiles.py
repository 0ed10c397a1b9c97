"""The processor's tile registers (AMX): eight registers of 16 rows of 64 bytes.

One instruction adds to a tile of int32 [16 rows][16 outputs] the products of int8 [16 rows][64]
with uint8 [16 quads][16 outputs][4], which is how `byte_products` lays weights out. The sums are
exact int32, so they equal those of every other backend.

The operating system saves these registers only for processes that have asked for it.

Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter on AMX; Linux
kernel documentation, "Using XSTATE features in user space applications".
"""

from __future__ import annotations

import ctypes
import functools
import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils

from archiver.predict.kernels.lanes import (
    ARRAY,
    FLOATS,
    I8,
    I64,
    INDEX,
    INTS,
    LaneBuilder,
    TypedValue,
    on_lanes,
)
from archiver.types import UInt8Array

TILE_ROWS = 16
TILE_BYTES = 64  # of one row
_ARCH_PRCTL = 158  # system call of Linux on x86-64
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


@functools.cache
def has_tile_registers() -> bool:
    """Whether kernels may use tile registers: the processor that numba compiles for has them, and
    the operating system grants them to this process."""
    if config.CPU_FEATURES is not None:
        names = set(config.CPU_FEATURES.split(","))
        known = {"+amx-tile", "+amx-int8"} <= names
    elif config.CPU_NAME not in (None, "", "host"):
        known = False
    else:
        features = llvm.get_host_cpu_features()
        known = bool(features.get("amx-tile") and features.get("amx-int8"))
    if not known or platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    granted = system_call(
        ctypes.c_long(_ARCH_PRCTL), ctypes.c_ulong(_REQUEST_PERMISSION), ctypes.c_ulong(_TILE_DATA)
    )
    return bool(granted == 0)


def tile_shapes(first: int, second: int) -> UInt8Array:
    """The configuration, uint8 [64]: tiles 0, 1 and 4 have `first` rows, 2, 3 and 5 `second`, each
    1 to 16; tiles 6 and 7, which hold weights, keys or values, have 16."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1  # palette
    for tile, rows in enumerate((first, first, second, second, first, second, 16, 16)):
        shapes[16 + 2 * tile] = TILE_BYTES
        shapes[48 + tile] = rows
    return shapes


PANEL_SHAPES = np.stack(
    [
        tile_shapes(min(max(rows, 1), TILE_ROWS), max(rows - TILE_ROWS, 1))
        for rows in range(2 * TILE_ROWS + 1)
    ]
)
"""uint8 [33, 64]: shapes for a panel of 1 to 32 rows of codes."""

ROW_SHAPES = np.stack([tile_shapes(max(rows, 1), max(rows, 1)) for rows in range(TILE_ROWS + 1)])
"""uint8 [17, 64]: shapes for 1 to 16 rows of queries."""


class _Tiles(LaneBuilder):
    def address(self, array: TypedValue, at: Any) -> Any:
        """Address of an array's item `at`, in bytes."""
        return self.pointer(array, at, I8)

    def do(self, name: str, *arguments: Any) -> None:
        signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(
            self.builder.module, signature, f"llvm.x86.{name}"
        )
        self.builder.call(function, arguments)

    def zero(self, tile: int) -> None:
        self.do("tilezero", I8(tile))

    def load_tile(self, tile: int, address: Any, row_bytes: Any) -> None:
        self.do("tileloadd64", I8(tile), address, row_bytes)

    def store_tile(self, tile: int, address: Any, row_bytes: Any) -> None:
        self.do("tilestored64", I8(tile), address, row_bytes)

    def multiply(self, total: int, signed: int, unsigned: int) -> None:
        """total += signed rows times unsigned columns."""
        self.do("tdpbsud", I8(total), I8(signed), I8(unsigned))

    def multiply_unsigned(self, total: int, unsigned: int, signed: int) -> None:
        """total += unsigned rows times signed columns."""
        self.do("tdpbusd", I8(total), I8(unsigned), I8(signed))


@on_lanes(types.void, ARRAY, builder=_Tiles)
def use_tiles(t: _Tiles, shapes):
    """This thread's tile registers get the shapes of uint8 [64]."""
    t.do("ldtilecfg", t.address(shapes, I64(0)))


@on_lanes(types.void, builder=_Tiles)
def release_tiles(t: _Tiles):
    """This thread's tile registers are free: switching threads need not save them."""
    t.do("tilerelease")


def _multiply_panel(second: bool, fetch: bool) -> Any:
    """Products of the rows in one tile of codes and, if `second`, one more, with 32 outputs."""

    @on_lanes(types.void, ARRAY, INDEX, ARRAY, INDEX, INDEX, ARRAY, builder=_Tiles)
    def multiply_panel(t: _Tiles, weights, weight_at, codes, code_at, inputs, sums):
        b = t.builder
        tile_bytes = b.mul(inputs, I64(TILE_ROWS))
        code_tiles = [t.address(codes, code_at)]
        if second:
            code_tiles.append(b.gep(code_tiles[0], [tile_bytes]))
        weight_tiles = [t.address(weights, weight_at)]
        weight_tiles.append(b.gep(weight_tiles[0], [tile_bytes]))
        for tile in range(2 * len(code_tiles)):
            t.zero(tile)
        with cgutils.for_range(b, b.sdiv(inputs, I64(TILE_BYTES))) as loop:
            code_step = b.mul(loop.index, I64(TILE_BYTES))
            weight_step = b.mul(loop.index, I64(TILE_ROWS * TILE_BYTES))
            for number, address in enumerate(code_tiles):
                t.load_tile(4 + number, b.gep(address, [code_step]), inputs)
            for number, address in enumerate(weight_tiles):
                place = b.gep(address, [weight_step])
                t.load_tile(6 + number, place, I64(TILE_BYTES))
                for row in range(TILE_ROWS) if fetch else ():
                    line = b.gep(place, [I64(row * TILE_BYTES)])
                    t.fetch(line, b.mul(tile_bytes, I64(2)))
            for row in range(len(code_tiles)):
                for column in range(2):
                    t.multiply(2 * row + column, 4 + row, 6 + column)
        target = t.address(sums, I64(0))
        for row in range(len(code_tiles)):
            for column in range(2):
                place = b.gep(target, [I64((row * TILE_ROWS * 2 + column) * TILE_BYTES)])
                t.store_tile(2 * row + column, place, I64(2 * TILE_BYTES))

    return multiply_panel


multiply_16, multiply_32, multiply_16_fetching, multiply_32_fetching = (
    _multiply_panel(second, fetch) for fetch in (False, True) for second in (False, True)
)
"""multiply_N(weights u8[], weight_at, codes i8[], code_at, inputs, sums i32[N * 32]).

For the rows r < N that `use_tiles` has named and outputs o < 32: sums[32 r + o] = sum over i of
weights(o, i) * codes[code_at + inputs r + i], weights in the layout of `byte_products`; inputs a
multiple of 64. Those that fetch ask for the next panel's weights meanwhile.
"""


@on_lanes(types.void, ARRAY, INDEX, types.int32, ARRAY, INDEX, INDEX)
def float_sums(v: LaneBuilder, sums, sums_at, bias, product, product_at, tiles):
    """product[product_at + i] = float32(sums[sums_at + i] - bias) for 16 * tiles items."""
    b = v.builder
    source = v.pointer(sums, sums_at, INTS)
    target = v.pointer(product, product_at, FLOATS)
    all_bias = v.splat(bias, INTS)
    with cgutils.for_range(b, tiles) as loop:
        value = b.sub(v.load(source, loop.index), all_bias)
        v.store(b.sitofp(value, FLOATS), target, loop.index)


@on_lanes(
    types.void, ARRAY, INDEX, ARRAY, INDEX, INDEX, INDEX, ARRAY, INDEX, INDEX, INDEX,
    builder=_Tiles,
)  # fmt: skip
def tile_dots(t: _Tiles, keys, key_at, query, query_at, row_items, blocks, dots, at, stride, tiles):
    """dots[at + r stride + 16 t + lane] = query row r times key (t, lane), for the rows that
    `use_tiles` has named and 16 * tiles keys; `blocks` is head_dim / 64.

    keys u8 as in `attention`; query int8, rows `row_items` apart; dots int32.
    """
    b = t.builder
    rows = t.address(query, query_at)
    columns = t.address(keys, key_at)
    target = t.address(dots, at)
    tile_bytes = b.mul(blocks, I64(TILE_ROWS * TILE_BYTES))
    with cgutils.for_range(b, tiles) as tile:
        t.zero(0)
        with cgutils.for_range(b, blocks) as block:
            t.load_tile(4, b.gep(rows, [b.mul(block.index, I64(TILE_BYTES))]), row_items)
            place = b.add(
                b.mul(tile.index, tile_bytes),
                b.mul(block.index, I64(TILE_ROWS * TILE_BYTES)),
            )
            t.load_tile(6, b.gep(columns, [place]), I64(TILE_BYTES))
            t.multiply(0, 4, 6)
        place = b.mul(tile.index, I64(TILE_BYTES))
        t.store_tile(0, b.gep(target, [place]), b.mul(stride, I64(4)))


@on_lanes(types.void, builder=_Tiles)
def zero_sums(t: _Tiles):
    """Tiles 0 to 3 are zero, for `add_value_tiles`."""
    for tile in range(4):
        t.zero(tile)


@on_lanes(types.void, ARRAY, INDEX, INDEX, ARRAY, ARRAY, INDEX, INDEX, INDEX, builder=_Tiles)
def add_value_tiles(t: _Tiles, values, at, row_bytes, high, low, weight_at, weight_stride, blocks):
    """Tiles 0 and 1 += high, 2 and 3 += low, times the values of 64 * blocks positions, for 32
    dimensions.

    values int8 as in `attention`, from byte `at`, quads of positions `row_bytes` apart; high, low
    uint8, rows `weight_stride` apart.
    """
    b = t.builder
    columns = t.address(values, at)
    parts = [t.address(part, weight_at) for part in (high, low)]
    with cgutils.for_range(b, blocks) as block:
        place = b.mul(block.index, b.mul(row_bytes, I64(TILE_ROWS)))
        for column in range(2):
            address = b.gep(columns, [b.add(place, I64(column * TILE_BYTES))])
            t.load_tile(6 + column, address, row_bytes)
        for part, address in enumerate(parts):
            address = b.gep(address, [b.mul(block.index, I64(TILE_BYTES))])
            t.load_tile(4 + part, address, weight_stride)
            for column in range(2):
                t.multiply_unsigned(2 * part + column, 4 + part, 6 + column)


@on_lanes(types.void, ARRAY, builder=_Tiles)
def store_sums(t: _Tiles, sums):
    """sums int32 [4 * 256] holds tiles 0 to 3, 16 items a row."""
    target = t.address(sums, I64(0))
    for tile in range(4):
        place = t.builder.gep(target, [I64(tile * TILE_ROWS * TILE_BYTES)])
        t.store_tile(tile, place, I64(TILE_BYTES))
