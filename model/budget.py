"""What selective attention owes beside the prediction: the loss that holds it to its budget, and its shares."""

from __future__ import annotations

import torch
from torch import Tensor

from model.loss import IGNORE
from model.mixer_config import TaipanConfig


def budget_loss_sum(chosen: list[Tensor], labels: Tensor, budget: float) -> Tensor:
    """Summed over layers and tokens: (C - share of its row's tokens that attend)^2 (arXiv 2410.18572, Eq. 7).

    The share is taken row by row, as the paper's is over a sequence, over the tokens up to the last one with a label,
    so that padding does not enter, and each labelled token bears its row's square. Divided by their number this is
    a mean: no cut of a batch into ranks or micro-batches changes it, because none cuts a row.

    Args:
        chosen: `Selection.weight` [B, T] of each selective layer.
        labels: [B, T], -100 where no token is predicted.
        budget: C.

    Returns:
        A scalar.
    """
    counts = _read(labels).to(chosen[0].dtype)
    shares = torch.stack([(weight * counts).sum(1) for weight in chosen]) / counts.sum(1).clamp(min=1)
    return ((budget - shares).square() * (labels != IGNORE).sum(1)).sum()


def _read(labels: Tensor) -> Tensor:
    """Tokens that are no padding: those up to the last label of their row, boolean [B, T]."""
    return (labels != IGNORE).flip(1).cumsum(1).flip(1) > 0


class Budget:
    """The budget loss of a model over its training, and how many tokens attended since the last reading.

    Args:
        settings: the model's.
        layers: selective layers, n.
    """

    def __init__(self, settings: TaipanConfig, layers: int) -> None:
        self.settings, self.layers, self.step = settings, layers, 0
        self._attended: Tensor | None = None

    def loss(self, chosen: list[Tensor], labels: Tensor) -> Tensor:
        """`budget_loss_sum` times its weight in this step."""
        return self.settings.budget_weight_at(self.step) * budget_loss_sum(chosen, labels, self.settings.budget)

    @torch.no_grad()
    def count(self, chosen: list[Tensor], labels: Tensor) -> None:
        """Add a call's tokens to the reading."""
        counts = _read(labels)
        attended = [((weight > 0.5) & counts).sum() for weight in chosen]
        seen = torch.stack([*attended, counts.sum()]).double()
        self._attended = seen if self._attended is None else self._attended + seen

    def reading(self) -> list[float]:
        """Tokens that attended, layer by layer, and all of them [n + 1], without padding, since the last reading."""
        seen, self._attended = self._attended, None
        return [0.0] * (self.layers + 1) if seen is None else list(map(float, seen.tolist()))
