"""Parts of a block in bfloat16 with gradients of their own, over compiled kernels.

What `llama` computes with torch's operations in float32, these compute with fewer passes over
memory; on two cores a training step takes about half the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from archiver.types import Float32Array, Int64Array, UInt16Array
from archiver.workshop import kernels
from archiver.workshop.windows import blocks, heads_by_window, near_mask, turns

QUERY_ROWS = 256  # of attention's backward pass at a time: its scores then stay in the cache
_PADDED = 32  # a product's inner size grows in steps of this many bfloat16 numbers for free


def bits(tensor: torch.Tensor) -> UInt16Array:
    """The bits of a bfloat16 tensor, without a copy, as kernels take them."""
    view: UInt16Array = tensor.detach().view(torch.int16).numpy().view(np.uint16)
    return view


def add_norm(
    stream: torch.Tensor, addend: torch.Tensor, gain: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """stream + addend, float32 [tokens, width], and that normalized, bfloat16."""
    total, normed = _AddNorm.apply(stream, addend, gain, epsilon)
    return total, normed


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of bfloat16 [tokens, 2 width]: [tokens, width]."""
    product = _Gated.apply(gate_up)
    assert isinstance(product, torch.Tensor)
    return product


def attention(
    qkv: torch.Tensor,
    streams: int,
    heads: tuple[int, int],
    cosines: torch.Tensor,
    sines: torch.Tensor,
    windows: Sequence[int],
    sinks: int,
) -> torch.Tensor:
    """Attention with rotary positions of every stream with itself, as far as its heads see.

    Args:
        qkv: bfloat16 [streams x steps, (heads + 2 kv_heads) x dim].
        heads: how many of queries, and of keys.
        cosines, sines: float32 [steps, dim / 2].
        windows: of each key's head, in tokens; sinks: first tokens that all later ones see.

    Returns:
        bfloat16 [streams x steps, heads x dim].
    """
    mixed = _Attention.apply(qkv, streams, heads, cosines, sines, windows, sinks)
    assert isinstance(mixed, torch.Tensor)
    return mixed


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Any, addend: Any, gain: Any, epsilon: float) -> Any:
        total, normed = torch.empty_like(stream), torch.empty_like(addend)
        inverse = torch.empty(len(stream))
        kernels.add_norm(
            stream.numpy(), bits(addend), gain.detach().numpy(), np.float32(epsilon),
            total.numpy(), inverse.numpy(), bits(normed),
        )  # fmt: skip
        ctx.save_for_backward(total, inverse, gain)
        return total, normed

    @staticmethod
    def backward(ctx: Any, upstream: Any, normed_grad: Any) -> Any:
        total, inverse, gain = ctx.saved_tensors
        grad, addend_grad = torch.empty_like(total), torch.empty_like(normed_grad)
        gain_grad = torch.zeros_like(gain)
        kernels.add_norm_back(
            total.numpy(), inverse.numpy(), gain.detach().numpy(), upstream.contiguous().numpy(),
            bits(normed_grad.contiguous()), grad.numpy(), bits(addend_grad), gain_grad.numpy(),
        )  # fmt: skip
        return grad, addend_grad, gain_grad, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Any) -> Any:
        product = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        kernels.gated(bits(gate_up), bits(product))
        ctx.save_for_backward(gate_up)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (gate_up,) = ctx.saved_tensors
        gate_up_grad = torch.empty_like(gate_up)
        kernels.gated_back(bits(gate_up), bits(grad.contiguous()), bits(gate_up_grad))
        return gate_up_grad


