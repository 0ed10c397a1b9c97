"""Whole blocks equal single steps, any batch equals any other, every backend gives one result."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from archiver.errors import InvalidModelError, UsageError
from archiver.predict.engine_config import EngineConfig
from archiver.predict.kernels import products
from archiver.predict.package import ModelPackage
from archiver.steering.sources import random_vectors

from .engines import engine_of, run, small_package


def random_tokens(package: ModelPackage, streams: int, length: int) -> np.ndarray:
    count = package.config["tokens"]
    assert isinstance(count, int)
    return np.random.default_rng(9).integers(0, count, (streams, length)).astype(np.int32)


@pytest.fixture(scope="module", params=["narrow", "wide"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A small random model; every size of the wide one is a multiple of 64."""
    return small_package(tmp_path_factory, wide=request.param == "wide")


@pytest.mark.parametrize("steps", [1, 7, 16, 64, 150])
def test_blocks_of_any_size_equal_single_steps(model: ModelPackage, steps: int) -> None:
    engine = engine_of(model)
    tokens = random_tokens(model, 2, 150)
    codes, scales = run(engine, tokens, 1)
    block_codes, block_scales = run(engine, tokens, steps)
    assert np.array_equal(codes, block_codes)
    assert np.array_equal(scales, block_scales)


def test_a_stream_does_not_depend_on_its_batch(tiny: ModelPackage) -> None:
    engine = engine_of(tiny)
    tokens = random_tokens(tiny, 64, 30)
    codes, scales = run(engine, tokens, 1)
    for stream in (0, 1, 63):
        alone_codes, alone_scales = run(engine, tokens[stream : stream + 1], 1)
        assert np.array_equal(codes[stream], alone_codes[0])
        assert np.array_equal(scales[stream], alone_scales[0])


@pytest.mark.parametrize("name", products.BACKENDS)
def test_every_backend_gives_the_same(model: ModelPackage, name: str) -> None:
    shapes = EngineConfig.of(model).shapes()
    sizes = {shape[1] for array, (_, shape) in shapes.items() if array.endswith(".codes")}
    if not products.is_exact(products.backend_named(name), sizes):
        pytest.skip(f"{name} is not exact on this machine or for this model, and not used")
    tokens = random_tokens(model, 3, 60)
    codes, scales = run(engine_of(model, matmul="float32"), tokens, 60)
    other_codes, other_scales = run(engine_of(model, matmul=name), tokens, 60)
    assert np.array_equal(codes, other_codes)
    assert np.array_equal(scales, other_scales)


def test_what_left_the_window_is_forgotten_but_for_the_sinks(tiny: ModelPackage) -> None:
    """With one layer's reach of 8 tokens, two layers see 15 back; changes before that, and after
    the sinks, change nothing."""
    engine = engine_of(tiny, window=8, sinks=2)
    tokens = random_tokens(tiny, 1, 80)
    changed = tokens.copy()
    changed[0, 5:20] = changed[0, 5:20][::-1]
    codes, _ = run(engine, tokens, 80)
    other, _ = run(engine, changed, 80)
    assert not np.array_equal(codes[0, 5:20], other[0, 5:20])
    assert np.array_equal(codes[0, 40:], other[0, 40:])
    changed = tokens.copy()
    changed[0, 1] ^= 1  # a sink
    other, _ = run(engine, changed, 80)
    assert not np.array_equal(codes[0, 40:], other[0, 40:])


@pytest.mark.parametrize("sinks", [0, 1, 4, 16, 17, 40])
def test_any_number_of_sinks(tiny: ModelPackage, sinks: int) -> None:
    engine = engine_of(tiny, window=20, sinks=sinks)
    tokens = random_tokens(tiny, 1, 100)
    codes, scales = run(engine, tokens, 1)
    block_codes, block_scales = run(engine, tokens, 33)
    assert np.array_equal(codes, block_codes)
    assert np.array_equal(scales, block_scales)


@pytest.mark.parametrize(("window", "sinks"), [(0, 4), (16384, 0), (16380, 4), (10, -1)])
def test_windows_out_of_range_are_refused(tiny: ModelPackage, window: int, sinks: int) -> None:
    with pytest.raises(UsageError, match="must stay below 16384"):
        engine_of(tiny, window=window, sinks=sinks)


