"""The published weights behind a model package, and transformers' model of them."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.inputs import sha256_of

if TYPE_CHECKING:
    from archiver.predict.known import KnownModel
    from archiver.predict.package import ModelPackage
    from archiver.predict.sources import SourceModel


class WeightsError(Exception):
    """The weights cannot be had or are not those of the model; the message is for the user."""


def find_weights(model: str, given: Path | None) -> Path:
    """Return the file or folder with the weights that the model's package was made from.

    A model that llmzip knows is fetched as `llmzip model pull` does and kept among the
    downloads, a given file must be the pinned one.

    Raises:
        WeightsError: it is not known where they are, or those given are others.
        ArchiverError: they cannot be fetched.
    """
    from archiver.predict import fetch, home

    known = _known(model)
    if known is None:
        if given is None:
            raise WeightsError(f"say by --gguf what the model {model} was made from")
        return given
    if given is not None:
        if not given.is_file() or sha256_of(given) != known.origin.member_sha256:
            raise WeightsError(f"{given} is not {known.origin.member_name} of {known.name}")
        return given
    kept = home.downloads_folder() / known.origin.member_name
    with home.home_locked(), home.scratch_folder() as scratch:
        found = fetch.fetch_file(known.origin, scratch)
        if found != kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(found, kept)
    return kept


def read_weights(model: str, path: Path) -> SourceModel:
    """Return the weights that the model's package was made from: those of `find_weights`, tuned
    as the model is.

    Raises:
        ModelError: they cannot be read, or the adapter is for others.
    """
    from archiver.predict.adapter import apply_adapter, read_adapter
    from archiver.predict.sources import read_source

    source = read_source(path)
    known = _known(model)
    if known is None or known.adapter_path is None:
        return source
    return apply_adapter(source, read_adapter(known.adapter_path))


def _known(model: str) -> KnownModel | None:
    from archiver.predict.known import KNOWN_MODELS

    return next((k for k in KNOWN_MODELS if model == k.name or model in k.aliases), None)


def check_same_model(source: SourceModel, package: ModelPackage) -> None:
    """Return when the package's tokens and sizes are the source's.

    Raises:
        WeightsError: the package was made from something else.
    """
    import numpy as np

    from archiver.text.vocabulary import sort_tokens

    data, offsets, rank_of_id = sort_tokens(source.token_bytes)
    same = (
        np.array_equal(package.arrays["tokens.data"], data)
        and np.array_equal(package.arrays["tokens.offsets"], offsets)
        and np.array_equal(package.arrays["tokens.rank_of_id"], rank_of_id)
    )
    sizes = ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn")
    if not same or any(package.config[size] != getattr(source.config, size) for size in sizes):
        raise WeightsError("these weights are not those of the archive's model package")


def transformers_model(source: SourceModel) -> Any:
    """Return transformers' LlamaForCausalLM in float32 with these weights, ready for inference.

    Raises:
        WeightsError: transformers would compute something else from the configuration.
    """
    import torch

    transformers = import_module("transformers")
    config = source.config
    settings = transformers.LlamaConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn,
        vocab_size=config.vocab,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=config.tied,
        # Its versions before 5 read the first, later ones the second.
        rope_theta=config.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )
    model = transformers.LlamaForCausalLM(settings).float().eval()
    state = {_transformers_name(name): torch.from_numpy(source.tensors[name]) for name in
             source.tensors}  # fmt: skip
    if config.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    slowest = config.rope_theta ** (2 / config.head_dim - 1)
    if abs(float(model.model.rotary_emb.inv_freq[-1]) / slowest - 1) > 1e-5:
        raise WeightsError("this version of transformers does not take the rotary base as given")
    return model


def _transformers_name(name: str) -> str:
    tops = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    parts = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        **{part: f"self_attn.{part}_proj" for part in "qkvo"},
        **{part: f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    if name in tops:
        return f"{tops[name]}.weight"
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{parts[part]}.weight"
