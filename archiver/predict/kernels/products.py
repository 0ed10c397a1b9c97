"""Exact products of int8 matrices: every backend returns float32(integer sum), or is not used.

A backend is trusted for what it computes, not for its name: `choose_backend` multiplies
worst-case operands and compares with int64 arithmetic. (oneDNN's int8 product adds pairs of
products in saturating int16 on x86 processors without VNNI.)

    amx      own kernel over the processor's tile registers
    vnni     own kernel over the processor's byte dot products; AVX-512 VNNI
    onednn   torch's quantized linear with prepacked weights: int8 x int8, one rounding to float32
    int_mm   torch._int_mm, int32 results converted to float32
    float32  BLAS on integer values; sums of at most 1,040 products of |127 * 127| stay below
             2^24, longer ones are split and joined in float64
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch

from archiver.errors import ExactnessError, UsageError
from archiver.predict.kernels import byte_products
from archiver.predict.kernels.memory import large_pages
from archiver.predict.kernels.tiles import PANEL_SHAPES, TILE_BYTES, has_tile_registers
from archiver.predict.kernels.vectors import has_byte_dot_product
from archiver.types import Float32Array, Int8Array

BACKEND_VARIABLE = "LLMZIP_MATMUL"
FLOAT32_INNER_MAX = (1 << 24) // (127 * 127)  # 1,040 products
INNER_MAX = (1 << 31) // (127 * 127)  # 133,144: an int32 sum cannot overflow below this


class Product(ABC):
    """The product of int8 rows with one fixed int8 weight matrix."""

    name: ClassVar[str]
    tiled: ClassVar[bool] = False  # runs in the processor's tile registers

    @abstractmethod
    def __init__(self, weights: Int8Array) -> None:
        """Prepare weights, int8 [outputs, inputs] in -127 .. 127."""

    @abstractmethod
    def __call__(self, codes: Int8Array) -> Float32Array:
        """float32(codes @ weights.T); codes int8 [rows, inputs] -> float32 [rows, outputs].

        The integer sum is exact (|sum| <= 127^2 * inputs < 2^31) and rounded once.
        """


class VnniProduct(Product):
    name = "vnni"

    def __init__(self, weights: Int8Array) -> None:
        outputs, inputs = weights.shape
        if not has_byte_dot_product() or inputs % 4 or inputs > byte_products.INPUTS_MAX:
            raise NotImplementedError("no byte dot products, or not for this size")
        self._outputs = outputs
        padded = -(-outputs // byte_products.OUTPUTS_STEP) * byte_products.OUTPUTS_STEP
        self._packed = large_pages(padded * inputs)
        byte_products.pack(np.ascontiguousarray(weights), self._packed)

    def __call__(self, codes: Int8Array) -> Float32Array:
        product = np.empty((len(codes), self._outputs), np.float32)
        byte_products.multiply(self._packed, codes, product)
        return product


class AmxProduct(VnniProduct):
    name = "amx"
    tiled = True

    def __init__(self, weights: Int8Array) -> None:
        if not has_tile_registers() or weights.shape[1] % TILE_BYTES:
            raise NotImplementedError("no tile registers, or not for this size")
        super().__init__(weights)

    def __call__(self, codes: Int8Array) -> Float32Array:
        product = np.empty((len(codes), self._outputs), np.float32)
        byte_products.multiply_by_tiles(self._packed, codes, product, PANEL_SHAPES)
        return product


class OneDnnProduct(Product):
    name = "onednn"

    def __init__(self, weights: Int8Array) -> None:
        outputs = weights.shape[0]
        self._packed = torch.ops.onednn.qlinear_prepack(_tensor(weights), None)
        self._scales = torch.ones(outputs)
        self._zeros = torch.zeros(outputs, dtype=torch.int64)

    def __call__(self, codes: Int8Array) -> Float32Array:
        product: Float32Array = torch.ops.onednn.qlinear_pointwise(
            torch.from_numpy(codes), 1.0, 0, self._packed, self._scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        ).numpy()  # fmt: skip
        return product


class IntMmProduct(Product):
    name = "int_mm"
    ROWS_MIN = 32  # the operator refuses fewer than 17 rows

    def __init__(self, weights: Int8Array) -> None:
        self._weights = _tensor(weights).t()

    def __call__(self, codes: Int8Array) -> Float32Array:
        rows = torch.from_numpy(codes)
        if len(codes) < self.ROWS_MIN:
            padded = torch.zeros(self.ROWS_MIN, codes.shape[1], dtype=torch.int8)
            padded[: len(codes)] = rows
            rows = padded
        product: Float32Array = torch._int_mm(rows, self._weights)[: len(codes)].float().numpy()
        return product


class Float32Product(Product):
    name = "float32"

    def __init__(self, weights: Int8Array) -> None:
        inner = weights.shape[1]
        count = -(-inner // FLOAT32_INNER_MAX)
        edges = [inner * i // count for i in range(count + 1)]
        self._parts = [
            (slice(a, b), _tensor(weights[:, a:b]).float().t())
            for a, b in itertools.pairwise(edges)
        ]

    def __call__(self, codes: Int8Array) -> Float32Array:
        rows = torch.from_numpy(codes).float()
        total = None
        for columns, weights in self._parts:
            part = rows[:, columns] @ weights
            if len(self._parts) > 1:
                part = part.double()
            total = part if total is None else total + part
        assert total is not None
        product: Float32Array = total.float().numpy()
        return product


BACKENDS: dict[str, type[Product]] = {
    backend.name: backend
    for backend in (AmxProduct, VnniProduct, OneDnnProduct, IntMmProduct, Float32Product)
}
"""By preference, the fastest first."""


def _tensor(weights: Int8Array) -> torch.Tensor:
    """A tensor that owns its memory (weights may be a read-only map of a file)."""
    return torch.from_numpy(np.array(weights, dtype=np.int8, order="C"))


def is_exact(backend: type[Product], inner_sizes: Iterable[int]) -> bool:
    """Whether the backend computes float32(integer sum) for worst-case operands.

    Operands of the greatest magnitude with equal and with alternating signs, which overflow any
    accumulator narrower than the sum needs, and random ones; row counts as the engine uses them.
    """
    generator = np.random.default_rng(0)
    try:
        for inner in sorted(set(inner_sizes)):
            weights = generator.integers(-127, 128, (96, inner)).astype(np.int8)
            weights[0], weights[1], weights[2, ::2], weights[3] = 127, -127, 127, 127
            weights[3, : inner // 2] = -127
            product = backend(weights)
            for rows in (1, 8, 32, 64, 256):
                codes = generator.integers(-127, 128, (rows, inner)).astype(np.int8)
                codes[0] = 127
                codes[-1, ::2] = -127
                sums = codes.astype(np.float64) @ weights.astype(np.float64).T  # below 2^53
                if not np.array_equal(product(codes), sums.astype(np.float32)):
                    return False
    except (RuntimeError, NotImplementedError, AttributeError):
        return False  # this build of torch, or this processor, does not have the operator
    return True


def choose_backend(inner_sizes: Iterable[int], forced: str | None = None) -> type[Product]:
    """The fastest backend that proves exact on this machine.

    Args:
        inner_sizes: lengths of the sums that the model needs.
        forced: a backend's name; by default the environment variable LLMZIP_MATMUL, if set.
            Which backend runs never changes a result, only the time it takes.

    Raises:
        UsageError: no backend of the forced name.
        ExactnessError: the forced backend, or every backend, is inexact here.
    """
    sizes = list(inner_sizes)
    forced = forced or os.environ.get(BACKEND_VARIABLE)
    if forced and forced not in BACKENDS:
        raise UsageError(f"no matrix product {forced!r}; there are {', '.join(BACKENDS)}")
    for backend in [BACKENDS[forced]] if forced else BACKENDS.values():
        if is_exact(backend, sizes):
            return backend
    raise ExactnessError(
        f"the matrix product {forced!r} is not exact on this machine"
        if forced
        else "no matrix product on this machine computes exact integer sums"
    )
