"""Trained adapters as small files: fewer bits where they matter less.

B A is first written as a sum of orthogonal components, the largest first (singular values). An
error in one factor is multiplied by the size of the other, so with component c scaled evenly
between both, steps in proportion to 1 / sqrt(s_c) spread the error evenly: large components get
many bits, small ones few or none, from one number for the whole adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from archiver.errors import UsageError
from archiver.predict.adapter import (
    CODE_MAX,
    Adapter,
    LowRank,
    coded_bytes,
    weights_sha256,
)

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.types import Float64Array
    from archiver.workshop.llama import FloatLlama

_GAIN_CODES = 127
_SEARCH_STEPS = 14


def compact_adapter(
    model: FloatLlama,
    source: SourceModel,
    *,
    history: tuple[str, ...],
    budget_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Adapter:
    """The model's adapters and gains, in at most that many coded bytes.

    Args:
        model: tuned; source: the weights that it was tuned from.

    Raises:
        UsageError: the budget is too small for anything.
    """
    components = {name: _components(*pair, model.adapter_scale) for name, pair in
                  sorted(model.adapters.items())}  # fmt: skip
    gains = _gains(model, source)
    base_sha256 = weights_sha256(source)

    def at(step: float) -> Adapter:
        return Adapter(
            low_rank={name: _quantized(*parts, step) for name, parts in components.items()},
            gains=gains,
            base_sha256=base_sha256,
            history=history,
            local_heads=source.config.local_heads,
        )

    # Bytes fall as the step grows: bisection of its logarithm, from the finest one that has room.
    largest = max((float(sizes.max()) for _, sizes, _ in components.values()), default=1.0)
    fine, coarse = np.log2(largest / (CODE_MAX // 2)), np.log2(largest / 2)
    found: Adapter | None = None
    for tried in range(_SEARCH_STEPS):
        middle = (fine + coarse) / 2
        adapter = at(2.0**middle)
        if coded_bytes(adapter) <= budget_bytes:
            found, coarse = adapter, middle
        else:
            fine = middle
        progress(tried + 1, _SEARCH_STEPS)
    if found is None:
        raise UsageError(f"the adapter does not fit in {budget_bytes} bytes")
    return found


def _components(
    down: torch.Tensor, up: torch.Tensor, scale: float
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """The singular vectors and values of scale * up @ down: [outputs, r], [r], [r, inputs]."""
    left, left_core = np.linalg.qr(up.detach().double().numpy())
    right, right_core = np.linalg.qr(down.detach().double().numpy().T)
    inner, sizes, outer = np.linalg.svd(left_core @ right_core.T * scale)
    return left @ inner, sizes, outer @ right.T


def _quantized(
    left: Float64Array, sizes: Float64Array, right: Float64Array, step: float
) -> LowRank:
    """Whole numbers of the components that are not all zero (of the first, if they all are)."""
    roots = np.sqrt(np.maximum(sizes, 1e-30))
    steps = np.clip(step / roots, 2.0**-40, 2.0**8).astype(np.float32)
    a = np.rint(right * (roots / steps)[:, None])
    b = np.rint(left * (roots / steps))
    kept = np.flatnonzero(np.abs(a).any(axis=1) & np.abs(b).any(axis=0))
    kept = kept if len(kept) else np.array([0])
    return LowRank(
        a=np.clip(a[kept], -CODE_MAX, CODE_MAX).astype(np.int32),
        b=np.clip(b[:, kept], -CODE_MAX, CODE_MAX).astype(np.int32),
        steps=steps[kept],
    )


def _gains(model: FloatLlama, source: SourceModel) -> Mapping[str, tuple[np.ndarray, float]]:
    """The norm gains that tuning changed, as whole numbers and a step."""
    gains = {}
    for name, weight in model.weights.items():
        if weight.ndim == 1 and weight.requires_grad:
            delta = weight.detach().double().numpy() - source.tensors[name]
            step = float(np.float32(max(np.abs(delta).max() / _GAIN_CODES, 2.0**-40)))
            gains[name] = (np.rint(delta / step).astype(np.int32), step)
    return gains
