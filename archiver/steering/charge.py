"""What storing vectors costs, as a part of what their training makes least.

A coordinate is stored as the number of quantization steps that it moved from where it began. Half
way through a training, coordinates whose move saves less than it costs go back for good. Those
that are left go on with a charge: their bits under a normal distribution, one sigma a vector, which
is trained too; noise of one step stands for the rounding to come. What it takes to say which are
left counts where vectors are compared.

    vectors ─ free coordinates ┬ + noise ──────────────────── the text's bits
                               └ + any noise ─ N(0, sigma^2) ─ their own bits / streams

Source: Balle et al., "Variational image compression with a scale hyperprior" (2018); LeCun,
Denker, Solla, "Optimal Brain Damage" (1989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Noise that the expected bits are the mean over, in steps. It is not drawn: AdamW makes as great
# steps of what chance does to a small gradient as of anything else, and coordinates go astray.
NOISES = (-0.375, -0.125, 0.125, 0.375)
SIGMA_MIN = 0.22  # in steps, where it begins at least: hardly anything is rounded to a step
MASS_MIN = 2.0**-22  # of a coordinate's step, as in the tables that code it
# What a coordinate's move must save in all streams, by itself. Its code takes three times as much,
# most of it to say which coordinate moves, but moves save more together than one by one.
WORTH_BITS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What storing the vectors costs, beside how much text they serve.

    Attributes:
        streams: how many times the gain of one stream is reaped.
        step: the quantization step to come.
    """

    streams: float
    step: float


class ChargedVectors:
    """How far vectors may move from where they began, and what that costs.

    Attributes:
        log_sigma: float32 [vectors, 1], in steps; to be trained with the vectors.
    """

    def __init__(self, charge: Charge, base: Tensor, free: Tensor, log_sigma: Tensor) -> None:
        """As they were; `of_moves` is where they come from.

        Args:
            base: float32 [vectors, hidden], where they began; free: 1.0 where a coordinate may
                move, 0.0 where it stays.
        """
        self._charge = charge
        self._base = base
        self._free = free
        self.log_sigma = torch.nn.Parameter(log_sigma)
        part = float(free.mean())
        # What it takes to say which coordinates are free, in bits a coordinate.
        entropy = sum(-p * math.log2(p) for p in (part, 1 - part) if p > 0)
        self._places_bits = free.numel() * entropy

    @classmethod
    def of_moves(
        cls, charge: Charge, base: Tensor, vectors: Tensor, curvature: Tensor
    ) -> ChargedVectors:
        """Vectors whose coordinates go back for good if their move does not save what it costs.

        Args:
            base, vectors: float32 [vectors, hidden], where they began and where they are.
            curvature: as many, the second derivative of a stream's bits by each coordinate. At a
                minimum, half of it times the move's square is what the move saves.
        """
        steps = torch.round((vectors - base) / charge.step)
        saved = 0.5 * curvature * (steps * charge.step).square() * charge.streams
        free = (saved > WORTH_BITS).to(vectors.dtype)
        variance = (free * steps).square().sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(1)
        return cls(charge, base, free, variance.clamp(SIGMA_MIN**2).log() / 2)

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
        bits = (self._free * self._bits(steps)).sum() + self._places_bits
        return bits / self._charge.streams

    def expected_share(self, vectors: Tensor) -> Tensor:
        """The same in expectation, but for what does not change: the mean over quantization noise.

        Gradients pass.
        """
        steps = (vectors - self._base) / self._charge.step
        bits = torch.stack([self._bits(steps + noise) for noise in NOISES]).mean(0)
        return (self._free * bits).sum() / self._charge.streams

    def _bits(self, steps: Tensor) -> Tensor:
        sigma = self.log_sigma.exp()
        below = torch.special.ndtr((steps - 0.5) / sigma)
        mass = torch.special.ndtr((steps + 0.5) / sigma) - below
        return -torch.log2(mass.clamp_min(MASS_MIN))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the last two arguments."""
        return {"free": self._free.cpu(), "log_sigma": self.log_sigma.detach().cpu()}
