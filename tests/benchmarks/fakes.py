"""Programs for tests: one that works, and one for each way to fail."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path
from typing import Any

from benchmarks.records import LlmzipSettings


class Honest:
    """Compresses, and says where the bytes went."""

    name = "honest"
    setting = "level 9"

    def missing(self) -> str | None:
        return None

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        target.write_bytes(b"head" + zlib.compress(source.read_bytes(), 9))
        parts = {
            "payload_bytes": target.stat().st_size - 4,
            "side_information_bytes": 0,
            "container_bytes": 4,
        }
        return {"parts": parts, "model_bytes": 1000, "window": settings.window_tokens}

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        target.write_bytes(zlib.decompress(source.read_bytes()[4:]))
        return {}


class Liar(Honest):
    """Archives everything in four bytes."""

    name = "liar"

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        target.write_bytes(b"head")
        return {}

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        target.write_bytes(b"something else")
        return {}


class Refuser(Honest):
    """Raises, and names a place on the disk."""

    name = "refuser"

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        raise ValueError(f"cannot read {source}")


class Dying(Honest):
    """Is killed while it decompresses."""

    name = "dying"

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def tell_and_wait(file: str) -> None:
    """Write this process's number into a file and wait for what never comes."""
    Path(file).write_text(f"{os.getpid()}\n", encoding="ascii")
    signal.pause()


class Forgetful(Honest):
    """Returns without having written."""

    name = "forgetful"

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        return {}


class Absent(Honest):
    """Is not installed."""

    name = "absent"

    def missing(self) -> str | None:
        return "not here"
