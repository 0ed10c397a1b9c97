"""What followed where the model was in a state like the present one.

The model's state before a token is what its head multiplies; the signs of that are the state's
signature. Of the frame's tokens so far, those that came after the same token, and those at which
the model's first guess was the same, are candidates; the ones whose signatures differ from the
present one in the fewest bits vote for what they were followed by, the nearer the stronger.

    last token ── records of the same ─┐
                                       ├── the nearest ── votes, decision by decision
    first guess ── records of the same ┘

It is the continuous cache of E. Grave, A. Joulin, N. Usunier, "Improving neural language models
with a continuous cache" (2016), in integers, and voting at every bit.

Source: FORMAT.md, "Mixer" (nearest states).
"""

from __future__ import annotations

import numpy as np

from archiver.coding.range_coder import PROBABILITY_ONE
from archiver.compiled import compiled
from archiver.mixing.layout import NEAREST, NEAREST_INPUTS
from archiver.mixing.logistic import stretch
from archiver.mixing.tables import COUNT_BITS

CANDIDATES_MAX = 256  # of each chain
CLASSES = 8  # of how near the nearest is: by 1/32 of the signature's bits
SPLITS = 8  # of how much the votes agree
NO_RECORD = -1

_PAIRS = np.uint64(0x5555555555555555)
_FOURS = np.uint64(0x3333333333333333)
_BYTES = np.uint64(0x0F0F0F0F0F0F0F0F)
_SUM_OF_BYTES = np.uint64(0x0101010101010101)


@compiled()
def _ones(word):
    """How many bits of a uint64 are 1."""
    word -= (word >> np.uint64(1)) & _PAIRS
    word = (word & _FOURS) + ((word >> np.uint64(2)) & _FOURS)
    word = (word + (word >> np.uint64(4))) & _BYTES
    return np.int64((word * _SUM_OF_BYTES) >> np.uint64(56))


@compiled()
def _distance(signatures, a, b):
    total = np.int64(0)
    for j in range(signatures.shape[1]):
        total += _ones(signatures[a, j] ^ signatures[b, j])
    return total


@compiled()
def _offer(frame, rank, distance):
    """The token that followed a candidate is kept, if the candidate is among the nearest so far."""
    count = frame.neighbours
    if count == NEAREST:
        if distance >= frame.distances[NEAREST - 1]:
            return
        count -= 1
    at = count
    while at > 0 and frame.distances[at - 1] > distance:
        frame.distances[at] = frame.distances[at - 1]
        frame.followers[at] = frame.followers[at - 1]
        at -= 1
    frame.distances[at] = distance
    frame.followers[at] = rank
    frame.neighbours = count + 1


@compiled()
def find_nearest(state, stream, signature, guess):
    """The nearest states are known, before a stream's next token.

    Args:
        signature: uint64 [words], of the present state; guess: the token that the model finds most
            likely there.
    """
    frame = state.frame[0]
    records = frame.records
    room = state.record_followers.shape[0]
    here = records & (room - 1)
    state.signatures[here] = signature
    state.record_tokens[here] = stream.last_token
    frame.guess = guess
    frame.neighbours = 0
    for chain in range(2):
        key = stream.last_token if chain == 0 else guess
        other = np.int64(state.latest[chain, key])
        seen = 0
        # A record of long ago has lost its place to a later one.
        while other >= 0 and other > records - room and seen < CANDIDATES_MAX:
            seen += 1
            there = other & (room - 1)
            if chain == 0 or state.record_tokens[there] != stream.last_token:
                distance = _distance(state.signatures, here, there)
                _offer(frame, np.int64(state.record_followers[there]), distance)
            other = np.int64(state.earlier[chain, there])
    if frame.neighbours:
        frame.nearness = min(32 * frame.distances[0] // frame.signature_bits, CLASSES - 1)
    for j in range(frame.neighbours):
        frame.votes[j] = state.vote_table[frame.distances[j]]


@compiled()
def note_token(state, stream, rank):
    """The state looked up last was followed by a token."""
    frame = state.frame[0]
    records = frame.records
    here = records & (state.record_followers.shape[0] - 1)
    state.record_followers[here] = rank
    for chain in range(2):
        key = np.int64(state.record_tokens[here]) if chain == 0 else frame.guess
        state.earlier[chain, here] = state.latest[chain, key]
        state.latest[chain, key] = records
    frame.records = records + 1
    stream.last_token = rank


@compiled()
def vote(frame):
    """Put the inputs of the nearest states in place: how sure they are of the bit they expect."""
    frame.inputs[NEAREST_INPUTS] = 0
    frame.inputs[NEAREST_INPUTS + 1] = 0
    frame.voted_bit = -1
    ones = np.int64(0)
    zeros = np.int64(0)
    for j in range(frame.neighbours):
        rank = frame.followers[j]
        if frame.first_rank <= rank and rank < frame.end_rank:
            if rank >= frame.split_rank:
                ones += frame.votes[j]
            else:
                zeros += frame.votes[j]
    total = ones + zeros
    if total == 0:
        return
    bit = np.int64(ones > zeros)
    most, least = (ones, zeros) if bit else (zeros, ones)
    level = np.int64(0)
    while total >> level > 1:
        level += 1
    agreement = np.int64(SPLITS - 1)
    if least:
        agreement = np.int64(0)
        while agreement < SPLITS - 2 and most >> (agreement + 1) >= least:
            agreement += 1
    number = (level * SPLITS + agreement) * CLASSES + frame.nearness
    frame.vote_of = number
    frame.voted_bit = bit
    probability = np.int64(frame.vote_maps[number]) >> COUNT_BITS
    sure = stretch(frame.stretch, probability)
    surplus = (probability - PROBABILITY_ONE // 2) >> 8
    frame.inputs[NEAREST_INPUTS] = sure if bit else -sure
    frame.inputs[NEAREST_INPUTS + 1] = surplus if bit else -surplus
