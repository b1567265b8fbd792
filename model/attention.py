"""Grouped-query attention with scaled cosine scores and rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import LayerCache
from model.config import ModelConfig

NORM_EPS = 1e-12
"""Added to the squared length of a query or key, so that a zero vector has a finite gradient."""


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, position * theta^(-2i / head_dim) (arXiv 2104.09864, Eq. 15).

    Args:
        positions: integers [B, T], or [1, T] where all rows agree.
        head_dim: channels of a head, even.
        theta: base of the frequencies.

    Returns:
        Two float32 tensors [B, T, 1, head_dim / 2]; channel i turns with channel i + head_dim / 2.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, :, None, None].float() * theta**-exponent
    return angles.cos(), angles.sin()


class Attention(nn.Module):
    """Causal attention with scores s_h * cos(q, k), n_heads queries and n_kv_heads keys and values.

    q and k have length 1 and s_h = exp(log_scale_h), at most `cosine_scale_max`, takes the place of
    1/sqrt(head_dim) (Swin Transformer V2, arXiv 2111.09883, Eq. 2; arXiv 2606.16093, Section 3). Rotations
    keep lengths, so RoPE may follow the normalisation. Projections have no bias.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        self.kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.scale_max = config.cosine_scale_max
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.log_scale = nn.Parameter(torch.empty(self.heads))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend from each token to the visible ones.

        Args:
            x: [B, T, d_model].
            cos, sin: rotary tables of `rope_tables`.
            mask: boolean [B or 1, 1, T, S], True where a query may see a key; S counts the cached tokens too.
                None is the causal mask when T > 1, and everything when T = 1.
            cache: this block's cache; T tokens are appended.

        Returns:
            [B, T, d_model].
        """
        batch, length, _ = x.shape
        qkv = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim))
        queries_keys, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        rotated = self._normalise_and_rotate(queries_keys, cos, sin).to(values.dtype)
        queries, keys = rotated.transpose(1, 2).split([self.heads, self.kv_heads], dim=1)
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.append(keys, values)
            queries = queries.to(keys.dtype)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            scale=1.0,  # the temperature is already in the queries
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1).to(x.dtype))

    def _normalise_and_rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Normalise queries and keys [B, T, heads + kv_heads, head_dim] in float32, then turn them.

        The temperature of each query head rides on the factor of its normalisation.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = self.log_scale.to(x.dtype).exp().clamp(max=self.scale_max)
        scale = torch.cat([scale, scale.new_ones(self.kv_heads)])
        x = x * (torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS) * scale[:, None])
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
