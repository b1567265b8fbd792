"""The mixer of Mamba-2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import architectures
from model.cache import Memory, States
from model.config import ModelConfig
from model.conv import causal_conv
from model.mixer import ROWS, Mixer
from model.norm import GatedRMSNorm
from model.rows import Rows
from model.ssd import ssd


class Mamba2(Mixer):
    """A short convolution, state space duality, and a gate (arXiv 2405.21060, Section 7; `modules/mamba2.py`).

        z, x, B, C, dt = W_in u                               [d_in, d_in, G N, G N, H]
        x, B, C = silu(conv(x, B, C))                         causal, one filter a channel
        dt = softplus(dt + dt_bias),  A = -exp(A_log)         one step and one rate a head
        y = SSD(x, dt, A, B, C) + D x
        out = W_out GatedRMSNorm(y, z)

    Steps, decays, states and the skip are float32 under any autocast or parameter dtype. A head's memory is
    1 / (dt |A|) tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings = config.ssd
        self.size, self.heads, self.chunk = config.ssd_size, config.ssd_heads, settings.chunk
        self.groups, self.state, self.taps = settings.groups, settings.state, settings.conv
        self.mapped = 2 * self.groups * self.state  # channels of B and C
        convolved = self.size + self.mapped
        self.in_proj = nn.Linear(config.d_model, self.size + convolved + self.heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(convolved, self.taps))
        self.conv_bias = nn.Parameter(torch.empty(convolved))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = GatedRMSNorm(self.size, config.norm_eps, self.groups)
        self.out_proj = nn.Linear(self.size, config.d_model, bias=False)

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Map each row [B, T, d_model]; the memory's states enter and the last ones replace them."""
        states = memory.tensors if isinstance(memory, States) else {}
        gate, mixed, step = self.in_proj(x).split([self.size, self.size + self.mapped, self.heads], dim=-1)
        mixed, conv_state = causal_conv(mixed, self.conv_weight, self.conv_bias, rows.starts, states.get("conv"))
        inner, b, c = F.silu(mixed).split([self.size, self.mapped // 2, self.mapped // 2], dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        inner = inner.to(wide).unflatten(-1, (self.heads, -1))
        y, state = ssd(
            inner,
            F.softplus(step.to(wide) + self.dt_bias.to(wide)),
            -torch.exp(self.A_log.to(wide)),
            b.unflatten(-1, (self.groups, self.state)),
            c.unflatten(-1, (self.groups, self.state)),
            rows.starts,
            states.get("ssd"),
            self.chunk,
        )
        if isinstance(memory, States):
            memory.tensors = {"conv": conv_state, "ssd": state}
        y = torch.addcmul(y, inner, self.D.to(wide)[:, None])
        return self.out_proj(self.norm(y.flatten(2), gate).to(x.dtype))

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The last inputs of the convolution [B, taps - 1, d_in + 2 G N] and the states [B, H, P, N]."""
        shapes = {
            "conv": (batch, self.taps - 1, self.conv_bias.shape[0]),
            "ssd": (batch, self.heads, self.size // self.heads, self.state),
        }
        return States({name: torch.zeros(shape, dtype=torch.float32, device=device) for name, shape in shapes.items()})

    def initialise(self, config: ModelConfig) -> None:
        """As `mamba_ssm` does: torch's uniform linear maps and filters, steps log-uniform, rates uniform.

        The output map is divided by the square root of the number of residual additions.
        """
        settings = config.ssd
        nn.init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight.div_(math.sqrt(architectures.residual_count(config)))
        bound = 1 / math.sqrt(self.taps)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)
        low, high = math.log(settings.dt_min), math.log(settings.dt_max)
        step = torch.exp(low + (high - low) * torch.rand_like(self.dt_bias)).clamp(min=settings.dt_floor)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        nn.init.uniform_(self.A_log, settings.a_min, settings.a_max)
        self.A_log.log_()
        nn.init.ones_(self.D)
