"""The exact transformer: fast kernels around exact matrix products.

    tokens ── embed ── x ─┬─ normalize ── qkv ── project_heads ── attend ── o ──┬─ + ─┐
                          └─────────────────────────────────────────────────────┘    │ x layers
                        ┌─┬─ normalize ── gate_up ── gate_and_rotate ── down ── + ─┬──┘
                        │ └────────────────────────────────────────────────────────┘
                        └─ normalize ── head ── products over the vocabulary

That is the Llama family; `architectures` tells what others add, and `kernels.families` computes it.

A whole block of one stream, or one step of many streams, takes the same path; a row's result
depends on its own stream's earlier tokens only. FORMAT.md defines the result, and
`tests/reference` is a slow decoder written from it.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError, UsageError
from archiver.predict.architectures import ARCHITECTURES, Architecture, architecture_of
from archiver.predict.kernels import attention, families, layers
from archiver.predict.kernels.memory import aligned_empty, aligned_zeros
from archiver.predict.kernels.products import INNER_MAX, Product, choose_backend
from archiver.predict.kernels.tiles import ROW_SHAPES, TILE_BYTES
from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.predict.predictor import PredictorSession
from archiver.predict.tables import ROTARY_SPAN, activation_span, rotary_angles
from archiver.text.vocabulary import Vocabulary
from archiver.types import Float32Array, Int8Array, Int32Array, UInt8Array

if TYPE_CHECKING:
    from archiver.predict.package import Arrays, ModelPackage

ENGINE_VERSION = 2
STREAM_TOKENS_MAX = ROTARY_SPAN * ROTARY_SPAN  # positions that the rotary tables reach: 65,536
VISIBLE_MAX = 1 << 14  # window + sinks below this keep attention's totals in int32
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
EPSILON_MIN = 2.0**-80  # of norms, so that one over a root stays far from infinity
ADDEND_MAX = 2.0**14  # of whatever is added to products, or multiplies them after a norm
REREAD_ROWS = 2048  # rows that go through the layers at once when streams restart


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
                vectors[f"layers.{layer}.o.gains"] = (self.hidden,)
                vectors[f"layers.{layer}.down.gains"] = (self.hidden,)
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


Scaled: TypeAlias = tuple[Float32Array, Float32Array, Float32Array]
"""A product [rows, outputs], its scales by row and by output: value = product * (row * output)."""


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
        output_gains: of the norms after attention and after the feed-forward network, float32
            [hidden] each.
    """

    qkv: Linear
    o: Linear
    up: Linear
    down: Linear
    head_gains: tuple[Float32Array, Float32Array] | None
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
            output_gains=pair(family.output_norms, "o.gains", "down.gains"),
        )


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


class EngineSession(PredictorSession, Protocol):
    """The state of some streams that advance together; `advance` gives int8 codes."""

    sinks: Any
    """Keys and values of the first positions, as the engine wants a soft prompt's."""


class ExactHead(Protocol):
    """From hidden states to products over the vocabulary."""

    def __call__(
        self, codes: Int8Array, scales: Float32Array, room: Float32Array | None = None, /
    ) -> Scaled:
        """Products of what a session gives; arguments as for `Linear`."""


