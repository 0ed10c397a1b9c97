"""Source weights to a model package: folded, rotated, quantized to int8, with exact arithmetic.

Rotating the residual stream by an orthogonal matrix (incoherence processing, as in QuIP# and
QuaRot) spreads outliers over all channels, so that 8 bits suffice for every activation. The norm
gains go into the weights that follow them, the rotation into both sides of every matrix:

    embed' = embed Q        qkv' = (qkv * gain1) Q      o' = Q^T o (I x R)    v' = R^T v
    head'  = (head * gain) Q   gate_up' = (gate_up * gain2) Q     down' = Q^T down D

Q, R and D have entries of +1 and -1 up to one scale. Every product is computed on integers
carried in binary64 whose sums stay below 2^53, so the package is the same on every machine
whatever the order of summation; everybody's package of the same weights has one fingerprint.

Source: FORMAT.md, "Model packages".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import InvalidModelError
from archiver.predict.engine import LOG2_E
from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.predict.tables import (
    activation_rotation,
    activation_span,
    hadamard,
    rotary_tables,
    rotation,
)
from archiver.text.vocabulary import sort_tokens
from archiver.types import Float32Array, Float64Array, Int8Array

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel

WEIGHT_MAX = 2.0**14  # folded weights beyond this are refused, not clipped


def _scaled_integers(weights: Float64Array, terms: int) -> tuple[Float64Array, float]:
    """Weights as integers in binary64, small enough that sums of `terms` are exact, and the unit.

    |integer| <= 2^(52 - ceil(log2 terms)), so a sum of `terms` of them stays below 2^53.
    """
    greatest = float(np.abs(weights).max(initial=0.0))
    if not math.isfinite(greatest) or greatest > WEIGHT_MAX:
        raise InvalidModelError("a weight is not finite, or absurdly large")
    bits = 52 - max(terms - 1, 0).bit_length()
    exponent = bits - math.frexp(greatest)[1] if greatest > 0 else 0
    return np.rint(np.ldexp(weights, exponent)), math.ldexp(1.0, -exponent)


def rotate_right(weights: Float64Array, signs: Int8Array, terms: int) -> Float64Array:
    """weights @ signs / sqrt(terms), exact up to one rounding before and two after the sums.

    Args:
        weights: float64 [rows, n]; signs: int8 [n, n] with `terms` nonzero entries a column.
    """
    integers, unit = _scaled_integers(weights, terms)
    sums = integers @ signs.astype(np.float64)
    rotated: Float64Array = (sums * unit) / math.sqrt(terms)
    return rotated


def quantize_rows(weights: Float64Array) -> tuple[Int8Array, Float32Array]:
    """Codes in -127 .. 127 and one scale a row: weights = codes * scale, rounded to nearest."""
    magnitude = np.maximum(np.abs(weights).max(axis=1), 127 * SCALE_MIN)
    scale = (magnitude / 127.0).astype(np.float32)
    codes = np.rint(weights / scale.astype(np.float64)[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), scale


def convert(
    source: SourceModel, progress: Callable[[str, int, int], None] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The arrays and the configuration of the model package made from a source model.

    Returns:
        arrays: by name, as FORMAT.md, "Model packages", lists them; config: plain JSON values.

    Raises:
        InvalidModelError: weights that are not finite or absurdly large, sizes the engine lacks.
    """
    config = source.config
    hidden, heads, kv_heads, head_dim = (
        config.hidden, config.heads, config.kv_heads, config.head_dim,
    )  # fmt: skip
    if activation_span(config.ffn) < 16:
        raise InvalidModelError(f"a feed-forward size of {config.ffn} is not a multiple of 16")
    if head_dim % 16 or heads % kv_heads:
        raise InvalidModelError(
            f"heads of {head_dim} dimensions ({heads} query, {kv_heads} key/value heads): the "
            "engine needs a multiple of 16, and query heads a multiple of key/value heads"
        )
    stream_signs, stream_terms = rotation(hidden)
    head_signs = hadamard(head_dim)
    head_terms = head_dim
    if head_signs is None:
        head_signs, head_terms = np.eye(head_dim, dtype=np.int8), 1
    down_signs, down_terms = activation_rotation(config.ffn)

    data, offsets, rank_of_id = sort_tokens(source.token_bytes)
    id_of_rank = np.full(len(offsets) - 1, -1, np.int64)
    coded = rank_of_id >= 0
    id_of_rank[rank_of_id[coded]] = np.flatnonzero(coded)

    def tensor(name: str) -> Float64Array:
        return source.tensors[name].astype(np.float64)

    def turn(weights: Float64Array) -> Float64Array:
        return rotate_right(weights, stream_signs, stream_terms)

    def turn_back(weights: Float64Array) -> Float64Array:
        return np.ascontiguousarray(rotate_right(weights.T, stream_signs, stream_terms).T)

    arrays: dict[str, np.ndarray] = {
        "tokens.data": data,
        "tokens.offsets": offsets,
        "tokens.rank_of_id": rank_of_id,
    }

    def put(name: str, weights: Float64Array, factor: float = 1.0) -> None:
        codes, scales = quantize_rows(weights)
        scales = (scales.astype(np.float64) * factor).astype(np.float32)
        if not ((scales >= SCALE_MIN) & (scales <= SCALE_MAX)).all():
            raise InvalidModelError(f"{name}: a scale is out of range")
        arrays[f"{name}.codes"], arrays[f"{name}.scales"] = codes, scales

    embed = tensor("embed")
    rows = np.concatenate([embed[id_of_rank], embed[[source.start_token_id]]])
    put("embed", turn(rows))
    head = embed if config.tied else tensor("head")
    put("head", turn(head[id_of_rank] * tensor("norm")), LOG2_E)
    del embed, head, rows

    for layer in range(config.layers):
        if progress:
            progress("converting", layer, config.layers)
        name = f"layers.{layer}"
        gain = tensor(f"{name}.norm1")
        value = tensor(f"{name}.v").reshape(kv_heads, head_dim, hidden)
        value = np.stack([rotate_right(v.T, head_signs, head_terms).T for v in value])
        joined = np.concatenate(
            [tensor(f"{name}.q"), tensor(f"{name}.k"), value.reshape(kv_heads * head_dim, hidden)]
        )
        put(f"{name}.qkv", turn(joined * gain))
        output = tensor(f"{name}.o").reshape(hidden * heads, head_dim)
        output = rotate_right(output, head_signs, head_terms).reshape(hidden, heads * head_dim)
        put(f"{name}.o", turn_back(output))
        gain = tensor(f"{name}.norm2")
        joined = np.concatenate([tensor(f"{name}.gate"), tensor(f"{name}.up")])
        put(f"{name}.gate_up", turn(joined * gain))
        # The running rotation is not divided by sqrt(terms), so the weights are, twice.
        down = rotate_right(tensor(f"{name}.down"), down_signs, down_terms)
        put(f"{name}.down", turn_back(down / math.sqrt(down_terms)))
    if progress:
        progress("converting", config.layers, config.layers)

    local_heads = config.local_heads or ((0,) * kv_heads,) * config.layers
    arrays["local_heads"] = np.array(local_heads, np.uint8)
    fine, coarse = rotary_tables(config.rope_theta, head_dim)
    arrays["rotary.fine"], arrays["rotary.coarse"] = fine, coarse
    return arrays, {
        "architecture": "llama",
        "hidden": hidden,
        "layers": config.layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn": config.ffn,
        "norm_epsilon": config.norm_eps,
        "tokens": len(offsets) - 1,
        "start_token": len(offsets) - 1,
    }
