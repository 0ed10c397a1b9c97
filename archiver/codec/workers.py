"""Worker threads that run the model: whole blocks when encoding, steps when decoding.

Every worker runs the model for streams of its own, from the first layer to the last, so no two
pools of threads ever wait for each other and a busy core slows down its own share only; workers
that make steps together (see `predict.team`) would. Kernels and matrix products release the
interpreter's lock.

A serial predictor has one thread, and steps of one token of one stream in both directions.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.predict.kernels import head
from archiver.predict.predictor import Predictor
from archiver.predict.team import HEAD_ROWS, head_room
from archiver.types import Float32Array, Int32Array, Int64Array, Progress, UInt32Array

# A step of few streams takes the time in which memory brings the weights, so two threads that
# each read them are no faster than one (measured: 3 streams, 22 ms a step against 17).
GROUP_STREAMS_MIN = 4


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(slots=True)
class _StreamResult:
    probabilities: UInt32Array
    counts: Int32Array


def step_groups(engine: Predictor, threads: int, streams: int) -> tuple[int, int]:
    """How many groups of streams make steps apart from each other, and on how many threads each.

    All threads of all groups can run at the same time, but for a serial predictor's.
    """
    if engine.serial:
        return streams, 1
    members = min(threads, engine.team_threads)
    return max(1, min(threads // members, streams // GROUP_STREAMS_MIN)), members


class Stepper:
    """Streams in lockstep, in groups that each have one thread or more.

    A group's weights are asked for by `weights_of`, then `advance` begins its next step; between
    the two, and only there, they are valid. Other groups' steps run meanwhile.

    Attributes:
        groups: contiguous streams; none is empty.
    """

    def __init__(
        self, engine: Predictor, pool: ThreadPoolExecutor, threads: int, streams: int, steps: int
    ) -> None:
        """Args: threads: of the pool, all of them free; steps: of the longest stream."""
        self._start_token = engine.start_token
        self._pool = pool
        groups, members = step_groups(engine, threads, streams)
        edges = [streams * i // groups for i in range(groups + 1)]
        self.groups = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self._teams = {
            group.start: engine.team(
                streams=group.stop - group.start, tokens=steps, members=members
            )
            for group in self.groups
        }
        self._jobs: dict[int, list[Future[None]]] = {}
        for group in self.groups:
            # No symbol lies before the first, as after an escape.
            self.advance(group, np.full(group.stop - group.start, -1, np.int32))

    def advance(self, group: slice, ranks: Int32Array) -> None:
        """Begin the step in which the model sees one more symbol of each of the group's streams.

        Args:
            ranks: int32 [the group's streams], the last symbols, escapes negative.
        """
        inputs = np.where(ranks < 0, self._start_token, ranks).astype(np.int32)
        team = self._teams[group.start]
        self._jobs[group.start] = [
            self._pool.submit(team.run, member, inputs) for member in range(team.members)
        ]

    def weights_of(self, group: slice) -> tuple[Int32Array, Int64Array]:
        """The weights of the next token of every stream of the group, when they are known.

        Returns:
            weights, int32 [streams, vocabulary], and their cumulative totals, int64
            [streams, tiles + 1].
        """
        for job in self._jobs[group.start]:
            job.result()
        team = self._teams[group.start]
        return team.weights, team.cumulative

    def stop(self) -> None:
        """Wait until no step runs."""
        wait(itertools.chain(*self._jobs.values()))


class ModelWorkers:
    """A pool of threads over one predictor."""

    def __init__(self, engine: Predictor, threads: int | None) -> None:
        """Args: threads, at least 1; None for one a core that the process may use."""
        self._engine = engine
        self._threads = 1 if engine.serial else threads or usable_cores()
        engine.prepare_thread()
        self._pool = ThreadPoolExecutor(
            self._threads, "llmzip-model", initializer=engine.prepare_thread
        )

    @contextmanager
    def stepper(self, streams: int, steps: int) -> Iterator[Stepper]:
        """Streams of at most `steps` symbols, ready for their first step."""
        stepper = Stepper(self._engine, self._pool, self._threads, streams, steps)
        try:
            yield stepper
        finally:
            stepper.stop()

    def probabilities(
        self,
        ranks: Int32Array,
        starts: Int64Array,
        symbol_bytes: Int64Array,
        progress: Progress | None,
    ) -> tuple[UInt32Array, Int64Array]:
        """The model's probability of every decision of a frame.

        Args:
            ranks: int32 [symbols], negative for escapes; starts: int64 [streams + 1].
            symbol_bytes: int64 [symbols], what each symbol adds to progress.

        Returns:
            probabilities: uint32, P(1) in units of 2^-22, symbol after symbol;
            firsts: int64 [symbols], index of each symbol's first.
        """
        bounds = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        stop = threading.Event()
        jobs = [
            self._pool.submit(self._run_stream, ranks[a:b], symbol_bytes[a:b], progress, stop)
            for a, b in bounds
        ]
        try:
            results = [job.result() for job in jobs]
        finally:
            stop.set()  # a long stream is not waited for after an interrupt
            for job in jobs:
                job.cancel()
        counts = np.concatenate([result.counts for result in results]).astype(np.int64)
        firsts = np.cumsum(counts) - counts
        return np.concatenate([result.probabilities for result in results]), firsts

    def _run_stream(
        self,
        ranks: Int32Array,
        symbol_bytes: Int64Array,
        progress: Progress | None,
        stop: threading.Event,
    ) -> _StreamResult:
        """One stream from its cold start to its end, block by block, or to when it shall stop."""
        engine = self._engine
        inputs = np.empty_like(ranks)
        inputs[0] = engine.start_token
        inputs[1:] = np.where(ranks[:-1] < 0, engine.start_token, ranks[:-1])
        steps = engine.block_tokens
        session = engine.session(streams=1, tokens=len(ranks), steps=steps)
        found = [np.empty(0, np.uint32)]
        counts = np.zeros(len(ranks), np.int32)
        room = head_room(engine, min(steps, HEAD_ROWS))
        for start in range(0, len(ranks), steps):
            if stop.is_set():
                break
            block = slice(start, min(start + steps, len(ranks)))
            codes, scales = session.advance(inputs[None, block])
            for at in range(0, len(codes), HEAD_ROWS):
                rows = slice(at, min(at + HEAD_ROWS, len(codes)))
                targets = slice(start + rows.start, start + rows.stop)
                found.append(
                    self._path_probabilities(
                        codes[rows], scales[rows], room, ranks[targets], counts[targets]
                    )
                )
            if progress:
                progress(int(symbol_bytes[block].sum()))
        return _StreamResult(np.concatenate(found), counts)

    def _path_probabilities(
        self,
        codes: NDArray[Any],
        scales: Float32Array,
        room: Float32Array,
        ranks: Int32Array,
        counts: Int32Array,
    ) -> UInt32Array:
        engine = self._engine
        vocabulary = engine.vocabulary
        deepest = vocabulary.deepest
        probabilities = np.empty(len(ranks) * deepest, np.uint32)
        written = head.path_probabilities(
            *engine.head(codes, scales, room), ranks, vocabulary.splits,
            vocabulary.left, vocabulary.right, probabilities, counts,
        )  # fmt: skip
        return probabilities[:written].copy()
