"""Compiled code of earlier runs serves as long as nothing that it came from has changed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from archiver import compiled

PACKAGE = Path(compiled.__file__).parent


def files_of(module: str) -> list[Path]:
    """The file of a module of this package, or none for what is not a module."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()]


def imports_of(path: Path) -> set[Path]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("archiver."):
            for module in (node.module, *(f"{node.module}.{name.name}" for name in node.names)):
                found.update(files_of(str(module)))
    return found


def test_sources_are_all_that_compiled_functions_come_from() -> None:
    """Of the files with compiled functions, all they import, and what those import in turn."""
    left = [
        path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "compiled.py" and "archiver.compiled import" in path.read_text()
    ]
    assert len(left) > 15
    seen: set[Path] = set()
    while left:
        path = left.pop()
        if path not in seen:
            seen.add(path)
            if path.name != "compiled.py":  # which imports the home folder for its name alone
                left.extend(imports_of(path))
    sources = [PACKAGE / source for source in compiled.SOURCES]
    missed = [path for path in seen if not any(path.is_relative_to(s) for s in sources)]
    assert missed == []


def test_what_others_changed_is_compiled_anew(tmp_path: Path) -> None:
    """Also where the function's own file is the same as before."""
    copy = tmp_path / "archiver"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = "from archiver.mixing.logistic import clamp; print(clamp(10**9))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)

    def run() -> int:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return int(done.stdout)

    first = run()
    kept = {path: path.read_bytes() for path in copy.rglob("*.nb[ci]")}
    assert kept
    assert run() == first
    assert {path: path.read_bytes() for path in copy.rglob("*.nb[ci]")} == kept
    tables = copy / "mixing" / "tables.py"
    content = tables.read_text()
    assert content.count("STRETCH_MAX = (1 << 16) - 32") == 1
    tables.write_text(content.replace("STRETCH_MAX = (1 << 16) - 32", "STRETCH_MAX = 1000"))
    assert first == (1 << 16) - 32
    assert run() == 1000


def test_numba_is_left_as_it_was() -> None:
    before = config.CACHE_DIR
    compiled.compiled()(imports_of)
    assert before == config.CACHE_DIR


def test_compiled_code_goes_where_the_user_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    folder = compiled._cache_folder.__wrapped__
    assert folder().parent in (PACKAGE / "__pycache__", Path(config.CACHE_DIR or "."))
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "wanted"))
    assert folder().parent == tmp_path / "wanted"
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert folder().parent == tmp_path / "home"
