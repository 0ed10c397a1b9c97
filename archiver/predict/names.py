"""Names that stand for packages in the home folder: names.json."""

from __future__ import annotations

import re
from collections.abc import Mapping

from archiver.errors import UsageError
from archiver.predict import home

_FILE = "names.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def checked_name(name: str) -> str:
    """Return a name that may be given to a package.

    Raises:
        UsageError: it has characters that names do not have.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name: up to 64 of a-z 0-9 . _ -, a letter or digit first"
        )
    return name


def name_from(title: str) -> str:
    """Return a name made from a publisher's title."""
    slug = re.sub(r"[^a-z0-9._]+", "-", title.lower()).strip("-._")[:64]
    return checked_name(slug or "model")


def read_names() -> dict[str, str]:
    """Return the fingerprint of each name.

    Raises:
        InvalidModelError: names.json is damaged.
    """
    return home.read_table(_FILE, "names", _FINGERPRINT)


def write_names(table: Mapping[str, str]) -> None:
    """Replace names.json in one step.  Only for holders of the lock."""
    home.write_table(_FILE, table)
