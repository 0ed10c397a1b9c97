"""Files in the making: complete under their name, or not there."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import pytest

from archiver import files
from archiver.errors import InputError, OutputError


@pytest.fixture(params=["nameless", "named", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which a system lets a file be made."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif request.param == "copied":

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def test_a_file_appears_when_it_is_complete(way: str, tmp_path: Path) -> None:
    path = tmp_path / "new"
    with files.open_target(path) as target:
        target.write(b"some ")
        target.write(b"bytes")
        assert not path.exists()
    assert path.read_bytes() == b"some bytes"
    assert os.listdir(tmp_path) == ["new"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_leaves_nothing(way: str, tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with files.open_target(tmp_path / "new") as target:
            target.write(b"x" * 100_000)
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_overwriting_replaces_at_the_end(way: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with files.open_target(path, overwrite=True) as target:
        target.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write() -> None:
        with files.open_target(path) as target:
            target.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists"):
        write()
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["file"]


def test_a_symbolic_link_keeps_pointing(way: str, tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to(path)
    with files.open_target(link, overwrite=True) as target:
        target.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    cases = [
        (tmp_path, "folder"),
        (tmp_path / "absent" / "file", "No such file"),
        (path, "exists already"),
        (path / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "too long"),
    ]
    for target, message in cases:
        with pytest.raises(OutputError, match=message), files.open_target(target) as opened:
            opened.write(b"x")
    with (
        files.open_source(path) as source,
        pytest.raises(OutputError, match="is the input"),
        files.open_target(path, overwrite=True, source=source),
    ):
        pass
    assert os.listdir(tmp_path) == ["file"]


class Failing(io.BytesIO):
    def write(self, data: object) -> int:  # type: ignore[override]
        raise OSError(errno.ENOSPC, "No space left on device")

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def test_failing_streams_are_named() -> None:
    with pytest.raises(OutputError, match="No space left"):
        files.Target(Failing(), name="it").write(b"x")
    with pytest.raises(InputError, match="Input/output error"), files.seekable(Unseekable()):
        pass


class Unseekable(Failing):
    def seekable(self) -> bool:
        return False
