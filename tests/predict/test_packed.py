"""Packed weights: codes without gaps, expansion by the stated arithmetic, folders read back."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import InvalidModelError
from archiver.predict.packed import (
    NF4,
    Packing,
    dynamic_table,
    expand,
    pack_codes,
    unpack_codes,
)
from archiver.predict.sources import read_source
from archiver.predict.sources_workshop import write_workshop_folder
from tests.support.tiny_models import make_tiny_hf_folder


@given(st.integers(2, 8), st.integers(1, 3), st.integers(1, 30), st.randoms())
def test_codes_come_back_and_take_their_bits(bits, rows, count, random):
    codes = np.array(
        [[random.randrange(1 << bits) for _ in range(count)] for _ in range(rows)], np.uint8
    )
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    assert (unpack_codes(packed, bits, count) == codes).all()


def test_known_packing():
    assert pack_codes(np.array([[1, 2, 3, 4]], np.uint8), 3).tolist() == [[0xD1, 0x08]]
    assert pack_codes(np.array([[1, 2, 3, 4]], np.uint8), 4).tolist() == [[0x21, 0x43]]


def test_known_expansions():
    codes = pack_codes(np.array([[0, 1, 2, 3]], np.uint8), 2)
    scales = np.array([[0.5, 0.25]], np.float16)
    minima = np.array([[-1.0, 2.0]], np.float16)
    arrays = {"w.codes": codes, "w.scales": scales, "w.minima": minima}
    grid = Packing(method="grid", bits=2, group=2)
    assert expand("w", (1, 4), grid, arrays).tolist() == [[-1.0, -0.5, 2.5, 2.75]]
    symmetric = Packing(method="symmetric", bits=2, group=2)
    assert expand("w", (1, 4), symmetric, arrays).tolist() == [[-1.0, -0.5, 0.0, 0.25]]


def test_known_nf4_expansion():
    arrays = {
        "w.codes": pack_codes(np.array([[0, 7, 15, 8]], np.uint8), 4),
        "w.scales": np.array([255, 128], np.uint8),
        "w.ranges": np.array([2.0], np.float32),
        "w.offset": np.array([1.0], np.float32),
    }
    low = np.float32(dynamic_table()[128] * np.float32(2.0)) + np.float32(1.0)
    expected = [[-3.0, 0.0, low, np.float32(NF4[8] * low)]]
    found = expand("w", (1, 4), Packing(method="nf4", bits=4, group=2), arrays)
    assert found.tolist() == expected


def test_the_tables_are_those_that_packages_were_made_with():
    table = dynamic_table()
    assert (np.diff(table) > 0).all()
    assert (table[0], table[127], table[255]) == (np.float32(-0.99296875), 0.0, 1.0)
    assert len(table) == 256
    digest = hashlib.sha256(table.astype("<f4").tobytes() + NF4.astype("<f4").tobytes())
    assert digest.hexdigest() == "3f174f501f2157efeb14ede2618b7d2920c21440d8b5757cf541be95dddc964b"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "zip"}, "unknown packing"),
        ({"method": "grid", "bits": 1, "group": 8}, "impossible"),
        ({"method": "grid", "bits": 4, "group": 0}, "impossible"),
        ({"method": "nf4", "bits": 3, "group": 8}, "4 bits"),
    ],
)
def test_impossible_packings_are_refused(fields, message):
    with pytest.raises(InvalidModelError, match=message):
        Packing(**fields)


def test_arrays_that_do_not_fit_are_refused():
    arrays = {"w.codes": np.zeros((1, 1), np.uint8), "w.scales": np.zeros((1, 1), np.float16)}
    with pytest.raises(InvalidModelError, match=r"w\.codes is uint8 \(1, 1\)"):
        expand("w", (1, 4), Packing(method="symmetric", bits=4, group=4), arrays)
    with pytest.raises(InvalidModelError, match="groups of 3"):
        expand("w", (1, 4), Packing(method="symmetric", bits=4, group=3), arrays)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_source(make_tiny_hf_folder(tmp_path_factory.mktemp("base") / "model", seed=5))


def test_a_folder_gives_the_same_model(source, tmp_path):
    write_workshop_folder(tmp_path / "folder", source, {})
    found = read_source(tmp_path / "folder")
    assert found.config == source.config
    assert found.token_bytes == source.token_bytes
    assert found.start_token_id == source.start_token_id
    assert all((found.tensors[name] == source.tensors[name]).all() for name in source.tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=9), "description of version"),
        (lambda d: d.update(extra=1), "description of version"),
        (lambda d: d.update(history=[1]), "malformed"),
        (lambda d: d["config"].update(hidden="48"), "hidden is"),
        (lambda d: d["config"].update(mystery=1), "malformed"),
        (lambda d: d["packings"].update(embed={"method": "nf4", "bits": 4}), "does not hold"),
        (lambda d: d["packings"].update(nothing={"method": "plain"}), "does not hold"),
        (lambda d: d["config"].update(layers=3), "does not hold"),
    ],
)
def test_descriptions_that_lie_are_refused(source, tmp_path, change, message):
    write_workshop_folder(tmp_path, source, {})
    path = tmp_path / "llmzip.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    with pytest.raises(InvalidModelError, match=message):
        read_source(tmp_path)


def test_missing_files_are_refused(source, tmp_path):
    write_workshop_folder(tmp_path, source, {})
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json is missing"):
        read_source(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(InvalidModelError, match="cannot be read"):
        read_source(tmp_path)
