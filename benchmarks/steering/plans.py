"""The kinds of experiment: which archives each of them makes.

chunks   independent pieces against one stream and llmzip's streams
kinds    ways to steer, side by side
priors   one set of trained vectors stored by each hyper-prior, and the learned one
growth   the gain against the number of vectors and against the text's length
halves   a steering file of one half of a text, used on the other half
choice   no steering against llmzip's own choice, and what choosing takes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from archiver.options import DEFAULT_BINS, LARGEST_FRAME_BYTES, STEERING_PRIORS, SteeringChoice
from benchmarks.records import LlmzipSettings

STEERING_FILE = "FILE"  # in a case's settings: the file that is trained for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Bytes `begin` to `end` of one of the experiment's texts."""

    text: str
    begin: int
    end: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.text}[{self.begin}:{self.end}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A steering file to make first: what it is trained on, and how it is stored.

    Attributes:
        streams: as `archiver.train` takes it; `prior` and `bins` do not count then.
    """

    span: Span
    vectors: int
    steps: int
    seed: int
    prior: str
    bins: int
    streams: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One archive to make.

    Attributes:
        role: what it is in the experiment's table.
        span: what is compressed.
        program: one of `programs.PROGRAMS`.
        settings: those in which it differs from the experiment's.
        training: of the steering file that the settings name by STEERING_FILE.
    """

    role: str
    span: Span
    program: str = "llmzip"
    settings: LlmzipSettings
    training: Training | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the case in types that JSON has; settings that are given only."""
        given = dataclasses.asdict(self.settings).items()
        return dataclasses.asdict(self) | {
            "settings": {name: value for name, value in given if value is not None}
        }


class Plan(Protocol):
    """What an experiment of one kind makes of each text."""

    kind: ClassVar[str]

    def cases(self, text: str, content_bytes: int) -> Sequence[Case]:
        """Return the archives of one text, in the order in which they are made."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunksPlan:
    """Pieces of `piece_bytes` as archives of their own, one stream, and llmzip's streams.

    Attributes:
        chunk_tokens: also streams of so many tokens.
        steering: of all of them.
    """

    kind: ClassVar[str] = "chunks"
    piece_bytes: int
    chunk_tokens: tuple[int, ...] = ()
    steering: str = "none"

    def cases(self, text: str, content_bytes: int) -> list[Case]:
        span = Span(text=text, begin=0, end=content_bytes)

        def case(role: str, program: str = "llmzip", **settings: Any) -> Case:
            chosen = LlmzipSettings(steering=self.steering, **settings)
            return Case(role=role, span=span, program=program, settings=chosen)

        whole = min(max(content_bytes, 1 << 12), LARGEST_FRAME_BYTES)
        return [
            case(f"pieces of {self.piece_bytes:,} bytes", "pieces", frame_bytes=self.piece_bytes),
            *(case(f"streams of {n:,} tokens", chunk_tokens=n) for n in self.chunk_tokens),
            case("llmzip's streams"),
            case("one stream", chunk_tokens=LARGEST_FRAME_BYTES, frame_bytes=whole),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindsPlan:
    """Each of these choices of steering, as `--steer` takes them."""

    kind: ClassVar[str] = "kinds"
    steering: tuple[str, ...]

    def __post_init__(self) -> None:
        for choice in self.steering:
            SteeringChoice.parse(choice)

    def cases(self, text: str, content_bytes: int) -> list[Case]:
        span = Span(text=text, begin=0, end=content_bytes)
        return [
            Case(role=choice, span=span, settings=LlmzipSettings(steering=choice))
            for choice in self.steering
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorsPlan:
    """One set of vectors, trained on the text itself, stored by each prior with each number of
    bins; and vectors trained with their own bits in the loss.

    Attributes:
        learned: in how many streams the latter shall save more than they take; 0 for as many as
            the text has.
    """

    kind: ClassVar[str] = "priors"
    vectors: int
    steps: int
    seed: int
    priors: tuple[str, ...]
    bins: tuple[int, ...]
    learned: tuple[int, ...]

    def __post_init__(self) -> None:
        for prior in self.priors:
            if prior not in STEERING_PRIORS:
                raise ValueError(f"no prior {prior!r}; there are {', '.join(STEERING_PRIORS)}")

    def cases(self, text: str, content_bytes: int) -> list[Case]:
        span = Span(text=text, begin=0, end=content_bytes)
        found = [Case(role="none", span=span, settings=LlmzipSettings(steering="none"))]
        for prior in self.priors:
            for bins in self.bins:
                training = Training(
                    span=span, vectors=self.vectors, steps=self.steps, seed=self.seed,
                    prior=prior, bins=bins,
                )  # fmt: skip
                settings = LlmzipSettings(steering=STEERING_FILE, embed_steering=True)
                role = f"{prior}, {bins} bins"
                found.append(Case(role=role, span=span, settings=settings, training=training))
        for streams in self.learned:
            charged: Training | None = None
            role, choice = "learned", f"trained:{self.vectors}:{self.steps}steps"
            if streams:
                role, choice = f"learned, {streams:,} streams", STEERING_FILE
                charged = Training(
                    span=span, vectors=self.vectors, steps=self.steps, seed=self.seed,
                    prior="scales", bins=DEFAULT_BINS, streams=streams,
                )  # fmt: skip
            settings = LlmzipSettings(steering=choice, embed_steering=True if streams else None)
            found.append(Case(role=role, span=span, settings=settings, training=charged))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthPlan:
    """Texts of each length without vectors, and with each number of them trained on the text."""

    kind: ClassVar[str] = "growth"
    vectors: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: int

    def cases(self, text: str, content_bytes: int) -> list[Case]:
        sizes = sorted({min(size, content_bytes) for size in self.sizes})
        choices = ["none", *(f"trained:{k}:{self.steps}steps" for k in self.vectors)]
        return [
            Case(
                role="none" if choice == "none" else choice.split(":")[1],
                span=Span(text=text, begin=0, end=size),
                settings=LlmzipSettings(steering=choice),
            )
            for size in sizes
            for choice in choices
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class HalvesPlan:
    """The second half without steering, with llmzip's choice, and with a file of the first half."""

    kind: ClassVar[str] = "halves"
    vectors: int
    steps: int
    seed: int
    prior: str
    bins: int

    def cases(self, text: str, content_bytes: int) -> list[Case]:
        middle = content_bytes // 2
        span = Span(text=text, begin=middle, end=content_bytes)
        training = Training(
            span=Span(text=text, begin=0, end=middle), vectors=self.vectors, steps=self.steps,
            seed=self.seed, prior=self.prior, bins=self.bins,
        )  # fmt: skip
        return [
            Case(role="none", span=span, settings=LlmzipSettings(steering="none")),
            Case(role="auto", span=span, settings=LlmzipSettings(steering="auto")),
            Case(
                role="file", span=span, settings=LlmzipSettings(steering=STEERING_FILE),
                training=training,
            ),
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePlan:
    """Without steering and with llmzip's choice, at default streams and in these chunks."""

    kind: ClassVar[str] = "choice"
    chunk_tokens: tuple[int, ...]

    def cases(self, text: str, content_bytes: int) -> list[Case]:
        span = Span(text=text, begin=0, end=content_bytes)
        return [
            Case(
                role=choice,
                span=span,
                settings=LlmzipSettings(steering=choice, chunk_tokens=tokens),
            )
            for tokens in (None, *self.chunk_tokens)
            for choice in ("none", "auto")
        ]


PLANS: Mapping[str, type[Plan]] = MappingProxyType(
    {
        plan.kind: plan
        for plan in (ChunksPlan, KindsPlan, PriorsPlan, GrowthPlan, HalvesPlan, ChoicePlan)
    }
)
