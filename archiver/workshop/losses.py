"""The head and the loss in one, a few rows at a time: all logits of a batch never exist at once.

For 2,048 tokens and 49,152 words the logits take 400 MB, and memory is what a processor lacks
most; the gradient of either loss is a difference of two distributions, so it is had in passing.
"""

from __future__ import annotations

import torch

from archiver.workshop import kernels
from archiver.workshop.fused import bits

ROWS = 256  # of logits at a time: 50 MB in float32


class Loss:
    """Cross-entropy against the text, or against a teacher's distribution, or a part of each.

    Args:
        teacher_share: 0 for the text alone, 1 for the teacher alone.
    """

    def __init__(self, teacher_share: float = 0.0) -> None:
        self.teacher_share = teacher_share
        self._buffers: dict[tuple[str, torch.dtype, int], torch.Tensor] = {}

    def nats(self, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of every row with its target, in nats, float32 [rows]; no gradient."""
        with torch.no_grad():
            found = [
                self._distribution("student", part, head, wanted)[1]
                for part, wanted in zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
            ]
        return torch.cat(found)

    def mean(
        self,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        *,
        head_parameter: torch.Tensor | None = None,
        teacher: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The mean loss of the rows, with its gradient for ``hidden`` and ``head_parameter``.

        Args:
            hidden: [rows, width], what the head reads.
            head: [vocab, width], in the type of ``hidden``.
            targets: int64 [rows], the next token.
            head_parameter: float32 [vocab, width], the leaf that ``head`` is a copy of, when it
                is trained.
            teacher: the teacher's ``hidden`` and ``head``, where it has a share; its loss is the
                cross-entropy, which is the divergence up to a constant.
        """
        mean = _FusedLoss.apply(self, hidden, head, targets, head_parameter, teacher)
        assert isinstance(mean, torch.Tensor)
        return mean

    def _distribution(
        self, role: str, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [rows, vocab], in a buffer that the next call reuses, and nats [rows]."""
        rows, vocab = hidden.shape[0], head.shape[0]
        product = self._buffer("product", hidden.dtype, rows, vocab)
        torch.mm(hidden, head.T, out=product)
        logits = self._buffer(role, torch.float32, rows, vocab)
        logits.copy_(product)
        wanted = logits.gather(1, targets[:, None])
        greatest = logits.amax(dim=1, keepdim=True)
        logits.sub_(greatest).exp_()
        total = logits.sum(dim=1, keepdim=True)
        nats = (total.log() + greatest - wanted).squeeze(1)
        return logits.div_(total), nats

    def gradient_rows(
        self,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        teacher: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows: the gradient of their summed loss by the logits, and that sum."""
        share = self.teacher_share if teacher is not None else 0.0
        if hidden.dtype == torch.bfloat16 and not share:
            gradient = self._buffer("product", hidden.dtype, len(hidden), len(head))
            torch.mm(hidden, head.T, out=gradient)
            nats = torch.empty(len(hidden))
            kernels.cross_entropy(bits(gradient), targets.numpy(), nats.numpy(), bits(gradient))
            return gradient, nats.sum()
        probabilities, nats = self._distribution("student", hidden, head, targets)
        loss = nats.sum() * (1 - share)
        if teacher is not None and share:
            expected, _ = self._distribution("teacher", *teacher, targets)
            logs = self._buffer("logs", torch.float32, *probabilities.shape)
            torch.log(probabilities.clamp_(min=1e-30), out=logs)
            loss = loss - share * logs.mul_(expected).sum()
            probabilities.sub_(expected, alpha=share)
        hot = torch.full((len(targets), 1), share - 1.0)
        probabilities.scatter_add_(1, targets[:, None], hot)
        gradient = self._buffer("product", hidden.dtype, *probabilities.shape)
        return gradient.copy_(probabilities), loss

    def _buffer(self, role: str, dtype: torch.dtype, rows: int, vocab: int) -> torch.Tensor:
        key = (role, dtype, vocab)
        found = self._buffers.get(key)
        if found is None or found.shape[0] < rows:
            found = self._buffers[key] = torch.empty(max(rows, ROWS), vocab, dtype=dtype)
        return found[:rows]


class _FusedLoss(torch.autograd.Function):
    """Computes the gradient on the way forward; backward scales it."""

    @staticmethod
    def forward(ctx, loss, hidden, head, targets, head_parameter, teacher):  # type: ignore[no-untyped-def]
        rows = hidden.shape[0]
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = None if head_parameter is None else torch.zeros_like(head_parameter)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, rows, ROWS):
            part = slice(start, start + ROWS)
            taught = None if teacher is None else (teacher[0][part], teacher[1])
            gradient, part_loss = loss.gradient_rows(hidden[part], head, targets[part], taught)
            total += part_loss.double()
            torch.mm(gradient, head, out=hidden_gradient[part])
            if head_gradient is not None:
                head_gradient += gradient.T @ hidden[part]
        ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.rows = rows
        return (total / rows).float()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        hidden_gradient, head_gradient = ctx.saved_tensors
        factor = gradient / ctx.rows
        return (
            None,
            hidden_gradient * factor.to(hidden_gradient.dtype),
            None,
            None,
            None if head_gradient is None else head_gradient * factor,
            None,
        )
