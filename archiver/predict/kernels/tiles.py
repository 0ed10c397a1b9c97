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
from numba.extending import intrinsic

from archiver.predict.kernels.vectors import LANES, LaneBuilder, codegen
from archiver.types import UInt8Array

TILE_ROWS = 16
TILE_BYTES = 64  # of one row
_ARCH_PRCTL = 158  # system call of Linux on x86-64
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


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
    def address(self, kind: Any, array: Any, at: Any) -> Any:
        """Address of an array's item `at`, in bytes."""
        return self.pointer(kind, array, at, _I8)

    def do(self, name: str, *arguments: Any) -> None:
        signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(
            self.builder.module, signature, f"llvm.x86.{name}"
        )
        self.builder.call(function, arguments)

    def zero(self, tile: int) -> None:
        self.do("tilezero", _I8(tile))

    def load_tile(self, tile: int, address: Any, row_bytes: Any) -> None:
        self.do("tileloadd64", _I8(tile), address, row_bytes)

    def store_tile(self, tile: int, address: Any, row_bytes: Any) -> None:
        self.do("tilestored64", _I8(tile), address, row_bytes)

    def multiply(self, total: int, signed: int, unsigned: int) -> None:
        """total += signed rows times unsigned columns."""
        self.do("tdpbsud", _I8(total), _I8(signed), _I8(unsigned))

    def multiply_unsigned(self, total: int, unsigned: int, signed: int) -> None:
        """total += unsigned rows times signed columns."""
        self.do("tdpbusd", _I8(total), _I8(unsigned), _I8(signed))


@intrinsic
def use_tiles(typingctx, shapes):
    """This thread's tile registers get the shapes of uint8 [64]."""

    def body(t: _Tiles, kinds: Any, shapes: Any) -> None:
        t.do("ldtilecfg", t.address(kinds[0], shapes, _I64(0)))

    return types.void(shapes), codegen(_Tiles, body)


@intrinsic
def release_tiles(typingctx):
    """This thread's tile registers are free: switching threads need not save them."""

    def body(t: _Tiles, kinds: Any) -> None:
        t.do("tilerelease")

    return types.void(), codegen(_Tiles, body)


def _multiply_panel(first: int, second: int) -> Any:
    """Products of the rows in `first` (0 or 1) tiles of codes and, if `second`, one more, with 32
    outputs."""

    def body(
        t: _Tiles,
        kinds: Any,
        weights: Any,
        weight_at: Any,
        codes: Any,
        code_at: Any,
        inputs: Any,
        sums: Any,
    ) -> None:
        b = t.builder
        tile_bytes = b.mul(inputs, _I64(TILE_ROWS))
        code_tiles = [t.address(kinds[2], codes, code_at)]
        if second:
            code_tiles.append(b.gep(code_tiles[0], [tile_bytes]))
        weight_tiles = [t.address(kinds[0], weights, weight_at)]
        weight_tiles.append(b.gep(weight_tiles[0], [tile_bytes]))
        for tile in range(2 * len(code_tiles)):
            t.zero(tile)
        with cgutils.for_range(b, b.sdiv(inputs, _I64(TILE_BYTES))) as loop:
            code_step = b.mul(loop.index, _I64(TILE_BYTES))
            weight_step = b.mul(loop.index, _I64(TILE_ROWS * TILE_BYTES))
            for number, address in enumerate(code_tiles):
                t.load_tile(4 + number, b.gep(address, [code_step]), inputs)
            for number, address in enumerate(weight_tiles):
                t.load_tile(6 + number, b.gep(address, [weight_step]), _I64(TILE_BYTES))
            for row in range(len(code_tiles)):
                for column in range(2):
                    t.multiply(2 * row + column, 4 + row, 6 + column)
        target = t.address(kinds[5], sums, _I64(0))
        for row in range(len(code_tiles)):
            for column in range(2):
                place = b.gep(target, [_I64((row * TILE_ROWS * 2 + column) * TILE_BYTES)])
                t.store_tile(2 * row + column, place, _I64(2 * TILE_BYTES))

    @intrinsic
    def multiply_panel(typingctx, weights, weight_at, codes, code_at, inputs, sums):
        i = types.int64
        return types.void(weights, i, codes, i, i, sums), codegen(_Tiles, body)

    return multiply_panel


multiply_16, multiply_32 = _multiply_panel(1, 0), _multiply_panel(1, 1)
"""multiply_N(weights u8[], weight_at, codes i8[], code_at, inputs, sums i32[N * 32]).

For the rows r < N that `use_tiles` has named and outputs o < 32: sums[32 r + o] = sum over i of
weights(o, i) * codes[code_at + inputs r + i], weights in the layout of `byte_products`; inputs a
multiple of 64.
"""


