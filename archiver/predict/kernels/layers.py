"""What lies between the matrix products of a transformer layer: norms, rotations, activations.

Every kernel works row by row, so that a row's result depends on nothing else in the batch, and
returns int8 codes with one binary32 scale a row (or a row and head): value = code * scale.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.predict.kernels.attention import store_key_value
from archiver.predict.kernels.elementary import (
    bits_to_float,
    magnitude_key,
    round_to_int,
)
from archiver.predict.kernels.row_lanes import (
    gate,
    greatest_key,
    round_to_codes,
    turn,
    two_butterflies,
)
from archiver.predict.kernels.vectors import transform_tiles

CODE_MAX = np.float32(127.0)
LEAST_MAGNITUDE = np.float32(2.0**-40)  # scales stay far from denormals
SQUARE_ONE = np.float32(32767.0)  # full scale of the fixed-point copy whose squares are summed


@compiled()
def greatest_magnitude(x):
    """max(2^-40, max |x|) of a binary32 vector."""
    tiles = x.shape[0] >> 4
    best = greatest_key(x, tiles)
    for j in range(tiles << 4, x.shape[0]):
        best = max(best, magnitude_key(x[j]))
    return max(bits_to_float(best), LEAST_MAGNITUDE)


@compiled()
def quantize(x, magnitude, codes):
    """codes = round(x * (127 / magnitude)), |codes| <= 127, for |x| <= magnitude."""
    to_code = CODE_MAX / magnitude
    tiles = x.shape[0] >> 4
    round_to_codes(x, to_code, codes, tiles)
    for j in range(tiles << 4, x.shape[0]):
        codes[j] = np.int8(round_to_int(x[j] * to_code))


@compiled()
def square_sum(x, to_fixed):
    """Sum of squares of round(x * to_fixed) in int64; each term is below 2^30."""
    total = np.int64(0)
    for j in range(x.shape[0]):
        fixed = round_to_int(x[j] * to_fixed)
        total += np.int64(fixed) * np.int64(fixed)
    return total


@compiled()
def embed(tokens, embed_codes, embed_scales, x):
    """x[row] = the embedding of tokens[row]; tokens int32 [rows], x float32 [rows, hidden]."""
    for row in range(tokens.shape[0]):
        token = tokens[row]
        scale = embed_scales[token]
        for j in range(x.shape[1]):
            x[row, j] = np.float32(embed_codes[token, j]) * scale


@compiled()
def normalize(x, epsilon, codes, scales):
    """codes * scales = x / sqrt(mean(x^2) + epsilon), row by row; gains live in the weights.

    Args:
        x: float32 [rows, hidden]; epsilon: float64.
        codes: int8 [rows, hidden]; scales: float32 [rows].
    """
    hidden = x.shape[1]
    for row in range(x.shape[0]):
        magnitude = greatest_magnitude(x[row])
        quantize(x[row], magnitude, codes[row])
        total = square_sum(x[row], SQUARE_ONE / magnitude)
        unit = np.float64(magnitude) / np.float64(SQUARE_ONE)
        mean = ((np.float64(total) * unit) * unit) / np.float64(hidden)
        root = np.sqrt(mean + epsilon)
        scales[row] = np.float32((np.float64(magnitude) / 127.0) / root)


@compiled()
def add_product(x, product, scales, weight_scales):
    """x += product * scales * weight_scales; x, product float32 [rows, hidden]."""
    for row in range(x.shape[0]):
        scale = scales[row]
        for j in range(x.shape[1]):
            x[row, j] += product[row, j] * (scale * weight_scales[j])


@compiled()
def unscale(product, scale, weight_scales, y):
    for j in range(y.shape[0]):
        y[j] = product[j] * (scale * weight_scales[j])


@compiled()
def _rotate(y, at, cosines, sines, out):
    """out = y[at:], its half-split pairs (d, d + head_dim/2) turned by the position's angles."""
    half = cosines.shape[0]
    if half & 15 == 0:
        turn(y, at, cosines, sines, out, half >> 4)
        return
    for d in range(half):
        out[d] = y[at + d] * cosines[d] - y[at + half + d] * sines[d]
        out[half + d] = y[at + half + d] * cosines[d] + y[at + d] * sines[d]


