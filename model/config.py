"""The typed, frozen configuration of a model. It does not import torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from model import architectures
from model.mixer_config import (
    AttentionConfig,
    GSSConfig,
    H3Config,
    HedgehogConfig,
    MehtaConfig,
    SSDConfig,
    TaipanConfig,
    require,
)

__all__ = [
    "BRANCHES",
    "AttentionConfig",
    "Branch",
    "GSSConfig",
    "H3Config",
    "HedgehogConfig",
    "MehtaConfig",
    "ModelConfig",
    "SSDConfig",
    "TaipanConfig",
]

Branch = Literal["gss", "attention", "ffn"]

BRANCHES: tuple[Branch, ...] = ("gss", "attention", "ffn")
"""Order of the parallel branches wherever they are stacked (Table 9 of the paper uses the same)."""


class ModelConfig(BaseModel):
    """A language model. One field, `architecture`, chooses the family; a field that it has no use for is ignored.

    Attributes:
        architecture: "pha", the Parallel Hybrid Architecture (arXiv 2606.16093, Section 3); "transformer", pre-norm
            attention and SwiGLU; "mamba2" (arXiv 2405.21060); "gss" (2206.13947) and "h3" (2212.14052), also with
            attention between as "gss-hybrid" and "h3-hybrid"; "hedgehog" (2402.04347); "taipan" (2410.18572).
            `model.architectures` says what layers each has.
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
        branches: `pha`: which branches there are, whatever the order here; the paper's Table 7 takes some away. The
            main FFN stays in "parallel"; in "sequential", "ffn" is the one FFN.
        composition: `pha`: "parallel" is Figure 1; "sequential" (Table 6) runs attention, GSS and one FFN of the
            main size one after another, each with a norm and a residual. At 768 x 12 that counts 181M parameters
            where the table has 185.8M; with both FFNs it would be 208M.
        mixing: `pha`, parallel: how the branches are weighed, see `model.mixing.Mixing`.
        main_residual: `pha`, parallel: the path around the main FFN, see `model.block.ParallelBlock`.
        in_projections: `pha`, parallel: "packed" reads the stream for all branches in one matrix product; "separate"
            gives each branch a matrix of its own. The model is the same up to rounding; names of weights differ.
        embedding_init_std: standard deviation of the embedding; None is the rule in `model.init`.
        embedding_scale: factor on embedded tokens: "sqrt" is sqrt(d_model), as the paper of `pha` says; "none" is 1, as
            in GPT-2 and Mamba-2, whose rule in `model.init` is another. "sqrt" learns faster at small widths.
        attention, gss, ssd, mehta, h3, hedgehog, taipan: the mixers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: architectures.Name = "pha"
    vocab_size: int | None = None
    d_model: int
    n_layers: int
    n_heads: int = 8
    n_kv_heads: int = 2
    ffn_main: float = 2.0
    ffn_aux: float = 0.67
    ffn_multiple_of: int = 32
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0
    cosine_scale_init: float = 10.0
    cosine_scale_max: float = 100.0
    branches: tuple[Branch, ...] = BRANCHES
    composition: Literal["parallel", "sequential"] = "parallel"
    mixing: Literal["softplus", "softmax", "mean", "per_channel", "token_gate"] = "softplus"
    main_residual: Literal["normed", "raw", "none"] = "normed"
    in_projections: Literal["packed", "separate"] = "packed"
    embedding_init_std: float | None = None
    embedding_scale: Literal["sqrt", "none"] = "sqrt"
    attention: AttentionConfig = AttentionConfig()
    gss: GSSConfig = GSSConfig()
    ssd: SSDConfig = SSDConfig()
    mehta: MehtaConfig = MehtaConfig()
    taipan: TaipanConfig = TaipanConfig()
    h3: H3Config = H3Config()
    hedgehog: HedgehogConfig = HedgehogConfig()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "ffn_multiple_of"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be at least 1.")
        require(
            self.vocab_size is None or self.vocab_size >= 2,
            f"vocab_size is {self.vocab_size}; it must be at least 2, or null to take it from the dataset.",
        )
        require(
            0 < len(self.branches) == len(set(self.branches)),
            f"branches is {list(self.branches)}; it must name at least one of {', '.join(BRANCHES)}, each once.",
        )
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        parts = architectures.parts(self)
        if parts & {"attention", "hedgehog", "selective"}:
            require(
                self.d_model % self.n_heads == 0,
                f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads}), so that the heads are "
                "equal.",
            )
            require(
                self.n_heads % self.n_kv_heads == 0,
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads}), so that each "
                "key and value head serves the same number of query heads.",
            )
            require(
                self.head_dim % 2 == 0 or self.attention.positions == "none" or "attention" not in parts,
                f"the head size d_model / n_heads is {self.head_dim}; rotary embeddings turn "
                "pairs of channels, so it must be even.",
            )
        if "ssd" in parts or ("gss" in parts and self.gss.kind == "ssd"):
            require(
                self.ssd_size % self.ssd.head_dim == 0,
                f"ssd.expand * d_model ({self.ssd_size}) must be a multiple of ssd.head_dim ({self.ssd.head_dim}), "
                "so that the heads are equal.",
            )
            require(
                self.ssd_heads % self.ssd.groups == 0,
                f"the number of SSD heads ({self.ssd_heads}) must be a multiple of ssd.groups ({self.ssd.groups}), so "
                "that each group serves the same number of heads.",
            )
        return self

    @model_validator(mode="after")
    def _check_hybrids(self) -> Self:
        chosen = self.h3.attention_layers
        if self.architecture == "h3-hybrid" and chosen is not None:
            require(
                0 < len(chosen) == len(set(chosen)) and all(0 <= index < self.n_layers for index in chosen),
                f"h3.attention_layers is {list(chosen)}; it must name at least one layer, each once, from 0 to "
                f"n_layers - 1 = {self.n_layers - 1}.",
            )
        require(
            self.architecture not in ("h3", "h3-hybrid") or self.d_model % self.h3.head_dim == 0,
            f"d_model ({self.d_model}) must be a multiple of h3.head_dim ({self.h3.head_dim}), so that the heads are "
            "equal.",
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
            require(value is None or value > 0, f"{name} is {value}; it must be above 0.")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be at least 0 and below 1.")
        require(
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
    def cosine(self) -> bool:
        """Whether attention scores are scaled cosines."""
        return (self.attention.scores or ("cosine" if self.architecture == "pha" else "plain")) == "cosine"

    @property
    def mixed_branches(self) -> tuple[Branch, ...]:
        """The branches that a mixture weighs, in the order of `BRANCHES`; empty where nothing is mixed."""
        if self.architecture != "pha" or self.composition != "parallel" or len(self.branches) < 2:
            return ()
        return tuple(branch for branch in BRANCHES if branch in self.branches)

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

    @property
    def ssd_size(self) -> int:
        """Inner channels of the Mamba-2 mixer."""
        return max(1, round(self.ssd.expand * self.d_model))

    @property
    def ssd_heads(self) -> int:
        """Heads of the Mamba-2 mixer."""
        return self.ssd_size // self.ssd.head_dim

    @property
    def mehta_narrow_size(self) -> int:
        """Channels of the recurrent stream of Mehta's gated state space."""
        return max(1, round(self.mehta.narrow * self.d_model))

    @property
    def mehta_wide_size(self) -> int:
        """Channels of its gated stream."""
        return max(1, round(self.mehta.expansion * self.d_model))

    def _round(self, expansion: float) -> int:
        multiple = self.ffn_multiple_of
        return max(1, round(expansion * self.d_model / multiple)) * multiple
