"""The command line as a process: signals, full disks, pipes, terminals."""

from __future__ import annotations

import os
import pty
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import archiver
from archiver.options import CompressOptions
from tests.cli.conftest import ROOT, TEXT, Start

HUNG_S = 300  # a machine that is busy with other work takes a minute to start a process


def wait_until_reading(process: subprocess.Popen[bytes], path: Path) -> None:
    """Return when the process has opened `path`, and with it is in the middle of its work."""
    for _ in range(20 * HUNG_S):
        folder = Path(f"/proc/{process.pid}/fd")
        try:
            if any(os.readlink(fd) == str(path) for fd in folder.iterdir()):
                time.sleep(0.3)
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("the process does not start")


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)  # fmt: skip
def test_a_signal_leaves_no_file(
    start: Start, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(TEXT[:5000] + b"slow" + TEXT)
    # The first frame is written, the second one takes its time.
    changed = bytearray(source.read_bytes())
    changed[4095] = ord("\n")
    changed[4096:4100] = b"slow"
    source.write_bytes(changed)
    process = start("compress", "--frame-size", "4K", source, stderr=subprocess.PIPE)
    wait_until_reading(process, source)
    assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == exit_code
    assert b"Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_full_disk_leaves_no_file(start: Start, text_file: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    process = start("compress", text_file, stderr=subprocess.PIPE, preexec_fn=limit)
    _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 4
    assert b"cannot write" in errors
    assert b"too large" in errors
    assert os.listdir(text_file.parent) == ["text.txt"]


def test_a_full_device_is_an_output_error(start: Start, text_file: Path) -> None:
    process = start("compress", "-o", "/dev/full", text_file, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 4
    assert b"No space left" in errors
    with open("/dev/full", "wb") as full:
        process = start("compress", "-c", text_file, stdout=full, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 4
    assert b"No space left" in errors
    assert b"Exception" not in errors


def test_devices_are_written_not_replaced(start: Start, text_file: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = start("compress", "-f", "-o", fifo, text_file, stderr=subprocess.PIPE)
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        process.communicate(timeout=HUNG_S)  # an archive this small fits into the pipe
        archive = reader.read()
    assert process.returncode == 0
    assert fifo.is_fifo()
    assert archive[:4] == b"\x89LMZ"


@pytest.mark.usefixtures("toy")
def test_a_broken_pipe_is_quiet(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "big.llmz"
    archiver.compress(TEXT * 100, path, options=CompressOptions(frame_bytes=1 << 16))
    process = start("decompress", "-c", path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10) == TEXT[:10]
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=HUNG_S) == 141


def test_shell_pipes_both_ways() -> None:
    command = f"{sys.executable} -m tests.support.toy_llmzip"
    pipeline = f"{command} compress -q | cat | {command} decompress -q"
    done = subprocess.run(pipeline, shell=True, cwd=ROOT, input=TEXT, capture_output=True)
    assert done.stdout == TEXT
    assert done.stderr == b""


def read_terminal(descriptor: int, process: subprocess.Popen[bytes]) -> bytes:
    shown = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], 0.1)
        if ready:
            try:
                part = os.read(descriptor, 4096)
            except OSError:
                return shown
            shown += part
        elif process.poll() is not None:
            return shown


def test_progress_is_shown_on_a_terminal(start: Start, text_file: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = start("compress", "--frame-size", "4K", text_file, stderr=theirs)
    os.close(theirs)
    shown = read_terminal(ours, process)
    os.close(ours)
    assert process.wait(timeout=HUNG_S) == 0
    assert b"B/s" in shown
    assert b"bpb" in shown


def test_archives_do_not_go_to_a_terminal(start: Start, text_file: Path) -> None:
    ours, theirs = pty.openpty()
    process = start("compress", "-c", text_file, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    _, errors = process.communicate(timeout=HUNG_S)
    os.close(ours)
    assert process.returncode == 4
    assert b"terminal" in errors


def test_nothing_is_read_from_a_terminal(start: Start) -> None:
    ours, theirs = pty.openpty()
    process = start("compress", stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.close(theirs)
    _, errors = process.communicate(timeout=HUNG_S)
    os.close(ours)
    assert process.returncode == 2
    assert b"standard input is a terminal" in errors
