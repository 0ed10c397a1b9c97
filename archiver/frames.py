"""One frame at a time: how input is cut into frames, and how a frame is coded and decoded.

    content --> raw | zstd | predictor, whichever is shortest --> payload

The codec and the model are opened only when a frame needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import zstandard

from archiver.container import EncodedFrame, FrameCoding, Header
from archiver.container.layout import encode_header
from archiver.container.reader import read_up_to
from archiver.errors import (
    DamagedArchiveError,
    FrameDamagedError,
    LimitExceededError,
    UsageError,
)
from archiver.levels import DEFAULT_LEVEL, LEVELS, Chunking
from archiver.options import CPU, FLOAT, CompressOptions, SteeringMode

if TYPE_CHECKING:
    from archiver.codec import FrameCodec, PricedSymbols
    from archiver.predict.float_models import FloatModel
    from archiver.predict.package import ModelPackage

ZSTD_LEVEL = 19
# zstd needs no window larger than a frame: 2^24 bytes.
_LARGEST_ZSTD_WINDOW_BYTES = 1 << 24

# How far back from its longest a frame may be cut to end with a line.
_LINE_SEARCH_BYTES = 4096

# Where zstd leaves less than this part of a frame, the model is not asked: it could not save
# more than 0.1 % of the frame.
_NEGLIGIBLE_PART = 1024

Progress = Callable[[int], None]
ModelProgress = Callable[[str, int, int], None]


class Codec(Protocol):
    """What codes a frame through the model; see `archiver.codec`."""

    def encode(self, content: bytes, progress: Progress | None = None) -> bytes:
        """Return the payload of a frame with this content."""

    def encode_priced(
        self, content: bytes, progress: Progress | None = None
    ) -> tuple[bytes, PricedSymbols]:
        """Return what `encode` returns, and what each of its symbols takes."""

    def decode(self, payload: bytes, content_bytes: int, progress: Progress | None = None) -> bytes:
        """Return the content of which `encode` made `payload`."""

    def worth_trying(self, content: bytes) -> bool:
        """Return whether `encode` may make this content shorter; cheap."""


def codec_for_writing(
    options: CompressOptions, model_progress: ModelProgress | None, sample: bytes = b""
) -> tuple[Codec, Header]:
    """Return a codec for these options, and the header that an archive of its frames needs.

    Args:
        sample: the first frame's content, by which steering vectors are chosen.

    Raises:
        ModelError: the model cannot be had. SteeringError: nor can the steering vectors.
        MissingLibraryError: the float engine's library is not installed.
    """
    from archiver import codec
    from archiver.codec.first_use import compile_all
    from archiver.predict import registry
    from archiver.steering.choice import choose

    if options.engine == FLOAT:
        from archiver.predict import float_models

        model = float_models.remember(Path(options.model))
        header = codec.header_for(model, options)
        return _opened(header, model, options.threads, options.chunking, options.device), header
    package = registry.resolve(options.model, progress=model_progress)
    if options.device == CPU:
        compile_all(package, model_progress)
    header = codec.header_for(package, options)
    plain = _opened(header, package, options.threads, options.chunking, options.device)
    section, prompt = choose(options, package, plain, sample, model_progress)
    if prompt is None:
        return plain, header
    return plain.steered(prompt, options.chunking), replace(header, steering=section)


def plain_codec(options: CompressOptions, header: Header) -> tuple[FrameCodec, Header]:
    """Return a codec without steering vectors, and its header."""
    from archiver.predict import registry

    plain = replace(header, steering=None)
    package = registry.resolve(options.model)
    return _opened(plain, package, options.threads, options.chunking, options.device), plain


def trained_codec(
    options: CompressOptions,
    header: Header,
    symbols: PricedSymbols,
    model_progress: ModelProgress | None,
) -> tuple[Codec, Header] | None:
    """Return a codec with steering vectors trained on a frame, and its header; None if too short.

    Args:
        header: of the archive without them; built-in vectors in it are what they begin as.
        symbols: of the frame, as they are coded with this header.
    """
    from archiver.predict import registry
    from archiver.steering.choice import trained

    package = registry.resolve(options.model)
    plain, _ = plain_codec(options, header)
    try:
        section, prompt = trained(
            options, package, plain, symbols, model_progress, before=header.steering
        )
    except UsageError:
        return None
    return plain.steered(prompt, options.chunking), replace(header, steering=section)


def codec_for_reading(
    header: Header,
    threads: int | None,
    model_progress: ModelProgress | None,
    steering_file: Path | None = None,
    device: str = CPU,
) -> Codec:
    """Return the codec that an archive with this header was made by.

    Args:
        steering_file: the steering file that the header may name.
        device: where the model runs.

    Raises:
        UsageError: there is no such device here.
        ModelError: the model cannot be had. SteeringError: nor can the steering vectors.
        UnsupportedVersionError: the engine's or the mixer's version is unknown.
        DamagedArchiveError, LimitExceededError: the steering section is malformed.
        MachineMismatchError: the archive is tied to another machine.
    """
    from archiver.codec.first_use import compile_all
    from archiver.predict import registry

    assert header.predictor is not None
    if header.machine is not None:
        from archiver.predict import float_models

        model = float_models.resolve(header.predictor, header.machine, threads)
        return _opened(header, model, threads, LEVELS[DEFAULT_LEVEL].chunking, device)
    fingerprint = header.predictor.package_fingerprint
    package = registry.resolve_fingerprint(fingerprint, progress=model_progress)
    if device == CPU:
        compile_all(package, model_progress)
    chunking = LEVELS[DEFAULT_LEVEL].chunking
    plain = _opened(replace(header, steering=None), package, threads, chunking, device)
    if header.steering is None:
        return plain
    from archiver.predict.engine_base import VISIBLE_MAX
    from archiver.steering.sources import resolve

    prompt = resolve(header.steering, package, steering_file)
    visible = header.predictor.window_tokens + header.predictor.sink_tokens + len(prompt.codes)
    if visible >= VISIBLE_MAX:
        raise LimitExceededError(
            f"window, sinks and steering vectors are {visible} together; "
            f"the limit is {VISIBLE_MAX - 1}"
        )
    places = package.config.get("positions")
    if isinstance(places, int) and len(prompt.codes) >= places:
        raise LimitExceededError(
            f"{len(prompt.codes)} steering vectors, but the model has {places} places in all"
        )
    return plain.steered(prompt, chunking)


# Opening a model takes seconds. Each thread keeps the codec that it opened last, because many
# files in a row want the same one, and a codec serves one thread at a time.
_kept = threading.local()


def _opened(
    header: Header,
    package: ModelPackage | FloatModel,
    threads: int | None,
    chunking: Chunking,
    device: str,
) -> FrameCodec:
    from archiver import codec

    assert header.predictor is not None
    assert header.mixer is not None
    key = (header, package.fingerprint, threads, chunking, device)
    if getattr(_kept, "key", None) != key:
        _kept.key = _kept.codec = None  # two models need not fit in memory
        _kept.codec = codec.open_codec(
            header.predictor,
            header.mixer,
            package=package,
            threads=threads,
            chunking=chunking,
            device=device,
            machine=header.machine,
        )
        _kept.key = key
    kept: FrameCodec = _kept.codec
    return kept


def payload_errors() -> tuple[type[Exception], ...]:
    """Return what a codec raises for a payload that no encoder makes."""
    from archiver.codec.frame import PayloadError

    return (PayloadError,)


def cut_frames(stream: BinaryIO, frame_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of `stream` in order, cut into frames of 1 to `frame_bytes` bytes.

    A frame ends with a line if one ends in the last 4,096 bytes that it may have, else between
    two characters of UTF-8. Memory holds two frames at most.

    Raises:
        InputError: the operating system could not read.
    """
    data = read_up_to(stream, frame_bytes + 1)
    while len(data) > frame_bytes:
        end = _end_of_frame(data, frame_bytes)
        yield data[:end]
        rest = data[end:]
        data = rest + read_up_to(stream, frame_bytes + 1 - len(rest))
    if data:
        yield data


