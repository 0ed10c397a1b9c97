"""Families beside Llama: they compute what transformers computes, by the engine's rules."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import archiver
from archiver.errors import InvalidModelError, LimitExceededError, UsageError
from archiver.frames import codec_for_reading, codec_for_writing
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.predict.architectures import ARCHITECTURES
from archiver.predict.convert import convert
from archiver.predict.engine import Engine
from archiver.predict.folding import balancing_factors, centred, product_with, turned_first
from archiver.predict.kernels import families as kernels
from archiver.predict.package import ModelPackage
from archiver.predict.sources import read_source
from archiver.predict.tables import LOG2_E
from archiver.steering.llama import TrainingModel
from archiver.steering.sources import random_vectors
from archiver.workshop.export import write_hf_folder
from archiver.workshop.llama import FloatLlama
from tests.support.tiny_families import FAMILIES, POSITIONS, make_family_folder

from .engines import engine_of, run

TEXT = b"The quick brown fox jumps over the lazy dog, and the traveller said: " * 4
WIDE = {"heads": 2, "kv_heads": 1, "head_dim": 64, "hidden": 128, "ffn": 128}
LOCAL = ((1,), (0,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: make_family_folder(tmp_path_factory.mktemp("source") / family, family, seed=3)
        for family in FAMILIES
    }


@pytest.fixture(scope="module")
def home(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLMZIP_HOME with a package of each family, named after it, and wide ones."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(home))
        for family, folder in folders.items():
            registry.add(folder, name=family)
        for family in ("gpt2", "gemma3"):
            wide = make_family_folder(folders[family].parent / "wide", family, seed=4, **WIDE)
            kv_heads = 2 if family == "gpt2" else 1
            local = tuple(row * kv_heads for row in LOCAL)
            registry.add(wide, name=f"wide-{family}", local_heads=local)
    return home


MODELS = (*FAMILIES, "wide-gpt2", "wide-gemma3")


@pytest.fixture
def package(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelPackage:
    monkeypatch.setenv("LLMZIP_HOME", str(home))
    return registry.resolve(request.param)


def of_models(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("package", names, indirect=True)


def random_tokens(package: ModelPackage, streams: int, length: int) -> np.ndarray:
    count = package.config["tokens"]
    assert isinstance(count, int)
    return np.random.default_rng(9).integers(0, count, (streams, length)).astype(np.int32)


def logits_of(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    """Natural logits by rank, [streams, tokens, vocabulary]."""
    codes, scales = run(engine, tokens, tokens.shape[1])
    product, rows, outputs = engine.head(codes.reshape(-1, codes.shape[2]), scales.reshape(-1))
    return (product * (rows[:, None] * outputs) / LOG2_E).reshape(*tokens.shape, -1)


def with_arrays(package: ModelPackage, **changed: np.ndarray) -> ModelPackage:
    return replace(package, arrays=MappingProxyType({**package.arrays, **changed}))


# Agreement with transformers

TOKENS = 40  # more than the sliding window has
LIMIT = 0.06  # of the error; the Llama family has 0.03: codes of 8 bits in a model of width 48


@pytest.fixture(scope="module")
def float_logits(folders: dict[str, Path]) -> Callable[[str, np.ndarray], np.ndarray]:
    """What transformers computes in float32, by id."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    models = {}

    def logits(family: str, ids: np.ndarray) -> np.ndarray:
        if family not in models:
            models[family] = transformers.AutoModelForCausalLM.from_pretrained(
                folders[family], dtype=torch.float32
            ).eval()
        with torch.no_grad():
            found: np.ndarray = models[family](torch.from_numpy(ids)).logits.numpy()
        return found

    return logits


