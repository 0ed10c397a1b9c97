"""A Llama in floating point, for training and calibration.

    tokens -> embed -> (+ o(attention(qkv(norm1))) -> + down(silu(gate) * up(norm2))) per block
           -> norm -> head

Matrices that read the same vector are joined (``qkv``, ``gate_up``), as in a model package: fewer
and larger products, and one adapter for all of them.  The residual stream is float32, everything
between two of its sums has the compute type (bfloat16 where the processor multiplies it fast).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, torch's own name for it

from archiver.errors import InvalidModelError
from archiver.workshop import fused
from archiver.workshop.names import JOINED
from archiver.workshop.windows import Windows, attention, heads_by_window, rotated

if TYPE_CHECKING:
    from archiver.predict.sources import SourceConfig, SourceModel

# observe(name, vectors): float [tokens, width]; "layers.3" are the vectors that enter block 3,
# "layers.3.qkv" those that its joined matrix reads; "norm" are those that enter the last norm.
Observer = Callable[[str, torch.Tensor], None]


def compute_type() -> torch.dtype:
    """bfloat16 where the processor has instructions that multiply it, else float32."""
    from torch.backends import mkldnn

    fast = mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def joined_weights(source: SourceModel) -> dict[str, torch.Tensor]:
    """Copies of a source's weights, float32, with the matrices of ``JOINED`` stacked by rows.

    Raises:
        InvalidModelError: the model is of another family.
    """
    if source.config.architecture != "llama":
        raise InvalidModelError(
            f"the workshop runs Llama models only, not {source.config.architecture}"
        )
    weights = {
        name: torch.from_numpy(np.array(source.tensors[name]))
        for name in source.tensors
        if name in ("embed", "norm", "head") or name.endswith(("norm1", "norm2", ".o", ".down"))
    }
    for layer in range(source.config.layers):
        for joined, kinds in JOINED.items():
            parts = [source.tensors[f"layers.{layer}.{kind}"] for kind in kinds]
            weights[f"layers.{layer}.{joined}"] = torch.from_numpy(np.concatenate(parts))
    return weights


def separate_weights(
    config: SourceConfig, weights: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    """The inverse of ``joined_weights``: float32 arrays by the names of a source."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows = {"qkv": (query, key, key), "gate_up": (config.ffn, config.ffn)}
    tensors: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        array = weight.detach().to(torch.float32).numpy()
        layer, _, kind = name.rpartition(".")
        if kind in JOINED:
            parts = np.split(array, np.cumsum(rows[kind])[:-1])
            for part_kind, part in zip(JOINED[kind], parts, strict=True):
                tensors[f"{layer}.{part_kind}"] = part
        else:
            tensors[name] = array
    return tensors


