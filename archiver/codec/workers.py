"""Worker threads that run the model: whole blocks when encoding, steps when decoding.

Every worker runs the model for streams of its own, single-threaded from the first layer to the
last, so no two pools of threads ever wait for each other and a busy core slows down its own share
only. Kernels and matrix products release the interpreter's lock.

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
from archiver.predict.kernels.memory import aligned_empty
from archiver.predict.predictor import Predictor
from archiver.types import Float32Array, Int32Array, Int64Array, Progress, UInt32Array

# A step of few streams takes the time in which memory brings the weights, so two threads that
# each read them are no faster than one (measured: 3 streams, 22 ms a step against 17).
GROUP_STREAMS_MIN = 4
HEAD_ROWS = 32  # rows whose products over the vocabulary lie in memory at once


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def head_room(engine: Predictor, rows: int) -> Float32Array:
    """Where the products of so many rows over the vocabulary come to lie, float32."""
    return aligned_empty((rows * engine.vocabulary.size,), np.float32)


@dataclass(slots=True)
class _StreamResult:
    probabilities: UInt32Array
    counts: Int32Array


class Stepper:
    """Streams in lockstep, in groups that each have a thread.

    A group's weights are asked for by `weights_of`, then `advance` begins its next step; between
    the two, and only there, they are valid. Other groups' steps run meanwhile.

    Attributes:
        groups: contiguous streams; none is empty.
    """

    def __init__(
        self, engine: Predictor, pool: ThreadPoolExecutor, groups: int, streams: int, steps: int
    ) -> None:
        self._engine = engine
        self._pool = pool
        edges = [streams * i // groups for i in range(groups + 1)]
        self.groups = [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]
        sizes = {group.start: group.stop - group.start for group in self.groups}
        self._sessions = {
            start: engine.session(streams=size, tokens=steps, steps=1)
            for start, size in sizes.items()
        }
        size = engine.vocabulary.size
        tiles = -(-size // head.TILE_RANKS)
        self._weights = np.empty((streams, size), np.int32)
        self._cumulative = np.empty((streams, tiles + 1), np.int64)
        self._logits = {start: np.empty(size, np.float32) for start in sizes}
        self._rooms = {
            start: head_room(engine, min(rows, HEAD_ROWS)) for start, rows in sizes.items()
        }
        self._jobs: dict[int, Future[None]] = {}
        for group in self.groups:
            # No symbol lies before the first, as after an escape.
            self.advance(group, np.full(sizes[group.start], -1, np.int32))

    def advance(self, group: slice, ranks: Int32Array) -> None:
        """Begin the step in which the model sees one more symbol of each of the group's streams.

        Args:
            ranks: int32 [the group's streams], the last symbols, escapes negative.
        """
        inputs = np.where(ranks < 0, self._engine.start_token, ranks).astype(np.int32)
        self._jobs[group.start] = self._pool.submit(self._run, group, inputs)

    def weights_of(self, group: slice) -> tuple[Int32Array, Int64Array]:
        """The weights of the next token of every stream of the group, when they are known.

        Returns:
            weights, int32 [streams, vocabulary], and their cumulative totals, int64
            [streams, tiles + 1].
        """
        self._jobs[group.start].result()
        return self._weights[group], self._cumulative[group]

    def stop(self) -> None:
        """Wait until no step runs."""
        wait(self._jobs.values())

    def _run(self, group: slice, inputs: Int32Array) -> None:
        engine = self._engine
        codes, scales = self._sessions[group.start].advance(inputs[:, None])
        for start in range(0, len(codes), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            products, row_scales, head_scales = engine.head(
                codes[rows], scales[rows], self._rooms[group.start]
            )
            for row, product in enumerate(products):
                stream = group.start + start + row
                head.weigh_vocabulary(
                    product, row_scales[row], head_scales, self._logits[group.start],
                    self._weights[stream], self._cumulative[stream],
                )  # fmt: skip


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
        groups = max(1, min(self._threads, streams // GROUP_STREAMS_MIN))
        if self._engine.serial:
            groups = streams
        stepper = Stepper(self._engine, self._pool, groups, streams, steps)
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
