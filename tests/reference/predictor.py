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
    rms_norm,
    rounded,
    to_f32,
)
from tests.reference.package import Package

WEIGHT_TOTAL = f32(65472)
SCORE_ONE = f32(131072)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A row of the text's table of architectures."""

    biases: frozenset[str] = frozenset()
    head_norms: bool = False
    output_norms: bool = False
    parallel: bool = False
    activation: str = "silu"
    gate: bool = True
    positions: bool = False
    sliding: bool = False


ALL = frozenset({"qkv", "o", "up", "down", "head"})
FAMILIES = {
    "llama": Family(),
    "qwen2": Family(biases=frozenset({"qkv"})),
    "qwen3": Family(head_norms=True),
    "gpt_neox": Family(biases=ALL, parallel=True, activation="gelu", gate=False),
    "gpt2": Family(biases=ALL, activation="gelu_tanh", gate=False, positions=True),
    "gemma3": Family(head_norms=True, output_norms=True, activation="gelu_tanh", sliding=True),
}


class Matrix:
    """Codes of shape (rows, columns) with one scale a row, and a bias in some families."""

    def __init__(self, package: Package, name: str, *, biased: bool = False) -> None:
        self.codes = package.arrays[f"{name}.codes"].astype(np.int64)
        self.scales: Float32s = package.arrays[f"{name}.scales"]
        self.biases: Float32s | None = package.arrays[f"{name}.biases"] if biased else None

    def times(self, q: Integers, s: np.float32 | Float32s) -> Float32s:
        """apply(M, q, s)."""
        y: Float32s = to_f32(self.codes @ q) * (f32(s) * self.scales)
        return y if self.biases is None else y + self.biases


class Layer:
    """The matrices of one layer, and which of its heads are local."""

    def __init__(self, package: Package, number: int, family: Family) -> None:
        name, arrays = f"layers.{number}", package.arrays
        self.local: list[int] = arrays["local_heads"][number].tolist()
        self.qkv = Matrix(package, f"{name}.qkv", biased="qkv" in family.biases)
        self.o = Matrix(package, f"{name}.o", biased="o" in family.biases)
        up = f"{name}.gate_up" if family.gate else f"{name}.up"
        self.up = Matrix(package, up, biased="up" in family.biases)
        self.down = Matrix(package, f"{name}.down", biased="down" in family.biases)
        self.slides = family.sliding and bool(arrays["sliding_layers"][number])
        if family.head_norms:
            self.query_gains: Float32s = arrays[f"{name}.query_gains"]
            self.key_gains: Float32s = arrays[f"{name}.key_gains"]
        self.qkv_gains: Float32s | None = None
        self.up_gains: Float32s | None = None
        if family.output_norms:
            self.qkv_gains, self.up_gains = arrays[f"{name}.qkv.gains"], arrays[f"{up}.gains"]
            self.o_gains: Float32s = arrays[f"{name}.o.gains"]
            self.down_gains: Float32s = arrays[f"{name}.down.gains"]


