"""Streams in lockstep, a token a step, on one thread or on several that share the products.

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
from archiver.predict.kernels.team import ADDRESSES, step
from archiver.predict.kernels.tiles import PANEL_SHAPES

if TYPE_CHECKING:
    from archiver.predict.engine import Engine
    from archiver.predict.linear import Layer, Linear
    from archiver.predict.predictor import Predictor
    from archiver.predict.session import Session
    from archiver.types import Float32Array, Int32Array, Int64Array

# Two that share products, spinning for up to 4 ms, make a step of 3 streams in 12 instead of 18 ms,
# one of 22 in 28 to 35 instead of 55 to 63; but with another program on one of the two cores 40 to
# 470, because each waits for one that does not run (yielding early: 50 to 170, measured with a call
# a layer). Groups of streams with a thread each do not wait.
TEAM_THREADS_MAX = 1
# Weights of few rows come from memory a third faster through byte dot products than through tile
# registers: 19 instead of 13 GB/s for 1 row on two threads, 15 and 14 for 8, 10 and 13 for 16.
DOT_ROWS_MAX = 8
HEAD_ROWS = 32  # rows whose products over the vocabulary lie in memory at once


def head_room(predictor: Predictor, rows: int) -> Float32Array:
    """Where the products of so many rows over the vocabulary come to lie, float32."""
    return aligned_empty((rows * predictor.vocabulary.size,), np.float32)


def _weights_of(streams: int, size: int) -> tuple[Int32Array, Int64Array]:
    """Memory for weights and their totals, as `PredictorTeam` has them."""
    tiles = -(-size // TILE_RANKS)
    return np.empty((streams, size), np.int32), np.empty((streams, tiles + 1), np.int64)


class SoloTeam:
    """A team of one thread, for any predictor; attributes as for `Team`."""

    members = 1

    def __init__(self, predictor: Predictor, *, streams: int, tokens: int) -> None:
        self._predictor = predictor
        self._session = predictor.session(streams=streams, tokens=tokens, steps=1)
        self.weights, self.cumulative = _weights_of(streams, predictor.vocabulary.size)
        self._logits = np.empty(predictor.vocabulary.size, np.float32)
        self._room = head_room(predictor, min(streams, HEAD_ROWS))

    def run(self, number: int, tokens: Int32Array) -> None:
        """A step of all streams; arguments as for `Team.run`."""
        codes, scales = self._session.advance(tokens[:, None])
        for start in range(0, len(codes), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            products, row_scales, head_scales = self._predictor.head(
                codes[rows], scales[rows], self._room
            )
            for row, product in enumerate(products):
                weigh_vocabulary(
                    product, row_scales[row], head_scales, self._logits, self.weights[start + row],
                    self.cumulative[start + row],
                )  # fmt: skip


class Team:
    """Some streams, and threads that bring all of them a token further together.

    Attributes:
        members: threads.
        weights: int32 [streams, vocabulary], of the next tokens after a step; cumulative: int64
            [streams, tiles + 1] (see `head.weigh_vocabulary`).
    """

    def __init__(self, engine: Engine, *, streams: int, tokens: int, members: int) -> None:
        """Args: tokens: the longest stream's length; members: all of which have to run at once."""
        self.members = members
        self._engine = engine
        size = engine.vocabulary.size
        self.weights, self.cumulative = _weights_of(streams, size)
        width, ffn = engine.heads * engine.head_dim, engine.ffn
        self._codes = aligned_empty((streams, engine.hidden), np.int8)
        self._scales, self._inner_scales = np.empty((2, streams), np.float32)
        self._attended_codes = aligned_empty((streams, width), np.int8)
        self._activated_codes = aligned_empty((streams, ffn), np.int8)
        self._room = aligned_empty((streams * size,), np.float32)
        self._meeting = new_meeting()
        matrices = [_product(matrix) for matrix in _matrices(engine.layers[0])]
        self._packed_bytes = np.array([len(matrix.packed) for matrix in matrices], np.int64)
        self._outputs = np.array([len(m.scales) for m in _matrices(engine.layers[0])], np.int64)
        self._layer_sinks = np.array(
            [engine.layer_sinks(number) for number in range(len(engine.layers))], np.int32
        )
        by_tiles = engine.backend.tiled and streams > DOT_ROWS_MAX
        edges = [streams * number // members for number in range(members + 1)]
        self._members = [
            _Member(engine, first, last, tokens, number, members, by_tiles)
            for number, (first, last) in enumerate(itertools.pairwise(edges))
        ]

    def run(self, number: int, tokens: Int32Array) -> None:
        """A member's part of a step; all members' parts have to run at the same time.

        Args:
            tokens: int32 [streams], the last tokens of all streams, embedding rows.
        """
        try:
            self._step(self._members[number], tokens)
        except BaseException:
            abandon(self._meeting)
            raise

    def _step(self, member: _Member, tokens: Int32Array) -> None:
        engine, session = self._engine, member.session
        first, last = member.first, member.last
        mine = session.rows
        layers.embed(tokens[first:last], engine.embed_codes, engine.embed_scales, mine.x)
        step(
            self._meeting, member.met, self.members, first, last, mine.x, mine.attended,
            self._codes, self._scales, self._inner_scales, self._attended_codes,
            self._activated_codes, self._room, member.addresses, self._outputs,
            self._packed_bytes, member.outputs, member.shapes, session.position,
            len(session.angles[0][0]), engine.windows, session.slots,
            session.sinks[0][-1].shape[-1], engine.sinks, self._layer_sinks,
            (mine.query, mine.query_scale, mine.sink_query, mine.sink_query_scale),
            session.scratch, engine.epsilon, engine.logit_unit, engine.span,
            _product(engine.head).packed, engine.head.scales, *member.head_outputs,
            self.weights, self.cumulative,
        )  # fmt: skip
        session.position += 1


class _Member:
    """A thread's share.

    Attributes:
        first, last: its streams; session: their state.
        addresses: int64 [layers, 18], of the arrays of each layer (see `kernels.team`).
        met: int64 [1], arrivals at the meeting that it has expected so far.
        outputs: int64 [4, 2], its outputs of qkv, o, up and down; head_outputs: of the head.
    """

    def __init__(
        self, engine: Engine, first: int, last: int, tokens: int, number: int, members: int,
        by_tiles: bool,
    ) -> None:  # fmt: skip
        self.first, self.last = first, last
        self.session: Session = engine.session(streams=last - first, tokens=tokens, steps=1)
        self.addresses = np.array(
            [[array.ctypes.data for array in self._arrays(engine, number)]
             for number in range(len(engine.layers))],
            np.int64,
        )  # fmt: skip
        assert self.addresses.shape[1] == ADDRESSES
        self.met = np.zeros(1, np.int64)
        self.shapes = PANEL_SHAPES if by_tiles else None
        unit = AmxProduct.outputs_step if by_tiles else VnniProduct.outputs_step
        self.outputs = np.array(
            [own_outputs(matrix, number, members, unit) for matrix in _matrices(engine.layers[0])],
            np.int64,
        )
        self.head_outputs = own_outputs(engine.head, number, members, unit)

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
