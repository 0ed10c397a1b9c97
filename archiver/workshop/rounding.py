"""Weights in 2 to 8 bits: round to nearest, NF4, GPTQ.

Groups are runs of weights in a row; each has a scale (and a minimum) in float16, so what a packed
tensor expands to is decided here by the same arithmetic that expands it (``predict.packed``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from archiver.errors import UsageError
from archiver.predict.packed import (
    NF4,
    RANGE_BLOCKS,
    Packing,
    dynamic_table,
    expand,
    pack_codes,
)
from archiver.workshop.names import JOINED, MATRICES

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.types import Float32Array, Float64Array, Int64Array, UInt8Array
    from archiver.workshop.llama import FloatLlama

Packed = tuple[Packing, dict[str, np.ndarray]]
Progress = Callable[[int, int], None]

SHRINKS = 24  # tried sizes of a group's range, from the full one down to 60 %
BLOCK_COLUMNS = 64  # of GPTQ between updates of all later columns


def check_packing(packing: Packing, source: SourceModel) -> None:
    """Refuse a group that does not divide the rows of the model's matrices.

    Raises:
        UsageError: it does not.
    """
    config = source.config
    for inputs in (config.hidden, config.heads * config.head_dim, config.ffn):
        if inputs % packing.group:
            raise UsageError(f"groups of {packing.group} do not divide rows of {inputs} weights")


def round_to_nearest(
    weights: Float32Array, packing: Packing, importance: Float64Array | None = None
) -> Packed:
    """The weights on the grid of their group, each rounded to the nearest point.

    Args:
        weights: float32 [outputs, inputs].
        importance: float64 [inputs], of an error's square; given, each group's range is chosen for
            the least weighted error instead of covering all its weights.
    """
    if packing.method == "nf4":
        return packing, _nf4(weights, packing.group)
    scales, minima = _grid(weights, packing, importance)
    codes = _codes(weights.reshape(*scales.shape, -1), scales, minima, packing)
    return packing, _parts(codes.reshape(weights.shape), scales, minima, packing)


def gptq(
    weights: Float32Array,
    hessian: Float64Array,
    packing: Packing,
    *,
    damping: float = 0.01,
    by_activation: bool = True,
) -> Packed:
    """The weights on the grid of their group, rounded so that the errors cancel in the outputs.

    Column after column is rounded, and what that changes in the outputs on the calibration text
    is made up for by the columns not yet rounded.

    Args:
        weights: float32 [outputs, inputs].
        hessian: float64 [inputs, inputs], sum of x x^T over the calibration text.
        damping: added to the diagonal, as a share of its mean.
        by_activation: whether the columns with the largest inputs come first.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022), with act-order and groups whose grids are set beforehand.
    """
    inputs = weights.shape[1]
    diagonal = np.diag(hessian).copy()
    scales, minima = _grid(weights, packing, diagonal + diagonal.mean() * damping + 1e-12)
    hessian = hessian.copy()
    dead = diagonal <= 0
    hessian[dead, dead] = 1.0
    hessian[np.diag_indices(inputs)] += damping * float(np.diag(hessian).mean())
    order = np.argsort(-diagonal, kind="stable") if by_activation else np.arange(inputs)
    permuted = torch.from_numpy(hessian[np.ix_(order, order)])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(permuted))
    # Row i of the upper factor says how later columns make up for an error in column i.
    upper = torch.linalg.cholesky(inverse, upper=True).numpy()
    left = weights.astype(np.float64)[:, order]
    left[:, dead[order]] = 0.0
    codes = np.zeros(weights.shape, np.uint8)
    for start in range(0, inputs, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, inputs)
        errors = np.empty((len(weights), end - start))
        for column in range(start, end):
            group = order[column] // packing.group
            scale, low = scales[:, group], minima[:, group]
            wanted = left[:, column].astype(np.float32)
            code = _codes(wanted[:, None, None], scale[:, None], low[:, None], packing)[:, 0, 0]
            codes[:, order[column]] = code
            rounded = _points(code, scale, low, packing)
            error = (left[:, column] - rounded) / upper[column, column]
            left[:, column:end] -= np.outer(error, upper[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return packing, _parts(codes, scales, minima, packing)


def quantize_model(
    source: SourceModel,
    packing: Packing,
    head: Packing,
    *,
    search: bool,
    sizes: Mapping[str, Float64Array] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Packed]:
    """All matrices of a model, rounded to nearest.

    Args:
        packing: of the blocks' matrices; head: of embedding and head.
        search: whether each group's range is chosen for the least squared error,
        sizes: and what weighs it: those of the inputs of each joined matrix.
    """
    joined_of = {part: joined for joined, parts in JOINED.items() for part in parts}
    names = [name for name in source.tensors if len(source.tensors[name].shape) == 2]
    packed = {}
    for done, name in enumerate(names):
        weights = source.tensors[name]
        if name.startswith("layers."):
            layer, _, kind = name.rpartition(".")
            importance = np.ones(weights.shape[1]) if search else None
            if search and sizes is not None:
                importance = sizes[f"{layer}.{joined_of.get(kind, kind)}"] ** 2
            packed[name] = round_to_nearest(weights, packing, importance)
        else:
            packed[name] = round_to_nearest(weights, head)
        progress(done + 1, len(names))
    return packed


def gptq_model(
    model: FloatLlama,
    source: SourceModel,
    windows: Int64Array,
    packing: Packing,
    head: Packing,
    *,
    damping: float,
    by_activation: bool,
    progress: Progress = lambda done, total: None,
) -> dict[str, Packed]:
    """All matrices of a model by GPTQ, block after block, each calibrated behind quantized ones.

    Args:
        model: the source's, changed in place to what the packed tensors expand to.
        windows: int64 [windows, steps], the calibration text.
    """
    packed = {
        name: round_to_nearest(source.tensors[name], head)
        for name in ("embed", "head")
        if name in source.tensors
    }
    model.weights["embed"] = torch.from_numpy(_expanded("embed", packed, source))
    start = torch.full((len(windows), 1), source.start_token_id, dtype=torch.int64)
    inputs = torch.cat([start, torch.from_numpy(windows)[:, :-1]], dim=1)
    layers = model.config.layers
    with torch.no_grad():
        states = [(part, *model.enter(part)) for part in inputs.split(4)]
        for layer in range(layers):
            for kind in MATRICES:
                name = f"layers.{layer}.{kind}"
                hessian = _hessian(model, layer, name, states)
                weights = model.weights[name].numpy()
                found = gptq(
                    weights, hessian, packing, damping=damping, by_activation=by_activation
                )
                _split(name, found, packed, source)
                model.weights[name] = torch.from_numpy(
                    expand(name, weights.shape, packing, _named(name, found))
                )
                model.refresh()
            states = [
                (part, *model.block(layer, stream, addend, len(part)))
                for part, stream, addend in states
            ]
            progress(layer + 1, layers)
    return packed


def _hessian(
    model: FloatLlama,
    layer: int,
    name: str,
    states: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Float64Array:
    """Sum of x x^T over the calibration text for one matrix, float64."""
    total: list[torch.Tensor] = []

    def observe(seen: str, vectors: torch.Tensor) -> None:
        if seen == name:
            wide = vectors.float()
            total.append((wide.T @ wide).double())

    for part, stream, addend in states:
        model.block(layer, stream, addend, len(part), observe)
    hessian: Float64Array = torch.stack(total).sum(dim=0).numpy()
    return hessian


def _split(name: str, found: Packed, packed: dict[str, Packed], source: SourceModel) -> None:
    """Put the parts of a joined matrix where the source has them."""
    packing, arrays = found
    layer, _, kind = name.rpartition(".")
    first = 0
    for part in JOINED.get(kind, (kind,)):
        target = f"{layer}.{part}"
        last = first + source.tensors[target].shape[0]
        rows = slice(first, last)
        packed[target] = (packing, {suffix: array[rows] for suffix, array in arrays.items()})
        first = last


def _expanded(name: str, packed: Mapping[str, Packed], source: SourceModel) -> Float32Array:
    packing, _ = packed[name]
    return expand(name, source.tensors[name].shape, packing, _named(name, packed[name]))


def _named(name: str, packed: Packed) -> dict[str, np.ndarray]:
    return {f"{name}{suffix}": array for suffix, array in packed[1].items()}


# --- grids --------------------------------------------------------------------------------------


def _grid(
    weights: Float32Array, packing: Packing, importance: Float64Array | None
) -> tuple[Float32Array, Float32Array]:
    """Scales and minima of the groups, float32 [outputs, groups], as float16 holds them."""
    groups = weights.reshape(len(weights), -1, packing.group)
    if importance is None:
        return _range_grid(groups, packing, 1.0)
    weight = importance.reshape(1, -1, packing.group).astype(np.float32)
    best_error = np.full(groups.shape[:2], np.inf, np.float32)
    best = _range_grid(groups, packing, 1.0)
    for shrink in np.linspace(1.0, 0.6, SHRINKS):
        scales, minima = _range_grid(groups, packing, float(shrink))
        codes = _codes(groups, scales, minima, packing)
        points = _points(codes, scales[..., None], minima[..., None], packing)
        error = (np.square(points - groups) * weight).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = (np.where(better, scales, best[0]), np.where(better, minima, best[1]))
    return best


def _range_grid(
    groups: Float32Array, packing: Packing, shrink: float
) -> tuple[Float32Array, Float32Array]:
    """The grid that spans that share of each group's range."""
    top = (1 << packing.bits) - 1
    if packing.method == "symmetric":
        reach = np.abs(groups).max(axis=2) * shrink
        return _float16(reach / ((1 << (packing.bits - 1)) - 1)), np.zeros_like(reach)
    low, high = groups.min(axis=2) * shrink, groups.max(axis=2) * shrink
    return _float16((high - low) / top), _float16(low)


