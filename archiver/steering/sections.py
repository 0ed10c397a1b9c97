"""The header's steering section: made, taken apart, described.

Source: FORMAT.md, "Section STEERING".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archiver.container.layout import (
    LARGEST_STEERING_VECTORS,
    SteeringKind,
    SteeringSection,
)
from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.errors import HeaderDamagedError, LimitExceededError
from archiver.steering import files
from archiver.steering.files import SteeringFile, built_in_by_number, built_in_name
from archiver.steering.starts import read_start

FILE_FINGERPRINT_BYTES = 8


def built_in_section(name: str) -> SteeringSection:
    """The section that names a built-in steering file."""
    return SteeringSection(kind=SteeringKind.BUILT_IN, fields=bytes([files.BUILT_IN[name][0]]))


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
    fields = file.fingerprint.to_bytes(FILE_FINGERPRINT_BYTES, "little")
    return SteeringSection(kind=SteeringKind.FILE, fields=fields)


def number_of(fields: bytes) -> int:
    """The number in a section of kind BUILT_IN.

    Raises:
        MalformedError: its form is wrong.
    """
    if len(fields) != 1:
        raise MalformedError("the number of built-in ones has the wrong length")
    return fields[0]


def fingerprint_of(fields: bytes) -> int:
    """The fingerprint in a section of kind FILE.

    Raises:
        MalformedError: its form is wrong.
    """
    if len(fields) != FILE_FINGERPRINT_BYTES:
        raise MalformedError("the fingerprint of their file has the wrong length")
    return int.from_bytes(fields, "little")


def ranks_of(fields: bytes) -> list[int]:
    """The tokens of a section of kind TOKENS.

    Raises:
        MalformedError, LimitExceededError: its form is wrong; too many.
    """
    count, at = decode_varint(fields, 0)
    _check_count(count)
    ranks = []
    for _ in range(count):
        rank, at = decode_varint(fields, at)
        ranks.append(rank)
    if at != len(fields):
        raise MalformedError("bytes follow the tokens")
    return ranks


def vectors_and_seed_of(fields: bytes) -> tuple[int, int]:
    """How many vectors a section of kind RANDOM asks for, and their seed.

    Raises:
        MalformedError, LimitExceededError: its form is wrong; too many.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringInfo:
    """What an archive says of its steering vectors.

    Attributes:
        kind: "built_in", "tokens", "random", "embedded" or "file".
        side_information_bytes: what the header holds of them.
        name: of built-in ones, or the fingerprint of a steering file; None for others.
        vectors: how many; None where that is not known here.
        prior: how the coordinates of embedded or built-in ones are coded.
        code_bytes: length of those coordinates.
    """

    kind: str
    side_information_bytes: int
    name: str | None = None
    vectors: int | None = None
    prior: str | None = None
    code_bytes: int | None = None

    def describe(self, hidden: int | None) -> str:
        """Return a line of text.

        Args:
            hidden: the coordinates of a vector, if known.
        """
        words = [self.kind.replace("_", " ") + (f" {self.name}" if self.name else "")]
        if self.vectors is not None:
            words.append(f"{self.vectors} vector{'s' if self.vectors > 1 else ''}")
        if self.prior is not None:
            words.append(f"prior {self.prior}")
        if self.code_bytes is not None and self.vectors and hidden:
            words.append(f"{8 * self.code_bytes / (self.vectors * hidden):.3f} bits a coordinate")
        words.append(f"{self.side_information_bytes:,} bytes of side information")
        return ", ".join(words)


def describe_section(section: SteeringSection) -> SteeringInfo:
    """What a section says of itself, without any model.

    Raises:
        HeaderDamagedError: its form is wrong. LimitExceededError: too many vectors.
    """
    fields = section.fields
    kind, size = section.kind.name.lower(), 1 + len(fields)
    try:
        match section.kind:
            case SteeringKind.BUILT_IN:
                number = number_of(fields)
                name = built_in_name(number)
                if name is None:
                    return SteeringInfo(kind=kind, side_information_bytes=size, name=str(number))
                return _with_body(kind, size, built_in_by_number(number).body, name)
            case SteeringKind.EMBEDDED:
                return _with_body(kind, size, fields, None)
            case SteeringKind.TOKENS:
                vectors = len(ranks_of(fields))
                return SteeringInfo(kind=kind, side_information_bytes=size, vectors=vectors)
            case SteeringKind.RANDOM:
                vectors, _ = vectors_and_seed_of(fields)
                return SteeringInfo(kind=kind, side_information_bytes=size, vectors=vectors)
            case SteeringKind.FILE:
                name = f"{fingerprint_of(fields):016x}"
                return SteeringInfo(kind=kind, side_information_bytes=size, name=name)
    except MalformedError as error:
        raise HeaderDamagedError(f"the header is damaged: its steering vectors: {error}") from error


def _with_body(kind: str, size: int, body: bytes, name: str | None) -> SteeringInfo:
    start = read_start(body)
    return SteeringInfo(
        kind=kind,
        side_information_bytes=size,
        name=name,
        vectors=start.vectors,
        prior=start.prior.kind.name.lower().replace("_", "-"),
        code_bytes=len(body) - start.coordinates_at,
    )