def error_of(package: ModelPackage, float_logits: Callable[[str, np.ndarray], np.ndarray]) -> float:
    """The root of the mean square of the difference of logits, in standard deviations of them."""
    tokens = random_tokens(package, 2, TOKENS)
    tokens[:, 0] = package.config["start_token"]
    rank_of_id = np.array(package.arrays["tokens.rank_of_id"])
    coded = np.flatnonzero(rank_of_id >= 0)
    id_of_rank = np.zeros(len(coded) + 1, np.int64)  # the starting token's id is 0
    id_of_rank[rank_of_id[coded]] = coded
    expected = float_logits(str(package.config["architecture"]), id_of_rank[tokens])
    expected = expected[:, :, id_of_rank[:-1]]
    engine = Engine(package, window=512, local_window=512, sinks=4)
    difference = logits_of(engine, tokens) - expected
    return float(np.sqrt((difference**2).mean()) / expected.std())


@of_models(*FAMILIES)
def test_logits_are_those_of_transformers_but_for_rounding(
    package: ModelPackage, float_logits: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    """And whatever the family adds is needed for that: without it the logits are others.

    The Llama family's error by this measure is 0.03: codes of 8 bits in a model of width 48.
    """
    assert error_of(package, float_logits) < LIMIT
    added = {
        name: np.array(array)
        for name, array in package.arrays.items()
        if name.endswith((".biases", "gains", "positions")) and not name.startswith("layers.1.")
    }
    assert added
    for name, array in added.items():
        other = np.full_like(array, np.abs(array).mean()) if "gains" in name else 0 * array
        assert error_of(with_arrays(package, **{name: other}), float_logits) > 0.08, name


# Exactness


@of_models(*MODELS)
def test_blocks_streams_and_steps_agree(package: ModelPackage) -> None:
    """Past restarts, sliding windows and the window of the rest."""
    engine = engine_of(package, window=24, sinks=3)
    tokens = random_tokens(package, 5, 90)
    codes, scales = run(engine, tokens, 1)
    for steps in (7, 24, 90):
        block_codes, block_scales = run(engine, tokens, steps)
        assert np.array_equal(codes, block_codes)
        assert np.array_equal(scales, block_scales)
    alone_codes, alone_scales = run(engine, tokens[3:4], 1)
    assert np.array_equal(codes[3], alone_codes[0])
    assert np.array_equal(scales[3], alone_scales[0])


@pytest.mark.parametrize(("vectors", "window", "sinks"), [(3, 20, 0), (17, 40, 2), (30, 16, 1)])
@of_models("gpt2", "wide-gpt2", "wide-gemma3")
def test_soft_prompts(package: ModelPackage, vectors: int, window: int, sinks: int) -> None:
    steered = engine_of(package, window=window, sinks=sinks)
    steered = steered.steered(random_vectors(vectors, 7, package))
    tokens = random_tokens(package, 3, 60)
    codes, scales = run(steered, tokens, 1)
    for steps in (7, 60):
        block_codes, block_scales = run(steered, tokens, steps)
        assert np.array_equal(codes, block_codes)
        assert np.array_equal(scales, block_scales)


@pytest.mark.parametrize("window", [1, 2, 13, 24, POSITIONS, 60])
@of_models("gpt2")
def test_a_stream_restarts_with_half_of_its_window(package: ModelPackage, window: int) -> None:
    engine = engine_of(package, window=window, sinks=2)
    tokens = random_tokens(package, 2, 100)
    codes, scales = run(engine, tokens, 1)
    segment = min(window, POSITIONS)
    begin, seen = 0, 0
    while seen < tokens.shape[1]:
        part = np.ascontiguousarray(tokens[:, begin : begin + segment])
        fresh_codes, fresh_scales = run(engine, part, part.shape[1])
        end = begin + part.shape[1]
        assert np.array_equal(codes[:, seen:end], fresh_codes[:, seen - begin :])
        assert np.array_equal(scales[:, seen:end], fresh_scales[:, seen - begin :])
        seen, begin = end, end - segment // 2


@of_models("gpt2")
def test_a_restart_keeps_the_soft_prompt(package: ModelPackage) -> None:
    plain = engine_of(package, window=12, sinks=0)
    prompt = random_vectors(5, 1, package)
    tokens = random_tokens(package, 1, 18)
    codes, _ = run(plain.steered(prompt), tokens, 1)
    fresh, _ = run(plain.steered(prompt), np.ascontiguousarray(tokens[:, 6:]), 12)
    assert np.array_equal(codes[:, 12:], fresh[:, 6:])
    assert not np.array_equal(run(plain, tokens, 1)[0][:, 12:], codes[:, 12:])


@of_models("gpt2")
def test_as_many_vectors_as_places_are_refused(package: ModelPackage) -> None:
    engine = engine_of(package, window=16)
    assert engine.steered(random_vectors(POSITIONS - 1, 1, package)).segment == 1
    with pytest.raises(UsageError, match=f"the model has {POSITIONS} places in all"):
        engine.steered(random_vectors(POSITIONS, 1, package))


@of_models("gemma3")
def test_sliding_layers_see_neither_past_their_window_nor_sinks(package: ModelPackage) -> None:
    """Both layers made to slide, over 12 tokens: 23 back is all that matters."""
    sliding = with_arrays(package, sliding_layers=np.ones(2, np.uint8))
    tokens = random_tokens(package, 1, 60)
    changed = tokens.copy()
    changed[0, :20] = changed[0, :20][::-1]
    codes, other = (run(engine_of(sliding, window=40), t, 60)[0] for t in (tokens, changed))
    assert not np.array_equal(codes[0, 41], other[0, 41])
    assert np.array_equal(codes[0, 42:], other[0, 42:])
    codes, other = (run(engine_of(package, window=40), t, 60)[0] for t in (tokens, changed))
    assert not np.array_equal(codes[0, 42:], other[0, 42:])


@of_models(*FAMILIES)
def test_archives_hold_what_was_put_in(package: ModelPackage) -> None:
    options = CompressOptions(
        model=str(package.config["architecture"]), window_tokens=16, chunk_tokens=60, threads=1
    )
    archive = archiver.compress(TEXT, options=options)
    assert archiver.decompress(archive) == TEXT


@of_models("gpt2")
def test_archives_with_as_many_vectors_as_places_are_refused(package: ModelPackage) -> None:
    options = CompressOptions(model="gpt2", steering="random:7", threads=1)
    _, header = codec_for_writing(options, None)
    assert header.steering is not None
    assert codec_for_reading(header, 1, None)
    fields = bytes([POSITIONS, 0])
    many = replace(header, steering=replace(header.steering, fields=fields))
    with pytest.raises(LimitExceededError, match=f"but the model has {POSITIONS} places"):
        codec_for_reading(many, 1, None)


# Kernels and conversion


PINNED = {
    "qwen2": ("ed59edb112c9b91f", "f607de14ac07cfc4"),
    "qwen3": ("b11d0bb82c8de26a", "138906ff79bff343"),
    "gpt_neox": ("3017a170ba55f070", "27d322b34e5dba45"),
    "gpt2": ("341712428668a48d", "f5b62c23995c4758"),
    "gemma3": ("9c5cc59f0ba21037", "4d9d8ed5ab202053"),
}


@of_models(*FAMILIES)
def test_packages_and_codes_are_pinned(package: ModelPackage) -> None:
    """The same weights give the same package, and it the same integers, everywhere and for ever."""
    codes, scales = run(engine_of(package, window=24), random_tokens(package, 2, 60), 60)
    digest = hashlib.sha256(codes.tobytes() + scales.astype("<f4").tobytes()).hexdigest()
    name = str(package.config["architecture"])
    assert (package.fingerprint[:16], digest[:16]) == PINNED[name]


def test_gelus_are_near_the_functions() -> None:
    x = np.linspace(-30, 30, 60_001).astype(np.float32)
    normal = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    tangent = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3))
    for kernel, expected in (
        (kernels.gelu, x * normal), (kernels.gelu_tanh, 0.5 * x * (1 + tangent)),
    ):  # fmt: skip
        v = x.copy()
        kernel(v)
        assert np.abs(v - expected).max() < 5e-6
        assert np.abs(v - expected)[np.abs(x) < 4].max() < 8e-7
    huge = np.array([-1e30, -1e18, 0, 1e18, 1e30], np.float32)
    for kernel in (kernels.gelu, kernels.gelu_tanh):
        v = huge.copy()
        kernel(v)
        assert np.isfinite(v).all()
        assert np.array_equal(v[2:], huge[2:])


