"""Linear attention over given features on the kernels of `chunked`: no decays, and a column of ones as normaliser."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels import dispatch
from model.kernels.chunked import chunked


def supports(phi_q: Tensor, phi_k: Tensor, v: Tensor, *_: object, **__: object) -> str | None:
    """Why inputs are not for these kernels, or None."""
    if dispatch.mode() == "auto":
        return "slower than PyTorch where it was measured (docs/kernels.md); kernels=triton takes it, for its memory"
    if v.shape[1] == 1:
        return "a single token, which needs no chunks"
    return None if v.shape[-1] < 128 else f"heads of {v.shape[-1]} channels"


def linear_attention(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
    initial: tuple[Tensor, Tensor] | None = None,
    chunk: int = 64,
    eps: float = 1e-12,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """See `model.linear_attention.linear_attention`. `chunk` is without effect."""
    values = F.pad(v.float(), (0, 1), value=1.0)
    state = None
    if initial is not None:
        state = torch.cat([initial[0], initial[1].unsqueeze(-1)], dim=-1).transpose(-1, -2)
    sums, final = chunked(phi_q, phi_k, values, None, None, starts, state)
    last = final.transpose(-1, -2)
    return sums[..., :-1] / sums[..., -1:].clamp(min=eps), (last[..., :-1], last[..., -1])
