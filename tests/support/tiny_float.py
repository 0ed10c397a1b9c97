"""Tiny random models of architectures that only the float engine has, as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.tiny_models import tiny_tokenizer

VOCAB = 400
PLACES = 40  # of the learned positions
SLIDING_TOKENS = 12

_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def make_float_folder(path: Path, kind: str, seed: int = 1) -> Path:
    """Make a folder of a random "opt" (learned positions), "mistral" (sliding) or "rwkv"."""
    import torch
    import transformers

    config: Any
    if kind == "opt":
        config = transformers.OPTConfig(
            **_SHAPE, ffn_dim=96, word_embed_proj_dim=48, max_position_embeddings=PLACES
        )
    elif kind == "mistral":
        config = transformers.MistralConfig(
            **_SHAPE, intermediate_size=96, num_key_value_heads=1, head_dim=16,
            sliding_window=SLIDING_TOKENS, max_position_embeddings=512,
        )  # fmt: skip
    else:
        config = transformers.RwkvConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(config)
    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(path)
    (path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(VOCAB)), encoding="utf-8")
    return path
