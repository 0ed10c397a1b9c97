"""What the user may choose when an archive is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from archiver.container.layout import (
    LARGEST_STEERING_VECTORS,
    LARGEST_STREAM_TOKENS,
    LARGEST_WINDOW_TOKENS,
)
from archiver.errors import UsageError
from archiver.levels import DEFAULT_LEVEL, LEVELS, Chunking

DEFAULT_MODEL = "smollm2-135m-text"
DEFAULT_FRAME_BYTES = 1 << 20
DEFAULT_STEERING = "auto"
CPU, CUDA = DEVICES = ("cpu", "cuda")
EXACT, FLOAT = ENGINES = ("exact", "float")

# A frame costs 32 bytes of container: frames from 64 KiB up keep that under 0.1 %.
SMALLEST_FRAME_BYTES = 1 << 12
LARGEST_FRAME_BYTES = 1 << 24
LARGEST_STREAMS = 1 << 10
SMALLEST_WINDOW_TOKENS = 16


STEERING_SUFFIX = ".steer"
DEFAULT_TRAINING_S = 15 * 60.0
LARGEST_TRAINED_VECTORS = 32
LARGEST_TRAINING_STEPS = 100_000
LARGEST_SERVED_STREAMS = 1_000_000_000
DEFAULT_CHUNK_TOKENS = LEVELS[DEFAULT_LEVEL].chunking.tokens_min
# How many tokens share the charge of a steering file's vectors at most. Its training does not know
# what mixing leaves of a gain, and a lower charge lets coordinates go astray: with that of 1,000
# windows of 384 half of them moved, and more bytes saved less text.
CHARGED_TOKENS_MAX = 153_600
STEERING_PRIORS = ("gaussian", "empirical", "lloyd-max", "scales")
DEFAULT_PRIOR = "gaussian"
DEFAULT_BINS = 63  # of a steering file, which is not charged: 5 bits a coordinate

_SECONDS = {"s": 1, "m": 60, "h": 3600}


class SteeringMode(Enum):
    """What kind of steering vectors is asked for."""

    AUTO = "auto"
    NONE = "none"
    NAMED = "named"
    FIXED = "fixed"
    RANDOM = "random"
    TRAINED = "trained"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringChoice:
    """Which steering vectors a compression shall use.

    Attributes:
        mode: how they are found.
        text: the name, the fixed text or the file's path, by mode.
        vectors: how many, for RANDOM and TRAINED.
        seed: for RANDOM.
        training_s: how long to train, for TRAINED, and for AUTO where it is above 0.
        training_steps: for TRAINED, how many steps to take instead; 0 for as many as that.
    """

    mode: SteeringMode
    text: str = ""
    vectors: int = 0
    seed: int = 0
    training_s: float = 0.0
    training_steps: int = 0

    @classmethod
    def parse(cls, text: str) -> SteeringChoice:
        """Return the choice that `text` asks for.

        auto | auto:TIME | none | NAME | fixed:TEXT | random:K[:SEED] | trained:K[:TIME] |
        trained:K:Nsteps | FILE.steer, where TIME is a number and s, m or h. What is trained in
        a number of steps is the same again on the same machine.

        Raises:
            UsageError: it is none of these.
        """
        word, colon, rest = text.partition(":")
        if text.endswith(STEERING_SUFFIX):
            return cls(mode=SteeringMode.FILE, text=text)
        if word == "fixed" and rest:
            return cls(mode=SteeringMode.FIXED, text=rest)
        if text in ("auto", "none"):
            return cls(mode=SteeringMode(text))
        if word == "auto" and (seconds := seconds_of(rest)):
            return cls(mode=SteeringMode.AUTO, training_s=seconds)
        if match := re.fullmatch(r"random:(\d{1,9})(?::(\d{1,20}))?", text):
            vectors, seed = int(match[1]), int(match[2] or 0)
            _check("number of random vectors", vectors, 1, LARGEST_STEERING_VECTORS)
            _check("seed", seed, 0, (1 << 64) - 1)
            return cls(mode=SteeringMode.RANDOM, vectors=vectors, seed=seed)
        if match := re.fullmatch(r"trained:(\d{1,9})(?::(.+))?", text):
            vectors = int(match[1])
            if match_steps := re.fullmatch(r"(\d{1,6})steps", match[2] or ""):
                steps = int(match_steps[1])
                check_training(vectors, steps)
                return cls(mode=SteeringMode.TRAINED, vectors=vectors, training_steps=steps)
            check_training(vectors, None)
            if seconds := seconds_of(match[2]) if match[2] else DEFAULT_TRAINING_S:
                return cls(mode=SteeringMode.TRAINED, vectors=vectors, training_s=seconds)
        elif text and not colon:
            return cls(mode=SteeringMode.NAMED, text=text)
        raise UsageError(f"{text!r} does not say which steering vectors to use")


def seconds_of(text: str) -> float:
    """Return a time such as 90s or 15m in seconds; 0 when it is none."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh])", text)
    return float(match[1]) * _SECONDS[match[2]] if match else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions:
    """Settings of a compression; those that a decoder needs are stored in the archive.

    Attributes:
        model: name, alias or fingerprint prefix of the model package; for the float engine, a
            Hugging Face folder.
        engine: "exact", or "float" for any causal model that transformers runs; such an archive
            decodes only on the same machine with the same versions of the libraries.
        threads: how many threads may work; None for one a core. Never changes the archive, but for
            the float engine, which has to decode with as many.
        device: where the model runs, "cpu" or "cuda". Never changes the archive.
        level: 1, the fastest, to 9, the smallest; sets the windows and the chunks.
        window_tokens: how many tokens back the model sees; None for the level's.
        local_window_tokens: how many its local heads see; None for as large a part of the window
            as the level's.
        frame_bytes: how long a frame's content may be. Each frame decodes alone.
        chunk_tokens: span of text that one stream codes from a cold start; None chooses by the
            level and the frame's length.
        mixing: whether context models join the model; without, its probabilities are used as
            they are, which shows what the model does alone.
        steering: which vectors stand before the text; `SteeringChoice.parse` lists what there is.
        embed_steering: store the vectors of a steering file in the archive, not its name.
    """

    model: str = DEFAULT_MODEL
    engine: str = EXACT
    threads: int | None = None
    device: str = CPU
    level: int = DEFAULT_LEVEL
    window_tokens: int | None = None
    local_window_tokens: int | None = None
    frame_bytes: int = DEFAULT_FRAME_BYTES
    chunk_tokens: int | None = None
    mixing: bool = True
    steering: str = DEFAULT_STEERING
    embed_steering: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("the model's name is empty")
        if self.engine not in ENGINES:
            raise UsageError(f"no engine {self.engine!r}; there are: {', '.join(ENGINES)}")
        check_threads(self.threads)
        check_device(self.device)
        _check("level", self.level, min(LEVELS), max(LEVELS))
        _check("window", self.window, SMALLEST_WINDOW_TOKENS, LARGEST_WINDOW_TOKENS)
        _check("local window", self.local_window, SMALLEST_WINDOW_TOKENS, self.window)
        _check("frame size", self.frame_bytes, SMALLEST_FRAME_BYTES, LARGEST_FRAME_BYTES)
        if self.chunk_tokens is not None:
            _check("chunk", self.chunk_tokens, 1, LARGEST_FRAME_BYTES)
        if self.engine == FLOAT:
            self._check_float()
        choice = self.steering_choice
        if self.embed_steering and choice.mode is not SteeringMode.FILE:
            raise UsageError("only a steering file can be embedded")

    def _check_float(self) -> None:
        if self.steering not in (DEFAULT_STEERING, SteeringMode.NONE.value):
            raise UsageError("the float engine has no steering vectors")
        if self.local_window_tokens is not None:
            raise UsageError("the float engine has no local heads")
        if self.device != CPU:
            raise UsageError("the float engine runs on the device cpu only")

    @property
    def steering_choice(self) -> SteeringChoice:
        """What `steering` asks for; nothing for the float engine.

        Raises:
            UsageError: it makes no sense.
        """
        return SteeringChoice.parse(
            SteeringMode.NONE.value if self.engine == FLOAT else self.steering
        )

    @property
    def window(self) -> int:
        """How many tokens back the model sees."""
        return (
            LEVELS[self.level].window_tokens if self.window_tokens is None else self.window_tokens
        )

    @property
    def local_window(self) -> int:
        """How many tokens back the model's local heads see."""
        if self.engine == FLOAT:
            return self.window
        if self.local_window_tokens is not None:
            return self.local_window_tokens
        level = LEVELS[self.level]
        local = self.window * level.local_window_tokens // level.window_tokens
        return max(SMALLEST_WINDOW_TOKENS, local)

    @property
    def chunking(self) -> Chunking:
        """How frames are cut into streams."""
        if self.chunk_tokens is None and self.engine == FLOAT:
            # Streams are run one by one: more of them would only start cold.
            return Chunking(tokens_min=LARGEST_STREAM_TOKENS, streams=1)
        if self.chunk_tokens is None:
            return LEVELS[self.level].chunking
        return Chunking(tokens_min=self.chunk_tokens, streams=LARGEST_STREAMS)


def check_threads(threads: int | None) -> None:
    """Return when `threads` is None or at least 1.

    Raises:
        UsageError: it is smaller.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")


def check_device(device: str) -> None:
    """Return when the model may run on `device`, if there is one here.

    Raises:
        UsageError: it may not.
    """
    if device not in DEVICES:
        raise UsageError(f"no device {device!r}; there are: {', '.join(DEVICES)}")


def check_training(
    vectors: int,
    steps: int | None,
    chunk_tokens: int | None = None,
    streams: int | None = None,
) -> None:
    """Return when so many vectors can be trained, in so many steps, for such streams.

    Raises:
        UsageError: they cannot.
    """
    _check("number of trained vectors", vectors, 1, LARGEST_TRAINED_VECTORS)
    if steps is not None:
        _check("number of steps", steps, 1, LARGEST_TRAINING_STEPS)
    if chunk_tokens is not None:
        _check("chunk", chunk_tokens, 1, LARGEST_FRAME_BYTES)
    if streams is not None:
        _check("number of streams", streams, 1, LARGEST_SERVED_STREAMS)


def _check(what: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise UsageError(f"the {what} must be {smallest} to {largest}, not {value}")
