"""The gated state space of Mehta et al."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import Memory, States
from model.config import ModelConfig
from model.init import fill
from model.lti import complex_lambda, lti, zero_order_hold
from model.mixer import ROWS, Mixer
from model.rows import Rows

MODES = 64
"""Frequencies at initialisation are those of S4D-Lin with so many states a channel."""


class MehtaGSS(Mixer):
    """A diagonal state space in a narrow stream, and a gate in a wide one (arXiv 2206.13947, Section 3.2).

        U = gelu(X W_1)  [T, H],   V = gelu(X W_2)  [T, F]
        Y = DSS(U) + D U           Lambda [N] for all channels, step 1
        O = ((Y W_3) * V) W_4

    The layers of `gss` add RMSNorm before it (LayerNorm in the paper) and the residual path; maps have no bias.
    Unlike Eq. 2 of arXiv 2606.16093 the recurrence does not look at the tokens: only the output is gated. It runs in
    chunks that begin at document starts, so that states end with their documents, which a convolution by FFT cannot
    do. States and kernels are float32 under any autocast or parameter dtype.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        narrow, wide, states = config.mehta_narrow_size, config.mehta_wide_size, config.mehta.state
        self.chunk = config.mehta.chunk
        self.narrow = nn.Linear(config.d_model, narrow, bias=False)
        self.gate = nn.Linear(config.d_model, wide, bias=False)
        self.widen = nn.Linear(narrow, wide, bias=False)
        self.out_proj = nn.Linear(wide, config.d_model, bias=False)
        self.log_rate = nn.Parameter(torch.empty(states))
        self.frequency = nn.Parameter(torch.empty(states))
        self.C = nn.Parameter(torch.empty(narrow, states, 2))
        self.D = nn.Parameter(torch.empty(narrow))

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Map each row [B, T, d_model]; the memory's state enters and the last one replaces it."""
        initial = torch.view_as_complex(memory.tensors["state"]) if isinstance(memory, States) else None
        log_a, weight = self._discrete()
        y, state = lti(F.gelu(self.narrow(x)), log_a, weight, self.D, rows.starts, initial, self.chunk)
        if isinstance(memory, States):
            memory.tensors["state"] = torch.view_as_real(state).clone()
        return self.out_proj(self.widen(y.to(x.dtype)) * F.gelu(self.gate(x)))

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The states [B, H, N, 2], real and imaginary parts."""
        return States({"state": torch.zeros(batch, *self.C.shape, dtype=torch.float32, device=device)})

    def initialise(self, config: ModelConfig) -> None:
        """Draw decays and frequencies by `mehta.init`, and outputs of the size of inputs.

        "random" is the paper's: the logarithms of rates and frequencies are standard normal at step 1. Half of the
        states then forget within a token, and hardly one in a thousand lasts 20.

        "s4d_lin": S4D-Lin (arXiv 2206.11893) has Lambda = -1/2 + i pi n and a step a channel, log-uniform. Since all
        channels share their states here, each state draws a step and an n of its own; n is kept to frequencies below
        pi, the highest that a sequence has.

        With both, C makes the kernel's energy 1; plain normal numbers would make it that of all states together.
        """
        settings = config.mehta
        fill(self.narrow.weight, config, "in")
        fill(self.gate.weight, config, "value")
        fill(self.widen.weight, config, "value")
        fill(self.out_proj.weight, config, "out")
        if settings.init == "random":
            nn.init.normal_(self.log_rate)
            nn.init.normal_(self.frequency)
            self.frequency.exp_()
        else:
            low, high = math.log(settings.dt_min), math.log(settings.dt_max)
            step = torch.exp(low + (high - low) * torch.rand_like(self.log_rate))
            self.log_rate.copy_(torch.log(step / 2))
            self.frequency.copy_(math.pi * step * torch.rand_like(step) * (1 / step).clamp(max=MODES))
        nn.init.normal_(self.C)
        log_a, weight = self._discrete()
        # Each state adds |weight|^2 / (2 (1 - |a|^2)) to the sum over lags of the kernel's square; of one part of a
        # complex normal number, the mean square is 1.
        energy = weight.abs().square().mean(dim=0) / (-2 * torch.expm1(2 * log_a.real[0]))
        self.C.mul_((self.C.shape[1] * energy).rsqrt()[:, None])
        nn.init.ones_(self.D)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log a [1, N] and weight [H, N], complex, for a step of 1."""
        lam = complex_lambda(self.log_rate, self.frequency)[None]
        # Not view_as_complex: sharding engines lay parameters into one buffer, where C may begin at an odd place.
        output = torch.complex(*self.C.to(lam.real.dtype).unbind(-1))
        return zero_order_hold(lam, lam.real.new_ones(1), None, output, pairs=False)
