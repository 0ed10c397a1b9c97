"""Elementwise IEEE operations that every kernel is made of, bit-identical on every processor.

Each is a fixed sequence of binary32 operations, every one rounded on its own. The compiler may
not contract them into fused multiply-adds (numba compiles without fast-math; a test reads the
assembly). Maxima are taken of integers that order as the floats do, which vectorizes and has no
special cases.

Source: FORMAT.md, "Numbers of the predictor".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from archiver.compiled import compiled

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


@compiled(inline="always")
def round_to_int(x):
    """The integer (int32) nearest to the binary32 x, ties to even; exact for |x| < 2^22."""
    return np.int32((x + ROUNDING_MAGIC) - ROUNDING_MAGIC)


@compiled(inline="always")
def order_key(x):
    """An int32 that orders as the binary32 x does, so that a maximum is one of integers."""
    bits = float_to_bits(x)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@compiled(inline="always")
def float_of_key(key):
    """The binary32 whose `order_key` is key."""
    return bits_to_float(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@compiled(inline="always")
def magnitude_key(x):
    """An int32 that orders as |x| does; `bits_to_float` of it is |x|."""
    return float_to_bits(x) & np.int32(0x7FFFFFFF)


@compiled(inline="always")
def exp2_nonpositive(x):
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
