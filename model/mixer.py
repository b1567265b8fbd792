"""The contract between a block and what it runs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from model.cache import Memory
from model.rows import Rows

ROWS = Rows()
"""Rows of one document each, read at once, without positions."""


class Mixer(nn.Module):
    """A map of the stream, normed, to what is added to it: attention, a recurrence, or a feed-forward network.

    A mixer is causal, lets nothing pass from one document to the next, and gives token by token what it gives at
    once. Beside the two methods here it has `initialise(config)` (see `model.init`), as has every module below it
    that owns parameters, `nn.Linear` excepted. Parameters other than the weights of `nn.Linear` get no weight decay
    (see `model.groups`). A module's parameters are used in its own forward only, and modules are called, never
    reached into: sharding engines gather weights around such calls.
    """

    input_map: ClassVar[str | None] = None
    """Name of the `nn.Linear` through which the mixer reads all that it reads of x; None where there is no such one."""

    def forward(self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None) -> Tensor:
        """Map each row.

        Args:
            x: [B, T, d_model].
            rows: what is known of the rows.
            memory: what `empty_memory` made, with the tokens before these; filled in place. It comes without
                documents and without gradients.

        Returns:
            [B, T, d_model].
        """
        raise NotImplementedError

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory | None:
        """A memory for `batch` rows of at most `max_length` tokens, or None for a map of single tokens.

        `dtype` is for keys and values; the states of recurrences are float32 whatever it is.
        """
        return None

    def release_input_map(self) -> nn.Linear | None:
        """Take the mixer's `input_map` away and return it: `forward` then wants its result in place of x."""
        if self.input_map is None:
            return None
        released: nn.Linear = getattr(self, self.input_map)
        setattr(self, self.input_map, nn.Identity())
        return released
