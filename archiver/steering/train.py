"""Steering vectors that suit some texts, by gradient descent on the bits that the texts take.

    texts ─┬─ held-out windows ───────────────────── bits, now and then ── best vectors so far
           └─ windows from random places ── bits ┬── gradients ── AdamW ── vectors
                        (and, if charged, the vectors' own bits) ┘

Every window begins as a stream does: cold, after the vectors and the start token. Where streams
are longer than windows, a window's second half also stands for all that follows. Tokens may have
weights, for what is left of the model's bits in an archive. Vectors begin as the embeddings of a
span of the texts, the best of some, or as those that are given.

With a `charge`, the vectors are meant to be stored with the text: in the second half of the
training, only coordinates that pay are free, and their bits count beside the text's (`charge.py`).

Source: Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning"
(2021).
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archiver.errors import UsageError
from archiver.steering.charge import Charge, ChargedVectors
from archiver.steering.llama import TrainingModel
from archiver.types import Float32Array, Int32Array

WINDOW_TOKENS = 384
WINDOWS_A_STEP = 2
LEARNING_RATE = 0.02  # embeddings have a standard deviation of about 0.12
RATES = (1, 3)  # of the vectors and of what charges them, against that rate
WARM_UP_STEPS = 5
BEGINNINGS = 12  # spans of text that are tried
TRIAL_TOKENS = 64
TRIAL_WINDOWS = 6
HELD_OUT_WINDOWS = 10
HELD_OUT_PART = 8  # at most one window in so many
EVALUATE_EVERY = 20
PATIENCE = 6  # evaluations without a gain before training ends
THIN_AT = 0.5  # the part of a charged training after which coordinates that do not pay go back

Report = Callable[["TrainingState"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Attributes:
    vectors: how many; seed: of every random choice.
    steps: how many at most; limit_s: time in all, resumed runs included; None for no limit.
    stream_tokens: how long the streams are that the vectors are for.
    charge: what storing the vectors costs; None where that does not matter.
    """

    vectors: int
    seed: int = 0
    steps: int = 200
    limit_s: float | None = None
    stream_tokens: float = WINDOW_TOKENS
    charge: Charge | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Where a training is.

    Attributes:
        step: done so far; part: of the whole, 0 to 1.
        plain_bits: a stream's bits without vectors, as held-out windows have it; best_bits: with
            the best so far, and their share of the charge.
    """

    step: int
    part: float
    plain_bits: float
    best_bits: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedVectors:
    """The best vectors found, float32 [vectors, hidden], and what they do for held-out windows.

    Attributes:
        base_ranks: the tokens that they began as; empty where they began as given vectors.
        plain_bits, best_bits: as in `TrainingState`.
    """

    values: Float32Array
    base_ranks: tuple[int, ...]
    plain_bits: float
    best_bits: float


class Trainer:
    """A training that can be stopped and resumed."""

    def __init__(
        self,
        model: TrainingModel,
        texts: Sequence[Int32Array],
        settings: TrainingSettings,
        *,
        weights: Sequence[Float32Array] | None = None,
        beginning: Float32Array | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Prepare windows and a beginning, or go on where a checkpoint is.

        Args:
            texts: ranks of each text, int32; negative ones (escapes) are left out.
            weights: how much the bits of each of them count, float32; None for 1.
            beginning: float32 [vectors, hidden], what the vectors begin as.
            checkpoint: where to keep the state; removed by nobody.

        Raises:
            UsageError: the texts are too short, or the checkpoint is of another training.
        """
        self._model = model
        self._settings = settings
        self._checkpoint = checkpoint
        self._windows = _Windows(texts, weights, model.device)
        self._weights = stream_weights(settings.stream_tokens).to(model.device)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._held_out = self._windows.held_out()
        self._used_s = 0.0
        self._step = 0
        self._stale = 0
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
            return
        self._plain_bits = self._stream_bits(self._model.embeddings[:0])
        if beginning is None:
            self._base_ranks = self._best_span()
            base = self._model.embeddings[list(self._base_ranks)].clone()
        else:
            self._base_ranks = ()
            base = torch.from_numpy(beginning).to(model.device)
        self._begin(base)
        self._best = (self._stream_bits(base), base.clone())

    @property
    def done(self) -> bool:
        """Whether the time or the steps are used up, or nothing is gained any more."""
        stuck = self._stale >= PATIENCE or not (self._charged is None or self._charged.any_free)
        return self._part(self._used_s) >= 1 or (stuck and not self._thinnable)

    def run(self, report: Report | None = None, pause_after_s: float = math.inf) -> TrainedVectors:
        """Train until done; return the best vectors.

        Args:
            report: told of the state after every step.
            pause_after_s: stop earlier, after so long, with the state in the checkpoint.
        """
        begun_s = time.monotonic()
        used_before_s = self._used_s
        while not self.done and time.monotonic() - begun_s < pause_after_s:
            self._descend(self._part(self._used_s))
            self._used_s = used_before_s + time.monotonic() - begun_s
            if self._step % EVALUATE_EVERY == 0 or self.done:
                self._evaluate()
                self._keep()
            if report:
                report(self.state)
        self._keep()
        return TrainedVectors(
            values=self._best[1].cpu().numpy(),
            base_ranks=self._base_ranks,
            plain_bits=self._plain_bits,
            best_bits=self._best[0],
        )

    @property
    def used_s(self) -> float:
        """How long it has trained, resumed runs included."""
        return self._used_s

    @property
    def state(self) -> TrainingState:
        """Where the training is."""
        return TrainingState(
            step=self._step,
            part=1.0 if self.done else self._part(self._used_s),
            plain_bits=self._plain_bits,
            best_bits=self._best[0],
        )

    def _part(self, used_s: float) -> float:
        limit_s = self._settings.limit_s
        by_time = used_s / limit_s if limit_s else 0.0
        return max(self._step / self._settings.steps, by_time)

    def _begin(self, base: Tensor) -> None:
        self._base = base
        self._vectors = torch.nn.Parameter(base.clone())
        self._charged: ChargedVectors | None = None
        self._optimizer = torch.optim.AdamW([self._vectors], lr=LEARNING_RATE, weight_decay=0.0)

    def _best_span(self) -> tuple[int, ...]:
        """The tokens of the span after which some windows take the fewest bits."""
        windows = self._windows.draw(TRIAL_WINDOWS, TRIAL_TOKENS, self._generator)
        spans = self._windows.draw(BEGINNINGS, self._settings.vectors, self._generator).ranks
        with torch.no_grad():
            bits = [
                float((self._model.bits(vectors, windows.ranks) * windows.weights).mean())
                for vectors in self._model.embeddings[spans]
            ]
        return tuple(spans[int(np.argmin(bits))].tolist())

    def _descend(self, part: float) -> None:
        """One step of AdamW, its rate on a cosine."""
        if self._thinnable and (part >= THIN_AT or self._stale >= PATIENCE):
            self._thin()
        warm = min(1.0, (self._step + 1) / WARM_UP_STEPS)
        rate = LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
        for group, factor in zip(self._optimizer.param_groups, RATES, strict=False):
            group["lr"] = factor * rate
        windows = self._windows.draw(WINDOWS_A_STEP, WINDOW_TOKENS, self._generator)
        if self._charged is None:
            loss = self._bits(self._vectors, windows)
        else:
            loss = self._bits(self._charged.noisy(self._vectors, self._generator), windows)
            loss = loss + self._charged.expected_share(self._vectors)
        self._optimizer.zero_grad()
        (loss / self._weights.sum()).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._step += 1

    @property
    def _thinnable(self) -> bool:
        """Whether some coordinates may go back yet."""
        return self._settings.charge is not None and self._charged is None

    def _thin(self) -> None:
        """Leave those coordinates that pay, at a charge; training ends where there are none.

        The second derivative is taken for the variance of the gradient (Fisher's information), of
        which AdamW keeps the mean square.
        """
        assert self._settings.charge is not None
        state = self._optimizer.state[self._vectors]
        beta = self._optimizer.param_groups[0]["betas"][1]
        squares = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
        # AdamW sees the mean of some windows, a token. Curvature is the gradient's variance in
        # nats, and it is wanted in bits. Of a token that stands for others, the variance grows
        # with the square of how many, the curvature as they do; so with the weights of tokens.
        tokens = self._weights.sum()
        variance = squares * tokens**2 * WINDOWS_A_STEP
        curvature = variance * math.log(2) * tokens / self._weights.square().sum()
        curvature = curvature * self._windows.mean_weight / self._windows.mean_square_weight
        self._begin_charge(
            ChargedVectors.of_moves(
                self._settings.charge, self._base, self._vectors.detach(), curvature
            )
        )
        self._best = (self._stream_bits(self._base), self._base.clone())
        self._evaluate()
        self._stale = 0

    def _begin_charge(self, charged: ChargedVectors) -> None:
        self._charged = charged
        self._optimizer.add_param_group({"params": [charged.log_sigma]})

    def _stream_bits(self, vectors: Tensor) -> float:
        with torch.no_grad():
            return float(self._bits(vectors, self._held_out))

    def _bits(self, vectors: Tensor, windows: WeightedTokens) -> Tensor:
        """A stream's bits as these windows have it, the mean, a float32 scalar."""
        bits = self._model.bits(vectors, windows.ranks) * windows.weights
        return (bits * self._weights).sum(1).mean()

    def _evaluate(self) -> None:
        """The best vectors so far are known; rounded as they would be, where they are charged."""
        with torch.no_grad():
            vectors = self._vectors.detach().clone()
            share = 0.0
            if self._charged is not None:
                vectors = self._charged.rounded(vectors)
                share = float(self._charged.share(vectors))
            bits = self._stream_bits(vectors) + share
        if bits < self._best[0]:
            self._best = (bits, vectors)
            self._stale = 0
        else:
            self._stale += 1

    # --- checkpoints ------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return dataclasses.asdict(self._settings) | {"texts": self._windows.digest}

    def _keep(self) -> None:
        if self._checkpoint is None:
            return
        state = {
            "identity": self._identity(),
            "step": self._step,
            "used_s": self._used_s,
            "stale": self._stale,
            "plain_bits": self._plain_bits,
            "base_ranks": self._base_ranks,
            "base": self._base.cpu(),
            "best_bits": self._best[0],
            "best": self._best[1].cpu(),
            "vectors": self._vectors.detach().cpu(),
            "charged": self._charged.state() if self._charged else None,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }
        scratch = self._checkpoint.with_name(self._checkpoint.name + ".part")
        torch.save(state, scratch)
        os.replace(scratch, self._checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        try:
            state: dict[str, Any] = torch.load(
                checkpoint, map_location=self._model.device, weights_only=True
            )
            identity = state["identity"]
        except Exception as error:  # torch raises whatever unpickling raises
            raise UsageError(f"{checkpoint} is not a checkpoint: {error}") from error
        if identity != self._identity():
            raise UsageError(f"{checkpoint} is the checkpoint of another training")
        self._begin(state["base"])
        with torch.no_grad():
            self._vectors.copy_(state["vectors"])
        if state["charged"] is not None:
            assert self._settings.charge is not None
            self._begin_charge(
                ChargedVectors(self._settings.charge, self._base, **state["charged"])
            )
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        self._step, self._used_s, self._stale = state["step"], state["used_s"], state["stale"]
        self._plain_bits, self._base_ranks = state["plain_bits"], tuple(state["base_ranks"])
        self._best = (state["best_bits"], state["best"])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedTokens:
    """Some tokens, int64 of any shape, and how much the bits of each count, float32."""

    ranks: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.ranks)

    def cut(self, begin: int, tokens: int) -> WeightedTokens:
        """So many of a text's tokens."""
        end = begin + tokens
        return WeightedTokens(ranks=self.ranks[begin:end], weights=self.weights[begin:end])

    @classmethod
    def stacked(cls, parts: Sequence[WeightedTokens], device: torch.device) -> WeightedTokens:
        """As many texts of one length, one a row."""
        return cls(
            ranks=torch.stack([part.ranks for part in parts]).to(device),
            weights=torch.stack([part.weights for part in parts]).to(device),
        )