@compiled()
def project_heads(
    product,
    scales,
    weight_scales,
    cosines,
    sines,
    row_stream,
    row_position,
    windows,
    slots,
    sinks,
    query,
    query_scale,
    sink_query,
    sink_query_scale,
    keys,
    values,
    key_scales,
    value_scales,
    sink_keys,
    sink_values,
    sink_key_scales,
    sink_value_scales,
    logit_unit,
):
    """Queries are rotated and coded, keys and values lie in the cache (and in the sinks').

    Args:
        product: float32 [rows, (heads + 2 kv_heads) * head_dim], the product with the joined
            query, key and value weights; scales: float32 [rows].
        cosines, sines: float32 [positions, head_dim / 2].
        logit_unit: float32, log2(e) / sqrt(head_dim), folded into the queries' scales.
        The rest as in `attend`.
    """
    rows, heads, head_dim = query.shape
    kv_heads = windows.shape[0]
    group = heads // kv_heads
    y = np.empty(product.shape[1], np.float32)
    turned = np.empty(head_dim, np.float32)
    key_code = np.empty(head_dim, np.int8)
    value_code = np.empty(head_dim, np.int8)
    for row in range(rows):
        s = row_stream[row]
        p = row_position[row]
        unscale(product[row], scales[row], weight_scales, y)
        for head in range(heads):
            _rotate(y, head * head_dim, cosines[p], sines[p], turned)
            magnitude = greatest_magnitude(turned)
            quantize(turned, magnitude, query[row, head])
            query_scale[row, head] = (magnitude / CODE_MAX) * logit_unit
            sink_limit = windows[head // group] + sinks - 1
            if p > sink_limit:
                _rotate(y, head * head_dim, cosines[sink_limit], sines[sink_limit], turned)
                magnitude = greatest_magnitude(turned)
                quantize(turned, magnitude, sink_query[row, head])
                sink_query_scale[row, head] = (magnitude / CODE_MAX) * logit_unit
            else:
                sink_query[row, head] = query[row, head]
                sink_query_scale[row, head] = query_scale[row, head]
        for kv in range(kv_heads):
            start = (heads + kv) * head_dim
            _rotate(y, start, cosines[p], sines[p], turned)
            key_magnitude = greatest_magnitude(turned)
            quantize(turned, key_magnitude, key_code)
            start = (heads + kv_heads + kv) * head_dim
            part = y[start : start + head_dim]
            value_magnitude = greatest_magnitude(part)
            quantize(part, value_magnitude, value_code)
            key_scale = key_magnitude / CODE_MAX
            value_scale = value_magnitude / CODE_MAX
            store_key_value(
                key_code,
                value_code,
                key_scale,
                value_scale,
                keys[s],
                values[s],
                key_scales[s],
                value_scales[s],
                slots[kv] + p % (slots[kv + 1] - slots[kv]),
            )
            if p < sinks:
                store_key_value(
                    key_code,
                    value_code,
                    key_scale,
                    value_scale,
                    sink_keys[s, kv],
                    sink_values[s, kv],
                    sink_key_scales[s, kv],
                    sink_value_scales[s, kv],
                    p,
                )


@compiled()
def quantize_rows(x, codes, scales):
    """codes * scales = x row by row; x float32 [rows, n], codes int8 [rows, n]."""
    for row in range(x.shape[0]):
        magnitude = greatest_magnitude(x[row])
        quantize(x[row], magnitude, codes[row])
        scales[row] = magnitude / CODE_MAX


@compiled()
def transform(x, span):
    """Every aligned run of `span` (a power of two, 16 or more) becomes its Walsh-Hadamard
    transform: butterflies of step 1, 2, ... span / 2."""
    transform_tiles(x, x.shape[0] >> 4)
    step = 16
    while 4 * step <= span:
        two_butterflies(x, step >> 4, x.shape[0] >> 6)
        step *= 4
    while step < span:
        for start in range(0, x.shape[0], 2 * step):
            a = x[start : start + step]
            b = x[start + step : start + 2 * step]
            for j in range(step):
                u = a[j]
                w = b[j]
                a[j] = u + w
                b[j] = u - w
        step *= 2


@compiled()
def gate_and_rotate(product, scales, weight_scales, span, codes, code_scales):
    """codes * code_scales = the Walsh-Hadamard transform of silu(gate) * up, row by row.

    The rotation spreads the activation's outliers over all channels, so that 8 bits suffice;
    its inverse is folded into the down projection's weights.

    Args:
        product: float32 [rows, 2 * ffn], gate then up; scales: float32 [rows].
        span: a power of two that divides ffn; each run of so many channels is rotated.
        codes: int8 [rows, ffn]; code_scales: float32 [rows].
    """
    gated = np.empty(codes.shape[1], np.float32)
    for row in range(product.shape[0]):
        gate(product[row], scales[row], weight_scales, gated, gated.shape[0] >> 4)
        transform(gated, span)
        magnitude = greatest_magnitude(gated)
        quantize(gated, magnitude, codes[row])
        code_scales[row] = magnitude / CODE_MAX
