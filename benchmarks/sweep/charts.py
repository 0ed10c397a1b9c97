"""Records of sweeps as pictures, one a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.chart import new_axes, save
from benchmarks.sweep.experiment import AXES, BYTES
from benchmarks.sweep.tables import DIRECTIONS, Line, lines_of, s_per_mb, wall_s

_MARKERS = {"compress": "o", "decompress": "s"}


def draw(record: Mapping[str, Any], path: Path) -> list[Path]:
    """Write a PNG of each series of which something was measured.

    Args:
        path: the names begin like this one.

    Returns:
        the files written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines_of(record):
        groups.setdefault(line.series["name"], []).append(line)
    written = []
    for name, lines in groups.items():
        axis = lines[0].series["axis"]
        axes = new_axes(8, 4.5)
        _DRAWN.get(axis, _draw_speeds)(axes, lines)
        axes.set_title(f"{record['title']}: {name}", fontsize=9)
        written.append(path.with_name(f"{path.stem}-{name}.png"))
        save(axes, written[-1])
    return written


def _draw_times(axes: Any, lines: Sequence[Line]) -> None:
    """Seconds against bytes, and what they were if a byte always took as long."""
    for number, line in enumerate(lines):
        guide = line.reference or list(line.rows.values())[-1]
        sizes = list(line.rows)
        for direction in DIRECTIONS:
            times = [wall_s(row, direction) for row in line.rows.values()]
            axes.plot(sizes, times, marker=_MARKERS[direction], markersize=4, color=f"C{number}",
                      label=f"{line.text}, {direction}")  # fmt: skip
            linear = [s_per_mb(guide, direction) * size / 1e6 for size in sizes]
            axes.plot(sizes, linear, color="grey", linewidth=0.8, linestyle=":")
    axes.plot([], [], color="grey", linewidth=0.8, linestyle=":", label="linear")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(AXES[BYTES])
    axes.set_ylabel("seconds")
    axes.legend(fontsize=8, frameon=False)


def _draw_trade(axes: Any, lines: Sequence[Line]) -> None:
    """Bits a byte against seconds, both ways."""
    for number, line in enumerate(lines):
        bits = [row["bpb"] for row in line.rows.values()]
        for direction in DIRECTIONS:
            times = [wall_s(row, direction) for row in line.rows.values()]
            axes.plot(times, bits, marker=_MARKERS[direction], markersize=4, color=f"C{number}",
                      linestyle="-" if direction == "compress" else "--",
                      label=f"{line.text}, {direction}")  # fmt: skip
            for value, x, y in zip(line.rows, times, bits, strict=True):
                axes.annotate(str(value), (x, y), fontsize=7, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("seconds (numbers: levels)")
    axes.set_ylabel("bits per byte")
    axes.legend(fontsize=8, frameon=False)


def _draw_speeds(axes: Any, lines: Sequence[Line]) -> None:
    """Bytes a second to the left, bits a byte to the right."""
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    for number, line in enumerate(lines):
        values, rows = list(line.rows), line.rows.values()
        for direction in DIRECTIONS:
            speeds = [row["input"]["bytes"] / wall_s(row, direction) for row in rows]
            axes.plot(values, speeds, marker=_MARKERS[direction], markersize=4,
                      color=f"C{number}", label=f"{line.text}, {direction}")  # fmt: skip
        right.plot(values, [row["bpb"] for row in rows], marker="x", markersize=4,
                   color=f"C{number}", linestyle=":")  # fmt: skip
        axes.plot([], [], marker="x", markersize=4, color=f"C{number}", linestyle=":",
                  label=f"{line.text}, bits per byte")  # fmt: skip
    axis = lines[0].series["axis"]
    ticks = sorted({value for line in lines for value in line.rows})
    axes.set_xscale("log" if ticks[0] else "linear")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("bytes of text a second")
    right.set_ylabel("bits per byte")
    axes.legend(fontsize=8, frameon=False)


_DRAWN: Mapping[str, Callable[[Any, Sequence[Line]], None]] = MappingProxyType(
    {BYTES: _draw_times, "level": _draw_trade}
)
