"""Llama-family models in Hugging Face folders: config.json, *.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError
from archiver.predict.sources import (
    LazyTensors,
    SourceConfig,
    SourceModel,
    check_shapes,
    start_token_of,
)
from archiver.predict.tensor_file import open_tensor_file
from archiver.text.byte_level import plain_tokenizer_json, special_ids_of, token_bytes_of

MAX_JSON_BYTES = 64 << 20
_INDEX = "model.safetensors.index.json"

_TOP_NAMES = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}
_LAYER_NAMES = {
    "input_layernorm.weight": "norm1",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "post_attention_layernorm.weight": "norm2",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
}
# Frequencies of the rotation that old versions saved; they follow from rope_theta.
_DERIVED = "self_attn.rotary_emb.inv_freq"


def read_hf_folder(folder: Path) -> SourceModel:
    """Return the model in a Hugging Face folder.

    Raises:
        InvalidModelError: a file is missing or malformed, the weights exist only as pickles, or
            it is something other than a plain Llama with a byte-level BPE tokenizer.
    """
    settings = _read_json(folder / "config.json")
    config = _read_config(settings)
    files = [open_tensor_file(path) for path in _weight_files(folder)]
    views: dict[str, tuple[str, NDArray[np.generic]]] = {}
    for file in files:
        for source, view in file.map().items():
            name = _canonical_name(source)
            if name in views:
                raise InvalidModelError(f"tensor {source} occurs in two files")
            views[name] = (file.entries[source].dtype, view)
    ignored = {name for name in views if name.endswith(_DERIVED)}
    if config.tied:
        ignored.add("head")
    shapes = check_shapes(
        config, {name: view.shape for name, (_, view) in views.items()}, frozenset(ignored)
    )

    def read(name: str) -> NDArray[np.float32]:
        dtype, view = views[name]
        return _as_float32(name, dtype, view)

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


def _canonical_name(name: str) -> str:
    """Return the canonical name of a tensor, or the name as it is where there is none."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    plain = layer.isascii() and layer.isdigit() and str(int(layer[:9])) == layer
    if name.startswith("model.layers.") and plain and kind in _LAYER_NAMES:
        return f"layers.{layer}.{_LAYER_NAMES[kind]}"
    return name


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


def _read_config(settings: Mapping[str, object]) -> SourceConfig:
    """Return the shape that config.json states.

    Raises:
        InvalidModelError: it is another architecture, or one of its variants that the engine
            does not compute.
    """
    architecture = settings.get("model_type")
    if architecture != "llama":
        raise InvalidModelError(f"architecture {architecture!r} is not supported (llama is)")
    for switch in ("attention_bias", "mlp_bias"):
        if settings.get(switch):
            raise InvalidModelError(f"{switch} is not supported")
    activation = settings.get("hidden_act", "silu")
    if activation != "silu":
        raise InvalidModelError(f"the activation {activation!r} is not supported (silu is)")
    if settings.get("quantization_config"):
        raise InvalidModelError("the weights are quantized in a way of their own")
    hidden, heads = _integer(settings, "hidden_size"), _integer(settings, "num_attention_heads")
    if heads < 1:
        raise InvalidModelError("the model has no attention heads")
    return SourceConfig(
        architecture="llama",
        hidden=hidden,
        layers=_integer(settings, "num_hidden_layers"),
        heads=heads,
        kv_heads=_integer(settings, "num_key_value_heads", heads),
        head_dim=_integer(settings, "head_dim", hidden // heads),
        ffn=_integer(settings, "intermediate_size"),
        vocab=_integer(settings, "vocab_size"),
        rope_theta=_rope_theta(settings),
        norm_eps=_number(settings, "rms_norm_eps", 1e-6),
        context_length=_integer(settings, "max_position_embeddings", 2048),
        tied=bool(settings.get("tie_word_embeddings", False)),
    )


def _rope_theta(settings: Mapping[str, object]) -> float:
    """Return the base of the rotation, which stands at either of two places."""
    # rope_parameters since transformers 5, rope_scaling (and rope_theta beside it) before.
    nested = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(nested, dict):
        raise InvalidModelError("the rotary parameters are malformed")
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind != "default":
        raise InvalidModelError(f"scaled rotary positions ({kind}) are not supported")
    if nested.get("rope_theta") is not None:
        return _number(nested, "rope_theta", 10000.0)
    return _number(settings, "rope_theta", 10000.0)


def _integer(settings: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = settings.get(key)
    if value is None:
        value = default
    if type(value) is not int:
        raise InvalidModelError(f"config.json: {key} is {value!r}, not an integer")
    return value


def _number(settings: Mapping[str, object], key: str, default: float) -> float:
    value = settings.get(key)
    if value is None:
        value = default
    if type(value) not in (int, float) or not isinstance(value, (int, float)):
        raise InvalidModelError(f"config.json: {key} is {value!r}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidModelError(f"config.json: {key} is out of range") from error


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
