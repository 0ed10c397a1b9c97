"""Bits per byte of a float model on windows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from archiver.workshop.losses import Loss

if TYPE_CHECKING:
    from archiver.types import Float64Array, Int64Array
    from archiver.workshop.corpus import Tokens
    from archiver.workshop.llama import FloatLlama

BATCH_TOKENS = 4096


def window_bits(
    model: FloatLlama,
    windows: Int64Array,
    start_token_id: int,
    *,
    layers: Sequence[int] | None = None,
) -> Float64Array:
    """Ideal bits of every token of the windows, each from a cold start.

    Args:
        windows: int64 [windows, steps].
        layers: the blocks to run; all of them by default.

    Returns:
        float64 [windows, steps].
    """
    loss, found = Loss(), []
    steps = windows.shape[1]
    with torch.no_grad():
        for part in torch.from_numpy(windows).split(max(1, BATCH_TOKENS // steps)):
            start = torch.full((len(part), 1), start_token_id, dtype=torch.int64)
            hidden = model.hidden(torch.cat([start, part[:, :-1]], dim=1), layers=layers)
            nats = loss.nats(hidden, model.head, part.reshape(-1))
            found.append(nats.double().numpy().reshape(len(part), steps))
    bits: Float64Array = np.concatenate(found) / np.log(2.0)
    return bits


def held_out_bpb(
    model: FloatLlama, windows: Mapping[str, Int64Array], tokens: Tokens, start_token_id: int
) -> dict[str, float]:
    """Bits per byte of each source's windows."""
    return {
        name: float(window_bits(model, part, start_token_id).sum() / tokens.byte_counts[part].sum())
        for name, part in windows.items()
    }
