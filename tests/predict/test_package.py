"""Packages: named by what they compute, complete or not there."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from archiver.errors import InvalidModelError, ModelMismatchError, OutputError
from archiver.predict.package import (
    ModelPackage,
    canonical_json,
    fingerprint_of,
    load_package,
    store_package,
)

ARRAYS = {
    "embed.codes": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
    "embed.scales": np.linspace(0.5, 1, 3, dtype=np.float32),
    "tokens.offsets": np.array([0, 2, 5, 9], dtype=np.int64),
}
CONFIG: dict[str, object] = {"layers": 2, "norm_epsilon": 1e-5, "architecture": "llama"}
TOKENIZER = '{"model":"größer"}'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _store(**changes: object) -> ModelPackage:
    arguments: dict[str, object] = {
        "arrays": ARRAYS, "config": CONFIG, "tokenizer_json": TOKENIZER, "name": "tiny",
        "licence": "Apache-2.0", "history": ["made up"],
    }  # fmt: skip
    return store_package(**(arguments | changes))  # type: ignore[arg-type]


def test_a_stored_package_is_loaded_as_it_was(home: Path) -> None:
    stored = _store()
    package = load_package(stored.path, verify=True)
    assert package.path == home / "packages" / package.fingerprint[:16]
    assert package.fingerprint == fingerprint_of(CONFIG, ARRAYS)
    assert package.fingerprint_bytes.hex() == package.path.name
    assert package.config == CONFIG
    assert (package.name, package.licence, package.history) == ("tiny", "Apache-2.0", ("made up",))
    assert package.read_tokenizer() == TOKENIZER
    assert package.array_bytes == 12 + 12 + 32
    assert set(package.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(package.arrays[name], array)
        assert package.arrays[name].dtype == array.dtype
    assert sorted(path.name for path in package.path.iterdir()) == [
        "manifest.json", "package.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert list((home / "scratch").iterdir()) == []


def test_the_fingerprint_follows_its_definition() -> None:
    def part(content: bytes) -> bytes:
        return len(content).to_bytes(8, "little") + content

    text = b'{"architecture":"llama","layers":2,"norm_epsilon":1e-05}'
    expected = part(b"llmzip-package-2") + part(text)
    for name, kind, shape in [
        ("embed.codes", b"I8", b"[3,4]"),
        ("embed.scales", b"F32", b"[3]"),
        ("tokens.offsets", b"I64", b"[4]"),
    ]:
        expected += part(name.encode()) + part(kind) + part(shape) + part(ARRAYS[name].tobytes())
    assert fingerprint_of(CONFIG, ARRAYS) == hashlib.sha256(expected).hexdigest()
    assert fingerprint_of(CONFIG, ARRAYS) == (
        "78a89f8146810c77bbf897870b958f263b68abcc221b5fa8ca93cb02049d4188"
    )


def test_the_fingerprint_is_of_the_content_not_of_its_form() -> None:
    same = fingerprint_of(CONFIG, ARRAYS)
    assert fingerprint_of(dict(reversed(CONFIG.items())), dict(reversed(ARRAYS.items()))) == same
    strided = {**ARRAYS, "embed.codes": np.asfortranarray(ARRAYS["embed.codes"])}
    swapped = {**ARRAYS, "embed.scales": ARRAYS["embed.scales"].astype(">f4")}
    assert fingerprint_of(CONFIG, strided) == same
    assert fingerprint_of(CONFIG, swapped) == same
    others = [
        fingerprint_of({**CONFIG, "layers": 3}, ARRAYS),
        fingerprint_of(CONFIG, {**ARRAYS, "embed.codes": ARRAYS["embed.codes"].reshape(4, 3)}),
        fingerprint_of(CONFIG, {**ARRAYS, "embed.codes": ARRAYS["embed.codes"].view(np.uint8)}),
        fingerprint_of(CONFIG, {**ARRAYS, "more": np.zeros(0, np.int8)}),
    ]
    assert len({same, *others}) == 5


def test_a_configuration_has_one_text() -> None:
    assert canonical_json({"b": (1, 2), "a": "é"}) == '{"a":"é","b":[1,2]}'
    for bad in ({"a": float("nan")}, {"a": {1: 2}}, {"a": b""}, {"a": np.float32(1)}):
        with pytest.raises(InvalidModelError, match="cannot be stored"):
            canonical_json(bad)


def test_storing_twice_keeps_the_first_and_repairs_a_damaged_one() -> None:
    first = _store()
    before = (first.path / "manifest.json").stat().st_ino
    assert _store(name="again").name == "tiny"
    assert (first.path / "manifest.json").stat().st_ino == before
    content = bytearray((first.path / "package.safetensors").read_bytes())
    content[-1] ^= 1
    (first.path / "package.safetensors").write_bytes(content)
    assert _store(name="again").name == "again"
    assert load_package(first.path, verify=True).name == "again"


def test_another_fingerprint_than_required_is_not_stored(home: Path) -> None:
    with pytest.raises(ModelMismatchError, match="please report"):
        _store(required_fingerprint="0" * 64)
    assert not (home / "packages").exists()
    assert _store(required_fingerprint=fingerprint_of(CONFIG, ARRAYS))


def test_progress_counts_the_bytes() -> None:
    calls: list[tuple[str, int, int]] = []
    _store(progress=lambda *call: calls.append(call))
    assert calls == [("storing", 0, 56), ("storing", 56, 56)]


def test_a_home_that_cannot_be_written_is_reported(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(OutputError, match=r"home.*cannot be used"):
        _store()


def test_a_full_disk_leaves_nothing_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            _store()
    assert not (home / "packages").exists()
    assert list((home / "scratch").iterdir()) == []
    assert _store()


@pytest.mark.parametrize("missing", ["manifest.json", "package.safetensors", "tokenizer.json"])
def test_a_missing_file_is_reported(missing: str) -> None:
    package = _store()
    (package.path / missing).unlink()
    with pytest.raises(InvalidModelError, match=str(package.path)):
        load_package(package.path)


@pytest.mark.parametrize("file", ["package.safetensors", "tokenizer.json"])
def test_any_flipped_bit_is_found_by_verification(file: str) -> None:
    package = _store()
    path = package.path / file
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(InvalidModelError):
            load_package(package.path, verify=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"manifest_version": 2}, "version 2; this llmzip reads version 1"),
        ({"config": []}, "fields of a manifest"),
        ({"fingerprint": "12"}, "fields of a manifest"),
        ({"fingerprint": "0" * 64}, "do not belong together"),
        ({"array_bytes": 1}, "do not belong together"),
        ({"array_bytes": "1"}, "fields of a manifest"),
        ({"history": [1]}, "fields of a manifest"),
        ({"more": 1}, "fields of a manifest"),
    ],
)
def test_a_malformed_manifest_is_refused(changes: dict[str, object], reason: str) -> None:
    path = _store().path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InvalidModelError, match=reason):
        load_package(path.parent)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_not_json_is_refused(content: bytes) -> None:
    path = _store().path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"manifest\.json"):
        load_package(path.parent)


def test_the_arrays_outlive_the_package(tmp_path: Path) -> None:
    package = _store()
    package.path.rename(tmp_path / "elsewhere")
    assert np.array_equal(package.arrays["embed.codes"], ARRAYS["embed.codes"])
    assert dataclasses.is_dataclass(package)