class EngineBase(ABC):
    """What package and header settle, wherever the weights lie: all that the codec knows of.

    Whatever computes, the integers are the same: an archive does not tell by what it was made.

    Attributes:
        block_tokens: of a stream that had best go through the layers at once, where all are known.
        head: from a session's rows to products over the vocabulary.
        windows: int32 [layers, kv_heads], tokens that each key/value head sees.
        lead: vectors of the soft prompt; the first token of a stream stands at this position.
        sinks: first positions that every later one sees, the soft prompt's included.
        prompt_sinks: the soft prompt's keys and values, as a session's sinks; None without one.
        segment: tokens after which streams restart, where places have vectors; else None.
    """

    serial = False
    block_tokens: ClassVar[int]
    head: ExactHead

    def __init__(
        self, package: ModelPackage, *, window: int, local_window: int, sinks: int
    ) -> None:
        """Check the package; its weights are a subclass's business.

        Args:
            window: tokens that a position sees, itself included; local_window: those that the
                package's local heads see, at most `window`; sinks: first positions of a
                stream that every later one sees as well.

        Raises:
            UsageError: windows or sinks out of range. InvalidModelError: a malformed package.
        """
        _check_visible(window, sinks)
        if not 1 <= local_window <= window:
            raise UsageError(f"a local window of {local_window} in one of {window}")
        config = self.config = EngineConfig.of(package)
        self.window, self.sinks = window, sinks
        local = np.asarray(package.arrays["local_heads"]) != 0
        self.windows: Int32Array = np.where(local, local_window, window).astype(np.int32)
        self.family = config.family
        self.lead = 0
        self.prompt_sinks: Any = None
        self.hidden, self.ffn = config.hidden, config.ffn
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.epsilon = config.norm_epsilon
        self.start_token = config.start_token
        arrays = package.arrays
        self.inner_sizes = {self.hidden, self.heads * self.head_dim, self.ffn}
        if max(self.inner_sizes) > INNER_MAX:
            raise InvalidModelError(f"sums of more than {INNER_MAX} products")
        slides = np.zeros(config.layers, np.bool_)
        if config.sliding_tokens is not None:
            slides = np.asarray(arrays["sliding_layers"]) != 0
            shorter = np.minimum(self.windows, config.sliding_tokens)
            self.windows = np.where(slides[:, None], shorter, self.windows).astype(np.int32)
        self._slides: list[bool] = slides.tolist()
        self.segment: int | None = None
        self.positions: Float32Array | None = None
        if config.positions is not None:
            self.positions = np.array(arrays["positions"])
            self.segment = min(window, config.positions)
        self.vocabulary = Vocabulary.build(
            np.array(arrays["tokens.data"]),
            np.array(arrays["tokens.offsets"]),
            np.array(arrays["tokens.rank_of_id"]),
        )
        self._rotary = [
            (np.array(arrays[f"rotary.{kind}fine"]), np.array(arrays[f"rotary.{kind}coarse"]))
            for kind in (("", "sliding_") if config.family.sliding else ("",))
        ]
        self.span = activation_span(self.ffn)
        self.logit_unit = np.float32(LOG2_E / np.sqrt(float(self.head_dim)))

    @abstractmethod
    def session(self, *, streams: int, tokens: int, steps: int) -> EngineSession:
        """Streams that hold nothing but the soft prompt.

        Args:
            tokens: the longest stream's length, at most STREAM_TOKENS_MAX with the soft prompt.
            steps: the most tokens a stream that one call of `advance` brings.
        """

    @abstractmethod
    def prepare_thread(self) -> None:
        """The calling thread is ready to run sessions."""

    @abstractmethod
    def _embed_by(self, codes: Int8Array, scales: Float32Array) -> None:
        """Embeddings are codes * scales from now on: int8 [rows, hidden], float32 [rows]."""

    def steered(self, prompt: SoftPrompt) -> Self:
        """An engine over the same weights whose streams begin after a soft prompt.

        The prompt's vectors go through the layers once, in place of embeddings; every later
        position sees them, beside the sinks that this engine has.

        Raises:
            UsageError: more is seen than attention can add up, or no place is left for tokens.
        """
        assert self.lead == 0
        lead = len(prompt.codes)
        _check_visible(self.window, self.sinks + lead)
        if self.positions is not None and lead >= len(self.positions):
            raise UsageError(
                f"{lead} steering vectors: the model has {len(self.positions)} places in all"
            )
        steered = copy.copy(self)
        steered.sinks = self.sinks + lead
        reader = copy.copy(steered)  # one whose tokens are the vectors
        reader._embed_by(prompt.codes, prompt.scales)
        if self.positions is not None:
            reader.segment = lead
            steered.segment = min(self.window, len(self.positions) - lead)
        session = reader.session(streams=1, tokens=lead, steps=lead)
        session.advance(np.arange(lead, dtype=np.int32)[None])
        steered.lead, steered.prompt_sinks = lead, session.sinks
        return steered

    def layer_sinks(self, number: int) -> int:
        """First positions that every later one sees in a layer; none in a sliding one."""
        return 0 if self._slides[number] else self.sinks

    def reread_tokens(self, streams: int) -> int:
        """Tokens of each stream that go through the layers at once when streams restart."""
        assert self.segment is not None
        return max(1, min(128, REREAD_ROWS // streams, self.segment // 2))

    def cache_slots(self, *, streams: int, tokens: int, steps: int, unit: int) -> Int32Array:
        """Slots of every key/value head's cache, int32 [layers, kv_heads], multiples of `unit`.

        Args: as for `Session`.
        """
        if self.segment is not None:
            tokens = min(tokens, self.segment)
            steps = max(steps, self.reread_tokens(streams))
        needed = np.minimum(self.lead + tokens, self.windows + steps + unit)
        return (-(-needed // unit) * unit).astype(np.int32)

    def cache_bytes(self, streams: int, steps: int) -> int:
        """Memory for the keys and values of that many streams, a step at a time, at most."""
        slots = self.cache_slots(streams=1, tokens=steps, steps=1, unit=16)
        total = int(slots.sum(dtype=np.int64)) + slots.size * (self.sinks + 16)
        return streams * total * (2 * self.head_dim + 8)

    def rotary(self, positions: int) -> list[tuple[Float32Array, Float32Array]]:
        """By layer, cosines and sines of the first positions, float32 [positions, head_dim/2]."""
        angles = [rotary_angles(fine, coarse, positions) for fine, coarse in self._rotary]
        return [angles[slides] for slides in self._slides]


class Engine(EngineBase):
    """A model package ready to run on the processor; holds no state of any stream and may serve
    many threads.
    """

    block_tokens = 128

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
        self.layers = [
            Layer.of(self.config, arrays, number, self.backend)
            for number in range(self.config.layers)
        ]

    def session(self, *, streams: int, tokens: int, steps: int) -> Session:
        """Streams that hold nothing but the soft prompt; arguments as for `Session`."""
        return Session(self, streams=streams, tokens=tokens, steps=steps)

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

    def add(self, x: Float32Array, product: Scaled, gains: Float32Array | None) -> None:
        """x += the product, normalized if there are gains; x float32 [rows, hidden]."""
        if gains is None:
            layers.add_product(x, *product)
        else:
            families.add_normalized(x, *product, gains, self.epsilon, activation_span(self.hidden))


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """What a number of rows come to on their way through a layer; every layer writes it anew.

    Attributes:
        x: float32 [rows, hidden], the residual stream.
        codes, scales: of its norm, int8 [rows, hidden] and float32 [rows].
        query .. sink_query_scale: as `attention.attend` takes them.
        attended: float32 [rows, heads * head_dim]; attended_codes: int8, the same shape.
        activated_codes: int8 [rows, ffn]; inner_scales: float32 [rows], of these or those.
        room: float32, for the largest product.
    """

    x: Float32Array
    codes: Int8Array
    scales: Float32Array
    query: Int8Array
    query_scale: Float32Array
    sink_query: Int8Array
    sink_query_scale: Float32Array
    attended: Float32Array
    attended_codes: Int8Array
    activated_codes: Int8Array
    inner_scales: Float32Array
    room: Float32Array

    @classmethod
    def of(cls, engine: Engine, rows: int) -> _Rows:
        queries = (rows, engine.heads, engine.head_dim)
        width = engine.heads * engine.head_dim
        layer = engine.layers[0]
        widest = max(len(of.scales) for of in (layer.qkv, layer.o, layer.up, layer.down))
        return cls(
            x=aligned_empty((rows, engine.hidden), np.float32),
            codes=aligned_empty((rows, engine.hidden), np.int8),
            scales=np.empty(rows, np.float32),
            query=aligned_empty(queries, np.int8),
            query_scale=np.empty(queries[:2], np.float32),
            sink_query=aligned_empty(queries, np.int8),
            sink_query_scale=np.empty(queries[:2], np.float32),
            attended=aligned_empty((rows, width), np.float32),
            attended_codes=aligned_empty((rows, width), np.int8),
            activated_codes=aligned_empty((rows, engine.ffn), np.int8),
            inner_scales=np.empty(rows, np.float32),
            room=aligned_empty((rows * widest,), np.float32),
        )


class Session:
    """The state of some streams that advance together: their keys and values.

    Attributes:
        position: where the next token of every stream stands, counted from the last restart.
        sinks: keys and values of the first positions.
    """

    def __init__(self, engine: Engine, *, streams: int, tokens: int, steps: int) -> None:
        """Caches for `streams` streams that hold nothing but the engine's soft prompt.

        Args:
            tokens: the longest stream's length, at most STREAM_TOKENS_MAX with the soft prompt.
            steps: the most tokens a stream that one call of `advance` brings.
        """
        assert tokens >= 1
        assert engine.lead + tokens <= STREAM_TOKENS_MAX
        if engine.segment is not None:
            self._recent = np.zeros((streams, engine.segment), np.int32)
        self.engine = engine
        self.streams = streams
        self.position = 0
        # Blocks of consecutive rows go through tile registers, where there are any.
        tiled = steps >= 8 and engine.head_dim % TILE_BYTES == 0 and engine.backend.tiled
        unit = attention.TILED_POSITIONS if tiled else 16
        rings = engine.cache_slots(streams=streams, tokens=tokens, steps=steps, unit=unit)
        self._slots = np.zeros((len(engine.layers), engine.kv_heads + 1), np.int32)
        np.cumsum(rings, axis=1, out=self._slots[:, 1:])
        self._caches = _caches(engine, [(streams, total) for total in self._slots[:, -1].tolist()])
        sink_ring = max(unit, -(-engine.sinks // unit) * unit)
        self.sinks = _caches(engine, [(streams, engine.kv_heads, sink_ring)] * len(engine.layers))
        positions = engine.lead + min(tokens, engine.segment or tokens)
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
        self._rows = _Rows.of(engine, streams * steps)
        self._angles = engine.rotary(max(positions, engine.window + engine.sinks))
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
        segment, lead = self.engine.segment, self.engine.lead
        if segment is None:
            return self._read(tokens)
        streams, steps = tokens.shape
        codes = np.empty((streams, steps, self.engine.hidden), np.int8)
        scales = np.empty((streams, steps), np.float32)
        done = 0
        while done < steps:
            if self.position == lead + segment:
                self._restart(segment)
            place = self.position - lead
            last = min(steps, done + segment - place)
            part = np.ascontiguousarray(tokens[:, done:last])
            self._recent[:, place : place + last - done] = part
            found_codes, found_scales = self._read(part)
            codes[:, done:last] = found_codes.reshape(streams, last - done, -1)
            scales[:, done:last] = found_scales.reshape(streams, -1)
            done = last
        return codes.reshape(streams * steps, -1), scales.reshape(-1)

    def _restart(self, segment: int) -> None:
        """Every stream's cache holds the soft prompt, and the last half of the segment read again.

        What lies at later positions is written before it is seen.
        """
        overlap = segment // 2
        again = self._recent[:, segment - overlap :].copy()
        self._recent[:, :overlap] = again
        self.position = self.engine.lead
        if self.engine.prompt_sinks is not None:
            self._adopt(self.engine.prompt_sinks)
        tokens = self.engine.reread_tokens(self.streams)
        for start in range(0, overlap, tokens):
            self._read(np.ascontiguousarray(again[:, start : start + tokens]))

    def _read(self, tokens: Int32Array) -> tuple[Int8Array, Float32Array]:
        """`advance` within a segment."""
        engine = self.engine
        streams, steps = tokens.shape
        assert streams == self.streams
        rows = streams * steps
        row_stream = np.repeat(np.arange(streams, dtype=np.int32), steps)
        row_position = np.tile(
            np.arange(self.position, self.position + steps, dtype=np.int32), streams
        )
        if len(self._rows.x) != rows:
            self._rows = _Rows.of(engine, rows)
        mine = self._rows
        x, codes, scales, inner_scales = mine.x, mine.codes, mine.scales, mine.inner_scales
        queries = mine.query, mine.query_scale, mine.sink_query, mine.sink_query_scale

        layers.embed(tokens.reshape(-1), engine.embed_codes, engine.embed_scales, x)
        if engine.positions is not None:
            families.add_positions(x, engine.positions, row_position)
        for number, layer in enumerate(engine.layers):
            cache, sinks = self._caches[number], self.sinks[number]
            places = row_stream, row_position, engine.windows[number], self._slots[number]
            output_gains = layer.output_gains or (None, None)
            layers.normalize(x, engine.epsilon, codes, scales)
            heads = layer.qkv(codes, scales, mine.room)
            if layer.head_gains is not None:
                families.normalize_heads(*heads, *layer.head_gains, engine.kv_heads, engine.epsilon)
                heads = layer.qkv.unscaled(heads[0])
            layers.project_heads(
                *heads, *self._angles[number], *places, engine.sinks, *queries, *cache, *sinks,
                engine.logit_unit,
            )  # fmt: skip
            self._attend(
                *queries, *cache, *sinks, *places, engine.layer_sinks(number), *self._scratch,
                mine.attended,
            )  # fmt: skip
            layers.quantize_rows(mine.attended, mine.attended_codes, inner_scales)
            attended = layer.o(mine.attended_codes, inner_scales, mine.room)
            engine.add(x, attended, output_gains[0])
            if not engine.family.parallel:
                layers.normalize(x, engine.epsilon, codes, scales)
            up = layer.up(codes, scales, mine.room)
            engine.activate(up, mine.activated_codes, inner_scales)
            down = layer.down(mine.activated_codes, inner_scales, mine.room)
            engine.add(x, down, output_gains[1])
        # The caller's own, unlike the rest.
        last_codes = aligned_empty(codes.shape, np.int8)
        last_scales = np.empty_like(scales)
        layers.normalize(x, engine.epsilon, last_codes, last_scales)
        self.position += steps
        return last_codes, last_scales