class FloatLlama:
    """A model whose weights may be trained.

    Attributes:
        config: the shape.
        windows: how far its heads see.
        weights: by joined name.  Those that ``train_weights`` names are float32 leaves.
        adapters: low-rank pairs by joined name: the product computes W + scale B A.
    """

    def __init__(
        self,
        config: SourceConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        windows: Windows | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Args: windows: of the default level, where they are not given."""
        self.config = config
        self.windows = windows or Windows()
        self.weights = dict(weights)
        self.adapters: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.adapter_scale = 1.0
        self.dtype = dtype or compute_type()
        self._fused = self.dtype == torch.bfloat16
        self._effective: dict[str, torch.Tensor] = {}
        self._angles: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_source(
        cls,
        source: SourceModel,
        *,
        windows: Windows | None = None,
        dtype: torch.dtype | None = None,
    ) -> FloatLlama:
        """The model of a source, nothing of it trainable."""
        return cls(source.config, joined_weights(source), windows=windows, dtype=dtype)

    def train_weights(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Make these weights trainable; return them by name."""
        chosen = {name: self.weights[name].requires_grad_() for name in names}
        self.refresh()
        return chosen

    def train_adapters(
        self, names: Sequence[str], *, rank: int, scale: float, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Give these matrices adapters that change nothing yet; return their halves by name."""
        self.adapter_scale = scale
        halves: dict[str, torch.Tensor] = {}
        for name in names:
            outputs, inputs = self.weights[name].shape
            down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            pair = (down.requires_grad_(), torch.zeros(outputs, rank).requires_grad_())
            self.adapters[name] = pair
            halves[f"{name}.a"], halves[f"{name}.b"] = pair
        self.refresh()
        return halves

    def refresh(self) -> None:
        """Forget what was derived from the weights: call after every change of them."""
        self._effective.clear()

    @torch.no_grad()
    def merged(self, name: str) -> torch.Tensor:
        """A weight with its adapter added, float32."""
        weight = self.weights[name].detach()
        if name in self.adapters:
            down, up = self.adapters[name]
            weight = torch.addmm(weight, up, down, alpha=self.adapter_scale)
        return weight

    def effective(self, name: str) -> torch.Tensor:
        """A weight with its adapter added, in the compute type."""
        found = self._effective.get(name)
        if found is None:
            found = self._effective[name] = self.merged(name).to(self.dtype)
        return found

    def product(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors [tokens, inputs] times the matrix: [tokens, outputs]."""
        weight = self.effective(name)
        if name in self.adapters:
            down, up = self.adapters[name]
            product = _AdaptedProduct.apply(vectors, weight, down, up, self.adapter_scale)
        elif self.weights[name].requires_grad:
            product = _TrainedProduct.apply(vectors, weight, self.weights[name])
        else:
            product = F.linear(vectors, weight)
        assert isinstance(product, torch.Tensor)
        return product

    def hidden(
        self,
        tokens: torch.Tensor,
        *,
        layers: Sequence[int] | None = None,
        observe: Observer | None = None,
        entered: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The vectors that the head reads, [streams x steps, hidden], in the compute type.

        Args:
            tokens: int64 [streams, steps], each stream from a cold start.
            layers: the blocks to run, in order; all of them by default.
            observe: is shown vectors as they pass.
            entered: the residual stream before the first of these blocks, as `block` takes it,
                where other blocks have run already.
        """
        stream, addend = self.enter(tokens) if entered is None else entered
        for layer in range(self.config.layers) if layers is None else layers:
            stream, addend = self.block(layer, stream, addend, len(tokens), observe)
        return self.leave(stream, addend, observe)

    def enter(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream before the first block, in the two parts that a block takes."""
        stream = F.embedding(tokens.reshape(-1), self.weights["embed"])
        return stream, torch.zeros_like(stream, dtype=self.dtype)

    def block(
        self,
        layer: int,
        stream: torch.Tensor,
        addend: torch.Tensor,
        streams: int,
        observe: Observer | None = None,
        attend: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after a block.

        Args:
            stream, addend: float32 and compute type [tokens, hidden]; the residual stream is their
                sum, and the result has the same two parts.
            streams: of equal length that the tokens consist of.
            attend: takes the place of attention of each stream with itself: given the block and
                its queries, keys and values, returns the attention output.
        """
        name = f"layers.{layer}"
        stream, normed = self._add_norm(f"{name}.norm1", stream, addend)
        if observe:
            observe(name, stream)
            observe(f"{name}.qkv", normed)
        qkv = self.product(f"{name}.qkv", normed)
        mixed = attend(layer, qkv) if attend else self.attention(layer, qkv, streams)
        if observe:
            observe(f"{name}.o", mixed)
        stream, normed = self._add_norm(f"{name}.norm2", stream, self.product(f"{name}.o", mixed))
        if observe:
            observe(f"{name}.gate_up", normed)
        inner = self._gated(self.product(f"{name}.gate_up", normed))
        if observe:
            observe(f"{name}.down", inner)
        return stream, self.product(f"{name}.down", inner)

    def leave(
        self, stream: torch.Tensor, addend: torch.Tensor, observe: Observer | None = None
    ) -> torch.Tensor:
        """What the head reads, of the residual stream after the last block."""
        stream, normed = self._add_norm("norm", stream, addend)
        if observe:
            observe("norm", stream)
        return normed

    def _add_norm(
        self, name: str, stream: torch.Tensor, addend: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """stream + addend, and that normalized for the matrix that follows."""
        gain, epsilon = self.weights[name], self.config.norm_eps
        if self._fused:
            return fused.add_norm(stream, addend, gain, epsilon)
        stream = stream + addend
        return stream, F.rms_norm(stream, stream.shape[-1:], gain, epsilon).to(self.dtype)

    def _gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        if self._fused:
            return fused.gated(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def attention(self, layer: int, qkv: torch.Tensor, streams: int) -> torch.Tensor:
        """Attention of each stream with itself, as far as the heads see.

        Args:
            qkv: queries, keys and values, [streams x steps, (heads + 2 kv_heads) x head_dim].

        Returns:
            [streams x steps, heads x head_dim].
        """
        config, steps = self.config, len(qkv) // streams
        windows, sinks = self.windows.of_layer(config, layer), self.windows.sink_tokens
        angles = self.rotary(steps)
        if self._fused:
            return fused.attention(
                qkv, streams, (config.heads, config.kv_heads), *angles, windows, sinks
            )
        query, key, value = self.heads(qkv, streams)
        kinds = heads_by_window(windows, steps)
        if len(kinds) == 1:
            (window,) = kinds
            mixed = attention(query, key, value, window, sinks, angles)
        else:
            mixed = torch.empty_like(query)
            for window, chosen in kinds.items():
                mixed[:, chosen] = attention(
                    query[:, chosen], key[:, chosen], value[:, chosen], window, sinks, angles
                )
        return mixed.permute(0, 3, 1, 2, 4).reshape(streams * steps, -1)

    def heads(
        self, qkv: torch.Tensor, streams: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries, rotated keys and values of streams from their cold start on.

        Returns:
            [streams, kv_heads, group, steps, head_dim], the group of keys and values 1.
        """
        config, steps = self.config, len(qkv) // streams
        angles, group = self.rotary(steps), config.heads // config.kv_heads
        sizes = (config.heads, config.kv_heads, config.kv_heads)
        parts = qkv.view(streams, steps, sum(sizes), config.head_dim).transpose(1, 2)
        query, key, value = parts.split(sizes, dim=1)
        return (
            rotated(query, *angles).view(streams, config.kv_heads, group, steps, -1),
            rotated(key, *angles).unsqueeze(2),
            value.unsqueeze(2),
        )

    def rotary(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the first positions, float32 [steps, head_dim / 2]."""
        if self._angles is None or len(self._angles[0]) < steps:
            half = self.config.head_dim // 2
            exponents = -torch.arange(half, dtype=torch.float64) / half
            positions = torch.arange(steps, dtype=torch.float64)
            angles = torch.outer(positions, self.config.rope_theta**exponents)
            self._angles = (angles.cos().float(), angles.sin().float())
        return self._angles[0][:steps], self._angles[1][:steps]

    @property
    def head(self) -> torch.Tensor:
        """The output matrix, [vocab, hidden], in the compute type."""
        return self.effective("embed" if self.config.tied else "head")

    @property
    def head_parameter(self) -> torch.Tensor | None:
        """The output matrix as a leaf, where it is trained."""
        weight = self.weights["embed" if self.config.tied else "head"]
        return weight if weight.requires_grad else None


class _AdaptedProduct(torch.autograd.Function):
    """x (W + scale B A)^T, given W + scale B A; the gradient goes to x, A and B."""

    @staticmethod
    def forward(ctx, vectors, weight, down, up, scale):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(vectors, weight, down, up)
        ctx.scale = scale
        return F.linear(vectors, weight)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        vectors, weight, down, up = ctx.saved_tensors
        down, up = down.to(weight.dtype), up.to(weight.dtype)
        inner = F.linear(vectors, down)  # [tokens, rank]
        inner_gradient = gradient @ up
        return (
            gradient @ weight,
            None,
            (inner_gradient.T @ vectors).float() * ctx.scale,
            (gradient.T @ inner).float() * ctx.scale,
            None,
        )


class _TrainedProduct(torch.autograd.Function):
    """x W^T, given W in the compute type; the gradient goes to x and to the float32 W."""

    @staticmethod
    def forward(ctx, vectors, weight, trained):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(vectors, weight)
        return F.linear(vectors, weight)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        vectors, weight = ctx.saved_tensors
        return gradient @ weight, None, (gradient.T @ vectors).float()
