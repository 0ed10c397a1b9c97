"""From the header's steering section to the vectors.

    BUILT_IN  number         ─┐
    FILE      fingerprint    ─┼─ body ──────────────────────┐
    EMBEDDED  body           ─┘                             ├─ codes, scales
    TOKENS    ranks          ── embeddings ─────────────────┤
    RANDOM    seed, vectors  ── integer generator ──────────┘

Source: FORMAT.md, "Section STEERING".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from archiver.container.layout import SteeringKind, SteeringSection
from archiver.container.varint import MalformedError
from archiver.errors import HeaderDamagedError, SteeringError
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering.bodies import decode_body, token_vectors
from archiver.steering.files import SteeringFile, built_in_by_number, read_file
from archiver.steering.sections import (
    fingerprint_of,
    number_of,
    ranks_of,
    vectors_and_seed_of,
)
from archiver.types import Int8Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage


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
                return of_file(built_in_by_number(number_of(section.fields)), package)
            case SteeringKind.FILE:
                return of_file(_named_file(section.fields, steering_file), package)
            case SteeringKind.EMBEDDED:
                return decode_body(section.fields, package)
            case SteeringKind.TOKENS:
                return token_vectors(ranks_of(section.fields), package)
            case SteeringKind.RANDOM:
                vectors, seed = vectors_and_seed_of(section.fields)
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


def _named_file(fields: bytes, path: Path | None) -> SteeringFile:
    wanted = fingerprint_of(fields)
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
