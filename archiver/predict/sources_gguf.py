"""Llama and Gemma 3 models in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError
from archiver.predict.gguf_file import open_gguf
from archiver.predict.sources import (
    MAX_LAYERS,
    LazyTensors,
    Sliding,
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
from archiver.text.pieces import token_bytes_of_pieces, tokenizer_json_from_pieces

_T = TypeVar("_T")

_TOP_NAMES = {"token_embd.weight": "embed", "output_norm.weight": "norm", "output.weight": "head"}
_LLAMA_NAMES = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How GGUF files of an architecture lay out their tensors.

    Norms hold their gain, also where a Hugging Face folder holds it less 1.

    Attributes:
        layer: canonical names of the tensors of a layer.
        interleaved: rows of queries and keys that rotate together are neighbours.
    """

    layer: Mapping[str, str]
    interleaved: bool = False


_FAMILIES = {
    "llama": _Family(layer=_LLAMA_NAMES, interleaved=True),
    "gemma3": _Family(
        layer={
            **_LLAMA_NAMES,
            "attn_q_norm.weight": "q_norm",
            "attn_k_norm.weight": "k_norm",
            "post_attention_norm.weight": "o_norm",
            "post_ffw_norm.weight": "down_norm",
        }
    ),
}
# What llama.cpp assumes of Gemma 3 where a file does not say it: every sixth layer sees
# everything, and the others turn queries and keys by this base.
_GEMMA_PERIOD = 6
_GEMMA_LOCAL_BASE = 10000.0
_GEMMA_27B_LAYERS = 62


