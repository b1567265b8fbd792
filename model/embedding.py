"""The embedding that is also the output head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.init import embedding_std
from model.loss import linear_cross_entropy


class TiedEmbedding(nn.Module):
    """One matrix [V, d] that embeds tokens and scores them.

    Both uses pass through this module's own forward: sharding engines such as ZeRO stage 3 gather a parameter
    around the forward of the module that owns it, and would not see a use of the matrix anywhere else.

    Args:
        vocab_size: V.
        d_model: d.
        scale: factor on embedded tokens; sqrt(d) in arXiv 2606.16093, Section 3.
    """

    def __init__(self, vocab_size: int, d_model: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.scale = scale

    def forward(
        self, x: Tensor, mode: Literal["embed", "logits", "loss"] = "embed", labels: Tensor | None = None
    ) -> Tensor:
        """Use the matrix in one of three ways.

        - "embed": tokens x [B, T] to vectors [B, T, d].
        - "logits": hidden x [B, T, d] to logits [B, T, V], float32.
        - "loss": hidden x [B, T, d] and labels [B, T] to the sum of cross-entropies over labels that are not
          -100.
        """
        if mode == "embed":
            return F.embedding(x, self.weight) * self.scale
        if mode == "logits":
            logits = F.linear(x, self.weight)
            return logits.to(torch.promote_types(logits.dtype, torch.float32))
        assert labels is not None
        return linear_cross_entropy(x.flatten(0, -2), self.weight, labels.flatten())

    def initialise(self, config: ModelConfig) -> None:
        """See `embedding_std`."""
        nn.init.normal_(self.weight, std=embedding_std(config))