def test_parts_of_the_conversion() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(7, 33)) + 3
    assert np.abs(centred(weights).mean(axis=1)).max() < 1e-13
    vector = rng.normal(size=33)
    assert np.abs(product_with(weights, vector) - weights @ vector).max() < 1e-6
    assert np.array_equal(product_with(weights, 0 * vector), np.zeros(7))
    with pytest.raises(InvalidModelError, match="absurdly large"):
        product_with(weights * 1e6, vector)
    places = turned_first(8, 4)
    assert places.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert turned_first(8, 8).tolist() == list(range(8))
    assert turned_first(8, 0).tolist() == list(range(8))


def test_factors_of_queries_and_keys_leave_scores_as_they_are() -> None:
    rng = np.random.default_rng(0)
    queries, keys = np.exp2(rng.normal(size=(4, 8)) * 3), np.exp2(rng.normal(size=(2, 8)) * 9)
    for_queries, for_keys = balancing_factors(queries.reshape(-1), keys.reshape(-1), 2, 8)
    products = for_queries.reshape(2, 2, 8) * for_keys.reshape(2, 1, 8)
    assert np.array_equal(products, np.ones((2, 2, 8)))
    pairs = for_keys.reshape(2, 2, 4)
    assert np.array_equal(pairs[:, 0], pairs[:, 1])  # what turns together
    one = np.ones(8)
    assert np.array_equal(balancing_factors(one, 2.0**40 * one, 1, 8)[1], 2.0**-8 * one)
    balanced = keys * for_keys.reshape(2, 8)
    assert balanced.max() / balanced.min() < keys.max() / keys.min()


