"""Models in Hugging Face folders: config.json, *.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
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
CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_hf_folder(folder: Path) -> SourceModel:
    """Return the model in a Hugging Face folder.

    Raises:
        InvalidModelError: a file is missing or malformed, the weights exist only as pickles, or
            it is something other than a model of a known family with a byte-level BPE tokenizer.
    """
    settings = read_json(folder / CONFIG_FILE)
    config = read_config(settings)
    names = NAMES[config.architecture]
    files = [open_tensor_file(folder / name) for name in weight_files(folder)]
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

    tokenizer_json, token_bytes, start_token_id = read_tokenizer(folder, settings, config.vocab)
    return SourceModel(
        config=config,
        tensors=LazyTensors(shapes, read),
        token_bytes=token_bytes,
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


def check_hf_settings(folder: Path) -> None:
    """Return when a folder's config.json and tokenizer.json are of a model that can be read.

    The weights need not be there yet.

    Raises:
        InvalidModelError: they are not; as `read_hf_folder` would raise.
    """
    settings = read_json(folder / CONFIG_FILE)
    read_tokenizer(folder, settings, read_config(settings).vocab)


def read_tokenizer(
    folder: Path, settings: Mapping[str, object], vocab: int
) -> tuple[str, list[bytes | None], int]:
    """Return a folder's tokenizer as JSON, the bytes of each of its ids, and the start token.

    Args:
        settings: config.json; vocab: how many ids the model has.

    Raises:
        InvalidModelError: it is missing, malformed, or not byte-level BPE.
    """
    tokenizer_json = read_plain_tokenizer(folder)
    start_token_id = start_token_of(
        special_ids_of(tokenizer_json),
        _token_id(settings.get("bos_token_id")),
        _token_id(settings.get("eos_token_id")),
    )
    return tokenizer_json, token_bytes_of(tokenizer_json, vocab), start_token_id


def read_plain_tokenizer(folder: Path) -> str:
    """Return a folder's tokenizer as JSON, reduced to what turns text into ids.

    Raises:
        InvalidModelError: it is missing, malformed, or not byte-level BPE.
    """
    return plain_tokenizer_json(_read_text(folder / TOKENIZER_FILE))


def weight_files(folder: Path) -> list[str]:
    """Return the names of a folder's safetensors files that make up the model.

    Raises:
        InvalidModelError: there are none, or they cannot be told.
    """
    present = [path.name for path in folder.iterdir() if path.is_file()]
    return choose_weights(present, lambda: read_json(folder / INDEX_FILE))


def choose_weights(
    present: Collection[str], read_index: Callable[[], Mapping[str, object]]
) -> list[str]:
    """Return which of these files make up a model: those of the index, or the only ones.

    Args:
        present: names of files, without folders.
        read_index: gives the index, if its file is among them.

    Raises:
        InvalidModelError: none do, or only pickles, or a file of the index is missing.
    """
    if INDEX_FILE in present:
        table = read_index().get("weight_map")
        if not isinstance(table, dict):
            raise InvalidModelError(f"{INDEX_FILE} has no weight_map")
        names = sorted({str(name) for name in table.values()})
        for name in names:
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise InvalidModelError(f"{INDEX_FILE} names the file {name!r}")
            if name not in present:
                raise InvalidModelError(f"{name} is missing")
        return names
    if "model.safetensors" in present:
        return ["model.safetensors"]
    found = sorted(name for name in present if name.endswith(".safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise InvalidModelError(f"several safetensors files and no {INDEX_FILE}")
    if any(name.endswith(_PICKLES) for name in present):
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


def read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file.

    Raises:
        InvalidModelError: the file is missing, too large or malformed.
    """
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path.name} is not valid JSON") from error
    if not isinstance(data, dict):
        raise InvalidModelError(f"{path.name} is not a JSON object")
    return data
