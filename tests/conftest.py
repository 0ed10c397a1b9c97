"""Fixtures for several folders of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.predict import registry
from archiver.predict.package import ModelPackage
from tests.support import toy_codec
from tests.support.tiny_models import LOCAL_HEADS, make_tiny_hf_folder


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy codec in the place of the real one: no model is needed."""
    toy_codec.install(monkeypatch.setattr)


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLMZIP_HOME with one package, named "tiny", made from random weights."""
    home = tmp_path_factory.mktemp("home")
    folder = make_tiny_hf_folder(tmp_path_factory.mktemp("source") / "tiny", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(home))
        registry.add(folder, name="tiny", local_heads=LOCAL_HEADS)
    return home


@pytest.fixture
def tiny(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    """The package "tiny"; LLMZIP_HOME is where it lies."""
    monkeypatch.setenv("LLMZIP_HOME", str(tiny_home))
    return registry.resolve("tiny")
