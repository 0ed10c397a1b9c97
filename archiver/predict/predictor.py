"""What the codec needs of a model, whatever computes it.

    tokens ── session.advance ── hidden, row scales ── head ── products ── integer weights

`engine` is the exact one (and `device.engine`), `float_engine` any causal model that transformers
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from archiver.text.vocabulary import Vocabulary
from archiver.types import Float32Array, Int8Array, Int32Array, Int64Array

Scaled: TypeAlias = tuple[Float32Array, Float32Array, Float32Array]
"""A product [rows, outputs], its scales by row and by output: value = product * (row * output)."""


class PredictorSession(Protocol):
    """Some streams that advance together."""

    def advance(self, tokens: Int32Array) -> tuple[NDArray[Any], Float32Array]:
        """Every stream is `steps` tokens further.

        Args:
            tokens: int32 [streams, steps], ranks; `start_token` before the first and after escapes.

        Returns:
            what `head` takes: rows, stream by stream, [streams * steps, ...], and their scales,
            float32 [streams * steps].
        """


class PredictorTeam(Protocol):
    """Streams, and members that each bring some of them a token further, on threads of their own.

    Some teams can make a step together as well, see `team.Team`.
    """

    @property
    def shares(self) -> Sequence[slice]:
        """Each member's streams, from the first to the last; a member may have none."""

    @property
    def weights(self) -> Int32Array:
        """Of every stream's next token after a step, int32 [streams, vocabulary]."""

    @property
    def cumulative(self) -> Int64Array:
        """Their totals, int64 [streams, tiles + 1] (see `head.weigh_vocabulary`)."""

    @property
    def states(self) -> Int8Array:
        """The rows that the weights come from, int8 [streams, signature bits]."""

    def run_apart(self, number: int, tokens: Int32Array) -> None:
        """A step of one member's streams, whatever the others do.

        Args:
            tokens: int32 [the member's streams], their last tokens; `start_token` as in `advance`.
        """


class Predictor(Protocol):
    """A model that says how likely each token is next."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens by rank."""

    @property
    def start_token(self) -> int:
        """The input where no token comes before."""

    @property
    def lead(self) -> int:
        """How many positions of each stream a soft prompt takes."""

    @property
    def serial(self) -> bool:
        """Whether streams must be run one by one, a token at a time, in a single thread.

        So it is where a row's result depends on what is computed with it.
        """

    @property
    def state_entries(self) -> int:
        """Entries of the rows that sessions give, whose signs the mixer may use; 0 for none."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a stream that had best go through the model at once, where all are known."""

    def prepare_thread(self) -> None:
        """Make the calling thread ready to run sessions."""

    def cache_bytes(self, streams: int, steps: int) -> int:
        """Memory that so many streams of so many tokens take, a step at a time, at most."""

    def session(self, *, streams: int, tokens: int, steps: int) -> PredictorSession:
        """Streams at their beginning.

        Args:
            tokens: the longest stream's length; steps: the most that `advance` brings of each.
        """

    def team(self, *, streams: int, tokens: int, threads: int) -> PredictorTeam:
        """Streams at their beginning, for steps on at most so many threads.

        Args:
            tokens: the longest stream's length.
        """

    @property
    def head(self) -> Head:
        """What turns rows of `advance` into products over the vocabulary."""


class Head(Protocol):
    """From hidden rows to the vocabulary."""

    def __call__(self, codes: NDArray[Any], scales: Float32Array, room: Float32Array, /) -> Scaled:
        """Products over the vocabulary, by rank; their values are logits in units of one bit, of
        the logarithm to base 2.

        Args:
            room: float32 [rows * vocabulary or more], where the products may come to lie.
        """