def _end_of_frame(data: bytes, frame_bytes: int) -> int:
    search_bytes = min(_LINE_SEARCH_BYTES, frame_bytes // 2)
    line_end = data.rfind(b"\n", frame_bytes - search_bytes, frame_bytes)
    if line_end >= 0:
        return line_end + 1
    for end in range(frame_bytes, max(frame_bytes - 4, 0), -1):
        if data[end] & 0xC0 != 0x80:  # the next frame begins with the first byte of a character
            return end
    return frame_bytes


class FrameEncoder:
    """Codes frames in the shortest way.

    Attributes:
        counts: how many frames have been coded in which way.
    """

    def __init__(self, options: CompressOptions, model_progress: ModelProgress | None) -> None:
        self._options = options
        self._model_progress = model_progress
        self._opened: tuple[Codec, Header] | None = None
        self._header_is_given = False  # then it is what it is
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.counts = dict.fromkeys(FrameCoding, 0)

    @property
    def header(self) -> Header:
        """The header of an archive with frames that the predictor coded."""
        self._header_is_given = True
        return self._open(b"")[1]

    def encode(self, content: bytes, progress: Progress | None) -> tuple[FrameCoding, bytes]:
        """Return the coding that makes `content` (not empty) shortest, and the payload."""
        reporting = _FrameProgress(progress, len(content))
        candidates = [
            (FrameCoding.RAW, content),
            (FrameCoding.ZSTD, self._zstd.compress(content)),
        ]
        if len(candidates[1][1]) > len(content) // _NEGLIGIBLE_PART:
            codec = self._open(content)[0]
            if codec.worth_trying(content):
                candidates.append((FrameCoding.PREDICTOR, self._predicted(content, reporting)))
        coding, payload = min(candidates, key=lambda candidate: len(candidate[1]))
        reporting.finish()
        self.counts[coding] += 1
        return coding, payload

    def _predicted(self, content: bytes, progress: Progress) -> bytes:
        """Return the predictor's payload.

        Where steering vectors may be trained, the first frame decides whether any pay: it is
        coded without, with the built-in ones that were chosen, if any, and with trained ones;
        the shortest sum of header and payload counts.
        """
        codec, header = self._open(content)
        choice = self._options.steering_choice
        if self._header_is_given or choice.mode is not SteeringMode.AUTO or not choice.training_s:
            return codec.encode(content, progress=progress)
        self._header_is_given = True
        payload, symbols = codec.encode_priced(content, progress=progress)
        rivals = [trained_codec(self._options, header, symbols, self._model_progress)]
        if header.steering is not None:
            rivals.append(plain_codec(self._options, header))
        size = len(encode_header(header)) + len(payload)
        for rival in rivals:
            if rival is not None:
                other = rival[0].encode(content)
                if (other_size := len(encode_header(rival[1])) + len(other)) < size:
                    self._opened, payload, size = rival, other, other_size
        return payload

    def _open(self, sample: bytes) -> tuple[Codec, Header]:
        if self._opened is None:
            self._opened = codec_for_writing(self._options, self._model_progress, sample)
        return self._opened


class FrameDecoder:
    """Decodes frames of one archive, and checks what comes out."""

    def __init__(
        self,
        header: Header | None,
        threads: int | None,
        model_progress: ModelProgress | None,
        steering_file: Path | None = None,
        device: str = CPU,
    ) -> None:
        self._header = header
        self._threads = threads
        self._device = device
        self._model_progress = model_progress
        self._steering_file = steering_file
        self._codec: Codec | None = None

    def decode(self, frame: EncodedFrame, progress: Progress | None = None) -> bytes:
        """Return the content of `frame`.

        Raises:
            FrameDamagedError: the payload does not decode to the content that it should.
            ModelError: the model that the archive needs cannot be had.
        """
        reporting = _FrameProgress(progress, frame.content_bytes)
        if frame.coding is FrameCoding.RAW:
            content = frame.payload
        elif frame.coding is FrameCoding.ZSTD:
            content = _decode_zstd(frame)
        else:
            content = self._decode_predictor(frame, reporting)
        frame.check_content(content)
        reporting.finish()
        return content

    def _decode_predictor(self, frame: EncodedFrame, progress: Progress) -> bytes:
        if self._codec is None:
            assert self._header is not None
            self._codec = codec_for_reading(
                self._header, self._threads, self._model_progress, self._steering_file,
                self._device,
            )  # fmt: skip
        try:
            return self._codec.decode(frame.payload, frame.content_bytes, progress=progress)
        except DamagedArchiveError as error:
            raise FrameDamagedError(frame.number, str(error)) from error
        except payload_errors() as error:
            raise FrameDamagedError(frame.number, str(error)) from error


def _decode_zstd(frame: EncodedFrame) -> bytes:
    # The content length in zstd's own header decides what is allocated, so it is checked first.
    try:
        parameters = zstandard.get_frame_parameters(frame.payload)
        if parameters.content_size != frame.content_bytes:
            raise FrameDamagedError(frame.number, "its zstd data has another length")
        # One-shot decoding does not look at the limit below, so the window is checked here.
        if parameters.window_size > _LARGEST_ZSTD_WINDOW_BYTES:
            raise FrameDamagedError(frame.number, "its zstd window is too large")
        decoder = zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW_BYTES)
        return decoder.decompress(frame.payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameDamagedError(frame.number, f"its zstd data is malformed ({error})") from error


class _FrameProgress:
    """Passes progress on, so that the parts of a frame add up to its length exactly."""

    def __init__(self, progress: Progress | None, content_bytes: int) -> None:
        self._progress = progress
        self._left_bytes = content_bytes

    def __call__(self, content_bytes: int) -> None:
        done_bytes = max(0, min(content_bytes, self._left_bytes))
        self._left_bytes -= done_bytes
        if self._progress is not None and done_bytes:
            self._progress(done_bytes)

    def finish(self) -> None:
        """Report what has not been reported yet."""
        self(self._left_bytes)
