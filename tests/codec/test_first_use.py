"""Whatever is usually needed is compiled once, and the user is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import archiver
from archiver import compiled
from archiver.codec import first_use
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.predict.package import ModelPackage
from tests.support.tiny_models import make_tiny_hf_folder

TEXT = b"It is a truth universally acknowledged, that a single man wants a wife.\n" * 9


def test_it_is_said_once(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiled, "_cache_folder", lambda: tmp_path / "compiled")
    stages: list[tuple[str, int, int]] = []

    def coded() -> bytes:
        archive = archiver.compress(
            TEXT,
            options=CompressOptions(model="tiny"),
            model_progress=lambda *stage: stages.append(stage),
        )
        return archiver.decompress(archive, model_progress=lambda *stage: stages.append(stage))

    assert not (tmp_path / "compiled").exists()
    assert coded() == TEXT
    assert stages == [(first_use.STAGE, 0, 0)]
    assert len([*(tmp_path / "compiled").glob("complete-*")]) == 1
    assert coded() == TEXT
    assert len(stages) == 1


def test_other_shapes_need_other_functions(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make_tiny_hf_folder(tmp_path / "other", seed=2, heads=2, kv_heads=2)
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    other = registry.add(folder, name="other")
    monkeypatch.setattr(compiled, "_cache_folder", lambda: tmp_path / "compiled")
    stages: list[str] = []
    for package, said in ((tiny, 1), (tiny, 1), (other, 2), (tiny, 2)):
        first_use.compile_all(package, lambda stage, done, total: stages.append(stage))
        assert stages == [first_use.STAGE] * said


def test_a_decoder_compiles_as_well(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = archiver.compress(TEXT, options=CompressOptions(model="tiny"))
    monkeypatch.setattr(compiled, "_cache_folder", lambda: tmp_path / "compiled")
    stages: list[str] = []
    assert archiver.decompress(archive, model_progress=lambda s, *_: stages.append(s)) == TEXT
    assert stages == [first_use.STAGE]


@pytest.mark.slow
def test_nothing_is_left_to_compile(tiny: ModelPackage, tmp_path: Path) -> None:
    """In a new folder: few streams and many, one thread and two, add nothing to it."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    script = (
        "import sys, archiver\n"
        "from archiver.options import CompressOptions\n"
        "text = open(sys.argv[1], 'rb').read()\n"
        "for chunk in (2048, 300, 20):\n"
        "    options = CompressOptions(model='tiny', chunk_tokens=chunk)\n"
        "    archive = archiver.compress(text, options=options)\n"
        "    for threads in (1, 2):\n"
        "        assert archiver.decompress(archive, threads=threads) == text\n"
    )
    long, short = tmp_path / "long", tmp_path / "short"
    long.write_bytes(TEXT * 3 + bytes(range(256)))
    short.write_bytes(TEXT[:100])

    def compiled_after(path: Path) -> list[str]:
        subprocess.run([sys.executable, "-c", script, path], env=environment, check=True)
        return sorted(found.name for found in tmp_path.rglob("*.nbc"))

    after_first_use = compiled_after(short)
    assert len(after_first_use) > 100
    assert compiled_after(long) == after_first_use
