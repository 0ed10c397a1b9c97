"""Elementwise IEEE operations and integer dot products that every kernel is made of.

Two kinds of building block, compiled by numba, bit-identical on every processor:

* floats element by element: `exp2_nonpositive`, `round_to_int`. Each is a fixed sequence of
  binary32 operations, every one rounded on its own. The compiler may not contract them into
  fused multiply-adds (numba compiles without fast-math; a test reads the assembly).
* integer dot products of bytes: `dot_keys`, `dot_values`. Integer sums have one value whatever
  the order, so they use the processor's dot-product instruction where there is one.

Source: FORMAT.md, section "Predictor arithmetic".
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

KERNEL_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": False,
    "boundscheck": False,
}
"""Compiler options of every kernel: no fast-math, ever; the GIL is released."""

# 2^f on [-1/2, 1/2], degree 5, constant term 1: coefficients of the polynomial that interpolates
# (2^f - 1)/f at the five Chebyshev nodes, rounded to binary32. Evaluated in binary32 its largest
# relative error is 2.7e-7. They are part of the format.
EXP2_C1 = np.float32(float.fromhex("0x1.62e43p-1"))
EXP2_C2 = np.float32(float.fromhex("0x1.ebfa4cp-3"))
EXP2_C3 = np.float32(float.fromhex("0x1.c6afeep-5"))
EXP2_C4 = np.float32(float.fromhex("0x1.3cbf6p-7"))
EXP2_C5 = np.float32(float.fromhex("0x1.5ec866p-10"))

ROUNDING_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer
EXP2_FLOOR = np.float32(-40.0)

TILE = 16  # positions, or dimensions, that one vector register of int32 holds


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


@intrinsic
def bits_to_float(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int32 as the binary32 with the same bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def float_to_bits(typingctx: Any, x: Any) -> Any:
    """Reinterpret a binary32 as the int32 with the same bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@njit(inline="always", **KERNEL_OPTIONS)
def round_to_int(x):  # type: ignore[no-untyped-def]
    """The integer (int32) nearest to the binary32 x, ties to even; exact for |x| < 2^22."""
    return np.int32((x + ROUNDING_MAGIC) - ROUNDING_MAGIC)


@njit(inline="always", **KERNEL_OPTIONS)
def order_key(x):  # type: ignore[no-untyped-def]
    """An int32 that orders as the binary32 x does, so that a maximum is one of integers."""
    bits = float_to_bits(x)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(inline="always", **KERNEL_OPTIONS)
