"""The stage between the model's probability of a decision and the coder.

    model's probability ─────── stretch ──┐
    contexts ── slots ── history maps ────┤            ┌ set 0 ┐
    match models ── expected bit ─────────┼── inputs ──┤  ...  ├── final mixer ── squash ── coder
    nearest states ── voted bit ──────────┤            │       │
    model's probability ── adaptive maps ─┘            └ set 5 ┘

Each weight set chooses one row of weights by a small context and mixes all inputs with it; the
final mixer mixes the sets' outputs. After the decision each row is moved along its own error's
gradient, at a rate that falls with the row's use. Both directions call the same functions:
`decide` for every decision, `note_byte` and `note_end` of `contexts` as bytes become known.

Bounds: inputs stay within 2^17, weights within 2^24, so a sum of 56 products stays below 2^47; a
rate is below 2^11 and an error below 2^22, so a row's step is below 2^33 before and 2^19 after its
shift, and below 2^36 times an input.

Source: FORMAT.md, "Mixer". The construction is that of logistic mixing in M. Mahoney, "Adaptive
weighing of context models for lossless data compression" (2005), and of the PAQ programs after it.
"""

from __future__ import annotations

import numpy as np

from archiver.coding.range_coder import PROBABILITY_BITS, PROBABILITY_ONE, code_bit
from archiver.compiled import compiled
from archiver.mixing import slots
from archiver.mixing.contexts import find_contexts
from archiver.mixing.hashing import join
from archiver.mixing.history import BYTE
from archiver.mixing.layout import (
    COLUMNS,
    GOES_ON,
    LENGTHS,
    MAP_INPUTS,
    MAPS,
    MATCH_INPUTS,
    MATCHES,
    MODEL_INPUT,
    PLACES,
    ROWS,
    SET_STARTS,
    SETS,
    SYMBOL_LENGTHS,
    SYMBOL_ROW_BITS,
)
from archiver.mixing.logistic import adapted, clamp, squash, stretch
from archiver.mixing.matching import length_class, miss_class
from archiver.mixing.nearest import CLASSES, vote
from archiver.mixing.tables import COUNT_BITS, COUNT_MAX, STRETCH_BITS

WEIGHT_BITS = 20
WEIGHT_MAX = 1 << 24
RATE = 60  # of a row that was used very often, in units of 2^-16
FIRST_RATE = 1500  # added to it at first
RATE_USES = 400  # after this many uses half of that is left
FINAL_RATE = 30
MATCH_LIMIT = COUNT_MAX
MAP_LIMIT = COUNT_MAX
SYMBOL_CONTEXT = 10  # of the symbol so far
MAP_CONTEXTS = (0, 1, 2, 3, SYMBOL_CONTEXT, 11, 12, 14, 16, 17)


