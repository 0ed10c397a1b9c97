"""What each command does with files, pipes and options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import archiver
import cli
from archiver.commands.arguments import ByteSize
from archiver.errors import ModelUnavailableError, UsageError
from archiver.options import CompressOptions
from tests.cli.conftest import TEXT, Run

SMALL = ("--frame-size", "4K")


def test_compress_and_decompress_beside(run: Run, text_file: Path) -> None:
    os.chmod(text_file, 0o640)
    os.utime(text_file, ns=(1_000_000_000, 2_000_000_000))
    result = run("compress", text_file)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    archive = text_file.with_name("text.txt.llmz")
    size = archive.stat().st_size
    assert f"text.txt: {len(TEXT):,} -> {size:,} bytes, {8 * size / len(TEXT):.3f} bpb" in (
        result.stderr
    )
    assert text_file.read_bytes() == TEXT
    assert archive.stat().st_mode & 0o777 == 0o640
    assert archive.stat().st_mtime_ns == 2_000_000_000
    text_file.unlink()
    result = run("decompress", archive)
    assert result.exit_code == 0, result.output
    assert text_file.read_bytes() == TEXT
    assert text_file.stat().st_mode & 0o777 == 0o640
    assert archive.exists()


def test_pipes_both_ways(run: Run) -> None:
    for arguments in ((), ("-",), ("-c",), ("-o", "-"), ("-c", "-")):
        packed = run("compress", "-q", *arguments, stdin=TEXT)
        assert (packed.exit_code, packed.stderr) == (0, "")
        unpacked = run("decompress", *arguments, stdin=packed.stdout_bytes)
        assert unpacked.exit_code == 0
        assert unpacked.stdout_bytes == TEXT
        assert "(stdin): " in unpacked.stderr
    assert run("test", stdin=packed.stdout_bytes).exit_code == 0
    assert "(stdin)" in run("info", stdin=packed.stdout_bytes).stdout


@pytest.mark.parametrize(
    ("flags", "window"), [((), 2048), (("-1",), 256), (("-9",), 8192), (("-1", "-3"), 1024),
                          (("-9", "--window", "99"), 99)]
)  # fmt: skip
def test_levels(run: Run, text_file: Path, flags: tuple[str, ...], window: int) -> None:
    assert run("compress", *flags, text_file).exit_code == 0
    assert f"window {window:,} tokens" in run("info", f"{text_file}.llmz").stdout


def test_output_paths(run: Run, text_file: Path, tmp_path: Path) -> None:
    archive, copy = tmp_path / "x", tmp_path / "copy"
    assert run("compress", "-o", archive, text_file).exit_code == 0
    assert run("decompress", "-o", copy, archive).exit_code == 0
    assert copy.read_bytes() == TEXT
    assert run("decompress", "-c", archive).stdout_bytes == TEXT
    refused = run("decompress", archive)
    assert refused.exit_code == UsageError.exit_code
    assert "does not end in .llmz" in refused.stderr
    with open(text_file, "rb") as source:
        assert run("compress", "-o", tmp_path / "y", stdin=source.read()).exit_code == 0
    assert (tmp_path / "y").read_bytes() == archive.read_bytes()


def test_files_are_not_overwritten_unasked(run: Run, text_file: Path) -> None:
    archive = text_file.with_name("text.txt.llmz")
    archive.write_bytes(b"mine")
    result = run("compress", text_file)
    assert result.exit_code == 4
    assert result.stderr == f"llmzip: {text_file}: {archive} exists already (-f overwrites it)\n"
    assert archive.read_bytes() == b"mine"
    assert run("compress", "-f", text_file).exit_code == 0
    assert archive.read_bytes() != b"mine"
    assert run("decompress", archive).exit_code == 4
    text_file.write_bytes(b"changed")
    assert run("decompress", "--force", archive).exit_code == 0
    assert text_file.read_bytes() == TEXT


def test_several_files(run: Run, text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    result = run("compress", tmp_path / "absent", text_file, tmp_path, other)
    assert result.exit_code == 3
    assert "absent: cannot read" in result.stderr
    assert f"llmzip: {tmp_path}: cannot read" in result.stderr
    archives = [f"{text_file}.llmz", f"{other}.llmz"]
    assert run("test", *archives).exit_code == 0
    assert run("decompress", "-c", *archives).stdout_bytes == TEXT + b"other"
    assert run("compress", "-c", text_file, other).exit_code == 2
    assert run("compress", "-o", tmp_path / "z", text_file, other).exit_code == 2
    assert run("compress", "-c", "-o", tmp_path / "z", text_file).exit_code == 2
    assert not (tmp_path / "z").exists()


def newer(archive: bytes) -> bytes:
    from archiver.container.layout import CHECK, check32, header_bytes

    length = header_bytes(archive[:10])
    start = archive[:6] + b"\x02" + archive[7 : length - 4]
    return start + CHECK.pack(check32(start)) + archive[length:]


def test_each_fault_has_its_message_and_exit_code(run: Run, tmp_path: Path, toy: None) -> None:
    good = archiver.compress(TEXT, options=CompressOptions(frame_bytes=4096))
    other_model = bytearray(good)
    other_model[13] ^= 1
    from archiver.container.layout import CHECK, check32, header_bytes

    length = header_bytes(good[:10])
    other_model[length - 4 : length] = CHECK.pack(check32(bytes(other_model[: length - 4])))
    cases = [
        (b"plain text", 5, "not an llmzip archive"),
        (b"", 5, "empty"),
        (newer(good), 6, "format version 2"),
        (good[:40], 7, "ends after frame 0"),
        (good[:-1], 7, "ends within its trailer"),
        (good[:12] + b"\xff" + good[13:], 7, "header is damaged"),
        (good[:100] + bytes([good[100] ^ 1]) + good[101:], 7, "frame 1 is damaged"),
        (good + b"x", 7, "follow the archive's trailer"),
        (bytes(other_model), 9, "fingerprint"),
    ]
    for data, exit_code, message in cases:
        path = tmp_path / "case.llmz"
        path.write_bytes(data)
        for command in ("test", "decompress"):
            result = run(command, path)
            assert result.exit_code == exit_code, (message, result.output)
            [line] = result.stderr.splitlines()
            assert line.startswith(f"llmzip: {path}: ")
            assert message in line
        assert not (tmp_path / "case").exists()
    assert run("compress", "-m", "missing", stdin=TEXT).exit_code == 9


def test_keep_going_saves_the_rest_and_says_what_is_lost(
    run: Run, tmp_path: Path, toy: None
) -> None:
    archive = bytearray(archiver.compress(TEXT, options=CompressOptions(frame_bytes=4096)))
    frames = archiver.info(bytes(archive)).frames
    archive[31 + 25 + 3] ^= 1  # after the header and the frame's
    path = tmp_path / "text.llmz"
    path.write_bytes(archive)
    result = run("decompress", "--keep-going", path)
    assert result.exit_code == 7
    lost = frames[0].content_bytes
    assert f"frame 1 is damaged: its checksum is wrong: lost {lost} bytes at offset 0" in (
        result.stderr
    )
    assert (tmp_path / "text").read_bytes() == TEXT[lost:]
    result = run("test", "--keep-going", path)
    assert result.exit_code == 7
    assert "OK" not in result.stderr
    piped = run("decompress", "--keep-going", stdin=bytes(archive))
    assert (piped.exit_code, piped.stdout_bytes) == (7, TEXT[lost:])


def test_test_says_ok(run: Run, text_file: Path) -> None:
    run("compress", text_file)
    result = run("test", "-v", f"{text_file}.llmz")
    assert ": OK, " in result.stderr
    assert "frames: 1 decoded" in result.stderr
    assert run("test", "-q", f"{text_file}.llmz").output == ""


def test_verbose_compress_tells_the_parts(run: Run, text_file: Path) -> None:
    result = run("compress", "-v", *SMALL, text_file)
    assert "frames: 0 raw, 0 zstd, 5 predictor" in result.stderr
    assert "kB/s" in result.stderr


def test_info(run: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from archiver.predict import registry

    digits = "7465737420746f79" + "0" * 48
    listing = SimpleNamespace(name="toy", fingerprint=digits, package=None)
    monkeypatch.setattr(registry, "list_packages", lambda: [listing])
    run("compress", *SMALL, "--window", "512", text_file)
    shown = run("info", "-v", f"{text_file}.llmz").stdout
    for expected in (
        "format    version 1", f"content   {len(TEXT):,} bytes", "7465737420746f79 (toy)",
        "window 512 tokens", "frames    5: 5 predictor", "    2: predictor, ",
    ):  # fmt: skip
        assert expected in shown, shown
    objects = [
        json.loads(line)
        for line in run("info", "--json", *[f"{text_file}.llmz"] * 2).stdout.splitlines()
    ]
    assert len(objects) == 2
    assert objects[0]["file"] == f"{text_file}.llmz"
    assert objects[0]["model"] == "toy"
    assert objects[0]["content_bytes"] == len(TEXT)
    assert len(objects[0]["frames"]) == 5
    empty = run("compress", stdin=b"").stdout_bytes
    assert "none needed" in run("info", stdin=empty).stdout
    assert run("info", text_file).exit_code == 5


@pytest.mark.parametrize(
    ("given", "size"),
    [("65536", 65536), ("512K", 1 << 19), ("1m", 1 << 20), ("2MiB", 1 << 21), ("1 G", 1 << 30)],
)
def test_sizes(given: str, size: int) -> None:
    assert ByteSize().convert(given, None, None) == size


@pytest.mark.parametrize("given", ["", "K", "-1", "1.5M", "1T", "0x10", "1" * 30])
def test_sizes_that_are_none(given: str) -> None:
    with pytest.raises(click.BadParameter):
        ByteSize().convert(given, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--frame-size", "1K"), ("--frame-size", "17M"), ("--window", "1"), ("-T", "-1"),
        ("--chunk-tokens", "0"), ("-m", ""), ("--nonsense",), ("--frame-size", "big"),
    ],
)  # fmt: skip
def test_senseless_options_exit_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("compress", *arguments, stdin=b"x")
    assert result.exit_code == 2
    assert result.stdout_bytes == b""


def test_an_unforeseen_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from archiver import api

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(api, "compress", fail)
    result = run("compress", stdin=b"x")
    assert result.exit_code == 70
    assert result.stderr.startswith("llmzip: (stdin): internal error, please report it: ZeroDivi")
    assert "Traceback" not in result.output


def listing(**changes: Any) -> SimpleNamespace:
    fields = {
        "name": "toy", "names": ("toy", "plaything"), "is_default": True, "fingerprint": "ab" * 32,
        "description": "a toy", "licence": "MIT", "package": None, "problem": None,
    } | changes  # fmt: skip
    return SimpleNamespace(**fields)


def test_model_commands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from archiver.codec import first_use
    from archiver.predict import registry

    calls: list[tuple[Any, ...]] = []
    package = SimpleNamespace(name="toy", fingerprint="cd" * 32)

    def pull(name: str, progress: Any) -> SimpleNamespace:
        progress("downloading", 0, 10)
        progress("downloading", 10, 10)
        return package

    monkeypatch.setattr(registry, "list_packages", lambda: [listing(), listing(name="b")])
    monkeypatch.setattr(registry, "show", lambda name: listing(name=name))
    ready: list[SimpleNamespace] = []
    monkeypatch.setattr(registry, "pull", pull)
    monkeypatch.setattr(first_use, "compile_all", lambda given, report: ready.append(given))
    monkeypatch.setattr(registry, "add", lambda *given, **options: calls.append(given) or package)
    monkeypatch.setattr(registry, "remove", lambda *given: calls.append(given))
    assert run("model", "list").stdout.splitlines()[0].split()[:3] == ["*", "toy", "ab" * 8]
    assert json.loads(run("model", "list", "--json").stdout.splitlines()[1])["name"] == "b"
    assert "licence      MIT" in run("model", "show", "x").stdout
    assert json.loads(run("model", "show", "x", "--json").stdout)["names"] == ["toy", "plaything"]
    pulled = run("model", "pull", "toy")
    assert pulled.exit_code == 0
    assert pulled.stderr.count("downloading") == 1
    assert ready == [package]
    assert "toy: ready, fingerprint cdcdcdcdcdcdcdcd" in pulled.stderr
    assert run("model", "add", "some/path", "--name", "mine").exit_code == 0
    assert calls[0][:2] == ("some/path", "mine")
    assert run("model", "remove", "mine").exit_code == 0
    assert calls[1] == ("mine",)


def test_model_errors_have_their_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from archiver.predict import registry

    def unreachable(name: str, progress: Any) -> None:
        raise ModelUnavailableError("bring the wheel")

    monkeypatch.setattr(registry, "pull", unreachable)
    result = run("model", "pull")
    assert result.exit_code == 11
    assert result.stderr == "llmzip: model: bring the wheel\n"
    assert run("model", "pull", "--nonsense").exit_code == 2


def test_every_command_has_help_with_an_example() -> None:
    for name, command in cli.commands.commands.items():
        assert command.help, name
        if name != "model":
            assert "Example" in command.help, name
