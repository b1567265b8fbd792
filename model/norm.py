"""Root mean square normalisation, plain and gated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last dimension, computed in float32 (arXiv 1910.07467, Eq. 4).

    Args:
        size: channels.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Normalise x [..., size]; the result has its shape and dtype.

        `scale`, a scalar or [size], multiplies the result. It meets the gain, `size` numbers, and not the
        activations.
        """
        weight = self.weight if scale is None else self.weight * scale
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), self.eps).to(x.dtype)

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
