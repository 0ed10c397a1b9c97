"""What a body of steering vectors says before its coordinates.

Source: FORMAT.md, "Steering vectors".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from archiver.container.layout import LARGEST_STEERING_VECTORS
from archiver.container.varint import MalformedError, decode_varint, encode_varint
from archiver.errors import LimitExceededError
from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.steering.priors import Prior, decode_prior

_SCALE = struct.Struct("<H")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyStart:
    """What a body says before its coordinates.

    Attributes:
        vectors: how many; scale: what a code is worth; prior: how coordinates are coded.
        coordinates_at: where the coded coordinates begin.
    """

    vectors: int
    scale: float
    prior: Prior
    coordinates_at: int


def storable_scale(scale: float) -> float:
    """The nearest number that a body can hold as its scale: 8 significant bits."""
    limited = np.float32(min(max(scale, SCALE_MIN), SCALE_MAX))
    upper = (int(limited.view(np.uint32)) + 0x8000) >> 16
    return float(_scale_of(upper))


def encode_start(vectors: int, scale: float, prior: Prior) -> bytes:
    """A body's bytes before its coordinates."""
    upper = int(np.float32(scale).view(np.uint32)) >> 16
    return encode_varint(vectors) + bytes([prior.kind]) + _SCALE.pack(upper) + prior.encode()


def _scale_of(upper: int) -> np.float32:
    return np.uint32(upper << 16).view(np.float32)


def read_start(body: bytes) -> BodyStart:
    """Everything but the coordinates.

    Raises:
        MalformedError: the body's form is wrong. LimitExceededError: too many vectors.
    """
    vectors, at = decode_varint(body, 0)
    if vectors > LARGEST_STEERING_VECTORS:
        raise LimitExceededError(
            f"{vectors} steering vectors are more than {LARGEST_STEERING_VECTORS}"
        )
    if vectors == 0:
        raise MalformedError("no vectors")
    if at + 3 > len(body):
        raise MalformedError("it is cut short")
    scale = float(_scale_of(_SCALE.unpack_from(body, at + 1)[0]))
    if not SCALE_MIN <= scale <= SCALE_MAX:
        raise MalformedError("its scale is out of range")
    prior, end = decode_prior(body[at], body, at + 3, vectors)
    return BodyStart(vectors=vectors, scale=scale, prior=prior, coordinates_at=end)