def test_a_great_bias_of_a_key_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dimension of the keys far above the others; the error is 0.09 if it stays so."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    folder = make_family_folder(tmp_path / "qwen2", "qwen2", seed=6)
    weights = load_file(folder / "model.safetensors")
    for name, array in weights.items():
        if name.endswith("k_proj.bias"):
            array[7] = 60.0
    save_file(weights, folder / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(_: str, ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
        return found

    assert error_of(registry.add(folder, name="qwen2"), logits) < LIMIT


def test_a_family_does_not_depend_on_the_mean_of_what_it_norms(folders: dict[str, Path]) -> None:
    """LayerNorm takes means off; whatever is added to all channels alike changes no code."""
    source = read_source(folders["gpt2"])
    shifted = {name: source.tensors[name] for name in source.tensors}
    for name in ("positions", "layers.0.o.bias", "layers.1.down.bias"):
        shifted[name] = shifted[name] + np.float32(2)
    arrays, _ = convert(source)
    others, _ = convert(replace(source, tensors=shifted))
    for name in ("positions", "layers.0.o.biases", "layers.1.down.biases"):
        assert np.abs(arrays[name] - others[name]).max() < 1e-5
        assert np.abs(arrays[name]).max() > 0.05


# What is refused

CONFIGS = [
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window is not supported"),
    ("qwen2", {"hidden_act": "gelu"}, "the activation 'gelu' is not supported"),
    ("qwen3", {"attention_bias": True}, "attention_bias is not supported"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layers of the type 'sliding_attention'"),
    ("qwen3", {"layer_types": 7}, "layer_types is not a list"),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn"}}, "scaled rotary positions"),
    ("qwen3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("gpt_neox", {"use_parallel_residual": False}, "use_parallel_residual that is not true"),
    ("gpt_neox", {"hidden_act": "gelu_new"}, "the activation 'gelu_new'"),
    ("gpt_neox", {"rotary_pct": 1.5}, "rotary_pct is 1.5"),
    ("gpt_neox", {"rotary_pct": 0.07}, "rotary_dims is 1, not an even number"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias that is not true"),
    ("gpt2", {"activation_function": "gelu"}, "the activation 'gelu'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights that is not true"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx is not supported"),
    ("gpt2", {"n_head": 0}, "no attention heads"),
    ("gpt2", {"n_positions": 20}, "tensor positions has shape"),
    ("gpt2", {"n_head": 7}, "has not the rows of three times"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is not supported"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not supported"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not"),
    ("gemma3", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar that is not head_dim"),
    ("gemma3", {"model_type": "gemma3"}, "architecture 'gemma3' is not supported"),
    ("gemma3", {"layer_types": ["full_attention"]}, "have not the number of the layers"),
    ("gemma3", {"sliding_window": 0}, "a sliding window of 0 tokens"),
    ("qwen2", {"model_type": "qwen3"}, "tensor layers.0.q_norm is missing"),
    ("qwen3", {"model_type": "qwen2"}, r"tensor layers\.0\.q\.bias is missing"),
    ("qwen2", {"model_type": "llama"}, r"k_proj\.bias is not one that a llama"),
]


@pytest.mark.parametrize(("family", "changes", "reason"), CONFIGS)
def test_variants_that_compute_something_else_are_refused(
    family: str, changes: dict[str, object], reason: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    _copy(folders[family], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InvalidModelError, match=reason):
        read_source(tmp_path)


def _copy(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_misshapen_and_infinite_tensors_are_refused(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    _copy(folders[family], tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for name, array in weights.items():
        if "layers.1" in name or "h.1" in name:
            continue  # the same as those of the first layer
        save_file({n: a for n, a in weights.items() if n != name}, path)
        with pytest.raises(InvalidModelError, match="is missing"):
            read_source(tmp_path)
        save_file({**weights, name: np.ascontiguousarray(array[:-1])}, path)
        with pytest.raises(InvalidModelError, match=r"has shape|has not the rows"):
            read_source(tmp_path)
        wrong = array.copy()
        wrong.flat[-1] = np.inf
        save_file({**weights, name: wrong}, path)
        source = read_source(tmp_path)
        with pytest.raises(InvalidModelError, match="holds NaN or infinity"):
            [source.tensors[n] for n in source.tensors]


@of_models("gpt2")
def test_weights_only_as_pickles_are_refused(
    package: ModelPackage, folders: dict[str, Path], tmp_path: Path
) -> None:
    _copy(folders["gpt2"], tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidModelError, match="pickles, which can run code"):
        read_source(tmp_path)


@of_models(*FAMILIES)
def test_malformed_packages_are_refused(package: ModelPackage) -> None:
    family = ARCHITECTURES[str(package.config["architecture"])]
    added = {
        name: array
        for name, array in package.arrays.items()
        if name.endswith((".biases", "gains", "positions", "sliding_layers"))
    }
    for name, array in added.items():
        with pytest.raises(InvalidModelError, match=f"'{name}' is missing or malformed"):
            engine_of(with_arrays(package, **{name: array[:-1]}))
        wrong = np.array(array)
        wrong.flat[0] = 2 if array.dtype == np.uint8 else np.nan
        with pytest.raises(InvalidModelError, match=r"out of range|more than 0 and 1"):
            engine_of(with_arrays(package, **{name: wrong}))
    for key, needed in (("positions", family.positions), ("sliding_tokens", family.sliding)):
        config = dict(package.config)
        if needed:
            del config[key]
        else:
            config[key] = 4
        with pytest.raises(InvalidModelError, match=key):
            engine_of(replace(package, config=MappingProxyType(config)))


@of_models("gpt_neox")
def test_the_workshop_and_steering_refuse_what_they_do_not_compute(
    package: ModelPackage, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = read_source(folders["gpt_neox"])
    with pytest.raises(InvalidModelError, match="the workshop runs Llama models only"):
        FloatLlama.from_source(source)
    with pytest.raises(InvalidModelError, match="only Llama models are exported, not gpt_neox"):
        write_hf_folder(tmp_path / "out", source)
    with pytest.raises(InvalidModelError, match="vectors are trained for Llama models only"):
        TrainingModel(package)
