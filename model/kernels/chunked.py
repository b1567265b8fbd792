"""A recurrence of matrices with one decay a head, as Triton kernels over chunks of tokens.

    S_t = exp(dt_t a) S_{t-1} + dt_t v_t k_t^T,    y_t = S_t q_t

This is the SSD of Mamba-2 (arXiv 2405.21060, Section 6), where k and q are its B and C, and, without decays, linear
attention (arXiv 2006.16236). The kernels are those of the chunked form: the states that chunks would leave alone, their
passing along the row, and the outputs, from the tokens of the chunk and from the state that enters it; backward, the
same from the row's end, and two kernels for the gradients, one by value heads and one by key heads.

Heads: y has R x `heads`, as many as the larger of q's and v's; v, dt and the states have `heads`, k has `key_heads` and
q has `query_heads`, all of which divide those of y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from model.kernels.chunked_programs import ends_kernel, keys_kernel, output_kernel, pass_kernel, values_kernel
from model.kernels.launch import blocks, launch, power_of_2

CHUNK = 64
"""Tokens of a chunk."""

STATE = 64
"""Channels of k and q that a program holds at a time."""

VALUES = 32
"""Channels of v that the program of the keys' gradients holds at a time."""

PASS = 1024
"""Numbers of a state that a program carries along the row."""


@dataclass(frozen=True)
class _Sizes:
    """Shapes of a call, and what the kernels are told of them."""

    batch: int
    length: int
    outputs: int
    heads: int
    key_heads: int
    query_heads: int
    channels: int
    state: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> _Sizes:
        batch, length, heads, channels = v.shape
        return cls(
            *(batch, length, max(heads, q.shape[2]), heads, k.shape[2], q.shape[2]), channels=channels, state=q.shape[3]
        )

    @property
    def chunks(self) -> int:
        return blocks(self.length, CHUNK)

    def constants(self, dt: Tensor | None, starts: Tensor | None, precision: str) -> dict[str, Any]:
        flags: dict[str, Any] = {
            "DECAY": dt is not None,
            "STARTS": starts is not None,
            "PRECISION": precision,
            "CHUNK": CHUNK,
        }
        return {**flags, "P": self.channels, "N": self.state, "BP": self.block_channels}

    @property
    def block_channels(self) -> int:
        return max(16, power_of_2(self.channels))

    @property
    def wide(self) -> bool:
        """Whether a head's channels need twice the registers that the kernels were laid out for."""
        return self.block_channels > 64

    def block_state(self, most: int) -> int:
        """Channels of k and q that a program holds at a time, of at most so many."""
        return min(most, max(16, power_of_2(self.state)))


