"""An archive's content: the whole of FORMAT.md, front to back.

Command:
    python -m tests.reference.decoder ARCHIVE PACKAGE_FOLDER [STEERING_FILE] > CONTENT
"""

from __future__ import annotations

import sys
from pathlib import Path

from archiver.errors import (
    FrameDamagedError,
    LimitExceededError,
    ModelMissingError,
    UnsupportedVersionError,
)
from tests.reference.coder import RangeDecoder, TokenTree, decode_escape, decode_escape_flag
from tests.reference.container import (
    RAW,
    ZSTD,
    Frame,
    MalformedError,
    MixerSection,
    PredictorSection,
    SteeringSection,
    check_trailer,
    check_whole,
    decode_zstd,
    hash64,
    read_frames,
    read_header,
    read_varint,
)
from tests.reference.mixer import Mixer, Parameters, UnknownParametersError
from tests.reference.package import Package, read_package
from tests.reference.predictor import Model, Stream
from tests.reference.steering import steering_vectors
from tests.reference.transforms import read_fields, undo

ENGINE_VERSION = 2
MIXER_VERSION = 3
LARGEST_STREAMS = 1024
LARGEST_STREAM_TOKENS = 65536


def decode(archive: bytes, package_folder: Path, steering_file: bytes | None = None) -> bytes:
    """The content of an archive.

    Args:
        steering_file: the one that the archive names, if it names one.

    Raises:
        ArchiverError: it must be rejected; the class is the one that FORMAT.md names.
    """
    header = read_header(archive)
    frames, trailer_offset = read_frames(archive, header.archive_bytes)
    check_trailer(archive, trailer_offset, frames)
    predictor = None
    contents = []
    for frame in frames:
        try:
            if frame.coding == RAW:
                content = frame.payload
            elif frame.coding == ZSTD:
                content = decode_zstd(frame.payload, frame.content_bytes)
            else:
                if header.predictor is None or header.mixer is None:
                    raise MalformedError("the header lacks a section for it")
                predictor = predictor or FramePredictor(
                    header.predictor,
                    header.mixer,
                    package_folder,
                    header.steering,
                    steering_file,
                )
                content = predictor.decode(frame)
        except MalformedError as error:
            raise FrameDamagedError(frame.number, str(error)) from error
        if len(content) != frame.content_bytes or hash64(content) != frame.content_hash:
            raise FrameDamagedError(frame.number, "the content is another one")
        contents.append(content)
    whole = b"".join(contents)
    check_whole(archive, whole)
    return whole


class FramePredictor:
    """Decodes frames of coding PREDICTOR with one model and one pair of window and sinks."""

    def __init__(
        self,
        section: PredictorSection,
        mixer: MixerSection,
        package_folder: Path,
        steering: SteeringSection | None = None,
        steering_file: bytes | None = None,
    ) -> None:
        if section.engine_version != ENGINE_VERSION:
            raise UnsupportedVersionError(f"engine version {section.engine_version}")
        if mixer.version != MIXER_VERSION:
            raise UnsupportedVersionError(f"mixer version {mixer.version}")
        try:
            self._mixer_parameters = Parameters.read(mixer.parameters)
        except UnknownParametersError as error:
            raise UnsupportedVersionError(f"mixer parameters {error}") from error
        package: Package = read_package(package_folder)
        if package.fingerprint[:8] != section.package_fingerprint:
            raise ModelMissingError(f"the archive needs {section.package_fingerprint.hex()}")
        self._vectors = (
            [] if steering is None else steering_vectors(steering, package, steering_file)
        )
        if section.window_tokens + section.sink_tokens + len(self._vectors) >= 16384:
            raise LimitExceededError("window, sinks and steering vectors")
        self._section = section
        self._model = Model(package)
        self._tokens = package.tokens()
        self._tree = TokenTree(self._tokens)

    def decode(self, frame: Frame) -> bytes:
        """The content of a frame.

        Raises:
            MalformedError: a parameter is beyond its limit, or the content too long.
        """
        symbols, offset = read_varint(frame.payload, 0)
        stream_count, offset = read_varint(frame.payload, offset)
        if not 1 <= stream_count <= min(symbols, LARGEST_STREAMS):
            raise MalformedError(f"{stream_count} streams")
        if frame.payload[offset : offset + 1] not in (b"\0", b"\1", b"\2", b"\3"):
            raise MalformedError("the flags are wrong or missing")
        with_escapes = frame.payload[offset] & 1 == 1
        with_transforms = frame.payload[offset] & 2 == 2
        offset += 1
        text_bytes = frame.content_bytes
        if with_transforms:
            transforms = read_fields(frame.payload, offset, frame.content_bytes)
            text_bytes, offset = transforms.text_bytes, transforms.end
        if not 1 <= symbols <= text_bytes:
            raise MalformedError(f"{symbols} symbols")
        longer = symbols % stream_count
        lengths = [symbols // stream_count + (n < longer) for n in range(stream_count)]
        if max(lengths) + len(self._vectors) > LARGEST_STREAM_TOKENS:
            raise MalformedError("a stream is too long")

        range_decoder = RangeDecoder(frame.payload[offset:])
        mixer = Mixer(self._mixer_parameters, text_bytes, stream_count, range_decoder.decide)
        chunks: list[list[bytes]] = [[] for _ in lengths]
        streams = [
            Stream(
                self._model,
                positions=length,
                window_tokens=self._section.window_tokens,
                local_window_tokens=self._section.local_window_tokens,
                sink_tokens=self._section.sink_tokens,
                vectors=self._vectors,
            )
            for length in lengths
        ]
        inputs = [self._model.start_token] * stream_count
        after_escape = [False] * stream_count
        decoded_bytes = 0
        for position in range(max(lengths)):
            for n in range(stream_count):
                if position >= lengths[n]:
                    continue
                weights = streams[n].step(inputs[n])
                known = mixer.streams[n]
                after_escape[n] = with_escapes and decode_escape_flag(mixer, known, after_escape[n])
                if after_escape[n]:
                    symbol = decode_escape(mixer, known)
                    inputs[n] = self._model.start_token
                else:
                    inputs[n] = self._tree.decode(weights, mixer, known, streams[n].codes)
                    symbol = self._tokens[inputs[n]]
                chunks[n].append(symbol)
                decoded_bytes += len(symbol)
                if decoded_bytes > text_bytes:
                    raise MalformedError("the symbols stand for too many bytes")
        text = b"".join(b"".join(chunk) for chunk in chunks)
        if not with_transforms:
            return text
        if len(text) != text_bytes:
            raise MalformedError("the symbols stand for too few bytes")
        return undo(transforms, text, frame.content_bytes)


if __name__ == "__main__":
    archive_file, folder, *steering_files = map(Path, sys.argv[1:])
    steering = steering_files[0].read_bytes() if steering_files else None
    sys.stdout.buffer.write(decode(archive_file.read_bytes(), folder, steering))