def _with_array(package: ModelPackage, name: str, array: np.ndarray | None) -> ModelPackage:
    arrays = dict(package.arrays)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    return replace(package, arrays=MappingProxyType(arrays))


def test_malformed_packages_are_refused(tiny: ModelPackage) -> None:
    codes = np.array(tiny.arrays["layers.0.o.codes"])
    scales = np.array(tiny.arrays["layers.0.o.scales"])
    for name, array, message in [
        ("layers.0.o.codes", codes[:-1], "'layers.0.o.codes' is missing or malformed"),
        ("layers.0.o.codes", codes.astype(np.int16), "'layers.0.o.codes' is missing"),
        ("layers.1.down.scales", None, "'layers.1.down.scales' is missing or malformed"),
        ("layers.0.o.scales", scales * np.nan, "scales out of range"),
        ("layers.0.o.scales", scales * 0, "scales out of range"),
        ("layers.0.o.codes", np.full_like(codes, -128), "codes of -128"),
    ]:
        with pytest.raises(InvalidModelError, match=message):
            engine_of(_with_array(tiny, name, array))


def test_malformed_configurations_are_refused(tiny: ModelPackage) -> None:
    for change, message in [
        ({"architecture": "rwkv"}, "architecture 'rwkv' is not supported"),
        ({"depth": 3}, "malformed"),
        ({"heads": 2.5}, "heads is 2.5"),
        ({"layers": 0}, "layers is 0"),
        ({"norm_epsilon": -1.0}, "norm_epsilon"),
        ({"head_dim": 24}, "head_dim"),
        ({"start_token": 10**6}, "start_token"),
        ({"hidden": 64}, "missing or malformed"),
    ]:
        package = replace(tiny, config=MappingProxyType({**tiny.config, **change}))
        with pytest.raises(InvalidModelError, match=message):
            engine_of(package)


PROMPTS = [(1, 16, 0), (5, 16, 4), (16, 20, 0), (20, 18, 2), (40, 16, 4), (70, 30, 0), (17, 300, 4)]


@pytest.mark.parametrize(("vectors", "window", "sinks"), PROMPTS)
def test_a_soft_prompt_is_what_tokens_before_the_text_would_be(
    model: ModelPackage, vectors: int, window: int, sinks: int
) -> None:
    """However the streams advance, and as if every stream had read the vectors itself."""
    prompt = random_vectors(vectors, 7, model)
    tokens = random_tokens(model, 3, 100)
    steered = engine_of(model, window=window, sinks=sinks).steered(prompt)
    codes, scales = run(steered, tokens, 1)
    for steps in (7, 70, 100):
        block_codes, block_scales = run(steered, tokens, steps)
        assert np.array_equal(codes, block_codes)
        assert np.array_equal(scales, block_scales)

    reader = engine_of(model, window=window, sinks=sinks + vectors)
    rows = np.arange(vectors, dtype=np.int32) + len(reader.embed_codes)
    reader.embed_codes = np.concatenate([reader.embed_codes, prompt.codes])
    reader.embed_scales = np.concatenate([reader.embed_scales, prompt.scales])
    longer = np.concatenate([np.repeat(rows[None], 3, axis=0), tokens], axis=1)
    long_codes, long_scales = run(reader, longer, 1)
    assert np.array_equal(codes, long_codes[:, vectors:])
    assert np.array_equal(scales, long_scales[:, vectors:])


def test_a_soft_prompt_leaves_the_engine_as_it_was(tiny: ModelPackage) -> None:
    engine = engine_of(tiny)
    tokens = random_tokens(tiny, 1, 30)
    before, _ = run(engine, tokens, 30)
    steered = engine.steered(random_vectors(3, 1, tiny))
    assert not np.array_equal(run(steered, tokens, 30)[0], before)
    assert np.array_equal(run(engine, tokens, 30)[0], before)


def test_too_long_a_soft_prompt_is_refused(tiny: ModelPackage) -> None:
    engine = engine_of(tiny, window=16300, sinks=4)
    assert engine.steered(random_vectors(79, 1, tiny)).sinks == 83
    with pytest.raises(UsageError, match="must stay below 16384"):
        engine.steered(random_vectors(80, 1, tiny))
