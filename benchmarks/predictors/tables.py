"""Records of predictors as text: a table a text for a terminal, one of all for the README."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.resumable import Row
from benchmarks.table import NOTHING, aligned, change, markdown

_MEMBERS_MIN = 2  # of a family, for a line

_NOTES = """\
MB: of what has to be kept, packed weights or the engine's int8 package. bits/w: of the blocks'
matrices as they are kept, scales included. ratio: archive / text. speed: both ways, as many times
that of the predictor it is compared with. effective: millions of parameters at which the line of
log size against bpb through the unpruned family has the same bpb. bpb marked *: coded by zstd or
stored, which takes less than the model."""

_OTHER_CODING = "*"  # after bits a byte that no model gave
_OTHER_CODING_NOTE = (
    "* coded by zstd or stored, which takes less than the model: speed and change are not its own."
)


def tables(record: Mapping[str, Any]) -> str:
    """Return what is known so far: a table a text, and a line for each archive that failed."""
    blocks = [
        "\n".join([f"{text}  {rows[0]['input']['bytes']:,} bytes", *aligned(_table(record, rows))])
        for text, rows in by_text(record).items()
    ]
    blocks = [*blocks, _NOTES] if blocks else ["nothing was measured yet"]
    failures = [
        f"FAILED  {row['case']['text']}, {row['case']['predictor']}: {row['failure']}"
        for row in record["rows"]
        if not row["verified"]
    ]
    return "\n\n".join([*blocks, *failures])


def by_text(record: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return the decoded archives of each text, in order."""
    groups: dict[str, list[Row]] = {}
    for row in record["rows"]:
        if row["verified"]:
            groups.setdefault(row["case"]["text"], []).append(row)
    return groups


def both_ways_s(row: Row) -> float:
    """Return the seconds of compressing and decompressing."""
    return float(row["compress"]["wall_s"] + row["decompress"]["wall_s"])


def bpb_text(row: Row, digits: int) -> str:
    """Return a row's bits a byte, marked where the archive was made without the model."""
    mark = "" if "predictor" in row["details"]["frames"] else _OTHER_CODING
    return f"{row['bpb']:.{digits}f}{mark}"


def effective_parameters(members: Mapping[float, float], bpb: float) -> float | None:
    """Return the size that is worth so many bits a byte.

    Args:
        members: bits a byte by parameters, of unpruned models.

    Returns:
        the size there on the least-squares line of log size against bits a byte; None where two
        members are too few, or equally good.
    """
    if len(members) < _MEMBERS_MIN:
        return None
    sizes, bits = [math.log(size) for size in members], list(members.values())
    mean_size, mean_bits = sum(sizes) / len(sizes), sum(bits) / len(bits)
    spread = sum((each - mean_bits) ** 2 for each in bits)
    if not spread:
        return None
    slope = sum(
        (size - mean_size) * (each - mean_bits) for size, each in zip(sizes, bits, strict=True)
    )
    return math.exp(mean_size + slope / spread * (bpb - mean_bits))


def _table(record: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a table of one text's rows."""
    table: list[tuple[str, ...]] = [
        ("predictor", "M params", "layers", "MB", "bits/w", "comp s", "dec s", "peak MiB", "bits",
         "ratio", "bpb", "against", "change", "speed", "effective"),
    ]  # fmt: skip
    described = {predictor["name"]: predictor for predictor in record["predictors"]}
    row_of = {row["case"]["predictor"]: row for row in rows}
    for name, row in row_of.items():
        facts, other = row["predictor"], row_of.get(described[name]["against"])
        effective = effective_parameters(_family(described, row_of, name), row["bpb"])
        peak_bytes = max(row["compress"]["peak_bytes"], row["decompress"]["peak_bytes"])
        table.append(
            (
                name, f"{facts['parameters'] / 1e6:.1f}", str(facts["layers"]),
                f"{facts['stored_bytes'] / 1e6:.1f}", f"{facts['bits_a_weight']:.3f}",
                f"{row['compress']['wall_s']:.1f}", f"{row['decompress']['wall_s']:.1f}",
                f"{peak_bytes / 2**20:.0f}", f"{8 * row['compressed_bytes']:,}",
                f"{row['compressed_bytes'] / row['input']['bytes']:.4f}", bpb_text(row, 4),
                described[name]["against"],
                change(row["bpb"], other["bpb"]) if other else NOTHING,
                f"{both_ways_s(other) / both_ways_s(row):.2f}" if other else NOTHING,
                NOTHING if effective is None else f"{effective / 1e6:.1f}",
            )
        )  # fmt: skip
    return table


def _family(
    described: Mapping[str, Mapping[str, Any]], row_of: Mapping[str, Row], name: str
) -> dict[float, float]:
    """Return bits a byte by parameters of the unpruned members of a predictor's family."""
    family = described[name]["family"]
    return {
        row["predictor"]["parameters"]: row["bpb"]
        for member, row in row_of.items()
        if family is not None
        and described[member]["family"] == family
        and not described[member]["steps"]
    }


def excerpt(record: Mapping[str, Any]) -> str:
    """Return the record as Markdown: conditions, then a row a predictor with bpb of each text."""
    groups = by_text(record)
    described = {predictor["name"]: predictor for predictor in record["predictors"]}
    headings = ["predictor", "layers", "MB", "bits a weight"]
    for text in groups:
        headings += [text, "change"]
    rows = [[*headings, "against", "speed"]]
    for name, predictor in described.items():
        found = {text: _named(group, name) for text, group in groups.items()}
        known = [row for row in found.values() if row]
        if not known:
            continue
        others = {text: _named(group, predictor["against"]) for text, group in groups.items()}
        facts = known[0]["predictor"]
        cells = [name, str(facts["layers"]), f"{facts['stored_bytes'] / 1e6:.0f}",
                 f"{facts['bits_a_weight']:.2f}"]  # fmt: skip
        spent_s = other_s = 0.0
        for text, row in found.items():
            other = others[text]
            if row is None or other is None:
                cells += [bpb_text(row, 3) if row else NOTHING, NOTHING]
                continue
            cells += [bpb_text(row, 3), change(row["bpb"], other["bpb"])]
            spent_s, other_s = spent_s + both_ways_s(row), other_s + both_ways_s(other)
        rows.append(
            [*cells, predictor["against"], f"{other_s / spent_s:.2f}" if spent_s else NOTHING]
        )
    marked = any(cell.endswith(_OTHER_CODING) for row in rows for cell in row)
    note = f"\n\n\\{_OTHER_CODING_NOTE}" if marked else ""
    return f"{_conditions(record)}\n\n{markdown(rows)}{note}"


def _named(group: Sequence[Row], name: str) -> Row | None:
    """Return the row of a predictor, where there is one."""
    return next((row for row in group if row["case"]["predictor"] == name), None)


def _conditions(record: Mapping[str, Any]) -> str:
    hardware = record["sessions"][-1]["hardware"]
    said = {True: "with", None: "with", False: "without"}[record["experiment"]["llmzip"]["mixing"]]
    return (
        "Bits a byte, each archive decoded in a fresh process and compared, "
        f"{said} context models. MB: what has to be kept, not counted in the bits. "
        f"{hardware['cpu']}, {hardware['cores']} cores, {record['sessions'][-1]['date'][:10]}."
    )
