"""The library's functions, each reading as the data flows.

compress:    source ── frames ── FrameEncoder ── ArchiveWriter ──> target
decompress:  source ── ArchiveReader ── FrameDecoder ──> target
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast, overload

import xxhash

from archiver.container import (
    ArchiveReader,
    ArchiveWriter,
    Damage,
    DamagedArchive,
    FrameCoding,
    Header,
    IndexedArchive,
)
from archiver.container.reader import read_up_to
from archiver.container.recovery import contents_differ
from archiver.container.writer import ByteSink
from archiver.contents import ContentFile
from archiver.errors import DamagedArchiveError, UsageError
from archiver.files import SourceLike, TargetLike, open_source, open_target, seekable
from archiver.frames import FrameDecoder, FrameEncoder, ModelProgress, Progress, cut_frames
from archiver.options import (
    CPU,
    DEFAULT_BINS,
    DEFAULT_CHUNK_TOKENS,
    DEFAULT_MODEL,
    DEFAULT_PRIOR,
    DEFAULT_TRAINING_S,
    CompressOptions,
    check_device,
    check_threads,
    check_training,
)
from archiver.summaries import ArchiveInfo, ArchiveSummary, DecodeSummary, describe

if TYPE_CHECKING:
    from archiver.steering.fit import TrainingSummary
    from archiver.steering.train import TrainingState

PathLike: TypeAlias = str | os.PathLike[str]


LARGEST_TEXT_BYTES = 1 << 28  # of each text that steering vectors are trained on


class _Nowhere:
    def write(self, data: bytes, /) -> int:
        return len(data)


# --- compress -------------------------------------------------------------------------------


@overload
def compress(
    source: SourceLike,
    target: None = None,
    *,
    options: CompressOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> bytes: ...
@overload
def compress(
    source: SourceLike,
    target: TargetLike,
    *,
    options: CompressOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> ArchiveSummary: ...
def compress(
    source: SourceLike,
    target: TargetLike | None = None,
    *,
    options: CompressOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> bytes | ArchiveSummary:
    """Compress `source` into an archive that decompresses to the same bytes everywhere.

    Args:
        source: the bytes themselves, a path (str or PathLike), or a binary stream, read to its
            end.
        target: a path or a binary stream; None to have the archive returned.
        options: model, threads, window, frames; by default those of `CompressOptions()`.
        overwrite: whether a target that exists may be replaced.
        progress: called with how many more bytes of the source are done.
        model_progress: called with stage, bytes done and bytes in all, while a model is fetched.

    Returns:
        The archive when `target` is None, else its sizes.

    Raises:
        UsageError, InputError, OutputError, ModelError: see `archiver.errors`.
    """
    options = options or CompressOptions()
    with open_source(source) as opened:
        if target is None:
            archive = io.BytesIO()
            _compress_stream(opened.stream, archive, options, progress, model_progress)
            return archive.getvalue()
        with open_target(target, overwrite=overwrite, source=opened) as writing:
            return _compress_stream(opened.stream, writing, options, progress, model_progress)


def _compress_stream(
    stream: BinaryIO,
    sink: ByteSink,
    options: CompressOptions,
    progress: Progress | None,
    model_progress: ModelProgress | None,
) -> ArchiveSummary:
    encoder = FrameEncoder(options, model_progress)
    contents = cut_frames(stream, options.frame_bytes)
    content = next(contents, None)
    if content is None:
        writer = ArchiveWriter(sink, Header())
    else:
        coding, payload = encoder.encode(content, progress)
        following = next(contents, None)
        # A frame that needs no model, and is alone, needs nothing in the header either.
        alone = following is None and coding is not FrameCoding.PREDICTOR
        writer = ArchiveWriter(sink, Header() if alone else encoder.header)
        writer.add_frame(coding, content, payload)
        while following is not None:
            coding, payload = encoder.encode(following, progress)
            writer.add_frame(coding, following, payload)
            following = next(contents, None)
    writer.finish()
    return ArchiveSummary(
        content_bytes=writer.content_bytes,
        archive_bytes=writer.archive_bytes,
        payload_bytes=writer.payload_bytes,
        frames={coding.name.lower(): count for coding, count in encoder.counts.items()},
    )


# --- decompress -----------------------------------------------------------------------------


@overload
def decompress(
    source: SourceLike,
    target: None = None,
    *,
    threads: int | None = None,
    device: str = CPU,
    keep_going: bool = False,
    overwrite: bool = False,
    steering: PathLike | None = None,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> bytes: ...
@overload
def decompress(
    source: SourceLike,
    target: TargetLike,
    *,
    threads: int | None = None,
    device: str = CPU,
    keep_going: bool = False,
    overwrite: bool = False,
    steering: PathLike | None = None,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> DecodeSummary: ...
def decompress(
    source: SourceLike,
    target: TargetLike | None = None,
    *,
    threads: int | None = None,
    device: str = CPU,
    keep_going: bool = False,
    overwrite: bool = False,
    steering: PathLike | None = None,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> bytes | DecodeSummary:
    """Decompress an archive, and check every byte of it.

    Args:
        source: the archive itself, a path (str or PathLike), or a binary stream.
        target: a path or a binary stream; None to have the content returned. A stream may have
            received intact frames when a later one turns out to be damaged.
        threads: how many threads may work; None for one a core.
        device: where the model runs, "cpu" or "cuda", whatever the archive was made with.
        keep_going: leave out what is damaged and decode the rest; look at the summary's
            `damages`. Needs a target.
        overwrite: whether a target that exists may be replaced.
        steering: the steering file that the archive names, if it names one.
        progress: called with how many more bytes of the content are done.
        model_progress: called with stage, bytes done and bytes in all, while a model is fetched.

    Returns:
        The content when `target` is None, else its sizes and losses.

    Raises:
        NotAnArchiveError, UnsupportedVersionError, LimitExceededError: it cannot be read.
        DamagedArchiveError: some bytes are wrong, and `keep_going` is false or nothing is left.
        UsageError, InputError, OutputError, ModelError: see `archiver.errors`.
    """
    check_threads(threads)
    check_device(device)
    if target is None and keep_going:
        raise UsageError("keep_going needs a target, so that the losses can be returned")
    with open_source(source) as opened:
        if target is None:
            content = io.BytesIO()
            _decompress_stream(
                opened.stream, content, threads, device, False, _path(steering), progress,
                model_progress,
            )  # fmt: skip
            return content.getvalue()
        with open_target(target, overwrite=overwrite, source=opened) as writing:
            return _decompress_stream(
                opened.stream,
                writing,
                threads,
                device,
                keep_going,
                _path(steering),
                progress,
                model_progress,
            )


def verify(
    source: SourceLike,
    *,
    threads: int | None = None,
    device: str = CPU,
    keep_going: bool = False,
    steering: PathLike | None = None,
    progress: Progress | None = None,
    model_progress: ModelProgress | None = None,
) -> DecodeSummary:
    """Decode an archive and check it, without keeping the content; otherwise as `decompress`."""
    check_threads(threads)
    check_device(device)
    with open_source(source) as opened:
        return _decompress_stream(
            opened.stream,
            _Nowhere(),
            threads,
            device,
            keep_going,
            _path(steering),
            progress,
            model_progress,
        )


def _decompress_stream(
    stream: BinaryIO,
    sink: ByteSink,
    threads: int | None,
    device: str,
    keep_going: bool,
    steering: Path | None,
    progress: Progress | None,
    model_progress: ModelProgress | None,
) -> DecodeSummary:
    if keep_going:
        with seekable(stream) as sought:
            return _salvage(sought, sink, threads, device, steering, progress, model_progress)
    reader = ArchiveReader(stream)
    decoder = FrameDecoder(reader.header, threads, model_progress, steering, device)
    content_hash = xxhash.xxh3_64()
    content_bytes = frame_count = 0
    for frame in reader.frames():
        content = decoder.decode(frame, progress)
        sink.write(content)
        content_hash.update(content)
        content_bytes += len(content)
        frame_count += 1
    reader.finish(content_hash.intdigest())
    return DecodeSummary(
        content_bytes=content_bytes, archive_bytes=reader.archive_bytes, frame_count=frame_count
    )


def _salvage(
    stream: BinaryIO,
    sink: ByteSink,
    threads: int | None,
    device: str,
    steering: Path | None,
    progress: Progress | None,
    model_progress: ModelProgress | None,
) -> DecodeSummary:
    archive = DamagedArchive(stream)
    decoder = FrameDecoder(archive.header, threads, model_progress, steering, device)
    content_hash = xxhash.xxh3_64()
    content_bytes = frame_count = 0
    damages = []
    for part in archive.parts():
        if isinstance(part, Damage):
            damages.append(part)
            continue
        try:
            content = decoder.decode(part, progress)
        except DamagedArchiveError as error:
            damages.append(Damage.of_frame(part, error))
            continue
        sink.write(content)
        content_hash.update(content)
        content_bytes += len(content)
        frame_count += 1
    all_frames_are_here = all(damage.part == "header" for damage in damages)
    if all_frames_are_here and not archive.matches(content_hash.intdigest()):
        damages.append(contents_differ())
    return DecodeSummary(
        content_bytes=content_bytes,
        archive_bytes=archive.archive_bytes,
        frame_count=frame_count,
        damages=tuple(damages),
    )


# --- train ----------------------------------------------------------------------------------


def train(
    sources: Sequence[SourceLike],
    target: TargetLike,
    *,
    model: str = DEFAULT_MODEL,
    vectors: int = 8,
    steps: int | None = None,
    time_limit_s: float | None = None,
    prior: str | None = None,
    bins: int | None = None,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    streams: int | None = None,
    seed: int = 0,
    checkpoint: PathLike | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    report: Callable[[TrainingState], None] | None = None,
    model_progress: ModelProgress | None = None,
) -> TrainingSummary:
    """Make a steering file for texts like these, for `CompressOptions.steering`.

    Args:
        sources: the texts, each as `compress` takes it; read into memory.
        target: a path or a binary stream.
        vectors: how many; seed: of every random choice.
        steps: how many steps to train; None for as many as there is time for.
        time_limit_s: how long to train, resumed runs included; None for no limit where there
            is one of steps, else 15 minutes.
        prior: how the vectors are stored, one of `options.STEERING_PRIORS`; bins: in how many
            values a coordinate, 2 to 255. None for the defaults. With the checkpoint of a training
            that is done, its vectors are stored anew.
        chunk_tokens: how long the streams will be that the vectors serve. Those of the default
            level are as long as this default, or longer.
        streams: in how many of them the vectors shall save more than they take, for archives
            that hold them: their own bits are part of what training makes least, and the prior
            is "scales" with a step of its own, instead of `prior` and `bins`. Of all their tokens,
            `options.CHARGED_TOKENS_MAX` count. None where the vectors' bytes do not matter.
        checkpoint: where to keep the state; a training that was interrupted goes on from there.
        report: told of the state after every step.

    Returns:
        What the training came to.

    Raises:
        UsageError: the texts are too short, the checkpoint is of another training, a number is
            out of range, or `streams` is given with a prior or bins.
        InputError, OutputError, ModelError: see `archiver.errors`.
    """
    from archiver.predict import registry
    from archiver.steering.fit import STEPS_MAX, FileSettings, steering_file
    from archiver.steering.texts import TextReader

    check_threads(threads)
    check_training(vectors, steps, chunk_tokens, streams)
    if streams is not None and (prior is not None or bins is not None):
        raise UsageError(
            "vectors that are weighed against what they save in streams have a prior of their own: "
            "give a number of streams, or a prior and bins"
        )
    if steps is None and time_limit_s is None:
        time_limit_s = DEFAULT_TRAINING_S
    package = registry.resolve(model, progress=model_progress)
    reader = TextReader(package)
    texts = []
    for source in sources:
        with open_source(source) as opened:
            texts.append(reader.ranks(read_up_to(opened.stream, LARGEST_TEXT_BYTES)))
    with open_target(target, overwrite=overwrite, source=None) as writing:
        settings = FileSettings(
            vectors=vectors,
            seed=seed,
            steps=steps or STEPS_MAX,
            limit_s=time_limit_s,
            prior=DEFAULT_PRIOR if prior is None else prior,
            bins=DEFAULT_BINS if bins is None else bins,
            chunk_tokens=chunk_tokens,
            streams=streams,
            checkpoint=_path(checkpoint),
            threads=threads,
        )
        file, summary = steering_file(package, texts, settings, report)
        writing.write(file.encode())
    return summary


# --- look inside ----------------------------------------------------------------------------


def info(source: SourceLike) -> ArchiveInfo:
    """Return what an archive says of itself; neither a model nor decoding is needed.

    Payloads are not read, so damage within them goes unnoticed: that is what `verify` is for.

    Raises:
        NotAnArchiveError, UnsupportedVersionError, LimitExceededError: it cannot be read.
        DamagedArchiveError: header, trailer or a frame's header is wrong.
        InputError: the operating system could not read.
    """
    with open_source(source) as opened, seekable(opened.stream) as stream:
        return describe(IndexedArchive(stream))


def open(
    source: SourceLike,
    *,
    threads: int | None = None,
    device: str = CPU,
    steering: PathLike | None = None,
    model_progress: ModelProgress | None = None,
) -> BinaryIO:
    """Open an archive as a read-only binary file of its content.

    Any position can be sought; reading there decodes the one frame that holds it.

    Args:
        source: a path, the archive itself, or a stream, which must stay open meanwhile.
        threads: how many threads may work; None for one a core.
        device: where the model runs, "cpu" or "cuda".
        steering: the steering file that the archive names, if it names one.
        model_progress: called with stage, bytes done and bytes in all, while a model is fetched.

    Returns:
        A buffered file object; close it, or use it in a `with` statement.

    Raises:
        ArchiverError: as `info`; reading from the file raises as `decompress` does.
    """
    check_threads(threads)
    check_device(device)
    content = ContentFile(source, threads, _path(steering), model_progress, device)
    return cast(BinaryIO, io.BufferedReader(content))


def _path(steering: PathLike | None) -> Path | None:
    return None if steering is None else Path(steering)
