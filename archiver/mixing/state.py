"""What the mixer knows while it codes a frame, made anew for each frame.

Source: FORMAT.md, "Mixer".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archiver.coding.range_coder import PROBABILITY_ONE
from archiver.mixing.history import NOT_WRITTEN, open_streams
from archiver.mixing.layout import (
    BLOCK_BITS,
    BYTES_A_MAP_ROW,
    CONSTANT_INPUT,
    CONTEXT_INPUTS,
    CONTEXTS,
    FRAME,
    INPUTS,
    LINE_BITS,
    MAP_BITS_MAX,
    MAP_BITS_MIN,
    MAP_INPUTS,
    MAPS,
    MATCH_BITS_MAX,
    MATCH_BITS_MIN,
    MATCH_INPUTS,
    MATCHES,
    MODEL_INPUT,
    NEAREST_INPUTS,
    RECORD_BITS_MAX,
    REGIONS,
    ROWS,
    RUNS,
    SETS,
    SLOT_BITS_MIN,
    SLOTS_A_BYTE,
    STREAM,
)
from archiver.mixing.logistic import frequency_stretch_table
from archiver.mixing.nearest import NO_RECORD
from archiver.mixing.parameters import MixerParameters
from archiver.mixing.tables import (
    COUNT_BITS,
    adaptive_map_start,
    history_map_start,
    match_map_start,
    reciprocal_table,
    squash_table,
    stretch_table,
    vote_map_start,
    vote_table,
)
from archiver.types import (
    Int32Array,
    Int64Array,
    UInt8Array,
    UInt16Array,
    UInt32Array,
    UInt64Array,
)

if TYPE_CHECKING:
    from archiver.text.vocabulary import Vocabulary

WEIGHT_ONE = 1 << 20
CONSTANT = 1024  # the constant input, a quarter of a nat
# First weights in units of 2^-10. For tokens and flags they are the means of the weights that
# texts of several kinds led to; bytes of escapes, which the model knows nothing of, trust all
# histories alike.
MODEL_WEIGHT = 900
CONSTANT_WEIGHT = 30
HISTORY_WEIGHTS = (-11, -23, 22, 28, 38, 49, 18, 26, 33, 41, 18, 46, 48, 57, 22, 30, 24, 51)
MATCH_WEIGHTS = (70, 12, 72, 14)
NEAREST_WEIGHTS = (70, 0)
MAP_WEIGHTS = (59, 71, 78, 69, 96, 74, 62, 66, 52, 48)
RUN_HISTORY_WEIGHT = 146
# First probabilities of an escape after a token and after an escape, of another escaped byte
# after the first and after others.
ESCAPE_STARTS = (PROBABILITY_ONE // 64, *[PROBABILITY_ONE // 2] * 3)


class MixerState(NamedTuple):
    """All that changes while a frame is coded, and the tables that it is looked up with.

    Attributes:
        frame: FRAME [1]; streams: STREAM [streams].
        slots: uint32 [2^bits], see `slots`.
        match_table: uint32 [MATCHES, 2^bits], positions, see `matching`.
        model_maps: uint32 [MAPS, 2^bits, MAP_POINTS], adaptive probabilities, see `mixer`.
        text: uint16 [256 * blocks], chain: int32 [blocks, 2], see `history`.
        signatures: uint64 [records, words], record_tokens, record_followers: int32 [records], of
            each state, the token before and the one that followed; their number is a power of two.
        earlier: int32 [2, records], latest: int32 [2, vocabulary + 1], the record before with the
            same token before (0), with the same guess (1), and the last one of each token.
        vote_table: int64, by distance; see `nearest`.
    """

    frame: NDArray[Any]
    streams: NDArray[Any]
    slots: UInt32Array
    match_table: UInt32Array
    model_maps: UInt32Array
    text: UInt16Array
    chain: Int32Array
    signatures: UInt64Array
    record_tokens: Int32Array
    record_followers: Int32Array
    earlier: Int32Array
    latest: Int32Array
    vote_table: Int64Array


def _bits(count: int, least: int, most: int) -> int:
    """log2 of the least power of two that is `count` or more, within bounds."""
    return min(max((count - 1).bit_length(), least), most)


def _flags(mask: int, count: int) -> UInt8Array:
    return np.array([mask >> number & 1 for number in range(count)], np.uint8)


def _first_weights() -> Int32Array:
    """The model is trusted; all else counts little until it has proved right."""
    weights = np.zeros((REGIONS, ROWS, INPUTS), np.int32)
    weights[:, :, MODEL_INPUT] = MODEL_WEIGHT
    weights[:, :, CONSTANT_INPUT] = CONSTANT_WEIGHT
    weights[:, :, CONTEXT_INPUTS:MATCH_INPUTS:2] = HISTORY_WEIGHTS
    weights[RUNS, :, CONTEXT_INPUTS:MATCH_INPUTS:2] = RUN_HISTORY_WEIGHT
    weights[:, :, MATCH_INPUTS:MAP_INPUTS] = MATCH_WEIGHTS
    weights[:, :, MAP_INPUTS:NEAREST_INPUTS] = MAP_WEIGHTS
    weights[:, :, NEAREST_INPUTS : NEAREST_INPUTS + 2] = NEAREST_WEIGHTS
    return weights.reshape(-1, INPUTS) * (WEIGHT_ONE >> 10)


def new_state(
    parameters: MixerParameters,
    *,
    content_bytes: int,
    streams: int,
    symbols: int,
    vocabulary: Vocabulary,
    signature_bits: int,
) -> MixerState:
    """The state at the beginning of a frame.

    Args:
        content_bytes: of the frame; the sizes of the tables follow from it.
        streams, symbols: of the frame.
        vocabulary: a payload that stands for too many bytes is noticed one step of all streams
            after they were decoded, so the history has room for a token of each.
        signature_bits: entries of the model's state; not used without nearest states.
    """
    slot_bits = _bits(content_bytes * SLOTS_A_BYTE, SLOT_BITS_MIN, parameters.slot_bits_max)
    match_bits = _bits(content_bytes, MATCH_BITS_MIN, MATCH_BITS_MAX)
    map_bits = _bits(content_bytes // BYTES_A_MAP_ROW, MAP_BITS_MIN, MAP_BITS_MAX)
    blocks = ((content_bytes + streams * vocabulary.longest) >> BLOCK_BITS) + 2 * streams + 1

    frame = np.zeros(1, FRAME)
    frame["tokens_mixed"] = parameters.tokens_mixed
    frame["nearest"] = parameters.nearest
    frame["contexts"] = _flags(parameters.contexts, CONTEXTS)
    frame["matches"] = _flags(parameters.matches, MATCHES)
    frame["maps"] = _flags(parameters.maps, MAPS)
    frame["sets"] = _flags(parameters.sets, SETS)
    frame["line_shift"] = 64 - (slot_bits - LINE_BITS)
    frame["match_shift"] = 64 - match_bits
    frame["map_shift"] = 64 - map_bits
    frame["input_count"] = INPUTS
    frame["signature_bits"] = signature_bits
    frame["stretch"] = stretch_table()
    frame["frequency_stretch"] = frequency_stretch_table()
    frame["squash"] = squash_table()
    frame["reciprocals"] = reciprocal_table()
    frame["history_maps"] = history_map_start()
    frame["match_maps"] = match_map_start()
    frame["escape_maps"] = np.array(ESCAPE_STARTS, np.uint32) << COUNT_BITS
    frame["vote_maps"] = vote_map_start()
    frame["weights"] = _first_weights()
    frame["final_weights"] = WEIGHT_ONE // parameters.sets.bit_count()
    frame["inputs"][0, CONSTANT_INPUT] = CONSTANT
    records = 0
    if parameters.nearest and parameters.tokens_mixed:
        records = 1 << _bits(symbols + 1, 0, RECORD_BITS_MAX)
    state = MixerState(
        frame=frame,
        streams=np.zeros(streams, STREAM),
        slots=np.zeros(1 << slot_bits, np.uint32),
        match_table=np.zeros((MATCHES, 1 << match_bits), np.uint32),
        model_maps=np.tile(adaptive_map_start(), (MAPS, 1 << map_bits, 1)),
        text=np.full(blocks << BLOCK_BITS, NOT_WRITTEN, np.uint16),
        chain=np.zeros((blocks, 2), np.int32),
        signatures=np.empty((records, -(-signature_bits // 64)), np.uint64),
        record_tokens=np.empty(records, np.int32),
        record_followers=np.empty(records, np.int32),
        earlier=np.empty((2, records), np.int32),
        latest=np.full((2, vocabulary.size + 1), NO_RECORD, np.int32),
        vote_table=vote_table(signature_bits if records else 1),
    )
    state.streams["last_token"] = vocabulary.size
    open_streams(state)
    return state
