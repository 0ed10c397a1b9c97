"""What other families than Llama compute between the matrix products.

A product comes with its scales: value = product * (row scale * output scale). What has been added
or normalized here has scales of 1, so that the kernels after it need not know.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.predict.kernels.elementary import (
    bits_to_float,
    exp2_nonpositive,
    float_to_bits,
)
from archiver.predict.kernels.layers import (
    CODE_MAX,
    SQUARE_ONE,
    greatest_magnitude,
    quantize,
    square_sum,
    transform,
    unscale,
)

SIGN_BIT = np.int32(-(2**31))

# 2 sqrt(2 / pi) log2(e), and 0.044715 of it: gelu by the tangent, as a logistic function.
TANH_LINEAR = np.float32(float.fromhex("0x1.26aec2p+1"))
TANH_CUBIC = np.float32(float.fromhex("0x1.a5a7dp-4"))

# The normal distribution's tail by formula 7.1.26 of Abramowitz and Stegun, "Handbook of
# Mathematical Functions" (error below 7.5e-8): halves of a1 to a5, p / sqrt(2), log2(e) / 2.
TAIL_P = np.float32(float.fromhex("0x1.da671p-3"))
TAIL_A1 = np.float32(float.fromhex("0x1.04f20cp-3"))
TAIL_A2 = np.float32(float.fromhex("-0x1.23531cp-3"))
TAIL_A3 = np.float32(float.fromhex("0x1.6be1c6p-1"))
TAIL_A4 = np.float32(float.fromhex("-0x1.7401c6p-1"))
TAIL_A5 = np.float32(float.fromhex("0x1.0fb844p-1"))
HALF_LOG2_E = np.float32(float.fromhex("0x1.715476p-1"))


@compiled()
def add_biases(product, scales, weight_scales, biases):
    """product = product * (scales * weight_scales) + biases.

    Args:
        product: float32 [rows, outputs]; scales: float32 [rows]; weight_scales, biases: float32
            [outputs].
    """
    for row in range(product.shape[0]):
        scale = scales[row]
        for j in range(product.shape[1]):
            product[row, j] = product[row, j] * (scale * weight_scales[j]) + biases[j]


@compiled()
def add_positions(x, table, places):
    """x += the vectors of the rows' places; x float32 [rows, hidden], places int32 [rows]."""
    for row in range(x.shape[0]):
        place = places[row]
        for j in range(x.shape[1]):
            x[row, j] += table[place, j]


@compiled()
def _normalize(y, gains, epsilon):
    """y = y / sqrt(mean(y^2) + epsilon) * gains."""
    magnitude = greatest_magnitude(y)
    total = square_sum(y, SQUARE_ONE / magnitude)
    unit = np.float64(magnitude) / np.float64(SQUARE_ONE)
    mean = ((np.float64(total) * unit) * unit) / np.float64(y.shape[0])
    factor = np.float32(1.0 / np.sqrt(mean + epsilon))
    for j in range(y.shape[0]):
        y[j] = (y[j] * factor) * gains[j]


@compiled()
def normalize_heads(product, scales, weight_scales, query_gains, key_gains, kv_heads, epsilon):
    """product = queries and keys normalized head by head, and values as they are.

    Args:
        product: float32 [rows, (heads + 2 kv_heads) * head_dim]; scales: float32 [rows].
        query_gains, key_gains: float32 [head_dim].
    """
    head_dim = query_gains.shape[0]
    keys = product.shape[1] // head_dim - kv_heads  # where the values begin, in heads
    for row in range(product.shape[0]):
        y = product[row]
        unscale(y, scales[row], weight_scales, y)
        for head in range(keys):
            gains = query_gains if head < keys - kv_heads else key_gains
            _normalize(y[head * head_dim : (head + 1) * head_dim], gains, epsilon)


@compiled()
def normalize_and_rotate(x, gains, epsilon, span, codes, scales):
    """codes * scales = the Walsh-Hadamard transform of the normalized x, row by row.

    Args:
        x: float32 [rows, hidden]; gains: float32 [hidden]; codes: int8 [rows, hidden]; scales:
            float32 [rows]; the rest as in `layers.gate_and_rotate`.
    """
    y = np.empty(x.shape[1], np.float32)
    for row in range(x.shape[0]):
        y[:] = x[row]
        _normalize(y, gains, epsilon)
        transform(y, span)
        magnitude = greatest_magnitude(y)
        quantize(y, magnitude, codes[row])
        scales[row] = magnitude / CODE_MAX


@compiled()
def add_normalized(x, product, scales, weight_scales, gains, epsilon):
    """x += the normalized product, row by row.

    Args:
        x, product: float32 [rows, hidden]; gains: float32 [hidden]; the rest as in
            `layers.gate_and_rotate`.
    """
    y = np.empty(x.shape[1], np.float32)
    for row in range(x.shape[0]):
        unscale(product[row], scales[row], weight_scales, y)
        _normalize(y, gains, epsilon)
        for j in range(y.shape[0]):
            x[row, j] += y[j]


@compiled()
def gelu_tanh(v):
    """v = v * logistic(2 sqrt(2 / pi) (v + 0.044715 v^3))."""
    for j in range(v.shape[0]):
        a = v[j]
        power = a * (TANH_LINEAR + TANH_CUBIC * (a * a))
        e = exp2_nonpositive(bits_to_float(float_to_bits(power) | SIGN_BIT))
        one_or_e = np.float32(1.0) if a >= np.float32(0.0) else e
        v[j] = a * (one_or_e / (np.float32(1.0) + e))


@compiled()
def gelu(v):
    """v = v * (the normal distribution's share below v)."""
    for j in range(v.shape[0]):
        a = v[j]
        t = np.float32(1.0) / (np.float32(1.0) + TAIL_P * abs(a))
        c = TAIL_A5 * t + TAIL_A4
        c = c * t + TAIL_A3
        c = c * t + TAIL_A2
        c = c * t + TAIL_A1
        tail = (c * t) * exp2_nonpositive(-((a * a) * HALF_LOG2_E))
        v[j] = a * (np.float32(1.0) - tail if a >= np.float32(0.0) else tail)


@compiled()
def _multiply(v, factors):
    for j in range(v.shape[0]):
        v[j] = v[j] * factors[j]


@compiled()
def gelu_and_rotate(product, scales, weight_scales, by_tangent, span, codes, code_scales):
    """codes * code_scales = the Walsh-Hadamard transform of the activation, row by row.

    Args:
        product: float32 [rows, ffn], or [rows, 2 * ffn] of which the second half multiplies the
            activation; by_tangent: which of the two gelus; the rest as in
            `layers.gate_and_rotate`.
    """
    ffn = codes.shape[1]
    y = np.empty(product.shape[1], np.float32)
    for row in range(product.shape[0]):
        unscale(product[row], scales[row], weight_scales, y)
        v = y[:ffn]
        if by_tangent:
            gelu_tanh(v)
        else:
            gelu(v)
        if y.shape[0] > ffn:
            _multiply(v, y[ffn:])
        transform(v, span)
        magnitude = greatest_magnitude(v)
        quantize(v, magnitude, codes[row])
        code_scales[row] = magnitude / CODE_MAX