@intrinsic
def float_sums(typingctx, sums, sums_at, bias, product, product_at, tiles):
    """product[product_at + i] = float32(sums[sums_at + i] - bias) for 16 * tiles items."""

    def body(
        t: _Tiles,
        kinds: Any,
        sums: Any,
        sums_at: Any,
        bias: Any,
        product: Any,
        product_at: Any,
        tiles: Any,
    ) -> None:
        b = t.builder
        vector = ir.VectorType(_I32, LANES)
        source = t.pointer(kinds[0], sums, sums_at, vector)
        target = t.pointer(kinds[3], product, product_at, ir.VectorType(ir.FloatType(), LANES))
        all_bias = t.splat(bias, vector)
        with cgutils.for_range(b, tiles) as loop:
            value = b.sub(t.load(source, loop.index), all_bias)
            t.store(b.sitofp(value, ir.VectorType(ir.FloatType(), LANES)), target, loop.index)

    i = types.int64
    return types.void(sums, i, types.int32, product, i, i), codegen(_Tiles, body)


@intrinsic
def tile_dots(typingctx, keys, key_at, query, query_at, row_items, blocks, dots, at, stride, tiles):
    """dots[at + r stride + 16 t + lane] = query row r times key (t, lane), for the rows that
    `use_tiles` has named and 16 * tiles keys; `blocks` is head_dim / 64.

    keys u8 as in `attention`; query int8, rows `row_items` apart; dots int32.
    """

    def body(
        t: _Tiles,
        kinds: Any,
        keys: Any,
        key_at: Any,
        query: Any,
        query_at: Any,
        row_items: Any,
        blocks: Any,
        dots: Any,
        at: Any,
        stride: Any,
        tiles: Any,
    ) -> None:
        b = t.builder
        rows = t.address(kinds[2], query, query_at)
        columns = t.address(kinds[0], keys, key_at)
        target = t.address(kinds[6], dots, at)
        tile_bytes = b.mul(blocks, _I64(TILE_ROWS * TILE_BYTES))
        with cgutils.for_range(b, tiles) as tile:
            t.zero(0)
            with cgutils.for_range(b, blocks) as block:
                t.load_tile(4, b.gep(rows, [b.mul(block.index, _I64(TILE_BYTES))]), row_items)
                place = b.add(
                    b.mul(tile.index, tile_bytes),
                    b.mul(block.index, _I64(TILE_ROWS * TILE_BYTES)),
                )
                t.load_tile(6, b.gep(columns, [place]), _I64(TILE_BYTES))
                t.multiply(0, 4, 6)
            place = b.mul(tile.index, _I64(TILE_BYTES))
            t.store_tile(0, b.gep(target, [place]), b.mul(stride, _I64(4)))

    i = types.int64
    return types.void(keys, i, query, i, i, i, dots, i, i, i), codegen(_Tiles, body)


@intrinsic
def zero_sums(typingctx):
    """Tiles 0 to 3 are zero, for `add_value_tiles`."""

    def body(t: _Tiles, kinds: Any) -> None:
        for tile in range(4):
            t.zero(tile)

    return types.void(), codegen(_Tiles, body)


@intrinsic
def add_value_tiles(typingctx, values, at, row_bytes, high, low, weight_at, weight_stride, blocks):
    """Tiles 0 and 1 += high, 2 and 3 += low, times the values of 64 * blocks positions, for 32
    dimensions.

    values int8 as in `attention`, from byte `at`, quads of positions `row_bytes` apart; high, low
    uint8, rows `weight_stride` apart.
    """

    def body(
        t: _Tiles,
        kinds: Any,
        values: Any,
        at: Any,
        row_bytes: Any,
        high: Any,
        low: Any,
        weight_at: Any,
        weight_stride: Any,
        blocks: Any,
    ) -> None:
        b = t.builder
        columns = t.address(kinds[0], values, at)
        parts = [
            t.address(kinds[3], high, weight_at),
            t.address(kinds[4], low, weight_at),
        ]
        with cgutils.for_range(b, blocks) as block:
            place = b.mul(block.index, b.mul(row_bytes, _I64(TILE_ROWS)))
            for column in range(2):
                address = b.gep(columns, [b.add(place, _I64(column * TILE_BYTES))])
                t.load_tile(6 + column, address, row_bytes)
            for part, address in enumerate(parts):
                address = b.gep(address, [b.mul(block.index, _I64(TILE_BYTES))])
                t.load_tile(4 + part, address, weight_stride)
                for column in range(2):
                    t.multiply_unsigned(2 * part + column, 4 + part, 6 + column)

    i = types.int64
    return types.void(values, i, i, high, low, i, i, i), codegen(_Tiles, body)


@intrinsic
def store_sums(typingctx, sums):
    """sums int32 [4 * 256] holds tiles 0 to 3, 16 items a row."""

    def body(t: _Tiles, kinds: Any, sums: Any) -> None:
        target = t.address(kinds[0], sums, _I64(0))
        for tile in range(4):
            place = t.builder.gep(target, [_I64(tile * TILE_ROWS * TILE_BYTES)])
            t.store_tile(tile, place, _I64(TILE_BYTES))

    return types.void(sums), codegen(_Tiles, body)
