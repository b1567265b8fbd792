"""The SwiGLU feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from model.cache import Memory
from model.config import ModelConfig
from model.init import fill
from model.kernels.dispatch import by_hand, fused
from model.mixer import ROWS, Mixer
from model.rows import Rows


@fused("swiglu")
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate and up [..., F], one behind the other in [..., 2 F] (arXiv 2002.05202)."""
    if not by_hand(gate_up):
        return swiglu_reference(gate_up)
    product: Tensor = _SwiGLU.apply(gate_up)
    return product


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """The definition of `swiglu`, differentiated by autograd."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """The operation with its backward pass written out, for CPUs: both gradients are written where they are wanted."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_reference(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.mul(grad, F.silu(gate), out=grad_up)
        return grad_gate_up


class SwiGLU(Mixer):
    """W_down(silu(W_gate x) * W_up x), without biases (arXiv 2002.05202).

    The gate and the input share one matrix, gate rows first, so that x is read once.

    Args:
        d_model: channels in and out.
        hidden: channels between.
    """

    input_map = "gate_up"

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Map x [..., d_model] to [..., d_model], each token by itself."""
        return self.down(swiglu(self.gate_up(x)))

    def initialise(self, config: ModelConfig) -> None:
        """Gate and input by themselves, so that their joint matrix counts as two maps."""
        for weight in self.gate_up.weight.chunk(2):
            fill(weight, config, "value")
        fill(self.down.weight, config, "out")
