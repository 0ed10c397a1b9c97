"""The programs that files are compressed with, each at its strongest usual setting.

Every one has the same two verbs, which run in a fresh process. Libraries stand in for the
programs of the same name: they write the same format and need nothing installed on the system.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.records import LlmzipSettings

if TYPE_CHECKING:
    from archiver.options import CompressOptions


class Competitor(Protocol):
    """A program that compresses files; made without arguments."""

    name: str
    setting: str

    def missing(self) -> str | None:
        """Return why the program cannot be run here; None where it can."""
        ...

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        """Write the archive of `source` to `target`; returns what is known of it.

        Keys with a meaning: "parts" (fields of `records.Parts`) and "model_bytes".
        """
        ...

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        """Write to `target` what the archive `source` holds."""
        ...


class _InMemory:
    """A library that codes a whole file at once."""

    library: str

    def missing(self) -> str | None:
        return None if find_spec(self.library) else f"the library {self.library} is not installed"

    def encode(self, content: bytes) -> bytes:
        raise NotImplementedError

    def decode(self, archive: bytes) -> bytes:
        raise NotImplementedError

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        target.write_bytes(self.encode(source.read_bytes()))
        return {}

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        target.write_bytes(self.decode(source.read_bytes()))
        return {}


class Gzip(_InMemory):
    name = "gzip"
    setting = "-9"
    library = "gzip"

    def encode(self, content: bytes) -> bytes:
        import gzip

        return gzip.compress(content, 9, mtime=0)

    def decode(self, archive: bytes) -> bytes:
        import gzip

        return gzip.decompress(archive)


class Bzip2(_InMemory):
    name = "bzip2"
    setting = "-9"
    library = "bz2"

    def encode(self, content: bytes) -> bytes:
        import bz2

        return bz2.compress(content, 9)

    def decode(self, archive: bytes) -> bytes:
        import bz2

        return bz2.decompress(archive)


class Xz(_InMemory):
    name = "xz"
    setting = "-9e"
    library = "lzma"

    def encode(self, content: bytes) -> bytes:
        import lzma

        return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)

    def decode(self, archive: bytes) -> bytes:
        import lzma

        return lzma.decompress(archive)


class Zstd(_InMemory):
    name = "zstd"
    setting = "--ultra -22"
    library = "zstandard"

    def encode(self, content: bytes) -> bytes:
        import zstandard

        return zstandard.ZstdCompressor(level=22, write_checksum=True).compress(content)

    def decode(self, archive: bytes) -> bytes:
        import zstandard

        return zstandard.ZstdDecompressor().decompress(archive)


class Brotli(_InMemory):
    name = "brotli"
    setting = "quality 11, window 2^24"
    library = "brotli"

    def encode(self, content: bytes) -> bytes:
        archive: bytes = import_module("brotli").compress(content, quality=11, lgwin=24)
        return archive

    def decode(self, archive: bytes) -> bytes:
        content: bytes = import_module("brotli").decompress(archive)
        return content


class Ppmd(_InMemory):
    name = "ppmd"
    setting = "variant I, order 16, 256 MiB"
    library = "pyppmd"
    _ORDER = 16
    _MEMORY_BYTES = 256 << 20
    _LENGTH_BYTES = 8  # the coded data has no end of its own
    # pyppmd 1.3.1 loses a byte where what one call writes exceeds 32 KiB.
    _PIECE_BYTES = 1 << 12

    def encode(self, content: bytes) -> bytes:
        encoder = import_module("pyppmd").Ppmd8Encoder(self._ORDER, self._MEMORY_BYTES)
        pieces = [len(content).to_bytes(self._LENGTH_BYTES, "little")]
        for start in range(0, len(content), self._PIECE_BYTES):
            pieces.append(encoder.encode(content[start : start + self._PIECE_BYTES]))
        return b"".join([*pieces, encoder.flush()])

    def decode(self, archive: bytes) -> bytes:
        length = int.from_bytes(archive[: self._LENGTH_BYTES], "little")
        decoder = import_module("pyppmd").Ppmd8Decoder(self._ORDER, self._MEMORY_BYTES)
        content: bytes = decoder.decode(archive[self._LENGTH_BYTES :], length) if length else b""
        return content


class Zpaq:
    name = "zpaq"
    setting = "-m5"

    def missing(self) -> str | None:
        return None if shutil.which("zpaq") else "there is no program zpaq on PATH"

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        # The archive stores the path as given; its name must end in .zpaq.
        archive = target.with_suffix(".zpaq")
        archive.unlink(missing_ok=True)
        _run(["zpaq", "add", str(archive), source.name, "-m5", "-t1"], source.parent)
        archive.replace(target)
        return {}

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        archive = source.with_suffix(".zpaq")
        shutil.copyfile(source, archive)
        folder = target.with_name(target.name + ".zpaq-files")
        shutil.rmtree(folder, ignore_errors=True)
        _run(["zpaq", "extract", str(archive), "-to", f"{folder}/", "-t1"], source.parent)
        (content,) = (path for path in folder.rglob("*") if path.is_file())
        content.replace(target)
        shutil.rmtree(folder)
        archive.unlink()
        return {}


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise RuntimeError(f"{command[0]}: {reason}")


class Llmzip:
    name = "llmzip"
    setting = "as configured"

    def missing(self) -> str | None:
        return None

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        import archiver

        archiver.compress(source, target, options=options_of(settings), overwrite=True)
        return describe_archive(target)

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        import archiver

        archiver.decompress(source, target, threads=settings.threads, overwrite=True)
        return {}


def options_of(settings: LlmzipSettings) -> CompressOptions:
    """Return the options of a compression; what the settings leave open is at its default."""
    from archiver.options import CompressOptions

    given = dataclasses.asdict(settings)
    return CompressOptions(**{name: value for name, value in given.items() if value is not None})


def describe_archive(source: Path | bytes) -> dict[str, Any]:
    """Return what an llmzip archive says of itself, and the size of the model behind it."""
    import archiver
    from archiver.predict import registry

    info = archiver.info(source)
    side_bytes = 0 if info.steering is None else info.steering.side_information_bytes
    counts: dict[str, int] = {}
    for frame in info.frames:
        counts[frame.coding] = counts.get(frame.coding, 0) + 1
    said: dict[str, Any] = {
        "parts": {
            "payload_bytes": info.payload_bytes,
            "side_information_bytes": side_bytes,
            "container_bytes": info.archive_bytes - info.payload_bytes - side_bytes,
        },
        "frames": counts,
    }
    if info.steering is not None:
        said["steering"] = dataclasses.asdict(info.steering)
    if info.predictor is not None:
        package = registry.resolve_fingerprint(info.predictor.package_fingerprint)
        said |= {
            "model_bytes": package.array_bytes,
            "model": package.name,
            "package_fingerprint": package.fingerprint,
            "engine_version": info.predictor.engine_version,
            "window_tokens": info.predictor.window_tokens,
            "sink_tokens": info.predictor.sink_tokens,
        }
    return said


COMPETITORS: tuple[Competitor, ...] = (
    Llmzip(), Gzip(), Bzip2(), Xz(), Zstd(), Brotli(), Ppmd(), Zpaq(),
)  # fmt: skip
