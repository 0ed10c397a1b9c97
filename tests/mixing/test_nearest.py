"""Which states are nearest, and what they vote for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archiver.mixing import nearest, state
from archiver.mixing.layout import NEAREST, NEAREST_INPUTS
from archiver.mixing.parameters import MixerParameters
from archiver.mixing.state import MixerState, new_state
from archiver.mixing.tables import vote_table
from archiver.text.vocabulary import Vocabulary, sort_tokens

VOCABULARY = Vocabulary.build(*sort_tokens([bytes([byte]) for byte in range(97, 107)]))
BITS = 70
STEPS = 1200  # so that more than the most candidates have the same guess


def state_for(symbols: int, streams: int = 1) -> MixerState:
    return new_state(
        MixerParameters(), content_bytes=symbols, streams=streams, symbols=symbols,
        vocabulary=VOCABULARY, signature_bits=BITS,
    )  # fmt: skip


def signature_of(bits: int) -> np.ndarray:
    return np.array([bits & ((1 << 64) - 1), bits >> 64], np.uint64)


def look(mixer: MixerState, stream: int, bits: int, guess: int) -> list[tuple[int, int]]:
    """Distances and followers of the nearest states."""
    nearest.find_nearest(mixer, mixer.streams[stream], signature_of(bits), guess)
    frame = mixer.frame[0]
    count = int(frame["neighbours"])
    return list(
        zip(frame["distances"][:count].tolist(), frame["followers"][:count].tolist(), strict=True)
    )


@pytest.mark.parametrize("record_bits", [4, 6, 19])
def test_nearest_are_the_nearest(monkeypatch: pytest.MonkeyPatch, record_bits: int) -> None:
    """As a plain search finds them, also where old records have lost their places."""
    monkeypatch.setattr(state, "RECORD_BITS_MAX", record_bits)
    limit = nearest.CANDIDATES_MAX
    rng = np.random.default_rng(record_bits)
    mixer = state_for(STEPS, streams=2)
    kept: list[tuple[int, int, int, int]] = []
    last = [VOCABULARY.size, VOCABULARY.size]
    for step in range(STEPS):
        stream = step % 2
        bits = int(rng.integers(0, 1 << 6)) << 61
        guess = int(rng.integers(0, 3))
        recent = kept[::-1][: (1 << record_bits) - 1]
        same_token = [entry for entry in recent if entry[1] == last[stream]][:limit]
        same_guess = [entry for entry in recent if entry[2] == guess][:limit]
        candidates = same_token + [entry for entry in same_guess if entry[1] != last[stream]]
        expected = sorted(
            (((bits ^ other).bit_count(), follower) for other, _, _, follower in candidates),
            key=lambda pair: pair[0],
        )
        assert look(mixer, stream, bits, guess) == expected[:NEAREST]
        rank = int(rng.integers(0, VOCABULARY.size))
        nearest.note_token(mixer, mixer.streams[stream], rank)
        kept.append((bits, last[stream], guess, rank))
        last[stream] = rank


def voted(mixer: MixerState, first: int, split: int, end: int) -> Any:
    frame = mixer.frame[0]
    frame["first_rank"], frame["split_rank"], frame["end_rank"] = first, split, end
    nearest.vote(frame)
    return frame


def test_votes_are_of_the_ranks_that_are_left() -> None:
    mixer = state_for(10)
    stream = mixer.streams[0]
    for bits, rank in ((0, 2), (0b11, 7), (0b1, 7)):
        look(mixer, 0, bits, 4)
        nearest.note_token(mixer, stream, rank)
        stream["last_token"] = VOCABULARY.size
    assert look(mixer, 0, 0, 4) == [(0, 2), (1, 7), (2, 7)]
    votes = vote_table(BITS)
    frame = voted(mixer, 0, 5, 10)
    assert frame["voted_bit"] == int(votes[1] + votes[2] > votes[0])
    assert voted(mixer, 3, 5, 10)["voted_bit"] == 1
    assert frame["inputs"][NEAREST_INPUTS] > 0
    assert voted(mixer, 0, 2, 5)["voted_bit"] == 1
    assert voted(mixer, 0, 3, 5)["voted_bit"] == 0
    assert frame["inputs"][NEAREST_INPUTS] < 0
    assert voted(mixer, 3, 4, 6)["voted_bit"] == -1
    assert frame["inputs"][NEAREST_INPUTS] == frame["inputs"][NEAREST_INPUTS + 1] == 0


def test_a_state_far_from_all_has_no_votes() -> None:
    mixer = state_for(10)
    look(mixer, 0, 0, 4)
    nearest.note_token(mixer, mixer.streams[0], 1)
    assert look(mixer, 0, (1 << BITS) - 1, 4) == [(BITS, 1)]
    assert voted(mixer, 0, 1, 10)["voted_bit"] == -1


def test_without_them_nothing_is_remembered() -> None:
    for parameters in (MixerParameters(nearest=False), MixerParameters(tokens_mixed=False)):
        mixer = new_state(
            parameters, content_bytes=1000, streams=1, symbols=500, vocabulary=VOCABULARY,
            signature_bits=BITS,
        )  # fmt: skip
        assert len(mixer.record_followers) == 0
