"""The exact transformer: fast kernels around exact matrix products.

    tokens ── embed ── x ─┬─ normalize ── qkv ── project_heads ── attend ── o ──┬─ + ─┐
                          └─────────────────────────────────────────────────────┘    │ x layers
                        ┌─┬─ normalize ── gate_up ── gate_and_rotate ── down ── + ─┬──┘
                        │ └────────────────────────────────────────────────────────┘
                        └─ normalize ── head ── products over the vocabulary

A whole block of one stream, or one step of many streams, takes the same path; a row's result
depends on its own stream's earlier tokens only. FORMAT.md defines the result, and
`tests/reference` is a slow decoder written from it.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError, UsageError
from archiver.predict.kernels import attention, layers
from archiver.predict.kernels.memory import aligned_zeros
from archiver.predict.kernels.products import INNER_MAX, Product, choose_backend
from archiver.predict.kernels.tiles import ROW_SHAPES, TILE_BYTES
from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.predict.tables import ROTARY_SPAN, activation_span, rotary_angles
from archiver.text.vocabulary import Vocabulary
from archiver.types import Float32Array, Int8Array, Int32Array, UInt8Array

if TYPE_CHECKING:
    from archiver.predict.package import Arrays, ModelPackage

ENGINE_VERSION = 2
STREAM_TOKENS_MAX = ROTARY_SPAN * ROTARY_SPAN  # positions that the rotary tables reach: 65,536
VISIBLE_MAX = 1 << 14  # window + sinks below this keep attention's totals in int32
LOG2_E = float.fromhex("0x1.71547652b82fep+0")


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
        if config.architecture != "llama":
            raise InvalidModelError(f"architecture {config.architecture!r} is not supported")
        config._check_numbers()
        config._check_arrays(package.arrays)
        return config

    def _check_numbers(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidModelError(f"the package's {name} is {value!r}")
        if self.heads % self.kv_heads or self.head_dim % 16 or self.ffn % 16:
            raise InvalidModelError(
                f"heads {self.heads}, kv_heads {self.kv_heads}, head_dim {self.head_dim}, ffn "
                f"{self.ffn}: the engine needs whole groups of heads and multiples of 16"
            )
        if type(self.start_token) is not int or not 0 <= self.start_token <= self.tokens:
            raise InvalidModelError(f"the package's start_token is {self.start_token!r}")
        if type(self.norm_epsilon) is not float or not 0 < self.norm_epsilon < 1:
            raise InvalidModelError(f"the package's norm_epsilon is {self.norm_epsilon!r}")

    def shapes(self) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
        """Type and shape of every array but the token table's."""
        width = self.heads * self.head_dim
        matrices = {"embed": (self.tokens + 1, self.hidden), "head": (self.tokens, self.hidden)}
        for layer in range(self.layers):
            matrices |= {
                f"layers.{layer}.qkv": (width + 2 * self.kv_heads * self.head_dim, self.hidden),
                f"layers.{layer}.o": (self.hidden, width),
                f"layers.{layer}.gate_up": (2 * self.ffn, self.hidden),
                f"layers.{layer}.down": (self.hidden, self.ffn),
            }
        table = (ROTARY_SPAN, self.head_dim // 2, 2)
        result: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "local_heads": (np.uint8, (self.layers, self.kv_heads)),
            "rotary.fine": (np.float64, table),
            "rotary.coarse": (np.float64, table),
        }
        for name, shape in matrices.items():
            result[f"{name}.codes"] = (np.int8, shape)
            result[f"{name}.scales"] = (np.float32, shape[:1])
        return result

    def _check_arrays(self, arrays: Arrays) -> None:
        for name, (dtype, shape) in self.shapes().items():
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                raise InvalidModelError(f"the package's array {name!r} is missing or malformed")
            if name == "local_heads" and array.max() > 1:
                raise InvalidModelError("the package's array 'local_heads' holds more than 0 and 1")
            if name.endswith(".scales") and not ((array >= SCALE_MIN) & (array <= SCALE_MAX)).all():
                raise InvalidModelError(f"the package's array {name!r} has scales out of range")
            if name.endswith(".codes") and name != "embed.codes" and array.min() == -128:
                raise InvalidModelError(f"the package's array {name!r} has codes of -128")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer layer's products and their weight scales, float32 [outputs]."""

    qkv: Product
    qkv_scales: Float32Array
    o: Product
    o_scales: Float32Array
    gate_up: Product
    gate_up_scales: Float32Array
    down: Product
    down_scales: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftPrompt:
    """Vectors that stand before every stream, coded like embeddings: codes * scales.

    Attributes:
        codes: int8 [vectors, hidden], in the package's rotated basis.
        scales: float32 [vectors], SCALE_MIN to SCALE_MAX.
    """

    codes: Int8Array
    scales: Float32Array

    def __post_init__(self) -> None:
        assert self.codes.dtype == np.int8
        assert self.codes.ndim == 2
        assert self.scales.dtype == np.float32
        assert self.scales.shape == self.codes.shape[:1]
        assert ((self.scales >= SCALE_MIN) & (self.scales <= SCALE_MAX)).all()


