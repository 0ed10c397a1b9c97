"""Engines over a test's package."""

from __future__ import annotations

import numpy as np
import pytest

from archiver.predict import registry
from archiver.predict.engine import Engine
from archiver.predict.package import ModelPackage
from archiver.predict.session import Session
from tests.support.tiny_models import LOCAL_HEADS, make_tiny_hf_folder

WINDOW, SINKS = 40, 4


def small_package(factory: pytest.TempPathFactory, *, wide: bool) -> ModelPackage:
    """A random model; every size of the wide one is a multiple of 64, as tile registers need it."""
    sizes = {"hidden": 64, "heads": 3, "kv_heads": 1, "head_dim": 64, "ffn": 128}
    folder = make_tiny_hf_folder(
        factory.mktemp("source") / "model", seed=2, **(sizes if wide else {})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(factory.mktemp("home")))
        registry.add(folder, name="model", local_heads=LOCAL_HEADS)
        return registry.resolve("model")


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
