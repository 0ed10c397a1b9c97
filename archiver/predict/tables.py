"""Constants of the engine: rotary angles, Hadamard matrices, signs.

Nothing here calls libm: cosines and sines come from `decimal` and integer recurrences, Hadamard
matrices from quadratic residues. Tests pin the SHA-256 of what is made here.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal, localcontext

import numpy as np

from archiver.types import Float32Array, Float64Array, Int8Array

ROTARY_SPAN = 256  # positions in the fine table, and the step of the coarse one
FIXED_BITS = 160  # of the integers in which powers of a rotation are taken
PI_DIGITS = 60
LOG2_E = float.fromhex("0x1.71547652b82fep+0")  # log2(e), rounded to binary64


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """Cosine and sine of an angle in radians, |angle| <= 1, by their Taylor series."""
    square = angle * angle
    cosine, sine = Decimal(1), angle
    term_cos, term_sin = Decimal(1), angle
    for n in range(1, 30):
        term_cos = -term_cos * square / ((2 * n - 1) * (2 * n))
        term_sin = -term_sin * square / ((2 * n) * (2 * n + 1))
        cosine += term_cos
        sine += term_sin
    return cosine, sine


def _powers(cosine: int, sine: int, count: int) -> list[tuple[int, int]]:
    """(cos, sin) of 0, 1, ... count-1 times an angle, in units of 2^-FIXED_BITS."""
    half = 1 << (FIXED_BITS - 1)
    result = [(1 << FIXED_BITS, 0)]
    for _ in range(count):
        c, s = result[-1]
        result.append(
            (
                (c * cosine - s * sine + half) >> FIXED_BITS,
                (s * cosine + c * sine + half) >> FIXED_BITS,
            )
        )
    return result


def _to_float(value: int) -> float:
    """The binary64 nearest to value * 2^-FIXED_BITS (integer division rounds to nearest even)."""
    return value / (1 << FIXED_BITS)


def rotary_tables(
    theta: float, head_dim: int, rotary_dims: int | None = None
) -> tuple[Float64Array, Float64Array]:
    """Fine and coarse tables of a rotary embedding's angles.

    Pair i of a head turns by theta^(-2 i / rotary_dims) radians a position, where 2 i is below
    rotary_dims; other pairs stay as they are. By default every pair turns.

    Returns:
        fine: float64 [256, head_dim / 2, 2], (cos, sin) at positions 0 to 255;
        coarse: float64 [256, head_dim / 2, 2], (cos, sin) at positions 0, 256, ... 65,280.
    """
    turned = head_dim if rotary_dims is None else rotary_dims
    half = head_dim // 2
    fine = np.empty((ROTARY_SPAN, half, 2))
    coarse = np.empty((ROTARY_SPAN, half, 2))
    fine[:, turned // 2 :] = coarse[:, turned // 2 :] = (1.0, 0.0)
    with localcontext() as context:
        context.prec = PI_DIGITS
        log_theta = Decimal(theta).ln()
        for i in range(turned // 2):
            step = (-log_theta * 2 * i / turned).exp()
            cosine, sine = (
                int((v * (1 << FIXED_BITS)).to_integral_value()) for v in _cos_sin(step)
            )
            near = _powers(cosine, sine, ROTARY_SPAN)
            far = _powers(*near[ROTARY_SPAN], ROTARY_SPAN)
            for position in range(ROTARY_SPAN):
                fine[position, i] = [_to_float(v) for v in near[position]]
                coarse[position, i] = [_to_float(v) for v in far[position]]
    return fine, coarse


def rotary_angles(
    fine: Float64Array, coarse: Float64Array, positions: int
) -> tuple[Float32Array, Float32Array]:
    """Cosines and sines of the first `positions` positions, float32 [positions, head_dim / 2].

    cos(a + b) = cos a cos b - sin a sin b in binary64, each operation rounded on its own.
    """
    spans = -(-positions // ROTARY_SPAN)
    far_cos, far_sin = coarse[:spans, None, :, 0], coarse[:spans, None, :, 1]
    near_cos, near_sin = fine[None, :, :, 0], fine[None, :, :, 1]
    cosines = far_cos * near_cos - far_sin * near_sin
    sines = far_sin * near_cos + far_cos * near_sin
    half = fine.shape[1]
    return (
        np.ascontiguousarray(cosines.reshape(-1, half)[:positions].astype(np.float32)),
        np.ascontiguousarray(sines.reshape(-1, half)[:positions].astype(np.float32)),
    )


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _residue_matrix(q: int) -> Int8Array:
    """Jacobsthal matrix: +1 where i - j is a square modulo a prime q, 0 for i = j, else -1."""
    squares = {x * x % q for x in range(1, q)}
    line = np.array([0] + [1 if d in squares else -1 for d in range(1, q)], np.int8)
    matrix: Int8Array = line[(np.arange(q)[:, None] - np.arange(q)[None, :]) % q]
    return matrix


def hadamard(order: int) -> Int8Array | None:
    """A Hadamard matrix, int8 [order, order] of +1 and -1, or None where no construction is known.

    Sylvester's doubling, Paley's two constructions and Kronecker products, the first that fits:
    order 1 and 2; Paley I for a prime order - 1 = 3 mod 4; Paley II for a prime
    order / 2 - 1 = 1 mod 4; else a product with the smallest possible left factor.
    """
    if order == 1:
        return np.ones((1, 1), np.int8)
    if order == 2:
        return np.array([[1, 1], [1, -1]], np.int8)
    if order % 4:
        return None
    q = order - 1
    if order & q and q % 4 == 3 and _is_prime(q):
        matrix = np.ones((order, order), np.int8)
        matrix[1:, 0] = -1
        matrix[1:, 1:] = _residue_matrix(q) + np.eye(q, dtype=np.int8)
        return matrix
    q = order // 2 - 1
    if order & (order - 1) and q % 4 == 1 and _is_prime(q):
        core = np.ones((q + 1, q + 1), np.int8)
        core[0, 0] = 0
        core[1:, 1:] = _residue_matrix(q)
        diagonal = np.array([[1, -1], [-1, -1]], np.int8)
        both = np.array([[1, 1], [1, -1]], np.int8)
        return np.kron(core, both) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)
    for factor in range(2, int(order**0.5) + 1):
        if order % factor == 0:
            left, right = hadamard(factor), hadamard(order // factor)
            if left is not None and right is not None:
                return np.kron(left, right)
    return None


def rotation(size: int) -> tuple[Int8Array, int]:
    """Signs of a rotation of `size` dimensions, int8 [size, size], and its block size.

    Blocks of Hadamard matrices on the diagonal (one block where an order `size` is known), rows
    multiplied by fixed pseudo-random signs; every row has `block` entries of +1 or -1, so the
    matrix over sqrt(block) is orthogonal.
    """
    block = next(b for b in range(size, 0, -1) if size % b == 0 and hadamard(b) is not None)
    core = hadamard(block)
    assert core is not None
    matrix = np.kron(np.eye(size // block, dtype=np.int8), core)
    return np.ascontiguousarray(matrix * stream_signs(size)[:, None]), block


def stream_signs(size: int) -> Int8Array:
    """The fixed pseudo-random signs of a rotation, int8 [size] of +1 and -1."""
    digest = hashlib.shake_256(b"llmzip rotation").digest(size // 8 + 1)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:size]
    signs: Int8Array = (1 - 2 * bits.astype(np.int8)).astype(np.int8)
    return signs


def activation_span(size: int) -> int:
    """How many channels the rotation of the feed-forward activation mixes: the greatest power of
    two that divides `size`.
    """
    return size & -size


def activation_rotation(size: int) -> tuple[Int8Array, int]:
    """That rotation as a dense matrix, int8 [size, size], and the entries in each of its rows."""
    span = activation_span(size)
    transform = np.ones((1, 1), np.int8)
    while transform.shape[0] < span:
        transform = np.kron(np.array([[1, 1], [1, -1]], np.int8), transform)
    return np.kron(np.eye(size // span, dtype=np.int8), transform), span
