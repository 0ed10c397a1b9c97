"""llmzip: a lossless text archiver, in which a bit-exact language model drives a range coder.

    archive = archiver.compress(b"some text")
    assert archiver.decompress(archive) == b"some text"

Importing this package loads nothing heavy: each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archiver.api import compress, decompress, info, open, train, verify
    from archiver.container import Damage
    from archiver.errors import ArchiverError
    from archiver.options import CompressOptions
    from archiver.summaries import ArchiveInfo, ArchiveSummary, DecodeSummary

__all__ = [
    "ArchiveInfo",
    "ArchiveSummary",
    "ArchiverError",
    "CompressOptions",
    "Damage",
    "DecodeSummary",
    "compress",
    "decompress",
    "info",
    "open",
    "train",
    "verify",
]

_MODULES = {
    "ArchiveInfo": "archiver.summaries",
    "ArchiveSummary": "archiver.summaries",
    "ArchiverError": "archiver.errors",
    "CompressOptions": "archiver.options",
    "Damage": "archiver.container",
    "DecodeSummary": "archiver.summaries",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("llmzip")
    if name in __all__:
        return getattr(import_module(_MODULES.get(name, "archiver.api")), name)
    raise AttributeError(f"module 'archiver' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
