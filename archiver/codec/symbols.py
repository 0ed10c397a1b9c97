"""The loop over decisions: the one place where symbols meet the range coder, in both directions.

A symbol is a token, coded as its path through the decision tree, or an escape: a run of bytes
that no token carries. Frames without escapes code no flag for them. Every decision goes through
the mixer, which learns the bytes of a stream as soon as they are certain.

Source: FORMAT.md, "Predictor frame payload" (symbols, escapes).
"""

from __future__ import annotations

import numpy as np

from archiver.coding.range_coder import DECODING, POSITION, PROBABILITY_ONE, RANGE, code_bit
from archiver.compiled import compiled
from archiver.mixing.contexts import note_byte, note_end
from archiver.mixing.layout import (
    FLAGS,
    GOES_ON,
    GOES_ON_KEY,
    IS_ESCAPE,
    IS_ESCAPE_KEY,
    MORE_ESCAPED,
    MORE_ESCAPED_KEY,
    RUNS,
    SYMBOL_BYTES_MAX,
    TOKENS,
)
from archiver.mixing.logistic import adapted
from archiver.mixing.mixer import decide, start_symbol
from archiver.mixing.nearest import find_nearest, note_token
from archiver.mixing.tables import COUNT_BITS
from archiver.predict.kernels.head import first_guess, split_probability, weight_below
from archiver.text.framing import ESCAPE, MAX_ESCAPE_BYTES

FLAG_LIMIT = 30


@compiled()
def _code_flag(coder, buffer, mixer, stream, place, key, bit):
    """Code a decision about escapes, of which an adaptive probability takes the model's place."""
    frame = mixer.frame[0]
    number = key - IS_ESCAPE_KEY
    entry = np.int64(frame.escape_maps[number])
    bit = decide(mixer, coder, buffer, stream, FLAGS, place, key, entry >> COUNT_BITS, bit)
    frame.escape_maps[number] = adapted(frame.reciprocals, entry, bit, FLAG_LIMIT)
    return bit


@compiled()
def code_escape_flag(coder, buffer, mixer, stream, after_escape, escape):
    """Code whether the stream's next symbol is an escape; returns it."""
    start_symbol(mixer)
    key = IS_ESCAPE_KEY + after_escape
    return _code_flag(coder, buffer, mixer, stream, IS_ESCAPE, key, escape)


@compiled()
def code_run(coder, buffer, mixer, stream, run, length):
    """Code the bytes of an escape; returns their number.

    Args:
        run: uint8, the bytes; in decoding, where they go.
        length: how many; in decoding, how many may come at most.

    Returns:
        the run's length, or -1 if a decoded run is longer than `length`.
    """
    decoding = coder[DECODING] == 1
    i = 0
    start_symbol(mixer)
    while True:
        if i >= length:
            return -1
        byte = np.int64(0) if decoding else np.int64(run[i])
        key = np.int64(1)
        for place in range(8):
            bit = (byte >> (7 - place)) & 1
            half = PROBABILITY_ONE // 2
            bit = decide(mixer, coder, buffer, stream, RUNS, place, key, half, bit)
            key = key * 2 + bit
        run[i] = key & 255
        note_byte(mixer, stream, key & 255)
        i += 1
        if i == MAX_ESCAPE_BYTES:
            break
        more = np.int64(0) if decoding or i == length else np.int64(1)
        key = np.int64(MORE_ESCAPED_KEY + (i > 1))
        if not _code_flag(coder, buffer, mixer, stream, MORE_ESCAPED, key, more):
            break
    note_end(mixer, stream)
    mixer.streams[stream].last_token = mixer.latest.shape[1] - 1
    return i


@compiled()
def code_token(
    coder, buffer, mixer, stream, tree, rank, probabilities, weights, cumulative, signature, guess
):  # fmt: skip
    """Code a token as its path of decisions; returns its rank.

    Args:
        tree: the vocabulary's `DecisionTree`.
        rank: the token; ignored in decoding.
        probabilities: uint32, encoding: the model's P(1) of each decision on the path.
        weights, cumulative: decoding: the model's integer weights of all ranks and their sums,
            from which the same probabilities follow (`split_probability`).
        signature, guess: of the model's state, see `nearest.find_nearest`.
    """
    decoding = coder[DECODING] == 1
    mixed = mixer.frame[0].tokens_mixed == 1
    begin = np.int64(0)
    end = cumulative[cumulative.shape[0] - 1]
    node = np.int64(0)
    at = 0
    known = 0  # bytes of the token that are certain
    found = np.int64(0)
    start_symbol(mixer)
    frame = mixer.frame[0]
    nearest = mixed and frame.nearest == 1
    if nearest:
        find_nearest(mixer, mixer.streams[stream], signature, guess)
    frame.first_rank = 0
    frame.end_rank = tree.offsets.shape[0] - 1
    while node >= 0:
        split = np.int64(tree.splits[node])
        frame.split_rank = split
        middle = np.int64(0)
        if decoding:
            middle = weight_below(split, weights, cumulative)
            p = np.int64(split_probability(middle - begin, end - middle))
        else:
            p = np.int64(probabilities[at])
            at += 1
        bit = np.int64(rank >= split)
        if mixed:
            # All tokens of the node's range agree with `split` up to the decision.
            text = tree.offsets[split]
            byte, place = divmod(np.int64(tree.places[node]), 9)
            goes_on = place == GOES_ON
            while known < byte + goes_on:
                note_byte(mixer, stream, np.int64(tree.data[text + known]))
                known += 1
            if goes_on:
                key = np.int64(GOES_ON_KEY + min(known, SYMBOL_BYTES_MAX))
            else:
                key = (np.int64(tree.data[text + byte]) | 256) >> (8 - place)
            bit = decide(mixer, coder, buffer, stream, TOKENS, place, key, p, bit)
        else:
            bit = code_bit(coder, buffer, p, bit)
        if bit:
            begin = middle
            frame.first_rank = split
            node = np.int64(tree.right[node])
            found = split
        else:
            end = middle
            frame.end_rank = split
            node = np.int64(tree.left[node])
            found = split - 1
    for i in range(tree.offsets[found] + known, tree.offsets[found + 1]):
        note_byte(mixer, stream, np.int64(tree.data[i]))
    note_end(mixer, stream)
    if nearest:
        note_token(mixer, mixer.streams[stream], found)
    return found


