"""A frame's content to its payload and back.

encode:  content ── text ── symbols ── streams ─┬─ model, whole blocks ── probabilities ─┐
                                                └─ ranks ────────────────── mixer, coder ┴─ payload
decode:  payload ── mixer, coder ─┬─ ranks ── bytes ── text ── content
                       ┌──────────┘   │
                       └─ weights ── model, one step of all streams

Source: FORMAT.md, "Predictor frame payload".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from archiver.codec import symbols as loop
from archiver.codec.encoder import (
    HAS_ESCAPES,
    HAS_TRANSFORMS,
    PredictedText,
    PricedSymbols,
    Text,
    TextEncoder,
    new_mixer,
)
from archiver.codec.signatures import signature_bits
from archiver.codec.streams import StreamPlan, plan_streams
from archiver.codec.transform_fields import decode_transforms
from archiver.codec.workers import ModelWorkers, Predictions, usable_cores
from archiver.coding import range_coder
from archiver.container.layout import (
    LARGEST_STREAM_TOKENS,
    LARGEST_STREAMS,
    Header,
    MachineSection,
    MixerSection,
    PredictorSection,
)
from archiver.container.varint import MalformedError, decode_varint
from archiver.errors import LimitExceededError, UnsupportedVersionError, UsageError
from archiver.levels import SINK_TOKENS, Chunking
from archiver.mixing.layout import SLOT_BITS_MIN
from archiver.mixing.parameters import MIXER_VERSION, MixerParameters
from archiver.options import CPU
from archiver.predict.devices import open_engine
from archiver.predict.engine_base import ENGINE_VERSION, EngineBase
from archiver.predict.float_engine import FloatEngine
from archiver.predict.float_models import FLOAT_ENGINE_VERSION, FloatModel
from archiver.predict.machine import this_machine, threads_of
from archiver.predict.soft_prompt import SoftPrompt
from archiver.text.charsets import Charset, UnmappableError
from archiver.text.detection import charset_spans
from archiver.text.framing import Symbols, symbols_of
from archiver.text.tokenizer import TextTokenizer, TokenizerOwner
from archiver.text.transforms import ALL_SWAPS, NONE, Span, Swap, Transforms, transform
from archiver.text.vocabulary import Vocabulary
from archiver.types import Int32Array, Int64Array, Progress

if TYPE_CHECKING:
    from archiver.options import CompressOptions
    from archiver.predict.package import ModelPackage
    from archiver.predict.predictor import Predictor

CACHE_BYTES_MAX = 64 << 30
# Two bytes of a frame are the same with a chance of 1/256 where they are compressed or encrypted,
# of 1/64 in Base64, and of 1/30 and more in text of any character set.
COLLISIONS_MIN = 128


class PayloadError(Exception):
    """The payload cannot be what an encoder wrote; the message says why."""


class FrameCodec:
    """Codes frames with one model package; not safe for use by several threads at once."""

    def __init__(
        self,
        engine: Predictor,
        *,
        package: TokenizerOwner,
        mixer: MixerParameters,
        threads: int | None,
        chunking: Chunking,
    ) -> None:
        """Args: package has the tokenizer, read by `encode` alone; threads None: one a core."""
        self._engine = engine
        self._mixer = mixer
        self._package = package
        self._tokenizer = functools.cache(lambda: TextTokenizer(package))
        self._chunking = chunking
        self._stream_tokens_max = LARGEST_STREAM_TOKENS - engine.lead
        self._threads = threads
        self._workers = ModelWorkers(engine, threads)

    def steered(self, prompt: SoftPrompt | None, chunking: Chunking) -> FrameCodec:
        """A codec over the same weights whose streams begin after a soft prompt, if any.

        Raises:
            UsageError: window and soft prompt are too long together.
        """
        assert isinstance(self._engine, EngineBase)
        codec = FrameCodec(
            self._engine if prompt is None else self._engine.steered(prompt),
            package=self._package,
            mixer=self._mixer,
            threads=self._threads,
            chunking=chunking,
        )
        codec._tokenizer = self._tokenizer
        return codec

    def worth_trying(self, content: bytes) -> bool:
        """Whether the model may shrink this content: not where its bytes look random."""
        counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
        return int(np.dot(counts, counts)) * COLLISIONS_MIN > len(content) ** 2

    def ranks(self, content: bytes) -> Int32Array:
        """The symbols of a frame, int32, escapes negative."""
        return self._symbols_of(content)[0].ranks

    def plan(self, symbols: int) -> StreamPlan:
        """How a frame of so many symbols is split."""
        return plan_streams(symbols, self._chunking, self._stream_tokens_max)

    def _symbols_of(
        self, content: bytes, charsets: bool = True, swaps: Swap = ALL_SWAPS
    ) -> tuple[Symbols, Transforms, int]:
        """The symbols, what was done to the content before, and the length that this gave it."""
        vocabulary, tokenizer = self._engine.vocabulary, self._tokenizer()
        if charsets:
            spans = charset_spans(content, vocabulary, tokenizer)
        else:
            spans = [Span(charset=Charset.PLAIN, content_bytes=len(content))]
        text, transforms = transform(content, spans, swaps)
        return symbols_of(text, vocabulary, tokenizer), transforms, len(text)

    def encode(self, content: bytes, progress: Progress | None = None) -> bytes:
        """The payload of which `decode` makes `content` again.

        Args:
            content: at least one byte; progress: called with bytes finished since the last call.
        """
        text, symbol_bytes = self._text_of(content)
        encoder = self._encoder(text, self._mixer, priced=False)
        self._code(content, text, symbol_bytes, [encoder], progress)
        return encoder.finish()

    def encode_priced(
        self, content: bytes, progress: Progress | None = None
    ) -> tuple[bytes, PricedSymbols]:
        """The payload that `encode` makes of it, and what each of its symbols takes.

        For training, with logarithms in floating point: nothing of it reaches the coder.
        """
        text, symbol_bytes = self._text_of(content)
        alone = replace(self._mixer, tokens_mixed=False, slot_bits_max=SLOT_BITS_MIN)
        encoders = [self._encoder(text, mixer, priced=True) for mixer in (self._mixer, alone)]
        self._code(content, text, symbol_bytes, encoders, progress)
        bits, model_bits = (encoder.bits for encoder in encoders)
        priced = PricedSymbols(ranks=text.ranks, bits=bits, model_bits=model_bits)
        return encoders[0].finish(), priced

    def _encoder(self, text: Text, mixer: MixerParameters, *, priced: bool) -> TextEncoder:
        bits = signature_bits(self._engine.state_entries)
        return TextEncoder(text, mixer, self.vocabulary, bits, priced=priced)

    def _code(
        self,
        content: bytes,
        text: Text,
        symbol_bytes: Int64Array,
        encoders: Sequence[TextEncoder],
        progress: Progress | None,
    ) -> None:
        """What the model says of a text goes to all encoders."""
        progress = _of_content(progress, text.text_bytes, len(content))
        for span in self._workers.predict(text.ranks, text.plan.starts, symbol_bytes, progress):
            found = Predictions.joined(span.streams)
            lengths = [len(part.counts) for part in span.streams]
            places, firsts = np.cumsum([0, *lengths[:-1]]), found.firsts
            for encoder in encoders:
                encoder.code(
                    span.steps, places, probabilities=found.probabilities, firsts=firsts,
                    signatures=found.signatures, guesses=found.guesses,
                )  # fmt: skip

    @property
    def vocabulary(self) -> Vocabulary:
        """The package's tokens."""
        return self._engine.vocabulary

    def predict_text(
        self,
        content: bytes,
        progress: Progress | None = None,
        *,
        charsets: bool = True,
        swaps: Swap = ALL_SWAPS,
    ) -> PredictedText:
        """What the model says of `content`, of which `encode_text` makes the payload.

        Args:
            content: at least one byte; progress: called with bytes finished since the last call.
            charsets: whether to look for character sets; swaps: those to try. Less than all is
                for measuring what they are worth.
        """
        text, symbol_bytes = self._text_of(content, charsets, swaps)
        progress = _of_content(progress, text.text_bytes, len(content))
        spans = list(self._workers.predict(text.ranks, text.plan.starts, symbol_bytes, progress))
        by_stream = zip(*(span.streams for span in spans), strict=True)
        found = Predictions.joined([part for parts in by_stream for part in parts])
        return PredictedText(
            text_bytes=text.text_bytes, transforms=text.transforms, plan=text.plan,
            ranks=text.ranks, runs=text.runs, run_offsets=text.run_offsets,
            probabilities=found.probabilities, firsts=found.firsts, guesses=found.guesses,
            signatures=found.signatures, signature_bits=signature_bits(self._engine.state_entries),
        )  # fmt: skip

    def _text_of(
        self, content: bytes, charsets: bool = True, swaps: Swap = ALL_SWAPS
    ) -> tuple[Text, Int64Array]:
        """The symbols of `content` and how they are split; the bytes that each stands for."""
        assert content
        symbols, transforms, text_bytes = self._symbols_of(content, charsets, swaps)
        ranks = symbols.ranks
        run_offsets = np.zeros(len(ranks) + 1, np.int64)
        run_offsets[1:][ranks < 0] = [len(run) for run in symbols.escapes]
        np.cumsum(run_offsets, out=run_offsets)
        text = Text(
            text_bytes=text_bytes, transforms=transforms, plan=self.plan(len(ranks)), ranks=ranks,
            runs=np.frombuffer(b"".join(symbols.escapes), np.uint8).copy(),
            run_offsets=run_offsets,
        )  # fmt: skip
        lengths = np.diff(self._engine.vocabulary.offsets)
        return text, np.where(ranks < 0, np.diff(run_offsets), lengths[ranks])

    def decode(self, payload: bytes, content_bytes: int, progress: Progress | None = None) -> bytes:
        """The content of which `encode` made `payload`.

        Raises:
            PayloadError: the payload is malformed, or its content has another length.
            LimitExceededError: it asks for more memory than `CACHE_BYTES_MAX`.
        """
        plan, has_escapes, transforms, text_bytes, begin = self._read_parameters(
            payload, content_bytes
        )
        progress = _of_content(progress, text_bytes, content_bytes)
        buffer = np.frombuffer(payload, np.uint8)[begin:].copy()
        state = range_coder.new_decoder(buffer)
        if state[range_coder.LOW] >= state[range_coder.RANGE]:
            raise PayloadError("its code lies outside the coder's range")
        bits = signature_bits(self._engine.state_entries)
        mixer = new_mixer(self._mixer, plan, text_bytes, self.vocabulary, bits)
        vocabulary = self._engine.vocabulary
        lengths = np.diff(vocabulary.offsets)
        ranks = np.zeros((plan.steps, plan.streams), np.int32)
        run_lengths = np.zeros((plan.steps, plan.streams), np.int64)
        runs: list[bytes] = []
        room = np.empty(text_bytes if has_escapes else 0, np.uint8)
        left_bytes = text_bytes
        last = np.zeros(plan.streams, np.int32)
        with self._workers.stepper(plan.streams, plan.steps) as stepper:
            for step in range(plan.steps):
                active = plan.active(step)
                # While one group's symbols are decoded, the model runs for the others.
                for group in stepper.groups:
                    streams = slice(group.start, min(group.stop, active))
                    if streams.start >= streams.stop:
                        break
                    weights, cumulative, signatures = stepper.weights_of(group)
                    used = loop.decode_step(
                        state, buffer, mixer, has_escapes, vocabulary.tree, weights, cumulative,
                        signatures, group.start, last[streams], room[:left_bytes],
                        run_lengths[step, streams],
                    )  # fmt: skip
                    if used < 0:
                        raise PayloadError("it holds more bytes than the frame")
                    ranks[step, streams] = last[streams]
                    if step + 1 < plan.steps:
                        stepper.advance(group, last[group])
                    runs.append(room[:used].tobytes())
                    done = int(lengths[last[streams][last[streams] >= 0]].sum()) + used
                    left_bytes -= done
                    if left_bytes < 0:
                        raise PayloadError("it holds more bytes than the frame")
                    if progress:
                        progress(done)
        text = self._join(plan, ranks, run_lengths, b"".join(runs))
        if len(text) != text_bytes:
            raise PayloadError("it holds fewer bytes than the frame")
        try:
            return transforms.undo(text, content_bytes)
        except UnmappableError as error:
            raise PayloadError(str(error)) from error

    def _read_parameters(
        self, payload: bytes, content_bytes: int
    ) -> tuple[StreamPlan, bool, Transforms, int, int]:
        """The payload's first fields, checked; the text's length; where the coder's bytes begin."""
        try:
            count, at = decode_varint(payload, 0, bits=32)
            streams, at = decode_varint(payload, at, bits=32)
            flags = payload[at]
        except (MalformedError, IndexError) as error:
            raise PayloadError("its parameters are malformed") from error
        if flags & ~(HAS_ESCAPES | HAS_TRANSFORMS):
            raise PayloadError(f"unknown flags {flags:#04x}")
        transforms, text_bytes, at = NONE, content_bytes, at + 1
        if flags & HAS_TRANSFORMS:
            try:
                transforms, text_bytes, at = decode_transforms(payload, at, content_bytes)
            except MalformedError as error:
                raise PayloadError(str(error)) from error
        if not 1 <= count <= text_bytes:
            raise PayloadError(f"{count} symbols cannot stand for {text_bytes} bytes")
        if not 1 <= streams <= min(count, LARGEST_STREAMS):
            raise PayloadError(f"{streams} streams for {count} symbols")
        plan = StreamPlan(symbols=count, streams=streams)
        if plan.steps > self._stream_tokens_max:
            raise PayloadError(f"a stream of {plan.steps} symbols")
        needed = self._engine.cache_bytes(streams, plan.steps)
        if needed > CACHE_BYTES_MAX:
            raise LimitExceededError(
                f"a frame of {streams} streams needs {needed >> 20} MiB to decode; "
                f"the limit is {CACHE_BYTES_MAX >> 20} MiB"
            )
        return plan, bool(flags & HAS_ESCAPES), transforms, text_bytes, at

    def _join(
        self, plan: StreamPlan, ranks: np.ndarray, run_lengths: np.ndarray, runs: bytes
    ) -> bytes:
        """The bytes of all streams, one after the other, from symbols in coding order."""
        token_bytes: Sequence[bytes] = self._engine.vocabulary.token_bytes
        ends = np.cumsum(run_lengths).reshape(run_lengths.shape)
        pieces = []
        for stream in range(plan.streams):
            steps = int(plan.starts[stream + 1] - plan.starts[stream])
            for step, rank in enumerate(ranks[:steps, stream].tolist()):
                if rank >= 0:
                    pieces.append(token_bytes[rank])
                else:
                    end = int(ends[step, stream])
                    pieces.append(runs[end - int(run_lengths[step, stream]) : end])
        return b"".join(pieces)


