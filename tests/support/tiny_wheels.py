"""Wheels with one file inside, as the package index has them, and what pins them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from archiver.predict.fetch import WheelMember

DISTRIBUTION = "tiny-llmzip-test-model"


def make_tiny_wheel(
    folder: Path, content: bytes, member: str = "tiny/Tiny.gguf", version: str = "0.1"
) -> WheelMember:
    """Make an installable wheel that holds ``content``; return its pin."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n"
            "Requires-Dist: nothing-of-that-name\n",
        )  # fmt: skip
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return WheelMember(
        distribution=DISTRIBUTION,
        version=version,
        wheel=path.name,
        wheel_bytes=path.stat().st_size,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member=member,
        member_bytes=len(content),
        member_sha256=hashlib.sha256(content).hexdigest(),
    )
