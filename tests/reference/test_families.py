"""Models of every family: the engine weighs tokens as the predictor of FORMAT.md does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archiver
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.predict.engine import Engine
from archiver.predict.kernels import head
from archiver.predict.package import ModelPackage
from archiver.predict.session import Session
from archiver.steering.sources import random_vectors
from archiver.types import Int32Array
from tests.reference.decoder import decode
from tests.reference.numbers import f32
from tests.reference.package import read_package
from tests.reference.predictor import Model, Stream, Vector
from tests.support.tiny_families import FAMILIES, make_family_folder

SIZES = {
    "qwen2": {"heads": 3, "kv_heads": 3},
    "qwen3": {"hidden": 37, "heads": 4, "kv_heads": 2},
    "gpt_neox": {"heads": 2, "head_dim": 32, "ffn": 80},
    "gpt2": {"heads": 2, "ffn": 112},
    "gemma3": {"hidden": 80, "heads": 2, "kv_heads": 1, "head_dim": 32},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(home))
        for family in FAMILIES:
            folder = tmp_path_factory.mktemp("hf")
            make_family_folder(folder, family, seed=5, **SIZES[family])
            kv_heads = SIZES[family].get("kv_heads", SIZES[family]["heads"])
            local = tuple(tuple((n + h) % 2 for h in range(kv_heads)) for n in range(2))
            registry.add(folder, name=family, local_heads=local)
    return home


@pytest.fixture
def package(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelPackage:
    monkeypatch.setenv("LLMZIP_HOME", str(home))
    return registry.resolve(request.param)


def engine_weights(engine: Engine, inputs: Int32Array) -> list[list[int]]:
    session = Session(engine, streams=1, tokens=len(inputs), steps=len(inputs))
    codes, scales = session.advance(inputs[None])
    product, row_scales, head_scales = engine.head(codes, scales)
    size = engine.vocabulary.size
    logits, weights = np.empty(size, np.float32), np.empty(size, np.int32)
    cumulative = np.empty(-(-size // head.TILE_RANKS) + 1, np.int64)
    found = []
    for row, row_scale in zip(product, row_scales, strict=True):
        head.weigh_vocabulary(row, row_scale, head_scales, logits, weights, cumulative)
        found.append(weights.tolist())
    return found


@pytest.mark.parametrize(
    ("window", "sinks", "vectors"), [(512, 4, 0), (16, 3, 0), (9, 0, 5), (1, 1, 0)]
)
@pytest.mark.parametrize("package", FAMILIES, indirect=True)
def test_weights_of_a_stream(package: ModelPackage, window: int, sinks: int, vectors: int) -> None:
    local = (window + 1) // 2
    engine = Engine(package, window=window, local_window=local, sinks=sinks)
    prompt = random_vectors(vectors, 3, package) if vectors else None
    if prompt is not None:
        engine = engine.steered(prompt)
    inputs = np.random.default_rng(1).integers(0, engine.vocabulary.size, 48).astype(np.int32)
    inputs[0] = engine.start_token
    stream = Stream(
        Model(read_package(package.path)),
        positions=len(inputs),
        window_tokens=window,
        local_window_tokens=local,
        sink_tokens=sinks,
        vectors=()
        if prompt is None
        else [
            Vector(codes.astype(np.int64), f32(scale))
            for codes, scale in zip(prompt.codes, prompt.scales, strict=True)
        ],
    )
    expected = engine_weights(engine, inputs)
    for token, weights in zip(inputs.tolist(), expected, strict=True):
        assert stream.step(token).tolist() == weights


@pytest.mark.parametrize("package", FAMILIES, indirect=True)
def test_archives(package: ModelPackage) -> None:
    content = "Der Wind weht über das Land; the quick brown fox.\n".encode() * 2 + b"\x04\xff"
    options = CompressOptions(
        model=str(package.config["architecture"]), window_tokens=16, chunk_tokens=40, threads=1
    )
    archive = archiver.compress(content, options=options)
    assert decode(archive, package.path) == content