def _check_visible(window: int, sinks: int) -> None:
    if not (window >= 1 and sinks >= 0 and window + sinks < VISIBLE_MAX):
        raise UsageError(
            f"window {window} with {sinks} sinks: the sum must stay below {VISIBLE_MAX}"
        )


class Engine:
    """A model package ready to run; holds no state of any stream and may serve many threads.

    Attributes:
        windows: int32 [layers, kv_heads], tokens that each key/value head sees.
        lead: vectors of the soft prompt; the first token of a stream stands at this position.
        sinks: first positions that every later one sees, the soft prompt's included.
        prompt_sinks: the soft prompt's keys and values, as a session's sinks; None without one.
    """

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
            window: tokens that a position sees, itself included; local_window: those that the
                package's local heads see, at most `window`; sinks: first positions of a
                stream that every later one sees as well.
            matmul: force one backend (see `choose_backend`).

        Raises:
            UsageError: windows or sinks out of range. InvalidModelError: a malformed package.
        """
        _check_visible(window, sinks)
        if not 1 <= local_window <= window:
            raise UsageError(f"a local window of {local_window} in one of {window}")
        config = EngineConfig.of(package)
        self.window, self.sinks = window, sinks
        local = np.asarray(package.arrays["local_heads"]) != 0
        self.windows: Int32Array = np.where(local, local_window, window).astype(np.int32)
        self.lead = 0
        self.prompt_sinks: Caches | None = None
        self.hidden, self.ffn = config.hidden, config.ffn
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.epsilon = config.norm_epsilon
        self.start_token = config.start_token
        arrays = package.arrays
        attention_width = self.heads * self.head_dim
        inner_sizes = {self.hidden, attention_width, self.ffn}
        if max(inner_sizes) > INNER_MAX:
            raise InvalidModelError(f"sums of more than {INNER_MAX} products")
        self.backend = choose_backend(inner_sizes, matmul)
        self.embed_codes: Int8Array = arrays["embed.codes"]
        self.embed_scales: Float32Array = np.array(arrays["embed.scales"])
        self.head = self.backend(arrays["head.codes"])
        self.head_scales: Float32Array = np.array(arrays["head.scales"])
        self.layers = []
        for number in range(config.layers):
            parts: dict[str, object] = {}
            for name in ("qkv", "o", "gate_up", "down"):
                parts[name] = self.backend(arrays[f"layers.{number}.{name}.codes"])
                parts[f"{name}_scales"] = np.array(arrays[f"layers.{number}.{name}.scales"])
            self.layers.append(Layer(**parts))  # type: ignore[arg-type]
        self.vocabulary = Vocabulary.build(
            np.array(arrays["tokens.data"]),
            np.array(arrays["tokens.offsets"]),
            np.array(arrays["tokens.rank_of_id"]),
        )
        self._rotary = (np.array(arrays["rotary.fine"]), np.array(arrays["rotary.coarse"]))
        self.span = activation_span(self.ffn)
        self.logit_unit = np.float32(LOG2_E / np.sqrt(float(self.head_dim)))

    def steered(self, prompt: SoftPrompt) -> Engine:
        """An engine over the same weights whose streams begin after a soft prompt.

        The prompt's vectors go through the layers once, in place of embeddings; every later
        position sees them, beside the sinks that this engine has.

        Raises:
            UsageError: more is seen than attention can add up.
        """
        assert self.lead == 0
        lead = len(prompt.codes)
        _check_visible(self.window, self.sinks + lead)
        steered = copy.copy(self)
        steered.sinks = self.sinks + lead
        reader = copy.copy(steered)  # one whose tokens are the vectors
        reader.embed_codes, reader.embed_scales = prompt.codes, prompt.scales
        session = Session(reader, streams=1, tokens=lead, steps=lead)
        session.advance(np.arange(lead, dtype=np.int32)[None])
        steered.lead, steered.prompt_sinks = lead, session.sinks
        return steered

    def rotary(self, positions: int) -> tuple[Float32Array, Float32Array]:
        """Cosines and sines of the first `positions` positions, float32 [positions, head_dim/2]."""
        return rotary_angles(*self._rotary, positions)

    def products(self, codes: Int8Array) -> Float32Array:
        """The head's products, float32 [rows, vocabulary]; codes int8 [rows, hidden]."""
        return self.head(codes)


