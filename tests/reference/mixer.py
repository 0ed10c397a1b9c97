"""The mixer: from the model's probability of a decision to the one that is coded.

Plain integers, one thing after the other; nothing here is fast.

Source: FORMAT.md, "Mixer".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache

ONE = 1 << 22
MOD = 1 << 64
TOKENS, RUNS, FLAGS = range(3)
CONTEXTS, MATCHES, MAPS, SETS = 18, 2, 10, 6
LETTERS = frozenset([*range(65, 91), *range(97, 123), *range(128, 256)])
DELIMITERS = frozenset(b' \t,;:="[]()/')
MAP_CONTEXTS = (0, 1, 2, 3, 10, 11, 12, 14, 16, 17)
HISTORY_WEIGHTS = (-11, -23, 22, 28, 38, 49, 18, 26, 33, 41, 18, 46, 48, 57, 22, 30, 24, 51)
MATCH_WEIGHTS = (70, 12, 72, 14)
MAP_WEIGHTS = (59, 71, 78, 69, 96, 74, 62, 66, 52, 48)


class UnknownParametersError(ValueError):
    """The section MIXER is none that this text describes."""


@dataclass(frozen=True)
class Parameters:
    """The section's fields after the version."""

    tokens_mixed: bool
    nearest: bool
    slot_bits_max: int
    contexts: list[int]
    matches: list[int]
    maps: list[int]
    sets: list[int]

    @classmethod
    def read(cls, data: bytes) -> Parameters:
        if len(data) != 9:
            raise UnknownParametersError(f"{len(data)} bytes")
        masks = [int.from_bytes(data[a:b], "little") for a, b in ((2, 5), (5, 6), (6, 8), (8, 9))]
        counts = (CONTEXTS, MATCHES, MAPS, SETS)
        if (
            data[0] > 3
            or not 16 <= data[1] <= 25
            or any(mask >> count for mask, count in zip(masks, counts, strict=True))
            or masks[3] == 0
        ):
            raise UnknownParametersError(data.hex())
        used = [[i for i in range(count) if mask >> i & 1]
                for mask, count in zip(masks, counts, strict=True)]  # fmt: skip
        return cls(data[0] & 1 == 1, data[0] & 2 == 2, data[1], *used)


# --- stretch and squash, adaptive probabilities, hashes -------------------------------------


@cache
def ln_st(p: int) -> int:
    with localcontext(prec=30):
        return int((4096 * (Decimal(p) / (ONE - p)).ln()).to_integral_value())


@cache
def sq(i: int) -> int:
    with localcontext(prec=30):
        return int((2**30 / (1 + (Decimal(-i) / 32).exp())).to_integral_value())


def stretch(p: int) -> int:
    if p > ONE // 2:
        return -stretch(ONE - p)
    s = 0 if p < 2**9 else 4 if p < 2**13 else 8 if p < 2**17 else 12
    i = p >> s
    a, b = ln_st(max(i << s, 1)), ln_st((i + 1) << s)
    return a + (((b - a) * (p - (i << s))) >> s)


def clamp(x: int, a: int, b: int) -> int:
    return min(max(x, a), b)


def limit(x: int) -> int:
    return clamp(x, -65504, 65504)


def squash(x: int) -> int:
    y = x + 65536
    i = (y >> 7) - 512
    a = sq(i)
    return clamp((a + (((sq(i + 1) - a) * (y & 127)) >> 7) + 128) >> 8, 1, ONE - 1)


