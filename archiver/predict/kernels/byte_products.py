"""The product of int8 matrices by the processor's byte dot products.

    weights  uint8, weight + 128     [group of outputs][quad of inputs][output in group][4]
    codes    int8                    [row][input]

A group is 16 outputs where tile registers multiply, 64 elsewhere: so many pass through memory at a
time, and what is read strictly in order comes two to three times as fast.

The instruction multiplies unsigned by signed bytes and adds four products into an int32 that wraps
at 2^32 only: 128 times the row's sum of codes is taken off afterwards. Weights pass through the
caches once for all rows of a call.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from archiver.compiled import compiled
from archiver.predict.kernels.tiles import (
    float_sums,
    multiply_16,
    multiply_16_fetching,
    multiply_32,
    multiply_32_fetching,
    release_tiles,
    use_tiles,
)
from archiver.predict.kernels.vectors import (
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_4,
    multiply_5,
    multiply_6,
    multiply_6_fetching,
    sum_codes,
)

TILE_OUTPUTS = 16  # that fill the lanes of a register
OUTPUTS_STEP = 64  # outputs of one step: four tiles, so weights are padded to a multiple
ROWS_STEP = 6  # rows of one step
FETCHING_ROWS = 2 * ROWS_STEP  # which are work enough to bring the next weights meanwhile
PANEL_OUTPUTS = 32  # outputs of one step in tile registers
INPUTS_MAX = ((1 << 31) - 1) // (255 * 127)  # 66,310: longer sums could pass 2^31


@compiled()
def pack(weights, packed, group):
    """packed = weights + 128 in the layout above.

    Args:
        weights: int8 [outputs, inputs], inputs a multiple of 4.
        packed: uint8 [outputs rounded up to 64, inputs], flat; filled with 128 where padded.
        group: TILE_OUTPUTS or OUTPUTS_STEP.
    """
    outputs, inputs = weights.shape
    packed[:] = np.uint8(128)
    for output in range(outputs):
        base = output // group * group * inputs + output % group * 4
        for i in range(inputs):
            place = base + (i >> 2) * 4 * group + (i & 3)
            packed[place] = np.uint8(np.int32(weights[output, i]) + 128)


@compiled()
def _correct(sums, bias, product):
    for i in range(product.shape[0]):
        product[i] = np.float32(sums[i] - bias)


@compiled()
def _biases(codes, rows, inputs):
    """128 times the sum of each row of codes, int32 [rows]."""
    bias = np.zeros(rows, np.int32)
    whole = inputs >> 4 << 4
    for row in range(rows):
        total = sum_codes(codes, row * inputs, whole >> 2)
        for i in range(row * inputs + whole, (row + 1) * inputs):
            total += np.int32(codes[i])
        bias[row] = total * np.int32(128)
    return bias


@compiled()
def multiply(packed, codes, product, begin, end, group):
    """product[r, o] = float32(sum over i of codes[r, i] * weights[o, i]) for begin <= o < end.

    Args:
        packed: uint8, see `pack`; codes: int8 [rows, inputs]; product: float32 [rows, outputs].
        begin: a multiple of 64; group: of the layout.
    """
    rows, inputs = codes.shape
    quads = inputs >> 2
    tile_lines, quad_lines = (quads, 1) if group == TILE_OUTPUTS else (1, group // TILE_OUTPUTS)
    flat = codes.reshape(-1)
    sums = np.empty((rows, OUTPUTS_STEP), np.int32)
    flat_sums = sums.reshape(-1)
    bias = _biases(flat, rows, inputs)
    for first in range(begin, end, OUTPUTS_STEP):
        at = first * inputs
        row = 0
        while rows - row >= ROWS_STEP:
            code_at = row * inputs
            out_at = row * OUTPUTS_STEP
            if row < FETCHING_ROWS <= rows:
                # Half of the next weights' tiles each time.
                ahead = at + OUTPUTS_STEP * inputs + row // ROWS_STEP * 2 * tile_lines * 64
                multiply_6_fetching(
                    packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                    OUTPUTS_STEP, ahead,
                )  # fmt: skip
            else:
                multiply_6(
                    packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                    OUTPUTS_STEP,
                )  # fmt: skip
            row += ROWS_STEP
        rest = rows - row
        code_at = row * inputs
        out_at = row * OUTPUTS_STEP
        if rest == 5:
            multiply_5(
                packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                OUTPUTS_STEP,
            )  # fmt: skip
        elif rest == 4:
            multiply_4(
                packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                OUTPUTS_STEP,
            )  # fmt: skip
        elif rest == 3:
            multiply_3(
                packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                OUTPUTS_STEP,
            )  # fmt: skip
        elif rest == 2:
            multiply_2(
                packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                OUTPUTS_STEP,
            )  # fmt: skip
        elif rest == 1:
            multiply_1(
                packed, at, tile_lines, quad_lines, flat, code_at, quads, flat_sums, out_at,
                OUTPUTS_STEP,
            )  # fmt: skip
        last = min(first + OUTPUTS_STEP, end)
        for row in range(rows):
            _correct(sums[row], bias[row], product[row, first:last])


@compiled()
def multiply_by_tiles(packed, codes, product, begin, end, shapes):
    """`multiply` by the processor's tile registers, for inputs a multiple of 64.

    Args:
        packed: in groups of TILE_OUTPUTS.
        begin: a multiple of 32.
        shapes: `tiles.PANEL_SHAPES`.
    """
    rows, inputs = codes.shape
    outputs = product.shape[1]
    flat = codes.reshape(-1)
    flat_product = product.reshape(-1)
    if rows == 0:
        return
    # Panels of equal size, the last of which begins early enough to be whole.
    panels = (rows + 31) >> 5
    panel = (rows + panels - 1) // panels
    sums = np.empty(32 * 32, np.int32)
    bias = _biases(flat, rows, inputs)
    use_tiles(shapes[panel])
    for first in range(begin, end, PANEL_OUTPUTS):
        at = first * inputs
        for number in range(panels):
            row = min(number * panel, rows - panel)
            code_at = row * inputs
            if number == 0:  # the first to see these weights
                if panel > 16:
                    multiply_32_fetching(packed, at, flat, code_at, inputs, sums)
                else:
                    multiply_16_fetching(packed, at, flat, code_at, inputs, sums)
            elif panel > 16:
                multiply_32(packed, at, flat, code_at, inputs, sums)
            else:
                multiply_16(packed, at, flat, code_at, inputs, sums)
            if end - first >= PANEL_OUTPUTS:
                for r in range(panel):
                    place = (row + r) * outputs + first
                    float_sums(sums, r * 32, bias[row + r], flat_product, place, 2)
            else:
                for r in range(panel):
                    for j in range(end - first):
                        value = sums[r * 32 + j] - bias[row + r]
                        product[row + r, first + j] = np.float32(value)
    release_tiles()


def multiply_some(packed, codes, product, begin, end, group, shapes):
    """`multiply_by_tiles`, or `multiply` where `shapes` is None; for kernels to call."""
    raise NotImplementedError


@overload(multiply_some)
def _by_what_is_there(packed, codes, product, begin, end, group, shapes):
    # Only the one that is called may be compiled: a processor without tile registers has no
    # instructions for them.
    if isinstance(shapes, types.NoneType):
        return lambda packed, codes, product, begin, end, group, shapes: multiply(
            packed, codes, product, begin, end, group
        )
    return lambda packed, codes, product, begin, end, group, shapes: multiply_by_tiles(
        packed, codes, product, begin, end, shapes
    )