def _of_content(progress: Progress | None, text_bytes: int, content_bytes: int) -> Progress | None:
    """Progress in bytes of the text, passed on in bytes of the content."""
    if progress is None or text_bytes == content_bytes:
        return progress
    done_bytes = 0

    def report(more_bytes: int) -> None:
        nonlocal done_bytes
        before = done_bytes * content_bytes // text_bytes
        done_bytes += more_bytes
        progress(done_bytes * content_bytes // text_bytes - before)

    return report


def settings_for(
    package: ModelPackage, options: CompressOptions
) -> tuple[PredictorSection, MixerSection]:
    """What the header of an archive made with these options says of the predictor."""
    predictor = PredictorSection(
        engine_version=ENGINE_VERSION,
        package_fingerprint=package.fingerprint_bytes,
        window_tokens=options.window,
        local_window_tokens=options.local_window,
        sink_tokens=SINK_TOKENS,
    )
    return predictor, _mixer_for(options, nearest=True)


def header_for(package: ModelPackage | FloatModel, options: CompressOptions) -> Header:
    """The header of an archive made with these options, without steering vectors."""
    if not isinstance(package, FloatModel):
        predictor, mixer = settings_for(package, options)
        return Header(predictor=predictor, mixer=mixer)
    predictor = PredictorSection(
        engine_version=FLOAT_ENGINE_VERSION,
        package_fingerprint=package.fingerprint_bytes,
        window_tokens=options.window,
        local_window_tokens=options.window,
        sink_tokens=0,
    )
    machine = this_machine(options.threads or usable_cores())
    return Header(predictor=predictor, mixer=_mixer_for(options, nearest=False), machine=machine)


def _mixer_for(options: CompressOptions, *, nearest: bool) -> MixerSection:
    parameters = MixerParameters(tokens_mixed=options.mixing, nearest=nearest)
    return MixerSection(version=MIXER_VERSION, parameters=parameters.encode())


def open_codec(
    predictor: PredictorSection,
    mixer: MixerSection,
    *,
    package: ModelPackage | FloatModel,
    threads: int | None,
    chunking: Chunking,
    device: str = CPU,
    machine: MachineSection | None = None,
) -> FrameCodec:
    """A codec for frames of an archive with these header sections.

    Args:
        package: a `FloatModel` where there is a machine section, whose number of threads counts.
        device: where the model runs, one of `options.DEVICES`; one thread feeds another than the
            processor.

    Raises:
        UnsupportedVersionError: another version of the engine or the mixer is needed.
        UsageError: the window is out of range, or the device is not here or not for this model.
        InvalidModelError: a malformed package. ExactnessError: the device computes other integers.
        MissingLibraryError: the float engine's library is not installed.
    """
    known = ENGINE_VERSION if machine is None else FLOAT_ENGINE_VERSION
    if predictor.engine_version != known:
        raise UnsupportedVersionError(
            f"the archive needs engine version {predictor.engine_version}; this llmzip has {known}"
        )
    if mixer.version != MIXER_VERSION:
        raise UnsupportedVersionError(
            f"the archive needs mixer version {mixer.version}; this llmzip has {MIXER_VERSION}"
        )
    try:
        parameters = MixerParameters.decode(mixer.parameters)
    except ValueError as error:
        raise UnsupportedVersionError(f"the archive cannot be decoded: {error}") from error
    if parameters.nearest and machine is not None:
        raise UnsupportedVersionError("the float engine's states are not known to the mixer")
    engine: Predictor
    if isinstance(package, FloatModel):
        assert machine is not None
        if device != CPU:
            raise UsageError("the float engine runs on the device cpu only")
        window = predictor.window_tokens
        engine = FloatEngine(package, window=window, threads=threads_of(machine))
    else:
        engine = open_engine(
            package,
            device,
            window=predictor.window_tokens,
            local_window=predictor.local_window_tokens,
            sinks=predictor.sink_tokens,
        )
    threads = threads if device == CPU else 1
    return FrameCodec(engine, package=package, mixer=parameters, threads=threads, chunking=chunking)