class Adaptive:
    """An adaptive probability."""

    def __init__(self, p: int, n: int, most: int = 255) -> None:
        self.p, self.n, self.most = p, n, most

    def adapt(self, d: int) -> None:
        self.p = clamp(self.p + (((d * ONE - self.p) * (131072 // (2 * self.n + 3))) >> 16),
                       16, ONE - 16)  # fmt: skip
        self.n = min(self.n + 1, self.most)


def join(a: int, b: int) -> int:
    x = (a + b + 1) * 0x9E3779B97F4A7C15 % MOD
    return x ^ (x >> 29)


def top(x: int, k: int) -> int:
    return x >> (64 - k)


def size_bits(count: int, least: int, most: int) -> int:
    """The least number from `least` to `most` whose power of two is at least `count`, or most."""
    return next((k for k in range(least, most) if 2**k >= count), most)


# --- what a stream knows --------------------------------------------------------------------


@dataclass
class Follower:
    """A match model, as one stream has it. A pointer is a stream and a number of bytes."""

    pointer: tuple[Stream, int] | None = None
    matched: int = 0
    misses: int = 0
    ended: int = 0


@dataclass(eq=False)
class Stream:
    """A stream's text and what follows from it."""

    text: bytearray = dataclasses.field(default_factory=bytearray)
    ends: set[int] = dataclasses.field(
        default_factory=set
    )  # numbers of the bytes that end a symbol
    line: int = 0
    above: int | None = None
    column: int = 0
    word: int = 0
    word_1: int = 0
    word_2: int = 0
    field: int = 0
    field_1: int = 0
    symbol: int = 0
    symbol_1: int = 0
    symbol_2: int = 0
    symbol_3: int = 0
    length: int = 0
    followers: tuple[Follower, ...] = dataclasses.field(
        default_factory=lambda: (Follower(), Follower())
    )
    last_token: int | None = None

    def last(self, k: int, ago: int = 0) -> int:
        end = len(self.text) - ago
        return int.from_bytes(self.text[max(end - k, 0) : max(end, 0)], "big")

    def note(self, c: int) -> None:
        """All that follows from one more byte, but for the match models."""
        self.text.append(c)
        if c == 10:
            self.above, self.line, self.column = self.line, len(self.text), 0
        else:
            self.column += 1
            if self.above is not None and self.text[self.above] != 10:
                self.above += 1
        if c in LETTERS:
            self.word = join(self.word, c | 32 if c < 91 else c)
        elif self.word:
            self.word_2, self.word_1, self.word = self.word_1, self.word, 0
        if c == 10:
            self.field = self.field_1 = 0
        elif c in DELIMITERS:
            self.field_1, self.field = self.field, c
        else:
            self.field = join(self.field, c)
        self.symbol = join(self.symbol, c)
        self.length += 1

    def end_symbol(self) -> None:
        self.ends.add(len(self.text) - 1)
        self.symbol_3, self.symbol_2, self.symbol_1 = self.symbol_2, self.symbol_1, self.symbol
        self.symbol = self.length = 0

    def contexts(self) -> list[int]:
        """C_i of all contexts."""
        c = self.last(1)
        a = a2 = 0
        if self.above is not None:
            a = self.text[self.above]
            a2 = 0 if a == 10 else self.text[self.above + 1]
        x = 0
        for follower in self.followers:
            if follower.pointer:
                stream, number = follower.pointer
                x = 1 + stream.text[number] + 256 * min(follower.matched // 4, 7)
                break
        value_11 = join(self.symbol, self.symbol_1)
        value_12 = join(value_11, self.symbol_2)
        values = [
            0, c, self.last(2), self.last(3), self.last(4), self.last(6),
            self.last(4) & 0xFF00FF00, join(self.word, c), join(join(self.word, self.word_1), c),
            join(join(self.word, self.word_2), c), self.symbol, value_11, value_12,
            join(value_12, self.symbol_3), a + 256 * min(self.column, 255),
            a + 256 * a2 + 65536 * c, join(self.field, self.field_1), x + 65536 * c,
        ]  # fmt: skip
        return [join(value, i << 56) for i, value in enumerate(values)]


class MatchModel:
    """What all streams share of a match model."""

    def __init__(self, m: int, content_bytes: int) -> None:
        self._m = m
        self._bits = size_bits(content_bytes, 12, 22)
        self._table: dict[int, tuple[Stream, int]] = {}
        self._right: dict[tuple[int, ...], Adaptive] = {}

    def follow(self, stream: Stream, follower: Follower, c: int) -> None:
        """Step 1 to 3 after the byte c of the stream."""
        if follower.pointer:
            other, number = follower.pointer
            missed = int(other.text[number] != c)
            follower.matched = 0 if missed else min(follower.matched + 1, 65535)
            follower.misses = (2 * follower.misses + missed) % 256
            follower.ended = int(number in other.ends)
            follower.pointer = (other, number + 1)
            if follower.misses == 255 or number + 1 == len(other.text):
                follower.pointer, follower.matched = None, 0
        if self._m == 5:
            h = join(5, stream.last(5) << 24)
        else:
            h = join(join(12, stream.last(8)), stream.last(8, ago=8) << 32 & (MOD - 1))
        b = top(h, self._bits)
        if (not follower.pointer or follower.matched < self._m) and b in self._table:
            other, number = self._table[b]
            if number < len(other.text):
                n = 0
                while (
                    n < min(32, number, len(stream.text))
                    and other.text[number - 1 - n] == stream.text[-1 - n]
                ):
                    n += 1
                if n >= self._m and n > follower.matched:
                    follower.pointer = (other, number)
                    follower.matched, follower.misses = n, 0
                    follower.ended = int(number - 1 in other.ends)
        self._table[b] = (stream, len(stream.text))

    def expect(self, follower: Follower, place: int, key: int) -> tuple[int, Adaptive] | None:
        """What the model expects of a decision, and the probability that it is right."""
        if not follower.pointer or place > 8:
            return None
        if place == 8:
            expected = 1 - follower.ended
        else:
            other, number = follower.pointer
            known = 256 + other.text[number]
            if known >> (8 - place) != key:
                return None
            expected = known >> (7 - place) & 1
        misses = follower.misses
        kind = (length_class(follower.matched), int(place == 8), misses & 1,
                int(misses & 6 > 0), int(misses & 0xF8 > 0))  # fmt: skip
        doubt = 4 if misses else kind[0] + 3
        return expected, self._right.setdefault(kind, Adaptive(ONE - ONE // doubt, 0))


def length_class(n: int) -> int:
    if n < 8:
        return n
    if n < 16:
        return 8 + (n - 8) // 4
    if n < 32:
        return 10 + (n - 16) // 8
    return 12 if n < 64 else 13 if n < 256 else 14


# --- slots ----------------------------------------------------------------------------------


@dataclass
class Slot:
    check: int = 0
    history: int = 0
    f: int = 0
    n: int = 0

    def state(self, place: int) -> int:
        state = self.history
        if self.n >= 7:
            u = 0 if self.n < 10 else 1 if self.n < 15 else 2
            state = 128 + 128 * u + self.history % 128
        return state + 512 if place >= 8 else state

    def learn(self, d: int) -> None:
        self.f += ((4095 * d - self.f) * (131072 // (2 * self.n + 3)) + 32768) >> 16
        self.history = 2 * self.history + d
        if self.history > 255:
            self.history = 128 + self.history % 128
        self.n = min(self.n + 1, 15)


class Slots:
    """The table; slots that were never looked at are not kept."""

    def __init__(self, content_bytes: int, most_bits: int) -> None:
        self._bits = size_bits(32 * content_bytes, 16, most_bits)
        self._slots: dict[tuple[int, int], Slot] = {}

    def find(self, context: int, place: int, key: int) -> Slot:
        g = 64 if place >= 8 else 0 if place < 4 else key >> (place - 4)
        joined = join(context, g)
        line = top(joined * 0x9E3779B97F4A7C15 % MOD, self._bits - 4)
        h = (joined + key) * 0xD6E8FEB86659FD93 % MOD
        j = top(h, 4)
        check = max(h >> 52 & 255, 1)
        one = self._slots.setdefault((line, j), Slot())
        other = self._slots.setdefault((line, j ^ 1), Slot())
        if one.check == check:
            return one
        if other.check == check:
            return other
        slot = other if other.n < one.n else one
        slot.check, slot.history, slot.f, slot.n = check, 1, 2048, 0
        return slot


def first_of_state(state: int) -> Adaptive:
    """The adaptive probability of a state at the beginning."""
    state %= 512
    if state == 0:
        return Adaptive(ONE // 2, 6)
    history = state if state < 128 else 128 + state % 128
    w = [26214, 26214]
    for digit in f"{history:b}"[1:]:
        w = [58982 * x >> 16 for x in w]
        w[int(digit)] += 65536
    return Adaptive(ONE * w[1] // sum(w), 6)


# --- nearest states -------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What the model is in before a symbol."""

    signature: frozenset[int]
    entries: int
    guess: int


@cache
def two_to(f: int) -> int:
    """floor(2^(40 - f / 64))."""
    with localcontext(prec=60):
        return int(Decimal(2) ** (40 - Decimal(f) / 64))


class NearestStates:
    """The records of a frame."""

    def __init__(self) -> None:
        self._records: list[tuple[State, int | None, int]] = []
        self._right: dict[tuple[int, int, int], Adaptive] = {}
        self._votes: list[tuple[int, int]] = []  # ranks and their votes
        self._nearness = 0

    def look(self, state: State, last_token: int | None) -> None:
        """The nearest records are those of this state."""
        latest = self._records[: -(2**17) : -1]
        same_token = [record for record in latest if record[1] == last_token][:256]
        same_guess = [record for record in latest if record[0].guess == state.guess][:256]
        candidates = same_token + [record for record in same_guess if record[1] != last_token]
        found = sorted(
            ((len(state.signature ^ other.signature), rank) for other, _, rank in candidates),
            key=lambda pair: pair[0],
        )[:32]
        self._votes = []
        for distance, rank in found:
            f = 4096 * distance // state.entries
            self._votes.append((rank, two_to(f & 63) >> (24 + (f >> 6))))
        if found:
            self._nearness = min(32 * found[0][0] // state.entries, 7)

    def note(self, state: State, last_token: int | None, rank: int) -> None:
        """The state was followed by a token."""
        self._records.append((state, last_token, rank))
        self._votes = []

    def expect(self, lo: int, mid: int, hi: int) -> tuple[int, Adaptive, int] | None:
        """The expected bit, the probability that it is right, the row of weights."""
        a = sum(votes for rank, votes in self._votes if lo <= rank < mid)
        b = sum(votes for rank, votes in self._votes if mid <= rank < hi)
        if a + b == 0:
            return None
        m, l = max(a, b), min(a, b)  # noqa: E741 (the text's symbol)
        level = (a + b).bit_length() - 1
        agreement = 7 if l == 0 else max(k for k in range(7) if k == 0 or m >> k >= l)
        key = (level, agreement, self._nearness)
        adaptive = self._right.setdefault(key, Adaptive(ONE - ONE // (agreement + 2), 0))
        return int(b > a), adaptive, 1 + 8 * level + agreement


# --- the mixer ------------------------------------------------------------------------------


class Mixer:
    """The state of a frame.

    Args:
        decide: decodes a decision of a probability, as `RangeDecoder.decide` does.
    """

    def __init__(
        self,
        parameters: Parameters,
        content_bytes: int,
        stream_count: int,
        decide: Callable[[int], int],
    ) -> None:
        self.tokens_mixed = parameters.tokens_mixed
        self._used = parameters
        self.nearest = NearestStates() if self.tokens_mixed and parameters.nearest else None
        self._decide = decide
        self.streams = [Stream() for _ in range(stream_count)]
        self._models = [MatchModel(m, content_bytes) for m in (12, 5)]
        self._slots = Slots(content_bytes, parameters.slot_bits_max)
        self._states: dict[tuple[int, int], Adaptive] = {}
        self._row_bits = size_bits(content_bytes // 4, 9, 16)
        self._points: dict[tuple[int, int, int], Adaptive] = {}
        self._flags = {key: Adaptive(1 << 16 if key == 288 else ONE // 2, 0, 30)
                       for key in range(288, 292)}  # fmt: skip
        self._weights: dict[tuple[int, int, int], list[int]] = {}
        self._uses: dict[tuple[int, int, int], int] = {}
        share = 2**20 // len(parameters.sets)
        self._final = {(region, s): share for region in range(3) for s in parameters.sets}

    # What becomes known

    def note(self, stream: Stream, c: int) -> None:
        """One more byte of a stream is known."""
        stream.note(c)
        for i in self._used.matches:
            self._models[i].follow(stream, stream.followers[i], c)

    # Decisions

    def flag(self, stream: Stream, place: int, key: int) -> int:
        """A decision of place 9 or 10."""
        adaptive = self._flags[key]
        d = self.decide(stream, FLAGS, place, key, adaptive.p)
        adaptive.adapt(d)
        return d

    def decide(
        self,
        stream: Stream,
        region: int,
        place: int,
        key: int,
        p: int,
        ranks: tuple[int, int, int] = (0, 0, 0),
    ) -> int:
        """The next decision, of which the model says that it is 1 with probability p.

        Args:
            ranks: lo, mid and hi of a token's decision.
        """
        if region == TOKENS and not self.tokens_mixed:
            return self._decide(p)
        contexts = stream.contexts()
        inputs = {0: stretch(p), 1: 1024}
        found = self._look_up_slots(contexts, place, key, inputs)
        expected = self._ask_models(stream, place, key, inputs)
        points = self._look_up_maps(contexts, key, inputs)
        voted = self.nearest.expect(*ranks) if self.nearest and region == TOKENS else None
        if voted:
            sign = 1 if voted[0] else -1
            inputs[52] = sign * stretch(voted[1].p)
            inputs[53] = sign * ((voted[1].p - ONE // 2) >> 8)

        outputs = {}
        rows = self._rows(stream, contexts, region, place, key, expected)
        rows[4] = (region, 4, voted[2] if voted else 0)
        for s in self._used.sets:
            weights = self._weights.setdefault(rows[s], first_weights(region))
            outputs[s] = limit(sum(weights[i] * x for i, x in inputs.items()) >> 20)
        mixed = squash(limit(sum(self._final[region, s] * o for s, o in outputs.items()) >> 20))
        d = self._decide(mixed)

        for s, o in outputs.items():
            z = ((d * ONE - mixed) * 30) >> 14
            final = self._final[region, s] + ((z * o + 32768) >> 16)
            self._final[region, s] = clamp(final, -(2**24), 2**24)
            self._uses[rows[s]] = u = self._uses.get(rows[s], 0) + 1
            z = ((d * ONE - squash(o)) * (60 + 600000 // (u + 400))) >> 14
            weights = self._weights[rows[s]]
            for i, x in inputs.items():
                weights[i] = clamp(weights[i] + ((z * x + 32768) >> 16), -(2**24), 2**24)
        for slot, adaptive in found:
            adaptive.adapt(d)
            slot.learn(d)
        for bit, adaptive in expected.values():
            adaptive.adapt(int(d == bit))
        for adaptive in points:
            adaptive.adapt(d)
        if voted:
            voted[1].adapt(int(d == voted[0]))
        return d

    def _look_up_slots(
        self, contexts: list[int], place: int, key: int, inputs: dict[int, int]
    ) -> list[tuple[Slot, Adaptive]]:
        found = []
        for i in self._used.contexts:
            slot = self._slots.find(contexts[i], place, key)
            state = slot.state(place)
            adaptive = self._states.setdefault((i, state), first_of_state(state))
            if slot.n:
                inputs[2 + 2 * i] = stretch(adaptive.p)
                inputs[3 + 2 * i] = (stretch(1024 * slot.f + 512) * slot.n) >> 4
            found.append((slot, adaptive))
        return found

    def _ask_models(
        self, stream: Stream, place: int, key: int, inputs: dict[int, int]
    ) -> dict[int, tuple[int, Adaptive]]:
        expected = {}
        for i in self._used.matches:
            found = self._models[i].expect(stream.followers[i], place, key)
            if found:
                expected[i] = found
                sign = 1 if found[0] else -1
                inputs[38 + 2 * i] = sign * stretch(found[1].p)
                inputs[39 + 2 * i] = sign * ((found[1].p - ONE // 2) >> 8)
        return expected

    def _look_up_maps(
        self, contexts: list[int], key: int, inputs: dict[int, int]
    ) -> list[Adaptive]:
        points = []
        y = limit(inputs[0]) + 65536
        q, r = y >> 12, y & 4095
        for i in self._used.maps:
            row = top(join(contexts[MAP_CONTEXTS[i]], key), self._row_bits)
            low, high = (self._point(i, row, point) for point in (q, q + 1))
            inputs[42 + i] = stretch((low.p * (4096 - r) + high.p * r) >> 12) - inputs[0]
            points.append(low if r < 2048 else high)
        return points

    def _point(self, i: int, row: int, q: int) -> Adaptive:
        first = clamp(sq(32 * q - 512) >> 8, 1, ONE - 1)
        return self._points.setdefault((i, row, q), Adaptive(first, 6))

    def _rows(
        self,
        stream: Stream,
        contexts: list[int],
        region: int,
        place: int,
        key: int,
        expected: dict[int, tuple[int, Adaptive]],
    ) -> list[tuple[int, int, int]]:
        classes = [1 + length_class(stream.followers[i].matched) if i in expected else 0
                   for i in range(MATCHES)]  # fmt: skip
        rows = [
            min(stream.column, 255),
            stream.last(1),
            classes[0] * 16 + classes[1],
            min(stream.length, 15) * 11 + place,
            0,
            top(join((contexts[10] + key) % MOD, 0), 10),
        ]
        return [(region, s, row) for s, row in enumerate(rows)]


def first_weights(region: int) -> list[int]:
    """A row of weights at the beginning, by input."""
    histories = [146] * CONTEXTS if region == RUNS else list(HISTORY_WEIGHTS)
    units = [900, 30]
    for weight in histories:
        units += [weight, 0]
    units += [*MATCH_WEIGHTS, *MAP_WEIGHTS, 70, 0]
    return [unit * 2**10 for unit in units]
