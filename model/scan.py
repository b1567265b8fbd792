"""The diagonal gated scan h_t = a_t * h_{t-1} + x_t, with its own backward pass.

The recurrence is run for all chunks of C tokens at once, in three phases: every chunk is reduced to the pair
(product of its a, its last state from a zero start); the T / C pairs are composed one after another into the
state that enters each chunk; every chunk is then scanned from its true entering state. The first phase stores no
[B, T, H] tensor, and the last one computes what the step-by-step loop computes, so that no cumulative products
are stored and no logarithms are needed. A reset is a_t = 0: it is exact, because 0 times a finite state is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def _sweep(a: Tensor, x: Tensor, state: Tensor | None, out: Tensor | None) -> Tensor:
    """Scan along the second-to-last dimension ([..., C, H]) from `state` [..., H]; return the last state.

    All states are written into `out`, unless it is None.
    """
    for t in range(x.shape[-2]):
        step = x.select(-2, t)
        target = None if out is None else out.select(-2, t)
        if state is not None:
            state = torch.addcmul(step, a.select(-2, t), state, out=target)
        else:
            state = step if target is None else target.copy_(step)
    assert state is not None
    return state


def forward_scan(a: Tensor, x: Tensor, initial: Tensor | None, chunk: int) -> Tensor:
    """States [B, T, H] of the recurrence; of arguments of one dtype. Autograd does not see it."""
    length = x.shape[1]
    states = torch.empty_like(x, memory_format=torch.contiguous_format)
    count = length // chunk
    whole = count * chunk
    state = initial
    if count > 1:
        a_chunks, x_chunks, h_chunks = (t[:, :whole].unflatten(1, (count, chunk)) for t in (a, x, states))
        ends = _sweep(a_chunks, x_chunks, None, None)
        products = a_chunks.prod(dim=2)
        first = torch.zeros_like(ends[:, 0]) if initial is None else initial
        entering = [first]
        for n in range(count - 1):
            entering.append(torch.addcmul(ends[:, n], products[:, n], entering[-1]))
        state = _sweep(a_chunks, x_chunks, torch.stack(entering, dim=1), h_chunks)[:, -1]
    else:
        whole = 0
    if whole < length:
        _sweep(a[:, whole:], x[:, whole:], state, states[:, whole:])
    return states


def _reverse_sweep(a: Tensor, grad: Tensor, carried: Tensor | None, out: Tensor | None) -> Tensor:
    """Scan [..., C, H] backwards: lambda_t = grad_t + carried, carried = a_t * lambda_t; return what leaves.

    `carried` [..., H] enters from the following token; the adjoint states lambda are written into `out`.
    """
    last = grad.shape[-2] - 1
    adjoint = grad.select(-2, last)
    if carried is not None:
        adjoint = torch.add(adjoint, carried, out=None if out is None else out.select(-2, last))
    elif out is not None:
        adjoint = out.select(-2, last).copy_(adjoint)
    for t in range(last - 1, -1, -1):
        target = None if out is None else out.select(-2, t)
        adjoint = torch.addcmul(grad.select(-2, t), a.select(-2, t + 1), adjoint, out=target)
    return a.select(-2, 0) * adjoint


def backward_scan(a: Tensor, grad: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Adjoint states [B, T, H], which are the gradient of x, and the gradient [B, H] of the initial state."""
    length = grad.shape[1]
    adjoints = torch.empty_like(grad, memory_format=torch.contiguous_format)
    count = length // chunk
    whole = count * chunk if count > 1 else 0
    carried: Tensor | None = None
    if whole < length:
        carried = _reverse_sweep(a[:, whole:], grad[:, whole:], None, adjoints[:, whole:])
    if whole:
        a_chunks, g_chunks, out = (t[:, :whole].unflatten(1, (count, chunk)) for t in (a, grad, adjoints))
        leaving = _reverse_sweep(a_chunks, g_chunks, None, None)
        products = a_chunks.prod(dim=2)
        entering = [torch.zeros_like(leaving[:, 0]) if carried is None else carried]
        for n in range(count - 1, 0, -1):
            entering.append(torch.addcmul(leaving[:, n], products[:, n], entering[-1]))
        carried = _reverse_sweep(a_chunks, g_chunks, torch.stack(entering[::-1], dim=1), out)[:, 0]
    assert carried is not None
    return adjoints, carried


def decay_gradient(adjoints: Tensor, states: Tensor, initial: Tensor | None) -> Tensor:
    """The gradient of a, adjoint_t * h_{t-1} [B, T, H]."""
    grad = torch.empty_like(adjoints)
    torch.mul(adjoints[:, 1:], states[:, :-1], out=grad[:, 1:])
    if initial is None:
        grad[:, 0].zero_()
    else:
        torch.mul(adjoints[:, 0], initial, out=grad[:, 0])
    return grad


class _DiagonalScan(torch.autograd.Function):
    """The scan and its reverse: dx_t = dh_t + a_{t+1} dx_{t+1}, da_t = dx_t * h_{t-1}."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, x: Tensor, initial: Tensor | None, chunk: int) -> Tensor:
        states = forward_scan(a, x, initial, chunk)
        ctx.save_for_backward(a, states, initial)  # type: ignore[arg-type]  # None is allowed
        ctx.chunk = chunk  # type: ignore[attr-defined]
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        a, states, initial = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_x, grad_initial = backward_scan(a, grad, ctx.chunk)  # type: ignore[attr-defined]
        grad_a = decay_gradient(grad_x, states, initial) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        return grad_a, grad_x, None if initial is None else grad_initial, None


def diagonal_scan(a: Tensor, x: Tensor, initial: Tensor | None = None, chunk: int = 32) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t * h_{t-1} + x_t over the tokens of each row (the linear part of arXiv 2606.16093, Eq. 2).

    Half-precision inputs are widened: the recurrence and its state are float32 (float64 stays float64).

    Args:
        a: decay [B, T, H], each in [-1, 1]; 0 forgets everything before (a document start).
        x: input [B, T, H].
        initial: state [B, H] before the first token; None is zero.
        chunk: tokens per chunk, at least 1; tokens that fill no chunk are scanned one by one at the end.

    Returns:
        The states [B, T, H] and the last one [B, H]. Gradients flow to `a`, `x` and `initial`, once.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, x.dtype), torch.float32)
    start = None if initial is None else initial.to(dtype)
    states = _DiagonalScan.apply(a.to(dtype), x.to(dtype), start, chunk)
    return states, states[:, -1]


def diagonal_scan_reference(a: Tensor, x: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition of `diagonal_scan`: one step at a time, differentiated by autograd. Shapes as there."""
    state = torch.zeros_like(x[:, 0]) if initial is None else initial
    states = []
    for t in range(x.shape[1]):
        state = a[:, t] * state + x[:, t]
        states.append(state)
    return torch.stack(states, dim=1), state
