"""How Hugging Face folders of each family call their tensors, and how they lay them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from archiver.errors import InvalidModelError
from archiver.predict.sources import SourceConfig

View = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of one family.

    Attributes:
        layers: what the names of layers' tensors begin with, before the number.
        top: canonical names of the tensors outside the layers.
        layer: canonical names of those in a layer; "qkv" for queries, keys and values in one.
        ignored: ends of the names of tensors that follow from the configuration.
        prefix: what all names may begin with, or not.
        transposed: matrices lie as [in, out], and joined ones side by side.
        interleaved: joined queries, keys and values lie head by head.
        gain_less_one: norms store their gain less 1.
    """

    layers: str
    top: Mapping[str, str]
    layer: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    transposed: bool = False
    interleaved: bool = False
    gain_less_one: bool = False

    def views(
        self, config: SourceConfig, source: str, view: View
    ) -> Iterator[tuple[str, View, tuple[int, ...]]]:
        """The canonical tensors in a tensor of a folder: name, view and shape.

        A name that has no canonical form is kept as it is.
        """
        name = self._canonical(source.removeprefix(self.prefix))
        kind = name.rpartition("layers.")[2].partition(".")[2]
        if self.transposed and kind in ("qkv", "o", "up", "down"):
            view = view.T
        if not kind.startswith("qkv"):
            yield name, view, view.shape
            return
        width, rest = config.heads * config.head_dim, view.shape[1:]
        if view.shape[0] != 3 * width:
            raise InvalidModelError(f"tensor {source} has not the rows of three times {width}")
        by_head = (config.heads, 3) if self.interleaved else (3, config.heads)
        heads = view.reshape(*by_head, config.head_dim, *rest)
        for number, part in enumerate("qkv"):
            own = heads[:, number] if self.interleaved else heads[number]
            yield name.replace(".qkv", f".{part}"), own, (width, *rest)

    def _canonical(self, name: str) -> str:
        if name in self.top:
            return self.top[name]
        layer, _, kind = name.removeprefix(self.layers).partition(".")
        plain = layer.isascii() and layer.isdigit() and str(int(layer[:9])) == layer
        if name.startswith(self.layers) and plain and kind in self.layer:
            return f"layers.{layer}.{self.layer[kind]}"
        return name


def _with_biases(names: Mapping[str, str]) -> dict[str, str]:
    """Names of weights, and those of biases beside them."""
    biases = {
        f"{name.removesuffix('.weight')}.bias": f"{canonical}.bias"
        for name, canonical in names.items()
    }
    return {**names, **biases}


_LLAMA_TOP = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}
_LLAMA_LAYER = {
    "input_layernorm.weight": "norm1",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "post_attention_layernorm.weight": "norm2",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
}
_HEAD_NORMS = {"self_attn.q_norm.weight": "q_norm", "self_attn.k_norm.weight": "k_norm"}
# Frequencies of the rotation that old versions saved; they follow from the configuration.
_DERIVED = ("self_attn.rotary_emb.inv_freq",)

NAMES = {
    "llama": Names(layers="model.layers.", top=_LLAMA_TOP, layer=_LLAMA_LAYER, ignored=_DERIVED),
    "qwen2": Names(
        layers="model.layers.",
        top=_LLAMA_TOP,
        layer={**_LLAMA_LAYER, **{f"self_attn.{part}_proj.bias": f"{part}.bias" for part in "qkv"}},
        ignored=_DERIVED,
    ),
    "qwen3": Names(
        layers="model.layers.", top=_LLAMA_TOP, layer={**_LLAMA_LAYER, **_HEAD_NORMS},
        ignored=_DERIVED,
    ),
    "gpt_neox": Names(
        layers="gpt_neox.layers.",
        top={
            "gpt_neox.embed_in.weight": "embed",
            **_with_biases({"gpt_neox.final_layer_norm.weight": "norm"}),
            "embed_out.weight": "head",
            "lm_head.weight": "head",
        },
        layer=_with_biases({
            "input_layernorm.weight": "norm1",
            "attention.query_key_value.weight": "qkv",
            "attention.dense.weight": "o",
            "post_attention_layernorm.weight": "norm2",
            "mlp.dense_h_to_4h.weight": "up",
            "mlp.dense_4h_to_h.weight": "down",
        }),
        # The causal mask and the value of what it hides, and frequencies.
        ignored=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
        interleaved=True,
    ),
    "gpt2": Names(
        layers="h.",
        top={
            "wte.weight": "embed",
            "wpe.weight": "positions",
            **_with_biases({"ln_f.weight": "norm"}),
            "lm_head.weight": "head",
        },
        layer=_with_biases({
            "ln_1.weight": "norm1",
            "attn.c_attn.weight": "qkv",
            "attn.c_proj.weight": "o",
            "ln_2.weight": "norm2",
            "mlp.c_fc.weight": "up",
            "mlp.c_proj.weight": "down",
        }),
        ignored=("attn.bias", "attn.masked_bias"),
        prefix="transformer.",
        transposed=True,
    ),
    "gemma3": Names(
        layers="model.layers.",
        top=_LLAMA_TOP,
        layer={
            **_LLAMA_LAYER,
            **_HEAD_NORMS,
            "post_attention_layernorm.weight": "o_norm",
            "pre_feedforward_layernorm.weight": "norm2",
            "post_feedforward_layernorm.weight": "down_norm",
        },
        ignored=_DERIVED,
        gain_less_one=True,
    ),
}  # fmt: skip
