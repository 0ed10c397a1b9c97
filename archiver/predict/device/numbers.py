"""Elementwise IEEE operations on tensors, the same bits on every device.

Two traps of torch are avoided here: a quotient with a number of Python's in it is computed by a
reciprocal (always where the number is divided, on CUDA also where it divides), and
`addcmul` and its like may be fused.

Source: FORMAT.md, "Numbers of the predictor".
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from archiver.predict.kernels.elementary import (
    EXP2_C1,
    EXP2_C2,
    EXP2_C3,
    EXP2_C4,
    EXP2_C5,
    EXP2_FLOOR,
)
from archiver.predict.kernels.layers import CODE_MAX, LEAST_MAGNITUDE


@functools.cache
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


def quotient(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a / b, rounded once; one is a tensor, and a number takes its type and its device."""
    if not isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        a = _number(a, b.dtype, b.device)
    elif not isinstance(b, Tensor):
        b = _number(b, a.dtype, a.device)
    assert a.dtype == b.dtype
    return torch.div(a, b)


def exp2_nonpositive(x: Tensor) -> Tensor:
    """2^max(x, -40) for binary32 x <= 0, as `elementary.exp2_nonpositive`; overwrites x."""
    x = x.clamp_(min=float(EXP2_FLOOR))
    whole = torch.round(x)
    f = x.sub_(whole)
    p = f * float(EXP2_C5)
    for coefficient in (EXP2_C4, EXP2_C3, EXP2_C2, EXP2_C1):
        p = p.add_(float(coefficient)).mul_(f)
    p = p.add_(1.0)
    exponent = whole.to(torch.int32).add_(127).bitwise_left_shift_(23)
    return p.mul_(exponent.view(torch.float32))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, int8, and the magnitude, float32, of each vector along the last axis; x float32."""
    magnitude = x.abs().amax(-1).clamp_(min=float(LEAST_MAGNITUDE))
    codes = x * quotient(float(CODE_MAX), magnitude).unsqueeze(-1)
    return codes.round_().to(torch.int8), magnitude
