"""What the exact engine is, wherever its weights lie.

    package ── EngineConfig ── EngineBase ─┬─ Engine ── Session                of the processor
                                           └─ DeviceEngine ── DeviceSession    of torch's devices

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from archiver.errors import InvalidModelError, UsageError
from archiver.predict.engine_config import EngineConfig
from archiver.predict.kernels.products import INNER_MAX
from archiver.predict.predictor import PredictorSession, PredictorTeam, Scaled
from archiver.predict.tables import LOG2_E, ROTARY_SPAN, activation_span, rotary_angles
from archiver.predict.team import SoloTeam
from archiver.text.vocabulary import Vocabulary
from archiver.types import Float32Array, Int8Array, Int32Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage
    from archiver.predict.soft_prompt import SoftPrompt

ENGINE_VERSION = 2
STREAM_TOKENS_MAX = ROTARY_SPAN * ROTARY_SPAN  # positions that the rotary tables reach: 65,536
VISIBLE_MAX = 1 << 14  # window + sinks below this keep attention's totals in int32
REREAD_ROWS = 2048  # rows that go through the layers at once when streams restart


class EngineSession(PredictorSession, Protocol):
    """The state of some streams that advance together; `advance` gives int8 codes."""

    sinks: Any
    """Keys and values of the first positions, as the engine wants a soft prompt's."""


class ExactHead(Protocol):
    """From hidden states to products over the vocabulary."""

    def __call__(
        self, codes: Int8Array, scales: Float32Array, room: Float32Array | None = None, /
    ) -> Scaled:
        """Products of what a session gives; arguments as for `linear.Linear`."""


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

    def team(self, *, streams: int, tokens: int, threads: int) -> PredictorTeam:
        """Streams for steps on at most so many threads."""
        return SoloTeam.on_threads(self, streams=streams, tokens=tokens, threads=threads)

    @property
    def state_entries(self) -> int:
        """Entries of the rows that sessions give."""
        return self.hidden

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


def _check_visible(window: int, sinks: int) -> None:
    if not (window >= 1 and sinks >= 0 and window + sinks < VISIBLE_MAX):
        raise UsageError(
            f"window {window} with {sinks} sinks: the sum must stay below {VISIBLE_MAX}"
        )
