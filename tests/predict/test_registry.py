"""Packages by name; two processes at once, or one that is killed, leave the home whole."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from archiver.errors import (
    InvalidModelError,
    ModelMismatchError,
    ModelMissingError,
    ModelUnavailableError,
    UsageError,
)
from archiver.predict import known, registry
from archiver.predict.adapter import Adapter, LowRank, weights_sha256, write_adapter
from archiver.predict.fetch import WheelMember
from archiver.predict.home import home_folder, home_locked, no_progress, scratch_folder
from archiver.predict.names import name_from, read_names
from archiver.predict.package import load_package
from tests.support.tiny_gguf import make_tiny_gguf
from tests.support.tiny_models import make_tiny_hf_folder
from tests.support.tiny_wheels import make_tiny_wheel

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "home"


@pytest.fixture
def default(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> known.KnownModel:
    """The default model replaced by a tiny one, whose file the user has brought."""
    file = make_tiny_gguf(tmp_path / "Tiny.gguf", seed=1)
    origin = make_tiny_wheel(tmp_path / "index", file.read_bytes())
    model = dataclasses.replace(
        known.KNOWN_MODELS[0], origin=origin, adapter=None, local_heads=None, fingerprint=None
    )
    (home / "downloads").mkdir(parents=True)
    file.rename(home / "downloads" / "Tiny.gguf")
    _set_known(monkeypatch, model)
    return model


def _set_known(monkeypatch: pytest.MonkeyPatch, model: known.KnownModel) -> None:
    monkeypatch.setattr(registry, "KNOWN_MODELS", (model,))


def test_the_table_of_known_models_is_consistent() -> None:
    names = [name for model in known.KNOWN_MODELS for name in (model.name, *model.aliases)]
    assert len(set(names)) == len(names)
    assert known.DEFAULT_MODEL in names
    for model in known.KNOWN_MODELS:
        assert all(name_from(name) == name for name in (model.name, *model.aliases))
        origin = model.origin
        parts = (origin,) if isinstance(origin, WheelMember) else origin.parts
        assert sum(part.member_bytes for part in parts) == origin.member_bytes
        for digest in (origin.member_sha256, *(part.wheel_sha256 for part in parts)):
            assert re.fullmatch("[0-9a-f]{64}", digest)
        assert model.fingerprint is None or len(model.fingerprint) == 64


def test_the_default_is_fetched_once(home: Path, default: known.KnownModel) -> None:
    package = registry.resolve(default.name)
    assert package.name == default.name
    assert package.licence == "Apache-2.0"
    assert default.origin.member_sha256 in package.history[0]
    shutil.rmtree(home / "downloads")
    for name in (*default.aliases, default.name, package.fingerprint, package.fingerprint[:8]):
        assert registry.resolve(name).fingerprint == package.fingerprint
    assert registry.resolve_fingerprint(package.fingerprint_bytes).path == package.path
    assert registry.pull("default").path == package.path
    assert list((home / "scratch").glob("*")) == []


def test_an_archive_brings_the_default_by_its_fingerprint(
    home: Path, default: known.KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = registry.resolve(default.name)
    _set_known(monkeypatch, dataclasses.replace(default, fingerprint=package.fingerprint))
    registry.remove(default.name)
    assert not package.path.exists()
    assert registry.resolve_fingerprint(package.fingerprint_bytes).path == package.path
    with pytest.raises(ModelMissingError, match="fingerprint 0102030405060708 is not here"):
        registry.resolve_fingerprint(bytes(range(1, 9)))


def test_a_conversion_with_another_result_than_pinned_is_not_stored(
    home: Path, default: known.KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_known(monkeypatch, dataclasses.replace(default, fingerprint="0" * 64))
    with pytest.raises(ModelMismatchError, match="please report"):
        registry.resolve(default.name)
    assert not (home / "packages").exists()
    assert read_names() == {}


def test_without_the_file_and_the_index_the_error_says_what_to_bring(
    home: Path, default: known.KnownModel
) -> None:
    shutil.rmtree(home / "downloads")
    with pytest.raises(ModelUnavailableError, match="bring either of these"):
        registry.resolve(default.name)


def test_a_damaged_package_is_named_and_pulled_anew(home: Path, default: known.KnownModel) -> None:
    package = registry.pull(default.name)
    (package.path / "manifest.json").write_text("{")
    with pytest.raises(InvalidModelError, match="llmzip model remove"):
        registry.resolve(default.name)
    (listing,) = registry.list_packages()
    assert listing.package is None
    assert listing.problem is not None
    assert registry.pull(default.name).fingerprint == package.fingerprint
    assert registry.list_packages()[0].problem is None


def test_models_are_added_listed_shown_and_removed(
    home: Path, default: known.KnownModel, tmp_path: Path
) -> None:
    folder = make_tiny_hf_folder(tmp_path / "My Model (v2)", seed=2)
    added = registry.add(folder)
    assert added.name == "my-model-v2"
    assert registry.resolve("my-model-v2").fingerprint == added.fingerprint
    assert registry.add(folder, "other").fingerprint == added.fingerprint
    first, second = registry.list_packages()
    assert (first.name, first.is_default, first.package) == (default.name, True, None)
    assert second.names == ("my-model-v2", "other")
    assert second.package is not None
    assert registry.show("other").names == second.names
    assert registry.show(added.fingerprint[:12]).names == second.names
    assert registry.show("default").name == first.name
    registry.remove("other")
    assert read_names() == {}
    assert [listing.name for listing in registry.list_packages()] == [default.name]
    for action in (registry.resolve, registry.show, registry.remove):
        with pytest.raises(ModelMissingError, match="no model 'other'"):
            action("other")
    with pytest.raises(ModelMissingError, match="no model 'other' to pull"):
        registry.pull("other")
    with pytest.raises(ModelMissingError, match="is not in"):
        registry.remove("default")


def test_a_gguf_and_a_folder_of_the_same_model_are_one_package(home: Path, tmp_path: Path) -> None:
    folder = registry.add(make_tiny_hf_folder(tmp_path / "tiny", seed=4))
    file = registry.add(make_tiny_gguf(tmp_path / "tiny.gguf", seed=4), "file")
    assert folder.fingerprint == file.fingerprint
    assert registry.show("file").names == ("file", "tiny")


def test_a_package_folder_can_be_added(home: Path, tmp_path: Path) -> None:
    package = registry.add(make_tiny_hf_folder(tmp_path / "tiny", seed=4))
    shutil.move(package.path, tmp_path / "brought")
    again = registry.add(tmp_path / "brought", "brought")
    assert again.fingerprint == package.fingerprint
    assert load_package(again.path, verify=True).history == package.history


@pytest.mark.parametrize("name", ["", "Big", "a/b", "../a", ".hidden", "a" * 65, "a b", "a\n"])
def test_impossible_names_are_refused(home: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a model's name"):
        registry.add(tmp_path, name)


def test_taken_names_are_refused(home: Path, tmp_path: Path) -> None:
    registry.add(make_tiny_hf_folder(tmp_path / "a", seed=1), "mine")
    with pytest.raises(UsageError, match="taken by another model"):
        registry.add(make_tiny_hf_folder(tmp_path / "b", seed=2), "mine")
    with pytest.raises(UsageError, match="that llmzip knows"):
        registry.add(tmp_path / "a", "default")


def test_a_refused_source_leaves_nothing(home: Path, tmp_path: Path) -> None:
    folder = make_tiny_hf_folder(tmp_path / "a", seed=1)
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(InvalidModelError, match="'bloom' is not supported"):
        registry.add(folder)
    assert registry.list_packages()[0].package is None
    assert not (home / "packages").exists()


def test_damaged_names_are_reported(home: Path) -> None:
    home.mkdir()
    for content in ("{", "[]", '{"a": 1}', '{"a": "12"}'):
        (home / "names.json").write_text(content)
        with pytest.raises(InvalidModelError, match=r"names\.json"):
            registry.resolve("anything")


def test_titles_become_names() -> None:
    assert name_from("Smollm2 135M 8k Lc100K") == "smollm2-135m-8k-lc100k"
    assert name_from("///") == "model"
    assert name_from("x" * 100) == "x" * 64


def test_the_home_folder_is_the_users_cache_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMZIP_HOME", "~/somewhere")
    assert home_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("LLMZIP_HOME")
    assert home_folder().name == "llmzip"


def test_the_lock_is_taken_again_by_its_holder_and_keeps_its_scratch(home: Path) -> None:
    with home_locked(), scratch_folder() as scratch:
        with home_locked():
            assert scratch.exists()
        assert scratch.exists()
    assert not scratch.exists()


# A program that pulls the default, replaced by a tiny model.  Its conversion says that it has
# begun, and ends when it is told to.
_PULL = """
import dataclasses, sys, time
from pathlib import Path
import archiver.predict.convert as convert_module
from archiver.predict import known, registry
from archiver.predict.fetch import WheelMember

