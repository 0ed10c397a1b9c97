"""Worker threads that run the model: blocks of all streams when encoding, steps when decoding.

When encoding, a worker takes the next block of whichever stream's turn it is, and runs the model
for it from the first layer to the last. Blocks go by spans, the same steps of all streams, so that
the first symbols are ready to be mixed and coded while the model reads on. No thread waits for
another but where its stream's last block is not read yet, and a busy core slows down its own share
only. When decoding, `stepper` may let workers share a step. There is no other pool of threads;
kernels and matrix products release the interpreter's lock.

A serial predictor has one thread, and steps of one token of one stream in both directions.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.codec.signatures import signature_bits, signatures_of
from archiver.codec.stepper import Stepper
from archiver.predict.kernels import head
from archiver.predict.predictor import Predictor, PredictorSession
from archiver.predict.team import HEAD_ROWS, head_room
from archiver.types import Float32Array, Int32Array, Int64Array, Progress, UInt32Array, UInt64Array


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SESSIONS_BYTES_MAX = 1 << 29  # above it, a span is a stream's whole length and keeps no session
SPANS_AHEAD = 2  # that workers may be ahead of the span which is coded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What the model says of some consecutive symbols of a stream, or of several streams joined.

    Attributes:
        probabilities: uint32, P(1) of every decision in units of 2^-22, symbol after symbol.
        counts: int32 [symbols], decisions of each; none of an escape.
        guesses: int32 [symbols], the first of the most likely tokens, 0 for an escape.
        signatures: uint64 [symbols, words], of the model's states.
    """

    probabilities: UInt32Array
    counts: Int32Array
    guesses: Int32Array
    signatures: UInt64Array

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Those of one part after the other."""
        return cls(
            probabilities=np.concatenate([part.probabilities for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            guesses=np.concatenate([part.guesses for part in parts]),
            signatures=np.concatenate([part.signatures for part in parts]),
        )

    @property
    def firsts(self) -> Int64Array:
        """int64 [symbols], index of each symbol's first probability."""
        counts = self.counts.astype(np.int64)
        return np.cumsum(counts) - counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Some consecutive steps of all streams, and what the model says of each stream's symbols."""

    steps: range
    streams: list[Predictions]


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

    def predict(
        self,
        ranks: Int32Array,
        starts: Int64Array,
        symbol_bytes: Int64Array,
        progress: Progress | None,
    ) -> Iterator[Span]:
        """What the model says of the symbols of a frame, span by span.

        While the caller has a span, workers go on with the next ones; a single one waits.

        Args:
            ranks: int32 [symbols], negative for escapes; starts: int64 [streams + 1].
            symbol_bytes: int64 [symbols], what each symbol adds to progress.
        """
        stop = threading.Event()
        readers = [
            _StreamReader(self._engine, ranks[a:b], symbol_bytes[a:b], progress, stop)
            for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        longest = max(len(reader.ranks) for reader in readers)
        length = self._span_steps(len(readers), longest)
        spans = [range(begin, min(begin + length, longest)) for begin in range(0, longest, length)]
        ahead = SPANS_AHEAD if self._threads > 1 else 0
        jobs: deque[list[Future[Predictions]]] = deque()
        submitted = 0
        try:
            for number, steps in enumerate(spans):
                while submitted < min(number + 1 + ahead, len(spans)):
                    before = jobs[-1] if jobs else [None] * len(readers)
                    jobs.append(
                        [
                            self._pool.submit(reader.read, spans[submitted], previous)
                            for reader, previous in zip(readers, before, strict=True)
                        ]
                    )
                    submitted += 1
                streams = [job.result() for job in jobs[0]]
                yield Span(steps=steps, streams=streams)
                jobs.popleft()
        finally:
            stop.set()  # a long stream is not waited for after an interrupt
            for job in itertools.chain.from_iterable(jobs):
                job.cancel()

    def _span_steps(self, streams: int, steps: int) -> int:
        """Steps of a span: a block, where memory holds all streams' sessions."""
        engine = self._engine
        if engine.serial or engine.cache_bytes(streams, steps) > SESSIONS_BYTES_MAX:
            return steps
        return engine.block_tokens


class _StreamReader:
    """One stream from its cold start to its end."""

    def __init__(
        self,
        engine: Predictor,
        ranks: Int32Array,
        symbol_bytes: Int64Array,
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        """Args: ranks: of the stream, at least one; symbol_bytes: what each adds to progress;
        stop: set where reading shall come to an end.
        """
        self.ranks = ranks
        self._engine = engine
        self._symbol_bytes = symbol_bytes
        self._progress = progress
        self._stop = stop
        self._session: PredictorSession | None = None

    def read(self, span: range, previous: Future[Predictions] | None) -> Predictions:
        """What the model says of the symbols of a span, as far as there are any.

        Args:
            previous: the job that reads those before.
        """
        if previous is not None:
            wait([previous])
        engine, ranks = self._engine, self.ranks
        begin, end = span.start, min(span.stop, len(ranks))
        found = [np.empty(0, np.uint32)]
        counts, guesses = np.zeros((2, max(0, end - begin)), np.int32)
        signatures = [np.empty((0, -(-signature_bits(engine.state_entries) // 64)), np.uint64)]
        steps = engine.block_tokens
        if begin < end and self._session is None:
            self._session = engine.session(streams=1, tokens=len(ranks), steps=steps)
        room = head_room(engine, min(steps, HEAD_ROWS))
        for start in range(begin, end, steps):
            if self._stop.is_set():
                break
            block = slice(start, min(start + steps, end))
            assert self._session is not None
            codes, scales = self._session.advance(self._inputs(block)[None])
            states = codes if engine.state_entries else codes[:, :0].astype(np.int8)
            signatures.append(signatures_of(states))
            for at in range(0, len(codes), HEAD_ROWS):
                rows = slice(at, min(at + HEAD_ROWS, len(codes)))
                targets = slice(start + rows.start, start + rows.stop)
                mine = slice(targets.start - begin, targets.stop - begin)
                found.append(
                    self._path_probabilities(
                        codes[rows], scales[rows], room, ranks[targets], counts[mine], guesses[mine]
                    )
                )
            if self._progress:
                self._progress(int(self._symbol_bytes[block].sum()))
        if end == len(ranks):
            self._session = None  # its memory is free for others
        return Predictions(
            probabilities=np.concatenate(found), counts=counts, guesses=guesses,
            signatures=np.concatenate(signatures),
        )  # fmt: skip

    def _inputs(self, block: slice) -> Int32Array:
        """What the model reads to say something of a block's symbols: those one place before."""
        start_token = self._engine.start_token
        before = self.ranks[max(0, block.start - 1) : block.stop - 1]
        if block.start == 0:
            before = np.concatenate([np.full(1, -1, np.int32), before])
        # No symbol lies before the first, as after an escape.
        inputs: Int32Array = np.where(before < 0, start_token, before).astype(np.int32)
        return inputs

    def _path_probabilities(
        self,
        codes: NDArray[Any],
        scales: Float32Array,
        room: Float32Array,
        ranks: Int32Array,
        counts: Int32Array,
        guesses: Int32Array,
    ) -> UInt32Array:
        engine = self._engine
        vocabulary = engine.vocabulary
        deepest = vocabulary.deepest
        probabilities = np.empty(len(ranks) * deepest, np.uint32)
        written = head.path_probabilities(
            *engine.head(codes, scales, room), ranks, vocabulary.splits,
            vocabulary.left, vocabulary.right, probabilities, counts, guesses,
        )  # fmt: skip
        return probabilities[:written].copy()