def float_of_key(key):  # type: ignore[no-untyped-def]
    """The binary32 whose `order_key` is key."""
    return bits_to_float(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(inline="always", **KERNEL_OPTIONS)
def magnitude_key(x):  # type: ignore[no-untyped-def]
    """An int32 that orders as |x| does; `bits_to_float` of it is |x|."""
    return float_to_bits(x) & np.int32(0x7FFFFFFF)


@njit(inline="always", **KERNEL_OPTIONS)
def exp2_nonpositive(x):  # type: ignore[no-untyped-def]
    """2^max(x, -40) for a binary32 x <= 0, within 2.7e-7 relative, the same bits everywhere."""
    clamped = max(x, EXP2_FLOOR)
    whole = (clamped + ROUNDING_MAGIC) - ROUNDING_MAGIC
    f = clamped - whole
    p = EXP2_C5 * f + EXP2_C4
    p = p * f + EXP2_C3
    p = p * f + EXP2_C2
    p = p * f + EXP2_C1
    p = p * f + np.float32(1.0)
    return p * bits_to_float((np.int32(whole) + np.int32(127)) << np.int32(23))


_I32 = ir.IntType(32)
_LANES = ir.VectorType(_I32, TILE)


def _splat(builder: Any, scalar: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_LANES, ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(_LANES, [0] * TILE)
    return builder.shuffle_vector(vector, ir.Constant(_LANES, ir.Undefined), zeros)


def _add_quad_products(builder: Any, acc: Any, unsigned: Any, signed: Any, native: bool) -> Any:
    """acc[i] + sum over j < 4 of u8(unsigned[i], j) * s8(signed[i], j), in 16 lanes of int32."""
    if native:
        # Declared as LLVM 7 to 20 do; later versions upgrade the declaration as they read it.
        signature = ir.FunctionType(_LANES, [_LANES, _LANES, _LANES])
        instruction = cgutils.get_or_insert_function(
            builder.module, signature, "llvm.x86.avx512.vpdpbusd.512"
        )
        return builder.call(instruction, [acc, unsigned, signed])
    low_byte = ir.Constant(_LANES, [255] * TILE)
    top = ir.Constant(_LANES, [24] * TILE)
    for j in range(4):
        u = builder.and_(builder.lshr(unsigned, ir.Constant(_LANES, [8 * j] * TILE)), low_byte)
        s = builder.ashr(builder.shl(signed, ir.Constant(_LANES, [24 - 8 * j] * TILE)), top)
        acc = builder.add(acc, builder.mul(u, s))
    return acc


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any, pointee: Any) -> Any:
    """Pointer to element `offset` (in the array's own items) as a pointer to `pointee`."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), pointee.as_pointer())


def _dot_keys_codegen(native: bool) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, key_at, query, query_at, quads, out, out_at = args
        kinds = signature.args
        key_rows = _address(context, builder, kinds[0], keys, key_at, _LANES)
        query_quads = _address(context, builder, kinds[2], query, query_at, _I32)
        total = cgutils.alloca_once(builder, _LANES)
        builder.store(ir.Constant(_LANES, [0] * TILE), total)
        with cgutils.for_range(builder, quads) as loop:
            key = builder.load(builder.gep(key_rows, [loop.index]), align=4)
            quad = _splat(builder, builder.load(builder.gep(query_quads, [loop.index]), align=4))
            acc = _add_quad_products(builder, builder.load(total), key, quad, native)
            builder.store(acc, total)
        target = _address(context, builder, kinds[5], out, out_at, _LANES)
        builder.store(builder.load(total), target, align=4)
        return context.get_dummy_value()

    return codegen


def _dot_values_codegen(native: bool, groups: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, value_at, row_stride, high, low, weight_at, quads, out, out_at = args
        kinds = signature.args
        i64 = ir.IntType(64)
        value_rows = _address(context, builder, kinds[0], values, value_at, ir.IntType(8))
        high_quads = _address(context, builder, kinds[3], high, weight_at, _I32)
        low_quads = _address(context, builder, kinds[4], low, weight_at, _I32)
        target = _address(context, builder, kinds[7], out, out_at, _LANES)
        zero = ir.Constant(_LANES, [0] * TILE)
        sums = [[cgutils.alloca_once(builder, _LANES) for _ in range(groups)] for _ in range(2)]
        for pair in sums:
            for cell in pair:
                builder.store(zero, cell)
        with cgutils.for_range(builder, quads) as loop:
            row = builder.gep(value_rows, [builder.mul(loop.index, row_stride)])
            row_lanes = builder.bitcast(row, _LANES.as_pointer())
            parts = [
                _splat(builder, builder.load(builder.gep(rows, [loop.index]), align=4))
                for rows in (high_quads, low_quads)
            ]
            for group in range(groups):
                value = builder.load(builder.gep(row_lanes, [i64(group)]), align=4)
                for part, cells in zip(parts, sums, strict=True):
                    acc = builder.load(cells[group])
                    acc = _add_quad_products(builder, acc, part, value, native)
                    builder.store(acc, cells[group])
        for group in range(groups):
            wide = builder.shl(builder.load(sums[0][group]), ir.Constant(_LANES, [8] * TILE))
            place = builder.gep(target, [i64(group)])
            acc = builder.add(builder.load(place, align=4), wide)
            acc = builder.add(acc, builder.load(sums[1][group]))
            builder.store(acc, place, align=4)
        return context.get_dummy_value()

    return codegen


def _dot_keys(native: bool) -> Any:
    def typing(typingctx, keys, key_at, query, query_at, quads, out, out_at):  # type: ignore
        index = types.int64
        signature = types.void(keys, index, query, index, index, out, index)
        return signature, _dot_keys_codegen(native)

    return intrinsic(typing)


def _dot_values(native: bool, groups: int) -> Any:
    def typing(  # type: ignore
        typingctx, values, value_at, row_stride, high, low, weight_at, quads, out, out_at
    ):
        index = types.int64
        signature = types.void(values, index, index, high, low, index, index, out, index)
        return signature, _dot_values_codegen(native, groups)

    return intrinsic(typing)


dot_keys = _dot_keys(has_byte_dot_product())
"""dot_keys(keys u8[], key_at, query i8[], query_at, quads, out i32[], out_at).

out[out_at + lane] = sum over quad, j of keys[key_at + 64 quad + 4 lane + j] * query[query_at +
4 quad + j] for 16 lanes. |sum| <= 255 * 128 * 4 quads < 2^31 for quads <= 16,384.
"""

dot_values = _dot_values(has_byte_dot_product(), 4)
"""dot_values(values i8[], value_at, row_stride, high u8[], low u8[], weight_at, quads, out, out_at).

out[out_at + i] += sum over quad, j of (256 high + low)[weight_at + 4 quad + j] *
values[value_at + row_stride quad + 4 i + j] for 64 i. The caller bounds the weights' total.
"""

dot_values_16 = _dot_values(has_byte_dot_product(), 1)
"""As `dot_values`, for 16 i."""

dot_keys_portable = _dot_keys(False)
dot_values_portable = _dot_values(False, 4)
dot_values_16_portable = _dot_values(False, 1)
