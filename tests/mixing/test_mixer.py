"""Decisions through the mixer: what was encoded comes back, nothing leaves its bounds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.codec import symbols as loop
from archiver.coding import range_coder
from archiver.mixing import layout, mixer
from archiver.mixing.parameters import MixerParameters
from archiver.mixing.state import MixerState, new_state
from archiver.predict.kernels.head import TILE_RANKS, WEIGHT_MAX, split_probability
from archiver.text.vocabulary import Vocabulary, sort_tokens

ONE = 1 << 22
PINNED = (82, "97c087a82d2ab6a5")
TOKENS = [bytes([byte]) for byte in range(32, 127)] + [
    b"th", b"the", b"them", b" the", b" qu", b"quick", b"\n", b"\n\n", b"ab", b"abc", b"abcd",
    b"\xd0\xb0", b"\xd0\xb1",
]  # fmt: skip
VOCABULARY = Vocabulary.build(*sort_tokens(TOKENS))
SIGNATURE_BITS = 100
Symbol = int | bytes  # a token's rank, or the bytes of an escape


def weights_of(seed: int, step: int, stream: int) -> np.ndarray:
    """Any weights of a token, int32 [vocabulary], the same in both directions."""
    rng = np.random.default_rng([seed, step, stream])
    weights = np.exp2(rng.uniform(0, 30, VOCABULARY.size)).astype(np.int32)
    weights[np.argmax(weights)] = WEIGHT_MAX
    return weights


def path_of(rank: int, weights: np.ndarray) -> list[int]:
    """The model's probability of each decision of a token."""
    sums = np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])
    found = []
    begin, end, node = 0, VOCABULARY.size, 0
    while node >= 0:
        split = int(VOCABULARY.splits[node])
        left, right = sums[split] - sums[begin], sums[end] - sums[split]
        found.append(int(split_probability(left, right)))
        if rank >= split:
            begin, node = split, int(VOCABULARY.right[node])
        else:
            end, node = split, int(VOCABULARY.left[node])
    return found


def state_for(streams: int, content_bytes: int, **parameters: Any) -> MixerState:
    return new_state(
        MixerParameters(**parameters),
        content_bytes=content_bytes,
        streams=streams,
        symbols=content_bytes,
        vocabulary=VOCABULARY,
        signature_bits=SIGNATURE_BITS,
    )


def signature_of(seed: int, step: int, stream: int) -> np.ndarray:
    """Any signature of a state, uint64 [2], of which some are near each other."""
    rng = np.random.default_rng([seed, step % 7])
    words = rng.integers(0, 1 << 64, 2, np.uint64) & np.uint64((1 << SIGNATURE_BITS - 64) - 1)
    return words ^ np.uint64(1 << (step * 5 + stream) % 36)


