"""Causal attention on tensors: rolling window, sinks, integer probabilities.

    keys, values   int8     [streams, heads, slots, head_dim]
    their scales   float32  [streams, heads, slots]

A head's ring holds position c at slot c mod its slots. Sums are taken in float64, where all
integers here are exact in any order: scores stay below 127^2 head_dim, weighted values below 2^24
(see `kernels.attention.attend`). Float32 would do for both, but settings and environments may turn
its products into those of TF32.

Source: FORMAT.md, "Predictor" (attention).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from archiver.predict.device.numbers import exp2_nonpositive, quantize, quotient
from archiver.predict.kernels.attention import TOTAL_ONE, WEIGHT_ONE
from archiver.predict.kernels.layers import CODE_MAX
from archiver.predict.kernels.vectors import UNSEEN

ITEMS_MAX = 1 << 24  # of keys, or of scores, at a time: 128 MiB in float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """Vectors as codes * scales; codes int8 [..., head_dim], scales float32 [...]."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Coded:
        """Vectors along the last axis of x, float32."""
        codes, magnitude = quantize(x)
        return cls(codes=codes, scales=quotient(magnitude, float(CODE_MAX)))

    @classmethod
    def empty(cls, *shape: int, device: str) -> Coded:
        """Zeros of shape [..., head_dim]."""
        return cls(
            codes=torch.zeros(shape, dtype=torch.int8, device=device),
            scales=torch.zeros(shape[:-1], dtype=torch.float32, device=device),
        )

    def take(self, axis: int, numbers: Tensor) -> Coded:
        """Some vectors, by their numbers along an axis."""
        return Coded(
            codes=self.codes.index_select(axis, numbers),
            scales=self.scales.index_select(axis, numbers),
        )

    def put(self, axis: int, numbers: Tensor, vectors: Coded) -> None:
        """The vectors stand at these numbers, which differ, along an axis."""
        self.codes.index_copy_(axis, numbers, vectors.codes)
        self.scales.index_copy_(axis, numbers, vectors.scales)

    def part(self, streams: slice, *others: slice) -> Coded:
        """A part of the first axes."""
        return Coded(codes=self.codes[streams, *others], scales=self.scales[streams, *others])

    def by_head(self) -> Coded:
        """[streams, steps, heads..., head_dim] as [streams, heads..., steps, head_dim]."""
        return Coded(codes=self.codes.movedim(1, -2), scales=self.scales.movedim(1, -1))

    def of_streams(self, streams: int) -> Coded:
        """So many streams with the content of one, or as they are."""
        return Coded(
            codes=self.codes.expand(streams, *self.codes.shape[1:]),
            scales=self.scales.expand(streams, *self.scales.shape[1:]),
        )

    def joined(self, after: Coded) -> Coded:
        """These and then those along the third axis, positions."""
        return Coded(
            codes=torch.cat((self.codes, after.codes), 2),
            scales=torch.cat((self.scales, after.scales), 2),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadSet:
    """The key/value heads of a layer that see equally far, and what they hold.

    Attributes:
        window: positions that they see; heads: int64, their numbers.
        keys, values: the last positions', [streams, heads, slots, head_dim].
    """

    window: int
    heads: Tensor
    keys: Coded
    values: Coded

    def put(self, start: int, keys: Coded, values: Coded) -> None:
        """Keys and values of positions from `start` on, of all the layer's heads, are held.

        Where there are more than slots, the last ones are.
        """
        slots = self.keys.codes.shape[2]
        count = keys.codes.shape[2]
        left_out = max(0, count - slots)
        positions = torch.arange(start + left_out, start + count, device=self.heads.device)
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            last = theirs.part(slice(None), slice(None), slice(left_out, None))
            mine.put(2, positions % slots, last.take(1, self.heads))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reach:
    """Rows of all streams, and what they may see of a layer.

    Attributes:
        start: the first row's position; others of its stream follow.
        sinks: how many first positions are seen by all.
        queries: [streams, key/value heads, group, steps, head_dim], turned to their positions;
            sink_queries: to min(position, window + sinks - 1), None where no sink is beyond the
            window.
        sink_keys, sink_values: of the first positions, [streams, key/value heads, sinks, head_dim].
    """

    start: int
    sinks: int
    queries: Coded
    sink_queries: Coded | None
    sink_keys: Coded
    sink_values: Coded


def attend(heads: HeadSet, reach: Reach) -> Tensor:
    """What the set's heads attend to, float32 [streams, heads, group, steps, head_dim].

    Args:
        reach: of these heads only.
    """
    streams, count, group, steps, dim = reach.queries.codes.shape
    out = torch.empty(
        reach.queries.codes.shape, dtype=torch.float32, device=reach.queries.codes.device
    )
    # What one row sees, at most; rows together see one more each.
    columns = min(heads.window, reach.start + steps) + reach.sinks
    some_streams = max(1, ITEMS_MAX // (count * max(group, dim) * columns))
    some_steps = max(1, ITEMS_MAX // (min(streams, some_streams) * count * group * 2 * columns))
    for stream in _slices(streams, some_streams):
        for step in _slices(steps, min(some_steps, columns)):
            out[stream, :, :, step] = _attend_part(heads, reach, stream, step)
    return out


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _attend_part(heads: HeadSet, reach: Reach, stream: slice, step: slice) -> Tensor:
    """`attend` for some streams and some of their rows."""
    device = heads.heads.device
    first, last = reach.start + step.start, reach.start + step.stop - 1
    begin = max(0, first - heads.window + 1)
    positions = torch.arange(begin, last + 1, device=device)
    rows = torch.arange(first, last + 1, device=device).unsqueeze(-1)
    seen = (positions <= rows) & (positions > rows - heads.window)

    every = slice(None)
    slots = positions % heads.keys.codes.shape[2]
    keys = heads.keys.part(stream).take(2, slots)
    values = heads.values.part(stream).take(2, slots)
    scores = _scores(reach.queries.part(stream, every, every, step), keys)
    sinks = max(0, min(reach.sinks, last - heads.window + 1))
    if sinks:
        assert reach.sink_queries is not None
        few = slice(0, sinks)
        sink_queries = reach.sink_queries.part(stream, every, every, step)
        sink_scores = _scores(sink_queries, reach.sink_keys.part(stream, every, few))
        scores = torch.cat((sink_scores, scores), -1)
        values = reach.sink_values.part(stream, every, few).joined(values)
        beyond = torch.arange(sinks, device=device) <= rows - heads.window
        seen = torch.cat((beyond, seen), -1)
    return _weighted(scores, values, seen)


def _scores(queries: Coded, keys: Coded) -> Tensor:
    """Logits, float32 [streams, heads, group, steps, positions]."""
    dots = _product(queries.codes, keys.codes.transpose(-1, -2))
    return dots.mul_(queries.scales.unsqueeze(-1) * keys.scales[:, :, None, None])


def _weighted(scores: Tensor, values: Coded, seen: Tensor) -> Tensor:
    """Values weighted by the exponentials of their scores; overwrites the scores.

    Args:
        scores: float32 [streams, heads, group, steps, positions]; values: [streams, heads,
            positions, head_dim]; seen: bool [steps, positions].
    """
    unseen = ~seen
    scores.masked_fill_(unseen, UNSEEN)
    e = exp2_nonpositive(scores.sub_(scores.amax(-1, keepdim=True)))
    e.masked_fill_(unseen, 0.0)
    total = (e * float(TOTAL_ONE)).round_().to(torch.int32).sum(-1, dtype=torch.int64).float()
    greatest = values.scales.unsqueeze(2).masked_fill(unseen, 0.0).amax(-1).unsqueeze(2)
    share = quotient(quotient(float(WEIGHT_ONE) * float(TOTAL_ONE), total), greatest)
    factors = values.scales[:, :, None, None] * share.unsqueeze(-1)
    weights = factors.mul_(e).round_()
    sums = _product(weights, values.codes)
    return sums.mul_(quotient(greatest, float(WEIGHT_ONE)).unsqueeze(-1))


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """Sums of products of integers, rounded to float32.

    Args:
        rows: [streams, heads, group, steps, inner]; columns: [streams, heads, inner, outputs].
    """
    together = rows.double().flatten(2, 3) @ columns.double()
    return together.float().view(*rows.shape[:-1], -1)
