"""Steering vectors as bytes: a scale, a prior's parameters, coded coordinates.

    codes [vectors, hidden] ── minus means ── symbols ── range coder, by the prior's tables ── bytes

Source: FORMAT.md, "Steering vectors".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from archiver.coding import range_coder
from archiver.container.layout import LARGEST_STEERING_VECTORS
from archiver.container.varint import MalformedError
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering.coordinates import code_symbols
from archiver.steering.files import built_in_by_number
from archiver.steering.priors import CODE_MAX, Base, Prior
from archiver.steering.starts import encode_start, read_start, storable_scale
from archiver.types import Int8Array, Int32Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage


def encode_body(codes: Int8Array, scale: float, prior: Prior, package: ModelPackage) -> bytes:
    """The body of which `decode_body` makes the vectors codes * scale.

    Args:
        codes: int8 [vectors, hidden], -127 to 127; scale: one that `storable_scale` gave.
        prior: one whose tables have a symbol for every code.
    """
    assert storable_scale(scale) == scale
    assert 1 <= len(codes) <= LARGEST_STEERING_VECTORS
    tables = prior.tables(*codes.shape)
    rest = codes.astype(np.int32) - mean_codes(prior, scale, len(codes), package)
    symbols = np.searchsorted(tables.codes, rest).clip(0, len(tables.codes) - 1)
    assert (tables.codes[symbols] == rest).all()
    state = range_coder.new_encoder()
    buffer = np.empty(24 * codes.size + 64, np.uint8)  # at most 8 decisions of 22 bits each
    code_symbols(
        state, buffer, tables.cumulative, tables.numbers.reshape(-1),
        symbols.astype(np.uint8).reshape(-1),
    )  # fmt: skip
    return encode_start(len(codes), scale, prior) + range_coder.finish(state, buffer)


def decode_body(body: bytes, package: ModelPackage) -> SoftPrompt:
    """The vectors of a body.

    Raises:
        MalformedError: the body's form is wrong, or it does not suit the package.
        LimitExceededError: too many vectors.
    """
    start = read_start(body)
    hidden = package.arrays["embed.codes"].shape[1]
    tables = start.prior.tables(start.vectors, hidden)
    base = mean_codes(start.prior, start.scale, start.vectors, package)
    buffer = np.frombuffer(body, np.uint8)[start.coordinates_at :].copy()
    state = range_coder.new_decoder(buffer)
    if state[range_coder.LOW] >= state[range_coder.RANGE]:
        raise MalformedError("its code lies outside the coder's range")
    symbols = np.zeros(start.vectors * hidden, np.uint8)
    code_symbols(state, buffer, tables.cumulative, tables.numbers.reshape(-1), symbols)
    codes = base + tables.codes[symbols].reshape(start.vectors, hidden)
    return SoftPrompt(
        codes=np.clip(codes, -CODE_MAX, CODE_MAX).astype(np.int8),
        scales=np.full(start.vectors, start.scale, np.float32),
    )


def base_vectors(base: Base, package: ModelPackage) -> SoftPrompt:
    """The vectors that a prior's means are made of.

    Raises:
        MalformedError: the model has no such token, or the built-in vectors are not its own.
        UnsupportedVersionError: built-in vectors that this llmzip lacks.
    """
    if base.number:
        file = built_in_by_number(base.number)
        if file.package_fingerprint != package.fingerprint_bytes:
            raise MalformedError("their means are vectors of another model")
        return decode_body(file.body, package)
    return token_vectors(base.ranks, package)


def token_vectors(ranks: Sequence[int], package: ModelPackage) -> SoftPrompt:
    """The embeddings of some tokens.

    Raises:
        MalformedError: the model has no such token.
    """
    codes, scales = package.arrays["embed.codes"], package.arrays["embed.scales"]
    if max(ranks) >= len(codes):
        raise MalformedError(f"the model has no token {max(ranks)}")
    return SoftPrompt(codes=codes[list(ranks)], scales=scales[list(ranks)])


def means(base: SoftPrompt, scale: float) -> Int32Array:
    """Vectors in steps of `scale`, int32 in -127 .. 127: floats element by element, as E2 says."""
    values = base.codes.astype(np.float32) * base.scales[:, None]
    steps = np.clip(values / np.float32(scale), np.float32(-CODE_MAX), np.float32(CODE_MAX))
    rounded: Int32Array = np.rint(steps).astype(np.int32)
    return rounded


def mean_codes(prior: Prior, scale: float, vectors: int, package: ModelPackage) -> Int32Array:
    """The vectors' means in steps, int32 [vectors, hidden], or a zero where there are none."""
    if prior.base is None:
        return np.zeros((1, 1), np.int32)
    base = base_vectors(prior.base, package)
    if len(base.codes) != vectors:
        raise MalformedError("not as many means as vectors")
    return means(base, scale)
