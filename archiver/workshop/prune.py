"""`llmzip model prune`: a plan, carried out step by step, and the record of what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.errors import UsageError
from archiver.workshop.importance import (
    block_distances,
    channels_to_keep,
    heads_to_keep,
    input_sizes,
    least_block,
    least_needed_layers,
    passthrough_yaml,
    weight_scores,
)
from archiver.workshop.llama import FloatLlama, separate_weights
from archiver.workshop.measure import window_bits
from archiver.workshop.refit import refit
from archiver.workshop.reshape import (
    keep_channels,
    keep_heads,
    keep_layers,
    with_weights,
    zero_smallest,
)

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.workshop.calibration import Calibration

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What to remove; every part is optional, and they are done in this order.

    Attributes:
        layers, by: how many blocks, chosen by "distance" or "bits"; or remove: which.
        refit: whether the other blocks are fitted to what all did (see `refit`).
        heads, channels: how many of each block are kept.
        smallest: the share of every row's weights that become zero; weigh_inputs: judged with the
            size of their inputs.
    """

    layers: int | None = None
    by: str = "distance"
    remove: tuple[int, ...] | None = None
    refit: bool = False
    channels: int | None = None
    heads: int | None = None
    smallest: float | None = None
    weigh_inputs: bool = False

    def __post_init__(self) -> None:
        if self.layers is not None and self.remove is not None:
            raise UsageError("give either --layers or --remove")
        if self.smallest is not None and not 0 < self.smallest < 1:
            raise UsageError("--smallest has to be above 0 and below 1")
        if self.refit and self.layers is None and self.remove is None:
            raise UsageError("--refit needs --layers or --remove")
        if {self.layers, self.remove, self.channels, self.heads, self.smallest} == {None}:
            raise UsageError("give --layers, --remove, --channels, --heads or --smallest")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningReport:
    """What was measured and done, for prune.json and mergekit.yaml."""

    model_name: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    bpb_before: float
    bpb_after: float
    distances: list[list[float]] = field(default_factory=list)
    bits_without: list[dict[str, float]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Leave both files beside the weights."""
        table: dict[str, Any] = {
            "removed_layers": list(self.removed),
            "calibration_bpb": {"before": self.bpb_before, "after": self.bpb_after},
            "angular_distances": self.distances,
            "bits_a_token_without": self.bits_without,
        }
        (folder / "prune.json").write_text(json.dumps(table, indent=1) + "\n")
        (folder / "mergekit.yaml").write_text(passthrough_yaml(self.model_name, self.kept))

    def lines(self) -> Iterator[str]:
        """The report for people: distances of blocks as a chart of bars, then the outcome."""
        if self.distances and self.removed:
            span = len(self.removed)
            row = self.distances[span - 1]
            yield f"angular distance over {span} blocks, by the first of them"
            for first, distance in enumerate(row):
                mark = "*" if first == min(self.removed) else " "
                yield f"{mark}{first:4} {distance:.4f} {'#' * round(40 * distance / max(row))}"
        if self.removed:
            yield f"removed blocks {', '.join(map(str, self.removed))}"
        yield f"calibration text: {self.bpb_before:.4f} -> {self.bpb_after:.4f} bpb"


def prune_model(
    source: SourceModel,
    plan: Pruning,
    calibration: Calibration,
    progress: Progress = lambda done, total: None,
) -> tuple[SourceModel, PruningReport]:
    """The pruned weights, and the record.

    Raises:
        UsageError: the plan does not fit the model.
    """
    start, windows = source.start_token_id, calibration.windows

    def bpb(model: FloatLlama) -> float:
        return float(window_bits(model, windows, start).sum() / calibration.byte_count)

    model = FloatLlama.from_source(source)
    before = bpb(model)
    distances: list[list[float]] = []
    tables: list[dict[str, float]] = []
    removed: list[int] = list(plan.remove or ())
    if plan.layers is not None:
        if plan.by == "distance":
            found = block_distances(model, windows, start)
            distances = [[round(float(d), 6) for d in row] for row in found]
            removed = least_block(found, plan.layers)
        else:
            removed, costs = least_needed_layers(model, windows, start, plan.layers, progress)
            tables = [{str(layer): round(c, 6) for layer, c in table.items()} for table in costs]
    layers = range(source.config.layers)
    if set(removed) - set(layers):
        raise UsageError(f"the model has layers 0 to {source.config.layers - 1}")
    kept = [layer for layer in layers if layer not in removed]
    result, remark = source, calibration.describe()
    if removed:
        how = f"by {plan.by}, {remark}" if plan.layers is not None else "as asked"
        shown = ", ".join(map(str, sorted(removed)))
        result = keep_layers(result, kept, f"pruned: without blocks {shown} of "
                             f"{len(layers)}, {how}")  # fmt: skip
        whole, model = model, FloatLlama.from_source(result)
        if plan.refit:
            refit(model, whole, kept, windows, start, progress=progress)
            result = with_weights(
                result, separate_weights(model.config, model.weights),
                f"pruned: other blocks refitted, {remark}",
            )  # fmt: skip
    if plan.heads is not None:
        heads = heads_to_keep(model, input_sizes(model, windows, start), plan.heads)
        result = keep_heads(result, heads, f"pruned: {plan.heads} heads a block, {remark}")
        model = FloatLlama.from_source(result)
    if plan.channels is not None:
        channels = channels_to_keep(model, input_sizes(model, windows, start), plan.channels)
        result = keep_channels(
            result, channels, f"pruned: {plan.channels} feed-forward channels a block, {remark}"
        )
        model = FloatLlama.from_source(result)
    if plan.smallest is not None:
        sizes = input_sizes(model, windows, start) if plan.weigh_inputs else None
        how = f"by size and inputs, {remark}" if plan.weigh_inputs else "by size"
        result = zero_smallest(
            result, weight_scores(sizes), plan.smallest,
            f"pruned: {plan.smallest:g} of each row's weights zero, {how}",
        )  # fmt: skip
        model = FloatLlama.from_source(result)
    return result, PruningReport(
        model_name=source.name,
        kept=tuple(kept),
        removed=tuple(int(layer) for layer in removed),
        bpb_before=round(before, 5),
        bpb_after=round(bpb(model), 5),
        distances=distances,
        bits_without=tables,
    )
