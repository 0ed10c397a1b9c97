"""The package's transformer in floating point, for gradients with respect to soft prompts.

The same function as the exact engine's but for rounding: weights are codes times scales, the
residual stream keeps the package's rotated basis, so that a vector trained here is an input of the
engine as it is. Products run in bfloat16, everything else in float32. Weights get no gradients.

    vectors ┐
    start   ├─ x ─ [ norm ─ attention ─ + ─ norm ─ feed-forward ─ + ] x layers ─ norm ─ bits
    tokens  ┘

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from archiver.errors import InvalidModelError
from archiver.levels import DEFAULT_LEVEL, LEVELS, SINK_TOKENS
from archiver.predict.engine_config import EngineConfig
from archiver.predict.package import ModelPackage
from archiver.predict.tables import LOG2_E, activation_rotation, activation_span, rotary_angles

PRODUCT_TYPE = torch.bfloat16
HEAD_ROWS = 256  # rows whose logits lie in memory at once: 50 MB for 49,152 tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's weights in PRODUCT_TYPE, [outputs, inputs]."""

    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor


class TrainingModel:
    """A package's weights, ready to tell how many bits tokens take after some soft prompt."""

    def __init__(self, package: ModelPackage, device: str = "cpu") -> None:
        """Raises: InvalidModelError: a malformed package, or one of another family."""
        config = EngineConfig.of(package)
        if config.architecture != "llama":
            raise InvalidModelError(
                f"vectors are trained for Llama models only, not for {config.architecture}"
            )
        arrays = package.arrays
        self.config = config
        self.device = torch.device(device)

        def weights(name: str) -> Tensor:
            codes = torch.from_numpy(np.array(arrays[f"{name}.codes"])).float()
            scales = torch.from_numpy(np.array(arrays[f"{name}.scales"]))
            return (codes * scales[:, None]).to(self.device)

        # The engine transforms the activation before `down`; here the weights are transformed.
        signs, _ = activation_rotation(activation_span(config.ffn))
        transform = torch.from_numpy(signs).float().to(self.device)

        def down(name: str) -> Tensor:
            blocks = weights(name).view(config.hidden, -1, len(transform))
            return (blocks @ transform).reshape(config.hidden, config.ffn)

        self.embeddings = weights("embed")  # [tokens + 1, hidden], the last starts a stream
        self._head = (weights("head") / LOG2_E).to(PRODUCT_TYPE)
        self._layers = [
            _Layer(
                qkv=weights(f"layers.{n}.qkv").to(PRODUCT_TYPE),
                o=weights(f"layers.{n}.o").to(PRODUCT_TYPE),
                gate_up=weights(f"layers.{n}.gate_up").to(PRODUCT_TYPE),
                down=down(f"layers.{n}.down").to(PRODUCT_TYPE),
            )
            for n in range(config.layers)
        ]
        local = torch.from_numpy(np.array(arrays["local_heads"])) != 0
        settings = LEVELS[DEFAULT_LEVEL]  # the vectors serve any level; they are trained for one
        self._windows = torch.where(local, settings.local_window_tokens, settings.window_tokens)
        self._rotary = (np.array(arrays["rotary.fine"]), np.array(arrays["rotary.coarse"]))
        self._angles = (torch.empty(0), torch.empty(0))

    def bits(self, vectors: Tensor, ranks: Tensor) -> Tensor:
        """The bits that each token takes in streams that begin after the vectors.

        Args:
            vectors: float32 [k, hidden]; gradients reach them.
            ranks: int64 [streams, tokens], every stream from its cold start on.

        Returns:
            float32 [streams, tokens].
        """
        streams, tokens = ranks.shape
        start = self.embeddings[self.config.start_token].expand(streams, 1, -1)
        x = torch.cat([vectors.expand(streams, -1, -1), start, self.embeddings[ranks[:, :-1]]], 1)
        cosines, sines = self._angles_of(x.shape[1])
        mask_of = functools.cache(self._mask_of)  # few layers differ in their local heads
        sizes = x.shape[1], len(vectors) + SINK_TOKENS
        for layer, windows in zip(self._layers, self._windows.tolist(), strict=True):
            seen = mask_of(tuple(windows), *sizes).repeat(streams, 1, 1)
            x = x + self._attention(layer, self._normalize(x), cosines, sines, seen)
            x = x + self._feed_forward(layer, self._normalize(x))
        states = self._normalize(x[:, len(vectors) :]).reshape(streams * tokens, -1)
        nats: Tensor = _HeadLoss.apply(states, self._head, ranks.reshape(-1))  # type: ignore[no-untyped-call]
        return (nats / math.log(2)).view(streams, tokens)

    def _angles_of(self, positions: int) -> tuple[Tensor, Tensor]:
        if len(self._angles[0]) < positions:
            cosines, sines = rotary_angles(*self._rotary, positions)
            self._angles = (
                torch.from_numpy(cosines).to(self.device, PRODUCT_TYPE),
                torch.from_numpy(sines).to(self.device, PRODUCT_TYPE),
            )
        return self._angles[0][:positions, None], self._angles[1][:positions, None]

    def _mask_of(self, windows: tuple[int, ...], positions: int, sinks: int) -> Tensor:
        """What is added to a layer's scores, [kv_heads, group * positions, positions].

        -inf where a head does not see. Unlike the engine, this leaves the queries as they are
        for sinks that lie outside a head's window: the vectors that it trains hardly differ.

        Args:
            windows: of each key/value head, in tokens.
        """
        group = self.config.heads // self.config.kv_heads
        places = torch.arange(positions)
        distance = places[:, None] - places
        seen = (distance < torch.tensor(windows)[:, None, None]) | (places < sinks)
        mask = torch.zeros(seen.shape, dtype=PRODUCT_TYPE)
        mask.masked_fill_(~seen | (distance < 0), -torch.inf)
        return mask.repeat(1, group, 1).to(self.device)

    def _normalize(self, x: Tensor) -> Tensor:
        y: Tensor = _Normalize.apply(x, self.config.norm_epsilon)  # type: ignore[no-untyped-call]
        return y

    def _attention(
        self, layer: _Layer, x: Tensor, cosines: Tensor, sines: Tensor, mask: Tensor
    ) -> Tensor:
        config = self.config
        streams, positions, _ = x.shape
        joined = functional.linear(x, layer.qkv).view(streams, positions, -1, config.head_dim)
        count = config.heads + config.kv_heads
        turned: Tensor = _Rotate.apply(joined, count, cosines, sines)  # type: ignore[no-untyped-call]
        heads = turned.transpose(1, 2)  # [streams, heads, positions, head_dim]
        queries, keys, values = torch.split(heads, [config.heads, *2 * [config.kv_heads]], 1)
        group = config.heads // config.kv_heads
        queries = queries.reshape(streams * config.kv_heads, group * positions, config.head_dim)
        keys = keys.reshape(streams * config.kv_heads, positions, config.head_dim)
        values = values.reshape(streams * config.kv_heads, positions, config.head_dim)
        scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=config.head_dim**-0.5)
        seen = torch.bmm(torch.softmax(scores, -1), values)
        seen = seen.view(streams, config.heads, positions, config.head_dim).transpose(1, 2)
        return functional.linear(seen.flatten(2), layer.o)

    def _feed_forward(self, layer: _Layer, x: Tensor) -> Tensor:
        gate, up = functional.linear(x, layer.gate_up).chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, layer.down)


