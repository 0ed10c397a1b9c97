"""Steering files: vectors for one model, kept apart from the archives that they serve.

Source: FORMAT.md, "Steering files".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from archiver.container.layout import (
    FINGERPRINT_BYTES,
    LARGEST_STEERING_BYTES,
    check32,
    hash64,
)
from archiver.errors import SteeringError, UnsupportedVersionError

SUFFIX = ".steer"
FOLDER = Path(__file__).parent / "vectors"
FILE_VERSION = 1
FILE_MAGIC = b"\x89LZST\n"
FILE_START = struct.Struct(f"<6sB{FINGERPRINT_BYTES}sI")
CHECK = struct.Struct("<I")

BUILT_IN: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "wiki-instruct": (2, 0xA398F5117CD87A24),
        "prose": (3, 0x3F06407B8A1DA8F8),
        "russian": (4, 0x76C5310F19CECA6C),
        "wiki": (5, 0xFDEAB5CCA5D2F57F),
        "logs": (6, 0x7A8B0BB36863DD68),
    }
)
"""Name of each built-in steering file: the number in archives, the file's fingerprint.

A number stays for ever with one fingerprint; vectors trained anew get a new one.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringFile:
    """A steering file's content.

    Attributes:
        package_fingerprint: first 8 bytes of the fingerprint of the model that it was made for.
        body: the vectors, as `bodies` codes them.
    """

    package_fingerprint: bytes
    body: bytes

    @property
    def fingerprint(self) -> int:
        """XXH3-64 of everything but the check; archives name the file by it."""
        return hash64(self._checked())

    def encode(self) -> bytes:
        """Return the file's bytes."""
        data = self._checked()
        return data + CHECK.pack(check32(data))

    def _checked(self) -> bytes:
        start = FILE_START.pack(FILE_MAGIC, FILE_VERSION, self.package_fingerprint, len(self.body))
        return start + self.body


def decode_file(data: bytes, name: str) -> SteeringFile:
    """Return the content of a steering file.

    Args:
        name: what to call it in messages.

    Raises:
        SteeringError: it is none, damaged, or of a newer version.
    """
    if len(data) < FILE_START.size or not data.startswith(FILE_MAGIC):
        raise SteeringError(f"{name} is not a steering file")
    _, version, package_fingerprint, body_bytes = FILE_START.unpack_from(data)
    if version != FILE_VERSION:
        raise SteeringError(
            f"{name} has version {version}; this llmzip reads version {FILE_VERSION}"
        )
    end = FILE_START.size + body_bytes
    if len(data) != end + CHECK.size or CHECK.unpack_from(data, end)[0] != check32(data[:end]):
        raise SteeringError(f"{name} is damaged")
    return SteeringFile(package_fingerprint=package_fingerprint, body=data[FILE_START.size : end])


def read_file(path: Path) -> SteeringFile:
    """Return the steering file at a path.

    Raises:
        SteeringError: it cannot be read, is none, damaged, or of a newer version.
    """
    limit = FILE_START.size + LARGEST_STEERING_BYTES + CHECK.size
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise SteeringError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise SteeringError(f"{path} is longer than a steering file can be")
    return decode_file(data, str(path))


@cache
def built_in_file(name: str) -> SteeringFile:
    """Return one of the built-in steering files.

    Raises:
        SteeringError: the installation is damaged.
    """
    file = read_file(FOLDER / f"{name}{SUFFIX}")
    if file.fingerprint != BUILT_IN[name][1]:
        raise SteeringError(f"the built-in steering vectors {name!r} are not those of this llmzip")
    return file


def built_in_name(number: int) -> str | None:
    """Return the name of the built-in file with that number; None if there is none."""
    return next((name for name, (own, _) in BUILT_IN.items() if own == number), None)


def built_in_by_number(number: int) -> SteeringFile:
    """Return the built-in steering file that archives name by a number.

    Raises:
        UnsupportedVersionError: there is none.
    """
    name = built_in_name(number)
    if name is None:
        raise UnsupportedVersionError(
            f"the archive needs the built-in steering vectors {number}, which this llmzip lacks"
        )
    return built_in_file(name)
