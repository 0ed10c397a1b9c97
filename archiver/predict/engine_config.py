"""A package's configuration, and what it asks of the package's arrays.

Source: FORMAT.md, "Model packages".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import InvalidModelError
from archiver.predict.architectures import ARCHITECTURES, Architecture, architecture_of
from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.predict.tables import ROTARY_SPAN

if TYPE_CHECKING:
    from archiver.predict.package import Arrays, ModelPackage

EPSILON_MIN = 2.0**-80  # of norms, so that one over a root stays far from infinity
ADDEND_MAX = 2.0**14  # of whatever is added to products, or multiplies them after a norm


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """A package's configuration; FORMAT.md, "Model packages", defines the fields."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_epsilon: float
    tokens: int
    start_token: int
    positions: int | None = None
    sliding_tokens: int | None = None

    @classmethod
    def of(cls, package: ModelPackage) -> EngineConfig:
        """The package's configuration.

        Raises:
            InvalidModelError: a field is missing, unknown or out of range, or an array has not
                the shape, the type or the scales that the configuration asks for.
        """
        try:
            config = cls(**package.config)  # type: ignore[arg-type]
        except TypeError as error:
            raise InvalidModelError(f"the package's configuration is malformed: {error}") from error
        config._check_numbers(architecture_of(config.architecture))
        config._check_arrays(package.arrays)
        return config

    @property
    def family(self) -> Architecture:
        """What the configuration's architecture needs."""
        return ARCHITECTURES[self.architecture]

    def _check_numbers(self, family: Architecture) -> None:
        names = ["hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "tokens"]
        for name, needed in (("positions", family.positions), ("sliding_tokens", family.sliding)):
            if needed:
                names.append(name)
            elif getattr(self, name) is not None:
                raise InvalidModelError(f"{self.architecture} packages have no {name}")
        for name in names:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidModelError(f"the package's {name} is {value!r}")
        if self.heads % self.kv_heads or self.head_dim % 16 or self.ffn % 16:
            raise InvalidModelError(
                f"heads {self.heads}, kv_heads {self.kv_heads}, head_dim {self.head_dim}, ffn "
                f"{self.ffn}: the engine needs whole groups of heads and multiples of 16"
            )
        if family.output_norms and self.hidden % 16:
            raise InvalidModelError(f"hidden {self.hidden}: the engine needs a multiple of 16")
        if type(self.start_token) is not int or not 0 <= self.start_token <= self.tokens:
            raise InvalidModelError(f"the package's start_token is {self.start_token!r}")
        if type(self.norm_epsilon) is not float or not EPSILON_MIN <= self.norm_epsilon < 1:
            raise InvalidModelError(f"the package's norm_epsilon is {self.norm_epsilon!r}")

    def shapes(self) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
        """Type and shape of every array but the token table's."""
        width = self.heads * self.head_dim
        family = self.family
        matrices = {"embed": (self.tokens + 1, self.hidden), "head": (self.tokens, self.hidden)}
        vectors: dict[str, tuple[int, ...]] = {}
        if "head" in family.biased:
            vectors["head.biases"] = (self.tokens,)
        if family.output_norms:
            vectors["head.gains"] = (self.hidden,)
        if self.positions is not None:
            vectors["positions"] = (self.positions, self.hidden)
        for layer in range(self.layers):
            shapes = {
                "qkv": (width + 2 * self.kv_heads * self.head_dim, self.hidden),
                "o": (self.hidden, width),
                family.up: ((2 if family.gated else 1) * self.ffn, self.hidden),
                "down": (self.hidden, self.ffn),
            }
            for name, shape in shapes.items():
                matrices[f"layers.{layer}.{name}"] = shape
                if ("up" if name == family.up else name) in family.biased:
                    vectors[f"layers.{layer}.{name}.biases"] = shape[:1]
            if family.head_norms:
                vectors[f"layers.{layer}.query_gains"] = (self.head_dim,)
                vectors[f"layers.{layer}.key_gains"] = (self.head_dim,)
            if family.output_norms:
                for name in shapes:
                    vectors[f"layers.{layer}.{name}.gains"] = (self.hidden,)
        table = (ROTARY_SPAN, self.head_dim // 2, 2)
        result: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "local_heads": (np.uint8, (self.layers, self.kv_heads)),
            "rotary.fine": (np.float64, table),
            "rotary.coarse": (np.float64, table),
        }
        if family.sliding:
            result["sliding_layers"] = (np.uint8, (self.layers,))
            result["rotary.sliding_fine"] = (np.float64, table)
            result["rotary.sliding_coarse"] = (np.float64, table)
        for name, shape in matrices.items():
            result[f"{name}.codes"] = (np.int8, shape)
            result[f"{name}.scales"] = (np.float32, shape[:1])
        return result | {name: (np.float32, shape) for name, shape in vectors.items()}

    def _check_arrays(self, arrays: Arrays) -> None:
        for name, (dtype, shape) in self.shapes().items():
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                raise InvalidModelError(f"the package's array {name!r} is missing or malformed")
            if dtype is np.uint8 and array.max() > 1:
                raise InvalidModelError(f"the package's array {name!r} holds more than 0 and 1")
            if name.endswith(".scales"):
                if not ((array >= SCALE_MIN) & (array <= SCALE_MAX)).all():
                    raise InvalidModelError(f"the package's array {name!r} has scales out of range")
            elif dtype is np.float32 and not (np.abs(array) <= ADDEND_MAX).all():
                raise InvalidModelError(f"the package's array {name!r} has numbers out of range")
            if name.endswith(".codes") and name != "embed.codes" and array.min() == -128:
                raise InvalidModelError(f"the package's array {name!r} has codes of -128")
