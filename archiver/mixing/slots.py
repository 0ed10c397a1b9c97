"""Bit histories: what came before where a context and a decision were the same.

A slot is a uint32: a check (8 bits), a history (8), a frequency of ones (12), a count (4). The
history has a leading 1 and then the bits seen, the latest seven at most; the frequency is in units
of 2^-12 and moves by 1 / (n + 3/2) of the way. Slots lie in lines of 16. All decisions of half a
byte look in one line for each context, which is chosen by a hash of both; the decision's own hash
chooses a slot there, or its neighbour.

Source: FORMAT.md, "Mixer" (slots).
"""

from __future__ import annotations

import numpy as np

from archiver.compiled import compiled
from archiver.mixing.hashing import FACTOR, join
from archiver.mixing.layout import (
    CONTEXT_INPUTS,
    CONTEXTS,
    GOES_ON,
    HISTORIES,
    LINE_BITS,
)
from archiver.mixing.logistic import adapted, stretch
from archiver.mixing.tables import COUNT_BITS

KEY_FACTOR = np.uint64(0xD6E8FEB86659FD93)
COUNT_MASK = 15
FREQUENCY_SHIFT = 4
FREQUENCY_MAX = 4095
HISTORY_SHIFT = 16
CHECK_SHIFT = 24
EMPTY = (1 << HISTORY_SHIFT) | (2048 << FREQUENCY_SHIFT)
OTHER_GROUP = 64  # of decisions that are not bits of a byte
HISTORY_LIMIT = 255


@compiled()
def group_of(place, key):
    """Which decisions share lines: a byte's first four bits, its last four after the same first
    four, all that are not bits of a byte."""
    if place >= GOES_ON:
        return np.int64(OTHER_GROUP)
    return np.int64(0) if place < 4 else key >> (place - 4)


@compiled()
def find_lines(frame, group):
    """lines[i] = the first slot of the line in which context i has the group's decisions."""
    for number in range(CONTEXTS):
        joined = join(frame.keys[number], np.uint64(group))
        frame.groups[number] = joined
        frame.lines[number] = np.int64((joined * FACTOR) >> frame.line_shift) << LINE_BITS
    frame.group = group


@compiled()
def _find_slot(slots, line, code):
    """The slot of a decision, made empty if it held another's.

    Args:
        code: uint64, the decision's hash: the top four bits choose a slot, the next eight are the
            check, 1 in place of 0.
    """
    first = line + np.int64(code >> np.uint64(60))
    check = np.int64(code >> np.uint64(52)) & 0xFF
    if check == 0:
        check = np.int64(1)  # 0 is that of slots never used
    here = np.int64(slots[first])
    if here >> CHECK_SHIFT == check:
        return first
    second = first ^ 1
    there = np.int64(slots[second])
    if there >> CHECK_SHIFT == check:
        return second
    chosen = second if there & COUNT_MASK < here & COUNT_MASK else first
    slots[chosen] = (check << CHECK_SHIFT) | EMPTY
    return chosen


@compiled()
def _state_of(slot, place):
    """The number of a slot's history among HISTORIES: by the last seven bits and, where there
    were seven or more, by the count."""
    count = slot & COUNT_MASK
    state = (slot >> HISTORY_SHIFT) & 0xFF
    if count >= 7:
        older = np.int64(0) if count < 10 else np.int64(1) if count < 15 else np.int64(2)
        state = 128 + 128 * older + (state & 127)
    return state + HISTORIES // 2 if place >= GOES_ON else state


@compiled()
def predict(frame, slots, place, key):
    """Put each context's two inputs in place: from its history and from its frequency."""
    inputs = frame.inputs
    code_of_key = np.uint64(key)
    for number in range(CONTEXTS):
        at = CONTEXT_INPUTS + 2 * number
        inputs[at] = 0
        inputs[at + 1] = 0
        if not frame.contexts[number]:
            continue
        code = (frame.groups[number] + code_of_key) * KEY_FACTOR
        index = _find_slot(slots, frame.lines[number], code)
        slot = np.int64(slots[index])
        state = _state_of(slot, place)
        frame.slot_of[number] = index
        frame.history_of[number] = state
        count = slot & COUNT_MASK
        if count:
            probability = np.int64(frame.history_maps[number, state]) >> COUNT_BITS
            frequency = (slot >> FREQUENCY_SHIFT) & FREQUENCY_MAX
            inputs[at] = stretch(frame.stretch, probability)
            inputs[at + 1] = (np.int64(frame.frequency_stretch[frequency]) * count) >> 4


@compiled()
def update(frame, slots, bit):
    """Add the decision's outcome to the slots that `predict` found, and to the histories' maps."""
    for number in range(CONTEXTS):
        if not frame.contexts[number]:
            continue
        state = frame.history_of[number]
        entry = np.int64(frame.history_maps[number, state])
        frame.history_maps[number, state] = adapted(frame.reciprocals, entry, bit, HISTORY_LIMIT)
        index = frame.slot_of[number]
        slot = np.int64(slots[index])
        count = slot & COUNT_MASK
        history = (slot >> HISTORY_SHIFT) & 0xFF
        frequency = (slot >> FREQUENCY_SHIFT) & FREQUENCY_MAX
        frequency += ((bit * FREQUENCY_MAX - frequency) * frame.reciprocals[count] + 32768) >> 16
        history = history * 2 + bit
        if history > 0xFF:
            history = 128 | (history & 127)
        slots[index] = (
            (slot & (0xFF << CHECK_SHIFT))
            | (history << HISTORY_SHIFT)
            | (frequency << FREQUENCY_SHIFT)
            | min(count + 1, COUNT_MASK)
        )
