"""Arguments and options that several commands share, and what they mean for files."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from archiver.errors import OutputError, UsageError
from archiver.levels import LEVELS
from archiver.options import CPU, DEVICES, seconds_of

SUFFIX = ".llmz"
STANDARD_STREAM = "-"
LEVEL_HELP = {
    1: "Fastest: the model sees 256 tokens back.",
    5: "The default: 2,048 tokens back, up to 32 streams a frame.",
    9: "Smallest and slowest: 8,192 tokens back, up to 4 streams. Between them -2 to -8.",
}

_Command = TypeVar("_Command", bound=Callable[..., Any])


class ByteSize(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 65536, 512K, 1M, 1MiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,18})\s*([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size such as 65536, 512K or 1M", param, ctx)
        return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time in seconds: 90s, 15m, 2h."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        seconds = seconds_of(value)
        if not seconds:
            self.fail(f"{value!r} is not a time such as 90s, 15m or 2h", param, ctx)
        return seconds


def option_group(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return a decorator that gives a command all these options, in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


files_argument = click.argument("files", nargs=-1, metavar="[FILE]...")
reporting_options = option_group(
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    click.option("-v", "--verbose", count=True, help="Say more; twice for debugging."),
)
threads_option = click.option(
    "-T",
    "--threads",
    type=click.IntRange(min=0),
    help="Threads to use; 0, the default: one a core.",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default=CPU,
    show_default=True,
    help="Where the model runs; the bytes are the same.",
)
keep_going_option = click.option(
    "--keep-going",
    is_flag=True,
    help="Leave out damaged frames, decode the others, say what is lost.",
)
steering_file_option = click.option(
    "--steer", metavar="FILE.steer", help="The steering file that the archive names."
)


def _choose_level(number: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def choose(ctx: click.Context, param: click.Parameter, given: bool) -> None:
        if given:  # the last one given counts
            ctx.params["level"] = number

    return choose


level_options = option_group(
    *(
        click.option(
            f"-{number}", f"level_{number}", is_flag=True, expose_value=False,
            callback=_choose_level(number), hidden=number not in LEVEL_HELP,
            help=LEVEL_HELP.get(number),
        )
        for number in LEVELS
    )
)  # fmt: skip
writing_options = option_group(
    click.option("-o", "--output", metavar="PATH", help="Write to PATH ('-': standard output)."),
    click.option("-c", "--stdout", "to_stdout", is_flag=True, help="Write to standard output."),
    click.option("-f", "--force", is_flag=True, help="Overwrite files; write to a terminal."),
)


def input_of(name: str) -> str | BinaryIO:
    if name != STANDARD_STREAM:
        return name
    stream = sys.stdin.buffer
    if stream.isatty():
        raise UsageError("nothing to read: standard input is a terminal (see llmzip --help)")
    return stream


def shown(name: str) -> str:
    return "(stdin)" if name == STANDARD_STREAM else name


def standard_output(*, force: bool, binary: bool) -> BinaryIO:
    stream = sys.stdout.buffer
    if binary and not force and stream.isatty():
        raise OutputError("refusing to write an archive to a terminal (-f does it all the same)")
    return stream


def output_of(
    name: str, output: str | None, to_stdout: bool, beside: Callable[[str], str]
) -> str | None:
    """Return the path to write to; None for standard output."""
    if to_stdout or output == STANDARD_STREAM or (output is None and name == STANDARD_STREAM):
        return None
    return beside(name) if output is None else output


def content_name(name: str) -> str:
    if not name.endswith(SUFFIX) or Path(name).name == SUFFIX:
        raise UsageError(f"the name does not end in {SUFFIX}: say where to write with -o or -c")
    return name[: -len(SUFFIX)]


def check_outputs(files: Sequence[str], output: str | None, to_stdout: bool) -> None:
    if output is not None and to_stdout and output != STANDARD_STREAM:
        raise click.UsageError("-o and -c exclude each other")
    if output not in (None, STANDARD_STREAM) and len(files) > 1:
        raise click.UsageError("-o needs a single FILE")
