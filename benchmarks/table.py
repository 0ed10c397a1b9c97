"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records import Failed, FileResult, Usage, rate

NOTHING = "-"  # in the place of a figure that there is not

_HEADINGS = (
    "program", "bytes", "bpb", "comp s", "CPU s", "kB/s", "dec s", "CPU s", "kB/s",
    "comp MiB", "dec MiB",
)  # fmt: skip


def comparison(results: Sequence[FileResult]) -> str:
    """Return one table a file, and one of all files that every program brought back."""
    blocks = []
    by_file: dict[str, list[FileResult]] = {}
    for result in results:
        by_file.setdefault(result.file.name, []).append(result)
    for name, group in by_file.items():
        blocks.append(_file_table(name, group))
    if len(by_file) > 1:
        blocks.append(_totals(list(by_file.values())))
    return "\n\n".join(blocks)


def _file_table(name: str, results: Sequence[FileResult]) -> str:
    file = results[0].file
    rows = [_HEADINGS] + [_row(result) for result in results if result.measured]
    lines = [f"{name}  {file.content_bytes:,} bytes", *aligned(rows)]
    for result in results:
        if isinstance(result.outcome, Failed):
            lines.append(f"{result.program}  FAILED  {result.outcome.reason}")
        elif result.outcome.parts is not None:
            parts = result.outcome.parts
            model_bytes = result.outcome.model_bytes
            model = "" if model_bytes is None else f"; model, not counted, {model_bytes:,}"
            lines.append(
                f"{result.program}: payload {parts.payload_bytes:,}"
                f" + side information {parts.side_information_bytes:,}"
                f" + container {parts.container_bytes:,} bytes{model}"
            )
    return "\n".join(lines)


def _row(result: FileResult) -> tuple[str, ...]:
    measured = result.measured
    assert measured is not None
    forwards, backwards = measured.compress, measured.decompress
    return (
        result.program,
        f"{measured.compressed_bytes:,}",
        NOTHING if result.bpb is None else f"{result.bpb:.3f}",
        *_times(result.file.content_bytes, forwards),
        *_times(result.file.content_bytes, backwards),
        f"{forwards.peak_bytes / 2**20:.0f}",
        f"{backwards.peak_bytes / 2**20:.0f}",
    )


def _times(content_bytes: int, usage: Usage) -> tuple[str, str, str]:
    bytes_per_s = rate(content_bytes, usage.wall_s)
    speed = NOTHING if bytes_per_s is None else f"{bytes_per_s / 1000:,.1f}"
    return f"{usage.wall_s:.2f}", f"{usage.cpu_s:.2f}", speed


def _totals(groups: Sequence[Sequence[FileResult]]) -> str:
    """Return the sums over the files that all programs brought back."""
    complete = [group for group in groups if all(result.measured for result in group)]
    content_bytes = sum(group[0].file.content_bytes for group in complete)
    lines = [f"all programs brought back {len(complete)} of {len(groups)} files"]
    if not content_bytes:
        return lines[0]
    rows = [("program", "bytes", "bpb")]
    for results in zip(*complete, strict=True):
        sizes = [result.measured.compressed_bytes for result in results if result.measured]
        total_bytes = sum(sizes)
        rows.append(
            (results[0].program, f"{total_bytes:,}", f"{8 * total_bytes / content_bytes:.3f}")
        )
    return "\n".join([f"{lines[0]}, {content_bytes:,} bytes", *aligned(rows)])


def change(value: float, base: float) -> str:
    """Return by how much a value is above or below another, in per cent."""
    return f"{100 * (value / base - 1):+.2f} %"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table: the first holds the headings, all but one to the right."""
    ruler = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]])


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