class _Normalize(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) in PRODUCT_TYPE; x float32 [..., hidden]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        factor = mean.add_(epsilon).rsqrt_()
        y: Tensor = (x * factor).to(PRODUCT_TYPE)
        ctx.save_for_backward(y, factor)
        return y

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        y, factor = ctx.saved_tensors
        gradient = outputs[0]
        along = torch.linalg.vecdot(gradient, y).unsqueeze_(-1).float().div_(y.shape[-1])
        return torch.addcmul(gradient.float(), y.float(), along, value=-1).mul_(factor), None


class _Rotate(torch.autograd.Function):
    """The first `count` heads turned to their positions, the others as they are.

    x [streams, positions, heads, head_dim] is changed in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.count = count
        ctx.save_for_backward(cosines, sines)
        return _turn(x, count, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turn(outputs[0], ctx.count, cosines, -sines), None, None, None


def _turn(x: Tensor, count: int, cosines: Tensor, sines: Tensor) -> Tensor:
    low, high = x[:, :, :count].chunk(2, -1)
    turned = low * cosines - high * sines
    high.mul_(cosines).add_(low * sines)
    low.copy_(turned)
    return x


class _HeadLoss(torch.autograd.Function):
    """Cross entropy over the vocabulary; the logits exist for HEAD_ROWS rows at a time only."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(len(states), device=states.device)
        gradients = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(states), HEAD_ROWS):
            rows = slice(begin, begin + HEAD_ROWS)
            logits = functional.linear(states[rows], head).float()
            chosen = targets[rows, None]
            totals = torch.logsumexp(logits, 1, keepdim=True)
            losses[rows] = (totals - logits.gather(1, chosen))[:, 0]
            if gradients is not None:
                shares = logits.sub_(totals).exp_()
                shares.scatter_add_(1, chosen, torch.full_like(totals, -1.0))
                gradients[rows] = shares.to(head.dtype) @ head
        if gradients is not None:
            ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * outputs[0][:, None].to(gradients.dtype), None, None
