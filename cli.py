"""The `llmzip` command: parses arguments, calls `archiver.api`, reports, sets the exit code.

Only click and the standard library are imported before a command runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO

import click

from archiver.commands.arguments import (
    STANDARD_STREAM,
    SUFFIX,
    ByteSize,
    check_outputs,
    content_name,
    device_option,
    files_argument,
    input_of,
    keep_going_option,
    level_options,
    output_of,
    reporting_options,
    shown,
    standard_output,
    steering_file_option,
    threads_option,
    writing_options,
)
from archiver.commands.console import Reporter
from archiver.commands.models import model as model_commands
from archiver.commands.training import train
from archiver.errors import ArchiverError, DamagedArchiveError, UsageError
from archiver.levels import DEFAULT_LEVEL
from archiver.options import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_MODEL,
    DEFAULT_STEERING,
    ENGINES,
    EXACT,
    CompressOptions,
)
from archiver.signals import Killed, raise_when_killed

if TYPE_CHECKING:
    from archiver.container import MachineSection, PredictorSection
    from archiver.summaries import ArchiveInfo

INTERRUPTED = 130

_EXAMPLES = """\b
Examples:
  llmzip compress book.txt               writes book.txt.llmz, keeps book.txt
  llmzip decompress book.txt.llmz        writes book.txt
  llmzip compress -c < in > out.llmz     from pipe to pipe
  llmzip test *.llmz                     decodes and checks, writes nothing
  llmzip info --json book.txt.llmz       says what is inside
  llmzip model add ./my-model            adds a GGUF file or Hugging Face folder
"""


@click.group(
    name="llmzip", epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="llmzip", prog_name="llmzip")
def commands() -> None:
    """Compress text losslessly with a language model, bit for bit the same on every machine."""


commands.add_command(model_commands)
commands.add_command(train)


@commands.command()
@files_argument
@writing_options
@click.option(
    "-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Model to predict with."
)
@click.option(
    "--engine", type=click.Choice(ENGINES), default=EXACT, show_default=True,
    help="float: any causal model of transformers, in the folder that -m names. The archive "
    "decodes on this machine only, with these versions of the libraries.",
)  # fmt: skip
@threads_option
@device_option
@level_options
@click.option(
    "--window", type=int, metavar="TOKENS",
    help="How many tokens back the model sees [default: by the level].",
)  # fmt: skip
@click.option(
    "--local-window", type=int, metavar="TOKENS",
    help="How many the heads see that can do with fewer [default: by the level].",
)  # fmt: skip
@click.option(
    "--frame-size", type=ByteSize(), default=DEFAULT_FRAME_BYTES, show_default="1M",
    help="Longest frame, 4K to 16M. A frame decodes alone; each costs 32 bytes.",
)  # fmt: skip
@click.option(
    "--chunk-tokens", type=int, metavar="TOKENS",
    help="Span of text that one stream codes from a cold start [default: by the level].",
)  # fmt: skip
@click.option(
    "--steer", default=DEFAULT_STEERING, show_default=True, metavar="VECTORS",
    help="Steering vectors before the text: auto (the best built-in ones or none), auto:15m (may "
    "train some as well), none, NAME, fixed:TEXT, random:K, trained:K, or FILE.steer.",
)  # fmt: skip
@click.option(
    "--no-mixing", is_flag=True, help="The model alone, without context models: to measure them."
)
@click.option("--embed", is_flag=True, help="Store FILE.steer's vectors in the archive.")
@reporting_options
@click.pass_context
def compress(
    ctx: click.Context,
    files: tuple[str, ...],
    output: str | None,
    to_stdout: bool,
    force: bool,
    model: str,
    engine: str,
    threads: int | None,
    device: str,
    window: int | None,
    local_window: int | None,
    frame_size: int,
    chunk_tokens: int | None,
    steer: str,
    no_mixing: bool,
    embed: bool,
    quiet: bool,
    verbose: int,
    level: int = DEFAULT_LEVEL,
) -> None:
    """Compress each FILE to FILE.llmz; without FILE, or with '-', standard input.

    \b
    Examples:
      llmzip compress notes.txt
      llmzip compress -o notes.llmz notes.txt
      tar c mail | llmzip compress > mail.tar.llmz
    """
    files = files or (STANDARD_STREAM,)
    check_outputs(files, output, to_stdout)
    if (to_stdout or output == STANDARD_STREAM) and len(files) > 1:
        raise click.UsageError("several archives cannot be joined on standard output")
    try:
        options = CompressOptions(
            model=model,
            engine=engine,
            threads=threads or None,
            device=device,
            level=level,
            window_tokens=window,
            local_window_tokens=local_window,
            frame_bytes=frame_size,
            chunk_tokens=chunk_tokens,
            mixing=not no_mixing,
            steering=steer,
            embed_steering=embed,
        )
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    reporter = Reporter(quiet=quiet, verbose=verbose)
    for name in files:
        with reporter.errors_of(shown(name)):
            target = output_of(name, output, to_stdout, lambda name: name + SUFFIX)
            _compress_file(reporter, name, target, options, force)
    ctx.exit(reporter.exit_code)


def _compress_file(
    reporter: Reporter, name: str, target: str | None, options: CompressOptions, force: bool
) -> None:
    from archiver import api

    source = input_of(name)
    sink = target if target is not None else standard_output(force=force, binary=True)
    total_bytes = os.path.getsize(name) if os.path.isfile(name) else None
    start_s = time.monotonic()
    with reporter.stages() as stages, reporter.progress(shown(name), total_bytes) as progress:
        summary = api.compress(
            source,
            sink,
            options=options,
            overwrite=force,
            progress=progress,
            model_progress=stages,
        )
    elapsed_s = time.monotonic() - start_s
    reporter.say(
        f"{shown(name)}: {summary.content_bytes:,} -> {summary.archive_bytes:,} bytes, "
        f"{summary.bpb:.3f} bpb, {elapsed_s:.1f} s"
    )
    if reporter.verbose:
        codings = ", ".join(f"{count} {coding}" for coding, count in summary.frames.items())
        container_bytes = summary.archive_bytes - summary.payload_bytes
        reporter.say(
            f"  frames: {codings}; payload {summary.payload_bytes:,} bytes, "
            f"container {container_bytes:,}; {_rate(summary.content_bytes, elapsed_s)}"
        )


@commands.command()
@files_argument
@writing_options
@threads_option
@device_option
@keep_going_option
@steering_file_option
@reporting_options
@click.pass_context
def decompress(
    ctx: click.Context,
    files: tuple[str, ...],
    output: str | None,
    to_stdout: bool,
    force: bool,
    threads: int | None,
    device: str,
    keep_going: bool,
    steer: str | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Decompress each FILE.llmz to FILE; without FILE, or with '-', standard input.

    \b
    Examples:
      llmzip decompress notes.txt.llmz
      llmzip decompress -c notes.txt.llmz | less
      llmzip decompress --keep-going -o saved.txt damaged.llmz
    """
    files = files or (STANDARD_STREAM,)
    check_outputs(files, output, to_stdout)
    reporter = Reporter(quiet=quiet, verbose=verbose)
    for name in files:
        with reporter.errors_of(shown(name)):
            target = output_of(name, output, to_stdout, content_name)
            sink = target if target is not None else standard_output(force=force, binary=False)
            _decode_file(reporter, name, sink, threads or None, device, keep_going, steer, force)
    ctx.exit(reporter.exit_code)