def _float16(values: np.ndarray) -> Float32Array:
    return values.astype(np.float16).astype(np.float32)


def _codes(
    groups: Float32Array, scales: Float32Array, minima: Float32Array, packing: Packing
) -> UInt8Array:
    """The nearest points' codes, uint8 like groups [outputs, groups, group]."""
    divisor = np.where(scales > 0, scales, np.float32(1))[..., None]
    top = (1 << packing.bits) - 1
    if packing.method == "symmetric":
        middle = 1 << (packing.bits - 1)
        found = np.clip(np.rint(groups / divisor) + middle, 1, top)
    else:
        found = np.clip(np.rint((groups - minima[..., None]) / divisor), 0, top)
    codes: UInt8Array = found.astype(np.uint8)
    return codes


def _points(
    codes: UInt8Array, scales: Float32Array, minima: Float32Array, packing: Packing
) -> Float32Array:
    """What the codes expand to."""
    if packing.method == "symmetric":
        centred: Float32Array = codes.astype(np.float32) - np.float32(1 << (packing.bits - 1))
        return centred * scales
    points: Float32Array = codes.astype(np.float32) * scales + minima
    return points


def _parts(
    codes: UInt8Array, scales: Float32Array, minima: Float32Array, packing: Packing
) -> dict[str, np.ndarray]:
    parts: dict[str, np.ndarray] = {
        ".codes": pack_codes(codes, packing.bits),
        ".scales": scales.astype(np.float16),
    }
    if packing.method == "grid":
        parts[".minima"] = minima.astype(np.float16)
    return parts


