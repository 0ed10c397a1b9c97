"""Which steering vectors an archive gets: those asked for, or those that suit its text best.

Built-in vectors are tried on an extract of the text: each candidate codes it, the shortest
payload wins. An extract has streams of their own for every few hundred bytes, because steering
shows most where a stream begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from archiver.container.layout import (
    LARGEST_STEERING_VECTORS,
    LARGEST_STREAMS,
    SteeringSection,
)
from archiver.errors import UsageError
from archiver.levels import Chunking
from archiver.options import CompressOptions, SteeringMode
from archiver.predict.engine import SoftPrompt
from archiver.steering import files, sections, sources
from archiver.text.framing import symbols_of
from archiver.text.tokenizer import TextTokenizer
from archiver.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from archiver.codec import FrameCodec
    from archiver.predict.package import ModelPackage

Steering = tuple[SteeringSection, SoftPrompt]

# Trying one candidate takes this part of the time that coding the text takes, but for short
# texts, whose extracts would say nothing.
_TRIAL_PART = 160
_TRIAL_BYTES_MIN = 512
_TRIAL_BYTES_MAX = 1 << 14
_PIECE_BYTES = 512
_TRIAL_CHUNKING = Chunking(tokens_min=128, streams=LARGEST_STREAMS)


def choose(
    options: CompressOptions, package: ModelPackage, codec: FrameCodec, sample: bytes
) -> Steering | tuple[None, None]:
    """Return the steering section and its vectors, or twice None for none.

    Args:
        codec: without steering; sample: the text, or its first frame; may be empty.

    Raises:
        UsageError: no built-in vectors of that name, or a text that cannot be a prompt.
        SteeringError: a steering file that cannot be used.
    """
    choice = options.steering_choice
    match choice.mode:
        case SteeringMode.NONE:
            return None, None
        case SteeringMode.AUTO:
            return best_built_in(package, codec, sample) or (None, None)
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


def best_built_in(package: ModelPackage, codec: FrameCodec, sample: bytes) -> Steering | None:
    """Return the built-in vectors that code an extract of the text shortest; None for none."""
    candidates = [
        name
        for name in files.BUILT_IN
        if files.built_in_file(name).package_fingerprint == package.fingerprint_bytes
    ]
    extract = extract_of(sample)
    if not candidates or not extract or not codec.worth_trying(sample):
        return None
    best, found = coded_bytes(codec, None, extract), None
    for name in candidates:
        section = sections.built_in_section(name)
        prompt = sources.resolve(section, package, None)
        size = coded_bytes(codec, prompt, extract)
        if size < best:
            best, found = size, (section, prompt)
    return found


def coded_bytes(codec: FrameCodec, prompt: SoftPrompt | None, extract: bytes) -> int:
    """Return how long the payload of an extract is after a soft prompt, in short streams."""
    return len(codec.steered(prompt, _TRIAL_CHUNKING).encode(extract))


def extract_of(sample: bytes) -> bytes:
    """Return some pieces of a text, spread over it; a small part of it, or all if it is short."""
    wanted = min(max(len(sample) // _TRIAL_PART, _TRIAL_BYTES_MIN), _TRIAL_BYTES_MAX)
    if len(sample) <= wanted:
        return sample
    count = -(-wanted // _PIECE_BYTES)
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
    names = ("tokens.data", "tokens.offsets", "tokens.rank_of_id")
    vocabulary = Vocabulary.build(*(package.arrays[name] for name in names))
    symbols = symbols_of(text.encode(errors="surrogateescape"), vocabulary, TextTokenizer(package))
    if symbols.escapes:
        raise UsageError("the model has no tokens for some bytes of the fixed text")
    if len(symbols.ranks) > LARGEST_STEERING_VECTORS:
        raise UsageError(
            f"the fixed text has {len(symbols.ranks)} tokens, more than {LARGEST_STEERING_VECTORS}"
        )
    return [int(rank) for rank in symbols.ranks]
