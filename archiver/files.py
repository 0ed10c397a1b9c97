"""Sources to read from and targets to write to, so that no partial file is ever left behind.

A file is written without a name, or under a temporary one, in the target's folder, and gets its
name only when it is complete and on disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias

from archiver.errors import InputError, OutputError

SourceLike: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO"
TargetLike: TypeAlias = "str | os.PathLike[str] | BinaryIO"

_COPIED_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An input that is open for reading.

    Attributes:
        stream: where the bytes come from.
        path: the file's path, if it is a file of ours to open.
        status: that file's mode, times and length.
    """

    stream: BinaryIO
    path: Path | None = None
    status: os.stat_result | None = None


@contextmanager
def open_source(source: SourceLike) -> Iterator[Source]:
    """Open `source` for reading; a stream of the caller's stays open afterwards.

    Raises:
        InputError: the file is missing, a folder, or cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield Source(stream=io.BytesIO(source))
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            stream = path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        with stream:
            yield Source(stream=stream, path=path, status=os.fstat(stream.fileno()))
    else:
        yield Source(stream=source)


@contextmanager
def seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Give a stream with the same bytes that can be sought in, from its position 0 on.

    What cannot be sought in, a pipe for instance, is first copied to a temporary file, which
    has no name where the system can do without.

    Raises:
        InputError: it cannot be read.
        OutputError: there is no room for the copy.
    """
    if _starts_here(stream):
        yield stream
        return
    with tempfile.TemporaryFile() as spool:
        checked = Target(spool, name="a temporary file")
        while part := _read(stream):
            checked.write(part)
        checked.flush()
        spool.seek(0)
        yield spool


def _starts_here(stream: BinaryIO) -> bool:
    try:
        return stream.seekable() and stream.tell() == 0
    except OSError:
        return False


def _read(stream: BinaryIO) -> bytes:
    try:
        return stream.read(_COPIED_AT_ONCE_BYTES)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}") from error


class Target:
    """Writes all bytes to a stream, and says what went wrong in the words of our errors."""

    def __init__(self, stream: BinaryIO | IO[bytes], *, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, data: bytes) -> int:
        """Write all of `data`.

        Raises:
            OutputError: the disk is full, for instance.
            BrokenPipeError: nobody reads the other end of the pipe any more.
        """
        with self._named():
            rest = memoryview(data)
            while rest:
                written = self._stream.write(rest)
                # Streams that are not of the operating system may return None for "all".
                rest = rest[len(rest) if written is None else written :]
        return len(data)

    def flush(self) -> None:
        """Hand everything to the operating system; raises as `write` does."""
        with self._named():
            self._stream.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"cannot write {self._name}: {reason}") from error


@contextmanager
def open_target(
    target: TargetLike, *, overwrite: bool = False, source: Source | None = None
) -> Iterator[Target]:
    """Open `target` for writing; a file gets its name when the block ends without an error.

    Args:
        target: a path, or a stream of the caller's, which stays open.
        overwrite: whether a file that exists may be replaced.
        source: where the bytes come from; the new file gets its permissions and times.

    Raises:
        OutputError: it exists already, is a folder, is the source, or cannot be written.
    """
    if not isinstance(target, str | os.PathLike):
        stream = Target(target, name="the output")
        yield stream
        stream.flush()
        return
    path = Path(os.path.realpath(target))  # through a symbolic link: its target is replaced
    try:
        status = path.stat()
    except OSError:
        status = None
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise OutputError(f"cannot write {target}: it is a folder")
    if status is not None and not stat.S_ISREG(status.st_mode):
        with _opened(path, target) as device:
            stream = Target(device, name=str(target))
            yield stream
            stream.flush()
        return
    read_from = None if source is None else source.status
    if status is not None and read_from is not None and os.path.samestat(status, read_from):
        raise OutputError(f"cannot write {target}: it is the input")
    if status is not None and not overwrite:
        raise OutputError(f"{target} exists already (-f overwrites it)")
    with _NewFile(path, shown=str(target), overwrite=overwrite) as new:
        stream = Target(new.stream, name=str(target))
        yield stream
        stream.flush()
        new.keep(like=read_from)


def _opened(path: Path, shown: TargetLike) -> BinaryIO:
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise OutputError(f"cannot write {shown}: {error.strerror or error}") from error


class _NewFile:
    """A file in the making; when the `with` block is left, it is complete or it is gone.

    Where the system has files without names (Linux), not even a killed process leaves one.
    """

    def __init__(self, path: Path, *, shown: str, overwrite: bool) -> None:
        self._path = path
        self._shown = shown
        self._overwrite = overwrite
        self._temporary: Path | None = None

    def __enter__(self) -> _NewFile:
        with self._named():
            self.stream = self._open_nameless() or self._open_named()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what could not be flushed is given up with the file
            self.stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def keep(self, like: os.stat_result | None) -> None:
        """Give the file its name, once its bytes are on disk."""
        with self._named():
            descriptor = self.stream.fileno()
            if like is not None and stat.S_ISREG(like.st_mode):
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode) & 0o777)
                os.utime(descriptor, ns=(like.st_atime_ns, like.st_mtime_ns))
            else:
                os.fchmod(descriptor, 0o666 & ~_umask())
            os.fsync(descriptor)
            if self._temporary is None:
                self._link_nameless(descriptor)
            self._rename()
            _sync_folder(self._path.parent)

    def _open_nameless(self) -> BinaryIO | None:
        if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
            return None
        try:
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            return os.fdopen(os.open(self._path.parent, flags, 0o600), "w+b")
        except OSError:  # the file system has none; if the folder is at fault, mkstemp says so
            return None

    def _open_named(self) -> BinaryIO:
        self._temporary = self._temporary_path()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
        return os.fdopen(os.open(self._temporary, flags, 0o600), "w+b")

    def _link_nameless(self, descriptor: int) -> None:
        temporary = self._temporary_path()
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            # With a folder given, os.link follows the symbolic link that /proc has.
            self._temporary = temporary
            os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=folder)
        except OSError:  # rare file systems; the bytes are safe in the nameless file: copy them
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            with open(temporary, "xb", opener=lambda p, f: os.open(p, f, mode)) as copy:
                self.stream.seek(0)
                shutil.copyfileobj(self.stream, copy, _COPIED_AT_ONCE_BYTES)
                copy.flush()
                os.fsync(copy.fileno())
        finally:
            os.close(folder)

    def _rename(self) -> None:
        assert self._temporary is not None
        if not self._overwrite:
            try:
                os.link(self._temporary, self._path)  # unlike a rename, it never replaces
                return  # the temporary name goes when the block is left
            except FileExistsError:
                raise OutputError(f"{self._shown} exists already (-f overwrites it)") from None
            except OSError:  # no hard links here
                pass
        os.replace(self._temporary, self._path)
        self._temporary = None

    def _temporary_path(self) -> Path:
        return self._path.parent / f".llmzip-{secrets.token_hex(8)}.part"

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"cannot write {self._shown}: {reason}") from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot; the file itself is on disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
