"""Weights stored with fewer bits than a float has, expanded to float32 the same way everywhere.

A packed tensor [outputs, inputs] is some arrays of a tensor file, told apart by a suffix:

    plain       name            float32, float16 or bfloat16 as they are
    grid        name.codes      uint8 [outputs, inputs * bits / 8]; code n of a row lies in the bits
                                from n * bits on, counted from the lowest bit of the first byte
                name.scales     float16 [outputs, inputs / group]
                name.minima     float16 [outputs, inputs / group]   w = code * scale + minimum
    symmetric   name.codes, name.scales                             w = (code - 2^(bits-1)) * scale
    nf4         name.codes      4 bits each, as above
                name.scales     uint8 [blocks], one for each run of `group` weights in a row
                name.ranges     float32 [blocks / 256, up], name.offset float32 [1]
                                scale = DYNAMIC[code of the scale] * range + offset
                                w = NF4[code] * scale

Every operation is one of binary32, rounded on its own.  Source of nf4, its double quantization and
both tables: Dettmers et al., "QLoRA" (2023), as bitsandbytes stores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

from archiver.errors import InvalidModelError
from archiver.types import Float32Array, UInt8Array

METHODS = ("plain", "grid", "symmetric", "nf4")
RANGE_BLOCKS = 256

# The 16 quantiles of the normal distribution that NF4 consists of, scaled to -1 .. 1.
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a tensor is stored: a method of METHODS, bits a weight, weights that share a scale."""

    method: str
    bits: int = 32
    group: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidModelError(f"unknown packing {self.method!r}")
        if self.method != "plain" and not (2 <= self.bits <= 8 and self.group >= 1):
            raise InvalidModelError(f"packing of {self.bits} bits by {self.group} is impossible")
        if self.method == "nf4" and self.bits != 4:
            raise InvalidModelError("nf4 has 4 bits")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The arrays that a tensor so stored consists of."""
        return {
            "plain": ("",),
            "grid": (".codes", ".scales", ".minima"),
            "symmetric": (".codes", ".scales"),
            "nf4": (".codes", ".scales", ".ranges", ".offset"),
        }[self.method]


@cache
def dynamic_table() -> Float32Array:
    """The 256 values of the 8-bit type that NF4's scales are stored in, ascending.

    Seven decades of both signs; decade i has 2^i values of each sign, in the middles of equal
    parts of 0.1 .. 1; and 0 and 1.
    """
    values = [Fraction(0), Fraction(1)]
    for decade in range(7):
        count = 2**decade
        unit = Fraction(1, 10 ** (6 - decade))
        for part in range(count):
            middle = Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * part + 1, 2 * count)
            values += [middle * unit, -middle * unit]
    # Fraction to float is rounded once, correctly; so is float64 to float32.
    return np.array([float(value) for value in sorted(values)], np.float64).astype(np.float32)


def pack_codes(codes: UInt8Array, bits: int) -> UInt8Array:
    """Codes [rows, n], below 2^bits, without gaps: uint8 [rows, ceil(n * bits / 8)]."""
    spread = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(spread.reshape(len(codes), -1), axis=-1, bitorder="little")


def unpack_codes(packed: UInt8Array, bits: int, count: int) -> UInt8Array:
    """The inverse of ``pack_codes``: uint8 [rows, count]."""
    spread = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    places = spread.reshape(len(packed), count, bits)
    return np.packbits(places, axis=-1, bitorder="little")[..., 0]


def expand(
    name: str, shape: tuple[int, ...], packing: Packing, arrays: Mapping[str, np.ndarray]
) -> Float32Array:
    """The tensor, float32.

    Args:
        arrays: those of its suffixes, by full name.

    Raises:
        InvalidModelError: they do not fit shape and packing.
    """
    if packing.method == "plain":
        return _checked(name, arrays[name], shape, (np.float32, np.float16)).astype(np.float32)
    if len(shape) != 2 or shape[1] % packing.group:
        raise InvalidModelError(f"tensor {name}: groups of {packing.group} do not fit {shape}")
    rows, inputs = shape
    groups, width = inputs // packing.group, -(-inputs * packing.bits // 8)
    packed = _checked(f"{name}.codes", arrays[f"{name}.codes"], (rows, width), (np.uint8,))
    codes = unpack_codes(packed, packing.bits, inputs).reshape(rows, groups, packing.group)
    if packing.method == "nf4":
        scales = _nf4_scales(name, rows * groups, arrays).reshape(rows, groups, 1)
        return (NF4[codes] * scales).reshape(shape)
    stored = _checked(f"{name}.scales", arrays[f"{name}.scales"], (rows, groups), (np.float16,))
    scales = stored.astype(np.float32)[..., None]
    if packing.method == "symmetric":
        centred = codes.astype(np.float32) - np.float32(1 << (packing.bits - 1))
        return (centred * scales).reshape(shape)
    minima = _checked(f"{name}.minima", arrays[f"{name}.minima"], (rows, groups), (np.float16,))
    products = codes.astype(np.float32) * scales
    return (products + minima.astype(np.float32)[..., None]).reshape(shape)


def _nf4_scales(name: str, blocks: int, arrays: Mapping[str, np.ndarray]) -> Float32Array:
    """The doubly quantized scales, float32 [blocks]."""
    ranges_count = -(-blocks // RANGE_BLOCKS)
    codes = _checked(f"{name}.scales", arrays[f"{name}.scales"], (blocks,), (np.uint8,))
    ranges = _checked(f"{name}.ranges", arrays[f"{name}.ranges"], (ranges_count,), (np.float32,))
    offset = _checked(f"{name}.offset", arrays[f"{name}.offset"], (1,), (np.float32,))
    spread = np.repeat(ranges, RANGE_BLOCKS)[:blocks]
    scales: Float32Array = dynamic_table()[codes] * spread + offset
    return scales


def _checked(
    name: str, array: np.ndarray, shape: tuple[int, ...], dtypes: tuple[type, ...]
) -> np.ndarray:
    if array.shape != shape or array.dtype.type not in dtypes:
        raise InvalidModelError(f"tensor {name} is {array.dtype} {array.shape}, not {shape}")
    return array
