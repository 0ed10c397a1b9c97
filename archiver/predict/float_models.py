"""Hugging Face folders that the float engine reads where they lie: checked, hashed, found again.

An archive names such a model by the SHA-256 of the files that decide its numbers, each part
preceded by its length as 8 bytes little-endian:

    "llmzip-float-1"
    for each file, sorted by name: name | content

The home folder's float_models.json says in which folder that hash was seen last.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archiver.container.layout import FIRST_FLOAT_ENGINE, MachineSection, PredictorSection
from archiver.errors import (
    InvalidModelError,
    ModelError,
    ModelMismatchError,
    ModelMissingError,
    UnsupportedVersionError,
)
from archiver.predict import home
from archiver.predict.machine import differences, mismatch
from archiver.predict.package import FOLDER_DIGITS
from archiver.predict.sources_hf import (
    CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_FILE,
    read_json,
    read_plain_tokenizer,
    weight_files,
)
from archiver.predict.tensor_file import open_tensor_file

FLOAT_ENGINE_VERSION = FIRST_FLOAT_ENGINE
_TABLE = "float_models.json"
_ANY_TEXT = re.compile(r"(?s).*")
_DOMAIN = b"llmzip-float-1"
_READ_BYTES = 1 << 20
# Files that transformers would read beside the weights, and what they would do.
_REFUSED_FILES = {"adapter_config.json": "holds an adapter; merge it into the weights first"}
_REFUSED_SETTINGS = {
    "quantization_config": "the weights are quantized in a way of their own",
    "is_encoder_decoder": "it is an encoder and decoder, not a causal language model",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatModel:
    """A folder that transformers may be given.

    Attributes:
        folder: where it lies.
        fingerprint: SHA-256 of its files, 64 hex digits.
        settings: config.json.
        tokenizer_json: the tokenizer, reduced to what turns text into ids.
    """

    folder: Path
    fingerprint: str
    settings: Mapping[str, object]
    tokenizer_json: str

    @property
    def fingerprint_bytes(self) -> bytes:
        """The first 8 bytes of the fingerprint, as archives hold them."""
        return bytes.fromhex(self.fingerprint[:FOLDER_DIGITS])

    def read_tokenizer(self) -> str:
        """Return tokenizer.json, reduced."""
        return self.tokenizer_json


def read_float_model(folder: Path) -> FloatModel:
    """Return the model in a folder; the weights' headers are checked and all files hashed.

    Raises:
        ModelMissingError: there is no such folder.
        InvalidModelError: the weights are not safetensors, or it is refused for another reason.
    """
    if not folder.is_dir():
        raise ModelMissingError(
            f"{folder}: no such folder; the float engine reads a Hugging Face folder (-m FOLDER)"
        )
    try:
        settings = read_json(folder / CONFIG_FILE)
        for name, reason in _REFUSED_SETTINGS.items():
            if settings.get(name):
                raise InvalidModelError(reason)
        for name, reason in _REFUSED_FILES.items():
            if (folder / name).exists():
                raise InvalidModelError(f"it {reason}")
        weights = weight_files(folder)
        for name in weights:
            open_tensor_file(folder / name)
        tokenizer_json = read_plain_tokenizer(folder)
        names = {CONFIG_FILE, TOKENIZER_FILE, *weights}
        if (folder / INDEX_FILE).is_file():
            names.add(INDEX_FILE)
        return FloatModel(
            folder=folder,
            fingerprint=_hash_of(folder, sorted(names)),
            settings=settings,
            tokenizer_json=tokenizer_json,
        )
    except OSError as error:
        raise InvalidModelError(f"{folder}: cannot be read: {error.strerror}") from error
    except InvalidModelError as error:
        raise InvalidModelError(f"{folder}: {error}") from error


def remember(folder: Path) -> FloatModel:
    """Return the model in a folder, which archives of it will be decoded with from now on.

    Raises:
        ModelError: as `read_float_model`. OutputError: the home folder cannot be written.
    """
    model = read_float_model(folder.expanduser().absolute())
    digits, path = model.fingerprint[:FOLDER_DIGITS], str(model.folder)
    if _read_table().get(digits) != path:
        with home.home_locked():
            home.write_table(_TABLE, _read_table() | {digits: path})
    return model


def folder_of(fingerprint8: bytes) -> Path | None:
    """Return the folder where the model with these first 8 bytes of its hash was seen last."""
    path = _read_table().get(fingerprint8.hex())
    return None if path is None else Path(path)


def resolve(
    predictor: PredictorSection, machine: MachineSection, threads: int | None
) -> FloatModel:
    """Return the model of an archive that the float engine made, on the machine that it needs.

    Args:
        predictor, machine: of the archive's header.
        threads: how many are asked for; None for as many as the archive had.

    Raises:
        UnsupportedVersionError: another version of the float engine made it.
        MachineMismatchError: this is another machine, or versions differ; what does is named.
        ModelMissingError: the model's folder is not known. ModelMismatchError: its files changed.
        InvalidModelError: it cannot be read.
    """
    if predictor.engine_version != FLOAT_ENGINE_VERSION:
        raise UnsupportedVersionError(
            f"the archive needs engine version {predictor.engine_version}; the float engine of this"
            f" llmzip has {FLOAT_ENGINE_VERSION}"
        )
    found = differences(machine, threads)
    try:
        model = _model_of(predictor.package_fingerprint)
    except ModelError as error:
        if not found:
            raise
        raise mismatch([*found, str(error)]) from error
    if found:
        raise mismatch(found)
    return model


def _model_of(fingerprint8: bytes) -> FloatModel:
    folder = folder_of(fingerprint8)
    if folder is None:
        raise ModelMissingError(
            f"the model whose files have the hash {fingerprint8.hex()} is not known here; say where"
            " it is with `llmzip model add FOLDER --engine float`"
        )
    model = read_float_model(folder)
    if model.fingerprint_bytes != fingerprint8:
        raise ModelMismatchError(
            f"{folder}: the model's files have changed: their hash was {fingerprint8.hex()}, now it"
            f" is {model.fingerprint_bytes.hex()}"
        )
    return model


def _read_table() -> dict[str, str]:
    """Return the folder of each hash.

    Raises:
        InvalidModelError: the table is damaged.
    """
    return home.read_table(_TABLE, "folders", _ANY_TEXT)


def _hash_of(folder: Path, names: list[str]) -> str:
    """Return the SHA-256 of files, read again only where one has changed."""
    states = []
    for name in names:
        status = (folder / name).stat()
        states.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
    return _hash_of_states(folder, tuple(states))


@functools.lru_cache(maxsize=4)
def _hash_of_states(folder: Path, states: tuple[tuple[str, int, int, int], ...]) -> str:
    digest = hashlib.sha256()

    def begin(length_bytes: int) -> None:
        digest.update(length_bytes.to_bytes(8, "little"))

    begin(len(_DOMAIN))
    digest.update(_DOMAIN)
    for name, size, _, _ in states:
        begin(len(name.encode()))
        digest.update(name.encode())
        begin(size)
        with (folder / name).open("rb") as stream:
            while part := stream.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()
