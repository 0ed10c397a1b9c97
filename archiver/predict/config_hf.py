"""What config.json of a Hugging Face folder says about a model's shape, by family.

A setting that changes what is computed, and that the engine does not have, is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from archiver.errors import InvalidModelError
from archiver.predict.sources import Sliding, SourceConfig

Settings = Mapping[str, object]

# Settings that change the arithmetic, with the only values that the engine computes; a missing one
# has the first of them.
_ONLY: dict[str, dict[str, tuple[object, ...]]] = {
    "llama": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen3": {
        "hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,),
    },
    "gpt_neox": {
        "hidden_act": ("gelu",), "use_parallel_residual": (True,), "attention_bias": (True,),
    },
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    },
    "gemma3_text": {
        "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,),
        "use_bidirectional_attention": (False,),
    },
}  # fmt: skip
_NEVER = ("quantization_config", "attn_logit_softcapping", "final_logit_softcapping")
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_config(settings: Settings) -> SourceConfig:
    """Return the shape that config.json states.

    Raises:
        InvalidModelError: it is another architecture, or one of its variants that the engine
            does not compute.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise InvalidModelError(
            f"architecture {kind!r} is not supported ({', '.join(_READERS)} are)"
        )
    for key, values in _ONLY[kind].items():
        _refuse_others(settings, key, values)
    for key in _NEVER:
        if settings.get(key) is not None:
            raise InvalidModelError(
                "the weights are quantized in a way of their own"
                if key == "quantization_config"
                else f"{key} is not supported"
            )
    if _integer(settings, _HIDDEN.get(kind, "hidden_size")) < 1:
        raise InvalidModelError("the model has no hidden size")
    if _integer(settings, _HEADS.get(kind, "num_attention_heads")) < 1:
        raise InvalidModelError("the model has no attention heads")
    return _READERS[kind](settings)


def _refuse_others(settings: Settings, key: str, values: tuple[object, ...]) -> None:
    value = settings.get(key)
    if value is None or value in values:
        return
    if isinstance(values[0], str):
        raise InvalidModelError(f"the activation {value!r} is not supported ({values[0]} is)")
    if values[0]:
        raise InvalidModelError(f"{key} that is not true is not supported")
    raise InvalidModelError(f"{key} is not supported")


