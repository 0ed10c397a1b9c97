"""The transformer: from a stream's inputs to the integer weights of its next token.

Source: FORMAT.md, "Predictor"; the symbols A, B, D, F, H, K, L, V and W are the text's.

Matrix products are integer products of int64: at most 127 * 127 times the vector's length, and
2^17 * 127 times the positions seen in attention, so nothing can overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.reference.numbers import (
    LOG2_E,
    Float32s,
    Integers,
    Quantized,
    exp2,
    f32,
    f64,
    hex_f32,
    normalize,
    quantize,
    rounded,
    to_f32,
)
from tests.reference.package import Package

WEIGHT_TOTAL = f32(65472)
SCORE_ONE = f32(131072)


class Matrix:
    """Codes of shape (rows, columns) with one scale a row."""

    def __init__(self, package: Package, name: str) -> None:
        self.codes = package.arrays[f"{name}.codes"].astype(np.int64)
        self.scales: Float32s = package.arrays[f"{name}.scales"]

    def times(self, q: Integers, s: np.float32 | Float32s) -> Float32s:
        """r[i] * (s * scales[i]), where r is the product of the matrix with the codes q."""
        return to_f32(self.codes @ q) * (f32(s) * self.scales)


class Layer:
    """The matrices of one layer, and which of its heads are local."""

    def __init__(self, package: Package, number: int) -> None:
        self.local: list[int] = package.arrays["local_heads"][number].tolist()
        self.qkv = Matrix(package, f"layers.{number}.qkv")
        self.o = Matrix(package, f"layers.{number}.o")
        self.gate_up = Matrix(package, f"layers.{number}.gate_up")
        self.down = Matrix(package, f"layers.{number}.down")


class Model:
    """A package's configuration and arrays, under the text's symbols."""

    def __init__(self, package: Package) -> None:
        config = package.config
        self.A: int = config["heads"]
        self.B: int = config["kv_heads"]
        self.D: int = config["head_dim"]
        self.F: int = config["ffn"]
        self.norm_epsilon: float = config["norm_epsilon"]
        self.start_token: int = config["start_token"]
        self.L = f32(f64(LOG2_E) / np.sqrt(f64(self.D)))
        self.embed_codes: NDArray[np.int8] = package.arrays["embed.codes"]
        self.embed_scales: Float32s = package.arrays["embed.scales"]
        self.layers = [Layer(package, number) for number in range(config["layers"])]
        self.head = Matrix(package, "head")
        self.coarse: NDArray[np.float64] = package.arrays["rotary.coarse"]
        self.fine: NDArray[np.float64] = package.arrays["rotary.fine"]

    def rotate(self, y: Float32s, p: int) -> Float32s:
        """rotate(y, p) of each row of y, which has D columns."""
        a, b = divmod(p, 256)
        C, S = self.coarse[a, :, 0], self.coarse[a, :, 1]  # noqa: N806 (the text's symbols)
        c, s = self.fine[b, :, 0], self.fine[b, :, 1]
        cosine = (C * c - S * s).astype(np.float32)
        sine = (S * c + C * s).astype(np.float32)
        h = self.D // 2
        first = y[:, :h] * cosine - y[:, h:] * sine
        second = y[:, h:] * cosine + y[:, :h] * sine
        return np.concatenate([first, second], axis=1)


class Memory:
    """What one layer keeps of a stream: keys and values of shape (positions, B, D), and scales."""

    def __init__(self, positions: int, heads: int, entries: int) -> None:
        self.keys = np.zeros((positions, heads, entries), np.int64)
        self.values = np.zeros((positions, heads, entries), np.int64)
        self.key_scales = np.zeros((positions, heads), np.float32)
        self.value_scales = np.zeros((positions, heads), np.float32)

    def keep(self, p: int, key: Quantized, value: Quantized) -> None:
        self.keys[p], self.key_scales[p] = key.codes, key.scale()
        self.values[p], self.value_scales[p] = value.codes, value.scale()


@dataclass(frozen=True, slots=True)
class Vector:
    """A steering vector: codes of H coordinates, and what a code is worth."""

    codes: Integers
    scale: np.float32

    def values(self) -> Float32s:
        """f32(code) * scale."""
        return to_f32(self.codes) * self.scale


class Stream:
    """One stream of up to `positions` tokens; `step` takes one input and gives the weights.

    The steering vectors, if any, have taken the first positions when it is made.
    """

    def __init__(
        self,
        model: Model,
        *,
        positions: int,
        window_tokens: int,
        local_window_tokens: int,
        sink_tokens: int,
        vectors: Sequence[Vector] = (),
    ):
        self.model = model
        self.W = window_tokens
        self.local_W = local_window_tokens
        self.K = sink_tokens + len(vectors)
        self.position = 0
        positions += len(vectors)
        self.memories = [Memory(positions, model.B, model.D) for _ in model.layers]
        for vector in vectors:
            self._advance(vector.values())

    def step(self, token: int) -> Integers:
        """The weights by rank, 1 to 2^30 + 1, of the token at this position."""
        model = self.model
        return self._advance(
            model.embed_codes[token].astype(np.float32) * model.embed_scales[token]
        )

    def _advance(self, x: Float32s) -> Integers:
        model = self.model
        for layer, memory in zip(model.layers, self.memories, strict=True):
            x = x + self._attention(x, layer, memory)
            x = x + self._feed_forward(x, layer)
        self.position += 1
        q, s = normalize(x, model.norm_epsilon)
        z = model.head.times(q, s)
        weights: Integers = np.trunc(exp2(z - np.max(z)) * f32(2.0**30)).astype(np.int64) + 1
        return weights

    def _attention(self, x: Float32s, layer: Layer, memory: Memory) -> Float32s:
        model, p = self.model, self.position
        q, s = normalize(x, model.norm_epsilon)
        y = layer.qkv.times(q, s).reshape(-1, model.D)
        queries, keys, values = np.split(y, [model.A, model.A + model.B])
        memory.keep(p, quantize(model.rotate(keys, p)), quantize(values))

        near_query = quantize(model.rotate(queries, p))

        outputs = []
        for g in range(model.A):
            b = g // (model.A // model.B)
            W = self.local_W if layer.local[b] else self.W  # noqa: N806 (the text's symbol)
            sink_query = quantize(model.rotate(queries, min(p, W + self.K - 1)))
            first = max(0, p - W + 1)  # of the window
            sinks = np.arange(min(self.K, first))
            window = np.arange(first, p + 1)
            seen = np.concatenate([sinks, window])
            sink_scores = self._scores(sink_query, g, memory, sinks, b)
            near_scores = self._scores(near_query, g, memory, window, b)
            t = np.concatenate([sink_scores, near_scores])
            outputs.append(_mean(t, memory.values[seen, b], memory.value_scales[seen, b]))
        o = quantize(np.concatenate(outputs))
        return layer.o.times(o.codes, o.scale())

    def _scores(self, query: Quantized, g: int, memory: Memory, c: Integers, b: int) -> Float32s:
        """t_c of query head g and key head b for some positions c."""
        query_scale = query.scale()[g] * self.model.L
        d = memory.keys[c, b] @ query.codes[g]
        t: Float32s = to_f32(d) * (query_scale * memory.key_scales[c, b])
        return t

    def _feed_forward(self, x: Float32s, layer: Layer) -> Float32s:
        q, s = normalize(x, self.model.norm_epsilon)
        a, b = np.split(layer.gate_up.times(q, s), 2)
        e = exp2(-np.abs(a * hex_f32("0x1.715476p+0")))
        v = (a * (np.where(a >= 0, f32(1), e) / (f32(1) + e))) * b
        v_quantized = quantize(_transform(v))
        return layer.down.times(v_quantized.codes, v_quantized.scale())


def _mean(t: Float32s, codes: Integers, scales: Float32s) -> Float32s:
    """o of one head: the values of all positions seen, weighted by their scores t."""
    T, M = np.max(t), np.max(scales)  # noqa: N806 (the text's symbols)
    e = exp2(t - T)
    E = int(np.sum(rounded(e * SCORE_ONE)))  # noqa: N806
    G = ((WEIGHT_TOTAL * SCORE_ONE) / f32(E)) / M  # noqa: N806
    w = rounded(e * (scales * G))
    return to_f32(w @ codes) * (M / WEIGHT_TOTAL)


def _transform(v: Float32s) -> Float32s:
    """The feed-forward activation, transformed in runs of R entries."""
    R = len(v) & -len(v)  # noqa: N806 (the text's symbol)
    step = 1
    while step < R:
        pairs = v.reshape(-1, 2, step)
        v = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        step *= 2
    return v
