"""One layer: three parallel branches, their mixture, and the main feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import Attention
from model.cache import LayerCache
from model.config import ModelConfig
from model.ffn import SwiGLU
from model.gss import GatedStateSpace
from model.mixing import Mixing
from model.norm import RMSNorm


class Block(nn.Module):
    """The layer of the Parallel Hybrid Architecture (arXiv 2606.16093, Figure 1, Eq. 3 and 4).

        x^ = RMSNorm(x)                                     one norm for all branches
        y  = sum_k w_k RMSNorm_k(branch_k(x^))              GSS, attention, auxiliary SwiGLU
        x' = alpha x + y                                    DeepNorm residual, alpha = (2L)^(1/4)
        h  = RMSNorm(x')
        out = alpha h + SwiGLU(h)                           `main_residual` "normed"

    Figure 1 draws no path around the main FFN. Three readings are offered:

    - "normed" (default) is DeepNorm's own post-norm order, whose residual starts *after* the norm. The stream
      leaves each block with size near alpha, so every layer writes into a stream of the same size.
    - "raw", out = alpha x' + SwiGLU(h), is pre-norm with DeepNorm's factor. The stream grows by alpha twice a
      layer, alpha^(2L) in all (7e8 at L = 14), while what a branch adds stays near 1: the layers after the
      first few can hardly change the output.
    - "none", out = SwiGLU(h), is Figure 1 taken literally; gradients then reach a layer only through every
      FFN above.

    Dropout falls on each normalised branch output and on the main FFN's output.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, eps = config.d_model, config.norm_eps
        self.alpha = config.deepnorm_alpha
        self.main_residual = config.main_residual
        self.norm = RMSNorm(size, eps)
        self.gss = GatedStateSpace(config)
        self.attention = Attention(config)
        self.ffn_aux = SwiGLU(size, config.ffn_aux_size)
        self.norm_gss = RMSNorm(size, eps)
        self.norm_attention = RMSNorm(size, eps)
        self.norm_ffn = RMSNorm(size, eps)
        self.mixing = Mixing()
        self.norm_main = RMSNorm(size, eps)
        self.ffn_main = SwiGLU(size, config.ffn_main_size)
        self.dropout = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Map the stream x [B, T, d_model] to the next one.

        All arguments but the cache are tensors or None and positional, as activation checkpointing wants;
        `cos`, `sin`, `mask` and `keep` are those of `Attention` and `GatedStateSpace`, computed once for all
        layers.
        """
        normed = self.norm(x)
        weights = self.mixing()
        mixed = (
            self.dropout(self.norm_gss(self.gss(normed, keep, cache), weights[0]))
            + self.dropout(self.norm_attention(self.attention(normed, cos, sin, mask, cache), weights[1]))
            + self.dropout(self.norm_ffn(self.ffn_aux(normed), weights[2]))
        )
        x = mixed.add(x, alpha=self.alpha)
        hidden = self.norm_main(x)
        out = self.dropout(self.ffn_main(hidden))
        if self.main_residual == "none":
            return out
        return out.add(hidden if self.main_residual == "normed" else x, alpha=self.alpha)
