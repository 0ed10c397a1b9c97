"""Model packages: a model as the engine reads it, named by what it computes.

A package is a folder of three files.  ``package.safetensors`` holds all arrays,
``manifest.json`` the configuration and where the package comes from, ``tokenizer.json`` the
tokenizer (which only compression needs).

The fingerprint is the SHA-256 of whatever decides integers: the configuration and the arrays,
not their order in the file, nor names, nor the tokenizer.  It covers, each preceded by its
length as 8 bytes little-endian:

    "llmzip-package-2"
    the configuration as JSON, keys sorted, no spaces, UTF-8
    for each array, sorted by name: name | type as safetensors calls it | shape as a JSON list |
                                    items in C order, little-endian
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from archiver.errors import InvalidModelError, ModelMismatchError
from archiver.predict import home
from archiver.predict.tensor_file import (
    dtype_name,
    little_endian_bytes,
    open_tensor_file,
    write_tensor_file,
)

Arrays = Mapping[str, NDArray[Any]]

ARRAYS_FILE = "package.safetensors"
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_VERSION = 1
# Folders are named by this many hex digits of the fingerprint: the 8 bytes that archives hold.
FOLDER_DIGITS = 16
MAX_MANIFEST_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 64 << 20
# Scales of codes keep every product away from denormals and infinity.
SCALE_MIN, SCALE_MAX = 2.0**-40, 2.0**8
_FINGERPRINT_DOMAIN = b"llmzip-package-2"
_MANIFEST_KEYS = {
    "manifest_version", "name", "fingerprint", "config", "licence", "history",
    "tokenizer_sha256", "array_bytes",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelPackage:
    """A package on the disk.

    Attributes:
        path: its folder.
        name: what it was called when it was made.
        fingerprint: 64 hex digits.
        config: the configuration, as JSON has it.
        arrays: read-only views of the memory-mapped file.  They stay valid when the package is
            removed, but not on a file system that cannot remove open files.
        licence: the licence of the weights as their source states it; empty when unknown.
        history: what was done to the weights, oldest first.
        tokenizer_sha256: hex digest of tokenizer.json.
        array_bytes: what the arrays take.
    """

    path: Path
    name: str
    fingerprint: str
    config: Mapping[str, object]
    arrays: Arrays
    licence: str
    history: tuple[str, ...]
    tokenizer_sha256: str
    array_bytes: int

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer lies."""
        return self.path / TOKENIZER_FILE

    @property
    def fingerprint_bytes(self) -> bytes:
        """The first 8 bytes of the fingerprint, as archives hold them."""
        return bytes.fromhex(self.fingerprint[:FOLDER_DIGITS])

    def read_tokenizer(self) -> str:
        """Return tokenizer.json.

        Raises:
            InvalidModelError: it is not the file that the manifest names.
        """
        content = _read_bounded(self.tokenizer_path, MAX_TOKENIZER_BYTES)
        if hashlib.sha256(content).hexdigest() != self.tokenizer_sha256:
            raise InvalidModelError(f"{self.tokenizer_path}: not the tokenizer of this package")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise InvalidModelError(f"{self.tokenizer_path}: not UTF-8") from error