class _Chunked(torch.autograd.Function):
    """The recurrence above from the state `initial` [B, heads, P, N]; outputs y and the last state."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dt: Tensor | None,
        a: Tensor | None,
        starts: Tensor | None,
        initial: Tensor | None,
        precision: str,
    ) -> tuple[Tensor, Tensor]:
        z = _Sizes.of(q, k, v)
        constants, share = z.constants(dt, starts, precision), z.outputs // z.heads
        decays = (v if dt is None else dt, v if a is None else a, v if starts is None else starts)
        states = v.new_empty(z.batch, z.chunks, z.heads, z.channels, z.state, dtype=torch.float32)
        kept, final = states.new_empty(z.batch, z.chunks, z.heads), torch.empty_like(states[:, 0])
        sizes = (z.length, z.chunks, z.heads, z.key_heads)
        tile = z.block_state(STATE // 2 if z.wide else STATE)
        grid = (blocks(z.state, tile), z.chunks, z.batch * z.heads)
        settings = {**constants, "BN": tile, "warps": 8 if z.wide else 4}
        launch(ends_kernel, grid, v, k, *decays, states, kept, *sizes, R=1, BACK=False, **settings)
        _pass_states(z, states, kept, initial, final, reverse=False)
        y = v.new_empty(z.batch, z.length, z.outputs, z.channels, dtype=torch.float32)
        own = (z.chunks, z.batch * z.outputs)
        launch(output_kernel, own, q, k, v, *decays, states, y, *sizes, z.query_heads, R=share, **settings)
        ctx.save_for_backward(q, k, v, dt, a, starts, states, kept)  # type: ignore[arg-type]  # None is allowed
        ctx.known = (precision, initial is not None)  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, dt, a, starts, states, kept = ctx.saved_tensors  # type: ignore[attr-defined]
        precision, from_state = ctx.known  # type: ignore[attr-defined]
        z = _Sizes.of(q, k, v)
        constants, share = z.constants(dt, starts, precision), z.outputs // z.heads
        decays = (v if dt is None else dt, v if a is None else a, v if starts is None else starts)
        if grad is None:
            grad = torch.zeros(z.batch, z.length, z.outputs, z.channels, device=v.device)
        grad = grad.contiguous()
        leaving, unused = torch.empty_like(states), torch.empty_like(kept)
        grad_initial = torch.empty_like(states[:, 0])
        tile = z.block_state(STATE // 2 if z.wide else STATE)
        grid = (blocks(z.state, tile), z.chunks, z.batch * z.heads)
        sizes = (z.length, z.chunks, z.heads)
        ends = (grad, q, *decays, leaving, unused, *sizes, z.query_heads)
        launch(ends_kernel, grid, *ends, R=share, BACK=True, **constants, BN=tile, warps=8 if z.wide else 4)
        last = None if grad_final is None else grad_final.contiguous()
        _pass_states(z, leaving, kept, last, grad_initial, reverse=True)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_dt = v if dt is None else torch.empty_like(dt)
        grad_a = torch.empty_like(kept)
        known = (q, k, v, *decays, states, leaving, grad)
        heads = (z.key_heads, z.query_heads)
        by_value = (*known, grad_v, grad_dt, grad_a, *sizes, *heads)
        narrow = {"BN": z.block_state(STATE // 4), "warps": 8, "stages": 1}
        launch(values_kernel, (z.chunks, z.batch * z.heads), *by_value, R=share, **constants, **narrow)
        by_key = (*known, grad_q, grad_k, *sizes, z.key_heads)
        serves = {"S": z.outputs // z.key_heads, "R": share, "SHARED": z.query_heads == z.key_heads}
        constants["BP"] = min(VALUES, z.block_channels)
        grid = (blocks(z.state, narrow["BN"]), z.chunks, z.batch * z.key_heads)
        launch(keys_kernel, grid, *by_key, **serves, **constants, **narrow)
        grads = (grad_q, grad_k, grad_v)
        of_decay = (None, None) if a is None else (grad_dt, grad_a.sum((0, 1)).to(a.dtype))
        return *grads, *of_decay, None, grad_initial if from_state else None, None


def _pass_states(z: _Sizes, states: Tensor, kept: Tensor, first: Tensor | None, last: Tensor, *, reverse: bool) -> None:
    size = z.channels * z.state
    grid = (blocks(size, PASS), z.batch * z.heads)
    args = (states, kept, states if first is None else first, last, z.chunks, z.heads, size)
    launch(pass_kernel, grid, *args, BLOCK=PASS, FIRST=first is not None, REVERSE=reverse)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dt: Tensor | None,
    a: Tensor | None,
    starts: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of this module.

    Args:
        q, k: [B, T, query_heads, N] and [B, T, key_heads, N].
        v: [B, T, heads, P].
        dt, a: steps [B, T, heads] and rates [heads], or None for steps of 1 without decay.
        starts: boolean [B, T] or None.
        initial: [B, heads, P, N] or None.

    Returns:
        y [B, T, max(heads, query_heads), P] and the last state [B, heads, P, N], float32.
    """
    marks = None if starts is None else starts.contiguous().view(torch.uint8)
    state = None if initial is None else initial.float().contiguous()
    steps = None if dt is None else dt.contiguous()
    # where nothing is computed, what training would take is described
    precision = "tf32" if v.is_meta or torch.is_autocast_enabled(v.device.type) else "ieee"
    args = (q.contiguous(), k.contiguous(), v.contiguous(), steps, a, marks, state, precision)
    y, final = _Chunked.apply(*args)
    return y, final
