"""Linear attention under Hedgehog's learned features, in the place of softmax attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.cache import Memory, States
from model.chunking import compute_dtype
from model.config import ModelConfig
from model.hedgehog import (
    attention_weights_of_features,
    distillation_losses,
    hedgehog_features,
    softmax_attention_weights,
)
from model.linear_attention import linear_attention
from model.mixer import ROWS
from model.rows import Rows


class FeatureMap(nn.Module):
    """phi(x) = softmax([y, -y]), y = W x + b, for each head (arXiv 2402.04347, Section 4.2).

    Args:
        heads: heads with a map of their own.
        head_dim: channels of a head, d; there are 2 d features.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.bias = nn.Parameter(torch.empty(heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, heads, d] to features [B, T, heads, 2 d], at least float32 under any autocast."""
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            y = torch.einsum("bthi,hoi->btho", x.to(dtype), self.weight.to(dtype)) + self.bias.to(dtype)
        return hedgehog_features(y)

    def initialise(self, config: ModelConfig) -> None:
        """The identity: features start as those of the queries and keys themselves."""
        self.weight.copy_(torch.eye(self.weight.shape[-1]).expand_as(self.weight))
        nn.init.zeros_(self.bias)


class HedgehogAttention(Attention):
    """Attention whose weights are phi_q(q) . phi_k(k) instead of exp(q . k / sqrt(d)) (arXiv 2402.04347).

    Queries, keys, values and the output map are those of `Attention`, so that a trained Transformer's weights fit; with
    grouped queries a key head has one map. The past is the sums S and z of `model.linear_attention`, whatever its
    length; `attention.window` is without effect. As in the paper, queries and keys meet the maps as they are, turned
    by RoPE and without 1/sqrt(d): a map takes up any factor.

    Attributes:
        imitates: compute softmax attention, and how far the features are from it (see `model.distill`).
        mismatch: then the matching loss of each query of the last call, the mean over heads [B, T], in nats.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.chunk = config.hedgehog.chunk
        self.query_map = FeatureMap(self.heads, self.head_dim)
        self.key_map = FeatureMap(self.kv_heads, self.head_dim)
        self.imitates = False
        self.mismatch: Tensor | None = None

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Attend from each token of x [B, T, d_model] to those before it; the memory's sums gain T tokens."""
        queries, keys, values = self._project(x, rows)
        phi_q, phi_k = self.query_map(queries), self.key_map(keys)
        if self.imitates:
            scale = None if self.log_scale is None else 1.0
            teacher = softmax_attention_weights(queries, keys, rows.starts, scale)
            student = attention_weights_of_features(phi_q, phi_k, rows.starts)
            self.mismatch = distillation_losses(teacher, student).mean(dim=1)
            by_head = values.repeat_interleave(self.heads // self.kv_heads, dim=2).transpose(1, 2)
            mixed = (teacher.to(values.dtype) @ by_head).transpose(1, 2)
        else:
            initial = (memory.tensors["S"], memory.tensors["z"]) if isinstance(memory, States) else None
            mixed, (total, normaliser) = linear_attention(phi_q, phi_k, values, rows.starts, initial, self.chunk)
            if isinstance(memory, States):
                memory.tensors = {"S": total.clone(), "z": normaliser.clone()}
        return self.out(mixed.flatten(2).to(x.dtype))

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The sums S [B, n_kv_heads, 2 d, d] of features times values, and z [B, n_kv_heads, 2 d] of features."""
        shape = (batch, self.kv_heads, 2 * self.head_dim)
        shapes = {"S": (*shape, self.head_dim), "z": shape}
        return States({name: torch.zeros(s, dtype=torch.float32, device=device) for name, s in shapes.items()})
