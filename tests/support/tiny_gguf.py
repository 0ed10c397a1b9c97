"""Tiny GGUF files with the weights of tiny_models, written by the gguf library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

from tests.support.tiny_models import (
    NORM_EPS,
    ROPE_THETA,
    SPECIAL_TOKENS,
    tiny_vocabulary,
    tiny_weights,
)

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def gguf_name(name: str) -> str:
    """Return GGUF's name of a tensor that Hugging Face calls ``name``."""
    if name in _NAMES:
        return _NAMES[name]
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[kind]}"


def interleave(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return query or key rows as GGUF stores them: 0, d/2, 1, d/2 + 1, ... in each head."""
    half = rows.shape[0] // heads // 2
    order = [
        head * 2 * half + place + part * half
        for head in range(heads)
        for place in range(half)
        for part in (0, 1)
    ]
    return rows[order]


def make_tiny_gguf(
    path: Path,
    *,
    seed: int,
    heads: int = 3,
    kv_heads: int = 1,
    vocab: int = 400,
    block_formats: Mapping[str, str] | None = None,
    change: Callable[[GGUFWriter], None] | None = None,
    **sizes: int,
) -> Path:
    """Write the weights of ``tiny_weights`` as GGUF.

    Args:
        block_formats: quantization by the last part of the GGUF name, "attn_q" say; float32
            otherwise.
        change: called before the tensors are added, to add fields.
    """
    weights = tiny_weights(seed=seed, heads=heads, kv_heads=kv_heads, vocab=vocab, **sizes)
    hidden = weights["model.norm.weight"].shape[0]
    head_dim = weights["model.layers.0.self_attn.q_proj.weight"].shape[0] // heads
    tokens, merges = tiny_vocabulary(vocab)
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny Test")
    writer.add_license("apache-2.0")
    writer.add_block_count(sum(name.endswith("q_proj.weight") for name in weights))
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(weights["model.layers.0.mlp.up_proj.weight"].shape[0])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if change is not None:
        change(writer)
    for name, array in weights.items():
        if name.endswith("q_proj.weight"):
            array = interleave(array, heads)
        if name.endswith("k_proj.weight"):
            array = interleave(array, kv_heads)
        stored = gguf_name(name)
        chosen = (block_formats or {}).get(stored.split(".")[-2])
        if chosen is None:
            writer.add_tensor(stored, np.ascontiguousarray(array))
        else:
            kind = GGMLQuantizationType[chosen]
            writer.add_tensor(stored, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
