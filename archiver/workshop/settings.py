"""What decides the result of a training run, besides the weights and the text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from archiver.errors import UsageError
from archiver.workshop.names import MATRICES

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimizer steps in all.
        batch_tokens: tokens of a step.
        sequences: lengths of the windows in tokens; step n uses the n-th, round and round.
        rank: of the adapters; 0 trains the weights themselves.
        targets: what is trained: matrices, "norms", "embed".
        layers: the blocks whose matrices and norms are trained; None for all.
        optimizer: "adamw", or "muon" for matrices with AdamW for the rest.
        rate: the highest learning rate.
        warmup: steps until it is reached.
        cooldown: the last steps, over which it falls to 0 along half a cosine; None for all of
            them after the warm-up.
        decay: weight decay.
        teacher_share: 0 to learn from the text alone, 1 from the teacher's distribution alone.
        written_share: of the batches, how many are text that the teacher wrote itself.
        seed: of windows and adapters.
    """

    steps: int
    batch_tokens: int = 4096
    sequences: tuple[int, ...] = (512, 512, 512, 2048)
    rank: int = 16
    targets: tuple[str, ...] = (*MATRICES, "norms")
    layers: tuple[int, ...] | None = None
    optimizer: str = "adamw"
    rate: float = 5e-4
    warmup: int = 20
    cooldown: int | None = None
    decay: float = 0.0
    teacher_share: float = 0.0
    written_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_tokens < 1 or self.rank < 0 or self.warmup < 0:
            raise UsageError("steps and batch have to be at least 1, rank and warm-up at least 0")
        if self.cooldown is not None and self.cooldown < 0:
            raise UsageError("the cool-down has to be at least 0 steps")
        if not self.sequences or not all(2 <= length <= 1 << 16 for length in self.sequences):
            raise UsageError("sequence lengths have to be 2 to 65,536 tokens")
        allowed = {*MATRICES, "norms", *(() if self.rank else ("embed",))}
        if not self.targets or set(self.targets) - allowed:
            raise UsageError(f"targets have to be among {', '.join(sorted(allowed))}")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"the optimizer has to be one of {', '.join(OPTIMIZERS)}")
        if not (math.isfinite(self.rate) and self.rate > 0 and 0 <= self.decay < 1):
            raise UsageError("the learning rate has to be positive, the decay from 0 to below 1")
        if not (0 <= self.teacher_share <= 1 and 0 <= self.written_share <= 1):
            raise UsageError("shares have to be from 0 to 1")

    def as_dict(self) -> dict[str, object]:
        """The settings as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def length_at(self, step: int) -> int:
        """Tokens of a window of this step."""
        return self.sequences[step % len(self.sequences)]

    @property
    def cooldown_start(self) -> int:
        """The step from which the rate falls; until there `steps` decides nothing."""
        if self.cooldown is None:
            return min(self.warmup, self.steps)
        return max(0, self.steps - self.cooldown)

    def rate_at(self, step: int) -> float:
        """The learning rate of this step: linear warm-up, level, then half a cosine down to 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        start = self.cooldown_start
        fall = max(0, step - start) / max(1, self.steps - start)
        return self.rate * rise * 0.5 * (1 + math.cos(math.pi * fall))
