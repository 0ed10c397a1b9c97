"""What storing vectors costs, as a part of what their training makes least.

A coordinate is stored as the number of quantization steps that it moved from where it began. Its
bits are those under a normal distribution, one sigma a vector, which is trained too; noise of one
step stands for the rounding to come. Half way, coordinates whose move saves less than it costs go
back for good, and the others go on alone.

    vectors ─ free coordinates ┬ + noise ──────────────────── the text's bits
                               └ + any noise ─ N(0, sigma^2) ─ their own bits / streams

Source: Balle et al., "Variational image compression with a scale hyperprior" (2018); LeCun,
Denker, Solla, "Optimal Brain Damage" (1989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Noise that the expected bits are the mean over, in steps. It is not drawn: AdamW makes as great
# steps of what chance does to a small gradient as of anything else, and coordinates go astray.
NOISES = (-0.375, -0.125, 0.125, 0.375)
LOG_SIGMA = -1.5  # in steps, at the beginning: hardly anything is rounded to a step
MASS_MIN = 2.0**-22  # of a coordinate's step, as in the tables that code it
# What a coordinate's move must save in all streams, by itself. Its code takes twice as much, but
# moves save more together than one by one.
WORTH_BITS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What storing the vectors costs, beside how much text they serve.

    Attributes:
        streams: how many times the gain of one window is reaped.
        step: the quantization step to come.
    """

    streams: float
    step: float


class ChargedVectors:
    """How far vectors may move from where they began, and what that costs.

    Attributes:
        log_sigma: float32 [vectors, 1], to be trained with the vectors.
        thinned: whether coordinates that do not pay are back for good.
    """

    def __init__(self, charge: Charge, base: Tensor) -> None:
        """All coordinates are free.

        Args:
            base: float32 [vectors, hidden], where they begin.
        """
        self._charge = charge
        self._base = base
        self._free = torch.ones_like(base)  # 0 where a coordinate stays
        self.log_sigma = torch.nn.Parameter(base.new_full((len(base), 1), LOG_SIGMA))
        self.thinned = False

    @property
    def any_free(self) -> bool:
        """Whether there is anything to train."""
        return bool(self._free.any())

    def noisy(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """The vectors as if they were rounded: moved by up to half a step. Gradients pass.

        Args:
            vectors: float32 [vectors, hidden], as in all methods.
            generator: on the CPU; one number a coordinate is drawn.
        """
        noise = (torch.rand(vectors.shape, generator=generator) - 0.5).to(vectors.device)
        return self._base + self._free * (vectors - self._base + noise * self._charge.step)

    def rounded(self, vectors: Tensor) -> Tensor:
        """The vectors as they would be stored."""
        step = self._charge.step
        return self._base + self._free * torch.round((vectors - self._base) / step) * step

    def share(self, vectors: Tensor) -> Tensor:
        """A stream's share of the bits that store the vectors, a float32 scalar."""
        steps = (vectors - self._base) / self._charge.step
        return (self._free * self._bits(steps)).sum() / self._charge.streams

    def expected_share(self, vectors: Tensor) -> Tensor:
        """The same in expectation: the mean over quantization noise. Gradients pass."""
        steps = (vectors - self._base) / self._charge.step
        bits = torch.stack([self._bits(steps + noise) for noise in NOISES]).mean(0)
        return (self._free * bits).sum() / self._charge.streams

    def _bits(self, steps: Tensor) -> Tensor:
        sigma = self.log_sigma.exp()
        below = torch.special.ndtr((steps - 0.5) / sigma)
        mass = torch.special.ndtr((steps + 0.5) / sigma) - below
        return -torch.log2(mass.clamp_min(MASS_MIN))

    def thin(self, vectors: Tensor, curvature: Tensor) -> None:
        """Let coordinates go back for good whose move does not save what it costs.

        Args:
            curvature: float32 [vectors, hidden], the second derivative of a stream's bits by each
                coordinate. At a minimum, half of it times the move's square is what the move saves.
        """
        moves = self.rounded(vectors) - self._base
        saved = 0.5 * curvature * moves.square() * self._charge.streams
        self._free = (saved > WORTH_BITS).to(vectors.dtype)
        self.thinned = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "log_sigma": self.log_sigma.detach().cpu(),
            "free": self._free.cpu(),
            "thinned": self.thinned,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Be as a checkpoint says."""
        with torch.no_grad():
            self.log_sigma.copy_(state["log_sigma"])
        self._free, self.thinned = state["free"].to(self._base.device), state["thinned"]