def _llama_like(settings: Settings, architecture: str) -> SourceConfig:
    """A family with the Llama family's settings."""
    _layer_types(settings, {_FULL})
    hidden, heads = _integer(settings, "hidden_size"), _integer(settings, "num_attention_heads")
    rotation = _rotation(settings.get("rope_parameters") or settings.get("rope_scaling"))
    if _number(rotation, "partial_rotary_factor", 1.0) != 1.0:
        raise InvalidModelError("partial_rotary_factor is not supported")
    return SourceConfig(
        architecture=architecture,
        hidden=hidden,
        layers=_integer(settings, "num_hidden_layers"),
        heads=heads,
        kv_heads=_integer(settings, "num_key_value_heads", heads),
        head_dim=_integer(settings, "head_dim", hidden // heads),
        ffn=_integer(settings, "intermediate_size"),
        vocab=_integer(settings, "vocab_size"),
        rope_theta=_either(rotation, "rope_theta", settings, "rope_theta", 10000.0),
        norm_eps=_number(settings, "rms_norm_eps", 1e-6),
        context_length=_integer(settings, "max_position_embeddings", 2048),
        tied=bool(settings.get("tie_word_embeddings", False)),
    )


def _llama(settings: Settings) -> SourceConfig:
    return _llama_like(settings, "llama")


def _qwen2(settings: Settings) -> SourceConfig:
    return _llama_like(settings, "qwen2")


def _qwen3(settings: Settings) -> SourceConfig:
    return _llama_like({"head_dim": 128, **settings}, "qwen3")


def _gpt_neox(settings: Settings) -> SourceConfig:
    hidden, heads = _integer(settings, "hidden_size"), _integer(settings, "num_attention_heads")
    rotation = _rotation(settings.get("rope_parameters") or settings.get("rope_scaling"))
    share = _either(rotation, "partial_rotary_factor", settings, "rotary_pct", 0.25)
    if not 0 <= share <= 1:
        raise InvalidModelError(f"config.json: rotary_pct is {share}")
    base = _number(settings, "rotary_emb_base", 10000.0)
    return SourceConfig(
        architecture="gpt_neox",
        hidden=hidden,
        layers=_integer(settings, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=_integer(settings, "intermediate_size"),
        vocab=_integer(settings, "vocab_size"),
        rope_theta=_either(rotation, "rope_theta", settings, "rope_theta", base),
        rotary_dims=int(hidden // heads * share),
        norm_eps=_number(settings, "layer_norm_eps", 1e-5),
        context_length=_integer(settings, "max_position_embeddings", 2048),
        tied=bool(settings.get("tie_word_embeddings", False)),
    )


def _gpt2(settings: Settings) -> SourceConfig:
    hidden, heads = _integer(settings, "n_embd"), _integer(settings, "n_head")
    return SourceConfig(
        architecture="gpt2",
        hidden=hidden,
        layers=_integer(settings, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=_integer(settings, "n_inner", 4 * hidden),
        vocab=_integer(settings, "vocab_size"),
        rope_theta=10000.0,  # of no dimension at all
        rotary_dims=0,
        norm_eps=_number(settings, "layer_norm_epsilon", 1e-5),
        context_length=_integer(settings, "n_positions", 1024),
        tied=bool(settings.get("tie_word_embeddings", True)),
    )


def _gemma3(settings: Settings) -> SourceConfig:
    layers, head_dim = _integer(settings, "num_hidden_layers"), _integer(settings, "head_dim", 256)
    if _number(settings, "query_pre_attn_scalar", 256.0) != head_dim:
        raise InvalidModelError("a query_pre_attn_scalar that is not head_dim is not supported")
    nested = settings.get("rope_parameters")
    nested = nested if isinstance(nested, dict) else {}
    full = _rotation(nested.get(_FULL) or settings.get("rope_scaling"))
    local = _rotation(nested.get(_SLIDING))
    kinds = _layer_types(settings, {_FULL, _SLIDING})
    if kinds is None:
        every = _integer(settings, "sliding_window_pattern", 6)
        kinds = [_SLIDING if every < 1 or (n + 1) % every else _FULL for n in range(layers)]
    return SourceConfig(
        architecture="gemma3",
        hidden=_integer(settings, "hidden_size"),
        layers=layers,
        heads=_integer(settings, "num_attention_heads"),
        kv_heads=_integer(settings, "num_key_value_heads", 4),
        head_dim=head_dim,
        ffn=_integer(settings, "intermediate_size"),
        vocab=_integer(settings, "vocab_size"),
        rope_theta=_either(full, "rope_theta", settings, "rope_theta", 1e6),
        norm_eps=_number(settings, "rms_norm_eps", 1e-6),
        context_length=_integer(settings, "max_position_embeddings", 131072),
        tied=bool(settings.get("tie_word_embeddings", True)),
        sliding=Sliding(
            tokens=_integer(settings, "sliding_window", 4096),
            layers=tuple(int(kind == _SLIDING) for kind in kinds),
            rope_theta=_either(local, "rope_theta", settings, "rope_local_base_freq", 10000.0),
        ),
    )


_READERS: dict[str, Callable[[Settings], SourceConfig]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "gemma3_text": _gemma3,
}
_HIDDEN, _HEADS = {"gpt2": "n_embd"}, {"gpt2": "n_head"}


def _layer_types(settings: Settings, known: set[str]) -> list[str] | None:
    """Return the kind of every layer's attention, if config.json lists them."""
    kinds = settings.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise InvalidModelError("config.json: layer_types is not a list of names")
    for kind in kinds:
        if kind not in known:
            raise InvalidModelError(f"layers of the type {kind!r} are not supported")
    return kinds


def _rotation(nested: object) -> Settings:
    """Return the rotary parameters where they stand together, checked to be unscaled."""
    # rope_parameters since transformers 5, rope_scaling (and rope_theta beside it) before.
    nested = nested or {}
    if not isinstance(nested, dict):
        raise InvalidModelError("the rotary parameters are malformed")
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind != "default":
        raise InvalidModelError(f"scaled rotary positions ({kind}) are not supported")
    return nested


def _either(first: Settings, key: str, second: Settings, other: str, default: float) -> float:
    """Return a number that stands at either of two places."""
    if first.get(key) is not None:
        return _number(first, key, default)
    return _number(second, other, default)


def _integer(settings: Settings, key: str, default: int | None = None) -> int:
    """Return a setting that must be an integer."""
    value = settings.get(key)
    if value is None:
        value = default
    if type(value) is not int:
        raise InvalidModelError(f"config.json: {key} is {value!r}, not an integer")
    return value


def _number(settings: Settings, key: str, default: float) -> float:
    value = settings.get(key)
    if value is None:
        value = default
    if type(value) not in (int, float) or not isinstance(value, (int, float)):
        raise InvalidModelError(f"config.json: {key} is {value!r}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidModelError(f"config.json: {key} is out of range") from error
