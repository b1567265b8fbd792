"""RMSNorm, alone or of a sum, as Triton kernels. A row is held in registers; the norm is computed again backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from model.kernels.launch import launch, power_of_2, programs_over_rows

WIDEST = 8192
"""Channels of a row at most: more do not fit into registers."""


# fmt: off
@triton.jit
def _forward_kernel(x, added, gain, y, total, M, D,
                    eps, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """A program takes every so-many-th row, and reads the gain once."""
    channels = tl.arange(0, BLOCK)
    mask = channels < D
    weight = tl.load(gain + channels, mask=mask, other=0.0).to(tl.float32)
    for i in range(tl.program_id(0), M, tl.num_programs(0)):
        at = tl.cast(i, tl.int64) * D + channels
        values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            values += tl.load(added + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(total + at, values, mask=mask)
        scale = tl.rsqrt(tl.sum(values * values, axis=0) / D + eps)
        tl.store(y + at, values * scale * weight, mask=mask)


@triton.jit
def _backward_kernel(x, gain, gradient, grad_total, grad_x,
                     grad_gain, M, D, eps, BLOCK: tl.constexpr,
                     ADD: tl.constexpr):
    """A program takes every so-many-th row and sums the gradient of the gain over them. `x` is the sum."""
    program, channels = tl.program_id(0), tl.arange(0, BLOCK)
    mask = channels < D
    weight = tl.load(gain + channels, mask=mask, other=0.0).to(tl.float32)
    summed = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(program, M, tl.num_programs(0)):
        at = tl.cast(i, tl.int64) * D + channels
        values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(values * values, axis=0) / D + eps)
        normed = values * scale
        summed += dy * normed
        dy *= weight
        dx = scale * (dy - normed * (tl.sum(dy * normed, axis=0) / D))
        if ADD:
            dx += tl.load(grad_total + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + at, dx, mask=mask)
    tl.store(grad_gain + program * D + channels, summed, mask=mask)


# fmt: on
class _RMSNorm(torch.autograd.Function):
    """See `model.norm.rms_norm` and `model.norm.add_rms_norm`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, added: Tensor | None, gain: Tensor, eps: float
    ) -> tuple[Tensor, Tensor | None]:
        width = x.shape[-1]
        y = torch.empty_like(x)
        total = None if added is None else torch.empty_like(x)
        warps = _warps(width)
        rows = x.numel() // width
        args = (x, x if added is None else added, gain, y, x if total is None else total, rows, width, eps)
        launch(
            _forward_kernel,
            (programs_over_rows(x, rows),),
            *args,
            BLOCK=power_of_2(width),
            ADD=added is not None,
            warps=warps,
        )
        ctx.save_for_backward(x if total is None else total, gain)
        ctx.eps, ctx.dtypes = eps, (x.dtype, None if added is None else added.dtype)  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
        x, gain = ctx.saved_tensors  # type: ignore[attr-defined]
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        grad = torch.zeros_like(x) if grad is None else grad.contiguous()
        programs = programs_over_rows(x, rows)
        grad_x, partial = torch.empty_like(x), gain.new_empty(programs, width, dtype=torch.float32)
        extra = grad if grad_total is None else grad_total.contiguous()
        constants = {"BLOCK": power_of_2(width), "ADD": grad_total is not None}
        args = (x, gain, grad, extra, grad_x, partial, rows, width, ctx.eps)  # type: ignore[attr-defined]
        launch(_backward_kernel, (programs,), *args, **constants, warps=_warps(width))
        _, other = ctx.dtypes  # type: ignore[attr-defined]
        return grad_x, None if other is None else grad_x.to(other), partial.sum(0).to(gain.dtype), None


def _warps(width: int) -> int:
    return max(1, min(16, power_of_2(width) // 256))


def supports(x: Tensor, *_: object) -> str | None:
    """Why an input is not for these kernels, or None."""
    return None if x.shape[-1] <= WIDEST else f"rows of more than {WIDEST} channels"


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """See `model.norm.rms_norm`."""
    y, _ = _RMSNorm.apply(x.contiguous(), None, gain, eps)
    return y


def add_rms_norm(x: Tensor, added: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `model.norm.add_rms_norm`."""
    y, total = _RMSNorm.apply(x.contiguous(), added.contiguous(), gain, eps)
    return y, total
