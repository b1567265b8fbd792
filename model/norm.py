"""Root mean square normalisation, plain and gated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from model.config import ModelConfig
from model.kernels.dispatch import by_hand, fused


@fused("rms_norm")
def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / rms(x) * gain over the last dimension of x [..., d], computed in at least float32 (arXiv 1910.07467, Eq. 4).

    The result has the dtype of x.
    """
    if by_hand(x):  # where PyTorch has no kernel of its own for it
        normed: Tensor = _RMSNorm.apply(x, gain, eps)
        return normed
    return rms_norm_reference(x, gain, eps)


def rms_norm_reference(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The definition of `rms_norm`, differentiated by autograd."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(dtype), gain.shape, gain.to(dtype), eps).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """The operation with its backward pass written out: half the passes over memory that autograd's chain makes."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(size.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, gain, scale)
        return (wide * scale).mul_(gain.to(dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        wide_gain, grad = gain.to(scale.dtype), grad.to(scale.dtype)
        normed = x.to(scale.dtype) * scale
        both = grad * normed
        grad_gain = both.flatten(0, -2).sum(0).to(gain.dtype)
        with torch.autocast(x.device.type, enabled=False):
            along = (both @ wide_gain).unsqueeze(-1) / x.shape[-1]
        grad_x = (grad * wide_gain).addcmul_(normed, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_gain, None


@fused("rms_norm")
def add_rms_norm(x: Tensor, added: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm` of x + added, and that sum, both in the dtype of x."""
    total = (x + added).to(x.dtype)
    return rms_norm(total, gain, eps), total


class RMSNorm(nn.Module):
    """`rms_norm` with a learned gain.

    Args:
        size: channels.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor | None, added: Tensor | None = None, scale: Tensor | None = None) -> Any:
        """Normalise x [..., size], or x + added, in the dtype of x.

        Args:
            x: None asks for the gain alone, times `scale`: what joins several norms into one operation needs no more.
            added: then the sum is returned too.
            scale: a scalar or [size], which multiplies the gain, `size` numbers, and not the activations.

        Returns:
            The normed tensor; with `added`, a pair of it and the sum; without `x`, the gain [size].
        """
        if x is None:  # never the parameter itself, which a sharding engine takes away after the call
            return self.weight.clone() if scale is None else self.weight * scale
        gain = self.weight if scale is None else self.weight * scale
        return rms_norm(x, gain, self.eps) if added is None else add_rms_norm(x, added, gain, self.eps)

    def initialise(self, config: ModelConfig) -> None:
        """Gains start at 1."""
        nn.init.ones_(self.weight)


class GatedRMSNorm(nn.Module):
    """RMSNorm(x * silu(gate)), normalised in groups of channels (arXiv 2405.21060, Section 7).

    The gate comes before the norm, `norm_before_gate=False` in `mamba_ssm`. Everything is float32.

    Args:
        size: channels.
        eps: added to the mean square.
        groups: the channels are normalised in so many equal parts; it divides `size`.
    """

    def __init__(self, size: int, eps: float, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.groups = eps, groups

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Normalise x [..., size] times silu(gate [..., size]); at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        gated = (x.to(dtype) * F.silu(gate.to(dtype))).unflatten(-1, (self.groups, -1))
        return F.rms_norm(gated, gated.shape[-1:], None, self.eps).flatten(-2) * self.weight.to(dtype)

    def initialise(self, config: ModelConfig) -> None:
        """Gains start at 1."""
        nn.init.ones_(self.weight)
