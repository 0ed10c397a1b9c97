"""Which key/value heads can do with a short window, measured on calibration texts.

Every head and token gets a switch between what the head sees in full (0) and what it sees within
the span and of the sinks (1).  Per text, with g the derivatives of its nats by the switches of one
head's tokens, at 0:

    cost = sum of g + 1/2 sum of g^2

The second term is the quadratic one of Taylor's series with the Hessian taken to be the Fisher
matrix (nats are a negative log-likelihood) and that to be diagonal.  What the head would add to
the text's bits is estimated as cost / nats; texts count alike, however many bits they take.

    text ─ blocks, no gradient, what enters each is kept ─ loss
    loss ─ gradient ─ blocks again, last first, each with its gradient ─ g

so that the activations of one block exist at a time.  Heads that do the retrieving are few:
Xiao et al., "DuoAttention", 2024.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from archiver.errors import UsageError
from archiver.workshop.llama import FloatLlama
from archiver.workshop.losses import Loss
from archiver.workshop.reshape import with_weights
from archiver.workshop.training import with_start
from archiver.workshop.windows import attention

if TYPE_CHECKING:
    from archiver.predict.sources import SourceConfig, SourceModel
    from archiver.types import Float64Array, LocalHeads
    from archiver.workshop.calibration import Calibration

Progress = Callable[[int, int], None]
REPORT_FILE = "localize.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadCosts:
    """What it would cost to restrict each key/value head to a span.

    Attributes:
        span_tokens: what a restricted head sees, itself included; sink_tokens: and of the stream's
            first tokens.
        costs: float64 [layers, kv_heads], estimated change of the bits as a share of them.
        remark: what was measured on.
    """

    span_tokens: int
    sink_tokens: int
    costs: Float64Array
    remark: str

    def cheapest(self, count: int) -> LocalHeads:
        """Mark so many heads whose restriction costs least."""
        assert 1 <= count <= self.costs.size
        marks = np.zeros(self.costs.size, np.int64)
        marks[np.argsort(self.costs, axis=None, kind="stable")[:count]] = 1
        return tuple(tuple(row.tolist()) for row in marks.reshape(self.costs.shape))

    def as_dict(self, local_heads: LocalHeads | None) -> dict[str, Any]:
        """The costs, and the heads that were marked, as JSON values."""
        return {
            "span_tokens": self.span_tokens,
            "sink_tokens": self.sink_tokens,
            "measured": self.remark,
            "costs": [[float(f"{cost:.6g}") for cost in row] for row in self.costs],
            "local_heads": local_heads,
        }

    def write(self, folder: Path, local_heads: LocalHeads | None) -> None:
        """Leave them beside the weights."""
        text = json.dumps(self.as_dict(local_heads), indent=1) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8")

    def lines(self, local_heads: LocalHeads | None) -> Iterator[str]:
        """The same for people: a row a block, a column a head."""
        yield f"bits added by seeing {self.span_tokens} tokens only, %, by block and key/value head"
        for layer, row in enumerate(self.costs):
            marks = local_heads[layer] if local_heads else (0,) * len(row)
            cells = (
                f"{100 * cost:9.4f}{'*' if mark else ' '}"
                for cost, mark in zip(row, marks, strict=True)
            )
            yield f"{layer:5} {''.join(cells)}".rstrip()
        if local_heads:
            yield f"* local: {sum(map(sum, local_heads))} of {self.costs.size}"


def check_count(config: SourceConfig, count: int) -> None:
    """Raises: UsageError: a model of this shape has not so many key/value heads."""
    if not 1 <= count <= config.layers * config.kv_heads:
        raise UsageError(f"1 to {config.layers * config.kv_heads} heads can be local")


def measure_heads(
    source: SourceModel,
    calibrations: Sequence[Calibration],
    span: int,
    progress: Progress = lambda done, total: None,
) -> HeadCosts:
    """The costs of a model's heads, whichever of them are local so far.

    Args:
        calibrations: of one text or more; all of them count alike.
        span: tokens that a restricted head sees, itself included.

    Raises:
        UsageError: no window is longer than the span.
    """
    steps = calibrations[0].windows.shape[1]
    if not 1 <= span < steps:
        raise UsageError(f"--span has to be from 1 to {steps - 1}: windows have {steps} tokens")
    config = dataclasses.replace(source.config, local_heads=None)
    model = FloatLlama.from_source(dataclasses.replace(source, config=config))
    total, done = sum(len(calibration.windows) for calibration in calibrations), 0
    texts = []
    for calibration in calibrations:
        shares = []
        for targets in torch.from_numpy(calibration.windows).split(1):
            slopes, nats = switch_slopes(model, targets, source.start_token_id, span)
            shares.append((slopes.sum(-1) + slopes.square().sum(-1) / 2) / nats)
            done += 1
            progress(done, total)
        texts.append(torch.stack(shares).mean(0))
    return HeadCosts(
        span_tokens=span,
        sink_tokens=model.windows.sink_tokens,
        costs=torch.stack(texts).mean(0).numpy(),
        remark=", ".join(calibration.describe() for calibration in calibrations),
    )


def localized(source: SourceModel, costs: HeadCosts, local_heads: LocalHeads) -> SourceModel:
    """The same weights with these heads marked, its history one step longer."""
    step = (
        f"localized: {sum(map(sum, local_heads))} of {costs.costs.size} key/value heads, those "
        f"that lose least beyond {costs.span_tokens} tokens and {costs.sink_tokens} sinks, "
        f"{costs.remark}"
    )
    config = dataclasses.replace(source.config, local_heads=local_heads)
    return with_weights(source, source.tensors, step, config)


def switch_slopes(
    model: FloatLlama, targets: torch.Tensor, start_token_id: int, span: int
) -> tuple[torch.Tensor, float]:
    """Derivatives of a text's nats by a switch of each head and token, and the nats.

    Args:
        model: with no local heads and nothing to train.
        targets: int64 [1, steps], the text from its cold start on.

    Returns:
        float64 [layers, kv_heads, steps], 0 where the span holds all there is; nats of the text.
    """
    inputs, layers = with_start(targets, start_token_id), model.config.layers
    with torch.no_grad():
        states = [model.enter(inputs)]
        for layer in range(layers):
            states.append(model.block(layer, *states[-1], 1))
    entering = _leaves(*states.pop())
    mean = Loss().mean(model.leave(*entering), model.head, targets.reshape(-1))
    nats = mean * targets.numel()
    nats.backward()
    slopes = torch.zeros(layers, model.config.kv_heads, targets.numel(), dtype=torch.float64)
    for layer in reversed(range(layers)):
        attended: list[tuple[torch.Tensor, torch.Tensor]] = []

        def attend(
            layer: int, qkv: torch.Tensor, kept: list[tuple[torch.Tensor, torch.Tensor]] = attended
        ) -> torch.Tensor:
            mixed = model.attention(layer, qkv, 1)
            mixed.retain_grad()
            kept.append((qkv.detach(), mixed))
            return mixed

        gradients = [part.grad for part in entering]
        entering = _leaves(*states.pop())
        left = model.block(layer, *entering, 1, attend=attend)
        torch.autograd.backward(left, gradients)
        ((qkv, mixed),) = attended
        assert mixed.grad is not None
        change = _change(model, qkv, span)
        gradient = mixed.grad.view(len(qkv), *change.shape[:2], -1).permute(1, 2, 0, 3)
        slopes[layer, :, span:] = (gradient[..., span:, :] * change).sum((1, 3)).double()
    return slopes, nats.item()


@torch.no_grad()
def _change(model: FloatLlama, qkv: torch.Tensor, span: int) -> torch.Tensor:
    """What attention gives within the span, less what it gives in full, after the first `span`.

    Computed in float32: in most heads little changes, and rounding would drown it.

    Returns:
        float32 [kv_heads, group, steps - span, head_dim].
    """
    heads, angles = model.heads(qkv.float(), 1), model.rotary(len(qkv))
    widest, sinks = model.windows.window_tokens, model.windows.sink_tokens
    full, local = (attention(*heads, window, sinks, angles) for window in (widest, span))
    return (local - full)[0, ..., span:, :]


def _leaves(stream: torch.Tensor, addend: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both parts of a residual stream, so that gradients end there."""
    return stream.detach().requires_grad_(), addend.detach().requires_grad_()
