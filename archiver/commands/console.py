"""The voice of the command line: messages, progress bars and exit codes.

Only `cli` imports this; the rest of the library calls back and never prints.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from archiver.errors import ArchiverError

BROKEN_PIPE, INTERNAL_ERROR = 141, 70

_log = logging.getLogger(__name__)


class _EchoHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"llmzip: {self.format(record)}", err=True)


def _show_log(level: int) -> None:
    """Let the library's log be seen from `level` up."""
    log = logging.getLogger("archiver")
    log.setLevel(level)
    if not any(isinstance(handler, _EchoHandler) for handler in log.handlers):
        log.addHandler(_EchoHandler())


class Reporter:
    """Says on standard error what happens to the files, one after the other.

    Attributes:
        exit_code: that of the first error; 0 while there is none.
    """

    def __init__(self, *, quiet: bool, verbose: int) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.exit_code = 0
        self._shows_progress = not quiet and sys.stderr.isatty()
        _show_log({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))

    def say(self, message: str) -> None:
        """Print a line, unless -q was given."""
        if not self.quiet:
            click.echo(message, err=True)

    def error(self, name: str, message: object, exit_code: int) -> None:
        """Print an error, and keep its exit code if it is the first."""
        click.echo(f"llmzip: {name}: {message}", err=True)
        self.exit_code = self.exit_code or exit_code

    @contextmanager
    def errors_of(self, name: str) -> Iterator[None]:
        """Turn what the block raises into a message and an exit code."""
        try:
            yield
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # how click ends a command
        except ArchiverError as error:
            self.error(name, error, error.exit_code)
            _log.debug("the error came from here", exc_info=True)
        except BrokenPipeError:
            # Nobody reads on: there is nothing to say. Python must not try to flush it again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(BROKEN_PIPE) from None
        except MemoryError:
            self.error(name, "not enough memory", ArchiverError.exit_code)
        except Exception as error:
            message = f"internal error, please report it: {type(error).__name__}: {error}"
            self.error(name, f"{message} (-vv shows more)", INTERNAL_ERROR)
            _log.debug("the error came from here", exc_info=True)

    @contextmanager
    def progress(self, name: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
        """Give a function that counts bytes done; on a terminal they are shown as a bar."""
        if not self._shows_progress:
            yield lambda done_bytes: None
            return
        from tqdm import tqdm

        with tqdm(
            desc=name, total=total_bytes, unit="B", unit_scale=True, leave=False, dynamic_ncols=True
        ) as bar:
            yield lambda done_bytes: bar.update(done_bytes) and None

    @contextmanager
    def steps(self, name: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
        """Give a function that shows how many steps are done, and a remark; a bar on a terminal."""
        if not self._shows_progress:
            yield lambda step, remark: None
            return
        from tqdm import tqdm

        with tqdm(desc=name, total=total, initial=done, leave=False, dynamic_ncols=True) as bar:

            def show(step: int, remark: str) -> None:
                bar.set_postfix_str(remark, refresh=False)
                bar.update(step - bar.n)

            yield show

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """Give a function that shows the stages of fetching a model."""
        if self.quiet:
            yield lambda stage, done, total: None
        elif not self._shows_progress:
            said: set[str] = set()

            def say_once(stage: str, done: int, total: int) -> None:
                if stage not in said:
                    said.add(stage)
                    self.say(f"llmzip: model: {stage}")

            yield say_once
        else:
            bars = _StageBars()
            try:
                yield bars.show
            finally:
                bars.close()


class _StageBars:
    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    def show(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                desc=f"model: {stage}", total=total or None, unit="B", unit_scale=True, leave=False,
                bar_format=None if total else "{desc}",
            )  # fmt: skip
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
