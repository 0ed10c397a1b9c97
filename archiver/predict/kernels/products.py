"""Exact products of int8 matrices: every backend returns float32(integer sum), or is not used.

A backend is trusted for what it computes, not for its name: `choose_backend` multiplies
worst-case operands and compares with int64 arithmetic. (oneDNN's int8 product adds pairs of
products in saturating int16 on x86 processors without VNNI.)

    amx      own kernel over the processor's tile registers
    vnni     own kernel over the processor's byte dot products; AVX-512 VNNI
    onednn, int_mm, float32: see `torch_products`, loaded where it is needed
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np

from archiver.errors import ExactnessError, UsageError
from archiver.predict.kernels import byte_products
from archiver.predict.kernels.lanes import has_byte_dot_product
from archiver.predict.kernels.memory import large_pages
from archiver.predict.kernels.tiles import PANEL_SHAPES, TILE_BYTES, has_tile_registers
from archiver.types import Float32Array, Int8Array

BACKEND_VARIABLE = "LLMZIP_MATMUL"
INNER_MAX = (1 << 31) // (127 * 127)  # 133,144: an int32 sum cannot overflow below this


class Product(ABC):
    """The product of int8 rows with one fixed int8 weight matrix."""

    name: ClassVar[str]
    tiled: ClassVar[bool] = False  # runs in the processor's tile registers

    @abstractmethod
    def __init__(self, weights: Int8Array) -> None:
        """Prepare weights, int8 [outputs, inputs] in -127 .. 127."""

    @classmethod  # noqa: B027 (most need nothing)
    def prepare_thread(cls) -> None:
        """Called once in every thread that multiplies, before it does."""

    @abstractmethod
    def __call__(self, codes: Int8Array, product: Float32Array) -> None:
        """product = float32(codes @ weights.T).

        The integer sum is exact (|sum| <= 127^2 * inputs < 2^31) and rounded once.

        Args:
            codes: int8 [rows, inputs]; a multiple of 64 as address saves a third of the time.
            product: float32 [rows, outputs].
        """


class VnniProduct(Product):
    """Attributes: packed: uint8, the weights as `byte_products` lays them out, in groups of `group`
    outputs; outputs_step: of which parts of a product are multiples.
    """

    name = "vnni"
    outputs_step: ClassVar[int] = byte_products.OUTPUTS_STEP
    group: ClassVar[int] = byte_products.OUTPUTS_STEP

    def __init__(self, weights: Int8Array) -> None:
        outputs, inputs = weights.shape
        if not has_byte_dot_product() or inputs % 4 or inputs > byte_products.INPUTS_MAX:
            raise NotImplementedError("no byte dot products, or not for this size")
        padded = -(-outputs // byte_products.OUTPUTS_STEP) * byte_products.OUTPUTS_STEP
        self.packed = large_pages(padded * inputs)
        byte_products.pack(np.ascontiguousarray(weights), self.packed, self.group)

    def __call__(self, codes: Int8Array, product: Float32Array) -> None:
        self.multiply(codes, product, 0, product.shape[1])

    def multiply(self, codes: Int8Array, product: Float32Array, begin: int, end: int) -> None:
        """product[:, begin:end] alone; begin is a multiple of `outputs_step`."""
        byte_products.multiply(self.packed, codes, product, begin, end, self.group)


class AmxProduct(VnniProduct):
    name = "amx"
    tiled = True
    outputs_step = byte_products.PANEL_OUTPUTS
    group = byte_products.TILE_OUTPUTS

    def __init__(self, weights: Int8Array) -> None:
        if not has_tile_registers() or weights.shape[1] % TILE_BYTES:
            raise NotImplementedError("no tile registers, or not for this size")
        super().__init__(weights)

    def multiply(self, codes: Int8Array, product: Float32Array, begin: int, end: int) -> None:
        byte_products.multiply_by_tiles(self.packed, codes, product, begin, end, PANEL_SHAPES)


_OWN: dict[str, type[Product]] = {"amx": AmxProduct, "vnni": VnniProduct}
BACKENDS = (*_OWN, "onednn", "int_mm", "float32")
"""Names by preference, the fastest first."""


def backend_named(name: str) -> type[Product]:
    """The backend of a name in `BACKENDS`."""
    if name in _OWN:
        return _OWN[name]
    # Loading torch takes longer than compressing a short text.
    from archiver.predict.kernels import torch_products

    return torch_products.BACKENDS[name]


def probes(
    inner_sizes: Iterable[int],
) -> Iterator[tuple[Int8Array, list[tuple[Int8Array, Float32Array]]]]:
    """Worst-case weights, and codes for them with float32(integer sum), their true product.

    Operands of the greatest magnitude with equal and with alternating signs, which overflow any
    accumulator narrower than the sum needs, and random ones; row counts as the engine uses them.
    """
    generator = np.random.default_rng(0)
    for inner in sorted(set(inner_sizes)):
        weights = generator.integers(-127, 128, (96, inner)).astype(np.int8)
        weights[0], weights[1], weights[2, ::2], weights[3] = 127, -127, 127, 127
        weights[3, : inner // 2] = -127
        cases = []
        for rows in (1, 8, 32, 64, 256):
            codes = generator.integers(-127, 128, (rows, inner)).astype(np.int8)
            codes[0] = 127
            codes[-1, ::2] = -127
            sums = codes.astype(np.float64) @ weights.astype(np.float64).T  # below 2^53
            cases.append((codes, sums.astype(np.float32)))
        yield weights, cases


def is_exact(backend: type[Product], inner_sizes: Iterable[int]) -> bool:
    """Whether the backend computes float32(integer sum) for worst-case operands."""
    try:
        for weights, cases in probes(inner_sizes):
            product = backend(weights)
            for codes, expected in cases:
                found = np.empty_like(expected)
                product(codes, found)
                if not np.array_equal(found, expected):
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
    for name in [forced] if forced else BACKENDS:
        backend = backend_named(name)
        if is_exact(backend, sizes):
            return backend
    raise ExactnessError(
        f"the matrix product {forced!r} is not exact on this machine"
        if forced
        else "no matrix product on this machine computes exact integer sums"
    )
