"""Exact products of int8 matrices by torch, for processors that `products` has no kernel for.

onednn   quantized linear with prepacked weights: int8 x int8, one rounding to float32
int_mm   torch._int_mm, int32 results converted to float32
float32  BLAS on integer values; sums of at most 1,040 products of |127 * 127| stay below
         2^24, longer ones are split and joined in float64
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from archiver.predict.kernels.products import Product
from archiver.types import Float32Array, Int8Array

FLOAT32_INNER_MAX = (1 << 24) // (127 * 127)  # 1,040 products


class TorchProduct(Product):
    """One that torch computes, on the thread that asks for it."""

    @classmethod
    def prepare_thread(cls) -> None:
        # Torch keeps a thread's number of threads apart: each new one must be told.
        torch.set_num_threads(1)


class OneDnnProduct(TorchProduct):
    name = "onednn"

    def __init__(self, weights: Int8Array) -> None:
        outputs = weights.shape[0]
        self._packed = torch.ops.onednn.qlinear_prepack(_tensor(weights), None)
        self._scales = torch.ones(outputs)
        self._zeros = torch.zeros(outputs, dtype=torch.int64)

    def __call__(self, codes: Int8Array, product: Float32Array) -> None:
        product[:] = torch.ops.onednn.qlinear_pointwise(
            torch.from_numpy(codes), 1.0, 0, self._packed, self._scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        ).numpy()  # fmt: skip


class IntMmProduct(TorchProduct):
    name = "int_mm"
    ROWS_MIN = 32  # the operator refuses fewer than 17 rows

    def __init__(self, weights: Int8Array) -> None:
        self._weights = _tensor(weights).t()

    def __call__(self, codes: Int8Array, product: Float32Array) -> None:
        rows = torch.from_numpy(codes)
        if len(codes) < self.ROWS_MIN:
            padded = torch.zeros(self.ROWS_MIN, codes.shape[1], dtype=torch.int8)
            padded[: len(codes)] = rows
            rows = padded
        product[:] = torch._int_mm(rows, self._weights)[: len(codes)].float().numpy()


class Float32Product(TorchProduct):
    name = "float32"

    def __init__(self, weights: Int8Array) -> None:
        inner = weights.shape[1]
        count = -(-inner // FLOAT32_INNER_MAX)
        edges = [inner * i // count for i in range(count + 1)]
        self._parts = [
            (slice(a, b), _tensor(weights[:, a:b]).float().t())
            for a, b in itertools.pairwise(edges)
        ]

    def __call__(self, codes: Int8Array, product: Float32Array) -> None:
        rows = torch.from_numpy(codes).float()
        total = None
        for columns, weights in self._parts:
            part = rows[:, columns] @ weights
            if len(self._parts) > 1:
                part = part.double()
            total = part if total is None else total + part
        assert total is not None
        product[:] = total.float().numpy()


def _tensor(weights: Int8Array) -> torch.Tensor:
    """A tensor that owns its memory (weights may be a read-only map of a file)."""
    return torch.from_numpy(np.array(weights, dtype=np.int8, order="C"))


BACKENDS: dict[str, type[Product]] = {
    backend.name: backend for backend in (OneDnnProduct, IntMmProduct, Float32Product)
}
