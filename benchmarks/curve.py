"""What a training run learned: held-out bits per byte against tokens, as table and picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chart import new_axes, save


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Held-out text measured during a run: its bits per byte by kind, and their mean."""

    step: int
    tokens: int
    mean_bpb: float
    bpb_by_kind: dict[str, float]


def read_measurements(log: Path) -> list[Measurement]:
    """The measurements in the log.json of a run."""
    tokens, found = 0, []
    for entry in json.loads(log.read_text(encoding="utf-8")):
        tokens += entry.get("tokens", 0)
        if "held_out_bpb" in entry:
            found.append(
                Measurement(
                    step=entry["step"],
                    tokens=tokens,
                    mean_bpb=entry["held_out_bpb"],
                    bpb_by_kind=entry["by_kind"],
                )
            )
    return found


def curve_table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table, a row a measurement, a column a kind of text."""
    kinds = list(measurements[0].bpb_by_kind)
    lines = [
        f"| step | tokens | mean | {' | '.join(kinds)} |",
        f"| ---: | ---: | ---: |{' ---: |' * len(kinds)}",
    ]
    for found in measurements:
        values = [found.mean_bpb, *(found.bpb_by_kind[kind] for kind in kinds)]
        shown = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {found.step} | {found.tokens:,} | {shown} |")
    return "\n".join(lines)


def draw_curve(measurements: Sequence[Measurement], path: Path) -> None:
    """Write a PNG: what every kind of text costs, relative to before training.

    Raises:
        ImportError: matplotlib is not installed.
    """
    axes = new_axes(7.5, 4.5)
    tokens = [found.tokens / 1e6 for found in measurements]
    first = measurements[0]
    for kind, before in first.bpb_by_kind.items():
        changes = [100 * (found.bpb_by_kind[kind] / before - 1) for found in measurements]
        axes.plot(tokens, changes, label=kind, linewidth=1)
    means = [100 * (found.mean_bpb / first.mean_bpb - 1) for found in measurements]
    axes.plot(tokens, means, label="mean", color="black", linewidth=2)
    axes.set_xlabel("million tokens trained on")
    axes.set_ylabel("held-out bits per byte, change in %")
    axes.legend(fontsize=8, ncols=2, frameon=False)
    save(axes, path)