def usable_texts(
    texts: Sequence[Int32Array], weights: Sequence[Float32Array] | None = None
) -> list[WeightedTokens]:
    """The texts that can be trained on, without escapes; see `Trainer`.

    Raises:
        UsageError: they are too short.
    """
    if weights is None:
        weights = [np.ones(len(text), np.float32) for text in texts]
    kept = [
        WeightedTokens(
            ranks=torch.from_numpy(text[text >= 0].astype(np.int64)),
            weights=torch.from_numpy(counts[text >= 0]),
        )
        for text, counts in zip(texts, weights, strict=True)
    ]
    kept = [text for text in kept if len(text) >= WINDOW_TOKENS]
    if sum(map(len, kept)) < 2 * HELD_OUT_PART * WINDOW_TOKENS:
        raise UsageError(
            f"training needs texts of {2 * HELD_OUT_PART * WINDOW_TOKENS:,} tokens and more"
        )
    return kept


def stream_weights(stream_tokens: float) -> Tensor:
    """How many tokens of a stream each token of a window stands for, float32 [WINDOW_TOKENS]."""
    half = WINDOW_TOKENS // 2
    weights = torch.ones(WINDOW_TOKENS)
    weights[half:] = max(stream_tokens - half, 0) / (WINDOW_TOKENS - half)
    return weights


