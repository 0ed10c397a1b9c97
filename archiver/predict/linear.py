"""Products with matrices of codes on the processor, and the layers made of such matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from archiver.predict.kernels import families
from archiver.predict.kernels.products import Product
from archiver.predict.predictor import Scaled
from archiver.types import Float32Array, Int8Array

if TYPE_CHECKING:
    from archiver.predict.engine_config import EngineConfig
    from archiver.predict.package import Arrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """A matrix of codes with one scale an output, and perhaps a bias.

    Attributes:
        product: by the matrix of codes; scales: float32 [outputs].
        biases: float32 [outputs], added to the scaled product; None for none.
    """

    product: Product
    scales: Float32Array
    biases: Float32Array | None
    _ones: Float32Array

    @classmethod
    def of(cls, arrays: Arrays, name: str, backend: type[Product]) -> Linear:
        """The matrix of that name."""
        scales = np.array(arrays[f"{name}.scales"])
        biases = f"{name}.biases"
        return cls(
            product=backend(arrays[f"{name}.codes"]),
            scales=scales,
            biases=np.array(arrays[biases]) if biases in arrays else None,
            _ones=np.ones_like(scales),
        )

    def __call__(
        self, codes: Int8Array, scales: Float32Array, room: Float32Array | None = None
    ) -> Scaled:
        """The matrix times codes * scales.

        Args:
            codes: int8 [rows, inputs], scales: float32 [rows].
            room: float32 [rows * outputs or more], where the product comes to lie; memory that is
                used again saves a tenth of the time.
        """
        shape = (len(codes), len(self.scales))
        if room is None:
            product = np.empty(shape, np.float32)
        else:
            product = room[: math.prod(shape)].reshape(shape)
        self.product(codes, product)
        if self.biases is None:
            return product, scales, self.scales
        families.add_biases(product, scales, self.scales, self.biases)
        return self.unscaled(product)

    def unscaled(self, values: Float32Array) -> Scaled:
        """Values that need no scales, as products."""
        return values, np.ones(len(values), np.float32), self._ones


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One transformer layer.

    Attributes:
        up: what comes before the activation.
        head_gains: of the norms of queries and keys, float32 [head_dim] each.
        input_gains, output_gains: of the norms before and after attention and the feed-forward
            network, float32 [hidden] each; None where weights hold them, or there are none.
    """

    qkv: Linear
    o: Linear
    up: Linear
    down: Linear
    head_gains: tuple[Float32Array, Float32Array] | None
    input_gains: tuple[Float32Array, Float32Array] | None
    output_gains: tuple[Float32Array, Float32Array] | None

    @classmethod
    def of(cls, config: EngineConfig, arrays: Arrays, number: int, backend: type[Product]) -> Layer:
        """Layer `number` of a package."""
        name, family = f"layers.{number}", config.family

        def pair(needed: bool, first: str, second: str) -> tuple[Float32Array, Float32Array] | None:
            if not needed:
                return None
            return np.array(arrays[f"{name}.{first}"]), np.array(arrays[f"{name}.{second}"])

        return cls(
            qkv=Linear.of(arrays, f"{name}.qkv", backend),
            o=Linear.of(arrays, f"{name}.o", backend),
            up=Linear.of(arrays, f"{name}.{family.up}", backend),
            down=Linear.of(arrays, f"{name}.down", backend),
            head_gains=pair(family.head_norms, "query_gains", "key_gains"),
            input_gains=pair(family.output_norms, "qkv.gains", f"{family.up}.gains"),
            output_gains=pair(family.output_norms, "o.gains", "down.gains"),
        )
