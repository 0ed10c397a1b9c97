"""Tiny random models of every family that the engine computes, as Hugging Face folders.

transformers reads them too. Gains, biases and means are large, so that leaving one out would show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.support.tiny_models import make_tiny_hf_folder, tiny_tokenizer

FAMILIES = ("qwen2", "qwen3", "gpt_neox", "gpt2", "gemma3")
POSITIONS = 40  # of the tiny GPT-2
SLIDING_TOKENS = 12  # of the tiny Gemma's sliding layers

Weights = dict[str, NDArray[np.float32]]
Uniform = Callable[..., NDArray[np.float32]]


def make_family_folder(path: Path, family: str, *, seed: int, **sizes: Any) -> Path:
    """Make a folder of a random model; sizes as for `make_tiny_hf_folder`; return it."""
    if family == "llama":
        return make_tiny_hf_folder(path, seed=seed, **sizes)
    shape = {
        "hidden": 48, "layers": 2, "heads": 3, "kv_heads": 1, "head_dim": 16, "ffn": 96,
        "vocab": 400, "tied": family in ("gpt2", "gemma3"), **sizes,
    }  # fmt: skip
    if family in ("gpt_neox", "gpt2"):
        shape["kv_heads"], shape["hidden"] = shape["heads"], shape["heads"] * shape["head_dim"]
    generator = np.random.PCG64(seed)

    def uniform(*dims: int, mean: float = 0.0, spread: float = 1.0) -> NDArray[np.float32]:
        bits = np.asarray(generator.random_raw(int(np.prod(dims)))) >> np.uint64(40)
        unit = bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
        return (unit * np.float32(spread) + np.float32(mean)).reshape(dims)

    weights, config = _MAKERS[family](shape, uniform)
    path.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in weights.items()},
        path / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    special = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": shape["tied"]}
    (path / "config.json").write_text(json.dumps({**special, **config}))
    tokenizer = json.dumps(tiny_tokenizer(shape["vocab"]))
    (path / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return path


def _matrix(uniform: Uniform, outputs: int, inputs: int) -> NDArray[np.float32]:
    return uniform(outputs, inputs, spread=float(np.sqrt(3 / inputs)))


def _rms_family(shape: dict[str, Any], uniform: Uniform, gain: float) -> Weights:
    """The tensors that Llama, Qwen and Gemma have in common; gains lie around `gain`."""
    hidden, ffn = shape["hidden"], shape["ffn"]
    width, key = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    weights = {
        "model.embed_tokens.weight": _matrix(uniform, shape["vocab"], hidden),
        "model.norm.weight": uniform(hidden, mean=gain, spread=0.5),
    }
    if not shape["tied"]:
        weights["lm_head.weight"] = _matrix(uniform, shape["vocab"], hidden)
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": _matrix(uniform, width, hidden),
            f"{prefix}.self_attn.k_proj.weight": _matrix(uniform, key, hidden),
            f"{prefix}.self_attn.v_proj.weight": _matrix(uniform, key, hidden),
            f"{prefix}.self_attn.o_proj.weight": _matrix(uniform, hidden, width),
            f"{prefix}.mlp.gate_proj.weight": _matrix(uniform, ffn, hidden),
            f"{prefix}.mlp.up_proj.weight": _matrix(uniform, ffn, hidden),
            f"{prefix}.mlp.down_proj.weight": _matrix(uniform, hidden, ffn),
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = uniform(hidden, mean=gain, spread=0.5)
    return weights


def _rms_config(shape: dict[str, Any]) -> dict[str, object]:
    return {
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "intermediate_size": shape["ffn"],
        "vocab_size": shape["vocab"],
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }


def _qwen2(shape: dict[str, Any], uniform: Uniform) -> tuple[Weights, dict[str, object]]:
    assert shape["hidden"] == shape["heads"] * shape["head_dim"]
    weights = _rms_family(shape, uniform, 1.0)
    for layer in range(shape["layers"]):
        for part, heads in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads")):
            name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
            weights[name] = uniform(shape[heads] * shape["head_dim"])
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "rope_theta": 10000.0, "use_sliding_window": False,
    }  # fmt: skip
    return weights, {**_rms_config(shape), **config}


def _head_norms(shape: dict[str, Any], uniform: Uniform, gain: float) -> Weights:
    return {
        f"model.layers.{layer}.self_attn.{part}_norm.weight": uniform(
            shape["head_dim"], mean=gain, spread=0.5
        )
        for layer in range(shape["layers"])
        for part in "qk"
    }


def _qwen3(shape: dict[str, Any], uniform: Uniform) -> tuple[Weights, dict[str, object]]:
    weights = _rms_family(shape, uniform, 1.0) | _head_norms(shape, uniform, 1.0)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "rope_theta": 10000.0, "attention_bias": False, "use_sliding_window": False,
    }  # fmt: skip
    return weights, {**_rms_config(shape), **config}


def _gemma3(shape: dict[str, Any], uniform: Uniform) -> tuple[Weights, dict[str, object]]:
    weights = _rms_family(shape, uniform, 0.0) | _head_norms(shape, uniform, 0.0)
    for layer in range(shape["layers"]):
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            name = f"model.layers.{layer}.{norm}.weight"
            weights[name] = uniform(shape["hidden"], spread=0.5)
    kinds = ["sliding_attention", "full_attention"] * shape["layers"]
    config = {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": SLIDING_TOKENS,
        "query_pre_attn_scalar": shape["head_dim"], "layer_types": kinds[: shape["layers"]],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }  # fmt: skip
    return weights, {**_rms_config(shape), **config}


def _norm(uniform: Uniform, name: str, hidden: int) -> Weights:
    return {
        f"{name}.weight": uniform(hidden, mean=1.0, spread=0.5),
        f"{name}.bias": uniform(hidden, spread=0.5),
    }


def _gpt_neox(shape: dict[str, Any], uniform: Uniform) -> tuple[Weights, dict[str, object]]:
    hidden, ffn = shape["hidden"], shape["ffn"]
    embed = _matrix(uniform, shape["vocab"], hidden) + np.float32(0.5)
    weights = {
        "gpt_neox.embed_in.weight": embed,
        **_norm(uniform, "gpt_neox.final_layer_norm", hidden),
    }
    if not shape["tied"]:
        weights["embed_out.weight"] = _matrix(uniform, shape["vocab"], hidden)
    for layer in range(shape["layers"]):
        prefix = f"gpt_neox.layers.{layer}"
        matrices = {
            "attention.query_key_value": (3 * hidden, hidden), "attention.dense": (hidden, hidden),
            "mlp.dense_h_to_4h": (ffn, hidden), "mlp.dense_4h_to_h": (hidden, ffn),
        }  # fmt: skip
        for name, (outputs, inputs) in matrices.items():
            weights[f"{prefix}.{name}.weight"] = _matrix(uniform, outputs, inputs) + np.float32(0.1)
            weights[f"{prefix}.{name}.bias"] = uniform(outputs, mean=0.3, spread=0.5)
        weights |= _norm(uniform, f"{prefix}.input_layernorm", hidden)
        weights |= _norm(uniform, f"{prefix}.post_attention_layernorm", hidden)
    config = {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True,
        "layer_norm_eps": 1e-5, "hidden_size": hidden, "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "intermediate_size": ffn,
        "vocab_size": shape["vocab"], "max_position_embeddings": 512,
    }  # fmt: skip
    return weights, config


def _gpt2(shape: dict[str, Any], uniform: Uniform) -> tuple[Weights, dict[str, object]]:
    hidden, ffn = shape["hidden"], shape["ffn"]
    weights = {
        "wte.weight": _matrix(uniform, shape["vocab"], hidden) + np.float32(0.5),
        "wpe.weight": _matrix(uniform, POSITIONS, hidden),
        **_norm(uniform, "ln_f", hidden),
    }
    for layer in range(shape["layers"]):
        matrices = {
            "attn.c_attn": (3 * hidden, hidden), "attn.c_proj": (hidden, hidden),
            "mlp.c_fc": (ffn, hidden), "mlp.c_proj": (hidden, ffn),
        }  # fmt: skip
        for name, (outputs, inputs) in matrices.items():
            matrix = _matrix(uniform, outputs, inputs) + np.float32(0.1)
            weights[f"h.{layer}.{name}.weight"] = matrix.T
            weights[f"h.{layer}.{name}.bias"] = uniform(outputs, mean=0.3, spread=0.5)
        weights |= _norm(uniform, f"h.{layer}.ln_1", hidden)
        weights |= _norm(uniform, f"h.{layer}.ln_2", hidden)
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": "gelu_new", "n_embd": hidden, "n_layer": shape["layers"],
        "n_head": shape["heads"], "n_inner": ffn, "n_positions": POSITIONS,
        "vocab_size": shape["vocab"], "layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    return weights, config


_MAKERS: dict[str, Callable[[dict[str, Any], Uniform], tuple[Weights, dict[str, object]]]] = {
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "gemma3": _gemma3,
}
