"""Signals in processes that tests start."""

from __future__ import annotations

import signal


def default_signals() -> None:
    """Signals as a terminal has them, also where the tests run with some of them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
