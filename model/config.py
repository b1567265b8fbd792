"""The typed, frozen configuration of a model. It does not import torch."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

BRANCHES = ("gss", "attention", "ffn")
"""Order of the parallel branches wherever they are stacked (Table 9 of the paper uses the same)."""


def _require(condition: bool, sentence: str) -> None:
    """Raise ValueError (which pydantic reports with the field's place) unless `condition` holds."""
    if not condition:
        raise ValueError(sentence)


class GSSConfig(BaseModel):
    """The gated state space branch, h_t = sigmoid(W_g x_t) * (A h_{t-1} + B x_t) (arXiv 2606.16093, Eq. 2).

    The paper gives neither the state size nor the output map. The parameter totals of its Table 1 leave about
    10 d^2 weights a layer for this branch. `expansion` = 2.5 spends them on four d x H matrices (input, gate,
    filter, output) with H = 2.5 d. The other reading, five d x 2d matrices, needs a second input or output
    map that Figure 1 does not draw, for a state that is a fifth smaller.

    Attributes:
        expansion: H / d_model.
        decay: "real" gives each channel a learned decay exp(-softplus(lambda)), the diagonal of A; "none"
            sets A = 1 and leaves all forgetting to the gate.
        timescale_min: shortest memory at initialisation, in tokens (a = exp(-1/timescale)).
        timescale_max: longest memory at initialisation, in tokens; channels are spread log-uniformly between.
        input_scale: "none" is Eq. 2 as printed; "rglru" multiplies the input by sqrt(1 - a^2), which keeps
            the state's variance independent of the time scale (RG-LRU, arXiv 2402.19427, Eq. 4); it learns
            slightly faster in short runs (0.02 nats after 300 steps).
        chunk: tokens in a chunk of the parallel scan. It changes speed, and nothing else beyond rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    expansion: float = 2.5
    decay: Literal["none", "real"] = "real"
    timescale_min: float = 4.0
    timescale_max: float = 2000.0
    input_scale: Literal["none", "rglru"] = "none"
    chunk: int = 32

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.expansion > 0, f"gss.expansion is {self.expansion}; it must be above 0, such as 2.5.")
        _require(self.chunk >= 1, f"gss.chunk is {self.chunk}; it must be at least 1 token, such as 32.")
        _require(
            0 < self.timescale_min <= self.timescale_max < math.inf,
            f"gss.timescale_min is {self.timescale_min} and gss.timescale_max is {self.timescale_max}; both "
            "must be above 0 tokens, and the minimum may not exceed the maximum.",
        )
        return self


class ModelConfig(BaseModel):
    """A Parallel Hybrid Architecture language model (arXiv 2606.16093, Section 3).

    Attributes:
        architecture: the family; "pha" is the only one so far.
        vocab_size: tokens in the vocabulary; None lets the trainer take it from the dataset.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; each serves n_heads / n_kv_heads query heads (GQA, arXiv 2305.13245).
        ffn_main: expansion of the sequential SwiGLU, hidden size / d_model.
        ffn_aux: expansion of the parallel, auxiliary SwiGLU.
        ffn_multiple_of: both hidden sizes are rounded to the nearest multiple of this (at least one
            multiple).
        rope_theta: base of the rotary frequencies (arXiv 2104.09864).
        norm_eps: epsilon of every RMSNorm.
        dropout: probability on each branch output and on the main FFN's output (0.1 in the paper).
        cosine_scale_init: initial temperature of the scaled-cosine attention, one learned logarithm a head.
        cosine_scale_max: its upper clamp (Swin Transformer V2, arXiv 2111.09883, Section 3.3).
        main_residual: the path around the main FFN, see `model.block.Block`.
        embedding_init_std: standard deviation of the embedding; None is the rule in `model.init`.
        gss: the gated state space branch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: Literal["pha"] = "pha"
    vocab_size: int | None = None
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_main: float = 2.0
    ffn_aux: float = 0.67
    ffn_multiple_of: int = 32
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0
    cosine_scale_init: float = 10.0
    cosine_scale_max: float = 100.0
    main_residual: Literal["normed", "raw", "none"] = "normed"
    embedding_init_std: float | None = None
    gss: GSSConfig = GSSConfig()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "ffn_multiple_of"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} is {value}; it must be at least 1.")
        _require(
            self.vocab_size is None or self.vocab_size >= 2,
            f"vocab_size is {self.vocab_size}; it must be at least 2, or null to take it from the dataset.",
        )
        _require(
            self.d_model % self.n_heads == 0,
            f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads}), so that the heads are equal.",
        )
        _require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads}), so that each "
            "key and value head serves the same number of query heads.",
        )
        _require(
            (self.d_model // self.n_heads) % 2 == 0,
            f"the head size d_model / n_heads is {self.d_model // self.n_heads}; rotary embeddings turn "
            "pairs of channels, so it must be even.",
        )
        return self

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for name in (
            "ffn_main",
            "ffn_aux",
            "rope_theta",
            "norm_eps",
            "cosine_scale_init",
            "embedding_init_std",
        ):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}; it must be above 0.")
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be at least 0 and below 1.")
        _require(
            self.cosine_scale_init <= self.cosine_scale_max,
            f"cosine_scale_init ({self.cosine_scale_init}) may not exceed cosine_scale_max "
            f"({self.cosine_scale_max}), because a clamped temperature gets no gradient.",
        )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.n_heads

    @property
    def deepnorm_alpha(self) -> float:
        """Factor on the residual path, (2L)^(1/4) (arXiv 2606.16093, Section 3; DeepNet, 2203.00555)."""
        return (2 * self.n_layers) ** 0.25

    @property
    def deepnorm_beta(self) -> float:
        """Factor on the initial value, output and FFN weights, (8L)^(-1/4) (DeepNet, arXiv 2203.00555)."""
        return (8 * self.n_layers) ** -0.25

    @property
    def ffn_main_size(self) -> int:
        """Hidden channels of the main SwiGLU."""
        return self._round(self.ffn_main)

    @property
    def ffn_aux_size(self) -> int:
        """Hidden channels of the auxiliary SwiGLU."""
        return self._round(self.ffn_aux)

    @property
    def gss_size(self) -> int:
        """State channels H of the gated state space branch."""
        return max(1, round(self.gss.expansion * self.d_model))

    def _round(self, expansion: float) -> int:
        multiple = self.ffn_multiple_of
        return max(1, round(expansion * self.d_model / multiple)) * multiple
