"""Steering vectors made for texts at hand: to be stored with them, or in a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from archiver.codec.workers import usable_cores
from archiver.container.layout import SteeringKind, SteeringSection
from archiver.options import CHARGED_TOKENS_MAX
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering import quantizers, sections
from archiver.steering.bodies import base_vectors, decode_body, encode_body
from archiver.steering.charge import Charge
from archiver.steering.files import SteeringFile
from archiver.steering.llama import TrainingModel
from archiver.steering.priors import Base
from archiver.steering.train import Trainer, TrainingSettings, TrainingState, usable_texts
from archiver.types import Float32Array, Int32Array

if TYPE_CHECKING:
    from archiver.codec import PricedSymbols
    from archiver.predict.package import ModelPackage

# The quantization step of charged vectors, whose coordinates are 0.12 to 0.18. For vectors trained
# in 200 steps on 100 kB of Wikipedia, for 300 streams of 512 tokens, bytes and change of the text's
# bits were 558 for -0.67 % with a step of 0.2, 398 for -0.68 with 0.4 and 279 for -0.56 with 0.5:
# mostly it costs bits to say which coordinates move, so what moves should move far. In so many
# streams, the last 0.12 % are 80 bytes, less than they cost.
STORED_STEP = 0.5
STEPS_MAX = 1000
# A token's weight is what the mixer leaves of the model's bits, which vectors are to make fewer.
# What hardly takes bits tells little of how many it takes with other vectors.
WEIGHT_MAX = 3.0
MODEL_BITS_MIN = 0.05
# Of what vectors save of weighted bits in held-out windows, archives show this part: on other text
# of a Russian novel 0.36 % where 0.77 to 0.82 were promised, and 0.55 where it was 1.1.
REAPED_PART = 0.45

Report = Callable[[TrainingState], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """How a steering file is trained and stored.

    Attributes:
        vectors: how many; seed: of every random choice.
        steps: how many at most; limit_s: how long at most; None for no limit of time.
        prior, bins: as `quantizers.quantize` takes them; with `streams` they are "scales", and
            the steps those of vectors that are stored with a text.
        chunk_tokens: how long the streams are that the vectors serve.
        streams: in how many of them the vectors shall save more than they take; None where their
            own bytes do not matter.
        checkpoint: where the training can be resumed from; None for nowhere.
        threads: that may work; None for one a core.
    """

    vectors: int
    seed: int
    steps: int
    limit_s: float | None
    prior: str
    bins: int
    chunk_tokens: int
    streams: int | None
    checkpoint: Path | None
    threads: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """What a training came to, and what storing its vectors does to them.

    Attributes:
        steps: done; trained_s: how long they took, resumed runs included.
        plain_bits: a stream's bits without vectors, as held-out windows have it; best_bits: with
            the vectors, before they were quantized.
        vector_bytes: of the stored vectors.
        square_error: the mean of what quantization did to the coordinates, squared.
    """

    steps: int
    trained_s: float
    plain_bits: float
    best_bits: float
    vector_bytes: int
    square_error: float


def stored_vectors(
    package: ModelPackage,
    symbols: PricedSymbols,
    *,
    streams: int,
    vectors: int,
    before: SteeringSection | None,
    steps: int,
    limit_s: float | None,
    threads: int | None,
    report: Report | None,
) -> tuple[SteeringSection, SoftPrompt]:
    """Vectors for one text, and the section that holds them.

    Args:
        symbols: of the text, as they are coded without new vectors; streams: how many begin in it.
        vectors: how many, where there is nothing to begin with.
        before: a section of built-in vectors, which the new ones begin as and are coded from.
        steps, limit_s: how long to train at most; None for no limit of time.

    Raises:
        UsageError: the text is too short.
    """
    usable_texts([symbols.ranks])  # before the weights are read
    base: Base | None = None
    beginning = None
    if before is not None and before.kind is SteeringKind.BUILT_IN:
        base = Base(number=before.fields[0])
        prompt = base_vectors(base, package)
        beginning = prompt.codes.astype(np.float32) * prompt.scales[:, None]
        vectors = len(beginning)
    stream_tokens = len(symbols.ranks) / streams
    settings = TrainingSettings(
        vectors=vectors,
        steps=steps,
        limit_s=limit_s,
        stream_tokens=stream_tokens,
        charge=Charge(streams=REAPED_PART * streams, step=STORED_STEP),
    )
    with _torch_threads(threads):
        trainer = Trainer(
            TrainingModel(package, _device()),
            [symbols.ranks],
            settings,
            weights=[token_weights(symbols)],
            beginning=beginning,
        )
        found = trainer.run(report)
    if base is None:
        base = Base(ranks=found.base_ranks)
    quantized = quantizers.scales(found.values, STORED_STEP, base, base_vectors(base, package))
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, package)
    return sections.embedded_section(body), decode_body(body, package)


def steering_file(
    package: ModelPackage,
    texts: Sequence[Int32Array],
    settings: FileSettings,
    report: Report | None,
) -> tuple[SteeringFile, TrainingSummary]:
    """A steering file for texts like these, and what its training came to.

    Raises:
        UsageError: the texts are too short, the checkpoint is of another training, or there is
            no such prior.
    """
    quantizers.check(settings.prior, settings.bins)
    usable_texts(texts)
    with _torch_threads(settings.threads):
        trainer = Trainer(
            TrainingModel(package, _device()),
            texts,
            TrainingSettings(
                vectors=settings.vectors,
                seed=settings.seed,
                steps=settings.steps,
                limit_s=settings.limit_s,
                stream_tokens=settings.chunk_tokens,
                charge=_charge(settings),
            ),
            checkpoint=settings.checkpoint,
        )
        found = trainer.run(report)
    base = Base(ranks=found.base_ranks)
    prompt = base_vectors(base, package)
    quantized = (
        quantizers.quantize(found.values, settings.prior, settings.bins, base, prompt)
        if settings.streams is None
        else quantizers.scales(found.values, STORED_STEP, base, prompt)
    )
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, package)
    file = SteeringFile(package_fingerprint=package.fingerprint_bytes, body=body)
    state = trainer.state
    return file, TrainingSummary(
        steps=state.step,
        trained_s=trainer.used_s,
        plain_bits=state.plain_bits,
        best_bits=state.best_bits,
        vector_bytes=len(body),
        square_error=float(np.mean(np.square(quantized.values() - found.values))),
    )


def token_weights(symbols: PricedSymbols) -> Float32Array:
    """How much of the model's bits each symbol of a text takes in its archive, float32."""
    return np.clip(symbols.bits / np.maximum(symbols.model_bits, MODEL_BITS_MIN), 0, WEIGHT_MAX)


def _charge(settings: FileSettings) -> Charge | None:
    if settings.streams is None:
        return None
    streams = min(settings.streams, CHARGED_TOKENS_MAX / settings.chunk_tokens)
    return Charge(streams=streams, step=STORED_STEP)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Torch uses so many threads in the block, None one a core; the model's workers want one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
