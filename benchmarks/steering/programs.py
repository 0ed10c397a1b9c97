"""llmzip as the archives of an experiment are made by it, and what is known of their vectors.

The programs and `train` run in fresh processes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.options import STEERING_SUFFIX
from benchmarks.competitors import Competitor, Llmzip, describe_archive, options_of
from benchmarks.records import LlmzipSettings

if TYPE_CHECKING:
    from archiver.codec import FrameCodec
    from archiver.predict.package import ModelPackage
    from archiver.steering.choice import Steering

_LENGTH_BYTES = 4  # before each piece


class SteeredLlmzip(Llmzip):
    """Says also how long choosing took, and what storing vectors in the archive came to.

    Details: "choosing_s"; "vectors" as `vector_facts` returns them, where the archive holds some.
    """

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        with _choosing_timed() as spent:
            said = super().compress(source, target, settings)
        said["choosing_s"] = sum(spent)
        if said.get("steering", {}).get("kind") == "embedded":
            said["vectors"] = _facts_of_archive(target)
        return said

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        import archiver

        choice = settings.steering or ""
        named = choice.endswith(STEERING_SUFFIX) and not settings.embed_steering
        archiver.decompress(
            source, target, threads=settings.threads, overwrite=True,
            steering=choice if named else None,
        )  # fmt: skip
        return {}


class LlmzipPieces(SteeredLlmzip):
    """The file in pieces of `frame_bytes` bytes, each an archive of its own."""

    def compress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        import archiver

        content, piece_bytes = source.read_bytes(), settings.frame_bytes or 1
        options = options_of(dataclasses.replace(settings, frame_bytes=None))
        parts = dict.fromkeys(("payload_bytes", "side_information_bytes", "container_bytes"), 0)
        said: dict[str, Any] = {}
        with target.open("wb") as stream:
            for begin in range(0, len(content), piece_bytes):
                archive = archiver.compress(content[begin : begin + piece_bytes], options=options)
                stream.write(len(archive).to_bytes(_LENGTH_BYTES, "little") + archive)
                described = describe_archive(archive)
                for name, size in described["parts"].items():
                    parts[name] += size
                parts["container_bytes"] += _LENGTH_BYTES
                said = said or described
        return said | {"parts": parts, "pieces": -(-len(content) // piece_bytes)}

    def decompress(self, source: Path, target: Path, settings: LlmzipSettings) -> dict[str, Any]:
        import archiver

        with source.open("rb") as stream, target.open("wb") as written:
            while length := stream.read(_LENGTH_BYTES):
                archive = stream.read(int.from_bytes(length, "little"))
                written.write(archiver.decompress(archive, threads=settings.threads))
        return {}


PROGRAMS: Mapping[str, Competitor] = MappingProxyType(
    {"llmzip": SteeredLlmzip(), "pieces": LlmzipPieces()}
)


@contextmanager
def _choosing_timed() -> Iterator[list[float]]:
    """Within, the seconds of each choice among the built-in vectors are noted."""
    from archiver.steering import choice

    spent: list[float] = []
    inner = choice.best_built_in

    def timed(package: ModelPackage, codec: FrameCodec, sample: bytes) -> Steering | None:
        begun_s = time.perf_counter()
        try:
            return inner(package, codec, sample)
        finally:
            spent.append(time.perf_counter() - begun_s)

    choice.best_built_in = timed
    try:
        yield spent
    finally:
        choice.best_built_in = inner


def train(
    source: str,
    target: str,
    checkpoint: str,
    model: str,
    threads: int | None,
    vectors: int,
    steps: int,
    seed: int,
    prior: str,
    bins: int,
    chunk_tokens: int | None,
    streams: int | None,
) -> dict[str, Any]:
    """Make a steering file; a checkpoint of the same training saves the training.

    Args:
        chunk_tokens: None for archiver.train's default; the others as that takes them.

    Returns:
        the fields of `archiver.steering.fit.TrainingSummary`.
    """
    import archiver

    given: dict[str, Any]
    given = {"streams": streams} if streams is not None else {"prior": prior, "bins": bins}
    if chunk_tokens is not None:
        given["chunk_tokens"] = chunk_tokens
    summary = archiver.train(
        [Path(source)], Path(target), model=model, vectors=vectors, steps=steps, seed=seed,
        checkpoint=checkpoint, threads=threads, overwrite=True, **given,
    )  # fmt: skip
    return dataclasses.asdict(summary)


def _facts_of_archive(path: Path) -> dict[str, Any]:
    """Return what is known of the vectors that an archive holds."""
    from archiver.container import IndexedArchive
    from archiver.predict import registry

    with path.open("rb") as stream:
        header = IndexedArchive(stream).header
    assert header.predictor is not None
    assert header.steering is not None
    package = registry.resolve_fingerprint(header.predictor.package_fingerprint)
    return vector_facts(header.steering.fields, package)


def vector_facts(body: bytes, package: ModelPackage) -> dict[str, Any]:
    """Return what storing vectors came to.

    Returns:
        "coordinates": how many; "bytes": of all that stores them; "code_bytes": of the coded
        coordinates alone; "entropy_bits": empirical entropy of a coordinate's symbol; "symbols":
        how many different ones occur; "compression": bytes in float32 by "bytes".
    """
    from archiver.steering.bodies import decode_body, mean_codes
    from archiver.steering.starts import read_start

    start = read_start(body)
    codes = decode_body(body, package).codes.astype(np.int32)
    symbols = codes - mean_codes(start.prior, start.scale, len(codes), package)
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / codes.size
    return {
        "coordinates": codes.size,
        "bytes": len(body),
        "code_bytes": len(body) - start.coordinates_at,
        "entropy_bits": float(-(shares * np.log2(shares)).sum()) + 0.0,
        "symbols": len(counts),
        "compression": 4 * codes.size / len(body),
    }
