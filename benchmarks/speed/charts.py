"""A record of `speed` as a roofline: operations a second against arithmetic intensity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.chart import new_axes, save
from benchmarks.speed.tables import roof

_MARKERS = {"compress": "o", "decompress": "s"}


def draw(record: Mapping[str, Any], path: Path) -> list[Path]:
    """Write a PNG of the roofs, the products below them, and both directions as a whole.

    Raises:
        ImportError: matplotlib is not installed.
    """
    parts = record["parts"]
    roofs, curve = parts["roofs"], parts["roofs"]["products"]
    axes = new_axes(8, 5.5)
    ridge = roofs["operations_per_s"] / roofs["read_bytes_per_s"]
    intensities = sorted({1.0, ridge, *(float(found["intensity"]) for found in curve)})
    axes.plot(intensities, [roof(roofs, place) / 1e9 for place in intensities], color="black",
              linewidth=1, label="roofs: reading weights, arithmetic units")  # fmt: skip
    axes.plot([found["intensity"] for found in curve],
              [found["operations_per_s"] / 1e9 for found in curve],
              color="grey", linewidth=0.8, marker=".", label="bare products, by rows")  # fmt: skip
    for number, direction in enumerate(record["directions"]):
        name, color = direction["name"], f"C{number}"
        floor = parts["floor"][name]
        shapes = [shape["operations_per_s"] / 1e9 for shape in floor["shapes"]]
        axes.scatter([floor["intensity"]] * len(shapes), shapes, s=14, marker="x", color=color,
                     label=f"{name}: products of each shape")  # fmt: skip
        axes.scatter([floor["intensity"]], [floor["operations_per_s"] / 1e9], s=45, color=color,
                     marker=_MARKERS[name], label=f"{name}: products alone")  # fmt: skip
        axes.scatter([floor["intensity"]], [direction["operations_per_s"] / 1e9], s=45,
                     marker=_MARKERS[name], facecolors="none", edgecolors=color,
                     label=f"{name}: everything")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("int8 operations a byte of weights read")
    axes.set_ylabel("1e9 int8 operations a second")
    (measured,) = record["inputs"]
    axes.set_title(f"{measured['file']}, {record['config']['threads']} threads", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    save(axes, path)
    return [path]
