"""Feed-forward matrices of a model without some blocks, fitted to do a part of what those did.

    whole model   ... block l ── block l+1 (removed) ── r ── block l+2 ...
    the rest      ... block l ── r'  ─────────────────────── block l+2 ...

What enters block l + 2 is r' = x + D a, with D the down matrix of block l and a its inputs. D is
changed so that r' comes as close to r as it can. So is that of every later block, whose inputs have
changed: each makes up for a part of what the ones before it could not. It is one pass over the
text, with a least-squares problem a block, and no gradients.

A token's error counts relative to the size of r, since a norm is what reads it: a few first tokens
have residual streams a thousand times as long as others.

Source: the idea of a removed block's linear stand-in that costs no weights is that of Shopkhoev et
al., "ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization"
(2025); it fits one matrix behind D, for one gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from archiver.workshop.measure import BATCH_TOKENS
from archiver.workshop.training import with_start

if TYPE_CHECKING:
    from archiver.types import Int64Array
    from archiver.workshop.llama import FloatLlama

Progress = Callable[[int, int], None]
DAMPING = 0.01  # of the inputs' mean square, added to each of them


@torch.no_grad()
def refit_down(
    model: FloatLlama,
    whole: FloatLlama,
    kept: Sequence[int],
    windows: Int64Array,
    start_token_id: int,
    *,
    damping: float = DAMPING,
    progress: Progress = lambda done, total: None,
) -> None:
    """Change the down matrices of a model from the first gap on.

    Args:
        model: `whole` with the blocks `kept` alone, ascending; changed in place.
        windows: int64 [windows, steps], a calibration text of more tokens than the matrices have
            inputs, several times better.
    """
    steps = windows.shape[1]
    batches = torch.from_numpy(windows).split(max(1, BATCH_TOKENS // steps))
    tokens = [with_start(batch, start_token_id) for batch in batches]
    theirs = [whole.enter(part) for part in tokens]
    ours = [model.enter(part) for part in tokens]
    passed = 0  # blocks of the whole model that its streams have passed
    for number, until in enumerate([*kept[1:], whole.config.layers]):
        for layer in range(passed, until):
            theirs = [
                whole.block(layer, *streams, len(part))
                for streams, part in zip(theirs, tokens, strict=True)
            ]
        passed = until
        found = [
            _block(model, number, *streams, len(part))
            for streams, part in zip(ours, tokens, strict=True)
        ]
        if until > number + 1:  # a block is missing
            name = f"layers.{number}.down"
            pairs = (
                (inner, target + more - stream - addend, target + more)
                for (stream, addend, inner), (target, more) in zip(found, theirs, strict=True)
            )
            model.weights[name] = model.weights[name] + _correction(pairs, damping)
            model.refresh()
            ours = [(stream, model.product(name, inner)) for stream, _, inner in found]
        else:
            ours = [(stream, addend) for stream, addend, _ in found]
        progress(number + 1, len(kept))


def _block(
    model: FloatLlama, number: int, stream: torch.Tensor, addend: torch.Tensor, streams: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `FloatLlama.block` returns, and what its down matrix reads."""
    seen: list[torch.Tensor] = []

    def observe(name: str, vectors: torch.Tensor) -> None:
        if name == f"layers.{number}.down":
            seen.append(vectors)

    stream, addend = model.block(number, stream, addend, streams, observe)
    return stream, addend, seen[0]


def _correction(
    pairs: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], damping: float
) -> torch.Tensor:
    """The matrix C, float32 [outputs, inputs], for which C a comes closest to the errors.

    Args:
        pairs: inputs a, errors and what the errors are relative to, each [tokens, ...].
    """
    squares: torch.Tensor | float = 0.0
    products: torch.Tensor | float = 0.0
    for inner, error, target in pairs:
        weights = target.square().mean(1, keepdim=True).reciprocal()
        inputs = inner.float()
        weighted = inputs * weights
        squares = squares + (inputs.T @ weighted).double()
        products = products + (weighted.T @ error).double()
    assert isinstance(squares, torch.Tensor)
    assert isinstance(products, torch.Tensor)
    squares.diagonal().add_(damping * squares.diagonal().mean())
    solved: torch.Tensor = torch.linalg.solve(squares, products)
    return solved.T.float()