class Model:
    """A package's configuration and arrays, under the text's symbols."""

    def __init__(self, package: Package) -> None:
        config = package.config
        self.family = FAMILIES[config["architecture"]]
        self.N: int | None = config.get("positions")
        self.sliding_tokens: int | None = config.get("sliding_tokens")
        if self.family.positions:
            self.positions: Float32s = package.arrays["positions"]
        self.A: int = config["heads"]
        self.B: int = config["kv_heads"]
        self.D: int = config["head_dim"]
        self.F: int = config["ffn"]
        self.norm_epsilon: float = config["norm_epsilon"]
        self.start_token: int = config["start_token"]
        self.L = f32(f64(LOG2_E) / np.sqrt(f64(self.D)))
        self.embed_codes: NDArray[np.int8] = package.arrays["embed.codes"]
        self.embed_scales: Float32s = package.arrays["embed.scales"]
        self.layers = [Layer(package, number, self.family) for number in range(config["layers"])]
        self.head = Matrix(package, "head", biased="head" in self.family.biases)
        self.head_gains: Float32s | None = None
        if self.family.output_norms:
            self.head_gains = package.arrays["head.gains"]
        self.tables: dict[bool, tuple[NDArray[np.float64], NDArray[np.float64]]] = {
            slides: (package.arrays[f"rotary.{kind}coarse"], package.arrays[f"rotary.{kind}fine"])
            for slides, kind in ((False, ""), (True, "sliding_"))[: 1 + self.family.sliding]
        }

    def rotate(self, y: Float32s, p: int, slides: bool) -> Float32s:
        """rotate(y, p) of each row of y, which has D columns."""
        coarse, fine = self.tables[slides]
        a, b = divmod(p, 256)
        C, S = coarse[a, :, 0], coarse[a, :, 1]  # noqa: N806 (the text's symbols)
        c, s = fine[b, :, 0], fine[b, :, 1]
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
        self.k = len(vectors)
        self.position = 0
        self.recent: list[int] = []  # the inputs since the last restart, those read again included
        self.R = None if model.N is None else min(window_tokens, model.N - self.k)
        if self.R is not None:
            positions = min(positions, self.R)
        positions += len(vectors)
        self.codes: Integers = np.zeros(0, np.int64)
        self.memories = [Memory(positions, model.B, model.D) for _ in model.layers]
        for vector in vectors:
            self._advance(vector.values())

    def step(self, token: int) -> Integers:
        """The weights by rank, 1 to 2^30 + 1, of the token at this position."""
        if self.R is not None and self.position == self.k + self.R:
            # The keys and values from position k on are written anew before they are seen.
            self.position = self.k
            again = self.recent[self.R - self.R // 2 :]
            self.recent = []
            for earlier in again:
                self._read(earlier)
        return self._read(token)

    def _read(self, token: int) -> Integers:
        model = self.model
        self.recent.append(token)
        return self._advance(
            model.embed_codes[token].astype(np.float32) * model.embed_scales[token]
        )

    def _advance(self, x: Float32s) -> Integers:
        model = self.model
        family = model.family
        if family.positions:
            x = x + model.positions[self.position]
        for layer, memory in zip(model.layers, self.memories, strict=True):
            before = x
            y = self._attention(x, layer, memory)
            x = x + (self._output_norm(y, layer.o_gains) if family.output_norms else y)
            y = self._feed_forward(before if family.parallel else x, layer)
            x = x + (self._output_norm(y, layer.down_gains) if family.output_norms else y)
        self.position += 1
        q, s = self._normalize(x, model.head_gains)
        self.codes = q  # what the head is applied to
        z = model.head.times(q, s)
        weights: Integers = np.trunc(exp2(z - np.max(z)) * f32(2.0**30)).astype(np.int64) + 1
        return weights

    def _normalize(self, x: Float32s, gains: Float32s | None) -> tuple[Integers, np.float32]:
        """Codes and their scale."""
        if gains is None:
            return normalize(x, self.model.norm_epsilon)
        y = quantize(_transform(rms_norm(x, gains, self.model.norm_epsilon)))
        return y.codes, y.scale()

    def _output_norm(self, y: Float32s, gains: Float32s) -> Float32s:
        return rms_norm(y, gains, self.model.norm_epsilon)

    def _attention(self, x: Float32s, layer: Layer, memory: Memory) -> Float32s:
        model, p = self.model, self.position
        q, s = self._normalize(x, layer.qkv_gains)
        y = layer.qkv.times(q, s).reshape(-1, model.D)
        queries, keys, values = np.split(y, [model.A, model.A + model.B])
        if model.family.head_norms:
            epsilon = model.norm_epsilon
            queries = np.stack([rms_norm(v, layer.query_gains, epsilon) for v in queries])
            keys = np.stack([rms_norm(v, layer.key_gains, epsilon) for v in keys])
        memory.keep(p, quantize(model.rotate(keys, p, layer.slides)), quantize(values))

        near_query = quantize(model.rotate(queries, p, layer.slides))

        outputs = []
        for g in range(model.A):
            b = g // (model.A // model.B)
            W = self.local_W if layer.local[b] else self.W  # noqa: N806 (the text's symbol)
            K = self.K  # noqa: N806
            if layer.slides and model.sliding_tokens is not None:
                W, K = min(W, model.sliding_tokens), 0  # noqa: N806
            sink_query = quantize(model.rotate(queries, min(p, W + K - 1), layer.slides))
            first = max(0, p - W + 1)  # of the window
            sinks = np.arange(min(K, first))
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
        family = self.model.family
        q, s = self._normalize(x, layer.up_gains)
        y = layer.up.times(q, s)
        v = ACTIVATIONS[family.activation](y[: self.model.F])
        if family.gate:
            v = v * y[self.model.F :]
        v_quantized = quantize(_transform(v))
        return layer.down.times(v_quantized.codes, v_quantized.scale())


def _logistic(a: Float32s, power: Float32s) -> Float32s:
    """a times the logistic function of power / log2(e)."""
    e = exp2(-np.abs(power))
    result: Float32s = a * (np.where(a >= 0, f32(1), e) / (f32(1) + e))
    return result


def _silu(a: Float32s) -> Float32s:
    return _logistic(a, a * hex_f32("0x1.715476p+0"))


def _gelu_tanh(a: Float32s) -> Float32s:
    return _logistic(a, a * (hex_f32("0x1.26aec2p+1") + hex_f32("0x1.a5a7dp-4") * (a * a)))


def _gelu(a: Float32s) -> Float32s:
    t = f32(1) / (f32(1) + hex_f32("0x1.da671p-3") * np.abs(a))
    c = np.full_like(a, hex_f32("0x1.0fb844p-1"))
    for coefficient in ("-0x1.7401c6p-1", "0x1.6be1c6p-1", "-0x1.23531cp-3", "0x1.04f20cp-3"):
        c = c * t
        c = c + hex_f32(coefficient)
    tail = (c * t) * exp2(-((a * a) * hex_f32("0x1.715476p-1")))
    result: Float32s = a * np.where(a >= 0, f32(1) - tail, tail)
    return result


ACTIVATIONS = {"silu": _silu, "gelu_tanh": _gelu_tanh, "gelu": _gelu}


def _mean(t: Float32s, codes: Integers, scales: Float32s) -> Float32s:
    """o of one head: the values of all positions seen, weighted by their scores t."""
    T, M = np.max(t), np.max(scales)  # noqa: N806 (the text's symbols)
    e = exp2(t - T)
    E = int(np.sum(rounded(e * SCORE_ONE)))  # noqa: N806
    G = ((WEIGHT_TOTAL * SCORE_ONE) / f32(E)) / M  # noqa: N806
    w = rounded(e * (scales * G))
    return to_f32(w @ codes) * (M / WEIGHT_TOTAL)


def _transform(v: Float32s) -> Float32s:
    """The transform, in runs of R entries."""
    R = len(v) & -len(v)  # noqa: N806 (the text's symbol)
    step = 1
    while step < R:
        pairs = v.reshape(-1, 2, step)
        v = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        step *= 2
    return v
