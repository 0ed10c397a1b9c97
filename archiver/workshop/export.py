"""Models as other programs read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import InvalidModelError, OutputError
from archiver.predict.tensor_file import write_tensor_file

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel

_TOP = {
    "embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight",
}  # fmt: skip
_LAYER = {
    "norm1": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "norm2": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


def write_hf_folder(folder: Path, source: SourceModel) -> None:
    """Write a model as transformers loads it: config.json, model.safetensors, tokenizer.json.

    Weights are float32, so that nothing is lost.

    Raises:
        InvalidModelError: the model is not of the Llama family.
        OutputError: the folder holds something already, or cannot be written.
    """
    config = source.config
    if config.architecture != "llama":
        raise InvalidModelError(f"only Llama models are exported, not {config.architecture}")
    arrays: dict[str, np.ndarray] = {}
    for name in source.tensors:
        if name in _TOP:
            arrays[_TOP[name]] = source.tensors[name]
        else:
            _, layer, kind = name.split(".")
            arrays[f"model.layers.{layer}.{_LAYER[kind]}"] = source.tensors[name]
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": source.start_token_id,
        "eos_token_id": source.start_token_id,
        "torch_dtype": "float32",
    }
    card = ["---", *([f"license: {source.licence}"] if source.licence else []), "---", ""]
    card += [f"# {source.name}", "", *(f"- {line}" for line in source.history), ""]
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: exists already")
        folder.mkdir(parents=True, exist_ok=True)
        write_tensor_file(folder / "model.safetensors", arrays, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
        (folder / "tokenizer.json").write_text(source.tokenizer_json, encoding="utf-8")
        tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length":
                     config.context_length}  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
        (folder / "README.md").write_text("\n".join(card), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
