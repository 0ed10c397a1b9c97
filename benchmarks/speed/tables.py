"""A record of `speed` as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.stepwise import FORCED, Speed, speed_rows
from benchmarks.table import NOTHING, aligned, markdown


def tables(record: Mapping[str, Any]) -> str:
    """Return both directions and their stages, the roofline's figures, the speeds."""
    (measured,) = record["inputs"]
    blocks = [
        f"{measured['file']}  {measured['bytes']:,} bytes, {measured['tokens']:,} tokens, "
        f"{record['config']['threads']} threads"
    ]
    blocks += [_stages(record, direction) for direction in record["directions"]]
    blocks.append(_roofline(record))
    blocks.append("\n".join(aligned(speed_rows([Speed(**speed) for speed in record["speeds"]]))))
    if "missing" in record["transformers"]:
        blocks.append(f"without transformers: {record['transformers']['missing']}")
    return "\n\n".join(blocks)


def roof(roofs: Mapping[str, Any], intensity: float) -> float:
    """Return the operations a second that memory and arithmetic units allow at most.

    Args:
        intensity: operations for each byte of weights that is read.
    """
    return float(min(roofs["operations_per_s"], roofs["read_bytes_per_s"] * intensity))


def _stages(record: Mapping[str, Any], direction: Mapping[str, Any]) -> str:
    name = direction["name"]
    stages_us = record["parts"]["stages_us"][name]
    total_us = sum(stages_us.values())
    rows = [("", "us/token, one thread", "of all")]
    rows += [
        (stage, f"{us:,.1f}", f"{100 * us / total_us:.1f} %") for stage, us in stages_us.items()
    ]
    heading = (
        f"{name}: {direction['wall_s']:.1f} s, {direction['ratio']:.2f} times the floor of "
        f"{direction['floor_s']:.1f} s ({record['parts']['floor'][name]['rows']} rows a product)"
    )
    return "\n".join([heading, *aligned(rows)])


def _roofline(record: Mapping[str, Any]) -> str:
    """The products of each direction, shape by shape, and the direction as a whole."""
    roofs = record["parts"]["roofs"]
    rows = [("", "Mop/token", "MB of weights", "op/byte", "Gop/s", "of the roof")]
    for direction in record["directions"]:
        floor = record["parts"]["floor"][direction["name"]]
        whole = {
            "name": "all products",
            "operations_per_token": floor["operations_per_token"],
            "weight_bytes": sum(shape["weight_bytes"] for shape in floor["shapes"]),
            "operations_per_s": floor["operations_per_s"],
        }
        everything = whole | {
            "name": "everything", "operations_per_s": direction["operations_per_s"],
        }  # fmt: skip
        for shape in (*floor["shapes"], whole, everything):
            part = shape["operations_per_s"] / roof(roofs, floor["intensity"])
            rows.append(
                (
                    f"{direction['name']}, {shape['name']}",
                    f"{shape['operations_per_token'] / 1e6:,.1f}",
                    f"{shape['weight_bytes'] / 1e6:,.1f}", str(floor["intensity"]),
                    f"{shape['operations_per_s'] / 1e9:,.1f}", f"{100 * part:.1f} %",
                )
            )  # fmt: skip
    heading = (
        f"int8 operations; roofs: {roofs['operations_per_s'] / 1e9:,.1f} Gop/s, "
        f"{roofs['read_bytes_per_s'] / 1e9:,.1f} GB/s read "
        f"({roofs['summed_bytes_per_s'] / 1e9:,.1f} GB/s of a buffer beyond the caches)"
    )
    return "\n".join([heading, *aligned(rows)])


def excerpt(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as Markdown: both directions of each text, then the shares of the stages."""
    hardware = records[-1]["hardware"]
    conditions = (
        f"{hardware['cpu']}, {hardware['cores']} cores, {records[-1]['date'][:10]}, commit "
        f"{records[-1]['git']['commit'][:7]}, {records[-1]['config']['threads']} threads."
    )
    rows = [["file", "direction", "s", "kB/s", "tokens/s", "times the floor",
             "times stepwise", "times teacher-forced", "peak MB"]]  # fmt: skip
    stages: dict[str, dict[str, float]] = {}
    for record in records:
        (result,) = record["results"]
        for direction in record["directions"]:
            name = direction["name"]
            rows.append(
                [
                    result["file"], name, f"{direction['wall_s']:.0f}",
                    f"{result[name]['bytes_per_s'] / 1000:.2f}",
                    f"{record['inputs'][0]['tokens'] / direction['wall_s']:,.0f}",
                    f"{direction['ratio']:.2f}", *_against_transformers(record, name),
                    f"{result[name]['peak_bytes'] / 1e6:,.0f}",
                ]
            )  # fmt: skip
            stages[f"{result['file']}, {name}"] = record["parts"]["stages_us"][name]
    names = dict.fromkeys(stage for of_case in stages.values() for stage in of_case)
    shares = [["stage", *stages]]
    for stage in names:
        cells = [of_case.get(stage, 0.0) / sum(of_case.values()) for of_case in stages.values()]
        shares.append([stage, *(f"{100 * share:.1f} %" for share in cells)])
    return "\n\n".join([conditions, markdown(rows), markdown(shares)])


def _against_transformers(record: Mapping[str, Any], direction: str) -> tuple[str, str]:
    """How many times as fast as transformers: token by token at two contexts, and in blocks."""
    (speed,) = (speed for speed in record["speeds"] if speed["name"] == f"llmzip {direction}")
    forced = speed["ratios"].get(FORCED)
    stepwise = sorted(ratio for name, ratio in speed["ratios"].items() if name != FORCED)
    return (
        f"{stepwise[0]:.0f} to {stepwise[-1]:.0f}" if stepwise else NOTHING,
        NOTHING if forced is None else f"{forced:.1f}",
    )
