"""Queries and keys normalised and turned in one pass, as Triton kernels.

A program takes BLOCK tokens through all heads: their angles are read once. The values are left where they are; in the
backward pass their gradient is copied to its place in the projections' gradient by the same kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from model.kernels.launch import blocks, evenly_spaced, launch, power_of_2, row_stride

BLOCK = 32
"""Tokens of a program."""

WIDEST = 256
"""Channels of a head at most."""

_EPS = tl.constexpr(1e-12)  # NORM_EPS of the definition


# fmt: off
@triton.jit
def _angles(cos, sin, tokens, mask, pairs, T, half: tl.constexpr,
            SHARED: tl.constexpr):
    """Cosines and sines [BLOCK, HALF]; one table serves all rows where it is SHARED."""
    at = (tokens % T if SHARED else tokens)[:, None] * half + pairs[None, :]
    return tl.load(cos + at, mask=mask, other=0.0), tl.load(sin + at, mask=mask, other=0.0)


@triton.jit
def _pair(x, at, mask, half: tl.constexpr):
    """The two halves of a head, which turn together, in float32."""
    first, second = tl.load(x + at, mask=mask, other=0.0), tl.load(x + at + half, mask=mask, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _forward_kernel(qkv, cos, sin, temperature, turned, M,
                    T, stride, HEADS: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
                    BLOCK: tl.constexpr, COSINE: tl.constexpr, ROTARY: tl.constexpr, SHARED: tl.constexpr):
    half: tl.constexpr = SIZE // 2
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.arange(0, HALF)
    mask = (tokens < M)[:, None] & (pairs < half)[None, :]
    if ROTARY:
        c, s = _angles(cos, sin, tokens, mask, pairs, T, half, SHARED)
    for h in range(HEADS + KV):
        a, b = _pair(qkv, tokens[:, None] * stride + h * SIZE + pairs[None, :], mask, half)
        if COSINE:
            factor = tl.rsqrt(tl.sum(a * a + b * b, axis=1) + _EPS)
            factor *= tl.where(h < HEADS, tl.load(temperature + tl.minimum(h, HEADS - 1)), 1.0)
            a, b = a * factor[:, None], b * factor[:, None]
        if ROTARY:
            a, b = a * c - b * s, b * c + a * s
        to = turned + tokens[:, None] * ((HEADS + KV) * SIZE) + h * SIZE + pairs[None, :]
        tl.store(to, a, mask=mask)
        tl.store(to + half, b, mask=mask)


@triton.jit
def _through(source, ours, theirs, mask, c, s,
             heat, half: tl.constexpr, COSINE: tl.constexpr, ROTARY: tl.constexpr):
    """Carry a head's gradient through its turn and its norm; return each token's share of the temperature's."""
    da, db = _pair(source, 0, mask, half)
    if ROTARY:
        da, db = da * c + db * s, db * c - da * s
    along = tl.sum(da, axis=1)
    if COSINE:
        a, b = _pair(ours, 0, mask, half)
        factor = tl.rsqrt(tl.sum(a * a + b * b, axis=1) + _EPS)
        along = tl.sum(da * a + db * b, axis=1) * factor
        scale, back = (heat * factor)[:, None], (along * factor)[:, None]
        da, db = scale * (da - a * back), scale * (db - b * back)
    tl.store(theirs, da, mask=mask)
    tl.store(theirs + half, db, mask=mask)
    return along