@compiled()
def encode_symbols(
    coder,
    buffer,
    mixer,
    has_escapes,
    tree,
    ranks,
    starts,
    lengths,
    begin,
    end,
    places,
    firsts,
    probabilities,
    runs,
    run_offsets,
    signatures,
    guesses,
    marks,
):
    """Code the steps `begin` to `end` - 1 of a frame: within a step stream by stream.

    Args:
        ranks: int32 [symbols of the frame], ESCAPE for escapes; starts, lengths: int64 [streams].
        places: int64 [streams], of each stream's symbol at `begin` among those of these steps.
        firsts: int64 [symbols of these steps], index of each one's first probability.
        runs: uint8, the escapes' bytes joined; run_offsets: int64 [symbols of the frame], where a
            symbol's run begins, and one more for the end (only escapes advance it).
        signatures, guesses: uint64 [symbols of these steps, words] and int32, of the model's
            states.
        marks: int64 [symbols of these steps, 2], filled with the coder's position and range once
            each is coded, as they are coded; or empty.
    """
    no_weights = np.zeros(1, np.int32)
    no_totals = np.zeros(1, np.int64)
    coded = 0
    for step in range(begin, end):
        for stream in range(starts.shape[0]):
            if step >= lengths[stream]:
                continue
            i = starts[stream] + step
            mine = places[stream] + step - begin
            escape = np.int64(ranks[i] < 0)
            if has_escapes:
                after = np.int64(step > 0 and ranks[i - 1] < 0)
                code_escape_flag(coder, buffer, mixer, stream, after, escape)
            if escape:
                run = runs[run_offsets[i] : run_offsets[i + 1]]
                code_run(coder, buffer, mixer, stream, run, run.shape[0])
            else:
                code_token(
                    coder,
                    buffer,
                    mixer,
                    stream,
                    tree,
                    np.int64(ranks[i]),
                    probabilities[firsts[mine] :],
                    no_weights,
                    no_totals,
                    signatures[mine],
                    np.int64(guesses[mine]),
                )
            if marks.shape[0]:
                marks[coded, 0] = coder[POSITION]
                marks[coded, 1] = coder[RANGE]
                coded += 1


@compiled()
def decode_step(
    coder,
    buffer,
    mixer,
    has_escapes,
    tree,
    weights,
    cumulative,
    signatures,
    first_stream,
    ranks,
    runs,
    run_lengths,
):
    """Decode the next symbol of `streams` consecutive streams, one each.

    Args:
        weights: int32 [streams, vocabulary]; cumulative: int64 [streams, tiles + 1]; signatures:
            uint64 [streams, words].
        first_stream: the number of the first of them in the frame.
        ranks: int32 [streams], on entry each stream's last symbol (0 before the first), on return
            the new one.
        runs: uint8, filled with the bytes of this step's escapes, joined; its size is what they
            may have together. run_lengths: int64 [streams], filled with each stream's share.

    Returns:
        the bytes of this step's escapes, or -1 where they exceed `runs`.
    """
    no_probabilities = np.zeros(1, np.uint32)
    used = 0
    for row in range(ranks.shape[0]):
        stream = first_stream + row
        escape = np.int64(0)
        run_lengths[row] = 0
        if has_escapes:
            after = np.int64(ranks[row] < 0)
            escape = code_escape_flag(coder, buffer, mixer, stream, after, escape)
        if escape:
            length = code_run(coder, buffer, mixer, stream, runs[used:], runs.shape[0] - used)
            if length < 0:
                return -1
            ranks[row] = ESCAPE
            run_lengths[row] = length
            used += length
        else:
            ranks[row] = code_token(
                coder,
                buffer,
                mixer,
                stream,
                tree,
                np.int64(0),
                no_probabilities,
                weights[row],
                cumulative[row],
                signatures[row],
                first_guess(weights[row], cumulative[row]),
            )
    return used
