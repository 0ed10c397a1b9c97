"""Llama-family models in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError
from archiver.predict.gguf_file import open_gguf
from archiver.predict.sources import (
    LazyTensors,
    SourceConfig,
    SourceModel,
    check_shapes,
    start_token_of,
)
from archiver.text.byte_level import (
    special_ids_of,
    token_bytes_of,
    tokenizer_json_from_gguf,
)

_T = TypeVar("_T")

_TOP_NAMES = {"token_embd.weight": "embed", "output_norm.weight": "norm", "output.weight": "head"}
_LAYER_NAMES = {
    "attn_norm.weight": "norm1",
    "attn_q.weight": "q",
    "attn_k.weight": "k",
    "attn_v.weight": "v",
    "attn_output.weight": "o",
    "ffn_norm.weight": "norm2",
    "ffn_gate.weight": "gate",
    "ffn_up.weight": "up",
    "ffn_down.weight": "down",
}


def read_gguf(path: Path) -> SourceModel:
    """Return the model in a GGUF file, its query and key rows in Hugging Face's order.

    Raises:
        InvalidModelError: the file is malformed, or holds something other than a plain Llama
            with a byte-level BPE tokenizer.
    """
    file = open_gguf(path)
    fields = file.fields
    source_names = {_canonical_name(name): name for name in file.tensors}
    config = _read_config(fields, tied="head" not in source_names)
    shapes = check_shapes(
        config,
        {name: file.tensors[source].shape for name, source in source_names.items()},
        ignored=frozenset(),
    )

    def read(name: str) -> NDArray[np.float32]:
        weights = file.weights(source_names[name])
        kind = name.rpartition(".")[2]
        if kind == "q":
            return _halves_together(weights, config.heads)
        if kind == "k":
            return _halves_together(weights, config.kv_heads)
        return weights

    tokenizer_json = _read_tokenizer(fields)
    start_token_id = start_token_of(
        special_ids_of(tokenizer_json),
        _optional(fields, "tokenizer.ggml.bos_token_id", int),
        _optional(fields, "tokenizer.ggml.eos_token_id", int),
    )
    return SourceModel(
        config=config,
        tensors=LazyTensors(shapes, read),
        token_bytes=token_bytes_of(tokenizer_json, config.vocab),
        tokenizer_json=tokenizer_json,
        name=_optional(fields, "general.name", str) or path.stem,
        licence=_optional(fields, "general.license", str) or "",
        start_token_id=start_token_id,
    )


def _halves_together(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return the rows of each head with the first of every rotated pair before the second.

    GGUF stores a head's rows as pairs (0, d/2, 1, d/2+1, ...), because its kernels rotate
    neighbours; here row i is rotated with row i + d/2.

    Args:
        rows: float32[heads x head_dim, hidden].
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _canonical_name(name: str) -> str:
    """Return the canonical name of a tensor, or the name as it is where there is none."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    # Only the plain spelling: "blk.01.attn_q.weight" must not become a second layer 1.
    plain = layer.isascii() and layer.isdigit() and str(int(layer[:9])) == layer
    if prefix == "blk" and plain and kind in _LAYER_NAMES:
        return f"layers.{layer}.{_LAYER_NAMES[kind]}"
    return name


def _read_config(fields: Mapping[str, object], *, tied: bool) -> SourceConfig:
    """Return the shape that the metadata states.

    Raises:
        InvalidModelError: it is another architecture, or one of its variants that the engine
            does not compute.
    """
    architecture = _required(fields, "general.architecture", str)
    if architecture != "llama":
        raise InvalidModelError(f"architecture {architecture!r} is not supported (llama is)")
    if (_optional(fields, "split.count", int) or 1) != 1:
        raise InvalidModelError("the model is split over several GGUF files; join them first")
    if _optional(fields, "llama.expert_count", int):
        raise InvalidModelError("mixtures of experts are not supported")
    scaling = _optional(fields, "llama.rope.scaling.type", str)
    if scaling not in (None, "none"):
        raise InvalidModelError(f"scaled rotary positions ({scaling}) are not supported")
    hidden = _required(fields, "llama.embedding_length", int)
    heads = _required(fields, "llama.attention.head_count", int)
    if heads < 1:
        raise InvalidModelError("the model has no attention heads")
    head_dim = _optional(fields, "llama.attention.key_length", int) or hidden // heads
    rotated = _optional(fields, "llama.rope.dimension_count", int)
    value_length = _optional(fields, "llama.attention.value_length", int)
    if rotated not in (None, head_dim) or value_length not in (None, head_dim):
        raise InvalidModelError("heads that are rotated in part, or of two widths: not supported")
    kv_heads = _optional(fields, "llama.attention.head_count_kv", int)
    return SourceConfig(
        architecture="llama",
        hidden=hidden,
        layers=_required(fields, "llama.block_count", int),
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        ffn=_required(fields, "llama.feed_forward_length", int),
        vocab=len(_list_of(fields, "tokenizer.ggml.tokens", str)),
        rope_theta=_optional(fields, "llama.rope.freq_base", float) or 10000.0,
        norm_eps=_required(fields, "llama.attention.layer_norm_rms_epsilon", float),
        context_length=_required(fields, "llama.context_length", int),
        tied=tied,
    )


def _read_tokenizer(fields: Mapping[str, object]) -> str:
    """Return the tokenizer that the metadata describes, as JSON."""
    model = _required(fields, "tokenizer.ggml.model", str)
    if model != "gpt2":
        raise InvalidModelError(f"the tokenizer is not byte-level BPE (it is {model!r})")
    return tokenizer_json_from_gguf(
        _list_of(fields, "tokenizer.ggml.tokens", str),
        _list_of(fields, "tokenizer.ggml.token_type", int),
        _list_of(fields, "tokenizer.ggml.merges", str),
        _optional(fields, "tokenizer.ggml.pre", str) or "gpt-2",
    )


def _optional(fields: Mapping[str, object], key: str, kind: type[_T]) -> _T | None:
    value = fields.get(key)
    if value is None:
        return None
    if type(value) is not kind:
        raise InvalidModelError(f"metadata field {key} is not of type {kind.__name__}")
    return value


def _required(fields: Mapping[str, object], key: str, kind: type[_T]) -> _T:
    value = _optional(fields, key, kind)
    if value is None:
        raise InvalidModelError(f"metadata field {key} is missing")
    return value


def _list_of(fields: Mapping[str, object], key: str, kind: type[_T]) -> list[_T]:
    items = _required(fields, key, list)
    if not all(type(item) is kind for item in items):
        raise InvalidModelError(f"metadata field {key} does not hold {kind.__name__} only")
    return items
