"""The gated state space branch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import Memory, States
from model.config import ModelConfig
from model.gated_scan import gated_scan
from model.init import fill
from model.mixer import ROWS, Mixer
from model.rows import Rows


def timescales(config: ModelConfig) -> Tensor:
    """Memory of each state channel at initialisation [H], in tokens, log-uniform, float64."""
    low, high = math.log(config.gss.timescale_min), math.log(config.gss.timescale_max)
    return torch.linspace(low, high, config.gss_size, dtype=torch.float64).exp()


class GatedStateSpace(Mixer):
    """h_t = g_t * (A h_{t-1} + u_t), then a feature filter and an output map.

    This is Eq. 2 and Figure 1 of arXiv 2606.16093, with what they leave open filled in:

        u = W_u x,  g = sigmoid(W_g x + b_g),  a = g * exp(-softplus(lambda))
        h_t = a_t * h_{t-1} + s_t * g_t * u_t
        z = W_o (h * silu(W_f x))

    A is diagonal and in (0, 1]: with a dense A the gate does not commute with it, and no parallel form
    exists. s = 1 is Eq. 2; s = sqrt(1 - a^2) is the input scale of RG-LRU (arXiv 2402.19427). With signed gates
    a = (2 g - 1) * exp(-softplus(lambda)): a token may turn a state's sign, without which no diagonal recurrence
    keeps count modulo two (arXiv 2411.12537). The recurrence is float32 under any autocast or parameter dtype.
    The three input maps share one matrix, rows u, g, f.
    """

    input_map = "in_proj"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.gss_size
        self.chunk = config.gss.chunk
        self.input_scale = config.gss.input_scale
        self.signed = config.gss.gates == "signed"
        self.in_proj = nn.Linear(config.d_model, 3 * size, bias=False)
        self.gate_bias = nn.Parameter(torch.empty(size))
        self.decay = nn.Parameter(torch.empty(size)) if config.gss.decay == "real" else None
        self.out_proj = nn.Linear(size, config.d_model, bias=False)

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Run the recurrence over each row [B, T, d_model]; the memory's state enters and the last one replaces it."""
        projected = self.in_proj(x)
        rate = None
        if self.decay is not None:
            rate = torch.exp(-F.softplus(self.decay.to(torch.promote_types(x.dtype, torch.float32))))
        initial = memory.tensors["state"] if isinstance(memory, States) else None
        scaled = self.input_scale == "rglru"
        y, final = gated_scan(projected, self.gate_bias, rate, rows.starts, initial, self.signed, scaled, self.chunk)
        if isinstance(memory, States):
            memory.tensors["state"] = final.clone()  # a view would keep every state alive
        return self.out_proj(y.to(x.dtype))

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The state [B, H]."""
        return States({"state": torch.zeros(batch, self.gate_bias.shape[0], dtype=torch.float32, device=device)})

    def initialise(self, config: ModelConfig) -> None:
        """Give channel c the decay a = exp(-1 / timescale_c) at W_g x = 0.

        With a zero bias the gate of Eq. 2 is 1/2 and every channel forgets within two tokens, whatever A is. With
        a learned A the gate and A take half of log a each.
        """
        for weight in self.in_proj.weight.chunk(3):
            fill(weight, config, "in")
        fill(self.out_proj.weight, config, "out")
        rate = 1.0 / timescales(config)
        if self.decay is not None:
            rate = rate / 2
            self.decay.copy_(torch.log(torch.expm1(rate)))  # softplus(decay) = rate
        # sigmoid(bias) = exp(-rate), or 2 sigmoid(bias) - 1 where gates have a sign
        odds = torch.log1p(torch.exp(-rate)) if self.signed else -rate
        self.gate_bias.copy_(odds - torch.log(-torch.expm1(-rate)))
