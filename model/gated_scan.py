"""The gated recurrence of the state space branch, from its projections to its filtered states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from model.kernels.dispatch import by_hand, fused
from model.scan import backward_scan, decay_gradient, diagonal_scan, forward_scan

INPUT_SCALE_FLOOR = 1e-6
"""Least 1 - a^2 under the square root of the RG-LRU input scale; it bounds the derivative at 500."""


class _GatedScan(torch.autograd.Function):
    """The operation with its backward pass written out, for CPUs.

    Of what lies between the projections and the states nothing is kept, and the three gradients are written side by
    side where the projections' gradient is wanted: put together behind autograd's back they cost a copy of all three.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        projected: Tensor,
        gate_bias: Tensor,
        rate: Tensor | None,
        starts: Tensor | None,
        initial: Tensor | None,
        settings: tuple[bool, bool, int],
    ) -> tuple[Tensor, Tensor]:
        drive = _Drive(projected, gate_bias, rate, *settings[:2])
        states = forward_scan(_reset(drive.decay, starts), drive.driven, initial, settings[2])
        ctx.save_for_backward(projected, gate_bias, rate, starts, initial, states)  # type: ignore[arg-type]  # or None
        ctx.settings = settings  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return (states * F.silu(drive.features)).to(projected.dtype), states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        projected, gate_bias, rate, starts, initial, states = ctx.saved_tensors  # type: ignore[attr-defined]
        signed, scaled, chunk = ctx.settings  # type: ignore[attr-defined]
        drive = _Drive(projected, gate_bias, rate, signed, scaled)
        grad = torch.zeros_like(states) if grad is None else grad.to(states.dtype)
        grad_projected = torch.empty_like(projected, dtype=states.dtype)
        grad_inputs, grad_gate, grad_features = grad_projected.chunk(3, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * states, drive.features, grad_input=grad_features)
        grad_states = grad * F.silu(drive.features)
        if grad_final is not None:
            grad_states[:, -1] += grad_final
        decay = _reset(drive.decay, starts)
        adjoints, grad_initial = backward_scan(decay, grad_states, chunk)
        grad_decay = _reset(decay_gradient(adjoints, states, initial), starts)
        by_gate = drive.backward(adjoints, grad_decay, grad_inputs)
        grad_rate = None
        if rate is not None:
            turned = 2 * drive.gate - 1 if signed else drive.gate
            grad_rate = (grad_decay * turned).sum((0, 1)).to(rate.dtype)
            grad_decay *= rate
        by_gate.add_(grad_decay, alpha=2.0 if signed else 1.0)
        torch.ops.aten.sigmoid_backward.grad_input(by_gate, drive.gate, grad_input=grad_gate)
        grad_bias = grad_gate.sum((0, 1)).to(gate_bias.dtype)
        of_state = None if initial is None else grad_initial
        return grad_projected.to(projected.dtype), grad_bias, grad_rate, None, of_state, None


class _Drive:
    """What drives the states: gate, decay before resets, and s * g * u, at least float32 [B, T, H] each."""

    def __init__(self, projected: Tensor, gate_bias: Tensor, rate: Tensor | None, signed: bool, scaled: bool) -> None:
        dtype = torch.promote_types(projected.dtype, torch.float32)
        self.inputs, gate, self.features = projected.to(dtype).chunk(3, dim=-1)
        self.gate = torch.sigmoid(gate + gate_bias.to(dtype))
        self.decay = 2 * self.gate - 1 if signed else self.gate
        if rate is not None:
            self.decay = self.decay * rate.to(dtype)
        self.driven = self.gate * self.inputs
        self.scale: Tensor | None = None
        if scaled:
            # From the decay before any reset: a document's first token is treated alike in every packing.
            self.unscaled, self.room = self.driven, 1 - self.decay.square()
            self.scale = torch.sqrt(self.room.clamp(min=INPUT_SCALE_FLOOR))
            self.driven = self.driven * self.scale

    def backward(self, grad: Tensor, grad_decay: Tensor, grad_inputs: Tensor) -> Tensor:
        """Carry the gradient of s * g * u back: to u, written into `grad_inputs`; to the decay, added to
        `grad_decay`; to the gate, returned."""
        if self.scale is not None:
            of_scale = (grad * self.unscaled * self.decay / self.scale).masked_fill(self.room < INPUT_SCALE_FLOOR, 0)
            grad_decay -= of_scale
            grad = grad * self.scale
        torch.mul(grad, self.gate, out=grad_inputs)
        return grad * self.inputs


def _reset(decay: Tensor, starts: Tensor | None) -> Tensor:
    """0 where a document begins."""
    return decay if starts is None else decay.masked_fill(starts.unsqueeze(-1), 0)


@fused("gated_scan")
def gated_scan(
    projected: Tensor,
    gate_bias: Tensor,
    rate: Tensor | None = None,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    signed: bool = False,
    scaled: bool = False,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t * h_{t-1} + s_t * g_t * u_t and filter the states (arXiv 2606.16093, Eq. 2 and Figure 1).

        g = sigmoid(gate + bias),  a = g * rate,  or (2 g - 1) * rate where `signed`
        s = 1, or sqrt(1 - a^2) where `scaled` (arXiv 2402.19427)
        y = h * silu(filter)

    The recurrence is at least float32, whatever the projections are.

    Args:
        projected: u, gate and filter [B, T, 3 H], one behind the other.
        gate_bias: [H].
        rate: each channel's own decay [H], in (0, 1]; None is 1.
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        initial: state [B, H] before the first token; None is zero.
        signed, scaled: see above.
        chunk: tokens per chunk of the scan; it changes speed, and nothing else beyond rounding.

    Returns:
        y [B, T, H] in the dtype of `projected`, and the last state [B, H].
    """
    if not by_hand(projected):
        return gated_scan_reference(projected, gate_bias, rate, starts, initial, signed, scaled, chunk)
    dtype = torch.promote_types(projected.dtype, torch.float32)
    rate = None if rate is None else rate.to(dtype)
    start = None if initial is None else initial.to(dtype)
    y, final = _GatedScan.apply(projected, gate_bias, rate, starts, start, (signed, scaled, chunk))
    return y, final


def gated_scan_reference(
    projected: Tensor,
    gate_bias: Tensor,
    rate: Tensor | None = None,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    signed: bool = False,
    scaled: bool = False,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """The definition of `gated_scan`, differentiated by autograd. Arguments and results as there."""
    drive = _Drive(projected, gate_bias, rate, signed, scaled)
    states, final = diagonal_scan(_reset(drive.decay, starts), drive.driven, initial, chunk)
    return (states * F.silu(drive.features)).to(projected.dtype), final
