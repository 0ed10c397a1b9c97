"""Worker threads that run the model: whole blocks when encoding, steps when decoding.

When encoding, every worker runs the model for streams of its own, from the first layer to the
last, so that no thread ever waits for another and a busy core slows down its own share only. When
decoding, `stepper` may let workers share a step. There is no other pool of threads; kernels and
matrix products release the interpreter's lock.

A serial predictor has one thread, and steps of one token of one stream in both directions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.codec.signatures import signature_bits, signatures_of
from archiver.codec.stepper import Stepper
from archiver.predict.kernels import head
from archiver.predict.predictor import Predictor
from archiver.predict.team import HEAD_ROWS, head_room
from archiver.types import Float32Array, Int32Array, Int64Array, Progress, UInt32Array, UInt64Array


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What the model says of some symbols.

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
    ) -> Predictions:
        """What the model says of the symbols of a frame.

        Args:
            ranks: int32 [symbols], negative for escapes; starts: int64 [streams + 1].
            symbol_bytes: int64 [symbols], what each symbol adds to progress.
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
        return Predictions(
            probabilities=np.concatenate([result.probabilities for result in results]),
            counts=np.concatenate([result.counts for result in results]),
            guesses=np.concatenate([result.guesses for result in results]),
            signatures=np.concatenate([result.signatures for result in results]),
        )

    def _run_stream(
        self,
        ranks: Int32Array,
        symbol_bytes: Int64Array,
        progress: Progress | None,
        stop: threading.Event,
    ) -> Predictions:
        """One stream from its cold start to its end, block by block, or to when it shall stop."""
        engine = self._engine
        inputs = np.empty_like(ranks)
        inputs[0] = engine.start_token
        inputs[1:] = np.where(ranks[:-1] < 0, engine.start_token, ranks[:-1])
        steps = engine.block_tokens
        session = engine.session(streams=1, tokens=len(ranks), steps=steps)
        found = [np.empty(0, np.uint32)]
        counts, guesses = np.zeros((2, len(ranks)), np.int32)
        signatures = [np.empty((0, -(-signature_bits(engine.state_entries) // 64)), np.uint64)]
        room = head_room(engine, min(steps, HEAD_ROWS))
        for start in range(0, len(ranks), steps):
            if stop.is_set():
                break
            block = slice(start, min(start + steps, len(ranks)))
            codes, scales = session.advance(inputs[None, block])
            states = codes if engine.state_entries else codes[:, :0].astype(np.int8)
            signatures.append(signatures_of(states))
            for at in range(0, len(codes), HEAD_ROWS):
                rows = slice(at, min(at + HEAD_ROWS, len(codes)))
                targets = slice(start + rows.start, start + rows.stop)
                found.append(
                    self._path_probabilities(
                        codes[rows],
                        scales[rows],
                        room,
                        ranks[targets],
                        counts[targets],
                        guesses[targets],
                    )
                )
            if progress:
                progress(int(symbol_bytes[block].sum()))
        return Predictions(
            probabilities=np.concatenate(found), counts=counts, guesses=guesses,
            signatures=np.concatenate(signatures),
        )  # fmt: skip

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
