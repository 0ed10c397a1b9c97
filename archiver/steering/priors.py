"""Hyper-priors: integer tables by which the coordinates of steering vectors are coded.

    parameters ── tables: frequencies by symbol ── which table, which mean ── a coordinate's code
                                                        coordinate = code * scale

Every prior says the same things: some tables of frequencies over its symbols, the code that a
symbol adds to a coordinate's mean, which table each coordinate has, and what the means are.

Source: FORMAT.md, "Steering vectors".
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isqrt
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np

from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.steering.normal import SIGMA_MAX, frequencies
from archiver.types import Int32Array, Int64Array, UInt8Array

CODE_MAX = 127
FREQUENCY_TOTAL_MAX = 1 << 24
LEVELS = 41  # of SCALES: sigma = 2^(level / 4 - 4) steps


class PriorKind(IntEnum):
    """The byte that names a prior."""

    GAUSSIAN = 1
    EMPIRICAL = 2
    LLOYD_MAX = 3
    SCALES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodingTables:
    """What the coder needs of a prior.

    Attributes:
        cumulative: int64 [tables, symbols + 1], sums of frequencies, the first 0.
        codes: int32 [symbols], ascending: what a symbol adds to the mean.
        numbers: uint8 [vectors, hidden], the table of each coordinate.
    """

    cumulative: Int64Array
    codes: Int32Array
    numbers: UInt8Array


class Prior(Protocol):
    """A hyper-prior with its parameters."""

    @property
    def kind(self) -> PriorKind:
        """The byte that names it."""

    @property
    def base(self) -> Base | None:
        """What the coordinates' means are made of; None where they are 0."""

    def encode(self) -> bytes:
        """Return the parameters' bytes."""

    def tables(self, vectors: int, hidden: int) -> CodingTables:
        """Return the tables for so many vectors of so many coordinates."""


