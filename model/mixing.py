"""The learned mixture of the parallel branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.errors import ModelError


class Mixing(nn.Module):
    """Weights of the branches, positive and with sum 1, in the order of `ModelConfig.mixed_branches`.

    `mixing` chooses among
    - "softplus": one scalar a branch, w_k = softplus(p_k) / sum_j softplus(p_j) (arXiv 2606.16093, Eq. 3);
    - "softmax": one scalar a branch, w = softmax(p);
    - "mean": 1/n, nothing learned;
    - "per_channel": Eq. 3 for each channel of the stream by itself, p [n, d];
    - "token_gate": w_t = softmax(p x^_t), p [n, d], so that each token weighs the branches anew.

    The paper has the first; the others are what it does not compare with. All start at 1/n. A single branch needs no
    weighing and no parameter.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.count = len(config.branches)
        self.kind = "mean" if self.count == 1 else config.mixing
        shapes = {"softplus": (self.count,), "softmax": (self.count,), "mean": None}
        shape = shapes.get(self.kind, (self.count, config.d_model))
        self.p = None if shape is None else nn.Parameter(torch.empty(shape))
        self._last: Tensor | None = None

    def forward(self, normed: Tensor) -> Tensor:
        """Weights for the branches of normed [B, T, d], float32 whatever the parameters' dtype.

        Returns:
            [n], or [n, d] ("per_channel"), or [n, B, T, 1] ("token_gate").
        """
        if self.p is not None and self.kind == "token_gate":
            with torch.autocast(normed.device.type, enabled=False):
                weights = F.linear(*_widened(normed, self.p)).softmax(dim=-1)
            self._last = weights.detach().mean(dim=(0, 1))
            return weights.movedim(-1, 0).unsqueeze(-1)
        return self._fixed(normed.device)

    @torch.no_grad()
    def average(self) -> Tensor:
        """The weights [n], float32, averaged over channels and, for "token_gate", over the last call's tokens.

        Raises:
            ModelError: the mixing scalars are sharded away and must be gathered first.
        """
        if self.p is not None and self.p.numel() == 0:
            raise ModelError("The mixing scalars are sharded over ranks; gather them before reading them.")
        if self.kind == "token_gate":
            return torch.full((self.count,), 1 / self.count) if self._last is None else self._last
        weights = self._fixed(torch.device("cpu") if self.p is None else self.p.device)
        return weights.mean(dim=1) if weights.ndim == 2 else weights

    def initialise(self, config: ModelConfig) -> None:
        """Parameters start at 0, and the branches so at 1/n each."""
        if self.p is not None:
            nn.init.zeros_(self.p)

    def _fixed(self, device: torch.device) -> Tensor:
        """The weights of every kind that does not look at the tokens."""
        if self.p is None:
            return torch.full((self.count,), 1 / self.count, device=device)
        (p,) = _widened(self.p)
        if self.kind == "softmax":
            return p.softmax(dim=0)
        positive = F.softplus(p)
        return positive / positive.sum(dim=0)


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)
