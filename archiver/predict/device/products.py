"""Exact products of int8 matrices on a device, chosen by what they compute.

int_mm   torch._int_mm: int8 x int8 in int32
float64  sums below 2^53, whatever the order, and whatever the settings say of TF32
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from archiver.errors import ExactnessError
from archiver.predict.kernels.products import probes

ROWS_STEP = 32  # cuBLAS refuses fewer than 17 rows, and sizes that are no multiples of 8
SIZE_STEP = 16


class DeviceProduct(ABC):
    """The product of int8 rows with one fixed int8 weight matrix, where the matrix lies."""

    @abstractmethod
    def __init__(self, weights: Tensor) -> None:
        """Prepare weights, int8 [outputs, inputs] in -127 .. 127."""

    @abstractmethod
    def __call__(self, codes: Tensor) -> Tensor:
        """float32(codes @ weights.T), the integer sum rounded once: int8 [rows, inputs] to
        float32 [rows, outputs]."""


class IntMmProduct(DeviceProduct):
    def __init__(self, weights: Tensor) -> None:
        self._outputs, inputs = weights.shape
        self._more_inputs = -inputs % SIZE_STEP
        more_outputs = -self._outputs % SIZE_STEP
        self._weights = pad(weights, (0, self._more_inputs, 0, more_outputs)).contiguous()

    def __call__(self, codes: Tensor) -> Tensor:
        rows = len(codes)
        padded = pad(codes, (0, self._more_inputs, 0, -rows % ROWS_STEP)).contiguous()
        return torch._int_mm(padded, self._weights.t())[:rows, : self._outputs].float()


class Float64Product(DeviceProduct):
    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def __call__(self, codes: Tensor) -> Tensor:
        return (codes.double() @ self._weights.double().t()).float()


def is_exact(product: type[DeviceProduct], inner_sizes: Iterable[int], device: str) -> bool:
    """Whether it computes float32(integer sum) for worst-case operands on the device."""
    try:
        for weights, cases in probes(inner_sizes):
            multiply = product(torch.from_numpy(weights).to(device))
            for codes, expected in cases:
                found = multiply(torch.from_numpy(codes).to(device))
                if not torch.equal(found.cpu(), torch.from_numpy(expected)):
                    return False
    except (RuntimeError, NotImplementedError):
        return False  # this device does not have the operator
    return True


def choose_product(inner_sizes: Iterable[int], device: str) -> type[DeviceProduct]:
    """The fastest product that proves exact on the device.

    Raises:
        ExactnessError: there is none.
    """
    sizes = list(inner_sizes)
    candidates: tuple[type[DeviceProduct], ...] = (IntMmProduct, Float64Product)
    for candidate in candidates:
        if is_exact(candidate, sizes, device):
            return candidate
    raise ExactnessError(f"no matrix product of the device {device} computes exact integer sums")
