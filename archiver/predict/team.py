"""Streams in lockstep, a token a step, on threads that each have some of them.

Members of a team make their steps apart, or together: then they share every product, and the
weights are read once. What comes out is the same, so a team may change from one to the other after
any step.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from archiver.predict.kernels import layers
from archiver.predict.kernels.head import TILE_RANKS, weigh_vocabulary
from archiver.predict.kernels.meeting import abandon, new_meeting
from archiver.predict.kernels.memory import aligned_empty
from archiver.predict.kernels.products import AmxProduct, VnniProduct
from archiver.predict.kernels.team import ADDRESSES, Model, Own, Part, Rows, step
from archiver.predict.kernels.tiles import PANEL_SHAPES

if TYPE_CHECKING:
    from archiver.predict.engine import Engine
    from archiver.predict.linear import Layer, Linear
    from archiver.predict.predictor import Predictor
    from archiver.predict.session import Session
    from archiver.types import Float32Array, Int32Array, Int64Array

# Weights of few rows come from memory a third faster through byte dot products than through tile
# registers: 19 instead of 13 GB/s for 1 row on two threads, 15 and 14 for 8, 10 and 13 for 16.
DOT_ROWS_MAX = 8
# A step of few streams takes the time in which memory brings the weights, so two threads that
# each read them are no faster than one (measured: 3 streams, 22 ms a step against 17).
SOLO_STREAMS_MIN = 4
HEAD_ROWS = 32  # rows whose products over the vocabulary lie in memory at once


def head_room(predictor: Predictor, rows: int) -> Float32Array:
    """Where the products of so many rows over the vocabulary come to lie, float32."""
    return aligned_empty((rows * predictor.vocabulary.size,), np.float32)


def _weights_of(streams: int, size: int) -> tuple[Int32Array, Int64Array]:
    """Memory for weights and their totals, as `PredictorTeam` has them."""
    tiles = -(-size // TILE_RANKS)
    return np.empty((streams, size), np.int32), np.empty((streams, tiles + 1), np.int64)


def shares_of(streams: int, members: int) -> list[slice]:
    """Which streams each of some members has; the last ones have one more at most."""
    edges = [streams * number // members for number in range(members + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def solo_members(threads: int, streams: int) -> int:
    """How many members that cannot share products there had best be."""
    return max(1, min(threads, streams // SOLO_STREAMS_MIN))


class SoloTeam:
    """Members that make their steps apart, for any predictor; attributes as for `Team`."""

    def __init__(self, predictor: Predictor, *, streams: int, tokens: int, members: int) -> None:
        """Args: tokens: the longest stream's length; members: at most as many as streams."""
        self.shares = shares_of(streams, members)
        self._predictor = predictor
        self.states = np.empty((streams, predictor.state_entries), np.int8)
        self.weights, self.cumulative = _weights_of(streams, predictor.vocabulary.size)
        self._members = [
            _SoloMember(predictor, share.stop - share.start, tokens) for share in self.shares
        ]

    def run_apart(self, number: int, tokens: Int32Array) -> None:
        """A step of one member's streams; arguments as for `Team.run_apart`."""
        member, share = self._members[number], self.shares[number]
        weights, cumulative = self.weights[share], self.cumulative[share]
        codes, scales = member.session.advance(tokens[:, None])
        if self._predictor.state_entries:
            self.states[share] = codes
        for start in range(0, len(codes), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            products, row_scales, head_scales = self._predictor.head(
                codes[rows], scales[rows], member.room
            )
            for row, product in enumerate(products):
                weigh_vocabulary(
                    product, row_scales[row], head_scales, member.logits, weights[start + row],
                    cumulative[start + row],
                )  # fmt: skip

    @classmethod
    def on_threads(
        cls, predictor: Predictor, *, streams: int, tokens: int, threads: int
    ) -> SoloTeam:
        """A team of as many members as there had best be on so many threads."""
        members = solo_members(threads, streams)
        return cls(predictor, streams=streams, tokens=tokens, members=members)


class _SoloMember:
    """What a thread has for itself."""

    def __init__(self, predictor: Predictor, streams: int, tokens: int) -> None:
        self.session = predictor.session(streams=streams, tokens=tokens, steps=1)
        self.logits = np.empty(predictor.vocabulary.size, np.float32)
        self.room = head_room(predictor, min(streams, HEAD_ROWS))


class Team:
    """Members that can also make their steps together.

    Attributes:
        shares: the streams of each member.
        weights: int32 [streams, vocabulary], of the next tokens after a step; cumulative: int64
            [streams, tiles + 1] (see `head.weigh_vocabulary`).
        states: int8 [streams, hidden], of which they were made.
    """

    def __init__(self, engine: Engine, *, streams: int, tokens: int, members: int) -> None:
        """Args: tokens: the longest stream's length."""
        self.shares = shares_of(streams, members)
        self._meeting = new_meeting()
        size = engine.vocabulary.size
        self.weights, self.cumulative = _weights_of(streams, size)
        self.states = aligned_empty((streams, engine.hidden), np.int8)
        matrices = _matrices(engine.layers[0])
        widest = max(size, *(len(matrix.scales) for matrix in matrices))
        scales, inner_scales = np.empty((2, streams), np.float32)
        rows = Rows(
            codes=self.states, scales=scales, inner_scales=inner_scales,
            attended_codes=aligned_empty((streams, engine.heads * engine.head_dim), np.int8),
            activated_codes=aligned_empty((streams, engine.ffn), np.int8),
            room=aligned_empty((streams, widest), np.float32),
            weights=self.weights, cumulative=self.cumulative,
        )  # fmt: skip
        self._members = [
            _Member(engine, self._meeting, rows, self.shares, number, tokens)
            for number in range(members)
        ]

    def run_together(self, number: int, tokens: Int32Array) -> None:
        """A member's part of a step of all streams; all members' have to run at the same time.

        Args:
            tokens: int32 [the member's streams], their last tokens, embedding rows.
        """
        member = self._members[number]
        try:
            member.step(tokens, member.together)
        except BaseException:
            abandon(self._meeting)
            raise

    def run_apart(self, number: int, tokens: Int32Array) -> None:
        """A step of one member's streams; other members may be anywhere.

        Args:
            tokens: as for `run_together`.
        """
        member = self._members[number]
        member.step(tokens, member.apart)


class _Member:
    """What a thread has for itself.

    Attributes:
        together, apart: its part of a step of all streams or of its own ones alone, and the rows
            that are multiplied.
    """

    def __init__(
        self, engine: Engine, meeting: Int64Array, rows: Rows, shares: list[slice], number: int,
        tokens: int,
    ) -> None:  # fmt: skip
        share, streams = shares[number], shares[-1].stop
        own = share.stop - share.start
        by_tiles = engine.backend.tiled and streams > DOT_ROWS_MAX
        unit = AmxProduct.outputs_step if by_tiles else VnniProduct.outputs_step
        self._engine = engine
        self._session: Session = engine.session(streams=own, tokens=tokens, steps=1)
        self._own = self._own_arrays()
        self._model = self._constants(PANEL_SHAPES if by_tiles else None)
        self.together = (
            _part(engine, meeting, share, number, len(shares), unit), _flat(rows, slice(0, streams))
        )  # fmt: skip
        self.apart = (
            _part(engine, new_meeting(), slice(0, own), 0, 1, unit), _flat(rows, share)
        )  # fmt: skip

    def step(self, tokens: Int32Array, way: tuple[Part, Rows]) -> None:
        """Args: tokens: int32 [own], embedding rows; way: `together` or `apart`."""
        engine, session = self._engine, self._session
        layers.embed(tokens, engine.embed_codes, engine.embed_scales, self._own.x)
        step(*way, self._own, self._model, session.position)
        session.position += 1

    def _own_arrays(self) -> Own:
        rows = self._session.rows
        return Own(
            x=rows.x, attended=rows.attended,
            queries=(rows.query, rows.query_scale, rows.sink_query, rows.sink_query_scale),
            scratch=self._session.scratch,
            addresses=np.array(
                [[array.ctypes.data for array in self._arrays(number)]
                 for number in range(len(self._engine.layers))],
                np.int64,
            ),
        )  # fmt: skip

    def _arrays(self, number: int) -> list[NDArray[Any]]:
        """Those of a layer, all of one piece; engine and session keep them where they are."""
        matrices, session = _matrices(self._engine.layers[number]), self._session
        arrays: list[NDArray[Any]] = [
            *(_product(matrix).packed for matrix in matrices),
            *(matrix.scales for matrix in matrices),
            *session.caches[number], *session.sinks[number], *session.angles[number],
        ]  # fmt: skip
        assert all(array.flags.c_contiguous for array in arrays)
        assert len(arrays) == ADDRESSES
        return arrays

    def _constants(self, shapes: Any) -> Model:
        engine, session = self._engine, self._session
        matrices, count = _matrices(engine.layers[0]), len(engine.layers)
        return Model(
            outputs=np.array([len(of.scales) for of in matrices], np.int64),
            packed_bytes=np.array([len(_product(of).packed) for of in matrices], np.int64),
            positions=len(session.angles[0][0]), windows=engine.windows, slots=session.slots,
            sinks=engine.sinks, sink_slots=session.sinks[0][-1].shape[-1],
            layer_sinks=np.array([engine.layer_sinks(layer) for layer in range(count)], np.int32),
            epsilon=engine.epsilon, logit_unit=engine.logit_unit, span=engine.span,
            head_packed=_product(engine.head).packed, head_scales=engine.head.scales,
            group=_product(engine.head).group, shapes=shapes,
        )  # fmt: skip


def _part(
    engine: Engine, meeting: Int64Array, streams: slice, number: int, members: int, unit: int
) -> Part:
    """Args: streams: the member's; number: its own; unit: outputs that stay together."""
    matrices = (*_matrices(engine.layers[0]), engine.head)
    return Part(
        meeting=meeting, met=np.zeros(1, np.int64), members=members, first=streams.start,
        last=streams.stop,
        outputs=np.array([own_outputs(of, number, members, unit) for of in matrices], np.int64),
    )  # fmt: skip


def _flat(rows: Rows, streams: slice) -> Rows:
    """The rows of some streams, in a room without rows."""
    some = Rows._make(array[streams] for array in rows)
    return some._replace(room=some.room.reshape(-1))


def _matrices(layer: Layer) -> tuple[Linear, Linear, Linear, Linear]:
    return layer.qkv, layer.o, layer.up, layer.down


def own_outputs(matrix: Linear, number: int, members: int, step: int) -> tuple[int, int]:
    """The first output of a matrix that a member multiplies by, and the end, in whole steps."""
    outputs = len(matrix.scales)
    steps = -(-outputs // step)
    begin, end = (min(outputs, step * (steps * n // members)) for n in (number, number + 1))
    return begin, end


def _product(matrix: Linear) -> VnniProduct:
    assert isinstance(matrix.product, VnniProduct)
    return matrix.product


def shares_products(engine: Engine) -> bool:
    """Whether an engine can have a `Team`: our own products, and layers as Llama's are."""
    family = engine.family
    others = family.biased or family.head_norms or family.output_norms or family.parallel
    plain = family.activation == "silu" and family.gated and not (family.positions or others)
    return plain and issubclass(engine.backend, VnniProduct)
