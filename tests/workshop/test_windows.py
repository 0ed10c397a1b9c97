"""Local heads in training: what the plain definition computes, and gradients that are its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from archiver.levels import DEFAULT_LEVEL, LEVELS, SINK_TOKENS
from archiver.predict.sources import SourceModel
from archiver.workshop.llama import FloatLlama
from archiver.workshop.losses import Loss
from archiver.workshop.windows import WINDOWED_ROWS, Windows, attention, blocks, heads_by_window
from archiver.workshop.writing import Cache
from benchmarks.float_llama import FloatLlama as PlainLlama
from tests.workshop.test_llama import some_tokens

LOCAL_HEADS = ((0, 1), (1, 1), (0, 0), (1, 0))
CASES = [  # steps, window, local window, sinks
    (300, 512, 64, 4),
    (300, 200, 30, 4),
    (90, 50, 2, 4),
    (90, 50, 7, 0),
    (64, 64, 64, 4),
]


@pytest.fixture
def local(tiny) -> SourceModel:
    return dataclasses.replace(
        tiny, config=dataclasses.replace(tiny.config, local_heads=LOCAL_HEADS)
    )


def windows_of(window: int, local_window: int, sinks: int) -> Windows:
    return Windows(window_tokens=window, local_window_tokens=local_window, sink_tokens=sinks)


def plain_hidden(source: SourceModel, tokens: torch.Tensor, case: Windows) -> torch.Tensor:
    model = PlainLlama(
        source.config, source.tensors, window=case.window_tokens,
        local_window=case.local_window_tokens, sinks=case.sink_tokens,
    )  # fmt: skip
    with torch.no_grad():
        return torch.cat([states for part in tokens for _, states in model.blocks(part)])


def test_windows_are_those_of_the_default_level(local):
    level = LEVELS[DEFAULT_LEVEL]
    model = FloatLlama.from_source(local)
    assert model.windows.of_layer(local.config, 0) == (
        level.window_tokens,
        level.local_window_tokens,
    )
    assert model.windows.sink_tokens == SINK_TOKENS
    unmarked = dataclasses.replace(local.config, local_heads=None)
    assert model.windows.of_layer(unmarked, 0) == (level.window_tokens,) * 2


def test_blocks_hold_every_query_once_and_all_that_it_sees():
    for steps, window, rows in ((10, 20, 4), (900, 300, 128), (700, 1, 700), (512, 512, 100)):
        queries = []
        for first, last, lowest in blocks(steps, window, rows):
            queries += range(first, last)
            assert lowest == max(0, first - window + 1)
            assert last - first <= max(rows, WINDOWED_ROWS)
            assert last <= window or first >= window
        assert queries == list(range(steps))
    assert heads_by_window((9, 3, 9), 5) == {5: [0, 2], 3: [1]}


@pytest.mark.parametrize(("steps", "window", "local_window", "sinks"), CASES)
def test_heads_see_what_the_definition_says(local, steps, window, local_window, sinks):
    case = windows_of(window, local_window, sinks)
    tokens = some_tokens(2, steps)
    expected = plain_hidden(local, tokens, case)
    with torch.no_grad():
        found, fused = (
            FloatLlama.from_source(local, windows=case, dtype=dtype).hidden(tokens).float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert torch.allclose(found, expected, atol=1e-4)
    assert (fused - expected).norm() / expected.norm() < 0.03


def test_fused_sinks_outside_the_window_are_met_where_the_definition_says(local):
    """One block's attention alone, where rounding hides nothing."""
    case = windows_of(200, 20, 4)
    models = [
        FloatLlama.from_source(local, windows=case, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    qkv = torch.randn(2 * 150, 8 * 32, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = models[0].attention(1, qkv.float(), 2)
    found = models[1].attention(1, qkv, 2).float()
    assert (found - expected).norm() / expected.norm() < 0.006
    unturned = attention(
        *models[0].heads(qkv.float(), 2), 20, 4, (torch.ones(150, 16), torch.zeros(150, 16))
    )
    unturned = unturned.permute(0, 3, 1, 2, 4).reshape(300, -1)
    assert (unturned - expected).norm() / expected.norm() > 0.05


@pytest.mark.parametrize(("steps", "window", "local_window", "sinks"), CASES)
def test_a_step_at_a_time_sees_the_same(local, steps, window, local_window, sinks):
    case = windows_of(window, local_window, sinks)
    model = FloatLlama.from_source(local, windows=case, dtype=torch.float32)
    tokens = some_tokens(2, 70)
    with torch.no_grad():
        expected = model.hidden(tokens).view(2, 70, -1)
        cache = Cache(model, 2, 70)
        found = [cache.advance(tokens[:, step], step) for step in range(70)]
    assert torch.allclose(torch.stack(found, dim=1), expected, atol=1e-4)


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, sinks: int,
    turned: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """All pairs at once; `turned` are the queries as sinks outside the window meet them."""
    places = torch.arange(query.shape[-2])
    distance = places[:, None] - places
    outside = distance >= window
    scores = torch.where(outside, turned @ key.transpose(-1, -2), query @ key.transpose(-1, -2))
    hidden = (distance < 0) | (outside & (places >= sinks))
    scores = (scores / query.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, dim=-1) @ value


def turned_back(vectors: torch.Tensor, window: int, sinks: int, theta: float) -> torch.Tensor:
    """As complex numbers, by what each position lies beyond window + sinks - 1."""
    half = vectors.shape[-1] // 2
    beyond = (torch.arange(vectors.shape[-2]) - (window + sinks - 1)).clamp(min=0)
    angles = torch.outer(beyond.double(), theta ** (-torch.arange(half).double() / half))
    turn = torch.polar(torch.ones_like(angles), -angles).to(torch.complex64)
    numbers = torch.complex(*vectors.float().chunk(2, dim=-1)) * turn
    return torch.cat([numbers.real, numbers.imag], dim=-1)


@pytest.mark.parametrize(("steps", "window", "local_window", "sinks"), CASES)
def test_gradients_are_those_of_plain_masked_attention(local, steps, window, local_window, sinks):
    case = windows_of(window, local_window, sinks)
    generator = torch.Generator().manual_seed(8)
    qkv = torch.randn(2 * steps, 8 * 32, generator=generator).bfloat16()
    upstream = torch.randn(2 * steps, 4 * 32, generator=generator).bfloat16()
    for layer in range(2):
        grads = []
        for dtype in (torch.float32, torch.bfloat16):
            model = FloatLlama.from_source(local, windows=case, dtype=dtype)
            leaf = qkv.detach().to(dtype).requires_grad_()
            model.attention(layer, leaf, 2).backward(upstream.to(dtype))
            grads.append(leaf.grad.float())
        model = FloatLlama.from_source(local, windows=case, dtype=torch.float32)
        leaf = qkv.detach().float().requires_grad_()
        query, key, value = model.heads(leaf, 2)
        mixed = [
            masked_attention(
                query[:, head], key[:, head], value[:, head], size, sinks,
                turned_back(query[:, head], size, sinks, local.config.rope_theta),
            )
            for head, size in enumerate(case.of_layer(local.config, layer))
        ]  # fmt: skip
        output = torch.stack(mixed, dim=1).permute(0, 3, 1, 2, 4).reshape(2 * steps, -1)
        output.backward(upstream.float())
        expected = leaf.grad
        assert torch.allclose(grads[0], expected, atol=2e-4)
        assert (grads[1] - expected).norm() / expected.norm() < 0.01


def test_training_gradients_with_local_heads_are_those_of_float32_but_for_rounding(local):
    tokens, found = some_tokens(3, 301), []
    for dtype in (torch.float32, torch.bfloat16):
        model = FloatLlama.from_source(local, windows=windows_of(200, 30, 4), dtype=dtype)
        parameters = model.train_weights(["layers.0.qkv", "layers.2.qkv", "layers.3.o"])
        hidden = model.hidden(tokens[:, :-1])
        Loss().mean(hidden, model.head, tokens[:, 1:].reshape(-1)).backward()
        found.append({name: parameter.grad for name, parameter in parameters.items()})
    for name, expected in found[0].items():
        assert (found[1][name] - expected).norm() / expected.norm() < 0.04, name
