"""A tiny model and text for the workshop's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archiver.predict.sources import SourceModel, read_source
from tests.support.tiny_models import make_tiny_hf_folder

TEXT = (
    "It was the best of times, it was the worst of times. The quick brown fox jumps over the dog.\n"
    "def add(first, second):\n    return first + second\n"
    "All happy families are alike; every unhappy family is unhappy in its own way.\n"
) * 60


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_tiny_hf_folder(
        tmp_path_factory.mktemp("tiny") / "model",
        seed=11, hidden=64, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=128,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> SourceModel:
    return read_source(tiny_folder)


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def own_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
