"""The loop over decisions: the one place where symbols meet the range coder, in both directions.

A symbol is a token, coded as its path through the decision tree, or an escape: a run of bytes
that no token carries. Frames without escapes code no flag for them.

Source: FORMAT.md, "Predictor frame payload" (symbols, escapes).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from archiver.coding.range_coder import DECODING, PROBABILITY_ONE, code_bit
from archiver.mixing import mixer
from archiver.predict.kernels.head import split_probability, weight_below
from archiver.text.framing import ESCAPE, MAX_ESCAPE_BYTES
from archiver.types import UInt32Array

ADAPTATION_SHIFT = 5
ESCAPE_START = PROBABILITY_ONE >> 6  # first probability of an escape

# Contexts of the adaptive bits of escapes: two for "is it an escape" (after a token, after an
# escape), two for "does the run go on" (after its first byte, later), then 256 * 256 for the bits
# of a byte (the byte before it in the run, the bits so far with a leading 1).
FLAG_CONTEXT = 0
MORE_CONTEXT = 2
BYTE_CONTEXT = 4
CONTEXTS = BYTE_CONTEXT + 256 * 256


def new_contexts() -> UInt32Array:
    """Adaptive probabilities at the start of a frame, uint32 [CONTEXTS] in units of 2^-22."""
    contexts = np.full(CONTEXTS, PROBABILITY_ONE // 2, np.uint32)
    contexts[FLAG_CONTEXT] = ESCAPE_START
    return contexts


@njit(nogil=True, cache=True, error_model="numpy")
def _code_adaptive(state, buffer, contexts, context, bit):
    """Code a bit by a probability that then moves 1/32 of the way towards it.

    The probability stays in 31 .. 2^22 - 31: neither step is taken from closer to the end.
    """
    p = np.int64(contexts[context])
    bit = code_bit(state, buffer, p, bit)
    if bit:
        p += (PROBABILITY_ONE - p) >> ADAPTATION_SHIFT
    else:
        p -= p >> ADAPTATION_SHIFT
    contexts[context] = np.uint32(p)
    return bit


@njit(nogil=True, cache=True, error_model="numpy")
def code_flag(state, buffer, contexts, after_escape, escape):
    """Code whether the symbol is an escape; returns it."""
    return _code_adaptive(state, buffer, contexts, FLAG_CONTEXT + after_escape, escape)


@njit(nogil=True, cache=True, error_model="numpy")
def code_run(state, buffer, contexts, run, length):
    """Code the bytes of an escape; returns their number.

    Args:
        run: uint8, the bytes; in decoding, where they go.
        length: how many; in decoding, how many may come at most.

    Returns:
        the run's length, or -1 if a decoded run is longer than `length`.
    """
    decoding = state[DECODING] == 1
    before = np.int64(0)
    i = 0
    while True:
        if i >= length:
            return -1
        byte = np.int64(0) if decoding else np.int64(run[i])
        partial = np.int64(1)
        for place in range(7, -1, -1):
            context = BYTE_CONTEXT + before * 256 + partial
            bit = _code_adaptive(state, buffer, contexts, context, (byte >> place) & 1)
            partial = partial * 2 + bit
        before = partial & 255
        run[i] = np.uint8(before)
        i += 1
        if i == MAX_ESCAPE_BYTES:
            return i
        more = np.int64(0) if decoding or i == length else np.int64(1)
        if not _code_adaptive(state, buffer, contexts, MORE_CONTEXT + (i > 1), more):
            return i


@njit(nogil=True, cache=True, error_model="numpy")
def code_token(state, buffer, splits, left, right, rank, probabilities, weights, cumulative):
    """Code a token as its path of decisions; returns its rank.

    Args:
        splits, left, right: int32 [nodes], the decision tree.
        rank: the token; ignored in decoding.
        probabilities: uint32, encoding: the model's P(1) of each decision on the path.
        weights, cumulative: decoding: the model's integer weights of all ranks and their sums,
            from which the same probabilities follow (`split_probability`).
    """
    decoding = state[DECODING] == 1
    begin = np.int64(0)
    end = cumulative[cumulative.shape[0] - 1]
    node = np.int64(0)
    at = 0
    while True:
        split = np.int64(splits[node])
        middle = np.int64(0)
        if decoding:
            middle = weight_below(split, weights, cumulative)
            p = np.int64(split_probability(middle - begin, end - middle))
        else:
            p = np.int64(probabilities[at])
            at += 1
        p = mixer.predict(p)
        bit = code_bit(state, buffer, p, np.int64(rank >= split))
        mixer.update(bit)
        if bit:
            begin = middle
            node = np.int64(right[node])
            found = split
        else:
            end = middle
            node = np.int64(left[node])
            found = split - 1
        if node < 0:
            return found


@njit(nogil=True, cache=True, error_model="numpy")
def encode_symbols(
    state,
    buffer,
    contexts,
    has_escapes,
    splits,
    left,
    right,
    ranks,
    starts,
    lengths,
    firsts,
    probabilities,
    runs,
    run_offsets,
):
    """Code all symbols of a frame: step by step, within a step stream by stream.

    Args:
        ranks: int32 [symbols], ESCAPE for escapes; starts, lengths: int64 [streams].
        firsts: int64 [symbols], index of each symbol's first probability.
        runs: uint8, the escapes' bytes joined; run_offsets: int64 [symbols], where a symbol's run
            begins, and one more for the end (only escapes advance it).
    """
    no_weights = np.zeros(1, np.int32)
    no_totals = np.zeros(1, np.int64)
    for step in range(lengths.max()):
        for stream in range(starts.shape[0]):
            if step >= lengths[stream]:
                continue
            i = starts[stream] + step
            escape = np.int64(ranks[i] < 0)
            if has_escapes:
                after = np.int64(step > 0 and ranks[i - 1] < 0)
                code_flag(state, buffer, contexts, after, escape)
            if escape:
                run = runs[run_offsets[i] : run_offsets[i + 1]]
                code_run(state, buffer, contexts, run, run.shape[0])
            else:
                code_token(
                    state,
                    buffer,
                    splits,
                    left,
                    right,
                    np.int64(ranks[i]),
                    probabilities[firsts[i] :],
                    no_weights,
                    no_totals,
                )


@njit(nogil=True, cache=True, error_model="numpy")
def decode_step(
    state,
    buffer,
    contexts,
    has_escapes,
    splits,
    left,
    right,
    weights,
    cumulative,
    ranks,
    runs,
    run_lengths,
):
    """Decode the next symbol of the first ranks.shape[0] streams, one each.

    Args:
        weights: int32 [streams, vocabulary]; cumulative: int64 [streams, tiles + 1].
        ranks: int32 [streams], on entry each stream's last symbol (0 before the first), on return
            the new one.
        runs: uint8, filled with the bytes of this step's escapes, joined; its size is what they
            may have together. run_lengths: int64 [streams], filled with each stream's share.

    Returns:
        the bytes of this step's escapes, or -1 where they exceed `runs`.
    """
    no_probabilities = np.zeros(1, np.uint32)
    used = 0
    for stream in range(ranks.shape[0]):
        escape = np.int64(0)
        run_lengths[stream] = 0
        if has_escapes:
            after = np.int64(ranks[stream] < 0)
            escape = code_flag(state, buffer, contexts, after, escape)
        if escape:
            length = code_run(state, buffer, contexts, runs[used:], runs.shape[0] - used)
            if length < 0:
                return -1
            ranks[stream] = ESCAPE
            run_lengths[stream] = length
            used += length
        else:
            ranks[stream] = code_token(
                state,
                buffer,
                splits,
                left,
                right,
                np.int64(0),
                no_probabilities,
                weights[stream],
                cumulative[stream],
            )
    return used
