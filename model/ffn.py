"""The SwiGLU feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import Memory
from model.config import ModelConfig
from model.init import fill
from model.kernels.dispatch import fused
from model.mixer import ROWS, Mixer
from model.rows import Rows


@fused("swiglu")
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate and up [..., F], one behind the other in [..., 2 F] (arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class SwiGLU(Mixer):
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

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Map x [..., d_model] to [..., d_model], each token by itself."""
        return self.down(swiglu(self.gate_up(x)))

    def initialise(self, config: ModelConfig) -> None:
        """Gate and input by themselves, so that their joint matrix counts as two maps."""
        for weight in self.gate_up.weight.chunk(2):
            fill(weight, config, "value")
        fill(self.down.weight, config, "out")
