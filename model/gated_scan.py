"""The gated recurrence of the state space branch, from its projections to its filtered states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.dispatch import fused
from model.scan import diagonal_scan

INPUT_SCALE_FLOOR = 1e-6
"""Least 1 - a^2 under the square root of the RG-LRU input scale; it bounds the derivative at 500."""


@fused("gated_scan")
def gated_scan(
    projected: Tensor,
    gate_bias: Tensor,
    rate: Tensor | None = None,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    signed: bool = False,
    scaled: bool = False,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t * h_{t-1} + s_t * g_t * u_t and filter the states (arXiv 2606.16093, Eq. 2 and Figure 1).

        g = sigmoid(gate + bias),  a = g * rate,  or (2 g - 1) * rate where `signed`
        s = 1, or sqrt(1 - a^2) where `scaled` (arXiv 2402.19427)
        y = h * silu(filter)

    The recurrence is at least float32, whatever the projections are.

    Args:
        projected: u, gate and filter [B, T, 3 H], one behind the other.
        gate_bias: [H].
        rate: each channel's own decay [H], in (0, 1]; None is 1.
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        initial: state [B, H] before the first token; None is zero.
        signed, scaled: see above.
        chunk: tokens per chunk of the scan; it changes speed, and nothing else beyond rounding.

    Returns:
        y [B, T, H] in the dtype of `projected`, and the last state [B, H].
    """
    inputs, gate, features = projected.chunk(3, dim=-1)
    dtype = torch.promote_types(projected.dtype, torch.float32)
    gate = torch.sigmoid(gate + gate_bias.to(dtype))
    decay = 2 * gate - 1 if signed else gate
    if rate is not None:
        decay = decay * rate.to(dtype)
    driven = gate * inputs
    if scaled:
        # From the decay before any reset: a document's first token is treated alike in every packing.
        driven = driven * torch.sqrt((1 - decay.square()).clamp(min=INPUT_SCALE_FLOOR))
    if starts is not None:
        decay = decay.masked_fill(starts.unsqueeze(-1), 0)
    states, final = diagonal_scan(decay, driven, initial, chunk)
    return (states * F.silu(features)).to(projected.dtype), final