def _one_table(counts: Sequence[int], codes: Sequence[int], shape: tuple[int, int]) -> CodingTables:
    return CodingTables(
        cumulative=np.array([[0, *itertools.accumulate(counts)]], np.int64),
        codes=np.array(codes, np.int32),
        numbers=np.zeros(shape, np.uint8),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianPrior:
    """Codes from `low` to `high` under N(0, sigma^2), sigma in 1/64 of a step."""

    sigma: int
    low: int
    high: int

    kind: ClassVar = PriorKind.GAUSSIAN
    base: ClassVar = None

    def __post_init__(self) -> None:
        if not 1 <= self.sigma <= SIGMA_MAX:
            raise MalformedError(f"a sigma of {self.sigma}")
        if not -CODE_MAX <= self.low <= self.high <= CODE_MAX:
            raise MalformedError(f"codes from {self.low} to {self.high}")

    def encode(self) -> bytes:
        """Return the parameters' bytes."""
        return encode_varint(self.sigma) + bytes([self.low & 255, self.high & 255])

    @classmethod
    def decode(cls, data: bytes, at: int, vectors: int) -> tuple[GaussianPrior, int]:
        """Return the prior whose parameters begin at `at`, and where they end."""
        sigma, at = decode_varint(data, at)
        low, high = _signed_bytes(data, at, 2)
        return cls(sigma=sigma, low=low, high=high), at + 2

    def tables(self, vectors: int, hidden: int) -> CodingTables:
        """Return one table for all coordinates."""
        codes = range(self.low, self.high + 1)
        return _one_table(frequencies(self.low, self.high, self.sigma), codes, (vectors, hidden))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmpiricalPrior:
    """Codes low, low + 1, ... with the frequencies that they have."""

    low: int
    counts: tuple[int, ...]

    kind: ClassVar = PriorKind.EMPIRICAL
    base: ClassVar = None

    def __post_init__(self) -> None:
        _check_counts(self.counts)
        if not -CODE_MAX <= self.low <= CODE_MAX + 1 - len(self.counts):
            raise MalformedError(f"{len(self.counts)} codes from {self.low} on")

    def encode(self) -> bytes:
        """Return the parameters' bytes."""
        return bytes([self.low & 255, len(self.counts)]) + b"".join(map(encode_varint, self.counts))

    @classmethod
    def decode(cls, data: bytes, at: int, vectors: int) -> tuple[EmpiricalPrior, int]:
        """Return the prior whose parameters begin at `at`, and where they end."""
        low, _ = _signed_bytes(data, at, 2)
        counts, end = _varints(data, at + 2, data[at + 1])
        return cls(low=low, counts=counts), end

    def tables(self, vectors: int, hidden: int) -> CodingTables:
        """Return one table for all coordinates."""
        codes = range(self.low, self.low + len(self.counts))
        return _one_table(self.counts, codes, (vectors, hidden))


@dataclass(frozen=True, slots=True, kw_only=True)
class LloydMaxPrior:
    """Codes at any places (the centroids of a one-dimensional k-means) and their frequencies."""

    codes: tuple[int, ...]
    counts: tuple[int, ...]

    kind: ClassVar = PriorKind.LLOYD_MAX
    base: ClassVar = None

    def __post_init__(self) -> None:
        _check_counts(self.counts)
        ascending = all(a < b for a, b in itertools.pairwise(self.codes))
        if len(self.codes) != len(self.counts) or not ascending or self.codes[0] < -CODE_MAX:
            raise MalformedError("centroids out of order or out of range")

    def encode(self) -> bytes:
        """Return the parameters' bytes."""
        codes = bytes(code & 255 for code in self.codes)
        return bytes([len(codes)]) + codes + b"".join(map(encode_varint, self.counts))

    @classmethod
    def decode(cls, data: bytes, at: int, vectors: int) -> tuple[LloydMaxPrior, int]:
        """Return the prior whose parameters begin at `at`, and where they end."""
        (size,) = _bytes(data, at, 1)
        codes = _signed_bytes(data, at + 1, size)
        counts, end = _varints(data, at + 1 + size, size)
        return cls(codes=codes, counts=counts), end

    def tables(self, vectors: int, hidden: int) -> CodingTables:
        """Return one table for all coordinates."""
        return _one_table(self.counts, self.codes, (vectors, hidden))


@functools.cache
def scale_tables() -> Int64Array:
    """Cumulative frequencies of the codes -127 to 127 at every level, int64 [LEVELS, 256]."""
    rows = []
    for level in range(LEVELS):
        sigma = isqrt(isqrt(256 << level))  # floor(4 * 2^(level / 4)), in 1/64 of a step
        rows.append([0, *itertools.accumulate(frequencies(-CODE_MAX, CODE_MAX, sigma))])
    return np.array(rows, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What the means of ScalesPrior are made of: the embeddings of tokens, or built-in vectors.

    Attributes:
        ranks: one token a vector; empty where the built-in vectors `number` are the means.
        number: of a built-in steering file; 0 for none.
    """

    ranks: tuple[int, ...] = ()
    number: int = 0

    def __post_init__(self) -> None:
        assert bool(self.ranks) != bool(self.number)


_NO_BASE, _TOKENS, _BUILT_IN = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalesPrior:
    """N(mean, sigma^2), where sigma comes from the vector and the group of dimensions.

    A coordinate's level is its vector's plus its group's, kept to 0 .. LEVELS - 1. At level 0 a
    symbol other than 0 hardly ever occurs, so that a coordinate worth nothing costs nothing.

    Attributes:
        base: what the means are; None where they are 0.
        stride: codes between one symbol and the next: means may be finer than what is coded.
        vector_levels: one level a vector; group_levels: one a group of neighbouring dimensions.
    """

    base: Base | None
    stride: int
    vector_levels: tuple[int, ...]
    group_levels: tuple[int, ...]

    kind: ClassVar = PriorKind.SCALES

    def __post_init__(self) -> None:
        if self.base is not None and len(self.base.ranks) not in (0, len(self.vector_levels)):
            raise MalformedError("not one base token a vector")
        if not 1 <= self.stride <= CODE_MAX:
            raise MalformedError(f"a stride of {self.stride}")
        if not all(0 <= level < LEVELS for level in self.vector_levels):
            raise MalformedError("a vector's level out of range")
        if not all(abs(level) < LEVELS for level in self.group_levels):
            raise MalformedError("a group's level out of range")

    def encode(self) -> bytes:
        """Return the parameters' bytes."""
        if self.base is None:
            base = bytes([_NO_BASE])
        elif self.base.number:
            base = bytes([_BUILT_IN, self.base.number])
        else:
            base = bytes([_TOKENS]) + b"".join(map(encode_varint, self.base.ranks))
        return b"".join(
            (
                base,
                bytes([self.stride]),
                bytes(self.vector_levels),
                bytes([len(self.group_levels)]),
                bytes(level & 255 for level in self.group_levels),
            )
        )

    @classmethod
    def decode(cls, data: bytes, at: int, vectors: int) -> tuple[ScalesPrior, int]:
        """Return the prior whose parameters begin at `at`, and where they end."""
        (kind,) = _bytes(data, at, 1)
        at += 1
        base: Base | None = None
        if kind == _TOKENS:
            ranks, at = _varints(data, at, vectors)
            base = Base(ranks=ranks)
        elif kind == _BUILT_IN:
            (number,) = _bytes(data, at, 1)
            if number == 0:
                raise MalformedError("built-in vectors of number 0")
            base, at = Base(number=number), at + 1
        elif kind != _NO_BASE:
            raise MalformedError(f"means of unknown kind {kind}")
        (stride,) = _bytes(data, at, 1)
        vector_levels = tuple(_bytes(data, at + 1, vectors))
        at += 1 + vectors
        (groups,) = _bytes(data, at, 1)
        group_levels = _signed_bytes(data, at + 1, groups)
        prior = cls(
            base=base, stride=stride, vector_levels=vector_levels, group_levels=group_levels
        )
        return prior, at + 1 + groups

    def tables(self, vectors: int, hidden: int) -> CodingTables:
        """Return the tables of all levels.

        Raises:
            MalformedError: more groups than dimensions.
        """
        levels = np.repeat(np.array(self.vector_levels, np.int32)[:, None], hidden, 1)
        if self.group_levels:
            if len(self.group_levels) > hidden:
                raise MalformedError(f"{len(self.group_levels)} groups of {hidden} dimensions")
            groups = np.arange(hidden) * len(self.group_levels) // hidden
            levels += np.array(self.group_levels, np.int32)[groups]
        return CodingTables(
            cumulative=scale_tables(),
            codes=np.arange(-CODE_MAX, CODE_MAX + 1, dtype=np.int32) * self.stride,
            numbers=np.clip(levels, 0, LEVELS - 1).astype(np.uint8),
        )


_DECODERS: Mapping[int, Callable[[bytes, int, int], tuple[Prior, int]]] = MappingProxyType(
    {
        PriorKind.GAUSSIAN: GaussianPrior.decode,
        PriorKind.EMPIRICAL: EmpiricalPrior.decode,
        PriorKind.LLOYD_MAX: LloydMaxPrior.decode,
        PriorKind.SCALES: ScalesPrior.decode,
    }
)


def decode_prior(kind: int, data: bytes, at: int, vectors: int) -> tuple[Prior, int]:
    """Return the prior whose parameters begin at `at`, and where they end.

    Raises:
        MalformedError: an unknown kind, or parameters that no prior has.
    """
    if kind not in _DECODERS:
        raise MalformedError(f"unknown prior {kind}")
    return _DECODERS[kind](data, at, vectors)


def _check_counts(counts: tuple[int, ...]) -> None:
    if not counts or min(counts) < 1 or sum(counts) > FREQUENCY_TOTAL_MAX:
        raise MalformedError("frequencies out of range")


def _bytes(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise MalformedError("its parameters are cut short")
    return data[at : at + size]


def _signed_bytes(data: bytes, at: int, size: int) -> tuple[int, ...]:
    return tuple((byte ^ 128) - 128 for byte in _bytes(data, at, size))


def _varints(data: bytes, at: int, count: int) -> tuple[tuple[int, ...], int]:
    values = []
    for _ in range(count):
        value, at = decode_varint(data, at)
        values.append(value)
    return tuple(values), at