class _Attention(torch.autograd.Function):
    """Forward by torch's kernel; backward in blocks of queries, with probabilities made again.

    Torch's own backward pass spends 13 ns a pair of positions where this takes 6.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Any, streams: int, heads: tuple[int, int], cosines: Any, sines: Any,
        windows: Sequence[int], sinks: int,
    ) -> Any:  # fmt: skip
        count, shared = heads
        dim, each = cosines.shape[1] * 2, count // shared
        steps = len(qkv) // streams
        rows = bits(qkv).reshape(streams, steps, count + 2 * shared, dim)
        query = qkv.new_empty(streams, count, steps, dim)
        key, value = (qkv.new_empty(streams, shared, steps, dim) for _ in range(2))
        angles, none = (cosines.numpy(), sines.numpy()), (np.empty((0, 0), np.float32),) * 2
        kernels.rotate_heads(rows, 0, *angles, bits(query))
        kernels.rotate_heads(rows, count, *angles, bits(key))
        kernels.rotate_heads(rows, count + shared, *none, bits(value))
        query = query.view(streams, shared, each, steps, dim)
        mixed, log_sums = torch.empty_like(query), torch.empty(query.shape[:-1])
        for window, chosen in heads_by_window(windows, steps).items():
            which = slice(None) if len(chosen) == shared else chosen
            asking = query[:, which].reshape(-1, each, steps, dim)
            answering, giving = (
                part[:, which].reshape(-1, 1, steps, dim).expand(-1, each, -1, -1)
                for part in (key, value)
            )
            for first, last, lowest in blocks(steps, window, steps):
                mask = near_mask(last - first, window) if first else None
                asked, seen = slice(first, last), slice(lowest, last)
                found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    asking[:, :, asked], answering[:, :, seen], giving[:, :, seen],
                    0.0, mask is None, attn_mask=mask,
                )  # fmt: skip
                shape = (streams, len(chosen), each, last - first)
                mixed[:, which, :, asked] = found.view(*shape, dim)
                log_sums[:, which, :, asked] = sums.view(shape)
        for sight in _sights(windows, sinks, streams, cosines, sines):
            kernels.add_sinks(
                bits(query).reshape(-1, each, steps, dim), bits(key).reshape(-1, steps, dim),
                bits(value).reshape(-1, steps, dim), *sight,
                bits(mixed).reshape(-1, each, steps, dim),
                log_sums.numpy().reshape(-1, each, steps),
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, mixed, log_sums, cosines, sines)
        ctx.windows, ctx.sinks = windows, sinks
        return mixed.permute(0, 3, 1, 2, 4).reshape(streams * steps, count * dim)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        query, key, value, mixed, log_sums, cosines, sines = ctx.saved_tensors
        streams, shared, each, steps, dim = query.shape
        count, groups = each * shared, streams * shared
        grad = grad.view(streams, steps, shared, each, dim).permute(0, 2, 3, 1, 4).contiguous()
        means = (grad.float() * mixed.float()).sum(dim=-1)

        # One product gives score - log of the row's sum, another grad - mean: both are carried as
        # three bfloat16 parts in extra columns, so that what is small after it is rounded small.
        asking = _extended(query * dim**-0.5, -log_sums).view(groups, each, steps, -1)
        answering = _extended(key, None).view(groups, steps, -1)
        blaming = _extended(grad, -means).view(groups, each, steps, -1)
        giving = _extended(value, None).view(groups, steps, -1)

        query_grad = torch.empty(groups, each, steps, dim)
        key_grad = torch.zeros(groups, steps, dim)
        value_grad = torch.zeros(groups, steps, dim)
        space = query.new_empty(2, each * min(QUERY_ROWS, steps) * steps)
        for group in range(groups):
            window = min(ctx.windows[group % shared], steps)
            for first, last, lowest in blocks(steps, window, QUERY_ROWS):
                size, seen = each * (last - first), slice(lowest, last)
                scores, score_grads = space[:, : size * (last - lowest)].view(2, size, -1)
                asked = asking[group, :, first:last].reshape(size, -1)
                blamed = blaming[group, :, first:last].reshape(size, -1)
                torch.mm(asked, answering[group, seen].T, out=scores)
                torch.mm(blamed, giving[group, seen].T, out=score_grads)
                kernels.attention_gradients(
                    bits(scores), bits(score_grads), last - first, first - lowest, window
                )
                found = score_grads @ answering[group, seen, :dim]
                query_grad[group, :, first:last] = found.view(each, last - first, dim)
                key_grad[group, seen] += score_grads.T @ asked[:, :dim]
                value_grad[group, seen] += scores.T @ blamed[:, :dim]
        query_grad *= dim**-0.5
        for sight in _sights(ctx.windows, ctx.sinks, streams, cosines, sines):
            kernels.add_sinks_back(
                bits(query).reshape(-1, each, steps, dim), bits(key).reshape(-1, steps, dim),
                bits(value).reshape(-1, steps, dim), *sight,
                log_sums.numpy().reshape(-1, each, steps),
                bits(grad).reshape(-1, each, steps, dim), means.numpy().reshape(-1, each, steps),
                query_grad.numpy(), key_grad.numpy(), value_grad.numpy(),
            )  # fmt: skip

        qkv_grad = grad.new_empty(streams, steps, count + 2 * shared, dim)
        rows = bits(qkv_grad)
        angles, none = (cosines.numpy(), sines.numpy()), (np.empty((0, 0), np.float32),) * 2
        kernels.rotate_heads_back(query_grad.view(streams, count, steps, dim).numpy(), 0,
                                  *angles, rows)  # fmt: skip
        kernels.rotate_heads_back(key_grad.view(key.shape).numpy(), count, *angles, rows)
        kernels.rotate_heads_back(value_grad.view(key.shape).numpy(), count + shared, *none, rows)
        return qkv_grad.view(streams * steps, -1), *(None,) * 6


def _sights(
    windows: Sequence[int], sinks: int, streams: int, cosines: torch.Tensor, sines: torch.Tensor
) -> Iterator[tuple[Int64Array, int, int, Float32Array, Float32Array]]:
    """For each window that leaves sinks behind: the groups that have it, window, sinks, turns."""
    for window, chosen in heads_by_window(windows, len(cosines)).items():
        if window < len(cosines) and sinks:
            groups = np.arange(streams)[:, None] * len(windows) + np.array(chosen)
            turn = turns(cosines, sines, window, sinks)
            yield groups.reshape(-1), window, sinks, turn[0].numpy(), turn[1].numpy()


def _extended(vectors: torch.Tensor, addend: torch.Tensor | None) -> torch.Tensor:
    """Vectors with columns whose product with those of another adds `addend` to theirs.

    Args:
        vectors: bfloat16 [..., dim]; addend: float32 [...], or None for the other side's ones.

    Returns:
        bfloat16 [..., dim + 32].
    """
    dim = vectors.shape[-1]
    extended = vectors.new_zeros(*vectors.shape[:-1], dim + _PADDED)
    extended[..., :dim] = vectors
    if addend is None:
        extended[..., dim : dim + 3] = 1.0
    else:
        for column in range(dim, dim + 3):
            extended[..., column] = addend
            addend = addend - extended[..., column].float()
    return extended
