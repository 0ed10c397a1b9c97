"""From the header's steering section to the vectors, and what a section says of itself.

    BUILT_IN  number         ─┐
    FILE      fingerprint    ─┼─ body ──────────────────────┐
    EMBEDDED  body           ─┘                             ├─ codes, scales
    TOKENS    ranks          ── embeddings ─────────────────┤
    RANDOM    seed, vectors  ── integer generator ──────────┘

Source: FORMAT.md, "Section STEERING".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from archiver.container.layout import (
    LARGEST_STEERING_VECTORS,
    SteeringKind,
    SteeringSection,
)
from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.errors import (
    HeaderDamagedError,
    LimitExceededError,
    SteeringError,
)
from archiver.predict.engine import SoftPrompt
from archiver.steering.bodies import decode_body, token_vectors
from archiver.steering.files import (
    BUILT_IN,
    SteeringFile,
    built_in_by_number,
    read_file,
)
from archiver.types import Int8Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage

_FILE_FINGERPRINT_BYTES = 8


# --- sections -------------------------------------------------------------------------------


def built_in_section(name: str) -> SteeringSection:
    """The section that names a built-in steering file."""
    return SteeringSection(kind=SteeringKind.BUILT_IN, fields=bytes([BUILT_IN[name][0]]))


def tokens_section(ranks: Sequence[int]) -> SteeringSection:
    """The section that holds tokens whose embeddings are the vectors."""
    fields = encode_varint(len(ranks)) + b"".join(map(encode_varint, ranks))
    return SteeringSection(kind=SteeringKind.TOKENS, fields=fields)


def random_section(seed: int, vectors: int) -> SteeringSection:
    """The section of vectors that follow from a seed."""
    fields = encode_varint(vectors) + encode_varint(seed)
    return SteeringSection(kind=SteeringKind.RANDOM, fields=fields)


def embedded_section(body: bytes) -> SteeringSection:
    """The section that holds the vectors themselves."""
    return SteeringSection(kind=SteeringKind.EMBEDDED, fields=body)


def file_section(file: SteeringFile) -> SteeringSection:
    """The section that names a steering file."""
    fields = file.fingerprint.to_bytes(_FILE_FINGERPRINT_BYTES, "little")
    return SteeringSection(kind=SteeringKind.FILE, fields=fields)


# --- vectors --------------------------------------------------------------------------------


def resolve(
    section: SteeringSection, package: ModelPackage, steering_file: Path | None
) -> SoftPrompt:
    """The vectors that a section names or holds.

    Args:
        steering_file: where the file lies that a section of kind FILE names.

    Raises:
        HeaderDamagedError: the section's form is wrong. LimitExceededError: too many vectors.
        UnsupportedVersionError: built-in vectors that this llmzip lacks.
        SteeringError: the steering file is not given, is another one, or for another model.
    """
    try:
        match section.kind:
            case SteeringKind.BUILT_IN:
                return of_file(_built_in(section.fields), package)
            case SteeringKind.FILE:
                return of_file(_named_file(section.fields, steering_file), package)
            case SteeringKind.EMBEDDED:
                return decode_body(section.fields, package)
            case SteeringKind.TOKENS:
                return token_vectors(_ranks(section.fields), package)
            case SteeringKind.RANDOM:
                vectors, seed = _vectors_and_seed(section.fields)
                return random_vectors(vectors, seed, package)
    except MalformedError as error:
        raise HeaderDamagedError(f"the header is damaged: its steering vectors: {error}") from error


def of_file(file: SteeringFile, package: ModelPackage) -> SoftPrompt:
    """The vectors of a steering file.

    Raises:
        SteeringError: it is for another model, or malformed.
    """
    if file.package_fingerprint != package.fingerprint_bytes:
        raise SteeringError(
            f"the steering vectors are for the model {file.package_fingerprint.hex()}, "
            f"not for {package.fingerprint_bytes.hex()}"
        )
    try:
        return decode_body(file.body, package)
    except MalformedError as error:
        raise SteeringError(f"the steering file is malformed: {error}") from error


def _built_in(fields: bytes) -> SteeringFile:
    if len(fields) != 1:
        raise MalformedError("the number of built-in ones has the wrong length")
    return built_in_by_number(fields[0])


def _named_file(fields: bytes, path: Path | None) -> SteeringFile:
    if len(fields) != _FILE_FINGERPRINT_BYTES:
        raise MalformedError("the fingerprint of their file has the wrong length")
    wanted = int.from_bytes(fields, "little")
    if path is None:
        raise SteeringError(
            f"the archive needs the steering file {wanted:016x} (--steer names the file)"
        )
    file = read_file(path)
    if file.fingerprint != wanted:
        raise SteeringError(
            f"the archive needs the steering file {wanted:016x}, but {path} is "
            f"{file.fingerprint:016x}"
        )
    return file


def _ranks(fields: bytes) -> list[int]:
    count, at = decode_varint(fields, 0)
    _check_count(count)
    ranks = []
    for _ in range(count):
        rank, at = decode_varint(fields, at)
        ranks.append(rank)
    if at != len(fields):
        raise MalformedError("bytes follow the tokens")
    return ranks


def _vectors_and_seed(fields: bytes) -> tuple[int, int]:
    vectors, at = decode_varint(fields, 0)
    _check_count(vectors)
    seed, at = decode_varint(fields, at, bits=64)
    if at != len(fields):
        raise MalformedError("bytes follow the seed")
    return vectors, seed


def _check_count(vectors: int) -> None:
    if vectors == 0:
        raise MalformedError("there are none")
    if vectors > LARGEST_STEERING_VECTORS:
        raise LimitExceededError(
            f"{vectors} steering vectors are more than {LARGEST_STEERING_VECTORS}"
        )


def random_vectors(vectors: int, seed: int, package: ModelPackage) -> SoftPrompt:
    """Vectors with coordinates nearly normal, from a seed by SplitMix64.

    A coordinate's code is a quarter of the sum of four bytes less its mean, rounded towards
    zero: -127 to 127, with a standard deviation of 37, as embeddings have.
    """
    codes, scales = package.arrays["embed.codes"], package.arrays["embed.scales"]
    shape = (vectors, codes.shape[1])
    scale = scales[int(str(package.config["start_token"]))]
    return SoftPrompt(codes=_random_codes(shape, seed), scales=np.full(vectors, scale, np.float32))


def _random_codes(shape: tuple[int, int], seed: int) -> Int8Array:
    numbers = np.arange(1, shape[0] * shape[1] + 1, dtype=np.uint64)
    z = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)  # modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    total = sum(((z >> np.uint64(8 * byte)) & np.uint64(255)).astype(np.int64) for byte in range(4))
    sums = np.asarray(total) - 510
    codes = np.sign(sums) * (np.abs(sums) // 4)
    result: Int8Array = codes.astype(np.int8).reshape(shape)
    return result
