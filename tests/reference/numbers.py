"""The predictor's arithmetic: floats element by element, sums of integers.

Source: FORMAT.md, "Numbers of the predictor", and normalize of "Predictor".

Arrays of floats are float32 throughout.  Every numpy operation here rounds each element on its
own; constants are float32 or float64 scalars, so that no operation changes its type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Integers = NDArray[np.int64]

f32 = np.float32
f64 = np.float64

EXP2_COEFFICIENTS = ("0x1.3cbf6p-7", "0x1.c6afeep-5", "0x1.ebfa4cp-3", "0x1.62e43p-1", "0x1p0")
LOG2_E = float.fromhex("0x1.71547652b82fep+0")


def hex_f32(text: str) -> np.float32:
    """The float32 that a hexadecimal float is, exactly."""
    value = f32(float.fromhex(text))
    assert float(value) == float.fromhex(text), text
    return value


def rounded(x: Float32s) -> Integers:
    """round(x), element by element: to nearest, ties to even."""
    return np.rint(x).astype(np.int64)


def exp2(x: Float32s) -> Float32s:
    """exp2(x) for x <= 0."""
    x = np.maximum(x, f32(-40))
    n = np.rint(x)
    f = x - n
    p = np.full_like(f, hex_f32("0x1.5ec866p-10"))
    for coefficient in EXP2_COEFFICIENTS:
        p = p * f
        p = p + hex_f32(coefficient)
    return _f32s(p * np.ldexp(f32(1), n.astype(np.int32)))


@dataclass(frozen=True, slots=True)
class Quantized:
    """Codes in -127 to 127, and the magnitude of each vector (of shape () for one vector)."""

    codes: Integers
    magnitude: Float32s

    def scale(self) -> Float32s:
        """m / 127."""
        return _f32s(self.magnitude / f32(127))


def quantize(x: Float32s) -> Quantized:
    """quantize(x) of a vector, or of each row of a matrix."""
    m = np.maximum(f32(2.0**-40), np.max(np.abs(x), axis=-1))
    t = f32(127) / m
    return Quantized(rounded(x * t[..., None]), _f32s(m))


def normalize(x: Float32s, norm_epsilon: float) -> tuple[Integers, np.float32]:
    """normalize(x): the codes of a vector, and one scale for all of them."""
    quantized = quantize(x)
    m = f32(quantized.magnitude)
    s = f32((f64(m) / f64(127)) / _root(x, m, norm_epsilon))
    return quantized.codes, s


def rms_norm(x: Float32s, gains: Float32s, norm_epsilon: float) -> Float32s:
    """rms_norm(x, gains) of a vector."""
    factor = f32(f64(1) / _root(x, f32(quantize(x).magnitude), norm_epsilon))
    return _f32s((x * factor) * gains)


def _root(x: Float32s, m: np.float32, norm_epsilon: float) -> np.float64:
    k = f32(32767) / m
    z = int(np.sum(rounded(x * k) ** 2))
    u = f64(m) / f64(32767)
    mean = ((f64(z) * u) * u) / f64(len(x))
    return f64(np.sqrt(mean + f64(norm_epsilon)))


def to_f32(integers: Integers) -> Float32s:
    """f32(x) of integers, rounded to nearest, ties to even."""
    return integers.astype(np.float32)


def _f32s(x: Float32s) -> Float32s:
    array = np.asarray(x)
    assert array.dtype == np.float32
    return array
