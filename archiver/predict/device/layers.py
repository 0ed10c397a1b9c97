"""What lies between the matrix products of a layer, as in `kernels.layers`, on tensors.

Rows are the first axis; a row's result depends on nothing else in the batch.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import torch
from torch import Tensor

from archiver.predict.device.numbers import exp2_nonpositive, quantize, quotient
from archiver.predict.kernels.layers import CODE_MAX, SQUARE_ONE
from archiver.predict.kernels.row_lanes import LOG2_E


def normalize(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """int8 codes and float32 scales of x / sqrt(mean(x^2) + epsilon); x float32 [rows, hidden]."""
    codes, magnitude = quantize(x)
    fixed = x * quotient(float(SQUARE_ONE), magnitude).unsqueeze(-1)
    fixed = fixed.round_().to(torch.int32)
    total = fixed.mul_(fixed).sum(-1, dtype=torch.int64)  # terms below 2^30
    exact = magnitude.double()
    unit = quotient(exact, float(SQUARE_ONE))
    mean = quotient((total.double() * unit) * unit, float(x.shape[-1]))
    root = torch.sqrt(mean + epsilon)
    return codes, quotient(quotient(exact, float(CODE_MAX)), root).float()


def scaled(product: Tensor, scales: Tensor, weight_scales: Tensor) -> Tensor:
    """product * (scales * weight_scales), scales by row and by output; overwrites the product."""
    return product.mul_(scales.unsqueeze(-1) * weight_scales)


def rotate(y: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """y with its half-split pairs turned; y float32 [..., head_dim], angles [..., head_dim / 2]."""
    first, second = y.chunk(2, -1)
    return torch.cat(
        (first * cosines - second * sines, second * cosines + first * sines), -1
    )  # fmt: skip


def gate(y: Tensor) -> Tensor:
    """silu(gate) * up; y float32 [rows, 2 * ffn], gates and then ups."""
    gates, ups = y.chunk(2, -1)
    e = exp2_nonpositive((gates * LOG2_E).abs_().neg_())
    numerator = torch.where(gates >= 0, 1.0, e)
    return (gates * quotient(numerator, e.add_(1.0))).mul_(ups)


def transform(x: Tensor, span: int) -> Tensor:
    """Every aligned run of `span` (a power of two) becomes its Walsh-Hadamard transform:
    butterflies of step 1, 2, ... span / 2; x float32 [rows, n]."""
    step = 1
    while step < span:
        a, b = x.view(len(x), -1, 2, step).unbind(2)
        x = torch.stack((a + b, a - b), 2).view(x.shape)
        step *= 2
    return x
