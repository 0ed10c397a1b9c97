"""Matrices of a model without some blocks, fitted to do a part of what those did.

    all blocks    ... block l ── block l+1 (removed) ── r ── block l+2 ...
    the rest      ... block l ── r'  ─────────────────────── block l+2 ...

What enters block l + 2 is r' = x + D a, with D the down matrix of block l and a its inputs. D is
changed so that r' comes as close to r as it can. In every later block, whose inputs have changed,
the same is done twice: with the matrix behind attention for the residual stream in the middle of
the block, then with its down matrix. So each makes up for a part of what those before it could
not. It is one pass over the text, with two least-squares problems a block, and no gradients.

A token's error counts relative to the size of r, since a norm is what reads it: a few first tokens
have residual streams a thousand times as long as others.

Source: that a linear stand-in of removed blocks costs no weights is the idea of Shopkhoev et al.,
"ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization" (2025),
who fit one matrix behind D, for one gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from archiver.workshop.measure import BATCH_TOKENS
from archiver.workshop.training import with_start

if TYPE_CHECKING:
    from archiver.types import Int64Array
    from archiver.workshop.llama import FloatLlama

Progress = Callable[[int, int], None]
State = tuple[torch.Tensor, torch.Tensor]  # the two parts of a residual stream, see `llama`
DAMPING = 0.2  # of the mean square of a matrix's inputs, added to that of each


@torch.no_grad()
def refit(
    model: FloatLlama,
    whole: FloatLlama,
    kept: Sequence[int],
    windows: Int64Array,
    start_token_id: int,
    *,
    damping: float = DAMPING,
    progress: Progress = lambda done, total: None,
) -> None:
    """Change the matrices that a model adds to its residual stream by, from the first gap on.

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

    def advance(whose: FloatLlama, layer: int, states: Sequence[State]) -> list[State]:
        pairs = zip(states, tokens, strict=True)
        return [whose.block(layer, *state, len(part)) for state, part in pairs]

    for layer in range(kept[0]):
        theirs = advance(whole, layer, theirs)
    for number, (old, after) in enumerate(zip(kept, [*kept[1:], whole.config.layers], strict=True)):
        theirs = advance(whole, old, theirs)
        if old > number:  # a block is missing before this one
            middles = [stream for stream, _ in theirs]
            _fit(model, f"layers.{number}.o", ours, tokens, middles, damping)
        for layer in range(old + 1, after):
            theirs = advance(whole, layer, theirs)
        if after > number + 1:
            wanted = [stream + addend for stream, addend in theirs]
            _fit(model, f"layers.{number}.down", ours, tokens, wanted, damping)
        ours = advance(model, number, ours)
        progress(number + 1, len(kept))


def _fit(
    model: FloatLlama,
    name: str,
    states: Sequence[State],
    tokens: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    damping: float,
) -> None:
    """Change a matrix so that the residual stream, with its product added, is as wanted.

    Args:
        states: before the matrix's block.
        wanted: float32 [tokens, hidden] each.
    """
    _, number, kind = name.split(".")

    def found() -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for state, part, target in zip(states, tokens, wanted, strict=True):
            seen: dict[str, torch.Tensor] = {}
            middle, addend = model.block(int(number), *state, len(part), seen.__setitem__)
            reached = middle if kind == "o" else middle + addend
            yield seen[name], target - reached, target

    model.weights[name] = model.weights[name] + _correction(found(), damping)
    model.refresh()


def _correction(
    triples: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], damping: float
) -> torch.Tensor:
    """The matrix C, float32 [outputs, inputs], for which C a comes closest to the errors.

    Args:
        triples: inputs a, errors, and what the errors are relative to, each [tokens, ...].
    """
    squares: torch.Tensor | float = 0.0
    products: torch.Tensor | float = 0.0
    for inner, error, target in triples:
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
