"""The command line within this process, and as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli
from tests.support import toy_codec
from tests.support.signals import default_signals

ROOT = Path(cli.__file__).parent
TEXT = toy_codec.text(500)

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run(toy: None) -> Run:
    """Run a command line in this process."""

    def invoke(*arguments: object, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(cli.commands, [str(a) for a in arguments], input=stdin)

    return invoke


@pytest.fixture
def start() -> Start:
    """Start a command line as a process."""

    def popen(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.toy_llmzip", *map(str, arguments)]
        options.setdefault("preexec_fn", default_signals)
        return subprocess.Popen(command, cwd=ROOT, **options)

    return popen


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path
