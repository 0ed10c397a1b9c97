"""Records of experiments as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chart import new_axes, save
from benchmarks.resumable import Row
from benchmarks.steering.tables import by_text, change, gains, pairs, roles

_GROUP_WIDTH = 0.84

Bars = dict[str, dict[str, float]]
"""Heights by series and by group."""


def draw(record: Mapping[str, Any], path: Path) -> list[Path]:
    """Write a PNG of what was measured, where there is something to show; return what was written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = [row for row in record["rows"] if row["verified"]]
    kind = record["experiment"]["kind"]
    axes = new_axes(8, 4.5)
    if kind == "growth":
        shown = _draw_lines(axes, rows)
    elif kind == "priors":
        shown = _draw_stacks(axes, rows)
    else:
        label, bars = _bars(kind, rows)
        shown = _draw_bars(axes, bars, label)
    if not shown:
        return []
    axes.set_title(record["title"], fontsize=9)
    save(axes, path)
    return [path]


def _bars(kind: str, rows: Sequence[Row]) -> tuple[str, Bars]:
    """What the bars are, and their heights."""
    found: Bars = {}
    if kind == "choice":
        for chunks, by_name in pairs(rows).items():
            found[chunks] = {
                name: 100 * change(row, plain) for name, (plain, row) in by_name.items()
            }
        return "auto against none, %", found
    for name, group in by_text(rows).items():
        ways = roles(group)
        for role, row in ways.items():
            if kind != "halves":
                found.setdefault(role, {})[name] = row["bpb"]
            elif role != "none" and "none" in ways:
                found.setdefault(role, {})[name] = 100 * change(row, ways["none"])
    return ("against none, %" if kind == "halves" else "bits per byte"), found


def _draw_bars(axes: Any, bars: Bars, label: str) -> bool:
    groups = list(dict.fromkeys(group for series in bars.values() for group in series))
    width = _GROUP_WIDTH / max(len(bars), 1)
    for number, (name, heights) in enumerate(bars.items()):
        offset = (number + 0.5) * width - _GROUP_WIDTH / 2
        places = [groups.index(group) + offset for group in heights]
        drawn = axes.bar(places, list(heights.values()), width, label=name)
        if len(groups) * len(bars) <= 40:
            axes.bar_label(drawn, fmt="%.3g", fontsize=6, padding=1)
    axes.set_xticks(range(len(groups)), groups, rotation=25, ha="right", fontsize=8)
    axes.set_ylabel(label)
    axes.axhline(0, color="black", linewidth=0.5)
    if bars:
        axes.legend(fontsize=7, frameon=False)
    return bool(groups)


def _draw_stacks(axes: Any, rows: Sequence[Row]) -> bool:
    """Text bytes, and the vectors' bytes on top of them, by prior, for every text."""
    names = [
        f"{row['case']['role']}" + (f"\n{text}" if len(by_text(rows)) > 1 else "")
        for text, group in by_text(rows).items()
        for row in group
    ]
    parts = [row["parts"] for group in by_text(rows).values() for row in group]
    texts = [part["payload_bytes"] for part in parts]
    vectors = [part["side_information_bytes"] for part in parts]
    axes.bar(range(len(names)), texts, label="text")
    axes.bar(range(len(names)), vectors, bottom=texts, label="vectors")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=7)
    axes.set_ylabel("bytes")
    if texts:  # the differences are small: not from 0
        axes.set_ylim(bottom=0.9 * min(texts))
        axes.legend(fontsize=8, frameon=False)
    return bool(names)


def _draw_lines(axes: Any, rows: Sequence[Row]) -> bool:
    """What part of the archive is saved, over the text's length, by number of vectors."""
    several = len(by_text(rows)) > 1
    shown = False
    for text, group in by_text(rows).items():
        for vectors, by_size in gains(group).items():
            sizes = sorted(by_size)
            label = f"{vectors} vectors" + (f", {text}" if several else "")
            axes.plot(sizes, [100 * by_size[size] for size in sizes], marker="o", label=label)
            shown = True
    axes.set_xscale("log")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xlabel("bytes of text")
    axes.set_ylabel("saved, vectors included, %")
    if shown:
        axes.legend(fontsize=8, frameon=False)
    return shown
