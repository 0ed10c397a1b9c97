"""Results as a picture: bits per byte of each program on each file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.records import FileResult

_GROUP_WIDTH = 0.84


def new_axes(width: float, height: float) -> Any:
    """Return the axes of a new figure, in inches, without frame.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Without pyplot, no display is needed.
    axes = import_module("matplotlib.figure").Figure(figsize=(width, height), dpi=120).add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def save(axes: Any, path: Path) -> None:
    """Write the axes' figure as a PNG."""
    axes.figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path)


def draw_chart(results: Sequence[FileResult], path: Path) -> None:
    """Write a PNG with one group of bars a file and one bar a program that brought it back.

    Raises:
        ImportError: matplotlib is not installed.
    """
    files = list(dict.fromkeys(result.file.name for result in results))
    programs = list(dict.fromkeys(result.program for result in results))
    bpb = {(result.file.name, result.program): result.bpb for result in results}
    axes = new_axes(max(7.0, 1.5 + 1.3 * len(files)), 4.5)
    bar_width = _GROUP_WIDTH / len(programs)
    for number, program in enumerate(programs):
        heights = [bpb.get((name, program)) for name in files]
        places = [
            group - _GROUP_WIDTH / 2 + (number + 0.5) * bar_width for group in range(len(files))
        ]
        shown = [(x, height) for x, height in zip(places, heights, strict=True) if height]
        bars = axes.bar(
            [x for x, _ in shown], [height for _, height in shown], bar_width,
            label=program, color=f"C{number}",
        )  # fmt: skip
        if len(files) * len(programs) <= 40:
            axes.bar_label(bars, fmt="%.2f", fontsize=6, padding=1, rotation=90)
    axes.set_xticks(range(len(files)), files, rotation=25, ha="right", fontsize=8)
    axes.set_ylabel("bits per byte (smaller is better)")
    axes.margins(y=0.15)
    axes.legend(fontsize=8, ncols=min(4, len(programs)), frameon=False)
    save(axes, path)