class _Windows:
    """Windows of some texts: those held out, evenly spread, and random ones beside them.

    Texts are drawn in proportion to the square root of their lengths.

    Attributes:
        mean_weight, mean_square_weight: of all tokens.
    """

    def __init__(
        self,
        texts: Sequence[Int32Array],
        weights: Sequence[Float32Array] | None,
        device: torch.device,
    ) -> None:
        kept = usable_texts(texts, weights)
        joined = torch.cat([text.weights for text in kept])
        self.mean_weight = float(joined.mean())
        self.mean_square_weight = float(joined.square().mean())
        self._texts = kept
        self._device = device
        self._shares = torch.tensor([math.sqrt(len(text)) for text in kept])
        self._held: list[list[int]] = [[] for _ in kept]  # beginnings of held-out windows
        room = sum(len(text) // WINDOW_TOKENS for text in kept)
        for number in range(min(HELD_OUT_WINDOWS, room // HELD_OUT_PART)):
            which = number % len(kept)
            places = (len(kept[which]) - WINDOW_TOKENS) // WINDOW_TOKENS + 1
            turn = number // len(kept)
            # The golden ratio spreads any number of places evenly.
            place = int(places * (((turn + 1) * 0.6180339887498949) % 1.0))
            if place * WINDOW_TOKENS not in self._held[which]:
                self._held[which].append(place * WINDOW_TOKENS)

    @property
    def digest(self) -> list[tuple[int, int, float]]:
        """Enough to tell other texts from these."""
        return [
            (
                len(text),
                int((text.ranks * torch.arange(1, len(text) + 1)).sum()),
                float(text.weights.double().sum()),
            )
            for text in self._texts
        ]

    def held_out(self) -> WeightedTokens:
        """The held-out windows, [windows, WINDOW_TOKENS]."""
        found = [
            text.cut(begin, WINDOW_TOKENS)
            for text, held in zip(self._texts, self._held, strict=True)
            for begin in held
        ]
        return WeightedTokens.stacked(found, self._device)

    def draw(self, count: int, tokens: int, generator: torch.Generator) -> WeightedTokens:
        """Windows from random places that overlap none of those held out, [count, tokens]."""
        found: list[WeightedTokens] = []
        while len(found) < count:
            which = int(torch.multinomial(self._shares, 1, generator=generator))
            text = self._texts[which]
            begin = int(torch.randint(len(text) - tokens + 1, (1,), generator=generator))
            held = self._held[which]
            if all(begin + tokens <= at or begin >= at + WINDOW_TOKENS for at in held):
                found.append(text.cut(begin, tokens))
        return WeightedTokens.stacked(found, self._device)
