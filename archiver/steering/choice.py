"""Which steering vectors an archive gets: those asked for, or those that suit its text best.

Built-in vectors are tried on an extract of the text: each candidate codes it, the shortest
payload wins. An extract has streams of their own for every few hundred bytes, because steering
shows most where a stream begins. Further on, vectors that are not the text's own are a little in
the way, which an extract does not show: that is charged by the text's length.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from archiver.container.layout import (
    LARGEST_STEERING_VECTORS,
    LARGEST_STREAMS,
    Header,
    SteeringSection,
    encode_header,
)
from archiver.errors import UsageError
from archiver.levels import Chunking
from archiver.options import CompressOptions, SteeringMode
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering import files, sections, sources
from archiver.steering.texts import TextReader

if TYPE_CHECKING:
    from archiver.codec import FrameCodec, PricedSymbols
    from archiver.frames import ModelProgress
    from archiver.predict.package import ModelPackage
    from archiver.steering.train import TrainingState

VECTORS_BY_DEFAULT = 8  # to train where there are none to begin with

Steering = tuple[SteeringSection, SoftPrompt]

# Trying all candidates takes this part of the time that coding the text takes. Nothing is tried
# where that is too little for a piece: a text with so few streams has nothing to gain.
_TRIALS_PART = 32
_TRIAL_BYTES_MAX = 1 << 14
_PIECE_BYTES = 512
# Built-in vectors cost 0.10 to 0.14 % of the payload beyond the beginnings of streams (alice29, a
# Russian novel, a log, at the default level), which is half as long as what zstd makes, or shorter.
_LATE_COST_PART = 2000  # of what zstd makes
# Less than this part of an extract is chance: where 0.6 and 1.0 % were saved (two Russian texts),
# archives were 0.1 % longer, where 1.6 to 4.4 % were (English prose, a log), they were shorter.
_CHANCE_PART = 64
_TRIAL_CHUNKING = Chunking(tokens_min=128, streams=LARGEST_STREAMS)


def choose(
    options: CompressOptions,
    package: ModelPackage,
    codec: FrameCodec,
    sample: bytes,
    progress: ModelProgress | None,
) -> Steering | tuple[None, None]:
    """Return the steering section and its vectors, or twice None for none.

    AUTO gives built-in vectors at most; `trained` what may be better.

    Args:
        codec: without steering; sample: the text, or its first frame; may be empty.
        progress: told of the stages of training.

    Raises:
        UsageError: no built-in vectors of that name, a text that cannot be a prompt, or one that
            is too short to train on.
        SteeringError: a steering file that cannot be used.
    """
    choice = options.steering_choice
    match choice.mode:
        case SteeringMode.NONE:
            return None, None
        case SteeringMode.AUTO:
            return best_built_in(package, codec, sample) or (None, None)
        case SteeringMode.TRAINED:
            return trained(options, package, codec, _priced(codec, sample, progress), progress)
        case SteeringMode.NAMED:
            if choice.text not in files.BUILT_IN:
                names = ", ".join(files.BUILT_IN) or "none"
                raise UsageError(
                    f"no built-in steering vectors {choice.text!r}; there are: {names}"
                )
            section = sections.built_in_section(choice.text)
        case SteeringMode.FIXED:
            section = sections.tokens_section(_ranks_of(choice.text, package))
        case SteeringMode.RANDOM:
            section = sections.random_section(choice.seed, choice.vectors)
        case SteeringMode.FILE:
            path = Path(choice.text)
            file = files.read_file(path)
            if options.embed_steering:
                section = sections.embedded_section(file.body)
            else:
                section = sections.file_section(file)
            return section, sources.of_file(file, package)
    return section, sources.resolve(section, package, None)


def trained(
    options: CompressOptions,
    package: ModelPackage,
    codec: FrameCodec,
    symbols: PricedSymbols,
    progress: ModelProgress | None,
    before: SteeringSection | None = None,
) -> Steering:
    """Return vectors trained on a text as long as the options say, to be stored with it.

    Args:
        symbols: of the text, as they are coded without new vectors.
        progress: told of the stage "training steering vectors", in steps of a thousandth.
        before: the built-in vectors that they shall begin as; None to begin as tokens.

    Raises:
        UsageError: the text is too short.
    """
    from archiver.steering.fit import STEPS_MAX, stored_vectors

    choice = options.steering_choice

    def report(state: TrainingState) -> None:
        if progress:
            progress("training steering vectors", int(1000 * state.part), 1000)

    return stored_vectors(
        package,
        symbols,
        streams=codec.plan(len(symbols.ranks)).streams,
        vectors=choice.vectors or VECTORS_BY_DEFAULT,
        before=before,
        steps=choice.training_steps or STEPS_MAX,
        limit_s=choice.training_s or None,
        threads=options.threads,
        report=report,
    )


def _priced(codec: FrameCodec, sample: bytes, progress: ModelProgress | None) -> PricedSymbols:
    """Return what a text's symbols take without vectors.

    Raises:
        UsageError: the text is too short to train on.
    """
    from archiver.steering.train import usable_texts

    usable_texts([codec.ranks(sample)])
    done_bytes = 0

    def report(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        if progress:
            progress("measuring the text", done_bytes, len(sample))

    return codec.encode_priced(sample, report)[1]


def best_built_in(package: ModelPackage, codec: FrameCodec, sample: bytes) -> Steering | None:
    """Return the built-in vectors that code an extract of the text shortest; None for none.

    Those are left out that save less than it costs to name them and to have them far into a
    stream, or so little that it may be chance. What they save is taken to be saved once a stream:
    the extract has many streams, the text may have few.
    """
    candidates = [
        name
        for name in files.BUILT_IN
        if files.built_in_file(name).package_fingerprint == package.fingerprint_bytes
    ]
    extract = extract_of(sample, 1 + len(candidates))
    if not candidates or not extract or not codec.worth_trying(sample):
        return None
    trial = codec.steered(None, _TRIAL_CHUNKING)
    tokens = len(trial.ranks(extract))
    streams = codec.plan(tokens * len(sample) // len(extract)).streams
    streams_a_trial = streams / trial.plan(tokens).streams
    late_cost = len(zstandard.ZstdCompressor().compress(sample)) / _LATE_COST_PART
    plain = len(trial.encode(extract))
    best, found = plain, None
    for name in candidates:
        section = sections.built_in_section(name)
        prompt = sources.resolve(section, package, None)
        size = len(trial.steered(prompt, _TRIAL_CHUNKING).encode(extract))
        saved = plain - size
        pays = saved * streams_a_trial > _header_bytes(section) + late_cost
        if size < best and pays and saved * _CHANCE_PART >= plain:
            best, found = size, (section, prompt)
    return found


def _header_bytes(section: SteeringSection) -> int:
    return len(encode_header(Header(steering=section))) - len(encode_header(Header()))


def extract_of(sample: bytes, trials: int) -> bytes:
    """Return some pieces of a text, spread over it; nothing of a short one.

    Args:
        trials: how many times they will be coded; the more, the fewer there are.
    """
    count = min(len(sample) // (_TRIALS_PART * trials), _TRIAL_BYTES_MAX) // _PIECE_BYTES
    pieces = []
    for number in range(count):
        begin = (len(sample) - _PIECE_BYTES) * (2 * number + 1) // (2 * count)
        pieces.append(_whole_characters(sample[begin : begin + _PIECE_BYTES]))
    return b"".join(pieces)


def _whole_characters(piece: bytes) -> bytes:
    """Return a piece of UTF-8 without the parts of characters at its ends."""
    begin, end = 0, len(piece)
    while begin < min(3, end) and piece[begin] & 0xC0 == 0x80:
        begin += 1
    last = end - 1
    while last > max(begin, end - 4) and piece[last] & 0xC0 == 0x80:
        last -= 1
    if piece[last] >= 0xC0:
        end = last
    return piece[begin:end]


def _ranks_of(text: str, package: ModelPackage) -> list[int]:
    """Return the tokens of a text that is to be a prompt.

    Raises:
        UsageError: it has too many, or bytes that no token has.
    """
    symbols = TextReader(package).symbols(text.encode(errors="surrogateescape"))
    if symbols.escapes:
        raise UsageError("the model has no tokens for some bytes of the fixed text")
    if len(symbols.ranks) > LARGEST_STEERING_VECTORS:
        raise UsageError(
            f"the fixed text has {len(symbols.ranks)} tokens, more than {LARGEST_STEERING_VECTORS}"
        )
    return [int(rank) for rank in symbols.ranks]
