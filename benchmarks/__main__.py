"""python -m benchmarks COMMAND: files, theory, stepwise, speed, sweep, mixer, steering, predictors,
curve, readme"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tqdm import tqdm

from archiver.signals import Killed, raise_when_killed
from benchmarks.environment import BUSY_CORES_MAX, REPOSITORY
from benchmarks.inputs import InputsError, collect
from benchmarks.records import InputFile, LlmzipSettings, write_json
from benchmarks.resumable import read_record, record_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.resumable import Progress

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(exists=True, path_type=Path)


_output = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY / "benchmarks" / "results", show_default="benchmarks/results",
    help="Folder for the records.",
)  # fmt: skip


_model = click.option("--model", help="llmzip's model; the default one if not given.")


def _with_options(command: _Command, options: Iterable[Callable[[_Command], _Command]]) -> _Command:
    for option in reversed([*options]):
        command = option(command)
    return command


def _common_options(command: _Command) -> _Command:
    options = (
        _output,
        _model,
        click.option("--threads", type=click.IntRange(min=1),
                     help="Threads of llmzip and transformers; one a core if not given."),
        click.option("--level", type=click.IntRange(1, 9), help="llmzip's level."),
        click.option("--window", type=click.IntRange(min=16), help="llmzip's window in tokens."),
    )  # fmt: skip
    return _with_options(command, options)


_gguf = click.option(
    "--gguf", type=_PATH, help="What the model was made from: a GGUF or a Hugging Face folder."
)
_steps = click.option(
    "--tokens", type=click.IntRange(min=1), default=200, show_default=True,
    help="Steps of transformers to time at each context.",
)  # fmt: skip
_bytes = click.option(
    "--bytes", "limit_bytes", type=click.IntRange(min=1), help="Only the file's beginning."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure llmzip. Every figure, but for those of `mixer`, is of an archive that a fresh process
    has decoded."""


@main.command()
@click.argument("log", type=_PATH)
@click.option("--chart", type=click.Path(path_type=Path), help="Write a PNG, too.")
def curve(log: Path, chart: Path | None) -> None:
    """Show what a run of `llmzip model tune` or `heal` learned, from its log.json."""
    from benchmarks.curve import curve_table, draw_curve, read_measurements

    measurements = read_measurements(log)
    if not measurements:
        raise click.UsageError(f"{log}: nothing was measured yet")
    click.echo(curve_table(measurements))
    if chart is not None:
        draw_curve(measurements, chart)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=_PATH, metavar="PATH...")