@commands.command()
@files_argument
@threads_option
@device_option
@keep_going_option
@steering_file_option
@reporting_options
@click.pass_context
def test(
    ctx: click.Context,
    files: tuple[str, ...],
    threads: int | None,
    device: str,
    keep_going: bool,
    steer: str | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Decode each archive and check it, writing nothing.

    \b
    Example:
      llmzip test *.llmz
    """
    reporter = Reporter(quiet=quiet, verbose=verbose)
    for name in files or (STANDARD_STREAM,):
        with reporter.errors_of(shown(name)):
            _decode_file(reporter, name, None, threads or None, device, keep_going, steer, False)
    ctx.exit(reporter.exit_code)


def _decode_file(
    reporter: Reporter,
    name: str,
    sink: str | BinaryIO | None,
    threads: int | None,
    device: str,
    keep_going: bool,
    steer: str | None,
    force: bool,
) -> None:
    from archiver import api

    source = input_of(name)
    start_s = time.monotonic()
    total_bytes = _content_bytes(name)
    with reporter.stages() as stages, reporter.progress(shown(name), total_bytes) as progress:
        if sink is None:
            summary = api.verify(
                source,
                threads=threads,
                device=device,
                keep_going=keep_going,
                steering=steer,
                progress=progress,
                model_progress=stages,
            )
        else:
            summary = api.decompress(
                source,
                sink,
                threads=threads,
                device=device,
                keep_going=keep_going,
                overwrite=force,
                steering=steer,
                progress=progress,
                model_progress=stages,
            )
    elapsed_s = time.monotonic() - start_s
    for damage in summary.damages:
        reporter.error(shown(name), damage, DamagedArchiveError.exit_code)
    verdict = ": OK, " if sink is None and not summary.damages else ": "
    reporter.say(
        f"{shown(name)}{verdict}{summary.archive_bytes:,} -> {summary.content_bytes:,} bytes, "
        f"{summary.bpb:.3f} bpb, {elapsed_s:.1f} s"
    )
    if reporter.verbose:
        speed = _rate(summary.content_bytes, elapsed_s)
        reporter.say(f"  frames: {summary.frame_count} decoded; {speed}")


def _content_bytes(name: str) -> int | None:
    """Return how long the content is, for the progress bar; None when that cannot be told."""
    from archiver import api

    if not os.path.isfile(name):
        return None
    try:
        return api.info(name).content_bytes
    except ArchiverError:
        return None  # what is wrong is reported by whoever decodes


def _rate(content_bytes: int, elapsed_s: float) -> str:
    return f"{content_bytes / max(elapsed_s, 1e-9) / 1000:,.1f} kB/s"


@commands.command()
@files_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line and FILE.")
@reporting_options
@click.pass_context
def info(
    ctx: click.Context, files: tuple[str, ...], as_json: bool, quiet: bool, verbose: int
) -> None:
    """Say what is inside each archive: model, frames, sizes; -v lists the frames.

    \b
    Examples:
      llmzip info notes.txt.llmz
      llmzip info --json *.llmz
    """
    from archiver import api

    reporter = Reporter(quiet=quiet, verbose=verbose)
    for name in files or (STANDARD_STREAM,):
        with reporter.errors_of(shown(name)):
            archive = api.info(input_of(name))
            model, hidden = _model_of(archive)
            if as_json:
                click.echo(json.dumps({"file": shown(name), "model": model} | archive.as_dict()))
            else:
                for line in _info_lines(shown(name), model, hidden, archive, reporter.verbose):
                    click.echo(line)
    ctx.exit(reporter.exit_code)


def _model_of(archive: ArchiveInfo) -> tuple[str | None, int | None]:
    """Return the name of the archive's model and its hidden size, as far as they are known here."""
    if archive.predictor is None:
        return None, None
    from archiver.predict import float_models, registry

    if archive.machine is not None:
        folder = float_models.folder_of(archive.predictor.package_fingerprint)
        return None if folder is None else str(folder), None
    digits = archive.predictor.package_fingerprint.hex()
    for listing in registry.list_packages():
        if (listing.fingerprint or "").startswith(digits):
            hidden = listing.package.config["hidden"] if listing.package else None
            return listing.name, hidden if isinstance(hidden, int) else None
    return None, None


def _info_lines(
    name: str, model: str | None, hidden: int | None, archive: ArchiveInfo, verbose: int
) -> Iterable[str]:
    container_bytes = archive.archive_bytes - archive.payload_bytes
    codings = [frame.coding for frame in archive.frames]
    counts = ", ".join(f"{codings.count(coding)} {coding}" for coding in sorted(set(codings)))
    yield name
    yield f"  format    version {archive.format_version}"
    yield f"  content   {archive.content_bytes:,} bytes, XXH3-64 {archive.content_hash:016x}"
    yield f"  archive   {archive.archive_bytes:,} bytes, {archive.bpb:.3f} bpb"
    yield f"  of these  {archive.payload_bytes:,} payload, {container_bytes:,} container"
    if archive.predictor is None:
        yield "  model     none needed"
    else:
        yield f"  model     {archive.predictor.package_fingerprint.hex()} ({model or 'not here'})"
        yield f"  engine    {_engine_line(archive.predictor, archive.machine)}"
    if archive.machine is not None:
        yield "  decodes   on this kind of machine only, with these versions:"
        for name, value in archive.machine.facts:
            yield f"            {name}: {value}"
    if archive.mixer is not None:
        yield f"  mixer     version {archive.mixer.version}"
    if archive.steering is not None:
        yield f"  steering  {archive.steering.describe(hidden)}"
    yield f"  frames    {len(archive.frames)}{': ' if counts else ''}{counts}"
    for frame in archive.frames if verbose else ():
        yield (
            f"    {frame.number}: {frame.coding}, {frame.content_bytes:,} bytes "
            f"at {frame.content_offset:,}, payload {frame.payload_bytes:,}"
        )


def _engine_line(predictor: PredictorSection, machine: MachineSection | None) -> str:
    window = f"version {predictor.engine_version}, window {predictor.window_tokens:,} tokens"
    if machine is not None:
        return f"float, {window}"
    return (
        f"{window} ({predictor.local_window_tokens:,} in local heads), "
        f"sinks {predictor.sink_tokens}"
    )


# --- the process ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    raise_when_killed()
    try:
        exit_code = commands.main(arguments, prog_name="llmzip", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        exit_code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("llmzip: interrupted", err=True)
        exit_code = INTERRUPTED
    except Killed as killed:
        exit_code = killed.exit_code
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
