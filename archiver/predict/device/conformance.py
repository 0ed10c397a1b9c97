"""Whether a device computes the processor's bits: looked at each time that one is to be used.

Kernels are compared on many numbers, where one wrong rounding shows; then whole engines on a few
tokens, where a wrong sum or a wrong position does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from archiver.errors import ExactnessError
from archiver.predict.device import layers as device_layers
from archiver.predict.device.attention import Coded
from archiver.predict.device.engine import DeviceEngine
from archiver.predict.device.numbers import exp2_nonpositive
from archiver.predict.engine import Engine
from archiver.predict.engine_base import EngineBase
from archiver.predict.kernels import head, layers
from archiver.predict.soft_prompt import SoftPrompt
from archiver.types import Float32Array, Int32Array

ROWS = 4096
WIDTH = 16
EPSILON = 1e-5
# Windows so short that positions leave them.
WINDOW = 12
STREAMS = 2
STEPS = (30, 1, 1, 6)
VECTORS = 3

AnyEngine = TypeVar("AnyEngine", bound=EngineBase)
Arrays = list[NDArray[Any]]


def check(engine: Engine, other: DeviceEngine) -> None:
    """Return if both engines give the same bits.

    Raises:
        ExactnessError: they do not.
    """
    expected, found = _kernels(), _device_kernels(other.device)
    pairs = list(zip(expected, found, strict=True))
    for mine, theirs in zip(_both_ways(engine), _both_ways(other), strict=True):
        pairs += zip(_outputs(mine), _outputs(theirs), strict=True)
    if not all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs):
        raise ExactnessError(
            f"the device {other.device} does not compute the same bits as the processor; "
            "use --device cpu"
        )


def _rows(width: int) -> Float32Array:
    """Numbers of all sizes, the largest of each row below 1."""
    generator = np.random.default_rng(0)
    rows = generator.random((ROWS, width)) * 2.0 ** generator.integers(-12, 1, (ROWS, 1))
    signs = generator.integers(0, 2, (ROWS, width)) * 2 - 1
    return (rows * signs).astype(np.float32)


def _powers() -> Float32Array:
    """Exponents of two, the greatest 0."""
    x = np.abs(_rows(1)[:, 0]) * np.float32(-32.0)
    x[0] = 0.0
    return x


def _kernels() -> Arrays:
    """What the processor's kernels make of these numbers."""
    z = _powers()
    weights = np.empty(ROWS, np.int32)
    cumulative = np.empty(ROWS // head.TILE_RANKS + 1, np.int64)
    ones = np.ones(ROWS, np.float32)
    head.weigh_vocabulary(z, np.float32(1.0), ones, np.empty_like(z), weights, cumulative)
    x, product = _rows(WIDTH), _rows(2 * WIDTH) * np.float32(8.0)
    codes, scales = np.empty(x.shape, np.int8), np.empty(ROWS, np.float32)
    layers.normalize(x, EPSILON, codes, scales)
    gated, gated_scales = np.empty(x.shape, np.int8), np.empty(ROWS, np.float32)
    layers.gate_and_rotate(
        product, ones, np.ones(2 * WIDTH, np.float32), WIDTH, gated, gated_scales
    )
    return [weights, codes, scales, gated, gated_scales]


def _device_kernels(device: str) -> Arrays:
    """What the device's make of them."""
    z = _powers()
    e = exp2_nonpositive(torch.tensor(z, device=device))
    weights = (e * float(head.WEIGHT_SCALE)).to(torch.int32) + 1
    codes, scales = device_layers.normalize(torch.tensor(_rows(WIDTH), device=device), EPSILON)
    product = torch.tensor(_rows(2 * WIDTH) * np.float32(8.0), device=device)
    gated = Coded.of(device_layers.transform(device_layers.gate(product), WIDTH))
    return [x.cpu().numpy() for x in (weights, codes, scales, gated.codes, gated.scales)]


def _both_ways(engine: AnyEngine) -> Iterator[AnyEngine]:
    """The engine with short windows, without and with a soft prompt."""
    short = copy.copy(engine)
    short.window = min(engine.window, WINDOW)
    windows = engine.windows * short.window // engine.window
    short.windows = np.maximum(windows, 1).astype(np.int32)
    yield short
    hidden = np.arange(VECTORS * engine.hidden).reshape(VECTORS, -1)
    codes = (hidden * 7919 % 255 - 127).astype(np.int8)
    yield short.steered(SoftPrompt(codes=codes, scales=np.full(VECTORS, 2.0**-8, np.float32)))


def _outputs(engine: EngineBase) -> Arrays:
    """Hidden codes, their scales and the head's products of some tokens."""
    tokens = sum(STEPS)
    numbers = np.arange(STREAMS * tokens, dtype=np.int64).reshape(STREAMS, tokens)
    inputs: Int32Array = (numbers * 7919 % engine.vocabulary.size).astype(np.int32)
    session = engine.session(streams=STREAMS, tokens=tokens, steps=max(STEPS))
    found: Arrays = []
    start = 0
    for steps in STEPS:
        codes, scales = session.advance(np.ascontiguousarray(inputs[:, start : start + steps]))
        products, _, _ = engine.head(codes[-1:], scales[-1:])
        found += [codes, scales, products]
        start += steps
    return found
