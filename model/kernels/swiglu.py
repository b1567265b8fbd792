"""The gate of SwiGLU as a Triton kernel: gate and input are read once, and only the product is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from model.kernels.launch import blocks, evenly_spaced, launch, row_stride

BLOCK = 1024
"""Channels of a program."""


# fmt: off
@triton.jit
def _forward_kernel(gate_up, y, F, stride, BLOCK: tl.constexpr):
    row, channels = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channels < F
    gate = tl.load(gate_up + row * stride + channels, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + F + channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * F + channels, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def _backward_kernel(gate_up, gradient, grad_gate_up, F, stride,
                     BLOCK: tl.constexpr):
    row, channels = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channels < F
    gate = tl.load(gate_up + row * stride + channels, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + F + channels, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(gradient + row * F + channels, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(grad_gate_up + row * 2 * F + channels, dy * up * s * (1 + gate * (1 - s)), mask=mask)
    tl.store(grad_gate_up + row * 2 * F + F + channels, dy * gate * s, mask=mask)


# fmt: on
class _SwiGLU(torch.autograd.Function):
    """See `model.ffn.swiglu`."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.numel() // gate_up.shape[-1], gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        launch(_forward_kernel, (rows, blocks(width, BLOCK)), gate_up, y, width, row_stride(gate_up), BLOCK=BLOCK)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, width = gate_up.numel() // gate_up.shape[-1], gate_up.shape[-1] // 2
        grad_gate_up = gate_up.new_empty(gate_up.shape)
        args = (gate_up, grad.contiguous(), grad_gate_up, width, row_stride(gate_up))
        launch(_backward_kernel, (rows, blocks(width, BLOCK)), *args, BLOCK=BLOCK)
        return grad_gate_up


def swiglu(gate_up: Tensor) -> Tensor:
    """See `model.ffn.swiglu`."""
    result: Tensor = _SwiGLU.apply(evenly_spaced(gate_up))
    return result
