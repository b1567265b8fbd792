"""Queries and keys from their projections to what attention multiplies: normalised and turned."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.dispatch import fused

NORM_EPS = 1e-12
"""Added to the squared length of a query or key, so that a zero vector has a finite gradient."""


@fused("rotary")
def qk_norm_rope(
    qkv: Tensor, heads: int, kv_heads: int, scale: Tensor | None, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Split projections into heads, give queries and keys length 1 where scores are cosines, and turn them.

    Lengths and turns are at least float32. Rotations keep lengths, so RoPE (arXiv 2104.09864) may follow the
    normalisation; the temperature of each query head rides on the factor of its normalisation (Swin Transformer V2,
    arXiv 2111.09883, Eq. 2).

    Args:
        qkv: [B, T, (heads + 2 kv_heads) * head_dim], queries first, then keys, then values.
        heads, kv_heads: how many there are.
        scale: temperature of each query head [heads]; None leaves the lengths as they are.
        cos, sin: rotary tables [B or 1, T, 1, head_dim / 2], or None.

    Returns:
        Queries [B, T, heads, head_dim], and keys and values [B, T, kv_heads, head_dim], in the dtype of `qkv`.
    """
    split = qkv.unflatten(-1, (heads + 2 * kv_heads, -1))
    queries_keys, values = split.split([heads + kv_heads, kv_heads], dim=2)
    x = queries_keys.to(torch.promote_types(qkv.dtype, torch.float32))
    if scale is not None:
        factors = torch.cat([scale.to(x.dtype), scale.new_ones(kv_heads, dtype=x.dtype)])
        x = x * (torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS) * factors[:, None])
    if cos is not None and sin is not None:
        first, second = x.chunk(2, dim=-1)
        x = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    queries, keys = x.to(values.dtype).split([heads, kv_heads], dim=2)
    return queries, keys, values