@click.option("--competitors", help="Only these programs, separated by commas.")
@_common_options
def files(
    paths: tuple[Path, ...],
    competitors: str | None,
    output: Path,
    model: str | None,
    threads: int | None,
    level: int | None,
    window: int | None,
) -> None:
    """Compare llmzip with other programs on files; folders are walked."""
    from benchmarks.chart import draw_chart
    from benchmarks.compare import compare, split_by_presence, warm_up
    from benchmarks.competitors import COMPETITORS
    from benchmarks.table import comparison

    known = {competitor.name: competitor for competitor in COMPETITORS}
    names = list(known) if competitors is None else competitors.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(f"no program {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)]
    inputs = _inputs(paths)
    settings = LlmzipSettings(model=model, threads=threads, level=level, window_tokens=window)
    for name, reason in split_by_presence(chosen)[1].items():
        click.echo(f"without {name}: {reason}", err=True)
    if "llmzip" in {competitor.name for competitor in chosen}:
        problem = warm_up(settings)
        if problem is not None:
            click.echo(f"llmzip's warm-up failed: {problem}", err=True)
    total = len(inputs) * len(split_by_presence(chosen)[0])
    with tqdm(total=total, unit="job", leave=False, disable=None) as bar:

        def report(what: str, finished: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(finished - bar.n)

        record_path = _record_path(output, "files")
        for done in compare(inputs, chosen, settings, report):
            write_json(record_path, done.record)
    _warn_if_busy(done.record)
    click.echo(comparison(done.results))
    click.echo(f"\nrecord {record_path}", err=True)
    try:
        draw_chart(done.results, record_path.with_suffix(".png"))
        click.echo(f"chart  {record_path.with_suffix('.png')}", err=True)
    except ImportError:
        click.echo("no chart: matplotlib is not installed", err=True)
    if not all(result.measured for result in done.results):
        sys.exit(1)


@main.command()
@click.argument("records", nargs=-1, required=True, type=_PATH, metavar="RECORD...")
def readme(records: tuple[Path, ...]) -> None:
    """Put tables into the README: of records of `files` and `stepwise` together, or of one of
    `predictors`."""
    from benchmarks.readme import ReadmeError, update_readme

    try:
        update_readme(REPOSITORY / "README.md", records)
    except ReadmeError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("file", type=_PATH, metavar="FILE")
@_bytes
@_gguf
@_common_options
def theory(
    file: Path,
    limit_bytes: int | None,
    gguf: Path | None,
    output: Path,
    model: str | None,
    threads: int | None,
    level: int | None,
    window: int | None,
) -> None:
    """Compare an archive's payload with the ideal bits of the same weights in float32.

    The exit status is 1 when the excess is above 0.5 %.
    """
    from benchmarks.theory import TARGET_EXCESS, compare_with_theory

    (given,) = _inputs([file])
    settings = LlmzipSettings(model=model, threads=threads, level=level, window_tokens=window)
    with _errors_shown(), tqdm(unit="token", leave=False, disable=None) as bar:

        def report(stage: str, done: int, total: int) -> None:
            bar.total = total or None
            bar.set_description(stage, refresh=not total)
            bar.update(done)

        found = compare_with_theory(
            given, settings, limit_bytes=limit_bytes, weights=gguf, progress=report
        )
    record_path = _record_path(output, "theory")
    write_json(record_path, found.record)
    ((measured,), figures) = (found.record["inputs"], found.record["theory"])
    met = found.excess <= TARGET_EXCESS
    click.echo(
        f"{measured['file']}  {measured['bytes']:,} bytes, {figures['tokens']:,} tokens, "
        f"{figures['streams']} streams, window {figures['window_tokens']:,}"
        f" + {figures['sink_tokens']} sinks, {figures['escapes']} escapes\n"
        f"payload, decoded       {found.payload_bits:>14,} bits"
        f"  {found.payload_bits / measured['bytes']:.4f} bpb\n"
        f"ideal, float32         {found.ideal.whole:>14,.0f} bits"
        f"  {found.ideal.whole / measured['bytes']:.4f} bpb\n"
        f"ideal, coded tokens    {found.ideal.coded:>14,.0f} bits"
        f"  {found.ideal.coded / measured['bytes']:.4f} bpb"
        f"  (excess over it {100 * figures['excess_over_coded_tokens']:+.3f} %)\n"
        f"largest logit difference to transformers {figures['largest_logit_difference']:.1e}\n"
        f"excess {100 * found.excess:+.3f} %, target {100 * TARGET_EXCESS:.1f} %: "
        + ("met" if met else "MISSED")
    )
    click.echo(f"\nrecord {record_path}", err=True)
    if not met:
        sys.exit(1)


@main.command()
@click.argument("file", type=_PATH, metavar="FILE")
@_bytes
@_steps
@_gguf
@_common_options
def stepwise(
    file: Path,
    limit_bytes: int | None,
    tokens: int,
    gguf: Path | None,
    output: Path,
    model: str | None,
    threads: int | None,
    level: int | None,
    window: int | None,
) -> None:
    """Compare llmzip's speed with transformers called token by token."""
    from benchmarks.stepwise import compare_with_stepwise, speed_rows
    from benchmarks.table import aligned

    (given,) = _inputs([file])
    settings = LlmzipSettings(model=model, threads=threads, level=level, window_tokens=window)
    with _errors_shown(), tqdm(bar_format="{desc}", leave=False, disable=None) as bar:
        found = compare_with_stepwise(
            given, settings, limit_bytes=limit_bytes, tokens=tokens, weights=gguf,
            progress=bar.set_description,
        )  # fmt: skip
    record_path = _record_path(output, "stepwise")
    write_json(record_path, found.record)
    _warn_if_busy(found.record)
    (measured,) = found.record["inputs"]
    click.echo(f"{measured['file']}  {measured['bytes']:,} bytes, {measured['tokens']:,} tokens")
    click.echo("\n".join(aligned(speed_rows(found.speeds))))
    click.echo(f"\nrecord {record_path}", err=True)


@main.command()
@click.argument("file", type=_PATH, metavar="FILE")
@_bytes
@click.option("--stage-bytes", type=click.IntRange(min=1000), default=60_000, show_default=True,
              help="How much of the text the stages are timed on.")  # fmt: skip
@_steps
@_gguf
@_common_options
def speed(
    file: Path,
    limit_bytes: int | None,
    stage_bytes: int,
    tokens: int,
    gguf: Path | None,
    output: Path,
    model: str | None,
    threads: int | None,
    level: int | None,
    window: int | None,
) -> None:
    """Split llmzip's time by stage, and compare it with the bare matrix products, with what the
    machine can do, and with transformers."""
    from benchmarks.speed.charts import draw
    from benchmarks.speed.record import measure_speed
    from benchmarks.speed.tables import tables

    (given,) = _inputs([file])
    settings = LlmzipSettings(model=model, threads=threads, level=level, window_tokens=window)
    with _errors_shown(), tqdm(bar_format="{desc}", leave=False, disable=None) as bar:
        found = measure_speed(
            given, settings, limit_bytes=limit_bytes, stage_bytes=stage_bytes, tokens=tokens,
            weights=gguf, progress=bar.set_description,
        )  # fmt: skip
    record_path = _record_path(output, "speed")
    write_json(record_path, found)
    _warn_if_busy(found)
    click.echo(tables(found))
    click.echo(f"\nrecord {record_path}", err=True)
    _draw_charts(found, record_path, draw)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=_PATH, metavar="PATH...")
@_bytes
@click.option("--ablate", is_flag=True, help="Also without each part of the mixer.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path),
              help="Folder where the model's probabilities are kept for the next run.")  # fmt: skip
@_common_options
def mixer(
    paths: tuple[Path, ...],
    limit_bytes: int | None,
    ablate: bool,
    keep: Path | None,
    output: Path,
    model: str | None,
    threads: int | None,
    level: int | None,
    window: int | None,
) -> None:
    """Compare payloads with and without the mixer; nothing is decoded."""
    from benchmarks.mixer import measure, tables
    from benchmarks.table import aligned

    settings = LlmzipSettings(model=model, threads=threads, level=level, window_tokens=window)
    with _errors_shown(), tqdm(leave=False, disable=None) as bar:

        def report(stage: str, done: int, total: int = 0) -> None:
            bar.total = total or None
            bar.set_description(stage, refresh=False)
            bar.update(done - bar.n if total else done)

        results, record = measure(
            _inputs(paths), settings, ablate=ablate, limit_bytes=limit_bytes, kept=keep,
            report=report,
        )  # fmt: skip
    record_path = _record_path(output, "mixer")
    write_json(record_path, record)
    payloads, parts = tables(results)
    click.echo("\n".join(aligned(payloads)))
    if ablate:
        click.echo("\nper cent of the payload more\n" + "\n".join(aligned(parts)))
    click.echo(f"\nrecord {record_path}", err=True)


def _experiment_options(command: _Command) -> _Command:
    options = (
        click.argument("file", type=_PATH, metavar="EXPERIMENT.toml"),
        click.option("--texts", type=click.Path(exists=True, file_okay=False, path_type=Path),
                     default=Path(), help="Folder where the experiment's texts are."),
        _output,
        click.option("--threads", type=click.IntRange(min=1), help="One a core if not given."),
        click.option("--show", is_flag=True, help="Only show what the record holds."),
    )  # fmt: skip
    return _with_options(command, options)


@main.command()
@_experiment_options
@_model
def steering(model: str | None, **options: Any) -> None:
    """Run an experiment on steering vectors; what its record holds already is not run again."""
    from archiver.options import DEFAULT_MODEL

    _run_experiment("steering", model=model or DEFAULT_MODEL, **options)


@main.command()
@_experiment_options
@_model
def sweep(model: str | None, **options: Any) -> None:
    """Measure llmzip over sizes, levels, windows, streams or threads; what was, is not again."""
    from archiver.options import DEFAULT_MODEL

    _run_experiment("sweep", model=model or DEFAULT_MODEL, **options)


@main.command()
@_experiment_options
def predictors(**options: Any) -> None:
    """Make the predictors of an experiment and compare them; what was made is not made again."""
    _run_experiment("predictors", **options)


def _run_experiment(
    kind: str, file: Path, texts: Path, output: Path, show: bool, **settings: Any
) -> None:
    """Run an experiment of a kind, which is a package beside this file, or show its record."""
    with _errors_shown():
        parts = {
            part: import_module(f"benchmarks.{kind}.{part}")
            for part in ("experiment", "record", "tables", "charts")
        }
        experiment = parts["experiment"].read_experiment(file)
        benchmark = parts["record"].BENCHMARK

        def records(report: Progress) -> Iterator[dict[str, Any]]:
            found: Iterator[dict[str, Any]] = parts["record"].run_experiment(
                experiment, folder=texts, output=output, progress=report, **settings
            )
            return found

        path = record_path(output, benchmark, experiment.common.name)
        record = read_record(path, benchmark) if show else _last(records)
    _show_experiment(record, path, parts["tables"].tables, parts["charts"].draw)


def _last(records: Callable[[Progress], Iterator[dict[str, Any]]]) -> dict[str, Any]:
    """Run an experiment to its end, with a bar on a terminal; return its record."""
    with tqdm(unit="archive", leave=False, disable=None) as bar:

        def report(what: str, finished: int, total: int) -> None:
            bar.total = total
            bar.set_description(what, refresh=False)
            bar.update(finished - bar.n)

        *_, record = records(report)
    return record


def _show_experiment(
    record: Mapping[str, Any],
    path: Path,
    tables: Callable[[Mapping[str, Any]], str],
    draw: Callable[[Mapping[str, Any], Path], Sequence[Path]],
) -> None:
    """Print an experiment's tables, draw its charts; end with 1 where an archive failed."""
    if record["sessions"]:
        _warn_if_busy(record["sessions"][-1])
    click.echo(f"{record['title']}\n\n{tables(record)}")
    click.echo(f"\nrecord {path}", err=True)
    _draw_charts(record, path, draw)
    if not all(row["verified"] for row in record["rows"]):
        sys.exit(1)


def _draw_charts(
    record: Mapping[str, Any],
    path: Path,
    draw: Callable[[Mapping[str, Any], Path], Sequence[Path]],
) -> None:
    """Draw a record's charts beside it, where matplotlib is there."""
    try:
        for chart in draw(record, path.with_suffix(".png")):
            click.echo(f"chart  {chart}", err=True)
    except ImportError:
        click.echo("no chart: matplotlib is not installed", err=True)


def _inputs(paths: tuple[Path, ...] | list[Path]) -> list[InputFile]:
    try:
        return collect(paths)
    except InputsError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Turn errors with a message for the user into Click's."""
    from archiver.errors import ArchiverError
    from benchmarks.experiment_file import ExperimentError
    from benchmarks.speed.record import SpeedError
    from benchmarks.stepwise import StepwiseError
    from benchmarks.theory import TheoryError
    from benchmarks.weights import WeightsError

    try:
        yield
    except (
        ArchiverError, ExperimentError, SpeedError, StepwiseError, TheoryError, WeightsError,
    ) as error:  # fmt: skip
        raise click.ClickException(str(error)) from error


def _warn_if_busy(record: Mapping[str, Any]) -> None:
    busy = record["busy_cores_before"]
    if busy is not None and busy > BUSY_CORES_MAX:
        click.echo(
            f"WARNING: other programs kept {busy:.1f} cores busy: do not rely on the times",
            err=True,
        )


def _record_path(folder: Path, benchmark: str) -> Path:
    return folder / f"{benchmark}-{datetime.now():%Y%m%d-%H%M%S}.json"


if __name__ == "__main__":
    raise_when_killed()  # so that the process that codes a file ends, too
    try:
        main(prog_name="python -m benchmarks")
    except Killed as killed:
        sys.exit(killed.exit_code)
