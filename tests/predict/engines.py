"""Engines over a test's package."""

from __future__ import annotations

import numpy as np

from archiver.predict.engine import Engine
from archiver.predict.package import ModelPackage
from archiver.predict.session import Session

WINDOW, SINKS = 40, 4


def engine_of(
    package: ModelPackage, *, window: int = WINDOW, sinks: int = SINKS, matmul: str | None = None
) -> Engine:
    """An engine whose local heads, if any, see half of the window."""
    return Engine(
        package, window=window, local_window=(window + 1) // 2, sinks=sinks, matmul=matmul
    )


def run(engine: Engine, tokens: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Hidden codes [streams, tokens, hidden] and scales [streams, tokens], `steps` at a time."""
    streams, length = tokens.shape
    session = Session(engine, streams=streams, tokens=length, steps=steps)
    codes, scales = [], []
    for start in range(0, length, steps):
        part = np.ascontiguousarray(tokens[:, start : start + steps])
        c, s = session.advance(part)
        codes.append(c.reshape(streams, part.shape[1], -1).copy())
        scales.append(s.reshape(streams, part.shape[1]).copy())
    return np.concatenate(codes, axis=1), np.concatenate(scales, axis=1)