@triton.jit
def _backward_kernel(qkv, cos, sin, temperature, grad_q, grad_k,
                     grad_v, grad_qkv, grad_temperature, M, T, stride,
                     q_row, q_step, q_head, k_row, k_step, k_head,
                     v_row, v_step, v_head,
                     HEADS: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
                     BLOCK: tl.constexpr, COSINE: tl.constexpr, ROTARY: tl.constexpr, SHARED: tl.constexpr):
    half: tl.constexpr = SIZE // 2
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, step = tokens // T, tokens % T
    pairs = tl.arange(0, HALF)
    mask = (tokens < M)[:, None] & (pairs < half)[None, :]
    if ROTARY:
        c, s = _angles(cos, sin, tokens, mask, pairs, T, half, SHARED)
    else:
        c, s = 1.0, 0.0
    ours = qkv + tokens[:, None] * stride + pairs[None, :]
    theirs = grad_qkv + tokens[:, None] * ((HEADS + 2 * KV) * SIZE) + pairs[None, :]
    for h in range(HEADS):
        source = grad_q + (row * q_row + step * q_step + h * q_head)[:, None] + pairs[None, :]
        at = h * SIZE
        heat = tl.load(temperature + h).to(tl.float32) if COSINE else 1.0
        along = _through(source, ours + at, theirs + at, mask, c, s, heat, half, COSINE, ROTARY)
        if COSINE:
            tl.store(grad_temperature + tl.program_id(0) * HEADS + h, tl.sum(along, axis=0))
    for h in range(KV):
        source = grad_k + (row * k_row + step * k_step + h * k_head)[:, None] + pairs[None, :]
        at = (HEADS + h) * SIZE
        _through(source, ours + at, theirs + at, mask, c, s, 1.0, half, COSINE, ROTARY)
    for h in range(KV):
        source = grad_v + (row * v_row + step * v_step + h * v_head)[:, None] + pairs[None, :]
        da, db = _pair(source, 0, mask, half)
        at = (HEADS + KV + h) * SIZE
        tl.store(theirs + at, da, mask=mask)
        tl.store(theirs + at + half, db, mask=mask)


# fmt: on
class _QKNormRope(torch.autograd.Function):
    """See `model.rotary.qk_norm_rope`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        qkv: Tensor,
        scale: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        heads: int,
        kv_heads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = qkv.shape
        size = width // (heads + 2 * kv_heads)
        turned = qkv.new_empty(batch, length, heads + kv_heads, size)
        constants = _constants(qkv, heads, kv_heads, size, scale, cos)
        unused = qkv
        tables = (unused if cos is None else cos, unused if sin is None else sin)
        args = (qkv, *tables, unused if scale is None else scale, turned, batch * length, length)
        launch(_forward_kernel, (blocks(batch * length, BLOCK),), *args, row_stride(qkv), **constants)
        ctx.save_for_backward(qkv, scale, cos, sin)  # type: ignore[arg-type]  # None is allowed
        ctx.heads = (heads, kv_heads, size)  # type: ignore[attr-defined]
        queries, keys = turned.split([heads, kv_heads], dim=2)
        values = qkv.unflatten(-1, (-1, size))[:, :, heads + kv_heads :]
        return queries, keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, scale, cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        heads, kv_heads, size = ctx.heads  # type: ignore[attr-defined]
        batch, length, _ = qkv.shape
        grads = tuple(grad if grad.stride(-1) == 1 else grad.contiguous() for grad in grads)
        programs = blocks(batch * length, BLOCK)
        grad_qkv = qkv.new_empty(qkv.shape)
        partial = qkv.new_empty(programs, heads, dtype=torch.float32)
        constants = _constants(qkv, heads, kv_heads, size, scale, cos)
        tables = (qkv if cos is None else cos, qkv if sin is None else sin)
        strides = [stride for grad in grads for stride in grad.stride()[:3]]
        args = (qkv, *tables, qkv if scale is None else scale, *grads, grad_qkv, partial, batch * length, length)
        launch(_backward_kernel, (programs,), *args, row_stride(qkv), *strides, **constants)
        grad_scale = None if scale is None else partial.sum(0).to(scale.dtype)
        return grad_qkv, grad_scale, None, None, None, None


def _constants(
    qkv: Tensor, heads: int, kv_heads: int, size: int, scale: Tensor | None, cos: Tensor | None
) -> dict[str, int | bool]:
    shared = cos is not None and cos.shape[0] == 1 < qkv.shape[0]
    return {
        "HEADS": heads,
        "KV": kv_heads,
        "SIZE": size,
        "HALF": power_of_2(size // 2),
        "BLOCK": BLOCK,
        "COSINE": scale is not None,
        "ROTARY": cos is not None,
        "SHARED": shared,
    }


def supports(qkv: Tensor, heads: int, kv_heads: int, *_: object) -> str | None:
    """Why inputs are not for these kernels, or None."""
    size = qkv.shape[-1] // (heads + 2 * kv_heads)
    return None if size % 2 == 0 and size <= WIDEST else f"heads of {size} channels"


def qk_norm_rope(
    qkv: Tensor, heads: int, kv_heads: int, scale: Tensor | None, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `model.rotary.qk_norm_rope`."""
    tables = (None if table is None else table.contiguous() for table in (cos, sin))
    queries, keys, values = _QKNormRope.apply(evenly_spaced(qkv), scale, *tables, heads, kv_heads)
    return queries, keys, values
