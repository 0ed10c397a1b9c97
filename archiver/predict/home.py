"""The folder where llmzip keeps models, and who may change it.

    LLMZIP_HOME/                 default: the user's cache folder
        packages/<fingerprint>/  finished packages, never changed, only removed
        names.json               names that the user gave them
        float_models.json        folders of the models that the float engine reads
        downloads/               files the user brought by hand
        compiled-<hash>/         compiled code, where the program's own folder is not to be written
        scratch/                 work in progress; what lies there while nobody holds the
                                 lock was left by a killed process
        lock                     held by whoever changes anything of this

Readers take no lock: a package appears by one rename, complete.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from archiver.errors import InvalidModelError, OutputError

_log = logging.getLogger(__name__)

# progress(stage, done, total): what is being done, in the stage's own units; total 0 when it is
# not known.  A new stage is announced by done = 0.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def home_folder() -> Path:
    """Return LLMZIP_HOME, or the user's cache folder where that is not set; it may not exist."""
    override = os.environ.get("LLMZIP_HOME")
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("llmzip", appauthor=False))


def packages_folder() -> Path:
    """Return the folder that holds the packages; it may not exist."""
    return home_folder() / "packages"


def downloads_folder() -> Path:
    """Return the folder where files that the user brings are looked for; it may not exist."""
    return home_folder() / "downloads"


@contextmanager
def home_locked(progress: Progress = no_progress) -> Iterator[None]:
    """Let nobody else change the home folder inside the block; leftovers are gone.

    The lock is the process's own, let go of by the system when the process dies, and may be
    taken again by the thread that holds it.

    Raises:
        OutputError: the folder cannot be made or written, also when a write inside the block
            fails (a full disk).
    """
    import filelock

    home = home_folder()
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(home / "lock", is_singleton=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            _log.info("another process is changing %s; waiting", home)
            progress("waiting for another llmzip", 0, 0)
            lock.acquire()
        try:
            if lock.lock_counter == 1:
                shutil.rmtree(home / "scratch", ignore_errors=True)
            yield
        finally:
            lock.release()
    except OSError as error:
        place = error.filename or home
        raise OutputError(f"{place}: cannot be used: {error.strerror or error}") from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a fresh folder on the same file system as the packages; it is gone afterwards.

    Only for holders of the lock.
    """
    parent = home_folder() / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_table(name: str, content: str, value: re.Pattern[str]) -> dict[str, str]:
    """Return a table of the home folder, empty where there is none.

    Args:
        name: its file's; content: what it holds, for messages; value: what all values match.

    Raises:
        InvalidModelError: it is damaged.
    """
    path = home_folder() / name
    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path}: cannot be read; remove it") from error
    if not isinstance(table, dict) or not all(
        isinstance(text, str) and value.fullmatch(text) for text in table.values()
    ):
        raise InvalidModelError(f"{path}: not a table of {content}; remove it")
    return table


def write_table(name: str, table: Mapping[str, str]) -> None:
    """Replace a table of the home folder in one step.  Only for holders of the lock."""
    with scratch_folder() as scratch:
        fresh = scratch / name
        write_durably(fresh, json.dumps(dict(sorted(table.items())), indent=1).encode())
        os.replace(fresh, home_folder() / name)
        sync(home_folder())


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file, on the disk when this returns."""
    with path.open("wb") as stream:
        stream.write(content)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if path.is_dir():
        if os.name == "nt":  # folders cannot be opened there, and renames are journalled
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_under(folder: Path) -> int:
    """Return the bytes of the files under a folder, some of which may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
