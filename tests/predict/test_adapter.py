"""Adapters: exact, small, refused where they do not belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from archiver.errors import InvalidModelError, ModelMismatchError
from archiver.predict.adapter import (
    Adapter,
    LowRank,
    apply_adapter,
    read_adapter,
    weights_sha256,
    write_adapter,
)
from archiver.predict.sources import read_source
from archiver.predict.tensor_file import open_tensor_file, write_tensor_file
from tests.support.tiny_models import make_tiny_hf_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_source(make_tiny_hf_folder(tmp_path_factory.mktemp("base") / "model", seed=5))


def random_change(outputs: int, inputs: int, rank: int, seed: int) -> LowRank:
    generator = np.random.default_rng(seed)
    return LowRank(
        a=generator.integers(-90, 91, (rank, inputs)).astype(np.int32),
        b=generator.integers(-90, 91, (outputs, rank)).astype(np.int32),
        steps=(2.0 ** generator.uniform(-12, -6, rank)).astype(np.float32),
    )


def adapter_for(source, **changes) -> Adapter:
    adapter = Adapter(
        low_rank={
            "layers.0.qkv": random_change(80, 48, 3, 1),
            "layers.1.gate_up": random_change(192, 48, 2, 2),
            "layers.1.down": random_change(48, 96, 1, 3),
        },
        gains={"layers.1.norm2": (np.arange(-24, 24, dtype=np.int32), 0.001)},
        base_sha256=weights_sha256(source),
        history=("tuned: for a test",),
        local_heads=None,
    )
    return dataclasses.replace(adapter, **changes)


def test_a_delta_is_the_product_to_22_bits():
    change = random_change(30, 20, 4, 7)
    exact = (change.b * change.steps.astype(np.float64)) @ (
        change.a * change.steps.astype(np.float64)[:, None]
    )
    assert np.abs(change.delta() - exact).max() < np.abs(exact).max() * 2.0**-18


def test_a_delta_does_not_depend_on_the_order_of_summation():
    change = random_change(40, 64, 8, 9)
    order = np.random.default_rng(0).permutation(8)
    shuffled = LowRank(a=change.a[order], b=change.b[:, order], steps=change.steps[order])
    assert (change.delta() == shuffled.delta()).all()


def test_known_delta():
    change = LowRank(
        a=np.array([[1, -2]], np.int32), b=np.array([[3], [4]], np.int32),
        steps=np.array([0.5], np.float32),
    )  # fmt: skip
    assert change.delta().tolist() == [[0.75, -1.5], [1.0, -2.0]]


def test_applying_changes_what_it_names_and_nothing_else(source):
    adapter = adapter_for(source)
    tuned = apply_adapter(source, adapter)
    delta = adapter.low_rank["layers.0.qkv"].delta()
    changed = {name for name in source.tensors
               if (source.tensors[name] != tuned.tensors[name]).any()}  # fmt: skip
    assert changed == {
        "layers.0.q", "layers.0.k", "layers.0.v", "layers.1.gate", "layers.1.up", "layers.1.down",
        "layers.1.norm2",
    }  # fmt: skip
    for part, rows in (("q", slice(0, 48)), ("k", slice(48, 64)), ("v", slice(64, 80))):
        found = tuned.tensors[f"layers.0.{part}"] - source.tensors[f"layers.0.{part}"]
        assert np.allclose(found, delta[rows], atol=1e-6)
    assert tuned.history == ("tuned: for a test",)


def test_a_file_gives_the_same_adapter_and_the_same_bytes(source, tmp_path):
    adapter = adapter_for(source)
    write_adapter(tmp_path / "one", adapter)
    found = read_adapter(tmp_path / "one")
    write_adapter(tmp_path / "two", found)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for name, change in adapter.low_rank.items():
        assert (found.low_rank[name].a == change.a).all()
        assert (found.low_rank[name].b == change.b).all()
        assert (found.low_rank[name].steps == change.steps).all()
    assert weights_sha256(apply_adapter(source, found)) == weights_sha256(
        apply_adapter(source, adapter)
    )


def test_local_heads_are_those_of_the_tuned_model(source, tmp_path):
    marks = ((1,) * source.config.kv_heads,) * source.config.layers
    write_adapter(tmp_path / "one", adapter_for(source, local_heads=marks))
    assert apply_adapter(source, read_adapter(tmp_path / "one")).config.local_heads == marks
    assert apply_adapter(source, adapter_for(source)).config.local_heads is None
    with pytest.raises(InvalidModelError, match="not the shape"):
        apply_adapter(source, adapter_for(source, local_heads=((1,),)))


def test_other_weights_are_refused(source, tmp_path):
    other = read_source(make_tiny_hf_folder(tmp_path / "other", seed=6))
    with pytest.raises(ModelMismatchError, match="made for other weights"):
        apply_adapter(other, adapter_for(source))


@pytest.mark.parametrize(
    "changes",
    [
        {"low_rank": {"layers.0.qkv": random_change(81, 48, 1, 1)}},
        {"low_rank": {"layers.9.qkv": random_change(80, 48, 1, 1)}},
        {"low_rank": {"embed": random_change(400, 48, 1, 1)}},
        {"gains": {"layers.0.norm1": (np.zeros(47, np.int32), 1.0)}},
        {"gains": {"layers.0.norm3": (np.zeros(48, np.int32), 1.0)}},
    ],
)
def test_an_adapter_of_another_shape_is_refused(source, changes):
    with pytest.raises(InvalidModelError, match="does not fit the model"):
        apply_adapter(source, adapter_for(source, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("codes"), "not an adapter"),
        (lambda arrays: arrays.pop("layers.0.qkv.shape"), "not an adapter"),
        (lambda arrays: arrays.update(more=np.zeros(3, np.uint8)), "it holds more"),
        (lambda arrays: arrays["layers.0.qkv.steps"].fill(np.nan), "out of range"),
        (lambda arrays: arrays["layers.0.qkv.shape"].fill(-4), "not an adapter"),
    ],
)
def test_damaged_files_are_refused(source, tmp_path, change, message):
    path = tmp_path / "adapter"
    write_adapter(path, adapter_for(source))
    file = open_tensor_file(path)
    arrays = {name: np.array(array) for name, array in file.map().items()}
    change(arrays)
    write_tensor_file(path, arrays, file.metadata)
    with pytest.raises(InvalidModelError, match=message):
        read_adapter(path)


@pytest.mark.parametrize("table", ["[[1], 0]", "[[null]]", "7", "no JSON"])
def test_local_heads_that_are_no_table_are_refused(source, tmp_path, table):
    path = tmp_path / "adapter"
    write_adapter(path, adapter_for(source))
    file = open_tensor_file(path)
    arrays = {name: np.array(array) for name, array in file.map().items()}
    write_tensor_file(path, arrays, {**file.metadata, "local_heads": table})
    with pytest.raises(InvalidModelError, match="not an adapter"):
        read_adapter(path)


def test_what_is_no_tensor_file_is_refused(tmp_path):
    (tmp_path / "no").write_bytes(b"something else, and long enough")
    with pytest.raises(InvalidModelError, match="claims a header"):
        read_adapter(tmp_path / "no")
    with pytest.raises(InvalidModelError, match="cannot be read"):
        read_adapter(tmp_path / "missing")
