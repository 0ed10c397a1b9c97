"""Streams in lockstep, a token a step, on threads that each have some of them.

Members of a team make their steps apart, or together: then they share every product, and the
weights are read once. What comes out is the same, so a team may change from one to the other after
any step.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from archiver.predict.kernels import layers
from archiver.predict.kernels.head import TILE_RANKS, weigh_vocabulary
from archiver.predict.kernels.meeting import abandon, new_meeting
from archiver.predict.kernels.memory import aligned_empty
from archiver.predict.kernels.products import AmxProduct, VnniProduct
from archiver.predict.kernels.team import ADDRESSES, step
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
        self._engine = engine
        size = engine.vocabulary.size
        self.weights, self.cumulative = _weights_of(streams, size)
        width, ffn = engine.heads * engine.head_dim, engine.ffn
        self.states = aligned_empty((streams, engine.hidden), np.int8)
        self._scales, self._inner_scales = np.empty((2, streams), np.float32)
        self._attended_codes = aligned_empty((streams, width), np.int8)
        self._activated_codes = aligned_empty((streams, ffn), np.int8)
        self._meeting = new_meeting()
        matrices = _matrices(engine.layers[0])
        self._packed_bytes = np.array([len(_product(of).packed) for of in matrices], np.int64)
        self._outputs = np.array([len(of.scales) for of in matrices], np.int64)
        self._room = aligned_empty((streams, max(size, int(self._outputs.max()))), np.float32)
        self._layer_sinks = np.array(
            [engine.layer_sinks(number) for number in range(len(engine.layers))], np.int32
        )
        self._members = [
            _Member(engine, self._meeting, self.shares, number, tokens) for number in range(members)
        ]

    def run_together(self, number: int, tokens: Int32Array) -> None:
        """A member's part of a step of all streams; all members' have to run at the same time.

        Args:
            tokens: int32 [the member's streams], their last tokens, embedding rows.
        """
        member = self._members[number]
        try:
            self._step(member, tokens, member.together)
        except BaseException:
            abandon(self._meeting)
            raise

    def run_apart(self, number: int, tokens: Int32Array) -> None:
        """A step of one member's streams; other members may be anywhere.

        Args:
            tokens: as for `run_together`.
        """
        member = self._members[number]
        self._step(member, tokens, member.apart)

    def _step(self, member: _Member, tokens: Int32Array, way: _Way) -> None:
        engine, session, rows = self._engine, member.session, way.rows
        mine = session.rows
        layers.embed(tokens, engine.embed_codes, engine.embed_scales, mine.x)
        step(
            way.meeting, way.met, way.members, way.own.start, way.own.stop, mine.x, mine.attended,
            self.states[rows], self._scales[rows], self._inner_scales[rows],
            self._attended_codes[rows], self._activated_codes[rows], self._room[rows].reshape(-1),
            member.addresses, self._outputs, self._packed_bytes, way.outputs, member.shapes,
            session.position, len(session.angles[0][0]), engine.windows, session.slots,
            session.sinks[0][-1].shape[-1], engine.sinks, self._layer_sinks,
            (mine.query, mine.query_scale, mine.sink_query, mine.sink_query_scale),
            session.scratch, engine.epsilon, engine.logit_unit, engine.span,
            _product(engine.head).packed, engine.head.scales, *way.head_outputs,
            self.weights[rows], self.cumulative[rows],
        )  # fmt: skip
        session.position += 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """How a member makes a step: alone, or with all others.

    Attributes:
        meeting: of those who share products; met: int64 [1], arrivals there that the member has
            expected so far; members: how many they are.
        rows: the streams whose rows are multiplied; own: the member's, counted from the first.
        outputs: int64 [4, 2], its outputs of qkv, o, up and down; head_outputs: of the head.
    """

    meeting: Int64Array
    met: Int64Array
    members: int
    rows: slice
    own: slice
    outputs: Int64Array
    head_outputs: tuple[int, int]

    @classmethod
    def of(
        cls, engine: Engine, meeting: Int64Array, *, rows: slice, own: slice, number: int,
        members: int, unit: int,
    ) -> _Way:  # fmt: skip
        """Args: number: the member's among those who share; unit: outputs that stay together."""
        return cls(
            meeting=meeting, met=np.zeros(1, np.int64), members=members, rows=rows, own=own,
            outputs=np.array(
                [own_outputs(of, number, members, unit) for of in _matrices(engine.layers[0])],
                np.int64,
            ),
            head_outputs=own_outputs(engine.head, number, members, unit),
        )  # fmt: skip


class _Member:
    """What a thread has for itself.

    Attributes:
        session: the state of its streams.
        addresses: int64 [layers, 18], of the arrays of each layer (see `kernels.team`).
        shapes: of tiles, None where products are of bytes.
    """

    def __init__(
        self, engine: Engine, meeting: Int64Array, shares: list[slice], number: int, tokens: int,
    ) -> None:  # fmt: skip
        share, streams = shares[number], shares[-1].stop
        own = share.stop - share.start
        self.session: Session = engine.session(streams=own, tokens=tokens, steps=1)
        self.addresses = np.array(
            [[array.ctypes.data for array in self._arrays(engine, number)]
             for number in range(len(engine.layers))],
            np.int64,
        )  # fmt: skip
        assert self.addresses.shape[1] == ADDRESSES
        by_tiles = engine.backend.tiled and streams > DOT_ROWS_MAX
        self.shapes = PANEL_SHAPES if by_tiles else None
        unit = AmxProduct.outputs_step if by_tiles else VnniProduct.outputs_step
        self.apart = _Way.of(
            engine, new_meeting(), rows=share, own=slice(0, own), number=0, members=1, unit=unit
        )
        self.together = _Way.of(
            engine, meeting, rows=slice(0, streams), own=share, number=number,
            members=len(shares), unit=unit,
        )  # fmt: skip

    def _arrays(self, engine: Engine, number: int) -> list[NDArray[Any]]:
        """Those of a layer, all of one piece; engine and session keep them where they are."""
        matrices, session = _matrices(engine.layers[number]), self.session
        arrays: list[NDArray[Any]] = [
            *(_product(matrix).packed for matrix in matrices),
            *(matrix.scales for matrix in matrices),
            *session.caches[number], *session.sinks[number], *session.angles[number],
        ]  # fmt: skip
        assert all(array.flags.c_contiguous for array in arrays)
        return arrays


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
