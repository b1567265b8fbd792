"""The end of a parallel layer's mixing in one pass: branch norms, weights, residual and the next norm.

A program holds one token's row of every branch in registers, so that nothing between the branches' outputs and the
normed stream is written. The backward pass reads the same rows, computes the norms again, and writes all gradients.
Gradients of the gains are summed over the rows of a program and then over programs: no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from model.kernels.launch import launch, power_of_2, programs_over_rows

WIDEST = 4096
"""Channels of a row at most: more do not fit into registers."""


# fmt: off
@triton.jit
def _kept(seed, at, branch: tl.constexpr, p, DROP: tl.constexpr):
    """What dropout multiplies a branch's row with: 0 or 1 / (1 - p)."""
    if DROP:
        return tl.where(tl.rand(tl.load(seed) + branch, at) >= p, 1 / (1 - p), 0.0)
    return 1.0


@triton.jit
def _normed(z, at, mask, D, eps):
    """A row, normed without a gain, and the factor that norms it."""
    values = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / D + eps)
    return values * scale, scale


@triton.jit
def _gain(gains, channels, mask, D, branch: tl.constexpr):
    """A branch's gain; that of the first stands in for a branch that is not there."""
    return tl.load(gains + branch * D + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _through_norm(dy, normed, scale, D):
    """The gradient of a row from that of its normed form."""
    return scale * (dy - normed * (tl.sum(dy * normed, axis=0) / D))


@triton.jit
def _forward_kernel(z0, z1, z2, gains, x, next_gain,
                    seed, hidden, stream, M, D, alpha,
                    eps, p, N: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr,
                    STREAM: tl.constexpr):
    """A program takes every so-many-th row, and reads the gains once."""
    channels = tl.arange(0, BLOCK)
    mask = channels < D
    weight = tl.load(next_gain + channels, mask=mask, other=0.0).to(tl.float32)
    gain0 = _gain(gains, channels, mask, D, 0)
    gain1 = _gain(gains, channels, mask, D, 1 if N > 1 else 0)
    gain2 = _gain(gains, channels, mask, D, 2 if N > 2 else 0)
    for i in range(tl.program_id(0), M, tl.num_programs(0)):
        at = tl.cast(i, tl.int64) * D + channels
        total = alpha * tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        normed, _ = _normed(z0, at, mask, D, eps)
        total += normed * gain0 * _kept(seed, at, 0, p, DROP)
        if N > 1:
            normed, _ = _normed(z1, at, mask, D, eps)
            total += normed * gain1 * _kept(seed, at, 1, p, DROP)
        if N > 2:
            normed, _ = _normed(z2, at, mask, D, eps)
            total += normed * gain2 * _kept(seed, at, 2, p, DROP)
        if STREAM:
            tl.store(stream + at, total, mask=mask)
        scale = tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)
        tl.store(hidden + at, total * scale * weight, mask=mask)


@triton.jit
def _branch_back(grad_z, dx, gain, normed, scale, at, mask, D, seed, branch: tl.constexpr, p, DROP: tl.constexpr):
    """Carry the stream's gradient to a branch's row; return the row's share of the gain's gradient."""
    kept = _kept(seed, at, branch, p, DROP)
    tl.store(grad_z + at, _through_norm(dx * gain * kept, normed, scale, D), mask=mask)
    return dx * normed * kept


@triton.jit
def _backward_kernel(z0, z1, z2, gains, x, next_gain, seed, grad_hidden, grad_stream, grad_z0, grad_z1, grad_z2, grad_x,
                     grad_gains, M, D, alpha, eps, p, N: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr,
                     STREAM: tl.constexpr):
    """A program takes every so-many-th row. `grad_gains` [programs, N + 1, D] has the next norm's gain last."""
    program, channels = tl.program_id(0), tl.arange(0, BLOCK)
    mask = channels < D
    weight = tl.load(next_gain + channels, mask=mask, other=0.0).to(tl.float32)
    gain0 = _gain(gains, channels, mask, D, 0)
    gain1 = _gain(gains, channels, mask, D, 1 if N > 1 else 0)
    gain2 = _gain(gains, channels, mask, D, 2 if N > 2 else 0)
    sum0 = tl.zeros([BLOCK], dtype=tl.float32)
    sum1, sum2, sum_next = sum0, sum0, sum0
    for i in range(program, M, tl.num_programs(0)):
        at = tl.cast(i, tl.int64) * D + channels
        total = alpha * tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        normed0, scale0 = _normed(z0, at, mask, D, eps)
        total += gain0 * normed0 * _kept(seed, at, 0, p, DROP)
        if N > 1:
            normed1, scale1 = _normed(z1, at, mask, D, eps)
            total += gain1 * normed1 * _kept(seed, at, 1, p, DROP)
        if N > 2:
            normed2, scale2 = _normed(z2, at, mask, D, eps)
            total += gain2 * normed2 * _kept(seed, at, 2, p, DROP)
        scale = tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)
        dh = tl.load(grad_hidden + at, mask=mask, other=0.0).to(tl.float32)
        sum_next += dh * total * scale
        dx = _through_norm(dh * weight, total * scale, scale, D)
        if STREAM:
            dx += tl.load(grad_stream + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + at, alpha * dx, mask=mask)
        sum0 += _branch_back(grad_z0, dx, gain0, normed0, scale0, at, mask, D, seed, 0, p, DROP)
        if N > 1:
            sum1 += _branch_back(grad_z1, dx, gain1, normed1, scale1, at, mask, D, seed, 1, p, DROP)
        if N > 2:
            sum2 += _branch_back(grad_z2, dx, gain2, normed2, scale2, at, mask, D, seed, 2, p, DROP)
    sums = grad_gains + program.to(tl.int64) * (N + 1) * D + channels
    tl.store(sums, sum0, mask=mask)
    if N > 1:
        tl.store(sums + D, sum1, mask=mask)
    if N > 2:
        tl.store(sums + 2 * D, sum2, mask=mask)
    tl.store(sums + N * D, sum_next, mask=mask)


