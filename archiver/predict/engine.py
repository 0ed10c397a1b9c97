"""The exact engine on the processor: fast kernels around exact matrix products.

`session` draws the way of a token through it.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from archiver.predict.engine_base import EngineBase
from archiver.predict.kernels import families, layers
from archiver.predict.kernels.products import choose_backend
from archiver.predict.linear import Layer, Linear
from archiver.predict.session import Session
from archiver.predict.tables import activation_span
from archiver.predict.team import Team, shares_products
from archiver.types import Float32Array, Int8Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage
    from archiver.predict.predictor import PredictorTeam, Scaled


class Engine(EngineBase):
    """A model package ready to run on the processor; holds no state of any stream and may serve
    many threads.
    """

    block_tokens = 128
    head: Linear

    def __init__(
        self,
        package: ModelPackage,
        *,
        window: int,
        local_window: int,
        sinks: int,
        matmul: str | None = None,
    ) -> None:
        """Prepare the weights for the fastest exact matrix product of this machine.

        Args:
            window, local_window, sinks: as for `EngineBase`.
            matmul: force one backend (see `choose_backend`).

        Raises:
            UsageError: windows or sinks out of range. InvalidModelError: a malformed package.
        """
        super().__init__(package, window=window, local_window=local_window, sinks=sinks)
        arrays = package.arrays
        self.backend = choose_backend(self.inner_sizes, matmul)
        self._embed_by(arrays["embed.codes"], np.array(arrays["embed.scales"]))
        self.head = Linear.of(arrays, "head", self.backend)
        self.head_gains = np.array(arrays["head.gains"]) if self.family.output_norms else None
        self.layers = [
            Layer.of(self.config, arrays, number, self.backend)
            for number in range(self.config.layers)
        ]

    def session(self, *, streams: int, tokens: int, steps: int) -> Session:
        """Streams that hold nothing but the soft prompt; arguments as for `Session`."""
        return Session(self, streams=streams, tokens=tokens, steps=steps)

    def team(self, *, streams: int, tokens: int, threads: int) -> PredictorTeam:
        """Streams for steps on at most so many threads."""
        if shares_products(self):
            return Team(self, streams=streams, tokens=tokens, members=threads)
        return super().team(streams=streams, tokens=tokens, threads=threads)

    def prepare_thread(self) -> None:
        """The calling thread is ready to run sessions."""
        self.backend.prepare_thread()

    def _embed_by(self, codes: Int8Array, scales: Float32Array) -> None:
        self.embed_codes, self.embed_scales = codes, scales

    def activate(self, product: Scaled, codes: Int8Array, scales: Float32Array) -> None:
        """codes * scales = what goes into the down projection; codes int8 [rows, ffn]."""
        activation = self.family.activation
        if activation == "silu":
            layers.gate_and_rotate(*product, self.span, codes, scales)
        else:
            by_tangent = activation == "gelu_tanh"
            families.gelu_and_rotate(*product, by_tangent, self.span, codes, scales)

    def normalize(
        self, x: Float32Array, gains: Float32Array | None, codes: Int8Array, scales: Float32Array
    ) -> None:
        """codes * scales = x normalized, also rotated if there are gains; both by rows."""
        if gains is None:
            layers.normalize(x, self.epsilon, codes, scales)
        else:
            span = activation_span(self.hidden)
            families.normalize_and_rotate(x, gains, self.epsilon, span, codes, scales)

    def add(self, x: Float32Array, product: Scaled, gains: Float32Array | None) -> None:
        """x += the product, normalized if there are gains; x float32 [rows, hidden]."""
        if gains is None:
            layers.add_product(x, *product)
        else:
            families.add_normalized(x, *product, gains, self.epsilon)