def read_gguf(path: Path) -> SourceModel:
    """Return the model in a GGUF file, its query and key rows in Hugging Face's order.

    Raises:
        InvalidModelError: the file is malformed, or holds something other than a plain model of
            a known family with a tokenizer that loses nothing.
    """
    file = open_gguf(path)
    fields = file.fields
    family = _family_of(fields)
    source_names = {_canonical_name(name, family): name for name in file.tensors}
    config = _read_config(fields, tied="head" not in source_names)
    shapes = check_shapes(
        config,
        {name: file.tensors[source].shape for name, source in source_names.items()},
        ignored=frozenset(),
    )

    def read(name: str) -> NDArray[np.float32]:
        weights = file.weights(source_names[name])
        kind = name.rpartition(".")[2]
        if family.interleaved and kind == "q":
            return _halves_together(weights, config.heads)
        if family.interleaved and kind == "k":
            return _halves_together(weights, config.kv_heads)
        return weights

    tokenizer_json, token_bytes = _read_tokenizer(fields, config.vocab)
    start_token_id = start_token_of(
        special_ids_of(tokenizer_json),
        _optional(fields, "tokenizer.ggml.bos_token_id", int),
        _optional(fields, "tokenizer.ggml.eos_token_id", int),
    )
    return SourceModel(
        config=config,
        tensors=LazyTensors(shapes, read),
        token_bytes=token_bytes,
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


def _family_of(fields: Mapping[str, object]) -> _Family:
    """Return how the architecture that the metadata names lays out its tensors."""
    architecture = _required(fields, "general.architecture", str)
    if architecture not in _FAMILIES:
        raise InvalidModelError(
            f"architecture {architecture!r} is not supported in GGUF ({', '.join(_FAMILIES)} are)"
        )
    return _FAMILIES[architecture]


def _canonical_name(name: str, family: _Family) -> str:
    """Return the canonical name of a tensor, or the name as it is where there is none."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    # Only the plain spelling: "blk.01.attn_q.weight" must not become a second layer 1.
    plain = layer.isascii() and layer.isdigit() and str(int(layer[:9])) == layer
    if prefix == "blk" and plain and kind in family.layer:
        return f"layers.{layer}.{family.layer[kind]}"
    return name


def _read_config(fields: Mapping[str, object], *, tied: bool) -> SourceConfig:
    """Return the shape that the metadata states.

    Raises:
        InvalidModelError: it is a variant of the architecture that the engine does not compute.
    """
    architecture = _required(fields, "general.architecture", str)
    if (_optional(fields, "split.count", int) or 1) != 1:
        raise InvalidModelError("the model is split over several GGUF files; join them first")
    if _optional(fields, f"{architecture}.expert_count", int):
        raise InvalidModelError("mixtures of experts are not supported")
    scaling = _optional(fields, f"{architecture}.rope.scaling.type", str)
    if scaling not in (None, "none"):
        raise InvalidModelError(f"scaled rotary positions ({scaling}) are not supported")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if _optional(fields, f"{architecture}.{key}", float):
            raise InvalidModelError(f"{key} is not supported")
    hidden = _required(fields, f"{architecture}.embedding_length", int)
    heads = _required(fields, f"{architecture}.attention.head_count", int)
    if heads < 1:
        raise InvalidModelError("the model has no attention heads")
    head_dim = _optional(fields, f"{architecture}.attention.key_length", int) or hidden // heads
    rotated = _optional(fields, f"{architecture}.rope.dimension_count", int)
    value_length = _optional(fields, f"{architecture}.attention.value_length", int)
    if rotated not in (None, head_dim) or value_length not in (None, head_dim):
        raise InvalidModelError("heads that are rotated in part, or of two widths: not supported")
    kv_heads = _optional(fields, f"{architecture}.attention.head_count_kv", int)
    layers = _required(fields, f"{architecture}.block_count", int)
    return SourceConfig(
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        ffn=_required(fields, f"{architecture}.feed_forward_length", int),
        vocab=len(_list_of(fields, "tokenizer.ggml.tokens", str)),
        rope_theta=_optional(fields, f"{architecture}.rope.freq_base", float) or 10000.0,
        norm_eps=_required(fields, f"{architecture}.attention.layer_norm_rms_epsilon", float),
        context_length=_required(fields, f"{architecture}.context_length", int),
        tied=tied,
        sliding=_read_sliding(fields, layers) if architecture == "gemma3" else None,
    )


def _read_sliding(fields: Mapping[str, object], layers: int) -> Sliding:
    """Return which of a Gemma 3's layers slide, and how.

    Raises:
        InvalidModelError: they cannot be told, or the model divides scores by something other
            than the root of the width of its heads.
    """
    if layers == _GEMMA_27B_LAYERS:
        # llama.cpp knows it by this number; nothing else in the file tells of the scores.
        raise InvalidModelError("Gemma 3 27B scales attention scores its own way: not supported")
    if not 1 <= layers <= MAX_LAYERS:
        raise InvalidModelError(f"layers is {layers}, not a number from 1 to {MAX_LAYERS}")
    period = _optional(fields, "gemma3.attention.sliding_window_pattern", int)
    if period is None:
        period = _GEMMA_PERIOD
    if period < 1:
        raise InvalidModelError(f"a pattern of {period} sliding layers")
    base = _optional(fields, "gemma3.rope.freq_base_swa", float)
    return Sliding(
        tokens=_required(fields, "gemma3.attention.sliding_window", int),
        layers=tuple(int((number + 1) % period != 0) for number in range(layers)),
        rope_theta=_GEMMA_LOCAL_BASE if base is None else base,
    )


def _read_tokenizer(fields: Mapping[str, object], vocab: int) -> tuple[str, list[bytes | None]]:
    """Return the tokenizer that the metadata describes, as JSON, and the bytes of each of its ids.

    Args:
        vocab: how many ids the model has.
    """
    model = _required(fields, "tokenizer.ggml.model", str)
    rule = _optional(fields, "tokenizer.ggml.pre", str)
    tokens = _list_of(fields, "tokenizer.ggml.tokens", str)
    types = _list_of(fields, "tokenizer.ggml.token_type", int)
    if model == "gpt2":
        merges = _list_of(fields, "tokenizer.ggml.merges", str)
        tokenizer_json = tokenizer_json_from_gguf(tokens, types, merges, rule or "gpt-2")
        return tokenizer_json, token_bytes_of(tokenizer_json, vocab)
    if model == "llama":
        if rule not in (None, "default"):
            raise InvalidModelError(f"the pre-tokenizer {rule!r} is not supported")
        scores = _list_of(fields, "tokenizer.ggml.scores", float)
        return (
            tokenizer_json_from_pieces(tokens, types, scores),
            token_bytes_of_pieces(tokens, types),
        )
    raise InvalidModelError(
        f"the tokenizer is not byte-level BPE, nor SentencePiece BPE (it is {model!r})"
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
