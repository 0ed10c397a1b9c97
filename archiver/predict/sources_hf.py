"""Models in Hugging Face folders: config.json, *.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError
from archiver.predict.config_hf import read_config
from archiver.predict.names_hf import NAMES
from archiver.predict.sources import (
    LazyTensors,
    SourceModel,
    check_shapes,
    start_token_of,
)
from archiver.predict.tensor_file import open_tensor_file
from archiver.text.byte_level import plain_tokenizer_json, special_ids_of, token_bytes_of

MAX_JSON_BYTES = 64 << 20
_INDEX = "model.safetensors.index.json"


def read_hf_folder(folder: Path) -> SourceModel:
    """Return the model in a Hugging Face folder.

    Raises:
        InvalidModelError: a file is missing or malformed, the weights exist only as pickles, or
            it is something other than a model of a known family with a byte-level BPE tokenizer.
    """
    settings = _read_json(folder / "config.json")
    config = read_config(settings)
    names = NAMES[config.architecture]
    files = [open_tensor_file(path) for path in _weight_files(folder)]
    views: dict[str, tuple[str, NDArray[np.generic], tuple[int, ...]]] = {}
    for file in files:
        for source, whole in file.map().items():
            for name, view, shape in names.views(config, source, whole):
                if name in views:
                    raise InvalidModelError(f"tensor {source} occurs twice")
                views[name] = (file.entries[source].dtype, view, shape)
    ignored = {name for name in views if name.endswith(names.ignored)}
    if config.tied:
        ignored.add("head")
    shapes = check_shapes(
        config, {name: shape for name, (_, _, shape) in views.items()}, frozenset(ignored)
    )

    def read(name: str) -> NDArray[np.float32]:
        dtype, view, shape = views[name]
        weights = _as_float32(name, dtype, view).reshape(shape)
        if names.gain_less_one and len(shape) == 1:
            return np.float32(1) + weights
        return weights

    tokenizer_json = plain_tokenizer_json(_read_text(folder / "tokenizer.json"))
    start_token_id = start_token_of(
        special_ids_of(tokenizer_json),
        _token_id(settings.get("bos_token_id")),
        _token_id(settings.get("eos_token_id")),
    )
    return SourceModel(
        config=config,
        tensors=LazyTensors(shapes, read),
        token_bytes=token_bytes_of(tokenizer_json, config.vocab),
        tokenizer_json=tokenizer_json,
        name=folder.resolve().name,
        licence=_licence_of(folder),
        start_token_id=start_token_id,
    )


def _as_float32(name: str, dtype: str, view: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the weights as float32: widened exactly, or float64 rounded once."""
    if dtype == "BF16":
        return (view.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("F32", "F16", "F64"):
        # A float64 beyond binary32 becomes infinity, which is refused where tensors are checked.
        with np.errstate(over="ignore", invalid="ignore"):
            return view.astype(np.float32)
    raise InvalidModelError(f"tensor {name} is of type {dtype}, not of floating-point numbers")


def _weight_files(folder: Path) -> list[Path]:
    """Return the folder's safetensors files that make up the model."""
    if (folder / _INDEX).is_file():
        table = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(table, dict):
            raise InvalidModelError(f"{_INDEX} has no weight_map")
        names = sorted({str(name) for name in table.values()})
        for name in names:
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise InvalidModelError(f"{_INDEX} names the file {name!r}")
            if not (folder / name).is_file():
                raise InvalidModelError(f"{name} is missing")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise InvalidModelError(f"several safetensors files and no {_INDEX}")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise InvalidModelError(
            "the weights are pickles, which can run code when they are read; "
            "save them as safetensors"
        )
    raise InvalidModelError("no safetensors file")


def _token_id(value: object) -> int | None:
    """Return an id as config.json gives it: a number, the first of a list, or none."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int else None


def _licence_of(folder: Path) -> str:
    """Return the licence that the model card's front matter states, or an empty string."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as lines:
        if lines.readline(256).strip() != "---":
            return ""
        for _ in range(200):
            line = lines.readline(4096)
            if not line or line.strip() == "---":
                break
            key, _, value = line.partition(":")
            if key.strip() in ("license", "licence"):
                return value.strip().strip("\"'")
    return ""


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InvalidModelError(f"{path.name} is missing")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidModelError(f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidModelError(f"{path.name} is not UTF-8") from error


def _read_json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path.name} is not valid JSON") from error
    if not isinstance(data, dict):
        raise InvalidModelError(f"{path.name} is not a JSON object")
    return data
