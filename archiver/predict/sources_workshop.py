"""Folders that the workshop writes: weights packed or plain, with the history of what was done.

llmzip.json holds everything but the weights and the tokenizer; weights.safetensors the arrays of
``packed``; tokenizer.json the tokenizer, reduced as in a package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from archiver.errors import InvalidModelError
from archiver.predict.packed import Packing, expand
from archiver.predict.sources import (
    LazyTensors,
    SourceConfig,
    SourceModel,
    expected_shapes,
)
from archiver.predict.tensor_file import open_tensor_file, write_tensor_file
from archiver.text.byte_level import plain_tokenizer_json, token_bytes_of
from archiver.types import Float32Array

DESCRIPTION_FILE = "llmzip.json"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
VERSION = 1
MAX_JSON_BYTES = 64 << 20
_KEYS = {
    "version", "name", "licence", "start_token_id", "history", "config", "packings",
}  # fmt: skip


def is_workshop_folder(folder: Path) -> bool:
    """Whether the folder is one of the workshop's."""
    return (folder / DESCRIPTION_FILE).is_file()


def write_workshop_folder(
    folder: Path,
    source: SourceModel,
    packed: Mapping[str, tuple[Packing, Mapping[str, np.ndarray]]],
) -> None:
    """Write a model; its tensors are packed as given, and float32 where nothing is given.

    Args:
        packed: packing and arrays by suffix of each tensor that is not plain float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    packings: dict[str, object] = {}
    for name in expected_shapes(source.config):
        if name in packed:
            packing, parts = packed[name]
            packings[name] = asdict(packing)
            arrays |= {f"{name}{suffix}": parts[suffix] for suffix in packing.suffixes}
        else:
            arrays[name] = source.tensors[name]
    write_tensor_file(folder / WEIGHTS_FILE, arrays, {"format": "llmzip"})
    (folder / TOKENIZER_FILE).write_text(source.tokenizer_json, encoding="utf-8")
    description = {
        "version": VERSION,
        "name": source.name,
        "licence": source.licence,
        "start_token_id": source.start_token_id,
        "history": list(source.history),
        "config": asdict(source.config),
        "packings": packings,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def read_workshop_folder(folder: Path) -> SourceModel:
    """The model in a folder of the workshop's.

    Raises:
        InvalidModelError: a file is missing or malformed.
    """
    fields = _read_description(folder / DESCRIPTION_FILE)
    try:
        config = SourceConfig(**fields["config"])
        packings = {name: Packing(**entry) for name, entry in fields["packings"].items()}
    except TypeError as error:
        raise InvalidModelError(f"{DESCRIPTION_FILE} is malformed") from error
    shapes = expected_shapes(config)
    arrays = open_tensor_file(folder / WEIGHTS_FILE).map()
    wanted = {
        f"{name}{suffix}"
        for name in shapes
        for suffix in packings.get(name, Packing(method="plain")).suffixes
    }
    if set(packings) - set(shapes) or set(arrays) != wanted:
        raise InvalidModelError(f"{WEIGHTS_FILE} does not hold what {DESCRIPTION_FILE} says")

    def read(name: str) -> Float32Array:
        return expand(name, shapes[name], packings.get(name, Packing(method="plain")), arrays)

    path = folder / TOKENIZER_FILE
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidModelError(f"{TOKENIZER_FILE} is missing or too large")
    try:
        tokenizer_json = plain_tokenizer_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidModelError(f"{TOKENIZER_FILE} is not UTF-8") from error
    return SourceModel(
        config=config,
        tensors=LazyTensors(shapes, read),
        token_bytes=token_bytes_of(tokenizer_json, config.vocab),
        tokenizer_json=tokenizer_json,
        name=fields["name"],
        licence=fields["licence"],
        start_token_id=fields["start_token_id"],
        history=tuple(fields["history"]),
    )


def _read_description(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidModelError(f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path.name} is not valid JSON") from error
    if not isinstance(fields, dict) or set(fields) != _KEYS or fields["version"] != VERSION:
        raise InvalidModelError(f"{path.name} is not a description of version {VERSION}")
    if (
        not isinstance(fields["config"], dict)
        or not isinstance(fields["packings"], dict)
        or not all(isinstance(entry, dict) for entry in fields["packings"].values())
        or not isinstance(fields["history"], list)
        or not all(isinstance(line, str) for line in fields["history"])
        or not isinstance(fields["name"], str)
        or not isinstance(fields["licence"], str)
        or type(fields["start_token_id"]) is not int
    ):
        raise InvalidModelError(f"{path.name} is malformed")
    return fields
