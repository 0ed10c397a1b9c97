"""GGUF files with the weights of the tiny Gemma 3 folder, written by the gguf library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file

from tests.support.tiny_families import make_family_folder
from tests.support.tiny_pieces import tiny_pieces

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
VOCAB = 440


def make_gemma_folder(path: Path, *, seed: int, **sizes: int) -> Path:
    """Make the Hugging Face folder whose weights the GGUF of the same seed has; return it.

    Its tokenizer is not the GGUF's.
    """
    return make_family_folder(path, "gemma3", seed=seed, vocab=VOCAB, **sizes)


def make_gemma_gguf(
    path: Path,
    folder: Path,
    *,
    block_formats: Mapping[str, str] | None = None,
    change: Callable[[dict[str, object]], None] | None = None,
) -> Path:
    """Write the weights of a tiny Gemma 3's folder as GGUF, with a SentencePiece tokenizer.

    Args:
        block_formats: quantization by the last part of the GGUF name, "attn_q" say; float32
            otherwise.
        change: called with the metadata, to change it.
    """
    settings = json.loads((folder / "config.json").read_text())
    tokens, types, scores = tiny_pieces(VOCAB)
    fields: dict[str, object] = {
        "general.architecture": "gemma3",
        "general.name": "Tiny Gemma",
        "general.license": "gemma",
        "gemma3.block_count": settings["num_hidden_layers"],
        "gemma3.context_length": settings["max_position_embeddings"],
        "gemma3.embedding_length": settings["hidden_size"],
        "gemma3.feed_forward_length": settings["intermediate_size"],
        "gemma3.attention.head_count": settings["num_attention_heads"],
        "gemma3.attention.head_count_kv": settings["num_key_value_heads"],
        "gemma3.attention.key_length": settings["head_dim"],
        "gemma3.attention.value_length": settings["head_dim"],
        "gemma3.attention.layer_norm_rms_epsilon": settings["rms_norm_eps"],
        "gemma3.attention.sliding_window": settings["sliding_window"],
        "gemma3.attention.sliding_window_pattern": 2,
        "gemma3.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if change is not None:
        change(fields)
    writer = GGUFWriter(path, str(fields.pop("general.architecture")))
    for key, value in fields.items():
        _add_field(writer, key, value)
    for name, weights in load_file(folder / "model.safetensors").items():
        stored = _gguf_name(name)
        kind = (block_formats or {}).get(stored.split(".")[-2])
        if kind is None:
            gains = np.float32(1) if weights.ndim == 1 else np.float32(0)
            writer.add_tensor(stored, weights + gains)
        else:
            block_format = GGMLQuantizationType[kind]
            writer.add_tensor(stored, quantize(weights, block_format), raw_dtype=block_format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_field(writer: GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        assert isinstance(value, list)
        writer.add_array(key, value)


def _gguf_name(name: str) -> str:
    """Return GGUF's name of a tensor that Hugging Face calls ``name``."""
    stem = name.removesuffix(".weight")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.weight"
    layer, _, kind = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[kind]}.weight"
