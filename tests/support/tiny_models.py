"""Tiny random Llama models, the same on every machine and with every library version.

Weights come from the raw output of a bit generator, the tokenizer from the few lines of BPE
training below, so archives made with these models may be kept as golden files.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from archiver.text.byte_level import CHARACTER_OF_BYTE

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Like SmolLM2's, the tokenizer has no token for these bytes.
MISSING_BYTES = bytes(
    [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 256)]
)
ROPE_THETA = 10000.0
NORM_EPS = 1e-5

_SENTENCES = """\
The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times.
All happy families are alike; every unhappy family is unhappy in its own way.
In the beginning the weather was fine, and the traveller said: "I shall not return before 1905."
def add(first, second):
    return first + second

A program that compresses text predicts the next word, then the next letter, then the next bit.
Der Wind weht über das Land. Les élèves étaient là. Мы были там вчера.
"""


def tiny_vocabulary(vocab: int) -> tuple[list[str], list[str]]:
    """Return the tokens by id and the merges of a byte-level BPE tokenizer."""
    tokens = list(SPECIAL_TOKENS)
    tokens += [CHARACTER_OF_BYTE[byte] for byte in range(256) if byte not in MISSING_BYTES]
    pieces = Counter(re.findall(r" ?[^\W\d_]+|\d| ?[^\s\w]+|\s+", _SENTENCES))
    words = {
        tuple(CHARACTER_OF_BYTE[byte] for byte in piece.encode()): count
        for piece, count in pieces.items()
    }
    merges: list[str] = []
    while len(tokens) < vocab:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(" ".join(best))
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        words = {_merged(word, best): count for word, count in words.items()}
    return tokens, merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def tiny_tokenizer(vocab: int) -> dict[str, object]:
    """Return a tokenizer.json that isolates digits first, as SmolLM2's does."""
    tokens, merges = tiny_vocabulary(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, "special": True, **flags}
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def tiny_weights(
    *,
    seed: int,
    hidden: int = 48,
    layers: int = 2,
    heads: int = 3,
    kv_heads: int = 1,
    head_dim: int = 16,
    ffn: int = 96,
    vocab: int = 400,
    tied: bool = True,
) -> dict[str, NDArray[np.float32]]:
    """Return random weights by Hugging Face's names."""
    generator = np.random.PCG64(seed)

    def uniform(*shape: int) -> NDArray[np.float32]:
        bits = np.asarray(generator.random_raw(int(np.prod(shape)))) >> np.uint64(40)
        unit = bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
        spread = np.sqrt(np.float32(3.0) / np.float32(shape[-1]))
        return (unit * spread).reshape(shape)

    def gain() -> NDArray[np.float32]:
        return np.float32(1.0) + uniform(hidden)

    weights = {"model.embed_tokens.weight": uniform(vocab, hidden), "model.norm.weight": gain()}
    if not tied:
        weights["lm_head.weight"] = uniform(vocab, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": gain(),
            f"{prefix}.self_attn.q_proj.weight": uniform(heads * head_dim, hidden),
            f"{prefix}.self_attn.k_proj.weight": uniform(kv_heads * head_dim, hidden),
            f"{prefix}.self_attn.v_proj.weight": uniform(kv_heads * head_dim, hidden),
            f"{prefix}.self_attn.o_proj.weight": uniform(hidden, heads * head_dim),
            f"{prefix}.post_attention_layernorm.weight": gain(),
            f"{prefix}.mlp.gate_proj.weight": uniform(ffn, hidden),
            f"{prefix}.mlp.up_proj.weight": uniform(ffn, hidden),
            f"{prefix}.mlp.down_proj.weight": uniform(hidden, ffn),
        }
    return weights


LOCAL_HEADS = ((1,), (0,))
"""One of a tiny model's heads is local, unless a test asks for other sizes."""


def make_tiny_hf_folder(
    path: Path,
    *,
    seed: int,
    hidden: int = 48,
    layers: int = 2,
    heads: int = 3,
    kv_heads: int = 1,
    head_dim: int = 16,
    ffn: int = 96,
    vocab: int = 400,
    tied: bool = True,
) -> Path:
    """Make a Hugging Face folder of a random model, which transformers reads too; return it."""
    path.mkdir(parents=True, exist_ok=True)
    weights = tiny_weights(
        seed=seed, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, ffn=ffn, vocab=vocab, tied=tied,
    )  # fmt: skip
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": NORM_EPS,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(vocab)), encoding="utf-8")
    return path