# fmt: on
class _Fuse(torch.autograd.Function):
    """See `model.fusion.fuse`; `seed` [1] int64 is there where dropout is."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        gains: Tensor,
        next_gain: Tensor,
        seed: Tensor | None,
        settings: tuple[float, float, float, bool],
        *outs: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        alpha, eps, dropout, keep_stream = settings
        width = x.shape[-1]
        hidden, stream = torch.empty_like(x), torch.empty_like(x) if keep_stream else None
        three = [*outs, outs[0], outs[0]][:3]
        constants = _constants(len(outs), width, seed, keep_stream)
        args = (*three, gains, x, next_gain, x if seed is None else seed, hidden, x if stream is None else stream)
        rows = x.numel() // width
        launch(_forward_kernel, (programs_over_rows(x, rows),), *args, rows, width, alpha, eps, dropout, **constants)
        ctx.save_for_backward(x, gains, next_gain, seed, *outs)  # type: ignore[arg-type]  # None is allowed
        ctx.settings = settings  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return hidden, stream

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor | None, grad_stream: Tensor | None) -> tuple[Tensor | None, ...]:
        x, gains, next_gain, seed, *outs = ctx.saved_tensors  # type: ignore[attr-defined]
        alpha, eps, dropout, _ = ctx.settings  # type: ignore[attr-defined]
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        grad = torch.zeros_like(x) if grad is None else grad.contiguous()
        extra = grad if grad_stream is None else grad_stream.contiguous()
        programs = programs_over_rows(x, rows)
        grads = [torch.empty_like(z) for z in outs]
        grad_x = torch.empty_like(x)
        sums = gains.new_empty(programs, len(outs) + 1, width, dtype=torch.float32)
        three, grad_three = ([*t, t[0], t[0]][:3] for t in (outs, grads))
        constants = _constants(len(outs), width, seed, grad_stream is not None)
        args = (*three, gains, x, next_gain, x if seed is None else seed, grad, extra, *grad_three, grad_x, sums)
        launch(_backward_kernel, (programs,), *args, rows, width, alpha, eps, dropout, **constants)
        total = sums.sum(0)
        return grad_x, total[:-1].to(gains.dtype), total[-1].to(next_gain.dtype), None, None, *grads


def _constants(branches: int, width: int, seed: Tensor | None, stream: bool) -> dict[str, int | bool]:
    block = power_of_2(width)
    warps = max(1, min(16, block // 256))
    return {"N": branches, "BLOCK": block, "DROP": seed is not None, "STREAM": stream, "warps": warps}


def supports(outs: Sequence[Tensor], *_: object, **__: object) -> str | None:
    """Why inputs are not for these kernels, or None."""
    if len(outs) > 3:
        return "more than three branches"
    return None if outs[0].shape[-1] <= WIDEST else f"rows of more than {WIDEST} channels"


def fuse(
    outs: Sequence[Tensor],
    gains: Tensor,
    x: Tensor,
    next_gain: Tensor,
    alpha: float,
    eps: float,
    dropout: float = 0.0,
    keep_stream: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """See `model.fusion.fuse`. Dropout draws its seed from torch's CPU generator, and its numbers from Philox."""
    seed = None
    if dropout > 0:
        seed = torch.randint(2**31, (1,)).to(x.device, non_blocking=True)
    contiguous = [z.contiguous() for z in outs]
    hidden, stream = _Fuse.apply(
        x.contiguous(), gains.contiguous(), next_gain, seed, (alpha, eps, dropout, keep_stream), *contiguous
    )
    return hidden, stream
