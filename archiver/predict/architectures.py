"""The families of transformers that the engine computes, and what sets each apart.

A package names its family in its configuration; everything else that a family needs lies in the
package's arrays. LayerNorm and partial rotation are no business of the engine's: the converter
folds them into weights, biases and the tables of angles.

Source: FORMAT.md, "Model packages" (architectures).
"""

from __future__ import annotations

from dataclasses import dataclass

from archiver.errors import InvalidModelError

# Which tensors make up a joined matrix.
JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
ALL_MATRICES = frozenset({"qkv", "o", "up", "down", "head"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a family computes beside the Llama family's products.

    Attributes:
        biased: matrices to whose products a vector is added.
        head_norms: queries and keys are normalized head by head before they are turned.
        output_norms: what attention and feed-forward add to the stream is normalized. Then the
            stream is not rotated, but what is multiplied: the source's gains may differ so much
            that without them its greatest channels would leave the others no codes.
        parallel: attention and feed-forward read the same residual stream.
        activation: "silu", "gelu" (by the error function) or "gelu_tanh" (by the tangent).
        gated: the activation multiplies a second half of the product.
        positions: places have vectors of their own, so that streams restart when these run out.
        sliding: some layers see a window of their own, with a rotation of their own.
        centred: the source's norms subtract a mean, which the weights before them do here.
        scaled_embedding: the source multiplies embeddings by sqrt(hidden), which the package has.
    """

    biased: frozenset[str] = frozenset()
    head_norms: bool = False
    output_norms: bool = False
    parallel: bool = False
    activation: str = "silu"
    gated: bool = True
    positions: bool = False
    sliding: bool = False
    centred: bool = False
    scaled_embedding: bool = False

    @property
    def up(self) -> str:
        """The name of the matrix before the activation."""
        return "gate_up" if self.gated else "up"


ARCHITECTURES = {
    "llama": Architecture(),
    "qwen2": Architecture(biased=frozenset({"qkv"})),
    "qwen3": Architecture(head_norms=True),
    "gpt_neox": Architecture(
        centred=True, biased=ALL_MATRICES, parallel=True, activation="gelu", gated=False
    ),
    "gpt2": Architecture(
        centred=True, biased=ALL_MATRICES, positions=True, activation="gelu_tanh", gated=False
    ),
    "gemma3": Architecture(
        head_norms=True, output_norms=True, activation="gelu_tanh", sliding=True,
        scaled_embedding=True,
    ),
}  # fmt: skip


def architecture_of(name: str) -> Architecture:
    """The family of that name.

    Raises:
        InvalidModelError: there is none.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InvalidModelError(f"architecture {name!r} is not supported")
    return ARCHITECTURES[name]
