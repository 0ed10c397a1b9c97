"""The float32 forward pass against transformers, and its window and sinks against a plain one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from archiver.predict.sources import SourceConfig, SourceModel, expected_shapes
from archiver.types import Float32Array, LocalHeads
from benchmarks.float_llama import BLOCK_TOKENS, FloatLlama
from benchmarks.theory import IdealBits, StreamTokens, logit_difference, stream_bits, stream_inputs

VOCAB = 40
LOCAL_WINDOW = 1


def tiny_source(*, tied: bool = True) -> SourceModel:
    config = SourceConfig(
        architecture="llama", hidden=24, layers=2, heads=6, kv_heads=2, head_dim=4, ffn=32,
        vocab=VOCAB, rope_theta=1000.0, norm_eps=1e-5, context_length=4096, tied=tied,
    )  # fmt: skip
    chance = np.random.default_rng(5)
    tensors = {
        name: (chance.standard_normal(shape) * 0.4).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }
    token_bytes: list[bytes | None] = [bytes([65 + number]) for number in range(VOCAB - 2)]
    return SourceModel(
        config=config, tensors=tensors, token_bytes=[*token_bytes, None, None],
        tokenizer_json="{}", name="tiny", licence="", start_token_id=VOCAB - 1,
    )  # fmt: skip


def some_ids(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).integers(0, VOCAB, count))


def all_logits(model: FloatLlama, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.logits(states) for _, states in model.blocks(inputs)])


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_transformers_within_the_window(tied: bool) -> None:
    pytest.importorskip("transformers")
    source = tiny_source(tied=tied)
    model = FloatLlama(
        source.config, source.tensors, window=2 * BLOCK_TOKENS, local_window=1, sinks=4
    )
    with torch.inference_mode():
        assert logit_difference(model, source, some_ids(BLOCK_TOKENS + 20)) < 1e-4


def plain_logits(
    config: SourceConfig, tensors: Mapping[str, Float32Array], ids: list[int], widest: int,
    sinks: int,
) -> np.ndarray:  # fmt: skip
    """The last position's logits, float64, one position and one head at a time."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    half = config.head_dim // 2
    frequencies = config.rope_theta ** -(np.arange(half) / half)

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
        return np.concatenate([turned.real, turned.imag])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        normed: np.ndarray = weights[name] * x / np.sqrt((x**2).mean() + config.norm_eps)
        return normed

    states = [weights["embed"][i] for i in ids]
    for layer in range(config.layers):

        def part(name: str, x: np.ndarray, layer: int = layer) -> np.ndarray:
            product: np.ndarray = weights[f"layers.{layer}.{name}"] @ x
            return product

        inputs = [norm(x, f"layers.{layer}.norm1") for x in states]
        queries, keys, values = (
            [part(name, x).reshape(-1, config.head_dim) for x in inputs] for name in "qkv"
        )
        after = []
        for p, x in enumerate(states):
            heads = []
            for head in range(config.heads):
                kv = head // (config.heads // config.kv_heads)
                local = config.local_heads is not None and config.local_heads[layer][kv]
                window = LOCAL_WINDOW if local else widest
                seen = [c for c in range(p + 1) if c > p - window or c < sinks]
                scores = []
                for c in seen:
                    stands_at = p if c > p - window else min(p, window + sinks - 1)
                    query = rotate(queries[p][head], stands_at)
                    scores.append(query @ rotate(keys[c][kv], c) / math.sqrt(config.head_dim))
                shares = np.exp(np.array(scores) - max(scores))
                mixed = sum(share * values[c][kv] for share, c in zip(shares, seen, strict=True))
                heads.append(mixed / shares.sum())
            y = x + part("o", np.concatenate(heads))
            z = norm(y, f"layers.{layer}.norm2")
            gate = part("gate", z)
            after.append(y + part("down", gate / (1 + np.exp(-gate)) * part("up", z)))
        states = after
    logits: np.ndarray = weights["embed"] @ norm(states[-1], "norm")
    return logits


@pytest.mark.parametrize("local_heads", [None, ((0, 1), (1, 0))])
@pytest.mark.parametrize(("window", "sinks"), [(5, 2), (7, 0), (1, 4), (3, 4), (16, 4)])
def test_window_and_sinks(
    window: int,
    sinks: int,
    local_heads: LocalHeads | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.float_llama.BLOCK_TOKENS", 6)
    source = tiny_source()
    config = dataclasses.replace(source.config, local_heads=local_heads)
    model = FloatLlama(
        config, source.tensors, window=window, local_window=LOCAL_WINDOW, sinks=sinks
    )
    ids = some_ids(23)
    with torch.inference_mode():
        found = all_logits(model, ids).numpy()
    for length in (1, 4, 6, 7, 13, 23):
        plain = plain_logits(config, source.tensors, ids[:length].tolist(), window, sinks)
        np.testing.assert_allclose(found[length - 1], plain, atol=2e-4)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_source()
    model = FloatLlama(source.config, source.tensors, window=9, local_window=9, sinks=2)
    with torch.inference_mode():
        whole = all_logits(model, some_ids(60))
        monkeypatch.setattr("benchmarks.float_llama.BLOCK_TOKENS", 7)
        np.testing.assert_allclose(whole, all_logits(model, some_ids(60)), atol=1e-4)


def test_ideal_bits() -> None:
    source = tiny_source()
    model = FloatLlama(source.config, source.tensors, window=8, local_window=8, sinks=2)
    stream = StreamTokens(ids=np.array([3, 5, -1, 7, 9], np.int64), escaped_bytes=2)
    inputs = stream_inputs(stream, source.start_token_id)
    assert inputs.tolist() == [VOCAB - 1, 3, 5, VOCAB - 1, 7]
    coded = torch.tensor([text is not None for text in source.token_bytes])
    ideal = IdealBits()
    with torch.inference_mode():
        symbols = sum(stream_bits(model, stream, source.start_token_id, coded, ideal))
        logits = all_logits(model, inputs).double().numpy()
    assert symbols == 5
    assert ideal.tokens == 4
    weights = np.exp(logits)
    hits = [(row, target) for row, target in enumerate(stream.ids) if target >= 0]
    whole = -sum(math.log2(weights[row, t] / weights[row].sum()) for row, t in hits)
    among = -sum(math.log2(weights[row, t] / weights[row, :-2].sum()) for row, t in hits)
    assert ideal.whole == pytest.approx(whole, rel=1e-5)
    assert ideal.coded == pytest.approx(among, rel=1e-5)
    assert ideal.coded < ideal.whole
