"""The steering vectors that a header speaks of.

Source: FORMAT.md, "Section STEERING", "Steering vectors" and "Steering files".
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache
from pathlib import Path

import numpy as np

from archiver.errors import (
    HeaderDamagedError,
    LimitExceededError,
    SteeringError,
    UnsupportedVersionError,
)
from tests.reference.coder import RangeDecoder
from tests.reference.container import (
    MalformedError,
    SteeringSection,
    hash32,
    hash64,
    read_uint,
    read_varint,
)
from tests.reference.numbers import f32
from tests.reference.package import Package
from tests.reference.predictor import Vector

FILE_MAGIC = bytes.fromhex("89 4C 5A 53 54 0A")
FILE_VERSION = 1
LARGEST_STEERING_VECTORS = 256
LARGEST_STEERING_BYTES = 1048576
SCALE_MIN, SCALE_MAX = 2.0**-40, 2.0**8
BUILT_IN_FOLDER = Path(__file__).parents[2] / "archiver/steering/vectors"


def steering_vectors(
    section: SteeringSection, package: Package, file: bytes | None
) -> list[Vector]:
    """The vectors, one a position."""
    try:
        if section.kind == 1:
            return _of_file(_built_in(section.fields), package)
        if section.kind == 2:
            return _of_tokens(section.fields, package)
        if section.kind == 3:
            return _random(section.fields, package)
        if section.kind == 4:
            return _of_body(section.fields, package)
        if section.kind == 5:
            return _of_file(_named(section.fields, file), package)
    except MalformedError as error:
        raise HeaderDamagedError(str(error)) from error
    raise UnsupportedVersionError(f"steering kind {section.kind}")


def _check_count(vectors: int) -> None:
    if vectors == 0:
        raise MalformedError("no vectors")
    if vectors > LARGEST_STEERING_VECTORS:
        raise LimitExceededError(f"{vectors} vectors")


def _of_tokens(fields: bytes, package: Package) -> list[Vector]:
    vectors, offset = read_varint(fields, 0)
    _check_count(vectors)
    ranks = []
    for _ in range(vectors):
        rank, offset = read_varint(fields, offset)
        ranks.append(rank)
    if offset != len(fields):
        raise MalformedError("the section has the wrong length")
    return [_embedding(package, rank) for rank in ranks]


def _embedding(package: Package, rank: int) -> Vector:
    codes, scales = package.arrays["embed.codes"], package.arrays["embed.scales"]
    if rank >= len(codes):
        raise MalformedError(f"no token {rank}")
    return Vector(codes[rank].astype(np.int64), f32(scales[rank]))


def _random(fields: bytes, package: Package) -> list[Vector]:
    vectors, offset = read_varint(fields, 0)
    _check_count(vectors)
    seed, offset = read_varint(fields, offset, bits=64)
    if offset != len(fields):
        raise MalformedError("the section has the wrong length")
    hidden = package.config["hidden"]
    scale = _embedding(package, package.config["start_token"]).scale
    result = []
    state = seed
    for _ in range(vectors):
        codes = []
        for _ in range(hidden):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = state
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            z = z ^ z >> 31
            codes.append(math.trunc((sum(z.to_bytes(8, "little")[:4]) - 510) / 4))
        result.append(Vector(np.array(codes), scale))
    return result


# Files


def _built_in(fields: bytes) -> bytes:
    if len(fields) != 1:
        raise MalformedError("the section has the wrong length")
    name = built_in_names().get(fields[0])
    if name is None:
        raise UnsupportedVersionError(f"built-in vectors {fields[0]}")
    return (BUILT_IN_FOLDER / f"{name}.steer").read_bytes()


def built_in_names() -> dict[int, str]:
    """Number and name of the built-in files, as FORMAT.md lists them."""
    text = (Path(__file__).parents[2] / "archiver/container/FORMAT.md").read_text("utf-8")
    rows = text[text.index("| number | name") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {int(number): name for number, name, *_ in cells}


def _named(fields: bytes, file: bytes | None) -> bytes:
    if len(fields) != 8:
        raise MalformedError("the section has the wrong length")
    if file is None or hash64(file[:-4]) != read_uint(fields, 0, 8):
        raise SteeringError("the steering file is missing, or another one")
    return file


def _of_file(file: bytes, package: Package) -> list[Vector]:
    if file[:6] != FILE_MAGIC or file[6] != FILE_VERSION:
        raise SteeringError("not a steering file of this version")
    body_bytes = read_uint(file, 15, 4)
    if body_bytes > LARGEST_STEERING_BYTES or len(file) != 23 + body_bytes:
        raise SteeringError("the steering file has the wrong length")
    if read_uint(file, 19 + body_bytes, 4) != hash32(file[:-4]):
        raise SteeringError("the steering file's check is wrong")
    if file[7:15] != package.fingerprint[:8]:
        raise SteeringError("the steering file is for another model")
    try:
        return _of_body(file[19:-4], package)
    except MalformedError as error:
        raise SteeringError(str(error)) from error


# Bodies


@cache
def normal_table() -> list[int]:
    """PHI[0] to PHI[512]: round(2^30 Phi(i / 64)), by the complementary error function's tail.

    Phi(x) = 1 - e^(-x^2/2) / sqrt(2 pi) * (1/(x + 1/(x + 2/(x + 3/(x + ...))))) for x >= 1, and
    the series of the error function below.
    """
    with localcontext() as context:
        context.prec = 50
        two_pi = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        table = []
        for i in range(513):
            x = Decimal(i) / 64
            density = (-x * x / 2).exp() / two_pi.sqrt()
            if x < 2:
                term = total = x
                for n in range(1, 100):
                    term = term * x * x / (2 * n + 1)
                    total += term
                phi = Decimal("0.5") + density * total
            else:
                fraction = x
                for n in range(400, 0, -1):
                    fraction = x + n / fraction
                phi = 1 - density / fraction
            table.append(int((phi * 2**30).to_integral_value()))
    return table


def cumulative(t: int, sigma: int) -> int:
    """N(t, sigma)."""
    table = [*normal_table(), 2**30]
    u = min(abs(t) * 2**21 // sigma, 512 * 1024)
    i, r = divmod(u, 1024)
    value = table[i] + (table[i + 1] - table[i]) * r // 1024
    return value if t >= 0 else 2**30 - value


def normal_frequencies(low: int, high: int, sigma: int) -> list[int]:
    """The frequencies of the codes low to high."""
    return [
        (cumulative(2 * c + 1, sigma) - cumulative(2 * c - 1, sigma)) // 256 + 1
        for c in range(low, high + 1)
    ]


class _Fields:
    """The parameters of a prior, front to back."""

    def __init__(self, body: bytes, offset: int) -> None:
        self.body, self.offset = body, offset

    def u8(self) -> int:
        self.offset += 1
        if self.offset > len(self.body):
            raise MalformedError("the parameters are cut short")
        return self.body[self.offset - 1]

    def i8(self) -> int:
        value = self.u8()
        return value - 256 if value > 127 else value

    def varint(self) -> int:
        value, self.offset = read_varint(self.body, self.offset)
        return value


def _of_body(body: bytes, package: Package) -> list[Vector]:
    hidden = package.config["hidden"]
    k, offset = read_varint(body, 0)
    _check_count(k)
    fields = _Fields(body, offset)
    prior = fields.u8()
    scale = np.uint32((fields.u8() + 256 * fields.u8()) << 16).view(np.float32)
    if not SCALE_MIN <= scale <= SCALE_MAX:
        raise MalformedError("the scale is out of range")
    means = np.zeros((k, hidden), np.int64)
    tables: list[list[int]]
    table_of = np.zeros((k, hidden), np.int64)
    if prior == 1:
        sigma = fields.varint()
        low, high = fields.i8(), fields.i8()
        if not 1 <= sigma <= 16384 or not -127 <= low <= high <= 127:
            raise MalformedError("parameters out of range")
        codes = list(range(low, high + 1))
        tables = [normal_frequencies(low, high, sigma)]
    elif prior == 2:
        low, bins = fields.i8(), fields.u8()
        codes = list(range(low, low + bins))
        tables = [[fields.varint() for _ in codes]]
    elif prior == 3:
        codes = [fields.i8() for _ in range(fields.u8())]
        if sorted(set(codes)) != codes:
            raise MalformedError("the codes are not ascending")
        tables = [[fields.varint() for _ in codes]]
    elif prior == 4:
        base = fields.u8()
        vectors: list[Vector] = []
        if base == 1:
            vectors = [_embedding(package, fields.varint()) for _ in range(k)]
        elif base == 2:
            vectors = _of_file(_built_in(bytes([fields.u8()])), package)
        elif base > 2:
            raise MalformedError(f"unknown means {base}")
        if vectors and len(vectors) != k:
            raise MalformedError("another number of means")
        for row, vector in enumerate(vectors):
            steps = vector.values() / scale
            means[row] = np.rint(np.clip(steps, f32(-127), f32(127)))
        stride = fields.u8()
        if not 1 <= stride <= 127:
            raise MalformedError("the stride is out of range")
        vector_levels = [fields.u8() for _ in range(k)]
        group_levels = [fields.i8() for _ in range(fields.u8())]
        if len(group_levels) > hidden or max([*vector_levels, *map(abs, group_levels)]) > 40:
            raise MalformedError("a level is out of range")
        for v in range(k):
            for j in range(hidden):
                group = group_levels[j * len(group_levels) // hidden] if group_levels else 0
                table_of[v, j] = min(max(vector_levels[v] + group, 0), 40)
        codes = [c * stride for c in range(-127, 128)]
        tables = [
            normal_frequencies(-127, 127, math.isqrt(math.isqrt(2 ** (level + 8))))
            for level in range(41)
        ]
    else:
        raise MalformedError(f"unknown prior {prior}")
    if not codes or (prior != 4 and (codes[0] < -127 or codes[-1] > 127)):
        raise MalformedError("codes out of range")
    if min(tables[0]) < 1 or sum(tables[0]) > 2**24:
        raise MalformedError("frequencies out of range")
    decoder = RangeDecoder(body[fields.offset :])
    result = []
    for v in range(k):
        row_codes = []
        for j in range(hidden):
            code = codes[_symbol(tables[table_of[v, j]], decoder)] + means[v, j]
            row_codes.append(min(max(code, -127), 127))
        result.append(Vector(np.array(row_codes), f32(scale)))
    return result


def _symbol(frequencies: list[int], decoder: RangeDecoder) -> int:
    low, high = 0, len(frequencies)
    while high - low > 1:
        middle = (low + high) // 2
        below, above = sum(frequencies[low:middle]), sum(frequencies[middle:high])
        p = min(max(above * 2**22 // (below + above), 1), 2**22 - 1)
        if decoder.decide(p):
            low = middle
        else:
            high = middle
    return low