def _nf4(weights: Float32Array, block: int) -> dict[str, np.ndarray]:
    """NF4 codes, with the blocks' scales themselves quantized to 8 bits."""
    blocks = weights.reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)
    # An exact sum, so that the mean does not depend on the order of summation.
    offset = np.float32(math.fsum(scales.tolist()) / len(scales))
    centred = scales - offset
    count = -(-len(centred) // RANGE_BLOCKS)
    padded = np.zeros(count * RANGE_BLOCKS, np.float32)
    padded[: len(centred)] = centred
    ranges = np.abs(padded.reshape(count, RANGE_BLOCKS)).max(axis=1)
    spread = np.repeat(np.where(ranges > 0, ranges, np.float32(1)), RANGE_BLOCKS)[: len(centred)]
    scale_codes = _nearest(dynamic_table(), centred / spread)
    stored = dynamic_table()[scale_codes] * np.repeat(ranges, RANGE_BLOCKS)[: len(centred)] + offset
    safe = np.where(stored > 0, stored, np.float32(1))
    codes = _nearest(NF4, blocks / safe[:, None])
    return {
        ".codes": pack_codes(codes.reshape(weights.shape), 4),
        ".scales": scale_codes,
        ".ranges": ranges.astype(np.float32),
        ".offset": np.array([offset], np.float32),
    }


def _nearest(table: Float32Array, values: np.ndarray) -> UInt8Array:
    """The index of the nearest value of an ascending table, uint8; the lower one at a tie."""
    middles = (table[:-1].astype(np.float64) + table[1:].astype(np.float64)) / 2
    return np.searchsorted(middles, values).astype(np.uint8)
