"""The engine on a device of torch's has the bits of the processor's, in everything it computes.

All of it runs on torch's own processor device, and where there is a CUDA device on that, too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import archiver
import cli
from archiver.codec import FrameCodec
from archiver.errors import ExactnessError, UsageError
from archiver.levels import Chunking
from archiver.mixing.parameters import MixerParameters
from archiver.options import CompressOptions
from archiver.predict import devices, registry
from archiver.predict.device import attention, conformance, numbers, products
from archiver.predict.device import engine as device_engine
from archiver.predict.device import layers as device_layers
from archiver.predict.device.engine import DeviceEngine, DeviceSession
from archiver.predict.engine import Engine
from archiver.predict.engine_base import EngineBase
from archiver.predict.kernels import elementary, layers
from archiver.predict.kernels.row_lanes import LOG2_E
from archiver.predict.package import ModelPackage
from archiver.predict.session import Session
from archiver.steering.sources import random_vectors
from tests.support.tiny_families import make_family_folder
from tests.support.tiny_models import make_tiny_hf_folder

from .engines import run


def _has_cuda() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of drivers too old, for instance
        return torch.cuda.is_available()


NO_CUDA = pytest.mark.skipif(not _has_cuda(), reason="torch has no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]
each_device = pytest.mark.parametrize("device", DEVICES)

MODELS = {
    "narrow": ({}, ((1,), (0,))),
    "mixed": ({"heads": 4, "kv_heads": 2, "head_dim": 32, "hidden": 64}, ((1, 0), (0, 0))),
    "wide": ({"heads": 2, "kv_heads": 2, "head_dim": 64, "ffn": 80}, ((1, 1), (0, 1))),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelPackage]:
    """Small random models, the same for all tests."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(tmp_path_factory.mktemp("home")))
        for name, (sizes, local_heads) in MODELS.items():
            folder = make_tiny_hf_folder(tmp_path_factory.mktemp("source") / name, seed=2, **sizes)
            registry.add(folder, name=name, local_heads=local_heads)
            found[name] = registry.resolve(name)
    return found


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, models: dict[str, ModelPackage]) -> ModelPackage:
    return models[request.param]


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def engines_of(
    package: ModelPackage, device: str, *, window: int = 40, sinks: int = 4
) -> tuple[Engine, DeviceEngine]:
    """Both engines; local heads see a third of the window."""
    settings = {"window": window, "local_window": (window + 2) // 3, "sinks": sinks}
    return Engine(package, **settings), DeviceEngine(package, device, **settings)


def tokens_of(engine: EngineBase, streams: int, length: int) -> NDArray[np.int32]:
    generator = np.random.default_rng(9)
    return generator.integers(0, engine.vocabulary.size, (streams, length)).astype(np.int32)


# --- parts ------------------------------------------------------------------------------------


@each_device
def test_powers_of_two(device: str) -> None:
    generator = np.random.default_rng(1)
    x = np.concatenate([
        -generator.random(10_000) * 42, -generator.random(1000) * 1e-3, -np.arange(0, 42, 0.5),
        [-0.0, -1e-40, -39.9999, -40.0001, -1e30],
    ]).astype(np.float32)  # fmt: skip
    expected = np.array([elementary.exp2_nonpositive(value) for value in x], np.float32)
    found = numbers.exp2_nonpositive(torch.tensor(x, device=device))
    assert same_bits(found.cpu().numpy(), expected)


@each_device
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quotients_are_rounded_once(device: str, dtype: type[np.floating[Any]]) -> None:
    x = np.random.default_rng(2).random(10_000).astype(dtype) + dtype(2.0**-40)
    there = torch.tensor(x, device=device)
    for number in (127.0, 32767.0, 65472.0):
        assert same_bits(numbers.quotient(number, there).cpu().numpy(), dtype(number) / x)
        assert same_bits(numbers.quotient(there, number).cpu().numpy(), x / dtype(number))
    assert same_bits(numbers.quotient(there, there + 1).cpu().numpy(), x / (x + dtype(1)))
    # What they are for: torch's operator multiplies by a reciprocal.
    assert not same_bits((127.0 / there).cpu().numpy(), dtype(127.0) / x)


def rows_of_all_sizes(count: int, width: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(3)
    x = generator.normal(0, 1, (count, width)) * 10.0 ** generator.integers(-14, 9, (count, 1))
    x[0] = 0.0
    x[1, :] = 1e-39
    return x.astype(np.float32)


@each_device
@pytest.mark.parametrize("width", [48, 80, 576])
def test_norms(device: str, width: int) -> None:
    x = rows_of_all_sizes(200, width)
    codes, scales = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    layers.normalize(x, 1e-5, codes, scales)
    found_codes, found_scales = device_layers.normalize(torch.tensor(x, device=device), 1e-5)
    assert same_bits(found_codes.cpu().numpy(), codes)
    assert same_bits(found_scales.cpu().numpy(), scales)


@each_device
@pytest.mark.parametrize("ffn", [80, 96, 1536])
def test_activations_and_their_transforms(device: str, ffn: int) -> None:
    span = ffn & -ffn
    product = np.round(rows_of_all_sizes(100, 2 * ffn) * 1e3).clip(-2e9, 2e9).astype(np.float32)
    generator = np.random.default_rng(4)
    scales = generator.random(len(product)).astype(np.float32) * np.float32(0.01)
    weight_scales = generator.random(2 * ffn).astype(np.float32)
    codes, code_scales = np.empty((len(product), ffn), np.int8), np.empty(100, np.float32)
    layers.gate_and_rotate(product, scales, weight_scales, span, codes, code_scales)
    there = [torch.tensor(array, device=device) for array in (product, scales, weight_scales)]
    y = device_layers.transform(device_layers.gate(device_layers.scaled(*there)), span)
    found = attention.Coded.of(y)
    assert same_bits(found.codes.cpu().numpy(), codes)
    assert same_bits(found.scales.cpu().numpy(), code_scales)


@each_device
@pytest.mark.parametrize("name", ["IntMmProduct", "Float64Product"])
def test_products_of_any_size(device: str, name: str) -> None:
    product = getattr(products, name)
    if not products.is_exact(product, [50, 1536], device):
        assert name == "IntMmProduct"
        pytest.skip("int_mm is not exact on this machine, and not used")
    generator = np.random.default_rng(5)
    for rows, inputs, outputs in ((1, 48, 7), (33, 50, 64), (7, 1536, 397)):
        weights = generator.integers(-127, 128, (outputs, inputs)).astype(np.int8)
        codes = generator.integers(-127, 128, (rows, inputs)).astype(np.int8)
        found = product(torch.tensor(weights, device=device))(torch.tensor(codes, device=device))
        expected = (codes.astype(np.int64) @ weights.astype(np.int64).T).astype(np.float32)
        assert same_bits(found.cpu().numpy(), expected)


def test_an_inexact_product_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (codes.double() @ weights.double()).clamp(-32768, 32767).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert products.choose_product([48], "cpu") is products.Float64Product
    monkeypatch.setattr(products.Float64Product, "__call__", lambda _, codes: codes.float())
    with pytest.raises(ExactnessError, match="no matrix product of the device cpu"):
        products.choose_product([48], "cpu")


# --- the engine ---------------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize(
    ("window", "sinks", "steps"), [(40, 4, 1), (40, 4, 23), (16, 0, 80), (7, 40, 9), (300, 4, 64)]
)
def test_hidden_states_are_the_same_bits(
    model: ModelPackage, device: str, window: int, sinks: int, steps: int
) -> None:
    """Whatever the blocks; a window shorter than a block, sinks beyond and within it, or none."""
    engine, other = engines_of(model, device, window=window, sinks=sinks)
    tokens = tokens_of(engine, 3, 80)
    codes, scales = run(engine, tokens, 40)
    session = other.session(streams=3, tokens=80, steps=steps)
    for start in range(0, 80, steps):
        found, found_scales = session.advance(tokens[:, start : start + steps])
        part = slice(start, start + steps)
        assert same_bits(found, codes[:, part].reshape(-1, other.hidden))
        assert same_bits(found_scales, scales[:, part].reshape(-1))


def unpacked(session: Session, layer: int) -> tuple[NDArray[Any], ...]:
    """Keys, values and their scales by slot as the processor's engine holds them."""
    keys, values, key_scales, value_scales = session.caches[layer]
    streams, dim = len(keys), session.engine.head_dim
    by_slot = keys.reshape(streams, -1, dim // 4, 16, 4).transpose(0, 1, 3, 2, 4)
    codes = (by_slot.reshape(streams, -1, dim).astype(np.int16) - 128).astype(np.int8)
    turned = values.reshape(streams, -1, 4, dim, 4).transpose(0, 1, 2, 4, 3)
    return codes, turned.reshape(streams, -1, dim), key_scales, value_scales


@each_device
def test_keys_and_values_are_the_same_bits(model: ModelPackage, device: str) -> None:
    engine, other = engines_of(model, device)
    tokens = tokens_of(engine, 2, 90)
    mine = engine.session(streams=2, tokens=90, steps=45)
    theirs = other.session(streams=2, tokens=90, steps=30)
    for steps, session in ((45, mine), (30, theirs)):
        for start in range(0, 90, steps):
            session.advance(np.ascontiguousarray(tokens[:, start : start + steps]))
    assert isinstance(theirs, DeviceSession)
    compared = 0
    for layer, sets in enumerate(theirs.sets):
        arrays = unpacked(mine, layer)
        for heads in sets:
            positions = np.arange(90 - heads.window, 90)
            found = [
                array.cpu().numpy()[:, :, positions % heads.keys.codes.shape[2]]
                for array in (
                    heads.keys.codes, heads.values.codes, heads.keys.scales, heads.values.scales
                )
            ]  # fmt: skip
            for number, head in enumerate(heads.heads.tolist()):
                begin, end = mine.slots[layer, head : head + 2].tolist()
                slots = begin + positions % (end - begin)
                for array, theirs_array in zip(arrays, found, strict=True):
                    assert same_bits(array[:, slots], theirs_array[:, number])
                    compared += 1
    assert compared == 4 * engine.kv_heads * len(engine.layers)


@each_device
@pytest.mark.parametrize(
    ("vectors", "window", "sinks"), [(5, 16, 4), (20, 18, 2), (40, 16, 21), (17, 300, 0)]
)
def test_soft_prompts_leave_the_same_bits(
    model: ModelPackage, device: str, vectors: int, window: int, sinks: int
) -> None:
    engine, other = engines_of(model, device, window=window, sinks=sinks)
    prompt = random_vectors(vectors, 7, model)
    tokens = tokens_of(engine, 2, 60)
    plain, _ = run(engine, tokens, 60)
    codes, scales = run(engine.steered(prompt), tokens, 60)
    assert not np.array_equal(plain, codes)
    for steps in (13, 60):
        session = other.steered(prompt).session(streams=2, tokens=60, steps=steps)
        for start in range(0, 60, steps):
            part = slice(start, start + steps)
            found, found_scales = session.advance(tokens[:, part])
            assert same_bits(found, codes[:, part].reshape(-1, other.hidden))
            assert same_bits(found_scales, scales[:, part].reshape(-1))
    assert np.array_equal(run(engine, tokens, 60)[0], plain)


@each_device
def test_the_last_positions_of_a_long_stream(model: ModelPackage, device: str) -> None:
    """Both begin far from the start, with nothing but zeros before."""
    engine, other = engines_of(model, device, window=30)
    tokens = tokens_of(engine, 1, 80)
    outputs = []
    for each in (engine, other):
        session: Any = each.session(streams=1, tokens=1 << 16, steps=80)
        session.position = (1 << 16) - 80
        outputs.append(session.advance(tokens))
    for mine, theirs in zip(*outputs, strict=True):
        assert same_bits(mine, theirs)


@each_device
def test_attention_in_parts(
    models: dict[str, ModelPackage], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other = engines_of(models["mixed"], device, window=20)
    tokens = tokens_of(engine, 3, 70)
    codes, _ = run(engine, tokens, 70)
    for items in (1, 500):
        monkeypatch.setattr(attention, "ITEMS_MAX", items)
        session = other.session(streams=3, tokens=70, steps=70)
        found, _ = session.advance(tokens)
        assert same_bits(found, codes.reshape(-1, other.hidden))


@each_device
def test_products_of_the_head_and_archives_are_the_same(model: ModelPackage, device: str) -> None:
    prompt = random_vectors(3, 1, model)
    content = "The weather was fine in 1905, and Мы были там. ".encode() * 6 + b"\x04\xff"
    engine, other = engines_of(model, device)
    codecs = [
        FrameCodec(
            each, package=model, mixer=MixerParameters(), threads=1,
            chunking=Chunking(tokens_min=70, streams=8),
        )
        for each in (engine, other)
    ]  # fmt: skip
    codecs += [codec.steered(prompt, Chunking(tokens_min=50, streams=8)) for codec in codecs]
    for mine, theirs in (codecs[:2], codecs[2:]):
        predicted, found = mine.predict_text(content), theirs.predict_text(content)
        assert same_bits(found.probabilities, predicted.probabilities)
        payload = mine.encode(content)
        assert theirs.encode(content) == payload
        assert theirs.decode(payload, len(content)) == content
    codes, scales = engine.session(streams=1, tokens=40, steps=40).advance(tokens_of(engine, 1, 40))
    for expected, array in zip(engine.head(codes, scales), other.head(codes, scales), strict=True):
        assert same_bits(array, expected)


# --- opening -------------------------------------------------------------------------------------


@each_device
def test_the_check_at_the_start(model: ModelPackage, device: str) -> None:
    engine, other = engines_of(model, device)
    conformance.check(engine, other)
    assert (engine.window, other.window, engine.lead) == (40, 40, 0)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (device_layers, "LOG2_E", float(np.nextafter(LOG2_E, np.float32(2)))),
        (numbers, "EXP2_C1", float(np.nextafter(elementary.EXP2_C1, np.float32(1)))),
        (attention, "WEIGHT_ONE", 65471.0),
        (device_layers, "SQUARE_ONE", 32766.0),
        (numbers, "quotient", lambda a, b: a * torch.as_tensor(b).reciprocal()),
        (device_layers, "quotient", lambda a, b: a * torch.as_tensor(b).reciprocal()),
        (attention, "exp2_nonpositive", torch.exp2),
        (DeviceSession, "_turned", lambda _, vectors, positions: vectors),
    ],
)
def test_a_device_that_computes_other_bits_is_refused(
    models: dict[str, ModelPackage],
    module: Any,
    name: str,
    value: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, other = engines_of(models["narrow"], "cpu")
    monkeypatch.setattr(module, name, value)
    with pytest.raises(ExactnessError, match="device cpu does not compute the same bits"):
        conformance.check(engine, other)


def test_other_families_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    registry.add(make_family_folder(tmp_path / "qwen2", "qwen2", seed=3), name="qwen2")
    with pytest.raises(UsageError, match="family qwen2; on the device cpu only Llama models run"):
        engines_of(registry.resolve("qwen2"), "cpu")


def test_no_cuda_is_said(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"All happy families are alike. " * 9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["-m", "tiny", "--device", "cuda", str(text)]
    result = CliRunner().invoke(cli.commands, ["compress", *options])
    assert result.exit_code == UsageError.exit_code
    assert f"the device cuda cannot be used: torch {torch.__version__} " in result.stderr
    assert not text.with_name("text.txt.llmz").exists()
    result = CliRunner().invoke(cli.commands, ["compress", "--device", "tpu", str(text)])
    assert result.exit_code == UsageError.exit_code
    assert "'tpu' is not one of 'cpu', 'cuda'" in result.stderr


def test_unknown_devices_are_refused() -> None:
    for call in (
        lambda: CompressOptions(device="tpu"),
        lambda: archiver.decompress(b"", device="tpu"),
        lambda: archiver.verify(b"", device="tpu"),
        lambda: archiver.open(b"", device="tpu"),
    ):
        with pytest.raises(UsageError, match="no device 'tpu'; there are: cpu, cuda"):
            call()


def test_the_float_engine_has_no_other_device() -> None:
    with pytest.raises(UsageError, match="the float engine runs on the device cpu only"):
        CompressOptions(engine="float", device="cuda")


@each_device
def test_archives_do_not_tell_the_device(
    tiny: ModelPackage, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way from the options; torch's own processor device stands in for CUDA's."""
    opened = []
    real = DeviceEngine

    def stand_in(package: ModelPackage, name: str, **settings: int) -> DeviceEngine:
        opened.append(name)
        return real(package, device, **settings)

    monkeypatch.setattr(device_engine, "DeviceEngine", stand_in)
    monkeypatch.setattr(devices, "require_cuda", lambda: None)
    content = b"In the beginning the weather was fine, and the traveller said: I return. " * 4
    for steering in ("none", "random:3"):
        opened.clear()
        settings: dict[str, Any] = {"model": "tiny", "chunk_tokens": 60, "steering": steering}
        archive = archiver.compress(content, options=CompressOptions(**settings))
        assert not opened
        on_device = CompressOptions(**settings, device="cuda")
        assert archiver.compress(content, options=on_device) == archive
        assert opened == ["cuda"]
        assert archiver.decompress(archive, device="cuda") == content
        assert archiver.verify(archive, device="cuda").content_bytes == len(content)
        with archiver.open(archive, device="cuda") as file:
            assert file.read() == content
        assert opened == ["cuda", "cuda"]
        assert archiver.decompress(archive) == content