def canonical_json(config: Mapping[str, object]) -> str:
    """Return the one text that stands for a configuration.

    Raises:
        InvalidModelError: it holds what JSON cannot.
    """
    try:
        text = json.dumps(
            config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        if json.loads(text) != _listed(config):
            raise ValueError("it does not survive JSON")
    except (TypeError, ValueError) as error:
        raise InvalidModelError(f"the configuration cannot be stored: {error}") from error
    return text


def fingerprint_of(config: Mapping[str, object], arrays: Arrays) -> str:
    """Return the fingerprint of a package, 64 hex digits (see the module's text)."""
    digest = hashlib.sha256()

    def add(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    add(_FINGERPRINT_DOMAIN)
    add(canonical_json(config).encode())
    for name in sorted(arrays):
        array = arrays[name]
        add(name.encode())
        add(dtype_name(array.dtype).encode())
        add(json.dumps(array.shape, separators=(",", ":")).encode())
        add(little_endian_bytes(array))
    return digest.hexdigest()


def load_package(path: Path, *, verify: bool = False) -> ModelPackage:
    """Return the package in a folder.

    Args:
        path: the folder.
        verify: whether to read everything and compute the fingerprint again; otherwise only the
            manifest and the sizes are checked.

    Raises:
        InvalidModelError: it is not a package, or a damaged one.
    """
    try:
        manifest = _read_manifest(path / MANIFEST_FILE)
        file = open_tensor_file(path / ARRAYS_FILE)
        arrays = file.map()
        tokenizer_found = (path / TOKENIZER_FILE).is_file()
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read: {error.strerror}") from error
    except InvalidModelError as error:
        raise InvalidModelError(f"{path}: {error}") from error
    package = ModelPackage(path=path, arrays=arrays, **manifest)
    array_bytes = sum(entry.length_bytes for entry in file.entries.values())
    if (
        file.metadata.get("fingerprint") != package.fingerprint
        or array_bytes != package.array_bytes
        or not tokenizer_found
    ):
        raise InvalidModelError(f"{path}: the files do not belong together")
    if verify:
        package.read_tokenizer()
        if fingerprint_of(package.config, arrays) != package.fingerprint:
            raise InvalidModelError(f"{path}: the package is damaged (wrong fingerprint)")
    return package


def store_package(
    arrays: Arrays,
    config: Mapping[str, object],
    tokenizer_json: str,
    *,
    name: str,
    licence: str,
    history: Sequence[str],
    required_fingerprint: str | None = None,
    progress: home.Progress = home.no_progress,
) -> ModelPackage:
    """Put a package into the home folder, complete and on the disk, and return it.

    It is written aside and renamed, so that nobody ever sees half of it.  When the same package
    is there already, and intact, that one stays.

    Args:
        arrays: by name; any types that safetensors has.
        config: JSON values; everything that decides integers and is no array.
        tokenizer_json: the tokenizer in the format of the ``tokenizers`` library.
        name: what to call it.
        licence: the licence of the weights; empty when unknown.
        history: what was done to the weights, oldest first.
        required_fingerprint: what the fingerprint has to be.
        progress: told of the stage "storing", in bytes.

    Raises:
        ModelMismatchError: the fingerprint is not the required one; nothing was stored.
        OutputError: the home folder cannot be written.
    """
    array_bytes = sum(array.nbytes for array in arrays.values())
    progress("storing", 0, array_bytes)
    fingerprint = fingerprint_of(config, arrays)
    if required_fingerprint is not None and fingerprint != required_fingerprint:
        raise ModelMismatchError(
            f"the conversion of {name} gave the fingerprint {fingerprint}, not"
            f" {required_fingerprint}: either the files differ from those llmzip was made with,"
            " or this machine computes differently; please report it"
        )
    tokenizer = tokenizer_json.encode()
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "name": name,
        "fingerprint": fingerprint,
        "config": config,
        "licence": licence,
        "history": list(history),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
        "array_bytes": array_bytes,
    }
    target = home.packages_folder() / fingerprint[:FOLDER_DIGITS]
    with home.home_locked(progress), home.scratch_folder() as scratch:
        if _is_intact(target, fingerprint):
            return load_package(target)
        fresh = scratch / "package"
        fresh.mkdir()
        write_tensor_file(fresh / ARRAYS_FILE, arrays, {"fingerprint": fingerprint})
        home.sync(fresh / ARRAYS_FILE)
        home.write_durably(fresh / TOKENIZER_FILE, tokenizer)
        home.write_durably(fresh / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        home.sync(fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            os.rename(target, scratch / "damaged")
        os.rename(fresh, target)
        home.sync(target.parent)
    progress("storing", array_bytes, array_bytes)
    return load_package(target)


def _is_intact(path: Path, fingerprint: str) -> bool:
    """Return whether a package is there whose content gives the fingerprint."""
    try:
        return load_package(path, verify=True).fingerprint == fingerprint
    except InvalidModelError:
        return False


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the fields of a manifest, named and typed as those of ModelPackage."""
    try:
        manifest = json.loads(_read_bounded(path, MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path.name} is not valid JSON") from error
    if not isinstance(manifest, dict):
        raise InvalidModelError(f"{path.name} is not a manifest")
    version = manifest.get("manifest_version")
    if version != MANIFEST_VERSION:
        raise InvalidModelError(
            f"{path.name} has version {version!r}; this llmzip reads version {MANIFEST_VERSION}"
        )
    history, digests = manifest.get("history"), ("fingerprint", "tokenizer_sha256")
    if (
        set(manifest) != _MANIFEST_KEYS
        or not isinstance(manifest["config"], dict)
        or not all(isinstance(manifest[key], str) for key in ("name", "licence", *digests))
        or not all(len(manifest[key]) == 64 for key in digests)
        or not isinstance(history, list)
        or not all(isinstance(step, str) for step in history)
        or type(manifest["array_bytes"]) is not int
    ):
        raise InvalidModelError(f"{path.name} does not have the fields of a manifest")
    del manifest["manifest_version"]
    return {**manifest, "history": tuple(history)}


def _read_bounded(path: Path, largest: int) -> bytes:
    """Return a file's content, of at most ``largest`` bytes."""
    if path.stat().st_size > largest:
        raise InvalidModelError(f"{path.name} is larger than {largest} bytes")
    return path.read_bytes()


def _listed(value: object) -> object:
    """Return a JSON value with its tuples turned into lists, as JSON would."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value