def encode(streams: list[list[Symbol]], seed: int, **parameters: Any) -> bytes:
    """The code of streams, the first ones longest."""
    lengths = np.array([len(stream) for stream in streams])
    ranks, paths, firsts, runs, offsets = [], [], [], b"", [0]
    guesses, signatures = [], []
    for number, stream in enumerate(streams):
        for step, symbol in enumerate(stream):
            firsts.append(len(paths))
            guesses.append(np.argmax(weights_of(seed, step, number)))
            signatures.append(signature_of(seed, step, number))
            if isinstance(symbol, bytes):
                ranks.append(-1)
                runs += symbol
            else:
                ranks.append(symbol)
                paths += path_of(symbol, weights_of(seed, step, number))
            offsets.append(len(runs))
    buffer = np.empty(3 * (len(paths) + 9 * len(runs) + len(ranks)) + 64, np.uint8)
    coder = range_coder.new_encoder()
    state = state_for(len(streams), bytes_in(streams), **parameters)
    starts, steps = np.cumsum(lengths) - lengths, int(lengths.max())
    for begin, end in ((0, steps // 3), (steps // 3, steps)):
        loop.encode_symbols(
            coder, buffer, state, True, VOCABULARY.tree, np.array(ranks, np.int32), starts, lengths,
            begin, end, starts + begin, np.array(firsts), np.array([*paths, 0], np.uint32),
            np.frombuffer(runs, np.uint8).copy(), np.array(offsets), np.array(signatures),
            np.array(guesses, np.int32), np.empty((0, 2), np.int64),
        )  # fmt: skip
    return range_coder.finish(coder, buffer)


def decode(code: bytes, streams: list[list[Symbol]], seed: int, **parameters: Any) -> Any:
    """The streams again; `streams` tells their number, lengths and bytes only."""
    buffer = np.frombuffer(code, np.uint8).copy()
    coder = range_coder.new_decoder(buffer)
    left = bytes_in(streams)
    state = state_for(len(streams), left, **parameters)
    found: list[list[Symbol]] = [[] for _ in streams]
    last = np.zeros(len(streams), np.int32)
    for step in range(len(streams[0])):
        active = sum(len(stream) > step for stream in streams)
        weights = np.stack([weights_of(seed, step, stream) for stream in range(active)])
        edges = np.arange(0, VOCABULARY.size + TILE_RANKS, TILE_RANKS).clip(max=VOCABULARY.size)
        sums = np.concatenate([np.zeros((active, 1)), np.cumsum(weights, axis=1)], axis=1)
        cumulative = sums.astype(np.int64)[:, edges]
        signatures = np.stack([signature_of(seed, step, stream) for stream in range(active)])
        room = np.empty(left, np.uint8)
        lengths = np.zeros(active, np.int64)
        used = 0
        for group in (slice(0, active // 2), slice(active // 2, active)):
            used += loop.decode_step(
                coder, buffer, state, True, VOCABULARY.tree, weights[group], cumulative[group],
                signatures[group], group.start, last[group], room[used:], lengths[group],
            )  # fmt: skip
        assert used == lengths.sum()
        ends = np.cumsum(lengths)
        for stream in range(active):
            run = room[ends[stream] - lengths[stream] : ends[stream]].tobytes()
            found[stream].append(run if last[stream] < 0 else int(last[stream]))
    return found


def bytes_in(streams: list[list[Symbol]]) -> int:
    tokens = VOCABULARY.token_bytes
    return sum(
        len(symbol) if isinstance(symbol, bytes) else len(tokens[symbol])
        for stream in streams
        for symbol in stream
    )


symbols = st.one_of(
    st.integers(0, VOCABULARY.size - 1),
    st.sampled_from([3, 40, 41, 90]),
    st.binary(min_size=1, max_size=40),
)
mixers = st.fixed_dictionaries(
    {
        "tokens_mixed": st.booleans(),
        "nearest": st.booleans(),
        "slot_bits_max": st.integers(16, 18),
        "contexts": st.sampled_from([0, 1 << 17, (1 << 18) - 1]) | st.integers(0, (1 << 18) - 1),
        "matches": st.integers(0, 3),
        "maps": st.integers(0, (1 << 10) - 1),
        "sets": st.integers(1, 63),
    }
)


@given(
    streams=st.lists(st.lists(symbols, min_size=1, max_size=30), min_size=1, max_size=4),
    seed=st.integers(0, 1 << 32),
    parameters=mixers,
)
@settings(deadline=None, max_examples=60)
def test_any_symbols_come_back(
    streams: list[list[Symbol]], seed: int, parameters: dict[str, Any]
) -> None:
    streams = sorted(streams, key=len, reverse=True)
    code = encode(streams, seed, **parameters)
    assert decode(code, streams, seed, **parameters) == streams


def test_a_code_is_pinned() -> None:
    """Other bits are another MIXER_VERSION."""
    rng = np.random.default_rng(7)
    common = rng.integers(0, VOCABULARY.size, 40).tolist()
    streams: list[list[Symbol]] = [
        [*common, b"\xff\x00\xff", *common, 7, *common, b"\xfe" * 20, *common],
        [*common[5:], b"\n", *common[20:]],
        [b"\xff"],
    ]
    code = encode(streams, 11)
    assert decode(code, streams, 11) == streams
    assert (len(code), hashlib.sha256(code).hexdigest()[:16]) == PINNED


def test_a_model_that_is_right_is_trusted() -> None:
    """Where the model's probabilities are those of the decisions, mixing costs under 1 %."""
    rng = np.random.default_rng(3)
    stream: list[Symbol] = []
    for step in range(1500):
        weights = weights_of(5, step, 0).astype(np.float64)
        stream.append(int(rng.choice(VOCABULARY.size, p=weights / weights.sum())))
    mixed = encode([stream], 5)
    alone = encode([stream], 5, tokens_mixed=False)
    assert len(mixed) < 1.01 * len(alone) + 3
    assert decode(mixed, [stream], 5) == [stream]


def test_what_repeats_costs_next_to_nothing() -> None:
    stream: list[Symbol] = list(range(20, 80))
    once = len(encode([stream], 1))
    assert len(encode([stream * 12], 1)) < 2 * once


# --- bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1 << 24, -(1 << 24)])
@pytest.mark.parametrize("probability", [1, ONE - 1])
@pytest.mark.parametrize("bit", [0, 1])
def test_extremes_stay_in_bounds(weight: int, probability: int, bit: int) -> None:
    """With all weights and inputs at their ends, sums are those of unlimited integers."""
    state = state_for(1, 1000)
    frame = state.frame[0]
    frame["weights"][:] = weight
    frame["final_weights"][:] = weight
    buffer = np.empty(64, np.uint8)
    coder = range_coder.new_encoder()
    for _ in range(3):
        mixer.decide(state, coder, buffer, 0, layout.TOKENS, 0, 1, probability, bit)
        assert 1 <= frame["probability"] <= ONE - 1
        assert np.abs(frame["inputs"].astype(np.int64)).max() < 1 << 17
        assert np.abs(frame["output_of"]).max() <= 65504
        assert np.abs(frame["weights"].astype(np.int64)).max() <= 1 << 24
        assert np.abs(frame["final_weights"].astype(np.int64)).max() <= 1 << 24


ends = st.sampled_from([-(1 << 17) + 1, (1 << 17) - 1, 0, 1, -1]) | st.integers(-131071, 131071)
weight_ends = st.sampled_from([-(1 << 24), 1 << 24, 0]) | st.integers(-(1 << 24), 1 << 24)


@given(
    st.lists(ends, min_size=layout.INPUTS, max_size=layout.INPUTS),
    st.lists(weight_ends, min_size=layout.INPUTS, max_size=layout.INPUTS),
    st.sampled_from([-(1 << 19), 1 << 19]) | st.integers(-(1 << 19), 1 << 19),
)
@settings(deadline=None)
def test_products_and_moves_are_exact(inputs: list[int], weights: list[int], step: int) -> None:
    row, given_inputs = np.array(weights, np.int32), np.array(inputs, np.int32)
    product = mixer._product(row, given_inputs, layout.INPUTS)
    assert product == sum(w * x for w, x in zip(weights, inputs, strict=True))
    mixer._move(row, given_inputs, step, layout.INPUTS)
    assert row.tolist() == [
        min(max(w + ((step * x + 32768) >> 16), -(1 << 24)), 1 << 24)
        for w, x in zip(weights, inputs, strict=True)
    ]


@pytest.mark.parametrize("content_bytes", [1, 2048, 1 << 20, 1 << 24])
def test_memory_grows_with_the_frame_and_ends_below_300_mb(content_bytes: int) -> None:
    state = state_for(min(content_bytes, 32), content_bytes)
    found = sum(array.nbytes for array in state)
    assert found < min(300e6, 2.6e6 + 240 * content_bytes)
