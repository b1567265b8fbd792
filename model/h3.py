"""The mixer of H3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.cache import Memory, States
from model.config import ModelConfig
from model.init import fill
from model.lti import complex_lambda, lti, s4d_lin, zero_order_hold
from model.mixer import ROWS, Mixer
from model.rows import Rows
from model.shift import shift_ssm


class H3(Mixer):
    """Queries read a state space of keys times values (arXiv 2212.14052, Section 3.1 and Algorithm 1).

        q, k, v = W x                                        [d_model] each
        K = SSM_shift(k) + D_shift k                         a filter of `shift` taps a channel
        S = SSM_diag(K v^T) + D (K v^T)                      for each head, [head_dim, head_dim]
        z = W_o (q^T S)

    With heads of one channel, as published, K v^T is K * v. SSM_diag is S4D: a step a head and complex states of its
    own, discretised by zero-order hold (the published code's default is the bilinear rule). Its input and output
    maps are one parameter, C, because only their product counts. Maps have no bias, as elsewhere in this package and
    unlike the published code. Both state spaces are products over chunks, so that a later token changes no bit of
    an earlier one. They are float32 under any autocast or parameter dtype.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings = config.h3
        self.head_dim, self.chunk = settings.head_dim, settings.chunk
        heads = config.d_model // settings.head_dim
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.shift_C = nn.Parameter(torch.empty(config.d_model, settings.shift))
        self.shift_D = nn.Parameter(torch.empty(config.d_model))
        self.log_step = nn.Parameter(torch.empty(heads))
        self.log_rate = nn.Parameter(torch.empty(heads, settings.state))
        self.frequency = nn.Parameter(torch.empty(heads, settings.state))
        self.C = nn.Parameter(torch.empty(heads, settings.state, 2))
        self.D = nn.Parameter(torch.empty(heads))
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Map each row [B, T, d_model]; the memory's states enter and the last ones replace them."""
        states = memory.tensors if isinstance(memory, States) else {}
        queries, keys, values = self.in_proj(x).chunk(3, dim=-1)
        keys, last_keys = shift_ssm(
            keys, self.shift_C, self.shift_D, rows.starts, states.get("keys"), self.chunk, causal_bits=True
        )
        initial = torch.view_as_complex(states["state"]).flatten(0, 1) if states else None
        y, state = self._diagonal(keys, values.to(keys.dtype), rows.starts, initial)
        if isinstance(memory, States):
            state = torch.view_as_real(state).unflatten(0, (len(x), -1))
            memory.tensors = {"keys": last_keys, "state": state.clone()}
        mixed = (self._by_head(queries).unsqueeze(2) * y).sum(1)  # [B, head_dim, T, heads]
        return self.out_proj(mixed.permute(0, 2, 3, 1).flatten(2).to(x.dtype))

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The last keys [B, shift - 1, d_model] and the states [B, head_dim^2, heads, N, 2], real and imaginary."""
        channels, taps = self.shift_C.shape
        shapes = {"keys": (batch, taps - 1, channels), "state": (batch, self.head_dim**2, *self.C.shape)}
        return States({name: torch.zeros(shape, dtype=torch.float32, device=device) for name, shape in shapes.items()})

    def initialise(self, config: ModelConfig) -> None:
        """As published: filters like those of `nn.Conv1d`, S4D-Lin with log-uniform steps, normal skips and C."""
        settings = config.h3
        for weight in self.in_proj.weight.chunk(3):
            fill(weight, config, "value")
        fill(self.out_proj.weight, config, "out")
        nn.init.kaiming_uniform_(self.shift_C, a=math.sqrt(5))
        nn.init.normal_(self.shift_D)
        nn.init.uniform_(self.log_step, math.log(settings.dt_min), math.log(settings.dt_max))
        lam = s4d_lin(settings.state)
        self.log_rate.copy_((-lam.real).log().expand_as(self.log_rate))
        self.frequency.copy_(lam.imag.expand_as(self.frequency))
        nn.init.normal_(self.C, std=math.sqrt(0.5))
        nn.init.normal_(self.D)

    def _diagonal(
        self, keys: Tensor, values: Tensor, starts: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """SSM_diag of the products of keys and values [B, T, d_model], as [B, key channel, value channel, T, heads].

        The state beside it is [B head_dim^2, heads, N] complex.
        """
        products = self._by_head(keys).unsqueeze(2) * self._by_head(values).unsqueeze(1)
        lam = complex_lambda(self.log_rate, self.frequency)
        # Not view_as_complex: sharding engines lay parameters into one buffer, where C may begin at an odd place.
        output = torch.complex(*self.C.to(lam.real.dtype).unbind(-1))
        log_a, weight = zero_order_hold(lam, self.log_step.to(lam.real.dtype).exp(), None, output)
        if starts is not None:
            starts = starts.repeat_interleave(self.head_dim**2, dim=0)
        y, state = lti(products.flatten(0, 2), log_a, weight, self.D, starts, initial, self.chunk)
        return y.unflatten(0, products.shape[:3]), state

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, T, d_model] as [B, head_dim, T, heads]; the channels of a head lie side by side."""
        return x.unflatten(-1, (-1, self.head_dim)).permute(0, 3, 1, 2)
