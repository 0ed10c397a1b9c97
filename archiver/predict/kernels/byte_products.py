"""The product of int8 matrices by the processor's byte dot products.

    weights  uint8, weight + 128     [output tile of 16][quad of inputs][output in tile][4]
    codes    int8                    [row][input]

The instruction multiplies unsigned by signed bytes and adds four products into an int32 that wraps
at 2^32 only: 128 times the row's sum of codes is taken off afterwards. Weights pass through the
caches once for all rows of a call.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from archiver.predict.kernels.elementary import KERNEL_OPTIONS
from archiver.predict.kernels.vectors import (
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_4,
    multiply_5,
    multiply_6,
)

OUTPUTS_STEP = 64  # outputs of one step: four tiles, so weights are padded to a multiple
INPUTS_MAX = ((1 << 31) - 1) // (255 * 127)  # 66,310: longer sums could pass 2^31


@njit(**KERNEL_OPTIONS)
def pack(weights, packed):
    """packed = weights + 128 in the layout above.

    Args:
        weights: int8 [outputs, inputs], inputs a multiple of 4.
        packed: uint8 [outputs rounded up to 64, inputs], flat; filled with 128 where padded.
    """
    outputs, inputs = weights.shape
    packed[:] = np.uint8(128)
    for output in range(outputs):
        base = (output >> 4) * 16 * inputs + (output & 15) * 4
        for i in range(inputs):
            packed[base + (i >> 2) * 64 + (i & 3)] = np.uint8(np.int32(weights[output, i]) + 128)


@njit(**KERNEL_OPTIONS)
def _correct(sums, bias, product):
    for i in range(product.shape[0]):
        product[i] = np.float32(sums[i] - bias)


@njit(**KERNEL_OPTIONS)
def multiply(packed, codes, product):
    """product[r, o] = float32(sum over i of codes[r, i] * weights[o, i]).

    Args:
        packed: uint8, see `pack`; codes: int8 [rows, inputs]; product: float32 [rows, outputs].
    """
    rows, inputs = codes.shape
    outputs = product.shape[1]
    quads = inputs >> 2
    flat = codes.reshape(-1)
    sums = np.empty((rows, OUTPUTS_STEP), np.int32)
    flat_sums = sums.reshape(-1)
    bias = np.empty(rows, np.int32)
    for row in range(rows):
        total = np.int32(0)
        for i in range(inputs):
            total += np.int32(codes[row, i])
        bias[row] = total * np.int32(128)
    for first in range(0, outputs, OUTPUTS_STEP):
        at = first * inputs
        row = 0
        while rows - row >= 6:
            multiply_6(
                packed, at, flat, row * inputs, quads, flat_sums, row * OUTPUTS_STEP, OUTPUTS_STEP
            )
            row += 6
        rest = rows - row
        code_at = row * inputs
        out_at = row * OUTPUTS_STEP
        if rest == 5:
            multiply_5(packed, at, flat, code_at, quads, flat_sums, out_at, OUTPUTS_STEP)
        elif rest == 4:
            multiply_4(packed, at, flat, code_at, quads, flat_sums, out_at, OUTPUTS_STEP)
        elif rest == 3:
            multiply_3(packed, at, flat, code_at, quads, flat_sums, out_at, OUTPUTS_STEP)
        elif rest == 2:
            multiply_2(packed, at, flat, code_at, quads, flat_sums, out_at, OUTPUTS_STEP)
        elif rest == 1:
            multiply_1(packed, at, flat, code_at, quads, flat_sums, out_at, OUTPUTS_STEP)
        last = min(first + OUTPUTS_STEP, outputs)
        for row in range(rows):
            _correct(sums[row], bias[row], product[row, first:last])
