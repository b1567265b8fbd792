"""The SwiGLU feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x), without biases (arXiv 2002.05202).

    The gate and the input share one matrix, gate rows first, so that x is read once.

    Args:
        d_model: channels in and out.
        hidden: channels between.
    """

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d_model] to [..., d_model]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