begun, go_on, origin = Path(sys.argv[1]), Path(sys.argv[2]), WheelMember(**eval(sys.argv[3]))
real = convert_module.convert

def slow(source, progress=None):
    begun.open("a").write("converting\\n")
    while not go_on.exists():
        time.sleep(0.05)
    return real(source, progress)

def report(stage, done, total):
    if stage == "waiting for another llmzip":
        go_on.touch()

convert_module.convert = slow
model = dataclasses.replace(
    known.KNOWN_MODELS[0], origin=origin, adapter=None, local_heads=None, fingerprint=None
)
registry.KNOWN_MODELS = (model,)
print(registry.pull("default", report).fingerprint)
"""


def _start_pull(model: known.KnownModel, begun: Path, go_on: Path) -> subprocess.Popen[str]:
    origin = repr(dataclasses.asdict(model.origin))
    return subprocess.Popen(
        [sys.executable, "-c", _PULL, str(begun), str(go_on), origin],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def _wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError("the conversion never began")


def test_two_processes_that_pull_at_once_make_one_package(
    home: Path, default: known.KnownModel, tmp_path: Path
) -> None:
    """The first converts until the second waits for it; the second then has nothing to do."""
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    first = _start_pull(default, begun, go_on)
    _wait_for(begun)
    second = _start_pull(default, begun, go_on)
    answers = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert answers[0] == answers[1]
    assert begun.read_text() == "converting\n"
    assert len(list((home / "packages").iterdir())) == 1
    assert load_package(registry.resolve("default").path, verify=True)


def test_a_killed_pull_leaves_no_half_package(
    home: Path, default: known.KnownModel, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    process = _start_pull(default, begun, tmp_path / "never")
    _wait_for(begun)
    assert len(list((home / "scratch").iterdir())) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (home / "packages").exists()
    assert registry.list_packages()[0].package is None
    package = registry.pull("default")
    assert load_package(package.path, verify=True)
    assert list((home / "scratch").glob("*")) == []


def test_a_package_appears_whole(
    home: Path, default: known.KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment when something reaches the disk, packages/ holds all of it or nothing."""
    seen: list[list[str]] = []
    real = os.fsync

    def watched(handle: int) -> None:
        real(handle)
        folder = home / "packages"
        names = sorted(path.name for path in folder.rglob("*.*")) if folder.exists() else []
        seen.append(names)

    monkeypatch.setattr(os, "fsync", watched)
    registry.pull("default")
    whole = ["manifest.json", "package.safetensors", "tokenizer.json"]
    assert len(seen) >= 5
    assert all(names in ([], whole) for names in seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", [model.name for model in known.KNOWN_MODELS])
def test_known_models_are_what_the_registry_pins(name: str) -> None:
    """Needs the models; their conversion is compared with the registry by ``pull``."""
    package = registry.resolve(name)
    assert load_package(package.path, verify=True).fingerprint == package.fingerprint
    gemma = name == "gemma-3-270m"
    assert package.config["layers"] == (18 if gemma else 30)
    coded = np.count_nonzero(package.arrays["tokens.rank_of_id"] >= 0)
    assert coded == (255_785 if gemma else 49_135)


def test_a_known_model_may_come_with_an_adapter(
    home: Path, default: known.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = registry.pull(default.name)
    source = registry.read_known_source(default.name, no_progress)
    assert source is not None
    change = LowRank(
        a=np.ones((1, 48), np.int32), b=np.ones((48, 1), np.int32),
        steps=np.array([0.125], np.float32),
    )  # fmt: skip
    adapter = Adapter(
        low_rank={"layers.0.o": change}, gains={}, base_sha256=weights_sha256(source),
        history=("tuned: for a test",), local_heads=default.local_heads,
    )  # fmt: skip
    write_adapter(tmp_path / "tuned.safetensors", adapter)
    monkeypatch.setattr(known, "ADAPTERS_FOLDER", tmp_path)
    tuned = dataclasses.replace(default, name="tuned", aliases=(), adapter="tuned.safetensors")
    monkeypatch.setattr(registry, "KNOWN_MODELS", (default, tuned))
    package = registry.pull("tuned")
    assert package.fingerprint != plain.fingerprint
    assert package.history[0] == "tuned: for a test"
    changed = registry.read_known_source("tuned", no_progress)
    assert changed is not None
    difference = changed.tensors["layers.0.o"] - source.tensors["layers.0.o"]
    assert np.allclose(difference, 0.125**2, atol=1e-6)
    assert registry.read_known_source("unknown", no_progress) is None
