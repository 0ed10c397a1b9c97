"""A frame's payload, written span by span as the model's predictions come.

Source: FORMAT.md, "Predictor frame payload".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archiver.codec import symbols as loop
from archiver.codec.streams import StreamPlan
from archiver.codec.transform_fields import encode_transforms
from archiver.coding import range_coder
from archiver.container.varint import encode_varint
from archiver.mixing.parameters import MixerParameters
from archiver.mixing.state import MixerState, new_state
from archiver.text.transforms import NONE, Transforms
from archiver.text.vocabulary import Vocabulary
from archiver.types import (
    Float32Array,
    Int32Array,
    Int64Array,
    UInt8Array,
    UInt32Array,
    UInt64Array,
)

# Flags of the payload.
HAS_ESCAPES = 1
HAS_TRANSFORMS = 2

# A decision costs at most 22 bits; the coder asks for some more room.
DECISION_BYTES = 3
SPARE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A frame's content as symbols.

    Attributes:
        text_bytes: what the symbols stand for, made of the content by `transforms`.
        ranks: int32 [symbols], ESCAPE for escapes.
        runs: uint8, the escapes' bytes joined; run_offsets: int64 [symbols + 1], where a symbol's
            run begins, and the end.
    """

    text_bytes: int
    transforms: Transforms
    plan: StreamPlan
    ranks: Int32Array
    runs: UInt8Array
    run_offsets: Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedText(Text):
    """The same with the model's probabilities of all decisions.

    Attributes:
        probabilities: uint32, P(1) in units of 2^-22, symbol after symbol; firsts: int64
            [symbols], index of each symbol's first.
        guesses: int32 [symbols], signatures: uint64 [symbols, words], of the model's states (see
            `mixing.nearest`); signature_bits: of each.
    """

    probabilities: UInt32Array
    firsts: Int64Array
    guesses: Int32Array
    signatures: UInt64Array
    signature_bits: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PricedSymbols:
    """A frame's symbols and what they take.

    Attributes:
        ranks: int32 [symbols], negative for escapes.
        bits: float32 [symbols], what each adds to the payload; model_bits: what it would add
            without the mixer.
    """

    ranks: Int32Array
    bits: Float32Array
    model_bits: Float32Array


class TextEncoder:
    """The mixer and the coder of a frame; steps go in from the first to the last."""

    def __init__(
        self,
        text: Text,
        mixer: MixerParameters,
        vocabulary: Vocabulary,
        signature_bits: int,
        *,
        priced: bool = False,
    ) -> None:
        """Args: signature_bits: of each of the model's states; priced: whether to note `bits`."""
        self._text = text
        self._priced = priced
        self._bits = np.zeros(text.plan.symbols if priced else 0, np.float32)
        self._tree = vocabulary.tree
        self._mixer = new_mixer(mixer, text.plan, text.text_bytes, vocabulary, signature_bits)
        self._coder = range_coder.new_encoder()
        self._buffer = np.empty(0, np.uint8)

    def code(
        self,
        steps: range,
        places: Int64Array,
        *,
        probabilities: UInt32Array,
        firsts: Int64Array,
        signatures: UInt64Array,
        guesses: Int32Array,
    ) -> None:
        """Code these steps of all streams.

        Args:
            places: int64 [streams], index of each stream's first of these symbols in `firsts`,
                `signatures` and `guesses`, where its next ones follow.
            probabilities .. guesses: of these symbols, as `PredictedText` has them of all.
        """
        text = self._text
        starts = text.plan.starts
        # An escaped byte has nine decisions, a symbol one of its own.
        begins, ends = (
            np.minimum(starts[:-1] + step, starts[1:]) for step in (steps.start, steps.stop)
        )
        runs_bytes = int((text.run_offsets[ends] - text.run_offsets[begins]).sum())
        decisions = len(probabilities) + 9 * runs_bytes + len(firsts)
        needed = int(self._coder[range_coder.POSITION]) + DECISION_BYTES * decisions + SPARE_BYTES
        if needed > len(self._buffer):
            # What is written stays: a carry may still reach it.
            self._buffer = np.concatenate(
                [self._buffer, np.empty(2 * needed - len(self._buffer), np.uint8)]
            )
        marks = np.empty((len(firsts) + 1 if self._priced else 0, 2), np.int64)
        marks[:1] = self._coder[[range_coder.POSITION, range_coder.RANGE]]
        loop.encode_symbols(
            self._coder, self._buffer, self._mixer, bool(len(text.runs)), self._tree, text.ranks,
            starts[:-1], np.diff(starts), steps.start, steps.stop, places, firsts, probabilities,
            text.runs, text.run_offsets, signatures, guesses, marks[1:],
        )  # fmt: skip
        if self._priced:
            in_order = starts[:-1] + np.arange(steps.start, steps.stop)[:, None]
            # A narrower range is information that is not written yet.
            coded_bits = 8.0 * marks[:, 0] - np.log2(marks[:, 1])
            self._bits[in_order[in_order < starts[1:]]] = np.diff(coded_bits)

    @property
    def bits(self) -> Float32Array:
        """float32 [symbols], what each took if that is noted; 0 of those not coded yet."""
        return self._bits

    def finish(self) -> bytes:
        """The payload, when all steps are coded."""
        text = self._text
        has_escapes = bool(len(text.runs))
        has_transforms = text.transforms != NONE
        return b"".join(
            (
                encode_varint(text.plan.symbols),
                encode_varint(text.plan.streams),
                bytes([has_escapes * HAS_ESCAPES | has_transforms * HAS_TRANSFORMS]),
                encode_transforms(text.transforms, text.text_bytes) if has_transforms else b"",
                range_coder.finish(self._coder, self._buffer),
            )
        )


def encode_text(text: PredictedText, mixer: MixerParameters, vocabulary: Vocabulary) -> bytes:
    """The payload of a frame."""
    encoder = TextEncoder(text, mixer, vocabulary, text.signature_bits)
    encoder.code(
        range(text.plan.steps), text.plan.starts[:-1], probabilities=text.probabilities,
        firsts=text.firsts, signatures=text.signatures, guesses=text.guesses,
    )  # fmt: skip
    return encoder.finish()


def new_mixer(
    mixer: MixerParameters,
    plan: StreamPlan,
    text_bytes: int,
    vocabulary: Vocabulary,
    signature_bits: int,
) -> MixerState:
    """The mixer at a frame's beginning.

    Args:
        text_bytes: that the frame's symbols stand for; signature_bits: of the model's states.
    """
    return new_state(
        mixer,
        content_bytes=text_bytes,
        streams=plan.streams,
        symbols=plan.symbols,
        vocabulary=vocabulary,
        signature_bits=signature_bits,
    )
