"""A request to end, from outside the process, as an exception: what is unfinished cleans up."""

from __future__ import annotations

import signal


class Killed(BaseException):
    """A signal asked the process to end; nothing should catch this but to pass it on.

    Attributes:
        exit_code: what a shell expects of a process that ended so, 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def raise_when_killed() -> None:
    """SIGTERM and SIGHUP raise `Killed` from now on, the first of them, unless they are ignored."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _raise_killed)


def _raise_killed(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Killed(number)
