"""The typed settings of each mixer. Like all configuration, without torch."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator


def require(condition: bool, sentence: str) -> None:
    """Raise ValueError (which pydantic reports with the field's place) unless `condition` holds."""
    if not condition:
        raise ValueError(sentence)


class MixerConfig(BaseModel):
    """A frozen section; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AttentionConfig(MixerConfig):
    """What the attention of any architecture scores and sees. Heads and temperatures are fields of the model.

    Attributes:
        scores: "cosine" normalises queries and keys and learns a temperature a head; "plain" divides their
            products by sqrt(head_dim) (arXiv 1706.03762, Eq. 1); None is the architecture's own: cosine in
            `pha`, as its paper says, and plain elsewhere.
        window: a token sees itself and the `window` - 1 before it, which bounds the cache at any length; None
            is every earlier token of its document.
        positions: "rotary" turns queries and keys (arXiv 2104.09864); "none" leaves the order of tokens to the
            causal mask and to the recurrences beside the attention.
    """

    scores: Literal["cosine", "plain"] | None = None
    window: int | None = None
    positions: Literal["rotary", "none"] = "rotary"

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(
            self.window is None or self.window >= 1,
            f"attention.window is {self.window}; it must be at least 1 token, or null for no limit.",
        )
        return self


class GSSConfig(MixerConfig):
    """The gated state space branch, h_t = sigmoid(W_g x_t) * (A h_{t-1} + B x_t) (arXiv 2606.16093, Eq. 2).

    The paper gives neither the state size nor the output map. The parameter totals of its Table 1 leave about
    10 d^2 weights a layer for this branch. `expansion` = 2.5 spends them on four d x H matrices (input, gate,
    filter, output) with H = 2.5 d. The other reading, five d x 2d matrices, needs a second input or output
    map that Figure 1 does not draw, for a state that is a fifth smaller.

    Attributes:
        kind: "gated" is that recurrence; "ssd" puts a Mamba-2 mixer in its place, with the settings of
            `SSDConfig`, and "mehta" the layer of Mehta et al., with those of `MehtaConfig` (the other fields here
            are then without effect).
        expansion: H / d_model.
        decay: "real" gives each channel a learned decay exp(-softplus(lambda)), the diagonal of A; "none"
            sets A = 1 and leaves all forgetting to the gate.
        timescale_min: shortest memory at initialisation, in tokens (a = exp(-1/timescale)).
        timescale_max: longest memory at initialisation, in tokens; channels are spread log-uniformly between.
        input_scale: "none" is Eq. 2 as printed; "rglru" multiplies the input by sqrt(1 - a^2), which keeps
            the state's variance independent of the time scale (RG-LRU, arXiv 2402.19427, Eq. 4); it learns
            slightly faster in short runs (0.02 nats after 300 steps).
        gates: "positive" is Eq. 2's sigmoid in (0, 1); "signed" lets the recurrence's gate range over (-1, 1).
        chunk: tokens in a chunk of the parallel scan. It changes speed, and nothing else beyond rounding.
    """

    kind: Literal["gated", "ssd", "mehta"] = "gated"
    expansion: float = 2.5
    decay: Literal["none", "real"] = "real"
    timescale_min: float = 4.0
    timescale_max: float = 2000.0
    input_scale: Literal["none", "rglru"] = "none"
    gates: Literal["positive", "signed"] = "positive"
    chunk: int = 32

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.expansion > 0, f"gss.expansion is {self.expansion}; it must be above 0, such as 2.5.")
        require(self.chunk >= 1, f"gss.chunk is {self.chunk}; it must be at least 1 token, such as 32.")
        require(
            0 < self.timescale_min <= self.timescale_max < math.inf,
            f"gss.timescale_min is {self.timescale_min} and gss.timescale_max is {self.timescale_max}; both "
            "must be above 0 tokens, and the minimum may not exceed the maximum.",
        )
        return self


class SSDConfig(MixerConfig):
    """The mixer of Mamba-2 (arXiv 2405.21060; defaults of `mamba_ssm/modules/mamba2.py`, except `chunk`).

    Attributes:
        expand: inner channels / d_model.
        head_dim: channels of a head, P; each head has one decay.
        state: size of a channel's state, N.
        groups: B and C maps, G; each serves heads / groups heads.
        conv: taps of the short causal convolution over x, B and C.
        chunk: tokens of a chunk of the scan. It changes speed, and nothing else beyond rounding. The paper's GPU
            kernels take 256; on a CPU a small model is nearly twice as fast with 64, and a large one alike.
        dt_min, dt_max: steps at initialisation are drawn log-uniformly between them.
        dt_floor: and are at least this.
        a_min, a_max: decay rates at initialisation are drawn uniformly between them.
    """

    expand: float = 2.0
    head_dim: int = 64
    state: int = 128
    groups: int = 1
    conv: int = 4
    chunk: int = 64
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    a_min: float = 1.0
    a_max: float = 16.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("head_dim", "state", "groups", "conv", "chunk"):
            value = getattr(self, name)
            require(value >= 1, f"ssd.{name} is {value}; it must be at least 1.")
        for name in ("expand", "dt_floor"):
            value = getattr(self, name)
            require(value > 0, f"ssd.{name} is {value}; it must be above 0.")
        for name in ("dt", "a"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            require(
                0 < low <= high < math.inf,
                f"ssd.{name}_min is {low} and ssd.{name}_max is {high}; both must be above 0, and the minimum may "
                "not exceed the maximum.",
            )
        return self


class TaipanConfig(MixerConfig):
    """Mamba-2 blocks with selective attention between them (arXiv 2410.18572).

    The paper gives `every`, `window` and `budget`; depths and widths, `tau`, the budget's weight and its warm-up are
    not in it. The heads are those of the model, and the Mamba-2 mixers those of `SSDConfig`.

    Attributes:
        every: a selective layer follows so many Mamba-2 blocks, K; `n_layers` counts both.
        block_ffn: Mamba-2 blocks too are followed by a SwiGLU ("ffn_main"), as the paper describes its baselines;
            False leaves it to the selective layers.
        window: a selected token sees itself and the `window` - 1 before it, selected or not.
        budget: share of tokens that should attend, C.
        budget_weight: factor on the budget loss (C - share)^2, lambda. At 10 a percent too many costs what an
            improvement of 0.002 nats a token gains.
        budget_warmup: steps over which that factor rises to its value.
        tau: temperature of the soft choice that the gate's gradient sees.
        noise: Gumbel noise in training; False trains with the likelier choice, as evaluation does.
        noise_steps: steps over which the noise shrinks to nothing, so that training goes on with the choice that
            evaluation makes; None keeps it whole to the end, as the paper seems to. The noise holds the budget by
            chance where the gate does not tell tokens apart, and without it none of them attends then.
    """

    every: int = 6
    block_ffn: bool = True
    window: int = 2048
    budget: float = 0.15
    budget_weight: float = 10.0
    budget_warmup: int = 100
    tau: float = 1.0
    noise: bool = True
    noise_steps: int | None = 1000

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("every", "window"):
            value = getattr(self, name)
            require(value >= 1, f"taipan.{name} is {value}; it must be at least 1.")
        for name in ("budget_weight", "budget_warmup"):
            value = getattr(self, name)
            require(value >= 0, f"taipan.{name} is {value}; it must be at least 0.")
        require(
            0 < self.budget < 1,
            f"taipan.budget is {self.budget}; it is a share of the tokens and must lie between 0 and 1, such as 0.15.",
        )
        require(self.tau > 0, f"taipan.tau is {self.tau}; it must be above 0.")
        require(
            self.noise_steps is None or self.noise_steps >= 1,
            f"taipan.noise_steps is {self.noise_steps}; it must be at least 1, or null to keep the noise.",
        )
        return self

    def budget_weight_at(self, step: int) -> float:
        """Factor on the budget loss in a step, counted from 0."""
        return self.budget_weight * (min(1.0, (step + 1) / self.budget_warmup) if self.budget_warmup else 1.0)

    def noise_at(self, step: int) -> float:
        """Factor on the Gumbel noise in a step, counted from 0."""
        if not self.noise:
            return 0.0
        return 1.0 if self.noise_steps is None else max(0.0, 1.0 - step / self.noise_steps)


class MehtaConfig(MixerConfig):
    """The gated state space of Mehta et al. (arXiv 2206.13947; sizes as at their d_model of 1,024).

    Attributes:
        narrow: channels of the recurrent stream / d_model, H.
        expansion: channels of the gated stream / d_model, F.
        state: states of a channel, N; all channels share their decays and frequencies.
        chunk: tokens of a chunk of the scan. It changes speed, and nothing else beyond rounding.
        dt_min, dt_max: states begin with memories of 2 / dt_max to 2 / dt_min tokens (`init` "s4d_lin").
        init: "s4d_lin" spreads memories and frequencies as S4D-Lin does; "random" is the paper's draw, which
            forgets within a few tokens. See `model.mehta.MehtaGSS.initialise`.
        attention_every: `gss-hybrid`: layers k, 2 k, 3 k ... (from 1) are Transformer layers, and with fewer than k
            layers the last. The paper has every 4th; its attention sees chunks of 512 tokens, for which
            `attention.window` stands here.
    """

    narrow: float = 0.25
    expansion: float = 4.0
    state: int = 512
    chunk: int = 64
    dt_min: float = 1e-3
    dt_max: float = 0.1
    init: Literal["s4d_lin", "random"] = "s4d_lin"
    attention_every: int = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("narrow", "expansion"):
            value = getattr(self, name)
            require(value > 0, f"mehta.{name} is {value}; it must be above 0.")
        for name in ("state", "chunk", "attention_every"):
            value = getattr(self, name)
            require(value >= 1, f"mehta.{name} is {value}; it must be at least 1.")
        require(
            0 < self.dt_min <= self.dt_max < math.inf,
            f"mehta.dt_min is {self.dt_min} and mehta.dt_max is {self.dt_max}; both must be above 0, and the minimum "
            "may not exceed the maximum.",
        )
        return self


class H3Config(MixerConfig):
    """H3 (arXiv 2212.14052; defaults of HazyResearch/H3).

    Attributes:
        head_dim: channels of a head. Keys and values of a head meet as an outer product, so that each channel
            carries head_dim sequences through the diagonal state space; 1 in all published models.
        state: complex states of a sequence, one of each conjugate pair (32 is "d_state 64").
        shift: taps of the shift state space.
        chunk: tokens of a chunk of both scans. It changes speed, and nothing else beyond rounding.
        dt_min, dt_max: steps at initialisation are drawn log-uniformly between them, one a head.
        attention_layers: `h3-hybrid`: the layers, from 0, that have attention in place of H3; None is the middle one,
            n_layers / 2: layer 6 of 12, as in the published 125M example. Safari's runs on WikiText-103 have [1, 8].
    """

    head_dim: int = 1
    state: int = 32
    shift: int = 64
    chunk: int = 64
    dt_min: float = 1e-3
    dt_max: float = 0.1
    attention_layers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("head_dim", "state", "shift", "chunk"):
            value = getattr(self, name)
            require(value >= 1, f"h3.{name} is {value}; it must be at least 1.")
        require(
            0 < self.dt_min <= self.dt_max < math.inf,
            f"h3.dt_min is {self.dt_min} and h3.dt_max is {self.dt_max}; both must be above 0, and the minimum may "
            "not exceed the maximum.",
        )
        return self


class HedgehogConfig(MixerConfig):
    """Linear attention under Hedgehog's features (arXiv 2402.04347). Heads and scores are those of attention.

    Attributes:
        chunk: tokens of a chunk of linear attention. It changes speed, and nothing else beyond rounding.
    """

    chunk: int = 64

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.chunk >= 1, f"hedgehog.chunk is {self.chunk}; it must be at least 1 token, such as 64.")
        return self
