"""Kernels against their definitions, and what the compiler made of them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from archiver.predict import registry
from archiver.predict.kernels import elementary, vectors
from tests.support.tiny_families import make_family_folder


@njit
def _exp2(x, out):
    for i in range(x.shape[0]):
        out[i] = elementary.exp2_nonpositive(x[i])


@njit
def _exp2_lanes(x, total):
    tiles = x.shape[0] // 16
    total[0] = vectors.exponentiate(
        x, 0, tiles, np.float32(0), np.float32(131072), x, 0, tiles // 8
    )


def exp2_by_definition(x: np.ndarray) -> np.ndarray:
    """FORMAT.md, "Numbers of the predictor", in numpy: every operation rounded to binary32."""
    x = np.maximum(x, np.float32(-40))
    n = np.rint(x)
    f = x - n
    p = np.float32(float.fromhex("0x1.5ec866p-10")) * f + np.float32(float.fromhex("0x1.3cbf6p-7"))
    for c in ("0x1.c6afeep-5", "0x1.ebfa4cp-3", "0x1.62e43p-1", "1"):
        p = p * f + np.float32(float.fromhex(c))
    return p * np.exp2(n.astype(np.float64)).astype(np.float32)


def test_exp2_is_its_definition() -> None:
    x = -np.concatenate([np.linspace(0, 45, 1 << 18), np.geomspace(1e-30, 50, 1 << 16)])
    x = x.astype(np.float32)
    expected = exp2_by_definition(x)
    out = np.empty_like(x)
    _exp2(x, out)
    assert np.array_equal(out, expected)
    total = np.zeros(1, np.int32)
    lanes = x[: 1 << 14].copy()
    _exp2_lanes(lanes, total)
    assert np.array_equal(lanes, expected[: 1 << 14])
    assert total[0] == int(np.rint(expected[: 1 << 14] * np.float32(131072)).sum(dtype=np.int64))


def test_exp2_is_close_to_the_power() -> None:
    x = -np.linspace(0, 40, 1 << 18).astype(np.float32)
    error = np.abs(exp2_by_definition(x) / np.exp2(x.astype(np.float64)) - 1)
    assert error.max() < 2.8e-7


def test_rounding_is_to_nearest_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e6 + 0.5, -4194303.0, 0.49999997], np.float32)
    assert [elementary.round_to_int(v) for v in x] == np.rint(x).astype(int).tolist()


def test_order_keys_order_as_floats_do() -> None:
    x = np.array([-1e30, -2.5, -1e-20, 0.0, 1e-20, 1.0, 3e30], np.float32)
    keys = [int(elementary.order_key(v)) for v in x]
    assert keys == sorted(keys)
    assert [elementary.float_of_key(np.int32(k)) for k in keys] == x.tolist()


@njit
def _dots(keys, query, quads, out, tiles):
    vectors.dot_keys_1(keys, 0, query, 0, 0, quads, out, 0, 0, 0, tiles)


@njit
def _dots_portable(keys, query, quads, out, tiles):
    vectors.dot_keys_portable(keys, 0, query, 0, 0, quads, out, 0, 0, 0, tiles)


@njit
def _values(values, high, low, quads, out):
    vectors.dot_values_1(values, 0, 256, low, 0, 0, quads, out, 0, 0, values, 0, quads // 3)
    vectors.dot_high_values(values, 0, 256, high, 0, quads, out, 0)


@njit
def _values_of_six(values, high, low, quads, out):
    stride = low.shape[0]
    weights = np.zeros(6 * stride, np.uint8)
    weights[4 * stride : 5 * stride] = low
    sums = np.zeros(6 * 64, np.int32)
    sums[4 * 64 : 5 * 64] = out
    vectors.dot_values_6(values, 0, 256, weights, 0, stride, quads, sums, 0, 64, values, 0, 0)
    if sums[: 4 * 64].any() or sums[5 * 64 :].any():
        raise AssertionError
    out[:] = sums[4 * 64 : 5 * 64]
    vectors.dot_high_values(values, 0, 256, high, 0, quads, out, 0)


@njit
def _values_portable(values, high, low, quads, out):
    vectors.dot_values_portable(values, 0, 256, low, 0, 0, quads, out, 0, 0)
    vectors.dot_high_values_portable(values, 0, 256, high, 0, quads, out, 0)


@njit
def _values_by_sixteen(values, high, low, quads, out):
    for d in range(0, 64, 16):
        vectors.dot_values_16(values, d * 4, 256, low, 0, 0, quads, out, d, 0)
        vectors.dot_high_values_16(values, d * 4, 256, high, 0, quads, out, d)


@pytest.mark.parametrize("kernel", [_dots, _dots_portable])
@pytest.mark.parametrize("extreme", [False, True])
def test_dot_products_of_keys(kernel, extreme: bool) -> None:
    generator = np.random.default_rng(5)
    tiles, quads = 3, 16
    keys = generator.integers(0, 256, (tiles, quads, 16, 4)).astype(np.uint8)
    query = generator.integers(-127, 128, (quads, 4)).astype(np.int8)
    if extreme:
        keys[:], query[:] = 255, -127
    out = np.zeros(tiles * 16, np.int32)
    kernel(keys.reshape(-1), query.reshape(-1), quads, out, tiles)
    expected = np.einsum("tqlj,qj->tl", keys.astype(np.int64), query.astype(np.int64))
    assert np.array_equal(out, expected.reshape(-1))


@pytest.mark.parametrize("kernel", [_values, _values_of_six, _values_portable, _values_by_sixteen])
@pytest.mark.parametrize("quads", [1, 16, 40, 64])
@pytest.mark.parametrize("extreme", [False, True])
def test_dot_products_of_values(kernel, quads: int, extreme: bool) -> None:
    generator = np.random.default_rng(6)
    values = generator.integers(-127, 128, (quads, 64, 4)).astype(np.int8)
    weights = generator.integers(0, 1500, (quads, 4))
    weights[generator.integers(0, 4, quads) > 0] &= 255  # high bytes are few
    if extreme:
        values[:], weights[:] = -127, 0
        weights[quads // 2, 1] = 65535
    out = np.full(64, 11, np.int32)
    # What lies after the last weight may be read, and must not count.
    high = np.full(quads * 4 + 60, 255, np.uint8)
    high[: quads * 4] = (weights >> 8).reshape(-1)
    kernel(values.reshape(-1), high, weights.astype(np.uint8).reshape(-1), quads, out)
    expected = 11 + np.einsum("qdj,qj->d", values.astype(np.int64), weights)
    assert np.array_equal(out, expected)


LIST_ASSEMBLY = """
import numpy as np
from archiver.codec import symbols
from archiver.predict import registry
from archiver.predict.engine import Engine
from archiver.predict.session import Session
from archiver.predict.kernels import attention, elementary, families, head, layers

