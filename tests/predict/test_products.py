"""Every backend of the exact matrix product is exact, or is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from archiver.errors import ExactnessError, UsageError
from archiver.predict.kernels import byte_products, products
from archiver.predict.kernels.memory import large_pages
from archiver.predict.kernels.products import (
    BACKENDS,
    Product,
    VnniProduct,
    backend_named,
    is_exact,
)
from archiver.predict.kernels.torch_products import Float32Product

INNER = [16, 64, 576, 1040, 1041, 1536, 4000]


def exact_product(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (codes.astype(np.int64) @ weights.astype(np.int64).T).astype(np.float32)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_passes_the_probe_is_exact(name: str, inner: int) -> None:
    if not products.is_exact(backend_named(name), [inner]):
        pytest.skip(f"{name} is not exact on this machine, and not used")
    generator = np.random.default_rng(inner)
    weights = generator.integers(-127, 128, (70, inner)).astype(np.int8)
    weights[::2] = 127
    product = backend_named(name)(weights)
    for rows in (1, 2, 17, 33, 300):
        codes = generator.integers(-127, 128, (rows, inner)).astype(np.int8)
        codes[::2] = -127
        found = np.empty((rows, 70), np.float32)
        product(codes, found)
        assert np.array_equal(found, exact_product(codes, weights))


def test_float32_is_exact_everywhere() -> None:
    assert products.is_exact(Float32Product, INNER)


class _Saturating(Product):
    """What oneDNN does without VNNI: codes shifted to unsigned bytes, pairs of their products
    added in saturating int16, the shift taken back."""

    name = "saturating"

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights.astype(np.int64)

    def __call__(self, codes: np.ndarray, product: np.ndarray) -> None:
        terms = (codes.astype(np.int64)[:, None, :] + 128) * self._weights[None]
        pairs = np.clip(terms[..., 0::2] + terms[..., 1::2], -32768, 32767)
        product[:] = pairs.sum(axis=-1) - 128 * self._weights.sum(axis=-1)


class _Missing(Product):
    name = "missing"

    def __init__(self, weights: np.ndarray) -> None:
        raise RuntimeError("no such operator")

    def __call__(self, codes: np.ndarray, product: np.ndarray) -> None:
        raise AssertionError


def test_the_probe_finds_saturation() -> None:
    assert not products.is_exact(_Saturating, [64])


def test_inexact_and_missing_backends_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(products.BACKEND_VARIABLE, raising=False)
    backends = {"missing": _Missing, "saturating": _Saturating, "float32": Float32Product}
    monkeypatch.setattr(products, "BACKENDS", tuple(backends))
    monkeypatch.setattr(products, "backend_named", backends.__getitem__)
    assert products.choose_backend([64]) is Float32Product
    with pytest.raises(ExactnessError, match="'saturating' is not exact"):
        products.choose_backend([64], "saturating")
    monkeypatch.setattr(products, "BACKENDS", ("missing", "saturating"))
    with pytest.raises(ExactnessError, match="no matrix product on this machine"):
        products.choose_backend([64])


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        UsageError, match="no matrix product 'gpu'; there are amx, vnni, onednn, int_mm"
    ):
        products.choose_backend([64], "gpu")


def test_torch_is_loaded_only_where_it_multiplies() -> None:
    code = (
        "import sys\n"
        "import archiver.codec.frame\n"
        "from archiver.predict.kernels import products as p\n"
        "print(p.choose_backend([64, 576, 1536]).name, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, loaded = done.stdout.split()
    assert loaded == str(name not in ("amx", "vnni"))


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_some_backend_is_exact_at_each_instruction_set(isa: str) -> None:
    """On processors without VNNI oneDNN's product saturates; the probe must see it."""
    code = (
        "from archiver.predict.kernels import products as p\n"
        "exact = {n: p.is_exact(p.backend_named(n), [64, 576, 1536]) for n in p.BACKENDS}\n"
        "print(p.choose_backend([64, 576, 1536]).name, exact)\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    environment.pop(products.BACKEND_VARIABLE, None)
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    name = run.stdout.split()[0]
    assert name in BACKENDS
    assert f"'{name}': True" in run.stdout


@pytest.mark.parametrize("rows", range(1, 14))
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 4), (63, 16), (64, 20), (130, 576)])
@pytest.mark.parametrize("group", [byte_products.TILE_OUTPUTS, byte_products.OUTPUTS_STEP])
def test_byte_products_of_any_shape(rows: int, outputs: int, inputs: int, group: int) -> None:
    """The kernel itself, which runs on every processor; the backend asks for VNNI."""
    generator = np.random.default_rng(rows * outputs)
    weights = generator.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    codes = generator.integers(-127, 128, (rows, inputs)).astype(np.int8)
    weights[0], codes[0] = 127, -127
    packed = np.zeros(-(-outputs // 64) * 64 * inputs, np.uint8)
    byte_products.pack(weights, packed, group)
    product = np.full((rows, outputs), np.nan, np.float32)
    byte_products.multiply(packed, codes, product, 0, outputs, group)
    assert np.array_equal(product, exact_product(codes, weights))


@pytest.mark.parametrize("name", ["amx", "vnni"])
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 33, 45, 63, 64, 65, 100])
def test_parts_of_the_outputs_make_the_product(name: str, rows: int) -> None:
    backend = backend_named(name)
    if not is_exact(backend, [128]):
        pytest.skip(f"{name} is not for this machine")
    assert issubclass(backend, VnniProduct)
    generator = np.random.default_rng(rows)
    weights = generator.integers(-127, 128, (200, 128)).astype(np.int8)
    codes = generator.integers(-127, 128, (rows, 128)).astype(np.int8)
    product = np.full((rows, 200), np.nan, np.float32)
    matrix = backend(weights)
    middle = 2 * backend.outputs_step
    matrix.multiply(codes, product, middle, 200)
    assert np.isnan(product[:, :middle]).all()
    matrix.multiply(codes, product, 0, middle)
    assert np.array_equal(product, exact_product(codes, weights))


def test_large_pages_are_zeros_apart_and_aligned() -> None:
    pieces = [large_pages(size) for size in (100, 5 << 20, 64, 40 << 20, 1)]
    for number, piece in enumerate(pieces):
        assert not piece.any()
        assert piece.ctypes.data % 64 == 0
        piece[:] = number + 1
    assert [int(piece.min()) for piece in pieces] == [1, 2, 3, 4, 5]
    assert [int(piece.max()) for piece in pieces] == [1, 2, 3, 4, 5]
