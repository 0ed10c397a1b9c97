"""Records of predictors as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.chart import new_axes, save
from benchmarks.predictors.tables import both_ways_s, by_text
from benchmarks.resumable import Row


def draw(record: Mapping[str, Any], path: Path) -> list[Path]:
    """Write PNGs of what was measured: bits a byte against bytes and speed, and block distances.

    Args:
        path: the names begin like this one.

    Returns:
        the files written: only those that have something to show.

    Raises:
        ImportError: matplotlib is not installed.
    """
    written = []
    if by_text(record):
        places: dict[str, tuple[str, Callable[[Row], float]]] = {
            "bytes": ("MB to keep", lambda row: row["predictor"]["stored_bytes"] / 1e6),
            "speed": ("kB/s, both ways", lambda row: _speed(row) / 1e3),
        }
        for name, (label, place) in places.items():
            written.append(path.with_name(f"{path.stem}-{name}.png"))
            _draw_points(record, label, place, written[-1])
    distances = _distances(record)
    if distances:
        written.append(path.with_name(f"{path.stem}-blocks.png"))
        _draw_distances(record["title"], distances, written[-1])
    return written


def _speed(row: Row) -> float:
    """Bytes of text a second, there and back."""
    return float(row["input"]["bytes"] / both_ways_s(row))


def _draw_points(
    record: Mapping[str, Any], label: str, place: Callable[[Row], float], path: Path
) -> None:
    axes = new_axes(8, 5.5)
    for number, (text, rows) in enumerate(by_text(record).items()):
        across, bits = [place(row) for row in rows], [row["bpb"] for row in rows]
        axes.scatter(across, bits, s=18, color=f"C{number}", label=text)
        for row, x, y in zip(rows, across, bits, strict=True):
            axes.annotate(row["case"]["predictor"], (x, y), fontsize=6, xytext=(3, 2),
                          textcoords="offset points")  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel("bits per byte")
    axes.set_title(record["title"], fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    save(axes, path)


def _distances(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Angular distances by first block, by what was measured."""
    found: dict[str, list[float]] = {}
    for row in record["rows"]:
        pruning = row.get("predictor", {}).get("pruning")
        if pruning and pruning["angular_distances"]:
            name = f"{len(pruning['removed_layers'])} blocks"
            found.setdefault(name, pruning["angular_distances"])
    return found


def _draw_distances(title: str, distances: Mapping[str, list[float]], path: Path) -> None:
    axes = new_axes(8, 4.5)
    for name, values in distances.items():
        axes.plot(range(len(values)), values, marker="o", markersize=3, label=name)
    axes.set_xlabel("first block")
    axes.set_ylabel("angular distance")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    save(axes, path)