Caches: TypeAlias = list[tuple[UInt8Array, Int8Array, Float32Array, Float32Array]]
"""Keys, values and their scales by layer; `attention` describes the layout."""


def _caches(engine: Engine, shapes: Sequence[tuple[int, ...]]) -> Caches:
    """Empty keys, values and scales of layers with these numbers of slots, the last axis."""
    # One allocation for all layers: large ones get large pages, which halves the time that a
    # step of many streams takes to read them.
    sizes = [math.prod(shape) for shape in shapes]

    def parts(items: int, dtype: type[np.generic]) -> list[NDArray[Any]]:
        flat = aligned_zeros((sum(sizes) * items,), dtype)
        ends = np.cumsum(sizes) * items
        return [
            flat[end - size * items : end].reshape(*shape[:-1], shape[-1] * items)
            for end, size, shape in zip(ends.tolist(), sizes, shapes, strict=True)
        ]

    dim = engine.head_dim
    return list(
        zip(
            parts(dim, np.uint8), parts(dim, np.int8), parts(1, np.float32), parts(1, np.float32),
            strict=True,
        )
    )  # fmt: skip


class Session:
    """The state of some streams that advance together: their keys and values.

    Attributes:
        position: where the next token of every stream stands.
        sinks: keys and values of the first positions.
    """

    def __init__(self, engine: Engine, *, streams: int, tokens: int, steps: int) -> None:
        """Caches for `streams` streams that hold nothing but the engine's soft prompt.

        Args:
            tokens: the longest stream's length, at most STREAM_TOKENS_MAX with the soft prompt.
            steps: the most tokens a stream that one call of `advance` brings.
        """
        positions = engine.lead + tokens
        assert tokens >= 1
        assert positions <= STREAM_TOKENS_MAX
        self.engine = engine
        self.streams = streams
        self.position = 0
        # Blocks of consecutive rows go through tile registers, where there are any.
        tiled = steps >= 8 and engine.head_dim % TILE_BYTES == 0 and engine.backend.tiled
        unit = attention.TILED_POSITIONS if tiled else 16
        limits = np.minimum(positions, engine.windows + steps + unit)
        rings = -(-limits // unit) * unit
        self._slots = np.zeros((len(engine.layers), engine.kv_heads + 1), np.int32)
        np.cumsum(rings, axis=1, out=self._slots[:, 1:])
        self._caches = _caches(engine, [(streams, total) for total in self._slots[:, -1].tolist()])
        sink_ring = max(unit, -(-engine.sinks // unit) * unit)
        self.sinks = _caches(engine, [(streams, engine.kv_heads, sink_ring)] * len(engine.layers))
        window = min(positions, engine.window)
        group = engine.heads // engine.kv_heads
        if tiled:
            rows, queries = attention.TILED_ROWS, attention.TILED_ROWS
            items = attention.tiled_items(window, engine.sinks)
        else:
            rows, queries = attention.TOGETHER * group, group
            items = attention.visible_items(window, engine.sinks)
        self._attend = attention.attend_by_tiles if tiled else attention.attend
        self._scratch: tuple[Any, ...] = (
            aligned_zeros((rows, items), np.int32),
            aligned_zeros((2, items), np.float32),
            aligned_zeros((2, queries, items), np.uint8),
        )
        if tiled:
            self._scratch += (ROW_SHAPES,)
        self._cosines, self._sines = engine.rotary(max(positions, engine.window + engine.sinks))
        if engine.prompt_sinks is not None:
            self._adopt(engine.prompt_sinks)

    def _adopt(self, prompt: Caches) -> None:
        """The soft prompt's keys and values, computed once, stand at every stream's beginning.

        They come in whole tiles of 16 positions; what such a tile holds beyond the prompt is
        written before it is seen. Where the ring is shorter than the prompt, later tiles take
        the place of earlier ones, as `advance` has it.
        """
        self.position = self.engine.lead
        lead = self.engine.lead
        for layer, theirs in enumerate(prompt):
            slots = self._slots[layer]
            arrays = (self._caches[layer], self.sinks[layer], theirs)
            triples = zip(*cast(Sequence[Sequence[NDArray[Any]]], arrays), strict=True)
            for mine, sinks, source in triples:
                # A tile's items: 16 times head_dim of keys and of values, 16 scales.
                tile = 16 * source.shape[-1] // theirs[-1].shape[-1]
                for kv, number in itertools.product(range(len(slots) - 1), range(-(-lead // 16))):
                    begin = number * tile
                    content = source[:, kv, begin : begin + tile]
                    sinks[:, kv, begin : begin + tile] = content
                    ring = (slots[kv + 1] - slots[kv]) // 16
                    at = (slots[kv] // 16 + number % ring) * tile
                    mine[:, at : at + tile] = content

    def advance(self, tokens: Int32Array) -> tuple[Int8Array, Float32Array]:
        """Every stream is `steps` tokens further.

        Args:
            tokens: int32 [streams, steps], embedding rows.

        Returns:
            the normalized last hidden states, stream by stream: int8 codes
            [streams * steps, hidden] and their scales, float32 [streams * steps].
        """
        engine = self.engine
        streams, steps = tokens.shape
        assert streams == self.streams
        rows = streams * steps
        row_stream = np.repeat(np.arange(streams, dtype=np.int32), steps)
        row_position = np.tile(
            np.arange(self.position, self.position + steps, dtype=np.int32), streams
        )
        heads, head_dim = engine.heads, engine.head_dim
        x = np.empty((rows, engine.hidden), np.float32)
        codes = np.empty((rows, engine.hidden), np.int8)
        scales = np.empty(rows, np.float32)
        query = np.empty((rows, heads, head_dim), np.int8)
        query_scale = np.empty((rows, heads), np.float32)
        sink_query = np.empty_like(query)
        sink_query_scale = np.empty_like(query_scale)
        attended = np.empty((rows, heads * head_dim), np.float32)
        attended_codes = np.empty((rows, heads * head_dim), np.int8)
        gated_codes = np.empty((rows, engine.ffn), np.int8)

        layers.embed(tokens.reshape(-1), engine.embed_codes, engine.embed_scales, x)
        for number, layer in enumerate(engine.layers):
            cache, sinks = self._caches[number], self.sinks[number]
            layers.normalize(x, engine.epsilon, codes, scales)
            layers.project_heads(
                layer.qkv(codes), scales, layer.qkv_scales, self._cosines, self._sines,
                row_stream, row_position, engine.windows[number], self._slots[number],
                engine.sinks, query, query_scale, sink_query, sink_query_scale, *cache, *sinks,
                engine.logit_unit,
            )  # fmt: skip
            self._attend(
                query, query_scale, sink_query, sink_query_scale, *cache, *sinks,
                row_stream, row_position, engine.windows[number], self._slots[number], engine.sinks,
                *self._scratch, attended,
            )  # fmt: skip
            layers.quantize_rows(attended, attended_codes, scales)
            layers.add_product(x, layer.o(attended_codes), scales, layer.o_scales)
            layers.normalize(x, engine.epsilon, codes, scales)
            layers.gate_and_rotate(
                layer.gate_up(codes), scales, layer.gate_up_scales, engine.span, gated_codes,
                scales,
            )  # fmt: skip
            layers.add_product(x, layer.down(gated_codes), scales, layer.down_scales)
        layers.normalize(x, engine.epsilon, codes, scales)
        self.position += steps
        return codes, scales
