"""Constants made by exact arithmetic: pinned, and checked against their definitions."""

from __future__ import annotations

import hashlib
import math
from decimal import Decimal

import numpy as np
import pytest

from archiver.mixing import layout, tables
from archiver.mixing.logistic import frequency_stretch_table

ONE = 1 << 22
PINNED = {
    "stretch": "c1f16a724f0ee59b",
    "frequency_stretch": "487f7490043724d9",
    "squash": "ccc8a4cdad0647c5",
    "reciprocals": "082482d75ad867ab",
    "history_maps": "4d3a5db87d0001ce",
    "match_maps": "93a3ba28430603a3",
    "adaptive_maps": "9f800891a5a8018c",
    "vote_maps": "c141fe33ddc7e4a7",
    "votes": "665dd1bbb884fe44",
}


def test_tables_are_pinned() -> None:
    found = {
        "stretch": tables.stretch_table(),
        "frequency_stretch": frequency_stretch_table(),
        "squash": tables.squash_table(),
        "reciprocals": tables.reciprocal_table(),
        "history_maps": tables.history_map_start(),
        "match_maps": tables.match_map_start(),
        "adaptive_maps": tables.adaptive_map_start(),
        "vote_maps": tables.vote_map_start(),
        "votes": tables.vote_table(576),
    }
    digests = {
        name: hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()[:16]
        for name, table in found.items()
    }
    assert digests == PINNED


def test_stretch_is_the_logarithm_of_the_odds() -> None:
    for level, shift in enumerate(tables.LEVEL_SHIFTS):
        for i in (1, 2, 31, 32, 255, 511, 512):
            p = i << shift
            exact = 4096 * math.log(p / (ONE - p))
            assert abs(tables.stretch_table()[level, i] - exact) < 0.5001
        assert tables.stretch_table()[level, 0] == -62461


def test_squash_is_the_logistic_function() -> None:
    table = tables.squash_table()
    for i in range(1025):
        exact = 2**30 / (1 + math.exp(-(i - 512) / 32))
        assert abs(table[i] - exact) < 0.5001


def test_reciprocals_are_those_of_n_and_a_half() -> None:
    assert tables.reciprocal_table()[:4].tolist() == [43690, 26214, 18724, 14563]
    assert len(tables.reciprocal_table()) == tables.COUNT_MAX + 1


def test_history_maps_start_with_what_was_seen() -> None:
    start = (tables.history_map_start() >> tables.COUNT_BITS) / ONE
    assert start[0b1] == start[0] == 0.5
    assert start[0b10] < 0.25
    assert start[0b11] > 0.75
    assert start[0b111] > start[0b101] > start[0b110] > start[0b100]
    half = len(start) // 2
    assert (start[:half] == start[half:]).all()
    for older in (1, 2, 3):
        assert start[128 * older : 128 * older + 128].tolist() == start[128:256].tolist()
    assert abs(start[:128] + start[np.concatenate([[0], mirrored(128)])] - 1).max() < 1e-5


def mirrored(count: int) -> np.ndarray:
    """The histories 1 to count - 1 with every bit after the leading 1 turned round."""
    histories = np.arange(1, count)
    masks = np.array([(1 << (int(h).bit_length() - 1)) - 1 for h in histories])
    return histories ^ masks


def test_match_maps_start_surer_the_longer_the_match() -> None:
    start = tables.match_map_start() >> tables.COUNT_BITS
    assert start[0] == ONE - ONE // 3
    assert start[16 * 14] == ONE - ONE // 17
    assert start[16 * 14 + 1] == start[3] == ONE - ONE // 4
    assert start[16 * 14 + 8] == start[16 * 14]
    assert (tables.match_map_start() & 1023 == 0).all()


@pytest.mark.parametrize("bits", [1, 32, 576, 1000])
def test_votes_fall_by_a_power_of_two(bits: int) -> None:
    votes = tables.vote_table(bits)
    assert len(votes) == bits + 1
    assert votes[0] == 1 << 16
    for distance in range(bits + 1):
        fall = Decimal(4096 * distance // bits) / 64
        assert votes[distance] == int(Decimal(2) ** (16 - fall))


def test_vote_maps_start_surer_the_more_states_agree() -> None:
    start = tables.vote_map_start().reshape(layout.VOTE_LEVELS, 8, 8) >> tables.COUNT_BITS
    assert (start == start[:1, :, :1]).all()
    assert start[0, :, 0].tolist() == [ONE - ONE // doubt for doubt in range(2, 10)]


def test_adaptive_maps_start_as_the_identity() -> None:
    start = (tables.adaptive_map_start() >> tables.COUNT_BITS).astype(np.int64)
    assert start[16] == ONE // 2
    assert abs(start + start[::-1] - ONE).max() <= 1
    assert (np.diff(start[1:-1]) > 0).all()
    assert start[[0, 1, 31, 32]].tolist() == [1, 1, ONE - 2, ONE - 1]