# Between them they have biases, positions, both kinds of norm inside a layer, and GELU.
for name in ("gpt2", "gemma3", "llama"):
    engine = Engine(registry.resolve(name), window=30, local_window=20, sinks=4)
    session = Session(engine, streams=1, tokens=30, steps=30)
    codes, scales = session.advance(np.zeros((1, 30), np.int32))
tree = engine.vocabulary
head.path_probabilities(
    *engine.head(codes, scales), np.zeros(30, np.int32), tree.splits,
    tree.left, tree.right, np.empty(30 * tree.deepest, np.uint32), np.empty(30, np.int32),
    np.empty(30, np.int32),
)
for module in (attention, elementary, families, head, layers, symbols):
    for kernel in vars(module).values():
        if hasattr(kernel, "inspect_asm"):
            for listing in kernel.inspect_asm().values():
                print(listing)
"""


def test_no_kernel_holds_a_fused_multiply_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLVM may fuse a product and a sum only with a fast-math flag; nothing sets one.

    In a process and a cache of its own: numba does not list kernels that it loaded from a cache.
    """
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    for family in ("gpt2", "gemma3", "llama"):
        registry.add(make_family_folder(tmp_path / family, family, seed=1), family)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", LIST_ASSEMBLY], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    listing = run.stdout
    for kernel in (
        "attend",
        "add_biases",
        "normalize_heads",
        "normalize_and_rotate",
        "add_normalized",
        "gelu_and_rotate",
    ):
        assert kernel in listing
    if platform.machine() in ("x86_64", "AMD64"):
        assert re.search(r"\bv?mul[ps]s\b", listing)  # float arithmetic is there
        assert not re.search(r"\bvfn?m(add|sub)", listing)
        assert not re.search(r"\bv?r(cp|sqrt)(14)?[ps]s\b", listing)
    else:
        assert not re.search(r"\bf(n?madd|n?msub|mla|mls)\b", listing)
