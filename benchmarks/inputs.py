"""The files to measure, under names that say nothing of the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.records import InputFile

_READ_BYTES = 1 << 20


class InputsError(Exception):
    """The files to measure cannot be had; the message is for the user."""


def collect(paths: Iterable[Path]) -> list[InputFile]:
    """Return the files at `paths`, folders walked, in the order given and then by name.

    A file is called by its own name, one in a folder by the folder's name and its place in it.

    Raises:
        InputsError: there is nothing, it cannot be read, or two files have one name.
    """
    files: dict[str, InputFile] = {}
    known: set[Path] = set()
    for name, path in _walk(paths):
        if path in known:
            continue
        known.add(path)
        if name in files:
            raise InputsError(f"two files are called {name}; give the folder that holds both")
        files[name] = read_input(path, name)
    if not files:
        raise InputsError("no files there")
    return list(files.values())


def _walk(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    for given in paths:
        path = given.resolve()
        if path.is_dir():
            for found in sorted(path.rglob("*")):
                if found.is_file():
                    yield (Path(path.name) / found.relative_to(path)).as_posix(), found
        else:
            yield path.name, path


def read_input(path: Path, name: str) -> InputFile:
    """Return a file's record.

    Raises:
        InputsError: it cannot be read.
    """
    try:
        return InputFile(
            name=name, path=path, content_bytes=path.stat().st_size, sha256=sha256_of(path)
        )
    except OSError as error:
        raise InputsError(f"{path}: {error.strerror or error}") from error


def beginning(file: InputFile, limit_bytes: int | None, folder: Path) -> InputFile:
    """Return the file, or a copy in `folder` of its first `limit_bytes` bytes."""
    if limit_bytes is None or limit_bytes >= file.content_bytes:
        return file
    path = folder / "input"
    with file.path.open("rb") as source:
        path.write_bytes(source.read(limit_bytes))
    return read_input(path, f"{file.name}[:{limit_bytes}]")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()
