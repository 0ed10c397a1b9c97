"""The float model: what transformers computes, and gradients that are those of its float32 form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from archiver.workshop.llama import FloatLlama, joined_weights, separate_weights
from archiver.workshop.losses import ROWS, Loss


def some_tokens(streams: int, steps: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 400, (streams, steps), generator=generator)


def test_joined_weights_come_apart_again(tiny):
    found = separate_weights(tiny.config, joined_weights(tiny))
    assert set(found) == set(tiny.tensors)
    assert all((found[name] == tiny.tensors[name]).all() for name in found)


def test_training_leaves_the_source_alone(tiny):
    held = dataclasses.replace(tiny, tensors={name: tiny.tensors[name] for name in tiny.tensors})
    before = {name: array.copy() for name, array in held.tensors.items()}
    with torch.no_grad():
        for weight in joined_weights(held).values():
            weight += 1.0
    assert all(np.array_equal(held.tensors[name], before[name]) for name in before)


def test_logits_are_those_of_transformers(tiny_folder, tiny):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokens = some_tokens(2, 50)
    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = (model.hidden(tokens) @ model.head.T).view(expected.shape)
    assert torch.allclose(found, expected, atol=2e-4)


def gradients(tiny, dtype: torch.dtype, **train) -> tuple[float, dict[str, torch.Tensor]]:
    model = FloatLlama.from_source(tiny, dtype=dtype)
    if train:
        parameters = model.train_adapters(
            ["layers.1.qkv", "layers.2.down"], generator=torch.Generator().manual_seed(2), **train
        )
        with torch.no_grad():
            for name, half in parameters.items():
                if name.endswith(".b"):
                    half.copy_(torch.randn(half.shape, generator=torch.Generator().manual_seed(3)))
        model.refresh()
    else:
        parameters = model.train_weights(list(model.weights))
    tokens = some_tokens(3, 301)
    loss = Loss().mean(
        model.hidden(tokens[:, :-1]),
        model.head,
        tokens[:, 1:].reshape(-1),
        head_parameter=model.head_parameter,
    )
    loss.backward()
    return loss.item(), {name: p.grad for name, p in parameters.items()}


def plain_gradients(tiny) -> tuple[float, dict[str, torch.Tensor]]:
    """By torch's own loss, with all logits at once."""
    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    parameters = model.train_weights(list(model.weights))
    tokens = some_tokens(3, 301)
    logits = model.hidden(tokens[:, :-1]) @ model.weights["embed"].T
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in parameters.items()}


def test_the_loss_in_parts_is_torchs(tiny):
    assert 2 * ROWS < 3 * 300
    expected, expected_grads = plain_gradients(tiny)
    found, grads = gradients(tiny, torch.float32)
    assert found == pytest.approx(expected, rel=1e-6)
    for name, grad in expected_grads.items():
        assert torch.allclose(grads[name], grad, atol=1e-6, rtol=1e-3), name


@pytest.mark.parametrize("train", [{}, {"rank": 4, "scale": 0.05}])
def test_fused_gradients_are_those_of_float32_but_for_rounding(tiny, train):
    expected, expected_grads = gradients(tiny, torch.float32, **train)
    found, grads = gradients(tiny, torch.bfloat16, **train)
    assert found == pytest.approx(expected, rel=1e-3)
    for name, grad in expected_grads.items():
        error = (grads[name] - grad).norm() / grad.norm()
        assert error < 0.04, (name, error)


def test_an_adapter_changes_nothing_at_first_and_merges_to_the_same(tiny):
    tokens = some_tokens(1, 20)
    plain = FloatLlama.from_source(tiny, dtype=torch.float32)
    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    halves = model.train_adapters(
        ["layers.0.gate_up"], rank=2, scale=2.0, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        assert torch.equal(model.hidden(tokens), plain.hidden(tokens))
        halves["layers.0.gate_up.b"].fill_(0.25)
        model.refresh()
        merged = FloatLlama(
            tiny.config, {n: model.merged(n) for n in model.weights}, dtype=torch.float32
        )
        changed = model.hidden(tokens)
        assert not torch.equal(changed, plain.hidden(tokens))
        assert torch.equal(changed, merged.hidden(tokens))


def test_blocks_can_be_left_out(tiny):
    tokens = some_tokens(2, 10)
    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    with torch.no_grad():
        everything = model.hidden(tokens, layers=range(4))
        assert torch.equal(everything, model.hidden(tokens))
        assert not torch.equal(everything, model.hidden(tokens, layers=[0, 2, 3]))


def test_the_teachers_share_of_the_loss_is_a_cross_entropy(tiny):
    student = FloatLlama.from_source(tiny, dtype=torch.float32)
    teacher = FloatLlama.from_source(tiny, dtype=torch.float32)
    teacher.weights["layers.3.down"] = teacher.weights["layers.3.down"] * 1.5
    tokens = some_tokens(2, 40)
    targets = tokens.reshape(-1)
    with torch.no_grad():
        taught = (teacher.hidden(tokens), teacher.head)
    parameter = student.train_weights(["layers.3.o"])["layers.3.o"]
    Loss(0.75).mean(student.hidden(tokens), student.head, targets, teacher=taught).backward()
    found = parameter.grad.clone()
    parameter.grad = None
    logits = student.hidden(tokens) @ student.head.T
    soft = torch.softmax(taught[0] @ taught[1].T, dim=-1)
    cross_entropy = torch.nn.functional.cross_entropy
    (0.75 * cross_entropy(logits, soft) + 0.25 * cross_entropy(logits, targets)).backward()
    assert torch.allclose(found, parameter.grad, atol=1e-7, rtol=1e-3)


def test_written_text_is_drawn_from_the_model(tiny):
    from archiver.workshop.writing import write_text

    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    opening = some_tokens(3, 4).numpy()
    written = write_text(model, opening, 12, start_token_id=0, seed=5)
    assert written.shape == (3, 12)
    assert (written[:, :4] == opening).all()
    assert (written == write_text(model, opening, 12, start_token_id=0, seed=5)).all()
    assert (written != write_text(model, opening, 12, start_token_id=0, seed=6)).any()


def test_a_step_at_a_time_is_the_same_as_all_at_once(tiny):
    from archiver.workshop.writing import Cache

    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    tokens = some_tokens(3, 9)
    with torch.no_grad():
        expected = model.hidden(tokens).view(3, 9, -1)
        cache = Cache(model, 3, 9)
        found = [cache.advance(tokens[:, step], step) for step in range(9)]
    assert torch.allclose(torch.stack(found, dim=1), expected, atol=1e-5)


def test_fused_attention_takes_any_length(tiny):
    for steps in (2, 255, 257, 300):
        tokens = some_tokens(1, steps)
        with torch.no_grad():
            plain = FloatLlama.from_source(tiny, dtype=torch.float32).hidden(tokens)
            fused = FloatLlama.from_source(tiny, dtype=torch.bfloat16).hidden(tokens)
        assert (fused.float() - plain).norm() / plain.norm() < 0.03
    assert np.isfinite(fused.float().numpy()).all()
