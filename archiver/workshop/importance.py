"""Which blocks, channels and heads a model can best do without, measured on a calibration text.

Block distances follow PruneMe (Gromov et al., "The Unreasonable Ineffectiveness of the Deeper
Layers", 2024): the angle between what enters block l and what enters block l + n at the last token
of a window, as a share of a half turn; the n blocks between the closest pair do least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from archiver.errors import UsageError
from archiver.workshop.measure import BATCH_TOKENS, window_bits

if TYPE_CHECKING:
    from archiver.types import Float32Array, Float64Array, Int64Array
    from archiver.workshop.llama import FloatLlama

Progress = Callable[[int, int], None]
CHANNEL_UNIT = 16  # the engine takes feed-forward sizes that are multiples of it


def block_distances(
    model: FloatLlama, windows: Int64Array, start_token_id: int
) -> list[Float64Array]:
    """Mean angular distances between what enters blocks l and l + n.

    Args:
        windows: int64 [windows, steps], all real tokens.

    Returns:
        For each n from 1 to the number of blocks, float64 [blocks - n + 1] by l, in 0 .. 1.
    """
    entering: dict[str, list[torch.Tensor]] = {}
    steps = windows.shape[1]
    with torch.no_grad():
        for part in _batches(windows):

            def observe(name: str, vectors: torch.Tensor, streams: int = len(part)) -> None:
                if name == "norm" or name.count(".") == 1:
                    last = vectors.view(streams, steps, -1)[:, -1].double()
                    entering.setdefault(name, []).append(last / last.norm(dim=1, keepdim=True))

            model.hidden(_inputs(part, start_token_id), observe=observe)
    layers = model.config.layers
    names = [*(f"layers.{layer}" for layer in range(layers)), "norm"]
    units = [torch.cat(entering[name]) for name in names]
    found = []
    for span in range(1, layers + 1):
        cosines = [(units[at] * units[at + span]).sum(dim=1) for at in range(layers - span + 1)]
        angles = [torch.arccos(c.clamp(-1.0, 1.0)).mean().item() / np.pi for c in cosines]
        found.append(np.array(angles))
    return found


def least_block(distances: Sequence[Float64Array], count: int) -> list[int]:
    """The run of that many blocks with the least distance between its ends."""
    if not 1 <= count < len(distances):
        raise UsageError(f"1 to {len(distances) - 1} layers can be removed")
    first = int(np.argmin(distances[count - 1]))
    return list(range(first, first + count))


def least_needed_layers(
    model: FloatLlama,
    windows: Int64Array,
    start_token_id: int,
    count: int,
    progress: Progress = lambda done, total: None,
) -> tuple[list[int], list[dict[int, float]]]:
    """Blocks whose removal, one after the other, costs the fewest bits: a greedy search.

    Returns:
        The removed blocks, and for each step the mean bits a token without each candidate too.
    """
    if not 1 <= count < model.config.layers:
        raise UsageError(f"1 to {model.config.layers - 1} layers can be removed")
    left, removed, tables = list(range(model.config.layers)), [], []
    total = sum(len(left) - gone for gone in range(count))
    done = 0
    for _ in range(count):
        table = {}
        for layer in left:
            rest = [other for other in left if other != layer]
            bits = window_bits(model, windows, start_token_id, layers=rest)
            table[layer] = float(bits.mean())
            done += 1
            progress(done, total)
        best = min(table, key=lambda layer: (table[layer], layer))
        left.remove(best)
        removed.append(best)
        tables.append(table)
    return removed, tables


def input_sizes(
    model: FloatLlama, windows: Int64Array, start_token_id: int
) -> dict[str, Float64Array]:
    """Root of the mean square of every input of every joined matrix, float64 [inputs] by name."""
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for part in _batches(windows):

            def observe(name: str, vectors: torch.Tensor) -> None:
                if name.count(".") == 2:
                    squares = vectors.float().square().sum(dim=0).double()
                    sums[name] = sums[name] + squares if name in sums else squares

            model.hidden(_inputs(part, start_token_id), observe=observe)
    return {name: np.sqrt(total.numpy() / windows.size) for name, total in sums.items()}


def channels_to_keep(
    model: FloatLlama, sizes: dict[str, Float64Array], count: int
) -> list[Int64Array]:
    """For each block the feed-forward channels that contribute most, ascending.

    A channel's contribution is the size of its activation times that of its column of `down`.

    Raises:
        UsageError: the engine takes no model with so many channels.
    """
    if not 1 <= count <= model.config.ffn or count % CHANNEL_UNIT:
        raise UsageError(f"channels: a multiple of {CHANNEL_UNIT}, at most {model.config.ffn}")
    kept = []
    for layer in range(model.config.layers):
        columns = model.merged(f"layers.{layer}.down").double().norm(dim=0).numpy()
        kept.append(_greatest(sizes[f"layers.{layer}.down"] * columns, count))
    return kept


def heads_to_keep(
    model: FloatLlama, sizes: dict[str, Float64Array], count: int
) -> list[Int64Array]:
    """For each block the query heads that contribute most, ascending; as many of every key head.

    Raises:
        UsageError: that many heads cannot share the key heads evenly.
    """
    config = model.config
    if not 1 <= count <= config.heads or count % config.kv_heads:
        raise UsageError(f"heads: a multiple of {config.kv_heads}, at most {config.heads}")
    kept = []
    for layer in range(config.layers):
        columns = model.merged(f"layers.{layer}.o").double().norm(dim=0).numpy()
        shares = (sizes[f"layers.{layer}.o"] * columns) ** 2
        scores = shares.reshape(config.kv_heads, -1, config.head_dim).sum(axis=2)
        each = count // config.kv_heads
        places = [_greatest(row, each) for row in scores]
        kept.append(
            np.concatenate([group * scores.shape[1] + found for group, found in enumerate(places)])
        )
    return kept


def weight_scores(
    sizes: dict[str, Float64Array] | None,
) -> Callable[[str, Float32Array], Float32Array]:
    """How much each weight matters: its size, times that of its input where sizes are given.

    The latter is Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language
    Models", 2023).
    """
    joined = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}

    def score(name: str, weights: Float32Array) -> Float32Array:
        magnitudes = np.abs(weights)
        if sizes is None:
            return magnitudes
        layer, _, kind = name.rpartition(".")
        return magnitudes * sizes[f"{layer}.{joined.get(kind, kind)}"].astype(np.float32)

    return score


def passthrough_yaml(model_name: str, kept: Sequence[int]) -> str:
    """The kept blocks as a recipe for mergekit; its ranges are half-open."""
    lines = ["slices:"]
    start = 0
    for place in range(1, len(kept) + 1):
        if place == len(kept) or kept[place] != kept[place - 1] + 1:
            lines += [
                "  - sources:",
                f"      - model: {model_name}",
                f"        layer_range: [{kept[start]}, {kept[place - 1] + 1}]",
            ]
            start = place
    return "\n".join([*lines, "merge_method: passthrough", "dtype: float32", ""])


def _greatest(scores: Float64Array, count: int) -> Int64Array:
    """The indices of the greatest scores, ascending."""
    order: Int64Array = np.sort(np.argsort(-scores, kind="stable")[:count])
    return order


def _batches(windows: Int64Array) -> Sequence[torch.Tensor]:
    parts: Sequence[torch.Tensor] = torch.from_numpy(windows).split(
        max(1, BATCH_TOKENS // windows.shape[1])
    )
    return parts


def _inputs(targets: torch.Tensor, start_token_id: int) -> torch.Tensor:
    start = torch.full((len(targets), 1), start_token_id, dtype=torch.int64)
    return torch.cat([start, targets[:, :-1]], dim=1)
