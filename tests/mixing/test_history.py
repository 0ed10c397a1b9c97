"""Streams' texts grow in chained blocks, and match models point into any of them."""

from __future__ import annotations

import numpy as np
import pytest

from archiver.mixing import history, matching
from archiver.mixing.contexts import note_byte, note_end
from archiver.mixing.parameters import MixerParameters
from archiver.mixing.state import MixerState, new_state
from archiver.text.vocabulary import Vocabulary, sort_tokens


def state_for(content_bytes: int, streams: int) -> MixerState:
    return new_state(
        MixerParameters(nearest=False),
        content_bytes=content_bytes,
        streams=streams,
        symbols=content_bytes,
        vocabulary=Vocabulary.build(*sort_tokens([b"a", b"b"])),
        signature_bits=1,
    )


def note(state: MixerState, stream: int, text: bytes) -> None:
    """Let a stream know `text` as one symbol."""
    for byte in text:
        note_byte(state, stream, byte)
    note_end(state, stream)


def text_of(state: MixerState, stream: int) -> bytes:
    """A stream's text, read from its end to its beginning."""
    found = bytearray()
    position = int(state.streams[stream]["position"])
    while position := int(history.preceding(state.chain, position)):
        found.append(int(state.text[position]) & history.BYTE)
    return bytes(found[::-1])


def test_texts_stay_apart_however_they_grow() -> None:
    rng = np.random.default_rng(1)
    texts = [rng.bytes(length) for length in (0, 1, 255, 256, 257, 1023)]
    state = state_for(sum(map(len, texts)), len(texts))
    for place in range(1023):
        for stream, text in enumerate(texts):
            if place < len(text):
                note_byte(state, stream, text[place])
    assert [text_of(state, stream) for stream in range(len(texts))] == texts
    assert int(state.frame[0]["blocks"]) <= len(state.chain)
    start = 6 << 8
    assert history.preceding(state.chain, start) == 0
    position = start
    for byte in texts[5]:
        assert state.text[position] == byte
        position = history.following(state.chain, position)
    assert state.text[position] == history.NOT_WRITTEN


def test_following_ends_where_no_block_is_chained() -> None:
    state = state_for(300, 2)
    assert history.following(state.chain, 256) == 257
    assert history.following(state.chain, 511) == 0


def test_a_match_is_found_in_another_stream() -> None:
    state = state_for(1000, 2)
    note(state, 0, b"The quick brown fox")
    note(state, 0, b" jumps over it.")
    note(state, 1, b"A quick br")
    long, short = state.streams[1]["followers"]
    assert (int(long["pointer"]), int(long["matched"])) == (0, 0)
    assert state.text[short["pointer"]] & history.BYTE == ord("o")
    assert int(short["matched"]) == 9
    note(state, 1, b"own fox")
    long, short = state.streams[1]["followers"]
    assert int(long["matched"]) == 16
    assert int(long["pointer"]) == int(short["pointer"])
    assert [int(short["ended"]), int(short["misses"])] == [1, 0]
    assert state.text[short["pointer"]] & history.BYTE == ord(" ")


def test_a_pointer_is_kept_over_bytes_that_differ() -> None:
    state = state_for(1000, 1)
    note(state, 0, b"session 1234 opened; then: session 98")
    short = state.streams[0]["followers"][1]
    assert int(short["misses"]) == 0b11
    assert int(short["matched"]) == 0
    assert state.text[short["pointer"]] & history.BYTE == ord("3")
    note(state, 0, b"34 op")
    assert int(short["misses"]) == 0b1100000
    assert state.text[short["pointer"]] & history.BYTE == ord("e")


def test_a_pointer_is_given_up_after_eight_misses() -> None:
    state = state_for(1000, 1)
    note(state, 0, b"abcdefghijklmnopqrstuvwxyz.abcdefg")
    short = state.streams[0]["followers"][1]
    for count in range(1, 9):
        assert int(short["pointer"])
        note(state, 0, b"%d" % count)
        assert bin(int(short["misses"])).count("1") == count
    assert (int(short["pointer"]), int(short["matched"])) == (0, 0)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0), (7, 7), (8, 8), (15, 9), (16, 10), (31, 11), (32, 12), (64, 13), (256, 14),
     (65535, 14)],
)  # fmt: skip
def test_length_classes(length: int, expected: int) -> None:
    assert matching.length_class(length) == expected


def test_miss_classes() -> None:
    found = [matching.miss_class(misses) for misses in (0, 1, 2, 4, 8, 0x80, 0xFE, 0xFF)]
    assert found == [0, 1, 2, 2, 4, 4, 6, 7]
