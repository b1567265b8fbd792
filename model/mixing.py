"""The learned mixture of the parallel branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import BRANCHES


class Mixing(nn.Module):
    """One scalar a branch: w_k = softplus(p_k) / sum_j softplus(p_j) (arXiv 2606.16093, Eq. 3).

    `p` holds the branches in the order of `model.config.BRANCHES`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.empty(len(BRANCHES)))

    def forward(self) -> Tensor:
        """Weights [3], float32 whatever the parameters' dtype, positive, with sum 1."""
        positive = F.softplus(self.p.to(torch.promote_types(self.p.dtype, torch.float32)))
        return positive / positive.sum()