@compiled()
def _expect(frame, stream, text, place, key):
    """Put the match models' inputs in place: how sure they are of the bit they expect."""
    for model in range(MATCHES):
        at = MATCH_INPUTS + 2 * model
        frame.inputs[at] = 0
        frame.inputs[at + 1] = 0
        frame.expected_bit[model] = -1
        follower = stream.followers[model]
        if follower.pointer == 0 or place > GOES_ON:
            continue
        if place == GOES_ON:
            bit = 1 - follower.ended
        else:
            expected = np.int64(text[follower.pointer] & BYTE) | 256
            if expected >> (8 - place) != key:
                continue
            bit = (expected >> (7 - place)) & 1
        number = 16 * length_class(follower.matched)
        number += 8 * np.int64(place == GOES_ON) + miss_class(follower.misses)
        frame.expectation_of[model] = number
        frame.expected_bit[model] = bit
        probability = np.int64(frame.match_maps[model, number]) >> COUNT_BITS
        sure = stretch(frame.stretch, probability)
        surplus = (probability - PROBABILITY_ONE // 2) >> 8
        frame.inputs[at] = sure if bit else -sure
        frame.inputs[at + 1] = surplus if bit else -surplus


@compiled()
def _correct(frame, model_maps, key, stretched):
    """Put the adaptive maps' inputs in place: how the model erred before, by context."""
    offset = clamp(stretched) + (16 << STRETCH_BITS)
    point = offset >> STRETCH_BITS
    fraction = offset & ((1 << STRETCH_BITS) - 1)
    frame.point = point + (fraction >> (STRETCH_BITS - 1))  # the nearer one learns
    for number in range(MAPS):
        frame.inputs[MAP_INPUTS + number] = 0
        if not frame.maps[number]:
            continue
        context = join(frame.keys[MAP_CONTEXTS[number]], np.uint64(key))
        row = np.int64(context >> frame.map_shift)
        below = np.int64(model_maps[number, row, point]) >> COUNT_BITS
        above = np.int64(model_maps[number, row, point + 1]) >> COUNT_BITS
        mixed = (below * ((1 << STRETCH_BITS) - fraction) + above * fraction) >> STRETCH_BITS
        frame.row_of_map[number] = row
        frame.inputs[MAP_INPUTS + number] = stretch(frame.stretch, mixed) - stretched


@compiled()
def _matched(frame, stream, model):
    """0 where a match model expects nothing, else 1 + its length's class."""
    if frame.expected_bit[model] < 0:
        return np.int64(0)
    return 1 + length_class(stream.followers[model].matched)


@compiled()
def _choose_rows(frame, stream, region, place, key):
    """Choose each set's row of weights."""
    rows = frame.row_of
    symbol = frame.keys[SYMBOL_CONTEXT] + np.uint64(key)
    rows[0] = min(stream.column, COLUMNS - 1)
    rows[1] = np.int64(stream.last_8 & np.uint64(0xFF))
    rows[2] = _matched(frame, stream, 0) * LENGTHS + _matched(frame, stream, 1)
    rows[3] = min(stream.symbol_bytes, SYMBOL_LENGTHS - 1) * PLACES + place
    rows[4] = 0 if frame.voted_bit < 0 else 1 + frame.vote_of // CLASSES
    rows[5] = np.int64(join(symbol, np.uint64(0)) >> np.uint64(64 - SYMBOL_ROW_BITS))
    for number in range(SETS):
        rows[number] += region * ROWS + SET_STARTS[number]
    frame.region = region


@compiled()
def _product(weights, inputs, count):
    """Sum of the products, in int64. Were `count` known, the loop would not be vectorized."""
    total = np.int64(0)
    for j in range(count):
        total += np.int64(weights[j]) * np.int64(inputs[j])
    return total


@compiled()
def _move(weights, inputs, step, count):
    """Move weights by step * input, in units of 2^-16."""
    for j in range(count):
        moved = np.int64(weights[j]) + ((step * np.int64(inputs[j]) + 32768) >> 16)
        weights[j] = np.int32(min(max(moved, -WEIGHT_MAX), WEIGHT_MAX))


@compiled()
def _mix(frame):
    """P(1) from the inputs, by each set and then by all."""
    total = np.int64(0)
    for number in range(SETS):
        if not frame.sets[number]:
            continue
        weights = frame.weights[frame.row_of[number]]
        output = _product(weights, frame.inputs, frame.input_count) >> WEIGHT_BITS
        output = clamp(output)
        frame.output_of[number] = output
        frame.probability_of[number] = squash(frame.squash, output)
        total += np.int64(frame.final_weights[frame.region, number]) * output
    return squash(frame.squash, clamp(total >> WEIGHT_BITS))


@compiled()
def _learn(frame, bit):
    """Move all weights that were used."""
    target = bit << PROBABILITY_BITS
    final = frame.final_weights[frame.region]
    final_step = ((target - frame.probability) * FINAL_RATE) >> 14
    for number in range(SETS):
        if not frame.sets[number]:
            continue
        moved = final[number] + ((final_step * frame.output_of[number] + 32768) >> 16)
        final[number] = min(max(moved, -WEIGHT_MAX), WEIGHT_MAX)
        row = frame.row_of[number]
        uses = np.int64(frame.uses[row]) + 1
        frame.uses[row] = uses
        rate = RATE + FIRST_RATE * RATE_USES // (uses + RATE_USES)
        step = ((target - frame.probability_of[number]) * rate) >> 14
        _move(frame.weights[row], frame.inputs, step, frame.input_count)


@compiled()
def _learn_maps(frame, model_maps, bit):
    """Tell the adaptive probabilities that were looked up."""
    for model in range(MATCHES):
        if frame.expected_bit[model] >= 0:
            number = frame.expectation_of[model]
            hit = np.int64(frame.expected_bit[model] == bit)
            entry = np.int64(frame.match_maps[model, number])
            frame.match_maps[model, number] = adapted(frame.reciprocals, entry, hit, MATCH_LIMIT)
    if frame.voted_bit >= 0:
        hit = np.int64(frame.voted_bit == bit)
        entry = np.int64(frame.vote_maps[frame.vote_of])
        frame.vote_maps[frame.vote_of] = adapted(frame.reciprocals, entry, hit, MATCH_LIMIT)
    for number in range(MAPS):
        if frame.maps[number]:
            row = frame.row_of_map[number]
            entry = np.int64(model_maps[number, row, frame.point])
            model_maps[number, row, frame.point] = adapted(frame.reciprocals, entry, bit, MAP_LIMIT)


@compiled()
def start_symbol(state):
    """The next decision is of another stream, and not yet of a token."""
    state.frame[0].group = -1
    state.frame[0].neighbours = 0


@compiled()
def decide(state, coder, buffer, number, region, place, key, probability, bit):
    """Code one decision; returns it, which in decoding is news.

    Args:
        coder, buffer: see `range_coder.code_bit`.
        number: of the stream.
        region: TOKENS, RUNS or FLAGS; place, key: see `layout`.
        probability: the model's P(1) in units of 2^-22, 1 .. 2^22 - 1; where the model does not
            know, that of an adaptive probability, or 1/2.
        bit: 0 or 1; ignored in decoding.
    """
    frame = state.frame[0]
    stream = state.streams[number]
    text = state.text
    group = slots.group_of(place, key)
    if group != frame.group:
        if frame.group < 0:
            find_contexts(frame.keys, stream, text, state.chain)
        slots.find_lines(frame, group)
    stretched = stretch(frame.stretch, probability)
    frame.inputs[MODEL_INPUT] = stretched
    slots.predict(frame, state.slots, place, key)
    _expect(frame, stream, text, place, key)
    _correct(frame, state.model_maps, key, stretched)
    vote(frame)
    _choose_rows(frame, stream, region, place, key)
    mixed = _mix(frame)
    frame.probability = mixed
    bit = code_bit(coder, buffer, mixed, bit)
    _learn(frame, bit)
    _learn_maps(frame, state.model_maps, bit)
    slots.update(frame, state.slots, bit)
    return bit
