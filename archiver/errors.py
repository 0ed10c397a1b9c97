"""Every error the library raises on purpose, and the exit code of each.

    ArchiverError                  1
    ├── UsageError                 2   an option or argument makes no sense
    ├── InputError                 3   an input file is missing or cannot be read
    ├── OutputError                4   the output exists, or cannot be written
    ├── NotAnArchiveError          5   the input does not start as an archive does
    ├── UnsupportedVersionError    6   the archive needs a newer llmzip
    ├── DamagedArchiveError        7   some bytes of the archive are wrong
    │   ├── HeaderDamagedError
    │   ├── FrameDamagedError          carries the frame's number
    │   ├── TrailerDamagedError
    │   └── TruncatedArchiveError      the archive ends too early
    ├── LimitExceededError         8   a length is larger than the format allows
    ├── ModelError                 9   a model package cannot be had or used
    │   ├── ModelMissingError          not in the cache, not known to the registry
    │   ├── ModelMismatchError     10  another fingerprint than the archive asks for
    │   ├── ModelUnavailableError  11  the package index could not be reached
    │   ├── InvalidModelError      12  a model folder or file is refused
    │   ├── RepositoryMissingError 16  the hub has no such repository or revision
    │   └── RepositoryClosedError  17  the hub's repository is not open to everybody
    ├── ExactnessError             13  a kernel failed its exactness probe and has no fallback
    ├── SteeringError              14  a steering file is missing, damaged or another one
    ├── MissingLibraryError        15  an optional Python package is not installed
    └── MachineMismatchError       18  an archive of the float engine, of another machine

A subclass without a code of its own has its parent's.
"""

from __future__ import annotations


class ArchiverError(Exception):
    """Something that llmzip can name went wrong; the message is for the user."""

    exit_code = 1


class UsageError(ArchiverError):
    """An option or an argument makes no sense."""

    exit_code = 2


class InputError(ArchiverError):
    """An input is missing or cannot be read."""

    exit_code = 3


class OutputError(ArchiverError):
    """An output exists already, or cannot be written."""

    exit_code = 4


class NotAnArchiveError(ArchiverError):
    """The input does not start as an llmzip archive does."""

    exit_code = 5


class UnsupportedVersionError(ArchiverError):
    """The archive was written by a newer llmzip, or needs a feature this one lacks."""

    exit_code = 6


class DamagedArchiveError(ArchiverError):
    """Some bytes of the archive are not those that were written."""

    exit_code = 7


class HeaderDamagedError(DamagedArchiveError):
    """The header's checksum or its fields are wrong."""


class FrameDamagedError(DamagedArchiveError):
    """A frame's checksum, its fields or its decoded content are wrong.

    Attributes:
        frame_number: which frame, counted from 1.
    """

    def __init__(self, frame_number: int, reason: str) -> None:
        super().__init__(f"frame {frame_number} is damaged: {reason}")
        self.frame_number = frame_number
        self.reason = reason


class TrailerDamagedError(DamagedArchiveError):
    """The trailer's checksum, its index or the hash of the whole content is wrong."""


class TruncatedArchiveError(DamagedArchiveError):
    """The archive ends before its trailer is complete."""


class LimitExceededError(ArchiverError):
    """A length or a count is larger than the format allows; nothing was allocated for it."""

    exit_code = 8


class ModelError(ArchiverError):
    """A model package cannot be found, fetched or used."""

    exit_code = 9


class ModelMissingError(ModelError):
    """No package of that name or fingerprint is in the cache or the registry."""


class ModelMismatchError(ModelError):
    """A package has another fingerprint than the archive, or the registry, asks for."""

    exit_code = 10


class ModelUnavailableError(ModelError):
    """The package index could not be reached, or does not have the file."""

    exit_code = 11


class InvalidModelError(ModelError):
    """A model folder or file is refused; the message names the reason."""

    exit_code = 12


class RepositoryMissingError(ModelError):
    """The hub has no such repository, or no such branch, tag or commit of it."""

    exit_code = 16


class RepositoryClosedError(ModelError):
    """The hub gives a repository's files only to those whom its owners let in."""

    exit_code = 17


class ExactnessError(ArchiverError):
    """No kernel on this machine computes what the engine's definition says."""

    exit_code = 13


class SteeringError(ArchiverError):
    """A steering file is missing, damaged, for another model, or not the archive's."""

    exit_code = 14


class MissingLibraryError(ArchiverError):
    """A Python package that only this needs is not installed; the message names it."""

    exit_code = 15


class MachineMismatchError(ArchiverError):
    """An archive of the float engine needs what this machine is not; each difference is named."""

    exit_code = 18
