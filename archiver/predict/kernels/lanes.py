"""Intrinsics that work on 16 lanes at a time, written in the compiler's own language.

Numba's loop vectorizer picks 256-bit registers and cannot see byte dot products, so inner loops
are built as LLVM vectors of 16 lanes. LLVM splits them on processors with narrower registers. No
instruction carries a fast-math flag: every float operation is the IEEE operation of its lane, and
integer sums have one value whatever the order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, SupportsFloat, TypeAlias

import llvmlite.binding as llvm
import numpy as np
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
I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES = ir.VectorType(I8, LANES)
INTS = ir.VectorType(I32, LANES)
FLOATS = ir.VectorType(F32, LANES)

ROUNDING_BITS = int(ROUNDING_MAGIC.view(np.int32))  # 0x4B400000, whose low 22 bits are 0

ARRAY, INDEX = types.Array, types.int64
"""Arguments of intrinsics: an array of any type; a number of items or tiles."""

TypedValue: TypeAlias = tuple[Any, Any]
"""An array as intrinsics get it: numba's type and LLVM's value."""


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

    def pointer(self, array: TypedValue, offset: Any, pointee: Any) -> Any:
        """Address of an array's item `offset`, as a pointer to `pointee`."""
        kind, value = array
        data = self.context.make_array(kind)(self.context, self.builder, value).data
        return self.builder.bitcast(self.builder.gep(data, [offset]), pointee.as_pointer())

    def load(self, pointer: Any, index: Any) -> Any:
        return self.builder.load(self.builder.gep(pointer, [index]), align=1)

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        self.builder.store(value, self.builder.gep(pointer, [index]), align=1)

    def ints(self, value: int) -> Any:
        return ir.Constant(INTS, [value] * LANES)

    def floats(self, value: SupportsFloat) -> Any:
        return ir.Constant(FLOATS, [float(value)] * LANES)

    def splat(self, scalar: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        vector = self.builder.insert_element(undefined, scalar, I32(0))
        return self.builder.shuffle_vector(vector, undefined, self.ints(0))

    def fetch(self, lines: Any, number: Any) -> None:
        """The processor begins to bring a line into its caches, the one so many after the pointer
        to INTS; an address where nothing lies does no harm."""
        b = self.builder
        line = b.bitcast(b.gep(lines, [number]), I8.as_pointer())
        signature = ir.FunctionType(ir.VoidType(), [line.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(b.module, signature, "llvm.prefetch.p0")
        b.call(function, [line, I32(0), I32(2), I32(1)])  # to read, second level, data

    def cell(self, kind: Any, value: Any) -> Any:
        """A variable that lives across iterations; LLVM keeps it in a register."""
        place = cgutils.alloca_once(self.builder, kind)
        self.builder.store(value, place)
        return place

    def reduce(self, vector: Any, operation: str) -> Any:
        """All lanes of an integer vector joined by `operation`: add or smax."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(I32, [INTS]),
            f"llvm.vector.reduce.{operation}.v16i32",
        )
        return self.builder.call(function, [vector])

    def inside(self, tile: Any, begin: Any, end: Any) -> Any:
        """Which lanes of a tile hold items `begin` to `end - 1`."""
        b = self.builder
        lanes = ir.Constant(INTS, list(range(LANES)))
        first = b.trunc(b.mul(tile, I64(LANES)), I32)
        number = b.add(lanes, self.splat(first, INTS))
        low, high = (self.splat(b.trunc(x, I32), INTS) for x in (begin, end))
        return b.and_(b.icmp_signed(">=", number, low), b.icmp_signed("<", number, high))

    def greater(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    def order_keys(self, floats: Any) -> Any:
        """Integers that order as the floats do (see `elementary.order_key`)."""
        b = self.builder
        bits = b.bitcast(floats, INTS)
        flip = b.and_(b.ashr(bits, self.ints(31)), self.ints(0x7FFFFFFF))
        return b.xor(bits, flip)

    def round(self, x: Any) -> Any:
        """Nearest integers, still floats, for |x| < 2^22."""
        magic = self.floats(ROUNDING_MAGIC)
        return self.builder.fsub(self.builder.fadd(x, magic), magic)

    def round_bits(self, x: Any) -> Any:
        """`ROUNDING_BITS` + the nearest integers, for |x| < 2^22: they are the low bits of a sum
        whose unit is 1."""
        return self.builder.bitcast(self.builder.fadd(x, self.floats(ROUNDING_MAGIC)), INTS)

    def exp2(self, *exponents: Any) -> list[Any]:
        """`elementary.exp2_nonpositive` of each, the same operations in the same order.

        More than one at a time keeps the processor busy, whose operations take their time.
        """
        b = self.builder
        floor, magic = self.floats(EXP2_FLOOR), self.floats(ROUNDING_MAGIC)
        xs = [b.select(b.fcmp_ordered(">", x, floor), x, floor) for x in exponents]
        sums = [b.fadd(x, magic) for x in xs]
        fs = [b.fsub(x, b.fsub(total, magic)) for x, total in zip(xs, sums, strict=True)]
        ps = [b.fadd(b.fmul(self.floats(EXP2_C5), f), self.floats(EXP2_C4)) for f in fs]
        for coefficient in (EXP2_C3, EXP2_C2, EXP2_C1, 1.0):
            constant = self.floats(coefficient)
            ps = [b.fadd(b.fmul(p, f), constant) for p, f in zip(ps, fs, strict=True)]
        # The shift leaves the integer alone of the sum's bits, and makes it an exponent.
        shifted = [b.shl(b.bitcast(total, INTS), self.ints(23)) for total in sums]
        powers = [b.bitcast(b.add(x, self.ints(127 << 23)), FLOATS) for x in shifted]
        return [b.fmul(p, power) for p, power in zip(ps, powers, strict=True)]

    def add_quad_products(self, acc: Any, unsigned: Any, signed: Any, native: bool) -> Any:
        """acc[i] + sum over j < 4 of u8(unsigned[i], j) * s8(signed[i], j)."""
        b = self.builder
        if native:
            # Declared as LLVM 7 to 20 do; later versions upgrade the declaration as they read it.
            signature = ir.FunctionType(INTS, [INTS, INTS, INTS])
            instruction = cgutils.get_or_insert_function(
                b.module, signature, "llvm.x86.avx512.vpdpbusd.512"
            )
            return b.call(instruction, [acc, unsigned, signed])
        for j in range(4):
            u = b.and_(b.lshr(unsigned, self.ints(8 * j)), self.ints(255))
            s = b.ashr(b.shl(signed, self.ints(24 - 8 * j)), self.ints(24))
            acc = b.add(acc, b.mul(u, s))
        return acc


def on_lanes(
    result: Any, *kinds: Any, builder: type[LaneBuilder] = LaneBuilder
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: what is called from kernels is the code that the decorated function builds.

    The function gets a builder and then the arguments: LLVM's values, arrays as `TypedValue`. It
    returns LLVM's value of the result, nothing where that is void.

    Args:
        result: its numba type; kinds: those of the arguments, or ARRAY. Last parameters of the
            function that have defaults may be left out.
        builder: the class of the builder.
    """

    def decorate(build: Callable[..., Any]) -> Any:
        @functools.wraps(build)
        def typed(typingctx: Any, *given: Any) -> Any:
            pairs = zip(kinds, given, strict=True)
            return result(*(own if kind is ARRAY else kind for kind, own in pairs)), generate

        def generate(context: Any, llvm_builder: Any, signature: Any, values: Any) -> Any:
            arguments = (
                (kind, value) if isinstance(kind, ARRAY) else value
                for kind, value in zip(signature.args, values, strict=True)
            )
            found = build(builder(context, llvm_builder), *arguments)
            return context.get_dummy_value() if found is None else found

        # Numba reads how many arguments there are off the signature.
        names = ["typingctx", *list(inspect.signature(build).parameters)[1 : len(kinds) + 1]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        return intrinsic(typed)

    return decorate
