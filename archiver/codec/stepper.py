"""Streams that are decoded in lockstep: who makes their steps, and how.

Threads make a step together, which reads the model's weights once, or each makes it for streams of
its own, which waits for nobody. Which is quicker depends on what else the machine does, and that
changes; so both are tried, now and then, and timed. What comes out is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from archiver.codec.signatures import signatures_of
from archiver.predict.predictor import Predictor
from archiver.predict.team import Team
from archiver.types import Int32Array, Int64Array, UInt64Array

TRIAL_STEPS = 5
MARGIN = 1.1  # a way is quicker than the other if it is so by this factor
FIRST_TRIAL = 8  # steps after which the other way is tried; twice as many after each that failed
LAST_TRIAL = 512
SETTLING = 8  # a step's time moves what is known of its way by one part of so many


class Pace:
    """Whether steps had best be made together, by how long they took.

    The first step after a change is not counted: it has remains of the way before.
    """

    def __init__(self) -> None:
        self._together = True
        self._seconds: dict[bool, float] = {}  # of a step of either way
        self._steps = 0  # since the last change
        self._trial = False
        self._wait = FIRST_TRIAL

    def after(self, seconds: float) -> bool:
        """Whether to make the next step together.

        Args:
            seconds: that the last one took.
        """
        self._steps += 1
        if self._steps > 1:
            self._note(seconds)
        if self._trial:
            if self._steps == TRIAL_STEPS:
                self._trial = False
                if self._quicker(self._together):
                    self._wait = FIRST_TRIAL
                else:
                    self._wait = min(2 * self._wait, LAST_TRIAL)
                    self._change()
        elif self._steps >= self._wait or self._quicker(not self._together):
            self._trial = True
            self._change()
            self._seconds.pop(self._together, None)  # as it was long ago
        return self._together

    def _quicker(self, together: bool) -> bool:
        """Whether one way is clearly quicker than the other, as far as is known."""
        mine, other = self._seconds.get(together), self._seconds.get(not together)
        return mine is not None and other is not None and mine * MARGIN < other

    def _note(self, seconds: float) -> None:
        known = self._seconds.get(self._together)
        if known is None:
            self._seconds[self._together] = seconds
        else:
            part = self._steps - 1 if self._trial else SETTLING
            self._seconds[self._together] = known + (seconds - known) / part

    def _change(self) -> None:
        self._together = not self._together
        self._steps = 0


class Stepper:
    """The steps of some streams.

    A group's weights are asked for by `weights_of`, then `advance` begins its next step; between
    the two, and only there, they are valid. Groups take turns, from the first to the last; while
    one has its turn, the model runs for the others.
    """

    def __init__(
        self, engine: Predictor, pool: ThreadPoolExecutor, threads: int, streams: int, steps: int
    ) -> None:
        """Args: threads: of the pool, all of them free; steps: of the longest stream."""
        self._start_token = engine.start_token
        self._pool = pool
        self._team = engine.team(streams=streams, tokens=steps, threads=threads)
        shares = self._team.shares
        self._everything = [slice(0, streams)]
        self._apart = [share for share in shares if share.start < share.stop]
        self._pace = Pace() if isinstance(self._team, Team) and len(shares) > 1 else None
        self._inputs = np.empty(streams, np.int32)
        self._jobs: dict[int, Future[None]] = {}
        self._begun_s = time.perf_counter()
        self._groups = self._next_groups = self._apart if self._pace is None else self._everything
        for group in self._groups:
            # No symbol lies before the first, as after an escape.
            self._begin(group, np.full(group.stop - group.start, -1, np.int32))

    @property
    def groups(self) -> list[slice]:
        """The present step's streams, together where their weights come together; none is empty."""
        return self._groups

    def advance(self, group: slice, ranks: Int32Array) -> None:
        """Begin the step in which the model sees one more symbol of each of the group's streams.

        Args:
            ranks: int32 [the group's streams], the last symbols, escapes negative.
        """
        if group.start == 0 and self._pace is not None:
            now_s = time.perf_counter()
            together = self._pace.after(now_s - self._begun_s)
            self._next_groups = self._everything if together else self._apart
            self._begun_s = now_s
        self._begin(group, ranks)

    def _begin(self, group: slice, ranks: Int32Array) -> None:
        self._inputs[group] = np.where(ranks < 0, self._start_token, ranks)
        everybody = group.stop == len(self._inputs)  # the last group's turn
        if self._next_groups is self._apart:
            for number in self._members_of(group):
                self._submit(self._team.run_apart, number)
        elif everybody:
            assert isinstance(self._team, Team)
            for number in range(len(self._team.shares)):
                self._submit(self._team.run_together, number)
        if everybody:
            self._groups = self._next_groups

    def _submit(self, run: Callable[[int, Int32Array], None], number: int) -> None:
        tokens = self._inputs[self._team.shares[number]]
        self._jobs[number] = self._pool.submit(run, number, tokens)

    def _members_of(self, group: slice) -> list[int]:
        return [
            number
            for number, share in enumerate(self._team.shares)
            if group.start <= share.start < share.stop <= group.stop
        ]

    def weights_of(self, group: slice) -> tuple[Int32Array, Int64Array, UInt64Array]:
        """The weights of the next token of every stream of the group, when they are known.

        Returns:
            weights, int32 [streams, vocabulary]; their cumulative totals, int64
            [streams, tiles + 1]; the signatures of the states that they are of, uint64
            [streams, words].
        """
        for number in self._members_of(group):
            self._jobs[number].result()
        states = self._team.states[group]
        return self._team.weights[group], self._team.cumulative[group], signatures_of(states)

    def stop(self) -> None:
        """Wait until no step runs."""
        wait(self._jobs.values())
