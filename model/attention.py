"""Grouped-query attention, with scaled cosine or plain scores, over all of a document or a window of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import KeyValueMemory, KeyValues, Memory, WindowKeyValues
from model.config import ModelConfig
from model.flex import tiled_attention
from model.init import fill
from model.mixer import ROWS, Mixer
from model.rotary import qk_norm_rope
from model.rows import Rows
from model.window import banded_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def masked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | BlockMask | None, scale: float | None
) -> Tensor:
    """Attention of queries [B, heads, T, d] to keys and values [B, kv_heads, S, d].

    Args:
        queries, keys, values: see above; in training S = T.
        mask: one of the forms of `model.rows.Rows.mask`.
        scale: factor on the products; None is 1/sqrt(d).

    Returns:
        [B, heads, T, d].
    """
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 4):
        causal, grouped = mask is None and queries.shape[2] > 1, queries.shape[1] != keys.shape[1]
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    if isinstance(mask, Tensor):
        return banded_attention(queries, keys, values, mask, scale)
    return tiled_attention(queries, keys, values, mask, scale)


class Attention(Mixer):
    """Causal attention with n_heads queries and n_kv_heads keys and values (arXiv 2305.13245).

    Scores are q k / sqrt(head_dim) where `attention.scores` is "plain". Otherwise they are s_h * cos(q, k): q and k
    have length 1 and s_h = exp(log_scale_h), at most `cosine_scale_max`, takes the place of 1/sqrt(head_dim) (Swin
    Transformer V2, arXiv 2111.09883, Eq. 2; arXiv 2606.16093, Section 3). Rotations keep lengths, so RoPE may follow
    the normalisation. Projections have no bias.
    """

    input_map = "qkv"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        self.kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.scale_max = config.cosine_scale_max
        self.window = config.attention.window
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.log_scale = nn.Parameter(torch.empty(self.heads)) if config.cosine else None

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Attend from each token of x [B, T, d_model] to the visible ones; the memory gains T tokens."""
        batch, length, _ = x.shape
        queries, keys, values = (part.transpose(1, 2) for part in self._project(x, rows))
        if isinstance(memory, KeyValueMemory):
            keys, values = memory.append(keys, values)
            queries = queries.to(keys.dtype)
        scale = None if self.log_scale is None else 1.0  # a temperature is already in the queries
        mixed = masked_attention(queries, keys, values, rows.mask, scale)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1).to(x.dtype))

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """Keys and values, of `max_length` tokens or of a window of any length."""
        kind, length = (KeyValues, max_length) if self.window is None else (WindowKeyValues, self.window)
        shape = (batch, self.kv_heads, length, self.head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return kind(keys, values)

    def initialise(self, config: ModelConfig) -> None:
        """Queries, keys and values by themselves; the temperature at `cosine_scale_init`."""
        widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        queries, keys, values = self.qkv.weight.split(widths)
        fill(queries, config, "in")
        fill(keys, config, "in")
        fill(values, config, "value")
        fill(self.out.weight, config, "out")
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(config.cosine_scale_init))

    def _project(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, heads, head_dim], and keys and values [B, T, kv_heads, head_dim], in the values' dtype.

        Queries and keys are turned, and with cosine scores normalised, so that their products, times 1/sqrt(head_dim)
        with plain scores, are what the softmax sees.
        """
        scale = None
        if self.log_scale is not None:
            wide = torch.promote_types(x.dtype, torch.float32)
            scale = self.log_scale.to(wide).exp().clamp(max=self.scale_max)
        return qk_norm_rope(self.qkv(x), self.heads, self.kv_heads, scale, rows.cos, rows.sin)
